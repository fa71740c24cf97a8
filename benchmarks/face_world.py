"""Frames per second of the face world, by size and kind, and of clips.

  python -m benchmarks.face_world [--sizes 64 128 256] [--seconds 3] [--output face_world.json]

Every row renders batches of frames (parameters drawn, scene, camera, and for print and replay the medium and the second
camera) for about `--seconds`, after one batch that compiles; 'first batch' is that time (with a warm compilation cache,
if $JAX_COMPILATION_CACHE_DIR is set). 'examples' is the whole data path to uint8 frames with their info JSON.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time

import jax
import numpy as np

from core.synth.faces import dataset, domains


def frames_per_second(kind: str, size: int, batch: int, seconds: float) -> dict[str, float]:
  """Renders batches of one kind and size for some seconds."""
  ranges = domains.get('laptop').ranges()
  keys = jax.random.split(jax.random.key(0), batch)
  index = np.arange(batch, dtype=np.int32)

  def once():
    jax.block_until_ready(dataset.frames(kind, size, keys, keys, index, index / np.float32(25), ranges).image)

  start = time.perf_counter()
  once()
  first = time.perf_counter() - start
  start, count = time.perf_counter(), 0
  while time.perf_counter() - start < seconds:
    once()
    count += batch
  return {'frames_per_second': count / (time.perf_counter() - start), 'first_batch_seconds': first}


def examples_per_second(size: int, seconds: float) -> dict[str, float]:
  """Reads `dataset.examples` (all kinds, uint8, info) for some seconds after its first batches."""
  config = dataset.Config(size=size, subjects=8)
  list(dataset.examples('laptop', 'train', config, 0))
  start, count = time.perf_counter(), 0
  while time.perf_counter() - start < seconds:
    count += sum(1 for _ in dataset.examples('phone', 'train', config, count))
  return {'frames_per_second': count / (time.perf_counter() - start), 'first_batch_seconds': float('nan')}


def clip_per_second(size: int) -> dict[str, float]:
  """A clip of 64 frames, twice: compilation, then speed."""
  rates = []
  for take in range(2):
    start = time.perf_counter()
    dataset.clip('phone', length=64, size=size, take=take)
    rates.append(time.perf_counter() - start)
  return {'frames_per_second': 64 / rates[1], 'first_batch_seconds': rates[0]}


def main(argv: list[str] | None = None) -> None:
  """Prints a table and writes it as JSON where asked."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--sizes', type=int, nargs='+', default=[64, 128, 256])
  parser.add_argument('--seconds', type=float, default=3.0)
  parser.add_argument('--output', type=pathlib.Path)
  args = parser.parse_args(argv)
  rows = []
  print(f'device {jax.devices()[0].device_kind}, {jax.device_count()} of them')
  print(f'{"size":>5} {"what":>9} {"frames/s":>9} {"first batch":>12}')
  for size in args.sizes:
    batch = dataset.default_batch(size)
    measured = {kind: frames_per_second(kind, size, batch, args.seconds) for kind in dataset.ATTACKS}
    measured |= {'examples': examples_per_second(size, args.seconds), 'clip': clip_per_second(size)}
    for what, result in measured.items():
      rows.append({'size': size, 'what': what} | result)
      print(
        f'{size:5d} {what:>9} {result["frames_per_second"]:9.1f} {result["first_batch_seconds"]:10.2f} s', flush=True
      )
  if args.output:
    args.output.write_text(json.dumps(rows, indent=2), encoding='utf-8')


if __name__ == '__main__':
  main()
