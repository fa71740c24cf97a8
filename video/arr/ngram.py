"""What label statistics alone reach: n-gram models of the next action, with the past actions known (spec 9b).

The history of a segment that starts at tau_s is read off the annotations: p, the action of the last segment of the
same video that has started by tau_s - tau_a, and p', that of the segment before p in the order of their starts. From
training counts N and the training frequency U:

  unigram    U(y)
  bigram     P(y | p)     = (N(p, y) + w U(y)) / (N(p) + w)
  debiased   P(y | p) / U(y)^0.5, a ranking that class-mean measures like better
  trigram    P(y | p', p) = (N(p', p, y) + w P(y | p)) / (N(p', p) + w)

"No segment yet" is a history like any other. These are not weak baselines: with a perfect recogniser of the last action
alone they reach what published models reach with features, so a sequence model that reasons has to pass them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import scipy.sparse

from core.errors import UserError, nearest
from core.metrics import classification
from video.arr.annotations.tables import Annotations

MODELS = ('unigram', 'bigram', 'debiased', 'trigram')

PRIOR = 5.0
"""Weight w of the prior, in observations (spec 9b; 2 on 50 Salads, whose 17 actions need less smoothing)."""

DEBIASING = 0.5
"""Power of the training frequency that the debiased bigram divides by (spec 9b)."""

SAME_TIME = 1e-6
"""Seconds. Times are decimals of a second or frames / 30: `start <= tau_s - tau_a` must not hang on binary rounding."""

BLOCK = 1024
"""Histories that are scored at once: 1024 x 3806 scores are 31 MB."""


def histories(segments: Mapping[str, np.ndarray], anticipation: float) -> np.ndarray:
  """The last and the one-before-last action that had started when each segment was to be anticipated.

  Args:
    segments: columns [S] sorted by video and start, of all splits: an observer sees the whole video (spec 6.2).
    anticipation: tau_a in seconds.

  Returns:
    int32 [S, 2]: (p, p'), -1 where there is none.
  """
  rows = _earlier(segments, anticipation)
  return np.where(rows >= 0, segments['action'][rows], -1).astype(np.int32)


def frequencies(segments: Mapping[str, np.ndarray], classes: int) -> np.ndarray:
  """U, f64 [C]: the share of each action among the training segments."""
  actions = segments['action'][_training(segments)]
  if not len(actions):
    raise UserError("Label statistics need labelled segments of the split 'train'; there is none.")
  return np.bincount(actions, minlength=classes) / len(actions)


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Counts of the training segments.

  Attributes:
    prior: w, the weight of the prior in observations.
    frequency: U, f64 [C].
    after_one: N(p, y).
    after_two: N(p', p, y).
  """

  prior: float
  frequency: np.ndarray
  after_one: _Counts
  after_two: _Counts

  @property
  def classes(self) -> int:
    return len(self.frequency)


def fit(segments: Mapping[str, np.ndarray], classes: int, anticipation: float, prior: float = PRIOR) -> Statistics:
  """Counts what follows what in the training split.

  A training segment whose history holds a segment of another split is not counted: where splits divide the segments of
  one video (EGTEA), that would count validation labels.

  Args:
    segments: columns [S] sorted by video and start, of all splits.
    classes: C.
    anticipation: tau_a in seconds.
    prior: w > 0.
  """
  if prior <= 0:
    raise UserError(f'The weight of the prior is {prior}, expected more than 0: actions never seen need some chance.')
  rows, history = _earlier(segments, anticipation), histories(segments, anticipation)
  training = _training(segments)
  ours = (rows < 0) | (segments['split'] == 'train')[rows]
  counted = training & segments['target'] & ours[:, 0]
  pairs, triples = np.flatnonzero(counted), np.flatnonzero(counted & ours[:, 1])
  action = segments['action']
  return Statistics(
    prior,
    frequencies(segments, classes),
    _Counts.of(_one(history[pairs]), action[pairs], classes),
    _Counts.of(_two(history[triples], classes), action[triples], classes),
  )


def scores(statistics: Statistics, history: np.ndarray, model: str) -> np.ndarray:
  """How each model ranks the next action.

  Args:
    statistics: of `fit`.
    history: int [N, 2], of `histories`.
    model: one of `MODELS`.

  Returns:
    f64 [N, C]: probabilities, for 'debiased' scores that do not sum to 1. All rows at once: large N in blocks.
  """
  if model not in MODELS:
    raise UserError(f"There is no label model '{model}'; known: {', '.join(MODELS)}.{nearest(model, MODELS)}")
  frequency = statistics.frequency
  if model == 'unigram':
    return np.tile(frequency, (len(history), 1))
  bigram = statistics.after_one.smoothed(_one(history), frequency, statistics.prior)
  if model == 'debiased':
    weight = np.divide(1.0, frequency**DEBIASING, out=np.zeros_like(frequency), where=frequency > 0)
    return bigram * weight
  if model == 'trigram':
    return statistics.after_two.smoothed(_two(history, statistics.classes), bigram, statistics.prior)
  return bigram


def table(annotations: Annotations, anticipation: float, prior: float = PRIOR) -> dict[str, dict[str, float]]:
  """Every model on the target segments of the split 'val' (spec 9b).

  Args:
    annotations: one dataset, or one fold of it.
    anticipation: tau_a in seconds.
    prior: w > 0, 2 on 50 Salads.

  Returns:
    model -> {'class_mean_recall_at_5', 'top_5', 'top_1', 'class_mean_top_1'}, IN PERCENT as in `evaluation.judge`.
  """
  segments, classes = annotations.segments, annotations.vocabulary.classes
  statistics = fit(segments, classes, anticipation, prior)
  judged = (segments['split'] == 'val') & segments['target']
  history, labels = histories(segments, anticipation)[judged], segments['action'][judged]
  rates = {model: classification.summary(best(statistics, history, model, 5), labels) for model in MODELS}
  return {model: {name: 100 * rate for name, rate in each.items()} for model, each in rates.items()}


def best(statistics: Statistics, history: np.ndarray, model: str, k: int) -> np.ndarray:
  """int64 [N, k]: the k actions that a model ranks first after each history (int [N, 2]), best first."""
  different, where = np.unique(history, axis=0, return_inverse=True)
  blocks = (different[at : at + BLOCK] for at in range(0, len(different), BLOCK))
  ranks = [classification.ranked(scores(statistics, block, model), k) for block in blocks]
  return np.concatenate(ranks)[where] if ranks else np.zeros((0, k), np.int64)


@dataclasses.dataclass(frozen=True)
class NextActions:
  """The bigram between the most frequent actions.

  Attributes:
    actions: int64 [K], ids, the most frequent first.
    probability: f64 [K, K], P(column | row); a row sums to less than 1, the rest goes to other actions.
    counts: int64 [K], N(row): how many training pairs a row rests on.
  """

  actions: np.ndarray
  probability: np.ndarray
  counts: np.ndarray


def next_action_table(
  annotations: Annotations, anticipation: float, most: int = 20, prior: float = PRIOR
) -> NextActions:
  """The empirical P(y | p) over the `most` most frequent training actions, to be shown beside the learned one."""
  classes = annotations.vocabulary.classes
  statistics = fit(annotations.segments, classes, anticipation, prior)
  actions = np.argsort(-statistics.frequency, kind='stable')[:most]
  history = np.stack([actions, np.full_like(actions, -1)], axis=1)
  counts = statistics.after_one.rows(_one(history)).sum(axis=1).astype(np.int64)
  return NextActions(actions, scores(statistics, history, 'bigram')[:, actions], counts)


@dataclasses.dataclass(frozen=True)
class _Counts:
  """N(context, y) of the contexts that occur.

  Attributes:
    contexts: int64 [K], rising.
    table: [K + 1, C]; the last row, empty, stands for every other context.
  """

  contexts: np.ndarray
  table: scipy.sparse.csr_array

  @classmethod
  def of(cls, contexts: np.ndarray, actions: np.ndarray, classes: int) -> _Counts:
    """Counts of observations (int [M] context, int [M] action)."""
    known, row = np.unique(contexts, return_inverse=True)
    ones = np.ones(len(contexts))
    return cls(known, scipy.sparse.coo_array((ones, (row, actions)), (len(known) + 1, classes)).tocsr())

  def rows(self, contexts: np.ndarray) -> np.ndarray:
    """f64 [N, C] of int [N] contexts."""
    at = np.searchsorted(self.contexts, contexts)
    found = np.append(self.contexts, -1)[at] == contexts  # contexts are >= 0
    return self.table[np.where(found, at, len(self.contexts))].toarray()

  def smoothed(self, contexts: np.ndarray, prior: np.ndarray, weight: float) -> np.ndarray:
    """f64 [N, C]: (N(context, y) + weight * prior(y)) / (N(context) + weight)."""
    counts = self.rows(contexts)
    return (counts + weight * prior) / (counts.sum(axis=1, keepdims=True) + weight)


def _one(history: np.ndarray) -> np.ndarray:
  """p as a context, int64 [N] >= 0."""
  return history[:, 0].astype(np.int64) + 1


def _two(history: np.ndarray, classes: int) -> np.ndarray:
  """(p', p) as a context, int64 [N] >= 0."""
  return (history[:, 1].astype(np.int64) + 1) * (classes + 1) + _one(history)


def _earlier(segments: Mapping[str, np.ndarray], anticipation: float) -> np.ndarray:
  """int64 [S, 2]: rows of the last two segments of the same video with start <= tau_s - tau_a; -1: there is none."""
  video, start = segments['video'], segments['start']
  bounds = np.append(0, np.flatnonzero(video[1:] != video[:-1]) + 1)
  rows = np.empty(len(start), np.int64)
  first = np.empty(len(start), np.int64)
  for begin, end in zip(bounds, np.append(bounds[1:], len(start))):
    asked = start[begin:end] - anticipation + SAME_TIME
    rows[begin:end] = begin - 1 + np.searchsorted(start[begin:end], asked, side='right')
    first[begin:end] = begin
  rows = np.minimum(rows, np.arange(len(start)) - 1)  # with tau_a = 0 a segment must not be its own past
  both = np.stack([rows, rows - 1], axis=1)
  return np.where(both >= first[:, None], both, -1)


def _training(segments: Mapping[str, np.ndarray]) -> np.ndarray:
  """bool [S]: the labelled segments of the split 'train'."""
  return (segments['split'] == 'train') & (segments['action'] >= 0)
