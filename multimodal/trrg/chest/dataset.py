"""The chest world as a corpus: studies with one frontal film each and a report of what is on it.

Stands in for MIMIC-CXR and IU X-Ray: 13 findings of varying strength, side and place on chests that differ, a long
tail, half of the studies normal, and reports in which denials outnumber assertions. `studies` is a pure function of
(config, seed); so is each study by itself, and its film is drawn when it is asked for.

Measured on one core of the reference machine: 475 films/s at 64 px (142 at 128, 42 at 224), 2,900 reports/s. Of 3,000
training studies 48% have nothing drawn; of their 24,000 sentences 9.2% assert a finding, 1.2% call one possible, 73%
deny, 16% are neutral; a report has 8 sentences and 40 words, of a vocabulary of 150.

How hard the findings are, measured once with throw-away networks trained on the labels of 2,000 films, AUROC on 1,500
others: a small convolutional network .96 on average, all above .91 but Fracture, .72; a ViT of patch 8, width 64 and 3
layers after 930 steps .90, lowest Fracture .68, Pleural Other .77, Support Devices .82. Faint findings are harder.

Like every drawing, it shows whether a method works, never how well it would do on patients.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from core.errors import UserError
from multimodal.trrg.chest import anatomy, findings, grammar, painter
from multimodal.trrg.datasets import tables
from multimodal.trrg.observations import OBSERVATIONS

_PATIENT, _WORDS, _FILM, _REST = range(4)  # streams of random numbers, so that none depends on how long another is
_INDICATIONS = ('Cough and fever.', 'Shortness of breath.', 'Chest pain.', 'Fall.', 'Preoperative.', 'Follow up.')


@dataclasses.dataclass(frozen=True)
class Config:
  """Size of the chest world.

  Attributes:
    size: pixels of a side of a film.
    train, val, test: number of studies.
  """

  size: int = 64
  train: int = 2400
  val: int = 400
  test: int = 400

  def __post_init__(self):
    for name, least in {'size': 32, 'train': 1, 'val': 0, 'test': 0}.items():
      if getattr(self, name) < least:
        raise UserError(f"chest world: '{name}' is {getattr(self, name)}; the least is {least}")


@dataclasses.dataclass(frozen=True)
class Case:
  """What a study is about, before it is drawn or written."""

  body: anatomy.Body
  found: tuple[findings.Finding, ...]


def case(seed: int, split: str, number: int) -> Case:
  """The patient of study `number` of a split."""
  rng = _stream(seed, split, number, _PATIENT)
  return Case(anatomy.body(rng), findings.draw(rng))


def film(size: int, seed: int, split: str, number: int) -> np.ndarray:
  """The film of a study, uint8 [size, size]; at every size the same picture, but for its noise."""
  about = case(seed, split, number)
  return painter.film(about.body, about.found, size, _stream(seed, split, number, _FILM))


def sentences(seed: int, split: str, number: int) -> tuple[grammar.Sentence, ...]:
  """The findings section of a study, with its meaning."""
  about = case(seed, split, number)
  return grammar.write(about.found, about.body, _stream(seed, split, number, _WORDS))


def study(size: int, seed: int, split: str, number: int) -> tables.Study:
  """One study: the report is the findings section; problems are the names of what was drawn, faint or not."""
  about, said = case(seed, split, number), sentences(seed, split, number)
  rng = _stream(seed, split, number, _REST)
  text = ' '.join(sentence.text for sentence in said)
  name = f'{split}_{number:05d}'
  return tables.Study(
    id=name,
    patient=f'patient_{name}',
    split=split,
    report=text,
    findings=text,
    impression=grammar.impression(about.found, said, rng),
    indication=str(rng.choice(_INDICATIONS)),
    comparison='None.',
    problems=';'.join(OBSERVATIONS[finding.what] for finding in about.found) or 'normal',
    films=(tables.Film('frontal', pixels=functools.partial(film, size, seed, split, number)),),
  )


def studies(config: Config, seed: int) -> tables.Corpus:
  """All studies; each is the same however many there are beside it."""
  counts = {split: getattr(config, split) for split in tables.SPLITS}
  return tables.Corpus(
    'chest', tuple(study(config.size, seed, split, i) for split, count in counts.items() for i in range(count))
  )


def _stream(seed: int, split: str, number: int, stream: int) -> np.random.Generator:
  return np.random.default_rng([seed, tables.SPLITS.index(split), number, stream])
