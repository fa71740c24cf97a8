"""The colours and the sheets of faces of reports and predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from core.data.drawing import font, ink, shorten

COLORS = {
  'live': (0, 114, 178),
  'spoof': (213, 94, 0),
  'print': (230, 159, 0),
  'replay': (204, 121, 167),
  'mask': (0, 158, 115),
  'error': (110, 110, 110),
}
"""RGB. Okabe and Ito's palette, told apart with every kind of colour vision; a thing has one colour in all figures."""

LINE = 16
"""Pixels per line of a cell's caption."""


def fit(picture: np.ndarray, side: int) -> np.ndarray:
  """uint8 [S, S, 3] at [side, side, 3]; small pictures keep their pixels visible.

  A side that is a multiple of S, or divides it, adds no beats to halftones and moire.
  """
  way = cv2.INTER_AREA if picture.shape[0] > side else cv2.INTER_NEAREST
  return cv2.resize(picture, (side, side), interpolation=way)


@dataclasses.dataclass(frozen=True)
class Cell:
  """A picture with a coloured bar and lines below it.

  Attributes:
    picture: uint8 [S, S, 3].
    verdict: text on the bar.
    color: of the bar, a name in `COLORS`.
    lines: further text, one line each.
  """

  picture: np.ndarray
  verdict: str
  color: str
  lines: Sequence[str] = ()


def sheet(
  rows: Sequence[tuple[str, Sequence[Cell | None]]], *, columns: Sequence[str] = (), side: int = 128, label: int = 150
) -> np.ndarray:
  """Cells in named rows.

  Args:
    rows: (name, cells); None leaves a place empty. A line break in a name starts a smaller line.
    columns: headings over the cells.
    side: of a picture, in pixels.
    label: width of the names, in pixels.

  Returns:
    uint8 [H, W, 3] on white.
  """
  count = max(len(cells) for _, cells in rows)
  lines = max((len(cell.lines) for _, cells in rows for cell in cells if cell), default=0)
  step_x, step_y, top = side + 6, side + 20 + LINE * lines + 8, 22 if columns else 4
  canvas = Image.new('RGB', (label + count * step_x, top + len(rows) * step_y), 'white')
  draw = ImageDraw.Draw(canvas)
  for i, text in enumerate(columns):
    draw.text((label + i * step_x, 2), shorten(text, 13, side), font=font(13), fill=(90, 90, 90))
  for r, (name, cells) in enumerate(rows):
    y = top + r * step_y
    title, *rest = name.split('\n')
    draw.text((4, y + 2), shorten(title, 14, label - 10), font=font(14, bold=True), fill='black')
    for i, text in enumerate(rest):
      draw.text((4, y + 22 + LINE * i), shorten(text, 12, label - 10), font=font(12), fill=(90, 90, 90))
    for c, cell in enumerate(cells):
      if cell is not None:
        _draw_cell(canvas, draw, label + c * step_x, y, cell, side)
  return np.asarray(canvas)


def _draw_cell(canvas: Image.Image, draw: ImageDraw.ImageDraw, x: int, y: int, cell: Cell, side: int) -> None:
  canvas.paste(Image.fromarray(fit(cell.picture, side)), (x, y))
  draw.rectangle((x, y + side, x + side - 1, y + side + 18), fill=COLORS[cell.color])
  verdict = shorten(cell.verdict, 12, side - 8)
  draw.text((x + 5, y + side + 2), verdict, font=font(12, bold=True), fill=ink(COLORS[cell.color]))
  for i, text in enumerate(cell.lines):
    draw.text((x, y + side + 22 + LINE * i), shorten(text, 11, side), font=font(11), fill=(60, 60, 60))
