"""DDAP as a task: its stages, what it keeps, and the whole way from a command to a report."""

import json
import re
import shlex

import jax
import numpy as np
import pytest
from small_ddap import CONFIG, SMALL

from core import config as config_lib
from core.errors import UserError
from core.train import checkpoint, mesh
from core.train import task as contract
from generative.ddap import procedure
from generative.ddap.task import Task
from launch import train


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  return config_lib.load(CONFIG, {**SMALL, 'data.records': str(tmp_path_factory.mktemp('records'))})


@pytest.fixture(scope='module')
def run(config, tmp_path_factory, smaller_networks):
  """A run by the command that the config's docstring shows, shortened."""
  text = config_lib._get_config(CONFIG).__globals__['__doc__']
  words = shlex.split(re.search(r'python -m launch\.train (.*)', text).group(1))
  workdir = tmp_path_factory.mktemp('ddap')
  words = [word for word in words if not word.startswith('--workdir')] + [f'--workdir={workdir}']
  overrides = [f'--config.{key}={value!r}'.replace("'", '"') for key, value in SMALL.items()]
  assert train.main([*words, *overrides, f'--config.data.records={config.data.records}']) == 0
  return workdir


@pytest.fixture(scope='module')
def trained(run, smaller_networks):
  variables, meta = checkpoint.restore_variables(run)
  task = Task(config_lib.restore(meta['config']))
  task.restored(meta['metadata'])
  return task, variables


def test_the_command_of_the_docstring_leaves_a_report_with_every_part(run):
  results = json.loads((run / 'results.json').read_text())
  assert set(results['evaluations']) == {'test/model', 'test/visibility', 'test/protection', 'test/purification'}
  scalars = results['evaluations']['test/protection']
  for victim in ('white', 'transfer'):
    assert {f'{victim}/before', f'{victim}/clean', f'{victim}/ddap/R', f'{victim}/random/effect'} <= set(scalars)
  assert 'white/spl+mask/R' in scalars and 'transfer/spl+mask/R' not in scalars, 'config.eval.transfer'
  page = (run / 'report.html').read_text()
  titles = ('Protected photos', 'Visibility and suppression', 'What the attacker makes', 'Purification', 'The model')
  assert [title for title in titles if title not in page] == []
  for_others = {'autoencoder', 'diffusion', 'train', 'predict', 'data'}  # no training, no prediction, no folders
  of_real_photos = {'eval.detector', 'eval.embedder', 'eval.brisque'}
  assert {key.split('.')[0] for key in set(results['unread']) - of_real_photos} <= for_others


def test_the_checkpoint_holds_the_protected_photos_within_the_budget(trained):
  task, variables = trained
  assert set(variables['protected']) == set(SMALL['protect.methods'])
  for name, persons in variables['protected'].items():
    for person in task.people:
      photos = np.asarray(persons[person.name])
      change = np.abs(photos.astype(int) - person.photos.astype(int))
      assert photos.dtype == np.uint8 and 0 < change.max() <= np.ceil(task.config.method.eps_levels)
      if name.endswith('+mask'):
        assert change[~np.broadcast_to(person.face, change.shape)].max() == 0
      else:
        assert change[~np.broadcast_to(person.face, change.shape)].max() > 0


def test_the_model_is_trained_before_anybody_is_protected():
  embedded, transfer = (Task(config_lib.load(CONFIG, {'transfer.enabled': enabled})) for enabled in (False, True))
  names = ['autoencoder', 'latents', 'diffusion', 'prior', 'protect']
  assert [stage.name for stage in embedded.stages()] == names
  assert [stage.name for stage in transfer.stages()] == [*names[:3], 'diffusion_transfer', *names[3:]]


def test_the_tokenizer_is_the_checkpoints_own(trained):
  task, _ = trained
  fresh = Task(task.config)
  prompt = 'a photo of sks person'
  np.testing.assert_array_equal(task.foundation.ids(prompt), fresh.foundation.ids(prompt))
  assert task.foundation.tokenizer is not fresh.foundation.tokenizer


def again(task, variables, workdir):
  return task.protect(contract.StageContext(variables, workdir, task.config.seed, mesh.make(), lambda *_: None))


def test_what_is_protected_already_is_not_protected_again(trained, run, monkeypatch):
  task, variables = trained

  def refuse(*args, **kwargs):
    raise AssertionError('protected twice')

  monkeypatch.setattr(procedure.protection, 'protect', refuse)
  found = again(task, variables, run)
  jax.tree.map(np.testing.assert_array_equal, found['protected'], jax.device_get(variables['protected']))
  other = Task(config_lib.derive(task.config, {'method.eps_levels': 8.0}))
  with pytest.raises(AssertionError, match='protected twice'):
    again(other, variables, run)
  moved = {**variables, 'params': jax.tree.map(lambda leaf: leaf * 1.001, variables['params'])}
  with pytest.raises(AssertionError, match='protected twice'):
    again(task, moved, run)


def test_the_same_seed_protects_and_attacks_alike_whether_persons_come_one_by_one_or_together(trained, tmp_path):
  task, variables = trained
  assert task.config.workers == 2
  single = Task(config_lib.derive(task.config, {'protect.methods': ('ddap',), 'workers': 0}))
  found = again(single, variables, tmp_path)['protected']['ddap']
  jax.tree.map(np.testing.assert_array_equal, found, jax.device_get(variables['protected']['ddap']))
  outcomes = [each.judge.outcome(variables, 'white/ddap') for each in (task, single)]
  np.testing.assert_array_equal(*[each.losses for each in outcomes])
  np.testing.assert_array_equal(*[each.pictures for each in outcomes])


def test_a_heat_map_may_say_where_the_person_is(trained):
  task, variables = trained
  task = Task(config_lib.derive(task.config, {'protect.mask': 'localise', 'localise.kind': 'whole'}))
  params = task.foundation.view(variables['params'])
  protector = procedure.Protector(task, params, np.asarray(variables['prior']))
  assert protector.mask(task.people[0], jax.random.key(0)).min() == 1, 'localise.kind whole'


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('protect.mask', 'oracle', "config.protect.mask is 'oracle'"),
    ('protect.methods', ('ddpa',), "no method 'ddpa'.*Did you mean 'ddap'"),
    ('protect.methods', (), 'config.protect.methods is empty'),
    ('purify.operators', ('jpg:75',), "no 'jpg'"),
    ('localise.kind', 'hart', "kind of mask 'hart'"),
    ('data.dataset', 'portrait', 'config.data.dataset'),
  ],
)
def test_words_that_mean_nothing_are_refused_at_the_start(config, key, value, message):
  with pytest.raises(UserError, match=message):
    Task(config_lib.derive(config, {key: value}))


def test_presets_have_the_budgets_of_the_field():
  embedded, sd15, sd21, fast = (config_lib.load(f'{CONFIG}:{name}') for name in ('embedded', 'sd15', 'sd21', 'fast'))
  assert embedded.method.eps_levels / 127.5 == pytest.approx(0.1)
  for config in (sd15, sd21):
    assert config.method.eps_levels / 127.5 == pytest.approx(0.05)
    assert config.method.step_levels / 127.5 == pytest.approx(0.005)
    assert (config.method.outer, config.surrogate.steps, config.personalise.steps) == (50, 3, 1000)
  assert (fast.autoencoder.steps, fast.diffusion.steps, fast.method.outer) == (0, 0, 10), 'no training'
  assert Task.untrained(fast), 'launch.predict --config'
  with pytest.raises(UserError, match='not .sd3.'):
    config_lib.load(f'{CONFIG}:sd3')
