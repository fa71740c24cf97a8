"""SimAC's choice of timesteps, with a loss whose gradient is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_diffusion import MODEL, params

from generative.ddap import selection, spatial

PHOTOS = jnp.zeros((3, 16, 16, 3))
IDS = jnp.zeros((1, 10), jnp.int32)
KEYS = jax.random.split(jax.random.key(0), 3)


@pytest.fixture
def chosen(monkeypatch):
  """bool [3, T] where the gradient of the loss grows with t; for the last photo it falls."""
  weights = jnp.array([1.0, 1.0, -1.0])

  def loss(model, params, moments, context, draws):
    rate = jnp.where(weights > 0, draws.t, model.schedule.steps - draws.t)
    return rate * moments[0].mean((1, 2, 3))

  monkeypatch.setattr(spatial, 'denoising_loss', loss)
  selection.timesteps.clear_cache()
  found = np.asarray(selection.timesteps(MODEL, params(), PHOTOS, IDS, KEYS, 0.01, 0.05))
  selection.timesteps.clear_cache()
  return found


def test_what_remains_is_at_most_a_tenth_and_where_the_gradient_is_large(chosen):
  assert chosen.shape == (3, 200) and chosen.dtype == bool
  counts = chosen.sum(1)
  assert (counts <= 20).all() and (counts > 20 - 8).all()  # each round strikes at most 8 of 200
  middle = np.array([np.flatnonzero(row).mean() for row in chosen])
  assert middle[:2].min() > 150 and middle[2] < 50


def test_photos_choose_for_themselves(chosen):
  assert (chosen[0] != chosen[1]).any()


def test_the_window_stays_within_the_schedule():
  found = np.asarray(selection._around(jnp.array([0, 100, 199]), 200))
  assert [list(np.flatnonzero(row)[[0, -1]]) for row in found] == [[0, 7], [96, 103], [192, 199]]
