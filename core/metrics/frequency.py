"""The 8x8 block cosine transform of JPEG, orthonormal, and the share of a perturbation that lies in fine detail.

  C[k, n] = a_k sqrt(2 / N) cos(pi (2n + 1) k / 2N),  a_0 = 1 / sqrt(2), else 1;      D: every block X -> C X C^T

(DDAP spec 3.3.) D is orthonormal: it keeps lengths, its inverse is its transpose, and the gradient with respect to the
coefficients is D of the gradient with respect to the pixels. All functions are of arrays, jit-able and differentiable.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError

BLOCK = 8
"""Pixels along a side of a block, as in JPEG."""
DETAIL = 4
"""k0: coefficients with u + v >= k0 are detail, 54 of the 64 (spec 3.3, our choice)."""


def dct_matrix(size: int = BLOCK) -> np.ndarray:
  """f32 [size, size], C above: row k is the cosine of frequency k; C C^T = 1."""
  k, n = np.arange(size)[:, None], np.arange(size)[None]
  matrix = np.sqrt(2 / size) * np.cos(np.pi * (2 * n + 1) * k / (2 * size))
  matrix[0] /= np.sqrt(2)
  return matrix.astype(np.float32)


def detail_mask(least: int = DETAIL, size: int = BLOCK) -> np.ndarray:
  """bool [size, size]: which coefficients [u, v] have u + v >= `least`; 0 is all of them, the mean included."""
  k = np.arange(size)
  return k[:, None] + k[None] >= least


def block_dct(x: jax.Array, size: int = BLOCK) -> jax.Array:
  """Coefficients of every block and channel.

  Args:
    x: [..., H, W, C] in any range, H and W multiples of `size`.
    size: pixels along a side of a block.

  Returns:
    f32 [..., H / size, W / size, size (u, vertical), size (v, horizontal), C].

  Raises:
    UserError: H or W is not a multiple of `size`.
  """
  x = jnp.asarray(x, jnp.float32)
  *lead, height, width, channels = x.shape
  if height % size or width % size:
    raise UserError(
      f'an image of {height} x {width} pixels has no whole blocks of {size} x {size}:'
      f' crop it to {height - height % size} x {width - width % size}.'
    )
  x = x.reshape(*lead, height // size, size, width // size, size, channels)
  matrix = dct_matrix(size)
  # The highest precision: on a GPU a product of f32 is otherwise rounded to 10 bits, and D is no longer orthonormal.
  return jnp.einsum('un,vm,...injmc->...ijuvc', matrix, matrix, x, precision=jax.lax.Precision.HIGHEST)


def block_idct(coefficients: jax.Array) -> jax.Array:
  """The inverse of `block_dct`: [..., h, w, u, v, C] -> f32 [..., h u, w v, C]."""
  coefficients = jnp.asarray(coefficients, jnp.float32)
  *lead, rows, columns, size, _, channels = coefficients.shape
  matrix = dct_matrix(size)
  x = jnp.einsum('un,vm,...ijuvc->...injmc', matrix, matrix, coefficients, precision=jax.lax.Precision.HIGHEST)
  return x.reshape(*lead, rows * size, columns * size, channels)


def hf_share(delta: jax.Array, least: int = DETAIL) -> jax.Array:
  """Share of a perturbation's energy in the coefficients with u + v >= `least` (spec 5, "HF share").

  White noise has 54/64 = 0.844 at the default.

  Args:
    delta: [..., H, W, C], protected minus original photo in any unit, H and W multiples of 8.
    least: k0.

  Returns:
    f32 [...] in 0..1, one per image; NaN for a perturbation of zeros.
  """
  energy = jnp.square(block_dct(delta)).sum((-5, -4, -1))  # over blocks and channels, which leaves [..., u, v]
  return (energy * detail_mask(least)).sum((-2, -1)) / energy.sum((-2, -1))
