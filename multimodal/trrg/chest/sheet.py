"""Contact sheet of the chest world: films of each observation from faint to severe, with their sentences.

python -m multimodal.trrg.chest.sheet docs/chest_world.png
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys

import cv2
import numpy as np
from PIL import Image

from multimodal.trrg.chest import anatomy, findings, grammar, painter
from multimodal.trrg.chest.findings import Finding

_STRENGTHS = (0.12, 0.4, 0.65, 0.95)
_SCALE, _LINE = 0.32, 11  # of the letters; pixels from line to line


def sheet(seed: int, size: int = 128, columns: int = 2) -> np.ndarray:
  """Contact sheet uint8 [H, W]: a row of films per observation, `columns` observations beside each other.

  The first row is healthy; the films of a row grow in strength, those of devices differ in kind.
  """
  strips = [_strip(examples, size, seed, number) for number, examples in enumerate(_examples(seed))]
  strips += [np.full_like(strips[0], 255)] * (-len(strips) % columns)
  return np.concatenate([np.concatenate(strips[i : i + columns], axis=1) for i in range(0, len(strips), columns)])


def _examples(seed: int) -> list[tuple[tuple[Finding, ...], ...]]:
  """Per row, the findings of each of its films: none first, then each observation by itself."""
  rng = np.random.default_rng([seed, 0])
  rows: list[tuple[tuple[Finding, ...], ...]] = [((),) * len(_STRENGTHS)]
  for what in range(findings.DEVICE):
    drawn = [findings.one(what, rng, strength) for strength in _STRENGTHS]
    rows.append(tuple((finding,) for finding in drawn))
  kinds = (('endotracheal tube', 0), ('central line', anatomy.RIGHT), ('pacemaker', anatomy.LEFT), ('chest tube', 1))
  rows.append(tuple((Finding(findings.DEVICE, 1.0, side, kind=kind),) for kind, side in kinds))
  return rows


def _strip(examples: tuple[tuple[Finding, ...], ...], size: int, seed: int, number: int) -> np.ndarray:
  """One row: films, each below the sentence about it."""
  cells = []
  for i, found in enumerate(examples):
    rng = np.random.default_rng([seed, 1, number, i])
    body = dataclasses.replace(anatomy.body(rng), curve=0.0)
    image = painter.film(body, found, size, rng)
    words = 'normal'
    if found:
      about = found[0].what
      words = next(s.text for s in grammar.write(found, body, rng) if about in dict(s.meaning))
    cells.append(np.pad(np.concatenate([_words(words, size), image]), ((0, 6), (0, 6)), constant_values=255))
  return np.pad(np.concatenate(cells, axis=1), ((0, 0), (0, 8)), constant_values=255)


def _words(text: str, width: int) -> np.ndarray:
  """A label uint8 [3 * _LINE, width] of up to three lines."""
  label = np.full((3 * _LINE, width), 255, np.uint8)
  lines = ['']
  for word in text.split():
    longer = f'{lines[-1]} {word}'.strip()
    fits = cv2.getTextSize(longer, cv2.FONT_HERSHEY_SIMPLEX, _SCALE, 1)[0][0] <= width
    lines = [*lines[:-1], longer] if fits else [*lines, word]
  for i, line in enumerate(lines[:3]):
    cv2.putText(label, line, (1, _LINE * (i + 1) - 3), cv2.FONT_HERSHEY_SIMPLEX, _SCALE, 30, 1, cv2.LINE_AA)
  return label


def main(path: str) -> None:
  """Writes the sheet as a PNG of few greys, which keeps it small."""
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(sheet(seed=1))
  image.quantize(32, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
