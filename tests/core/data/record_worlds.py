"""Small datasets for the data tests."""

import numpy as np
import tensorflow_datasets as tfds

FEATURES = {
  'image': tfds.features.Image(shape=(None, None, 3)),
  'label': tfds.features.ClassLabel(names=['spoof', 'live']),
  'subject': tfds.features.Text(),
  'frame': np.int32,
  'landmarks': tfds.features.Tensor(shape=(4, 2), dtype=np.float32),
  'info': tfds.features.Text(),
}


def examples(count, seed=0, size=8):
  """`count` records with random images; frame counts up, label alternates."""
  rng = np.random.default_rng(seed)
  for i in range(count):
    yield (
      f'{seed}-{i:04d}',
      {
        'image': rng.integers(0, 256, (size, size, 3), dtype=np.uint8),
        'label': i % 2,
        'subject': f's{i // 3}',
        'frame': i,
        'landmarks': np.full((4, 2), np.nan if i % 2 else i, np.float32),
        'info': '{}' if i % 2 else 'é' * 300,
      },
    )


def add_noise(row, rng):
  """A random transform that shows its draw."""
  return {**row, 'draw': rng.integers(0, 2**31)}


def cheap(row):
  """The fields that tests compare."""
  return {'id': row['id'], 'frame': row['frame'], 'draw': row.get('draw', 0), 'subject': row['subject']}
