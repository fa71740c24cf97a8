"""Blocks and their stacks: a scan equals a loop, forgetting activations changes nothing, adapters attach anywhere."""

import functools

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from core.nn import adapters, transformer
from core.nn.transformer import Encoder, Tokens

TOKENS = Tokens(1, (3, 4))
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 13, 12)), jnp.float32)
ADAPTERS = {
  'none': None,
  'convpass': adapters.convpass(4, dropout=0.0),
  'bottleneck': adapters.bottleneck(6),
}


def _encoder(**changes):
  return Encoder(**({'depth': 3, 'heads': 3, 'mlp_dim': 20} | changes))


def _noisy(params, seed=1):
  """Every leaf moved off its initial value, so that zero-initialised parts count."""
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  moved = [leaf + 0.2 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys)]
  return jax.tree.unflatten(tree, moved)


def _init(model):
  return jax.jit(lambda key: model.init(key, X, TOKENS))(jax.random.key(0))['params']


def _value_and_grad(model, params, **options):
  def loss(params):
    return jnp.sin(model.apply({'params': params}, X, TOKENS, **options)).sum()

  return jax.jit(jax.value_and_grad(loss))(params)


def _flat(tree):
  return flax.traverse_util.flatten_dict(tree, sep='/')


@pytest.mark.parametrize('adapter', ADAPTERS)
@pytest.mark.parametrize('remat', [False, True])
def test_scan_and_remat_equal_the_plain_loop_in_values_and_gradients(adapter, remat):
  model = _encoder(adapter=ADAPTERS[adapter])
  params = _noisy(_init(model))
  value, gradient = _value_and_grad(model, params)
  close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)
  if remat:
    other = _value_and_grad(_encoder(adapter=ADAPTERS[adapter], remat=True), params)
    jax.tree.map(close, (value, gradient), other)
  stacked = flax.traverse_util.unflatten_dict(transformer.stack_blocks(_flat(params)), sep='/')
  scanned = _encoder(adapter=ADAPTERS[adapter], scan=True, remat=remat)
  shapes = jax.eval_shape(lambda key: scanned.init(key, X, TOKENS), jax.random.key(0))['params']
  assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes)
  scan_value, scan_gradient = _value_and_grad(scanned, stacked)
  close(value, scan_value)
  loose = transformer.unstack_blocks(_flat(scan_gradient))
  assert set(loose) == set(_flat(gradient))
  for path, leaf in _flat(gradient).items():
    close(leaf, loose[path], err_msg=path)


def test_stacking_and_unstacking_are_inverse():
  rng = np.random.default_rng(0)
  names = [f'encoder/block_{i}/mlp/up/{leaf}' for i in range(11) for leaf in ('kernel', 'bias')] + ['position']
  params = {name: rng.normal(size=(2, 3)) for name in names}
  stacked = transformer.stack_blocks(params)
  assert {name: leaf.shape for name, leaf in stacked.items()} == {
    'encoder/blocks/mlp/up/kernel': (11, 2, 3), 'encoder/blocks/mlp/up/bias': (11, 2, 3), 'position': (2, 3),
  }  # fmt: skip
  loose = transformer.unstack_blocks(stacked)
  assert set(loose) == set(params)
  for name in names:  # block_10 must not be taken for the second
    np.testing.assert_allclose(loose[name], params[name], rtol=1e-6)


def test_a_scan_draws_another_start_for_every_block():
  kernel = _encoder(scan=True).init(jax.random.key(0), X)['params']['blocks']['mlp']['up']['kernel']
  assert float(jnp.abs(kernel[0] - kernel[1]).max()) > 0.1


@pytest.mark.parametrize('adapter', ['convpass', 'bottleneck'])
def test_adapters_start_as_exact_no_ops_and_then_matter(adapter):
  plain, adapted = _encoder(), _encoder(adapter=ADAPTERS[adapter])
  params = adapted.init(jax.random.key(0), X, TOKENS)['params']
  base = {p: leaf for p, leaf in _flat(params).items() if not adapters.is_adapter(p)}
  expected = plain.apply({'params': flax.traverse_util.unflatten_dict(base, sep='/')}, X, TOKENS)
  np.testing.assert_array_equal(adapted.apply({'params': params}, X, TOKENS), expected)
  moved = flax.traverse_util.unflatten_dict(_flat(_noisy(params)) | base, sep='/')
  assert float(jnp.abs(adapted.apply({'params': moved}, X, TOKENS) - expected).max()) > 0.01


def test_position_of_an_adapter():
  class Constant(nn.Module):
    @nn.compact
    def __call__(self, x, tokens, deterministic):
      return jnp.full_like(x, 2.0)

  def block(position):
    adapter = transformer.Adapter(Constant, position)
    return transformer.Block(heads=3, mlp_dim=20, adapter=adapter).init_with_output(jax.random.key(0), X, TOKENS)[0]

  plain = transformer.Block(heads=3, mlp_dim=20).init_with_output(jax.random.key(0), X, TOKENS)[0]
  np.testing.assert_allclose(block('sequential'), X + 4.0, atol=1e-6)  # what the sublayers gave is replaced
  assert float(jnp.abs(block('parallel') - (X + 4.0)).max()) > 0.1  # here it is added to
  assert float(jnp.abs(block('parallel') - plain).max()) > 0.1
  with pytest.raises(ValueError, match='parallel'):
    transformer.Adapter(Constant, 'beside')


def test_lora_is_a_no_op_at_first_and_merges_into_its_kernels():
  dense = adapters.lora(rank=2, alpha=6.0, targets=('query', 'value', 'up'))
  model = _encoder(dense=dense)
  params = model.init(jax.random.key(0), X)['params']
  flat = _flat(params)
  assert sum(path.endswith('lora_a') for path in flat) == 9 and not np.any(flat['block_0/mlp/up/lora_b'])
  assert flat['block_1/attention/value/lora_a'].shape == (12, 2)
  plain = {path: leaf for path, leaf in flat.items() if not adapters.is_adapter(path)}
  assert set(plain) == set(_flat(_encoder().init(jax.random.key(0), X)['params']))  # public weights load as ever
  apply = lambda model, flat: model.apply({'params': flax.traverse_util.unflatten_dict(flat, sep='/')}, X)  # noqa: E731
  np.testing.assert_allclose(apply(model, flat), apply(_encoder(), plain), atol=1e-6)
  moved = _flat(_noisy(params))
  merged = adapters.merge_lora(moved, alpha=6.0)
  assert set(merged) == set(plain)
  np.testing.assert_allclose(apply(model, moved), apply(_encoder(), merged), atol=1e-4)
  unmerged = {path: moved[path] for path in plain}
  assert float(jnp.abs(apply(_encoder(), unmerged) - apply(_encoder(), merged)).max()) > 0.01
  np.testing.assert_allclose(
    merged['block_0/mlp/up/kernel'] - moved['block_0/mlp/up/kernel'],
    3.0 * moved['block_0/mlp/up/lora_a'] @ moved['block_0/mlp/up/lora_b'],
    atol=1e-5,
  )


def test_dropout_of_an_adapter_needs_its_key_and_follows_it():
  model = _encoder(adapter=adapters.convpass(4, dropout=0.5))
  params = _noisy(model.init(jax.random.key(0), X, TOKENS)['params'])
  run = lambda seed: model.apply({'params': params}, X, TOKENS, False, rngs={'dropout': jax.random.key(seed)})  # noqa: E731
  np.testing.assert_array_equal(run(0), run(0))
  assert float(jnp.abs(run(0) - run(1)).max()) > 1e-3
  with pytest.raises(Exception, match='dropout'):
    model.apply({'params': params}, X, TOKENS, False)


def test_convpass_convolves_clips_frame_by_frame():
  module = adapters.convpass(4, dropout=0.0).make()
  clip = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2 * 3 * 5, 8)), jnp.float32)
  params = _noisy(module.init(jax.random.key(0), clip, Tokens(0, (2, 3, 5)), True))
  together = module.apply(params, clip, Tokens(0, (2, 3, 5)), True)
  frames = module.apply(params, clip.reshape(4, 15, 8), Tokens(0, (3, 5)), True)
  np.testing.assert_allclose(together, frames.reshape(clip.shape), atol=1e-5)


def test_errors_name_what_does_not_fit():
  with pytest.raises(UserError, match='5 attention heads do not divide the width 12'):
    _encoder(heads=5).init(jax.random.key(0), X)
  with pytest.raises(UserError, match='ConvPass needs an image grid; 13 tokens'):
    _encoder(adapter=adapters.convpass()).init(jax.random.key(0), X, Tokens(0, (3, 4)))
  with pytest.raises(UserError, match='LoRA rank is 0'):
    adapters.lora(0, 1.0)
