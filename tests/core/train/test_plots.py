"""What a heat map says is what it was given."""

import matplotlib.colors
import numpy as np
from matplotlib.figure import Figure

from core.train import plots


def test_a_heat_map_holds_its_numbers_in_readable_letters():
  axis = Figure().subplots()
  values = np.array([[0.0, 0.98], [np.nan, 0.5]])
  plots.heat_map(axis, values, ['first', 'second'], ['left', 'right'], fontsize=6)
  assert [text.get_text() for text in axis.texts] == ['0%', '98%', '–', '50%']
  assert [text.get_position() for text in axis.texts] == [(0.5, 0.5), (1.5, 0.5), (0.5, 1.5), (1.5, 1.5)]
  assert [label.get_text() for label in axis.get_yticklabels()] == ['first', 'second']
  assert axis.yaxis_inverted()  # the first row on top
  white = [matplotlib.colors.to_hex(text.get_color()) == '#ffffff' for text in axis.texts]
  assert white == [False, True, False, False]


def test_a_heat_map_about_zero():
  axis = Figure().subplots()
  plots.heat_map(
    axis, np.array([[-0.5, 0.0, 0.5]]), ['x'], list('abc'), limits=(-0.5, 0.5), cmap='RdBu', form='{:+.1f}'.format
  )
  assert [text.get_text() for text in axis.texts] == ['-0.5', '+0.0', '+0.5']
  assert [text.get_color() == 'white' for text in axis.texts] == [True, False, True]
