"""Measures of many-class recognition: top-k accuracy and class-mean recall, as functions of (scores, labels).

Conventions (ARR spec 5.2; the official EPIC-KITCHENS code `C3-Action-Anticipation`):

  hit_i                   = 1[label of row i is among its k best scored classes]
  top-k accuracy          = mean of hit_i over rows
  class-mean recall at k  = mean, over the classes that occur among the labels, of the mean of hit_i over their rows

Class-mean recall at 1 is the mean of the confusion matrix's per-class recalls ("class-mean accuracy", balanced
accuracy). Classes that no row has do not count. Equal scores go to the LARGER class index: the official code sorts
ascending and reads the result backwards. Its sort is not stable; ours is, so that no number depends on the machine.

All rates are in [0, 1], and NaN when there are no rows: an empty group must not end an evaluation. Shapes that do not
fit, labels outside the classes and scores that are not numbers are a `UserError`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from core.errors import UserError

NAN = float('nan')

MEASURES = ('class_mean_recall_at_5', 'top_5', 'top_1', 'class_mean_top_1')

BLOCK = 1024
"""Rows that are sorted at once: the order of 1024 x 3806 scores takes 31 MB, that of all EPIC-KITCHENS-100 rows 294."""


def ranked(scores: Any, k: int) -> np.ndarray:
  """The k best classes of every row, best first; equal scores go to the larger index.

  Args:
    scores: [N, C], any numbers (infinite ones too), larger is better.
    k: at least 1; all C classes are ranked when there are fewer than k.

  Returns:
    int64 [N, min(k, C)].
  """
  scores = _checked_scores(scores)
  if k < 1:
    raise UserError(f'k is {k}: at least one class per row must be ranked.')
  blocks = (scores[at : at + BLOCK] for at in range(0, len(scores), BLOCK))
  best = [np.argsort(block, axis=1, kind='stable')[:, ::-1][:, :k] for block in blocks]
  return np.concatenate(best) if best else np.zeros((0, min(k, scores.shape[1])), np.int64)


def hits(best: Any, labels: Any) -> np.ndarray:
  """bool [N]: whether the label of a row ([N]) is among its classes `best` (int [N, k], of `ranked`)."""
  best, labels = np.asarray(best), np.asarray(labels)
  if best.ndim != 2 or labels.shape != best.shape[:1]:
    raise UserError(
      f'Ranked classes of shape {best.shape} and labels of shape {labels.shape}: expected [N, k] and [N].'
    )
  return (best == labels[:, None]).any(axis=1)


def class_means(values: Any, labels: Any, classes: int) -> tuple[np.ndarray, np.ndarray]:
  """Mean of a value per class.

  Args:
    values: [N], a number or bool per row.
    labels: int [N] in 0..classes - 1.
    classes: C.

  Returns:
    (f64 [C], NaN where no row has the class; int64 [C], number of rows per class).
  """
  values, labels = np.asarray(values, np.float64), _checked_labels(labels, len(values), classes)
  counts = np.bincount(labels, minlength=classes)
  sums = np.bincount(labels, values, minlength=classes)
  return np.divide(sums, counts, out=np.full(classes, NAN), where=counts > 0), counts


def class_mean(values: Any, labels: Any) -> float:
  """Mean over the classes present of the mean of a value per class; NaN of nothing."""
  labels = np.asarray(labels)
  means, counts = class_means(values, labels, int(labels.max(initial=-1)) + 1)
  return float(means[counts > 0].mean()) if len(labels) else NAN


def top_k_accuracy(scores: Any, labels: Any, k: int) -> float:
  """Share of rows whose label is among their k best classes.

  Equal to `sklearn.metrics.top_k_accuracy_score` on scores without ties.

  Args:
    scores: [N, C], larger is better.
    labels: int [N] in 0..C - 1.
    k: number of classes that a row may name.
  """
  found = _hits(scores, labels, k)
  return float(found.mean()) if len(found) else NAN


def class_mean_recall(scores: Any, labels: Any, k: int) -> float:
  """Mean over the classes present of the recall at k; with k = 5 the EPIC-KITCHENS-100 anticipation metric (MT5R).

  Equal to `sklearn.metrics.recall_score(y, where(hit, y, top1), labels=unique(y), average='macro')`.

  Args:
    scores: [N, C], larger is better.
    labels: int [N] in 0..C - 1.
    k: number of classes that a row may name.
  """
  return class_mean(_hits(scores, labels, k), labels)


def class_mean_accuracy(scores: Any, labels: Any) -> float:
  """Class-mean recall at 1, equal to `sklearn.metrics.balanced_accuracy_score` of the best classes."""
  return class_mean_recall(scores, labels, 1)


def summary(best: Any, labels: Any) -> dict[str, float]:
  """The four measures that action anticipation is judged by, in [0, 1]; NaN of nothing.

  Args:
    best: int [N, 5] of `ranked` (fewer columns where there are fewer classes).
    labels: int [N].

  Returns:
    name in `MEASURES` -> rate.
  """
  at_5, at_1 = hits(best, labels), hits(np.asarray(best)[:, :1], labels)
  accuracies = (at_5.mean(), at_1.mean()) if len(at_5) else (NAN, NAN)
  rates = (class_mean(at_5, labels), *map(float, accuracies), class_mean(at_1, labels))
  return dict(zip(MEASURES, rates))


def _hits(scores: Any, labels: Any, k: int) -> np.ndarray:
  scores = _checked_scores(scores)
  return hits(ranked(scores, k), _checked_labels(labels, *scores.shape))


def _checked_scores(scores: Any) -> np.ndarray:
  scores = np.asarray(scores)
  if scores.ndim != 2 or not scores.shape[1]:
    raise UserError(f'Scores have the shape {scores.shape}, expected [rows, classes] with at least one class.')
  strange = np.isnan(scores).any(axis=1)
  if strange.any():
    raise UserError(
      f'{int(strange.sum())} of {len(scores)} rows hold scores that are not numbers (first: row'
      f' {int(strange.argmax())}); a diverged model gives such scores.'
    )
  return scores


def _checked_labels(labels: Any, rows: int, classes: int) -> np.ndarray:
  labels = np.asarray(labels)
  if labels.shape != (rows,) or (rows and not np.issubdtype(labels.dtype, np.integer)):
    raise UserError(f'Labels are {labels.dtype} {list(labels.shape)}, expected whole numbers [{rows}], one per row.')
  outside = np.flatnonzero((labels < 0) | (labels >= classes))
  if len(outside):
    raise UserError(
      f'Label {labels[outside[0]]} found (row {outside[0]}); expected 0..{classes - 1}: rows without a label, or of an'
      ' unknown class, must be left out first.'
    )
  return labels.astype(np.int64)
