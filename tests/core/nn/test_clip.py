"""CLIP's text encoder against transformers on random weights, its traps, and what it promises beyond."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten

from core.errors import UserError
from core.nn.clip import ACTIVATIONS, VARIANTS, ClipText, build
from core.weights import clip, files

TOLERANCE = 1e-5
"""Spec 9a."""
MODEL = ClipText(vocabulary=11, width=12, depth=2, heads=3, mlp_dim=20, max_positions=9, eos=10)
IDS = np.array([[9, 1, 4, 2, 10, 10, 10], [9, 3, 10, 0, 0, 0, 0]], np.int32)

CONFIGS = {
  'quick_gelu': {
    'vocab_size': 37, 'hidden_size': 30, 'num_hidden_layers': 3, 'num_attention_heads': 5, 'intermediate_size': 41,
    'hidden_act': 'quick_gelu', 'eos_token_id': 36,
  },
  'gelu': {
    'vocab_size': 101, 'hidden_size': 26, 'num_hidden_layers': 2, 'num_attention_heads': 13, 'intermediate_size': 17,
    'hidden_act': 'gelu', 'eos_token_id': 2,
  },
  'projection': {
    'vocab_size': 5, 'hidden_size': 7, 'num_hidden_layers': 1, 'num_attention_heads': 1, 'intermediate_size': 3,
    'hidden_act': 'gelu', 'eos_token_id': 4, 'layer_norm_eps': 1e-3, 'projection_dim': 11,
  },
}  # fmt: skip


@pytest.fixture(scope='module', params=sorted(CONFIGS))
def pair(request, tmp_path_factory):
  """(transformers' model with every tensor random, ours, variables with its weights)."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  torch.manual_seed(0)
  name = f'CLIPTextModel{"WithProjection" if request.param == "projection" else ""}'
  theirs = getattr(transformers, name)(transformers.CLIPTextConfig(**CONFIGS[request.param])).eval()
  with torch.no_grad():
    for parameter in theirs.parameters():
      parameter.add_(0.2 * torch.randn_like(parameter))
  folder = tmp_path_factory.mktemp(request.param)
  theirs.save_pretrained(folder)
  tensors = files.read(folder)
  model = ClipText(**clip.infer(tensors))
  loaded, _ = clip.load(leaf_shapes(model), tensors)
  assert set(loaded) == set(leaf_shapes(model))
  return theirs, model, {'params': unflatten(loaded, sep='/')}


def leaf_shapes(model):
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
  return flatten(shapes['params'], sep='/')


def prompt_ids(model, length=77):
  """Three prompts of other lengths whose EOS is the greatest id, the first padded with EOS, the second with 0."""
  eos = model.vocabulary - 1
  ids = np.random.default_rng(0).integers(1, eos, (3, length)).astype(np.int32)
  for row, (end, pad) in enumerate(((5, eos), (length // 2, 0), (length - 1, eos))):
    ids[row, end], ids[row, end + 1 :] = eos, pad
  return ids


def reference(theirs, ids, mask=None):
  """(last, penultimate after the final norm, pooled, projected or None) of transformers, as numpy."""
  import torch

  text_model = getattr(theirs, 'text_model', theirs)
  with torch.no_grad():
    mask = None if mask is None else torch.tensor(mask).long()
    out = text_model(torch.tensor(ids), attention_mask=mask, output_hidden_states=True)
    penultimate = text_model.final_layer_norm(out.hidden_states[-2])
    projection = getattr(theirs, 'text_projection', None)
    projected = None if projection is None else projection(out.pooler_output).numpy()
  return out.last_hidden_state.numpy(), penultimate.numpy(), out.pooler_output.numpy(), projected


def difference(a, b):
  return float(np.abs(np.asarray(a) - b).max())


def noisy(model=MODEL, seed=1):
  """Variables with every leaf moved off its small initial value."""
  rng = np.random.default_rng(seed)
  leaves = {
    path: jnp.asarray(rng.normal(0.1, 0.5, leaf.shape), jnp.float32) for path, leaf in leaf_shapes(model).items()
  }
  return {'params': unflatten(leaves, sep='/')}


VARIABLES = noisy()
APPLY = jax.jit(lambda variables, ids, mask=None: MODEL.apply(variables, ids, mask=mask))


def test_all_outputs_equal_those_of_transformers_over_77_places(pair):
  theirs, model, variables = pair
  ids = prompt_ids(model)
  out = jax.jit(model.apply)(variables, ids)
  expected = reference(theirs, ids)
  assert np.abs(expected[0]).max() > 1
  for name, ours, wanted in zip(out._fields, out, expected, strict=True):
    assert (ours is None) == (wanted is None), name
    if ours is not None:
      assert ours.dtype == jnp.float32 and ours.shape == wanted.shape
      assert difference(ours, wanted) < TOLERANCE, name


def test_a_mask_hides_what_transformers_hides(pair):
  theirs, model, variables = pair
  ids = prompt_ids(model, 13)
  mask = np.arange(13) <= np.array([5, 6, 12])[:, None]
  mask[:, 1] = False  # within the text: behind it, the causal mask alone hides it from what is compared
  out = jax.jit(lambda v, i, m: model.apply(v, i, mask=m))(variables, ids, mask)
  assert difference(out.states[mask], reference(theirs, ids, mask)[0][mask]) < TOLERANCE


@pytest.mark.parametrize('pair', ['quick_gelu'], indirect=True)
def test_gradients_of_every_leaf_equal_those_of_transformers(pair):
  """DreamBooth trains the text encoder too. Relative to the greatest of a leaf, 1e-4."""
  import torch

  theirs, model, variables = pair
  ids = prompt_ids(model, 13)
  wanted = np.random.default_rng(2).normal(size=(3, 13, model.width)).astype(np.float32)
  theirs.zero_grad()
  ((theirs(torch.tensor(ids)).last_hidden_state - torch.tensor(wanted)) ** 2).mean().backward()
  expected = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
  loss = lambda variables: ((model.apply(variables, ids).states - wanted) ** 2).mean()  # noqa: E731
  gradients = clip.export(flatten(jax.jit(jax.grad(loss))(variables)['params'], sep='/'), 'bare')
  assert set(gradients) == set(expected)
  for name, gradient in gradients.items():
    scale = np.abs(expected[name]).max()
    if name.endswith('k_proj.bias'):  # zero by theory: it moves all scores of a query alike
      assert max(scale, np.abs(gradient).max()) < 1e-6
    else:
      assert scale > 1e-5 and difference(gradient, expected[name]) < 1e-4 * scale, name


@pytest.mark.parametrize('pair', ['gelu'], indirect=True)
def test_the_tanh_gelu_is_not_the_gelu_of_the_second_text_encoder(pair, monkeypatch):
  """Spec 3.1, trap 2: what `flax.linen.gelu` defaults to, and the activation of 1.x, both fail the parity above."""
  theirs, model, variables = pair
  ids = prompt_ids(model)
  expected = reference(theirs, ids)[0]
  assert (
    difference(jax.jit(model.clone(activation='quick_gelu').apply)(variables, ids).states, expected) > 100 * TOLERANCE
  )
  monkeypatch.setitem(ACTIVATIONS, 'gelu', jax.nn.gelu)
  assert difference(jax.jit(model.clone().apply)(variables, ids).states, expected) > 10 * TOLERANCE


@pytest.mark.parametrize('pair', ['quick_gelu'], indirect=True)
def test_the_epsilon_is_not_that_of_other_transformers(pair):
  """On words as small as published ones, so that the first norm divides by little: 1e-6 and 1e-12 both fail."""
  import torch

  theirs, model, variables = pair
  ids = prompt_ids(model)
  leaves = flatten(variables['params'], sep='/')
  leaves |= {path: 0.02 * leaves[path] for path in ('words/embedding', 'position')}
  small = {'params': unflatten(leaves, sep='/')}
  embeddings = getattr(theirs, 'text_model', theirs).embeddings
  kept = {name: value.clone() for name, value in embeddings.state_dict().items()}
  with torch.no_grad():
    for parameter in embeddings.parameters():
      parameter.mul_(0.02)
  expected = reference(theirs, ids)[0]
  embeddings.load_state_dict(kept)
  assert difference(jax.jit(model.apply)(small, ids).states, expected) < 5 * TOLERANCE
  for wrong in (1e-6, 1e-12):
    assert difference(jax.jit(model.clone(epsilon=wrong).apply)(small, ids).states, expected) > 100 * TOLERANCE


def test_a_state_sees_nothing_that_comes_later():
  out = APPLY(VARIABLES, IDS)
  changed = IDS.copy()
  changed[:, 4:] = [[5, 6, 7], [8, 1, 2]]
  other = APPLY(VARIABLES, changed)
  np.testing.assert_array_equal(out.states[:, :4], other.states[:, :4])
  np.testing.assert_array_equal(out.penultimate[:, :4], other.penultimate[:, :4])
  assert (np.abs(out.states - other.states)[:, 4:].max(-1) > 1e-3).all()


def test_without_a_mask_padding_is_read_as_diffusers_has_it():
  mask = np.array([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0, 0]], bool)
  out, masked = APPLY(VARIABLES, IDS), APPLY(VARIABLES, IDS, mask)
  np.testing.assert_allclose(out.states[mask], masked.states[mask], atol=1e-6)  # padding is behind the text
  assert difference(out.states[~mask], masked.states[~mask]) > 1e-2


def test_pooled_is_the_state_at_the_first_eos_and_in_old_configs_at_the_greatest_id():
  out = APPLY(VARIABLES, IDS)
  np.testing.assert_array_equal(out.pooled, out.states[np.arange(2), [4, 2]])
  added = np.where(IDS == 10, 7, IDS)  # 10 stands for a token that was added behind EOS, which is 9 here
  added[:, 1], added[:, 3:5] = 10, 9
  added[:, 0] = 0
  new, old = (jax.jit(MODEL.clone(eos=eos).apply)(VARIABLES, added) for eos in (9, None))
  np.testing.assert_array_equal(new.pooled, new.states[:, 3])
  np.testing.assert_array_equal(old.pooled, old.states[:, 1])


def test_compute_in_bf16_keeps_parameters_and_outputs_in_f32():
  model = MODEL.clone(dtype=jnp.bfloat16, projection=5)
  assert {leaf.dtype for leaf in leaf_shapes(model).values()} == {jnp.dtype('float32')}
  variables = noisy(model)
  out = jax.jit(model.apply)(variables, IDS)
  assert {leaf.dtype for leaf in out} == {jnp.dtype('float32')}
  exact = jax.jit(model.clone(dtype=jnp.float32).apply)(variables, IDS)
  assert 0 < difference(out.states, exact.states) < 0.3


def test_the_blocks_take_other_linear_layers():
  from core.nn import adapters

  model = MODEL.clone(dense=adapters.lora(rank=2, alpha=2.0))
  more = set(leaf_shapes(model)) - set(leaf_shapes(MODEL))
  assert any('block_0/attention/query' in path for path in more) and all('block_' in path for path in more)


@pytest.mark.parametrize(('variant', 'numbers', 'tensors'), [('sd1', 123_060_480, 196), ('sd2', 340_387_840, 372)])
def test_variants_have_the_published_sizes(variant, numbers, tensors):
  shapes = leaf_shapes(build(variant))
  assert sum(leaf.size for leaf in shapes.values()) == numbers
  assert (
    len(clip.export({path: np.empty(leaf.shape, np.bool_) for path, leaf in shapes.items()}, 'transformers')) == tensors
  )
  out = jax.eval_shape(
    build(variant).apply, {'params': unflatten(shapes, sep='/')}, jax.ShapeDtypeStruct((2, 77), 'int32')
  )
  assert out.states.shape == (2, 77, VARIANTS[variant]['width']) and out.projected is None


def test_what_cannot_be_is_refused():
  with pytest.raises(UserError, match='10 word pieces do not fit into 9 positions'):
    MODEL.apply(VARIABLES, np.zeros((1, 10), np.int32))
  with pytest.raises(UserError, match='5 attention heads do not divide the width 12'):
    MODEL.clone(heads=5).apply(VARIABLES, IDS)
  with pytest.raises(UserError, match="activation 'quick-gelu'.*Did you mean 'quick_gelu'"):
    MODEL.clone(activation='quick-gelu').apply(VARIABLES, IDS)
  with pytest.raises(UserError, match='0 blocks: expected at least one'):
    MODEL.clone(depth=0).apply(VARIABLES, IDS)
  with pytest.raises(UserError, match="no CLIP text encoder 'sd3'.*Did you mean 'sd"):
    build('sd3')
