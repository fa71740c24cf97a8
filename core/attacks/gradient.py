"""Steps along a gradient within a budget: the sign step, FGSM (arXiv 1412.6572) and PGD (arXiv 1706.06083).

A loss here is a function (x [B, H, W, C], key) -> f32 []. It is raised; negate it to lower it. Let it be a SUM over
images: then no image's direction depends on its batch. `key` is one key, or [B] of them, one per image, for noise that
does not depend on the batch either; the loss is given what it was given, anew for every step.

Everything is in the unit of x. A level of 8 bits is 1 / 127.5 in -1..1 and 1 / 255 in 0..1: the usual trap.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from core.attacks.projection import Number, project, radius

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def move(
  x: jax.Array,
  x0: jax.Array,
  direction: jax.Array,
  epsilon: Number,
  mask: jax.Array | None = None,
  outside: Number = 0.0,
  low: float = -1.0,
  high: float = 1.0,
) -> jax.Array:
  """Π(x + share * direction), where the share of a pixel is its part of the full budget: its mask, if `outside` is 0.

  Args:
    x: f [..., H, W, C], within the budget.
    x0: the original.
    direction: like `x`, the length of the step in it.
    epsilon, mask, outside, low, high: as in `core.attacks.projection.project`.
  """
  if mask is not None:
    direction = direction * radius(1.0, mask, outside / jnp.maximum(epsilon, jnp.finfo(jnp.float32).tiny))
  return project(x + direction, x0, epsilon, mask, outside, low, high)


def sign_step(x: jax.Array, x0: jax.Array, gradient: jax.Array, step: Number, epsilon: Number, *budget) -> jax.Array:
  """Π(x + step * sign(gradient)); `budget`: mask, outside, low, high of `move`. A gradient of 0 moves nothing."""
  return move(x, x0, step * jnp.sign(gradient), epsilon, *budget)


def random_start(keys: jax.Array, x0: jax.Array, epsilon: Number, *budget) -> jax.Array:
  """Π(x0 + U(-epsilon, epsilon)) with a key per image [B]; the budget is that of `epsilon`."""
  noise = jax.vmap(lambda key: jax.random.uniform(key, x0.shape[1:], minval=-1.0))(keys)
  return move(x0, x0, epsilon * noise, epsilon, *budget)


def random_signs(keys: jax.Array, x0: jax.Array, epsilon: Number, *budget) -> jax.Array:
  """Π(x0 ± epsilon), signs by chance, with a key per image [B]: the perturbation that knows nothing."""
  signs = jax.vmap(lambda key: jax.random.rademacher(key, x0.shape[1:], jnp.float32))(keys)
  return move(x0, x0, epsilon * signs, epsilon, *budget)


def fgsm(loss: Loss, x0: jax.Array, key: jax.Array, *budget, epsilon: Number) -> jax.Array:
  """One step of the whole budget: Π(x0 + epsilon * sign(gradient of the loss at x0))."""
  return sign_step(x0, x0, jax.grad(loss)(x0, key), epsilon, epsilon, *budget)


def pgd(
  loss: Loss,
  x0: jax.Array,
  key: jax.Array,
  *budget,
  epsilon: Number,
  step: Number,
  steps: int,
  start: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Sign steps within the budget.

  Args:
    loss: (x, key) -> f32 [].
    x0: f [B, H, W, C], the originals.
    key: one key or [B]; step i's loss is given `fold_in(key, i)`.
    *budget: mask, outside, low, high, as in `move`.
    epsilon: the largest change.
    step: length of a step.
    steps: their number.
    start: where to begin, `random_start` say; None: at x0, where a loss that is a distance from x0 has no gradient.

  Returns:
    (x [B, H, W, C], the loss before every step f32 [steps]).
  """

  def body(x: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
    value, gradient = jax.value_and_grad(loss)(x, fold(key, i))
    return sign_step(x, x0, gradient, step, epsilon, *budget), value

  return jax.lax.scan(body, x0 if start is None else start, jnp.arange(steps))


def fold(keys: jax.Array, i: int | jax.Array) -> jax.Array:
  """`fold_in` of one key, or of each of [B]."""
  if keys.ndim:
    return jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
  return jax.random.fold_in(keys, i)
