"""The LLaMA family against transformers on random weights, and what it promises beyond."""

import functools

import flax.traverse_util
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from core.errors import UserError
from core.nn import adapters, llama, transformer
from core.weights import files
from core.weights import llama as weights

TOLERANCE = 1e-4
COUNT = 510
MODEL = llama.Llama(vocabulary=11, width=12, depth=2, heads=4, kv_heads=2, mlp_dim=10, head_dim=4, max_positions=9)

CASES = {
  'grouped': {'num_attention_heads': 6, 'num_key_value_heads': 2},
  'wide heads, one key head, tied': {
    'num_attention_heads': 4, 'num_key_value_heads': 1, 'head_dim': 10, 'tie_word_embeddings': True,
  },
  'llama3 scaling': {
    'num_attention_heads': 3, 'num_key_value_heads': 3, 'rope_parameters': {
      'rope_type': 'llama3', 'rope_theta': 500.0, 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
      'original_max_position_embeddings': 64,
    },
  },
  'linear scaling': {
    'num_attention_heads': 4, 'num_key_value_heads': 2, 'rms_norm_eps': 1e-3,
    'rope_parameters': {'rope_type': 'linear', 'rope_theta': 700.0, 'factor': 2.5},
  },
  'yarn': {
    'num_attention_heads': 3, 'num_key_value_heads': 1, 'rope_parameters': {
      'rope_type': 'yarn', 'rope_theta': 9000.0, 'factor': 4.0, 'original_max_position_embeddings': 128,
    },
  },
  'biases': {'num_attention_heads': 4, 'num_key_value_heads': 2, 'tie_word_embeddings': True},
}  # fmt: skip


def reference(folder, name):
  """A transformers model with every tensor random, saved to a folder in shards of 40 kB."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  torch.manual_seed(0)
  kind = 'Qwen2' if name == 'biases' else 'Llama'
  config = getattr(transformers, f'{kind}Config')(
    vocab_size=53, hidden_size=24, intermediate_size=40, num_hidden_layers=2, max_position_embeddings=512,
    attn_implementation='eager', bos_token_id=None, eos_token_id=None, pad_token_id=None, **CASES[name],
  )  # fmt: skip
  model = getattr(transformers, f'{kind}ForCausalLM')(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.15 * torch.randn_like(parameter))
  model.save_pretrained(folder, max_shard_size='40kB')
  return model


def ours(folder):
  """(network, variables) with the weights of a folder."""
  tensors = files.read(folder)
  model = llama.Llama(**weights.infer(tensors))
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, model.width)))['params']
  flat = flax.traverse_util.flatten_dict(shapes, sep='/')
  loaded, account = weights.load(flat, tensors)
  assert set(loaded) == set(flat) and not account.fresh
  return model, {'params': flax.traverse_util.unflatten_dict(loaded, sep='/')}


def masks():
  """bool [4, COUNT]: nothing padded, padding on the left, on the right, and on both sides and between."""
  mask = np.ones((4, COUNT), bool)
  mask[1, :77] = mask[2, -55:] = mask[3, :13] = mask[3, 200:260] = mask[3, -9:] = False
  return mask


def noisy(model=MODEL, seed=1):
  """Variables of a network, every leaf moved off its small initial value."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, model.width)))
  leaves, tree = jax.tree.flatten(shapes)
  rng = np.random.default_rng(seed)
  return jax.tree.unflatten(tree, [jnp.asarray(rng.normal(0.1, 0.4, leaf.shape), leaf.dtype) for leaf in leaves])


def run(model, variables, *args, **options):
  """`apply`, compiled as one: quicker than operation by operation."""
  return jax.jit(functools.partial(model.apply, **options))(variables, *args)


X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 12)), jnp.float32)
VARIABLES = noisy()
APPLY = jax.jit(lambda x, mask: MODEL.apply(VARIABLES, x, mask=mask))
STEP = jax.jit(lambda x, mask, cache: MODEL.apply(VARIABLES, x, mask=mask, cache=cache))
EVERY = jnp.ones((2, 7), bool)


@pytest.mark.parametrize('name', CASES)
def test_logits_and_loss_equal_those_of_transformers(tmp_path, name):
  import torch

  theirs, (model, variables) = reference(tmp_path, name), ours(tmp_path)
  assert len(list(tmp_path.glob('*.safetensors'))) > 1  # what was read was in shards
  rng, mask = np.random.default_rng(1), masks()
  ids = rng.integers(0, 53, mask.shape)
  follows = np.pad(mask[:, :-1], ((0, 0), (1, 0)))  # what a padded position predicts is nobody's business
  labels = np.where(mask & follows & (rng.random(mask.shape) < 0.7), ids, -100)
  positions = np.maximum(np.cumsum(mask, -1) - 1, 0)
  with torch.no_grad():
    out = theirs(
      inputs_embeds=theirs.get_input_embeddings()(torch.tensor(ids)), attention_mask=torch.tensor(mask).long(),
      position_ids=torch.tensor(positions), labels=torch.tensor(labels),
    )  # fmt: skip

  @jax.jit
  def run(variables, ids):
    x = model.apply(variables, ids, method='embed')
    return model.apply(variables, model.apply(variables, x, mask=jnp.asarray(mask)), method='logits')

  logits = run(variables, ids)
  assert np.abs(logits - out.logits.numpy())[mask].max() < TOLERANCE
  assert np.abs(out.logits.numpy()).max() > 0.5  # there was something to compare
  target = labels[:, 1:]
  losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], jnp.maximum(target, 0))
  assert abs(float((losses * (target >= 0)).sum() / (target >= 0).sum()) - float(out.loss)) < TOLERANCE


@pytest.mark.parametrize('scaling', [None, llama.Scaling('linear', 2.0)])
def test_heads_turn_by_their_position(scaling):
  """The product of a query and a key depends on how far apart they are, and on nothing else."""
  model = MODEL.clone(scaling=scaling)
  shift = jax.jit(lambda offset: model.apply(VARIABLES, X, positions=offset + jnp.arange(7)[None].repeat(2, 0)))
  np.testing.assert_allclose(shift(0), shift(1000), atol=1e-3)
  np.testing.assert_allclose(shift(0), jax.jit(model.apply)(VARIABLES, X), atol=1e-6)
  stretched = run(model, VARIABLES, X, positions=3 * jnp.arange(7)[None].repeat(2, 0))
  assert np.abs(stretched - shift(0)).max() > 1e-2


@hypothesis.settings(deadline=None, max_examples=20)
@hypothesis.given(st.lists(st.booleans(), min_size=7, max_size=7), st.integers(0, 9))
def test_padding_anywhere_changes_nothing(valid, seed):
  """A sample's outputs are those of its valid positions alone, and no number in a padded one matters."""
  kept = np.flatnonzero(valid)
  mask = jnp.asarray([valid, [True] * 7])
  noise = jnp.asarray(np.random.default_rng(seed).normal(size=X.shape), jnp.float32)
  h = APPLY(jnp.where(mask[..., None], X, noise), mask)
  packed = X.at[0, : len(kept)].set(X[0, kept])
  alone = APPLY(packed, jnp.asarray([[True] * len(kept) + [False] * (7 - len(kept)), [True] * 7]))
  np.testing.assert_allclose(h[0, kept], alone[0, : len(kept)], atol=1e-5)
  np.testing.assert_allclose(h[1], APPLY(X, EVERY)[1], atol=1e-5)
  assert np.isfinite(h).all()


@pytest.mark.parametrize('left', [True, False])
def test_a_stream_equals_the_full_pass_wherever_its_prompt_is_padded(left):
  padded = np.zeros((2, 4, 12), np.float32)
  mask = np.ones((2, 4), bool)
  padded[0], padded[1, 2 * left : 2 + 2 * left] = X[0, :4], X[1, :2]
  mask[1, : 2 if left else 0] = mask[1, 4 if left else 2 :] = False
  h, cache = STEP(jnp.asarray(padded), jnp.asarray(mask), MODEL.empty_cache(2, 9))
  outputs = [h[:, -1:], *[None] * 3]
  for i in range(3):
    x = jnp.stack([X[0, 4 + i], X[1, 2 + i]])[:, None]
    outputs[i + 1], cache = STEP(x, jnp.ones((2, 1), bool), cache)
  full = APPLY(X, EVERY)
  for i in range(1, 4):
    np.testing.assert_allclose(outputs[i][0, 0], full[0, 3 + i], atol=1e-5)
    np.testing.assert_allclose(outputs[i][1, 0], full[1, 1 + i], atol=1e-5)
  assert int(cache.length) == 7 and cache.places == 9
  np.testing.assert_array_equal(cache.attendable.sum(-1), [7, 5])


def test_rows_of_a_cache_are_taken_in_any_order():
  _, cache = STEP(X[:, :4], EVERY[:, :4], MODEL.empty_cache(2, 9))
  rows = jnp.array([1, 1])
  h, _ = STEP(X[rows, 4:8], EVERY[:, :3], cache.take(rows))
  expected, _ = STEP(X[:, 4:8], EVERY[:, :3], cache)
  np.testing.assert_allclose(h, expected[rows], atol=1e-6)
  again = jnp.array([0, 1, 0])
  wider = cache.take(again)
  np.testing.assert_array_equal(wider.key[1].reshape(3, 2, 9, 4), cache.key[1].reshape(2, 2, 9, 4)[again])
  np.testing.assert_array_equal(wider.attendable.sum(-1), [4, 4, 4])


def test_a_loop_writes_its_cache_where_it_lies():
  """No copy of a layer's keys or values per token: compiled, the loop's temporaries are far smaller than the cache."""
  model = MODEL.clone(max_positions=4096, depth=3, head_dim=64)
  variables = noisy(model)

  def steps(x, cache):
    def body(carry):
      h, cache = model.apply(variables, carry[0], cache=carry[1])
      return h, cache

    return jax.lax.while_loop(lambda carry: carry[1].length < 4000, body, (x, cache))

  cache = model.empty_cache(1, 4096)
  compiled = jax.jit(steps, donate_argnums=1).lower(X[:1, :1], cache).compile()
  layer = cache.key[0].nbytes
  assert compiled.memory_analysis().temp_size_in_bytes < layer
  assert compiled.memory_analysis().alias_size_in_bytes >= 6 * layer


@pytest.mark.parametrize('options', [{'scan': True}, {'remat': True}, {'scan': True, 'remat': True}])
def test_scan_and_remat_are_the_same_network(options):
  model, variables = MODEL.clone(**options), VARIABLES
  if 'scan' in options:
    flat = flax.traverse_util.flatten_dict(VARIABLES['params'], sep='/')
    stacked = transformer.stack_blocks(flat)
    variables = {'params': flax.traverse_util.unflatten_dict(stacked, sep='/')}

  def total(model, variables):
    return (model.apply(variables, X) ** 2).mean()

  value, gradient = jax.jit(jax.value_and_grad(functools.partial(total, model)))(variables)
  expected, slopes = jax.jit(jax.value_and_grad(functools.partial(total, MODEL)))(VARIABLES)
  assert abs(value - expected) < 1e-5
  last = gradient['params']['blocks' if 'scan' in options else 'block_1']['mlp']['down']['kernel']
  last = last[1] if 'scan' in options else last
  np.testing.assert_allclose(last, slopes['params']['block_1']['mlp']['down']['kernel'], atol=1e-5)
  step = jax.jit(lambda x, cache: model.apply(variables, x, cache=cache))
  _, cache = step(X[:, :3], model.empty_cache(2, 8))
  h, cache = step(X[:, 3:6], cache)
  np.testing.assert_allclose(h, APPLY(X, EVERY)[:, 3:6], atol=1e-5)


def test_a_base_in_bf16_computes_in_what_it_is_told():
  model = MODEL.clone(param_dtype=jnp.bfloat16, dense=adapters.lora(2, 4.0, ('query', 'gate')))
  variables = noisy(model)
  flat = flax.traverse_util.flatten_dict(variables['params'], sep='/')
  assert (
    {path for path, leaf in flat.items() if leaf.dtype == jnp.float32}
    == {path for path in flat if adapters.is_adapter(path)}
    != set()
  )
  wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), variables)
  h = run(model, variables, X)
  np.testing.assert_allclose(h, run(model.clone(param_dtype=jnp.float32), wide, X), atol=1e-6)
  half = run(model.clone(dtype=jnp.bfloat16), variables, X)
  assert half.dtype == jnp.bfloat16 and run(model, variables, half, method='logits').dtype == jnp.float32
  np.testing.assert_allclose(half.astype(jnp.float32), h, atol=0.15)


def test_embeddings_and_head_of_a_tied_network_are_one_matrix():
  model = MODEL.clone(tied=True)
  variables = noisy(model)
  assert 'head' not in variables['params']
  matrix, ids = variables['params']['embed']['embedding'], jnp.array([[3, 0]])
  np.testing.assert_array_equal(run(model, variables, ids, method='embed'), matrix[ids])
  np.testing.assert_allclose(run(model, variables, X, method='logits'), X @ matrix.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  'variant, millions',
  [('tinyllama_1b', 1100), ('llama2_7b', 6738), ('llama2_13b', 13016), ('llama3_8b', 8030), ('llama3.2_1b', 1236),
   ('qwen1.5_1.8b', 1837)],
)  # fmt: skip
def test_public_sizes_have_the_public_number_of_parameters(variant, millions):
  model = llama.build(variant, param_dtype=jnp.bfloat16, scan=True)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, model.width)))
  assert round(sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6) == millions
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda: MODEL.apply(VARIABLES, jnp.zeros((1, 10, 12))), '10 positions do not fit into 9: give a shorter prompt'),
    (lambda: MODEL.apply(VARIABLES, X[:, :3], cache=MODEL.empty_cache(2, 2)), '3 positions do not fit into 2'),
    (lambda: MODEL.apply(VARIABLES, X, cache=MODEL.empty_cache(2, 10)), 'the cache has 10 places, the context of'),
    (lambda: MODEL.apply(VARIABLES, X[..., :8]), 'is 12 wide and was given embeddings of 8'),
    (lambda: noisy(MODEL.clone(kv_heads=3)), '3 heads of keys and values do not divide the 4'),
    (lambda: noisy(MODEL.clone(head_dim=3)), 'heads are 3 wide; rotary positions need an even number'),
    (lambda: noisy(MODEL.clone(width=13, head_dim=0)), '4 attention heads do not divide the width 13'),
    (lambda: llama.build('llama2_7B'), "language model 'llama2_7B'.*Did you mean 'llama2_7b'"),
    (lambda: llama.Scaling('liner', 2.0), "rotary scaling 'liner'.*Did you mean 'linear'"),
    (lambda: llama.Scaling('linear', 0.5), 'has factor 0.5, expected a number >= 1'),
    (lambda: llama.Scaling('llama3', 8.0), 'expected original >= 1'),
  ],
)
def test_errors_say_what_to_mend(make, message):
  with pytest.raises(UserError, match=message):
    make()


def test_an_overflowing_jitted_step_gives_nan_and_not_a_wrong_answer():
  full = MODEL.empty_cache(2, 9).replace(length=jnp.int32(9))
  h, _ = STEP(X[:, :1], EVERY[:, :1], full)
  assert np.isnan(h).all()
