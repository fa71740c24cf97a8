"""Latent diffusion beside PyTorch diffusers: U-Net, sampling, encoder and the inner steps of DDAP, same weights.

  python -m benchmarks.diffusion [--case half] [--rows unet_forward unet_gradient sample encode_gradient spl fpl]
      [--dtype float32] [--repetitions 5] [--reference] [--no-torch] [--output diffusion.json]

Both sides compute the same from the same random weights and inputs, and how far apart they are is printed: relative
error, and the share of equal signs, which is what a sign step reads of a gradient. Weights and activations of both have
one type. Compile time (for torch, the first call) is apart; numbers are medians, ratios are of medians of one run.

On the CPU the sides take turns on the same cores, a process each for every row; memory is the peak of the process,
libraries, compiler and all. On a GPU (--dtype bfloat16, --case sd1 or sd2) a side runs all rows by itself; memory is
what the program needs by the compiler's account, and torch's own. --reference adds a side in f32 (torch's, or ours
where there is no diffusers), to which both are compared: what half precision costs.

Measured on one H100, jax 0.11.2, torch 2.11, diffusers 0.42.1, `--case sd1 --batch 4 --dtype bfloat16`, 512 pixels:

                      ours     torch    ratio   compile   memory, GiB    signs as in f32
  unet_forward       14.1 ms   25.2 ms   1.79    16.2 s    1.8 |  2.1    99.5 % |  99.5 %
  unet_gradient      30.0 ms   52.2 ms   1.74    25.4 s    5.3 |  5.0    99.3 % |  99.2 %
  sample            399   ms  632   ms   1.58    18.5 s    3.0 |  2.4    99.4 % |  99.3 %
  encode_gradient    26.8 ms  102   ms   3.81     5.6 s    2.8 |  7.9    99.1 % |  99.2 %
  spl                55.1 ms  144   ms   2.62    17.8 s    8.0 | 11.0    99.0 % |  99.0 %
  fpl                55.2 ms  145   ms   2.62    (spl's)   8.0 | 11.0    95.5 % |  95.6 %

Measured on two idle virtual Xeon cores, jax 0.10.2, torch 2.13, `--case half`, f32 (all signs agreed):

                      ours     torch    ratio   compile   memory, GiB
  unet_forward        356 ms    317 ms   0.89     6.5 s    2.3 | 3.1
  unet_gradient       734 ms    695 ms   0.95    12.1 s    2.9 | 3.1
  sample             11.8 s    10.1 s    0.86     6.2 s    2.4 | 3.1
  encode_gradient     665 ms    599 ms   0.90     2.0 s    2.4 | 3.1
  spl                1500 ms   1407 ms   0.94    15.8 s    3.6 | 3.1
  fpl                1347 ms   1291 ms   0.96    15.6 s    3.6 | 3.1

On one of these cores, beside other jobs: unet_forward 522 ms and 515 in torch, 0.99 x; unet_gradient 993 ms and 1027,
1.03 x; encode_gradient 1120 ms and 1088, 0.97 x. A second core helps XLA less than torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contest import Contestant, take_turns
from benchmarks.diffusion_cases import ALPHA, CASES, EPSILON, FIRST, GUIDANCE, ROWS, SCHEDULE, STEPS, TIMESTEP, Case
from core.attacks.projection import project
from core.diffusion.samplers import Sampler, sample
from core.train import backend
from generative.ddap import frequency, spatial

Run = Callable[[], tuple[float, np.ndarray, dict[str, Any]]]
"""Computes a row: (seconds, its value NHWC, {'compile': seconds, 'memory': GiB})."""


class Ours:
  """Both networks with the weights of a case, and its inputs, on a device."""

  def __init__(self, case: Case, dtype: str):
    backend.setup()
    jax.config.update('jax_enable_compilation_cache', False)  # compile time is a figure
    if dtype == 'float32':  # a GPU would round the factors of f32 products to TF32
      jax.config.update('jax_default_matmul_precision', 'highest')
    self.model, self.t = case.model(dtype), jnp.full((case.batch,), TIMESTEP)
    weights = {
      name: flax.traverse_util.unflatten_dict({path: jnp.asarray(leaf, dtype) for path, leaf in flat.items()}, sep='/')
      for name, flat in case.weights().items()
    }
    self.arguments = jax.device_put((weights, case.arrays()))
    self.arguments[1]['clean'] = jax.jit(self.model.moments)(weights, self.arguments[1]['x0'])
    self._program = None

  def prepare(self, row: str) -> dict[str, Any]:
    """Compiles a row: {'compile': seconds}."""
    start = time.perf_counter()
    if row in ('spl', 'fpl'):  # one program, as in protection, where they alternate
      program, self._arguments = self.step, (*self.arguments, row == 'fpl')
    else:
      program, self._arguments = getattr(self, row), self.arguments
    if program != self._program:
      self._program, self._compiled = program, jax.jit(program).lower(*self._arguments).compile()
    seconds = time.perf_counter() - start
    self.run(row)
    return {'compile': seconds}

  def run(self, row: str) -> jax.Array:
    """Computes the prepared row and waits for it."""
    del row
    return jax.block_until_ready(self._compiled(*self._arguments))

  def memory(self) -> float | None:
    """GiB of the GPU that the prepared row needs, weights and all; None on the CPU."""
    if jax.default_backend() == 'cpu':
      return None
    account = self._compiled.memory_analysis()
    sizes = account.argument_size_in_bytes, account.output_size_in_bytes, account.temp_size_in_bytes
    return sum(sizes) / 2**30

  def numpy(self, value: jax.Array) -> np.ndarray:
    """NHWC."""
    return np.asarray(value)

  def unet_forward(self, weights, inputs):
    return self.model.predict(weights, inputs['noise'], self.t, inputs['context'])

  def unet_gradient(self, weights, inputs):
    rest = inputs['context'], self.t, inputs['noise']
    return jax.grad(lambda latents: self.model.errors(weights, latents, *rest).mean())(self._scaled(inputs['clean']))

  def sample(self, weights, inputs):
    denoise, sampler = functools.partial(self.model.predict, weights), Sampler('ddim', SCHEDULE)
    conditions = {name: inputs[name] for name in ('context', 'negative')}
    return sample(denoise, inputs['noise'], sampler, STEPS, guidance=GUIDANCE, **conditions)

  def encode_gradient(self, weights, inputs):
    return jax.grad(lambda x: jnp.square(self.model.latents(weights, x)).mean())(inputs['x'])

  def step(self, weights, inputs, fpl):
    gradient = jax.grad(lambda x: self._attack_loss(weights, inputs, x, jnp.where(fpl, 0.0, 1.0)))(inputs['x'])
    fine = functools.partial(
      frequency.detail_direction, step=frequency.matched_step(ALPHA, FIRST), detail=frequency.detail_weights(FIRST)
    )
    move = jax.lax.cond(fpl, fine, lambda gradient: ALPHA * jnp.sign(gradient), gradient)
    return project(inputs['x'] + move, inputs['x0'], EPSILON) - inputs['x']

  def _attack_loss(self, weights, inputs, x, weight):
    """The denoising loss and `weight` times the latent loss, summed over photos."""
    draws = spatial.Draws(inputs['eta'], inputs['eta'], inputs['noise'], self.t)
    moments = self.model.moments(weights, x)
    loss = spatial.denoising_loss(self.model, weights, moments, inputs['context'], draws)
    return (loss + weight * spatial.latent_loss(self.model, moments, inputs['clean'])).sum()

  def _scaled(self, moments):
    return self.model.autoencoder.scaling * moments[0]


def side_of(kind: str, case: Case, dtype: str) -> Any:
  """`Ours`, or torch's; torch is imported where it runs and nowhere else."""
  if kind == 'ours':
    return Ours(case, dtype)
  from benchmarks.diffusion_torch import Torch

  return Torch(case, dtype)


def one_row(kind: str, case: Case, dtype: str, row: str) -> Run:
  """A row of a side, ready."""
  return _row(side_of(kind, case, dtype), row)


def _row(side: Any, row: str) -> Run:
  facts = side.prepare(row)

  def run() -> tuple[float, np.ndarray, dict[str, Any]]:
    start = time.perf_counter()
    value = side.run(row)
    seconds = time.perf_counter() - start
    memory = side.memory()
    return seconds, side.numpy(value), {**facts, 'memory': _resident() if memory is None else memory}

  return run


def all_rows(kind: str, case: Case, dtype: str, rows: list[str], repetitions: int) -> Callable[[], Any]:
  """A function that takes all turns of all rows of a side: {row: its turns}."""
  side = side_of(kind, case, dtype)

  def run() -> dict[str, list[Any]]:
    found = {}
    for row in rows:
      turn = _row(side, row)
      found[row] = [turn() for _ in range(repetitions)]
      seconds = statistics.median(each[0] for each in found[row])
      print(f'  {kind} {dtype} {row}: {1000 * seconds:.1f} ms, {found[row][0][2]}', flush=True)
    return found

  return run


def _resident() -> float:
  """GiB of memory that this process had at most."""
  lines = pathlib.Path('/proc/self/status').read_text(encoding='utf-8').splitlines()
  return next(int(line.split()[1]) for line in lines if line.startswith('VmHWM')) / 2**20


def turns_on_cpu(sides: dict[str, tuple], case: Case, row: str, repetitions: int) -> dict[str, list[Any]]:
  """{side: its turns} of a row, in turn."""
  contestants = [Contestant(name, one_row, kind, case, dtype, row) for name, (kind, dtype) in sides.items()]
  take_turns(contestants, 1)
  turns = take_turns(contestants, repetitions)
  for each in contestants:
    each.close()
  return {name: [value for _, value in each] for name, each in turns.items()}


def turns_on_gpu(sides: dict[str, tuple], case: Case, rows: list[str], repetitions: int) -> dict[str, dict]:
  """{side: {row: its turns}}, one side after the other."""
  found = {}
  for name, (kind, dtype) in sides.items():
    contestant = Contestant(name, all_rows, kind, case, dtype, rows, repetitions if name != 'reference' else 1)
    found[name] = contestant.turn()[1]
    contestant.close()
  return found


def agreement(value: np.ndarray, reference: np.ndarray) -> dict[str, float]:
  """Of two arrays: relative error, cosine, share of equal signs."""
  value, reference = (each.astype(np.float64).ravel() for each in (value, reference))
  size = np.linalg.norm(reference)
  return {
    'relative_error': float(np.linalg.norm(value - reference) / size),
    'cosine': float(value @ reference / np.linalg.norm(value) / size),
    'same_signs': float((np.sign(value) == np.sign(reference)).mean()),
  }


def account(row: str, turns: dict[str, list[Any]]) -> dict[str, Any]:
  """Prints and gives the figures of a row."""
  last = 'reference' if 'reference' in turns else list(turns)[-1]
  print(f'{row}: {ROWS[row]}')
  found: dict[str, Any] = {}
  for name, each in turns.items():
    seconds, facts = [seconds for seconds, _, _ in each], each[-1][2]
    found[name] = {'seconds': seconds, **facts}
    line = f'  {name:<10}{1000 * statistics.median(seconds):>10.1f} ms ({1000 * min(seconds):.1f} to'
    line += f' {1000 * max(seconds):.1f}), compile {facts["compile"]:.1f} s, {facts["memory"]:.2f} GiB'
    if name != last:
      found[name].update(agreement(each[-1][1], turns[last][-1][1]))
      line += (
        f'; to {last}: error {found[name]["relative_error"]:.1e}, {100 * found[name]["same_signs"]:.2f} % of signs'
      )
    print(line)
  if 'torch' in turns:
    found['ratio'] = statistics.median(found['torch']['seconds']) / statistics.median(found['ours']['seconds'])
    print(f'  ours / torch: {found["ratio"]:.2f} x', flush=True)
  return found


def main(argv: list[str] | None = None) -> dict[str, Any]:
  """Prints the figures, writes them as JSON where asked, and returns them."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--case', default='half', choices=sorted(CASES))
  parser.add_argument('--batch', type=int, help="photos; the case's own by default")
  parser.add_argument('--rows', nargs='+', default=list(ROWS), choices=list(ROWS), metavar='ROW', help=', '.join(ROWS))
  parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))
  parser.add_argument('--cpu', action='store_true', help='also where there is a GPU')
  parser.add_argument('--repetitions', type=int, default=5)
  parser.add_argument('--reference', action='store_true', help='a side in f32 too, to which the others are compared')
  parser.add_argument('--no-torch', action='store_true', help='ours alone; so too where there is no diffusers')
  parser.add_argument('--output', type=pathlib.Path)
  args = parser.parse_args(argv)

  case = CASES[args.case]
  if args.batch:
    case = dataclasses.replace(case, batch=args.batch)
  peer = not args.no_torch and importlib.util.find_spec('diffusers') is not None
  sides = {'ours': ('ours', args.dtype)}
  if peer:
    sides['torch'] = ('torch', args.dtype)
  if args.reference:
    sides['reference'] = ('torch' if peer else 'ours', 'float32')
  if args.cpu:
    os.environ.update(JAX_PLATFORMS='cpu', CUDA_VISIBLE_DEVICES='')
    jax.config.update('jax_platforms', 'cpu')
  os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'
  device, load = jax.devices()[0], os.getloadavg()[0]
  print(f'{device.device_kind}, {len(os.sched_getaffinity(0))} cores, load average of the last minute {load:.2f}')
  print(f'case {args.case}, {args.dtype}: {case}', flush=True)
  result: dict[str, Any] = {
    'device': device.device_kind, 'cores': len(os.sched_getaffinity(0)), 'load': load, 'dtype': args.dtype,
    'case': dataclasses.asdict(case), 'rows': {},
  }  # fmt: skip
  on_gpu = None if device.platform == 'cpu' else turns_on_gpu(sides, case, args.rows, args.repetitions)
  for row in args.rows:
    if on_gpu is None:
      turns = turns_on_cpu(sides, case, row, args.repetitions)
    else:
      turns = {name: rows[row] for name, rows in on_gpu.items()}
    result['rows'][row] = account(row, turns)
    if args.output:
      args.output.write_text(json.dumps(result, indent=2), encoding='utf-8')
  return result


if __name__ == '__main__':
  main()
