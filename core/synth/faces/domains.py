"""Capture domains: what one data collection has in common.

A domain is a bundle of ranges for camera, light, printer and screen; each video draws its own values from them. The
ranges are made so that the domains differ in what a careless model would use: one domain's live faces are as noisy, as
soft or as pale as another's prints, and each domain's printer and screen leave another texture. What is true in all of
them is the physics: a picture of a face went through ink or sub-pixels and through two cameras. All numbers are ours.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError, nearest
from core.synth.faces import params as face
from core.synth.faces.attacks import Placement, PrintParams, ReplayParams
from core.synth.faces.camera import CameraParams


@flax.struct.dataclass
class Ranges:
  """(low, high) bounds: f32 [2, number of camera values] and so on, so that domains share one compiled sampler."""

  camera: jax.Array
  light: jax.Array  # softness, share of the key light, warmth
  printer: jax.Array
  screen: jax.Array


@dataclasses.dataclass(frozen=True)
class Domain:
  """A data collection.

  Attributes:
    name: identifier, e.g. 'laptop'.
    description: what it is like.
    camera, light, printer, screen: name -> (low, high).
  """

  name: str
  description: str
  camera: dict[str, tuple[float, float]]
  light: dict[str, tuple[float, float]]
  printer: dict[str, tuple[float, float]]
  screen: dict[str, tuple[float, float]]

  def ranges(self) -> Ranges:
    """The bounds as arrays, in the order of the `*_KEYS`."""

    def pack(bounds, keys):
      if set(bounds) != set(keys):
        raise ValueError(f"Domain '{self.name}': expected the ranges {keys}, found {tuple(bounds)}.")
      return np.array([bounds[k] for k in keys], np.float32).T

    return Ranges(
      pack(self.camera, CAMERA_KEYS),
      pack(self.light, LIGHT_KEYS),
      pack(self.printer, PRINTER_KEYS),
      pack(self.screen, SCREEN_KEYS),
    )


CAMERA_KEYS = tuple(f.name for f in dataclasses.fields(CameraParams))
LIGHT_KEYS = ('softness', 'share', 'warmth')
PRINTER_KEYS = ('pitch', 'angle', 'dots', 'random', 'gain', 'ink', 'black', 'tint', 'grain', 'gloss', 'bands', 'bend')
SCREEN_KEYS = (
  'pitch',
  'angle',
  'lattice',
  'pentile',
  'tint',
  'gamut',
  'black',
  'gamma',
  'band',
  'band_period',
  'glare',
  'haze',
)


# One row per value, one column per domain: laptop, phone, tablet, dslr.
_CAMERAS = {
  'exposure': ((0.24, 0.32), (0.28, 0.40), (0.20, 0.28), (0.26, 0.36)),
  'blur': ((0.55, 0.75), (0.30, 0.45), (0.60, 0.85), (0.30, 0.40)),
  'motion': ((0.0, 0.4), (0.0, 0.4), (0.1, 0.6), (0.0, 0.15)),
  'vignette': ((0.0, 0.2), (0.0, 0.2), (0.0, 0.3), (0.15, 0.5)),
  'warmth': ((-0.12, -0.04), (0.02, 0.09), (0.0, 0.08), (-0.04, 0.05)),
  'green': ((-0.03, 0.03), (-0.02, 0.02), (0.02, 0.07), (-0.06, -0.01)),
  'saturation': ((0.80, 0.95), (1.05, 1.20), (0.72, 0.90), (0.95, 1.10)),
  'hue': ((-0.1, 0.1), (-0.1, 0.1), (0.1, 0.35), (-0.35, -0.1)),
  'noise': ((0.020, 0.045), (0.006, 0.015), (0.012, 0.030), (0.002, 0.006)),
  'contrast': ((0.05, 0.2), (0.2, 0.4), (0.0, 0.15), (0.3, 0.55)),
  'gamma': ((2.1, 2.3), (2.1, 2.3), (2.3, 2.5), (2.05, 2.2)),
  'sharpen': ((0.0, 0.2), (0.5, 1.0), (0.0, 0.1), (0.1, 0.4)),
  'jpeg': ((6.0, 12.0), (2.0, 5.0), (2.0, 6.0), (0.0, 1.5)),
}
_LIGHTS = {
  'softness': ((0.5, 1.0), (0.2, 0.7), (0.1, 0.6), (0.0, 0.4)),
  'share': ((0.35, 0.6), (0.5, 0.8), (0.5, 0.8), (0.65, 0.9)),
  'warmth': ((-0.12, 0.0), (0.0, 0.12), (0.08, 0.25), (-0.06, 0.06)),
}
_PRINTERS = {
  'pitch': ((2.6, 3.4), (2.0, 2.6), (3.6, 4.8), (1.5, 1.9)),
  'angle': ((0.2, 0.35), (0.0, 1.5), (0.6, 0.9), (0.1, 0.5)),
  'dots': ((0.30, 0.55), (0.20, 0.35), (0.30, 0.50), (0.25, 0.45)),
  'random': ((0.0, 0.1), (0.8, 1.0), (0.0, 0.05), (0.3, 0.6)),
  'gain': ((0.02, 0.05), (0.0, 0.04), (0.04, 0.08), (0.0, 0.03)),
  'ink': ((0.75, 0.90), (0.80, 0.95), (0.60, 0.75), (0.85, 1.0)),
  'black': ((0.03, 0.06), (0.02, 0.05), (0.06, 0.11), (0.03, 0.06)),
  'tint': ((-0.05, 0.0), (0.0, 0.05), (0.04, 0.12), (-0.03, 0.03)),
  'grain': ((0.01, 0.03), (0.0, 0.015), (0.02, 0.05), (0.0, 0.01)),
  'gloss': ((0.0, 0.01), (0.03, 0.12), (0.0, 0.02), (0.05, 0.2)),
  'bands': ((0.02, 0.05), (0.0, 0.02), (0.0, 0.01), (0.0, 0.01)),
  'bend': ((-0.12, 0.12), (-0.18, 0.18), (-0.06, 0.06), (-0.08, 0.08)),
}
_SCREENS = {
  'pitch': ((2.2, 2.8), (1.15, 1.6), (0.90, 1.12), (3.0, 4.0)),
  'angle': ((-0.06, 0.06), (-0.12, 0.12), (-0.08, 0.08), (-0.03, 0.03)),
  'lattice': ((0.20, 0.40), (0.20, 0.40), (0.15, 0.35), (0.20, 0.40)),
  'pentile': ((0.0, 0.1), (0.8, 1.0), (0.0, 0.2), (0.0, 0.05)),
  'tint': ((-0.10, -0.03), (-0.05, 0.05), (0.0, 0.08), (-0.08, 0.02)),
  'gamut': ((0.85, 1.0), (1.05, 1.2), (0.90, 1.05), (0.95, 1.1)),
  'black': ((0.01, 0.03), (0.0, 0.004), (0.01, 0.03), (0.015, 0.04)),
  'gamma': ((2.0, 2.2), (2.1, 2.3), (2.0, 2.2), (2.0, 2.25)),
  'band': ((0.0, 0.05), (0.05, 0.15), (0.0, 0.04), (0.04, 0.10)),
  'band_period': ((0.4, 0.8), (0.15, 0.4), (0.5, 1.0), (0.3, 0.6)),
  'glare': ((0.03, 0.12), (0.05, 0.2), (0.05, 0.25), (0.0, 0.08)),
  'haze': ((0.01, 0.03), (0.005, 0.02), (0.015, 0.05), (0.005, 0.02)),
}
_DESCRIPTIONS = {
  'laptop': 'a webcam in an office: noisy, soft, bluish, compressed; laser prints on plain paper, coarse phone screens',
  'phone': 'a front camera: sharpened, saturated, warm; ink-jet photographs, PenTile displays with refresh bands',
  'tablet': 'a tablet at home in the evening: soft, flat, greenish; offset-printed pages, fine IPS screens with moire',
  'dslr': 'a system camera in a studio: clean, contrasty, hard light; photo-lab prints, desktop monitors',
}


def _column(table: dict[str, tuple], number: int) -> dict[str, tuple[float, float]]:
  return {name: row[number] for name, row in table.items()}


DOMAINS: dict[str, Domain] = {
  name: Domain(name, text, *(_column(table, i) for table in (_CAMERAS, _LIGHTS, _PRINTERS, _SCREENS)))
  for i, (name, text) in enumerate(_DESCRIPTIONS.items())
}
"""The embedded domains by name."""


def get(name: str) -> Domain:
  """The domain of that name."""
  if name not in DOMAINS:
    raise UserError(
      f"The face world has no domain '{name}': expected one of {', '.join(DOMAINS)}.{nearest(name, DOMAINS)}"
    )
  return DOMAINS[name]


def _between(key: jax.Array, bounds: jax.Array) -> jax.Array:
  return bounds[0] + (bounds[1] - bounds[0]) * jax.random.uniform(key, bounds.shape[1:])


def sample_camera(key: jax.Array, ranges: Ranges) -> CameraParams:
  """One camera of the domain."""
  return CameraParams(*_between(key, ranges.camera))


def sample_light(key: jax.Array, ranges: Ranges) -> face.Light:
  """One lighting of the domain."""
  low, high = ranges.light
  return face.sample_light(key, *((low[i], high[i]) for i in range(3)))


def sample_print(key: jax.Array, ranges: Ranges) -> tuple[PrintParams, Placement]:
  """One print of the domain and how it is held."""
  keys = jax.random.split(key, 4)
  value = dict(zip(PRINTER_KEYS, _between(keys[0], ranges.printer), strict=True))
  tint, bend = value.pop('tint'), value.pop('bend')
  paper = 0.86 * jnp.stack([1.0 + 0.5 * tint, jnp.ones(()), 1.0 - tint])
  slope = jax.random.uniform(keys[1], (2,), minval=-0.25, maxval=0.25)
  return PrintParams(paper=paper, slope=slope, **value), _placement(keys[2], bend, 0.03)


def sample_replay(key: jax.Array, ranges: Ranges) -> tuple[ReplayParams, Placement]:
  """One screen of the domain and how it is held."""
  keys = jax.random.split(key, 5)
  value = dict(zip(SCREEN_KEYS, _between(keys[0], ranges.screen), strict=True))
  tint, haze = value.pop('tint'), value.pop('haze')
  u = jax.random.uniform(keys[1], (3, 6))
  low, high = jnp.array([-1.2, -1.2, 0.05, 0.1, 0.03, 0.2]), jnp.array([1.2, 1.2, 0.4, 0.6, 0.25, 1.0])
  params = ReplayParams(
    white=jnp.stack([1.0 + tint, jnp.ones(()), 1.0 - tint]),
    band_phase=jax.random.uniform(keys[2], (), maxval=6.28),
    lamps=low + (high - low) * u,
    haze=haze * jnp.ones(3),
    **value,
  )
  return params, _placement(keys[3], jnp.zeros(()), 0.02)


def _placement(key: jax.Array, bend: jax.Array, tilt: float) -> Placement:
  """A medium held so that its face fills the crop as a live one would; its border shows now and then."""
  u = jax.random.uniform(key, (6,), minval=-1.0, maxval=1.0)
  return Placement(
    zoom=PRESENTED_ZOOM * (1.0 + 0.06 * u[0]),
    x=0.05 * u[1],
    y=0.05 * u[2],
    angle=0.06 * u[3],
    tilt_x=tilt * 3.0 * u[4],
    tilt_y=tilt * 3.0 * u[5],
    bend=bend,
  )


PRESENTED_ZOOM = 1.1
"""The presented picture is framed this much wider than a live crop, and comes this much nearer on its medium."""
