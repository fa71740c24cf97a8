"""The golden numbers of spec 9b on the real annotations, and their counts on a world small enough to count."""

import numpy as np
import pytest

from core.errors import UserError
from video.arr import annotations, ngram
from video.arr.annotations import tables

MEASURES = ('class_mean_recall_at_5', 'top_5', 'top_1', 'class_mean_top_1')

EPIC = {
  'unigram': (0.37, 8.91, 2.08, 0.07),
  'bigram': (13.56, 34.61, 15.25, 5.94),
  'debiased': (15.44, 27.42, 13.04, 7.22),
  'trigram': (14.92, 35.52, 16.39, 6.94),
}
EGTEA = {
  1: {'bigram': (47.3, 54.2, 26.1, 23.1), 'debiased': (50.4, 51.0, 25.8, 26.1)},
  2: {'bigram': (47.8, 55.2, 25.5, 22.1)},
  3: {'bigram': (45.1, 54.4, 26.4, 22.1)},
}
SALADS = {'bigram': (46.7, 50.5, 44.0, 47.6, 50.5), 'trigram': (47.7, 57.5, 49.2, 51.3, 51.1)}
SALADS_MEAN = {'bigram': 47.9, 'trigram': 51.4}
TOLERANCE = 0.3
"""Percent points (spec 9b)."""


@pytest.fixture(scope='module')
def real(shared_data):
  root = shared_data / 'action_anticipation'
  if not root.is_dir():
    pytest.skip(f'no real annotations at {root}')
  return lambda dataset, fold=1: annotations.read(dataset, root, fold=fold)


def assert_golden(table, golden):
  for model, numbers in golden.items():
    np.testing.assert_allclose([table[model][name] for name in MEASURES], numbers, atol=TOLERANCE, err_msg=model)


def test_golden_numbers_of_epic_kitchens_100(real):
  epic = real('epic_kitchens_100')
  segments = epic.segments
  assert np.sum(segments['target'] & (segments['split'] == 'val')) == 9668
  assert_golden(ngram.table(epic, anticipation=1.0), EPIC)


@pytest.mark.parametrize('fold', EGTEA)
def test_golden_numbers_of_egtea(real, fold):
  assert_golden(ngram.table(real('egtea', fold), anticipation=0.5), EGTEA[fold])


def test_golden_numbers_of_50_salads(real):
  folds = [real('salads', fold) for fold in range(1, 6)]
  assert sum(np.sum(each.segments['target'] & (each.segments['split'] == 'val')) for each in folds) == 949
  measured = [ngram.table(each, anticipation=1.0, prior=2.0) for each in folds]
  for model, golden in SALADS.items():
    top_1 = [each[model]['top_1'] for each in measured]
    np.testing.assert_allclose(top_1, golden, atol=TOLERANCE)
    assert np.mean(top_1) == pytest.approx(SALADS_MEAN[model], abs=TOLERANCE)


# A world small enough to count.


def world(video, start, action, split=None, target=None):
  count = len(action)
  rows = {
    'uid': [f's{i:03d}' for i in range(count)], 'video': video, 'participant': ['P'] * count,
    'start': start, 'stop': np.asarray(start) + 1.0, 'verb': [-1] * count, 'noun': [-1] * count, 'action': action,
    'split': ['train'] * count if split is None else split, 'target': [True] * count if target is None else target,
  }  # fmt: skip
  return tables.columns(rows)


def random_world(seed, count=60, classes=5):
  rng = np.random.default_rng(seed)
  video = np.sort(rng.choice(['a', 'b', 'c'], count))
  start = rng.integers(0, 80, count) / 4
  return world(video, start, rng.integers(0, classes, count), rng.choice(['train', 'val'], count, p=[0.7, 0.3]))


def histories_by_scan(segments, anticipation):
  found = []
  for video, start in zip(segments['video'], segments['start']):
    past = [a for v, s, a in zip(segments['video'], segments['start'], segments['action'])
            if v == video and s <= start - anticipation]  # fmt: skip
    found.append((past[-1] if past else -1, past[-2] if len(past) > 1 else -1))
  return np.array(found)


@pytest.mark.parametrize('anticipation', (0.25, 1.0, 5.0))
def test_histories_equal_a_scan_of_the_video(anticipation):
  for seed in range(5):
    segments = random_world(seed)  # quarters of a second: exact in binary
    np.testing.assert_array_equal(ngram.histories(segments, anticipation), histories_by_scan(segments, anticipation))


def test_a_start_exactly_one_anticipation_time_ago_is_past():
  assert 32 / 30 - 1.0 < 2 / 30  # binary rounding; in frames they are equal
  assert ngram.histories(world(['a', 'a'], [2 / 30, 32 / 30], [0, 1]), 1.0)[1, 0] == 0
  assert ngram.histories(world(['a', 'a'], [3 / 30, 32 / 30], [0, 1]), 1.0)[1, 0] == -1


def test_no_segment_is_its_own_past():
  segments = world(['a'] * 3, [0.0, 0.0, 2.0], [0, 1, 2])
  np.testing.assert_array_equal(ngram.histories(segments, 0.0), [[-1, -1], [0, -1], [1, 0]])


def test_scores_equal_the_formulas():
  classes, prior, anticipation = 5, 3.0, 0.5
  segments = random_world(11)
  history = ngram.histories(segments, anticipation)
  rows = [i for i in range(len(history)) if segments['split'][i] == 'train']
  frequency = np.bincount(segments['action'][rows], minlength=classes) / len(rows)
  split_before = histories_by_scan({**segments, 'action': segments['split'] == 'val'}, anticipation)  # 1: validation

  def smoothed(context, columns, below):
    counts = np.zeros(classes)
    for i in rows:
      if tuple(history[i, :columns]) == context and 1 not in split_before[i, :columns]:
        counts[segments['action'][i]] += 1
    return (counts + prior * below) / (counts.sum() + prior)

  statistics = ngram.fit(segments, classes, anticipation, prior)
  got = {model: ngram.scores(statistics, history, model) for model in ngram.MODELS}
  for i, (p, before) in enumerate(history):
    bigram = smoothed((p,), 1, frequency)
    np.testing.assert_allclose(got['unigram'][i], frequency)
    np.testing.assert_allclose(got['bigram'][i], bigram)
    np.testing.assert_allclose(got['debiased'][i], bigram / np.sqrt(frequency))
    np.testing.assert_allclose(got['trigram'][i], smoothed((p, before), 2, bigram))
  for model in ('unigram', 'bigram', 'trigram'):
    np.testing.assert_allclose(got[model].sum(axis=1), 1)


def test_validation_labels_do_not_enter_the_counts():
  segments = random_world(2)
  changed = {**segments, 'action': np.where(segments['split'] == 'val', 4 - segments['action'], segments['action'])}
  assert (changed['action'] != segments['action']).any()
  asked = np.stack(np.meshgrid(np.arange(-1, 5), np.arange(-1, 5)), axis=-1).reshape(-1, 2)
  for model in ngram.MODELS:
    one, other = (ngram.scores(ngram.fit(each, 5, 0.5), asked, model) for each in (segments, changed))
    np.testing.assert_array_equal(one, other)


def test_a_history_never_seen_falls_back():
  segments = world(['a'] * 4, [0, 2, 4, 6], [0, 1, 0, 1])
  statistics = ngram.fit(segments, 3, 1.0)
  np.testing.assert_allclose(ngram.scores(statistics, np.array([[2, 2]]), 'trigram'), [[0.5, 0.5, 0]])
  np.testing.assert_allclose(ngram.scores(statistics, np.array([[2, 2]]), 'debiased')[0, 2], 0)


def test_only_targets_are_learned_and_judged():
  segments = world(
    ['a'] * 3 + ['b'] * 3, [0, 2, 4] * 2, [2, 0, 1] * 2, ['train'] * 3 + ['val'] * 3, [False, True, True] * 2
  )
  table = ngram.table(annotations.Annotations('tiny', annotations.Vocabulary(('x', 'y', 'start')), segments), 1.0)
  assert table['trigram']['top_1'] == 100  # the opening segment, which nothing announces, is not asked for
  start = ngram.scores(ngram.fit(segments, 3, 1.0), np.array([[-1, -1]]), 'bigram')
  np.testing.assert_allclose(start, [[1 / 3, 1 / 3, 1 / 3]])


def test_best_ranks_every_history_like_its_scores():
  segments = random_world(7)
  statistics, history = ngram.fit(segments, 5, 0.5), ngram.histories(segments, 0.5)
  scores = ngram.scores(statistics, history, 'trigram')
  np.testing.assert_array_equal(ngram.best(statistics, history, 'trigram', 1)[:, 0], 4 - scores[:, ::-1].argmax(axis=1))


def test_next_action_table_holds_the_bigram_of_the_most_frequent_actions():
  segments = world(['a'] * 6, np.arange(6) * 2.0, [3, 1, 3, 1, 3, 0])
  shown = ngram.next_action_table(
    annotations.Annotations('tiny', annotations.Vocabulary(('w', 'x', 'y', 'z')), segments), 1.0, most=2, prior=1e-9
  )
  np.testing.assert_array_equal(shown.actions, [3, 1])
  np.testing.assert_allclose(shown.probability, [[0, 2 / 3], [1, 0]], atol=1e-6)
  np.testing.assert_array_equal(shown.counts, [3, 2])


def test_what_the_caller_got_wrong_is_named():
  segments = random_world(0)
  with pytest.raises(UserError, match="no label model 'bigrams'.*Did you mean 'bigram'"):
    ngram.scores(ngram.fit(segments, 5, 1.0), np.zeros((1, 2), int), 'bigrams')
  with pytest.raises(UserError, match="split 'train'"):
    ngram.fit({**segments, 'split': np.full(60, 'val')}, 5, 1.0)
  with pytest.raises(UserError, match='weight of the prior is 0'):
    ngram.fit(segments, 5, 1.0, prior=0)
