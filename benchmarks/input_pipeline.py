"""How many images per second the input pipeline delivers, beside what a training step consumes.

  python -m benchmarks.input_pipeline                               # 64 px, 0 and 2 workers, a small convolutional step
  python -m benchmarks.input_pipeline --step_images_per_second=900  # against a step measured elsewhere
  python -m benchmarks.input_pipeline --size=256 --output_size=224 --records=600

Random face-frame records (smooth images with noise, so that PNG has its usual work) are written to a temporary folder,
then read, decoded, resized, shuffled and batched as in training. The pipeline alone is timed without a step beside it;
where step and pipeline share cores, they also share the time: with S and I images/s alone, expect S*I/(S+I) at worst.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator

import cv2
import numpy as np

from core.data import face_frames, pipeline, records


def frames(count: int, size: int) -> Iterator[tuple[str, dict]]:
  """`count` face-frame examples with images [size, size, 3]."""
  rng = np.random.default_rng(0)
  for i in range(count):
    smooth = cv2.resize(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), (size, size), interpolation=cv2.INTER_CUBIC)
    noise = rng.integers(0, 8, smooth.shape, dtype=np.uint8)
    yield (
      str(i),
      {
        'image': cv2.add(smooth, noise),
        'label': i % 2,
        'attack': 'live' if i % 2 else 'print',
        'domain': f'd{i % 3}',
        'subject': f's{i // 30}',
        'video': f'v{i // 6}',
        'frame': i % 6,
        'frames_total': 6,
        'landmarks': face_frames.NO_LANDMARKS,
        'info': '{}',
      },
    )


def pipeline_rate(source: records.Records, size: int, batch_size: int, workers: int, seconds: float) -> float:
  """Images per second of the training pipeline over three interleaved domains, without its start-up."""
  of = source.table['domain']
  domains = [source.select(of == name) for name in np.unique(of)]
  parts = [pipeline.rows(d, seed=(0, i), transform=face_frames.ToRow(size)) for i, d in enumerate(domains)]
  options = {'batch_size': batch_size, 'group': len(domains), 'process_index': 0, 'process_count': 1}
  batches = iter(pipeline.build(pipeline.interleave(parts), workers=workers, **options))
  for _ in range(8 * (workers + 1)):  # start-up, and whatever was fetched ahead
    next(batches)
  count, start = 0, time.perf_counter()
  while time.perf_counter() - start < seconds:
    count += len(next(batches)['image'])
  rate = count / (time.perf_counter() - start)
  batches.close()
  return rate


def step_rate(size: int, batch_size: int, seconds: float) -> float:
  """Images per second of a training step of a small convolutional network (four stages of 32 to 128 channels, SGD)."""
  import flax.linen as nn
  import jax
  import jax.numpy as jnp
  import optax

  class Small(nn.Module):
    """Strided 3x3 convolutions and a linear head."""

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
      for width in (32, 64, 128, 128):
        image = nn.relu(nn.Conv(width, (3, 3), (2, 2))(image))
      return nn.Dense(2)(image.mean((1, 2)))

  model = Small()
  images, labels = jnp.ones((batch_size, size, size, 3)), jnp.zeros(batch_size, int)
  params = model.init(jax.random.key(0), images)

  @jax.jit
  def step(params):
    def loss(params):
      return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, images), labels).mean()

    return jax.tree.map(lambda p, g: p - 1e-3 * g, params, jax.grad(loss)(params))

  params = jax.block_until_ready(step(params))
  count, start = 0, time.perf_counter()
  while time.perf_counter() - start < seconds:
    params = jax.block_until_ready(step(params))
    count += batch_size
  return count / (time.perf_counter() - start)


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--records', type=int, default=3000, help='number of frames to write')
  parser.add_argument('--size', type=int, default=64, help='stored frames are SIZE x SIZE')
  parser.add_argument('--output_size', type=int, default=0, help='network input; 0: as stored')
  parser.add_argument('--batch_size', type=int, default=48)
  parser.add_argument('--workers', type=int, nargs='*', default=[0, 2])
  parser.add_argument('--seconds', type=float, default=5.0, help='duration of each measurement')
  parser.add_argument('--step_images_per_second', type=float, default=0.0, help='0: measure a small convolutional step')
  args = parser.parse_args()
  size = args.output_size or args.size

  with tempfile.TemporaryDirectory() as root:
    start = time.perf_counter()
    records.write(root, 'frames', {'train': frames(args.records, args.size)}, face_frames.FEATURES)
    print(f'write  {args.records / (time.perf_counter() - start):8.0f} images/s  ({args.records} of {args.size} px)')
    source = records.Records(root, 'frames', 'train')
    rates = {w: pipeline_rate(source, size, args.batch_size, w, args.seconds) for w in args.workers}
  step = args.step_images_per_second or step_rate(size, args.batch_size, args.seconds)
  print(f'step   {step:8.0f} images/s  ({"given" if args.step_images_per_second else "small convolutional network"})')
  for workers, rate in rates.items():
    print(f'input  {rate:8.0f} images/s  with {workers} workers: {rate / step:.1f} x the step')


if __name__ == '__main__':
  main()
