"""What each finding does to a chest and to its film.

`reshape` moves organs (a larger heart, a raised diaphragm, a mediastinum pushed aside); `paint` takes air out of the
lungs or puts it where no vessels are, and lays bone, pleura and metal on top. All of it after textbook descriptions,
in strengths from barely visible to obvious; our choice throughout.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from multimodal.trrg.chest import findings as f
from multimodal.trrg.chest.anatomy import LEFT, Body, Chest, Half, bell, cover, segments
from multimodal.trrg.chest.findings import Finding

RIB = 0.031
"""Half the width of a rib."""


def reshape(body: Body, finding: Finding) -> Body:
  """The body with its organs where the finding puts them."""
  s, what = finding.strength, finding.what
  if what == f.HEART:
    return dataclasses.replace(body, heart_ratio=0.49 + 0.22 * s)
  if what == f.MEDIASTINUM:
    return dataclasses.replace(body, mediastinum=body.mediastinum * (1.3 + 1.0 * s), knob=body.knob * (1.0 + 0.5 * s))
  if what == f.ATELECTASIS:
    right, left = (base - (0.05 + 0.12 * s) * (side in finding.sides) for side, base in zip((-1, 1), body.bases))
    return dataclasses.replace(body, bases=(right, left))
  if what == f.PNEUMOTHORAX and s > 0.7:
    return dataclasses.replace(body, shift=body.shift - 0.5 * (s - 0.5) * finding.side)
  if what == f.EFFUSION and s > 0.8:
    return dataclasses.replace(body, shift=body.shift - 0.3 * (s - 0.6) * finding.side)
  return body


class Plate:
  """What a film will show beyond the healthy chest.

  Attributes:
    chest: the chest, reshaped.
    air: f32 [S, S] share of the air left in the lungs, above 1 where a pleural space is full of it.
    vessels: f32 [S, S] factor of the vessels' strength.
    dense: f32 [S, S] attenuation added.
  """

  def __init__(self, chest: Chest):
    self.chest = chest
    self.air = np.ones((chest.size, chest.size), np.float32)
    self.vessels = np.ones_like(self.air)
    self.dense = np.zeros_like(self.air)
    self.broken_ribs: list[tuple[int, int, float, float]] = []  # side, number, place from spine 0 to wall 1, step
    self.broken_clavicles: list[tuple[int, float, float]] = []  # side, u, step

  def fill(self, half: Half, share: np.ndarray) -> None:
    """Replaces a share of a lung's air by what is as dense as tissue."""
    self.air *= 1.0 - np.clip(share, 0.0, 1.0) * (half.u > 0.0)

  def texture(self, rng: np.random.Generator, cells: int) -> np.ndarray:
    """Smooth noise f32 [S, S] in about [-1, 1], `cells` bumps across the film."""
    place = (np.arange(self.chest.size, dtype=np.float32) + 0.5) / self.chest.size * cells
    near = np.abs(place[:, None] - np.arange(cells + 1, dtype=np.float32))
    weights = np.where(near < 1.0, 0.5 + 0.5 * np.cos(np.pi * near), 0.0).astype(np.float32)
    return weights @ rng.uniform(-1.0, 1.0, (cells + 1, cells + 1)).astype(np.float32) @ weights.T

  def line(self, half: Half, points: list[tuple[float, float]], width: float, density: float) -> None:
    """Lays a tube or a wire along a smooth way through points (u, y) of one half."""
    away = segments(half.u, self.chest.y, smooth(points))
    self.dense += density * cover(width - away, self.chest.edge)

  def breaks(self, half: Half, level: np.ndarray, across: np.ndarray) -> tuple[np.ndarray | float, np.ndarray | float]:
    """(share of bone left in place, displaced bone) of a half's ribs.

    `level` counts from the first rib down, `across` from spine 0 to wall 1. Fragments overlap, so they are denser.
    """
    left, moved = 1.0, 0.0
    spacing, edge = self.chest.body.ribs[1], self.chest.edge
    for side, number, place, step in self.broken_ribs:
      if side == half.side:
        below = level - number * spacing
        piece = cover(across - place, 0.03) * cover(place + 0.27 - across, 0.03)
        left = left * (1.0 - piece * (np.abs(below) < spacing / 2))
        moved = moved + 1.4 * piece * cover(RIB - np.abs(below - step), edge)
    return left, moved

  def snap(self, half: Half) -> tuple[np.ndarray | float, np.ndarray | float]:
    """(step down, share of bone left) along a half's clavicle."""
    step, bone = 0.0, 1.0
    for side, place, size in self.broken_clavicles:
      if side == half.side:
        step = step + size * cover(half.u - place, 0.03)
        bone = bone * (1.0 - bell((half.u - place) / 0.025))
    return step, bone


def paint(plate: Plate, finding: Finding, rng: np.random.Generator) -> None:
  """Puts a finding on the plate."""
  draw = _PAINTERS.get(finding.what)
  if draw is not None:
    for side in finding.sides:
      draw(plate, plate.chest.half(side), finding, rng)


def smooth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
  """The points with their corners cut twice (Chaikin), as tubes bend."""
  for _ in range(2):
    cut = [points[0]]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
      cut += [(0.75 * x0 + 0.25 * x1, 0.75 * y0 + 0.25 * y1), (0.25 * x0 + 0.75 * x1, 0.25 * y0 + 0.75 * y1)]
    points = [*cut, points[-1]]
  return points


def _somewhere(half: Half, zone: str, rng: np.random.Generator) -> tuple[float, float]:
  """A point (u, y) of a zone, away from heart and wall."""
  return half.place(rng.uniform(0.5, 0.72), rng.uniform(*f.ZONES[zone]))


def _opacity(plate: Plate, half: Half, finding: Finding, rng: np.random.Generator) -> None:
  """A hazy patch without borders."""
  s = finding.strength
  u, y = _somewhere(half, finding.zone, rng)
  wide, high = (rng.uniform(0.14, 0.18) + 0.08 * s for _ in range(2))
  patch = bell((half.u - u) / wide, (plate.chest.y - y) / high)
  plate.fill(half, (0.3 + 0.4 * s) * patch * (1.0 + 0.3 * plate.texture(rng, 14)))


def _lesion(plate: Plate, half: Half, finding: Finding, rng: np.random.Generator) -> None:
  """A round shadow with a sharp border, or several on each side."""
  s, y = finding.strength, plate.chest.y
  count = int(rng.integers(3, 6)) if finding.kind == 'nodules' else 1
  for _ in range(count):
    zone = finding.zone or str(rng.choice(list(f.ZONES)))
    u0, y0 = _somewhere(half, zone, rng)
    radius = 0.06 + 0.06 * s if finding.kind != 'mass' else 0.09 + 0.09 * s
    dx, dy = half.u - u0, y - y0
    away = np.hypot(dx, dy) / (1.0 + 0.05 * np.cos(3.0 * np.arctan2(dy, dx) + rng.uniform(0, 6)))
    ball = cover(radius - away, plate.chest.edge) * (1.0 - 0.35 * np.minimum(away / radius, 1.0) ** 2)
    plate.fill(half, (0.65 + 0.35 * s) * ball)


def _edema(plate: Plate, half: Half, finding: Finding, rng: np.random.Generator) -> None:
  """Wings of haze around the hila, wide vessels, short lines at the sides of the bases."""
  s, y = finding.strength, plate.chest.y
  wings = bell((half.u - 0.3) / (0.13 + 0.12 * s), (y - 0.02) / (0.2 + 0.14 * s))
  plate.fill(half, (0.2 + 0.5 * s) * wings * (1.0 + 0.25 * plate.texture(rng, 22)))
  plate.vessels *= 1.0 + 0.5 * (0.4 + s) * (half.u > 0)
  septa = np.maximum(np.cos(2 * np.pi * y / 0.075 + half.u), 0.0) ** 2 * bell((half.from_wall - 0.07) / 0.05)
  plate.fill(half, (0.15 + 0.25 * s) * septa * cover(y - half.base + 0.4, 0.1))


def _consolidation(plate: Plate, half: Half, finding: Finding, rng: np.random.Generator) -> None:
  """A lobe without air that ends at a fissure, with the bronchi dark in it."""
  s, y, edge = finding.strength, plate.chest.y, plate.chest.edge
  low, high = {'upper': (-0.2, 0.42), 'middle': (0.4, 0.66), 'lower': (0.62, 0.92)}[finding.zone]
  (_, upper), (_, lower) = half.place(0.5, low), half.place(0.5, high)
  tilt = 0.12 * (half.u - 0.4)
  lobe = cover(y - upper + tilt, 1.5 * edge) * cover(lower - y - tilt, 1.5 * edge)
  part = cover(0.35 + 0.5 * s - half.from_wall, 0.12) if rng.random() < 0.5 else cover(0.3 + 0.5 * s - half.u, 0.12)
  angle = np.arctan2(y - 0.02, half.u - 0.12)
  bronchi = np.maximum(np.cos(11.0 * angle + plate.chest.body.phases[0]), 0.0) ** 6
  plate.fill(half, (0.5 + 0.42 * s) * lobe * part * (1.0 - 0.35 * bronchi))


def _pneumonia(plate: Plate, half: Half, finding: Finding, rng: np.random.Generator) -> None:
  """Many small soft patches close together, some of which merge."""
  s, y = finding.strength, plate.chest.y
  u0, y0 = _somewhere(half, finding.zone, rng)
  clear = 1.0
  for _ in range(5 + int(6 * s)):
    du, dy = rng.normal(0.0, 0.12), rng.normal(0.0, 0.12)
    radius = rng.uniform(0.035, 0.055)
    clear = clear * (1.0 - (0.45 + 0.45 * s) * bell((half.u - u0 - du) / radius, (y - y0 - dy) / radius))
  plate.fill(half, 1.0 - clear)


def _atelectasis(plate: Plate, half: Half, finding: Finding, rng: np.random.Generator) -> None:
  """Plates of collapsed lung above the diaphragm, which `reshape` has raised."""
  s, y = finding.strength, plate.chest.y
  for i in range(1 + int(1.6 * s)):
    u0, y0 = half.place(rng.uniform(0.5, 0.7), 0.88 - 0.13 * i)
    length, tilt = rng.uniform(0.16, 0.22) + 0.08 * s, rng.uniform(-0.5, 0.5)
    away = segments(half.u, y, [(u0 - length, y0 - length * tilt), (u0 + length, y0 + length * tilt)])
    plate.fill(half, (0.45 + 0.45 * s) * cover(0.026 + 0.02 * s - away, plate.chest.edge))


def _pneumothorax(plate: Plate, half: Half, finding: Finding, rng: np.random.Generator) -> None:
  """Air outside the lung: no vessels beyond a thin line, most of it above and at the side; the lung shrinks."""
  s, y, edge = finding.strength, plate.chest.y, plate.chest.edge
  depth = 0.04 + 0.36 * s
  lowest = half.base - 0.35 + 0.6 * s
  inward = np.minimum(half.from_wall + 0.9 * np.maximum(y - lowest, 0.0), 1.1 * half.from_apex)
  free = cover(depth - inward, edge) * half.lung
  plate.vessels *= 1.0 - free
  plate.air *= 1.0 + (0.1 + 0.14 * s) * free - (0.1 + 0.3 * s) * (half.lung - free)
  plate.dense += 0.11 * half.lung * cover(0.018 - np.abs(inward - depth), edge)


def _effusion(plate: Plate, half: Half, finding: Finding, rng: np.random.Generator) -> None:
  """Fluid up to a level that climbs at the wall."""
  s = finding.strength
  level = half.base + 0.04 - 0.58 * s - rng.uniform(0.0, 0.04)
  meniscus = level + 0.42 * np.clip(half.from_wall, 0.0, 0.35) ** 0.8
  plate.fill(half, 0.97 * cover(plate.chest.y - meniscus, 0.03))
  plate.dense += 0.16 * half.lung * cover(plate.chest.y - meniscus, 0.05) * cover(half.u - 0.15, 0.15)


def _pleura(plate: Plate, half: Half, finding: Finding, rng: np.random.Generator) -> None:
  """A dense rim along the wall, or a cap on the apex, with a wavy border."""
  s, y, edge = finding.strength, plate.chest.y, plate.chest.edge
  wave = 0.012 * np.sin(17.0 * (y + half.u) + rng.uniform(0, 6))
  if finding.kind == 'apical':
    rim = cover(0.08 + 0.14 * s + wave - half.from_apex, edge)
  else:
    middle, reach = rng.uniform(-0.1, 0.0), 0.24 + 0.12 * s
    rim = cover(0.06 + 0.1 * s + wave - half.from_wall, edge) * cover(reach - np.abs(y - middle), 0.12)
  plate.fill(half, (0.6 + 0.4 * s) * rim)
  plate.dense += 0.12 * s * rim * half.lung


def _fracture(plate: Plate, half: Half, finding: Finding, rng: np.random.Generator) -> None:
  """A broken clavicle, or one to three neighbouring ribs with a bruise around each break."""
  s = finding.strength
  if finding.kind == 'clavicle':
    plate.broken_clavicles.append((half.side, rng.uniform(0.35, 0.55), 0.08 + 0.08 * s))
    return
  first, spacing, drop = plate.chest.body.ribs
  number, place = int(rng.integers(3, 6)), rng.uniform(0.58, 0.72)
  for i in range(1 + finding.degree):
    here = place + rng.uniform(-0.04, 0.04)
    plate.broken_ribs.append((half.side, number + i, here, 0.055 + 0.035 * s))
    y = first + (number + i) * spacing - 0.05 * np.sin(np.pi * here) + drop * here * here
    away = ((half.u - here * half.wall_at(y)) / 0.065, (plate.chest.y - y) / 0.055)
    plate.dense += (0.18 + 0.2 * s) * bell(*away)


def _device(plate: Plate, half: Half, finding: Finding, rng: np.random.Generator) -> None:
  """Tubes, lines and a pacemaker; those in the middle are drawn with the left half."""
  chest, side = plate.chest, half.side
  jitter = float(rng.uniform(-0.04, 0.04))
  if finding.kind == 'chest tube':
    way = [(half.width + 0.2, 0.45), (0.8 * half.width, 0.2 + jitter), (0.55 + jitter, -0.15), (0.42 + jitter, -0.55)]
    plate.line(half, way, 0.03, 0.4)
  elif finding.kind == 'central line':
    vein = -0.09 * side  # the superior vena cava lies on the right, whichever side the line comes from
    way = [(0.62, -0.58), (0.4, -0.66 + jitter), (0.2, -0.6), (vein, -0.42), (vein, -0.02 + jitter)]
    plate.line(half, way, 0.024, 0.42)
  elif finding.kind == 'pacemaker':
    x, y = 0.5 + jitter, -0.42 + jitter
    box = np.maximum(np.abs(half.u - x) - 0.05, 0.0) ** 2 + np.maximum(np.abs(chest.y - y) - 0.03, 0.0) ** 2
    plate.dense += 1.1 * cover(0.055 - np.sqrt(box), chest.edge)
    plate.line(half, [(x, y - 0.05), (0.25, -0.56), (-0.07, -0.36), (-0.1, 0.05), (0.2, half.base - 0.1)], 0.018, 0.45)
  elif half.side == LEFT:
    tube = [(0.0, -1.1), (0.01, -0.36 + jitter)]
    if finding.kind == 'nasogastric tube':
      tube = [(0.0, -1.1), (0.02, 0.1), (0.06, half.base - 0.02), (0.2, half.base + 0.16), (0.34, half.base + 0.2)]
    plate.line(half, tube, 0.026, 0.55)


_PAINTERS = {
  f.OPACITY: _opacity, f.LESION: _lesion, f.EDEMA: _edema, f.CONSOLIDATION: _consolidation, f.PNEUMONIA: _pneumonia,
  f.ATELECTASIS: _atelectasis, f.PNEUMOTHORAX: _pneumothorax, f.EFFUSION: _effusion, f.PLEURA: _pleura,
  f.FRACTURE: _fracture, f.DEVICE: _device,
}  # fmt: skip
