"""Top-k accuracy and class-mean recall against scikit-learn and the official loop over classes, ties included."""

import numpy as np
import pytest
from sklearn import metrics as reference

from core.errors import UserError
from core.metrics import classification

RNG = np.random.default_rng(5)
CLASSES = 12
LABELS = RNG.choice([0, 1, 2, 3, 5, 7, 11], 300, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05])  # others never occur
SCORES = RNG.normal(size=(300, CLASSES)) + 1.5 * np.eye(CLASSES)[LABELS]
each_k = pytest.mark.parametrize('k', (1, 2, 5, CLASSES))


def official(scores, labels, k):
  """The loop of the official EPIC-KITCHENS code: mean over the classes that occur of the share of hits."""
  ranks = scores.argsort(axis=-1, kind='stable')[:, ::-1]
  recalls = []
  for c in np.unique(labels):
    rows = labels == c
    recalls.append(np.mean([label in rank[:k] for rank, label in zip(ranks[rows], labels[rows])]))
  return np.mean(recalls)


@each_k
def test_top_k_accuracy_equals_scikit_learn(k):
  if k < CLASSES:  # scikit-learn answers k = C with a warning
    expected = reference.top_k_accuracy_score(LABELS, SCORES, k=k, labels=np.arange(CLASSES))
    assert classification.top_k_accuracy(SCORES, LABELS, k) == pytest.approx(expected, abs=1e-12)
  else:
    assert classification.top_k_accuracy(SCORES, LABELS, k) == 1


@each_k
def test_class_mean_recall_equals_scikit_learn_and_the_official_loop(k):
  best = SCORES.argsort(axis=1)[:, ::-1][:, :k]
  told = np.where((best == LABELS[:, None]).any(axis=1), LABELS, best[:, 0])
  expected = reference.recall_score(LABELS, told, labels=np.unique(LABELS), average='macro', zero_division=0)
  recall = classification.class_mean_recall(SCORES, LABELS, k)
  assert recall == pytest.approx(expected, abs=1e-12)
  assert recall == pytest.approx(official(SCORES, LABELS, k), abs=1e-12)


@pytest.mark.filterwarnings('ignore:y_pred contains classes not in y_true')  # it does, and rightly
def test_class_mean_accuracy_equals_balanced_accuracy():
  expected = reference.balanced_accuracy_score(LABELS, SCORES.argmax(axis=1))
  assert classification.class_mean_accuracy(SCORES, LABELS) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('decimals', (0, 1))
def test_tied_scores_equal_the_official_loop(decimals):
  tied = SCORES.round(decimals)
  assert len(np.unique(tied[0])) < CLASSES
  for k in (1, 5):
    assert classification.class_mean_recall(tied, LABELS, k) == pytest.approx(official(tied, LABELS, k), abs=1e-12)


def test_ties_go_to_the_larger_index():
  scores = np.array([[0.2, 0.5, 0.5, 0.1, 0.5], [0, 0, 0, 0, 0]])
  np.testing.assert_array_equal(classification.ranked(scores, 3), [[4, 2, 1], [4, 3, 2]])
  np.testing.assert_array_equal(classification.ranked(scores, 9)[0], [4, 2, 1, 0, 3])


def test_blocks_do_not_show():
  rows = classification.BLOCK + 7
  scores = RNG.integers(0, 3, (rows, 6)).astype(np.float32)
  whole = np.argsort(scores, axis=1, kind='stable')[:, ::-1][:, :4]
  np.testing.assert_array_equal(classification.ranked(scores, 4), whole)


def test_perfect_scores_give_one_and_absent_classes_do_not_count():
  perfect = np.eye(CLASSES)[LABELS]
  assert classification.top_k_accuracy(perfect, LABELS, 1) == 1
  assert classification.class_mean_accuracy(perfect, LABELS) == 1
  always_zero = np.tile(np.eye(CLASSES)[0], (300, 1))
  assert classification.class_mean_accuracy(always_zero, LABELS) == pytest.approx(1 / 7)  # 7 of the 12 classes occur


def test_every_class_weighs_the_same():
  labels = np.array([0, 0, 0, 1])
  hit = np.array([True, True, False, False])
  assert classification.class_mean(hit, labels) == pytest.approx((2 / 3 + 0) / 2)
  means, counts = classification.class_means(hit, labels, 3)
  np.testing.assert_allclose(means, [2 / 3, 0, np.nan])
  np.testing.assert_array_equal(counts, [3, 1, 0])


def test_nothing_gives_nan():
  scores, labels = np.zeros((0, CLASSES)), np.zeros(0, int)
  assert classification.ranked(scores, 5).shape == (0, 5)
  assert np.isnan(classification.top_k_accuracy(scores, labels, 5))
  assert np.isnan(classification.class_mean_recall(scores, labels, 5))


@pytest.mark.parametrize(
  'scores, labels, named',
  [
    (SCORES[0], LABELS[:1], 'rows, classes'),
    (SCORES, LABELS[:-1], r'\[300\]'),
    (SCORES, LABELS + 0.0, 'whole numbers'),
    (SCORES[:2], np.array([0, CLASSES]), 'Label 12 found .row 1.'),
    (SCORES[:2], np.array([-1, 0]), 'Label -1'),
    (np.where(np.arange(300)[:, None] == 4, np.nan, SCORES), LABELS, 'row 4'),
  ],
)
def test_what_the_caller_got_wrong_is_named(scores, labels, named):
  with pytest.raises(UserError, match=named):
    classification.class_mean_recall(scores, labels, 5)


def test_k_below_one_is_refused():
  with pytest.raises(UserError, match='k is 0'):
    classification.ranked(SCORES, 0)
