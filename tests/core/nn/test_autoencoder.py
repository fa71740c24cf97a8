"""The autoencoder of latent diffusion against diffusers on random weights, and the traps of its ports."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers_models import restored, save_random, torch_image
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten

import core.nn.autoencoder
from core.errors import UserError
from core.nn.autoencoder import Autoencoder, build, sample
from core.weights import autoencoder

TOLERANCE = 1e-4
MODEL = Autoencoder(channels=(8, 12), layers=1, groups=4)
PHOTO = np.random.default_rng(0).uniform(-1, 1, (2, 10, 6, 3)).astype(np.float32)


def shapes(model=MODEL):
  """Variables of an autoencoder as shapes."""
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, model.colours)))


def noisy(model=MODEL):
  """Variables of an autoencoder, every leaf random."""
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.1, 0.2, leaf.shape), jnp.float32), shapes(model))


def reference(folder, channels, **options):
  """A diffusers AutoencoderKL with every tensor random, saved to a folder."""
  torch = pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  torch.manual_seed(0)
  kinds = {'down_block_types': ('DownEncoderBlock2D',), 'up_block_types': ('UpDecoderBlock2D',)}
  kinds = {name: kind * len(channels) for name, kind in kinds.items()}
  model = diffusers.AutoencoderKL(block_out_channels=channels, **kinds, **options)
  return save_random(model, folder)


def ours(folder):
  """(autoencoder, variables) with the weights of a folder."""
  return restored(Autoencoder, autoencoder, shapes, folder)


CASES = {
  'spec': ((32, 64), {'norm_num_groups': 8}, (2, 20, 12)),
  'three levels, odd sizes': (
    (6, 9, 15), {'norm_num_groups': 3, 'layers_per_block': 2, 'latent_channels': 5, 'in_channels': 1,
                 'out_channels': 1, 'scaling_factor': 0.5}, (1, 13, 22),
  ),
  'one level': ((4,), {'norm_num_groups': 1}, (3, 5, 3)),
}  # fmt: skip


def moments(model, x):
  """(mean, log-variance) of diffusers, NHWC."""
  latent = model.encode(torch_image(x)).latent_dist
  return [np.moveaxis(value.detach().numpy(), 1, -1) for value in (latent.mean, latent.logvar)]


@pytest.mark.parametrize('case', CASES)
def test_encode_and_decode_equal_those_of_diffusers(tmp_path, case):
  channels, options, size = CASES[case]
  torch_model = reference(tmp_path, channels, **options)
  model, variables = ours(tmp_path)
  rng = np.random.default_rng(0)
  x = rng.uniform(-1, 1, (*size, model.colours)).astype(np.float32)
  encode = jax.jit(functools.partial(model.apply, method='encode'))
  for found, expected in zip(encode(variables, x), moments(torch_model, x)):
    assert found.shape == (size[0], size[1] // model.factor, size[2] // model.factor, model.latent)
    assert np.abs(found - expected).max() < TOLERANCE
  z = rng.normal(size=(2, 3, 5, model.latent)).astype(np.float32)
  found = jax.jit(functools.partial(model.apply, method='decode'))(variables, z)
  expected = np.moveaxis(torch_model.decode(torch_image(z)).sample.detach().numpy(), 1, -1)
  assert np.abs(found - expected).max() < TOLERANCE
  assert model.scaling == options.get('scaling_factor', 0.18215)


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
  """(diffusers' model, ours, variables)."""
  folder = tmp_path_factory.mktemp('vae')
  torch_model = reference(folder, (8, 12), norm_num_groups=4, layers_per_block=1)
  return torch_model, *ours(folder)


def test_the_input_gradient_equals_that_of_torch(pair):
  torch_model, model, variables = pair
  direction = np.random.default_rng(3).normal(size=(2, 5, 3, 4)).astype(np.float32)
  loss = lambda x: (model.apply(variables, x, method='encode')[0] * direction).sum()  # noqa: E731
  found = jax.jit(jax.grad(loss))(PHOTO)
  x = torch_image(PHOTO).requires_grad_()
  (torch_model.encode(x).latent_dist.mean * torch_image(direction)).sum().backward()
  expected = np.moveaxis(x.grad.numpy(), 1, -1)
  assert np.abs(expected).max() > 0.1
  assert np.abs(found - expected).max() < TOLERANCE * np.abs(expected).max()


def test_trap_epsilon_of_the_norms_is_1e_6(pair, monkeypatch):
  """On a nearly grey photo, without the first bias, the first norm's variance is small: 1e-5 there is seen."""
  import torch

  torch_model, model, variables = pair
  faint = 1e-3 * PHOTO
  first = torch_model.encoder.conv_in.bias
  kept = first.detach().clone()
  with torch.no_grad():
    first.zero_()
    expected = moments(torch_model, faint)[0]
    first.copy_(kept)
  leaves = flatten(variables, sep='/')
  leaves['params/encoder/conv_in/bias'] = np.zeros(8, np.float32)
  variables = unflatten(leaves, sep='/')

  def error():
    return np.abs(model.apply(variables, faint, method='encode')[0] - expected).max()

  assert error() < TOLERANCE
  monkeypatch.setattr(core.nn.autoencoder, 'EPSILON', 1e-5)
  assert error() > 10 * TOLERANCE


def test_trap_the_encoder_pads_at_the_right_and_the_bottom_only(pair, monkeypatch):
  torch_model, model, variables = pair
  expected = moments(torch_model, PHOTO)[0]
  right = core.nn.autoencoder.Downsample
  monkeypatch.setattr(
    core.nn.autoencoder, 'Downsample', lambda padding, *rest, **options: right((1, 1), *rest, **options)
  )
  found = model.apply(variables, PHOTO, method='encode')[0]
  assert found.shape == expected.shape and np.abs(found - expected).max() > 100 * TOLERANCE


def test_trap_the_log_variance_is_cut():
  variables = noisy()
  for bias, expected in ((1e4, 20.0), (-1e4, -30.0)):
    quant = {**variables['params']['quant'], 'bias': jnp.full(8, bias)}
    _, log_variance = MODEL.apply({'params': {**variables['params'], 'quant': quant}}, PHOTO, method='encode')
    np.testing.assert_array_equal(log_variance, expected)


def test_samples_have_the_mean_and_the_variance():
  mean, log_variance = jnp.full((20000,), 3.0), jnp.full((20000,), 2 * np.log(0.5))
  drawn = sample(jax.random.key(0), mean, log_variance)
  assert abs(drawn.mean() - 3) < 0.02 and abs(drawn.std() - 0.5) < 0.02


def test_stable_diffusions_autoencoder_has_the_published_size():
  params = jax.tree.leaves(shapes(build('sd'))['params'])
  assert (sum(leaf.size for leaf in params), len(params)) == (83_653_863, 248)


def test_bf16_keeps_parameters_and_outputs_in_f32_and_stays_close():
  model, variables = MODEL.clone(dtype=jnp.bfloat16), noisy()
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes(model))} == {jnp.dtype('float32')}
  found = jax.jit(functools.partial(model.apply, method='encode'))(variables, PHOTO)
  assert jax.eval_shape(functools.partial(model.apply, method='decode'), variables, found[0]).dtype == jnp.float32
  for value, expected in zip(found, jax.jit(functools.partial(MODEL.apply, method='encode'))(variables, PHOTO)):
    assert value.dtype == jnp.float32
    assert 0 < np.abs(value - expected).max() < 0.1 * np.abs(expected).max()


def test_remat_changes_memory_only():
  """The same parameters and the same gradient, with residual blocks computed again."""
  variables = noisy()

  def gradient(model):
    return jax.grad(lambda x: (model.apply(variables, x, method='encode')[0] ** 2).sum())

  model = MODEL.clone(remat=True)
  assert shapes(model) == shapes()
  assert 'remat' in str(jax.make_jaxpr(gradient(model))(PHOTO))
  assert 'remat' not in str(jax.make_jaxpr(gradient(MODEL))(PHOTO))
  expected = jax.jit(gradient(MODEL))(PHOTO)
  assert np.abs(jax.jit(gradient(model))(PHOTO) - expected).max() < 1e-5 * np.abs(expected).max()


def test_what_cannot_be_is_refused():
  with pytest.raises(UserError, match=r'\(1, 10, 6, 4\): expected \[B, H, W, 3\] with sides of 2 pixels'):
    MODEL.apply({}, np.zeros((1, 10, 6, 4)), method='encode')
  with pytest.raises(UserError, match='sides of 2 pixels'):
    MODEL.apply({}, np.zeros((1, 1, 6, 3)), method='encode')
  with pytest.raises(UserError, match=r'latents of shape \(1, 2, 2, 3\): expected \[B, h, w, 4\]'):
    MODEL.apply({}, np.zeros((1, 2, 2, 3)), method='decode')
  with pytest.raises(UserError, match='5 groups of the norms do not divide 8 channels'):
    shapes(MODEL.clone(groups=5))
  with pytest.raises(UserError, match="no autoencoder 'sdd'.*Did you mean 'sd'"):
    build('sdd')
