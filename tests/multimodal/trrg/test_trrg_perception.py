"""Margins, thresholds against brute force, and the clues that pass them."""

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from core.errors import UserError
from multimodal.trrg import contrast, perception
from multimodal.trrg.observations import CLUES, NEGATIVE, POSITIVE, UNCERTAIN

RNG = np.random.default_rng(0)


def random_margins(count, seed=0):
  return np.random.default_rng(seed).normal(size=(count, CLUES + 1)).astype(np.float32)


def test_prototypes_are_the_unit_means_of_their_own_sentences():
  q = RNG.normal(size=(5, 3)).astype(np.float32)
  owner = np.array([0, 2, 0, 2, 2])
  found = np.asarray(perception.prototypes(q, owner, 3))
  for k in (0, 2):
    mean = q[owner == k].mean(0)
    np.testing.assert_allclose(found[k], mean / np.linalg.norm(mean), atol=1e-6)
  assert not found[1].any()


def test_margins_are_those_of_the_text_and_do_not_depend_on_the_length_of_embeddings():
  x, kernel = RNG.normal(size=(4, 6)).astype(np.float32), RNG.normal(size=(6, 3)).astype(np.float32)
  positive, negative = (contrast.unit(RNG.normal(size=(14, 3)).astype(np.float32)) for _ in range(2))
  margin = jax.jit(lambda x: perception.margins(contrast.embed(x, kernel), positive, negative, 2.0))
  p = x @ kernel / np.linalg.norm(x @ kernel, axis=1, keepdims=True)
  np.testing.assert_allclose(margin(x), np.exp(2) * (p @ positive.T - p @ negative.T), atol=1e-4)
  np.testing.assert_allclose(margin(50 * x), margin(x), atol=1e-4)
  assert np.array_equal(margin(x), margin(x))
  np.testing.assert_allclose(perception.margins(p, negative, positive, 2.0), -margin(x), atol=1e-4)


@hypothesis.given(seed=st.integers(0, 10**6), count=st.integers(8, 60), ties=st.booleans())
@hypothesis.settings(deadline=None, max_examples=25)
def test_thresholds_reach_the_best_f1_that_any_cut_has(seed, count, ties):
  rng = np.random.default_rng(seed)
  margins = rng.normal(size=(count, 3)).astype(np.float32)
  if ties:
    margins = np.round(margins, 1)
  labels = np.where(
    rng.random((count, 3)) < [0.9, 0.4, 0.1], POSITIVE, rng.choice([0, NEGATIVE, UNCERTAIN], (count, 3))
  )
  theta = perception.best_thresholds(margins, labels)
  assert theta.dtype == np.float32
  for k in range(3):
    present = labels[:, k] == POSITIVE
    if present.sum() < perception.FEWEST:
      assert theta[k] == 0
      continue
    cuts = [-np.inf, *margins[:, k]]
    best = max(f1_score(present, margins[:, k] > cut, zero_division=0) for cut in cuts)
    assert f1_score(present, margins[:, k] > theta[k], zero_division=0) == pytest.approx(best)


def test_many_margins_are_searched_at_two_hundred_quantiles():
  rng = np.random.default_rng(0)
  present = rng.random(5000) < 0.2
  margins = (rng.normal(size=5000) + 2.5 * present).astype(np.float32)[:, None]
  labels = np.where(present, POSITIVE, NEGATIVE)[:, None]
  theta = perception.best_thresholds(margins, labels)
  score = lambda cut: f1_score(present, margins[:, 0] > cut)  # noqa: E731
  best = max(score(cut) for cut in np.quantile(margins, np.linspace(0, 1, 200), method='lower'))
  assert score(theta[0]) == pytest.approx(best) and theta[0] in margins


def test_margins_and_labels_of_other_studies_are_named():
  with pytest.raises(UserError, match=r'\(3, 14\).*\(4, 14\)'):
    perception.best_thresholds(np.zeros((3, 14)), np.zeros((4, 14)))


@hypothesis.given(seed=st.integers(0, 10**6), limit=st.integers(0, 13))
@hypothesis.settings(deadline=None, max_examples=40)
def test_clues_are_those_above_their_threshold_the_furthest_first(seed, limit):
  margins, theta = random_margins(6, seed), random_margins(1, seed + 1)[0]
  mask = perception.select(margins, theta, limit)
  ids = perception.ordered(mask, margins, theta, limit)
  assert mask.shape == (6, CLUES) and ids.shape == (6, limit) and ids.dtype == np.int32
  for i in range(6):
    above = margins[i, :CLUES] - theta[:CLUES]
    expected = [k for k in np.argsort(-above) if above[k] > 0][:limit]
    assert ids[i].tolist() == expected + [-1] * (limit - len(expected))
    assert set(np.flatnonzero(mask[i])) == set(expected)


def test_no_finding_is_never_a_clue():
  margins = np.full((1, 14), -1.0)
  margins[0, 13] = 100.0
  assert not perception.select(margins, np.zeros(14)).any()


def test_a_generator_shuffles_the_same_clues():
  margins, theta = random_margins(200), np.zeros(14, np.float32)
  mask = perception.select(margins, theta)
  still, moved = (perception.ordered(mask, margins, theta, 13, rng) for rng in (None, np.random.default_rng(0)))
  assert np.array_equal(np.sort(still, 1), np.sort(moved, 1)) and not np.array_equal(still, moved)
  assert np.array_equal(still < 0, moved < 0)
  first = moved[np.arange(200), 0]
  assert np.mean(first[mask.any(1)] == still[mask.any(1), 0]) < 0.5  # any clue may come first


def test_more_clues_than_places_lose_the_least_sure():
  ids = perception.ordered(np.ones((1, 13), bool), np.arange(14.0)[None], np.zeros(14), 3, np.random.default_rng(0))
  assert set(ids[0]) == {12, 11, 10}


def test_noise_drops_and_replaces_at_its_rates_and_a_wrong_clue_is_new():
  rng = np.random.default_rng(0)
  ids = np.tile(np.array([4, 7, 1, -1], np.int32), (4000, 1))
  found = perception.corrupt(ids, rng)
  assert (ids == [4, 7, 1, -1]).all()  # what is given stays
  dropped = (found < 0).all(1)
  assert abs(dropped.mean() - 0.1) < 3 * np.sqrt(0.09 / 4000)
  kept = found[~dropped]
  changed = kept[:, :3] != [4, 7, 1]
  assert abs(changed.mean() - 0.05) < 3 * np.sqrt(0.05 * 0.95 / changed.size)
  assert (kept[:, 3] == -1).all() and (kept[:, :3] >= 0).all()
  assert not np.isin(kept[:, :3][changed], [4, 7, 1]).any() and kept.max() < CLUES
  assert all(len(set(row)) == 4 for row in kept.tolist())
  assert np.array_equal(perception.corrupt(ids, rng, drop=0.0, replace=0.0), ids)


def test_a_full_list_has_no_wrong_clue():
  ids = np.arange(CLUES, dtype=np.int32)[None]
  assert np.array_equal(perception.corrupt(ids, np.random.default_rng(0), drop=0.0, replace=1.0), ids)
