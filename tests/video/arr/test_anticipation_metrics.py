"""How ARR is judged: the official groups and ceilings on the real lists, each number against the official formula."""

import numpy as np
import pytest

from core.errors import UserError
from video.arr import annotations, evaluation
from video.arr.annotations import tables

RNG = np.random.default_rng(8)
ROWS = 400
PAIRS = [(v, n) for v in range(8) for n in range(9) if (3 * v + n) % 2]  # 36 actions; top-5 of 8 verbs says something
VOCABULARY = annotations.Vocabulary(
  actions=tuple(f'{v} {n}' for v, n in PAIRS), verbs=tuple('abcdefgh'), nouns=tuple('klmnopqrs'),
  verb_of=tuple(v for v, _ in PAIRS), noun_of=tuple(n for _, n in PAIRS),
  tail_verbs=(2, 5), tail_nouns=(0, 3), unseen_participants=('P2',),
)  # fmt: skip
CLASSES = len(PAIRS)
ABSENT = (4, 10)
KNOWN = np.flatnonzero(np.arange(CLASSES) % 3 != 1)


def rows_of(action, vocabulary=VOCABULARY, participant=None):
  action = np.asarray(action, np.int32)
  return {
    'action': action,
    'verb': np.asarray(vocabulary.verb_of, np.int32)[action],
    'noun': np.asarray(vocabulary.noun_of, np.int32)[action],
    'participant': RNG.choice(['P1', 'P2'], len(action)) if participant is None else participant,
  }


@pytest.fixture(scope='module')
def sample():
  """(probabilities [400, 36], rows): right about half of the time; two actions never occur."""
  action = RNG.choice(np.setdiff1d(np.arange(CLASSES), ABSENT), ROWS)
  logits = 1.5 * RNG.normal(size=(ROWS, CLASSES)) + 2 * np.eye(CLASSES)[action]
  scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  return scores.astype(np.float32), rows_of(action)


def official_recall(scores, labels, k=5):
  """The loop over classes of the official code, in percent."""
  ranks = scores.argsort(axis=-1, kind='stable')[:, ::-1][:, :k]
  means = [np.mean([c in ranks[i] for i in np.flatnonzero(labels == c)]) for c in np.unique(labels)]
  return 100 * np.mean(means)


def spaces(scores, vocabulary=VOCABULARY):
  """Scores of actions, verbs and nouns, by summing one action after the other."""
  verb, noun = (np.zeros((len(scores), len(names))) for names in (vocabulary.verbs, vocabulary.nouns))
  for action in range(scores.shape[1]):
    verb[:, vocabulary.verb_of[action]] += scores[:, action]
    noun[:, vocabulary.noun_of[action]] += scores[:, action]
  return {'action': scores, 'verb': verb, 'noun': noun}


def test_every_number_equals_the_official_formula(sample):
  scores, rows = sample
  scalars, _ = evaluation.judge(scores, rows, VOCABULARY)
  unseen = rows['participant'] == 'P2'
  tail = {'verb': np.isin(rows['verb'], (2, 5)), 'noun': np.isin(rows['noun'], (0, 3))}
  tail['action'] = tail['verb'] | tail['noun']
  assert len(scalars) == 9 * 4 and max(scalars.values()) < 100
  for space, values in spaces(scores).items():
    labels = rows[space]
    for group, mask in (('', np.ones(ROWS, bool)), ('unseen/', unseen), ('tail/', tail[space])):
      hit_1 = values[mask].argmax(axis=1) == labels[mask]
      hit_5 = (np.argsort(values[mask], axis=1)[:, -5:] == labels[mask][:, None]).any(axis=1)
      expected = {
        'class_mean_recall_at_5': official_recall(values[mask], labels[mask]),
        'class_mean_top_1': official_recall(values[mask], labels[mask], k=1),
        'top_1': 100 * hit_1.mean(), 'top_5': 100 * hit_5.mean(),
      }  # fmt: skip
      for measure, number in expected.items():
        assert scalars[f'{group}{space}/{measure}'] == pytest.approx(number, abs=1e-4), (group, space, measure)


def test_arrays_tell_what_the_numbers_rest_on(sample):
  scores, rows = sample
  scalars, arrays = evaluation.judge(scores, rows, VOCABULARY)
  recall, count = arrays['action/class_recall_at_5'], arrays['action/class_count']
  assert count.sum() == ROWS and not count[list(ABSENT)].any() and np.isnan(recall[list(ABSENT)]).all()
  assert 100 * np.nanmean(recall) == pytest.approx(scalars['action/class_mean_recall_at_5'])
  hit = (arrays['verb/top_5'] == rows['verb'][:, None]).any(axis=1)
  assert 100 * hit.mean() == pytest.approx(scalars['verb/top_5'])


def test_marginals_are_probabilities_of_verbs(sample):
  scores, _ = sample
  verbs = evaluation.marginal(scores, VOCABULARY.verb_of, 8)
  np.testing.assert_allclose(verbs, spaces(scores)['verb'], atol=1e-6)
  np.testing.assert_allclose(verbs.sum(axis=1), 1, atol=1e-5)
  assert verbs.dtype == np.float32


def test_perfect_scores_give_100_everywhere(sample):
  _, rows = sample
  scalars, _ = evaluation.judge(np.eye(CLASSES, dtype=np.float32)[rows['action']], rows, VOCABULARY, known=KNOWN)
  assert len(scalars) == 12 * 4 and set(scalars.values()) == {100.0}


def test_groups_without_lists_or_rows_are_left_out():
  plain = annotations.Vocabulary(actions=('a', 'b'))
  rows = {'action': np.array([0, 1]), 'verb': np.array([-1, -1]), 'noun': np.array([-1, -1]), 'participant': ['P1'] * 2}
  scalars, arrays = evaluation.judge(np.eye(2, dtype=np.float32), rows, plain)
  assert {name.split('/')[0] for name in scalars} == {name.split('/')[0] for name in arrays} == {'action'}
  common_verb = [PAIRS.index((0, 3)), PAIRS.index((0, 5))]
  seen_only = rows_of(common_verb, participant=np.array(['P1'] * 2))
  scalars, _ = evaluation.judge(np.eye(CLASSES, dtype=np.float32)[common_verb], seen_only, VOCABULARY)
  assert {'tail/noun/top_1', 'tail/action/top_1'} <= set(scalars)  # of the rare noun 3
  assert not any(name.startswith(('unseen/', 'tail/verb')) for name in scalars)


def test_known_pairs_drop_segments_and_classes(sample):
  scores, rows = sample
  scalars, _ = evaluation.judge(scores, rows, VOCABULARY, KNOWN)
  mask = np.isin(rows['action'], KNOWN)
  only = np.where(np.isin(np.arange(CLASSES), KNOWN), scores, 0)[mask]
  for space, values in spaces(only).items():
    number = scalars[f'known_pairs/{space}/class_mean_recall_at_5']
    assert number == pytest.approx(official_recall(values, rows[space][mask]), abs=1e-4)
    assert number < 100
  assert scalars['known_pairs/action/class_mean_recall_at_5'] > scalars['action/class_mean_recall_at_5']
  open_world, _ = evaluation.judge(scores, rows, VOCABULARY)
  assert open_world == {name: scalars[name] for name in open_world}


def test_scores_that_do_not_fit_are_named(sample):
  scores, rows = sample
  with pytest.raises(UserError, match="'unknown' must be removed"):
    evaluation.judge(np.zeros((ROWS, CLASSES + 1), np.float32), rows, VOCABULARY)
  unlabelled = {**rows, 'action': np.where(np.arange(ROWS) == 3, -1, rows['action'])}
  with pytest.raises(UserError, match='Label -1 found .row 3'):
    evaluation.judge(scores, unlabelled, VOCABULARY)


# The real lists of EPIC-KITCHENS-100.


@pytest.fixture(scope='module')
def epic(shared_data):
  root = shared_data / 'action_anticipation'
  if not root.is_dir():
    pytest.skip(f'no real annotations at {root}')
  found = annotations.read('epic_kitchens_100', root)
  return found, tables.select(found.segments, found.segments['split'] == 'val')


def test_official_groups_have_their_sizes(epic, shared_data):
  found, rows = epic
  masks = evaluation.groups(rows, found.vocabulary)
  assert {space: int(mask.sum()) for space, mask in masks['tail'].items()} == {
    'action': 3105, 'verb': 1760, 'noun': 1900,
  }  # fmt: skip
  assert masks['']['action'].sum() == 9668 and masks['unseen']['verb'].sum() == 1065
  listed = shared_data / 'action_anticipation' / 'epic_kitchens_100' / 'rulstm_validation_tail_actions_ids.csv'
  assert set(rows['uid'][masks['tail']['action']]) == set(listed.read_text().split())


def test_the_closed_vocabulary_has_its_ceiling(epic):
  found, rows = epic
  known = evaluation.training_actions(found.segments)
  assert len(known) == 3568 and np.sum(~np.isin(rows['action'], known)) == 372
  perfect = np.zeros((len(rows['action']), found.vocabulary.classes), np.float32)
  perfect[np.arange(len(perfect)), rows['action']] = 1
  closed = np.where(np.isin(np.arange(found.vocabulary.classes), known), perfect, np.float32(-1))
  scalars, _ = evaluation.judge(closed, rows, found.vocabulary, known)
  assert scalars['action/class_mean_recall_at_5'] == pytest.approx(82.4, abs=0.05)
  assert scalars['known_pairs/action/class_mean_recall_at_5'] == 100
  scalars, _ = evaluation.judge(perfect, rows, found.vocabulary)
  assert len(scalars) == 9 * 4 and set(scalars.values()) == {100.0}


# Protocols.


def test_protocols_ask_for_scalars_that_judge_gives(sample):
  scores, rows = sample
  scalars, _ = evaluation.judge(scores, rows, VOCABULARY, known=KNOWN)
  for rules in evaluation.PROTOCOLS:
    assert set(rules.scalars) <= set(scalars), rules.name
    assert rules.folds == tuple(range(1, annotations.FOLDS[rules.dataset] + 1)) or rules.name == 'avt'


def test_numbers_bear_a_protocols_name_only_at_its_anticipation_time_and_over_its_folds():
  scalars = {'action/top_5': 10.0, 'action/class_mean_recall_at_5': 1.0, 'x': 0.0}
  rulstm = {'protocol/rulstm/action/top_5': 10.0, 'protocol/rulstm/action/class_mean_recall_at_5': 1.0}
  assert evaluation.reported('egtea', 1.0, (1, 2, 3), scalars) == rulstm
  assert evaluation.reported('egtea', 1.0, (1,), scalars) == {}
  assert evaluation.reported('egtea', 0.5, (1, 2, 3), scalars) == {}
  assert evaluation.reported('kitchen', 1.0, (1,), scalars) == {}
  assert evaluation.reported('egtea', 0.5, (1,), {'action/top_1': 3.0}) == {'protocol/avt/action/top_1': 3.0}
