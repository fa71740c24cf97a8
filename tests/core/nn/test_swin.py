"""Swin against transformers on random weights, and its windows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten

from core.errors import UserError
from core.nn.swin import Block, Swin, build, offsets, together
from core.weights import files, swin

TOLERANCE = 1e-4
MODEL = Swin(width=6, depths=(2, 1), heads=(2, 3), patch=2, window=3)


def reference(folder, **options):
  """A transformers SwinModel with every tensor random, saved to a folder."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  torch.manual_seed(0)
  model = transformers.SwinModel(transformers.SwinConfig(**options)).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.15 * torch.randn_like(parameter))
  model.save_pretrained(folder)
  return model


def ours(folder):
  """(Swin, variables) with the weights of a folder."""
  tensors = files.read(folder)
  fields, size = swin.infer(tensors)
  model = Swin(**fields)
  shapes = flatten(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size, 3)))['params'], sep='/')
  loaded, _ = swin.load(shapes, tensors)
  assert set(loaded) == set(shapes)
  return model, {'params': unflatten(loaded, sep='/')}


def noisy(model=MODEL, size=(16, 16)):
  """Variables of a Swin, every leaf moved off its small initial value."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size, 3)))
  leaves, tree = jax.tree.flatten(shapes)
  rng = np.random.default_rng(0)
  return jax.tree.unflatten(tree, [jnp.asarray(rng.normal(0.2, 0.4, leaf.shape), jnp.float32) for leaf in leaves])


@pytest.mark.parametrize(
  ('size', 'config'),
  [
    # shifted windows on the first grid (12 x 12), a grid that one window covers on the last (3 x 3)
    ((48, 48), {'embed_dim': 12, 'depths': [2, 3, 1], 'num_heads': [2, 4, 6], 'window_size': 3, 'patch_size': 4}),
    # grids of 23 x 17 and 12 x 9 tokens: padded to whole windows of 5 and to even sides, shifted
    ((46, 34), {'embed_dim': 10, 'depths': [2, 2], 'num_heads': [1, 5], 'window_size': 5, 'patch_size': 2}),
    # pixels that are no whole patches, an even window, no biases, an odd epsilon
    ((31, 45), {'embed_dim': 9, 'depths': [2], 'num_heads': [3], 'window_size': 4, 'patch_size': 3,
                'qkv_bias': False, 'layer_norm_eps': 1e-3, 'mlp_ratio': 1.5}),
  ],
)  # fmt: skip
def test_outputs_equal_those_of_transformers(tmp_path, size, config):
  torch_model = reference(tmp_path, image_size=48, **config)
  import torch

  model, variables = ours(tmp_path)
  images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
  with torch.no_grad():
    expected = torch_model(torch.tensor(images.transpose(0, 3, 1, 2)))
  out = jax.jit(model.apply)(variables, images)
  assert np.abs(out['tokens'] - expected.last_hidden_state.numpy()).max() < TOLERANCE
  assert np.abs(out['feature'] - expected.pooler_output.numpy()).max() < TOLERANCE
  grid = model.tokens(size)
  assert out['tokens'].shape == (2, grid.grid[0] * grid.grid[1], model.feature_width) and grid.prefix == 0


def test_offsets_are_those_of_transformers_and_a_smaller_window_takes_the_middle_of_the_table():
  swin_model = pytest.importorskip('transformers.models.swin.modeling_swin')
  pytest.importorskip('torch')
  theirs = swin_model.SwinRelativePositionBias(2, (4, 4)).relative_position_index.numpy().reshape(16, 16)
  np.testing.assert_array_equal(offsets(4, 4), theirs)
  table = np.stack(np.meshgrid(np.arange(-3, 4), np.arange(-3, 4), indexing='ij'), -1).reshape(-1, 2)  # (dy, dx)
  small = table[offsets(2, 4)]
  np.testing.assert_array_equal(small[0], [(0, 0), (0, -1), (-1, 0), (-1, -1)])
  np.testing.assert_array_equal(small, -small.swapaxes(0, 1))


def test_shifted_windows_keep_apart_what_only_the_wrap_brings_together():
  grid, side, shift = (6, 9), 3, 1
  mask = together(grid, side, shift)
  assert mask.shape == (6, 9, 9) and mask[0].all()  # the first window holds no wrap
  places = np.stack(np.divmod(np.roll(np.arange(54).reshape(grid), (-shift, -shift), (0, 1)), 9), -1)
  places = places.reshape(2, 3, 3, 3, 2).swapaxes(1, 2).reshape(6, 9, 2)
  for window, allowed in zip(places, mask):
    near = (np.abs(window[:, None] - window[None]) < side).all(-1)
    np.testing.assert_array_equal(allowed, near)


def test_a_token_reaches_its_own_window_and_with_the_shift_its_neighbours_too():
  """Gradients of one token with respect to the grid, through one block and through a shifted one after it."""
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 6, 4)), jnp.float32)
  blocks = [Block(heads=1, window=3, shifted=shifted) for shifted in (False, True)]
  params = [noisy_block(block, x) for block in blocks]

  def reach(count):
    def value(x):
      for block, variables in zip(blocks[:count], params):
        x = block.apply(variables, x)
      return (x[0, 1, 1] ** 3).sum()

    return np.abs(jax.jit(jax.grad(value))(x)[0]).max(-1) > 0

  window = np.zeros((6, 6), bool)
  window[:3, :3] = True
  np.testing.assert_array_equal(reach(1), window)
  assert reach(2).sum() > window.sum()


def noisy_block(block, x):
  shapes, rng = jax.eval_shape(block.init, jax.random.key(0), x), np.random.default_rng(1)
  return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32), shapes)


def test_grids_smaller_than_a_window_are_one_window_without_padding():
  """Where transformers fails (its table is for whole windows only): the result of a Swin with a window that fits."""
  variables, images = noisy(size=(8, 8)), np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
  out = jax.jit(MODEL.apply)(variables, images)
  assert out['tokens'].shape == (2, 1, 12)
  small = jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaf.reshape(5, 5, -1)[1:4, 1:4].reshape(9, -1) if path[-1].key == 'offset' else leaf, variables
  )
  np.testing.assert_allclose(jax.jit(MODEL.clone(window=2).apply)(small, images)['tokens'], out['tokens'], atol=1e-5)


def test_stochastic_depth_leaves_out_whole_samples_in_training_only():
  block = Block(heads=1, window=2, path_dropout=0.5)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(32, 2, 2, 4)), jnp.float32)
  params = noisy_block(block, x)
  out = jax.jit(functools.partial(block.apply, train=True))(params, x, rngs={'dropout': jax.random.key(0)})
  untouched = np.abs(out - x).reshape(32, -1).max(-1) == 0
  assert 2 <= untouched.sum() <= 16  # both sublayers left out: a quarter of 32
  kept = block.clone(path_dropout=0.0)
  np.testing.assert_array_equal(jax.jit(block.apply)(params, x), jax.jit(kept.apply)(params, x))


def test_variants_have_the_published_sizes():
  def count(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))

  # timm's counts of the whole classifiers, less their heads of 1000 classes
  assert count(build('swin_tiny')) == 28_288_354 - (768 * 1000 + 1000)
  assert build('swin_base', window=12).window == 12 and build('swin_base').feature_width == 1024
  assert build('swin_base').tokens((224, 224)).grid == (7, 7)


def test_what_cannot_be_is_refused():
  images = jnp.zeros((1, 16, 16, 3))
  with pytest.raises(UserError, match='2 stages with heads for 1'):
    jax.eval_shape(MODEL.clone(heads=(2,)).init, jax.random.key(0), images)
  with pytest.raises(UserError, match='5 attention heads do not divide the width 6'):
    jax.eval_shape(MODEL.clone(heads=(5, 3)).init, jax.random.key(0), images)
  with pytest.raises(UserError, match="no Swin 'swin_bas'.*Did you mean 'swin_base'"):
    build('swin_bas')
