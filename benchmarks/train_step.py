"""Training steps per second of ViT-B/16 + ConvPass (frozen trunk), ours beside the same model in PyTorch.

  python -m benchmarks.train_step [--batch 24] [--repetitions 5] [--dtype float32] [--output train_step.json]

Both train the same 329,090 numbers (adapters and head) of the same network on the same random batch with Adam: forward,
backward, update. Ours runs through `core.train.step`, as every training does. On the CPU the two, a process each, take
turns on the same cores, step by step, and the ratio is that of their medians. On an accelerator (use --dtype bfloat16)
ours runs alone, and its model FLOP utilisation is printed.

Measured on two virtual Xeon cores, jax 0.10.2 and torch 2.13, f32, two runs each: batch 24, 0.126 and 0.129 steps/s,
ratio 1.00 and 1.16; batch 8, 0.39 and 0.40 steps/s, ratio 0.92 and 0.97. That was with an earlier `core.train.memory`,
one arena for all threads, which a user of torch can have too: with the same allocator settings there
(MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000) the ratio at batch 24 was 0.81.
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
import numpy as np
from ml_collections import ConfigDict

from benchmarks.contest import Contestant, take_turns
from core.train import backend, optim, state, step, task
from core.train import mesh as mesh_lib
from fas.fas_aug import losses, model

PEAK_FLOPS = {'H100': 989e12, 'H200': 989e12, 'A100': 312e12}
"""Dense bf16 FLOP/s by NVIDIA's data sheets, found in the device's name (SXM variants)."""


def classifier(variant: str, size: int, dtype: str, remat: bool) -> model.Classifier:
  """The released network of FAS-Aug, or a smaller variant of it."""
  fields = {
    'backbone': 'vit', 'variant': variant, 'image_size': size, 'adapter': 'convpass', 'adapter_dropout': 0.1,
    'freeze': True, 'weights': '', 'normalize': 'none', 'dtype': dtype, 'remat': remat, 'scan': False,
  }  # fmt: skip
  return model.Classifier(ConfigDict(fields))


def batch_of(size: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
  """Random images f32 [B, size, size, 3] in [0, 1) and labels int32 [B]."""
  rng = np.random.default_rng(0)
  return rng.random((batch, size, size, 3), dtype=np.float32), rng.integers(0, 2, batch).astype(np.int32)


Step = Callable[[], tuple[float, str, int]]
"""Takes one training step: (its loss, kind of device, how many of them)."""


def our_step(variant: str, size: int, batch: int, dtype: str, remat: bool) -> Step:
  """The step of ours."""
  backend.setup()
  network = classifier(variant, size, dtype, remat)
  images, labels = batch_of(size, batch)

  def loss(variables, batch, rng, step):
    del step
    outputs, updates = network.apply(variables, batch['image'], train=True, rng=rng)
    each = losses.cross_entropy(outputs['logits'], batch['label'])
    return losses.base(each), task.LossOutput({}, weight=each.size, updates=updates)

  config = ConfigDict({'name': 'adam', 'learning_rate': 1e-4, 'schedule': 'constant', 'warmup_steps': 0})
  config.update({'weight_decay': 0.0, 'momentum': 0.0, 'clip_norm': 0.0})
  stage = task.Stage(
    'train',
    steps=1,
    loss=loss,
    data=lambda context: None,
    optimizer=optim.build(config, 1),
    trainable=network.trainable,
  )
  mesh = mesh_lib.make()
  variables = jax.jit(network.init)(jax.random.key(0))
  current = state.create(variables, stage, mesh)
  print(f'ours trains {sum(leaf.size for leaf in current.trainable.values()):,} numbers', flush=True)
  train_step = step.make_train_step(stage, mesh, current, seed=0)
  placed = mesh_lib.put_batch({'image': images, 'label': labels}, mesh)

  def run() -> tuple[float, str, int]:
    nonlocal current
    current, metrics = train_step(current, placed)
    return float(metrics['loss']), jax.devices()[0].device_kind, jax.device_count()

  return run


def torch_step(variant: str, size: int, batch: int) -> Step:
  """The same network and step as PyTorch users write them: fused attention, a frozen trunk without weight gradients."""
  import torch
  from torch import nn
  from torch.nn import functional

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  images, labels = batch_of(size, batch)

  class ConvPass(nn.Module):
    def __init__(self, width: int, hidden: int = 8):
      super().__init__()
      self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
      self.conv = nn.Conv2d(hidden, hidden, 3, padding=1)
      self.dropout = nn.Dropout(0.1)

    def forward(self, x):
      h = self.down(x)
      h = h * torch.sigmoid(1.702 * h)
      side = int((x.shape[1] - 1) ** 0.5)
      grid = h[:, 1:].reshape(len(x), side, side, -1).permute(0, 3, 1, 2)
      grid = self.conv(grid).permute(0, 2, 3, 1).reshape(len(x), side * side, -1)
      token = self.conv(h[:, :1].reshape(len(x), 1, 1, -1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
      h = torch.cat([token.reshape(len(x), 1, -1), grid], dim=1)
      return self.up(self.dropout(h * torch.sigmoid(1.702 * h)))

  class Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp_dim: int):
      super().__init__()
      self.heads = heads
      self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
      self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
      self.up, self.down = nn.Linear(width, mlp_dim), nn.Linear(mlp_dim, width)
      self.adapter1, self.adapter2 = ConvPass(width), ConvPass(width)

    def forward(self, x):
      h = self.norm1(x)
      query, key, value = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
      y = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
      x = x + self.proj(y) + self.adapter1(h)
      h = self.norm2(x)
      return x + self.down(functional.gelu(self.up(h))) + self.adapter2(h)

  class Network(nn.Module):
    def __init__(self, patch: int, width: int, depth: int, heads: int, mlp_dim: int):
      super().__init__()
      self.patches = nn.Conv2d(3, width, patch, patch)
      self.token = nn.Parameter(torch.zeros(1, 1, width))
      self.position = nn.Parameter(0.02 * torch.randn(1, 1 + (images.shape[1] // patch) ** 2, width))
      self.blocks = nn.Sequential(*(Block(width, heads, mlp_dim) for _ in range(depth)))
      self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, 2)

    def forward(self, x):
      x = self.patches(x).flatten(2).transpose(1, 2)
      x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.position
      return self.head(self.norm(self.blocks(x))[:, 0])

  network = Network(**model.vit.VARIANTS[variant]).train()
  for name, parameter in network.named_parameters():
    parameter.requires_grad_('adapter' in name or name.startswith('head'))
  trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
  print(f'torch trains {sum(parameter.numel() for parameter in trained):,} numbers', flush=True)
  optimizer = torch.optim.Adam(trained, lr=1e-4)
  inputs, targets = torch.tensor(images.transpose(0, 3, 1, 2)).contiguous(), torch.tensor(labels).long()

  def run() -> tuple[float, str, int]:
    optimizer.zero_grad()
    loss = functional.cross_entropy(network(inputs), targets)
    loss.backward()
    optimizer.step()
    return loss.item(), 'cpu', 1

  return run


def step_flops(fields: dict[str, int], size: int, batch: int) -> float:
  """Floating-point operations of one step: the products of the trunk forward and, for its activations alone, backward.

  The frozen weights need no gradient, so that a step costs 2 forward passes and not 3; attention's two products cost
  twice backward. Adapters (0.5%) are left out.
  """
  width, depth, mlp_dim, patch = (fields[name] for name in ('width', 'depth', 'mlp_dim', 'patch'))
  tokens = 1 + (size // patch) ** 2
  linear = depth * tokens * (4 * width**2 + 2 * width * mlp_dim)
  attention = depth * 2 * tokens**2 * width
  embed = tokens * 3 * patch**2 * width
  return 2.0 * batch * (2 * linear + 3 * attention + embed)


def warm(contestant: Contestant) -> tuple[str, int]:
  """One step, which compiles; (kind of device, how many)."""
  first, (loss, device, count) = contestant.turn()
  print(f'{contestant.name:>6}: first step {first:.1f} s, loss {loss:.4f}', flush=True)
  return device, count


def main(argv: list[str] | None = None) -> dict[str, Any]:
  """Prints the figures, writes them as JSON where asked, and returns them."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--variant', default='base_patch16', choices=sorted(model.vit.VARIANTS))
  parser.add_argument('--size', type=int, default=224)
  parser.add_argument('--batch', type=int, default=24)
  parser.add_argument('--repetitions', type=int, default=5)
  parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))
  parser.add_argument('--remat', action='store_true', help='ours recomputes activations')
  parser.add_argument('--no-torch', action='store_true', help='ours alone; always so where the device is no CPU')
  parser.add_argument('--output', type=pathlib.Path)
  args = parser.parse_args(argv)

  fields = model.vit.VARIANTS[args.variant]
  ours = Contestant('ours', our_step, args.variant, args.size, args.batch, args.dtype, args.remat)
  contestants = [ours]
  device, devices = warm(ours)
  if not args.no_torch and device == 'cpu':
    contestants.append(Contestant('torch', torch_step, args.variant, args.size, args.batch))
    warm(contestants[-1])
  seconds = {name: [each[0] for each in turns] for name, turns in take_turns(contestants, args.repetitions).items()}
  for each in contestants:
    each.close()
  flops = step_flops(fields, args.size, args.batch)
  result: dict[str, Any] = {
    'device': device, 'devices': devices, 'cores': len(os.sched_getaffinity(0)), 'dtype': args.dtype,
    'variant': args.variant, 'size': args.size, 'batch': args.batch, 'seconds': seconds, 'flops_per_step': flops,
  }  # fmt: skip
  for name, times in seconds.items():
    median = statistics.median(times)
    result[name] = {'steps_per_second': 1 / median, 'images_per_second': args.batch / median, 'flops': flops / median}
    print(
      f'{name:>6}: {1 / median:.3f} steps/s, {args.batch / median:.2f} images/s, {flops / median / 1e9:.0f} GFLOP/s'
      f' (median of {len(times)}; {min(times):.2f} to {max(times):.2f} s)'
    )
  peak = next((peak for name, peak in PEAK_FLOPS.items() if name in device), None)
  if peak is not None and args.dtype == 'bfloat16':
    result['mfu'] = result['ours']['flops'] / (peak * devices)
    print(f'  MFU {result["mfu"]:.1%} of {peak / 1e12:.0f} TFLOP/s per device')
  if 'torch' in seconds:
    result['ratio'] = statistics.median(seconds['torch']) / statistics.median(seconds['ours'])
    print(f'  ours / torch: {result["ratio"]:.3f} (steps per second)')
  if args.output:
    args.output.write_text(json.dumps(result, indent=2), encoding='utf-8')
  return result


if __name__ == '__main__':
  main()
