"""From a user's films to a report and what it rests on: clues with their margins, and where each of them looks.

Everything comes from the checkpoint, tokenizers included: the data of the run may lie on another machine.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from core.data import image
from core.errors import UserError, nearest
from core.train import forward, report
from core.train import task as contract
from multimodal.trrg import data, drawing, labeller, model, perception, sentences, truthfulness, writing
from multimodal.trrg.datasets import films as films_lib
from multimodal.trrg.drawing import NOTICE
from multimodal.trrg.observations import CLUES, NAMES, OBSERVATIONS

KNOWN = {name.lower(): k for k, name in enumerate(OBSERVATIONS[:CLUES])} | {name: k for k, name in enumerate(NAMES)}
"""What a clue may be called by hand -> its number."""


class FilmPredictor(contract.Predictor):
  """Reports of studies; `finish` draws a sheet of each and writes them on a page.

  A row per study: report; clues [observations]; margins {observation: margin minus threshold}, above 0 iff perception
  takes it for a clue; probabilities {observation: sigmoid of the margin}, which saturate and are not calibrated;
  sentences [{text, status, observations}] (`truthfulness.support`); views [paths]; given, whether the clues came from
  `config.predict.clues` and not from perception; notice.
  """

  suffixes = image.SUFFIXES
  shown = ('report', 'clues', 'given')

  def __init__(self, task: Any, variables: contract.Variables, metadata: Mapping[str, Any]):
    """Args: task: `task.Task`; variables, metadata: of a checkpoint.

    Raises:
      UserError: the run sees no films, writes no reports, or its checkpoint does not hold its tokenizers.
    """
    config = self.config = task.config
    _check(config, metadata)
    tokenizers = data.Tokenizers.from_plain(metadata['tokenizers'])
    self.reporter, self.variables = task.reporter_of(tokenizers), variables
    self.given = given_clues(config.predict.clues, config.model.clues.limit)
    self._write = writing.Writer(self.reporter, tokenizers, config.decoding)
    self._see, self._look = jax.jit(self.reporter.margins), Look(self.reporter)
    self._label = labeller.open(config.data.labeller, tokenizer=config.data.labeller_tokenizer)
    self._names: dict[pathlib.Path, str] = {}
    self._sheets: dict[str, drawing.Sheet] = {}

  def cases(
    self, files: Sequence[pathlib.Path], folder: pathlib.Path | None = None
  ) -> Sequence[tuple[pathlib.Path, ...]]:
    """Files named together are the films of one study; in a folder each sub-folder is a study, and so is each file
    that lies directly in it."""
    groups: dict[Any, list[pathlib.Path]] = {}
    for path in files:
      groups.setdefault(None if folder is None else path if path.parent == folder else path.parent, []).append(path)
    for key, paths in groups.items():
      self._names[paths[0]] = key.name if key is not None and key != paths[0] else paths[0].stem
    return [tuple(paths) for paths in groups.values()]

  def __call__(self, *paths: pathlib.Path) -> list[dict[str, Any]]:
    """The row of one study.

    Raises:
      UserError: too many films, or one that cannot be read or is no chest film.
    """
    limit = self.config.data.views
    if len(paths) > limit:
      raise UserError(
        f'{len(paths)} films were given for one study, and this run reads at most {limit} per study'
        ' (config.data.views). Name the films of one study alone; for several studies give their folder, with a'
        ' sub-folder for each study of several films.'
      )
    films = [films_lib.read_film(path) for path in paths]
    fitted, mask = data.stacked([films_lib.fit(film, self.config.data.image_size) for film in films], limit)
    margins = np.asarray(forward.in_batches(self._see, self.variables, (fitted[None], mask[None]), 1))
    clues = self._clues(margins)
    ids = perception.ordered(clues.chosen, clues.margins, clues.theta, self.config.model.clues.limit)
    arrays = (fitted[None], mask[None], clues.margins.astype(np.float32), ids)
    text = self._write(self.variables, arrays)[0]
    row = self._row(paths, text, margins[0], clues)
    self._sheets[str(paths[0])] = drawing.Sheet(
      title=self._names.get(paths[0], paths[0].stem),
      about=self._about(paths, clues),
      films=films,
      evidence={OBSERVATIONS[k]: maps for k, maps in self._look(self.variables, arrays)[0].items()},
      margins=row['margins'],
      clues=row['clues'],
      sentences=row['sentences'],
    )
    return [row]

  def finish(self, rows: list[dict[str, Any]], output: pathlib.Path) -> list[pathlib.Path]:
    """Writes <study>_report.png for each study, and reports.html with all of them."""
    served, written = [row for row in rows if 'error' not in row], []
    sheets = [self._sheets[str(row['file'])] for row in served]
    for sheet, stem in zip(sheets, _distinct([sheet.title for sheet in sheets])):
      written.append(output / f'{stem}_report.png')
      image.write_png(written[-1], sheet.draw())
    failed = [[row['file'], row['error']] for row in rows if 'error' in row]
    sections = [report.Section('Notice', NOTICE), *(_section(sheet, row) for sheet, row in zip(sheets, served))]
    if failed:
      sections.append(report.Section('Not served', '', [report.Table(['file', 'reason'], failed)]))
    summary = {'studies': len(served), 'not served': len(failed)}
    written.append(
      report.write(output / 'reports.html', title='Reports of chest films', summary=summary, sections=sections)
    )
    return written

  def _clues(self, margins: np.ndarray) -> data.Clues:
    """What is perceived, or what was given by hand."""
    theta = np.asarray(jax.device_get(self.variables['clues']['theta']))
    found = data.Clues(margins, perception.select(margins, theta, self.config.model.clues.limit), theta)
    return found if self.given is None else found.given(self.given[None])

  def _row(self, paths: Sequence[pathlib.Path], text: str, margins: np.ndarray, clues: data.Clues) -> dict[str, Any]:
    marked = marked_sentences(text, clues.chosen[0], self._label)
    above = margins - clues.theta
    return {
      'report': ' '.join(sentence['text'] for sentence in marked),
      'clues': [OBSERVATIONS[k] for k in np.flatnonzero(clues.chosen[0])],
      'given': self.given is not None,
      'margins': {name: round(float(value), 4) for name, value in zip(OBSERVATIONS, above)},
      'probabilities': {name: round(float(value), 4) for name, value in zip(OBSERVATIONS, _sigmoid(margins))},
      'sentences': marked,
      'views': [str(path) for path in paths],
      'notice': NOTICE,
    }

  def _about(self, paths: Sequence[pathlib.Path], clues: data.Clues) -> str:
    names = ', '.join(OBSERVATIONS[k] for k in np.flatnonzero(clues.chosen[0])) or 'none'
    how = 'given by hand' if self.given is not None else 'perceived'
    return f'{", ".join(path.name for path in paths)}; clues ({how}): {names}'


class Look:
  """Where each clue looks: the evidence of the interaction's last layer as maps over the films."""

  def __init__(self, reporter: model.Reporter):
    self._reporter = reporter
    self._evidence = jax.jit(
      lambda variables, *arrays: reporter.prompt(variables, dict(zip(writing.FIELDS, arrays)), evidence=True).evidence
    )

  def __call__(self, variables: contract.Variables, arrays: Sequence[np.ndarray]) -> list[dict[int, np.ndarray]]:
    """Maps of every study.

    Args:
      variables: of the reporter.
      arrays: `writing.FIELDS`, stacked.

    Returns:
      Per study {clue: f32 [M, h, w]}, attention times the number of places, 1 where the look is even; M is 1 where the
      views are averaged, else their number. {} where film and clues do not meet, or nothing is seen.
    """
    ids, layout = arrays[3], self._reporter.vision.layout
    seen = None
    if not self._reporter.vision.blind:
      seen = forward.in_batches(self._evidence, variables, arrays, len(ids))
    if seen is None:
      return [{} for _ in ids]
    places = layout.prefix + int(np.prod(layout.grid))
    maps = seen.reshape(*ids.shape, -1, places)[..., layout.prefix :].reshape(*ids.shape, -1, *layout.grid)
    filled = places * (arrays[1].sum(1) if maps.shape[2] > 1 else np.ones(len(ids)))
    return [
      {int(k): count * each for k, each in zip(row, study) if k >= 0} for row, study, count in zip(ids, maps, filled)
    ]


def given_clues(words: str, limit: int) -> np.ndarray | None:
  """The clues that `config.predict.clues` names: bool [13], or None for 'auto'."""
  if words == 'auto':
    return None
  chosen = np.zeros(CLUES, bool)
  for name in [] if words == 'none' else [part.strip().lower() for part in words.split(',')]:
    if name not in KNOWN:
      known = list(KNOWN)
      raise UserError(
        f"config.predict.clues: there is no observation '{name}'; expected 'auto', 'none', or names divided by commas"
        f' of {", ".join(known[:CLUES])}.{nearest(name, known)}'
      )
    chosen[KNOWN[name]] = True
  if chosen.sum() > limit:
    raise UserError(
      f'config.predict.clues names {chosen.sum()} clues, this run takes at most {limit} (model.clues.limit).'
    )
  return chosen


def marked_sentences(text: str, clues: np.ndarray, label: labeller.Labeller) -> list[dict[str, Any]]:
  """The sentences of a written report, for people to read, each with how it stands to the clues bool [13]."""
  parts = sentences.split(text, tokens=1)
  return [
    {'text': readable(part), 'status': status, 'observations': [OBSERVATIONS[k] for k in which]}
    for part, (status, which) in zip(parts, truthfulness.support(parts, clues, label))
  ]


def readable(sentence: str) -> str:
  """A sentence of a cleaned report with a capital and a period."""
  return f'{sentence[:1].upper()}{sentence[1:]}.'.replace(' ,', ',')


def _section(sheet: drawing.Sheet, row: Mapping[str, Any]) -> report.Section:
  caption = 'Where each clue looks: the colour begins at an even look. Attention is a hint, not a proof.'
  items = [
    report.Figure(image=sheet.strip(), caption=caption if sheet.evidence else ''),
    drawing.sentence_table(row['sentences']),
    report.Figure(figure=drawing.margin_bars(row['margins'], row['clues'])),
  ]
  return report.Section(sheet.title, f'{sheet.about}\n\n{NOTICE}', items)


def _check(config: Any, metadata: Mapping[str, Any]) -> None:
  """Finds runs that cannot serve films."""
  if not config.data.films or config.model.vision.encoder == 'none':
    raise UserError(
      'This run was trained on reports alone (config.data.films, config.model.vision.encoder): it sees no films.'
      " Predict with a run of the preset 'embedded', 'iu_xray' or 'mimic_cxr'."
    )
  if not config.report.steps:
    raise UserError('This run was trained for perception alone (config.report.steps is 0): it writes no reports.')
  if config.clues.source == 'labels' and config.predict.clues == 'auto':
    raise UserError(
      "This run learned with the clues of the references (config.clues.source is 'labels') and has no thresholds to"
      " perceive its own by: give them, --set=predict.clues='edema,pleural effusion' or --set=predict.clues=none."
    )
  if 'tokenizers' not in metadata:
    raise UserError(
      'The checkpoint does not hold its tokenizers: no evaluator ever ran on it. The stage "report" ends with one:'
      ' let the run reach its end, or start launch.train again with the same workdir.'
    )


def _sigmoid(x: np.ndarray) -> np.ndarray:
  return 0.5 * (1 + np.tanh(0.5 * x))


def _distinct(names: Sequence[str]) -> list[str]:
  """Names with a number added to those that came before."""
  found: list[str] = []
  for name in names:
    new, number = name, 2
    while new in found:
      new, number = f'{name}_{number}', number + 1
    found.append(new)
  return found
