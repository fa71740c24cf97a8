"""The time grid: where the T observed clips of an anticipation sample end, and which action is going on at each end.

Spec 2: with tau_s the start of the action to be anticipated and tau_a the anticipation time, clip k = 1..T ends at

  t_k = tau_s - tau_a - spacing * (T - k)          so  t_T = tau_s - tau_a,  and t_{T+1} = tau_s when spacing = tau_a

and shows n frames in (t_k - w, t_k]. No frame is later than tau_s - tau_a: nothing of the future leaks. (AVT takes the
clip around its middle; the end is our choice because of this guarantee.) Spacing and tau_a are separate, since a
history of a minute says more about the next action than one of ten seconds (spec 9b).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from core.errors import UserError, nearest
from video.arr.annotations import tables


@dataclasses.dataclass(frozen=True)
class Grid:
  """Attributes: clips T; spacing, anticipation tau_a and span w in seconds; frames n per clip."""

  clips: int = 10
  spacing: float = 1.0
  anticipation: float = 1.0
  frames: int = 4
  span: float = 1.0

  def __post_init__(self):
    for name in ('clips', 'spacing', 'anticipation', 'frames', 'span'):
      if not getattr(self, name) > 0:
        raise UserError(f'{name} of the time grid is {getattr(self, name)}, expected a number above 0.')
    if self.frames > 1 and self.span > self.spacing:
      raise UserError(
        f'A clip spans {self.span} s but the next one ends only {self.spacing} s later: clips of {self.frames} frames '
        'would overlap, and the clip to be predicted would be seen in part. Lower the span or raise the spacing.'
      )

  @property
  def length(self) -> float:
    """Seconds that the T clips look back: T * spacing."""
    return self.clips * self.spacing

  def ends(self, start: np.ndarray | float) -> np.ndarray:
    """End times f64 [..., T] of the clips observed before actions that start at `start` [...], all in seconds."""
    steps = np.arange(self.clips - 1, -1, -1)
    return (np.asarray(start, np.float64) - self.anticipation)[..., None] - self.spacing * steps

  def times(self, ends: np.ndarray | float) -> np.ndarray:
    """Times f64 [..., n] of the frames of clips that end at `ends` [...]: evenly in (t - span, t], the last at t."""
    steps = np.arange(self.frames - 1, -1, -1)
    return np.asarray(ends, np.float64)[..., None] - self.span / self.frames * steps


class Timelines:
  """The action at any time of any video: one step function per video, made once, asked by binary search.

  The label of time t is the action of the segment with start <= t < stop that started last; of several that started
  together, the later row (spec 4.1, our choice: it favours the action that has just begun). Segments without a label
  (action < 0) say nothing and cover nothing.
  """

  def __init__(self, segments: Mapping[str, np.ndarray], unknown: int):
    """`segments` as in `Annotations.segments`; `unknown` is the label where no segment is, the number of classes."""
    order = np.argsort(segments['video'], kind='stable')
    segments = tables.select(segments, order)
    names, first = np.unique(segments['video'], return_index=True)
    bounds = np.append(first, len(order))
    self.unknown = unknown
    self._columns = {
      str(name): tables.select(segments, slice(low, high)) for name, low, high in zip(names, bounds, bounds[1:])
    }
    self._steps = {name: _steps(rows, unknown) for name, rows in self._columns.items()}

  @property
  def videos(self) -> tuple[str, ...]:
    """Names of the videos, sorted."""
    return tuple(self._columns)

  def segments_of(self, video: str) -> dict[str, np.ndarray]:
    """The columns of one video's segments, in their order."""
    self._check(video)
    return self._columns[video]

  def labels(self, video: str, times: np.ndarray | float) -> np.ndarray:
    """Labels int32 [...] in [0, unknown] at `times` [...] in seconds."""
    self._check(video)
    edges, labels = self._steps[video]
    return labels[np.searchsorted(edges, times, side='right')]

  def _check(self, video: str) -> None:
    if video not in self._columns:
      raise UserError(
        f"No segment of video '{video}' is annotated; {len(self._columns)} videos are.{nearest(video, self._columns)}"
      )


def window(timelines: Timelines, grid: Grid, video: str, start: np.ndarray | float) -> dict[str, np.ndarray]:
  """What is known of the clips before actions of one video that start at `start` [...].

  Returns:
    'ends' f64 [..., T] in seconds; 'pad' bool [..., T], true where a clip ends before the first frame is shown
    (t_k <= 0); 'label' int32 [..., T], unknown where padded.
  """
  ends = grid.ends(start)
  pad = ends <= 0
  label = np.where(pad, np.int32(timelines.unknown), timelines.labels(video, ends))
  return {'ends': ends, 'label': label, 'pad': pad}


def windows(timelines: Timelines, grid: Grid, segments: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """`window` of every segment [S] at once, video by video: 'ends' f64, 'label' int32, 'pad' bool, all [S, T]."""
  shape = (len(segments['start']), grid.clips)
  whole = {'ends': np.empty(shape), 'label': np.empty(shape, np.int32), 'pad': np.empty(shape, bool)}
  videos, which = np.unique(segments['video'], return_inverse=True)
  order = np.argsort(which, kind='stable')
  for video, rows in zip(videos, np.split(order, np.cumsum(np.bincount(which))[:-1])):
    for name, values in window(timelines, grid, str(video), segments['start'][rows]).items():
      whole[name][rows] = values
  return whole


def observed(timelines: Timelines, grid: Grid, video: str) -> np.ndarray:
  """Intervals f64 [S, 2] in seconds that are looked at to anticipate the segments of a video: its footage to keep out
  of training where validation segments share videos with training (the EGTEA trap, spec 4.2)."""
  stop = timelines.segments_of(video)['start'] - grid.anticipation
  return np.stack([stop - grid.length, stop], axis=-1)


def free_ends(
  timelines: Timelines,
  grid: Grid,
  video: str,
  duration: float | None,
  blocked: Sequence[tuple[float, float]] | np.ndarray,
  step: float,
) -> np.ndarray:
  """End times of the windows (end - length, end] of a video that touch no blocked interval, for label-free training.

  Args:
    timelines: of the annotated videos.
    grid: gives the window's length, T * spacing.
    video: name.
    duration: of the video in seconds; None where there is no footage to ask: until the last annotated segment stops.
    blocked: (start, stop) in seconds, both ends included.
    step: seconds between the ends that are tried; the first is that of the earliest whole window.

  Returns:
    f64 [M], ascending; M may be 0.
  """
  if duration is None:
    duration = timelines.segments_of(video)['stop'].max()
  count = int(np.floor((duration - grid.length) / step)) + 1
  ends = grid.length + step * np.arange(max(count, 0))
  blocked = np.asarray(blocked, np.float64).reshape(-1, 2)
  touched = (ends[:, None] >= blocked[:, 0]) & (ends[:, None] - grid.length < blocked[:, 1])
  return ends[~touched.any(axis=1)]


def _steps(rows: Mapping[str, np.ndarray], unknown: int) -> tuple[np.ndarray, np.ndarray]:
  """A video's step function: edges f64 [E] and labels int32 [E + 1], label i + 1 holding from edge i to edge i + 1.

  Segments are painted over each other in the order of their starts, so that the latest start lies on top.
  """
  rows = tables.select(rows, (rows['action'] >= 0) & (rows['stop'] > rows['start']))
  edges = np.unique(np.concatenate([rows['start'], rows['stop']]))
  labels = np.full(len(edges) + 1, unknown, np.int32)
  order = np.argsort(rows['start'], kind='stable')
  lows = np.searchsorted(edges, rows['start'][order]) + 1
  highs = np.searchsorted(edges, rows['stop'][order]) + 1
  for low, high, action in zip(lows, highs, rows['action'][order]):
    labels[low:high] = action
  return edges, labels
