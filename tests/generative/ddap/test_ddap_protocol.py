"""The protocol on real kinds of files: folders of persons, models of diffusers by path, faces that are looked for."""

import functools
import json
import types

import jax
import numpy as np
import pytest
from small_ddap import CONFIG, SMALL
from small_diffusion import pictures

from core import config as config_lib
from core.data import clip_tokens, image
from core.data.face import Face
from core.diffusion import foundation, pipeline
from core.diffusion.latent import LatentDiffusion
from core.diffusion.schedule import Schedule
from core.metrics import identity
from core.nn.autoencoder import Autoencoder
from core.nn.clip import ClipText
from core.nn.unet import UNet
from generative.ddap import evaluation
from generative.ddap.people import Person
from launch import train

SIDE = 16
WORDS = clip_tokens.small(['a photo of sks person', 'a dslr portrait of sks person'])
MODEL = LatentDiffusion(
  Autoencoder(channels=(8, 8), layers=1, groups=4),
  UNet(channels=(8,), cross=(True,), layers=1, heads=1, groups=4, context_width=8),
  ClipText(vocabulary=WORDS.vocabulary, eos=WORDS.eos, width=8, depth=1, heads=1, mlp_dim=8, max_positions=10),
  Schedule(),
)


@pytest.fixture(scope='module')
def folders(tmp_path_factory, smaller_networks):
  """A folder of two models of diffusers, and one of two persons."""
  root = tmp_path_factory.mktemp('protocol')
  for seed, name in enumerate(('model', 'other')):
    pipeline.write(root / name, MODEL, MODEL.init(jax.random.key(seed), SIDE), WORDS, size=SIDE)
  for seed, person in enumerate(('ann', 'bob')):
    for number, name in enumerate('ABC'):
      for i, photo in enumerate(pictures(2, 24, 20, seed=10 * seed + number)):
        image.write_png(root / 'people' / person / f'set_{name}' / f'{i}.png', photo)
  return root


def test_a_preset_of_stable_diffusion_runs_on_folders(folders, tmp_path, capsys):
  given = {key: value for key, value in SMALL.items() if not key.startswith(('data.portraits', 'autoencoder', 'diff'))}
  changes = {
    **given,
    'model.path': str(folders / 'model'), 'transfer.enabled': True, 'transfer.path': str(folders / 'other'),
    'model.size': SIDE, 'model.dtype': 'float32', 'model.remat': False, 'data.root': str(folders / 'people'),
    'data.records': str(tmp_path / 'records'), 'protect.methods': ('random', 'ddap+mask'), 'localise.passes': 2,
    'eval.transfer': ('ddap+mask',),
    'eval.final': tuple((name, 'test') for name in ('visibility', 'protection', 'faces')),
    'personalise.instance_batch': 2, 'prior.steps': 2, 'prior.batch_size': 2,
  }  # fmt: skip
  config = config_lib.load(f'{CONFIG}:sd15', changes)
  foundation.prepare(config)
  found = train.run(config, tmp_path / 'run')['']
  scalars = {name: each.scalars for name, each in found.result.evaluations.items()}
  assert scalars['test/visibility']['ddap+mask/linf'] <= 7  # 6.375 levels, rounded
  assert scalars['test/faces']['clean/a photo of sks person/fdfr'] == 1, 'nobody is seen in noise'
  assert 'clean/a dslr portrait of sks person/ism' not in scalars['test/faces'], 'there is no embedder'
  assert np.isfinite(scalars['test/protection']['transfer/ddap+mask/effect'])
  shown = capsys.readouterr().out
  assert shown.count('unet') >= 2, 'an account of each model'
  assert 'Faces in what the attacker makes' in (tmp_path / 'run' / 'report.html').read_text()
  assert json.loads((tmp_path / 'run' / 'results.json').read_text())['evaluations']


def test_a_list_of_sets_is_made_of_raw_photos_once(tmp_path):
  raw = np.full((501, 501, 3), 90, np.uint8)
  for person in ('n1', 'n2', 'n3'):
    for i in range(15):
      image.write_png(tmp_path / 'raw' / 'train' / person / f'{i:04d}_01.png', raw + i)
  changes = {
    'data.root': str(tmp_path / 'raw'), 'data.list': str(tmp_path / 'sets.csv'), 'data.limit': 2, 'model.size': 16,
    'data.records': str(tmp_path / 'records'),
  }  # fmt: skip
  config = config_lib.load(f'{CONFIG}:sd15', changes)
  report = foundation.prepare(config)[0]
  assert report.counts == {'test': 2 * 12}
  made = (tmp_path / 'sets.csv').read_text()
  foundation.prepare(config)
  assert (tmp_path / 'sets.csv').read_text() == made and made.count('set') <= 2 * 12 + 2


class Bright:
  """A detector that takes a light picture for a face."""

  name = 'bright'

  def detect(self, picture):
    return [Face((2, 2, 20, 20), 1.0)] if picture.mean() > 128 else []


def colour(faces):
  """An embedder that sees the mean colour."""
  return faces.mean((1, 2))


def test_faces_are_counted_by_prompt_and_compared_with_the_person(monkeypatch):
  light, dark = np.full((32, 32, 3), 200, np.uint8), np.full((32, 32, 3), 50, np.uint8)
  blue = np.zeros((32, 32, 3), np.uint8) + np.array([150, 150, 250], np.uint8)
  person = Person('ann', light[None], light[None], np.ones((1, 32, 32, 1), bool), light[None], None)
  section = types.SimpleNamespace(prompts=('one', 'two'), generated=2, detector='x', embedder='y', brisque='')
  task = types.SimpleNamespace(
    people=[person], config=types.SimpleNamespace(eval=section), model=None, attacker=None,
    foundation=types.SimpleNamespace(metadata=dict),
  )  # fmt: skip
  judge = evaluation.Judge(task)
  made = {'clean': [light, light, light, blue], 'ddap': [dark, light, dark, dark]}
  judge.outcome = lambda variables, key: evaluation.Outcome(np.zeros(1), np.stack(made[key[6:]])[None])
  build = functools.partial(identity.Judge, Bright(), colour)
  monkeypatch.setattr(evaluation.identity, 'Judge', lambda detector, embedder: build())
  found = judge.faces({'protected': {'ddap': {}}}, 'test')
  scalars = found.scalars
  assert (scalars['clean/one/fdfr'], scalars['ddap/one/fdfr'], scalars['ddap/two/fdfr']) == (0, 0.5, 1)
  assert scalars['clean/one/ism'] == pytest.approx(1) and 0.9 < scalars['clean/two/ism'] < 1
  assert scalars['ddap/one/ism_missing_zero'] == pytest.approx(0.5)
  assert 'ddap/two/ism' not in scalars, 'there is no face to compare'
  assert found.metadata['judge']['detector'] == 'bright'
