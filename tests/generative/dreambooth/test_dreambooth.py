"""DreamBooth as a task: from the command of its config to a report, and from prompts to photos."""

import json
import re
import shlex

import jax
import numpy as np
import pytest

from core import config as config_lib
from core.data import face, image
from core.errors import UserError
from core.metrics import identity
from core.train import checkpoint, mesh
from generative.dreambooth.task import Task
from launch import predict, train

pytestmark = pytest.mark.usefixtures('smaller_networks')
CONFIG = 'configs/generative/dreambooth.py'
SMALL = {
  'model.size': 16, 'data.portraits.identities': 3, 'data.portraits.photos': 2, 'data.portraits.test': 2,
  'data.portraits.sets.A': 1, 'data.portraits.sets.B': 2, 'data.portraits.sets.C': 2,
  'autoencoder.steps': 1, 'autoencoder.batch_size': 4, 'autoencoder.optim.warmup_steps': 0,
  'diffusion.steps': 1, 'diffusion.batch_size': 4, 'diffusion.optim.warmup_steps': 0,
  'personalise.steps': 2, 'personalise.instance_batch': 2, 'personalise.prior_batch': 2, 'personalise.lora_rank': 2,
  'prior.count': 2, 'prior.batch_size': 2, 'prior.steps': 2, 'predict.count': 2, 'predict.steps': 2,
  'train.log_every': 1, 'train.checkpoint_every': 2,
  'eval.batch_size': 2, 'eval.generated': 2, 'eval.steps': 2, 'eval.detector': 'haar',
}  # fmt: skip


@pytest.fixture(scope='module')
def run(tmp_path_factory, smaller_networks):
  """A run by the command that the config's docstring shows, shortened, of the preset 'lora'."""
  text = config_lib._get_config(CONFIG).__globals__['__doc__']
  words = shlex.split(re.search(r'python -m launch\.train (.*)', text).group(1))
  workdir = tmp_path_factory.mktemp('dreambooth')
  words = [word for word in words if not word.startswith('--workdir')] + [f'--workdir={workdir}']
  overrides = [f'--config.{key}={value}' for key, value in SMALL.items()]
  assert train.main([*words, *overrides, f'--config.data.records={tmp_path_factory.mktemp("records")}']) == 0
  return workdir


@pytest.fixture(scope='module')
def trained(run):
  variables, meta = checkpoint.restore_variables(run)
  place = jax.sharding.NamedSharding(mesh.make(1, 1, 1), jax.sharding.PartitionSpec())
  variables = {**variables, 'params': jax.device_put(variables['params'], place)}  # as in the run: nothing is compiled
  task = Task(config_lib.restore(meta['config']))
  task.restored(meta['metadata'])
  return task, variables, meta['metadata']


def small(preset='embedded', **changes):
  return config_lib.load(f'{CONFIG}:{preset}', {**SMALL, **{k.replace('__', '.'): v for k, v in changes.items()}})


def test_the_command_of_the_docstring_leaves_a_report_with_every_part(run):
  results = json.loads((run / 'results.json').read_text())
  scalars = results['evaluations']['test/personalisation']
  assert set(scalars) == {'face_loss', 'before/face_loss', 'gain', 'fdfr', 'before/fdfr'}  # no embedder: no ISM
  others = ('predict.', 'data.root', 'data.list', 'data.overwrite', 'transfer.path')  # of prompts, photos on disk
  assert [key for key in results['unread'] if not key.startswith(others)] == []
  page = (run / 'report.html').read_text()
  titles = ('How well the person is known', 'What the model makes of prompts', 'Photos', 'The model', 'instance')
  assert [title for title in titles if title not in page] == []


def test_low_rank_updates_alone_have_learned_and_a_view_has_them_merged(trained):
  task, variables, _ = trained
  updates = jax.tree_util.tree_leaves_with_path(variables['params']['lora'])
  assert all(np.any(np.asarray(leaf)) for path, leaf in updates if path[-1].key == 'lora_b')
  view = task.view(variables)
  assert set(view) == {'autoencoder', 'unet', 'text'}
  layer = ('unet', 'mid_transformer_0', 'block_0', 'self', 'query', 'kernel')
  merged, plain = view, variables['params']
  for key in layer:
    merged, plain = merged[key], plain[key]
  assert np.any(np.asarray(merged) != np.asarray(plain))
  before = np.asarray(variables['before']['face_loss'])
  assert (task.face_loss(view) != before).all()  # the collection was kept through training, and the model changed


def test_the_recipe_says_which_leaves_learn():
  full, low = Task(small(personalise__lora_rank=0)), Task(small())
  (last,) = [stage for stage in full.stages() if stage.name == 'personalise']
  assert last.trainable('unet/conv_in/kernel') and last.trainable('text/position')
  assert not last.trainable('autoencoder/quant/kernel')
  (last,) = [stage for stage in low.stages() if stage.name == 'personalise']
  assert last.trainable('lora/unet/x/lora_a') and not last.trainable('unet/conv_in/kernel')


def test_prompts_become_photos_that_do_not_depend_on_their_neighbours(run, tmp_path):
  (tmp_path / 'prompts.txt').write_text('a photo of sks person\n\na photo of person\n')
  (tmp_path / 'one.txt').write_text('a photo of person')
  (tmp_path / 'empty.txt').write_text('\n')
  (tmp_path / 'long.txt').write_text('a photo of sks person ' * 4)
  inputs = [tmp_path / f'{name}.txt' for name in ('prompts', 'one', 'empty', 'long')]
  rows = predict.run(run, inputs, tmp_path / 'out')
  assert [row.get('prompt') for row in rows][:3] == ['a photo of sks person', 'a photo of person', 'a photo of person']
  assert 'holds no prompt' in rows[3]['error']
  assert rows[0]['notes'] == '' and 'word pieces were read' in rows[4]['notes']
  photos = [[image.read(tmp_path / 'out' / name) for name in row['photos']] for row in rows if 'photos' in row]
  np.testing.assert_array_equal(photos[1], photos[2])
  assert np.any(photos[0][0] != photos[0][1]) and np.any(photos[0][0] != photos[1][0])
  assert image.read(tmp_path / 'out' / 'sheet.png').shape[0] > 4 * 96


def test_with_an_embedder_likeness_is_judged(trained, monkeypatch):
  task, variables, metadata = trained
  assert metadata['judge']['embedder'] == 'none'

  class Everything:  # a detector that finds a face in each picture
    name = 'everything'

    def detect(self, picture):
      return [face.Face((0.0, 0.0, *map(float, picture.shape[1::-1])), 1.0)]

  judge = identity.Judge
  monkeypatch.setattr(identity, 'Judge', lambda *_: judge(Everything(), lambda faces: faces.mean((1, 2))))
  scalars = task.personalisation(variables, 'test').scalars
  assert scalars['fdfr'] == scalars['before/fdfr'] == 0 and -1 <= scalars['ism'] <= 1
  assert scalars['ism'] != scalars['before/ism']


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'personalise__prior_batch': 3}, 'equal numbers'),
    ({'data__learn': 'C'}, "expected 'A' or 'B'"),
    ({'prior__count': 0}, '1 or more of each'),
  ],
)
def test_what_does_not_go_together_is_said_at_once(changes, message):
  with pytest.raises(UserError, match=message):
    Task(small(**changes))


@pytest.mark.parametrize('preset', ['embedded', 'lora', 'sd15', 'sd21'])
def test_every_preset_is_one_that_the_task_takes(preset):
  task = Task(config_lib.load(f'{CONFIG}:{preset}'))
  assert [stage.name for stage in task.stages()][-2:] == ['prior', 'personalise']


def test_an_unknown_preset_is_refused():
  with pytest.raises(ValueError, match='presets'):
    config_lib._get_config(CONFIG)('sd3')
