"""Optimisers against optax's own, the schedules at their corners, and wrong configs."""

import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from core.errors import UserError
from core.train import optim

PARAMS = {'kernel': jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), 'bias': jnp.ones(3)}
GRADS = {'kernel': jnp.full((2, 3), 3.0), 'bias': jnp.full(3, -2.0)}


def _config(**changes):
  base = {'name': 'adamw', 'learning_rate': 0.1, 'schedule': 'constant', 'warmup_steps': 0, 'weight_decay': 0.0,
          'momentum': 0.0, 'clip_norm': 0.0}  # fmt: skip
  return ml_collections.ConfigDict(base | changes)


def _three_steps(transformation):
  params, state = PARAMS, transformation.init(PARAMS)
  for _ in range(3):
    updates, state = transformation.update(GRADS, state, params)
    params = optax.apply_updates(params, updates)
  return params


def _matrices(params):
  return {name: leaf.ndim >= 2 for name, leaf in params.items()}


@pytest.mark.parametrize(
  ('changes', 'reference'),
  [
    ({'name': 'adam'}, optax.adam(0.1)),
    ({'weight_decay': 0.3}, optax.adamw(0.1, weight_decay=0.3, mask=_matrices)),
    ({'name': 'sgd', 'momentum': 0.9}, optax.sgd(0.1, momentum=0.9)),
    ({'name': 'nesterov', 'momentum': 0.9}, optax.sgd(0.1, momentum=0.9, nesterov=True)),
    ({'name': 'sgd', 'clip_norm': 0.5}, optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1))),
    (
      {'name': 'sgd', 'weight_decay': 0.3},
      optax.chain(optax.add_decayed_weights(0.3, mask=_matrices), optax.sgd(0.1)),
    ),
  ],
)
def test_equals_optax(changes, reference):
  ours, theirs = _three_steps(optim.build(_config(**changes), 10).transformation), _three_steps(reference)
  for name in PARAMS:
    np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6)


def test_parts_learn_at_their_own_rates():
  plain = optim.build(_config(name='adam'), 10).transformation
  scaled = optim.build(_config(name='adam'), 10, {'ker': 0.5, 'kernel': 0.1}).transformation
  slow, fast = _three_steps(scaled), _three_steps(plain)
  np.testing.assert_allclose(slow['kernel'] - PARAMS['kernel'], 0.1 * (fast['kernel'] - PARAMS['kernel']), rtol=1e-5)
  np.testing.assert_array_equal(slow['bias'], fast['bias'])


def test_onecycle_rises_for_a_third_and_falls_to_nothing():
  rate = optim.build(_config(schedule='onecycle'), 100).schedule
  np.testing.assert_allclose([rate(0), rate(30)], [0.004, 0.1], rtol=1e-5)
  assert rate(15) < 0.1 > rate(60) > rate(90) > rate(100) >= 0.0
  with pytest.raises(UserError, match='warmup_steps'):
    optim.build(_config(schedule='onecycle', warmup_steps=3), 100)


@pytest.mark.parametrize('schedule', ['cosine', 'linear', 'constant'])
def test_schedule_warms_up_and_ends(schedule):
  rate = optim.build(_config(schedule=schedule, warmup_steps=4), 12).schedule
  np.testing.assert_allclose([rate(0), rate(2), rate(4)], [0.0, 0.05, 0.1], rtol=1e-6)
  np.testing.assert_allclose(rate(12), 0.1 if schedule == 'constant' else 0.0, atol=1e-7)
  np.testing.assert_allclose(rate(8), 0.1 if schedule == 'constant' else 0.05, rtol=1e-5)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'name': 'adamm'}, "Did you mean 'adam"),
    ({'schedule': 'cosin'}, "Did you mean 'cosine'"),
    ({'learning_rate': 0.0}, 'learning_rate is 0.0'),
    ({'warmup_steps': 10}, 'warmup_steps is 10'),
    ({'clip_norm': -1.0}, 'clip_norm is -1.0'),
  ],
)
def test_wrong_configs_are_named(changes, message):
  with pytest.raises(UserError, match=message):
    optim.build(_config(**changes), 10)
