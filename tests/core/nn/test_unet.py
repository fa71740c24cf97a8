"""The U-Net of latent diffusion against diffusers on random weights, and the traps of its ports.

Nearly all of it runs operation by operation: so small a network is compiled more slowly than it runs.
"""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten

import core.nn.diffusion
import core.nn.unet
from core.errors import UserError
from core.nn.diffusion import sinusoid
from core.nn.unet import UNet, build
from core.weights import files, unet

TOLERANCE = 1e-4
TINY = {'channels': (8, 12), 'cross': (True, False), 'layers': 1, 'heads': 2, 'groups': 4, 'context_width': 6}
MODEL = UNet(**TINY)
MAPS = [f'{name}/block_0/cross' for name in ('down_0_transformer_0', 'mid_transformer_0', 'up_1_transformer_0',
                                             'up_1_transformer_1')]  # fmt: skip


def inputs(model=MODEL, size=(2, 5, 6), tokens=7):
  """(latents, timesteps, context), random."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(*size, model.inputs)).astype(np.float32)
  context = rng.normal(size=(size[0], tokens, model.context_width)).astype(np.float32)
  return x, np.linspace(977, 3, size[0]).astype(np.int32), context


def shapes(model=MODEL):
  """Variables of a U-Net as shapes."""
  return jax.eval_shape(model.init, jax.random.key(0), *inputs(model, (1, 16, 16)))


def noisy(model=MODEL):
  """Variables of a U-Net, every leaf random."""
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.05, 0.2, leaf.shape), jnp.float32), shapes(model))


VARIABLES = noisy()


def reference(folder, channels, cross, **options):
  """A diffusers UNet2DConditionModel with every tensor random, saved to a folder."""
  torch = pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  torch.manual_seed(0)
  model = diffusers.UNet2DConditionModel(
    block_out_channels=channels,
    down_block_types=['CrossAttnDownBlock2D' if each else 'DownBlock2D' for each in cross],
    up_block_types=['CrossAttnUpBlock2D' if each else 'UpBlock2D' for each in cross[::-1]],
    **options,
  ).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  model.save_pretrained(folder)
  return model


def ours(folder):
  """(U-Net, variables) with the weights of a folder."""
  tensors = files.read(folder)
  model = UNet(**unet.infer(tensors))
  wanted = flatten(shapes(model)['params'], sep='/')
  loaded, account = unet.load(wanted, tensors)
  assert set(loaded) == set(wanted) and not account.ignored
  return model, {'params': unflatten(loaded, sep='/')}


def torch_image(x):
  import torch

  return torch.tensor(np.moveaxis(x, -1, 1).copy())


def predicted(model, x, t, context):
  """The prediction of diffusers, NHWC."""
  import torch

  with torch.no_grad():
    return np.moveaxis(model(torch_image(x), torch.tensor(t), torch.tensor(context)).sample.numpy(), 1, -1)


CASES = {
  'SD 1.x: heads for all, projections as convolutions': (
    (16, 24), (True, False), {'norm_num_groups': 8, 'attention_head_dim': 2, 'cross_attention_dim': 10,
                              'layers_per_block': 2}, (2, 8, 12),
  ),
  'SD 2.x: heads per level, linear projections, odd sizes': (
    (12, 24, 24), (True, True, False), {'norm_num_groups': 3, 'attention_head_dim': [2, 4, 3],
      'cross_attention_dim': 7, 'layers_per_block': 1, 'use_linear_projection': True, 'upcast_attention': True},
    (1, 13, 7),
  ),
  'odd channels, in and out differ, two blocks deep': (
    (9, 15), (False, True), {'norm_num_groups': 3, 'attention_head_dim': 5, 'cross_attention_dim': 5, 'in_channels': 9,
      'out_channels': 3, 'layers_per_block': 1, 'transformer_layers_per_block': 2, 'norm_eps': 1e-3}, (3, 6, 5),
  ),
}  # fmt: skip


@pytest.mark.parametrize('case', CASES)
def test_predictions_equal_those_of_diffusers(tmp_path, case):
  channels, cross, options, size = CASES[case]
  torch_model = reference(tmp_path, channels, cross, **options)
  model, variables = ours(tmp_path)
  batch = inputs(model, size)
  found, expected = model.apply(variables, *batch), predicted(torch_model, *batch)
  assert found.shape == expected.shape and np.abs(expected).max() > 0.5
  assert np.abs(found - expected).max() < TOLERANCE


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
  """(diffusers' model, ours, variables)."""
  folder = tmp_path_factory.mktemp('unet')
  options = {'norm_num_groups': 4, 'attention_head_dim': 2, 'cross_attention_dim': 6, 'layers_per_block': 1}
  torch_model = reference(folder, (8, 12), (True, False), **options)
  model, variables = ours(folder)
  assert model == MODEL
  return torch_model, model, variables


def test_the_gradients_of_latents_and_text_equal_those_of_torch(pair):
  import torch

  torch_model, model, variables = pair
  x, t, context = inputs()
  direction = np.random.default_rng(3).normal(size=x.shape).astype(np.float32)
  loss = lambda x, context: (model.apply(variables, x, t, context) * direction).sum()  # noqa: E731
  found = jax.grad(loss, (0, 1))(x, context)
  latents, text = torch_image(x).requires_grad_(), torch.tensor(context, requires_grad=True)
  (torch_model(latents, torch.tensor(t), text).sample * torch_image(direction)).sum().backward()
  for ours_, theirs in zip(found, (np.moveaxis(latents.grad.numpy(), 1, -1), text.grad.numpy())):
    assert np.abs(theirs).max() > 0.01
    assert np.abs(ours_ - theirs).max() < TOLERANCE * max(1, np.abs(theirs).max())


def error(pair, batch=None):
  """Largest difference from diffusers."""
  torch_model, model, variables = pair
  batch = batch or inputs()
  return np.abs(model.apply(variables, *batch) - predicted(torch_model, *batch)).max()


def scaled(pair, factors):
  """The pair with some layers' weights and biases multiplied: {their name: (our path, factor)}."""
  import torch

  torch_model, model, variables = pair
  torch_model, leaves = copy.deepcopy(torch_model), dict(flatten(variables, sep='/'))
  names = dict(torch_model.named_parameters())
  for theirs, (path, factor) in factors.items():
    for kind, leaf in (('weight', 'kernel'), ('bias', 'bias')):
      leaves[f'params/{path}/{leaf}'] = leaves[f'params/{path}/{leaf}'] * np.float32(factor)
      with torch.no_grad():
        names[f'{theirs}.{kind}'].mul_(factor)
  return torch_model, model, unflatten(leaves, sep='/')


@pytest.fixture(scope='module')
def faint(pair):
  """The pair with little variance before the first residual block's norm and the first spatial transformer's."""
  layers = {'conv_in': 'conv_in', 'down_blocks.0.resnets.0.conv2': 'down_0_resnet_0/conv_2'}
  return scaled(pair, {theirs: (path, 0.01) for theirs, path in layers.items()})


def test_trap_the_group_norm_before_a_transformer_has_epsilon_1e_6(faint, monkeypatch):
  assert error(faint) < TOLERANCE
  monkeypatch.setattr(core.nn.diffusion, 'TRANSFORMER_EPSILON', 1e-5)
  assert error(faint) > 2 * TOLERANCE


def test_trap_all_other_group_norms_have_epsilon_1e_5(faint):
  torch_model, model, variables = faint
  assert error((torch_model, model.clone(epsilon=1e-6), variables)) > 2 * TOLERANCE


def test_trap_the_gelu_of_the_mlps_is_exact(pair, monkeypatch):
  """The tanh form is off by 4e-4 at most: seen where the layer behind it is not small."""
  block = 'up_blocks.1.attentions.1.transformer_blocks.0.ff.net.2'
  loud = scaled(pair, {block: ('up_1_transformer_1/block_0/mlp/down', 10)})
  assert error(loud) < TOLERANCE
  monkeypatch.setattr(core.nn.diffusion, 'gelu', functools.partial(jax.nn.gelu, approximate=True))
  assert error(loud) > 2 * TOLERANCE


def test_trap_downsampling_pads_on_all_sides(pair, monkeypatch):
  right = core.nn.unet.Downsample
  monkeypatch.setattr(core.nn.unet, 'Downsample', lambda padding, *rest, **names: right((0, 1), *rest, **names))
  assert error(pair, inputs(size=(2, 6, 6))) > 100 * TOLERANCE


def test_trap_cosines_come_first():
  embedded = sinusoid(jnp.array([0, 1, 999]), 320)
  assert embedded.dtype == jnp.float32
  np.testing.assert_array_equal(embedded[0], np.repeat([1, 0], 160))
  frequency = 10000.0 ** (-np.arange(160) / 160)
  for t, row in ((1, embedded[1]), (999, embedded[2])):
    np.testing.assert_allclose(row, np.r_[np.cos(t * frequency), np.sin(t * frequency)], atol=2e-4)


def test_trap_heads_are_a_number_and_not_a_dimension(pair):
  torch_model, model, variables = pair
  assert error((torch_model, model.clone(heads=4), variables)) > 10 * TOLERANCE


def test_maps_are_the_softmax_of_every_attention_to_the_text():
  x, t, context = inputs()
  expected = MODEL.apply(VARIABLES, x, t, context)
  found, maps = MODEL.apply(VARIABLES, x, t, context, maps=True)
  np.testing.assert_allclose(found, expected, atol=1e-4)
  assert sorted(maps) == sorted(MAPS)
  for name, value in maps.items():
    size = (3, 3) if name.startswith('mid') else (5, 6)
    assert value.shape == (2, 2, *size, 7) and value.dtype == jnp.float32
    np.testing.assert_allclose(value.sum(-1), 1, atol=1e-5)
    assert value.std() > 1e-3


def test_maps_equal_what_diffusers_computes(pair):
  """The attention's own scores in diffusers' first spatial transformer, row by row."""
  import torch

  torch_model, _, variables = pair
  x, t, context = inputs()
  attention = torch_model.down_blocks[0].attentions[0].transformer_blocks[0].attn2
  seen = []
  handle = attention.register_forward_pre_hook(lambda module, args, kwargs: seen.append(args[0]), with_kwargs=True)
  predicted(torch_model, x, t, context)
  handle.remove()
  with torch.no_grad():
    query = attention.head_to_batch_dim(attention.to_q(seen[0]))
    key = attention.head_to_batch_dim(attention.to_k(torch.tensor(context)))
    expected = attention.get_attention_scores(query, key).numpy().reshape(2, 2, 5, 6, 7)
  _, maps = MODEL.apply(variables, x, t, context, maps=True)
  assert np.abs(maps[MAPS[0]] - expected).max() < 1e-5


def test_one_timestep_stands_for_all_and_may_be_a_fraction():
  x, _, context = inputs()
  whole = MODEL.apply(VARIABLES, x, np.array([500, 500], np.int32), context)
  np.testing.assert_array_equal(MODEL.apply(VARIABLES, x, jnp.float32(500), context), whole)
  between = MODEL.apply(VARIABLES, x, np.array([500, 500.5], np.float32), context)
  np.testing.assert_allclose(between[0], whole[0], atol=1e-5)
  assert np.abs(between[1] - whole[1]).max() > 1e-4


def test_every_latent_is_on_its_own():
  x, t, context = inputs()
  other = np.where(np.arange(2)[:, None, None, None] == 1, x + 1, x)
  out, moved = MODEL.apply(VARIABLES, x, t, context), MODEL.apply(VARIABLES, other, t, context)
  np.testing.assert_allclose(moved[0], out[0], atol=1e-6)
  assert np.abs(moved[1] - out[1]).max() > 1e-2


@pytest.mark.parametrize(('variant', 'numbers'), [('sd1', 859_520_964), ('sd2', 865_910_724)])
def test_stable_diffusions_unets_have_the_published_sizes(variant, numbers):
  params = jax.tree.leaves(shapes(build(variant))['params'])
  assert (sum(leaf.size for leaf in params), len(params)) == (numbers, 686)


def test_bf16_keeps_parameters_output_and_maps_in_f32_and_stays_close():
  model = MODEL.clone(dtype=jnp.bfloat16)
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes(model))} == {jnp.dtype('float32')}
  expected = MODEL.apply(VARIABLES, *inputs())
  found, maps = model.apply(VARIABLES, *inputs(), maps=True)
  assert found.dtype == jnp.float32 and {value.dtype for value in maps.values()} == {jnp.dtype('float32')}
  assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_remat_changes_memory_only():
  """The same parameters and the same gradient, with blocks computed again."""
  model = MODEL.clone(remat=True)
  assert shapes(model) == shapes()
  x, t, context = inputs()

  def gradient(model):
    return jax.grad(lambda x: (model.apply(VARIABLES, x, t, context, maps=True)[0] ** 2).sum())

  assert 'remat' in str(jax.make_jaxpr(gradient(model))(x))
  assert 'remat' not in str(jax.make_jaxpr(gradient(MODEL))(x))
  expected = gradient(MODEL)(x)
  assert np.abs(gradient(model)(x) - expected).max() < 1e-5 * np.abs(expected).max()


def test_the_attention_is_the_one_asked_for():
  batch = inputs()
  other = MODEL.clone(implementation='xla')
  np.testing.assert_allclose(other.apply(VARIABLES, *batch), MODEL.apply(VARIABLES, *batch), atol=1e-4)
  with pytest.raises(UserError, match="implementation 'cudn'.*Did you mean 'cudnn'"):
    jax.eval_shape(MODEL.clone(implementation='cudn').apply, VARIABLES, *batch)


@pytest.mark.parametrize(
  ('options', 'change', 'match'),
  [
    ({'groups': 5}, {}, '5 groups of the norms do not divide 8 channels'),
    ({'heads': 3}, {}, '3 attention heads do not divide 8 channels'),
    ({'heads': (2, 5)}, {}, '5 attention heads do not divide 12 channels'),
    ({'heads': (2, 2, 2)}, {}, '2 levels of channels, but 2 of cross and 3 of heads'),
    ({}, {'x': np.zeros((2, 5, 6, 3))}, r'latents of shape \(2, 5, 6, 3\): expected \[B, h, w, 4\]'),
    ({}, {'context': np.zeros((2, 7, 5))}, r'a context of shape \(2, 7, 5\).*expected \[2, T, 6\]'),
    ({}, {'context': np.zeros((1, 7, 6))}, r'a context of shape \(1, 7, 6\).*expected \[2, T, 6\]'),
  ],
)
def test_what_cannot_be_is_refused(options, change, match):
  batch = dict(zip(('x', 't', 'context'), inputs())) | change
  with pytest.raises(UserError, match=match):
    jax.eval_shape(MODEL.clone(**options).init, jax.random.key(0), **batch)


def test_names_of_variants_are_checked():
  assert build('sd2', remat=True).heads == (5, 10, 20, 20)
  with pytest.raises(UserError, match="no U-Net 'sd3'.*Did you mean 'sd"):
    build('sd3')
