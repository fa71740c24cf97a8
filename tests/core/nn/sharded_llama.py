"""Two steps of low-rank training of a LLaMA whose base lies in bf16, on all devices of this process.

Not a test. `python tests/core/nn/sharded_llama.py OUTPUT.npz FSDP TENSOR SCAN` trains it in a process of its own.
"""

from __future__ import annotations

import json
import pathlib
import sys

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from core.nn import adapters, llama, transformer
from core.train import mesh as mesh_lib
from core.train import state as state_lib
from core.train import step as step_lib
from core.train.optim import Optimizer
from core.train.task import LossOutput, Stage

BATCH, COUNT, STEPS = 8, 6, 2


def network(scan: bool) -> llama.Llama:
  """Small, but every kernel has the 16384 numbers from which on the fsdp default divides too."""
  return llama.Llama(
    vocabulary=256, width=128, depth=2, heads=8, kv_heads=8, mlp_dim=256, scan=scan, param_dtype=jnp.bfloat16,
    dense=adapters.lora(4, 8.0, ('query', 'value', 'down')),
  )  # fmt: skip


def stage(model: llama.Llama) -> Stage:
  """Next-token prediction that trains the low-rank leaves."""

  def loss(variables, batch, rng, step):
    del rng, step
    x = model.apply(variables, batch['ids'], method='embed')
    logits = model.apply(variables, model.apply(variables, x, mask=batch['mask']), method='logits')
    losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], batch['ids'][:, 1:])
    weight = batch['mask'][:, 1:]
    return (losses * weight).sum() / weight.sum(), LossOutput({}, weight.sum())

  optimizer = Optimizer(optax.adam(1e-2), lambda step: 1e-2)
  return Stage(
    'lora', steps=STEPS, loss=loss, data=lambda context: None, optimizer=optimizer, trainable=adapters.is_adapter,
    sharding=llama.SHARDING,
  )  # fmt: skip


def variables(model: llama.Llama) -> dict:
  """The same numbers for a loop and for a scan over blocks."""
  plain = model.clone(scan=False)
  tree = jax.jit(plain.init)(jax.random.key(0), jnp.zeros((1, 1, model.width)))
  flat = flax.traverse_util.flatten_dict(tree['params'], sep='/')
  if model.scan:
    flat = transformer.stack_blocks(flat)
  return {'params': flax.traverse_util.unflatten_dict(flat, sep='/')}


def train(fsdp: int, tensor: int, scan: bool) -> tuple[dict, list[float], dict[str, list[int]]]:
  """(trained leaves, losses, shape of each leaf's shard)."""
  model = network(scan)
  task, mesh = stage(model), mesh_lib.make(-1, fsdp, tensor)
  state = state_lib.create(variables(model), task, mesh)
  shards = {
    path: list(leaf.addressable_shards[0].data.shape) for path, leaf in {**state.trainable, **state.frozen}.items()
  }
  step = step_lib.make_train_step(task, mesh, state, seed=0)
  rng, losses = np.random.default_rng(0), []
  for _ in range(STEPS):
    mask = np.arange(COUNT)[None] < rng.integers(2, COUNT + 1, (BATCH, 1))
    batch = {'ids': rng.integers(0, 256, (BATCH, COUNT)).astype(np.int32), 'mask': mask}
    state, metrics = step(state, mesh_lib.put_batch(batch, mesh))
    losses.append(float(metrics['loss']))
  return mesh_lib.host_arrays(state.trainable), losses, shards


if __name__ == '__main__':
  output, *sizes = sys.argv[1:]
  trained, losses, shards = train(*map(int, sizes))
  np.savez(output, **{path.replace('/', '|'): leaf for path, leaf in trained.items()})
  pathlib.Path(output).with_suffix('.json').write_text(json.dumps({'losses': losses, 'shards': shards}))
