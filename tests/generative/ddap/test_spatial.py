"""Losses of spatial perturbation learning: values, gradients with respect to the photo against diffusers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_diffusion import MODEL, PROMPT, params, pictures

from core.data import clip_tokens, image
from core.diffusion import pipeline
from generative.ddap import spatial

PARAMS = params()
CLEAN = image.from_levels(jnp.asarray(pictures(2, 16, 16)))
MOVED = jnp.clip(CLEAN + 0.1 * jax.random.normal(jax.random.key(0), CLEAN.shape), -1, 1)
CONTEXT = jax.random.normal(jax.random.key(1), (1, 6, 8))
KEYS = jax.random.split(jax.random.key(2), 2)
DRAWS = spatial.draw(KEYS, (8, 8, 4), jnp.ones((2, 200), bool))
NAMES = ('denoising', 'decoder', 'mean', 'mean_logvar', 'sample', 'feature')


@jax.jit
@functools.partial(jax.grad, argnums=1, has_aux=True)
def sensitivity(params, x, weights):
  """(gradient of the weighted sum of all losses of photos x, {name: f32 [B]})."""
  moments, anchor = MODEL.moments(params, x), MODEL.moments(params, CLEAN)
  found = {
    'denoising': spatial.denoising_loss(MODEL, params, moments, CONTEXT, DRAWS),
    'decoder': spatial.decoder_loss(MODEL, params, moments, CLEAN),
    **{mode: spatial.latent_loss(MODEL, moments, anchor, DRAWS, mode=mode) for mode in NAMES[2:5]},
    'feature': spatial.feature_loss(MODEL, params, moments, anchor, CONTEXT, DRAWS),
  }
  return sum(weights[name] * each.sum() for name, each in found.items()), found


def losses(x):
  """{name: f32 [B]}."""
  return sensitivity(PARAMS, x, dict.fromkeys(NAMES, 1.0))[1]


def gradients(x):
  """{name: f32 like x}."""
  single = lambda name: {**dict.fromkeys(NAMES, 0.0), name: 1.0}  # noqa: E731
  return {name: np.asarray(sensitivity(PARAMS, x, single(name))[0]) for name in NAMES}


@pytest.fixture(scope='module')
def moved():
  return gradients(MOVED)


def test_every_loss_has_a_gradient(moved):
  assert set(moved) == set(NAMES)
  for name, gradient in moved.items():
    assert np.isfinite(gradient).all() and np.abs(gradient).max((1, 2, 3)).min() > 1e-9, name


def test_distances_from_the_clean_photo_are_zero_there_and_so_is_their_gradient():
  found, slopes = losses(CLEAN), gradients(CLEAN)
  for name in ('mean', 'mean_logvar'):
    np.testing.assert_array_equal(found[name], 0)
    np.testing.assert_array_equal(slopes[name], 0)
  assert found['sample'].min() > 0 and np.abs(slopes['sample']).max() > 0  # two samples differ without perturbation


def test_a_photo_has_its_own_losses():
  whole = losses(MOVED)
  changed = losses(MOVED.at[1].set(0))
  for name in NAMES:
    np.testing.assert_allclose(changed[name][0], whole[name][0], rtol=1e-4, err_msg=name)
    assert abs(float(changed[name][1] - whole[name][1])) > 1e-7, name


def test_a_target_is_compared_by_scaled_means():
  moments = [jax.random.normal(key, (2, 8, 8, 4)) for key in jax.random.split(jax.random.key(3), 4)]
  found = spatial.latent_loss(MODEL, tuple(moments[:2]), tuple(moments[2:]), mode='target')
  expected = (0.5 * (np.asarray(moments[0]) - np.asarray(moments[2]))) ** 2
  np.testing.assert_allclose(found, expected.mean((1, 2, 3)), rtol=1e-5)


def test_draws_keep_to_the_timesteps_that_are_allowed():
  keys = jax.random.split(jax.random.key(4), 300)
  times = jnp.zeros((300, 200), bool).at[:, jnp.array([3, 50, 199])].set(True)
  t = np.asarray(spatial.draw(keys, (2, 2, 1), times).t)
  assert set(t) == {3, 50, 199} and np.bincount(t)[[3, 50, 199]].min() > 70


def test_the_pattern_is_black_and_white_and_no_photo():
  found = spatial.pattern(32, 48)
  assert found.shape == (32, 48, 3) and set(np.unique(found)) == {-1, 1}
  assert abs(found.mean()) < 0.1


@pytest.fixture(scope='module')
def theirs(tmp_path_factory):
  """The autoencoder and the U-Net of `MODEL` in diffusers, and the gradients of four losses."""
  torch, diffusers = pytest.importorskip('torch'), pytest.importorskip('diffusers')
  tokenizer = clip_tokens.small([PROMPT])
  text = dataclasses.replace(MODEL.text, vocabulary=tokenizer.vocabulary)
  model = dataclasses.replace(MODEL, text=text)
  shapes = jax.eval_shape(text.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
  spare = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
  folder = tmp_path_factory.mktemp('folder') / 'small'
  pipeline.write(folder, model, {**PARAMS, 'text': spare}, tokenizer)
  vae = diffusers.AutoencoderKL.from_pretrained(folder, subfolder='vae')
  unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder='unet')
  nchw = lambda x: torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy())  # noqa: E731
  eta, noise = nchw(DRAWS.eta), nchw(DRAWS.noise)
  t = torch.tensor(np.asarray(DRAWS.t))
  betas = torch.linspace(0.00085**0.5, 0.06**0.5, 200, dtype=torch.float64) ** 2
  alphas = torch.cumprod(1 - betas, 0)[t].float().view(-1, 1, 1, 1)
  clean = vae.encode(nchw(CLEAN)).latent_dist

  def slope(name):
    x = nchw(MOVED).requires_grad_()
    found = vae.encode(x).latent_dist
    if name == 'denoising':
      z = 0.5 * (found.mean + found.std * eta)
      noisy = alphas.sqrt() * z + (1 - alphas).sqrt() * noise
      context = torch.tensor(np.asarray(CONTEXT)).expand(2, -1, -1)
      error = unet(noisy, t, context).sample - noise
    elif name == 'decoder':
      error = vae.decode(found.mean).sample - nchw(CLEAN)
    else:
      error = 0.5 * (found.mean - clean.mean)
    loss = error.square().mean((1, 2, 3)).sum()
    if name == 'mean_logvar':
      parts = ((found.mean, clean.mean), (found.logvar, clean.logvar))
      loss = sum((a - b).square().mean((1, 2, 3)).sum() for a, b in parts)
    return np.moveaxis(torch.autograd.grad(loss, x)[0].numpy(), 1, -1)

  return {name: slope(name) for name in ('denoising', 'decoder', 'mean', 'mean_logvar')}


@pytest.mark.parametrize('name', ['denoising', 'decoder', 'mean', 'mean_logvar'])
def test_gradients_are_those_of_diffusers(theirs, moved, name):
  for ours, reference in zip(moved[name], theirs[name]):
    cosine = (ours * reference).sum() / (np.linalg.norm(ours) * np.linalg.norm(reference))
    assert cosine > 0.9999
    np.testing.assert_allclose(np.linalg.norm(ours), np.linalg.norm(reference), rtol=1e-3)
