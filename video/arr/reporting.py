"""What a run of ARR shows in its report: beside n-grams, along a few videos, what it has learned to follow what, where
it looks, and where it is surely wrong.

Everything is of the validation split, from what the evaluator 'anticipation' keeps, and for the attention maps from the
network itself. An action has one colour within a figure.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from core.data import pipeline
from core.data.drawing import shorten
from core.metrics import classification
from core.train import forward, plots, report
from core.train.task import Evaluation, Variables
from video.arr import drawing, ngram, tracks
from video.arr.annotations.tables import Vocabulary

ANTICIPATION, STATISTICS = 'val/anticipation', 'val/statistics'

VIDEOS, TARGETS, LENGTHS = 3, 14, 40
"""Videos with a timeline; the most segments to be anticipated along each; the most seconds, in median segments: names
have to fit into boxes."""

ACTIONS = 12
"""Rows and columns of the next-action table: the most frequent actions."""

LOOKED_AT = 32
"""Samples that attention maps are averaged over (our choice; pixels have to be encoded for them)."""

WORST = 12
"""Rows of the table of confident errors."""

MEASURES = ('class_mean_recall_at_5', 'top_5', 'top_1', 'class_mean_top_1')

RIGHT, NEAR, WRONG = ('✓', '#1b7f4d'), ('5', '#9a6a00'), ('✗', '#b3261e')
"""Mark and colour of an expectation: the first is right; one of the first five is; none is."""


@dataclasses.dataclass(frozen=True)
class Judged:
  """The arrays of the evaluator 'anticipation' with names; N targets, C actions, T clips.

  Attributes:
    names: of the C actions and of "unknown".
    scores: f32 [N, C].
    target: int32 [N].
    best: int64 [N, 5], ranked.
    uid, video, start: [N] each.
    history, recognised: int32 [N, T] in [0, C], true and recognised actions of the clips.
    rows: int64 [N], places of the targets in the table of all segments.
    last: int32 [N], the last action that had started when each target was to be anticipated, -1 for none (`ngram`).
  """

  names: tuple[str, ...]
  scores: np.ndarray
  target: np.ndarray
  best: np.ndarray
  uid: np.ndarray
  video: np.ndarray
  start: np.ndarray
  history: np.ndarray
  recognised: np.ndarray
  rows: np.ndarray
  last: np.ndarray

  @classmethod
  def of(cls, task: Any, evaluation: Evaluation) -> Judged:
    """Reads an evaluation; looks its targets up among the annotations."""
    segments = task.fold.annotations.segments
    place = {uid: i for i, uid in enumerate(segments['uid'].tolist())}
    fields = ('scores', 'target', 'uid', 'video', 'start', 'history', 'recognised')
    arrays = {name: evaluation.arrays[name] for name in fields}
    rows = np.array([place[uid] for uid in arrays['uid'].tolist()])
    names = (*Vocabulary.from_plain(evaluation.metadata['vocabulary']).actions, drawing.UNKNOWN)
    last = ngram.histories(segments, task.fold.grid.anticipation)[rows, 0]
    return cls(names, best=classification.ranked(arrays['scores'], 5), rows=rows, last=last, **arrays)

  @property
  def top(self) -> np.ndarray:
    """f32 [N]: probability of the action that is expected first."""
    return self.scores[np.arange(len(self.target)), self.best[:, 0]]

  def marks(self) -> np.ndarray:
    """int [N]: 0 right, 1 among the first five, 2 wrong."""
    return np.where(self.best[:, 0] == self.target, 0, np.where((self.best == self.target[:, None]).any(1), 1, 2))


def sections(task: Any, evaluations: Mapping[str, Evaluation], variables: Variables) -> list[report.Section]:
  """The sections of a run's report.

  Args:
    task: `task.Task`; its fold gives the annotations, its model the attention.
    evaluations: '<split>/<evaluator>' -> `Evaluation`; what is absent is left out.
    variables: the weights that were judged.
  """
  if ANTICIPATION not in evaluations or (evaluations[ANTICIPATION].arrays['target'] < 0).any():
    return []
  judged = Judged.of(task, evaluations[ANTICIPATION])
  parts = [beside_statistics(task, judged, evaluations), timelines(task, judged), next_actions(task, judged)]
  if task.model.has_blocks:
    parts.append(attention(task, judged, variables))
  return [*parts, confident_errors(judged)]


def recognises(config: Any) -> bool:
  """Whether the recognition head was trained: a run on true labels needs none."""
  return config.model.encoder != 'label' and (config.loss.recognition > 0 or config.recognition.steps > 0)


# Beside label statistics.


def beside_statistics(task: Any, judged: Judged, evaluations: Mapping[str, Evaluation]) -> report.Section:
  """The metrics in one table with those of n-grams, and recall by how often an action is trained on."""
  rows = [['ARR', *(evaluations[ANTICIPATION].scalars[f'action/{name}'] for name in MEASURES)]]
  if STATISTICS in evaluations:
    known = evaluations[STATISTICS].scalars
    rows += [[model, *(known[f'{model}/{name}'] for name in MEASURES)] for model in ngram.MODELS]
  text = (
    f'{len(judged.target)} segments, anticipated {task.fold.grid.anticipation:g} s before they start, in percent. The'
    ' n-grams know the TRUE past actions (the last one that has started; the trigram two) and nothing else: what a'
    ' model has to be above to have learned more from the order of actions than a table of pairs holds.'
  )
  table = report.Table(['', *(name.replace('_', ' ') for name in MEASURES)], rows)
  figure, caption = recall_by_frequency(task, judged)
  return report.Section('Beside label statistics', text, [table, report.Figure(figure=figure, caption=caption)])


def recall_by_frequency(task: Any, judged: Judged) -> tuple[Figure, str]:
  """A dot per action: how often it is trained on, how often it is among the first five; lines: means of classes."""
  classes = len(judged.names) - 1
  trained = np.bincount(task.fold.targets('train')['action'], minlength=classes)
  statistics = ngram.fit(
    task.fold.annotations.segments, classes, task.fold.grid.anticipation, task.config.eval.ngram_prior
  )
  history = ngram.histories(task.fold.annotations.segments, task.fold.grid.anticipation)[judged.rows]
  found = {'ARR': judged.best, 'bigram': ngram.best(statistics, history, 'bigram', 5)}
  with matplotlib.rc_context(report.STYLE):
    figure = Figure(figsize=(8.2, 3.6), layout='constrained')
    axis = figure.subplots()
    for (name, best), style in zip(found.items(), ({'marker': 'o'}, {'marker': 's', 'linestyle': '--'})):
      recall, counts = classification.class_means(classification.hits(best, judged.target), judged.target, classes)
      here = counts > 0
      x = np.maximum(trained[here], 0.5)
      if name == 'ARR':
        size = 8 + 60 * counts[here] / counts.max()
        axis.scatter(x, 100 * recall[here], s=size, alpha=0.3, linewidths=0, label='an action (ARR)')
      axis.plot(*_binned(x, 100 * recall[here]), label=f'mean of actions, {name}', linewidth=2, **style)
    axis.set(xscale='log', xlabel='training segments of the action (0 is drawn at 0.5)', ylim=(-4, 104))
    low, high = axis.get_xlim()
    ticks = [value for value in (0.5, 1, 3, 10, 30, 100, 300, 1000, 3000) if low <= value <= high]
    axis.set_xticks(ticks, [f'{value:g}' for value in ticks])
    axis.minorticks_off()
    axis.set(ylabel='recall@5, percent', title='Recall of each action')
    axis.legend(loc='center left', bbox_to_anchor=(1, 0.5))
  caption = 'Larger dots: more validation segments. The mean of all dots is the class-mean recall@5 of the table.'
  return figure, caption


def _binned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Means of y in up to eight groups of rising x, equally many in each."""
  groups = np.array_split(np.argsort(x, kind='stable'), min(8, max(len(x) // 4, 1)))
  return np.array([np.exp(np.log(x[g]).mean()) for g in groups]), np.array([y[g].mean() for g in groups])


# Timelines.


def timelines(task: Any, judged: Judged) -> report.Section:
  """True, recognised and anticipated actions along videos: one that went well, a middling one, one that went badly."""
  items = []
  for rank, video in chosen_videos(judged):
    mine = np.flatnonzero(judged.video == video)
    marks, window = judged.marks()[mine], busiest(judged, task.fold.annotations.segments, mine)
    caption = (
      f'{video} ({rank}): of its {len(mine)} segments {np.mean(marks == 0):.0%} are named first and'
      f' {np.mean(marks < 2):.0%} among the first five; {len(window)} of them are drawn.'
    )
    items.append(report.Figure(figure=timeline(task, judged, window), caption=caption))
  ahead = task.fold.grid.anticipation
  text = (
    'Top: what is annotated; grey where nothing is.'
    + (' Middle: what is recognised in each clip.' if recognises(task.config) else '')
    + f' Bottom: what was expected {ahead:g} s before each annotated segment started, drawn over that segment.'
    f' {RIGHT[0]} it happened; {NEAR[0]} it was among the first five; {WRONG[0]} it was not.'
  )
  return report.Section('Timelines', text, items)


def chosen_videos(judged: Judged) -> list[tuple[str, str]]:
  """('best', video), ('median', ...), ('worst', ...) by top-5 accuracy then top-1, of those with enough segments."""
  videos, which, counts = np.unique(judged.video, return_inverse=True, return_counts=True)
  marks = judged.marks()
  share = [np.bincount(which, marks <= allowed) / counts for allowed in (1, 0)]
  enough = np.flatnonzero(counts >= min(TARGETS, np.median(counts)))
  order = enough[np.lexsort((share[1][enough], share[0][enough]))][::-1]
  places = dict.fromkeys(int(i) for i in np.linspace(0, len(order) - 1, min(VIDEOS, len(order))).round())
  titles = ['best', 'median', 'worst'] if len(places) == VIDEOS else ['best', 'worst'][: len(places)]
  return [(title, str(videos[order[place]])) for title, place in zip(titles, places)]


def busiest(judged: Judged, segments: Mapping[str, np.ndarray], mine: np.ndarray) -> np.ndarray:
  """Of the targets of a video (int [M]), by start, those within the stretch of a readable length that holds most."""
  mine = mine[np.argsort(judged.start[mine], kind='stable')]
  start, rows = judged.start[mine], judged.rows[mine]
  stretch = LENGTHS * np.median(segments['stop'][rows] - segments['start'][rows])
  behind = np.minimum(np.searchsorted(start, start + stretch), np.arange(len(mine)) + TARGETS)
  first = int(np.argmax(behind - np.arange(len(mine))))
  return mine[first : behind[first]]


def timeline(task: Any, judged: Judged, mine: np.ndarray) -> Figure:
  """Tracks of one video around the targets `mine` (int [M], by start)."""
  segments = task.fold.annotations.segments
  stop = segments['stop'][judged.rows[mine]]
  low = max(judged.start[mine[0]] - task.fold.grid.anticipation - 2 * task.fold.grid.spacing, 0.0)
  high = float(stop.max())
  drawn = {'annotated': tracks.annotated(task.fold.whole, str(judged.video[mine[0]]), low, high)}
  if recognises(task.config):
    drawn['recognised'] = tracks.of_clips(task.fold.grid, judged.start[mine], judged.recognised[mine])
  ends = np.minimum(stop, np.append(judged.start[mine][1:], np.inf))  # a segment that overlaps the next is cut
  drawn['anticipated'] = [
    (float(start), float(end), int(best)) for start, end, best in zip(judged.start[mine], ends, judged.best[mine, 0])
  ]
  weights = Counter()
  for runs in drawn.values():
    for begin, end, action in runs:
      weights[judged.names[action]] += end - begin
  shades = drawing.colors(weights)
  with matplotlib.rc_context({**report.STYLE, 'axes.grid': False}):
    figure = Figure(figsize=(10.5, 0.55 + 1.12 * len(drawn)), layout='constrained')
    axes = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, runs) in zip(axes, drawn.items()):
      axis.set(xlim=(low, high), ylim=(0, 1), yticks=[])
      axis.set_ylabel(name, rotation=0, ha='right', va='center')
      axis.spines[:].set_visible(False)
      axis.tick_params(length=0 if axis is not axes[-1] else 3)
      for run in runs:
        tracks.draw(axis, run, judged.names[run[2]], shades, 9.2 / (high - low))
    for (begin, end, _), mark in zip(drawn['anticipated'], judged.marks()[mine]):
      text, color = (RIGHT, NEAR, WRONG)[mark]
      axes[-1].text((begin + min(end, high)) / 2, 1.02, text, ha='center', va='bottom', color=color, weight='bold')
    axes[-1].set_xlabel('seconds')
  return figure


# What follows what.


def next_actions(task: Any, judged: Judged) -> report.Section:
  """The learned table of next actions beside the counted one."""
  found = ngram.next_action_table(
    task.fold.annotations, task.fold.grid.anticipation, ACTIONS, task.config.eval.ngram_prior
  )
  learned, counts = learned_table(judged, found.actions)
  names = [judged.names[action] for action in found.actions]
  difference = learned - found.probability
  most = max(0.1, float(np.nanmax(np.abs(difference), initial=0)))
  weighted = np.nansum(np.abs(difference).mean(1) * counts) / max(counts.sum(), 1)
  with matplotlib.rc_context({**report.STYLE, 'font.size': 7.5}):
    figure = Figure(figsize=(12, 4.6), layout='constrained')
    axes = figure.subplots(1, 3)
    percent = lambda value: f'{100 * value:.0f}' if value >= 0.005 else ''  # noqa: E731
    points = lambda value: f'{100 * value:+.0f}' if abs(value) >= 0.005 else ''  # noqa: E731
    rows = [f'{shorten(name, 9, 130)}  ({count})' for name, count in zip(names, found.counts)]
    plots.heat_map(axes[0], found.probability, rows, _short(names), form=percent, fontsize=6)
    axes[0].set_title('counted in training: P(next | last)')
    rows = [f'({count})' for count in counts]
    plots.heat_map(axes[1], learned, rows, _short(names), form=percent, fontsize=6)
    axes[1].set_title('learned: mean over validation')
    plots.heat_map(
      axes[2], difference, rows, _short(names), limits=(-most, most), cmap='RdBu_r', form=points, fontsize=6
    )
    axes[2].set_title('learned − counted, points')
    for axis in axes:
      axis.tick_params(axis='x', rotation=90)
  text = (
    f'The {len(names)} most frequent actions. Row: the last action that had truly started'
    f' {task.fold.grid.anticipation:g} s before; column: the next one; percent. Left: the smoothed bigram of the'
    ' training labels. Middle: the mean of what the model expects on validation, which has seen more than the last'
    ' action and should differ where that matters.'
  )
  caption = f'In brackets: segments a row rests on. Mean absolute difference of a cell: {100 * weighted:.1f} points.'
  return report.Section('What follows what', text, [report.Figure(figure=figure, caption=caption)])


def learned_table(judged: Judged, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """f64 [K, K], mean probability of `actions` after each of them, NaN where it never was; int [K], how often."""
  after = [judged.scores[judged.last == action] for action in actions]
  means = [rows[:, actions].mean(0) if len(rows) else np.full(len(actions), np.nan) for rows in after]
  return np.array(means, np.float64), np.array([len(rows) for rows in after])


def _short(names: Sequence[str]) -> list[str]:
  return [shorten(name, 9, 120) for name in names]


# Attention.


def attention(task: Any, judged: Judged, variables: Variables) -> report.Section:
  """Which clips the decoder looks at: averaged, and for one sample."""
  places = np.unique(np.linspace(0, len(judged.target) - 1, min(LOOKED_AT, len(judged.target))).round().astype(int))
  samples, model = task.fold.samples('val'), task.model

  @jax.jit
  def maps(variables, inputs):
    return model.attention(variables, model.encode(variables, inputs)).mean(axis=2)

  batches = pipeline.eval_batches([samples[int(i)] for i in places], task.config.eval.batch_size, task.reader())
  weights = np.asarray(forward.over(maps, variables, batches, ('inputs',)))  # [N, L, T, T]
  spacing = task.fold.grid.spacing
  one = int(np.argmax([len(set(judged.history[i])) + (judged.best[i, 0] == judged.target[i]) for i in places]))
  i = places[one]
  expected, sure = judged.names[judged.best[i, 0]], judged.top[i]
  items = [
    report.Figure(
      figure=mean_attention(weights.mean(0), spacing),
      caption=f'Mean over heads and over {len(places)} samples. Row: the clip that looks; column: the clip looked at,'
      ' in seconds before the end of the observation. The bottom row is what the anticipation is made of.',
    ),
    report.Figure(
      figure=one_attention(weights[one, :, -1], [judged.names[label] for label in judged.history[i]], spacing),
      caption=f'The bottom row for one sample ({judged.uid[i]}), with the true action of each clip. Expected:'
      f' {expected} ({sure:.0%}); it was: {judged.names[judged.target[i]]}.',
    ),
  ]
  return report.Section('What the decoder looks at', '', items)


def mean_attention(weights: np.ndarray, spacing: float) -> Figure:
  """A map per layer; weights [L, T, T]. Colours end at the largest of the bottom rows: early clips see few others."""
  layers, clips = weights.shape[:2]
  columns = min(layers, 4)
  rows = -(-layers // columns)
  edges, most = spacing * (np.arange(clips + 1) - clips + 0.5), weights[:, -1].max()
  with matplotlib.rc_context({**report.STYLE, 'axes.grid': False}):
    figure = Figure(figsize=(0.6 + 2.5 * columns, 2.5 * rows + 0.3), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for layer, axis in enumerate(axes):
      axis.set_visible(layer < layers)
      if layer < layers:
        shown = axis.pcolormesh(edges, edges, weights[layer], vmin=0, vmax=most, cmap='Blues', rasterized=True)
        axis.set(title=f'layer {layer + 1}', aspect='equal')
        axis.invert_yaxis()
        axis.set_xlabel('looked at, s')
    axes[0].set_ylabel('looks, s')
    figure.colorbar(shown, ax=axes[:layers], shrink=0.8, label='attention', extend='max')
  return figure


def one_attention(weights: np.ndarray, names: Sequence[str], spacing: float) -> Figure:
  """The last step's weights [L, T] as bars, one track per layer, over the actions of the clips."""
  layers, clips = weights.shape
  shades = drawing.colors(Counter(names))
  ends = spacing * (np.arange(clips) - clips + 1)
  with matplotlib.rc_context(report.STYLE):
    figure = Figure(figsize=(9, 0.9 * layers + 1.7), layout='constrained')
    axes = figure.subplots(layers + 1, 1, sharex=True, height_ratios=[1] * layers + [1.25])
    for layer, axis in enumerate(axes[:-1]):
      colors = [np.array(shades[name]) / 255 for name in names]
      axis.bar(ends, weights[layer], width=0.9 * spacing, color=colors)
      axis.set_ylabel(f'layer {layer + 1}', rotation=0, ha='right', va='center')
      axis.set_ylim(0, max(0.05, 1.05 * weights.max()))
    _draw_names(axes[-1], names, ends, spacing, shades)
    axes[-1].set(xlabel='end of the clip, seconds before the end of the observation')
  return figure


def _draw_names(axis: Any, names: Sequence[str], ends: np.ndarray, spacing: float, shades: Mapping[str, Any]) -> None:
  """The actions of the clips as boxes with names."""
  axis.set(xlim=(ends[0] - 0.6 * spacing, ends[-1] + 0.6 * spacing), ylim=(0, 1), yticks=[])
  axis.set_ylabel('action', rotation=0, ha='right', va='center')
  axis.grid(False)
  axis.spines[:].set_visible(False)
  inches = 7.8 / (len(names) * spacing)
  known = {name: number for number, name in enumerate(dict.fromkeys(names))}
  runs = tracks.merged((end - spacing / 2, end + spacing / 2, known[name]) for end, name in zip(ends.tolist(), names))
  for run in runs:
    name = list(known)[run[2]]
    tracks.draw(axis, run, name, shades, inches)


# Errors.


def confident_errors(judged: Judged) -> report.Section:
  """The wrong expectations that the model was most sure of."""
  wrong = np.flatnonzero(judged.best[:, 0] != judged.target)
  wrong = wrong[np.argsort(-judged.top[wrong], kind='stable')][:WORST]
  rows = []
  for i in wrong:
    truth = judged.scores[i, judged.target[i]]
    rank = int((judged.scores[i] > truth).sum()) + 1
    last = judged.names[judged.last[i]] if judged.last[i] >= 0 else 'nothing yet'
    rows.append([
      str(judged.video[i]), round(float(judged.start[i]), 1), last, judged.names[judged.best[i, 0]],
      f'{judged.top[i]:.0%}', judged.names[judged.target[i]], f'{truth:.1%}', rank,
    ])  # fmt: skip
  header = ['video', 'starts at, s', 'last action', 'expected', 'probability', 'it was', 'its probability', 'rank']
  caption = 'The errors that the model was most sure of. Rank: place of what happened among all actions.'
  return report.Section('Confident errors', '', [report.Table(header, rows, caption)])
