"""Training tokens per second of a LLaMA of 100M parameters with low-rank updates, ours beside PEFT.

  python -m benchmarks.lora [--batch 4] [--tokens 128] [--repetitions 5] [--dtype float32] [--output lora.json]

Both train the same number of low-rank leaves (rank 16 on query and value, dropout 0.1, spec 3.7) of the same network on
the same random tokens with AdamW, the base frozen: forward, backward, update. Ours runs through `core.train.step`, as
every training does; PEFT's is `transformers.LlamaForCausalLM` under `peft.get_peft_model`. On the CPU the two, a
process each, take turns on the same cores, step by step, and the ratio is that of their medians. On an accelerator (use
--dtype bfloat16: the base lies in it, low-rank leaves and their moments stay f32) ours runs alone.

Measured on two idle virtual Xeon cores, jax 0.10.2, torch 2.13, peft 0.21, f32: 691 tokens/s against 668, ratio 1.03
(one busy core: 0.95 and 0.98). Both are bound by the same matrix products.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from benchmarks.contest import Contestant, take_turns
from core.nn import adapters, llama
from core.train import backend, optim, state, step, task
from core.train import mesh as mesh_lib

SIZES = {
  'vocabulary': 32000, 'width': 640, 'depth': 12, 'heads': 10, 'kv_heads': 10, 'mlp_dim': 1728, 'max_positions': 2048,
}  # fmt: skip
RANK, ALPHA, DROPOUT = 16, 16.0, 0.1

Step = Callable[[], tuple[float, str, int]]
"""Takes one training step: (its loss, kind of device, numbers trained)."""


def tokens_of(batch: int, count: int) -> np.ndarray:
  """Random tokens int32 [batch, count]."""
  return np.random.default_rng(0).integers(0, SIZES['vocabulary'], (batch, count)).astype(np.int32)


def our_step(batch: int, count: int, dtype: str, remat: bool) -> Step:
  """The step of ours."""
  backend.setup()
  linear = adapters.lora(RANK, ALPHA, ('query', 'value'), DROPOUT)
  network = llama.Llama(**SIZES, dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype), dense=linear, remat=remat)

  def loss(variables, batch, rng, step):
    del step
    x = network.apply(variables, batch['ids'], method='embed')
    h = network.apply(variables, x[:, :-1], train=True, rngs={'dropout': rng})
    logits = network.apply(variables, h, method='logits')
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch['ids'][:, 1:])
    return losses.mean(), task.LossOutput({}, weight=losses.size)

  config = ConfigDict({'name': 'adamw', 'learning_rate': 1e-4, 'schedule': 'constant', 'warmup_steps': 0})
  config.update({'weight_decay': 0.01, 'momentum': 0.0, 'clip_norm': 0.0})
  stage = task.Stage(
    'train', steps=1, loss=loss, data=lambda context: None, optimizer=optim.build(config, 1),
    trainable=adapters.is_adapter, sharding=llama.SHARDING,
  )  # fmt: skip
  mesh = mesh_lib.make()
  variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 1, SIZES['width'])))
  current = state.create(variables, stage, mesh)
  trained = sum(leaf.size for leaf in current.trainable.values())
  train_step = step.make_train_step(stage, mesh, current, seed=0)
  placed = mesh_lib.put_batch({'ids': tokens_of(batch, count)}, mesh)

  def run() -> tuple[float, str, int]:
    nonlocal current
    current, metrics = train_step(current, placed)
    return float(metrics['loss']), jax.devices()[0].device_kind, trained

  return run


def peft_step(batch: int, count: int) -> Step:
  """The same network and step as users of PEFT write them."""
  import peft
  import torch
  import transformers

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  config = transformers.LlamaConfig(
    vocab_size=SIZES['vocabulary'], hidden_size=SIZES['width'], intermediate_size=SIZES['mlp_dim'],
    num_hidden_layers=SIZES['depth'], num_attention_heads=SIZES['heads'], num_key_value_heads=SIZES['kv_heads'],
    max_position_embeddings=SIZES['max_positions'],
  )  # fmt: skip
  options = peft.LoraConfig(
    r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=['q_proj', 'v_proj'], task_type='CAUSAL_LM'
  )
  network = peft.get_peft_model(transformers.LlamaForCausalLM(config), options).train()
  trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01)
  ids = torch.tensor(tokens_of(batch, count)).long()

  def run() -> tuple[float, str, int]:
    optimizer.zero_grad()
    loss = network(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    optimizer.step()
    return loss.item(), 'cpu', sum(parameter.numel() for parameter in trained)

  return run


def warm(contestant: Contestant) -> tuple[str, int]:
  """One step, which compiles; (kind of device, numbers trained)."""
  first, (loss, device, trained) = contestant.turn()
  print(f'{contestant.name:>5}: trains {trained:,} numbers; first step {first:.1f} s, loss {loss:.4f}', flush=True)
  return device, trained


def main(argv: list[str] | None = None) -> dict[str, Any]:
  """Prints the figures, writes them as JSON where asked, and returns them."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--batch', type=int, default=4)
  parser.add_argument('--tokens', type=int, default=128)
  parser.add_argument('--repetitions', type=int, default=5)
  parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))
  parser.add_argument('--remat', action='store_true', help='ours recomputes activations')
  parser.add_argument('--no-peft', action='store_true', help='ours alone; always so where the device is no CPU')
  parser.add_argument('--output', type=pathlib.Path)
  args = parser.parse_args(argv)

  contestants = [Contestant('ours', our_step, args.batch, args.tokens, args.dtype, args.remat)]
  device, trained = warm(contestants[0])
  if not args.no_peft and device == 'cpu':
    contestants.append(Contestant('peft', peft_step, args.batch, args.tokens))
    if warm(contestants[1])[1] != trained:
      raise AssertionError('the two do not train the same number of leaves')
  seconds = {name: [each[0] for each in turns] for name, turns in take_turns(contestants, args.repetitions).items()}
  for each in contestants:
    each.close()
  count = args.batch * args.tokens
  result: dict[str, Any] = {
    'device': device, 'cores': len(os.sched_getaffinity(0)), 'dtype': args.dtype, 'batch': args.batch,
    'tokens': args.tokens, 'trained': trained, 'seconds': seconds,
  }  # fmt: skip
  for name, times in seconds.items():
    median = statistics.median(times)
    result[name] = {'tokens_per_second': count / median}
    spread = f'median of {len(times)}; {min(times):.2f} to {max(times):.2f} s'
    print(f'{name:>5}: {count / median:.0f} tokens/s ({spread})')
  if 'peft' in seconds:
    result['ratio'] = statistics.median(seconds['peft']) / statistics.median(seconds['ours'])
    print(f'ours / peft: {result["ratio"]:.3f} (tokens per second)')
  if args.output:
    args.output.write_text(json.dumps(result, indent=2), encoding='utf-8')
  return result


if __name__ == '__main__':
  main()
