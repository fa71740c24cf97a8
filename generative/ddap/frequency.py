"""Frequency perturbation learning: steps on the coefficients of fine detail (spec 3.3). Pure functions of arrays.

  S = α_f H ⊙ sign(D ∇L),   x <- Π(x + M ⊙ D⁻¹ S),   α_f = α sqrt(64 / kept coefficients)

D, the cosine transform of 8x8 blocks, is orthonormal (`core.metrics.frequency`): D ∇L is the gradient with respect to
the coefficients, and nothing is differentiated through D. The published summary says no more than blocks, cosine
transform and high-frequency detail: H, α_f and the additive sign step are our choice.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from core.metrics.frequency import BLOCK, block_dct, block_idct, dct_matrix, detail_mask

RHO, SIGMA = 0.5, 32 / 255
"""Spectrum augmentation: spread of the random mask, and deviation of the noise, 16 levels, in -1..1 (spec 3.3, SSA)."""


def detail_weights(k0: int) -> np.ndarray:
  """H, f32 [8, 8]: 1 for the coefficients [u, v] with u + v >= k0."""
  return detail_mask(k0).astype(np.float32)


def matched_step(step: float, k0: int) -> float:
  """α_f: the step on the kept coefficients that is as long, in L2 per block, as a step of `step` on every pixel."""
  return step * math.sqrt(BLOCK**2 / detail_mask(k0).sum())


def detail_direction(gradient: jax.Array, step: float | jax.Array, detail: jax.Array) -> jax.Array:
  """D⁻¹(step H ⊙ sign(D gradient)).

  Args:
    gradient: f [..., H, W, C], H and W multiples of 8.
    step: α_f, in the unit of the photo.
    detail: H, f [8, 8].

  Returns:
    f32 like `gradient`; nothing of it lies in the coefficients that H leaves out, the mean of a block included.
  """
  return block_idct(step * detail[:, :, None] * jnp.sign(block_dct(gradient)))


def spectrum_aug(x: jax.Array, keys: jax.Array, rho: float = RHO, sigma: float = SIGMA) -> jax.Array:
  """D⁻¹(D(x + ξ) ⊙ m) with the cosine transform D of the whole photo (spectrum simulation, arXiv 2207.05382).

  The gradient AT such photos, averaged over draws, carries over to other networks better than that at x.

  Args:
    x: f32 [B, H, W, C] in -1..1.
    keys: [B].
    rho: m ~ U(1 - rho, 1 + rho).
    sigma: ξ ~ N(0, sigma²).
  """
  rows, columns = dct_matrix(x.shape[1]), dct_matrix(x.shape[2])
  exact = {'precision': jax.lax.Precision.HIGHEST}

  def one(x: jax.Array, key: jax.Array) -> jax.Array:
    noise, mask = jax.random.split(key)
    x = x + sigma * jax.random.normal(noise, x.shape)
    spectrum = jnp.einsum('un,vm,nmc->uvc', rows, columns, x, **exact)
    spectrum *= jax.random.uniform(mask, x.shape, minval=1 - rho, maxval=1 + rho)
    return jnp.einsum('un,vm,uvc->nmc', rows, columns, spectrum, **exact)

  return jax.vmap(one)(x, keys)
