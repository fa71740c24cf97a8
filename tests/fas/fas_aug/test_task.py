"""FAS-Aug as a task: what a batch becomes, what the loss is made of, and the whole way from a command to a report."""

import json
import pathlib
import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import config as config_lib
from core.errors import UserError
from core.train import mesh
from core.train import task as contract
from fas.fas_aug import losses
from fas.fas_aug.task import Task
from launch import evaluate, predict, train

CONFIG = 'configs/fas/fas_aug.py'
SMALL = {
  'data.subjects': 3, 'data.size': 32, 'data.frames_per_video': 1, 'data.augmented_frames_per_video': 1,
  'data.validation_fraction': 0.3, 'data.protocol': 'laptop&phone->tablet',
  'data.domains': ('laptop', 'phone', 'tablet'),
  'model.image_size': 32, 'augment.domains': 2, 'train.batch_per_domain': 4, 'train.steps': 3, 'train.log_every': 1,
  'train.eval_every': 2, 'train.checkpoint_every': 3, 'optim.warmup_steps': 1, 'eval.batch_size': 16,
}  # fmt: skip


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  return config_lib.load(CONFIG, {**SMALL, 'data.records': str(tmp_path_factory.mktemp('records'))})


@pytest.fixture(scope='module')
def task(config):
  Task.prepare(config)
  return Task(config)


@pytest.fixture(scope='module')
def batch(task, tmp_path_factory):
  context = contract.StageContext({}, tmp_path_factory.mktemp('run'), 0, mesh.make(), lambda *_: None)
  host = next(iter(task.batches(context)))
  return {name: jnp.asarray(value) for name, value in host.items()}


def changed(config, **overrides):
  return Task(config_lib.derive(config, {key.replace('__', '.'): value for key, value in overrides.items()}))


def test_a_batch_holds_every_domain_in_turn(task, batch):
  assert batch['image'].dtype == jnp.uint8 and batch['image'].shape == (16, 32, 32, 3)
  np.testing.assert_array_equal(batch['domain'], np.tile([0, 1, 2, 3], 4))


def test_source_rows_stay_as_they_are_and_augmented_ones_change(task, batch):
  images, labels, flip_rate = task.augment(batch, jax.random.key(0), jnp.int32(0))
  real = np.asarray(batch['domain']) < 2
  np.testing.assert_array_equal(images[real], batch['image'][real] / np.float32(255))
  np.testing.assert_array_equal(labels[real], batch['label'][real])
  assert np.abs(np.asarray(images - batch['image'] / 255.0))[~real].max() > 0.02
  spoof_before = np.asarray(batch['label']) == losses.SPOOF
  assert not np.asarray(labels)[spoof_before].any(), 'a spoof never becomes live'
  live_before = (np.asarray(batch['label']) == losses.LIVE) & ~real
  assert float(flip_rate) == pytest.approx(np.mean(np.asarray(labels)[live_before] == losses.SPOOF))


def test_policies_change_from_epoch_to_epoch_and_are_written_down(task, config, tmp_path):
  first, again, other = task.policies(0), task.policies(0), task.policies(1)
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other)))
  task.write_policies(tmp_path / 'policies.json')
  written = json.loads((tmp_path / 'policies.json').read_text())
  assert len(written) == -(-task.steps() // task.steps_per_epoch())
  assert len(written[0]) == config.augment.domains and len(written[0][0]) == config.augment.sub_policies


def test_small_crops_tremble_in_proportion(task, config):
  trembling = 6
  policies = task.policies(0)
  drawn = changed(config, data__size=256).policies(0)
  np.testing.assert_array_equal(policies.ops, drawn.ops)
  expected = np.where(drawn.ops == trembling, drawn.levels * 32 / 256, drawn.levels)
  np.testing.assert_allclose(policies.levels, expected, rtol=1e-6)
  assert drawn.levels.dtype == jnp.int32


def test_every_image_may_have_a_policy_of_its_own(config, batch):
  task = changed(config, augment__refresh='image')
  images, _, _ = task.augment(batch, jax.random.key(0), jnp.int32(0))
  other, _, _ = task.augment(batch, jax.random.key(1), jnp.int32(0))
  assert np.abs(np.asarray(images - other)).max() > 0.02


def test_the_loss_is_the_sum_of_its_terms(config, batch):
  task = changed(config, loss__sare_weight=7.0, loss__contrastive_weight=0.5)
  variables = task.init(jax.random.key(0))
  total, out = jax.jit(task.loss)(variables, batch, jax.random.key(1), jnp.int32(0))
  m = out.metrics
  assert float(total) == pytest.approx(float(m['base'] + 7 * m['sare'] + 0.5 * m['contrastive']), rel=1e-5)
  assert m['risk'].shape == (4,)
  erm = changed(config, augment__bag='none', loss__sare_weight=0.0, loss__contrastive_weight=0.0)
  sources = {name: value[np.asarray(batch['domain']) < 2] for name, value in batch.items()}
  total, out = jax.jit(erm.loss)(erm.init(jax.random.key(0)), sources, jax.random.key(1), jnp.int32(0))
  assert float(total) == float(out.metrics['base'])


@pytest.mark.parametrize('bag', ['trad', 'mix'])
def test_the_rival_bags_run(config, batch, bag):
  images, labels, _ = changed(config, augment__bag=bag).augment(batch, jax.random.key(0), jnp.int32(0))
  assert np.isfinite(images).all()
  if bag == 'trad':
    np.testing.assert_array_equal(labels, batch['label'])


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('augment.bag', 'fass', "config.augment.bag is 'fass'.*Did you mean 'fas'"),
    ('augment.refresh', 'step', 'config.augment.refresh'),
    ('loss.sare_samples', 'live', 'config.loss.sare_samples'),
    ('loss.sare_missing', 'drop', 'config.loss.sare_missing'),
    ('train.steps', 0, 'must say how long to train'),
  ],
)
def test_words_that_mean_nothing_are_refused(config, key, value, message):
  with pytest.raises(UserError, match=message):
    Task(config_lib.derive(config, {key: value}))


def test_the_published_presets_are_the_papers(config):
  release, paper = (config_lib.load(f'{CONFIG}:{preset}') for preset in ('release', 'paper'))
  assert (release.loss.sare_weight, release.loss.contrastive_weight, paper.loss.contrastive_weight) == (10, 0.02, 0)
  assert len(Task.folds(release)) == 4 and Task.folds(release)[0][1].data.protocol == 'I&C&O->M'
  task = Task(Task.folds(release)[0][1])
  shapes = jax.eval_shape(task.init, jax.random.key(0))['params']
  flat = {'/'.join(k.key for k in path): leaf.size for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]}
  assert sum(size for path, size in flat.items() if task.classifier.trainable(path)) == 329_090


def command_of_config() -> list[str]:
  """The command that the config's docstring shows."""
  text = config_lib._get_config(CONFIG).__globals__['__doc__']
  return shlex.split(re.search(r'python -m launch\.train (.*)', text).group(1))


@pytest.fixture(scope='module')
def run(config, tmp_path_factory):
  """The command in the config's header, shortened."""
  workdir = tmp_path_factory.mktemp('run')
  flags = [word for word in command_of_config() if not word.startswith('--workdir')]
  leaves = {**SMALL, 'data.records': config.data.records}
  listed = lambda value: ','.join(value) if isinstance(value, tuple) else value  # noqa: E731
  flags += [f'--config.{key}={listed(value)}' for key, value in leaves.items()]
  assert train.main([*flags, f'--workdir={workdir}']) == 0
  return workdir


def test_from_the_command_to_the_report(run):
  page = (run / 'report.html').read_text()
  for title in ('Error rates', 'Augmented faces', 'Learning curves', 'Worst errors'):
    assert title in page
  results = json.loads((run / 'results.json').read_text())
  assert {'val/biometrics', 'test/biometrics', 'test/artefacts'} <= set(results['evaluations'])
  assert results['unread'] == ['data.dataset', 'data.detector', 'data.margin', 'data.overwrite', 'data.root']
  assert (run / 'metrics.csv').is_file() and any((run / 'tensorboard').iterdir())


def test_the_checkpoint_is_judged_again_alike(run, capsys):
  assert evaluate.main([f'--workdir={run}', '--split=test', '--evaluator=biometrics']) == 0
  results = json.loads((run / 'results.json').read_text())['evaluations']['test/biometrics']
  shown = capsys.readouterr().out
  assert f'{results["frame/auc"]:.4g}' in shown
  assert 'video/hter_at_dev' in shown and 'video/min_hter' in shown and 'frame/acer' in shown


def test_photographs_go_through_the_checkpoint(run, shared_data, tmp_path):
  photos = shared_data / 'fas_real'
  broken = tmp_path / 'broken.jpg'
  broken.write_bytes(b'not a picture')
  status = predict.main([f'--workdir={run}', '--input', str(photos), str(broken), f'--output={tmp_path / "out"}'])
  assert status == 0
  rows = json.loads((tmp_path / 'out' / 'predictions.json').read_text())
  rows = rows['rows'] if isinstance(rows, dict) else rows
  served = {pathlib.Path(row['file']).name for row in rows if 'live_score' in row}
  assert served == {path.name for path in photos.glob('*.jpg')}
  assert any('broken.jpg' in row['file'] and 'error' in row for row in rows)
  assert (tmp_path / 'out' / 'contact_sheet.png').is_file()
