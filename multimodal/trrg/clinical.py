"""Clinical efficacy: do two reports speak of the same diseases (spec 5.3)?

Only POSITIVE counts as present; uncertain, denied and not mentioned are absent alike. Papers average in three ways and
seldom say which, and the same model scores .37, .44 or .26; all three are given:

  example   per report over its 14 labels, 0/0 being 0, then the mean over reports
  micro     counts summed over reports and labels
  macro     per label, 0/0 being 0, then the mean over labels
"""

from __future__ import annotations

import numpy as np

from core.errors import UserError
from multimodal.trrg.observations import CLUES, FIVE, OBSERVATIONS, POSITIVE

RATES = ('precision', 'recall', 'f1')


def efficacy(found: np.ndarray, reference: np.ndarray) -> dict[str, float]:
  """Compares the labels of generated reports with those of the references.

  Args:
    found: int8 [N, 14], labels of the generated reports.
    reference: int8 [N, 14], labels of the references.

  Returns:
    '<average>/precision', '/recall', '/f1' for the averages 'example', 'micro', 'macro', 'macro_13' (without No
    Finding), 'five_micro', 'five_macro' (the five observations of CheXpert's papers); 'class/<name>/f1';
    'positive_share' and 'positive_share_reference', of the 13 x N labels. All in 0..1.
  """
  found, reference = np.asarray(found), np.asarray(reference)
  if found.shape != reference.shape or found.shape[1:] != (len(OBSERVATIONS),) or not len(found):
    raise UserError(
      f'Labels of shape {found.shape} and {reference.shape}: expected twice [N, {len(OBSERVATIONS)}], N at least 1.'
    )
  said, true = found == POSITIVE, reference == POSITIVE
  counts = np.stack([said & true, said & ~true, ~said & true]).astype(np.float64)  # [3, N, 14]: tp, fp, fn
  per_class = rates(counts.sum(1))
  five = list(FIVE)
  averages = {
    'example': rates(counts.sum(2)).mean(1),
    'micro': rates(counts.sum((1, 2))),
    'macro': per_class.mean(1),
    'macro_13': per_class[:, :CLUES].mean(1),
    'five_micro': rates(counts[..., five].sum((1, 2))),
    'five_macro': per_class[:, five].mean(1),
  }
  scores = {f'{name}/{rate}': float(v) for name, values in averages.items() for rate, v in zip(RATES, values)}
  scores |= {f'class/{name}/f1': float(value) for name, value in zip(OBSERVATIONS, per_class[2], strict=True)}
  scores['positive_share'] = float(said[:, :CLUES].mean())
  scores['positive_share_reference'] = float(true[:, :CLUES].mean())
  return scores


def rates(counts: np.ndarray) -> np.ndarray:
  """(tp, fp, fn) [3, ...] -> (precision, recall, F1) [3, ...], 0/0 being 0."""
  tp, fp, fn = counts
  return np.stack([_ratio(tp, tp + fp), _ratio(tp, tp + fn), _ratio(2 * tp, 2 * tp + fp + fn)])


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  return np.divide(a, b, out=np.zeros_like(np.asarray(a, np.float64)), where=np.asarray(b) > 0)
