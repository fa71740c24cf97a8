"""Activations and attention: against jax's own, in values and in gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from core.nn import layers


def _qkv(shape=(2, 37, 3, 8), keys=29, dtype=jnp.float32):
  rng = np.random.default_rng(0)
  make = lambda n: jnp.asarray(rng.normal(size=(shape[0], n, *shape[2:])), dtype)  # noqa: E731
  return make(shape[1]), make(keys), make(keys)


def _masks():
  rng = np.random.default_rng(1)
  return {'none': None, 'full': jnp.asarray(rng.random((2, 3, 37, 29)) > 0.4), 'keys': jnp.arange(29) < 11}


@pytest.mark.parametrize('mask', ['none', 'full', 'keys'])
def test_explicit_attention_and_its_gradients_equal_jax(mask):
  mask = _masks()[mask]

  def scalar(implementation, query, key, value):
    out = layers.attention(query, key, value, mask=mask, implementation=implementation)
    return (jnp.sin(3.0 * out) * jnp.arange(8)).sum(), out

  results = [
    jax.value_and_grad(lambda *x, name=name: scalar(name, *x), argnums=(0, 1, 2), has_aux=True)(*_qkv())
    for name in ('explicit', 'xla')
  ]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), *results)


def test_a_row_that_may_attend_to_nothing_is_finite():
  out = layers.attention(*_qkv(), mask=jnp.zeros((29,), bool), implementation='explicit')
  np.testing.assert_allclose(out, jnp.broadcast_to(_qkv()[2].mean(1, keepdims=True), out.shape), atol=1e-6)


def test_large_scores_do_not_overflow():
  query, key, value = _qkv()
  out = layers.attention(100.0 * query, 100.0 * key, value, implementation='explicit')
  np.testing.assert_allclose(out, layers.attention(100.0 * query, 100.0 * key, value, implementation='xla'), atol=1e-5)


def test_half_precision_stays_half_and_near():
  query, key, value = _qkv(dtype=jnp.bfloat16)
  out = layers.attention(query, key, value, implementation='explicit')
  assert out.dtype == jnp.bfloat16
  exact = layers.attention(*(x.astype(jnp.float32) for x in (query, key, value)), implementation='xla')
  np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.05)


def test_an_unknown_implementation_names_the_nearest():
  with pytest.raises(UserError, match="Did you mean 'explicit'"):
    layers.attention(*_qkv(), implementation='explicitly')


def test_gelu_is_the_exact_one_to_the_second_derivative():
  x = jnp.linspace(-6.0, 6.0, 401)
  exact = lambda x: jax.nn.gelu(x, approximate=False)  # noqa: E731
  np.testing.assert_allclose(layers.gelu(x), exact(x), atol=1e-6)
  np.testing.assert_allclose(jax.vmap(jax.grad(layers.gelu))(x), jax.vmap(jax.grad(exact))(x), atol=1e-6)
  second = jax.vmap(jax.grad(jax.grad(layers.gelu)))(x)
  np.testing.assert_allclose(second, jax.vmap(jax.grad(jax.grad(exact)))(x), atol=1e-5)
  assert layers.gelu(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_quick_gelu():
  x = np.asarray([-30.0, -1.0, 0.0, 2.0], np.float32)
  np.testing.assert_allclose(layers.quick_gelu(x), x / (1.0 + np.exp(-1.702 * x)), atol=1e-6)
