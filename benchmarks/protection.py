"""What protecting a photo costs: seconds and memory per photo, for DDAP, its parts and the methods it is compared with.

  python -m benchmarks.protection [--variant tiny] [--size 32] [--photos 4] [--methods fast latent aspl spl fpl ddap]
      [--dtype float32] [--micro 0] [--rounds 2] [--output protection.json]
  python -m benchmarks.protection --variant sd1 --size 512 --dtype bfloat16        # on a GPU

Weights are random: time does not depend on them. A few outer iterations are timed after a first one, which compiles,
and the figure for the whole schedule (50 iterations of 6 steps; 10 for 'fast') is that times their number. Surrogates
are personalised in full (not by LoRA), on one photo of the person and one of the class per step. The same steps beside
PyTorch: `benchmarks.diffusion`.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from core.diffusion import latent, personalisation
from core.train import backend
from generative.ddap import methods, protection

METHODS = ('fast', 'latent', 'aspl', 'spl', 'fpl', 'ddap')


def measure(name: str, model: latent.LatentDiffusion, params: Any, photos: jax.Array, rounds: int, micro: int) -> dict:
  """Seconds of one outer iteration, of the whole schedule per photo, and of what comes before (compilation in it)."""
  ids = jnp.zeros((1, model.text.max_positions), jnp.int32)
  learned = personalisation.encode(model, params, photos, ids)
  keys = jax.random.split(jax.random.key(0), len(photos))
  times = [time.perf_counter()]

  def note(done: int, of: int, losses: Any) -> None:
    del done, of, losses  # the losses were fetched: the device is done
    times.append(time.perf_counter())

  method = methods.build(name, outer=1 + rounds)
  made = protection.protect(
    model, params, photos, method, keys=keys, instance_ids=ids, reference=learned, prior=learned, micro=micro,
    on_step=note,
  )  # fmt: skip
  assert np.isfinite(np.asarray(made.photos)).all()
  each = float(np.median(np.diff(times[1:])))
  whole = methods.build(name).outer
  return {'first': times[1] - times[0], 'iteration': each, 'per_photo': each * whole / len(photos), 'outer': whole}


def memory() -> float:
  """GiB: the most that the device has held, or on a CPU the process."""
  held = jax.devices()[0].memory_stats()
  if held and 'peak_bytes_in_use' in held:
    return held['peak_bytes_in_use'] / 2**30
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
  """Measures and prints one line per method."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--variant', default='tiny', choices=sorted(latent.VARIANTS))
  parser.add_argument('--size', type=int, default=32)
  parser.add_argument('--photos', type=int, default=4)
  parser.add_argument('--methods', nargs='+', default=METHODS, choices=sorted(methods.METHODS))
  parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))
  parser.add_argument('--micro', type=int, default=0, help='photos whose gradients are computed at a time; 0: all')
  parser.add_argument('--rounds', type=int, default=2, help='outer iterations that are timed')
  parser.add_argument('--output', type=pathlib.Path)
  options = parser.parse_args()

  backend.setup()
  model = latent.build(options.variant, dtype=jnp.dtype(options.dtype))
  params = jax.jit(model.init, static_argnums=1)(jax.random.key(0), options.size)
  shape = (options.photos, options.size, options.size, 3)
  photos = jax.random.uniform(jax.random.key(1), shape, minval=-0.9, maxval=0.9)
  about = f'{jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.2f}'
  print(about)
  print(f'{options.variant}, {options.dtype}, {options.photos} photos of {options.size} pixels, micro {options.micro}')
  rows = {}
  for name in options.methods:
    found = rows[name] = measure(name, model, params, photos, options.rounds, options.micro)
    print(
      f'{name:8} {found["per_photo"]:8.2f} s per photo ({found["outer"]} outer iterations of {found["iteration"]:.2f} s'
      f' for all photos, the first {found["first"]:.1f} s), {memory():.1f} GiB so far',
      flush=True,
    )
    if options.output:
      settings = {key: value for key, value in vars(options).items() if key != 'output'}
      options.output.write_text(json.dumps({'machine': about, **settings, 'rows': rows}, indent=1))


if __name__ == '__main__':
  main()
