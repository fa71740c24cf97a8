"""The budget of a perturbation: how far each value of an image may move, and the nearest image that keeps to it.

  Π(x) = clip(x0 + clip(x - x0, -r, r), low, high),   r = M ε + (1 - M) ε_out

(DDAP spec 3.5; the two budgets are HF-ADB's.) With a hard mask this is HF-ADB's clip(d, ±ε) M + clip(d, ±ε_out) (1 - M)
bit for bit; with a soft one the mask scales the budget (our choice), so that Π leaves alone what it has given: factors
on the perturbation itself would shrink it again at every step.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Number = float | jax.Array


def radius(epsilon: Number, mask: jax.Array | None = None, outside: Number = 0.0) -> jax.Array:
  """How far each value may move: `epsilon` where the mask is 1, `outside` where it is 0; [] without a mask."""
  if mask is None:
    return jnp.asarray(epsilon, jnp.float32)
  return mask * epsilon + (1 - mask) * outside


def project(
  x: jax.Array,
  x0: jax.Array,
  epsilon: Number,
  mask: jax.Array | None = None,
  outside: Number = 0.0,
  low: float = -1.0,
  high: float = 1.0,
) -> jax.Array:
  """The image nearest to `x` within the budget around `x0`. Differentiable almost everywhere.

  Args:
    x: f [..., H, W, C].
    x0: the original, like `x`, in low..high.
    epsilon: the largest change, in the unit of `x`.
    mask: [..., H, W, 1] in 0..1, where `epsilon` holds; None: everywhere.
    outside: the largest change where the mask is 0; with 0 the original stays there, bit for bit.
    low: the least value of an image.
    high: the greatest.
  """
  most = radius(epsilon, mask, outside)
  return jnp.clip(x0 + jnp.clip(x - x0, -most, most), low, high)
