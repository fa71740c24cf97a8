"""Bicubic resizing of feature maps, as torch computes it.

`jax.image.resize(..., 'cubic')` is another function: a = -0.5 and weights that are renormalised at the border, where
torch has a = -0.75 and repeats the border. [0, 1, 2, 3] on 8 places begins with -0.105 in torch and -0.088 in jax (DDAP
spec 3.4).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError


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
    jnp.asarray(bicubic_matrix(x.shape[axis], wanted, False), jnp.float32) for axis, wanted in zip((-3, -2), size)
  )
  # Weights of a resize are no place for the 10 bits of TF32, which matrix products have by default on a GPU.
  exact = jax.lax.Precision.HIGHEST
  x = jnp.einsum('ri,...ijc->...rjc', rows, x.astype(jnp.float32), precision=exact)
  return jnp.einsum('sj,...rjc->...rsc', columns, x, precision=exact)


def bicubic_matrix(size: int, wanted: int, antialias: bool) -> np.ndarray:
  """The matrix [wanted, size] of a 1-D bicubic resize with half-pixel centres.

  Without antialias, samples outside are those of the border; with it, the kernel widens with the shrink factor, is cut
  at the border and normalised.
  """
  scale = size / wanted
  centres = (np.arange(wanted) + 0.5) * scale - 0.5
  if antialias:
    widen = max(scale, 1.0)
    weights = _cubic((np.arange(size)[None] - centres[:, None]) / widen, -0.5)
    return weights / weights.sum(axis=1, keepdims=True)
  matrix, first = np.zeros((wanted, size)), np.floor(centres).astype(int)
  for tap in range(-1, 3):
    index = np.clip(first + tap, 0, size - 1)
    np.add.at(matrix, (np.arange(wanted), index), _cubic(first + tap - centres, -0.75))
  return matrix


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
  """Keys' cubic convolution kernel."""
  x = np.abs(x)
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = (((x - 5) * x + 8) * x - 4) * a
  return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
