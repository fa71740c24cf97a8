"""The views tell the truth about a small state: what is trained, where it lies, what a step costs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from core.train import mesh, optim, state, step, views
from core.train.task import LossOutput, Stage


@pytest.fixture(scope='module')
def made():
  """(stage, variables, state, mesh) of a network of two matrices, one of them frozen."""

  def loss(variables, batch, rng, step):
    params = variables['params']
    out = batch['x'] @ params['base']['kernel'] @ params['head']['kernel']
    return (out**2).mean(), LossOutput({}, len(out))

  optimizer = optim.Optimizer(optax.adam(0.1), optax.constant_schedule(0.1))
  stage = Stage('train', steps=1, loss=loss, data=lambda context: None, optimizer=optimizer,
                trainable=lambda path: path.startswith('head'))  # fmt: skip
  variables = {'params': {'base': {'kernel': jnp.ones((64, 256))}, 'head': {'kernel': jnp.ones((256, 2))}}}
  devices = mesh.make()
  return stage, variables, state.create(variables, stage, devices), devices


def _row(table, name):
  (line,) = [line for line in table.splitlines() if f'| {name} ' in line]
  return [cell.strip() for cell in line.strip('|').split('|')]


def test_parameters_marks_what_is_trained(made):
  stage, variables, _, _ = made
  for tree in (variables, jax.eval_shape(lambda: variables)):
    table = views.parameters(tree, stage)
    assert _row(table, 'base/kernel')[-2:] == ['16,384', 'frozen'] and _row(table, 'head/kernel')[-2:] == ['512', 'yes']
    assert table.endswith("Stage 'train' trains 512 of 16,896.")


def test_placement_counts_what_each_device_holds(made):
  stage, variables, current, _ = made
  table = views.placement(current)
  assert _row(table, 'frozen/base/kernel')[-2:] == ['copied', '0.066 MB']
  assert len([line for line in table.splitlines() if 'head/kernel' in line]) == 3  # itself and Adam's two moments
  cube = jax.sharding.AbstractMesh((1, 4, 1), mesh.AXES)
  assert _row(views.placement(state.abstract(variables, stage, cube)), 'frozen/base/kernel')[-2:] == [
    'fsdp',
    '0.016 MB',
  ]


def test_batch_shows_ranges():
  table = views.batch({'image': np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 12), 'name': np.array(['b', 'a'])})
  assert _row(table, 'image') == ['image', '(2, 12)', 'float32', '0', '1']
  assert _row(table, 'name')[-2:] == ['a', 'b']


def test_cost_is_that_of_the_matrix_products(made):
  stage, _, current, devices = made
  train_step = step.make_train_step(stage, devices, current, seed=0)
  found = views.cost(train_step, current, mesh.put_batch({'x': np.ones((32, 64), np.float32)}, devices))
  # Forward: 32 x 64 x 256 and 32 x 256 x 2; backward: the head's gradient alone, 256 x 32 x 2.
  products = 2 * (32 * 64 * 256 + 2 * 32 * 256 * 2)
  assert products <= found['flops'] < 1.1 * products
  assert found['state'] >= 4 * (64 * 256 + 3 * 512) and found['temporary'] > 0
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(current))
