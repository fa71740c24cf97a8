"""Bicubic resizing of feature maps, as torch computes it.

`jax.image.resize(..., 'cubic')` is another function: a = -0.5 and weights that are renormalised at the border, where
torch has a = -0.75 and repeats the border. [0, 1, 2, 3] on 8 places begins with -0.281 in torch and -0.088 in jax (DDAP
spec 3.4).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from core.errors import UserError
from core.weights.resize import bicubic as matrix


def bicubic(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """`torch.nn.functional.interpolate(mode='bicubic', align_corners=False)`, without antialiasing, on NHWC.

  Args:
    x: f [..., H, W, C].
    size: (rows, columns) wanted.

  Returns:
    f32 [..., rows, columns, C]; may leave the range of x, as bicubic interpolation does at edges.
  """
  if x.ndim < 3 or min(*x.shape[-3:-1], *size) < 1:
    raise UserError(f'bicubic: found an array of shape {x.shape} and size {size}; expected [..., H, W, C], sides >= 1.')
  rows, columns = (
    jnp.asarray(matrix(x.shape[axis], wanted, False), jnp.float32) for axis, wanted in zip((-3, -2), size)
  )
  # Weights of a resize are no place for the 10 bits of TF32, which matrix products have by default on a GPU.
  exact = jax.lax.Precision.HIGHEST
  x = jnp.einsum('ri,...ijc->...rjc', rows, x.astype(jnp.float32), precision=exact)
  return jnp.einsum('sj,...rjc->...rsc', columns, x, precision=exact)
