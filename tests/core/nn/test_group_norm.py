"""Group normalisation of our own writing, as the CPU gets it, is flax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.nn import diffusion

GROUPS, EPSILON = 4, 1e-3


@pytest.mark.parametrize('silu', [False, True], ids=['norm', 'norm and SiLU'])
def test_value_and_gradients_are_those_of_flax(silu):
  x = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (2, 5, 3, 12))
  params = {
    'scale': jax.random.normal(jax.random.key(1), (12,)),
    'bias': jax.random.normal(jax.random.key(2), (12,)),
  }
  flax = nn.GroupNorm(GROUPS, epsilon=EPSILON, use_fast_variance=False)
  ours = diffusion.GroupNorm(GROUPS, EPSILON, jnp.float32, silu)
  after = nn.silu if silu else (lambda y: y)

  def judged(norm):
    @jax.jit
    def run(params, x):
      y, pull = jax.vjp(norm, params, x)
      return y, pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

    return run(params, x)

  expected = judged(lambda params, x: after(flax.apply({'params': params}, x)))
  found = judged(lambda params, x: ours.apply({'params': params}, x))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), found, expected)


def test_parameters_are_those_of_flax():
  x = jnp.ones((1, 2, 2, 8))
  ours = jax.eval_shape(diffusion.GroupNorm(GROUPS, EPSILON, jnp.float32, True).init, jax.random.key(0), x)
  assert ours == jax.eval_shape(nn.GroupNorm(GROUPS).init, jax.random.key(0), x)


def test_large_means_keep_their_digits():
  x = 1e4 + jax.random.normal(jax.random.key(0), (1, 8, 8, 8))
  found = diffusion.GroupNorm(GROUPS, EPSILON, jnp.float32, False).apply(
    {'params': {'scale': jnp.ones(8), 'bias': jnp.zeros(8)}}, x
  )
  exact = np.asarray(x, np.float64).reshape(64, GROUPS, 2)
  exact = (exact - exact.mean((0, 2), keepdims=True)) / np.sqrt(exact.var((0, 2), keepdims=True) + EPSILON)
  np.testing.assert_allclose(np.reshape(found, (64, GROUPS, 2)), exact, atol=5e-3)
