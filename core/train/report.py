"""report.html: what a run leaves for reading. One self-contained page, with no request to anywhere.

A system describes what it wants shown with `Section`, `Figure` and `Table`; curves of the run's history, the table of
its evaluations, config and platform are the same for every system and are added here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import matplotlib.figure
import numpy as np


@dataclasses.dataclass
class Figure:
  """A picture: exactly one of `figure` and `image`.

  Attributes:
    figure: matplotlib figure; drawn as SVG, or as PNG when it holds pixels or very many points.
    image: uint8 [H, W, 3] (RGB) or [H, W].
    caption: one or two sentences below it.
  """

  figure: matplotlib.figure.Figure | None = None
  image: np.ndarray | None = None
  caption: str = ''

  def __post_init__(self):
    if (self.figure is None) == (self.image is None):
      raise ValueError('A report figure needs exactly one of `figure` and `image`.')


@dataclasses.dataclass
class Table:
  """A table; numbers are rounded for reading and set flush right.

  Attributes:
    header: names of the columns.
    rows: cells (text, numbers, booleans, None), as many per row as the header has.
    caption: one or two sentences below it.
  """

  header: list[str]
  rows: list[list[Any]]
  caption: str = ''


@dataclasses.dataclass
class Section:
  """A part of the page with its own heading.

  Attributes:
    title: the heading.
    text: plain text; blank lines separate paragraphs.
    items: figures and tables, in order.
  """

  title: str
  text: str = ''
  items: Sequence[Figure | Table] = ()
