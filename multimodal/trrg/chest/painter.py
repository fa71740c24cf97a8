"""From a chest and its findings to a radiograph, as X-rays do it: thicknesses add up, the film shows what gets through.

Soft tissue attenuates, air in the lungs takes attenuation away, bone and metal add to it; the film is
1 - exp(-exposure * attenuation), with a display window and quantum noise. What a finding does is in `pathology`.
"""

from __future__ import annotations

import numpy as np

from multimodal.trrg.chest import pathology
from multimodal.trrg.chest.anatomy import LEFT, Body, Chest, Half, bell, cover
from multimodal.trrg.chest.findings import Finding

_DARKEST, _BRIGHTEST = 0.13, 0.88  # what the display shows as black and as white
_LETTERS = {-1: ('110', '101', '110', '101', '101'), 1: ('100', '100', '100', '100', '111')}  # R on the right, L left


def film(body: Body, findings: tuple[Finding, ...], size: int, rng: np.random.Generator) -> np.ndarray:
  """Takes a film uint8 [size, size] of a chest with these findings; `rng` decides on their shapes and on the noise."""
  for finding in findings:
    body = pathology.reshape(body, finding)
  chest = Chest(body, size)
  plate = pathology.Plate(chest)
  for finding in findings:
    pathology.paint(plate, finding, rng)
  attenuation = _soft_tissue(chest) - _air(plate) + _bones(plate) + plate.dense
  return develop(chest, attenuation, rng)


def develop(chest: Chest, attenuation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Exposes the plate: uint8 [S, S], bright where little gets through."""
  body = chest.body
  through = np.exp(-body.exposure * np.maximum(attenuation, 0.0))
  noise = rng.standard_normal(through.shape, np.float32) * (body.noise * np.sqrt(0.3 + through))
  grey = np.clip((1.0 - through + noise - _DARKEST) / (_BRIGHTEST - _DARKEST), 0.0, 1.0) ** body.gamma
  image = np.asarray(252.0 * grey, np.uint8)
  if body.marker:
    _mark(image, body.marker)
  return image


def _soft_tissue(chest: Chest) -> np.ndarray:
  """Trunk, neck, shoulders, breasts, and the stomach's gas: f32 [S, S]."""
  body, x, y = chest.body, chest.x, chest.y
  off = np.abs(x - chest.spine)
  outer = body.width + body.fat + 0.9 * np.maximum(0.1 - y, 0.0) ** 1.5
  shoulder = -1.02 + 0.38 * np.maximum(off - 0.24, 0.0) + 0.5 * np.minimum(off - 0.24, 0.0)
  trunk = cover(outer - off, 0.03) * cover(y - shoulder, 0.035)
  depth = np.sqrt(np.maximum(1.0 - (off / (outer + 0.05)) ** 2, 0.0))
  tissue = trunk * (0.36 + (0.5 + 0.16 * cover(y - 0.45, 0.5)) * depth)
  for half in chest.halves:
    if body.breasts:
      away = np.hypot((half.u - 0.45) / 0.34, (y - 0.24) / 0.36)
      tissue = tissue + 0.13 * body.breasts * cover(1.0 - away, 0.12) * cover(y + 0.05, 0.4)
  stomach = chest.half(LEFT)
  if body.gas > 0.3:
    bubble = 1.0 - np.hypot((stomach.u - 0.36) / 0.15, (y - stomach.base - 0.14) / 0.075)
    tissue = tissue - 0.3 * body.gas * cover(bubble, 0.35)
  trachea = cover(0.035 - off, chest.edge) * cover(-0.3 - y, 0.06)
  return tissue - 0.16 * trachea


def _air(plate: pathology.Plate) -> np.ndarray:
  """What the lungs take away: air, less what lies in front of it, less the vessels in it."""
  chest, body = plate.chest, plate.chest.body
  air = 0.0
  for i, half in enumerate(chest.halves):
    rim = np.sqrt(np.clip(np.minimum(half.from_wall, half.from_apex) / 0.3, 0.0, 1.0))
    air = air + half.lung * (0.45 + 0.23 * rim) * (1.0 - _vessels(half, chest, body.phases[4 * i : 4 * i + 4], plate))
  return air * plate.air * (1.0 - 0.82 * chest.heart)


def _vessels(half: Half, chest: Chest, phases: np.ndarray, plate: pathology.Plate) -> np.ndarray:
  """Hilum and the vessels that run out of it, as a share of the air, f32 [S, S]."""
  dx, dy = half.u - chest.body.mediastinum - half.side * chest.body.shift, chest.y
  r = np.sqrt(dx * dx + dy * dy)
  angle = np.arctan2(dy, dx)
  wave = 1.1 * np.sin(5.0 * r + phases[0])
  trunks = np.maximum(np.cos(6.0 * angle + phases[1] + wave), 0.0) ** 3 * np.exp(-3.2 * r)
  twigs = np.maximum(np.cos(13.0 * angle + phases[2] - 1.7 * wave), 0.0) ** 3 * np.exp(-1.8 * r) * np.minimum(3 * r, 1)
  hilum = bell((dx - 0.02) / 0.06, (dy + 0.02) / 0.11)
  lines = chest.body.markings * (0.38 * trunks + 0.26 * twigs) * plate.vessels
  return np.minimum(lines + 0.34 * hilum, 0.8)


def _bones(plate: pathology.Plate) -> np.ndarray:
  """Spine, ribs, clavicles and shoulders, f32 [S, S]."""
  chest = plate.chest
  off = np.abs(chest.x - chest.spine)
  vertebrae = 0.11 + 0.03 * np.cos(2.0 * np.pi * (chest.y - chest.body.ribs[0]) / chest.body.ribs[1])
  bones = vertebrae * cover(0.085 - off, 1.5 * chest.edge)
  for half in chest.halves:
    bones = bones + _ribs(plate, half) + _shoulder(plate, half)
  return bones


def _ribs(plate: pathology.Plate, half: Half) -> np.ndarray:
  """Back parts, which fall towards the side, and the fainter front parts, which fall towards the middle."""
  chest = plate.chest
  first, spacing, drop = chest.body.ribs
  across = np.clip(half.u / half.wall, 0.0, 1.0)
  level = chest.y - first + 0.05 * np.sin(np.pi * across) - drop * across * across
  left, moved = plate.breaks(half, level, across)
  inside = cover(half.from_wall + 0.05, 1.5 * chest.edge) * cover(half.u - 0.06, chest.edge)
  inside = inside * cover(half.base + 0.28 - chest.y, 0.15) * (1.0 - 0.4 * chest.heart)
  back = _bands(level, spacing, chest.edge)
  front = _bands(chest.y - first - drop - 0.02 - 0.42 * (1.0 - across), spacing, chest.edge)
  cage = 0.022 * cover(0.03 - np.abs(half.from_wall + 0.02), 1.5 * chest.edge)
  return inside * (0.13 * (back * left + moved) + 0.055 * front * cover(across - 0.45, 0.15) + cage)


def _bands(level: np.ndarray, spacing: float, edge: float) -> np.ndarray:
  """Ten ribs at whole multiples of `spacing`."""
  number = np.clip(np.rint(level / spacing), 0.0, 9.0)
  return cover(pathology.RIB - np.abs(level - number * spacing), edge)


def _shoulder(plate: pathology.Plate, half: Half) -> np.ndarray:
  """Clavicle, shoulder blade and the head of the upper arm."""
  chest, u, y = plate.chest, half.u, plate.chest.y
  inner = chest.body.clavicles - 0.3 * half.side * chest.body.rotation
  line = inner - 0.2 * u + 0.035 * np.sin(7.5 * u)
  step, gap = plate.snap(half)
  bone = cover(0.03 - np.abs(y - line - step), chest.edge) * cover(u - 0.07, chest.edge) * cover(0.86 - u, chest.edge)
  blade = cover(u - 0.67 - 0.16 * (y + 0.6), 0.03) * cover(0.1 - y, 0.1) * cover(y + 0.72, 0.05) * cover(0.92 - u, 0.05)
  shaft = cover(0.07 - np.abs(u - 1.03), 0.03) * cover(y + 0.5, 0.04)
  arm = cover(0.13 - np.hypot(u - 0.98, y + 0.56), 0.03) + 0.7 * shaft
  return 0.26 * bone * gap + 0.05 * blade + 0.14 * arm


def _mark(image: np.ndarray, side: int) -> None:
  """Lays the letter of a side into the upper corner on that side, as lead letters lie on films."""
  unit = max(len(image) // 64, 1)
  letter = np.kron(np.array([[int(c) for c in row] for row in _LETTERS[side]]), np.ones((unit, unit))) > 0
  height, width = letter.shape
  left = len(image) - 3 * unit - width if side == LEFT else 3 * unit
  image[2 * unit : 2 * unit + height, left : left + width][letter] = 245
