"""Presenting a picture to the camera again: on paper (print) or on a screen (replay).

Both take the PICTURE of a first camera, put it on a flat or bent medium in front of the second camera and return the
light that leaves the medium. What follows is physics, not a label: inks have a smaller gamut and make dots, paper
bends and has a border; a screen is a lattice of sub-pixels that beats with the sensor's grid (moire), flickers, leaks
light in the blacks, reflects the room. Pitches are in pixels of the capturing sensor, i.e. of the crop, because it is
the ratio of the two grids that makes a moire. Magnitudes are our choice; inks: the corner colours of FAS-Aug's spec,
table 3.1(1).
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from core.synth.faces.camera import decode
from core.synth.faces.painter import cover, pixel_grid, smooth_field


@flax.struct.dataclass
class Placement:
  """How the medium lies in front of the camera; f32 scalars, crop units. The picture fills [-1, 1] of the medium."""

  zoom: jax.Array  # crop units per medium unit
  x: jax.Array
  y: jax.Array
  angle: jax.Array  # radians
  tilt_x: jax.Array  # perspective: relative change of scale from left to right
  tilt_y: jax.Array
  bend: jax.Array  # sag of the medium, 0 flat


@flax.struct.dataclass
class PrintParams:
  """One printer, sheet and light; f32 scalars unless said otherwise."""

  pitch: jax.Array  # px between the dots of a screen
  angle: jax.Array  # radians, of the black/cyan screen; the other inks are turned against it
  dots: jax.Array  # 0 continuous tone .. 1 ink or no ink
  random: jax.Array  # 0 clustered dots on a lattice (laser, offset) .. 1 scattered dots (ink jet)
  gain: jax.Array  # dot gain
  ink: jax.Array  # purity of the inks: 1 coated paper .. 0 grey inks
  black: jax.Array  # reflectance of the darkest print
  paper: jax.Array  # [3] reflectance of the sheet
  grain: jax.Array  # contrast of the paper's fibre
  gloss: jax.Array  # strength of the lamp's reflection
  slope: jax.Array  # [2] how the room's light falls off over the sheet
  bands: jax.Array  # streaks of the print head


@flax.struct.dataclass
class ReplayParams:
  """One screen and the room around it; f32 scalars unless said otherwise."""

  pitch: jax.Array  # px of the crop per screen pixel
  angle: jax.Array  # radians between the two grids
  lattice: jax.Array  # visibility of the sub-pixels, 0..1
  pentile: jax.Array  # 0 RGB stripes .. 1 diamond (PenTile) arrangement
  white: jax.Array  # [3] white point
  gamut: jax.Array  # saturation of the primaries, 1 as sRGB
  black: jax.Array  # light in the blacks
  gamma: jax.Array  # of the panel, 2.2 as encoded
  band: jax.Array  # depth of the refresh bands
  band_period: jax.Array  # crop heights
  band_phase: jax.Array  # radians
  glare: jax.Array  # strength of the reflected room
  lamps: jax.Array  # [3, 6]: x, y, half width, half height, softness, brightness
  haze: jax.Array  # [3] diffuse reflection of the room's light


def to_medium(place: Placement, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Crop point -> medium point."""
  c, s = jnp.cos(place.angle), jnp.sin(place.angle)
  x, y = x - place.x, y - place.y
  depth = (1.0 - place.tilt_x * x - place.tilt_y * y) * place.zoom
  x, y = (c * x + s * y) / depth, (-s * x + c * y) / depth
  return x, y + place.bend * (x * x - 0.3)


def from_medium(place: Placement, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Medium point -> crop point; the exact inverse of `to_medium`."""
  c, s = jnp.cos(place.angle), jnp.sin(place.angle)
  y = y - place.bend * (x * x - 0.3)
  x, y = place.zoom * (c * x - s * y), place.zoom * (s * x + c * y)
  depth = 1.0 / (1.0 + place.tilt_x * x + place.tilt_y * y)
  return x * depth + place.x, y * depth + place.y


def move_landmarks(points: jax.Array, place: Placement, size: int) -> jax.Array:
  """Landmarks [..., 2] of the presented picture, in pixels -> pixels of the recapture."""
  x, y = (points[..., 0] + 0.5) * 2.0 / size - 1.0, (points[..., 1] + 0.5) * 2.0 / size - 1.0
  x, y = from_medium(place, x, y)
  return jnp.stack([(x + 1.0) * size / 2.0 - 0.5, (y + 1.0) * size / 2.0 - 0.5], -1)


def _sample(picture: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
  """Bilinear look-up of a picture [S, S, 3] at medium points; its edge pixels go on outside."""
  size = picture.shape[0]
  px = jnp.clip((x + 1.0) * size / 2.0 - 0.5, 0.0, size - 1.001)
  py = jnp.clip((y + 1.0) * size / 2.0 - 0.5, 0.0, size - 1.001)
  ix, iy = jnp.floor(px).astype(jnp.int32), jnp.floor(py).astype(jnp.int32)
  fx, fy = (px - ix)[..., None], (py - iy)[..., None]
  flat, at = picture.reshape(-1, 3), iy * size + ix
  top = flat[at] * (1.0 - fx) + flat[at + 1] * fx
  return top * (1.0 - fy) + (flat[at + size] * (1.0 - fx) + flat[at + size + 1] * fx) * fy


# Linear-light colours of the eight ink overlaps (rows: C M Y bits 000, 001, ... 111): white, Y, M, R, C, G, B, K.
_INKS = (
  (1.00, 1.00, 1.00),
  (1.00, 0.84, 0.01),
  (0.76, 0.004, 0.24),
  (0.76, 0.012, 0.012),
  (0.006, 0.38, 0.82),
  (0.005, 0.31, 0.05),
  (0.03, 0.016, 0.24),
  (0.03, 0.022, 0.022),
)


def _overlaps(amount: jax.Array, params: PrintParams) -> jax.Array:
  """Demichel's weighting of the eight overlaps by the local amounts of cyan, magenta, yellow [..., 3]."""
  grey = jnp.array([0.2126, 0.7152, 0.0722])
  inks = jnp.asarray(_INKS)
  inks = params.ink * inks + (1.0 - params.ink) * (inks @ grey)[:, None]
  color = 0.0
  for i in range(8):
    weight = 1.0
    for c in range(3):
      weight = weight * (amount[..., c] if (i >> (2 - c)) & 1 else 1.0 - amount[..., c])
    color = color + weight[..., None] * inks[i]
  return params.black + (1.0 - params.black) * color


def _halftone(key: jax.Array, amount: jax.Array, u: jax.Array, v: jax.Array, params: PrintParams) -> jax.Array:
  """Breaks ink amounts into dots; (u, v) are crop pixels on the sheet."""
  noise = jax.random.uniform(key, amount.shape)
  scattered = 0.5 + 0.75 * (
    noise - 0.25 * (jnp.roll(noise, 1, 0) + jnp.roll(noise, -1, 0) + jnp.roll(noise, 1, 1) + jnp.roll(noise, -1, 1))
  )
  dots = []
  for c, turn in enumerate((0.0, 0.524, 0.785)):
    angle = params.angle + turn
    wave = 2.0 * jnp.pi / params.pitch
    a, b = u * jnp.cos(angle) + v * jnp.sin(angle), v * jnp.cos(angle) - u * jnp.sin(angle)
    threshold = 0.5 - 0.25 * (jnp.cos(wave * a) + jnp.cos(wave * b))
    threshold = threshold + params.random * (scattered[..., c] - threshold)
    # An edge cannot be sharper than the pixel that sees it.
    dots.append(cover(amount[..., c] - threshold, 0.15 + 0.45 / params.pitch))
  return amount + params.dots * (jnp.stack(dots, -1) - amount)


def _surroundings(key: jax.Array, size: int) -> jax.Array:
  """The room behind the medium, blurred."""
  a, b = jax.random.split(key)
  level = jax.random.uniform(a, (), minval=0.05, maxval=0.5)
  return smooth_field(level * jnp.exp(0.4 * jax.random.normal(b, (4, 4, 3))), size)


def print_attack(key: jax.Array, picture: jax.Array, params: PrintParams, place: Placement) -> jax.Array:
  """Prints a picture and lights the sheet.

  Args:
    key: randomness of dots and fibres.
    picture: the first camera's picture f32 [S, S, 3] in [0, 1].
    params: printer and paper.
    place: how the sheet is held.

  Returns:
    Linear light f32 [S, S, 3] in [0, 1] at the second camera.
  """
  size = picture.shape[0]
  keys = jax.random.split(key, 4)
  x, y = pixel_grid(size)
  mx, my = to_medium(place, x, y)
  source = jnp.clip(_sample(picture, mx, my), 0.0, 1.0)
  # Grey balance: cyan ink also takes green and blue, so equal inks print brown; printers lay less magenta and yellow.
  amount = (1.0 - decode(source)) ** jnp.array([1.2, 1.55, 1.6])
  amount = jnp.clip(amount + 4.0 * params.gain * amount * (1.0 - amount), 0.0, 1.0)
  u, v = mx * place.zoom * size / 2.0, my * place.zoom * size / 2.0
  amount = _halftone(keys[0], amount, u, v, params)
  reflectance = _overlaps(amount, params)
  edge = 2.0 / size / place.zoom
  printed = cover(1.0 - jnp.maximum(jnp.abs(mx), jnp.abs(my)), edge)
  reflectance = 1.0 + printed[..., None] * (reflectance - 1.0)
  fibre = jax.random.normal(keys[1], (size, size))
  streak = jnp.sin(0.9 * v + 4.0 * jnp.sin(0.11 * v))
  sheet = params.paper * (1.0 + params.grain * fibre + params.bands * streak * printed)[..., None]
  # A bent sheet faces the light here and turns away there.
  light = 1.0 + params.slope[0] * x + params.slope[1] * y - 2.2 * place.bend * mx
  lamp = jnp.maximum(1.0 - ((mx - 0.5 * jnp.sign(params.slope[0])) ** 2 + 0.4 * (my + 0.3) ** 2) / 0.6, 0.0) ** 2
  image = reflectance * sheet * jnp.clip(light, 0.15, 2.0)[..., None] * 0.8 + params.gloss * lamp[..., None]
  border = cover(1.12 - jnp.maximum(jnp.abs(mx), jnp.abs(my)), edge)
  room = _surroundings(keys[2], size)
  return jnp.clip(room + border[..., None] * (image - room), 0.0, 1.0)


def _lattice(u: jax.Array, v: jax.Array, params: ReplayParams) -> jax.Array:
  """Light of the sub-pixels at crop pixels (u, v) on the screen, mean 1, [..., 3].

  A stripe's Fourier series, each harmonic damped by the sensor's pixel aperture (sinc) and evaluated at pixel centres:
  harmonics beyond the sensor's Nyquist frequency fold back as the slow coloured fringes that are moire.
  """
  out = []
  frequency = 1.0 / params.pitch
  for c in range(3):
    phase = 2.0 * jnp.pi * c / 3.0
    total = 1.0
    for k in (1, 2, 3):
      duty = jnp.sin(jnp.pi * k / 3.0) / (jnp.pi * k / 3.0)  # a third of the pixel's width is lit
      seen = jnp.sinc(0.55 * k * frequency)
      total = total + 2.0 * duty * seen * jnp.cos(k * (2.0 * jnp.pi * u * frequency + phase))
    rows = 1.0 + 0.5 * jnp.sinc(0.55 * frequency) * jnp.cos(2.0 * jnp.pi * v * frequency)
    diamond = 1.0 + jnp.sinc(0.55 * frequency) * jnp.cos(
      2.0 * jnp.pi * (u + v) * 0.71 * frequency + 2.0 * phase
    ) * jnp.cos(2.0 * jnp.pi * (u - v) * 0.71 * frequency)
    stripes = total * rows
    out.append(stripes + params.pentile * (diamond - stripes))
  return 1.0 + params.lattice * (jnp.stack(out, -1) - 1.0)


def replay_attack(key: jax.Array, picture: jax.Array, params: ReplayParams, place: Placement) -> jax.Array:
  """Shows a picture on a screen.

  Args:
    key: randomness of the room.
    picture: the first camera's picture f32 [S, S, 3] in [0, 1].
    params: the screen.
    place: how the device is held; bend it not.

  Returns:
    Linear light f32 [S, S, 3] in [0, 1] at the second camera.
  """
  size = picture.shape[0]
  x, y = pixel_grid(size)
  mx, my = to_medium(place, x, y)
  emitted = decode(jnp.clip(_sample(picture, mx, my), 0.0, 1.0), params.gamma)
  grey = (emitted @ jnp.array([0.2126, 0.7152, 0.0722]))[..., None]
  emitted = jnp.maximum(grey + params.gamut * (emitted - grey), 0.0)
  # The lattice turns against the sensor by the placement's angle and its own.
  c, s = jnp.cos(params.angle), jnp.sin(params.angle)
  scale = place.zoom * size / 2.0
  u, v = (c * mx + s * my) * scale, (c * my - s * mx) * scale
  emitted = (params.black + (1.0 - params.black) * emitted) * params.white * jnp.maximum(_lattice(u, v, params), 0.0)
  emitted = (
    emitted
    * (1.0 + params.band * jnp.sin(2.0 * jnp.pi * y / (2.0 * params.band_period) + params.band_phase))[..., None]
  )
  edge = 2.0 / size / place.zoom
  panel = cover(1.0 - jnp.maximum(jnp.abs(mx), jnp.abs(my)), edge)[..., None]
  glass = cover(1.22 - jnp.maximum(jnp.abs(mx), jnp.abs(my)), edge)[..., None]
  reflected = params.haze * jnp.ones_like(emitted)
  for i in range(params.lamps.shape[0]):
    lx, ly, half, tall, soft, bright = params.lamps[i]
    reflected = (
      reflected
      + params.glare
      * bright
      * cover(jnp.minimum(half - jnp.abs(x - lx + 0.2 * y), tall - jnp.abs(y - ly)), soft)[..., None]
    )
  image = 0.85 * emitted * panel + 0.012 * (1.0 - panel) + reflected
  room = _surroundings(key, size)
  return jnp.clip(room + glass * (image - room), 0.0, 1.0)
