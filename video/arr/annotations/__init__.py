"""The annotation files of EPIC-KITCHENS-100, EGTEA Gaze+ and 50 Salads: read from the forms they are spread in.

epic, egtea, salads   one reader per dataset, for its official form and the one that others made of it
gathering             what they share: careful reading of text, and what becomes of a line that cannot be used
tables                where all end: columns of segments and names of classes, to records and back
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from core.errors import UserError, nearest
from video.arr.annotations import egtea, epic, gathering, salads
from video.arr.annotations.tables import FEATURES, Annotations, Vocabulary, load, write

__all__ = ['CLOCKS', 'DATASETS', 'FEATURES', 'FOLDS', 'Annotations', 'Vocabulary', 'load', 'name', 'read', 'write']

DATASETS = ('epic_kitchens_100', 'egtea', 'salads')
FOLDS = {'epic_kitchens_100': 1, 'egtea': egtea.FOLDS, 'salads': salads.FOLDS}
"""Number of folds; EPIC-KITCHENS-100 has one fixed division."""

CLOCKS = ('timestamps', 'frames')


def name(dataset: str, fold: int = 1) -> str:
  """Name of the records: 'epic_kitchens_100', 'egtea_split1' .. 'egtea_split3', 'salads_fold1' .. 'salads_fold5'."""
  if dataset not in DATASETS:
    raise UserError(f"There is no dataset '{dataset}'.{nearest(dataset, DATASETS)} Known: {', '.join(DATASETS)}.")
  gathering.check_fold(dataset, fold, FOLDS[dataset])
  return {'egtea': f'egtea_split{fold}', 'salads': f'salads_fold{fold}'}.get(dataset, dataset)


def read(
  dataset: str, root: str | pathlib.Path, *, fold: int = 1, clock: str = 'timestamps',
  context: Sequence[str] = salads.CONTEXT,
) -> Annotations:  # fmt: skip
  """Reads the annotations of a dataset from a user's folder; official and other forms are told apart by their files.

  Args:
    dataset: one of `DATASETS`.
    root: the dataset's own folder, or one that holds it.
    fold: which division into training and validation, from 1.
    clock: 'timestamps' takes official times first, 'frames' RULSTM's frames at 30 per second (EPIC-KITCHENS-100 and
      EGTEA; the labels of 50 Salads are frames at 30 per second anyway).
    context: of 50 Salads, the classes that are not to be anticipated.

  Raises:
    UserError: an unknown name, or files that are missing or of another form.
  """
  name(dataset, fold)
  if clock not in CLOCKS:
    raise UserError(f"There is no clock '{clock}'.{nearest(clock, CLOCKS)} Known: {', '.join(CLOCKS)}.")
  if dataset == 'epic_kitchens_100':
    return epic.read(root, clock)
  if dataset == 'egtea':
    return egtea.read(root, fold, clock)
  return salads.read(root, fold, context)
