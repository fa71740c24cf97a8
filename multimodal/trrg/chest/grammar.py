"""Reports of the chest world: what is present is asserted or, when faint, called possible; most of the rest is denied.

Sentences are phrased like those of real reports and stand in a fixed order of findings (spec 9c: a small language
model learns almost nothing from a shuffled one). Each carries what it means, so that a labeller can be checked.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from multimodal.trrg.chest import findings as f
from multimodal.trrg.chest.anatomy import LEFT, RIGHT, Body
from multimodal.trrg.chest.findings import BOTH, Finding
from multimodal.trrg.observations import BLANK, CLUES, NEGATIVE, POSITIVE, UNCERTAIN


@dataclasses.dataclass(frozen=True)
class Sentence:
  """A sentence and what it says: (observation, label) pairs, none when it is neutral."""

  text: str
  meaning: tuple[tuple[int, int], ...] = ()


ORDER = (
  f.HEART, f.MEDIASTINUM, f.EDEMA, f.OPACITY, f.CONSOLIDATION, f.PNEUMONIA, f.ATELECTASIS, f.LESION, f.PNEUMOTHORAX,
  f.EFFUSION, f.PLEURA, f.FRACTURE, f.DEVICE,
)  # fmt: skip
"""The order in which a report goes through the observations."""

DENIED = {**dict.fromkeys(range(CLUES), 0.8), f.LESION: 0.4, f.PLEURA: 0.3, f.DEVICE: 0.15}
"""How likely an absent observation is denied: 0.8 as in spec 9c, less for what real reports rarely deny."""

_DEGREES = {
  f.OPACITY: ('faint', 'hazy', 'dense'), f.CONSOLIDATION: ('patchy', 'moderate', 'dense'),
  f.PNEUMOTHORAX: ('small', 'moderate', 'large'), f.EFFUSION: ('small', 'moderate', 'large'),
}  # fmt: skip
_SIDES = {RIGHT: 'right', LEFT: 'left', BOTH: 'bilateral'}

_SAID: dict[tuple[int, str], tuple[tuple[str, ...], tuple[str, ...]]] = {
  (f.HEART, 'both'): (
    (
      'There is {degree} cardiomegaly.', 'The heart is {degree}ly enlarged.',
      'The cardiac silhouette is {degree}ly enlarged.',
    ),
    ('There may be mild cardiomegaly.', 'Possible mild cardiomegaly.', 'Heart size is borderline.'),
  ),
  (f.MEDIASTINUM, 'both'): (
    (
      'There is {degree} mediastinal widening.', 'The mediastinum is {degree}ly widened.',
      'The cardiomediastinal silhouette is {degree}ly enlarged.',
    ),
    ('There may be mild mediastinal widening.', 'Possible mild mediastinal widening.'),
  ),
  (f.EDEMA, 'both'): (
    (
      'There is {degree} pulmonary edema.', '{Degree} pulmonary edema is present.',
      'There is {degree} pulmonary vascular congestion.',
    ),
    ('There may be mild pulmonary edema.', 'Possible mild pulmonary vascular congestion.'),
  ),
  (f.OPACITY, 'one'): (
    ('There is a {degree} opacity in the {lobe}.', '{Degree} airspace opacity is seen in the {lobe}.'),
    ('There may be a faint opacity in the {lobe}.', 'Possible faint opacity in the {lobe}.'),
  ),
  (f.OPACITY, 'both'): (
    ('There are {degree} bilateral {zone} lung opacities.', '{Degree} opacities are seen in both {zone} lungs.'),
    ('There may be faint bilateral {zone} lung opacities.',),
  ),
  (f.CONSOLIDATION, 'one'): (
    ('There is {degree} consolidation in the {lobe}.', '{Degree} {lobe} consolidation is present.'),
    ('There may be patchy consolidation in the {lobe}.', 'Possible {lobe} consolidation.'),
  ),
  (f.PNEUMONIA, 'one'): (
    ('There is {lobe} pneumonia.', '{Lobe} pneumonia is present.', 'Findings are consistent with {lobe} pneumonia.'),
    ('Findings are concerning for {lobe} pneumonia.', 'Possible {lobe} pneumonia.'),
  ),
  (f.PNEUMONIA, 'both'): (
    ('There is bilateral {zone} lung pneumonia.', 'Findings are consistent with bilateral pneumonia.'),
    ('Findings are concerning for bilateral pneumonia.',),
  ),
  (f.ATELECTASIS, 'one'): (
    ('There is {degree} {side} basilar atelectasis.', '{Degree} atelectasis is seen at the {side} base.'),
    ('There may be mild {side} basilar atelectasis.', 'Possible mild atelectasis at the {side} base.'),
  ),
  (f.ATELECTASIS, 'both'): (
    ('There is {degree} bibasilar atelectasis.', '{Degree} bibasilar atelectasis is present.'),
    ('There may be mild bibasilar atelectasis.', 'Possible mild bibasilar atelectasis.'),
  ),
  (f.LESION, 'nodule'): (
    ('There is a nodule in the {lobe}.', 'A pulmonary nodule is seen in the {lobe}.'),
    ('There may be a small nodule in the {lobe}.', 'Possible small nodule in the {lobe}.'),
  ),
  (f.LESION, 'mass'): (('There is a mass in the {lobe}.', 'A {lobe} mass is seen.'), ()),
  (f.LESION, 'nodules'): (
    ('There are multiple bilateral pulmonary nodules.', 'Multiple bilateral nodules are seen.'),
    ('There may be small bilateral pulmonary nodules.',),
  ),
  (f.PNEUMOTHORAX, 'one'): (
    ('There is a {degree} {side} pneumothorax.', 'A {degree} {side} pneumothorax is seen.'),
    ('There may be a small {side} pneumothorax.', 'Possible small {side} pneumothorax.'),
  ),
  (f.EFFUSION, 'one'): (
    ('There is a {degree} {side} pleural effusion.', 'A {degree} {side} effusion is present.'),
    ('There may be a small {side} pleural effusion.', 'Possible small {side} pleural effusion.'),
  ),
  (f.EFFUSION, 'both'): (
    ('There are {degree} bilateral pleural effusions.', '{Degree} bilateral effusions are present.'),
    ('There may be small bilateral pleural effusions.', 'Possible small bilateral pleural effusions.'),
  ),
  (f.PLEURA, 'lateral'): (
    ('There is {degree} {side} pleural thickening.', '{Degree} {side} pleural thickening is seen.'),
    ('There may be mild {side} pleural thickening.', 'Possible mild {side} pleural thickening.'),
  ),
  (f.PLEURA, 'apical'): (
    ('There is {degree} {side} apical pleural thickening.', '{Degree} {side} apical pleural thickening is seen.'),
    ('There may be mild {side} apical pleural thickening.', 'Possible mild {side} apical pleural thickening.'),
  ),
  (f.FRACTURE, 'rib'): (
    ('There is a displaced {side} rib fracture.', 'A {side} rib fracture is seen.'),
    ('There may be a {side} rib fracture.', 'Possible {side} rib fracture.'),
  ),
  (f.FRACTURE, 'ribs'): (
    ('There are multiple displaced {side} rib fractures.', 'Multiple {side} rib fractures are seen.'), (),
  ),
  (f.FRACTURE, 'clavicle'): (
    ('There is a displaced fracture of the {side} clavicle.', 'A {side} clavicle fracture is seen.'),
    ('There may be a fracture of the {side} clavicle.', 'Possible {side} clavicle fracture.'),
  ),
  (f.DEVICE, 'endotracheal tube'): (
    ('An endotracheal tube is in place.', 'The endotracheal tube ends above the carina.'), (),
  ),
  (f.DEVICE, 'nasogastric tube'): (
    ('A nasogastric tube is in place.', 'A nasogastric tube courses below the diaphragm.'), (),
  ),
  (f.DEVICE, 'central line'): (
    (
      'A {side} central venous catheter is in place.',
      'A {side} central venous catheter ends in the superior vena cava.',
    ),
    (),
  ),
  (f.DEVICE, 'pacemaker'): (('A left pacemaker is in place.', 'A left chest wall pacemaker is present.'), ()),
  (f.DEVICE, 'chest tube'): (('A {side} chest tube is in place.', 'A {side} chest tube is present.'), ()),
}  # fmt: skip
"""(observation, variety) -> (sentences that assert it, sentences that call it possible)."""

_LUNGS = (f.EDEMA, f.OPACITY, f.CONSOLIDATION, f.PNEUMONIA, f.ATELECTASIS, f.LESION)

_DENIALS: tuple[tuple[tuple[int, ...], tuple[str, ...]], ...] = (
  ((f.HEART, f.MEDIASTINUM), (
    'Heart size and mediastinal contours are within normal limits.', 'The heart and mediastinum are normal.',
    'Cardiac and mediastinal contours are normal.',
  )),
  ((f.HEART,), ('Heart size is normal.', 'The heart is not enlarged.', 'No cardiomegaly.')),
  ((f.MEDIASTINUM,), ('The mediastinal contours are normal.', 'The cardiomediastinal silhouette is unremarkable.')),
  ((f.EDEMA,), ('No pulmonary edema.', 'The pulmonary vasculature is normal.', 'There is no pulmonary edema.')),
  ((f.EDEMA, f.CONSOLIDATION), ('No pulmonary edema or focal consolidation.',)),
  ((f.OPACITY,), ('No focal opacity is seen.', 'There is no airspace opacity.')),
  ((f.OPACITY, f.CONSOLIDATION), ('No focal opacity or consolidation.',)),
  ((f.OPACITY, f.PNEUMOTHORAX, f.EFFUSION), ('No airspace opacity, pneumothorax, or pleural effusion.',)),
  ((f.CONSOLIDATION,), ('No focal consolidation.', 'There is no focal consolidation.')),
  ((f.CONSOLIDATION, f.PNEUMOTHORAX, f.EFFUSION), (
    'No focal consolidation, pneumothorax, or pleural effusion.',
    'There is no focal consolidation, pneumothorax or pleural effusion.',
  )),
  ((f.CONSOLIDATION, f.PNEUMONIA), ('No consolidation or evidence of pneumonia.',)),
  ((f.PNEUMONIA,), ('No evidence of pneumonia.', 'There is no pneumonia.')),
  ((f.PNEUMONIA, f.ATELECTASIS), ('No pneumonia or atelectasis.',)),
  ((f.ATELECTASIS,), ('No atelectasis.', 'There is no atelectasis.')),
  ((f.ATELECTASIS, f.EFFUSION), ('No atelectasis or pleural effusion.',)),
  ((f.LESION,), ('No nodule or mass is seen.', 'No pulmonary nodule.')),
  ((f.PNEUMOTHORAX,), ('No pneumothorax.', 'There is no pneumothorax.', 'No pneumothorax is seen.')),
  ((f.PNEUMOTHORAX, f.EFFUSION), (
    'No pneumothorax or pleural effusion.', 'There is no pneumothorax or pleural effusion.',
    'Negative for pneumothorax or pleural effusion.',
  )),
  ((f.EFFUSION,), ('No pleural effusion.', 'There is no pleural effusion.', 'The costophrenic angles are sharp.')),
  ((f.PLEURA,), ('No pleural thickening.', 'There is no pleural thickening.')),
  ((f.FRACTURE,), ('No acute fracture.', 'The bones are intact.', 'No displaced rib fracture is seen.')),
  ((f.DEVICE,), ('No lines or tubes are seen.', 'No support device is seen.')),
)  # fmt: skip
"""(observations, sentences that deny them all), the first of them in `ORDER` first."""

_CLEAR = ((f.OPACITY,), ('The lungs are clear.', 'Lungs are clear bilaterally.', 'Both lungs are clear.'))
"""Denies opacities too, but is said only where nothing at all is found in the lungs."""

_SPOKEN_FOR = {
  f.OPACITY: (f.CONSOLIDATION, f.PNEUMONIA, f.EDEMA), f.CONSOLIDATION: (f.PNEUMONIA,),
  f.PNEUMONIA: (f.CONSOLIDATION, f.OPACITY),
}  # fmt: skip
"""Observation -> those beside which nobody would deny it."""

_OPENINGS = ('Frontal view of the chest.', 'A single frontal view of the chest was obtained.', 'Portable frontal view.')
_NEUTRAL = {
  'rotated': ('The patient is rotated.',), 'shallow': ('Lung volumes are low.', 'Low lung volumes.'),
  'expanded': ('The lungs are well expanded.',), 'tortuous': ('The aorta is tortuous.',),
  'trachea': ('The trachea is midline.',), 'abdomen': ('The visualized upper abdomen is unremarkable.',),
  'scoliosis': ('There is scoliosis of the thoracic spine.',),
  'spine': ('Degenerative changes are present in the thoracic spine.',),
}  # fmt: skip
_NORMAL_IMPRESSIONS = (
  'No acute cardiopulmonary abnormality.', 'No acute disease.', 'No acute cardiopulmonary findings.', 'Normal chest.',
)  # fmt: skip


def write(found: Sequence[Finding], body: Body, rng: np.random.Generator) -> tuple[Sentence, ...]:
  """Writes the findings section of a report."""
  present = {finding.what: finding for finding in found}
  denied = {what for what in ORDER if rng.random() < DENIED[what] and not _unspeakable(what, present)}
  said = [Sentence(_one(_OPENINGS, rng))] if rng.random() < 0.4 else []
  for what in ORDER:
    said += _remarks(what, present, body, rng)
    if what in present:
      said.append(_assert(present[what], rng))
    elif what in denied:
      sentence = _deny(what, denied, present, rng)
      denied -= {observation for observation, _ in sentence.meaning}
      said.append(sentence)
  return tuple(said)


def impression(found: Sequence[Finding], said: Sequence[Sentence], rng: np.random.Generator) -> str:
  """The impression: that there is nothing acute, or what was asserted or thought possible, devices aside."""
  if all(finding.what == f.DEVICE for finding in found):
    return _one(_NORMAL_IMPRESSIONS, rng)
  told = [s.text for s in said if any(k != f.DEVICE and label in (POSITIVE, UNCERTAIN) for k, label in s.meaning)]
  return ' '.join(f'{i}. {text}' for i, text in enumerate(told, 1))


def labels(said: Sequence[Sentence]) -> np.ndarray:
  """What sentences mean together, int8 [13] in the coding of `observations`."""
  row = np.full(CLUES, BLANK, np.int8)
  for sentence in said:
    for what, label in sentence.meaning:
      row[what] = label
  return row


def every() -> Iterator[Sentence]:
  """Every sentence that a report can hold."""
  for text in itertools.chain(_OPENINGS, *_NEUTRAL.values()):
    yield Sentence(text)
  for observations, texts in (*_DENIALS, _CLEAR):
    for text in texts:
      yield Sentence(text, tuple((what, NEGATIVE) for what in observations))
  strengths, sides = (0.1, 0.4, 0.7, 0.9), (RIGHT, LEFT, BOTH)
  for (what, kind), zone in itertools.product(_SAID, f.ZONES):
    for strength, side in itertools.product(strengths, sides):
      finding = Finding(what, strength, side, zone, 'rib' if kind == 'ribs' else kind)
      if _variety(finding) == kind:
        label, texts = _wordings(finding)
        for text in texts:
          yield Sentence(_fill(text, finding), ((what, label),))


def _unspeakable(what: int, present: dict[int, Finding]) -> bool:
  """Whether an observation is present, or something is beside which nobody would deny it."""
  return what in present or any(other in present for other in _SPOKEN_FOR.get(what, ()))


def _variety(finding: Finding) -> str:
  """Which of an observation's wordings a finding takes."""
  if finding.what == f.FRACTURE and finding.kind == 'rib' and finding.degree:
    return 'ribs'
  kinds = finding.what in (f.LESION, f.PLEURA, f.FRACTURE, f.DEVICE)
  return finding.kind if kinds else 'both' if finding.side == BOTH else 'one'


def _wordings(finding: Finding) -> tuple[int, tuple[str, ...]]:
  """(POSITIVE or UNCERTAIN, templates) for a finding."""
  sure, possible = _SAID[finding.what, _variety(finding)]
  return (UNCERTAIN, possible) if finding.hedged and possible else (POSITIVE, sure)


def _fill(text: str, finding: Finding) -> str:
  degree = _DEGREES.get(finding.what, ('mild', 'moderate', 'severe'))[finding.degree]
  side, zone = _SIDES[finding.side], 'mid' if finding.zone == 'middle' else finding.zone
  middle = 'middle lobe' if finding.side == RIGHT else 'mid lung'
  lobe = f'{side} {middle if finding.zone == "middle" else f"{zone} lobe"}'
  return text.format(degree=degree, Degree=degree.capitalize(), side=side, zone=zone, lobe=lobe, Lobe=lobe.capitalize())


def _assert(finding: Finding, rng: np.random.Generator) -> Sentence:
  label, texts = _wordings(finding)
  return Sentence(_fill(_one(texts, rng), finding), ((finding.what, label),))


def _deny(what: int, denied: set[int], present: dict[int, Finding], rng: np.random.Generator) -> Sentence:
  """Denies an observation, mostly together with others that are to be denied and come later."""
  choices = [(len(k) ** 2, k, texts) for k, texts in _DENIALS if k[0] == what and denied.issuperset(k)]
  if what == f.OPACITY and not any(k in present for k in _LUNGS):
    choices.append((2, *_CLEAR))
  weights = np.array([weight for weight, _, _ in choices], np.float64)
  _, those, texts = choices[rng.choice(len(choices), p=weights / weights.sum())]
  return Sentence(_one(texts, rng), tuple((k, NEGATIVE) for k in those))


def _remarks(what: int, present: dict[int, Finding], body: Body, rng: np.random.Generator) -> list[Sentence]:
  """Neutral remarks that stand before an observation: of what is to be seen, or filling."""
  chances: dict[int, tuple[tuple[str, float], ...]] = {
    f.HEART: (('rotated', 0.8 * body.rotated),),
    f.EDEMA: (('tortuous', 0.8 * body.tortuous), ('trachea', 0.25 * (f.PNEUMOTHORAX not in present))),
    f.OPACITY: (('shallow', 0.8 * body.shallow), ('expanded', 0.25 * (not body.shallow and not present))),
    f.FRACTURE: (('abdomen', 0.15), ('scoliosis', 0.8 * body.scoliotic), ('spine', 0.15)),
  }
  return [Sentence(_one(_NEUTRAL[key], rng)) for key, chance in chances.get(what, ()) if rng.random() < chance]


def _one(texts: Sequence[str], rng: np.random.Generator) -> str:
  return texts[int(rng.integers(len(texts)))]
