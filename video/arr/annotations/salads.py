"""50 Salads: frame labels as spread with MS-TCN, or the official activity annotation (spec 6.3).

Frame labels: `groundTruth/rgb-XX-Y.txt` (or `groundTruth.tar.gz`, read in memory), the name of a class per line, a line
per frame at 30 per second; `mapping.txt`, 'index name' per line; `splits/{train,test}.split{1..5}.bundle`, a video per
line, in some copies with a first line `#bundle` and absolute paths. The five folds divide participants.

Official annotation (written from descriptions, the files were not at hand): 'START STOP name_{prep,core,post}' per line
of `activityAnnotations/XX-Y-activityAnnotation.txt`, and `timestamps/timestamps-XX-Y.txt`, whose first column is the
time of a frame in the same units. Lines without one of the three endings are coarse activities and are passed over.
Between two activities these files say nothing; in the frame labels there are no gaps. Either way the bundles make the
folds.
"""

from __future__ import annotations

import io
import itertools
import pathlib
import tarfile
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from core.errors import UserError, nearest
from video.arr.annotations import gathering, tables

FOLDS = 5
FPS = 30.0

ACTIONS = (
  'cut_tomato', 'place_tomato_into_bowl', 'cut_cheese', 'place_cheese_into_bowl', 'cut_lettuce',
  'place_lettuce_into_bowl', 'add_salt', 'add_vinegar', 'add_oil', 'add_pepper', 'mix_dressing', 'peel_cucumber',
  'cut_cucumber', 'place_cucumber_into_bowl', 'add_dressing', 'mix_ingredients', 'serve_salad_onto_plate',
  'action_start', 'action_end',
)  # fmt: skip
"""The 19 classes in the order of `mapping.txt`, for a folder without it."""

CONTEXT = ('action_start',)
"""Classes that are part of the history but are not to be anticipated: AVT's protocol, where `action_end` is."""

ACTIVITIES, TIMES = 'activityAnnotations', 'timestamps'
MARKS = ('groundTruth', 'groundTruth.tar.gz', ACTIVITIES, f'ann-ts/{ACTIVITIES}')
PHASES = ('prep', 'core', 'post')

Segment = tuple[float, float, str]
"""(start, stop, name of the class), times in seconds."""


def read(root: str | pathlib.Path, fold: int = 1, context: Sequence[str] = CONTEXT) -> tables.Annotations:
  """Reads one of the five folds: 40 videos as 'train', 10 as 'val'.

  Args:
    root: the folder of the files, or its parent.
    fold: 1..5.
    context: names of classes that are not to be anticipated: () to make targets of all 19, ('action_start',
      'action_end') to leave the 17 activities.

  Raises:
    UserError: no such folder, fold or class, no bundles, a video on both sides of a fold, or unreadable labels.
  """
  gathering.check_fold('salads', fold, FOLDS)
  gather = gathering.Gathering(gathering.locate(root, 'salads', MARKS))
  actions = _mapping(gather)
  for name in context:
    if name not in actions:
      raise UserError(f"There is no class '{name}' in 50 Salads to be context.{nearest(name, actions)}")
  splits = {
    video: split for split, word in (('train', 'train'), ('val', 'test')) for video in _bundle(gather, word, fold)
  }
  seen = set()
  for video, source, segments in _videos(gather):
    seen.add(video)
    if video not in splits:
      gather.problem('not in fold', source, f'{video} is in neither bundle of fold {fold}')
      continue
    if not segments:
      gather.problem('empty file', source, f'no frame of {video} is labelled')
    for i, (start, stop, name) in enumerate(segments):
      if name not in actions:
        gather.problem('unknown class', source, f"'{name}' from {start:.2f} to {stop:.2f} s is left unlabelled")
        continue
      gather.segment(
        source, uid=f'{video}_{i}', video=video, participant=video.split('-')[-2], start=start, stop=stop,
        action=actions.index(name), split=splits[video], target=name not in context,
      )  # fmt: skip
  for video in sorted(set(splits) - seen):
    gather.problem('missing file', video, f"fold {fold} has it in '{splits[video]}', but there are no labels of it")
  vocabulary = tables.Vocabulary(actions)
  return gather.annotations(f'salads_fold{fold}', vocabulary, ('train', 'val'))


def _mapping(gather: gathering.Gathering) -> tuple[str, ...]:
  if not gather.first('mapping.txt'):
    gather.problem('missing file', 'mapping.txt', 'the 19 classes in their usual order')
    return ACTIONS
  lines = dict(line.split(maxsplit=1) for line in gather.text('mapping.txt').splitlines() if len(line.split()) == 2)
  if not lines or sorted(lines) != sorted(map(str, range(len(lines)))):
    raise UserError(f"{gather.folder / 'mapping.txt'}: expected 'INDEX NAME' per line, with the indices 0, 1, 2 ...")
  return tuple(lines[str(i)].strip() for i in range(len(lines)))


def _bundle(gather: gathering.Gathering, word: str, fold: int) -> list[str]:
  """Videos of one side of a fold; raises `UserError` where the file is missing, or the other side has one of them."""
  name = f'splits/{word}.split{fold}.bundle'
  if not gather.first(name):
    raise UserError(f'{gather.folder} has no {name}: without it nobody knows which videos fold {fold} tests on.')
  # Windows copies have backslashes in their absolute paths.
  lines = [line.strip().replace('\\', '/') for line in gather.text(name).splitlines()]
  videos = [pathlib.PurePosixPath(line).name.removesuffix('.txt') for line in lines if line and line[0] != '#']
  if word == 'test':
    both = sorted(set(videos) & set(_bundle(gather, 'train', fold)))
    if both:
      raise UserError(f'Fold {fold} of {gather.folder} has {", ".join(both)} both in train and in test.')
  return videos


def _videos(gather: gathering.Gathering) -> Iterator[tuple[str, str, list[Segment]]]:
  """(video, where its labels come from, its segments) of every labelled video."""
  if (gather.folder / 'groundTruth').is_dir() or gather.first('groundTruth.tar.gz'):
    for name, content in _frame_files(gather):
      names = gather.decode(content, name).split('\n')
      yield pathlib.PurePosixPath(name).stem, name, runs([label.strip() for label in names])
  else:
    yield from _activities(gather)


# Frame labels.


def _frame_files(gather: gathering.Gathering) -> Iterator[tuple[str, bytes]]:
  """(name, content) of the frame labels of each video, from the folder or else from the archive."""
  folder = gather.folder / 'groundTruth'
  if folder.is_dir():
    for path in sorted(folder.glob('*.txt')):
      name = str(path.relative_to(gather.folder))
      yield name, gather.read(name)
    return
  content = gather.read('groundTruth.tar.gz')
  try:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
      for member in archive:
        if member.isfile() and member.name.endswith('.txt'):
          yield member.name, archive.extractfile(member).read()
  except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
    raise UserError(f'{gather.folder / "groundTruth.tar.gz"} cannot be unpacked: {error}. Copy it anew.') from error


def runs(names: Sequence[str], fps: float = FPS) -> list[Segment]:
  """Runs of equal labels, one label per frame; an empty label ends the list or is a gap."""
  labels = np.array(names, str)
  edges = np.flatnonzero(labels[1:] != labels[:-1]) + 1
  bounds = [0, *edges.tolist(), len(labels)]
  return [(low / fps, high / fps, names[low]) for low, high in itertools.pairwise(bounds) if names[low]]


# The official annotation.


def _activities(gather: gathering.Gathering) -> Iterator[tuple[str, str, list[Segment]]]:
  base = ACTIVITIES if (gather.folder / ACTIVITIES).is_dir() else f'ann-ts/{ACTIVITIES}'
  for path in sorted((gather.folder / base).glob('*-activityAnnotation.txt')):
    number = path.name.removesuffix('-activityAnnotation.txt')
    name = f'{base}/{path.name}'
    clock = gather.first(f'{TIMES}/timestamps-{number}.txt', f'ann-ts/{TIMES}/timestamps-{number}.txt')
    if not clock:
      gather.problem('missing file', f'{TIMES}/timestamps-{number}.txt', f'{name} cannot be placed in time')
      continue
    times = _clock(gather, clock)
    if times is not None:
      yield f'rgb-{number}', name, _from_start_to_end(_merged(_phases(gather, name)), times)


def _clock(gather: gathering.Gathering, name: str) -> np.ndarray | None:
  """Time of every frame i64 [L], in the units of the annotation; None, and a problem row, where it does not rise."""
  try:
    times = np.array([int(line.split()[0]) for line in gather.text(name).splitlines() if line.strip()])
  except ValueError as error:
    gather.problem('bad file', name, f'expected an integer time at the start of each line: {error}')
    return None
  if not len(times) or np.any(np.diff(times) <= 0):
    gather.problem('bad file', name, 'the times of its frames do not rise')
    return None
  return times


def _phases(gather: gathering.Gathering, name: str) -> list[tuple[int, int, str, int]]:
  """(start, stop, activity, phase) of the fine lines of one video, by start."""
  found = []
  for number, line in enumerate(gather.text(name).splitlines(), 1):
    if not line.strip():
      continue
    try:
      start, stop, label = line.split()
      start, stop = int(start), int(stop)
    except ValueError:
      gather.problem('bad line', f'{name}:{number}', f'expected START STOP NAME, found {line[:80]!r}')
      continue
    activity, _, phase = label.rpartition('_')
    if phase in PHASES and stop < start:
      gather.problem('stop before start', f'{name}:{number}', line[:80])
    elif phase in PHASES:
      found.append((start, stop, activity, PHASES.index(phase)))
  return sorted(found)


def _merged(phases: Sequence[tuple[int, int, str, int]]) -> list[tuple[int, int, str]]:
  """Preparation, core and post-phase of one activity in a row as one segment (our choice: classes have no phases)."""
  merged, last = [], -1
  for start, stop, activity, phase in phases:
    if merged and merged[-1][2] == activity and phase > last:
      merged[-1] = (merged[-1][0], max(stop, merged[-1][1]), activity)
    else:
      merged.append((start, stop, activity))
    last = phase
  return merged


def _from_start_to_end(segments: Sequence[tuple[int, int, str]], times: np.ndarray) -> list[Segment]:
  """Segments in seconds by the frame that is shown; before the first `action_start`, after the last `action_end`."""
  placed = [
    (np.searchsorted(times, start) / FPS, np.searchsorted(times, stop, side='right') / FPS, name)
    for start, stop, name in segments
  ]
  if not placed:
    return []
  first, last, end = placed[0][0], max(stop for _, stop, _ in placed), len(times) / FPS
  before = [(0.0, first, 'action_start')] if first > 0 else []
  after = [(last, end, 'action_end')] if last < end else []
  return [*before, *placed, *after]
