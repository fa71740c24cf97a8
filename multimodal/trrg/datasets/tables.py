"""Studies: the films of one visit and their report; where all readers end, and their way to records and back.

A corpus of name NAME becomes two datasets:

  NAME         one record per study, in its split: the texts
  NAME_films   one record per film, split 'films': grey, the shorter side at most so many pixels

so that the texts of MIMIC-CXR can be gone through without touching 377,110 pictures, and a film is read at random.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from core.data import manifest as manifests
from core.data import records
from core.data.ahead import ahead
from core.errors import UserError, nearest
from multimodal.trrg.datasets.films import CROP, Augmentation, check_film, fit, random_fit, read_film, shrink

__all__ = [
  'COLUMNS', 'CROP', 'SPLITS', 'VIEWS', 'Augmentation', 'Corpus', 'Film', 'Films', 'Problem', 'Study', 'check_film',
  'fit', 'load', 'random_fit', 'read_film', 'write',
]  # fmt: skip

SPLITS = ('train', 'val', 'test')

VIEWS = ('frontal', 'lateral', 'other')
"""In the order in which a study's films are given; 'other' is also where the dataset does not say."""

COLUMNS = ('id', 'patient', 'report', 'findings', 'impression', 'indication', 'comparison', 'problems')
"""Text fields of a study's record, and columns of `load`."""

QUALITY = 95
"""Of the JPEGs that films from files become; drawn films are kept as they are, as PNG (our choice)."""

Problem = tuple[str, str, str]
"""(kind, path, detail), as in `core.data.records.PrepareReport`."""


@dataclasses.dataclass(frozen=True)
class Film:
  """A film that can be had: from a file, or drawn on demand.

  Attributes:
    view: one of `VIEWS`.
    path: its file, checked by `films.read_film` when it is read.
    pixels: instead, a function that returns it, uint8 [H, W]; taken as it is.
  """

  view: str
  path: pathlib.Path | None = None
  pixels: Callable[[], np.ndarray] | None = None

  def __post_init__(self):
    if self.view not in VIEWS:
      raise ValueError(f"A film has no view '{self.view}', known: {VIEWS}.")
    if (self.path is None) == (self.pixels is None):
      raise ValueError('A film has either a path or pixels.')

  def read(self) -> np.ndarray:
    """uint8 [H, W]; raises `UserError` where the file holds no film."""
    return read_film(self.path) if self.pixels is None else self.pixels()


@dataclasses.dataclass(frozen=True)
class Study:
  """The films of one visit and what was written about them.

  Attributes:
    id: unique in its corpus.
    patient: who; equal for the studies of one person.
    split: one of `SPLITS`.
    report: raw text of the target (which sections it has is the reader's choice).
    findings, impression, indication, comparison: the sections, raw; '' where there are none.
    problems: MeSH headings or problems given by the dataset, joined by ';'; '' where it has none.
    films: frontal or not, in the dataset's order.
  """

  id: str
  patient: str
  split: str
  report: str
  findings: str = ''
  impression: str = ''
  indication: str = ''
  comparison: str = ''
  problems: str = ''
  films: tuple[Film, ...] = ()


@dataclasses.dataclass(frozen=True)
class Corpus:
  """All studies of a dataset: texts and where the films are, never the films themselves.

  Attributes:
    name: a Python identifier.
    studies: in the dataset's order.
    problems: what the reader met.
  """

  name: str
  studies: Sequence[Study]
  problems: Sequence[Problem] = ()

  def __len__(self) -> int:
    return len(self.studies)


STUDY_FEATURES = {name: tfds.features.Text() for name in COLUMNS}
FILM_FEATURES = {
  'study': tfds.features.Text(doc='id of its study'),
  'view': tfds.features.ClassLabel(names=list(VIEWS)),
  'index': tfds.features.Scalar(np.int32, doc='number among the films of its study as the dataset lists them, from 0'),
  'image': tfds.features.Image(shape=(None, None, 1), doc='grey, uint8 [H, W, 1]'),
}


def write(
  root: str | os.PathLike, corpus: Corpus, *, pixels: int = 256, films: bool = True, workers: int = 0,
  overwrite: bool = False, info: Mapping[str, Any] | None = None,
) -> list[records.PrepareReport]:  # fmt: skip
  """Writes a corpus as records; equal ones that exist are left alone.

  A film that is absent, broken or no film costs itself and becomes a problem; a study left without any is left out.

  Args:
    root: folder of all records.
    corpus: of any reader.
    pixels: the shorter side of a film as kept; smaller ones stay as they are.
    films: whether the films are written; without them every study is kept, for what needs the texts alone.
    workers: threads that decode films ahead.
    overwrite: whether other records of these names are replaced; else they are a `UserError`.
    info: plain data that goes into the manifests: what the corpus was made from and how.

  Returns:
    The report of the studies, with all problems, and that of the films.

  Raises:
    UserError: no study, no film that can be read, or other records without `overwrite`.
  """
  for study in corpus.studies:
    if study.split not in SPLITS:
      raise ValueError(f"Study '{study.id}' is of split '{study.split}', known: {SPLITS}.")
  problems, studies, reports = list(corpus.problems), list(corpus.studies), []
  if films:
    reports = [_write_films(root, corpus, pixels, workers, overwrite, dict(info or {}))]
    problems += reports[0].problems
    kept = set(Films(root, corpus.name).studies)
    studies = [study for study in studies if study.id in kept]
  texts = _digest(vars(study)[name] for study in studies for name in (*COLUMNS, 'split'))
  info = {**(info or {}), 'films': films, 'studies': texts}
  if not records.is_written(root, corpus.name, info=info):
    splits = {split: _study_examples(studies, split) for split in SPLITS}
    description = f"Reports of '{corpus.name}', one record per study."
    records.write(root, corpus.name, splits, STUDY_FEATURES, info=info, overwrite=overwrite, description=description)
  written = manifests.load(records.find(root, corpus.name))
  return [records.PrepareReport(corpus.name, written.splits, problems, written), *reports]


def _study_examples(studies: Iterable[Study], split: str) -> Iterator[tuple[str, dict[str, str]]]:
  for study in studies:
    if study.split == split:
      yield study.id, {name: getattr(study, name) for name in COLUMNS}


def _digest(texts: Iterable[str]) -> str:
  digest = hashlib.sha256()
  for text in texts:
    digest.update(text.encode())
    digest.update(b'\0')
  return digest.hexdigest()


# Films, written.


def _write_films(
  root: str | os.PathLike, corpus: Corpus, pixels: int, workers: int, overwrite: bool, info: Mapping[str, Any]
) -> records.PrepareReport:
  name, problems = f'{corpus.name}_films', []
  parts = (part for study in corpus.studies for film in study.films for part in (study.id, film.view, str(film.path)))
  info = {**info, 'pixels': pixels, 'quality': QUALITY, 'films': _digest(parts)}
  if not records.is_written(root, name, info=info):
    examples = {'films': _film_examples(corpus, pixels, workers, problems)}
    description = f"Films of '{corpus.name}', one record per film."
    records.write(root, name, examples, FILM_FEATURES, info=info, overwrite=overwrite, description=description)
  else:
    problems += _known_problems(root, corpus)
  written = manifests.load(records.find(root, name))
  return records.PrepareReport(name, written.splits, problems, written)


def _film_examples(
  corpus: Corpus, pixels: int, workers: int, problems: list[Problem]
) -> Iterator[tuple[str, dict[str, Any]]]:
  """The films that can be read, in the order of the studies; fills `problems`."""
  todo = ((study, index) for study in corpus.studies for index in range(max(1, len(study.films))))
  good = written = 0
  for study, index, image in ahead(lambda job: _encode(*job, pixels), todo, workers):
    good = good if index else 0
    if isinstance(image, bytes):
      good += 1
      written += 1
      example = {'study': study.id, 'view': study.films[index].view, 'index': index, 'image': image}
      yield f'{study.id}/{index}', example
    elif study.films:
      problems.append(image)
    if index >= len(study.films) - 1 and not good:
      problems.append(('no film', study.id, 'the study is left out'))
  if not written:
    (kind, path, detail), *_ = problems or [('no study', corpus.name, 'the corpus is empty')]
    raise UserError(
      f"No film of '{corpus.name}' can be read: {len(problems)} problems, the first is {kind}: {path} {detail}. Check "
      'that the films lie where the annotation says, or prepare the texts alone.'
    )


def _encode(study: Study, index: int, pixels: int) -> tuple[Study, int, bytes | Problem]:
  """A film as the bytes of a PNG or JPEG, or the problem with it."""
  if not study.films:
    return study, index, ('no film', study.id, 'none is listed')
  film = study.films[index]
  if film.path is not None and not film.path.is_file():
    return study, index, ('missing film', str(film.path), f'of study {study.id}')
  try:
    image = shrink(film.read(), pixels)
  except UserError as error:
    return study, index, ('bad film', str(film.path), str(error))
  suffix, options = ('.png', []) if film.path is None else ('.jpg', [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
  return study, index, cv2.imencode(suffix, image, options)[1].tobytes()


def _known_problems(root: str | os.PathLike, corpus: Corpus) -> list[Problem]:
  """Of films that were written earlier: those that are listed and not there, whatever it was then."""
  films = Films(root, corpus.name)
  return [
    ('missing film' if study.films else 'no film', str(film.path if film else study.id), f'of study {study.id}')
    for study in corpus.studies
    for index, film in enumerate(study.films or (None,))
    if (study.id, index) not in films.written
  ]


# Reading back.


def load(root: str | os.PathLike, name: str, split: str) -> dict[str, np.ndarray]:
  """The texts of a split: column of `COLUMNS` -> object array [N] of str, in the order of the records.

  Raises:
    UserError: no such records, or no such split, or an empty one.
  """
  source = records.Records(root, name, split)
  if set(source.manifest.features) != set(COLUMNS):
    raise UserError(
      f"The records '{name}' in {root} have the fields {sorted(source.manifest.features)}: they hold no studies, which "
      f'have {sorted(COLUMNS)}. Prepare them with `python -m launch.prepare`.'
    )
  rows = [tuple(record[column] for column in COLUMNS) for record in source]
  # As objects: a fixed width would give every report the bytes of the longest.
  columns = {column: np.empty(len(rows), object) for column in COLUMNS}
  for column, values in zip(columns, zip(*rows)):
    columns[column][:] = values
  return columns


class Films:
  """The films of a corpus by study; cheap to make and to pickle."""

  def __init__(self, root: str | os.PathLike, name: str):
    self._name = name
    self._records = records.Records(root, f'{name}_films', 'films')

  def __len__(self) -> int:
    return len(self._records)

  def __getstate__(self) -> dict[str, Any]:
    return {key: value for key, value in self.__dict__.items() if key not in ('_places', 'written')}

  @property
  def studies(self) -> list[str]:
    """Ids of the studies that have a film, sorted."""
    return list(self._places)

  @functools.cached_property
  def written(self) -> frozenset[tuple[str, int]]:
    """(study, number of the film as the dataset lists them) of all films."""
    table = self._records.table
    return frozenset(zip(table['study'].tolist(), table['index'].tolist()))

  @functools.cached_property
  def _places(self) -> dict[str, np.ndarray]:
    table = self._records.table
    order = np.lexsort((table['index'], table['view'], table['study']))
    names, starts = np.unique(table['study'][order], return_index=True)
    return dict(zip(names.tolist(), np.split(order, starts[1:])))

  def of(self, study: str) -> np.ndarray:
    """Positions int [V] of a study's films among all, frontal first, then lateral, then other.

    Raises:
      UserError: the study has none.
    """
    if study not in self._places:
      raise UserError(
        f"There is no film of study '{study}' in the records '{self._name}_films'.{nearest(study, self._places)} "
        'Prepare the films and the reports together with `python -m launch.prepare`.'
      )
    return self._places[study]

  def view(self, position: int) -> str:
    """The view of a film, one of `VIEWS`."""
    return VIEWS[self._records.table['view'][position]]

  def views(self, study: str, limit: int | None = None) -> list[np.ndarray]:
    """At most `limit` films of a study, each uint8 [H, W] of its own size, in the order of `of`."""
    return [self._records[int(position)]['image'][..., 0] for position in self.of(study)[:limit]]
