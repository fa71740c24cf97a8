"""The model under the generative systems: its stages, their data and losses, folders in its place, its judgement."""

import dataclasses
import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_folders

from configs.generative import ddap
from core import config as config_lib
from core.data import clip_tokens
from core.data import image as images
from core.diffusion import foundation, pipeline
from core.errors import UserError
from core.train import mesh
from core.train.task import StageContext


@pytest.fixture(scope='module')
def config(tmp_path_factory, smaller_networks):
  """The embedded preset on a small world of 16 pixels."""
  config = ddap.get_config()
  config.data.records = str(tmp_path_factory.mktemp('records'))
  config.data.portraits = {'identities': 3, 'photos': 4, 'test': 2, 'sets': {'A': 1, 'B': 1, 'C': 4}}
  config.model.size = 16
  config.autoencoder.batch_size = config.diffusion.batch_size = 32
  config.eval.batch_size, config.eval.steps = 8, 2
  return config


@pytest.fixture(scope='module')
def world(config):
  """(the foundation, its fresh parameters) with the records written."""
  foundation.prepare(config)
  built = foundation.Foundation(config)
  return built, jax.jit(built.init)(jax.random.key(0))


@pytest.fixture(scope='module')
def moments(world):
  """(mean, log-variance) of the training photos under the fresh parameters."""
  built, params = world
  photos = images.from_levels(foundation.photographs(built.config, 'train'))
  return jax.jit(built.model.moments)(params, photos)


def context(params, tmp_path):
  return StageContext({'params': params}, tmp_path, 0, mesh.make(1, 1, 1), lambda step, values: None)


def changed(config, **values):
  return config_lib.derive(config, {key.replace('__', '.'): value for key, value in values.items()})


def test_records_are_drawn_once_and_named_by_what_they_are_drawn_from(config, world):
  (report,) = foundation.prepare(config)
  assert report.counts == {'train': 12, 'test': 12} and foundation.procedural(config)
  manifest = next(foundation.records_root(config).rglob('manifest.json'))
  before = manifest.stat().st_mtime_ns
  foundation.prepare(config)
  assert manifest.stat().st_mtime_ns == before
  roots = {
    foundation.records_root(each) for each in (config, changed(config, data__seed=1), changed(config, model__size=32))
  }
  assert len(roots) == 3
  photos = foundation.photographs(config, 'test', limit=5)
  assert photos.shape == (5, 16, 16, 3) and photos.dtype == np.uint8
  np.testing.assert_array_equal(photos[-1], foundation.opened(config, 'test')[11]['image'])


def test_stages_train_each_part_once(config, world):
  built, params = world
  stages = built.stages()
  assert [stage.name for stage in stages] == ['autoencoder', 'latents', 'diffusion', 'diffusion_transfer']
  paths = flax.traverse_util.flatten_dict(params, sep='/')
  trained = [path for stage in stages if stage.loss for path in paths if stage.trainable(path)]
  assert sorted(trained) == sorted(paths)
  assert {path.split('/')[0] for path in paths if stages[2].trainable(path)} == {'unet', 'text'}

  def names(**values):
    return [stage.name for stage in foundation.Foundation(changed(config, **values)).stages()]

  assert names(transfer__enabled=False) == ['autoencoder', 'latents', 'diffusion']
  assert names(autoencoder__steps=0, diffusion__steps=0) == []
  assert names(diffusion__steps=0) == ['autoencoder', 'latents']


def test_the_second_model_shares_the_autoencoder_alone(config, world):
  built, params = world
  first, second = built.view(params), built.view(params, transfer=True)
  assert set(first) == set(second) == {'autoencoder', 'unet', 'text'}
  assert first['autoencoder'] is second['autoencoder']
  same = jax.tree.map(lambda a, b: bool((a == b).all()), first['unet']['conv_in'], second['unet']['conv_in'])
  assert not same['kernel']
  without = foundation.Foundation(changed(config, transfer__enabled=False))
  assert set(jax.eval_shape(without.init, jax.random.key(0))) == {'autoencoder', 'unet', 'text'}


def test_the_autoencoder_learns_to_give_photos_back(world, moments):
  built, params = world
  photos = foundation.photographs(built.config, 'train')
  value = jax.jit(lambda params, rng: built.autoencoder_loss({'params': params}, {'image': photos}, rng, 0))
  total, out = value(params, jax.random.key(0))
  mean, log_variance = (np.asarray(each) for each in moments)
  kl = 0.5 * np.mean(mean**2 + np.exp(log_variance) - 1 - log_variance)
  np.testing.assert_allclose(out.metrics['kl'], kl, rtol=1e-4)
  parts = {name: float(each) for name, each in out.metrics.items()}
  np.testing.assert_allclose(total, parts['l1'] + parts['mse'] + 1e-4 * parts['kl'], rtol=1e-5)
  decoder = params['autoencoder']['decoder']
  blind = {**decoder, 'conv_out': jax.tree.map(jnp.zeros_like, decoder['conv_out'])}
  _, out = value({**params, 'autoencoder': {**params['autoencoder'], 'decoder': blind}}, jax.random.key(0))
  target = np.asarray(images.from_levels(photos))
  np.testing.assert_allclose(out.metrics['l1'], np.abs(target).mean(), rtol=1e-5)
  np.testing.assert_allclose(out.metrics['mse'], np.square(target).mean(), rtol=1e-5)


def test_latents_are_normalised_and_photos_stay(world, tmp_path):
  built, params = world
  before = {**params, 'autoencoder': {**params['autoencoder']}}
  quant = before['autoencoder']['quant']
  before['autoencoder']['quant'] = {'kernel': quant['kernel'], 'bias': quant['bias'] + jnp.arange(8.0) - 3}
  after = built.normalise(context(before, tmp_path))['params']
  photos = images.from_levels(foundation.photographs(built.config, 'train'))
  see = jax.jit(lambda params: (built.model.latents(params, photos), built.model.moments(params, photos)[1]))
  (old, old_log_variance), (new, log_variance) = see(before), see(after)
  scaling = built.model.autoencoder.scaling
  variance = np.var(new, axis=(0, 1, 2)) + scaling**2 * np.exp(log_variance).mean((0, 1, 2))
  np.testing.assert_allclose(np.mean(new, axis=(0, 1, 2)), 0, atol=1e-3)
  np.testing.assert_allclose(variance, 1, rtol=1e-3)
  assert np.abs(np.mean(old, axis=(0, 1, 2))).max() > 0.1
  ratio = np.exp(0.5 * (log_variance - old_log_variance)) / (np.std(new, axis=(0, 1, 2)) / np.std(old, axis=(0, 1, 2)))
  np.testing.assert_allclose(ratio, 1, rtol=1e-3)  # the spread of a photo's latent goes with them
  decode = jax.jit(built.model.decode)
  np.testing.assert_allclose(decode(after, new), decode(before, old), atol=1e-4)
  for path, leaf in flax.traverse_util.flatten_dict(after, sep='/').items():
    if 'quant' not in path:
      assert leaf is flax.traverse_util.flatten_dict(before, sep='/')[path]


def test_the_identifier_is_in_no_caption(world, moments, tmp_path):
  built, params = world
  sks = built.ids('sks')[0, 1]
  assert sks in built.ids(built.config.prompts.instance)
  captions = {tuple(built.ids(text)[0]) for text in built.captions}
  prior = tuple(built.ids(built.config.prompts.prior)[0])
  batches = iter(built.latents(context(params, tmp_path)))
  batches = [next(batches) for _ in range(4)]
  seen = [tuple(ids) for batch in batches for ids in batch['ids']]
  assert set(seen) == captions and len(captions) == 6
  assert not any(sks in ids for ids in seen)
  assert 0.3 < np.mean([ids == prior for ids in seen]) < 0.7
  mean, log_variance = (np.asarray(each) for each in moments)
  row = np.abs(mean - batches[0]['mean'][0]).sum((1, 2, 3)).argmin()
  np.testing.assert_allclose(batches[0]['mean'][0], mean[row], atol=1e-5)
  np.testing.assert_allclose(batches[0]['log_variance'][0], log_variance[row], atol=1e-5)
  other = next(iter(built.latents(context(params, tmp_path), transfer=True)))
  assert (other['mean'] != batches[0]['mean']).any()  # another order


def test_the_denoising_loss_is_of_the_model_asked_for(world, tmp_path):
  built, params = world
  batch = next(iter(built.latents(context(params, tmp_path))))

  def silent(part):
    return {**part, 'conv_out': jax.tree.map(jnp.zeros_like, part['conv_out'])}

  @jax.jit
  def value(params):
    """Of the first model and of the second."""
    losses = functools.partial(built.diffusion_loss, {'params': params}, batch, jax.random.key(0), 0)
    return [losses(transfer=transfer)[0] for transfer in (False, True)]

  (plain, other), (quiet, same) = value(params), value({**params, 'unet': silent(params['unet'])})
  assert abs(float(quiet) - 1) < 0.05  # the mean square of the noise
  assert abs(float(plain) - float(quiet)) > 1e-3 and other == same
  second = {**params['transfer'], 'unet': silent(params['transfer']['unet'])}
  unchanged, quiet_too = value({**params, 'transfer': second})
  np.testing.assert_allclose(quiet_too, quiet, rtol=1e-6)
  assert unchanged == plain


def test_the_tokenizer_travels_with_the_weights(config, world):
  built, _ = world
  other = foundation.Foundation(changed(config, prompts__instance='a photo of zwx human'))
  prompt = 'a photo of sks person'
  assert (other.ids(prompt)[0, : built.ids(prompt).shape[1]] != built.ids(prompt)[0]).any()
  other = foundation.Foundation(changed(config, prompts__instance='a photo of zwx human'))
  other.restored(built.metadata())
  np.testing.assert_array_equal(other.ids(prompt), built.ids(prompt))
  assert other.model == built.model


def test_the_judge_measures_what_it_shows(world):
  built, params = world
  found = built.evaluators()['model']({'params': params}, 'test')
  assert set(found.scalars) == {'psnr', 'latent_std', 'denoising', 'transfer/denoising'}
  assert set(found.arrays) == {'photos', 'decoded', 'generated', 'transfer/generated'}
  photos, decoded = (found.arrays[name].astype(np.float64) for name in ('photos', 'decoded'))
  assert len(photos) == 12
  psnr = 10 * np.log10(255**2 / np.square(photos - decoded).mean((1, 2, 3))).mean()
  np.testing.assert_allclose(found.scalars['psnr'], psnr, rtol=1e-4)
  assert found.arrays['generated'].shape == (12, 16, 16, 3)
  assert (found.arrays['generated'] != found.arrays['transfer/generated']).any()
  again = built.judge({'params': params}, 'test')
  assert again.scalars == found.scalars  # fixed noise
  assert 'tokenizer' in found.metadata


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """Two folders of one architecture, and one with another tokenizer."""
  root = tmp_path_factory.mktemp('folders')
  for seed, name in enumerate(('one', 'two')):
    pipeline.write(root / name, small_folders.MODEL, small_folders.random_params(seed=seed), small_folders.TOKENIZER)
  return root


def test_a_folder_takes_the_place_of_training(config, folders, capsys):
  paths = {'model__path': str(folders / 'one'), 'transfer__path': str(folders / 'two')}
  built = foundation.Foundation(changed(config, **paths))
  assert built.stages() == [] and built.model == small_folders.MODEL
  shapes = jax.eval_shape(built.init, jax.random.key(0))
  params = built.pretrained({'params': shapes, 'other': 1})['params']
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
  one, two = small_folders.random_params(seed=0), small_folders.random_params(seed=1)
  jax.tree.map(np.testing.assert_array_equal, built.view(params), one)
  for part in ('unet', 'text'):
    jax.tree.map(np.testing.assert_array_equal, params['transfer'][part], two[part])
  printed = capsys.readouterr().out
  assert str(folders / 'one' / 'unet') in printed and str(folders / 'two' / 'unet') in printed
  assert built.tokenizer.fingerprint() == small_folders.TOKENIZER.fingerprint()


def test_two_folders_that_do_not_go_together_are_refused(config, folders, tmp_path):
  shapes = {'params': {}}
  words = clip_tokens.small(['a photo of sks persno'])  # as many pieces, other ids
  pipeline.write(tmp_path / 'words', small_folders.MODEL, small_folders.random_params(), words)
  paths = {'model__path': str(folders / 'one'), 'transfer__path': str(tmp_path / 'words')}
  with pytest.raises(UserError, match='another tokenizer'):
    foundation.Foundation(changed(config, **paths)).pretrained(shapes)
  slow = dataclasses.replace(small_folders.MODEL, unet=small_folders.MODEL.unet.clone(heads=1))
  pipeline.write(tmp_path / 'heads', slow, small_folders.random_params(), small_folders.TOKENIZER)
  with pytest.raises(UserError, match=r'config.transfer.path: the unet of .* is not built like'):
    foundation.Foundation(changed(config, **{**paths, 'transfer__path': str(tmp_path / 'heads')})).pretrained(shapes)


def test_what_does_not_go_together_is_said_at_once(config):
  with pytest.raises(UserError, match="'portrait', expected one of portraits, identities.*'portraits'"):
    foundation.Foundation(changed(config, data__dataset='portrait'))
  with pytest.raises(UserError, match=r'config.transfer.path is empty and the other is not'):
    foundation.Foundation(changed(config, model__path='somewhere'))
  with pytest.raises(UserError, match=r'config.data.root is empty'):
    foundation.prepare(changed(config, data__dataset='identities'))
