"""Sign steps within a budget: projection with two budgets, FGSM, PGD."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from core.attacks import fgsm, move, pgd, project, random_signs, random_start, sign_step
from core.attacks.projection import radius

SHAPE = (2, 4, 5, 3)
RNG = np.random.default_rng(0)
ORIGINAL = jnp.asarray(RNG.uniform(-1, 1, SHAPE), jnp.float32)
FAR = ORIGINAL + jnp.asarray(RNG.normal(0, 1, SHAPE), jnp.float32)
HARD = jnp.asarray(RNG.uniform(size=(*SHAPE[:3], 1)) > 0.5, jnp.float32)
SOFT = jnp.asarray(RNG.uniform(size=(*SHAPE[:3], 1)), jnp.float32)
MOVE = jax.jit(move)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), epsilon=st.floats(0, 1), share=st.floats(0, 1), size=st.floats(0, 3))
def test_every_step_ends_within_the_budget_and_the_range(seed, epsilon, share, size):
  rng = np.random.default_rng(seed)
  mask = jnp.asarray(rng.uniform(size=(*SHAPE[:3], 1)).round(1), jnp.float32)
  x = ORIGINAL
  for _ in range(3):
    x = MOVE(x, ORIGINAL, jnp.asarray(rng.normal(0, size, SHAPE), jnp.float32), epsilon, mask, share * epsilon)
    most = np.broadcast_to(np.asarray(radius(epsilon, mask, share * epsilon)), SHAPE)
    assert np.all(np.abs(np.asarray(x - ORIGINAL)) <= most + 1e-6)
    assert np.abs(np.asarray(x)).max() <= 1


def test_two_budgets_of_a_hard_mask_are_those_of_hf_adb():
  d = np.asarray(FAR - ORIGINAL)
  expected = np.clip(ORIGINAL + np.clip(d, -0.3, 0.3) * HARD + np.clip(d, -0.1, 0.1) * (1 - HARD), -1, 1)
  np.testing.assert_array_equal(project(FAR, ORIGINAL, 0.3, HARD, 0.1), expected)


def test_outside_the_mask_the_original_stays_bit_for_bit():
  found = np.asarray(project(FAR, ORIGINAL, 0.3, HARD))
  outside = np.broadcast_to(np.asarray(HARD) == 0, SHAPE)
  np.testing.assert_array_equal(found[outside], np.asarray(ORIGINAL)[outside])
  assert (found != np.asarray(ORIGINAL))[~outside].all()


def test_a_mask_of_ones_is_no_mask_and_one_of_zeros_moves_nothing():
  ones = jnp.ones_like(HARD)
  step = functools.partial(sign_step, ORIGINAL, ORIGINAL, FAR, 0.2, 0.3)
  np.testing.assert_array_equal(step(ones), step())
  np.testing.assert_array_equal(step(0 * ones), ORIGINAL)


def test_projecting_twice_is_projecting_once_with_a_soft_mask_too():
  once = project(FAR, ORIGINAL, 0.3, SOFT)
  np.testing.assert_allclose(project(once, ORIGINAL, 0.3, SOFT), once, atol=1e-7)
  assert np.abs(np.asarray(project(FAR, ORIGINAL, 0.3, SOFT) - ORIGINAL)).max() > 0.2


def test_outside_the_mask_steps_are_as_much_shorter_as_the_budget():
  middle = jnp.zeros(SHAPE)
  found = np.asarray(sign_step(middle, middle, jnp.ones(SHAPE), 0.01, 0.3, HARD, 0.1))
  np.testing.assert_allclose(found, np.broadcast_to(np.where(HARD > 0, 0.01, 0.01 / 3), SHAPE), rtol=1e-5)


def test_no_gradient_no_budget_or_no_step_moves_nothing():
  for gradient, step, epsilon in ((jnp.zeros(SHAPE), 0.1, 0.3), (FAR, 0.0, 0.3), (FAR, 0.1, 0.0)):
    np.testing.assert_array_equal(sign_step(ORIGINAL, ORIGINAL, gradient, step, epsilon, SOFT), ORIGINAL)


def test_fgsm_and_pgd_reach_the_corner_that_a_linear_loss_points_to():
  weights = jnp.asarray(RNG.normal(size=SHAPE), jnp.float32)
  loss = lambda x, key: (weights * x).sum()  # noqa: E731
  corner = np.clip(np.asarray(ORIGINAL) + 0.2 * np.sign(np.asarray(weights)), -1, 1)
  key = jax.random.key(0)
  np.testing.assert_allclose(fgsm(loss, ORIGINAL, key, epsilon=0.2), corner, atol=1e-6)
  found, losses = pgd(loss, ORIGINAL, key, epsilon=0.2, step=0.05, steps=4)
  np.testing.assert_allclose(found, corner, atol=1e-6)
  assert np.all(np.diff(losses) > 0)
  np.testing.assert_allclose(losses[0], loss(ORIGINAL, key), rtol=1e-5)


def test_pgd_gives_every_step_and_every_photo_noise_of_its_own():
  def loss(x, keys):
    return sum((x[i] * jax.random.normal(keys[i], SHAPE[1:])).sum() for i in range(x.shape[0]))

  keys = jax.random.split(jax.random.key(1), 2)
  run = functools.partial(pgd, loss, epsilon=1.0, step=0.1, steps=3)
  both = run(ORIGINAL, keys)[0]
  np.testing.assert_array_equal(run(ORIGINAL[1:], keys[1:])[0][0], both[1])
  assert len(np.unique(np.abs(np.asarray(both - ORIGINAL)).round(3))) > 2  # not always the same direction


def test_a_loss_that_is_a_distance_stays_where_it_is_unless_it_starts_away_from_it():
  loss = lambda x, key: jnp.square(x - ORIGINAL).sum()  # noqa: E731
  keys = jax.random.split(jax.random.key(2), 2)
  stuck, _ = pgd(loss, ORIGINAL, keys, epsilon=0.2, step=0.05, steps=5)
  np.testing.assert_array_equal(stuck, ORIGINAL)
  start = random_start(keys, ORIGINAL, 0.02)
  assert 0 < np.abs(np.asarray(start - ORIGINAL)).max() <= 0.02 + 1e-6
  assert pgd(loss, ORIGINAL, keys, epsilon=0.2, step=0.05, steps=5, start=start)[1][-1] > 100 * loss(start, keys)


def test_random_signs_use_the_whole_budget_and_do_not_depend_on_the_batch():
  keys = jax.random.split(jax.random.key(3), 2)
  found = random_signs(keys, ORIGINAL / 2, 0.3)
  np.testing.assert_allclose(np.abs(np.asarray(found - ORIGINAL / 2)), 0.3, atol=1e-6)
  np.testing.assert_array_equal(random_signs(keys[1:], ORIGINAL[1:] / 2, 0.3)[0], found[1])
  assert abs(float(jnp.sign(found - ORIGINAL / 2).mean())) < 0.4
