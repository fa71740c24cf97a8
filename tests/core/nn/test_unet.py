"""The U-Net of latent diffusion against diffusers on random weights, and the traps of its ports.

Compiling takes nearly all of the time here: programs are shared, and the compiler is asked not to optimise.
"""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers_models import restored, save_random, torch_image

import core.nn.diffusion
from core.errors import UserError
from core.nn.diffusion import Downsample, ResBlock, SpatialTransformer, TimeEmbedding, sinusoid
from core.nn.unet import UNet, build
from core.weights import unet

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
jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
RUN = jit(functools.partial(MODEL.apply, maps=True))


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
  )
  return save_random(model, folder)


def ours(folder):
  """(U-Net, variables) with the weights of a folder."""
  return restored(UNet, unet, shapes, folder)


def predicted(model, x, t, context):
  """The prediction of diffusers, NHWC."""
  import torch

  with torch.no_grad():
    return np.moveaxis(model(torch_image(x), torch.tensor(t), torch.tensor(context)).sample.numpy(), 1, -1)


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
  """(diffusers' model, our variables) of `MODEL`: as SD 1.x, heads for all levels and projections as convolutions."""
  folder = tmp_path_factory.mktemp('unet')
  options = {'norm_num_groups': 4, 'attention_head_dim': 2, 'cross_attention_dim': 6, 'layers_per_block': 1}
  torch_model = reference(folder, (8, 12), (True, False), **options)
  model, variables = ours(folder)
  assert model == MODEL
  return torch_model, variables


def test_predictions_as_in_sd1_equal_those_of_diffusers(pair):
  torch_model, variables = pair
  expected = predicted(torch_model, *inputs())
  assert np.abs(expected).max() > 0.5
  assert np.abs(RUN(variables, *inputs())[0] - expected).max() < TOLERANCE


def test_predictions_as_in_sd2_and_odder_equal_those_of_diffusers(tmp_path):
  """Heads per level, linear projections; odd channels and sizes, the first level blind, two layers, two blocks each."""
  torch_model = reference(
    tmp_path, (9, 12), (False, True), norm_num_groups=3, attention_head_dim=[2, 4], cross_attention_dim=5,
    use_linear_projection=True, upcast_attention=True, layers_per_block=2, transformer_layers_per_block=2,
    in_channels=9, out_channels=3, norm_eps=1e-3,
  )  # fmt: skip
  model, variables = ours(tmp_path)
  batch = inputs(model, (1, 13, 7))
  found, expected = jit(model.apply)(variables, *batch), predicted(torch_model, *batch)
  assert found.shape == (1, 13, 7, 3) and np.abs(expected).max() > 0.5
  assert np.abs(found - expected).max() < TOLERANCE


def test_the_gradients_of_latents_and_text_equal_those_of_torch(pair):
  import torch

  torch_model, variables = pair
  x, t, context = inputs()
  direction = np.random.default_rng(3).normal(size=x.shape).astype(np.float32)
  loss = lambda x, context: (MODEL.apply(variables, x, t, context) * direction).sum()  # noqa: E731
  found = jit(jax.grad(loss, (0, 1)))(x, context)
  latents, text = torch_image(x).requires_grad_(), torch.tensor(context, requires_grad=True)
  (torch_model(latents, torch.tensor(t), text).sample * torch_image(direction)).sum().backward()
  for value, expected in zip(found, (np.moveaxis(latents.grad.numpy(), 1, -1), text.grad.numpy())):
    assert np.abs(expected).max() > 0.01
    assert np.abs(value - expected).max() < TOLERANCE * max(1, np.abs(expected).max())


def error(module, variables, torch_module, x, other):
  """Largest difference of a part from diffusers', for x [B, h, w, C] and its second input, traced anew."""
  import torch

  with torch.no_grad():
    expected = torch_module(torch_image(x), torch.tensor(other))
  expected = expected if isinstance(expected, torch.Tensor) else expected[0]
  found = jit(lambda *args: module.apply(*args))({'params': variables}, x, other)
  found = found[0] if isinstance(found, tuple) else found
  return np.abs(found - np.moveaxis(expected.numpy(), 1, -1)).max()


TRANSFORMER = SpatialTransformer(heads=2, groups=4)
FEATURES = np.random.default_rng(5).normal(size=(2, 3, 2, 8)).astype(np.float32)


@pytest.fixture(scope='module')
def transformer(pair):
  """(our variables, diffusers' module) of the first spatial transformer."""
  theirs = functools.partial(pair[0].down_blocks[0].attentions[0], return_dict=False)
  return pair[1]['params']['down_0_transformer_0'], theirs


def test_trap_the_group_norm_before_a_transformer_has_epsilon_1e_6(transformer, monkeypatch):
  faint = (*transformer, 1e-2 * FEATURES, inputs()[2])
  assert error(TRANSFORMER, *faint) < TOLERANCE
  monkeypatch.setattr(core.nn.diffusion, 'TRANSFORMER_EPSILON', 1e-5)
  assert error(TRANSFORMER, *faint) > 10 * TOLERANCE


def test_trap_the_gelu_of_the_mlps_is_exact(transformer, monkeypatch):
  """The tanh form is off by 4e-4 at most: seen where the layer behind it is not small."""
  import torch

  variables, theirs = copy.deepcopy(transformer)
  down = variables['block_0']['mlp']['down']
  down['kernel'] = 10 * down['kernel']
  with torch.no_grad():
    theirs.func.transformer_blocks[0].ff.net[2].weight.mul_(10)
  loud = variables, theirs, FEATURES, inputs()[2]
  assert error(TRANSFORMER, *loud) < TOLERANCE
  monkeypatch.setattr(core.nn.diffusion, 'gelu', functools.partial(jax.nn.gelu, approximate=True))
  assert error(TRANSFORMER, *loud) > 2 * TOLERANCE


def test_trap_heads_are_a_number_and_not_a_dimension(transformer):
  assert error(TRANSFORMER.clone(heads=4), *transformer, FEATURES, inputs()[2]) > 10 * TOLERANCE


def test_trap_residual_blocks_have_epsilon_1e_5(pair):
  torch_model, variables = pair
  time = np.random.default_rng(6).normal(size=(2, 32)).astype(np.float32)
  parts = variables['params']['down_0_resnet_0'], torch_model.down_blocks[0].resnets[0], 1e-2 * FEATURES, time
  assert error(ResBlock(8, 4, MODEL.epsilon), *parts) < TOLERANCE
  assert error(ResBlock(8, 4, 1e-6), *parts) > 10 * TOLERANCE


def test_trap_downsampling_pads_on_all_sides(pair):
  import torch

  torch_model, variables = pair
  variables = {'params': variables['params']['down_0_downsample']}
  x = np.random.default_rng(7).normal(size=(1, 6, 4, 8)).astype(np.float32)
  with torch.no_grad():
    expected = np.moveaxis(torch_model.down_blocks[0].downsamplers[0](torch_image(x)).numpy(), 1, -1)
  assert np.abs(jit(Downsample((1, 1)).apply)(variables, x) - expected).max() < TOLERANCE
  wrong = jit(Downsample((0, 1)).apply)(variables, x)
  assert wrong.shape == expected.shape and np.abs(wrong - expected).max() > 100 * TOLERANCE


def test_trap_cosines_come_first():
  embedded = sinusoid(jnp.array([0, 1, 999]), 320)
  assert embedded.dtype == jnp.float32
  np.testing.assert_array_equal(embedded[0], np.repeat([1, 0], 160))
  frequency = 10000.0 ** (-np.arange(160) / 160)
  for t, row in ((1, embedded[1]), (999, embedded[2])):
    np.testing.assert_allclose(row, np.r_[np.cos(t * frequency), np.sin(t * frequency)], atol=2e-4)


def test_maps_are_the_softmax_of_every_attention_to_the_text():
  _, maps = RUN(VARIABLES, *inputs())
  assert sorted(maps) == sorted(MAPS)
  for name, value in maps.items():
    size = (3, 3) if name.startswith('mid') else (5, 6)
    assert value.shape == (2, 2, *size, 7) and value.dtype == jnp.float32
    np.testing.assert_allclose(value.sum(-1), 1, atol=1e-5)
    assert value.std() > 1e-3


def test_maps_equal_what_diffusers_computes(pair):
  """The attention's own scores in diffusers' first spatial transformer."""
  import torch

  torch_model, variables = pair
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
  _, maps = RUN(variables, x, t, context)
  assert np.abs(maps[MAPS[0]] - expected).max() < 1e-5


def test_attention_is_the_one_asked_for_and_maps_change_nothing(transformer):
  args = {'params': transformer[0]}, FEATURES, inputs()[2]
  expected, nothing = jit(TRANSFORMER.apply)(*args)
  assert nothing == ()
  np.testing.assert_allclose(jit(functools.partial(TRANSFORMER.apply, maps=True))(*args)[0], expected, atol=1e-5)
  np.testing.assert_allclose(jit(TRANSFORMER.clone(implementation='xla').apply)(*args)[0], expected, atol=1e-5)
  with pytest.raises(UserError, match="implementation 'cudn'.*Did you mean 'cudnn'"):
    jax.eval_shape(MODEL.clone(implementation='cudn').apply, VARIABLES, *inputs())


def test_one_timestep_stands_for_all_and_may_be_a_fraction():
  x, _, context = inputs()
  jax.eval_shape(MODEL.apply, VARIABLES, x, jnp.float32(500), context)
  time = functools.partial(TimeEmbedding(8).apply, {'params': VARIABLES['params']['time']})
  whole, float_, between = time(jnp.array([500])), time(jnp.array([500.0])), time(jnp.array([500.5]))
  np.testing.assert_array_equal(whole, float_)
  assert whole.shape == (1, 32) and np.abs(between - whole).max() > 1e-2


def test_every_latent_is_on_its_own():
  x, t, context = inputs()
  other = np.where(np.arange(2)[:, None, None, None] == 1, x + 1, x).astype(np.float32)
  out, moved = RUN(VARIABLES, x, t, context)[0], RUN(VARIABLES, other, t, context)[0]
  np.testing.assert_allclose(moved[0], out[0], atol=1e-6)
  assert np.abs(moved[1] - out[1]).max() > 1e-2


@pytest.mark.parametrize(('variant', 'numbers'), [('sd1', 859_520_964), ('sd2', 865_910_724)])
def test_stable_diffusions_unets_have_the_published_sizes(variant, numbers):
  params = jax.tree.leaves(shapes(build(variant))['params'])
  assert (sum(leaf.size for leaf in params), len(params)) == (numbers, 686)


def test_bf16_keeps_parameters_output_and_maps_in_f32_and_stays_close():
  model = MODEL.clone(dtype=jnp.bfloat16)
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes(model))} == {jnp.dtype('float32')}
  expected, _ = RUN(VARIABLES, *inputs())
  found, maps = jit(functools.partial(model.apply, maps=True))(VARIABLES, *inputs())
  assert found.dtype == jnp.float32 and {value.dtype for value in maps.values()} == {jnp.dtype('float32')}
  assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_remat_marks_every_block_and_keeps_the_parameters():
  model = MODEL.clone(remat=True)
  assert shapes(model) == shapes()
  counts = []
  for each in (MODEL, model):
    program = jax.make_jaxpr(functools.partial(each.apply, maps=True))(VARIABLES, *inputs())
    counts.append(sum(step.primitive.name in ('checkpoint', 'remat2') for step in program.eqns))
  assert counts == [0, 8 + 4]  # residual blocks and spatial transformers


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
