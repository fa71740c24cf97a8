"""What benchmarks measure: the first stage of an experiment, or of a small stand-in that needs no system.

`load('configs/fas/fas_aug.py', ['train.steps=3'])` makes the data where they are missing and returns the task of the
first fold; `load('')` returns `Small`. `Measured` is a task's step and its batches, ready to be run apart.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from core import config as config_lib
from core.data import face_frames, pipeline, records
from core.train import mesh as mesh_lib
from core.train import optim, state, step
from core.train.task import LossOutput, Stage, StageContext, Task
from launch import command


def load(spec: str, overrides: Sequence[str] = (), *, records_root: str = '', size: int = 64, workers: int = 0) -> Task:
  """The task of an experiment's first fold, or `Small` on the records under `records_root` (none: arrays in memory).

  Args:
    spec: 'configs/DOMAIN/NAME.py[:PRESET]', or '' for `Small`.
    overrides: 'key=value' over the config of `spec`.
    records_root: folder that `write_frames` has filled; for `Small` only.
    size: side of the images of `Small`.
    workers: data workers, in the place of `config.data.workers`.
  """
  if not spec:
    settings = {'seed': 0, 'size': size, 'batch': 48, 'steps': 10**6, 'records': records_root, 'workers': workers}
    train = {'log_every': 10**6, 'eval_every': 0, 'checkpoint_every': 0, 'keep': 1}
    return Small(ml_collections.ConfigDict(settings | {'train': train, 'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1}}))
  config = config_lib.load(spec, [*overrides, f'data.workers={workers}'])
  task = command.task_class(config.system)
  command.make_data(task, config)
  _, first = task.folds(config)[0]
  return task(first)


class Measured:
  """The first stage of a task: `batches()` on the host, `run(batch)` on the device.

  Attributes:
    rows: images of a global batch.
  """

  def __init__(self, task: Task, workdir: str | pathlib.Path):
    config, self._stage = task.config, task.stages()[0]
    self._mesh = mesh_lib.make(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    variables = jax.jit(task.init)(jax.random.key(config.seed))
    self._context = StageContext(variables, pathlib.Path(workdir), config.seed, self._mesh, lambda *_: None)
    self._state = state.create(variables, self._stage, self._mesh)
    self._step = step.make_train_step(self._stage, self._mesh, self._state, seed=config.seed)
    self.rows = 0

  def batches(self) -> Iterator[Mapping[str, Any]]:
    """A fresh stream of the stage's batches."""
    return iter(self._stage.data(self._context))

  def run(self, batch: Mapping[str, Any]) -> None:
    """One step, to its end."""
    self.rows = len(next(iter(batch.values())))
    self._state, metrics = self._step(self._state, mesh_lib.put_batch(batch, self._mesh))
    jax.block_until_ready(metrics)


class _Net(nn.Module):
  """Strided 3x3 convolutions (32 to 128 channels) and a linear head."""

  @nn.compact
  def __call__(self, image: jax.Array) -> jax.Array:
    for width in (32, 64, 128, 128):
      image = nn.relu(nn.Conv(width, (3, 3), (2, 2))(image))
    return nn.Dense(2)(image.mean((1, 2)))


class Small(Task):
  """Live or spoof, by a small convolutional network on face frames; three interleaved domains."""

  def init(self, rng: jax.Array) -> Mapping[str, Any]:
    return _Net().init(rng, jnp.zeros((1, self.config.size, self.config.size, 3)))

  def stages(self) -> Sequence[Stage]:
    settings = ml_collections.ConfigDict(
      {'name': 'adam', 'learning_rate': 1e-3, 'schedule': 'constant', 'warmup_steps': 0, 'weight_decay': 0.0,
       'momentum': 0.0, 'clip_norm': 0.0}
    )  # fmt: skip
    steps = self.config.steps
    return [Stage('train', steps=steps, loss=self.loss, data=self.data, optimizer=optim.build(settings, steps))]

  def loss(self, variables, batch, rng, step):
    del rng, step
    logits = _Net().apply(variables, batch['image'])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'])
    return losses.mean(), LossOutput({}, len(losses))

  def data(self, context: StageContext) -> pipeline.Batches:
    if self.config.records:
      source = records.Records(self.config.records, 'frames', 'train')
      domains = [source.select(source.table['domain'] == name) for name in np.unique(source.table['domain'])]
      transform = face_frames.ToRow(self.config.size)
    else:
      shape = (self.config.size, self.config.size, 3)
      domains = [[{'image': np.zeros(shape, np.float32), 'label': np.int32(d % 2)}] for d in range(3)]
      transform = None
    parts = [pipeline.rows(rows, seed=(context.seed, d), transform=transform) for d, rows in enumerate(domains)]
    return pipeline.build(
      pipeline.interleave(parts), batch_size=self.config.batch, group=len(parts), workers=self.config.workers
    )


def write_frames(root: str | pathlib.Path, count: int, size: int) -> None:
  """Writes `count` face frames [size, size, 3]: smooth images with noise, so that PNG has its usual work."""
  records.write(root, 'frames', {'train': _frames(count, size)}, face_frames.FEATURES)


def _frames(count: int, size: int) -> Iterator[tuple[str, dict[str, Any]]]:
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
