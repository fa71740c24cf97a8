"""Sheets of photos: clean, protected, what was changed, what attackers make of them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from core.data.drawing import font, shorten, wrapped

GAP = 6
"""Pixels between pictures."""


def fit(picture: np.ndarray, side: int) -> np.ndarray:
  """uint8 [H, W, 3] at [side, side, 3]; small pictures keep their pixels visible."""
  way = cv2.INTER_AREA if picture.shape[0] > side else cv2.INTER_NEAREST
  return cv2.resize(picture, (side, side), interpolation=way)


def difference(photo: np.ndarray, original: np.ndarray, levels: float) -> np.ndarray:
  """The change of a photo, uint8 [H, W, 3]: grey where there is none, black and white at -levels and +levels.

  Args:
    photo, original: uint8 [H, W, 3].
    levels: the budget, in 8-bit levels: every change up to it is told apart.
  """
  change = (photo.astype(np.float32) - original.astype(np.float32)) / max(levels, 1)
  return np.clip(128 + 127 * change, 0, 255).astype(np.uint8)


def heat(mask: np.ndarray, photo: np.ndarray) -> np.ndarray:
  """A photo uint8 [H, W, 3], dimmed where its mask f32 [H, W, 1] in 0..1 is not."""
  return np.round(photo * (0.25 + 0.75 * mask)).astype(np.uint8)


def sheet(
  rows: Sequence[tuple[str, Sequence[np.ndarray | None]]],
  *,
  columns: Sequence[str] = (),
  side: int = 96,
  label: int = 150,
) -> np.ndarray:
  """Pictures in named rows.

  Args:
    rows: (name, pictures uint8 [H, W, 3]); None leaves a place empty. A line break in a name starts a smaller line.
    columns: headings over the pictures.
    side: of a picture on the sheet, in pixels.
    label: width of the names, in pixels.

  Returns:
    uint8 [h, w, 3] on white.
  """
  step, top = side + GAP, 24 if columns else GAP
  count = max([len(columns), *(len(pictures) for _, pictures in rows)])
  canvas = Image.new('RGB', (label + count * step, top + len(rows) * step), 'white')
  draw = ImageDraw.Draw(canvas)
  for i, text in enumerate(columns):
    draw.text((label + i * step, 4), shorten(text, 12, side), font=font(12), fill=(90, 90, 90))
  for r, (name, pictures) in enumerate(rows):
    _name(draw, name, top + r * step, label)
    for i, picture in enumerate(pictures):
      if picture is not None:
        canvas.paste(Image.fromarray(fit(picture, side)), (label + i * step, top + r * step))
  return np.asarray(canvas)


def _name(draw: ImageDraw.ImageDraw, name: str, y: int, width: int) -> None:
  title, *rest = name.split('\n')
  draw.text((4, y + 2), shorten(title, 13, width - 10), font=font(13, bold=True), fill='black')
  lines = [line for text in rest for line in wrapped(text, 11, width - 10)]
  for i, line in enumerate(lines):
    draw.text((4, y + 20 + 14 * i), line, font=font(11), fill=(90, 90, 90))
