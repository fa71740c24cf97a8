"""BERT against transformers on random weights, and what it promises beyond."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten

from core.errors import UserError
from core.nn.bert import VARIANTS, Bert, build
from core.weights import bert, files

TOLERANCE = 1e-4
MODEL = Bert(vocabulary=11, width=12, depth=2, heads=3, mlp_dim=20, max_positions=9)
IDS = np.random.default_rng(0).integers(0, 11, (2, 7)).astype(np.int32)
MASK = np.array([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]], bool)


def reference(folder, **options):
  """A transformers BertModel with every tensor random, saved to a folder."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  torch.manual_seed(0)
  model = transformers.BertModel(transformers.BertConfig(**options)).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.15 * torch.randn_like(parameter))
  model.save_pretrained(folder)
  return model


def ours(folder, **options):
  """(BERT, variables) with the weights of a folder."""
  tensors = files.read(folder)
  model = Bert(**{**bert.infer(tensors), **options})
  shapes = flatten(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params'], sep='/')
  loaded, _ = bert.load(shapes, tensors)
  assert set(loaded) == set(shapes)
  return model, {'params': unflatten(loaded, sep='/')}


def noisy(model=MODEL, seed=1):
  """Variables of a BERT, every leaf moved off its small initial value."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), IDS)
  leaves, tree = jax.tree.flatten(shapes)
  rng = np.random.default_rng(seed)
  return jax.tree.unflatten(tree, [jnp.asarray(rng.normal(0.1, 0.5, leaf.shape), jnp.float32) for leaf in leaves])


VARIABLES = noisy()
APPLY = jax.jit(MODEL.apply)


@pytest.mark.parametrize(
  ('lengths', 'config'),
  [
    (
      (521, 3, 100),
      {'vocab_size': 37, 'hidden_size': 30, 'num_hidden_layers': 3, 'num_attention_heads': 5, 'intermediate_size': 41,
       'max_position_embeddings': 530},
    ),
    (
      (13, 1),
      {'vocab_size': 5, 'hidden_size': 7, 'num_hidden_layers': 1, 'num_attention_heads': 1, 'intermediate_size': 3,
       'max_position_embeddings': 13, 'type_vocab_size': 5, 'layer_norm_eps': 1e-3},
    ),
    (
      (1, 1),
      {'vocab_size': 101, 'hidden_size': 26, 'num_hidden_layers': 4, 'num_attention_heads': 13,
       'intermediate_size': 17, 'max_position_embeddings': 4},
    ),
  ],
)  # fmt: skip
def test_outputs_equal_those_of_transformers_in_every_layer(tmp_path, lengths, config):
  torch_model = reference(tmp_path, **config)
  import torch

  model, variables = ours(tmp_path)
  rng = np.random.default_rng(0)
  shape = len(lengths), max(lengths)
  ids = rng.integers(0, model.vocabulary, shape).astype(np.int32)
  types = rng.integers(0, model.types, shape).astype(np.int32)
  mask = np.arange(shape[1]) < np.array(lengths)[:, None]
  with torch.no_grad():
    expected = torch_model(
      torch.tensor(ids), torch.tensor(mask).long(), torch.tensor(types), output_hidden_states=True
    ).hidden_states
  apply = jax.jit(model.apply)
  out = apply(variables, ids, mask, types)
  assert len(out['layers']) == len(expected) == model.depth + 1
  for layer, theirs in zip(out['layers'], expected):
    assert np.abs(layer - theirs.numpy()).max() < TOLERANCE
  np.testing.assert_array_equal(out['tokens'], out['layers'][-1])


def test_segments_and_no_mask_default_to_what_transformers_takes(tmp_path):
  torch_model = reference(
    tmp_path, vocab_size=11, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20
  )
  import torch

  model, variables = ours(tmp_path)
  with torch.no_grad():
    expected = torch_model(torch.tensor(IDS)).last_hidden_state.numpy()
  assert np.abs(jax.jit(model.apply)(variables, IDS)['tokens'] - expected).max() < TOLERANCE


def test_padding_changes_nothing_whatever_it_holds():
  out = APPLY(VARIABLES, IDS, MASK)['tokens']
  other = np.where(MASK, IDS, (IDS + 5) % 11)
  np.testing.assert_array_equal(APPLY(VARIABLES, other, MASK)['tokens'][MASK], out[MASK])
  alone = APPLY(VARIABLES, IDS[1:, :4], MASK[1:, :4])['tokens']
  np.testing.assert_allclose(alone[0], out[1, :4], atol=1e-5)
  assert np.abs(APPLY(VARIABLES, IDS)['tokens'] - out)[1, :4].max() > 1e-2  # the mask is not ignored
  assert np.isfinite(APPLY(VARIABLES, IDS, np.zeros_like(MASK))['tokens']).all()


def test_embeddings_may_stand_in_the_place_of_ids_and_carry_gradients():
  out = APPLY(VARIABLES, IDS, MASK)['tokens']
  words = jnp.take(VARIABLES['params']['words']['embedding'], IDS, axis=0)
  np.testing.assert_array_equal(MODEL.apply(VARIABLES, IDS, method='embed'), words)
  np.testing.assert_allclose(APPLY(VARIABLES, words, MASK)['tokens'], out, atol=1e-6)
  slope = jax.jit(jax.grad(lambda x: (MODEL.apply(VARIABLES, x, MASK)['tokens'][:, 0] ** 3).sum()))(words)
  moved = np.abs(slope).max(-1) > 0
  np.testing.assert_array_equal(moved, MASK)
  from_embeddings = jax.eval_shape(MODEL.init, jax.random.key(0), words)
  assert from_embeddings == jax.eval_shape(MODEL.init, jax.random.key(0), IDS)


def test_dropout_acts_in_training_only():
  model = MODEL.clone(dropout=0.5)
  apply = jax.jit(functools.partial(model.apply, train=True))
  first, second = (apply(VARIABLES, IDS, MASK, rngs={'dropout': jax.random.key(i)})['tokens'] for i in range(2))
  assert np.abs(first - second).max() > 1e-2
  expected = APPLY(VARIABLES, IDS, MASK)['tokens']
  np.testing.assert_array_equal(jax.jit(model.apply)(VARIABLES, IDS, MASK)['tokens'], expected)
  np.testing.assert_allclose(
    jax.jit(functools.partial(MODEL.apply, train=True))(VARIABLES, IDS, MASK)['tokens'], expected
  )


def test_attention_weights_are_dropped_too():
  """With nothing but attention weights left to drop: value 1 for all, so that a row gives the sum of what is kept."""
  from core.nn.bert import Attention

  layer = Attention(heads=3, dropout=0.5)
  x = jnp.ones((2, 40, 12))
  linear = {'kernel': jnp.zeros((12, 12)), 'bias': jnp.ones(12)}
  out = {'kernel': jnp.eye(12), 'bias': jnp.zeros(12)}
  variables = {'params': {'query': linear, 'key': linear, 'value': linear, 'out': out}}
  apply = jax.jit(lambda key: layer.apply(variables, x, None, True, rngs={'dropout': key}))
  sums = np.asarray(apply(jax.random.key(1)))
  assert np.unique(sums.round(4)).size > 3 and abs(sums.mean() - 1) < 0.1
  np.testing.assert_allclose(jax.jit(layer.apply)(variables, x, None), 1.0, atol=1e-5)


def test_compute_in_bf16_keeps_parameters_in_f32():
  model = MODEL.clone(dtype=jnp.bfloat16)
  params = jax.eval_shape(model.init, jax.random.key(0), IDS)['params']
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  out = jax.jit(model.apply)(VARIABLES, IDS, MASK)['tokens']
  assert out.dtype == jnp.bfloat16
  assert np.abs(out.astype(np.float32) - APPLY(VARIABLES, IDS, MASK)['tokens'])[MASK].max() < 0.3


def test_variants_have_the_published_sizes():
  def count(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))

  pooler = 768 * 768 + 768
  assert count(build('base', 30522)) == 109_482_240 - pooler  # bert-base-uncased with its pooler
  assert build('tiny', vocabulary=7, depth=1) == Bert(7, **{**VARIANTS['tiny'], 'depth': 1})


def test_what_cannot_be_is_refused():
  with pytest.raises(UserError, match='10 word pieces do not fit into 9 positions'):
    MODEL.apply(VARIABLES, np.zeros((1, 10), np.int32))
  with pytest.raises(UserError, match='12 wide and was given embeddings of 5'):
    MODEL.apply(VARIABLES, np.zeros((1, 3, 5), np.float32))
  with pytest.raises(UserError, match='5 attention heads do not divide the width 12'):
    MODEL.clone(heads=5).apply(VARIABLES, IDS)
  with pytest.raises(UserError, match="no BERT 'bas'.*Did you mean 'base'"):
    build('bas', 7)
