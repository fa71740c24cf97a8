"""EPIC-KITCHENS-100: the official CSV files, and RULSTM's re-indexed ones (spec 6.1).

Official times are the timestamps. `start_frame` of the official files is never used: it is timestamp times a nominal
rate, whatever the video's own, and drifts by up to minutes. RULSTM's frames are at a fixed 30 per second, within one
frame of the timestamp.

An action is a (verb, noun) pair: the 3,806 of RULSTM's `actions.csv`, in its order, where that file is; otherwise the
pairs of training and validation sorted by (verb, noun), which are the same set in another order.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from core.errors import UserError
from video.arr.annotations import gathering, tables

FPS = 30.0
"""Of RULSTM's frame numbers, whatever the video's own rate."""

VERBS, NOUNS = 97, 300
"""Number of classes, for a folder without the lists of their names."""

ERRATUM = ('P01_109', 'P27_103')
"""Videos whose frames as extracted by the authors are known to be wrong."""

OFFICIAL = {'train': 'EPIC_100_train.csv', 'val': 'EPIC_100_validation.csv', 'test': 'EPIC_100_test_timestamps.csv'}
RULSTM = {'train': 'training.csv', 'val': 'validation.csv', 'test': 'test_timestamps.csv'}
LISTS = ('validation_tail_verbs_ids.csv', 'validation_tail_nouns_ids.csv', 'validation_unseen_participants_ids.csv')
"""RULSTM's files; they may carry the prefix 'rulstm_'."""

MARKS = tuple(name for form in (OFFICIAL, RULSTM) for name in (form['train'], form['val']))
MARKS += tuple(f'rulstm_{RULSTM[split]}' for split in ('train', 'val'))


@dataclasses.dataclass(frozen=True)
class Row:
  """One segment as read; class ids are -1 where the file has none."""

  where: str
  split: str
  uid: str
  participant: str
  video: str
  start: float
  stop: float
  verb: int = -1
  noun: int = -1
  action: int = -1


def read(root: str | pathlib.Path, clock: str = 'timestamps') -> tables.Annotations:
  """Reads training, validation and, where it is, the unlabelled test split.

  Args:
    root: the folder of the files, or its parent.
    clock: 'timestamps' takes a split from the official file, and from RULSTM's where that is missing; 'frames' takes
      RULSTM's alone, as published results on its features do.

  Raises:
    UserError: no such folder, no usable file, or a file with other columns.
  """
  gather = gathering.Gathering(gathering.locate(root, 'epic_kitchens_100', MARKS))
  rows = [row for split in tables.SPLITS for row in _split(gather, split, clock)]
  verbs = _names(gather, 'EPIC_100_verb_classes.csv', 'verb', VERBS)
  nouns = _names(gather, 'EPIC_100_noun_classes.csv', 'noun', NOUNS)
  rows = [row for row in rows if _known(gather, row, len(verbs), len(nouns))]
  pairs = _pairs(gather, rows, verbs, nouns)
  kept = [row for row in rows if _gather(gather, row, pairs)]
  tail_verbs, tail_nouns, unseen = _groups(gather, kept)
  for video in sorted({row.video for row in kept} & set(ERRATUM)):
    gather.problem('known erratum', video, 'its frames as extracted by the authors are wrong: use the video file')
  vocabulary = tables.Vocabulary(
    actions=tuple(f'{verbs[verb]} {nouns[noun]}' for verb, noun in pairs), verbs=verbs, nouns=nouns,
    verb_of=tuple(verb for verb, _ in pairs), noun_of=tuple(noun for _, noun in pairs),
    tail_verbs=tail_verbs, tail_nouns=tail_nouns, unseen_participants=unseen,
  )  # fmt: skip
  return gather.annotations('epic_kitchens_100', vocabulary, ('train', 'val'))


# Segments.


def _split(gather: gathering.Gathering, split: str, clock: str) -> Iterator[Row]:
  official, rulstm = gather.first(OFFICIAL[split]), _rulstm(gather, RULSTM[split])
  if official and clock == 'timestamps':
    return _official(gather, official, split)
  if rulstm:
    if clock == 'timestamps':
      gather.problem('other form', rulstm, f'used in place of {OFFICIAL[split]}: times are frames at 30 per second')
    return _frames(gather, rulstm, split)
  wanted = f'{OFFICIAL[split]} or {RULSTM[split]}' if clock == 'timestamps' else RULSTM[split]
  gather.problem('missing file', wanted, f"split '{split}' is left out")
  return iter(())


def _official(gather: gathering.Gathering, name: str, split: str) -> Iterator[Row]:
  columns = ['narration_id', 'participant_id', 'video_id', 'start_timestamp', 'stop_timestamp']
  classes = [] if split == 'test' else ['verb_class', 'noun_class']
  for where, (uid, participant, video, start, stop, *ids) in gather.table(name, columns + classes, header=True):
    try:
      yield Row(where, split, uid, participant, video, seconds(start), seconds(stop), *map(int, ids))
    except ValueError as error:
      gather.problem('bad line', where, str(error))


def _frames(gather: gathering.Gathering, name: str, split: str) -> Iterator[Row]:
  columns = ['narration_id', 'video_id', 'start_frame', 'stop_frame']
  classes = [] if split == 'test' else ['verb', 'noun', 'action']
  for where, (uid, video, start, stop, *ids) in gather.table(name, columns + classes, header=False):
    try:
      times = int(start) / FPS, int(stop) / FPS
      yield Row(where, split, uid, video.split('_')[0], video, *times, *map(int, ids))
    except ValueError as error:
      kind = 'unexpected header' if where.endswith(':1') and uid == columns[0] else 'bad line'
      gather.problem(kind, where, str(error))


def seconds(timestamp: str) -> float:
  """Seconds of 'HH:MM:SS.ff'; raises `ValueError` for anything else."""
  parts = timestamp.split(':')
  if len(parts) != 3:
    raise ValueError(f"'{timestamp}' is no time HH:MM:SS.ff")
  return int(parts[0]) * 3600 + int(parts[1]) * 60 + float(parts[2])


def _known(gather: gathering.Gathering, row: Row, verbs: int, nouns: int) -> bool:
  """Whether a row's class ids exist (those of the test split need not)."""
  known = row.split == 'test' or (0 <= row.verb < verbs and 0 <= row.noun < nouns)
  if not known:
    expected = f'expected verbs 0..{verbs - 1} and nouns 0..{nouns - 1}'
    gather.problem('unknown class', row.where, f'{row.uid} has verb {row.verb} and noun {row.noun}, {expected}')
  return known


def _gather(gather: gathering.Gathering, row: Row, pairs: Mapping[tuple[int, int], int]) -> bool:
  action = pairs.get((row.verb, row.noun), -1)
  if row.split != 'test' and action < 0:
    gather.problem('unknown class', row.where, f'{row.uid}: no action has verb {row.verb} and noun {row.noun}')
    return False
  if row.action not in (-1, action):
    gather.problem('other action', row.where, f'{row.uid} says action {row.action}; its verb and noun are {action}')
  return gather.segment(
    row.where, uid=row.uid, video=row.video, participant=row.participant, start=row.start, stop=row.stop,
    verb=row.verb, noun=row.noun, action=action, split=row.split,
  )  # fmt: skip


# Classes and groups.


def _names(gather: gathering.Gathering, name: str, word: str, count: int) -> tuple[str, ...]:
  """Class names in the order of their ids, from a file with columns `id` and `key`."""
  if not gather.first(name):
    gather.problem('missing file', name, f'the {count} {word} classes have numbers for names')
    return tuple(f'{word}_{i}' for i in range(count))
  lines = dict(fields for _, fields in gather.table(name, ['id', 'key'], header=True))
  if sorted(lines) != sorted(map(str, range(len(lines)))):
    raise UserError(f'The ids of {gather.folder / name} are not 0..{len(lines) - 1}, each once.')
  return tuple(lines[str(i)] for i in range(len(lines)))


def _pairs(
  gather: gathering.Gathering, rows: Sequence[Row], verbs: Sequence[str], nouns: Sequence[str]
) -> dict[tuple[int, int], int]:
  """(verb, noun) -> action id."""
  name = _rulstm(gather, 'actions.csv')
  if not name:
    present = sorted({(row.verb, row.noun) for row in rows if row.split != 'test'})
    return {pair: action for action, pair in enumerate(present)}
  pairs = {}
  for where, fields in gather.table(name, ['id', 'verb', 'noun'], header=True):
    try:
      action, verb, noun = map(int, fields)
    except ValueError as error:
      raise UserError(
        f'{gather.folder / where}: {error}; expected the numbers of an action, its verb and noun.'
      ) from error
    if action != len(pairs) or (verb, noun) in pairs or not (0 <= verb < len(verbs) and 0 <= noun < len(nouns)):
      raise UserError(
        f'{gather.folder / where}: action {action} is verb {verb} and noun {noun}, expected action {len(pairs)} with '
        f'another pair of verbs 0..{len(verbs) - 1} and nouns 0..{len(nouns) - 1}.'
      )
    pairs[verb, noun] = action
  return pairs


def _groups(gather: gathering.Gathering, rows: Sequence[Row]) -> tuple[tuple, tuple, tuple]:
  """Tail verbs, tail nouns and unseen participants, from the official lists or from RULSTM's lists of segments."""
  by_uid = {row.uid: row for row in rows if row.split == 'val'}
  official = (
    ('EPIC_100_tail_verbs.csv', 'verb', int, 'verb'),
    ('EPIC_100_tail_nouns.csv', 'noun', int, 'noun'),
    ('EPIC_100_unseen_participant_ids_validation.csv', 'participant_id', str, 'participant'),
  )
  groups = []
  for (name, column, kind, field), segments in zip(official, LISTS):
    listed = _rulstm(gather, segments)
    if gather.first(name):
      groups.append(_members(gather, name, column, kind))
    elif listed:
      gather.problem('other form', listed, f'used in place of {name}: the {field}s of the validation segments it lists')
      uids = gather.ids(listed, 'narration_id', header=False)
      groups.append(tuple(sorted({getattr(by_uid[uid], field) for uid in uids if uid in by_uid})))
    else:
      gather.problem('missing file', name, 'its group of segments is left out of the metrics')
      groups.append(())
  return tuple(groups)


def _members(gather: gathering.Gathering, name: str, column: str, kind: type) -> tuple:
  try:
    return tuple(map(kind, gather.ids(name, column)))
  except ValueError as error:
    raise UserError(f"{gather.folder / name}: {error}; column '{column}' holds class ids.") from error


def _rulstm(gather: gathering.Gathering, name: str) -> str | None:
  return gather.first(name, f'rulstm_{name}')
