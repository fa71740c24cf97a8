"""A run small enough to be killed often: linear regression with everything that a resumed run must bring back.

Not a test. `python tests/core/train/tiny_task.py WORKDIR [options]` trains it in a process of its own and writes
result.npz (weights, optimiser state, losses, batches) into WORKDIR.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import signal
import sys
import threading
import time

import flax.core
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from core.data import pipeline
from core.errors import UserError
from core.train import loop, mesh, optim
from core.train.task import Evaluation, LossOutput, Stage, Task

FEATURES, ROWS, BATCH = 6, 40, 8


def config(**train) -> ml_collections.ConfigDict:
  """Ten steps of a batch of 8; `train` overrides the section of that name."""
  return ml_collections.ConfigDict({
    'seed': 3,
    'steps': 10,
    'accumulate': 2,
    'batch': BATCH,
    'ema_decay': 0.9,
    'poison': -1,
    'poison_value': float('nan'),
    'workers': 0,
    'second_stage': False,
    'monitor': '',
    'width': 4,
    'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
    'train': {'log_every': 3, 'eval_every': 4, 'checkpoint_every': 2, 'keep': 2} | train,
    'optim': {
      'name': 'adam', 'learning_rate': 0.05, 'schedule': 'cosine', 'warmup_steps': 2, 'weight_decay': 0.0,
      'momentum': 0.0, 'clip_norm': 1.0,
    },
  })  # fmt: skip


class Rows:
  """40 fixed examples of a noisy linear map; `poison` spoils one of them."""

  def __init__(self, poison: int = -1, value: float = float('nan')):
    rng = np.random.default_rng(0)
    self.x = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    self.y = (self.x @ np.arange(FEATURES, dtype=np.float32) + 0.1 * rng.normal(size=ROWS)).astype(np.float32)
    if poison >= 0:
      self.y[poison] = value

  def __len__(self) -> int:
    return ROWS

  def __getitem__(self, index: int) -> dict:
    index = int(index)
    return {'id': np.int64(index), 'x': self.x[index], 'y': self.y[index], 'name': f'row {index}'}


class TinyTask(Task):
  """Two layers; the first is frozen, dropout uses the step's key, and a collection counts the micro-batches."""

  kill = None  # called inside the loss, once per micro-batch, when set

  def init(self, rng):
    keys = jax.random.split(rng)
    width = self.config.width
    params = {
      'base': {'kernel': jax.random.normal(keys[0], (FEATURES, width)) / 2},
      'head': {'kernel': jax.random.normal(keys[1], (width, 1)), 'bias': jnp.zeros((1,))},
    }
    return {'params': params, 'counts': {'seen': jnp.zeros((), jnp.int32)}}

  def loss(self, variables, batch, rng, step):
    params = variables['params']
    hidden = jnp.tanh(batch['x'] @ params['base']['kernel'])
    keep = jax.random.bernoulli(rng, 0.9, hidden.shape)
    out = (hidden * keep) @ params['head']['kernel'] + params['head']['bias']
    error = (out[:, 0] - batch['y']) ** 2
    if TinyTask.kill is not None:
      jax.debug.callback(TinyTask.kill, error[0])
    updates = {'counts': {'seen': variables['counts']['seen'] + 1}}
    return error.mean(), LossOutput(
      {'by_parity': jnp.stack([error[::2].mean(), error[1::2].mean()])}, len(error), updates
    )

  def data(self, context):
    rows = Rows(self.config.poison, self.config.poison_value)
    stream = pipeline.rows(rows, seed=context.seed, random_transform=jitter)
    return pipeline.build(stream, batch_size=self.config.batch, workers=self.config.workers)

  def stages(self):
    settings = self.config
    common = {
      'loss': self.loss,
      'data': self.data,
      'accumulate': settings.accumulate,
      'ema_decay': settings.ema_decay or None,
      'evaluate': (('rmse', 'train'),),
      'monitor': settings.monitor or None,
    }
    first = Stage('first', steps=settings.steps, optimizer=optim.build(settings.optim, settings.steps),
                  trainable=lambda path: path.startswith('head'), **common)  # fmt: skip
    if not settings.second_stage:
      return [first]
    second = Stage('second', steps=4, optimizer=optim.build(settings.optim, 4), **common)
    return [first, Stage('shift', run=self.shift), second]

  def shift(self, context):
    """A stage that is a procedure: doubles the bias, adds a leaf to a collection."""
    context.log(1, {'shifted': 1.0})
    variables = flax.core.unfreeze(context.variables)
    variables['params']['head']['bias'] = variables['params']['head']['bias'] * 2
    return variables

  def evaluators(self):
    def rmse(variables, split):
      rows = Rows()
      params = mesh.host_arrays(dict(variables['params']))
      out = np.tanh(rows.x @ params['base']['kernel']) @ params['head']['kernel'] + params['head']['bias']
      value = float(np.sqrt(np.mean((out[:, 0] - rows.y) ** 2)))
      return Evaluation({'value': value}, metadata={'threshold': value})

    return {'rmse': rmse}


def jitter(row, rng):
  """An augmentation: a resumed run must draw the same numbers."""
  return {**row, 'y': np.float32(row['y'] + 0.01 * rng.normal())}


def by_path(tree) -> dict[str, jax.Array]:
  """Every array of a tree under its path."""
  return {mesh.key_path(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def collect(state) -> dict[str, np.ndarray]:
  """The same as whole numpy arrays."""
  return by_path(mesh.host_arrays(state))


def main() -> None:
  """Trains; options choose the moment of death."""
  parser = argparse.ArgumentParser()
  parser.add_argument('workdir', type=pathlib.Path)
  parser.add_argument('--kill_step', type=int, default=0, help='SIGKILL when this step is done')
  parser.add_argument('--kill_micro', type=int, default=0, help='SIGKILL inside this micro-batch')
  parser.add_argument('--kill_save', type=int, default=0, help='SIGKILL while this step is being written')
  parser.add_argument('--full_step', type=int, default=0, help='when this step is done, no file may grow past 8 kB')
  parser.add_argument('--term_step', type=int, default=0, help='SIGTERM when this step is done')
  parser.add_argument('--term_process', type=int, default=0, help='which process gets it')
  parser.add_argument('--slow', type=float, default=0.0, help='seconds that every step takes longer')
  parser.add_argument('--override', default='{}', help='JSON over the config')
  parser.add_argument('--processes', type=int, default=1)
  parser.add_argument('--process', type=int, default=0)
  parser.add_argument('--port', type=int, default=0)
  args = parser.parse_args()
  if args.processes > 1:
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.distributed.initialize(f'localhost:{args.port}', args.processes, args.process)
  if args.kill_micro:
    TinyTask.kill = _KillAfter(args.kill_micro)
  if args.kill_save:
    threading.Thread(target=_kill_during_save, args=(args.workdir, args.kill_save), daemon=True).start()
  settings = config()
  for key, value in json.loads(args.override).items():
    settings.update_from_flattened_dict({key: value})

  states, shards = {}, {}

  def hook(step, state, batch):
    with (args.workdir / f'batches_{jax.process_index()}.txt').open('a') as file:
      file.write(f'{step} {batch["id"].tolist()}\n')
    shards.update({path: leaf.sharding.shard_shape(leaf.shape) for path, leaf in by_path(state).items()})
    states.clear()
    states.update(collect(state) if jax.process_count() == 1 else {})
    if step == args.term_step and jax.process_index() == args.term_process:
      os.kill(os.getpid(), signal.SIGTERM)
    if step == args.full_step:
      resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
    if step == args.kill_step:
      os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(args.slow)

  try:
    result = loop.train(TinyTask(settings), args.workdir, logger=loop.NullLogger(), hooks=[hook])
  except (loop.Preempted, UserError) as stop:
    print(stop)
    sys.exit(stop.EXIT_CODE)
  record = {'best_step': result.best_step, 'history': result.history, 'shards': shards, 'metadata': result.metadata}
  (args.workdir / f'result_{jax.process_index()}.json').write_text(json.dumps(record))
  np.savez(args.workdir / f'result_{jax.process_index()}.npz', **states, **collect({'result': dict(result.variables)}))


class _KillAfter:
  def __init__(self, count: int):
    self.left = count

  def __call__(self, _) -> None:
    self.left -= 1
    if self.left == 0:
      os.kill(os.getpid(), signal.SIGKILL)


def _kill_during_save(workdir: pathlib.Path, step: int) -> None:
  """Dies as soon as something of the step's checkpoint, but not its end, is on disk."""
  folder = workdir / 'checkpoints' / 'last'
  while True:
    if folder.is_dir() and any(path.name.split('.')[0] == str(step) for path in folder.iterdir()):
      os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.0002)


if __name__ == '__main__':
  main()
