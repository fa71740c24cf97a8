"""The file that the EPIC-KITCHENS-100 anticipation challenge takes: written, and checked before it is sent (spec 5.3).

  {"version": "0.2", "challenge": "action_anticipation", "sls_pt": 0, "sls_tl": 0, "sls_td": 0, "results":
    {"P01_101_0": {"verb": {"0": score, ...}, "noun": {"0": score, ...}, "action": {"verb,noun": score, ...}}, ...}}

All verbs, all nouns and exactly 100 (verb, noun) pairs per segment. The server answers a wrong file with one line, days
later and against a limited number of tries; `validate` says here what is wrong and where.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from core.errors import UserError, nearest
from core.metrics import classification
from video.arr import evaluation
from video.arr.annotations.tables import Vocabulary

VERSION, CHALLENGE = '0.2', 'action_anticipation'
VERBS, NOUNS, PAIRS = 97, 300, 100
LEVELS = ('sls_pt', 'sls_tl', 'sls_td')
"""Supervision levels of the challenge, each 0..5: pre-training, training labels, training data."""


def submission(
  uids: Sequence[str], action_probs: np.ndarray, vocabulary: Vocabulary, sls: Sequence[int] = (0, 0, 0)
) -> dict[str, Any]:
  """The submission as plain data, ready for `json.dump`.

  Args:
    uids: [N], narration ids.
    action_probs: f32 [N, C], probabilities, "unknown" removed.
    vocabulary: with verbs and nouns; a (verb, noun) pair is one action.
    sls: the levels (pre-training, training labels, training data) that the authors declare, each 0..5.
  """
  if not vocabulary.verbs:
    raise UserError(
      'A submission needs verbs and nouns; this dataset has actions only (it is EPIC-KITCHENS-100 that has a server).'
    )
  if len(uids) != len(set(uids)) or action_probs.shape != (len(uids), vocabulary.classes):
    raise UserError(
      f'{len(uids)} narration ids ({len(set(uids))} different) and action scores of shape {action_probs.shape}:'
      f' expected different ids and ({len(uids)}, {vocabulary.classes}).'
    )
  verb = evaluation.marginal(action_probs, vocabulary.verb_of, len(vocabulary.verbs)).astype(np.float64)
  noun = evaluation.marginal(action_probs, vocabulary.noun_of, len(vocabulary.nouns)).astype(np.float64)
  # Equal scores: the server prefers what stands later in the file, we the larger index, so pairs go in rising order.
  best = np.sort(classification.ranked(action_probs, PAIRS), axis=1)
  pairs = [f'{v},{n}' for v, n in zip(vocabulary.verb_of, vocabulary.noun_of)]
  verbs, nouns = [str(v) for v in range(verb.shape[1])], [str(n) for n in range(noun.shape[1])]
  results = {
    str(uid): {
      'verb': dict(zip(verbs, verb[i].tolist())),
      'noun': dict(zip(nouns, noun[i].tolist())),
      'action': {pairs[a]: float(action_probs[i, a]) for a in best[i]},
    }
    for i, uid in enumerate(uids)
  }
  return {'version': VERSION, 'challenge': CHALLENGE, **dict(zip(LEVELS, map(int, sls))), 'results': results}


def validate(
  content: Mapping[str, Any], uids: Collection[str], *, verbs: int = VERBS, nouns: int = NOUNS, pairs: int = PAIRS
) -> None:
  """Checks a submission as the server does, and refuses infinite and undefined scores, which it would rank.

  Args:
    content: the parsed JSON.
    uids: the narration ids of the segments that must be answered, no more and no fewer.
    verbs, nouns, pairs: how many scores each segment has; the challenge's numbers by default.

  Raises:
    UserError: names the first thing that is wrong and where it stands.
  """
  _validate_head(content)
  results = content['results']
  expected, found = set(map(str, uids)), set(results)
  if missing := sorted(expected - found):
    raise UserError(f'{len(missing)} of {len(expected)} segments have no result (first: {missing[0]}).')
  if extra := sorted(found - expected):
    raise UserError(
      f'{len(extra)} results are of no segment of this list (first: {extra[0]}).{nearest(extra[0], uids)}'
    )
  for uid, result in results.items():
    for space, count in (('verb', verbs), ('noun', nouns), ('action', pairs)):
      where = f"Segment {uid}, '{space}'"
      if not isinstance(result, Mapping) or not isinstance(result.get(space), Mapping):
        raise UserError(f'{where}: no scores found, expected {count} of the form {{class: score}}.')
      _validate_scores(result[space], where)
      if space == 'action':
        _validate_pairs(result[space], where, verbs, nouns, pairs)
      else:
        _validate_classes(result[space], where, count)


def _validate_head(content: Mapping[str, Any]) -> None:
  for name, expected in (('version', VERSION), ('challenge', CHALLENGE)):
    if content.get(name) != expected:
      raise UserError(f"'{name}' is {content.get(name)!r}, expected '{expected}'.")
  for name in LEVELS:
    level = content.get(name)
    if not isinstance(level, int) or not 0 <= level <= 5:
      raise UserError(
        f"'{name}' is {level!r}, expected a whole number from 0 to 5 (supervision levels of the challenge)."
      )
  if not isinstance(content.get('results'), Mapping):
    raise UserError("'results' is absent or no mapping, expected {narration id: {'verb', 'noun', 'action'}}.")


def _validate_scores(scores: Mapping[str, Any], where: str) -> None:
  for name, score in scores.items():
    if not isinstance(score, int | float) or not math.isfinite(score):
      raise UserError(f'{where}: the score of {name!r} is {score!r}, expected a finite number.')


def _validate_classes(scores: Mapping[str, Any], where: str, count: int) -> None:
  expected = {str(i) for i in range(count)}
  if extra := sorted(set(scores) - expected):
    raise UserError(f"{where}: {extra[0]!r} is no class, expected '0' to '{count - 1}'.")
  if missing := sorted(expected - set(scores), key=int):
    raise UserError(f'{where}: {len(missing)} of {count} classes have no score (first: {missing[0]}).')


def _validate_pairs(scores: Mapping[str, Any], where: str, verbs: int, nouns: int, pairs: int) -> None:
  if len(scores) != pairs:
    raise UserError(f'{where}: {len(scores)} pairs found, expected exactly {pairs}.')
  for pair in scores:
    verb, comma, noun = pair.partition(',')
    if not (comma and verb.isdecimal() and noun.isdecimal() and int(verb) < verbs and int(noun) < nouns):
      raise UserError(
        f"{where}: {pair!r} is no pair, expected 'verb,noun' with a verb below {verbs} and a noun below {nouns}."
      )
