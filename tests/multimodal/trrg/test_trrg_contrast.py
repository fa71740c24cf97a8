"""Stage 1: the loss against CLIP's and against closed forms, which pairs belong together, which sentence is drawn."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from core.errors import UserError
from multimodal.trrg import contrast
from multimodal.trrg.observations import BLANK, NEGATIVE, POSITIVE, UNCERTAIN

KEYS = np.arange(6, dtype=np.int32)
DISTINCT = np.eye(6, 14, dtype=np.int8)  # six signatures
BLANKS = np.zeros((6, 14), np.int8)


def unit(seed, count=6, width=5):
  x = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def labels(seed, count=6):
  rng = np.random.default_rng(seed)
  return np.where(rng.random((count, 14)) < 0.7, BLANK, rng.integers(1, 4, (count, 14))).astype(np.int8)


def log_softmax(x, axis):
  return x - np.log(np.exp(x).sum(axis, keepdims=True))


def closed_form(p, q, tau, rows, columns):
  scores = np.exp(tau) * p.astype(np.float64) @ q.T
  return -(np.sum(rows * log_softmax(scores, 1)) + np.sum(columns * log_softmax(scores, 0))) / (2 * len(p))


def test_identity_is_the_loss_of_clip():
  torch = pytest.importorskip('torch')
  clip = pytest.importorskip('transformers.models.clip.modeling_clip')
  p, q, tau = unit(0), unit(1), 1.7
  value, metrics = contrast.loss(p, q, tau, *contrast.targets('identity', KEYS, DISTINCT, DISTINCT))
  scores = torch.tensor(np.exp(tau) * q @ p.T, dtype=torch.float32)
  assert float(value) == pytest.approx(clip.image_text_contrastive_loss(scores).item(), abs=1e-5)
  assert float(metrics['temperature']) == pytest.approx(np.exp(1.7), rel=1e-5)
  assert float(metrics['accuracy']) == pytest.approx(np.mean((p @ q.T).argmax(1) == np.arange(6)))


def test_medclip_soft_is_its_closed_form():
  p, q, sentence, study = unit(0), unit(1), labels(2), labels(3)
  sign = {BLANK: 0, POSITIVE: 1, NEGATIVE: -1, UNCERTAIN: 1}
  a, b = (np.vectorize(sign.get)(each).astype(np.float64) for each in (study, sentence))
  rows, columns = (np.exp(log_softmax(a @ b.T, axis)) for axis in (1, 0))
  ours = contrast.targets('medclip_soft', KEYS, sentence, study)
  np.testing.assert_allclose(ours[0], rows, atol=1e-6)
  np.testing.assert_allclose(ours[1], columns, atol=1e-6)
  assert float(contrast.loss(p, q, 2.0, *ours)[0]) == pytest.approx(closed_form(p, q, 2.0, rows, columns), abs=1e-5)


@pytest.mark.parametrize('kind', contrast.TARGETS)
@hypothesis.given(seed=st.integers(0, 999), same=st.booleans())
@hypothesis.settings(deadline=None, max_examples=15)
def test_targets_are_distributions_over_sentences_and_over_films(kind, seed, same):
  keys = np.random.default_rng(seed).integers(0, 3 if same else 10**6, 6).astype(np.int32)
  sentence, study = labels(seed), labels(seed + 1)
  rows, columns = map(np.asarray, contrast.targets(kind, keys, sentence, study))
  np.testing.assert_allclose(rows.sum(1), 1, atol=1e-6)
  np.testing.assert_allclose(columns.sum(0), 1, atol=1e-6)
  if kind != 'medclip_soft':
    assert np.array_equal(rows > 0, columns > 0) and (np.diag(rows) > 0).all()
  if kind in ('identity', 'label_match'):
    assert np.array_equal(rows > 0, (rows > 0).T)


def test_label_match_is_identity_where_all_signatures_differ():
  rows, columns = contrast.targets('label_match', KEYS, DISTINCT, DISTINCT)
  assert np.array_equal(rows, np.eye(6)) and np.array_equal(columns, np.eye(6))


def test_label_match_joins_the_same_words_and_the_same_labels_but_not_blanks():
  keys = np.array([0, 1, 0, 3, 4, 5], np.int32)  # sentences 0 and 2 have the same words
  sentence = BLANKS.copy()
  sentence[3, 8] = sentence[4, 8] = NEGATIVE  # 3 and 4 say the same in other words
  sentence[5, 8] = POSITIVE
  matrix = np.asarray(contrast.targets('label_match', keys, sentence, BLANKS)[0]) > 0
  expected = np.eye(6, dtype=bool)
  expected[[0, 2, 3, 4], [2, 0, 4, 3]] = True
  assert np.array_equal(matrix, expected)


def test_study_match_asks_the_report_of_the_film():
  sentence, study = BLANKS.copy(), BLANKS.copy()
  sentence[0, [1, 9]] = POSITIVE, NEGATIVE
  study[1, [1, 9, 4]] = POSITIVE, NEGATIVE, UNCERTAIN  # agrees with sentence 0, and says more
  study[2, [1, 9]] = POSITIVE, POSITIVE  # agrees with half of it
  matrix = np.asarray(contrast.targets('study_match', KEYS, sentence, study)[0]) > 0
  expected = np.eye(6, dtype=bool)
  expected[1, 0] = True  # and a sentence without labels belongs to its own film alone
  assert np.array_equal(matrix, expected)


def test_perfect_pairs_have_a_small_loss_and_shuffled_ones_a_large_one():
  p = np.eye(6, dtype=np.float32)
  wanted = contrast.targets('identity', KEYS, DISTINCT, DISTINCT)
  assert float(contrast.loss(p, p, 4.0, *wanted)[0]) < 1e-6
  assert float(contrast.loss(p, np.roll(p, 1, 0), 4.0, *wanted)[0]) > 50


def test_the_temperature_stays_in_its_bounds_and_can_come_back():
  slope = jax.grad(lambda tau, sign: sign * contrast.bounded(tau))
  for tau, value, passes in ((-0.5, 0.0, -1), (5.0, np.log(100), 1)):
    assert float(contrast.bounded(tau)) == pytest.approx(value)
    assert float(slope(tau, float(passes))) == passes  # the step against the gradient leads back
    assert float(slope(tau, float(-passes))) == 0
  assert float(slope(2.0, 1.0)) == 1 and float(slope(2.0, -1.0)) == -1


def test_embeddings_are_unit_vectors_and_zero_has_a_gradient():
  kernel = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
  x = unit(0) * 7
  np.testing.assert_allclose(np.linalg.norm(contrast.embed(x, kernel), axis=-1), 1, atol=1e-6)
  np.testing.assert_allclose(contrast.embed(x, kernel), contrast.embed(x / 100, kernel), atol=1e-5)
  assert np.isfinite(jax.grad(lambda x: contrast.embed(x, kernel).sum())(jnp.zeros((1, 5)))).all()


@pytest.mark.parametrize('first', [0.8, 0.0, 1.0])
@pytest.mark.parametrize('kinds', [[2, 0, 1, 1, 0], [2, 2, 1], [2]])
def test_the_share_of_abnormal_sentences_is_the_analytic_one(kinds, first):
  rng, draws = np.random.default_rng(1), 4000
  chosen = np.array([contrast.sample(kinds, rng, first) for _ in range(draws)])
  kinds = np.array(kinds)
  share = first + (1 - first) * np.mean(kinds == contrast.ABNORMAL)
  found = np.mean(kinds[chosen] == contrast.ABNORMAL)
  assert abs(found - share) <= 3 * np.sqrt(share * (1 - share) / draws)
  if 0 < first < 1:
    assert set(chosen.tolist()) == set(range(len(kinds)))  # no sentence is out of reach


def test_reports_without_an_abnormal_sentence_never_fail():
  rng = np.random.default_rng(0)
  chosen = [contrast.sample(np.array([0, 1, 1], np.int8), rng) for _ in range(3000)]
  assert np.abs(np.bincount(chosen, minlength=3) / 3000 - 1 / 3).max() < 3 * np.sqrt(2 / 9 / 3000)
  with pytest.raises(UserError, match='without a sentence'):
    contrast.sample([], rng)


def test_typos_are_named():
  with pytest.raises(UserError, match="Did you mean 'label_match'"):
    contrast.targets('label_macth', KEYS, DISTINCT, DISTINCT)
