"""Contact sheet of the kitchen world: what one video shows, action by action.

python -m video.arr.kitchen.sheet docs/kitchen_world.png
"""

from __future__ import annotations

import pathlib
import sys

import cv2
import numpy as np
from PIL import Image

from video.arr.kitchen import dataset

SHOTS = 3
"""Frames of each action."""


def sheet(config: dataset.Config, seed: int, number: int = 0, rows: int = 6, columns: int = 4) -> np.ndarray:
  """Contact sheet uint8 [H, W, 3] of the beginning of video `number`: actions and gaps in turn, with time and label."""
  script = dataset.video(config, seed, number)
  frames = list(dataset.film(config, seed, script))
  cells = [
    _cell([frames[int(t * config.fps)][1] for t in np.linspace(start, stop, SHOTS)], f'{start:.1f} s  {label}')
    for start, stop, label in _spans(script)[: rows * columns]
  ]
  cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
  return np.concatenate([np.concatenate(cells[i : i + columns], axis=1) for i in range(0, len(cells), columns)])


def _spans(script: dataset.Video) -> list[tuple[float, float, str]]:
  """(first second to show, last one, label) of each action and each gap of a video."""
  spans, last = [], 0.0
  for act in script.acts:
    if act.start - last >= 0.5:
      spans.append((last, act.start - 0.25, 'unknown'))
    length = act.end - act.start
    spans.append((act.start + 0.3 * length, act.start + 0.75 * length, act.step.action))
    last = act.stop
  return spans


def _cell(images: list[np.ndarray], words: str) -> np.ndarray:
  """Frames side by side at twice their size, below their label."""
  strip = np.concatenate(images, axis=1).repeat(2, axis=0).repeat(2, axis=1)
  label = np.full((18, strip.shape[1], 3), 255, np.uint8)
  color = (150, 150, 150) if words.endswith('unknown') else (30, 30, 30)
  cv2.putText(label, words, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, color, 1, cv2.LINE_AA)
  return np.pad(np.concatenate([label, strip]), ((0, 4), (0, 8), (0, 0)), constant_values=255)


def main(path: str) -> None:
  """Writes the sheet of one video as a PNG of few colours, which keeps it small."""
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(sheet(dataset.Config(), seed=0, number=8, rows=5))
  image.quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
