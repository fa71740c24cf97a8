"""The step: accumulation, frozen leaves, the moving average, and what happens to a loss that is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from core.errors import UserError
from core.train import mesh as mesh_lib
from core.train import optim, state, step
from core.train.task import LossOutput, Stage

MESH = mesh_lib.make()


def _variables():
  rng = np.random.default_rng(0)
  params = {'base': {'kernel': rng.normal(size=(5, 7))}, 'head': {'kernel': rng.normal(size=(7, 1))}}
  return {'params': jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)}


def _loss(variables, batch, rng, step):
  """A mean over the valid targets only, like a loss over tokens."""
  params = variables['params']
  error = (jnp.tanh(batch['x'] @ params['base']['kernel']) @ params['head']['kernel'])[:, 0] - batch['y']
  loss = (batch['valid'] * error**2).sum() / batch['valid'].sum()
  metrics = {'mean_error': (batch['valid'] * error).sum() / batch['valid'].sum()}
  return loss, LossOutput(metrics, weight=batch['valid'].sum())


def _batch():
  rng = np.random.default_rng(1)
  valid = np.asarray([1, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0], np.float32)  # the last of three micro-batches has none
  return {'x': rng.normal(size=(12, 5)).astype(np.float32), 'y': rng.normal(size=12).astype(np.float32), 'valid': valid}


def _stage(**changes):
  optimizer = optim.Optimizer(optax.sgd(0.1, momentum=0.9), optax.constant_schedule(0.1))
  return Stage('test', **({'steps': 5, 'loss': _loss, 'data': lambda context: None, 'optimizer': optimizer} | changes))


def _run(stage, batch, steps=2):
  current = state.create(_variables(), stage, MESH)
  train_step = step.make_train_step(stage, MESH, current, seed=0)
  for _ in range(steps):
    current, metrics = train_step(current, mesh_lib.put_batch(batch, MESH))
  return current, metrics


@pytest.fixture(scope='module')
def whole():
  return _run(_stage(), _batch())


@pytest.mark.parametrize('accumulate', [2, 3])
def test_accumulated_step_equals_the_whole_batch_with_unequal_weights(whole, accumulate):
  current, metrics = _run(_stage(accumulate=accumulate), _batch())
  for path, leaf in whole[0].trainable.items():
    np.testing.assert_allclose(current.trainable[path], leaf, atol=1e-6)
  for name, value in whole[1].items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_frozen_leaves_do_not_move_and_have_no_optimizer_memory():
  stage = _stage(trainable=lambda path: path.startswith('head'), accumulate=2)
  current, _ = _run(stage, _batch())
  assert list(current.trainable) == ['head/kernel'] and list(current.frozen) == ['base/kernel']
  np.testing.assert_array_equal(current.frozen['base/kernel'], _variables()['params']['base']['kernel'])
  assert not np.array_equal(current.trainable['head/kernel'], _variables()['params']['head']['kernel'])
  assert sum(leaf.size for leaf in jax.tree.leaves(current.opt_state)) == 7


def test_the_average_follows_the_weights(whole):
  first, _ = _run(_stage(ema_decay=0.75), _batch(), steps=1)
  second, _ = _run(_stage(ema_decay=0.75), _batch(), steps=2)
  start = _variables()['params']['head']['kernel']
  after_one = 0.75 * start + 0.25 * first.trainable['head/kernel']
  np.testing.assert_allclose(first.ema['head/kernel'], after_one, rtol=1e-6)
  expected = 0.75 * after_one + 0.25 * second.trainable['head/kernel']
  np.testing.assert_allclose(second.ema['head/kernel'], expected, rtol=1e-6)
  np.testing.assert_allclose(second.trainable['head/kernel'], whole[0].trainable['head/kernel'], rtol=1e-6)
  np.testing.assert_array_equal(second.variables()['params']['head']['kernel'], second.ema['head/kernel'])
  raw = second.variables(use_ema=False)
  np.testing.assert_array_equal(raw['params']['head']['kernel'], second.trainable['head/kernel'])


@pytest.mark.parametrize('accumulate', [1, 2])
def test_a_loss_that_is_not_finite_changes_nothing_and_is_recorded(accumulate):
  stage, bad = _stage(accumulate=accumulate, ema_decay=0.5), _batch()
  bad['x'][0, 0] = np.inf
  current = state.create(_variables(), stage, MESH)
  train_step = step.make_train_step(stage, MESH, current, seed=0)
  current, _ = train_step(current, mesh_lib.put_batch(_batch(), MESH))
  bad['y'][0] = np.nan
  good = jax.tree.map(np.asarray, (current.trainable, current.opt_state, current.ema))
  for batch in (bad, _batch()):  # once bad, nothing moves any more
    current, _ = train_step(current, mesh_lib.put_batch(batch, MESH))
  jax.tree.map(np.testing.assert_array_equal, good, (current.trainable, current.opt_state, current.ema))
  assert int(current.bad_step) == 1 and int(current.step) == 3


def test_micro_batches_are_contiguous():
  batch = mesh_lib.put_batch({'id': np.arange(6)}, MESH)
  np.testing.assert_array_equal(step.micro_batches(batch, 2, MESH)['id'], [[0, 1, 2], [3, 4, 5]])
  with pytest.raises(UserError, match='6 rows, expected a multiple of 4 micro-batches'):
    step.micro_batches(batch, 4, MESH)


def test_a_predicate_that_names_nothing_is_an_error():
  with pytest.raises(UserError, match=r'trains no parameter; there are .*base/kernel'):
    state.create(_variables(), _stage(trainable=lambda path: False), MESH)


def test_the_step_takes_the_buffers_of_the_state_it_is_given():
  before = state.create(_variables(), _stage(), MESH)
  step.make_train_step(_stage(), MESH, before, seed=0)(before, mesh_lib.put_batch(_batch(), MESH))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
