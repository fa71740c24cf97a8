"""Forward passes in batches give what one pass over all rows gives, whatever the batch size and the padding."""

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.data import pipeline
from core.train import forward, mesh

WEIGHTS = {'w': np.arange(3.0, dtype=np.float32)}
ROWS = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)


@jax.jit
def function(variables, x):
  return {'dot': x @ variables['w'], 'twice': 2 * x}


@pytest.mark.parametrize('size', [1, 4, 11, 64])
def test_in_batches_and_over_equal_one_pass(size):
  whole = jax.tree.map(np.asarray, function(WEIGHTS, ROWS))
  found = forward.in_batches(function, WEIGHTS, [ROWS], size)
  batches = pipeline.eval_batches([{'x': row} for row in ROWS], size)
  streamed = forward.over(function, WEIGHTS, batches, ('x',))
  for name, value in whole.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-6)
    np.testing.assert_allclose(streamed[name], value, rtol=1e-6)


def test_variables_on_a_mesh_decide_where_the_rows_lie():
  placed = jax.device_put(WEIGHTS, mesh.replicated(mesh.make(1, 1, 1)))
  seen = []

  def spy(variables, x):
    seen.append(x.sharding)
    return jnp.sum(x, -1)

  np.testing.assert_allclose(forward.in_batches(spy, placed, [ROWS], 4), ROWS.sum(-1), rtol=1e-5)
  assert all(set(sharding.mesh.axis_names) == {'data', 'fsdp', 'tensor'} for sharding in seen)


def test_a_memo_asks_once_per_variables_and_does_not_keep_them_alive():
  calls = []
  memo = forward.Memo(lambda variables, key: calls.append(key) or len(calls))
  first = {'w': np.zeros(2)}
  assert [memo(first, 'val'), memo(first, 'val'), memo(first, 'test')] == [1, 1, 2]
  known = weakref.ref(first['w'])
  assert memo({'w': np.zeros(2)}, 'val') == 3
  del first
  assert known() is None
