"""How many images per second the input pipeline delivers, beside what the training step consumes.

  python -m benchmarks.input_pipeline                                    # a small network, records of 64 px
  python -m benchmarks.input_pipeline --size=256 --output_size=224 --records=600
  python -m benchmarks.input_pipeline --config=configs/fas/fas_aug.py    # an experiment's own batches and step
  python -m benchmarks.input_pipeline --step_images_per_second=900       # against a step measured elsewhere

'step' runs the training step again and again on one batch; 'input' draws batches and throws them away; 'together' is
training: draw, then step. Where step and pipeline share the cores, they also share the time: with S and I images/s
apart, S*I/(S+I) together is what one core could do, and S where the input costs nothing.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import tempfile
import time
from collections.abc import Callable

from benchmarks import experiment


def images_per_second(once: Callable[[], int], seconds: float, warm_up: int) -> float:
  """Images per second of `once`, which returns how many it did; the first `warm_up` calls do not count."""
  for _ in range(warm_up):
    once()
  count, start = 0, time.perf_counter()
  while time.perf_counter() - start < seconds:
    count += once()
  return count / (time.perf_counter() - start)


def measure(job: experiment.Measured, workers: int, seconds: float, *, with_step: bool) -> dict[str, float]:
  """{'input': images/s, 'together': images/s} of a job with that many workers."""
  batches = job.batches()
  drawn = lambda: len(next(iter(next(batches).values())))  # noqa: E731
  # The warm-up starts the workers and uses up what they fetched ahead.
  rates = {'input': images_per_second(drawn, seconds, 8 * (workers + 1))}
  if with_step:

    def train() -> int:
      job.run(next(batches))
      return job.rows

    rates['together'] = images_per_second(train, seconds, 4 * (workers + 1))
  batches.close()
  return rates


def main(argv: list[str] | None = None) -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--config', default='', help='configs/DOMAIN/NAME.py[:PRESET]; a small network without it')
  parser.add_argument('--override', action='append', default=[], help='KEY=VALUE over the config')
  parser.add_argument('--records', type=int, default=3000, help='number of frames to write (without --config)')
  parser.add_argument('--size', type=int, default=64, help='stored frames are SIZE x SIZE (without --config)')
  parser.add_argument('--output_size', type=int, default=0, help='network input; 0: as stored (without --config)')
  parser.add_argument('--workers', type=int, nargs='*', default=[0, 2])
  parser.add_argument('--seconds', type=float, default=5.0, help='duration of each measurement')
  parser.add_argument('--step_images_per_second', type=float, default=0.0, help='0: measure the step')
  parser.add_argument('--output', type=pathlib.Path, help='also write the numbers as JSON')
  args = parser.parse_args(argv)
  rows = []

  def report(what: str, rate: float, note: str = '') -> None:
    rows.append({'what': what, 'images_per_second': rate, 'note': note})
    print(f'{what:<20}{rate:9.0f} images/s  {note}', flush=True)

  with tempfile.TemporaryDirectory() as root:
    if not args.config:
      start = time.perf_counter()
      experiment.write_frames(root, args.records, args.size)
      report('write', args.records / (time.perf_counter() - start), f'{args.records} frames of {args.size} px')
    step = args.step_images_per_second
    for workers in args.workers:
      size = args.output_size or args.size
      task = experiment.load(args.config, args.override, records_root=root, size=size, workers=workers)
      job = experiment.Measured(task, root)
      if not step:
        batches = job.batches()
        batch = next(batches)
        batches.close()
        step = images_per_second(lambda job=job, batch=batch: job.run(batch) or job.rows, args.seconds, 2)
        report('step', step, f'{args.config or "a small convolutional network"}, batches of {job.rows}')
      rates = measure(job, workers, args.seconds, with_step=not args.step_images_per_second)
      for what, rate in rates.items():
        report(f'{what}, {workers} workers', rate, f'{rate / step:.2f} x the step')
  if args.output:
    args.output.write_text(json.dumps(rows, indent=2), encoding='utf-8')


if __name__ == '__main__':
  main()
