"""Whose chest it is, and where everything lies in it.

Coordinates: x and y in [-1, 1] over the square film, y down. A side is +1 for the patient's left, which is on the right
of the film, -1 for the right. `u` is the distance from the spine towards a side. Proportions are those of a frontal
film at full inspiration, by eye from public films; all of it our choice.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

RIGHT, LEFT = -1, 1


@dataclasses.dataclass(frozen=True)
class Body:
  """One chest, healthy unless a finding changes it. Lengths in units of half a film.

  Attributes:
    middle: x of the spine; curve: how far it bends (scoliosis).
    rotation: share by which the left lung looks wider and the right one narrower.
    top: y of the apices; width: half the inner width of the thorax.
    bases: y of the domes of the diaphragm (right, left).
    heart_ratio: cardiothoracic ratio; apex: y of the heart's centre below the carina.
    mediastinum: half width of the upper mediastinum; knob: radius of the aortic knob.
    shift: x by which heart and mediastinum are pushed aside.
    markings: strength of the vessels; breasts: of the breast shadows, 0 for none; fat: thickness of the chest wall.
    ribs: (y of the first, distance, drop from spine to side).
    clavicles: y of the inner ends; gas: of the stomach bubble, 0 for none.
    phases: eight angles in [0, 2 pi), which make vessels differ.
    zoom: of the film; lift: y by which it is taken too low or too high.
    exposure, gamma, noise: of the film. marker: side on which a letter lies, 0 for none.
  """

  middle: float
  curve: float
  rotation: float
  top: float
  width: float
  bases: tuple[float, float]
  heart_ratio: float
  apex: float
  mediastinum: float
  knob: float
  shift: float
  markings: float
  breasts: float
  fat: float
  ribs: tuple[float, float, float]
  clavicles: float
  gas: float
  phases: tuple[float, ...]
  zoom: float
  lift: float
  exposure: float
  gamma: float
  noise: float
  marker: int

  @property
  def shallow(self) -> bool:
    """Whether the lungs hold so little air that a report says so."""
    return sum(self.bases) / 2 < 0.24

  @property
  def rotated(self) -> bool:
    return abs(self.rotation) > 0.09

  @property
  def scoliotic(self) -> bool:
    return abs(self.curve) > 0.05

  @property
  def tortuous(self) -> bool:
    """Whether the aorta's knob stands out."""
    return self.knob > 0.1


def body(rng: np.random.Generator) -> Body:
  """Draws a healthy chest. About one in ten breathes in too little, one in ten is rotated, one in twelve scoliotic."""

  def seldom(chance: float, usual: tuple[float, float], else_: tuple[float, float]) -> float:
    return float(rng.uniform(*(else_ if rng.random() < chance else usual)))

  base = seldom(0.1, (0.31, 0.4), (0.16, 0.22))
  sign = rng.choice((-1, 1), 2)
  return Body(
    middle=float(rng.uniform(-0.03, 0.03)),
    curve=float(sign[0]) * seldom(0.08, (0.0, 0.02), (0.06, 0.09)),
    rotation=float(sign[1]) * seldom(0.1, (0.0, 0.05), (0.1, 0.15)),
    top=float(rng.uniform(-0.84, -0.78)),
    width=float(rng.uniform(0.72, 0.79)),
    bases=(base, base + float(rng.uniform(0.02, 0.08))),
    heart_ratio=float(rng.uniform(0.37, 0.46)),
    apex=float(rng.uniform(0.1, 0.18)),
    mediastinum=float(rng.uniform(0.12, 0.15)),
    knob=seldom(0.08, (0.055, 0.085), (0.11, 0.13)),
    shift=0.0,
    markings=float(rng.uniform(0.8, 1.2)),
    breasts=float(rng.uniform(0.5, 1.0)) if rng.random() < 0.45 else 0.0,
    fat=float(rng.uniform(0.07, 0.17)),
    ribs=(float(rng.uniform(-0.8, -0.7)), float(rng.uniform(0.15, 0.18)), float(rng.uniform(0.16, 0.26))),
    clavicles=float(rng.uniform(-0.64, -0.54)),
    gas=float(rng.uniform(0.0, 1.0)),
    phases=tuple(rng.uniform(0, 2 * np.pi, 8).tolist()),
    zoom=float(rng.uniform(0.97, 1.04)),
    lift=float(rng.uniform(-0.02, 0.02)),
    exposure=float(rng.uniform(1.45, 1.65)),
    gamma=float(rng.uniform(0.92, 1.1)),
    noise=float(rng.uniform(0.006, 0.014)),
    marker=int(rng.choice((RIGHT, LEFT, 0))),
  )


def cover(distance: np.ndarray, edge: float) -> np.ndarray:
  """Coverage in [0, 1] of a shape from the signed distance (> 0 inside) and the half width of its edge."""
  t = np.clip(0.5 + 0.5 / edge * distance, 0.0, 1.0)
  return t * t * (3.0 - 2.0 * t)


def bell(*scaled: np.ndarray) -> np.ndarray:
  """A Gaussian bump of height 1 from distances in units of its standard deviations."""
  return np.exp(-0.5 * sum(d * d for d in scaled))


class Half:
  """One half of the chest on the pixels of a film.

  Attributes:
    side: LEFT or RIGHT.
    u: f32 [S, S] distance from the spine.
    wall: f32 [S, 1] inner side of the ribs; dome: f32 [S, S] y of the diaphragm.
    from_wall, from_apex, from_base: f32 [S, S] depth below each border of the lung, negative outside.
    lung: f32 [S, S] coverage of the lung, the parts behind the heart included.
  """

  def __init__(self, chest: Chest, side: int):
    body, y, edge = chest.body, chest.y, chest.edge
    self.side, self.top = side, body.top
    self.base = body.bases[side > 0]
    self.width = body.width * (1.0 + side * body.rotation)
    self.u = side * (chest.x - chest.spine)
    self.wall = self.wall_at(y)
    self.dome = self.base + 0.17 * ((self.u - 0.46 * self.width) / (0.5 * self.width)) ** 2
    self.from_wall = self.wall - self.u
    self.from_apex = y - body.top - 0.11 * ((self.u - 0.29) / 0.2) ** 2
    self.from_base = self.dome - y
    self.lung = (
      cover(self.from_wall, edge)
      * cover(self.from_apex, 1.5 * edge)
      * cover(self.from_base, edge)
      * cover(self.u - 0.03, edge)
    )

  def wall_at(self, y: np.ndarray | float) -> np.ndarray:
    """Half width of the thorax at heights y."""
    depth = np.clip((y - self.top) / 1.15, 0.0, 1.0)
    return self.width * (1.0 - 0.52 * (1.0 - depth) ** 2.4)

  def place(self, across: float, down: float) -> tuple[float, float]:
    """(u, y) of a point of the lung: across from spine 0 to wall 1, down from apex 0 to dome 1."""
    y = self.top + down * (self.base - self.top)
    return float(across * self.wall_at(y)), y


class Chest:
  """A body laid out on the pixels of a film.

  Attributes:
    x: f32 [1, S], y: f32 [S, 1] pixel centres; edge: half width of a sharp edge, about a pixel.
    spine: f32 [S, 1] x of the spine; halves: the right half and the left half.
    heart: f32 [S, S] coverage of heart and great vessels; lungs: f32 [S, S] coverage of both lungs.
  """

  def __init__(self, body: Body, size: int):
    line = ((2.0 * np.arange(size) + 1.0) / size - 1.0).astype(np.float32)
    self.body, self.size = body, size
    self.x, self.y = line[None, :] / body.zoom, line[:, None] / body.zoom + body.lift
    self.edge = 2.2 / size
    self.spine = body.middle + body.curve * np.sin(3.0 * self.y + 0.6)
    self.halves = (Half(self, RIGHT), Half(self, LEFT))
    self.lungs = self.halves[0].lung + self.halves[1].lung
    self.heart = self._heart()

  def half(self, side: int) -> Half:
    return self.halves[side > 0]

  def _heart(self) -> np.ndarray:
    """Left ventricle, right atrium, upper mediastinum and aortic knob in one outline."""
    body, x, y = self.body, self.x - self.spine - self.body.shift, self.y
    reach = body.heart_ratio * 2.0 * body.width
    right, left = 0.33 * reach, 0.67 * reach
    middle = body.bases[1] - body.apex - 0.04
    # The ventricle is an ellipse whose long axis points down to the left; the atrium bulges a little to the right.
    slope = 0.55 * (x - 0.3 * left)
    ventricle = 1.0 - np.hypot((x - 0.25 * left) / (0.75 * left), (y - middle - slope) / (0.26 + 0.3 * left))
    atrium = 1.0 - np.hypot((x + 0.1 * right) / (0.9 * right), (y - middle - 0.02) / (0.22 + 0.4 * right))
    stem = body.mediastinum + 0.025 * cover(y + 0.15, 0.2) - 0.05 * cover(y - middle, 0.2) - np.abs(x - 0.01)
    knob = 1.0 - np.hypot(x - 0.55 * body.mediastinum - 0.05, y + 0.36) / body.knob
    # A soft maximum joins them, so that no border has a notch.
    depths = (0.5 * left * ventricle, 0.5 * right * atrium, stem, body.knob * knob)
    joined = np.log(sum(np.exp(np.minimum(depth, 0.2) / 0.022) for depth in depths)) * 0.022
    return cover(joined, 1.2 * self.edge + 0.012)


def segments(x: np.ndarray, y: np.ndarray, points: list[tuple[float, float]]) -> np.ndarray:
  """Distance f32 [S, S] of each pixel to a line through points (x, y)."""
  nearest = None
  for (x0, y0), (x1, y1) in itertools.pairwise(points):
    dx, dy = x1 - x0, y1 - y0
    along = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0.0, 1.0)
    square = (x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2
    nearest = square if nearest is None else np.minimum(nearest, square)
  return np.sqrt(nearest)
