"""Words on pictures: lettering for the sheets, timelines and captions that systems draw."""

from __future__ import annotations

import functools
import pathlib

import matplotlib
from PIL import ImageFont


@functools.lru_cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
  """DejaVu Sans, which comes with matplotlib and has most of the world's scripts that file names use."""
  folder = pathlib.Path(matplotlib.get_data_path()) / 'fonts' / 'ttf'
  return ImageFont.truetype(str(folder / f'DejaVuSans{"-Bold" if bold else ""}.ttf'), size)


def wrapped(text: str, size: int, width: int) -> list[str]:
  """Lines of at most `width` pixels, broken between words."""
  lines = ['']
  for word in text.split():
    longer = f'{lines[-1]} {word}'.strip()
    if lines[-1] and font(size).getlength(longer) > width:
      lines.append(word)
    else:
      lines[-1] = longer
  return lines


def shorten(text: str, size: int, width: int) -> str:
  """The text, its middle cut out where it is wider than `width` pixels: names differ at their ends."""
  if font(size).getlength(text) <= width:
    return text
  for kept in range(len(text) - 1, 1, -1):
    short = text[: kept - kept // 2] + '…' + text[len(text) - kept // 2 :]
    if font(size).getlength(short) <= width:
      return short
  return '…'


def ink(color: tuple[int, int, int]) -> str:
  """The colour of letters on a coloured ground (RGB of 255): orange and lighter are too light for white ones."""
  return 'black' if sum(color) > 380 else 'white'
