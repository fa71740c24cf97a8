"""Optimisers: an optax transformation, with the schedule beside it so that the log can show the learning rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from core.errors import UserError, nearest

NAMES = ('adam', 'adamw', 'sgd')
SCHEDULES = ('constant', 'cosine', 'linear')


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """What `Stage.optimizer` expects.

  Attributes:
    transformation: gradients -> updates, initialised over the trainable leaves only.
    schedule: step (i32, counted from the start of the stage) -> learning rate; only read by the log.
  """

  transformation: optax.GradientTransformation
  schedule: Callable[[Any], Any]


def build(config: Any, steps: int) -> Optimizer:
  """The optimiser that a config section describes.

  Order of the chain: clipping of the global norm, weight decay added to the gradient (sgd and adam: L2; adamw:
  decoupled, after the moments), the schedule. Weight decay leaves out biases, norms and scales (leaves with fewer than
  two axes), as is the habit in training transformers.

  Args:
    config: attributes name ('adam', 'adamw', 'sgd'), learning_rate > 0, schedule ('constant', 'cosine', 'linear': the
      decay to zero at `steps`), warmup_steps (linear from zero), weight_decay >= 0, momentum (sgd only; 0 = none),
      clip_norm (0 = off).
    steps: optimiser steps of the stage, warm-up included.

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
  if config.name == 'sgd':
    if config.momentum > 0:
      chain.append(optax.trace(config.momentum))
  else:
    chain.append(optax.scale_by_adam())
  if decay is not None and config.name == 'adamw':
    chain.append(decay)
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
  else:
    raise UserError(
      f"optim.schedule is '{config.schedule}', expected one of {SCHEDULES}.{nearest(config.schedule, SCHEDULES)}"
    )
  if config.warmup_steps == 0:
    return main
  return optax.join_schedules([optax.linear_schedule(0.0, rate, config.warmup_steps), main], [config.warmup_steps])


def _decayed(params: Any) -> Any:
  """True for the leaves that weight decay shrinks: matrices and kernels."""
  return jax.tree.map(lambda leaf: jnp.ndim(leaf) >= 2, params)
