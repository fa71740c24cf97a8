"""The markup of report.html: style sheet, frame of the page, cells and pictures; `core.train.report` fills it."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from typing import Any

import cv2
import matplotlib
import matplotlib.figure
import numpy as np

STYLE = {
  'figure.facecolor': 'none',
  'axes.facecolor': 'none',
  'savefig.facecolor': 'none',
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.edgecolor': '#888888',
  'axes.linewidth': 0.8,
  'axes.grid': True,
  'axes.axisbelow': True,
  'grid.color': '#888888',
  'grid.alpha': 0.25,
  'grid.linewidth': 0.6,
  'axes.titlesize': 'medium',
  'axes.titlelocation': 'left',
  'font.size': 9,
  'legend.frameon': False,
  'legend.fontsize': 8,
  'lines.linewidth': 1.5,
  'xtick.color': '#555555',
  'ytick.color': '#555555',
  'axes.prop_cycle': matplotlib.cycler(
    color=['#2f6fb2', '#d9702b', '#3a9d6e', '#b5539c', '#8a7a1f', '#5aa9d6', '#c0392b', '#6b6b6b']
  ),
}
"""matplotlib settings of the page's own curves (colours that stay apart for most colour vision, our choice).

A system may draw in the same hand: `with matplotlib.rc_context(report.STYLE): ...`."""

LARGEST_SVG = 400_000
"""Bytes; a figure with more than this as SVG (thousands of points) becomes a PNG (our choice)."""

PNG_DPI = 160

CSS = """
:root { color-scheme: light dark; --paper: #fcfcfa; --ink: #1d2025; --soft: #646a73; --line: #e3e3de; --card: #ffffff;
  --accent: #2f6fb2; --mark: #b4541a; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181c; --ink: #e4e6ea; --soft: #9aa1ac; --line: #2d3138; --card: #1d2025; --accent: #7fb2e5;
    --mark: #e59a63; }
  img.plot { filter: invert(0.92) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 3rem 1.5rem 5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.015em; text-wrap: balance; }
h2 { font-size: 1.25rem; margin: 3rem 0 .8rem; padding-top: 1.1rem; border-top: 1px solid var(--line); }
p { max-width: 46rem; margin: .5rem 0; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
pre, code, td.key { font-family: ui-monospace, 'SF Mono', Menlo, Consolas, monospace; font-size: .84rem; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
nav { margin: 1rem 0 0; font-size: .9rem; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .7rem; margin: 1.4rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .6rem .9rem .7rem;
  overflow-wrap: anywhere; }
.card span { display: block; color: var(--soft); font-size: .78rem; }
.card b { font-size: 1.3rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.card b.text { font-size: .95rem; font-weight: 500; }
.scroll { overflow-x: auto; margin: .8rem 0 1.4rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .9rem .28rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; font-size: .82rem; white-space: nowrap; }
td.number, th.number { text-align: right; padding-left: .6rem; }
tr.total td { border-top: 2px solid var(--line); font-weight: 600; }
figure { margin: 1.2rem 0 1.6rem; } figure img { max-width: 100%; height: auto; display: block; }
figure img.pixels { border-radius: 6px; }
figcaption, caption { color: var(--soft); font-size: .87rem; max-width: 46rem; text-align: left; caption-side: bottom;
  padding-top: .4rem; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--accent); }
.unread td { color: var(--mark); } .note { color: var(--mark); } .soft { color: var(--soft); font-size: .87rem; }
"""


def escape(text: Any) -> str:
  """Text that is safe between tags and in quoted attributes."""
  return html.escape(str(text), quote=True)


def page(title: str, head: str, sections: Sequence[tuple[str, str]]) -> str:
  """A whole document.

  Args:
    title: plain text.
    head: markup between the heading and the list of contents.
    sections: (title as plain text, markup) in order.
  """
  links = ''.join(f'<a href="#s{index}">{escape(name)}</a>' for index, (name, _) in enumerate(sections))
  body = ''.join(f'<h2 id="s{index}">{escape(name)}</h2>\n{inner}\n' for index, (name, inner) in enumerate(sections))
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n'
    f'<h1>{escape(title)}</h1>\n{head}\n<nav>{links}</nav>\n{body}</body>\n</html>\n'
  )


def value_text(value: Any) -> str:
  """A value for reading: numbers to four significant digits, everything else as it is."""
  if value is None:
    return '–'
  if isinstance(value, (bool, np.bool_)):
    return 'yes' if value else 'no'
  if isinstance(value, (float, np.floating)):
    return f'{value:.4g}' if math.isfinite(value) else str(float(value))
  return str(value)


def is_number(value: Any) -> bool:
  """True for ints and floats, not for truth values."""
  return isinstance(value, (int, float, np.number)) and not isinstance(value, (bool, np.bool_))


def cards(values: Sequence[tuple[str, Any]]) -> str:
  """Names and values side by side, numbers large."""
  cells = (
    f'<div class="card"><span>{escape(name)}</span>'
    f'<b{"" if is_number(value) else " class=text"}>{escape(value_text(value))}</b></div>'
    for name, value in values
  )
  return f'<div class="cards">{"".join(cells)}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool], caption: str = '',
          classes: Sequence[str] = ()) -> str:  # fmt: skip
  """A table of cells that are markup already.

  Args:
    header: plain text.
    rows: markup.
    numeric: which columns are set flush right.
    caption: plain text.
    classes: CSS class of each row, '' for none; () for none at all.
  """
  kinds = [' class="number"' if right else '' for right in numeric]
  head = ''.join(f'<th{kind}>{escape(name)}</th>' for name, kind in zip(header, kinds))
  body = ''.join(
    f'<tr{f" class={name}" if name else ""}>' + ''.join(f'<td{kind}>{cell}</td>' for cell, kind in zip(row, kinds))
    + '</tr>\n'
    for row, name in zip(rows, classes or [''] * len(rows))
  )  # fmt: skip
  below = f'<caption>{escape(caption)}</caption>' if caption else ''
  return f'<div class="scroll"><table>{below}<thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def plot(figure: matplotlib.figure.Figure) -> str:
  """An <img> of a matplotlib figure. Drawings turn with a dark page; figures that hold pixels do not."""
  pixels = any(axes.images for axes in figure.axes)
  if not pixels:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='svg', bbox_inches='tight', metadata={'Date': None})
    if buffer.tell() <= LARGEST_SVG:
      return _image(buffer.getvalue(), 'image/svg+xml', 'plot', width=int(figure.get_figwidth() * 96))
  buffer = io.BytesIO()
  facecolor = 'white' if pixels else figure.get_facecolor()
  figure.savefig(buffer, format='png', dpi=PNG_DPI, bbox_inches='tight', facecolor=facecolor)
  return _image(buffer.getvalue(), 'image/png', 'pixels' if pixels else 'plot', width=int(figure.get_figwidth() * 96))


def picture(image: np.ndarray) -> str:
  """An <img> of uint8 pixels [H, W, 3] (RGB) or [H, W]."""
  if image.dtype != np.uint8 or image.ndim not in (2, 3):
    raise ValueError(f'A report image is uint8 [H, W, 3] or [H, W], found {image.dtype} {image.shape}.')
  shown = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
  return _image(cv2.imencode('.png', shown)[1].tobytes(), 'image/png', 'pixels', width=image.shape[1])


def _image(data: bytes, kind: str, name: str, width: int) -> str:
  encoded = base64.b64encode(data).decode('ascii')
  return f'<img class="{name}" width="{width}" alt="" src="data:{kind};base64,{encoded}">'
