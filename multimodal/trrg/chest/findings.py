"""What can be found on a film of this world, and how often: the epidemiology of the chest world.

About half of all studies are without finding; the others have a leading one from a long tail, those that tend to come
with it, and sometimes one more. Frequencies are ours, ordered as in public collections.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from multimodal.trrg.chest.anatomy import LEFT, RIGHT
from multimodal.trrg.observations import CLUES

(
  MEDIASTINUM, HEART, OPACITY, LESION, EDEMA, CONSOLIDATION, PNEUMONIA, ATELECTASIS, PNEUMOTHORAX, EFFUSION, PLEURA,
  FRACTURE, DEVICE,
) = range(CLUES)  # fmt: skip

BOTH = 0
"""The side of what is on both sides, or in the middle."""

ZONES = {'upper': (0.18, 0.38), 'middle': (0.48, 0.62), 'lower': (0.7, 0.85)}
"""Parts of a lung, as shares of its height from the apex."""

HEDGED = 0.2
"""Strength below which a report says 'possible'."""

HEALTHY = 0.5
"""Share of studies without finding, devices aside."""

_LEADING = {
  HEART: 15, EFFUSION: 13, OPACITY: 14, ATELECTASIS: 13, LESION: 9, CONSOLIDATION: 8, PNEUMONIA: 8, PNEUMOTHORAX: 8,
  EDEMA: 6, MEDIASTINUM: 7, FRACTURE: 7, PLEURA: 6,
}  # fmt: skip
"""Weights of the finding that brings a patient here."""

_COMPANIONS = {
  EDEMA: ((HEART, 0.6), (EFFUSION, 0.4)),
  HEART: ((EDEMA, 0.12), (MEDIASTINUM, 0.08), (EFFUSION, 0.15)),
  EFFUSION: ((ATELECTASIS, 0.25),),
  PNEUMONIA: ((EFFUSION, 0.15), (OPACITY, 0.15)),
  CONSOLIDATION: ((EFFUSION, 0.15),),
  FRACTURE: ((PNEUMOTHORAX, 0.15), (EFFUSION, 0.1)),
}
"""What else is found with a leading finding, and how likely."""

_ONE_MORE = 0.25
_DEVICES = {'endotracheal tube': 3, 'central line': 5, 'pacemaker': 4, 'nasogastric tube': 3}
_WITH_DEVICE = (0.05, 0.2)  # of the healthy, of the others
_DRAINED = 0.5
_BILATERAL = {OPACITY: 0.15, LESION: 0.15, PNEUMONIA: 0.2, ATELECTASIS: 0.35, EFFUSION: 0.3, PLEURA: 0.25}
_CENTRAL = (MEDIASTINUM, HEART, EDEMA)
_ZONED = (OPACITY, LESION, CONSOLIDATION, PNEUMONIA)


@dataclasses.dataclass(frozen=True)
class Finding:
  """One finding on a film.

  Attributes:
    what: the observation, 0..12.
    strength: of what is to be seen, in (0, 1].
    side: LEFT, RIGHT or BOTH.
    zone: a key of ZONES, '' where the finding has no choice of zone.
    kind: variety of a lesion, of pleural thickening, of a fracture, of a device; '' for the others.
  """

  what: int
  strength: float
  side: int = BOTH
  zone: str = ''
  kind: str = ''

  @property
  def sides(self) -> tuple[int, ...]:
    return (RIGHT, LEFT) if self.side == BOTH else (self.side,)

  @property
  def hedged(self) -> bool:
    """Whether it is so faint that a report calls it possible."""
    return self.strength < HEDGED

  @property
  def degree(self) -> int:
    """0 slight, 1 moderate, 2 severe."""
    return int(self.strength > 0.5) + int(self.strength > 0.8)


def draw(rng: np.random.Generator) -> tuple[Finding, ...]:
  """Draws the findings of one study, in the order of the observations."""
  present: set[int] = set()
  sick = rng.random() >= HEALTHY
  if sick:
    weights = np.array(list(_LEADING.values()), np.float64)
    leading, other = rng.choice(list(_LEADING), 2, p=weights / weights.sum())
    present.add(int(leading))
    present.update(what for what, chance in _COMPANIONS.get(int(leading), ()) if rng.random() < chance)
    if rng.random() < _ONE_MORE:
      present.add(int(other))
  found = {what: one(what, rng) for what in sorted(present)}
  tube = PNEUMOTHORAX in found and rng.random() < _DRAINED
  if tube or rng.random() < _WITH_DEVICE[sick]:
    found[DEVICE] = device(rng, found.get(PNEUMOTHORAX) if tube else None)
  return tuple(found.values())


def one(what: int, rng: np.random.Generator, strength: float | None = None) -> Finding:
  """A finding that is no device; one in seven is faint, the others of all strengths, unless a strength is given."""
  if strength is None:
    strength = float(rng.uniform(0.06, HEDGED) if rng.random() < 1 / 7 else rng.uniform(HEDGED, 1.0))
  side = BOTH if what in _CENTRAL or rng.random() < _BILATERAL.get(what, 0.0) else int(rng.choice((RIGHT, LEFT)))
  zone = str(rng.choice(list(ZONES))) if what in _ZONED else ''
  kind = ''
  if what == LESION:
    kind = 'nodules' if side == BOTH else 'mass' if strength > 0.55 else 'nodule'
    zone = '' if side == BOTH else zone
  elif what == PLEURA:
    kind = 'apical' if rng.random() < 0.4 else 'lateral'
  elif what == FRACTURE:
    kind = 'clavicle' if rng.random() < 0.4 else 'rib'
  return Finding(what, strength, side, zone, kind)


def device(rng: np.random.Generator, drained: Finding | None) -> Finding:
  """A tube in the chest where a pneumothorax is drained, else one of the others."""
  if drained is not None:
    return Finding(DEVICE, 1.0, drained.side, kind='chest tube')
  weights = np.array(list(_DEVICES.values()), np.float64)
  kind = str(rng.choice(list(_DEVICES), p=weights / weights.sum()))
  side = LEFT if kind == 'pacemaker' else int(rng.choice((RIGHT, LEFT))) if kind == 'central line' else BOTH
  return Finding(DEVICE, 1.0, side, kind=kind)
