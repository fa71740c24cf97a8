"""The camera: linear light in, a picture in [0, 1] out.

Order as in a real pipeline: exposure -> optics (blur, vignette, motion) -> colour filters (3x3 matrix, white balance)
-> shot and read noise -> tone curve -> sharpening -> JPEG. All magnitudes are our choice.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class CameraParams:
  """One camera in one situation; f32 scalars. Blurs and noise are in pixels of the crop and in units of full scale."""

  exposure: jax.Array  # mean of the linear picture after automatic exposure
  blur: jax.Array  # sd of the lens blur, px
  motion: jax.Array  # extra sd along x, px
  vignette: jax.Array  # loss in the corners, 0..1
  warmth: jax.Array  # white balance error: > 0 orange, < 0 blue
  green: jax.Array  # white balance error: > 0 green, < 0 magenta
  saturation: jax.Array  # 1 as seen
  hue: jax.Array  # cross-talk of the colour filters, -1..1
  noise: jax.Array  # sd of the noise at full scale
  contrast: jax.Array  # strength of the S-shaped tone curve, 0..1
  gamma: jax.Array  # encoding exponent, sRGB is about 2.2
  sharpen: jax.Array  # gain of the unsharp mask
  jpeg: jax.Array  # step of the quantiser in 1/255: 0 for none, about 30 for a poor webcam


def blur(image: jax.Array, sd_x: jax.Array, sd_y: jax.Array) -> jax.Array:
  """Gaussian blur of [S, S, 3] by two banded matrices: any (traced) sd costs the same; edges are renormalised."""
  place = jnp.arange(image.shape[0], dtype=jnp.float32)
  square = (place[:, None] - place) ** 2

  def matrix(sd):
    weights = jnp.exp(-0.5 * square / jnp.maximum(sd, 0.05) ** 2)
    return weights / weights.sum(1, keepdims=True)

  return jnp.einsum('ia,jb,abc->ijc', matrix(sd_y), matrix(sd_x), image, optimize='optimal')


def encode(linear: jax.Array, gamma: jax.Array | float = 2.2) -> jax.Array:
  """Linear light -> picture values."""
  return jnp.maximum(linear, 1e-5) ** (1.0 / gamma)


def decode(picture: jax.Array, gamma: jax.Array | float = 2.2) -> jax.Array:
  """Picture values -> linear light."""
  return jnp.maximum(picture, 0.0) ** gamma


def _dct_matrix() -> np.ndarray:
  k, n = np.mgrid[0:8, 0:8]
  matrix = np.cos(np.pi * (2 * n + 1) * k / 16) * 0.5
  matrix[0] /= np.sqrt(2.0)
  return matrix.astype(np.float32)


_DCT = _dct_matrix()
_YCC = np.array([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]], np.float32)
_RGB = np.linalg.inv(_YCC).astype(np.float32)
# The quantiser grows with frequency (a plane through the standard's luminance table) and twice as fast for chroma.
_STEPS = (0.6 + 0.28 * (np.mgrid[0:8, 0:8].sum(0)))[..., None] * np.array([1.0, 2.0, 2.0])


def jpeg(image: jax.Array, step: jax.Array) -> jax.Array:
  """Quantises the 8x8 cosine transform of [S, S, 3] in YCbCr with steps of about `step` / 255; 0 leaves it alone."""
  size = image.shape[0]
  pad = -size % 8
  padded = jnp.pad(image, ((0, pad), (0, pad), (0, 0)), mode='edge') @ _YCC.T
  blocks = padded.reshape((size + pad) // 8, 8, (size + pad) // 8, 8, 3)
  spectrum = jnp.einsum('ua,iajbc,vb->ijuvc', _DCT, blocks, _DCT)
  steps = jnp.asarray(_STEPS, jnp.float32) * jnp.maximum(step, 1e-3) / 255.0
  spectrum = jnp.round(spectrum / steps) * steps
  blocks = jnp.einsum('ua,ijuvc,vb->iajbc', _DCT, spectrum, _DCT)
  return blocks.reshape(size + pad, size + pad, 3)[:size, :size] @ _RGB.T


def capture(key: jax.Array, light: jax.Array, params: CameraParams) -> jax.Array:
  """Takes a picture.

  Args:
    key: randomness of the noise.
    light: linear light f32 [S, S, 3].
    params: the camera.

  Returns:
    The picture, f32 [S, S, 3] in [0, 1].
  """
  size = light.shape[0]
  mean = light.mean() + 1e-3
  # Automatic exposure goes most of the way: dark skin or a dark room stays a little darker.
  linear = light * (params.exposure / mean) ** 0.8 * params.exposure**0.2 * 1.35
  linear = blur(linear, jnp.sqrt(params.blur**2 + params.motion**2), params.blur)
  line = (2.0 * jnp.arange(size, dtype=jnp.float32) + 1.0) / size - 1.0
  linear = linear * (1.0 - 0.5 * params.vignette * (line[:, None] ** 2 + line**2))[..., None]
  ones = jnp.ones(())
  balance = jnp.stack([ones + params.warmth, ones + params.green, ones - params.warmth])
  grey = jnp.array([0.2126, 0.7152, 0.0722])
  colors = params.saturation * jnp.eye(3) + (1.0 - params.saturation) * grey
  turn = 0.12 * params.hue * jnp.array([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]])
  linear = jnp.maximum((linear * balance) @ (colors + turn).T, 0.0)
  noise = jax.random.normal(key, light.shape, jnp.float32)
  linear = linear + params.noise * noise * jnp.sqrt(0.08 + jnp.minimum(linear, 1.0)) * jnp.array([1.2, 1.0, 1.5])
  linear = linear / (1.0 + jnp.maximum(linear - 0.7, 0.0))  # the shoulder of the film
  picture = jnp.clip(encode(linear, params.gamma), 0.0, 1.0)
  curve = picture * picture * (3.0 - 2.0 * picture)
  picture = picture + params.contrast * (curve - picture)
  picture = picture + params.sharpen * (picture - blur(picture, jnp.float32(0.9), jnp.float32(0.9)))
  return jnp.clip(jpeg(picture, params.jpeg), 0.0, 1.0)
