"""Which clips a run sees: annotations, media and time grid put together into rows.

Three kinds of rows, one per stage (spec 4.3), all read by one `Reader` from one `Media`:

  moments    stage 1: one labelled clip, at a random time of an annotated segment or of a gap between segments
  windows    stage 2: T + 1 clips anywhere in a training video, no label
  samples    stage 3 and judgement: the T clips before an annotated segment, their labels, and its action, the target

A row is small until it is read: it says which video and when. Reading is a grain transform, so that worker processes
decode, and the choice of the moment and of the crop depends on (seed, position) alone.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from core.data.records import PrepareReport
from core.errors import UserError, nearest
from video.arr import annotations, footage, media, ngram
from video.arr.annotations import tables
from video.arr.grid import Grid, Timelines, free_ends, observed, windows
from video.arr.kitchen import dataset as kitchen

DATASETS = ('kitchen', *annotations.DATASETS)
SPLITS = tables.SPLITS
EARLIEST = 1 / 30
"""Seconds: a segment whose observation ends before the first frame of a 30 fps video has none (spec 5.1)."""


def grid(config: Any) -> Grid:
  """The time grid of `config.grid`."""
  return Grid(**{field.name: config.grid[field.name] for field in dataclasses.fields(Grid)})


# Records: where they lie, and how they are made.


def is_procedural(config: Any) -> bool:
  """Whether the records are made on the spot: the kitchen is drawn; annotation files without media are read off."""
  if config.data.dataset not in DATASETS:
    raise UserError(
      f"config.data.dataset is '{config.data.dataset}', expected one of {DATASETS}."
      f'{nearest(config.data.dataset, DATASETS)}'
    )
  return config.data.dataset == 'kitchen' or config.data.media == 'labels'


def world(config: Any) -> kitchen.Config:
  """How much of the kitchen `config.data` asks for."""
  amount = config.data.kitchen
  return kitchen.Config(
    size=config.data.pixels, fps=int(config.data.fps), train_videos=amount.train_videos, val_videos=amount.val_videos,
    seconds=float(amount.seconds),
  )  # fmt: skip


def records_root(config: Any) -> pathlib.Path:
  """Folder of the records; that of a kitchen carries a hash of what it is drawn from."""
  root = pathlib.Path(config.data.records).expanduser()
  if config.data.dataset != 'kitchen':
    return root
  digest = hashlib.sha256(json.dumps(_world_info(config), sort_keys=True).encode()).hexdigest()[:10]
  return root / f'kitchen-{digest}'


def dataset_name(config: Any) -> str:
  """Name of the annotation records: of the dataset, with its fold where it has folds."""
  return 'kitchen' if config.data.dataset == 'kitchen' else annotations.name(config.data.dataset, config.data.fold)


def prepare(config: Any) -> list[PrepareReport]:
  """Writes the records that `config.data` needs, where they are missing: segments, and frames for media 'records'.

  Draws the kitchen, or reads the official annotation files under `config.data.root` and decodes the videos under
  `config.data.media_root`; other media stay where they are and are compared with the segments. Every fold of
  `config.data.folds` gets its segments; frames do not depend on the fold.
  """
  if config.data.dataset == 'kitchen':
    return _draw(config)
  if not config.data.root:
    raise UserError(
      'config.data.root is empty: give the folder of the annotation files of '
      f"'{config.data.dataset}', --config.data.root=/path."
    )
  reports = []
  for fold in config.data.folds:
    found = annotations.read(config.data.dataset, config.data.root, fold=fold)
    reports.append(tables.write(records_root(config), found))
  if config.data.media == 'records':
    reports.append(footage.prepare(config, found, records_root(config)))
  elif config.data.media != 'labels':  # read where they lie: what is absent or too short is said now
    reports[-1].problems += media.check(media.open(config.data), found)
  return reports


def _world_info(config: Any) -> dict[str, Any]:
  return {'seed': config.data.seed, **dataclasses.asdict(world(config))}


def _draw(config: Any) -> list[PrepareReport]:
  root, described = records_root(config), world(config)
  segments = tables.write(root, kitchen.annotations(described, config.data.seed))
  frames = footage.write(root, 'kitchen', kitchen.footage(described, config.data.seed), info=_world_info(config))
  return [segments, frames]


# What a fold holds.


class Fold:
  """Annotations, timelines, media and time grid of one run; read when first asked for."""

  def __init__(self, config: Any):
    self.config, self.grid = config, grid(config)

  @functools.cached_property
  def annotations(self) -> tables.Annotations:
    """All segments of the fold."""
    return tables.load(records_root(self.config), dataset_name(self.config))

  @property
  def vocabulary(self) -> tables.Vocabulary:
    """Names of the classes."""
    return self.annotations.vocabulary

  @functools.cached_property
  def media(self) -> media.Media | None:
    """Pixels or features; None where the labels themselves are what is observed."""
    return None if self.config.data.media == 'labels' else media.open(self.config.data, records_root(self.config))

  @functools.cached_property
  def whole(self) -> Timelines:
    """Timelines of all segments: what a judge knows of the past."""
    return Timelines(self.annotations.segments, self.vocabulary.classes)

  @functools.cached_property
  def training(self) -> Timelines:
    """Timelines of the training segments alone: EGTEA's splits divide segments, so its videos hold others too."""
    segments = self.annotations.segments
    return Timelines(tables.select(segments, segments['split'] == 'train'), self.vocabulary.classes)

  def targets(self, split: str) -> dict[str, np.ndarray]:
    """The segments of a split that are to be anticipated; in training, those with an observation.

    Raises:
      UserError: no such split, or none of its segments is a target.
    """
    segments = self.annotations.segments
    present = sorted(set(segments['split'].tolist()))
    if split not in present:
      raise UserError(
        f"There is no split '{split}' in '{dataset_name(self.config)}'; it has {present}.{nearest(split, present)}"
      )
    chosen = segments['target'] & (segments['split'] == split)
    if split == 'train' or self.config.data.dataset == 'salads':  # 50 Salads: only starts later than tau_a (spec 5.2)
      chosen &= segments['start'] - self.grid.anticipation >= EARLIEST
    if not chosen.any():
      raise UserError(f"Split '{split}' of '{dataset_name(self.config)}' has no segment that can be anticipated.")
    return tables.select(segments, chosen)

  def prior(self) -> np.ndarray:
    """Frequencies f64 [C] of the actions in training: what to say where nothing was seen (spec 5.1)."""
    return ngram.frequencies(self.annotations.segments, self.vocabulary.classes)

  def duration(self, video: str) -> float | None:
    """Seconds of footage; None where there is none to ask."""
    return None if self.media is None else self.media.duration(video)

  # Rows.

  def moments(self) -> Moments:
    """Stage 1: segments and gaps of the training videos."""
    return Moments.of(self.training, with_gaps=self.config.loss.unknown == 'class')

  def windows(self) -> Windows:
    """Stage 2: windows of T + 1 clips, one per `spacing`, of the training videos, their unlabelled parts included.

    Windows that touch what a validation segment is anticipated from, or the segment itself, are left out (spec 4.2: the
    EGTEA trap); `config.data.transductive` keeps them.
    """
    longer = dataclasses.replace(self.grid, clips=self.grid.clips + 1)
    rows = []
    for video in self.training.videos:
      blocked = self._judged(video) if not self.config.data.transductive else []
      for end in free_ends(self.training, longer, video, self.duration(video), blocked, self.grid.spacing):
        rows.append((video, end))
    if not rows:
      raise UserError(
        f'No window of {longer.clips} clips, {longer.length:g} s, fits into a training video without touching '
        'validation footage: shorten config.grid, or skip the stage (config.pretraining.steps=0).'
      )
    return Windows(self.training, longer, rows)

  def samples(self, split: str) -> Samples:
    """Stage 3 and judgement: the targets of a split with their T clips; training sees no label of another split."""
    return Samples(self.training if split == 'train' else self.whole, self.grid, self.targets(split))

  def _judged(self, video: str) -> np.ndarray:
    """Intervals [M, 2] of a training video that validation looks at or asks for."""
    segments = self.annotations.segments
    held_out = tables.select(segments, (segments['split'] != 'train') & (segments['video'] == video))
    if not len(held_out['start']):
      return np.zeros((0, 2))
    seen = observed(Timelines(held_out, self.vocabulary.classes), self.grid, video)
    return np.concatenate([seen, np.stack([held_out['start'], held_out['stop']], -1)])


class Samples(Sequence):
  """Row i: the observation before target i. 'label', 'pad' [T]; 'target', 'verb', 'noun' scalars; 'video', 'ends'."""

  def __init__(self, timelines: Timelines, grid: Grid, targets: dict[str, np.ndarray]):
    self.targets, self.grids = targets, windows(timelines, grid, targets)

  def __len__(self) -> int:
    return len(self.targets['start'])

  def __getitem__(self, i: int) -> dict[str, Any]:
    return {
      'video': str(self.targets['video'][i]),
      'ends': self.grids['ends'][i],
      'label': self.grids['label'][i],
      'pad': self.grids['pad'][i],
      'target': np.int32(self.targets['action'][i]),
    }


class Windows(Sequence):
  """Row i: T + 1 clips that end at a chosen time of a training video, with the labels that only 'labels' media read."""

  def __init__(self, timelines: Timelines, grid: Grid, rows: list[tuple[str, float]]):
    self.timelines, self.grid, self.rows = timelines, grid, rows

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, i: int) -> dict[str, Any]:
    video, end = self.rows[i]
    ends = self.grid.ends(end + self.grid.anticipation)
    return {'video': video, 'ends': ends, 'label': self.timelines.labels(video, ends)}


@dataclasses.dataclass(frozen=True)
class Moments(Sequence):
  """Row i: one clip in interval i of a training video, a segment or a gap; its end is drawn when it is read.

  Attributes:
    timelines: gives the label of the drawn time, where segments overlap too.
    video, low, high: the intervals, [M] each.
  """

  timelines: Timelines
  video: np.ndarray
  low: np.ndarray
  high: np.ndarray

  @classmethod
  def of(cls, timelines: Timelines, with_gaps: bool) -> Moments:
    """All segments with a label, and with `with_gaps` the unlabelled gaps between them."""
    parts = []
    for video in timelines.videos:
      rows = timelines.segments_of(video)
      known = (rows['action'] >= 0) & (rows['stop'] > rows['start'])
      low, high = rows['start'][known], rows['stop'][known]
      if with_gaps and len(low):
        order = np.argsort(low, kind='stable')
        covered = np.maximum.accumulate(high[order])
        gap = low[order][1:] > covered[:-1]
        low = np.concatenate([low, covered[:-1][gap]])
        high = np.concatenate([high, low[: len(order)][order][1:][gap]])
      parts.append((np.full(len(low), video), low, high))
    return cls(timelines, *(np.concatenate(columns) for columns in zip(*parts)))

  def __len__(self) -> int:
    return len(self.low)

  def __getitem__(self, i: int) -> dict[str, Any]:
    return {'video': str(self.video[i]), 'low': self.low[i], 'high': self.high[i]}

  def draw(self, row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """A `random_transform`: the end of the clip, uniformly in the interval, and what goes on there."""
    end = np.array([rng.uniform(row['low'], row['high'])])
    label = self.timelines.labels(row['video'], end)
    return {'video': row['video'], 'ends': end, 'label': label, 'id': row['id']}


# Reading: from (video, times) to what the encoder is given.


@dataclasses.dataclass(frozen=True)
class Reader:
  """Puts 'inputs' into a row: uint8 [T, n, S, S, 3], f32 [T, F], or the labels int32 [T] themselves.

  Attributes:
    media: pixels, features, or None for labels.
    grid: gives the frames of a clip.
    view: how frames become pictures of the model's size; None for features and labels.
    prototypes: in place of labels, synthetic features of them; or None.
  """

  media: media.Media | None
  grid: Grid
  view: View | None = None
  prototypes: Prototypes | None = None

  def __call__(self, row: dict[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
    """Reads; `rng` draws the crop and the noise, without it both are the same every time.

    No frame after the last end is looked at.
    """
    ends = row['ends']
    rest = {key: value for key, value in row.items() if key not in ('ends', 'video')}
    if self.media is None:
      labels = row['label'].astype(np.int32)
      return rest | {'inputs': labels if self.prototypes is None else self.prototypes(row, rng)}
    if self.media.kind == 'features':
      times = self.grid.times(ends)[..., -1]
      return rest | {'inputs': self.media.features(row['video'], times, ends[-1])}
    times = self.grid.times(ends)
    frames = self.media.frames(row['video'], times.ravel(), ends[-1])
    pictures = self.view(frames, rng)
    return rest | {'inputs': pictures.reshape(*pictures.shape[:-4], *times.shape, *pictures.shape[-3:])}


@dataclasses.dataclass(frozen=True)
class MomentReader:
  """Draws the moment of a row, then reads it; a class, so that worker processes can be sent one."""

  moments: Moments
  reader: Reader

  def __call__(self, row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return self.reader(self.moments.draw(row, rng), rng)


@dataclasses.dataclass(frozen=True)
class View:
  """From frames to square pictures (spec 4.4, AVT's): scale, crop, flip, the same for all frames of a row.

  Attributes:
    size: side of a picture.
    shorter: (least, most) of the shorter side in training; in judgement the least.
    flip: whether training mirrors every other row.
    views: pictures per frame in judgement: 1 the centre; 3 left, centre, right (or top to bottom); 6 and their mirrors.
  """

  size: int
  shorter: tuple[int, int]
  flip: bool
  views: int = 1

  def __post_init__(self):
    if self.size > self.shorter[0] or self.shorter[0] > self.shorter[1]:
      raise UserError(
        f'config.augment.shorter is {self.shorter}: expected (least, most) with least >= model.image_size {self.size}.'
      )
    if self.views not in (1, 3, 6):
      raise UserError(f'config.eval.views is {self.views}, expected 1, 3 or 6.')

  def __call__(self, frames: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """uint8 [K, H, W, 3] -> [K, S, S, 3] in training, [views, K, S, S, 3] in judgement (without the axis for one)."""
    if rng is not None:
      scaled = self._scaled(frames, int(rng.integers(self.shorter[0], self.shorter[1] + 1)))
      spare = np.array(scaled.shape[1:3]) - self.size
      picture = self._crop(scaled, rng.integers(0, spare + 1))
      return np.ascontiguousarray(picture[:, :, ::-1]) if self.flip and rng.random() < 0.5 else picture
    scaled = self._scaled(frames, self.shorter[0])
    spare = np.array(scaled.shape[1:3]) - self.size
    if self.views == 1:
      return self._crop(scaled, spare // 2)
    crops = [self._crop(scaled, (spare * part).astype(int)) for part in (0.0, 0.5, 1.0)]
    return np.stack(crops + [crop[:, :, ::-1] for crop in crops] * (self.views == 6))

  def _scaled(self, frames: np.ndarray, shorter: int) -> np.ndarray:
    height, width = frames.shape[1:3]
    if min(height, width) == shorter:
      return frames
    factor = shorter / min(height, width)
    size = (max(shorter, round(width * factor)), max(shorter, round(height * factor)))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return np.stack([cv2.resize(frame, size, interpolation=method) for frame in frames])

  def _crop(self, frames: np.ndarray, corner: Sequence[int]) -> np.ndarray:
    top, left = (int(value) for value in corner)
    return frames[:, top : top + self.size, left : left + self.size]


@dataclasses.dataclass(frozen=True)
class Prototypes:
  """Synthetic features of labels: a random unit vector per class plus white noise (spec 9c, second experiment).

  Attributes:
    vectors: f32 [C + 1, F].
    noise: standard deviation of the noise's length, relative to a prototype's (1).
  """

  vectors: np.ndarray
  noise: float

  @classmethod
  def draw(cls, classes: int, size: int, noise: float) -> Prototypes:
    """The same prototypes for every seed of a run: they stand for the world, not for the training."""
    vectors = np.random.default_rng(0).normal(size=(classes + 1, size))
    return cls((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), noise)

  def __call__(self, row: dict[str, Any], rng: np.random.Generator | None) -> np.ndarray:
    """f32 [T, F]; without `rng` the noise depends on the video and the times, so that every judgement is the same."""
    if rng is None:
      key = hashlib.sha256(row['video'].encode() + np.asarray(row['ends']).tobytes()).digest()
      rng = np.random.default_rng(np.frombuffer(key[:8], np.uint32))
    white = rng.normal(size=(len(row['label']), self.vectors.shape[1])).astype(np.float32)
    return self.vectors[row['label']] + self.noise / np.sqrt(self.vectors.shape[1]) * white
