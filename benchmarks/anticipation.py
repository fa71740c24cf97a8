"""ARR beside the same network in PyTorch (transformers' ViT and GPT-2): training steps, streaming, memory, label grids.

  python -m benchmarks.anticipation [--part=features|pixels|stream|grid|memory] [--output anticipation.json]

features   training steps per second on a feature store (T = 10, F = 1024, D = d = 512, batch 64), L = 2 and 6
pixels     the same from pixels, end to end (64 px, T = 10, n = 2, batch 8, ViT of four blocks)
stream     milliseconds per step of `video.arr.streaming.Streamer`, T = 10 and 60, L = 6, d = 512, ViT-Ti/16 at 224 px
grid       seconds for the label grids of EPIC-KITCHENS-100, all at once and by a scan per sample
memory     what a training step of AVT's network allocates beside its state as T grows, by the compiler's account

All parts without --part. Contestants take turns on the same cores, a process each; numbers are medians, and ratios are
of medians of one run. Ours trains through `core.train.step`, with the stage that `video.arr.task` makes.

Needs the cores to itself: beside two other busy processes torch's threads waited for each other and ours seemed 4 to 5
times as fast, which says nothing. The load average is printed first for this reason.

Measured on two virtual Xeon cores, jax 0.10.2 and torch 2.13, f32: features 0.87 x (L = 2) and 0.91 x (L = 6) of
torch's steps per second, pixels 0.68 x (torch with our allocator: 0.88, 0.88 and 0.64 x). On one of them (taskset):
0.86, 0.87 and 0.79 x; the ViT forward costs the same, forward and backward a third more. There a step of the stream at
T = 60 takes 38 ms cached, 52 ms exact, 59 ms in torch over the last features, 1908 ms in torch over the last clips.
Label grids of 76,885 segments: 0.10 s against 26 s.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import anticipation_cases as cases
from benchmarks.anticipation_cases import Case
from benchmarks.contest import Contestant, Turn, take_turns
from core.train import backend, state, step
from core.train import mesh as mesh_lib
from core.train.task import Stage
from video.arr import annotations, grid, streaming
from video.arr.annotations import tables
from video.arr.task import Task

SHARED = pathlib.Path(os.environ.get('VERAX_SHARED_DATA', pathlib.Path(__file__).resolve().parents[2] / 'shared/data'))

SCANNED = 400
"""Samples of the scan per sample, which is then scaled up."""


# Contestants.


def joint_stage(case: Case) -> tuple[Task, Stage]:
  """The task with the network of a case, no data behind it, and its stage of joint training."""
  task = Task(case.config())
  task.model = task.anticipator(case.classes)
  return task, task.stages()[-1]


def our_step(case: Case) -> Callable[[], tuple[float, int]]:
  """A function that takes a training step of ours: (its loss, numbers trained)."""
  backend.setup()
  task, stage = joint_stage(case)
  mesh = mesh_lib.make()
  current = state.create(jax.jit(task.init)(jax.random.key(0)), stage, mesh)
  trained = sum(leaf.size for leaf in current.trainable.values())
  train_step = step.make_train_step(stage, mesh, current, seed=0)
  placed = mesh_lib.put_batch(case.rows(), mesh)

  def run() -> tuple[float, int]:
    nonlocal current
    current, metrics = train_step(current, placed)
    return float(metrics['loss']), trained

  return run


def our_stream(case: Case, history: str, steps: int) -> Callable[[], list[tuple[float, float]]]:
  """A function that pushes `steps` clips into a `Streamer`: (encoder ms, decoder ms) of each."""
  backend.setup()
  task, _ = joint_stage(case)
  streamer = streaming.Streamer(task.model, jax.jit(task.init)(jax.random.key(0)), task.fold.grid, history)
  clip = case.rows()['inputs'][0, -1]
  streamer.begin(clip)

  def run() -> list[tuple[float, float]]:
    for _ in range(steps):
      streamer.push(clip)
    return list(zip(streamer.encode_ms[-steps:], streamer.decode_ms[-steps:]))

  return run


def our_anew(case: Case, steps: int) -> Callable[[], list[tuple[float, float]]]:
  """A function that encodes and decodes all T clips `steps` times: (encoder ms, decoder ms) of each."""
  backend.setup()
  task, _ = joint_stage(case)
  model, variables = task.model, jax.jit(task.init)(jax.random.key(0))
  encode = jax.jit(model.encode)
  decode = jax.jit(lambda variables, z: jax.nn.softmax(model.anticipate(variables, model.reason(variables, z)[:, -1])))
  clips = case.rows()['inputs']

  def one() -> tuple[float, float]:
    start = time.perf_counter()
    z = jax.block_until_ready(encode(variables, clips))
    encoded = time.perf_counter()
    jax.block_until_ready(decode(variables, z))
    return 1000 * (encoded - start), 1000 * (time.perf_counter() - encoded)

  return lambda: [one() for _ in range(steps)]


def torch_counterpart(name: str, *arguments: Any) -> Callable[[], Any]:
  """`anticipation_torch.NAME(*arguments)`; torch is imported where it runs and nowhere else."""
  from benchmarks import anticipation_torch

  return getattr(anticipation_torch, name)(*arguments)


# Training.


def training(case: Case, repetitions: int) -> dict[str, Any]:
  """Steps per second of ours and of torch with either allocator."""
  contestants = [
    Contestant('ours', our_step, case),
    Contestant('torch', torch_counterpart, 'step', case, False),
    Contestant('torch, our allocator', torch_counterpart, 'step', case, True),
  ]
  warm = {each.name: each.turn() for each in contestants}
  for name, (seconds, (loss, trained)) in warm.items():
    print(f'  {name:<22} first step {seconds:5.1f} s, loss {loss:.3f}, {trained:,} numbers', flush=True)
  if len({trained for _, (_, trained) in warm.values()}) > 1:
    raise RuntimeError('the contestants do not train the same network.')
  take_turns(contestants, 1)
  seconds = {name: [each[0] for each in turns] for name, turns in take_turns(contestants, repetitions).items()}
  for each in contestants:
    each.close()
  medians = {name: statistics.median(each) for name, each in seconds.items()}
  for name, median in medians.items():
    low, high = min(seconds[name]), max(seconds[name])
    ratio = '' if name == 'ours' else f'; ours / this: {median / medians["ours"]:.2f} x'
    print(f'  {name:<22} {1 / median:6.2f} steps/s ({1000 * low:.0f} to {1000 * high:.0f} ms){ratio}', flush=True)
  return {'seconds': seconds, 'steps_per_second': {name: 1 / median for name, median in medians.items()}}


def features(repetitions: int) -> dict[str, Any]:
  """See the module."""
  found = {}
  for layers in (2, 6):
    print(f'features, L = {layers}', flush=True)
    found[f'layers_{layers}'] = training(cases.features(layers), repetitions)
  return found


def pixels(repetitions: int) -> dict[str, Any]:
  """See the module."""
  print('pixels', flush=True)
  return training(cases.PIXELS, repetitions)


# Streaming.


def stream(repetitions: int) -> dict[str, Any]:
  """See the module."""
  return {f'clips_{clips}': _stream(clips, repetitions) for clips in (10, 60)}


def _stream(clips: int, repetitions: int) -> dict[str, Any]:
  case, few = cases.stream(clips), 1 if clips > 10 else 4
  contestants = [
    Contestant('cached', our_stream, case, 'cached', 2 * clips),
    Contestant('exact', our_stream, case, 'exact', clips),
    Contestant('torch, last T features', torch_counterpart, 'stream', case, False, clips),
    Contestant('ours, last T clips', our_anew, case, few),
    Contestant('torch, last T clips', torch_counterpart, 'stream', case, True, few),
  ]
  take_turns(contestants, 1)
  turns = take_turns(contestants, repetitions)
  for each in contestants:
    each.close()
  print(f'stream, T = {clips}: ms per step, medians (mean and slowest of the decoder)')
  print(f'  {"":<24}{"encoder":>10}{"decoder":>10}{"mean":>9}{"slowest":>9}{"both":>10}')
  return {name: _latency(name, each) for name, each in turns.items()}


def _latency(name: str, turns: list[Turn]) -> dict[str, float]:
  times = np.array([step for _, steps in turns for step in steps])
  encode, decode = times.T
  found = {
    'encoder': float(np.median(encode)), 'decoder': float(np.median(decode)), 'decoder_mean': float(decode.mean()),
    'decoder_slowest': float(decode.max()), 'both': float(np.median(times.sum(1))),
  }  # fmt: skip
  print(
    f'  {name:<24}{found["encoder"]:>10.2f}{found["decoder"]:>10.2f}{found["decoder_mean"]:>9.2f}'
    f'{found["decoder_slowest"]:>9.2f}{found["both"]:>10.2f}', flush=True,
  )  # fmt: skip
  return found


# Label grids.


def label_grids(root: pathlib.Path, repetitions: int) -> dict[str, Any]:
  """See the module. Raises RuntimeError where the two disagree."""
  if not (root / 'action_anticipation').is_dir():
    print(f'grid: left out, there is no action_anticipation under {root} ($VERAX_SHARED_DATA).')
    return {}
  found = annotations.read('epic_kitchens_100', root / 'action_anticipation')
  segments, unknown, clips = found.segments, found.vocabulary.classes, grid.Grid()
  seconds = []
  for _ in range(repetitions):
    start = time.perf_counter()
    whole = grid.windows(grid.Timelines(segments, unknown), clips, segments)
    seconds.append(time.perf_counter() - start)
  chosen = np.linspace(0, len(found) - 1, SCANNED).astype(int)
  start = time.perf_counter()
  scanned = np.stack([_scan(segments, clips, unknown, row) for row in chosen])
  each = (time.perf_counter() - start) / SCANNED
  if not np.array_equal(scanned, whole['label'][chosen]):
    raise RuntimeError('the vectorised label grids differ from those of the scan.')
  once, all_scanned = statistics.median(seconds), each * len(found)
  print(
    f'grid: {len(found):,} segments x {clips.clips} clips in {once:.2f} s; a scan per sample would take '
    f'{all_scanned:.0f} s ({SCANNED} samples scaled up, {all_scanned / once:.0f} x), same labels'
  )
  return {'segments': len(found), 'seconds': once, 'scan_seconds': all_scanned}


def _scan(segments: dict[str, np.ndarray], clips: grid.Grid, unknown: int, row: int) -> np.ndarray:
  """Labels int [T] of one sample, by looking through the table for the video, then through its segments per clip."""
  mine = tables.select(segments, segments['video'] == segments['video'][row])
  labels = []
  for end in clips.ends(segments['start'][row]):
    covering = np.flatnonzero((mine['start'] <= end) & (end < mine['stop']) & (mine['action'] >= 0))
    labels.append(mine['action'][covering[-1]] if len(covering) and end > 0 else unknown)
  return np.array(labels)


# Memory.


def memory() -> dict[str, Any]:
  """See the module. Nothing of these sizes is allocated: the step is compiled for shapes."""
  jax.config.update('jax_enable_compilation_cache', False)  # a program read back from it may lack the account
  print('memory, GiB: ViT-B/16 at 224 px, n = 1, L = 6, d = 2048, batch 3, f32')
  print(f'  {"T":>4}{"state":>9}{"step":>9}{"step, remat":>13}', flush=True)
  found = {}
  for clips in (10, 20, 40, 80):
    plain, remat = (_account(cases.paper(clips, remat)) for remat in (False, True))
    found[clips] = {'state': plain[0], 'step': plain[1], 'step_remat': remat[1]}
    print(f'  {clips:>4}{plain[0]:>9.2f}{plain[1]:>9.2f}{remat[1]:>13.2f}', flush=True)
  return found


def _account(case: Case) -> tuple[float, float]:
  """GiB of (weights and moments, temporaries of a step) by XLA's account."""
  task, stage = joint_stage(case)
  mesh = mesh_lib.make()
  shapes = state.abstract(jax.eval_shape(task.init, jax.random.key(0)), stage, mesh)
  sharding = mesh_lib.batch_sharding(mesh)
  batch = {
    name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, (shape, dtype) in case.shapes().items()
  }
  lowered = step.make_train_step(stage, mesh, shapes, seed=0).lower(shapes, batch)
  account = lowered.compile({'xla_backend_optimization_level': 0}).memory_analysis()  # quick: it never runs
  held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
  return held / 2**30, account.temp_size_in_bytes / 2**30


def main(argv: list[str] | None = None) -> dict[str, Any]:
  """Prints the figures, writes them as JSON where asked, and returns them."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--part', choices=('features', 'pixels', 'stream', 'grid', 'memory'), help='one of them alone')
  parser.add_argument('--repetitions', type=int, default=5, help='turns of every contestant')
  parser.add_argument('--data', type=pathlib.Path, default=SHARED, help='folder that holds action_anticipation/')
  parser.add_argument('--output', type=pathlib.Path)
  args = parser.parse_args(argv)
  parts: dict[str, Callable[[], Any]] = {
    'features': lambda: features(args.repetitions),
    'pixels': lambda: pixels(args.repetitions),
    'stream': lambda: stream(args.repetitions),
    'grid': lambda: label_grids(args.data, args.repetitions),
    'memory': memory,
  }
  load = os.getloadavg()[0]
  print(f'{len(os.sched_getaffinity(0))} cores, load average of the last minute {load:.2f}', flush=True)
  result: dict[str, Any] = {'cores': len(os.sched_getaffinity(0)), 'load': load}
  for name, run in parts.items():
    if args.part in (None, name):
      result[name] = run()
  if args.output:
    args.output.write_text(json.dumps(result, indent=2), encoding='utf-8')
  return result


if __name__ == '__main__':
  main()
