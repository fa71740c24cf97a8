"""A LLaMA on eight devices, its parameters divided by its rules, is the one of a single device."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import sharded_llama

from core.errors import UserError
from core.nn import llama, transformer
from core.train import mesh as mesh_lib

HERE = pathlib.Path(__file__).resolve().parent


@pytest.fixture(scope='module')
def single():
  """The same run on the one device of this process."""
  return sharded_llama.train(1, 1, False)


@pytest.mark.parametrize('fsdp, tensor, scan', [(2, 2, True)])
def test_low_rank_training_on_eight_devices(single, tmp_path, fsdp, tensor, scan):
  environment = os.environ | {
    'XLA_FLAGS': '--xla_force_host_platform_device_count=8', 'PYTHONPATH': str(HERE.parents[2]),
  }  # fmt: skip
  output = tmp_path / 'out.npz'
  words = [sys.executable, HERE / 'sharded_llama.py', output, str(fsdp), str(tensor), str(int(scan))]
  done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr[-2000:]
  result = json.loads(output.with_suffix('.json').read_text())
  trained, losses, _ = single
  np.testing.assert_allclose(result['losses'], losses, rtol=1e-5)
  assert losses[0] != losses[-1]
  expected = transformer.stack_blocks(trained) if scan else trained
  with np.load(output) as found:
    assert set(found) == {path.replace('/', '|') for path in expected}
    for path, leaf in expected.items():
      np.testing.assert_allclose(found[path.replace('/', '|')], leaf, atol=2e-4, err_msg=path)
  block, depth = ('blocks', [2]) if scan else ('block_1', [])
  assert {path: shape for path, shape in result['shards'].items() if 'block_0' not in path} == {
    'embed/embedding': [256 // tensor, 128 // fsdp],
    'head/kernel': [128 // fsdp, 256 // tensor],
    'norm/scale': [128],
    f'{block}/norm_attention/scale': [*depth, 128],
    f'{block}/norm_mlp/scale': [*depth, 128],
    **{f'{block}/attention/{name}/kernel': [*depth, 128 // fsdp, 128 // tensor] for name in ('query', 'key', 'value')},
    f'{block}/attention/out/kernel': [*depth, 128 // tensor, 128 // fsdp],
    **{f'{block}/mlp/{name}/kernel': [*depth, 128 // fsdp, 256 // tensor] for name in ('gate', 'up')},
    f'{block}/mlp/down/kernel': [*depth, 256 // tensor, 128 // fsdp],
    **{f'{block}/attention/{name}/lora_a': [*depth, 128, 4] for name in ('query', 'value')},
    **{f'{block}/attention/{name}/lora_b': [*depth, 4, 128] for name in ('query', 'value')},
    f'{block}/mlp/down/lora_a': [*depth, 256, 4],
    f'{block}/mlp/down/lora_b': [*depth, 4, 128],
  }


def test_rules_of_a_prefix_leave_other_networks_alone():
  mesh = AbstractMesh((1, 8, 2), mesh_lib.AXES)
  rules = llama.sharding('language/')
  spec = lambda path, shape: mesh_lib.leaf_sharding(path, shape, mesh, rules).spec  # noqa: E731
  assert spec('language/block_3/mlp/down/kernel', (64, 32)) == PartitionSpec('tensor', 'fsdp')
  assert spec('language/blocks/attention/query/bias', (4, 32)) == PartitionSpec(None, 'tensor')
  assert spec('vision/block_3/mlp/down/kernel', (7, 5)) == PartitionSpec()
  with pytest.raises(UserError, match=r'sharding rule .* gives language/head/kernel \(64, 33\)'):
    spec('language/head/kernel', (64, 33))
