"""How long a user waits for the first training step, with an empty and with a filled compilation cache.

  python -m benchmarks.time_to_first_step                                  # a small convolutional network
  python -m benchmarks.time_to_first_step --config=configs/fas/fas_aug.py  # an experiment; its data are made before

Each run is a process of its own, timed from its start to the end of its first step; the cache is a temporary folder,
empty in the first run. Columns, in seconds: 'import' until Python has read the libraries, 'build' until the loop begins
(config, task, first touch of the device), 'first step' from there (initial weights, first batch, compilation, the step
itself), 'total', and 'later step': the mean of the next five.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

COLUMNS = ('import', 'build', 'first step', 'total', 'later step')
LATER = 5


class _Done(Exception):
  """Ends the run when all is measured."""


def child(config: str, overrides: list[str], started: float) -> dict[str, float]:
  """One run, in the process that calls it; `started` is the time of its start (time.time)."""
  from benchmarks import experiment
  from core.train import backend, loop

  marks = [started, time.time()]
  backend.setup()
  task = experiment.load(config, overrides)

  def hook(step: int, state: Any, batch: Any) -> None:
    del batch
    state.step.block_until_ready()
    marks.append(time.time())
    if step > LATER:
      raise _Done

  with tempfile.TemporaryDirectory() as workdir:
    marks.append(time.time())
    with contextlib.suppress(_Done):
      loop.train(task, workdir, logger=loop.NullLogger(), hooks=[hook])
  begun, imported, built, first, last = *marks[:4], marks[-1]
  values = (imported - begun, built - imported, first - built, first - begun, (last - first) / (len(marks) - 4))
  return dict(zip(COLUMNS, values))


def measure(config: str, overrides: list[str], cache: str) -> dict[str, float]:
  """One run in a process of its own, with its compilation cache in the folder `cache`."""
  command = [sys.executable, '-m', 'benchmarks.time_to_first_step', f'--config={config}']
  command += [f'--override={override}' for override in overrides]
  environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': cache}
  done = subprocess.run(
    [*command, f'--started={time.time()}'], env=environment, stdout=subprocess.PIPE, text=True, check=True
  )
  return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> None:
  """Measures, prints a table, writes JSON where asked."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--config', default='', help='configs/DOMAIN/NAME.py[:PRESET]; a small network without it')
  parser.add_argument('--override', action='append', default=[], help='KEY=VALUE over the config')
  parser.add_argument('--repeats', type=int, default=2, help='runs with a warm cache')
  parser.add_argument('--output', type=pathlib.Path, help='also write the numbers as JSON')
  parser.add_argument('--started', type=float, help=argparse.SUPPRESS)
  args = parser.parse_args(argv)
  if args.started:
    print(json.dumps(child(args.config, args.override, args.started)))
    return
  if args.config:
    from benchmarks import experiment

    experiment.load(args.config, args.override)  # makes the data, which are no part of what is timed
  rows = []
  print(f'{"cache":<6}' + ''.join(f'{name:>12}' for name in COLUMNS))
  with tempfile.TemporaryDirectory() as cache:
    for kind in ['cold', *['warm'] * args.repeats]:
      rows.append({'cache': kind} | measure(args.config, args.override, cache))
      print(f'{kind:<6}' + ''.join(f'{rows[-1][name]:12.2f}' for name in COLUMNS), flush=True)
  if args.output:
    args.output.write_text(json.dumps(rows, indent=2), encoding='utf-8')


if __name__ == '__main__':
  main()
