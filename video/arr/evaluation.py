"""How anticipation is judged: the measures of three benchmarks, the groups they look at, and their protocols by name.

Numbers under one name must mean one thing. Two pairs are easily mixed and are kept apart here (spec 5.2):
EPIC-KITCHENS-100 over all validation segments, and over those whose (verb, noun) pair occurs in training (the group
'known_pairs', where the ceiling is 100 and not 82.4); EGTEA half a second ahead by top-1 ('avt'), and one second ahead
by top-5 ('rulstm').
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from core.errors import UserError
from core.metrics import classification
from video.arr.annotations.tables import Vocabulary

SPACES = ('action', 'verb', 'noun')

KNOWN_PAIRS = 'known_pairs'
"""The group of segments whose action occurs in training, ranked among such actions: V-JEPA 2's protocol."""


@dataclasses.dataclass(frozen=True)
class Protocol:
  """Which numbers of a dataset the literature compares.

  Attributes:
    dataset: 'epic_kitchens_100', 'egtea' or 'salads'.
    name: short name, unique within its dataset.
    anticipation: tau_a in seconds.
    folds: numbers of the splits whose mean is reported.
    scalars: names in `judge`, the primary number first.
    source: who reports it.
  """

  dataset: str
  name: str
  anticipation: float
  folds: tuple[int, ...]
  scalars: tuple[str, ...]
  source: str


def _names(measures: Sequence[str], spaces: Sequence[str] = SPACES, groups: Sequence[str] = ('',)) -> tuple[str, ...]:
  return tuple(f'{group}{space}/{measure}' for group in groups for space in spaces for measure in measures)


PROTOCOLS = (
  Protocol(
    'epic_kitchens_100', 'epic', 1.0, (1,), _names(['class_mean_recall_at_5'], groups=('', 'unseen/', 'tail/')),
    'the official challenge: class-mean top-5 recall over all validation segments',
  ),
  Protocol(
    'epic_kitchens_100', KNOWN_PAIRS, 1.0, (1,), _names(['class_mean_recall_at_5'], groups=(f'{KNOWN_PAIRS}/',)),
    'V-JEPA 2: segments and classes whose (verb, noun) pair occurs in training; not comparable with the official one',
  ),
  Protocol('egtea', 'avt', 0.5, (1,), _names(['top_1', 'class_mean_top_1']), 'AVT: split 1'),
  Protocol(
    'egtea', 'rulstm', 1.0, (1, 2, 3), _names(['top_5', 'class_mean_recall_at_5'], ['action']),
    'RULSTM and DCR: mean over the three splits',
  ),
  Protocol('salads', 'avt', 1.0, (1, 2, 3, 4, 5), _names(['top_1'], ['action']), 'AVT: five-fold cross-validation'),
)  # fmt: skip
"""All protocols (spec 5.2)."""


def reported(dataset: str, anticipation: float, folds: Sequence[int], scalars: Mapping[str, float]) -> dict[str, float]:
  """One fold's numbers under the names of the protocols that the experiment follows; their mean over folds is reported.

  Args:
    dataset: the experiment's.
    anticipation: tau_a in seconds that the results were computed at.
    folds: all folds of the experiment: a protocol that wants others is left out, as is one of another tau_a.
    scalars: of `judge`, on one fold.

  Returns:
    {'protocol/<name>/<scalar>': number}.
  """
  followed = [
    rules for rules in PROTOCOLS
    if rules.dataset == dataset and np.isclose(rules.anticipation, anticipation) and rules.folds == tuple(folds)
  ]  # fmt: skip
  return {
    f'protocol/{rules.name}/{name}': scalars[name] for rules in followed for name in rules.scalars if name in scalars
  }


def marginal(action_probs: np.ndarray, of: Sequence[int], count: int) -> np.ndarray:
  """Verb (or noun) probabilities: sums over the actions that have the verb (spec 3.5).

  Args:
    action_probs: f32 [N, C].
    of: [C], the verb of each action.
    count: V, number of verbs.

  Returns:
    f32 [N, V]; 0 for a verb that no action has.
  """
  return action_probs @ np.eye(count, dtype=action_probs.dtype)[np.asarray(of, np.int64)]


def training_actions(segments: Mapping[str, np.ndarray]) -> np.ndarray:
  """int64 [K], rising: the actions that occur in the split 'train', for `judge(known=...)`."""
  actions = np.unique(segments['action'][segments['split'] == 'train']).astype(np.int64)
  return actions[actions >= 0]


def groups(rows: Mapping[str, np.ndarray], vocabulary: Vocabulary) -> dict[str, dict[str, np.ndarray]]:
  """The official groups of segments: name -> space -> bool [N].

  '': all; 'unseen': of participants who are in no training video; 'tail': of a rare verb, of a rare noun, and for
  actions of either. Groups of which the dataset has no list are absent; spaces are those that it has.
  """
  everyone = np.ones(len(rows['action']), bool)
  spaces = SPACES if vocabulary.verbs else SPACES[:1]
  found = {'': dict.fromkeys(spaces, everyone)}
  if vocabulary.unseen_participants:
    unseen = np.isin(rows['participant'], vocabulary.unseen_participants)
    found['unseen'] = dict.fromkeys(spaces, unseen)
  if vocabulary.tail_verbs and vocabulary.tail_nouns:
    verb, noun = np.isin(rows['verb'], vocabulary.tail_verbs), np.isin(rows['noun'], vocabulary.tail_nouns)
    found['tail'] = {'action': verb | noun, 'verb': verb, 'noun': noun}
  return found


def judge(
  action_scores: np.ndarray,
  rows: Mapping[str, np.ndarray],
  vocabulary: Vocabulary,
  known: np.ndarray | None = None,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
  """All measures of one set of anticipated segments.

  Args:
    action_scores: f32 [N, C], probabilities of the actions, "unknown" removed. (Only their order matters for actions;
      verbs and nouns are sums of them.)
    rows: the columns of the N segments.
    vocabulary: of the dataset.
    known: int [K], actions that occur in training (`training_actions`): adds the group 'known_pairs'.

  Returns:
    scalars: '[group/]space/measure' IN PERCENT, as the field prints them; groups as in `groups`, measures as in
      `core.metrics.classification.MEASURES`. Groups and spaces without rows are left out.
    arrays: per space, over all rows: '<space>/top_5' int64 [N, 5], best first; '<space>/class_recall_at_5' f64
      [classes] in [0, 1], NaN where no row has the class; '<space>/class_count' int64 [classes].
  """
  if len(action_scores) != len(rows['action']) or action_scores.shape[1] != vocabulary.classes:
    raise UserError(
      f'Action scores have the shape {action_scores.shape}, expected one row per segment and one column per action:'
      f" ({len(rows['action'])}, {vocabulary.classes}). The column of 'unknown' must be removed."
    )
  scalars, arrays = {}, {}
  best = _best(action_scores, vocabulary)
  for group, masks in groups(rows, vocabulary).items():
    for space, mask in masks.items():
      scalars |= _measures(best[space][mask], rows[space][mask], f'{group}/{space}' if group else space)
  for space, top in best.items():
    recall, count = classification.class_means(
      classification.hits(top, rows[space]), rows[space], len(getattr(vocabulary, f'{space}s'))
    )
    arrays |= {f'{space}/top_5': top, f'{space}/class_recall_at_5': recall, f'{space}/class_count': count}
  if known is not None:
    mask = np.isin(rows['action'], known)
    for space, top in _best(action_scores[mask], vocabulary, np.asarray(known)).items():
      scalars |= _measures(top, rows[space][mask], f'{KNOWN_PAIRS}/{space}')
  return scalars, arrays


def _best(scores: np.ndarray, vocabulary: Vocabulary, among: np.ndarray | None = None) -> dict[str, np.ndarray]:
  """space -> int64 [N, 5] best classes, from the scores of all actions or of some (int [K]) alone."""
  among = np.arange(vocabulary.classes) if among is None else among
  scores = scores if len(among) == vocabulary.classes else scores[:, among]
  best = {'action': among[classification.ranked(scores, 5)]}
  if vocabulary.verbs:
    for space, of, names in (
      ('verb', vocabulary.verb_of, vocabulary.verbs),
      ('noun', vocabulary.noun_of, vocabulary.nouns),
    ):
      best[space] = classification.ranked(marginal(scores, np.asarray(of)[among], len(names)), 5)
  return best


def _measures(top: np.ndarray, labels: np.ndarray, prefix: str) -> dict[str, float]:
  """'<prefix>/<measure>' in percent, from int [N, 5] ranked classes; nothing where there are no rows."""
  if not len(labels):
    return {}
  return {f'{prefix}/{name}': 100 * rate for name, rate in classification.summary(top, labels).items()}
