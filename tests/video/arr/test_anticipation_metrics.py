"""How ARR is judged: the official groups and ceilings on the real lists, each number against the official formula."""

import numpy as np
import pytest

from core.errors import UserError
from video.arr import annotations, evaluation
from video.arr.annotations import tables

RNG = np.random.default_rng(8)
ROWS = 400
VOCABULARY = annotations.Vocabulary(
  actions=tuple(f'a{i}' for i in range(12)), verbs=tuple('vwxy'), nouns=tuple('klmno'),
  verb_of=(0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3), noun_of=(0, 1, 2, 0, 1, 2, 2, 3, 4, 0, 3, 4),
  tail_verbs=(2,), tail_nouns=(0, 3), unseen_participants=('P2',),
)  # fmt: skip


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
  """(probabilities [400, 12], rows): right about half of the time; actions 4 and 10 never occur."""
  action = RNG.choice([0, 1, 2, 3, 5, 6, 7, 8, 9, 11], ROWS)
  logits = RNG.normal(size=(ROWS, 12)) + 1.5 * np.eye(12)[action]
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
  tail = {'verb': rows['verb'] == 2, 'noun': np.isin(rows['noun'], (0, 3))}
  tail['action'] = tail['verb'] | tail['noun']
  assert len(scalars) == 9 * 4
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
  assert count.sum() == ROWS and count[4] == count[10] == 0 and np.isnan(recall[[4, 10]]).all()
  assert 100 * np.nanmean(recall) == pytest.approx(scalars['action/class_mean_recall_at_5'])
  hit = (arrays['verb/top_5'] == rows['verb'][:, None]).any(axis=1)
  assert 100 * hit.mean() == pytest.approx(scalars['verb/top_5'])


def test_marginals_are_probabilities_of_verbs(sample):
  scores, _ = sample
  verbs = evaluation.marginal(scores, VOCABULARY.verb_of, 4)
  np.testing.assert_allclose(verbs, spaces(scores)['verb'], atol=1e-6)
  np.testing.assert_allclose(verbs.sum(axis=1), 1, atol=1e-5)
  assert verbs.dtype == np.float32


def test_perfect_scores_give_100_everywhere(sample):
  _, rows = sample
  scalars, _ = evaluation.judge(np.eye(12, dtype=np.float32)[rows['action']], rows, VOCABULARY, known=np.arange(9))
  assert len(scalars) == 12 * 4 and set(scalars.values()) == {100.0}


def test_groups_without_lists_or_rows_are_left_out():
  plain = annotations.Vocabulary(actions=('a', 'b'))
  rows = {'action': np.array([0, 1]), 'verb': np.array([-1, -1]), 'noun': np.array([-1, -1]), 'participant': ['P1'] * 2}
  scalars, arrays = evaluation.judge(np.eye(2, dtype=np.float32), rows, plain)
  assert {name.split('/')[0] for name in scalars} == {name.split('/')[0] for name in arrays} == {'action'}
  seen_only = rows_of([0, 1, 2], participant=np.array(['P1'] * 3))
  scalars, _ = evaluation.judge(np.eye(12, dtype=np.float32)[:3], seen_only, VOCABULARY)
  assert 'tail/noun/top_1' in scalars  # action 0 has the rare noun 0
  assert not any(name.startswith(('unseen/', 'tail/verb')) for name in scalars)


def test_known_pairs_drop_segments_and_classes(sample):
  scores, rows = sample
  known = np.array([0, 1, 3, 5, 6, 9, 11])
  scalars, _ = evaluation.judge(scores, rows, VOCABULARY, known)
  mask = np.isin(rows['action'], known)
  only = np.where(np.isin(np.arange(12), known), scores, 0)[mask]
  for space, values in spaces(only).items():
    number = scalars[f'known_pairs/{space}/class_mean_recall_at_5']
    assert number == pytest.approx(official_recall(values, rows[space][mask]), abs=1e-4)
    assert scalars[f'{space}/top_1'] == evaluation.judge(scores, rows, VOCABULARY)[0][f'{space}/top_1']
  assert scalars['known_pairs/action/class_mean_recall_at_5'] > scalars['action/class_mean_recall_at_5']


def test_scores_that_do_not_fit_are_named(sample):
  scores, rows = sample
  with pytest.raises(UserError, match="'unknown' must be removed"):
    evaluation.judge(np.zeros((ROWS, 13), np.float32), rows, VOCABULARY)
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
  scalars, _ = evaluation.judge(scores, rows, VOCABULARY, known=np.arange(9))
  for rules in evaluation.PROTOCOLS:
    assert set(rules.scalars) <= set(scalars), rules.name
    assert rules.folds == tuple(range(1, annotations.FOLDS[rules.dataset] + 1)) or rules.name == 'avt'


def test_a_protocol_is_the_mean_over_its_folds_at_its_anticipation_time():
  rules = evaluation.protocol('egtea', 'rulstm')
  folds = {fold: {'action/top_5': 10.0 * fold, 'action/class_mean_recall_at_5': 1.0, 'x': 0.0} for fold in (1, 2, 3)}
  assert evaluation.official(rules, 1.0, folds) == {'action/top_5': 20.0, 'action/class_mean_recall_at_5': 1.0}
  with pytest.raises(UserError, match='anticipates 1 s ahead, these results 0.5 s'):
    evaluation.official(rules, 0.5, folds)
  with pytest.raises(UserError, match='fold 3 has no result'):
    evaluation.official(rules, 1.0, {fold: folds[fold] for fold in (1, 2)})
  with pytest.raises(UserError, match="needs 'action/top_5', which fold 2 has not"):
    evaluation.official(rules, 1.0, {**folds, 2: {}})


def test_unknown_protocols_are_named():
  with pytest.raises(UserError, match="no protocol 'rulsm'; known: avt, rulstm. Did you mean 'rulstm'"):
    evaluation.protocol('egtea', 'rulsm')
  with pytest.raises(UserError, match="dataset 'salad'.*Did you mean 'salads'"):
    evaluation.protocol('salad', 'avt')
