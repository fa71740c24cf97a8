"""Where parameters and batches lie on a mesh of more devices than this process has."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from core.errors import UserError
from core.train import mesh

CUBE = jax.sharding.AbstractMesh((2, 4, 2), mesh.AXES)
LARGE = (256, 512)


def _spec(path, shape, rules=(), on=CUBE):
  return mesh.leaf_sharding(path, shape, on, rules).spec


def test_the_largest_axis_of_a_large_leaf_is_divided_over_fsdp():
  assert _spec('a/kernel', LARGE) == P(None, 'fsdp')
  assert _spec('a/kernel', (512, 66)) == P('fsdp', None)
  assert _spec('a/kernel', (511, 66)) == P()  # four divides neither
  assert _spec('a/bias', (512,)) == P()  # small leaves are copied
  assert _spec('a/kernel', LARGE, on=jax.sharding.AbstractMesh((8, 1, 1), mesh.AXES)) == P()


def test_the_first_rule_that_is_found_in_the_path_wins():
  rules = (('attention/.*kernel', P(None, 'tensor')), ('kernel$', P(('fsdp', 'tensor'))), ('bias', P('tensor')))
  assert _spec('block_0/attention/query/kernel', LARGE, rules) == P(None, 'tensor')
  assert _spec('block_0/mlp/kernel', LARGE, rules) == P(('fsdp', 'tensor'))
  assert _spec('block_0/mlp/bias', (512,), rules) == P('tensor')
  assert _spec('block_0/mlp/scale', (512,), rules) == P()
  tree = {'block_0': {'mlp': {'kernel': jax.ShapeDtypeStruct(LARGE, np.float32)}}}
  placed = mesh.param_sharding(tree, CUBE, rules)['block_0']['mlp']['kernel']
  assert placed.shard_shape(LARGE) == (256 // 8, 512)


def test_a_rule_that_does_not_fit_is_named():
  with pytest.raises(UserError, match=r"rule 'kernel' gives a/kernel \(255, 512\)"):
    _spec('a/kernel', (255, 512), (('kernel', P('fsdp')),))


@pytest.mark.parametrize(
  ('sizes', 'message'),
  [({'fsdp': 2}, 'found 1'), ({'data': 2}, 'asks for 2'), ({'fsdp': -1}, 'at most one'), ({'tensor': 0}, 'positive')],
)
def test_a_mesh_that_does_not_fit_is_an_error(sizes, message):
  with pytest.raises(UserError, match=message):
    mesh.make(**sizes)


def test_a_batch_that_cannot_be_divided_is_named():
  with pytest.raises(UserError, match=r"batch\['x'\] has 0 rows"):
    mesh.put_batch({'x': np.float32(1)}, mesh.make())


def test_strings_stay_on_the_host_and_wide_numbers_are_narrowed():
  batch = mesh.put_batch({'id': np.arange(6), 'x': np.zeros((6, 2)), 'name': np.asarray(list('abcdef'))}, mesh.make())
  assert {name: value.dtype for name, value in batch.items()} == {'id': np.int32, 'x': np.float32}
