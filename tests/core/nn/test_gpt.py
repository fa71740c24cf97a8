"""The causal decoder against transformers' GPT-2 on random weights, and what it promises beyond."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten

from core.errors import UserError
from core.nn import layers, transformer
from core.nn.gpt import Attention, Decoder, View, gelu_tanh
from core.weights import files, gpt2

TOLERANCE = 1e-4
MODEL = Decoder(depth=2, heads=3, width=12, mlp_dim=20, max_positions=9)
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 12)), jnp.float32)


def reference(folder, *, depth, heads, width, mlp_dim=None, max_positions=16):
  """A transformers GPT2Model with every tensor random, saved to a folder."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  torch.manual_seed(0)
  config = transformers.GPT2Config(
    n_layer=depth, n_head=heads, n_embd=width, n_inner=mlp_dim, n_positions=max_positions, vocab_size=3,
    bos_token_id=None, eos_token_id=None, attn_implementation='eager',
  )  # fmt: skip
  model = transformers.GPT2Model(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.15 * torch.randn_like(parameter))
  model.save_pretrained(folder)
  return model


def ours(folder, **options):
  """(decoder, variables) with the weights of a folder."""
  tensors = files.read(folder)
  model = Decoder(**{**gpt2.infer(tensors), **options})
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, model.width)))['params']
  flat = flatten(shapes, sep='/')
  loaded, _ = gpt2.load(flat, tensors)
  assert set(loaded) == set(flat)
  return model, {'params': unflatten(loaded, sep='/')}


def noisy(model=MODEL, seed=1):
  """Variables of a decoder, every leaf moved off its small initial value."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), X)
  leaves, tree = jax.tree.flatten(shapes)
  rng = np.random.default_rng(seed)
  return jax.tree.unflatten(tree, [jnp.asarray(rng.normal(0.3, 0.4, leaf.shape), jnp.float32) for leaf in leaves])


def run(model, variables, *args, **options):
  """`apply`, compiled as one: quicker than operation by operation."""
  return jax.jit(functools.partial(model.apply, **options))(variables, *args)


VARIABLES = noisy()
APPLY = jax.jit(MODEL.apply)
STEP = jax.jit(lambda variables, x, cache: MODEL.apply(variables, x, cache=cache))


def streamed(step, variables, x, cache, sizes):
  """x fed in pieces of these sizes: (outputs joined, the last cache)."""
  outputs, at = [], 0
  for size in sizes:
    h, cache = step(variables, x[:, at : at + size], cache)
    outputs.append(h)
    at += size
  return jnp.concatenate(outputs, axis=1), cache


@pytest.mark.parametrize(
  ('count', 'pieces', 'config'),
  [
    (10, (4, 1, 5), {'depth': 3, 'heads': 3, 'width': 12}),
    (13, (1, 12), {'depth': 2, 'heads': 5, 'width': 35, 'mlp_dim': 51, 'max_positions': 13}),
    (1, (1,), {'depth': 1, 'heads': 1, 'width': 7, 'mlp_dim': 3}),
    (517, (500, 17), {'depth': 2, 'heads': 2, 'width': 18, 'max_positions': 530}),
  ],
)
def test_outputs_equal_those_of_transformers_with_and_without_a_cache(tmp_path, count, pieces, config):
  torch_model = reference(tmp_path, **config)
  import torch
  import transformers

  model, variables = ours(tmp_path)
  x = np.random.default_rng(0).normal(size=(2, count, config['width'])).astype(np.float32)
  past, stepwise, at = transformers.DynamicCache(config=torch_model.config), [], 0
  cache_name = next(
    name for name in ('cache', 'past_key_values') if name in inspect.signature(torch_model.forward).parameters
  )
  with torch.no_grad():
    expected = torch_model(inputs_embeds=torch.tensor(x), output_attentions=True)
    for size in pieces:
      piece = torch.tensor(x[:, at : at + size])
      stepwise.append(torch_model(inputs_embeds=piece, use_cache=True, **{cache_name: past}).last_hidden_state.numpy())
      at += size
  h, weights = run(model, variables, x, return_attention=True)
  assert np.abs(h - expected.last_hidden_state.numpy()).max() < TOLERANCE
  assert np.abs(weights - np.stack([each.numpy() for each in expected.attentions], axis=1)).max() < TOLERANCE
  assert np.abs(run(model, variables, x) - expected.last_hidden_state.numpy()).max() < TOLERANCE
  step = jax.jit(lambda variables, x, cache: model.apply(variables, x, cache=cache))
  ours_stepwise, cache = streamed(step, variables, x, model.empty_cache(2), pieces)
  assert np.abs(ours_stepwise - np.concatenate(stepwise, axis=1)).max() < TOLERANCE
  assert int(cache.length) == count
  assert np.abs(cache.key[-1][:, :count] - past.layers[-1].keys.flatten(0, 1).numpy()).max() < TOLERANCE


def test_padding_equals_that_of_transformers_where_there_is_none(tmp_path):
  torch_model = reference(tmp_path, depth=2, heads=2, width=10)
  import torch

  model, variables = ours(tmp_path)
  x = np.random.default_rng(0).normal(size=(3, 8, 10)).astype(np.float32)
  mask = np.arange(8) >= np.array([[0], [3], [6]])
  with torch.no_grad():
    positions = torch.arange(8)[None].expand(3, 8)
    expected = torch_model(inputs_embeds=torch.tensor(x), attention_mask=torch.tensor(mask), position_ids=positions)
  h = run(model, variables, x, mask=jnp.asarray(mask))
  assert np.abs(h - expected.last_hidden_state.numpy())[mask].max() < TOLERANCE


@pytest.mark.parametrize('shape', [(2, 7, 3, 5), (1, 33, 1, 4)])
def test_causal_attention_is_that_of_torch(shape):
  torch = pytest.importorskip('torch')
  rng = np.random.default_rng(0)
  query, key, value = (rng.normal(size=shape).astype(np.float32) for _ in range(3))
  heads_first = [torch.tensor(x.swapaxes(1, 2)) for x in (query, key, value)]
  expected = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True).numpy().swapaxes(1, 2)
  mask = jnp.tri(shape[1], dtype=bool)
  for implementation in ('explicit', 'xla'):
    out = layers.attention(query, key, value, mask=mask, implementation=implementation)
    np.testing.assert_allclose(out, expected, atol=1e-5)
  weights = layers.attention_weights(query, key, mask=mask)
  assert weights.shape == (shape[0], shape[2], shape[1], shape[1])
  np.testing.assert_allclose(jnp.einsum('bhnm,bmhd->bnhd', weights, value), expected, atol=1e-5)


def test_the_past_does_not_see_the_future():
  """Bit for bit, and with gradients that are exactly zero."""
  before = APPLY(VARIABLES, X)
  for k in range(X.shape[1]):
    after = APPLY(VARIABLES, X.at[:, k, ::2].add(9.0))
    np.testing.assert_array_equal(after[:, :k], before[:, :k])
    assert float(jnp.abs(after - before)[:, k:].max(axis=-1).min()) > 1e-4  # now and later see it
  rows = lambda x: MODEL.apply(VARIABLES, x).sum(axis=(0, 2))  # noqa: E731
  jacobian = jnp.abs(jax.jit(jax.jacrev(rows))(X)).max(axis=(1, 3))  # [T of h, T of x]
  assert not np.any(np.triu(jacobian, 1))
  assert np.all(jacobian[np.tril_indices(X.shape[1])] > 0)


def test_attention_maps_are_causal_distributions_and_do_not_change_the_output():
  h, weights = run(MODEL, VARIABLES, X, return_attention=True)
  assert weights.shape == (2, 2, 3, 7, 7) and weights.dtype == jnp.float32
  np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)
  assert not np.any(np.triu(weights, 1))
  np.testing.assert_allclose(h, APPLY(VARIABLES, X), atol=1e-5)


@pytest.mark.parametrize('pieces', [(1,) * 7, (7,), (3, 1, 3), (1, 6)])
def test_a_stream_in_any_pieces_equals_the_full_pass(pieces):
  h, cache = streamed(STEP, VARIABLES, X, MODEL.empty_cache(2), pieces)
  np.testing.assert_allclose(h, APPLY(VARIABLES, X), atol=1e-5)
  assert int(cache.length) == 7 and cache.places == 9
  np.testing.assert_array_equal(cache.attendable, np.arange(9)[None].repeat(2, 0) < 7)
  for key in cache.key:
    assert not np.any(key[:, 7:]) and np.any(key[:, 6])


def test_one_compiled_step_serves_a_whole_stream_in_a_donated_cache():
  traces = []

  @functools.partial(jax.jit, donate_argnums=2)
  def step(variables, x, cache):
    traces.append(x.shape)
    return MODEL.apply(variables, x, cache=cache)

  streamed(step, VARIABLES, X, MODEL.empty_cache(2), (1,) * 7)
  assert traces == [(2, 1, 12)]


def test_a_cache_may_have_fewer_places_and_half_precision():
  h, cache = STEP(VARIABLES, X[:, :3], MODEL.empty_cache(2, places=3))
  np.testing.assert_allclose(h, APPLY(VARIABLES, X)[:, :3], atol=1e-5)
  half = MODEL.clone(dtype=jnp.bfloat16)
  assert half.empty_cache(2).key[0].dtype == jnp.bfloat16
  h, cache = streamed(jax.jit(lambda v, x, c: half.apply(v, x, cache=c)), VARIABLES, X, half.empty_cache(2), (3, 4))
  assert h.dtype == cache.key[0].dtype == jnp.bfloat16
  np.testing.assert_allclose(h.astype(jnp.float32), APPLY(VARIABLES, X), atol=0.2)


def test_a_jitted_step_beyond_the_cache_gives_nan_and_not_a_wrong_answer():
  full = MODEL.empty_cache(2).replace(length=jnp.int32(8))
  assert np.all(np.isfinite(STEP(VARIABLES, X[:, :1], full)[0]))
  _, full = STEP(VARIABLES, X[:, :1], full)
  assert np.all(np.isnan(STEP(VARIABLES, X[:, :1], full)[0]))


@pytest.mark.parametrize('pieces', [(7,), (1, 2, 4)])
def test_padding_is_seen_by_no_other_position_and_remembered_by_the_cache(pieces):
  mask = jnp.asarray([[0, 0, 1, 1, 0, 1, 1], [1] * 7], bool)
  padded = jax.jit(lambda x: MODEL.apply(VARIABLES, x, mask=mask))
  h = padded(X)
  assert np.all(np.isfinite(h))
  moved = padded(jnp.where(mask[..., None], X, 5.0))
  np.testing.assert_array_equal(moved[mask], h[mask])
  later = padded(X.at[:, 3, ::2].add(9.0))  # padding does not see the future either
  np.testing.assert_array_equal(later[:, :3], h[:, :3])
  short = MODEL.clone(positions=False)
  few = {'params': {name: leaf for name, leaf in VARIABLES['params'].items() if name != 'position'}}
  kept = X[:1, jnp.asarray([2, 3, 5, 6])]
  alone = run(short, few, kept)
  np.testing.assert_allclose(run(short, few, X, mask=mask)[:1][mask[:1]][None], alone, atol=1e-5)
  cache, outputs, at = MODEL.empty_cache(2), [], 0
  step = jax.jit(lambda x, mask, cache: MODEL.apply(VARIABLES, x, mask=mask, cache=cache))
  for size in pieces:
    piece = slice(at, at + size)
    out, cache = step(X[:, piece], mask[:, piece], cache)
    outputs.append(out)
    at += size
  np.testing.assert_allclose(jnp.concatenate(outputs, 1), h, atol=1e-5)


@pytest.mark.parametrize('remat', [False, True])
def test_scan_and_remat_equal_the_plain_loop(remat):
  def value_and_grad(model, variables):
    return jax.jit(jax.value_and_grad(lambda variables: jnp.sin(model.apply(variables, X)).sum()))(variables)

  flat = lambda tree: flatten(tree['params'], sep='/')  # noqa: E731
  scanned = MODEL.clone(scan=True, remat=remat)
  stacked = {'params': unflatten(transformer.stack_blocks(flat(VARIABLES)), sep='/')}
  shapes = jax.eval_shape(scanned.init, jax.random.key(0), X)
  assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes)
  close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-4)
  value, gradient = value_and_grad(MODEL, VARIABLES)
  scan_value, scan_gradient = value_and_grad(scanned, stacked)
  close(scan_value, value)
  loose = transformer.unstack_blocks(flat(scan_gradient))
  for path, leaf in flat(gradient).items():
    close(loose[path], leaf, err_msg=path)
  if remat:
    jax.tree.map(close, value_and_grad(MODEL.clone(remat=True), VARIABLES), (value, gradient))
  h, cache, weights = run(scanned, stacked, X, cache=scanned.empty_cache(2), return_attention=True)
  plain = run(MODEL, VARIABLES, X, cache=MODEL.empty_cache(2), return_attention=True)
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), (h, cache, weights), plain)
  assert weights.shape == (2, 2, 3, 7, 9)


@pytest.mark.parametrize('scan', [False, True])
def test_dropout_acts_in_training_only_and_follows_its_key(scan):
  model, still = MODEL.clone(dropout=0.5, scan=scan), MODEL.clone(scan=scan)
  variables = noisy(model)
  train = jax.jit(lambda seed: model.apply(variables, X, train=True, rngs={'dropout': jax.random.key(seed)}))
  np.testing.assert_array_equal(run(model, variables, X), run(still, variables, X))
  np.testing.assert_array_equal(train(0), train(0))
  assert float(jnp.abs(train(0) - train(1)).max()) > 1e-2
  with pytest.raises(Exception, match='dropout'):
    model.apply(variables, X, train=True)
  np.testing.assert_allclose(run(still, variables, X, train=True), run(still, variables, X), atol=1e-6)


def test_dropout_takes_what_each_sublayer_adds():
  """A sublayer that adds a constant to nothing shows its dropout alone."""
  model = Decoder(depth=1, heads=1, width=4, mlp_dim=4, dropout=0.5, positions=False)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 300, 4)), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)['params']
  zeros = {path: np.zeros(leaf.shape, np.float32) for path, leaf in flatten(shapes, sep='/').items()}
  train = jax.jit(lambda params: model.apply({'params': params}, x, train=True, rngs={'dropout': jax.random.key(0)}))
  for layer in ('mlp/down', 'attention/out'):
    params = zeros | {'norm/scale': np.ones(4), f'block_0/{layer}/bias': np.asarray([90.0, 0.0, 0.0, 0.0])}
    share = float((train(unflatten(params, sep='/'))[..., 0] > 1.0).mean())
    assert 0.4 < share < 0.6, layer


def test_dropout_takes_attention_weights():
  """Values of one make the output the sum of the weights that are left, twice as large each."""
  x, view = jnp.zeros((1, 200, 4)), View(jnp.tri(200, dtype=bool)[None, None], 0, True, False)
  layer = Attention(heads=1, dropout=0.5, dtype=jnp.float32, dense=layers.dense)
  shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), x, None, dataclasses.replace(view, train=False)))
  params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
  params['params']['value']['bias'] += 1.0
  params['params']['out']['kernel'] += np.eye(4, dtype=np.float32)
  sums = layer.apply(params, x, None, view, rngs={'dropout': jax.random.key(0)})[0][0, :, 0]
  assert float(sums[0]) in (0.0, 2.0)
  assert 0.01 < float(sums[100:].std()) < 0.2 and abs(float(sums[100:].mean()) - 1.0) < 0.05


@pytest.mark.parametrize('width', [64, 768])
def test_initial_values_are_those_of_gpt2_with_its_gain_where_narrower(width):
  model = Decoder(depth=8, heads=2, width=width, mlp_dim=4 * 192, max_positions=200, scan=True)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1, width)))['params']
  for path, leaf in flatten(params, sep='/').items():
    if path.endswith('kernel') or path == 'position':
      expected = 0.02 / 4 if path.endswith(('out/kernel', 'down/kernel')) else 0.02
      if path.endswith('kernel') and 'down' not in path:  # the MLP's hidden width is 768 in both
        expected *= (768 / width) ** 0.5
      assert abs(float(leaf.std()) - expected) < 0.05 * expected, path
    else:
      np.testing.assert_array_equal(leaf, float(path.endswith('scale')), err_msg=path)


def test_switches_of_the_ablations():
  sees_all = MODEL.clone(causal=False)
  look = jax.jit(sees_all.apply)
  moved = look(VARIABLES, X.at[:, -1, ::2].add(9.0))
  assert float(jnp.abs(moved - look(VARIABLES, X))[:, 0].max()) > 1e-2
  unordered = MODEL.clone(causal=False, positions=False)
  variables = {'params': {name: leaf for name, leaf in VARIABLES['params'].items() if name != 'position'}}
  assert set(jax.eval_shape(unordered.init, jax.random.key(0), X)['params']) == set(variables['params'])
  order = np.random.default_rng(0).permutation(7)
  np.testing.assert_allclose(run(unordered, variables, X[:, order]), run(unordered, variables, X)[:, order], atol=1e-5)
  assert float(jnp.abs(look(VARIABLES, X[:, order]) - look(VARIABLES, X)[:, order]).max()) > 1e-2
  longer = jnp.concatenate([X, X], axis=1)
  assert jax.eval_shape(unordered.apply, variables, longer).shape == (
    2,
    14,
    12,
  )  # without positions there is no longest sequence


def test_the_tanh_gelu_is_that_of_transformers():
  x = np.linspace(-5, 5, 101, dtype=np.float32)
  expected = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  np.testing.assert_allclose(gelu_tanh(x), expected, atol=1e-6)
  assert float(jnp.abs(gelu_tanh(x) - layers.gelu(x)).max()) > 1e-4


def test_half_precision_keeps_full_parameters():
  model = MODEL.clone(dtype=jnp.bfloat16)
  h, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), X)
  assert h.dtype == jnp.bfloat16 and {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


@pytest.mark.parametrize(
  ('model', 'x', 'cache', 'expected'),
  [
    (MODEL.clone(heads=5), X, None, '5 attention heads do not divide the width 12'),
    (MODEL, X[..., :8], None, 'decoder is 12 wide and was given embeddings of 8'),
    (MODEL, jnp.zeros((1, 10, 12)), None, '10 positions do not fit into 9'),
    (MODEL, X, MODEL.empty_cache(2, places=3), '7 positions do not fit into 3'),
    (MODEL, X[:, :2], MODEL.empty_cache(2).replace(length=jnp.int32(8)), '10 positions do not fit into 9'),
    (MODEL, X, MODEL.empty_cache(2, places=12), '12 places, the decoder 9 positions'),
    (MODEL.clone(causal=False), X, MODEL.empty_cache(2), 'causal=False cannot be streamed'),
  ],
)
def test_errors_name_what_does_not_fit(model, x, cache, expected):
  with pytest.raises(UserError, match=expected):
    model.apply(VARIABLES, x, cache=cache)
