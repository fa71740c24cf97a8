"""Optimisers: an optax transformation, with the schedule beside it so that the log can show the learning rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from core.errors import UserError, nearest

NAMES = ('adam', 'adamw', 'sgd', 'nesterov')
SCHEDULES = ('constant', 'cosine', 'linear', 'onecycle')


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """What `Stage.optimizer` expects.

  Attributes:
    transformation: gradients -> updates, initialised over the trainable leaves only.
    schedule: step (i32, counted from the start of the stage) -> learning rate; only read by the log.
  """

  transformation: optax.GradientTransformation
  schedule: Callable[[Any], Any]


def build(config: Any, steps: int, rates: Mapping[str, float] = MappingProxyType({})) -> Optimizer:
  """The optimiser that a config section describes.

  Order of the chain: clipping of the global norm, weight decay added to the gradient (sgd, nesterov and adam: L2;
  adamw: decoupled, after the moments), the rates of parts, the schedule. Weight decay leaves out biases, norms and
  scales (leaves with fewer than two axes), as is the habit in training transformers.

  Args:
    config: attributes name (`NAMES`), learning_rate > 0, schedule ('constant', 'cosine', 'linear': the decay to zero at
      `steps`; 'onecycle': up for 30% of the steps and down again, cosines, without a warm-up of its own), warmup_steps
      (linear from zero), weight_decay >= 0, momentum (sgd and nesterov; 0 = none), clip_norm (0 = off).
    steps: optimiser steps of the stage, warm-up included.
    rates: {beginning of a '/'-joined parameter path: factor on the learning rate}; the longest that fits counts, other
      leaves have 1: {'encoder/': 0.1} fine-tunes a pretrained encoder more gently than what stands on it.

  Raises:
    UserError: an unknown name or schedule, or a number outside its range.
  """
  if config.name not in NAMES:
    raise UserError(f"optim.name is '{config.name}', expected one of {NAMES}.{nearest(config.name, NAMES)}")
  for key, low in (('warmup_steps', 0), ('weight_decay', 0), ('momentum', 0), ('clip_norm', 0)):
    if config[key] < low:
      raise UserError(f'optim.{key} is {config[key]}, expected a number >= {low}.')
  schedule = build_schedule(config, steps)
  chain = []
  if config.clip_norm > 0:
    chain.append(optax.clip_by_global_norm(config.clip_norm))
  decay = optax.add_decayed_weights(config.weight_decay, mask=_decayed) if config.weight_decay > 0 else None
  if decay is not None and config.name != 'adamw':
    chain.append(decay)
  if config.name in ('sgd', 'nesterov'):
    if config.momentum > 0:
      chain.append(optax.trace(config.momentum, nesterov=config.name == 'nesterov'))
  else:
    chain.append(optax.scale_by_adam())
  if decay is not None and config.name == 'adamw':
    chain.append(decay)
  if rates:
    chain.append(_scaled_by_part(dict(rates)))
  chain.append(optax.scale_by_learning_rate(schedule))
  return Optimizer(optax.chain(*chain), schedule)


def build_schedule(config: Any, steps: int) -> optax.Schedule:
  """Step -> learning rate: a linear warm-up from zero, then constant, or a decay that reaches zero at `steps`."""
  if config.learning_rate <= 0:
    raise UserError(f'optim.learning_rate is {config.learning_rate}, expected a number > 0.')
  if config.warmup_steps >= steps and config.warmup_steps > 0:
    raise UserError(f'optim.warmup_steps is {config.warmup_steps}, expected fewer than the {steps} steps of the stage.')
  rate, rest = config.learning_rate, max(steps - config.warmup_steps, 1)
  if config.schedule == 'constant':
    main = optax.constant_schedule(rate)
  elif config.schedule == 'cosine':
    main = optax.cosine_decay_schedule(rate, rest)
  elif config.schedule == 'linear':
    main = optax.linear_schedule(rate, 0.0, rest)
  elif config.schedule == 'onecycle':
    if config.warmup_steps:
      raise UserError(f"optim.warmup_steps is {config.warmup_steps}, expected 0 with the schedule 'onecycle'.")
    main = optax.cosine_onecycle_schedule(steps, rate)
  else:
    raise UserError(
      f"optim.schedule is '{config.schedule}', expected one of {SCHEDULES}.{nearest(config.schedule, SCHEDULES)}"
    )
  if config.warmup_steps == 0:
    return main
  return optax.join_schedules([optax.linear_schedule(0.0, rate, config.warmup_steps), main], [config.warmup_steps])


def _scaled_by_part(rates: Mapping[str, float]) -> optax.GradientTransformation:
  """Updates {path: array} times the rate of the part that their path begins with."""

  def rate(path: str) -> float:
    return rates[max((start for start in rates if path.startswith(start)), key=len, default='')]

  rates = {'': 1.0, **rates}
  return optax.stateless(lambda updates, params: {path: leaf * rate(path) for path, leaf in updates.items()})


def _decayed(params: Any) -> Any:
  """True for the leaves that weight decay shrinks: matrices and kernels."""
  return jax.tree.map(lambda leaf: jnp.ndim(leaf) >= 2, params)
