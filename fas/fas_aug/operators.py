"""The eight operators of FAS-Aug: what happens to a face when it is captured, and when a picture of it is recaptured.

Each is a pure function `op(key, image, level, assets=None) -> image` of the same shape: image f32 [H, W, 3] in [0, 1]
of any size, level in [0, 1] (0 changes nothing, bit for bit). One implementation serves three ways:

  # A notebook, or a grain / tf.data worker: numpy in, numpy out (f32, or uint8), run on the CPU whatever else there is.
  picture = operators.moire(seed, picture, 5 / 9)

  # A jitted step: arrays in, arrays out; key and level may be traced.
  image = jax.jit(operators.moire)(jax.random.key(0), image, 5 / 9)

  # A batch of them: vmap over keys, images and levels.
  images = jax.vmap(operators.moire)(jax.random.split(key, len(images)), images, levels)

| # | name             | lowest .. highest magnitude | label    | imitates                          |
|---|------------------|-----------------------------|----------|-----------------------------------|
| 0 | color_diversity  | none                        | kept     | another camera's colour response  |
| 1 | color_distortion | none                        | -> spoof | the gamut of a print              |
| 2 | reflection       | blend .01 .. .20            | -> spoof | glass of a screen, glossy paper   |
| 3 | blue_noise       | blend .01 .. .40            | -> spoof | dots of an ink-jet printer        |
| 4 | moire            | blend .01 .. .30            | -> spoof | sub-pixels of a screen            |
| 5 | sfc_halftone     | blend .01 .. .20            | -> spoof | dot matrix of a laser printer     |
| 6 | hand_trembling   | 1 .. 16 px                  | kept     | motion blur                       |
| 7 | low_resolution   | .01 .. .90                  | kept     | a poor camera                     |

Levels come in ten steps, k / 9; the magnitude is low + level (high - low) (spec 3.1). What the operators draw from can
be replaced by a user's own pictures and ICC profiles, see assets.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fas.fas_aug import color, resample, textures
from fas.fas_aug.assets import Assets
from fas.fas_aug.staging import stage
from fas.fas_aug.textures import between, pick

LEVELS = 10
"""Number of levels; level k stands for k / 9."""

Image = jax.Array | np.ndarray
Operator = Callable[..., Image]

RANGES = {
  'reflection': (0.01, 0.20),
  'blue_noise': (0.01, 0.40),
  'moire': (0.01, 0.30),
  'sfc_halftone': (0.01, 0.20),
  'hand_trembling': (1.0, 16.0),
  'low_resolution': (0.01, 0.90),
}
"""Lowest and highest magnitude; the two colour operators have none, only level > 0 matters to them."""


def operator(function: Callable[[jax.Array, jax.Array, jax.Array, Assets], jax.Array]) -> Operator:
  """Makes `function` an operator: clips to [0, 1], leaves level 0 alone, and takes numpy as well as JAX arrays."""

  def traced(key, image, level, assets):
    level = jnp.asarray(level, jnp.float32)
    return jnp.where(level > 0, jnp.clip(function(key, image, level, assets), 0, 1), image)

  compiled = jax.jit(traced)

  @functools.wraps(function)
  def call(key, image, level, assets=None):
    assets = Assets() if assets is None else assets
    if not isinstance(image, np.ndarray):
      return traced(key, image, level, assets)
    return on_cpu(lambda key, image: compiled(key, image, level, assets), key, image)

  return call


def on_cpu(
  function: Callable[[jax.Array, np.ndarray], jax.Array], key: jax.Array | int, image: np.ndarray
) -> np.ndarray:
  """Runs `function(key, image f32)` on the CPU and returns numpy of the image's own type: f32 in [0, 1], or uint8.

  `key` is a JAX key or an integer seed.
  """
  if image.dtype not in (np.uint8, np.float32, np.float64):
    raise ValueError(f'An image is f32 in [0, 1] or uint8, not {image.dtype}.')
  with jax.default_device(jax.local_devices(backend='cpu')[0]):
    if isinstance(key, int | np.integer):
      key = jax.random.key(key)
    else:
      key = jax.device_put(key, jax.local_devices(backend='cpu')[0])
    if image.dtype != np.uint8:
      return np.asarray(function(key, image.astype(np.float32)))
    out = np.asarray(function(key, image.astype(np.float32) / 255))
    return np.rint(out * 255).astype(np.uint8)


def blend(image: jax.Array, texture: jax.Array, amount: jax.Array) -> jax.Array:
  """(1 - a) x + a t."""
  return (1 - amount) * image + amount * texture


def _amount(name: str, level: jax.Array | float) -> jax.Array | float:
  return between(level, *RANGES[name])


@operator
def color_diversity(key: jax.Array, image: jax.Array, level: jax.Array, assets: Assets) -> jax.Array:
  """Another camera: taken as of RGB profile A, converted to B; both uniform over 11, so now and then the same."""
  source, target = pick(jax.random.uniform(key, (2,)), len(color.PROFILES))
  return color.convert(image, source, target)


@operator
def color_distortion(key: jax.Array, image: jax.Array, level: jax.Array, assets: Assets) -> jax.Array:
  """A print: RGB read as coverages of three inks (no black), seen in a random RGB profile.

  Parametric inks by default; the tables of a user's ICC profiles where `assets.icc` holds them.
  """
  u = jax.random.uniform(key, (2,))
  if assets.icc is not None:
    inks, spaces = assets.icc.shape[:2]
    return color.look_up(image, jnp.asarray(assets.icc)[pick(u[0], inks), pick(u[1], spaces)])
  return color.printed(image, color.draw_ink(u[0]), pick(u[1], len(color.PROFILES)))


@operator
def reflection(key: jax.Array, image: jax.Array, level: jax.Array, assets: Assets) -> jax.Array:
  """A room mirrored in glass: a global blend, without blur or mask (release)."""
  h, w, _ = image.shape
  if assets.reflections is None:
    texture = textures.reflection(key, h, w)
  else:
    texture = textures.reflection_from(key, h, w, assets.reflections, assets.reflection_shapes)
  return blend(image, texture, _amount('reflection', level))


@operator
def blue_noise(key: jax.Array, image: jax.Array, level: jax.Array, assets: Assets) -> jax.Array:
  """Ink-jet dots: a blue-noise tile, blended (not used as a threshold)."""
  h, w, _ = image.shape
  if assets.blue_noise is None:
    texture = textures.blue_noise(key, h, w, roll=not assets.parity)
  else:
    texture = textures.blue_noise_from(key, h, w, assets.blue_noise, roll=not assets.parity)
  return blend(image, texture, _amount('blue_noise', level))


@operator
def moire(key: jax.Array, image: jax.Array, level: jax.Array, assets: Assets) -> jax.Array:
  """A screen's sub-pixels, antialiased or aliased."""
  h, w, _ = image.shape
  if assets.moire is None:
    texture = textures.moire(key, h, w, antialias=True if assets.parity else None)
  else:
    texture = textures.moire_from(key, h, w, assets.moire)
  return blend(image, texture, _amount('moire', level))


DOTS = np.array([[3, 1, 5], [8, 9, 6], [4, 7, 2]])
"""Order in which the nine dots of a cell are lit as its grey rises."""


def sfc_greys(image: jax.Array, weights: np.ndarray = textures.LUMA) -> jax.Array:
  """[H, W, 3] -> int32 [H // 3, W // 3]: a grey level in 0..9 for each cell, stretched over the picture's range.

  A picture of one grey would divide by zero and gets level 4 (our choice).
  """
  h, w, _ = image.shape
  grey = stage(lambda x: x[..., 0] * weights[0] + x[..., 1] * weights[1] + x[..., 2] * weights[2], image)
  small = [resample.linear(jnp.arange(n // 3), n, n // 3) for n in (h, w)]
  grey = resample.both(grey, *small)
  low, high = grey.min(), grey.max()
  level = jnp.floor(9 * ((grey - low) / jnp.maximum(high - low, 1e-6)) + 1e-5)  # 1e-5: the highest is not quite 9
  return jnp.where(high - low < 1e-6, 4, level).astype(jnp.int32)


def sfc_dots(greys: jax.Array) -> jax.Array:
  """int [h, w] in 0..9 -> bool [3h, 3w]: each cell lights as many of its nine dots as its grey level says."""
  h, w = greys.shape
  return (greys[:, None, :, None] >= jnp.asarray(DOTS)[:, None]).reshape(3 * h, 3 * w)


@operator
def sfc_halftone(key: jax.Array, image: jax.Array, level: jax.Array, assets: Assets) -> jax.Array:
  """Laser-printer dots: ordered dither of ten greys in cells of 3 x 3, after the space-filling-curve dither.

  Grey is Rec. 601; in parity mode with the release's swapped weights (it reads RGB as BGR).
  """
  greys = sfc_greys(image, textures.LUMA[::-1] if assets.parity else textures.LUMA)
  dots = stage(lambda g: sfc_dots(g).astype(jnp.float32), greys)
  h, w, _ = image.shape
  if dots.shape != (h, w):  # a side that three does not divide: stretched by up to two pixels, as Pillow does it
    for n in (w, h):
      taps = resample.cubic(jnp.arange(n), n // 3 * 3, n, a=-0.5)
      dots = stage(lambda x: jnp.clip(x, 0, 1), resample.rows(dots.T, taps))
  return blend(image, dots[..., None], _amount('sfc_halftone', level))


DIRECTIONS = ('H', 'V', 'D', 'U')
"""Horizontal, vertical, down from the top left, up from the bottom left."""

MAX_LENGTH = 16


def kernel_length(level: jax.Array | float) -> jax.Array:
  """Length in px of the trembling at a level: int(1 + 15 level)."""
  return jnp.floor(_amount('hand_trembling', level) + 1e-4).astype(jnp.int32)  # 1e-4: 5/9 of 15 + 1 is not quite 11


def line_blur(image: jax.Array, length: jax.Array | int, direction: jax.Array | int) -> jax.Array:
  """[H, W, 3] averaged along a line of `length` in 1..16 px; edges are mirrored without repeating the edge (spec).

  With A = k // 2 and R = (k - 1) // 2 - A the mean over i < k of x[y + dy, x + dx], where (dy, dx) is H (R, i - A), V
  (i - A, R), D (i - A, i - A), U (i - A, k - 1 - i - A): OpenCV's filter2D with the release's kernels.
  """
  h, w, _ = image.shape
  margin = MAX_LENGTH // 2
  padded = stage(lambda x: x[_mirrored(h, margin)][:, _mirrored(w, margin)], image)
  i = jnp.arange(MAX_LENGTH)
  anchor = length // 2
  along, rest = jnp.minimum(i, length - 1) - anchor, (length - 1) // 2 - anchor
  weight = jnp.where(i < length, 1 / length, 0.0)
  dy = jnp.where(direction == 0, rest, along)
  dx = jnp.select([direction == 1, direction == 3], [rest, length - 1 - 2 * anchor - along], along)

  def mean(padded, weight, y, x):
    return sum(weight[i] * lax.dynamic_slice(padded, (y[i], x[i], 0), image.shape) for i in range(MAX_LENGTH))

  return stage(mean, padded, weight, margin + dy, margin + dx)


def _mirrored(length: int, margin: int) -> np.ndarray:
  """Indices of an axis with `margin` mirrored pixels on both sides."""
  return np.pad(np.arange(length), margin, mode='reflect')


@operator
def hand_trembling(key: jax.Array, image: jax.Array, level: jax.Array, assets: Assets) -> jax.Array:
  """Motion blur along one of four directions."""
  direction = pick(jax.random.uniform(key), len(DIRECTIONS))
  return line_blur(image, kernel_length(level), direction)


LOWEST_SHARE = 1 - (5 / 6) * (RANGES['low_resolution'][1] - 0.0001) / 0.9999
"""Share of an axis that is left at the highest level, about a quarter."""


def intermediate_side(level: jax.Array | float, size: int) -> jax.Array:
  """Pixels that `low_resolution` leaves of an axis of `size` pixels: int(size (1 - (5/6) (r - .0001) / .9999))."""
  share = 1 - (5 / 6) * (_amount('low_resolution', level) - 0.0001) / 0.9999
  return jnp.maximum(jnp.floor(size * share), 1).astype(jnp.int32)


def shrink_and_enlarge(
  image: jax.Array, sides: tuple[jax.Array, jax.Array], shrink: jax.Array | int, smooth: jax.Array | bool
) -> jax.Array:
  """[H, W, 3] at `sides` (down, across), by `resample.FILTERS[shrink]`, and back by 'linear' (smooth) or 'nearest'."""
  taps = []
  for size, middle in zip(image.shape, sides, strict=False):
    widest = max(4, int(np.ceil(size / max(1, int(size * LOWEST_SHARE)))) + 1)
    taps.append(resample.down_and_up(size, middle, shrink, smooth, widest))
  return resample.both(image, *taps)


@operator
def low_resolution(key: jax.Array, image: jax.Array, level: jax.Array, assets: Assets) -> jax.Array:
  """A poor camera: shrunk by area, linear, cubic or nearest, enlarged by linear or nearest (lanczos4 left out)."""
  u = jax.random.uniform(key, (2,))
  h, w, _ = image.shape
  sides = intermediate_side(level, h), intermediate_side(level, w)
  return shrink_and_enlarge(image, sides, pick(u[0], len(resample.FILTERS)), u[1] < 0.5)


class Entry(NamedTuple):
  """An operator in a bag."""

  apply: Operator
  flips: bool  # whether it makes a live face a spoof, at levels above 0


OPERATORS: dict[str, Entry] = {
  'color_diversity': Entry(color_diversity, False),
  'color_distortion': Entry(color_distortion, True),
  'reflection': Entry(reflection, True),
  'blue_noise': Entry(blue_noise, True),
  'moire': Entry(moire, True),
  'sfc_halftone': Entry(sfc_halftone, True),
  'hand_trembling': Entry(hand_trembling, False),
  'low_resolution': Entry(low_resolution, False),
}

NAMES = tuple(OPERATORS)
FLIPS = tuple(entry.flips for entry in OPERATORS.values())


def magnitude(name: str, k: int, size: int = 256) -> float | int:
  """What level k in 0..9 means, for reports: share of a blend, px of trembling, px that low_resolution leaves.

  At k = 0 (identity): 0, 1 px and `size`. The colour operators are off (0) or on (1).
  """
  level = k / (LEVELS - 1)
  if name == 'hand_trembling':
    return int(kernel_length(level))
  if name == 'low_resolution':
    return int(intermediate_side(level, size)) if k else size
  if name in RANGES:
    return _amount(name, level) if k else 0.0
  return int(k > 0)
