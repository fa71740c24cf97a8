"""Learning curves: a run's history (`history.jsonl`, `TrainResult.history`) as matplotlib figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np

from core.train.report_html import STYLE

KEYS = ('step', 'stage', 'kind', 'stage_step')
WIDTH, HEIGHT = 10.0, 2.2
"""Inches of a figure's width and of a row's height."""

FEW = 30
"""Up to so many points a curve shows each of them."""

Row = Mapping[str, Any]
Curve = tuple[list[int], list[float]]
"""(steps, values)."""


def learning(
  history: Sequence[Row], entries: Mapping[str, Sequence[str]], best_step: int | None = None
) -> list[tuple[matplotlib.figure.Figure, str]]:
  """(figure, caption) of the training rows: the loss, the other scalars, and one figure per vector metric.

  Args:
    history: rows of a run.
    entries: names of the entries of vector metrics, by metric; numbered where a metric is not in it.
    best_step: marked by a dashed line.
  """
  rows = [row for row in history if row['kind'] == 'train']
  series = _series(rows)
  vectors = _vectors(series)
  within = {name for names in vectors.values() for name in names}
  figures = []
  if 'loss' in series:
    figures.append((_lines({'loss': series.pop('loss')}, 'loss', history, best_step), 'Training loss.'))
  rest = {name: curve for name, curve in series.items() if name not in within}
  if rest:
    figures.append((_multiples(rest, best_step), 'The other numbers of the training steps, means between log points.'))
  for metric, names in vectors.items():
    known = entries.get(metric, ())
    labels = known if len(known) == len(names) else [name.rpartition('_')[2] for name in names]
    curves = {str(label): series[name] for label, name in zip(labels, names)}
    figures.append((_lines(curves, metric, history, best_step), f'{metric}: one curve per entry.'))
  return figures


def evaluations(history: Sequence[Row], best_step: int | None = None) -> list[tuple[matplotlib.figure.Figure, str]]:
  """(figure, caption) per '<split>/<evaluator>' that was run more than once: its scalars over the steps."""
  series = _series([row for row in history if row['kind'] == 'eval'])
  groups: dict[str, dict[str, Curve]] = {}
  for name, curve in series.items():
    split, evaluator, scalar = name.split('/', 2)
    groups.setdefault(f'{split}/{evaluator}', {})[scalar] = curve
  several = {group: curves for group, curves in groups.items() if any(len(steps) > 1 for steps, _ in curves.values())}
  return [(_multiples(curves, best_step), f'{group} over the steps.') for group, curves in several.items()]


def folds(rows: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> matplotlib.figure.Figure:
  """One dot per fold and its mean as a line, for each named scalar."""
  with matplotlib.rc_context(STYLE):
    columns = min(len(names), 4)
    count = -(-len(names) // columns)
    figure = matplotlib.figure.Figure(figsize=(WIDTH, HEIGHT * count), layout='constrained')
    for index, name in enumerate(names):
      axes = figure.add_subplot(count, columns, index + 1)
      values = [float(scalars.get(name, np.nan)) for scalars in rows.values()]
      axes.plot(range(len(values)), values, 'o', markersize=5)
      if np.isfinite(values).any():
        axes.axhline(float(np.nanmean(values)), linewidth=1, color='#888888')
      axes.set_xticks(range(len(values)), list(rows), rotation=30, ha='right', fontsize=7)
      axes.set_xlim(-0.5, len(values) - 0.5)
      axes.set_title(name, fontsize=8)
  return figure


def _series(rows: Sequence[Row]) -> dict[str, Curve]:
  """{name: (steps, values)}, names in the order in which they appear."""
  series: dict[str, Curve] = {}
  for row in rows:
    for name, value in row.items():
      if name not in KEYS:
        steps, values = series.setdefault(name, ([], []))
        steps.append(row['step'])
        values.append(float(value))
  return series


def _vectors(series: Mapping[str, Curve]) -> dict[str, list[str]]:
  """{'risk': ['risk_0', 'risk_1', ...]}: names that count from 0 without a gap, at least two."""
  found: dict[str, list[str]] = {}
  for name in series:
    if match := re.fullmatch(r'(.+)_0', name):
      names = [name]
      while f'{match[1]}_{len(names)}' in series:
        names.append(f'{match[1]}_{len(names)}')
      if len(names) > 1:
        found[match[1]] = names
  return found


def _lines(
  curves: Mapping[str, Curve], title: str, history: Sequence[Row], best_step: int | None
) -> matplotlib.figure.Figure:
  """All curves in one wide plot, with the borders of stages."""
  with matplotlib.rc_context(STYLE):
    figure = matplotlib.figure.Figure(figsize=(WIDTH, 1.5 * HEIGHT), layout='constrained')
    axes = figure.add_subplot()
    for label, curve in curves.items():
      _draw(axes, curve, label)
    if len(curves) > 1:
      axes.legend(loc='center left', bbox_to_anchor=(1.0, 0.5))
    _mark(axes, best_step)
    for step, name in _stage_ends(history):
      axes.axvline(step, linewidth=0.8, color='#888888')
      axes.annotate(f'{name} ', (step, 1.0), xycoords=('data', 'axes fraction'), fontsize=7, ha='right', va='top')
    axes.set_title(title)
    axes.set_xlabel('step')
  return figure


def _multiples(curves: Mapping[str, Curve], best_step: int | None) -> matplotlib.figure.Figure:
  """Each curve in a small plot of its own; a smaller one where there are many."""
  columns, height = (3, HEIGHT) if len(curves) <= 9 else (5, 0.75 * HEIGHT)
  count = -(-len(curves) // columns)
  with matplotlib.rc_context({**STYLE, 'font.size': 9 if columns == 3 else 7}):
    figure = matplotlib.figure.Figure(figsize=(WIDTH, height * count), layout='constrained')
    for index, (name, curve) in enumerate(curves.items()):
      axes = figure.add_subplot(count, columns, index + 1)
      _draw(axes, curve, name)
      _mark(axes, best_step)
      axes.set_title(name)
  return figure


def _draw(axes: Any, curve: Curve, label: str) -> None:
  steps, values = np.asarray(curve[0]), np.asarray(curve[1])
  axes.plot(steps, values, marker='.' if len(steps) <= FEW else None, label=label)
  shown = values[np.isfinite(values)]
  if shown.size and shown.min() > 0 and shown.max() > 300 * shown.min():
    axes.set_yscale('log')


def _mark(axes: Any, best_step: int | None) -> None:
  if best_step is not None:
    axes.axvline(best_step, linewidth=0.9, linestyle='--', color='#888888')


def _stage_ends(history: Sequence[Row]) -> list[tuple[int, str]]:
  """(last step, name) of every stage, where there are several."""
  last: dict[str, int] = {}
  for row in history:
    last[row['stage']] = row['step']
  return [(step, name) for name, step in last.items()] if len(last) > 1 else []
