"""The bag that FAS-Aug is compared with: the fifteen operators of AutoAugment, none of which changes labels (spec 4).

The same signature as in operators.py, `op(key, image, level, assets=None)`; level 0 changes nothing (the release's rule
for both bags). Geometry samples the nearest pixel and fills with black, as Pillow does by default. What is defined on
8-bit pictures (equalize, posterize, solarize) works on values rounded to 8 bits.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fas.fas_aug.assets import Assets
from fas.fas_aug.operators import Entry, operator
from fas.fas_aug.textures import LUMA, between

RANGES = {
  'shear_x': (0.0, 0.3),  # slope
  'shear_y': (0.0, 0.3),
  'translate_x': (0.0, 0.45),  # of the side
  'translate_y': (0.0, 0.45),
  'rotate': (0.0, 30.0),  # degrees
  'solarize': (0.0, 256.0),  # values from here on are inverted, of 256
  'posterize': (4.0, 8.0),  # bits that are kept
  'contrast': (0.1, 1.9),  # 1 is the picture itself
  'color': (0.1, 1.9),
  'brightness': (0.1, 1.9),
  'sharpness': (0.1, 1.9),
  'cutout': (0.0, 0.2),  # side of the square, of the picture's width
}
"""Lowest and highest magnitude. Shears, shifts and turns take a random sign."""

CUTOUT_COLOUR = np.array([125, 123, 114], np.float32) / 255


def magnitude(name: str, level: jax.Array | float) -> jax.Array | float:
  """low + level (high - low)."""
  return between(level, *RANGES[name])


def _signed(key: jax.Array, name: str, level: jax.Array) -> jax.Array:
  return magnitude(name, level) * jnp.where(jax.random.bernoulli(key), 1.0, -1.0)


def affine(image: jax.Array, matrix: jax.Array, offset: jax.Array) -> jax.Array:
  """Output pixel (x, y) takes the nearest pixel at matrix @ (x, y) + offset, pixel centres at halves; black outside."""
  h, w, _ = image.shape
  x, y = jnp.arange(w) + 0.5, jnp.arange(h)[:, None] + 0.5
  column = jnp.floor(matrix[0, 0] * x + matrix[0, 1] * y + offset[0]).astype(jnp.int32)
  row = jnp.floor(matrix[1, 0] * x + matrix[1, 1] * y + offset[1]).astype(jnp.int32)
  inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
  picked = image[jnp.clip(row, 0, h - 1), jnp.clip(column, 0, w - 1)]
  return jnp.where(inside[..., None], picked, 0)


@operator
def shear_x(key: jax.Array, image: jax.Array, level: jax.Array, assets: Assets) -> jax.Array:
  """Rows slide sideways in proportion to their height."""
  slope = _signed(key, 'shear_x', level)
  return affine(image, jnp.array([[1.0, slope], [0.0, 1.0]]), jnp.zeros(2))


@operator
def shear_y(key: jax.Array, image: jax.Array, level: jax.Array, assets: Assets) -> jax.Array:
  """Columns slide up or down in proportion to their place."""
  slope = _signed(key, 'shear_y', level)
  return affine(image, jnp.array([[1.0, 0.0], [slope, 1.0]]), jnp.zeros(2))


@operator
def translate_x(key: jax.Array, image: jax.Array, level: jax.Array, assets: Assets) -> jax.Array:
  """Shifted sideways."""
  shift = _signed(key, 'translate_x', level) * image.shape[1]
  return affine(image, jnp.eye(2), jnp.array([shift, 0.0]))


@operator
def translate_y(key: jax.Array, image: jax.Array, level: jax.Array, assets: Assets) -> jax.Array:
  """Shifted up or down."""
  shift = _signed(key, 'translate_y', level) * image.shape[0]
  return affine(image, jnp.eye(2), jnp.array([0.0, shift]))


@operator
def rotate(key: jax.Array, image: jax.Array, level: jax.Array, assets: Assets) -> jax.Array:
  """Turned about the middle."""
  angle = jnp.deg2rad(_signed(key, 'rotate', level))
  turn = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
  middle = jnp.array([image.shape[1], image.shape[0]]) / 2
  return affine(image, turn, middle - turn @ middle)


def _bytes(image: jax.Array) -> jax.Array:
  """Values rounded to whole numbers in 0..255, f32."""
  return jnp.round(image * 255)


@operator
def autocontrast(key: jax.Array, image: jax.Array, level: jax.Array, assets: Assets) -> jax.Array:
  """Each channel stretched to the full range; a channel of one value stays."""
  low, high = image.min((0, 1)), image.max((0, 1))
  flat = high - low < 1e-6
  return jnp.where(flat, image, (image - low) / jnp.where(flat, 1, high - low))


@operator
def invert(key: jax.Array, image: jax.Array, level: jax.Array, assets: Assets) -> jax.Array:
  """The negative."""
  return 1 - image


@operator
def equalize(key: jax.Array, image: jax.Array, level: jax.Array, assets: Assets) -> jax.Array:
  """Each channel with an even histogram, by Pillow's rule on 256 values."""

  def channel(values):
    counts = jnp.zeros(256, jnp.int32).at[values.ravel()].add(1)
    last = counts[255 - jnp.argmax(counts[::-1] > 0)]
    step = (values.size - last) // 255
    table = jnp.clip((step // 2 + jnp.cumsum(counts) - counts) // jnp.maximum(step, 1), 0, 255)
    one_value = jnp.sum(counts > 0) <= 1
    return jnp.where((step == 0) | one_value, values, table[values])

  return jax.vmap(channel, 2, 2)(_bytes(image).astype(jnp.int32)) / 255


@operator
def solarize(key: jax.Array, image: jax.Array, level: jax.Array, assets: Assets) -> jax.Array:
  """Values from a threshold on are inverted."""
  return jnp.where(_bytes(image) >= magnitude('solarize', level), 1 - image, image)


@operator
def posterize(key: jax.Array, image: jax.Array, level: jax.Array, assets: Assets) -> jax.Array:
  """Only the int(4 + 4 level) highest bits of the eight are kept."""
  step = 2.0 ** (8 - jnp.floor(magnitude('posterize', level) + 1e-4))
  return jnp.floor(_bytes(image) / step) * step / 255


def _grey(image: jax.Array) -> jax.Array:
  return (image @ LUMA)[..., None]


@operator
def contrast(key: jax.Array, image: jax.Array, level: jax.Array, assets: Assets) -> jax.Array:
  """Between (0) the mean grey and (1) the picture, or beyond it."""
  mean = _grey(image).mean()
  return mean + magnitude('contrast', level) * (image - mean)


@operator
def colour(key: jax.Array, image: jax.Array, level: jax.Array, assets: Assets) -> jax.Array:
  """Between (0) its grey version and (1) the picture, or beyond it."""
  grey = _grey(image)
  return grey + magnitude('color', level) * (image - grey)


@operator
def brightness(key: jax.Array, image: jax.Array, level: jax.Array, assets: Assets) -> jax.Array:
  """Between (0) black and (1) the picture, or beyond it."""
  return magnitude('brightness', level) * image


@operator
def sharpness(key: jax.Array, image: jax.Array, level: jax.Array, assets: Assets) -> jax.Array:
  """Between (0) the picture smoothed by Pillow's 3x3 kernel (borders kept) and (1) the picture, or beyond it."""
  h, w, _ = image.shape
  parts = [image[y : h - 2 + y, x : w - 2 + x] * (5 if (y, x) == (1, 1) else 1) for y in range(3) for x in range(3)]
  smooth = image.at[1:-1, 1:-1].set(sum(parts) / 13)
  return smooth + magnitude('sharpness', level) * (image - smooth)


@operator
def cutout(key: jax.Array, image: jax.Array, level: jax.Array, assets: Assets) -> jax.Array:
  """A grey square about a random place."""
  h, w, _ = image.shape
  side = magnitude('cutout', level) * w
  x, y = jax.random.uniform(key, (2,)) * jnp.array([w, h])

  def covered(length, centre):
    low = jnp.floor(jnp.maximum(0, centre - side / 2))
    place = jnp.arange(length)
    return (place >= low) & (place <= low + side)

  return jnp.where((covered(h, y)[:, None] & covered(w, x))[..., None], CUTOUT_COLOUR, image)


OPERATORS: dict[str, Entry] = {
  'shear_x': Entry(shear_x, False),
  'shear_y': Entry(shear_y, False),
  'translate_x': Entry(translate_x, False),
  'translate_y': Entry(translate_y, False),
  'rotate': Entry(rotate, False),
  'autocontrast': Entry(autocontrast, False),
  'invert': Entry(invert, False),
  'equalize': Entry(equalize, False),
  'solarize': Entry(solarize, False),
  'posterize': Entry(posterize, False),
  'contrast': Entry(contrast, False),
  'color': Entry(colour, False),
  'brightness': Entry(brightness, False),
  'sharpness': Entry(sharpness, False),
  'cutout': Entry(cutout, False),
}

NAMES = tuple(OPERATORS)
