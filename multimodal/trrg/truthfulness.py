"""Does a report say what its clues say (spec 5.4)?

`diagnostics` judges a test set by labels, `support` one report sentence by sentence: what a reader needs to see which
statements come from the evidence that is shown, and which come from nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from multimodal.trrg.labeller import Labeller
from multimodal.trrg.observations import CLUES, NEGATIVE, NO_FINDING, POSITIVE, SUPPORT_DEVICES, UNCERTAIN

SUPPORTED, UNSUPPORTED, CONTRADICTED, CONSISTENT, NEUTRAL = (
  'supported', 'unsupported', 'contradicted', 'consistent', 'neutral',
)  # fmt: skip
"""Asserts a clue; asserts what is no clue; denies a clue; denies what is no clue; says nothing of the observations."""


def diagnostics(clues: np.ndarray, found: np.ndarray, reference: np.ndarray) -> dict[str, float]:
  """Measures of a set of reports.

  Args:
    clues: bool [N, 13], the clues that each report was given.
    found: int8 [N, 14], labels of the generated reports.
    reference: int8 [N, 14], labels of the references.

  Returns:
    'faithfulness': the share of the clues given that the report asserts;
    'contradiction': the share of them that it denies;
    'hallucination': the share of a report's positive observations that are neither clues nor in the reference;
    'hallucinations_per_report': their number.
    The shares are NaN when there is nothing to take them of. No Finding is left out.
  """
  clues = np.asarray(clues, bool)
  said, denied = (np.asarray(found)[:, :CLUES] == label for label in (POSITIVE, NEGATIVE))
  invented = said & ~clues & (np.asarray(reference)[:, :CLUES] != POSITIVE)
  return {
    'faithfulness': _share(said & clues, clues),
    'contradiction': _share(denied & clues, clues),
    'hallucination': _share(invented, said),
    'hallucinations_per_report': float(invented.sum(1).mean()) if len(invented) else float('nan'),
  }


def support(sentences: Sequence[str], clues: np.ndarray, labeller: Labeller) -> list[tuple[str, tuple[int, ...]]]:
  """How each sentence of a report stands to the clues.

  A sentence that does several of these is given the gravest: it contradicts a clue, or else asserts what no clue
  supports, or else asserts a clue, or else denies what is no clue. A doubt ("may represent pneumonia") asserts. A
  sentence that says that all is normal, and names nothing, denies every clue but a support device.

  Args:
    sentences: of one report, as `sentences.split` gives them.
    clues: bool [13].
    labeller: labels them.

  Returns:
    (status, the observations that it rests on) per sentence; the observations are indices 0..13.
  """
  clues = np.asarray(clues, bool)
  return [_support(labels, clues) for labels in labeller(list(sentences))] if sentences else []


def _support(labels: np.ndarray, clues: np.ndarray) -> tuple[str, tuple[int, ...]]:
  asserted = np.isin(labels[:CLUES], (POSITIVE, UNCERTAIN))
  denied = labels[:CLUES] == NEGATIVE
  if not (asserted | denied).any() and labels[NO_FINDING] == POSITIVE:
    disease = np.arange(CLUES) != SUPPORT_DEVICES
    return (CONTRADICTED if (clues & disease).any() else CONSISTENT), (NO_FINDING,)
  for status, which in (
    (CONTRADICTED, denied & clues),
    (UNSUPPORTED, asserted & ~clues),
    (SUPPORTED, asserted & clues),
    (CONSISTENT, denied),
  ):
    if which.any():
      return status, tuple(np.flatnonzero(which).tolist())
  return NEUTRAL, ()


def _share(part: np.ndarray, whole: np.ndarray) -> float:
  return float(part.sum() / whole.sum()) if whole.any() else float('nan')
