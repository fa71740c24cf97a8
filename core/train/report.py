"""report.html: what a run leaves for reading. One self-contained page, with no request to anywhere.

A system describes what it wants shown with `Section`, `Figure` and `Table`; curves of the run's history, the table of
its evaluations, config and platform are the same for every system and are added here.
"""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.figure
import numpy as np

from core.config import flatten
from core.train import curves
from core.train import report_html as html

STYLE = html.STYLE


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


@dataclasses.dataclass(frozen=True)
class Link:
  """A table cell that leads somewhere, relative to the page."""

  text: str
  target: str

  def __str__(self) -> str:
    return self.text


def write(
  path: str | pathlib.Path,
  *,
  title: str,
  summary: Mapping[str, Any],
  history: Sequence[Mapping[str, Any]] = (),
  sections: Sequence[Section] = (),
  evaluations: Mapping[str, Mapping[str, float]] | None = None,
  entries: Mapping[str, Sequence[str]] | None = None,
  best_step: int | None = None,
  command: str = '',
  config: Mapping[str, Any] | None = None,
  unread: Sequence[str] = (),
  platform: Mapping[str, Any] | None = None,
) -> pathlib.Path:
  """Writes the page of one run.

  Args:
    path: report.html.
    title: heading.
    summary: names and values at the top of the page.
    history: rows of the run (`core.train.loop.TrainResult.history`), drawn as curves.
    sections: of the system, first on the page.
    evaluations: '<split>/<evaluator>' -> scalars of the chosen checkpoint.
    entries: names of the entries of vector metrics (`core.train.task.Task.entries`).
    best_step: the chosen checkpoint's step, marked in the curves.
    command: what made the run.
    config: a ConfigDict or plain data.
    unread: dotted config keys that the run never read.
    platform: `core.train.backend.summary()`.

  Returns:
    The path.
  """
  parts = [(section.title, _section(section)) for section in sections]
  if curves_of := curves.learning(history, entries or {}, best_step):
    parts.append(('Learning curves', _figures(curves_of)))
  if judged := curves.evaluations(history, best_step):
    parts.append(('Evaluations during training', _figures(judged)))
  if evaluations:
    every = evaluation_table(evaluations)
    folded = f'<details><summary>{len(every.rows)} scalars of the chosen checkpoint</summary>{_table(every)}</details>'
    parts.append(('All numbers', folded))
  parts += _provenance(config, unread, platform)
  return _save(path, html.page(title, _head(summary, command), parts))


def write_overview(
  path: str | pathlib.Path,
  *,
  title: str,
  summary: Mapping[str, Any],
  folds: Mapping[str, Mapping[str, float]],
  headline: Sequence[str] = (),
  command: str = '',
  config: Mapping[str, Any] | None = None,
  unread: Sequence[str] = (),
  platform: Mapping[str, Any] | None = None,
) -> pathlib.Path:
  """Writes the page of an experiment of several folds, each of which has its own page in the folder of its name.

  Args:
    path: report.html in the parent folder.
    title: heading.
    summary: names and values at the top of the page.
    folds: fold -> '<split>/<evaluator>/<name>' -> scalar of its chosen checkpoint.
    headline: the scalars to show at once; the others are folded away.
    command: what made the experiment.
    config: of the experiment, as for `write`.
    unread: as for `write`.
    platform: as for `write`.
  """
  table, every = fold_table(folds, headline), fold_table(folds, ())
  for row, name in zip(table.rows, folds):
    row[0] = Link(name, f'{name}/report.html')
  shown = _table(table, total=True) + html.plot(curves.folds(folds, table.header[1:]))
  rest = f'<details><summary>All {len(every.header) - 1} scalars</summary>{_table(transposed(every))}</details>'
  parts = [('Folds', shown + rest), *_provenance(config, unread, platform)]
  return _save(path, html.page(title, _head(summary, command), parts))


def fold_table(folds: Mapping[str, Mapping[str, float]], names: Sequence[str] = ()) -> Table:
  """Folds x scalars, the last row their mean over the folds that have the scalar; also for printing.

  Args:
    folds: fold -> name -> scalar.
    names: the scalars to show, those that no fold has left out; () shows all.
  """
  known = dict.fromkeys(name for scalars in folds.values() for name in scalars)
  names = [name for name in names if name in known] or list(known)
  rows = [[fold, *(scalars.get(name) for name in names)] for fold, scalars in folds.items()]
  values = [[float(scalars[name]) for scalars in folds.values() if name in scalars] for name in names]
  return Table(['fold', *names], [*rows, ['mean', *(sum(each) / len(each) for each in values)]])


def transposed(table: Table) -> Table:
  """Rows for columns: for tables with many columns."""
  columns = list(zip(*table.rows))
  return Table(['', *columns[0]], [[name, *cells] for name, cells in zip(table.header[1:], columns[1:])], table.caption)


def evaluation_table(evaluations: Mapping[str, Mapping[str, float]]) -> Table:
  """Scalars x evaluations; also for printing."""
  names = list(dict.fromkeys(name for scalars in evaluations.values() for name in scalars))
  return Table(['', *evaluations], [[name, *(each.get(name) for each in evaluations.values())] for name in names])


def _head(summary: Mapping[str, Any], command: str) -> str:
  date = datetime.datetime.now().astimezone().strftime('%Y-%m-%d %H:%M %Z')
  shown = f'<pre>{html.escape(command)}</pre>' if command else ''
  return f'<p class="soft">{html.escape(date)}</p>\n{shown}\n{html.cards(list(summary.items()))}'


def _provenance(config, unread, platform) -> list[tuple[str, str]]:
  """The parts that say where the numbers come from."""
  parts = []
  if config is not None:
    leaves = flatten(config)
    rows = [[f'<code>{html.escape(key)}</code>', html.escape(repr(value))] for key, value in leaves.items()]
    classes = ['unread' if key in unread else '' for key in leaves]
    table = html.table(['key', 'value'], rows, [False, False], classes=classes)
    note = f'<p class="note">Never read by this run: {html.escape(", ".join(unread))}.</p>' if unread else ''
    parts.append(('Config', f'{note}<details><summary>{len(leaves)} keys</summary>{table}</details>'))
  if platform:
    cells = [[html.escape(name), html.escape(html.value_text(value))] for name, value in platform.items()]
    parts.append(('Platform', html.table(['', ''], cells, [False, False])))
  return parts


def _section(section: Section) -> str:
  paragraphs = ''.join(f'<p>{html.escape(text.strip())}</p>' for text in section.text.split('\n\n') if text.strip())
  return paragraphs + '\n'.join(_table(item) if isinstance(item, Table) else _figure(item) for item in section.items)


def _figures(drawn: Sequence[tuple[matplotlib.figure.Figure, str]]) -> str:
  return ''.join(_figure(Figure(figure, caption=caption)) for figure, caption in drawn)


def _figure(item: Figure) -> str:
  image = html.plot(item.figure) if item.figure is not None else html.picture(item.image)
  caption = f'<figcaption>{html.escape(item.caption)}</figcaption>' if item.caption else ''
  return f'<figure>{image}{caption}</figure>'


def _table(item: Table, *, total: bool = False) -> str:
  """`total`: the last row sums the others up."""
  columns = list(zip(*item.rows)) or [()] * len(item.header)
  numeric = [any(map(html.is_number, cells)) for cells in columns]
  rows = [[_cell(value) for value in row] for row in item.rows]
  classes = [''] * (len(rows) - 1) + ['total'] if total and rows else ()
  return html.table(item.header, rows, numeric, item.caption, classes)


def _cell(value: Any) -> str:
  text = html.escape(html.value_text(value))
  return f'<a href="{html.escape(value.target)}">{text}</a>' if isinstance(value, Link) else text


def _save(path: str | pathlib.Path, text: str) -> pathlib.Path:
  """In one rename: a reader never finds half a page."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  half = path.with_suffix('.tmp')
  half.write_text(text, encoding='utf-8')
  half.replace(path)
  return path
