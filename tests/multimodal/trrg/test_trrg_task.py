"""TRRG as a task: the stages and what each trains, and the way from a command to a report."""

import json

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_task import CONFIG, SMALL

from configs.multimodal import trrg as configs
from core import config as config_lib
from core.errors import UserError
from core.nn import adapters
from core.train import checkpoint, loop, mesh
from core.train import task as contract
from launch import evaluate, train
from multimodal.trrg import data, model
from multimodal.trrg.observations import CLUES
from multimodal.trrg.task import Task


@pytest.fixture(scope='module')
def records(tmp_path_factory):
  return str(tmp_path_factory.mktemp('records'))


@pytest.fixture(scope='module')
def config(records):
  config = config_lib.load(CONFIG, {**SMALL, 'data.records': records})
  Task.prepare(config)
  return config


@pytest.fixture(scope='module')
def run(config, records, tmp_path_factory):
  """Folder of a run made by the command itself, with a language model that is frozen but for its low-rank updates."""
  workdir = tmp_path_factory.mktemp('run')
  changes = {**SMALL, 'data.records': records, 'model.language.tuning': 'lora'}
  words = [f'--config.{key}={value}' for key, value in changes.items()]
  assert train.main([f'--config={CONFIG}', f'--workdir={workdir}', *words]) == 0
  return workdir


def context(variables, tmp_path):
  return contract.StageContext(variables, tmp_path, 0, mesh.make(), lambda *_: None)


def flat(variables):
  return flax.traverse_util.flatten_dict(jax.device_get(variables['params']), sep='/')


def test_stages_train_their_own_parts(config):
  task = Task(config_lib.derive(config, {'model.language.tuning': 'lora'}))
  stages = {stage.name: stage for stage in task.stages()}
  assert list(stages) == ['contrast', 'perceive', 'language', 'report']
  paths = list(flax.traverse_util.flatten_dict(jax.eval_shape(task.init, jax.random.key(0))['params'], sep='/'))
  parts = lambda name: {path.split('/')[0] for path in paths if stages[name].trainable(path)}  # noqa: E731
  assert parts('contrast') == {'perception'}
  assert parts('language') == {'language'}
  assert not any(adapters.is_adapter(path) for path in paths if stages['language'].trainable(path))
  assert parts('report') == {'vision', 'interaction', 'injection', 'disease', 'language'}
  lora = [path for path in paths if path.startswith('language/') and stages['report'].trainable(path)]
  assert lora and all(adapters.is_adapter(path) for path in lora)
  for tuning, expected in (('frozen', False), ('full', True)):
    other = Task(config_lib.derive(config, {'model.language.tuning': tuning, 'model.vision.tuning': 'frozen'}))
    last = other.stages()[-1]
    assert last.trainable('language/norm/scale') == expected and not last.trainable('vision/class_token')


def test_stages_without_steps_are_left_out(config):
  assert [s.name for s in Task(config_lib.derive(config, {'report.steps': 0, 'language_model.steps': 0})).stages()] == [
    'contrast'
  ]
  names = [s.name for s in Task(config_lib.derive(config, {'language_model.steps': 0})).stages()]
  assert names == ['contrast', 'perceive', 'report']
  with pytest.raises(UserError, match='nothing would be trained'):
    Task(config_lib.derive(config, {'report.steps': 0, 'contrast.steps': 0}))


def test_frozen_parts_stay_bit_for_bit_and_the_others_move(run):
  """Spec 9b, 11: perception (text encoder included) and the base of the language model."""
  last, _ = checkpoint.restore_variables(run, 'last')
  before, after = flat(_at(run, 'language')), flat(last)
  for path in after:
    part, moved = path.split('/')[0], not np.array_equal(before[path], after[path])
    frozen = part == model.PERCEPTION or (part == model.LANGUAGE and not adapters.is_adapter(path))
    assert not (frozen and moved), path
  for part in (model.VISION, model.INTERACTION, model.INJECTION, model.DISEASE, model.LANGUAGE):
    assert any(not np.array_equal(before[path], after[path]) for path in after if path.startswith(f'{part}/')), part


def _at(run, stage):
  """Variables at the end of a stage of the same run, trained again up to there: runs are reproducible."""
  meta = checkpoint.restore_variables(run, 'last')[1]
  config = config_lib.derive(config_lib.restore(meta['config']), {})
  names = [s.name for s in Task(config).stages()]

  class Cut(Task):
    def stages(self):
      return super().stages()[: names.index(stage) + 1]

  return loop.train(Cut(config), run.parent / 'again', logger=loop.NullLogger()).variables


def test_the_run_leaves_reports_and_scores(run):
  results = json.loads((run / 'results.json').read_text())
  text = json.dumps(results)
  for name in ('perception', 'report', 'interventions'):
    assert f'test/{name}' in text
  lines = json.loads((run / 'reports_test.json').read_text())
  assert len(lines) == 8 and set(lines[0]) == {'id', 'report', 'reference', 'clues'}
  for name in ('ce/example/f1', 'ce/micro/f1', 'ce/macro/f1', 'full/bleu_4', 'full/cider', 'truth/faithfulness'):
    assert name in text, name
  for name in data.SOURCES:
    assert f'{name}/macro_f1' in text


def test_a_run_is_judged_again_with_other_clues_and_another_search(run):
  kept = json.loads((run / 'results.json').read_text())['evaluations']
  same = evaluate.run(run, split='test', evaluators=['report', 'perception'])['']
  for name, evaluation in same.items():  # spec 9b, 15: what is restored writes the same reports from the same clues
    for key, value in evaluation.scalars.items():
      expected = float('nan') if kept[name][key] is None else kept[name][key]  # JSON has no NaN
      assert value == pytest.approx(expected, nan_ok=True), key
  found = evaluate.run(run, split='val', evaluators=['report', 'perception'], which='last')['']
  again = evaluate.run(run, split='val', evaluators=['report'], which='last', changes=['decoding.beams=2'])['']
  assert found['val/report'].scalars.keys() == again['val/report'].scalars.keys()
  assert found['val/perception'].arrays['margin'].shape == (8, 14)
  tokenizers = data.Tokenizers.from_plain(found['val/report'].metadata['tokenizers'])
  assert tokenizers.language.encode('no pleural effusion .')


def test_a_restored_task_keeps_the_tokenizers_of_its_weights(config):
  task, other = Task(config), Task(config_lib.derive(config, {'language.vocabulary': 300}))
  assert other.corpus.tokenizers.language.vocabulary == 300 != task.corpus.tokenizers.language.vocabulary
  other.restored({'tokenizers': task.corpus.tokenizers.plain()})
  assert other.corpus.tokenizers.language.vocabulary == task.corpus.tokenizers.language.vocabulary
  assert other.reporter.language.vocabulary == task.reporter.language.vocabulary


def test_perception_is_measured_and_copied_before_stage_two(config, tmp_path):
  task = Task(config)
  variables = jax.jit(task.init)(jax.random.key(0))
  after = task.perceive(context(variables, tmp_path))
  seen, copied = (flax.traverse_util.flatten_dict(tree, sep='/') for tree in (
    after['params']['perception']['image'], after['params']['vision']))  # fmt: skip
  assert all(np.array_equal(leaf, copied[path]) for path, leaf in seen.items())
  clues = after['clues']
  for name in ('positive', 'negative', 'sentence', 'words'):
    assert np.abs(clues[name]).sum() > 0
  assert np.allclose(np.linalg.norm(clues['positive'], axis=-1), 1, atol=1e-5)
  assert np.array_equal(after['params']['disease']['query'], clues['prototype'])
  margins = task.judge.margins(after, 'val')
  assert margins.shape == (8, 14) and np.isfinite(margins).all()
  assert np.allclose(margins, task.judge.margins(jax.tree.map(jnp.copy, after), 'val'))  # deterministic


def test_training_clues_can_come_from_the_other_half_of_the_patients(config, tmp_path):
  crossed = config_lib.derive(config, {'clues.crossfit': 2})
  task = Task(crossed)
  names = [stage.name for stage in task.stages()]
  assert names == ['contrast_0', 'margins_0', 'contrast_1', 'margins_1', 'contrast', 'perceive', 'language', 'report']
  halves = task.halves()
  assert set(halves) == {0, 1}
  variables = task.init(jax.random.key(crossed.seed))
  trained = jax.tree.map(lambda leaf: leaf + 0.01, variables['params']['perception'])
  variables = {**variables, 'params': {**variables['params'], 'perception': trained}}
  after = task.measure(context(variables, tmp_path), half=0)
  filled = np.abs(after['crossfit']['margin']).sum(1) > 0
  assert np.array_equal(filled, halves == 1)
  fresh = flat(task.init(jax.random.key(crossed.seed)))
  assert all(np.array_equal(leaf, fresh[path]) for path, leaf in flat(after).items() if path.startswith('perception/'))
  for half in (0, 1):
    rows = task.stages()[2 * half].data(context(after, tmp_path))
    assert next(iter(rows))['image'].shape[0] == 4
  given = task.training_clues(after)
  assert np.array_equal(given.margins, after['crossfit']['margin']) and given.chosen.shape == (24, CLUES)


def test_words_that_mean_nothing_are_named_before_the_first_step(config):
  for key, value, hint in (
    ('contrast.targets', 'label_mach', 'label_match'), ('model.disease.loss', 'ful', 'full'),
    ('clues.source', 'label', 'labels'), ('data.dataset', 'chets', 'chest'),
  ):  # fmt: skip
    with pytest.raises(UserError, match=f"{key} is '{value}'.*{hint}"):
      Task(config_lib.derive(config, {key: value}))
  with pytest.raises(UserError, match=r'crossfit.*3'):
    Task(config_lib.derive(config, {'clues.crossfit': 3}))
  with pytest.raises(UserError, match='without films'):
    Task(config_lib.derive(config, {'data.films': False}))
  with pytest.raises(UserError, match=r"decoding\.preset is 'truthfull'.*truthful"):
    Task(config_lib.derive(config, {'decoding.preset': 'truthfull'})).judge  # noqa: B018


def test_a_tokenizer_that_does_not_fit_is_refused(config):
  task = Task(config)
  small = config_lib.derive(config, {'language.tokenizer': 'some/folder', 'language.vocabulary': 100})
  with pytest.raises(UserError, match='tokenizer'):
    Task(small).reporter_of(task.corpus.tokenizers)


@pytest.mark.parametrize('preset', configs.PRESETS)
def test_every_preset_has_networks_of_its_size(preset, config):
  changes = {} if preset in ('iu_xray', 'mimic_cxr') else {'language.tokenizer': 'a/b', 'text.tokenizer': 'a/b'}
  task = Task(config_lib.load(f'{CONFIG}:{preset}', changes))
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  sizes = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in shapes['params'].items()}
  if preset == 'mimic_cxr':
    assert 6.7e9 < sizes['language'] < 6.8e9 and 85e6 < sizes['vision'] < 87e6 and 23e6 < sizes['interaction'] < 27e6
  elif preset == 'iu_xray':
    assert 1.09e9 < sizes['language'] < 1.12e9
  else:
    assert sizes['language'] < 5e6
