"""Actions along time, as runs, and as boxes with names in a figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from core.data.drawing import ink, shorten
from video.arr.drawing import UNKNOWN, Color
from video.arr.grid import Grid, Timelines

Run = tuple[float, float, int]
"""(from, to) in seconds, and the action."""


def annotated(whole: Timelines, video: str, low: float, high: float) -> list[Run]:
  """What is going on from `low` to `high`, as `grid.Timelines` says."""
  rows = whole.segments_of(video)
  edges = np.unique(np.clip(np.concatenate([[low, high], rows['start'], rows['stop']]), low, high))
  return merged(zip(edges[:-1].tolist(), edges[1:].tolist(), whole.labels(video, edges[:-1]).tolist()))


def of_clips(grid: Grid, start: np.ndarray, labels: np.ndarray) -> list[Run]:
  """Clips as runs: each from its beginning, or from the end of the clip before it, to its end.

  Args:
    grid: of the clips.
    start: f64 [M], when the actions start that they are observed before.
    labels: int [M, T]; clips before the film are left out.
  """
  ends = grid.ends(start).ravel()
  order = np.argsort(ends, kind='stable')
  order = order[ends[order] > 0]
  ends = ends[order]
  begins = np.maximum(ends - grid.spacing, np.append(0.0, ends[:-1]))
  return merged(zip(begins.tolist(), ends.tolist(), labels.ravel()[order].tolist()))


def merged(runs: Iterable[Run]) -> list[Run]:
  """Neighbouring runs of one action as one; empty ones dropped."""
  found: list[Run] = []
  for begin, end, action in runs:
    if end <= begin:
      continue
    if found and found[-1][2] == action and begin - found[-1][1] < 1e-6:
      found[-1] = (found[-1][0], end, action)
    else:
      found.append((begin, end, action))
  return found


def draw(axis: Any, run: Run, name: str, shades: Mapping[str, Color], inches: float) -> None:
  """A box, and its name where there is room; `inches` per second."""
  begin, end = max(run[0], axis.get_xlim()[0]), min(run[1], axis.get_xlim()[1])
  if end <= begin:
    return
  color = shades[name]
  width = (end - begin) * inches
  edge = 0.7 if width > 0.05 else 0.0  # a white rim would leave nothing of a narrow box
  axis.axvspan(begin, end, facecolor=np.array(color) / 255, edgecolor='white', linewidth=edge)
  if name != UNKNOWN and width > 0.12:
    upright = width < 0.75
    text = shorten(name, 9, 88 if upright else int(96 * width))
    style = {'ha': 'center', 'va': 'center', 'fontsize': 6.5, 'color': ink(color)}
    axis.text((begin + end) / 2, 0.5, text, rotation=90 if upright else 0, clip_on=True, **style)
