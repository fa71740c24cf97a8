"""Sheets of a study: its films, where each clue looks, the margins, and the report with its sentences marked.

A status has one colour and one mark everywhere, so that neither is needed to tell them apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from core.data.drawing import font, shorten, wrapped
from core.train import report
from multimodal.trrg import truthfulness

NOTICE = (
  'Research software, not a medical device, not for clinical use. Reports, clues and markings can be wrong; no decision'
  ' about a patient may rest on them.'
)
"""Goes with every output that shows a report."""

STATUS = {
  truthfulness.SUPPORTED: ('✓', (0, 130, 95), 'asserts a clue'),
  truthfulness.CONSISTENT: ('–', (110, 118, 128), 'denies what is no clue'),
  truthfulness.NEUTRAL: ('·', (150, 150, 150), 'names no observation'),
  truthfulness.UNSUPPORTED: ('?', (200, 120, 0), 'asserts what no clue says'),
  truthfulness.CONTRADICTED: ('✗', (190, 40, 30), 'denies a clue'),
}
"""Status of a sentence -> mark, RGB, what it means."""

CLUE, BELOW = (213, 94, 0), (170, 176, 184)
"""RGB of the bar of an observation that is a clue, and of one that is not."""

STRONGEST = 4.0
"""A place that is looked at this often, times an even look, gets the full colour of the heat map; where attention is
flatter than that, so is the picture (our choice: scaling each map to its own maximum would make a finding of noise)."""

WIDTH, MARGIN, TILE, CAPTION, ROW, BARS = 1120, 16, 168, 22, 20, 430
"""Pixels of a sheet: width, gap, side of a picture, heights of its caption and of a margin's row, width of margins."""


def square(film: np.ndarray, side: int = TILE) -> np.ndarray:
  """uint8 [side, side]: the centre square of a film [H, W], which the network is shown; large pixels stay large."""
  edge = min(film.shape)
  top, left = ((length - edge) // 2 for length in film.shape)
  picture, whole = film[top : top + edge, left : left + edge], -(-side // edge) * edge
  picture = cv2.resize(picture, (whole, whole), interpolation=cv2.INTER_NEAREST)  # pixels of one size, then by area
  return cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)


def heat(film: np.ndarray, seen: np.ndarray, side: int = TILE) -> np.ndarray:
  """A film under what a clue looks at.

  Args:
    film: uint8 [H, W].
    seen: f32 [h, w], attention over its patches times their number: 1 where the look is even.
    side: of the picture.

  Returns:
    uint8 [side, side, 3]: the film alone where the look is even or less, red to yellow where it is up to `STRONGEST`.
  """
  strength = np.clip((np.asarray(seen, np.float32) - 1) / (STRONGEST - 1), 0, 1)
  strength = cv2.resize(strength, (side, side), interpolation=cv2.INTER_LINEAR)[..., None]  # a cubic would ring
  colour = 255 * matplotlib.colormaps['autumn'](0.9 * strength[..., 0])[..., :3]
  grey = np.repeat(square(film, side)[..., None], 3, -1)
  alpha = 0.75 * np.sqrt(strength)  # bone is white: under colour it is darkened, or all hues would be pale
  return np.round((1 - alpha) * (1 - 0.3 * alpha) * grey + alpha * colour).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Sheet:
  """What is shown of a study.

  Attributes:
    title: heading.
    about: what stands below it.
    films: uint8 [H, W] each; () for a run without films.
    evidence: observation -> f32 [M, h, w] (`heat`), M maps over the first M films; one where views are averaged.
    margins: observation -> margin minus threshold; {} where nothing was perceived.
    clues: the observations that the writer was told.
    sentences: {'text', 'status', 'observations'} each.
    reference: sentences of the reference report, where there is one.
  """

  title: str
  about: str
  films: Sequence[np.ndarray]
  evidence: Mapping[str, np.ndarray]
  margins: Mapping[str, float]
  clues: Sequence[str]
  sentences: Sequence[Mapping[str, Any]]
  reference: Sequence[str] = ()

  def tiles(self) -> list[tuple[str, np.ndarray]]:
    """(caption, uint8 [TILE, TILE, 3]) of every film and of every map."""
    several = len(self.films) > 1
    found = [
      (f'film {i}' if several else 'film', np.repeat(square(film)[..., None], 3, -1))
      for i, film in enumerate(self.films, 1)
    ]
    for name, maps in self.evidence.items():
      for i, (film, seen) in enumerate(zip(self.films, maps), 1):
        found.append((f'{name}, film {i}' if len(maps) > 1 else name, heat(film, seen)))
    return found

  def strip(self) -> np.ndarray | None:
    """The pictures alone, uint8 [H, WIDTH, 3]; None without films."""
    tiles = self.tiles()
    if not tiles:
      return None
    canvas = Image.new('RGB', (WIDTH, _strip_height(len(tiles))), 'white')
    _draw_tiles(canvas, 0, tiles)
    return np.asarray(canvas)

  def draw(self) -> np.ndarray:
    """The whole sheet, uint8 [H, WIDTH, 3]."""
    tiles, left = self.tiles(), MARGIN + (BARS + 2 * MARGIN if self.margins else 0)
    about = wrapped(self.about, 13, WIDTH - 2 * MARGIN)
    head = 48 + 18 * len(about)
    top = head + (_strip_height(len(tiles)) if tiles else 0)
    blocks = self._blocks(WIDTH - MARGIN - left)
    height = top + max(sum(block.height for block in blocks), 34 + ROW * len(self.margins))
    notice = wrapped(NOTICE, 12, WIDTH - 2 * MARGIN)
    canvas = Image.new('RGB', (WIDTH, height + MARGIN + 17 * len(notice) + 12), 'white')
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, 12), shorten(self.title, 20, WIDTH - 2 * MARGIN), font=font(20, bold=True), fill='black')
    for i, line in enumerate(about):
      draw.text((MARGIN, 40 + 18 * i), line, font=font(13), fill=(90, 90, 90))
    if tiles:
      _draw_tiles(canvas, head, tiles)
    if self.margins:
      _draw_margins(draw, MARGIN, top, self.margins, self.clues)
    for block in blocks:
      block.draw(draw, left, top)
      top += block.height
    for i, line in enumerate(notice):
      draw.text((MARGIN, height + MARGIN + 17 * i), line, font=font(12), fill=(150, 60, 40))
    return np.asarray(canvas)

  def _blocks(self, width: int) -> list[_Block]:
    found = [_Block((('Written', 14, 'black', True),), bottom=6)]
    for sentence in self.sentences:
      mark, colour, meaning = STATUS[sentence['status']]
      lines = [(line, 14, 'black', False) for line in wrapped(sentence['text'], 14, width - 30)]
      names = ', '.join(sentence['observations'])
      below = meaning + (f': {names}' if names else '')
      found.append(_Block((*lines, (shorten(below, 11, width - 30), 11, colour, False)), mark, colour, bottom=8))
    if not self.sentences:
      found.append(_Block((('nothing', 14, (120, 120, 120), False),), bottom=8))
    if self.reference:
      lines = [(line, 13, (60, 60, 60), False) for line in wrapped(' '.join(self.reference), 13, width)]
      found += [_Block((), bottom=10), _Block((('Reference', 14, 'black', True),), bottom=4), _Block(tuple(lines))]
    return found


@dataclasses.dataclass(frozen=True)
class _Block:
  """Lines (text, size, colour, bold) one below the other; with a mark in front on a bar of its colour."""

  lines: Sequence[tuple[str, int, Any, bool]]
  mark: str = ''
  colour: Any = None
  bottom: int = 0

  @property
  def height(self) -> int:
    return sum(size + 5 for _, size, _, _ in self.lines) + self.bottom

  def draw(self, draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    if self.mark:
      draw.rectangle((x, y, x + 3, y + self.height - self.bottom - 1), fill=self.colour)
      draw.text((x + 16, y), self.mark, font=font(14, bold=True), fill=self.colour, anchor='ma')
    for text, size, colour, bold in self.lines:
      draw.text((x + (28 if self.mark else 0), y), text, font=font(size, bold=bold), fill=colour)
      y += size + 5


def _columns() -> int:
  return (WIDTH - MARGIN) // (TILE + MARGIN)


def _strip_height(count: int) -> int:
  return -(-count // _columns()) * (TILE + CAPTION + MARGIN)


def _draw_tiles(canvas: Image.Image, top: int, tiles: Sequence[tuple[str, np.ndarray]]) -> None:
  draw = ImageDraw.Draw(canvas)
  for i, (caption, picture) in enumerate(tiles):
    row, column = divmod(i, _columns())
    x, y = MARGIN + column * (TILE + MARGIN), top + row * (TILE + CAPTION + MARGIN)
    canvas.paste(Image.fromarray(picture), (x, y))
    draw.text((x, y + TILE + 4), shorten(caption, 12, TILE), font=font(12), fill=(60, 60, 60))


def _draw_margins(
  draw: ImageDraw.ImageDraw, x: int, y: int, margins: Mapping[str, float], clues: Sequence[str]
) -> None:
  """A bar per observation, to the right of its threshold where it is a clue."""
  draw.text((x, y), 'Margin over the threshold', font=font(14, bold=True), fill='black')
  names, most = 184, max(1.0, *map(abs, margins.values()))
  half = (BARS - names - 44) // 2
  middle = x + names + half
  for i, (name, margin) in enumerate(margins.items()):
    top, chosen = y + 26 + ROW * i, name in clues
    draw.text((x, top + 2), name, font=font(12, bold=chosen), fill='black' if chosen else (90, 90, 90))
    end = middle + round(half * margin / most)
    draw.rectangle((min(middle, end), top + 3, max(middle, end), top + ROW - 4), fill=CLUE if chosen else BELOW)
    draw.text((x + BARS, top + 2), f'{margin:+.2f}', font=font(12), fill=(60, 60, 60), anchor='ra')
  draw.line((middle, y + 24, middle, y + 26 + ROW * len(margins)), fill=(90, 90, 90))


def margin_bars(margins: Mapping[str, float], clues: Sequence[str]) -> Figure:
  """The margins of a study as a drawing that turns with a dark page."""
  with matplotlib.rc_context(report.STYLE):
    figure = Figure(figsize=(7, 0.23 * len(margins) + 0.6), layout='constrained')
    axis = figure.subplots()
    colors = [np.array(CLUE if name in clues else BELOW) / 255 for name in margins]
    axis.barh(list(margins), list(margins.values()), color=colors, height=0.7)
    axis.axvline(0, color='#888888', linewidth=1)
    axis.invert_yaxis()
    axis.grid(axis='y', visible=False)
    axis.set(xlabel='margin over the threshold (orange: told to the writer)')
  return figure


def sentence_table(sentences: Sequence[Mapping[str, Any]]) -> report.Table:
  """The sentences of a report with their marks."""
  rows = []
  for sentence in sentences:
    mark, _, meaning = STATUS[sentence['status']]
    rows.append([mark, sentence['text'], meaning, ', '.join(sentence['observations'])])
  return report.Table(['', 'sentence', 'beside the clues it', 'observations'], rows)
