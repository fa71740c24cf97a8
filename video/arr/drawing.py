"""Pictures of what was seen and what was expected: the timeline of a film, and the caption under its frames.

An action has one colour throughout a picture, so that an expectation can be seen to come true: the bar of a next action
returns, in the same colour, as what is recognised.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from core.data.drawing import font, ink, shorten

UNKNOWN = 'unknown'
"""How the class "nothing is annotated here" is shown."""

PALETTE = (
  (0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233), (136, 34, 85),
  (240, 228, 66), (51, 34, 136), (153, 153, 51),
)  # fmt: skip
"""RGB. Okabe and Ito's colours and three of Tol's, told apart with every kind of colour vision."""

OTHER, GREY = (150, 150, 150), (222, 222, 222)
"""RGB of the actions behind the first ten, and of "unknown"."""

COLUMN, LABEL, STRIP, BAR, LINE, MARGIN = 152, 88, 96, 26, 22, 14
"""Pixels of a timeline: width of a column and of the labels, heights of the pictures, of the bar of what is recognised
and of a next action, gap."""

COLUMNS, BANDS, RANKS = 10, 6, 4
"""Columns side by side and bands below each other (a long film shows some of its steps), next actions per column."""

PANEL, NARROWEST, WIDEST = 112, 480, 960
"""Pixels: height of a caption, and the widths between which a frame is brought to carry it."""

Step = Mapping[str, Any]
"""A row of a prediction: time, starts_at, recognised, p_recognised, next_1, p_1, next_2, ..."""

Color = tuple[int, int, int]


def colors(weights: Mapping[str, float]) -> dict[str, Color]:
  """Name -> RGB: the names with the largest weights have colours of their own."""
  ranked = [name for name, _ in Counter(weights).most_common() if name != UNKNOWN]
  return {name: PALETTE[i] if i < len(PALETTE) else OTHER for i, name in enumerate(ranked)} | {UNKNOWN: GREY}


def tint(color: Color, share: float = 0.5) -> Color:
  """The colour laid thinly on white, for black letters."""
  red, green, blue = (round(255 - share * (255 - value)) for value in color)
  return red, green, blue


def step_colors(steps: Sequence[Step]) -> dict[str, Color]:
  """`colors` of a film: by the probability of each name, as what is going on and as what is next, over all steps."""
  weights: Counter[str] = Counter()
  for step in steps:
    weights[step['recognised']] += step['p_recognised']
    for rank in range(1, RANKS + 1):
      if f'next_{rank}' in step:
        weights[step[f'next_{rank}']] += step[f'p_{rank}']
  return colors(weights)


def thumbnail(picture: np.ndarray) -> np.ndarray:
  """uint8 [H, W, 3] within a column's place for it."""
  height, width = picture.shape[:2]
  scale = min((COLUMN - 4) / width, STRIP / height)
  size = max(1, round(width * scale)), max(1, round(height * scale))
  return cv2.resize(picture, size, interpolation=_interpolation(scale))


# The timeline.


@dataclasses.dataclass(frozen=True)
class _Layout:
  """Where things lie: `stride` steps per column, the last of which is shown."""

  stride: int
  columns: int
  bands: int

  @classmethod
  def of(cls, steps: int) -> _Layout:
    stride = math.ceil(steps / (COLUMNS * BANDS))
    columns = math.ceil(steps / stride)
    return cls(stride, min(columns, COLUMNS), math.ceil(columns / COLUMNS))

  @property
  def height(self) -> int:
    """Of a band."""
    return 20 + STRIP + 6 + BAR + 6 + RANKS * LINE + 20


def timeline(title: str, about: str, steps: Sequence[Step], pictures: Sequence[np.ndarray]) -> np.ndarray:
  """A film: pictures on top, below them what was recognised as a coloured bar, below it the ranked next actions.

  Args:
    title: heading.
    about: one line below it.
    steps: rows of the film, in the order of time.
    pictures: `thumbnail` of the last frame of each.

  Returns:
    uint8 [H, W, 3].
  """
  layout, shades = _Layout.of(len(steps)), step_colors(steps)
  width = max(LABEL + layout.columns * COLUMN, 720) + 2 * MARGIN
  canvas = Image.new('RGB', (width, 66 + layout.bands * layout.height), 'white')
  draw = ImageDraw.Draw(canvas)
  draw.text((MARGIN, 10), shorten(title, 20, width - 2 * MARGIN), font=font(20, bold=True), fill='black')
  if layout.stride > 1:
    about += f'; one step in {layout.stride} is shown'
  draw.text((MARGIN, 38), shorten(about, 13, width - 2 * MARGIN), font=font(13), fill=(80, 80, 80))
  per_band = layout.stride * COLUMNS
  for band in range(layout.bands):
    chosen = slice(band * per_band, (band + 1) * per_band)
    _draw_band(canvas, draw, 66 + band * layout.height, steps[chosen], pictures[chosen], layout.stride, shades)
  return np.asarray(canvas)


def _draw_band(canvas, draw, top: int, steps, pictures, stride: int, shades: Mapping[str, Color]) -> None:
  """Up to `COLUMNS` columns side by side."""
  left, bar = MARGIN + LABEL, top + 20 + STRIP + 6
  ahead = steps[0]['starts_at'] - steps[0]['time']
  for y, text in ((bar + 5, 'recognised'), (bar + BAR + 9, f'in {ahead:g} s')):
    draw.text((MARGIN, y), text, font=font(13, bold=True), fill='black')
  for column in range(math.ceil(len(steps) / stride)):
    last = min((column + 1) * stride, len(steps)) - 1
    step, x = steps[last], left + column * COLUMN
    draw.text((x, top + 2), f'{step["time"]:.1f} s', font=font(12), fill=(80, 80, 80))
    canvas.paste(Image.fromarray(pictures[last]), (x, top + 20 + (STRIP - pictures[last].shape[0]) // 2))
    for rank in range(1, RANKS + 1):
      if f'next_{rank}' in step:
        _draw_next(draw, x, bar + BAR + 6 + (rank - 1) * LINE, step, rank, shades)
  _draw_recognised(draw, left, bar, steps, COLUMN / stride, shades)


def _draw_recognised(draw, left: int, top: int, steps: Sequence[Step], width: float, shades) -> None:
  """One bar; neighbouring steps of one action are one piece with its name and its mean probability."""
  start = 0
  for end in range(1, len(steps) + 1):
    name = steps[start]['recognised']
    if end < len(steps) and steps[end]['recognised'] == name:
      continue
    box = (round(left + start * width), top, round(left + end * width) - 3, top + BAR - 1)
    color = shades.get(name, OTHER)
    draw.rectangle(box, fill=color)
    sure = np.mean([step['p_recognised'] for step in steps[start:end]])
    text = shorten(name, 12, box[2] - box[0] - 48) + f' {sure:.0%}'
    if box[2] - box[0] > 60:
      draw.text((box[0] + 5, top + 5), text, font=font(12, bold=True), fill=ink(color))
    start = end


def _draw_next(draw, x: int, y: int, step: Step, rank: int, shades: Mapping[str, Color]) -> None:
  """A name on a bar as long as its probability."""
  name, sure = step[f'next_{rank}'], step[f'p_{rank}']
  width = COLUMN - 4
  draw.rectangle((x, y, x + width, y + LINE - 4), fill=(244, 244, 244))
  draw.rectangle((x, y, x + round(width * sure), y + LINE - 4), fill=tint(shades.get(name, OTHER)))
  draw.text((x + 4, y + 2), shorten(name, 12, width - 44), font=font(12), fill='black')
  draw.text((x + width - 3, y + 2), f'{sure:.0%}', font=font(12), fill='black', anchor='ra')


# Frames with a caption.


def captioned(frame: np.ndarray, panel: np.ndarray) -> np.ndarray:
  """A frame, uint8 [H, W, 3], brought to the width of a panel that is put below it; both sides come out even."""
  width = panel.shape[1]
  scale = width / frame.shape[1]
  size = (width, max(2, round(frame.shape[0] * scale) // 2 * 2))
  shown = frame if size == frame.shape[1::-1] else cv2.resize(frame, size, interpolation=_interpolation(scale))
  return np.concatenate([shown, panel])


def panel_width(width: int) -> int:
  """Width of the caption of frames of a width."""
  return min(max(width, NARROWEST), WIDEST) // 2 * 2


def panel(step: Step | None, width: int, shades: Mapping[str, Color], ahead: float) -> np.ndarray:
  """What is recognised now and the three likeliest next actions with bars: uint8 [PANEL, width, 3].

  Args:
    step: the last row whose observation has ended; None before the first.
    width: of `panel_width`.
    shades: of `step_colors`.
    ahead: tau_a, seconds.
  """
  canvas = Image.new('RGB', (width, PANEL), (22, 24, 28))
  draw, middle = ImageDraw.Draw(canvas), round(0.4 * width)
  draw.text((12, 8), 'now', font=font(13), fill=(160, 166, 174))
  draw.text((middle, 8), f'in {ahead:g} s', font=font(13), fill=(160, 166, 174))
  if step is None:
    draw.text((12, 34), 'watching …', font=font(15), fill='white')
    return np.asarray(canvas)
  draw.text((middle - 14, 8), f'{step["time"]:.1f} s', font=font(13), fill=(160, 166, 174), anchor='ra')
  _draw_bar(draw, 12, 32, middle - 26, step['recognised'], step['p_recognised'], shades)
  for rank in (1, 2, 3):
    if f'next_{rank}' in step:
      name, sure = step[f'next_{rank}'], step[f'p_{rank}']
      _draw_bar(draw, middle, 6 + 26 * rank, width - middle - 12, name, sure, shades)
  return np.asarray(canvas)


def _draw_bar(draw, x: int, y: int, width: int, name: str, sure: float, shades: Mapping[str, Color]) -> None:
  draw.rectangle((x, y, x + width, y + 21), fill=(46, 50, 57))
  color = shades.get(name, OTHER)
  draw.rectangle((x, y, x + round(width * sure), y + 21), fill=tuple(round(0.75 * value) for value in color))
  text = shorten(name, 14, width - 58)
  draw.text((x + 6, y + 2), text, font=font(14), fill='white', stroke_width=1, stroke_fill=(22, 24, 28))
  draw.text(
    (x + width - 5, y + 2), f'{sure:.0%}', font=font(14), fill='white', anchor='ra', stroke_width=1,
    stroke_fill=(22, 24, 28),
  )  # fmt: skip


def _interpolation(scale: float) -> int:
  """Small pictures keep their pixels visible."""
  return cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST if scale >= 3 else cv2.INTER_LINEAR
