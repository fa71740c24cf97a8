"""The disease-aware consistency loss: its parts in closed form, what flows where (spec 9b, 12)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss
from small_reporter import felt

from core.errors import UserError
from multimodal.trrg import consistency
from multimodal.trrg.observations import BLANK, NEGATIVE, POSITIVE, UNCERTAIN

RNG = np.random.default_rng(0)
LV, LL = RNG.normal(size=(5, 14)).astype(np.float32) * 2, RNG.normal(size=(5, 14)).astype(np.float32) * 2
LABELS = RNG.integers(0, 4, (5, 14)).astype(np.int8)
WEIGHT = (0.5 + RNG.random(14)).astype(np.float32)


def sigmoid(x):
  return 1 / (1 + np.exp(-x.astype(np.float64)))


def test_unweighted_it_is_the_log_loss_of_what_is_known():
  known = LABELS != UNCERTAIN
  expected = log_loss((LABELS == POSITIVE)[known], sigmoid(LV)[known])
  assert float(consistency.cross_entropy(LV, LABELS)) == pytest.approx(expected, abs=1e-5)


def test_positives_are_weighted_by_class():
  y, p, known = LABELS == POSITIVE, sigmoid(LV), LABELS != UNCERTAIN
  each = -np.where(y, WEIGHT * np.log(p), np.log(1 - p))
  assert float(consistency.cross_entropy(LV, LABELS, WEIGHT)) == pytest.approx(each[known].mean(), abs=1e-5)


def test_uncertain_entries_have_no_part_in_it():
  other = np.where(LABELS == UNCERTAIN, LV + 3, LV)
  assert consistency.cross_entropy(other, LABELS, WEIGHT) == consistency.cross_entropy(LV, LABELS, WEIGHT)
  slope = jax.grad(consistency.cross_entropy)(LV, LABELS, WEIGHT)
  assert not np.asarray(slope)[LABELS == UNCERTAIN].any() and np.asarray(slope)[LABELS != UNCERTAIN].all()
  nothing = np.full_like(LABELS, UNCERTAIN)
  assert consistency.cross_entropy(LV, nothing) == 0


def test_blank_and_denied_are_both_absent():
  swapped = np.select([LABELS == BLANK, LABELS == NEGATIVE], [NEGATIVE, BLANK], LABELS)
  assert consistency.cross_entropy(LV, swapped, WEIGHT) == consistency.cross_entropy(LV, LABELS, WEIGHT)


def test_the_divergence_is_that_of_two_coins():
  p, q = sigmoid(LV), sigmoid(LL)
  expected = np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
  assert float(consistency.divergence(LV, LL)) == pytest.approx(expected, abs=1e-5)
  assert abs(float(consistency.divergence(LV, LV))) < 1e-6
  assert np.isfinite(consistency.divergence(jnp.array([90.0, -90.0]), jnp.array([-90.0, 90.0])))


def test_the_divergence_does_not_move_what_the_film_says():
  by_film, by_writer = jax.grad(consistency.divergence, argnums=(0, 1))(LV, LL)
  assert not np.asarray(by_film).any()
  np.testing.assert_allclose(by_writer, (sigmoid(LL) - sigmoid(LV)) / LV.size, atol=1e-6)


def test_the_variants_are_made_of_the_same_parts():
  value = {}
  for kind in consistency.LOSSES:
    value[kind], parts = consistency.loss(LV, LL, LABELS, WEIGHT, kind=kind, beta=0.5)
  visual, language, apart = (float(parts[name]) for name in ('disease_visual', 'disease_language', 'disagreement'))
  assert float(value['full']) == pytest.approx(0.5 * (visual + language) + 0.5 * apart, rel=1e-6)
  assert float(value['visual_only']) == pytest.approx(visual) and float(value['llm_only']) == pytest.approx(language)
  assert value['off'] == 0 and visual != language
  with pytest.raises(UserError, match="Did you mean 'visual_only'"):
    consistency.loss(LV, LL, LABELS, WEIGHT, kind='visual')


def test_rare_classes_weigh_more():
  labels = np.zeros((100, 3), np.int8)
  labels[:10, 0], labels[:, 1] = POSITIVE, POSITIVE
  np.testing.assert_allclose(consistency.positive_weights(labels), [np.log(10), 0.1, np.log(100)], rtol=1e-6)


def test_both_readings_have_one_number_per_observation_from_all_that_is_there():
  head = consistency.Disease(width=8, heads=2, query_width=5)
  rng = np.random.default_rng(0)
  visual, state = rng.normal(size=(2, 4, 6)).astype(np.float32), rng.normal(size=(2, 7)).astype(np.float32)
  mask = np.array([[True] * 4, [True, True, False, True]])
  params = felt(head.init, visual, mask, state)
  run = jax.jit(head.apply)
  lv, ll = run(params, visual, mask, state)
  assert lv.shape == ll.shape == (2, 14)
  other = visual.copy()
  other[:, 2] += 1
  changed, same = run(params, other, mask, state)
  assert np.abs(changed[0] - lv[0]).max() > 1e-6 and np.array_equal(changed[1], lv[1]) and np.array_equal(same, ll)
  assert np.abs(run(params, visual, mask, state + np.arange(7.0))[1] - ll).max() > 1e-6
