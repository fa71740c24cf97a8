"""What prints and screens lay over a face: ink-jet dots, sub-pixel lattices, reflections (spec 3.1, operators 2 to 4).

Each texture is a pure function of (key, height, width) -> f32 [H, W, 3] in [0, 1]; the operators blend it in. The
procedural textures take no file; functions ending in `_from` draw from a user's own pictures (see assets.py).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fas.fas_aug import resample
from fas.fas_aug.staging import stage

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Rec. 601 weights of R, G, B."""


def pick(uniform: jax.Array, count: int) -> jax.Array:
  """An index in [0, count) from a number in [0, 1)."""
  return jnp.minimum((uniform * count).astype(jnp.int32), count - 1)


def between(uniform: jax.Array, low: float | jax.Array, high: float | jax.Array) -> jax.Array:
  """A number in [low, high) from a number in [0, 1)."""
  return low + uniform * (high - low)


# Blue noise: the dots of an ink-jet printer.

TILE = 64
TILES = 16


@functools.cache
def blue_noise_tiles() -> np.ndarray:
  """uint8 [16, 64, 64]: tiles whose histogram is exactly uniform and whose spectrum is blue; 50 ms, once per process.

  White noise, alternately high-passed and brought back to a uniform histogram by its ranks. The spectrum of the CC0
  tiles that the release ships, relative to white: 0 in the lowest quarter of frequencies, .18 at half of Nyquist, 1.3
  to 1.6 near it (spec).
  """
  rng = np.random.default_rng(0)
  frequency = np.fft.fftfreq(TILE)
  radius = np.hypot(frequency[:, None], frequency)
  gain = 1 - np.exp(-((radius / 0.2) ** 2))
  tiles = np.empty((TILES, TILE, TILE), np.uint8)
  for tile in tiles:
    x = rng.random((TILE, TILE))
    for _ in range(5):
      x = np.fft.ifft2(np.fft.fft2(x - x.mean()) * gain).real
      ranks = np.argsort(np.argsort(x, axis=None, kind='stable'), kind='stable')
      x = ranks.reshape(x.shape) / x.size
    tile[:] = ranks.reshape(x.shape) * 256 // x.size
  return tiles


def blue_noise(key: jax.Array, height: int, width: int, *, roll: bool = True) -> jax.Array:
  """A tile repeated over the picture; independent channels in two draws of three, grey in the third (spec: 32 of 48).

  Rolled at random, so that no tile can be learnt by heart (our choice; not in parity mode).
  """
  u = jax.random.uniform(key, (4, 3))
  grey = u[3, 0] < 1 / 3
  u = jnp.where(grey, u[:, :1], u[:3, :][jnp.array([0, 1, 2, 2])])
  tile = pick(u[0], TILES)
  y, x = (pick(u[i], TILE) * roll for i in (1, 2))
  place = jnp.arange(TILE)[:, None]
  rolled = jnp.asarray(blue_noise_tiles())[tile, (place[..., None] + y) % TILE, (place + x) % TILE]
  return _repeated(rolled, height, width)


def _repeated(tile: jax.Array, height: int, width: int) -> jax.Array:
  """uint8 [side, side, 3] side by side to f32 [height, width, 3] in [0, 1]."""
  side = len(tile)

  def widened(tile):
    values = tile.astype(jnp.float32).reshape(side, -1) / 255
    return jnp.tile(values, (1, -(-width // side)))[:, : 3 * width]

  return stage(widened, tile)[np.arange(height) % side].reshape(height, width, 3)


def blue_noise_from(key: jax.Array, height: int, width: int, tiles: jax.Array, *, roll: bool = True) -> jax.Array:
  """The same from a user's tiles uint8 [T, side, side, 3]."""
  u = jax.random.uniform(key, (3,))
  side = tiles.shape[1]
  y, x = (pick(u[i], side) * roll for i in (1, 2))
  return _repeated(jnp.roll(jnp.asarray(tiles)[pick(u[0], len(tiles))], (-y, -x), (0, 1)), height, width)


# Moire: a lattice of sub-pixels, fully on, sampled by a camera.


class Lattice(NamedTuple):
  """A family of screens: one repeating cell of sub-pixels."""

  rows: tuple[str, ...]  # letters R G B W (white lights all three) of the cell's sub-pixels, row by row
  pitch: tuple[float, float]  # range of the main period, in texture pixels: a picture of W px shows 3W of them
  cells: float = 1.0  # periods per cell
  gap: bool = False  # black gaps between the sub-pixels
  turned: bool = False  # rows run down the picture


COARSE, MEDIUM, FINE = (12.5, 13.8), (6.1, 7.0), (3.1, 3.5)

LATTICES = {
  'RGB': Lattice(('RGB',), COARSE),
  'RGB2': Lattice(('RGB',), MEDIUM),
  'RGB3': Lattice(('RGB',), FINE),
  'BGR': Lattice(('BGR',), COARSE),
  'BGR2': Lattice(('BGR',), MEDIUM),
  'BGR3': Lattice(('BGR',), FINE),
  'vRGB': Lattice(('RGB',), COARSE, turned=True),
  'vRGB2': Lattice(('RGB',), MEDIUM, turned=True),
  'vRGB3': Lattice(('RGB',), FINE, turned=True),
  'vBGR': Lattice(('BGR',), COARSE, turned=True),
  'vBGR2': Lattice(('BGR',), MEDIUM, turned=True),
  'vBGR3': Lattice(('BGR',), FINE, turned=True),
  'RGBwB': Lattice(('RGB',), COARSE, gap=True),
  'BGRwB': Lattice(('BGR',), COARSE, gap=True),
  'RGBG': Lattice(('RGBG', 'BGRG'), (6.2, 6.9), cells=2),
  'RGBW': Lattice(('RGBW',), (6.2, 7.0), cells=2),
  'RGBWwB': Lattice(('RGBW',), (6.2, 7.0), cells=2, gap=True),
  'RGBWS': Lattice(('RG', 'BW'), (12.2, 13.8)),
  'RGBWSwB': Lattice(('RG', 'BW'), (12.2, 13.8), gap=True),
}
"""The release's 19 families by its names; the pitch is the period of the green channel along a row."""

BLEED = 0.7
"""Texture px by which a sub-pixel outgrows its share where there is no gap, from the release's textures' mean level."""

GAP = 0.8
"""Texture px of black between sub-pixels, where there are gaps."""


class _LatticeTable(NamedTuple):
  lit: np.ndarray  # f32 [19, 2 rows x 3 channels, 4 slots]: which channels a sub-pixel lights
  slots: np.ndarray  # f32 [19], sub-pixels per row
  rows: np.ndarray  # f32 [19], rows per cell
  pitch: np.ndarray  # f32 [19, 2]
  cells: np.ndarray  # f32 [19]
  gap: np.ndarray  # f32 [19]
  turned: np.ndarray  # f32 [19]


def _lattice_table() -> _LatticeTable:
  lattices = LATTICES.values()
  lit = np.zeros((len(LATTICES), 2, 3, 4))
  for i, lattice in enumerate(lattices):
    for r, row in enumerate(lattice.rows):
      for s, letter in enumerate(row):
        lit[i, r, [0, 1, 2] if letter == 'W' else ['RGB'.index(letter)], s] = 1
  columns = (
    lit.reshape(-1, 6, 4),
    [len(x.rows[0]) for x in lattices],
    [len(x.rows) for x in lattices],
    *([getattr(x, name) for x in lattices] for name in ('pitch', 'cells', 'gap', 'turned')),
  )
  return _LatticeTable(*(np.asarray(c, np.float32) for c in columns))


_LATTICE = _lattice_table()


def moire(
  key: jax.Array, height: int, width: int, *, antialias: bool | None = None, family: int | jax.Array | None = None
) -> jax.Array:
  """A lattice of sub-pixels in mild perspective (U(-2e-4, 2e-4) per texture px), turned by U(-3, 3) degrees.

  Args:
    key: randomness: family, pitch, phase, pose.
    height, width: of the result; the texture behind it is three times as large.
    antialias: True: mean of 3 x 3 samples per pixel. False: one sample, which aliases as a camera does. None: either,
      with equal chances (our choice: the release leaves it to the Pillow version).
    family: index into `LATTICES`; None draws one.
  """
  u = jax.random.uniform(key, (9,))
  family = pick(u[0], len(LATTICES)) if family is None else family
  lit, slots, rows, pitch, cells, gap, turned = (jnp.asarray(column)[family] for column in _LATTICE)
  spread = jnp.where(u[1] < 0.5, 1.0, 0.0) if antialias is None else float(antialias)

  angle = jnp.deg2rad(between(u[2], -3, 3)) - turned * (jnp.pi / 2)
  tilt = between(u[3:5], -2e-4, 2e-4)
  x = 3 * (jnp.arange(width) - (width - 1) / 2)
  y = 3 * (jnp.arange(height) - (height - 1) / 2)[:, None]
  depth = 1 / (1 + tilt[0] * x + tilt[1] * y)
  cell = between(u[5], pitch[0], pitch[1]) * cells  # texture px, both ways: cells are square
  across = (jnp.cos(angle) * x - jnp.sin(angle) * y) * depth / cell + u[6]
  along = (jnp.sin(angle) * x + jnp.cos(angle) * y) * depth / cell + u[7]

  grow = jnp.where(gap > 0, BLEED - GAP, BLEED) / cell
  slot = jnp.arange(4.0)[:, None, None]
  columns = _lit_share(across, slot / slots - grow / 2, 1 / slots + grow, spread / cell)  # [4, H, W]
  drawn = (lit @ columns.reshape(4, -1)).reshape(2, 3, height, width)
  thin = jnp.where(gap > 0, -GAP, BLEED) / cell
  first, second = (_lit_share(along, r / rows - thin / 2, 1 / rows + thin, spread / cell) for r in (0, 1))
  return jnp.moveaxis(jnp.minimum(drawn[0] * first + drawn[1] * second, 1), 0, 2)


def _lit_share(place: jax.Array, start: jax.Array, extent: jax.Array, step: jax.Array) -> jax.Array:
  """Share of three samples (at place - step, place, place + step) that fall into [start, start + extent) of a period.

  Taken along both axes of a lattice in turn, these are the 3 x 3 samples of a pixel; their tilt within it is left out.
  """
  total = 0.0
  for offset in (-1, 0, 1):
    at = place + (offset * step - start)
    total += jnp.where(at - jnp.floor(at) < extent, 1 / 3, 0.0)
  return total


def moire_from(key: jax.Array, height: int, width: int, textures: jax.Array) -> jax.Array:
  """A random window of a user's texture, uint8 [T, side, side, 3], continued by reflection where it is too small."""
  u = jax.random.uniform(key, (3,))
  side = textures.shape[1]

  def window(uniform, length):
    place = pick(uniform, max(side - length, 0) + 1) + jnp.arange(length)
    place = place % (2 * side)
    return jnp.minimum(place, 2 * side - 1 - place)

  rows, columns = window(u[1], height), window(u[2], width)
  return jnp.asarray(textures)[pick(u[0], len(textures)), rows[:, None], columns].astype(jnp.float32) / 255


# Reflections: what the glass of a screen or glossy paper shows of the room.

SHAPES = 8
OCTAVES = (3, 6, 12, 24)


def reflection(key: jax.Array, height: int, width: int) -> jax.Array:
  """A room out of focus: 3 to 8 soft windows (rectangles) and lamps (ellipses) over a 1/f colour field (our choice).

  Its luminance has a mean of about U(70, 200) / 255, as the release's photographs have. Every part is a sum of products
  of a profile down and a profile across the picture, so the whole of it is one matrix product of rank 58.
  """
  grids = [(n + 1, n + 1, 4) for n in OCTAVES]
  shape_key, grid_key = jax.random.split(key)
  u = jax.random.uniform(shape_key, (SHAPES + 1, 9))
  noise = jax.random.uniform(grid_key, (sum(map(math.prod, grids)),), minval=-1, maxval=1)
  level = between(u[-1, 0], 70 / 255, 200 / 255)
  shown = jnp.arange(SHAPES) < 3 + pick(u[-1, 1], SHAPES - 2)

  u = u[:-1]
  window = u[:, 0] < 0.6
  centre = between(u[:, 1:3], -0.1, 1.1)
  half = between(u[:, 3:5], 0.06, jnp.where(window, 0.35, 0.2)[:, None])
  brightness = between(u[:, 5], -0.45, 0.75) * shown  # windows and lamps, or dark furniture
  colour = brightness[:, None] * between(u[:, 6:9], 0.75, 1.0)
  down = [_soft(_unit(height), centre[:, :1], half[:, :1], window)]
  across = [colour[:, None] * _soft(_unit(width), centre[:, 1:], half[:, 1:], window)[..., None]]

  for n, grid in zip(OCTAVES, jnp.split(noise, np.cumsum([math.prod(g) for g in grids])[:-1]), strict=True):
    grid = grid.reshape(n + 1, n + 1, 4)
    grid = (grid[..., :1] + 0.4 * grid[..., 1:]) * (0.8 / n)
    down.append(_lerp(height, n))
    across.append(jnp.einsum('nw,mnc->mwc', _lerp(width, n), grid))

  left, right = jnp.concatenate(down), jnp.concatenate(across)
  mean = left.mean(1) @ right.mean(1) @ LUMA
  constant = jnp.broadcast_to(level - mean, (1, width, 3))
  left, right = jnp.concatenate([left, jnp.ones((1, height))]), jnp.concatenate([right, constant])
  return jnp.clip((left.T @ right.reshape(len(right), -1)).reshape(height, width, 3), 0, 1)


def _unit(length: int) -> jax.Array:
  """Pixel centres of an axis in (0, 1)."""
  return (jnp.arange(length) + 0.5) / length


def _soft(place: jax.Array, centre: jax.Array, half: jax.Array, window: jax.Array) -> jax.Array:
  """Profiles f32 [shapes, length]: flat with soft edges (windows), or a bell (the product of two is an ellipse)."""
  squared = jnp.square((place - centre) / half)
  return jnp.exp(-jnp.where(window[:, None], squared**3, squared))


def _lerp(length: int, n: int) -> np.ndarray:
  """[n + 1, length]: smooth interpolation between n + 1 nodes along an axis, as a matrix."""
  distance = np.abs((np.arange(length) + 0.5) / length * n - np.arange(n + 1)[:, None])
  near = np.clip(1 - distance, 0, 1)
  return (near * near * (3 - 2 * near)).astype(np.float32)


def reflection_from(key: jax.Array, height: int, width: int, pictures: jax.Array, shapes: jax.Array) -> jax.Array:
  """A window of a user's picture: twice the face's side along an axis that has it, the whole axis otherwise (spec).

  Args:
    key: randomness: picture and window.
    height, width: of the result.
    pictures: uint8 [P, side, side, 3], each in the corner of its square.
    shapes: f32 [P, 3]: height, width and scale of each (1 as in the file).
  """
  u = jax.random.uniform(key, (3,))
  chosen = pick(u[0], len(pictures))
  h, w, scale = jnp.asarray(shapes)[chosen]

  def window(uniform, size, length):
    extent = jnp.minimum(size, 2 * length * scale)
    start = uniform * (size - extent)
    # Two samples per pixel, each between two neighbours: antialiased at the usual reduction by two.
    place = start + (jnp.arange(2 * length) + 0.5) * (extent / (2 * length)) - 0.5
    base = jnp.floor(place)
    index = jnp.clip(base.astype(jnp.int32)[:, None] + jnp.arange(2), 0, size.astype(jnp.int32) - 1)
    weight = jnp.stack([1 - (place - base), place - base], -1) / 2
    return resample.Taps(index.reshape(length, 4), weight.reshape(length, 4))

  picture = jnp.asarray(pictures)[chosen].astype(jnp.float32) / 255
  return resample.both(picture, window(u[1], h, height), window(u[2], w, width))
