"""How far a changed picture is from the original: PSNR, SSIM, budgets, and its displacement in a latent space.

Every function takes arrays [..., H, W, C] and gives one f32 number per image, [...]; all are jit-able. `data_range` is
the width of the interval the values live in: 2 for -1..1, 1 for 0..1, 255 for 8 bits. It has no default, for a wrong
one is the usual reason why two published numbers differ. Published tables compare 8-bit pictures (DDAP spec 5): round
first.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError

WINDOW, SIGMA = 11, 1.5
"""SSIM's Gaussian window, in pixels (Wang et al. 2004, section III-C)."""
K1, K2 = 0.01, 0.03
"""SSIM's constants, in units of the data range."""
IMAGE = (-3, -2, -1)
"""The axes of one image."""


def psnr(image: jax.Array, original: jax.Array, *, data_range: float) -> jax.Array:
  """Peak signal-to-noise ratio, 10 log10(data_range^2 / mean squared error), in dB; infinite for equal images.

  Args:
    image: [..., H, W, C].
    original: the same shape.
    data_range: width of the interval of values.

  Returns:
    f32 [...], the error averaged over pixels and channels.
  """
  image, original = _pair(image, original, data_range)
  return 10 * jnp.log10(data_range**2 / jnp.square(image - original).mean(IMAGE))


def ssim(image: jax.Array, original: jax.Array, *, data_range: float) -> jax.Array:
  """Structural similarity (Wang et al. 2004) of each channel, averaged over channels and positions.

  Gaussian window of 11 pixels and sigma 1.5, population statistics, windows inside the image only: the paper's, and
  `skimage.metrics.structural_similarity(..., gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
  channel_axis=-1)`. (scikit-image's own defaults are a flat window of 7 and other numbers.)

  Args:
    image: [..., H, W, C], H and W at least 11.
    original: the same shape.
    data_range: width of the interval of values.

  Returns:
    f32 [...], at most 1, which only equal images reach.

  Raises:
    UserError: the image is smaller than the window.
  """
  x, y = _pair(image, original, data_range)
  if min(x.shape[-3:-1]) < WINDOW:
    raise UserError(f'SSIM needs at least {WINDOW} x {WINDOW} pixels, found {x.shape[-3]} x {x.shape[-2]}.')
  # Variances do not change with a common shift, but E[x^2] - E[x]^2 is exact in f32 only near zero.
  centre = (x.mean(IMAGE, keepdims=True) + y.mean(IMAGE, keepdims=True)) / 2
  x, y = x - centre, y - centre
  mean_x, mean_y, xx, yy, xy = (_blur(each) for each in (x, y, x * x, y * y, x * y))
  variance_x, variance_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
  mean_x, mean_y = mean_x + centre, mean_y + centre
  c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
  luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
  structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
  return (luminance * structure).mean(IMAGE)


def linf(image: jax.Array, original: jax.Array, *, data_range: float) -> jax.Array:
  """Largest change of any value, in 8-bit levels: 255 max|image - original| / data_range (spec 2, "budget units")."""
  image, original = _pair(image, original, data_range)
  return jnp.abs(image - original).max(IMAGE) * (255 / data_range)


def l2(image: jax.Array, original: jax.Array, *, data_range: float) -> jax.Array:
  """Euclidean length of the change, values scaled to 0..1 as the field of adversarial examples states it."""
  image, original = _pair(image, original, data_range)
  return jnp.sqrt(jnp.square(image - original).sum(IMAGE)) / data_range


def latent_displacement(latents: jax.Array, original: jax.Array, mask: jax.Array | None = None) -> jax.Array:
  """Squared distance of latents relative to the original's squared length, |z - z0|^2 / |z0|^2 (spec 5).

  Args:
    latents: [..., h, w, D], posterior means: two samples differ without any perturbation.
    original: those of the original photo.
    mask: [..., H, W, 1] in 0..1, H and W multiples of h and w: weights, averaged over the pixels of each latent.

  Returns:
    f32 [...]; NaN where the mask is empty.
  """
  latents, original = _pair(latents, original, 1.0)
  weights = 1.0 if mask is None else pooled(jnp.asarray(mask, jnp.float32), original.shape[-3:-1])
  return (weights * jnp.square(latents - original)).sum(IMAGE) / (weights * jnp.square(original)).sum(IMAGE)


def pooled(mask: jax.Array, size: tuple[int, int]) -> jax.Array:
  """mask [..., H, W, 1] averaged to [..., h, w, 1]."""
  *lead, height, width, _ = mask.shape
  rows, columns = size
  if height % rows or width % columns:
    raise UserError(f'a mask of {height} x {width} does not divide into latents of {rows} x {columns}.')
  return mask.reshape(*lead, rows, height // rows, columns, width // columns, 1).mean((-4, -2))


def _blur(x: jax.Array) -> jax.Array:
  """x [..., H, W, C] -> [..., H - 10, W - 10, C]: the mean under SSIM's window, wherever the window fits.

  Sums of shifted slices and not a convolution: on a GPU one of those would round f32 to 10 bits.
  """
  weights = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / SIGMA) ** 2)
  weights = (weights / weights.sum()).astype(np.float32)
  for axis in (x.ndim - 3, x.ndim - 2):
    length = x.shape[axis] - WINDOW + 1
    x = sum(weight * jax.lax.slice_in_dim(x, k, k + length, axis=axis) for k, weight in enumerate(weights))
  return x


def _pair(image: jax.Array, original: jax.Array, data_range: float) -> tuple[jax.Array, jax.Array]:
  """Both in f32 (differences of unsigned bytes wrap around), after checks that shapes and range make sense."""
  if jnp.ndim(image) < 3 or jnp.shape(image) != jnp.shape(original):
    raise UserError(
      f'two images of one shape [..., height, width, channels] are compared,'
      f' found {jnp.shape(image)} and {jnp.shape(original)}.'
    )
  if not data_range > 0:
    raise UserError(f'data_range {data_range}: expected the width of the interval of values (2 for -1..1, or 1, 255).')
  return jnp.asarray(image, jnp.float32), jnp.asarray(original, jnp.float32)
