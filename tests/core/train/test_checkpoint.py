"""What checkpoints hold, what a damaged one does, and how a run ends early."""

import pathlib
import shutil
import sys

import grain
import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import tiny_task

from core.errors import UserError
from core.train import checkpoint, loop, mesh, state

# When one array of a checkpoint cannot be read, orbax ends its asyncio loop while tensorstore still reads the others,
# whose threads then complain that the loop is closed. Harmless, and not ours.
pytestmark = pytest.mark.filterwarnings(
  'ignore:(?s).*Event loop is closed:pytest.PytestUnraisableExceptionWarning',
)

MONITOR = 'train/rmse/value'


def _train(workdir, hooks=(), resume=True, task=tiny_task.TinyTask, **changes):
  config = tiny_task.config()
  config.update(changes)
  return loop.train(task(config), workdir, logger=loop.NullLogger(), hooks=hooks, resume=resume)


def _equal(tree, other):
  jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, tree), jax.tree.map(np.asarray, other))


class _Stop(Exception):
  """Ends a run from a hook."""


def _stop_at(wanted):
  def hook(step, state, batch):
    if step == wanted:
      raise _Stop

  return hook


@pytest.fixture(scope='module')
def three_stages(tmp_path_factory):
  """Train the head, shift the bias, train everything; with a monitor: (folder, result)."""
  workdir = tmp_path_factory.mktemp('stages')
  return workdir, _train(workdir, second_stage=True, monitor=MONITOR)


def test_best_and_last_are_found_without_the_task(three_stages):
  workdir, result = three_stages
  best, meta = checkpoint.restore_variables(workdir, 'best')
  _equal(best, result.variables)
  assert meta['step'] == result.best_step and meta['stage_name'] == 'second' and meta['config']['seed'] == 3
  assert result.metadata == meta['metadata'] == {'threshold': meta['monitor_value']}
  by_step = {row['step']: row[MONITOR] for row in result.history if row['kind'] == 'eval' and row['stage'] == 'second'}
  assert meta['monitor_value'] == by_step[result.best_step] == min(by_step.values())
  assert checkpoint.restore_variables(workdir, 'last')[1]['step'] == 15
  assert checkpoint.restore_variables(workdir, 13)[1]['step'] == 13
  with pytest.raises(UserError, match=r"no checkpoint '7'.*last: \[13, 15\]"):
    checkpoint.restore_variables(workdir, 7)
  with pytest.raises(UserError, match='no complete checkpoint'):
    checkpoint.restore_variables(workdir / 'elsewhere')


@pytest.mark.parametrize('stop', [11, 14])
def test_a_run_of_several_stages_resumes_in_the_right_one(three_stages, tmp_path, stop):
  """Stopped at the first step after the procedure's checkpoint, and inside the last stage."""
  settings = {'second_stage': True, 'monitor': MONITOR}
  with pytest.raises(_Stop):
    _train(tmp_path, hooks=[_stop_at(stop if stop != 11 else 12)], **settings)
  seen = []
  result = _train(tmp_path, hooks=[lambda step, state, batch: seen.append(step)], **settings)
  assert seen == ([12, 13, 14, 15] if stop == 11 else [14, 15])
  _equal(result.variables, three_stages[1].variables)
  assert result.history == three_stages[1].history


def test_a_finished_run_only_hands_out_its_result(three_stages):
  workdir, result = three_stages
  again = _train(workdir, hooks=[_stop_at(step) for step in range(20)], second_stage=True, monitor=MONITOR)
  _equal(again.variables, result.variables)
  assert again.history == result.history and again.best_step == result.best_step


@pytest.fixture(scope='module')
def six_steps(tmp_path_factory):
  """(folder of a run of six steps that was stopped after its fifth, the result of one that was not)."""
  folder = tmp_path_factory.mktemp('six')
  with pytest.raises(_Stop):
    _train(folder / 'run', hooks=[_stop_at(5)], steps=6)
  return folder / 'run', _train(folder / 'whole', steps=6)


def _damage(folder, kind):
  """Spoils one item of a checkpoint."""
  if kind == 'meta':
    (folder / 'meta' / 'metadata').write_text('{"format": 1, "st')
  if kind == 'iterator':
    (folder / 'iterator' / 'metadata').unlink()
  item = folder / ('optimizer' if kind == 'optimizer' else 'variables')
  for path in [path for path in item.rglob('*') if path.is_file() and path.parent.name == 'd']:
    if kind in ('truncate', 'optimizer'):
      path.write_bytes(path.read_bytes()[:-20])
    if kind == 'remove':
      path.unlink()


@pytest.mark.parametrize('kind', ['truncate', 'remove', 'meta', 'optimizer', 'iterator'])
def test_a_damaged_checkpoint_is_ignored_and_its_step_saved_again(six_steps, tmp_path, capsys, kind):
  run = shutil.copytree(six_steps[0], tmp_path / 'run')
  _damage(run / 'checkpoints' / 'last' / '4', kind)
  if kind not in ('optimizer', 'iterator'):  # which weights alone do not need
    with pytest.raises(UserError, match='incomplete or damaged'):
      checkpoint.restore_variables(run, 4)
  result = _train(run, steps=6)
  printed = capsys.readouterr().out
  assert 'Ignoring the damaged checkpoint' in printed and 'Resuming from step 2' in printed
  _equal(result.variables, six_steps[1].variables)
  assert checkpoint.restore_variables(run, 4)[1]['step'] == 4
  assert (run / 'checkpoints' / 'damaged' / 'last-4').is_dir()


def test_a_damaged_best_checkpoint_is_found_anew(three_stages, tmp_path, capsys):
  run = shutil.copytree(three_stages[0], tmp_path / 'run')
  (run / 'checkpoints' / 'best' / str(three_stages[1].best_step) / 'meta' / 'metadata').write_text('{')
  shutil.rmtree(run / 'checkpoints' / 'last' / '15')
  result = _train(run, second_stage=True, monitor=MONITOR)
  assert 'Ignoring the damaged checkpoint' in capsys.readouterr().out
  assert result.best_step == 15 and checkpoint.restore_variables(run, 'best')[1]['step'] == 15


def test_a_save_holds_the_state_of_its_moment(tmp_path):
  """The state is donated to the next step at once, while the save still runs.

  jax takes the buffers where nobody reads them, and copies where the save still holds a view: which of the two happens
  here is a matter of time, and must not matter.
  """
  config = tiny_task.config()
  config.width = 2**18
  task = tiny_task.TinyTask(config)
  stage, devices = task.stages()[0], mesh.make()
  current = state.create(task.init(jax.random.key(0)), stage, devices)
  expected = jax.tree.map(np.array, current.variables(use_ema=False))
  checkpoints = checkpoint.Checkpoints(tmp_path)
  step_on = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
  unread = jax.tree.map(lambda leaf: jax.block_until_ready(leaf + 0), current)
  step_on(unread)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(unread)), 'the step is meant to take what it is given'
  meta = {'format': checkpoint.FORMAT, 'step': 1, 'monitor': None}
  checkpoints.save_last(1, current.replace(ema=None), None, meta)
  for _ in range(4):
    current = step_on(current)
  checkpoints.close()
  _equal(checkpoint.restore_variables(tmp_path)[0], expected)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_nan_names_step_examples_and_checkpoint(tmp_path, value):
  with pytest.raises(UserError) as caught:
    _train(tmp_path, poison=17, poison_value=value)
  message = str(caught.value)
  rows = tiny_task.TinyTask(tiny_task.config()).data(_Context())
  first = next(index for index, batch in enumerate(rows) if 17 in batch['id'])
  assert f'not finite at step {first + 1}.' in message and '17' in message.split('Batch ids:')[1].split(']')[0]
  saved = first // 2 * 2
  assert (f'last/{saved}' if saved else 'none yet') in message


class _Context:
  seed = 3


def test_a_changed_config_is_refused(tmp_path):
  _train(tmp_path, steps=3)
  with pytest.raises(UserError, match='other trainable leaves, averages or optimiser state'):
    _train(tmp_path, steps=3, ema_decay=0.0)
  with pytest.raises(UserError, match='already holds checkpoints'):
    _train(tmp_path, steps=3, resume=False)


class _ShortTask(tiny_task.TinyTask):
  def data(self, context):
    return grain.MapDataset.source(tiny_task.Rows()).batch(8).to_iter_dataset()


def test_data_that_run_out_are_named(tmp_path):
  with pytest.raises(UserError, match='10 steps but its data ended after 5'):
    _train(tmp_path, task=_ShortTask)


def test_a_wrong_monitor_is_named(tmp_path):
  with pytest.raises(UserError, match="Did you mean 'train/rmse/value'"):
    _train(tmp_path, monitor='train/rmse/valu', steps=4)
