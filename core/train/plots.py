"""Parts of figures that several systems' reports draw, on axes that are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np

DARK = 0.55
"""Luma (0 to 1) below which a cell has white letters."""


def heat_map(
  axis: Any,
  values: np.ndarray,
  rows: Sequence[str],
  columns: Sequence[str],
  *,
  limits: tuple[float, float] = (0.0, 1.0),
  cmap: str = 'Oranges',
  form: Callable[[float], str] = '{:.0%}'.format,
  **lettering: Any,
) -> None:
  """A matrix with its numbers in its cells; NaN stays empty.

  Args:
    axis: matplotlib axes.
    values: [R, C].
    rows, columns: names, R and C; the first row is on top.
    limits: values at the ends of the colour map.
    cmap: name of the colour map.
    form: number -> text of a cell.
    lettering: of the numbers, as for `axis.text`.
  """
  axis.grid(False)
  axis.pcolormesh(values, vmin=limits[0], vmax=limits[1], cmap=cmap, edgecolors='white', linewidth=1.5)
  shade = matplotlib.colormaps[cmap]
  for (r, c), value in np.ndenumerate(values):
    missing = np.isnan(value)
    text = '–' if missing else form(value)
    color = np.ones(4) if missing else np.array(shade((value - limits[0]) / (limits[1] - limits[0])))
    ink = 'white' if color[:3] @ (0.299, 0.587, 0.114) < DARK else '#222222'
    axis.text(c + 0.5, r + 0.5, text, ha='center', va='center', color=ink, **lettering)
  axis.set_xticks(np.arange(len(columns)) + 0.5, columns)
  axis.set_yticks(np.arange(len(rows)) + 0.5, rows)
  axis.tick_params(length=0)
  axis.invert_yaxis()
  for side in axis.spines.values():
    side.set_visible(False)
