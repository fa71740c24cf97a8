"""The ViT against transformers' on random weights, and what it promises beyond."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from core.nn import adapters, vit
from core.weights import files
from core.weights import vit as vit_weights

TOLERANCE = 1e-4


def reference(folder, *, image_size, patch, width=48, depth=3, heads=4, mlp_dim=72, qkv_bias=True):
  """A transformers ViT with every tensor random, saved to a folder; returns the torch model."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  torch.manual_seed(0)
  config = transformers.ViTConfig(
    hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=mlp_dim,
    image_size=image_size, patch_size=patch, qkv_bias=qkv_bias, layer_norm_eps=1e-6,
  )  # fmt: skip
  model = transformers.ViTModel(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.15 * torch.randn_like(parameter))
  model.save_pretrained(folder)
  return model


def ours(folder, image_size, **options):
  """(model, variables) of our ViT with the weights of a folder."""
  tensors = files.read(folder)
  fields, _ = vit_weights.infer(tensors)
  model = vit.ViT(**{**fields, **options})
  images = jnp.zeros((1, *image_size, 3))
  shapes = flax.traverse_util.flatten_dict(jax.eval_shape(model.init, jax.random.key(0), images)['params'], sep='/')
  loaded, account = vit_weights.load(shapes, tensors, grid=model.tokens(image_size).grid)
  assert set(loaded) == set(shapes)
  return model, {'params': flax.traverse_util.unflatten_dict(loaded, sep='/')}, account


def images(size, batch=2):
  return np.random.default_rng(0).normal(size=(batch, *size, 3)).astype(np.float32)


def torch_tokens(model, batch, **options):
  import torch

  with torch.no_grad():
    return model(torch.tensor(batch.transpose(0, 3, 1, 2)), **options).last_hidden_state.numpy()


@pytest.mark.parametrize(
  'name, image_size, config',
  [
    ('plain', (32, 32), {'patch': 8}),
    ('patch 7', (49, 49), {'patch': 7, 'heads': 3}),
    ('wide image', (24, 56), {'patch': 8, 'depth': 2}),
    ('576 tokens', (96, 96), {'patch': 4, 'depth': 2, 'width': 24, 'heads': 2}),
    ('no qkv bias, one head', (30, 20), {'patch': 5, 'qkv_bias': False, 'heads': 1}),
    ('leftover pixels', (35, 38), {'patch': 8, 'depth': 1}),
  ],
)
def test_tokens_equal_those_of_transformers(tmp_path, name, image_size, config):
  square = image_size[0] == image_size[1]
  torch_model = reference(tmp_path, image_size=image_size[0] if square else image_size, **config)
  model, variables, _ = ours(tmp_path, image_size)
  batch = images(image_size)
  out = jax.jit(model.apply)(variables, batch)
  expected = torch_tokens(torch_model, batch)
  assert np.abs(out['tokens'] - expected).max() < TOLERANCE
  assert np.abs(out['feature'] - expected[:, 0]).max() < TOLERANCE
  swapped = jax.jit(model.apply)(variables, batch.swapaxes(1, 2)) if square else None
  assert swapped is None or np.abs(swapped['tokens'] - expected).max() > 100 * TOLERANCE  # rows are not columns


@pytest.mark.parametrize('size', [(48, 80), (16, 24), (40, 40)])
def test_interpolated_positions_equal_those_of_transformers(tmp_path, size):
  torch_model = reference(tmp_path, image_size=32, patch=8)
  model, variables, account = ours(tmp_path, size)
  expected = torch_tokens(torch_model, images(size), interpolate_pos_encoding=True)
  assert np.abs(jax.jit(model.apply)(variables, images(size))['tokens'] - expected).max() < TOLERANCE
  assert f'position: resized 4x4 -> {size[0] // 8}x{size[1] // 8}, bicubic' in str(account)


def test_mean_pool_is_the_mean_over_patches(tmp_path):
  torch_model = reference(tmp_path, image_size=32, patch=8)
  model, variables, _ = ours(tmp_path, (32, 32), pool='mean')
  expected = torch_tokens(torch_model, images((32, 32)))[:, 1:].mean(1)
  assert np.abs(model.apply(variables, images((32, 32)))['feature'] - expected).max() < TOLERANCE


def test_without_a_class_token_every_token_is_a_patch():
  model = vit.ViT(patch=(4, 8), width=12, depth=1, heads=2, mlp_dim=24, class_token=False, pool='mean')
  out, variables = model.init_with_output(jax.random.key(0), jnp.ones((2, 12, 32, 3)))
  assert out['tokens'].shape == (2, 12, 12) and out['feature'].shape == (2, 12)
  assert 'class_token' not in variables['params'] and model.tokens((12, 32)).grid == (3, 4)
  np.testing.assert_allclose(out['feature'], out['tokens'].mean(1), atol=1e-6)


def test_the_patch_projection_is_the_strided_convolution():
  batch = images((21, 17))
  module = vit.Patches((5, 4), 7)
  variables = module.init(jax.random.key(0), batch)
  expected = jax.lax.conv_general_dilated(
    batch, variables['params']['kernel'], (5, 4), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  np.testing.assert_allclose(module.apply(variables, batch), expected, atol=1e-5)


def test_half_precision_keeps_full_parameters():
  model = vit.build('tiny_patch8', dtype=jnp.bfloat16, depth=1)
  out, variables = model.init_with_output(jax.random.key(0), jnp.ones((1, 16, 16, 3)))
  assert out['feature'].dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  exact = vit.build('tiny_patch8', depth=1).apply(variables, jnp.ones((1, 16, 16, 3)))['feature']
  np.testing.assert_allclose(out['feature'].astype(jnp.float32), exact, atol=0.1)


@pytest.mark.parametrize(
  'variant, parameters', [('base_patch16', 85_798_656), ('small_patch16', 21_665_664), ('large_patch16', 303_301_632)]
)
def test_variants_have_the_published_sizes(variant, parameters):
  shapes = jax.eval_shape(vit.build(variant).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), 'float32'))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters  # timm's counts with num_classes=0


def test_errors_name_what_does_not_fit():
  with pytest.raises(UserError, match="no ViT 'base_patch_16'.*Did you mean 'base_patch16'"):
    vit.build('base_patch_16')
  with pytest.raises(UserError, match='8x40 has no whole patch of 16x16'):
    vit.build('tiny_patch16').init(jax.random.key(0), jnp.ones((1, 8, 40, 3)))
  with pytest.raises(UserError, match="pool is 'class' with class_token=False"):
    vit.build('tiny_patch8', class_token=False).init(jax.random.key(0), jnp.ones((1, 16, 16, 3)))


def _torch_convpass(torch, block, grid, name, params, scale=1.0):
  """A hand-written ConvPass in torch, from our arrays: (x [B, N, C]) -> [B, N, C]."""
  nn, tensor = torch.nn, lambda path: torch.tensor(np.asarray(params[f'encoder/{block}/{name}/{path}']))
  hidden = tensor('down/kernel').shape[1]
  down, up = nn.Linear(*tensor('down/kernel').shape), nn.Linear(*tensor('up/kernel').shape)
  conv = nn.Conv2d(hidden, hidden, 3, padding=1)
  with torch.no_grad():
    for linear, path in ((down, 'down'), (up, 'up')):
      linear.weight.copy_(tensor(f'{path}/kernel').T)
      linear.bias.copy_(tensor(f'{path}/bias'))
    conv.weight.copy_(tensor('conv/kernel').permute(3, 2, 0, 1))
    conv.bias.copy_(tensor('conv/bias'))

  def forward(x):
    h = down(x)
    h = h * torch.sigmoid(1.702 * h)
    patches = h[:, 1:].transpose(1, 2).reshape(len(h), hidden, *grid)
    patches = conv(patches).flatten(2).transpose(1, 2)
    token = conv(h[:, :1].transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
    h = torch.cat([token, patches], dim=1)
    return scale * up(h * torch.sigmoid(1.702 * h))

  return forward


def test_vit_with_convpass_equals_a_hand_written_one_in_torch(tmp_path):
  torch = pytest.importorskip('torch')
  torch_model = reference(tmp_path, image_size=(24, 40), patch=8)
  tensors = files.read(tmp_path)
  fields, size = vit_weights.infer(tensors)
  model = vit.ViT(**fields, adapter=adapters.convpass(dropout=0.1))
  batch = images(size)
  params = flax.traverse_util.flatten_dict(model.init(jax.random.key(0), batch)['params'], sep='/')
  loaded, account = vit_weights.load(params, tensors, grid=(3, 5))
  assert set(account.fresh) == {path for path in params if adapters.is_adapter(path)} and len(account.fresh) == 36
  params |= loaded
  apply = lambda params: model.apply({'params': flax.traverse_util.unflatten_dict(params, sep='/')}, batch)  # noqa: E731
  assert np.abs(apply(params)['tokens'] - torch_tokens(torch_model, batch)).max() < TOLERANCE  # zero: plain ViT
  rng = np.random.default_rng(2)
  for path in account.fresh:
    params[path] = params[path] + 0.2 * rng.normal(size=params[path].shape).astype(np.float32)
  with torch.no_grad():
    x = torch_model.embeddings(torch.tensor(batch.transpose(0, 3, 1, 2)))
    for i, layer in enumerate(torch_model.layers):
      attend, mlp = (
        _torch_convpass(torch, f'block_{i}', (3, 5), f'{name}_adapter', params) for name in ('attention', 'mlp')
      )
      h = layer.layernorm_before(x)
      x = x + layer.attention(h)[0] + attend(h)
      h = layer.layernorm_after(x)
      x = x + layer.mlp(h) + mlp(h)
    expected = torch_model.layernorm(x).numpy()
  out = apply(params)['tokens']
  assert np.abs(out - expected).max() < TOLERANCE
  assert np.abs(out - torch_tokens(torch_model, batch)).max() > 0.1


def test_the_pool_over_places_knows_where_something_is():
  model = vit.build('tiny_places8', depth=1, width=12, heads=1, mlp_dim=12)
  left = jnp.zeros((1, 16, 16, 3)).at[:, 4:12, :8].set(1.0)
  variables = model.init(jax.random.key(0), left)
  flat = {**variables['params'], 'position': jnp.zeros_like(variables['params']['position'])}
  features = [model.apply({'params': flat}, image)['feature'] for image in (left, left[:, :, ::-1])]
  assert features[0].shape == (1, 12)
  assert float(jnp.abs(features[0] - features[1]).max()) > 1e-3
  mean = model.clone(pool='mean')
  pooled = [mean.apply({'params': flat}, image)['feature'] for image in (left, left[:, :, ::-1])]
  np.testing.assert_allclose(*pooled, atol=1e-5)
