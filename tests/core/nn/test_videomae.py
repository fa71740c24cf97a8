"""The VideoMAE encoder against transformers' on random weights, and what it promises beyond."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from core.nn import transformer, videomae, vit
from core.weights import files
from core.weights import videomae as videomae_weights

TOLERANCE = 1e-4


def reference(folder, kind='VideoMAEModel', *, clip=(4, 16, 16), patch=8, tubelet=2, heads=2, width=12, **changes):
  """One of transformers' VideoMAE models with every tensor random, saved to a folder."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  torch.manual_seed(0)
  config = transformers.VideoMAEConfig(
    num_frames=clip[0], image_size=clip[1:], patch_size=patch, tubelet_size=tubelet, hidden_size=width,
    num_attention_heads=heads, **{'num_hidden_layers': 2, 'intermediate_size': 20, 'num_labels': 3} | changes,
  )  # fmt: skip
  model = getattr(transformers, kind)(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.15 * torch.randn_like(parameter))
  model.save_pretrained(folder)
  return model


def ours(folder, **options):
  """(model, variables, clip size) of our network with the weights of a folder."""
  tensors = files.read(folder)
  fields, clip = videomae_weights.infer(tensors)
  model = videomae.VideoMAE(**{**fields, **options})
  shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *clip, 3), np.float32))['params']
  flat = flax.traverse_util.flatten_dict(shapes, sep='/')
  loaded, _ = videomae_weights.load(flat, tensors)
  assert set(loaded) == set(flat)
  return model, {'params': flax.traverse_util.unflatten_dict(loaded, sep='/')}, clip


def clips(size, batch=2):
  return np.random.default_rng(0).normal(size=(batch, *size, 3)).astype(np.float32)


def torch_clips(batch):
  import torch

  return torch.tensor(batch.transpose(0, 1, 4, 2, 3))


@pytest.mark.parametrize(
  'config',
  [
    {},
    {'clip': (6, 24, 24), 'patch': 4, 'tubelet': 3, 'heads': 3, 'width': 33},
    {'clip': (16, 24, 40), 'patch': 8, 'tubelet': 1, 'num_hidden_layers': 1, 'intermediate_size': 7},
    {'clip': (4, 48, 128), 'patch': 4, 'heads': 1, 'width': 9, 'num_hidden_layers': 3},  # 768 tokens
    {'use_mean_pooling': False, 'layer_norm_eps': 1e-6},
  ],
)
def test_tokens_equal_those_of_transformers(tmp_path, config):
  torch_model = reference(tmp_path, **config)
  import torch

  model, variables, clip = ours(tmp_path)
  batch = clips(clip)
  with torch.no_grad():
    expected = torch_model(torch_clips(batch)).last_hidden_state.numpy()
  out = jax.jit(model.apply)(variables, batch)
  assert out['tokens'].shape == expected.shape
  assert np.abs(out['tokens'] - expected).max() < TOLERANCE
  assert np.abs(out['feature'] - expected.mean(1)).max() < TOLERANCE
  assert model.norm == ('none' if config.get('use_mean_pooling', True) else 'tokens')
  backwards = jax.jit(model.apply)(variables, batch[:, ::-1])['tokens']
  assert np.abs(backwards - expected).max() > 100 * TOLERANCE  # time has a direction


def test_the_feature_is_what_the_classifier_of_transformers_sees(tmp_path):
  torch_model = reference(tmp_path, 'VideoMAEForVideoClassification')
  import torch

  model, variables, clip = ours(tmp_path)
  assert model.norm == 'pooled'
  seen = []
  torch_model.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
  with torch.no_grad():
    torch_model(torch_clips(clips(clip)))
  out = jax.jit(model.apply)(variables, clips(clip))
  assert np.abs(out['feature'] - seen[0].numpy()).max() < TOLERANCE


def test_positions_are_those_of_transformers():
  module = pytest.importorskip('transformers.models.videomae.modeling_videomae')
  for count, width in ((1568, 48), (5, 7), (1, 2)):
    expected = module.get_sinusoid_encoding_table(count, width)[0].numpy()
    np.testing.assert_allclose(videomae.sinusoids(count, width), expected, atol=1e-6)


def test_the_tubelet_projection_is_the_strided_convolution():
  batch = clips((7, 21, 17))  # a frame, rows and columns are left over
  module = vit.Patches((2, 5, 4), 6)
  variables = module.init(jax.random.key(0), batch)
  expected = jax.lax.conv_general_dilated(
    batch, variables['params']['kernel'], (2, 5, 4), 'VALID', dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC')
  )
  assert expected.shape == (2, 3, 4, 4, 6)
  np.testing.assert_allclose(module.apply(variables, batch), expected, atol=1e-5)


def test_scan_and_remat_equal_the_plain_loop():
  model = videomae.VideoMAE(patch=(2, 4, 4), width=12, depth=2, heads=2, mlp_dim=16)
  batch = clips((4, 8, 8))
  shapes = jax.eval_shape(model.init, jax.random.key(0), batch)
  rng = np.random.default_rng(1)
  variables = jax.tree.map(lambda leaf: rng.normal(0.2, 0.3, leaf.shape).astype(np.float32), shapes)
  flat = transformer.stack_blocks(flax.traverse_util.flatten_dict(variables['params'], sep='/'))
  stacked = {'params': flax.traverse_util.unflatten_dict(flat, sep='/')}
  expected = jax.jit(model.apply)(variables, batch)['feature']
  for remat in (False, True):
    other = model.clone(scan=True, remat=remat)
    np.testing.assert_allclose(jax.jit(other.apply)(stacked, batch)['feature'], expected, atol=1e-5)


@pytest.mark.parametrize(
  ('norm', 'leaves'), [('pooled', {'norm_pooled'}), ('tokens', {'encoder/norm'}), ('none', set())]
)
def test_the_last_norm_stands_where_it_is_said(norm, leaves):
  model = videomae.build('tiny_patch8', depth=1, norm=norm)
  batch = clips((2, 16, 16))
  out, variables = jax.jit(model.init_with_output)(jax.random.key(0), batch)
  flat = flax.traverse_util.flatten_dict(variables['params'], sep='/')
  assert {path.rsplit('/', 1)[0] for path in flat if path.startswith(('norm', 'encoder/norm'))} == leaves
  assert 'encoder/block_0/attention/query/bias' in flat and 'encoder/block_0/attention/key/bias' not in flat
  normed = {'pooled': out['feature'], 'tokens': out['tokens']}.get(norm)
  if normed is not None:
    np.testing.assert_allclose(normed.std(axis=-1), 1.0, atol=1e-3)
  mean = out['tokens'].mean(axis=1)
  if norm == 'pooled':
    mean = (mean - mean.mean(-1, keepdims=True)) / jnp.sqrt(mean.var(-1, keepdims=True) + videomae.POOLED_EPSILON)
  np.testing.assert_allclose(out['feature'], mean, atol=1e-5)


@pytest.mark.parametrize('variant', ['small_patch16', 'base_patch16', 'large_patch16'])
def test_variants_have_the_sizes_of_the_public_models(variant):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  model = videomae.build(variant)
  with torch.device('meta'):
    config = transformers.VideoMAEConfig(
      hidden_size=model.width, num_hidden_layers=model.depth, num_attention_heads=model.heads,
      intermediate_size=model.mlp_dim, num_labels=0,
    )  # fmt: skip
    expected = sum(parameter.numel() for parameter in transformers.VideoMAEForVideoClassification(config).parameters())
  shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 16, 224, 224, 3), np.float32))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


def test_half_precision_keeps_full_parameters():
  model = videomae.build('tiny_patch8', dtype=jnp.bfloat16)
  out, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), clips((2, 16, 16)))
  assert out['feature'].dtype == out['tokens'].dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


def test_errors_name_what_does_not_fit():
  with pytest.raises(UserError, match="no VideoMAE 'base_patch_16'.*Did you mean 'base_patch16'"):
    videomae.build('base_patch_16')
  with pytest.raises(UserError, match='a clip of 1x16x16 has no whole patch of 2x8x8'):
    videomae.build('tiny_patch8').init(jax.random.key(0), jnp.ones((1, 1, 16, 16, 3)))
  with pytest.raises(UserError, match="norm is 'pool'.*Did you mean 'pooled'"):
    videomae.build('tiny_patch8', norm='pool').init(jax.random.key(0), jnp.ones((1, 2, 16, 16, 3)))
