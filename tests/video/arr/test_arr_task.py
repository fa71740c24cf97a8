"""ARR as a task: the stages and what each trains, and the way from a command to a report, real labels included."""

import json
import pathlib
import re
import shlex

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.video import arr as configs
from core import config as config_lib
from core.data import video
from core.errors import UserError
from core.train import mesh
from core.train import task as contract
from launch import evaluate, predict, prepare, train
from video.arr.annotations import tables
from video.arr.kitchen import dataset as kitchen
from video.arr.task import Task

CONFIG = 'configs/video/arr.py'
STAGES = ('recognition', 'pretraining', 'joint')
SMALL = {
  'data.kitchen.train_videos': 2, 'data.kitchen.val_videos': 3, 'data.kitchen.seconds': 24, 'data.pixels': 16,
  'augment.shorter': (16, 18), 'model.image_size': 16, 'grid.clips': 3, 'model.decoder.width': 16,
  'model.decoder.layers': 1, 'train.log_every': 1, 'train.checkpoint_every': 2, 'eval.batch_size': 8,
  **{f'{stage}.{key}': value for stage in STAGES
     for key, value in (('steps', 2), ('batch_size', 4), ('optim.warmup_steps', 0))},
}  # fmt: skip


@pytest.fixture(scope='module')
def records(tmp_path_factory):
  return str(tmp_path_factory.mktemp('records'))


@pytest.fixture(scope='module')
def config(records):
  return config_lib.load(CONFIG, {**SMALL, 'data.records': records})


@pytest.fixture(scope='module')
def run(records, tmp_path_factory):
  """Folder of a run made by the command itself."""
  workdir = tmp_path_factory.mktemp('run')
  words = [f'--config.{key}={value}' for key, value in {**SMALL, 'data.records': records}.items()]
  assert train.main([f'--config={CONFIG}', f'--workdir={workdir}', *words]) == 0
  return workdir


@pytest.fixture(scope='module')
def task(config, run):
  return Task(config)


def batch_of(task, stage, tmp_path):
  context = contract.StageContext({}, tmp_path, 0, mesh.make(), lambda *_: None)
  host = next(iter(stage.data(context)))
  return {name: jnp.asarray(value) for name, value in host.items()}


def test_stages_train_their_own_parts(task, tmp_path):
  stages = {stage.name: stage for stage in task.stages()}
  assert list(stages) == ['recognition', 'deviation', 'pretraining', 'joint']
  variables = task.init(jax.random.key(0))
  paths = list(flax.traverse_util.flatten_dict(variables['params'], sep='/'))
  heads = lambda stage: {path.split('/')[0] for path in paths if stage.trainable(path)}  # noqa: E731
  assert heads(stages['recognition']) == {'encoder', 'recognition'}
  assert heads(stages['pretraining']) == {'decoder'}
  assert heads(stages['joint']) == {'encoder', 'decoder', 'recognition'}
  shapes = {'recognition': (4, 1, 2, 16, 16, 3), 'pretraining': (4, 4, 2, 16, 16, 3), 'joint': (4, 3, 2, 16, 16, 3)}
  for name, shape in shapes.items():
    batch = batch_of(task, stages[name], tmp_path)
    assert batch['inputs'].shape == shape and batch['inputs'].dtype == jnp.uint8
    loss, out = stages[name].loss(variables, batch, jax.random.key(1), jnp.int32(0))
    assert np.isfinite(loss) and all(np.isfinite(value) for value in out.metrics.values())


def test_a_stage_without_steps_is_left_out(config):
  only = Task(config_lib.derive(config, {'recognition.steps': 0, 'pretraining.steps': 0}))
  assert [stage.name for stage in only.stages()] == ['joint']
  with pytest.raises(UserError, match='nothing would be trained'):
    Task(config_lib.derive(config, {f'{stage}.steps': 0 for stage in STAGES}))


def test_pretraining_leaves_the_encoder_alone(task, tmp_path):
  stage = next(stage for stage in task.stages() if stage.name == 'pretraining')
  variables, batch = task.init(jax.random.key(0)), batch_of(task, stage, tmp_path)

  def loss(params):
    return stage.loss({**variables, 'params': params}, batch, jax.random.key(1), jnp.int32(0))[0]

  norms = {part: sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(tree))
           for part, tree in jax.grad(loss)(variables['params']).items()}  # fmt: skip
  assert norms['encoder'] == norms['recognition'] == 0.0 < norms['decoder']


def test_deviations_are_measured_before_the_decoder_is_pretrained(task, tmp_path):
  variables = task.init(jax.random.key(0))
  measured = task.measure(contract.StageContext(variables, tmp_path, 0, mesh.make(), lambda *_: None))
  assert measured['params'] is variables['params']
  sigma = measured['statistics']['sigma']
  assert sigma.shape == (task.model.width,) and np.all(sigma > 0) and not np.allclose(sigma, 1.0)


def test_unknown_clips_are_weighed_by_counts_when_asked(task, config):
  assert task._options['unknown_weight'] == 1.0
  balanced = Task(config_lib.derive(config, {'loss.unknown_weight': 0.0}))
  labels = balanced.fold.samples('train').grids['label']
  classes = balanced.fold.vocabulary.classes
  counts = np.bincount(labels[labels < classes])
  expected = min(1.0, np.median(counts[counts > 0]) / (labels == classes).sum())
  assert balanced._options['unknown_weight'] == pytest.approx(expected) and expected < 1


def test_a_word_that_means_nothing_is_named_before_the_first_step(config):
  for key, value, hint in (
    ('loss.pretraining', 'mes', 'mse'), ('loss.unknown', 'ignor', 'ignore'), ('data.dataset', 'kitchn', 'kitchen'),
  ):  # fmt: skip
    with pytest.raises(UserError, match=f"{key} is '{value}'.*{hint}"):
      Task(config_lib.derive(config, {key: value}))
  with pytest.raises(UserError, match='6'):
    Task(config_lib.derive(config, {'data.dataset': 'salads', 'data.fold': 6}))


def test_every_preset_builds_a_task_and_its_network():
  for preset in configs.PRESETS:
    config = config_lib.load(f'{CONFIG}:{preset}')
    folds = Task.folds(config)
    assert len(folds) == len(config.data.folds)
    network = Task(folds[0][1]).anticipator(20)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    assert shapes['params']['recognition']['linear']['kernel'].shape == (network.width, 21)


def test_the_paper_sized_decoder_has_avts_size():
  network = Task(config_lib.load(f'{CONFIG}:paper_epic')).anticipator(3806)
  shapes = jax.eval_shape(network.init, jax.random.key(0))['params']
  blocks = sum(leaf.size for path, leaf in flax.traverse_util.flatten_dict(shapes['decoder'], sep='/').items()
               if 'block_' in path)  # fmt: skip
  encoder = sum(leaf.size for leaf in jax.tree.leaves(shapes['encoder']))
  assert 301e6 < blocks < 304e6 and 85e6 < encoder < 87e6  # spec section 11


# From a command to a report.


def test_a_run_leaves_numbers_and_a_page(run):
  results = json.loads((run / 'results.json').read_text())
  scalars = results['evaluations']['val/anticipation']
  assert 0 <= scalars['action/top_1'] <= 100 and 'unseen/action/top_1' in scalars
  assert results['metadata']['val/anticipation']['vocabulary']['actions']
  statistics = results['evaluations']['val/statistics']
  above = statistics['above_bigram/top_1']
  assert above == pytest.approx(scalars['action/top_1'] - statistics['bigram/top_1'], abs=1e-4)
  page = (run / 'report.html').read_text()
  assert all(stage in page for stage in STAGES) and page.count('<figure') >= 5


def test_the_last_checkpoint_is_judged_again_with_the_same_numbers(run, capsys):
  assert evaluate.main([f'--workdir={run}', '--split=val', '--evaluator=anticipation,recognition,pretraining']) == 0
  again = json.loads((run / 'evaluation_val.json').read_text())['folds']['']
  trained = json.loads((run / 'results.json').read_text())['evaluations']
  assert again['val/anticipation']['scalars'] == trained['val/anticipation']
  assert np.isfinite(again['val/pretraining']['scalars']['skill'])
  assert evaluate.main([f'--workdir={run}', '--split=vall']) == 2
  assert "Did you mean 'val'" in capsys.readouterr().err


def test_a_film_of_the_kitchen_goes_through_predict(run, tmp_path):
  world = kitchen.Config(size=16, fps=4, train_videos=1, val_videos=0, seconds=12)
  frames = [picture for _, film in kitchen.footage(world, 3) for _, picture in film]
  video.write(tmp_path / 'in' / 'cook.mp4', frames, fps=4)
  (tmp_path / 'in' / 'broken.mp4').write_bytes(b'not a film')
  assert predict.main([f'--workdir={run}', f'--input={tmp_path / "in"}', f'--output={tmp_path / "out"}']) == 0
  found = json.loads((tmp_path / 'out' / 'predictions.json').read_text())
  assert found['served'] == found['failed'] == 1
  rows = [row for row in found['rows'] if 'error' not in row]
  assert len(rows) >= 8 and all(0 <= row['p_1'] <= 1 for row in rows)
  assert rows[0]['next_1'] in kitchen.annotations(world, 3).vocabulary.actions


def test_labels_of_50_salads_give_the_golden_bigram_and_a_decoder_beside_it(shared_data, tmp_path):
  words = [
    f'--config={CONFIG}:salads_labels', f'--config.data.root={shared_data / "action_anticipation"}',
    f'--config.data.records={tmp_path}', '--config.data.folds=(1,)', '--config.grid.clips=4', '--config.joint.steps=3',
    '--config.model.decoder.layers=1', '--config.joint.optim.warmup_steps=0',
  ]  # fmt: skip
  assert train.main([*words, f'--workdir={tmp_path / "run"}']) == 0
  found = json.loads((tmp_path / 'run' / 'results.json').read_text())['evaluations']
  assert found['val/statistics']['bigram/top_1'] == pytest.approx(46.7, abs=0.3)  # spec 9b, fold 1
  assert found['val/statistics']['trigram/top_1'] == pytest.approx(47.7, abs=0.3)
  assert np.isfinite(found['val/anticipation']['action/top_1'])


def test_the_segments_of_epic_without_an_observation_get_the_frequencies_of_training(shared_data, tmp_path):
  root = shared_data / 'action_anticipation'
  Task.prepare(epic := labels(root, tmp_path))
  task = Task(epic)
  rows, prior = task.fold.targets('val'), task.fold.prior()
  assert len(rows['uid']) == 9668 and len(task.fold.targets('train')['uid']) < 67217
  first = np.flatnonzero(rows['start'] - epic.grid.anticipation < 1 / 30)
  assert len(first) == 30  # spec 5.1: their observation would end before the first frame
  which = np.concatenate([first[:2], [5000]])
  task.fold.targets = lambda split: tables.select(rows, which) if split == 'val' else None
  scores = task.judge.scores(task.init(jax.random.key(0)), 'val').probability
  np.testing.assert_allclose(scores[:2], [prior, prior], atol=1e-6)
  assert np.abs(scores[2] - prior).max() > 1e-3


def test_epic_without_labels_gives_a_submission_and_no_numbers(tmp_path, capsys):
  tree = {
    'training.csv': ''.join(
      f'P01_01_{i},P01_01,{90 * i + 60},{90 * i + 120},{i % 2},{i % 2},{i % 2}\n' for i in range(6)
    ),
    'validation.csv': 'P02_01_0,P02_01,150,180,1,1,1\nP02_01_1,P02_01,210,240,0,0,0\n',
    'test_timestamps.csv': 'P03_101_0,P03_101,210,255\nP03_101_1,P03_101,300,330\n',
    'actions.csv': 'id,verb,noun,action\n0,0,0,take tap\n1,1,1,put spoon\n',
  }
  for name, text in tree.items():
    (tmp_path / name).write_text(text)
  workdir = tmp_path / 'run'
  words = [f'--config={CONFIG}:epic_labels', f'--workdir={workdir}', f'--config.data.root={tmp_path}',
           f'--config.data.records={tmp_path / "records"}', '--config.joint.steps=1', '--config.joint.batch_size=2',
           '--config.joint.optim.warmup_steps=0', '--config.grid.clips=2',
           '--config.model.decoder.layers=1']  # fmt: skip
  assert train.main(words) == 0
  assert set(json.loads((workdir / 'submission_val.json').read_text())['results']) == {'P02_01_0', 'P02_01_1'}
  assert evaluate.main([f'--workdir={workdir}', '--split=test']) == 0
  content = json.loads((workdir / 'submission_test.json').read_text())
  assert set(content['results']) == {'P03_101_0', 'P03_101_1'}
  assert set(content['results']['P03_101_0']['action']) == {'0,0', '1,1'}
  assert json.loads((workdir / 'evaluation_test.json').read_text())['folds']['']['test/anticipation']['scalars'] == {}
  assert 'submission_test.json' in capsys.readouterr().out


def labels(root, records):
  return config_lib.load(f'{CONFIG}:epic_labels', {
    'data.root': str(root), 'data.records': str(records), 'grid.clips': 2, 'model.decoder.layers': 1, 'model.width': 8,
    'model.decoder.width': 8,
  })  # fmt: skip


def test_missing_annotations_are_said(tmp_path, capsys):
  words = [f'--config={CONFIG}:salads_labels', f'--config.data.records={tmp_path}']
  assert prepare.main(words) == 2
  assert 'config.data.root is empty' in capsys.readouterr().err
  assert prepare.main([*words, f'--config.data.root={tmp_path / "nowhere"}']) == 2
  assert 'nowhere' in capsys.readouterr().err


def test_the_command_in_the_config_is_one_that_runs():
  text = pathlib.Path(configs.__file__).read_text()
  command = re.search(r'python -m launch\.train (.*)', text)[1]
  words = shlex.split(command)
  assert f'--config={CONFIG}' in words
  for preset in re.findall(r'^  (\w+) +\w', text.split('Presets:')[1].split('Any key')[0], re.M):
    assert preset in configs.PRESETS
