"""What a run of TRRG shows in its report: studies with what was written and why, what is perceived, what clues do.

Numbers are of the test split where it was judged, else of the validation split; what was not evaluated is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from core.train import report
from core.train.task import Evaluation, Variables
from multimodal.trrg import data, drawing, prediction, sentences, writing
from multimodal.trrg.drawing import NOTICE
from multimodal.trrg.observations import CLUES, OBSERVATIONS, POSITIVE

SPLITS = ('test', 'val')
"""In the order of preference."""

CONVENTIONS = {
  'example': 'per report, then their mean',
  'micro': 'counts of all reports and the 14 labels together',
  'macro': 'per label, mean of the 14',
  'macro_13': 'per label, mean of the 13 without No Finding',
  'five_micro': 'counts of the five labels of the CheXpert papers',
  'five_macro': 'mean of these five',
}
"""Averages of clinical efficacy."""

WRITTEN, REFERENCE, SECOND = '#2f6fb2', '#8a8f98', '#d9702b'


def sections(task: Any, evaluations: Mapping[str, Evaluation], variables: Variables) -> list[report.Section]:
  """The sections of a run's report.

  Args:
    task: `task.Task`.
    evaluations: '<split>/<evaluator>' -> `Evaluation`; what is absent is left out.
    variables: the weights that were judged.
  """
  found: list[report.Section] = []
  if (judged := _judged(evaluations, 'report')) is not None:
    split, written = judged
    found += [studies(task, split, written, variables), efficacy(split, written), language(split, written)]
  if (judged := _judged(evaluations, 'interventions')) is not None:
    found.append(interventions(*judged))
  if task.config.clues.source == 'perceived':
    for name in ('perception', 'zero_shot'):
      if (judged := _judged(evaluations, name)) is not None:
        theta = np.asarray(jax.device_get(variables['clues']['theta'])) if name == 'perception' else np.zeros(14)
        found.append(perceived(*judged, theta))
        break
  return found


def _judged(evaluations: Mapping[str, Evaluation], name: str) -> tuple[str, Evaluation] | None:
  return next(((split, evaluations[f'{split}/{name}']) for split in SPLITS if f'{split}/{name}' in evaluations), None)


# Studies.


def studies(task: Any, split: str, evaluation: Evaluation, variables: Variables) -> report.Section:
  """The study whose report says best what is there, a middling one, the worst: with films, evidence and marks."""
  chosen = chosen_studies(evaluation.arrays['written'], evaluation.arrays['labels'])
  items = [report.Figure(image=sheet.draw()) for sheet in sheets(task, split, evaluation, variables, chosen)]
  told = 'of the reference' if task.config.clues.source == 'labels' else 'perceived'
  text = (
    f'Studies of the split {split}, by the F1 of the observations that their report asserts, among those with a'
    f' finding. Orange in the margins: the clues ({told}). Where each clue looks is the attention of its slot on'
    ' the film, coloured from an even look upwards: a hint, not a proof. Every sentence is marked by how it stands to'
    f' the clues.\n\n{NOTICE}'
  )
  return report.Section('Studies', text, items)


def chosen_studies(written: np.ndarray, labels: np.ndarray) -> list[tuple[str, int]]:
  """('best', row), ('median', ...), ('worst', ...) by F1 over the 13 observations; of studies with a finding if any."""
  said, true = (np.asarray(each)[:, :CLUES] == POSITIVE for each in (written, labels))
  rows = np.flatnonzero(true.any(1)) if true.any() else np.arange(len(true))
  f1 = 2 * (said & true).sum(1) / np.maximum(said.sum(1) + true.sum(1), 1)
  order = rows[np.lexsort((-true.sum(1)[rows], -f1[rows]))]
  places = dict.fromkeys(int(place) for place in np.linspace(0, len(order) - 1, min(3, len(order))).round())
  titles = ('best', 'median', 'worst') if len(places) == 3 else ('best', 'worst')
  return [(title, int(order[place])) for title, place in zip(titles, places)]


def sheets(
  task: Any, split: str, evaluation: Evaluation, variables: Variables, chosen: Sequence[tuple[str, int]]
) -> list[drawing.Sheet]:
  """A sheet of each chosen row of the evaluation."""
  corpus, arrays = task.corpus, evaluation.arrays
  place = {study: i for i, study in enumerate(corpus.columns(split)['id'].tolist())}
  clues = task.judge.clues(variables, split)
  reader = data.StudyReader(corpus, split, clues)
  read = [reader({'study': place[arrays['id'][row]]}) for _, row in chosen]
  maps = prediction.Look(task.reporter)(variables, [np.stack([each[name] for each in read]) for name in writing.FIELDS])
  found = []
  for (title, row), seen in zip(chosen, maps):
    study = str(arrays['id'][row])
    films = corpus.films.views(study, task.config.data.views) if task.config.data.films else []
    above = arrays['margin'][row] - clues.theta
    told = [OBSERVATIONS[k] for k in np.flatnonzero(arrays['chosen'][row])]
    true = [OBSERVATIONS[k] for k in np.flatnonzero(arrays['labels'][row, :CLUES] == POSITIVE)]
    found.append(
      drawing.Sheet(
        title=f'{study} ({title})',
        about=f'clues: {", ".join(told) or "none"}; the reference asserts: {", ".join(true) or "nothing"}',
        films=films,
        evidence={OBSERVATIONS[k]: each for k, each in seen.items()},
        margins=dict(zip(OBSERVATIONS, above.tolist())) if task.config.clues.source == 'perceived' else {},
        clues=told,
        sentences=prediction.marked_sentences(str(arrays['text'][row]), arrays['chosen'][row], corpus.labeller),
        reference=[prediction.readable(part) for part in sentences.split(str(arrays['reference'][row]), tokens=1)],
      )
    )
  return found


# What was written.


def efficacy(split: str, evaluation: Evaluation) -> report.Section:
  """Clinical efficacy in every convention, truthfulness, and what share of reports asserts each observation."""
  scalars = evaluation.scalars
  rows = [
    [name, *(scalars.get(f'ce/{name}/{rate}') for rate in ('precision', 'recall', 'f1')), meaning]
    for name, meaning in CONVENTIONS.items()
  ]
  truth = {
    'faithfulness': 'share of the clues that the report asserts',
    'contradiction': 'share of the clues that it denies',
    'hallucination': 'share of what reports assert that is neither a clue nor in the reference',
    'hallucinations_per_report': 'their number per report',
  }
  items = [
    report.Table(['average', 'precision', 'recall', 'F1', ''], rows),
    report.Table(
      ['truthfulness', '', ''], [[name, scalars.get(f'truth/{name}'), meaning] for name, meaning in truth.items()]
    ),
    report.Figure(
      figure=shares(evaluation),
      caption='Left: in how many reports an observation is asserted. Right: F1 of each; nothing is drawn for 0.',
    ),
  ]
  text = (
    f'Do written and reference report assert the same observations? Split {split}, {len(evaluation.arrays["text"])}'
    ' reports, labelled by the same labeller. Only "positive" counts. Published numbers use different averages and'
    ' seldom say which.'
  )
  return report.Section('Clinical efficacy', text, items)


def shares(evaluation: Evaluation) -> Figure:
  """Per observation the share of reports that assert it, written and reference, and F1."""
  written, labels = (np.asarray(evaluation.arrays[name]) == POSITIVE for name in ('written', 'labels'))
  f1 = [evaluation.scalars.get(f'ce/class/{name}/f1', 0.0) for name in OBSERVATIONS]
  with matplotlib.rc_context(report.STYLE):
    figure = Figure(figsize=(9.6, 4.2), layout='constrained')
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    y = np.arange(len(OBSERVATIONS))
    left.barh(y - 0.19, 100 * labels.mean(0), 0.36, color=REFERENCE, label='reference')
    left.barh(y + 0.19, 100 * written.mean(0), 0.36, color=WRITTEN, label='written')
    left.set(xlabel='percent of reports', title='asserted')
    left.set_yticks(y, OBSERVATIONS)
    left.invert_yaxis()
    left.legend(loc='lower right', bbox_to_anchor=(1, 1), ncols=2)
    right.barh(y, f1, 0.6, color=SECOND)
    right.set(xlabel='F1', title='agreement', xlim=(0, 1))
    for axis in (left, right):
      axis.grid(axis='y', visible=False)
  return figure


def language(split: str, evaluation: Evaluation) -> report.Section:
  """Language metrics by protocol of the references."""
  keys = [key.split('/') for key in evaluation.scalars if key.count('/') == 1]
  protocols = list(dict.fromkeys(a for a, b in keys if b == 'bleu_4'))
  metrics = list(dict.fromkeys(b for a, b in keys if a in protocols))
  rows = [[name, *(evaluation.scalars.get(f'{name}/{metric}') for metric in metrics)] for name in protocols]
  count, distinct = len(evaluation.arrays['text']), int(evaluation.scalars['distinct'])
  text = (
    f'{distinct} of {count} written reports differ from each other; they have'
    f' {evaluation.scalars["tokens"]:.1f} words and stops on average. These metrics reward the wording of normal'
    ' reports: a model that writes one and the same normal report can have a good BLEU and find no disease.'
  )
  return report.Section('Language', text, [report.Table(['references', *metrics], rows)])


# What clues do.


def interventions(split: str, evaluation: Evaluation) -> report.Section:
  """The same films with other clues."""
  names = ('macro_f1', 'micro_f1', 'faithfulness', 'bleu_4', 'distinct')
  found = [source for source in data.SOURCES if f'{source}/macro_f1' in evaluation.scalars]
  rows = [[source, *(evaluation.scalars.get(f'{source}/{name}') for name in names)] for source in found]
  text = (
    f'Split {split}; the films stay, the clues change: perceived, none, those of the study before, those of the'
    ' reference. If clues cause what is written, wrong ones must cost F1 and true ones must gain it; BLEU hardly sees'
    ' the difference.'
  )
  shown = {'macro_f1': 'macro F1 (13)', 'micro_f1': 'micro F1', 'faithfulness': 'faithfulness', 'bleu_4': 'BLEU-4'}
  with matplotlib.rc_context(report.STYLE):
    figure = Figure(figsize=(8.2, 3.0), layout='constrained')
    axis = figure.subplots()
    for i, (name, label) in enumerate(shown.items()):
      values = np.array([evaluation.scalars.get(f'{source}/{name}', np.nan) for source in found])
      bars = axis.bar(np.arange(len(found)) + 0.2 * (i - 1.5), np.nan_to_num(values), 0.18, label=label)
      shares = ['–' if np.isnan(value) else f'{value:.2f}' for value in values]
      axis.bar_label(bars, shares, fontsize=7, padding=1)
    axis.set_xticks(np.arange(len(found)), [f'clues: {source}' for source in found])
    axis.grid(axis='x', visible=False)
    axis.legend(loc='center left', bbox_to_anchor=(1, 0.5))
  table = report.Table(['clues', *names], rows, 'Faithfulness: share of the clues given that the report asserts.')
  return report.Section('Interventions on the clues', text, [report.Figure(figure=figure), table])


# What is perceived.


def perceived(split: str, evaluation: Evaluation, theta: np.ndarray) -> report.Section:
  """Zero-shot AUROC and the margins beside their thresholds."""
  scalars, labels = evaluation.scalars, evaluation.arrays['labels'] == POSITIVE
  known = {name: scalars[f'auroc/{name}'] for name in OBSERVATIONS if f'auroc/{name}' in scalars}
  text = (
    'No classifier was trained: a film is compared with sentences that assert and that deny each observation.'
    f' Split {split}, {len(labels)} studies; macro AUROC {scalars["auroc"]:.3f} over the {len(known)} that occur.'
    f' The clues above the thresholds: {scalars["clues"]:.2f} per study, macro F1 {scalars["clue/f1"]:.3f} (precision'
    f' {scalars["clue/precision"]:.3f}, recall {scalars["clue/recall"]:.3f}), micro F1 {scalars["clue/micro_f1"]:.3f}.'
  )
  items = [
    report.Figure(figure=auroc_bars(known, labels.sum(0)), caption='In brackets: studies with the observation.'),
    report.Figure(
      figure=margin_histograms(evaluation.arrays['margin'], labels, theta),
      caption='Margins of studies with (orange) and without (grey) the observation, each to its own height; to the'
      ' right of the line, its threshold, it is a clue.',
    ),
  ]
  return report.Section('Zero-shot perception', text, items)


def auroc_bars(known: Mapping[str, float], counts: np.ndarray) -> Figure:
  """AUROC of each observation beside chance."""
  with matplotlib.rc_context(report.STYLE):
    figure = Figure(figsize=(7.6, 0.26 * max(len(known), 1) + 0.7), layout='constrained')
    axis = figure.subplots()
    number = dict(zip(OBSERVATIONS, counts))
    bars = axis.barh([f'{name} ({number[name]})' for name in known], list(known.values()), 0.7, color=WRITTEN)
    axis.bar_label(bars, [f'{value:.2f}' for value in known.values()], padding=3, fontsize=8)
    axis.axvline(0.5, color='#888888', linestyle='--', linewidth=1)
    axis.set(xlim=(0, 1.06), xlabel='AUROC (dashed: chance)')
    axis.grid(axis='y', visible=False)
    axis.invert_yaxis()
  return figure


def margin_histograms(margins: np.ndarray, labels: np.ndarray, theta: np.ndarray) -> Figure:
  """A small histogram per observation."""
  with matplotlib.rc_context({**report.STYLE, 'axes.titlesize': 8, 'font.size': 7.5}):
    figure = Figure(figsize=(10.2, 3.6), layout='constrained')
    for k, axis in enumerate(figure.subplots(2, 7).ravel()):
      values = margins[:, k]
      bins = np.linspace(min(values.min(), theta[k]) - 1e-3, max(values.max(), theta[k]) + 1e-3, 25)
      for which, color in ((~labels[:, k], REFERENCE), (labels[:, k], SECOND)):
        if which.any():
          heights, _ = np.histogram(values[which], bins)
          axis.stairs(heights / heights.max(), bins, fill=True, color=color, alpha=0.55)
      axis.axvline(theta[k], color='#b3261e', linewidth=1.2)
      axis.set(yticks=[], title=OBSERVATIONS[k].replace('Enlarged ', 'Enl. '))
      axis.grid(False)
  return figure
