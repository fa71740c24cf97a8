"""A report as sentences (spec 4.1): the unit that is sampled in stage 1, labelled, and marked in what is shown.

Two forms of a sentence: as it stands in the report (for the labellers, which need the commas, and for the reader), and
`normalized` (what the text encoder is given, and what counts as the same sentence).
"""

from __future__ import annotations

import re

import numpy as np

from multimodal.trrg import observations

NEUTRAL, NEGATED, ABNORMAL = range(3)

_TOKENS = re.compile(r'[a-z0-9]+')
_ENUMERATOR = re.compile(r'(?:^|(?<=[.:;])|(?<=\n))\s*\d{1,2}\s*[.)](?!\d)')
_END = re.compile(r'(?<!\b[A-Za-z])\.+(?=\s|$|[A-Z])|(?<=\b[A-Za-z])\.+(?=\s+[A-Z]|\s*$|\s+\.)|\s\.(?=\s)|\n\s*\n')
_ABBREVIATION = re.compile(r'\b(?:Dr|Mr|Mrs|Ms|vs|approx|e\.g|i\.e|a\.m|p\.m)\.(?=\s+\S)', re.IGNORECASE)
_HIDDEN = '\x00'


def split(report: str, *, tokens: int = 2) -> list[str]:
  """The sentences of a report as they stand there, without their period and without enumerators ("1.").

  Args:
    report: raw, or cleaned ("heart size is normal . no effusion .").
    tokens: how many words a sentence must have. Two keeps "no pneumothorax" and "mild cardiomegaly", which the usual
      filter of more than four drops, and those are what the method is about (spec 4.1).
  """
  text = _ABBREVIATION.sub(lambda match: match.group().replace('.', _HIDDEN), report.replace('\r', ''))
  pieces = _END.split(_ENUMERATOR.sub('\n\n', text))
  sentences = (' '.join(piece.replace(_HIDDEN, '.').split()).strip(' .') for piece in pieces)
  return [sentence for sentence in sentences if len(_TOKENS.findall(sentence.lower())) >= tokens]


def normalized(sentence: str) -> str:
  """Lower case, letters and digits only, single spaces: equal iff two sentences have the same words."""
  return ' '.join(_TOKENS.findall(sentence.lower()))


def kinds(labels: np.ndarray) -> np.ndarray:
  """What each sentence is to the sampler (spec 4.1).

  Args:
    labels: int8 [S, 14] of single sentences.

  Returns:
    int8 [S]: ABNORMAL when one of the 13 observations is positive or uncertain, NEGATED when none is and one is denied
    (or the sentence says that all is normal), NEUTRAL otherwise.
  """
  labels = np.asarray(labels)
  seen = labels[:, : observations.CLUES]
  abnormal = np.isin(seen, (observations.POSITIVE, observations.UNCERTAIN)).any(axis=1)
  denied = (seen == observations.NEGATIVE).any(axis=1) | (labels[:, observations.NO_FINDING] == observations.POSITIVE)
  return np.where(abnormal, ABNORMAL, np.where(denied, NEGATED, NEUTRAL)).astype(np.int8)
