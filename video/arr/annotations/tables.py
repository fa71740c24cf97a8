"""Annotated segments of whole videos as columns, with the names of their classes; and their way to records and back.

All readers of this package end here, and so does the procedural kitchen: one set of columns, whatever the source. One
record is one segment. Segments may overlap (a quarter of consecutive EPIC-KITCHENS-100 segments do); which of them is
the label of a moment is decided by `video.arr.grid`, not here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from core.data import manifest as manifests
from core.data import records
from core.errors import UserError

SPLITS = ('train', 'val', 'test')
"""'test' is without labels: the segments that a submission is made for."""

FEATURES = {
  'uid': tfds.features.Text(),
  'video': tfds.features.Text(),
  'participant': tfds.features.Text(),
  'start': tfds.features.Scalar(np.float64),
  'stop': tfds.features.Scalar(np.float64),
  'verb': tfds.features.Scalar(np.int32),
  'noun': tfds.features.Scalar(np.int32),
  'action': tfds.features.Scalar(np.int32),
  'split': tfds.features.Text(),
  'target': tfds.features.Scalar(np.bool_),
}
"""The TFDS features of one segment: times in seconds of the video (f64: a float16 second is 0.25 s coarse after four
minutes, spec 6.3), class ids in [0, classes) or -1 where there is none, `target` whether it may be anticipated."""

DTYPES = {
  'uid': str, 'video': str, 'participant': str, 'start': np.float64, 'stop': np.float64,
  'verb': np.int32, 'noun': np.int32, 'action': np.int32, 'split': str, 'target': np.bool_,
}  # fmt: skip
"""dtype of each column of `Annotations.segments`."""

Problem = tuple[str, str, str]
"""(kind, path, detail), as in `core.data.records.PrepareReport`."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Names of the classes of a dataset, and the groups that its official metrics look at.

  Attributes:
    actions: name of each action.
    verbs, nouns: names; empty where a dataset has actions only (50 Salads).
    verb_of, noun_of: per action, the id of its verb and noun.
    tail_verbs, tail_nouns: ids of the classes that count as rare (EPIC-KITCHENS-100).
    unseen_participants: participants of the validation videos who are in no training video (EPIC-KITCHENS-100).
  """

  actions: tuple[str, ...]
  verbs: tuple[str, ...] = ()
  nouns: tuple[str, ...] = ()
  verb_of: tuple[int, ...] = ()
  noun_of: tuple[int, ...] = ()
  tail_verbs: tuple[int, ...] = ()
  tail_nouns: tuple[int, ...] = ()
  unseen_participants: tuple[str, ...] = ()

  @property
  def classes(self) -> int:
    """Number of actions C; as a label, C itself means "unknown"."""
    return len(self.actions)

  def plain(self) -> dict[str, list]:
    """JSON data, for the manifest of records and the metadata of a checkpoint."""
    return {name: list(value) for name, value in vars(self).items()}

  @classmethod
  def from_plain(cls, plain: Mapping[str, Any]) -> Vocabulary:
    return cls(**{name: tuple(value) for name, value in plain.items()})


@dataclasses.dataclass(frozen=True)
class Annotations:
  """The segments of a dataset (of one fold of it, where it has folds).

  Attributes:
    name: dataset name of the records, e.g. 'egtea_split1'.
    vocabulary: names of the classes.
    segments: column -> array [S], as `DTYPES`, sorted by video, start, stop and uid.
    problems: what the reader found odd; overlaps are not odd.
    sources: file name -> sha256 of each file that was read.
  """

  name: str
  vocabulary: Vocabulary
  segments: Mapping[str, np.ndarray]
  problems: tuple[Problem, ...] = ()
  sources: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    return len(self.segments['uid'])


def columns(rows: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Columns of any sequences as arrays [S] of the right dtype, in the order that `Annotations` promises."""
  table = {name: np.asarray(rows[name], dtype) for name, dtype in DTYPES.items()}
  return select(table, np.lexsort((table['uid'], table['stop'], table['start'], table['video'])))


def select(segments: Mapping[str, np.ndarray], which: np.ndarray) -> dict[str, np.ndarray]:
  """The segments where a mask [S] is true, or those at the given indices, in their order."""
  return {name: column[which] for name, column in segments.items()}


def overlaps(segments: Mapping[str, np.ndarray]) -> int:
  """Number of segments that begin before the one before them (of the same video, by start) has ended."""
  video, start, stop = (segments[name] for name in ('video', 'start', 'stop'))
  return int(np.sum((video[1:] == video[:-1]) & (start[1:] < stop[:-1])))


# Records.


def write(root: str | os.PathLike, annotations: Annotations, overwrite: bool = True) -> records.PrepareReport:
  """Writes annotations as the records `root/annotations.name`, one per segment, split by split.

  Equal records that exist are left alone: equal in vocabulary, in sources and in every column.

  Raises:
    UserError: other records of this name exist and `overwrite` is false, or there is no segment at all.
  """
  info = {
    'vocabulary': annotations.vocabulary.plain(),
    'sources': dict(annotations.sources),
    'segments': _digest(annotations.segments),
  }
  if not records.is_written(root, annotations.name, info=info):
    present = set(annotations.segments['split'].tolist())
    records.write(
      root, annotations.name,
      {split: _examples(annotations.segments, split) for split in SPLITS if split in present},
      FEATURES, info=info, overwrite=overwrite, description=f"Annotated segments of '{annotations.name}'.",
    )  # fmt: skip
  written = manifests.load(records.find(root, annotations.name))
  return records.PrepareReport(annotations.name, written.splits, list(annotations.problems), written)


def load(root: str | os.PathLike, name: str) -> Annotations:
  """Annotations from their records; only the index is read. `problems` is empty: they were told when it was written.

  Raises:
    UserError: there are no such records, or they hold something else than segments.
  """
  folder = records.find(root, name)
  manifest = manifests.load(folder)
  if 'vocabulary' not in manifest.info:
    raise UserError(
      f'{folder} holds no annotations: its manifest has no vocabulary. Records with the fields '
      f'{sorted(FEATURES)} were expected; write them with `python -m launch.prepare`.'
    )
  tables = [records.Records(root, name, split).table for split in manifest.splits]
  segments = columns({column: np.concatenate([table[column] for table in tables]) for column in DTYPES})
  vocabulary = Vocabulary.from_plain(manifest.info['vocabulary'])
  return Annotations(name, vocabulary, segments, sources=manifest.info['sources'])


def _examples(segments: Mapping[str, np.ndarray], split: str) -> Iterator[tuple[str, dict[str, Any]]]:
  chosen = select(segments, segments['split'] == split)
  values = [column.tolist() for column in chosen.values()]
  for row in zip(*values):
    example = dict(zip(chosen, row))
    yield example['uid'], example


def _digest(segments: Mapping[str, np.ndarray]) -> str:
  """sha256 of all columns; texts as UTF-8, so that the width of a string dtype does not matter."""
  digest = hashlib.sha256()
  for name in DTYPES:
    column = segments[name]
    digest.update('\n'.join(column.tolist()).encode() if column.dtype.kind == 'U' else column.tobytes())
    digest.update(b'\0')
  return digest.hexdigest()
