"""A convolution with gradients of our own writing: those that JAX derives, in the form that is quick in a loop."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from core.nn import convolution

CASES = [
  ((5, 7), (3, 3), (1, 1), ((1, 1), (1, 1))),
  ((8, 7), (3, 3), (2, 2), ((0, 1), (0, 1))),  # the autoencoder's
  ((8, 7), (3, 3), (2, 2), ((1, 1), (1, 1))),  # the U-Net's
  ((9, 6), (1, 2), (3, 1), ((0, 0), (2, 0))),  # pixels that no window sees
]


@pytest.mark.parametrize('case', CASES, ids=str)
def test_value_and_gradients_are_those_of_jax(case):
  size, window, strides, padding = case
  x = jax.random.normal(jax.random.key(0), (2, *size, 3))
  kernel = jax.random.normal(jax.random.key(1), (*window, 3, 4))
  plain = functools.partial(
    lax.conv_general_dilated, window_strides=strides, padding=padding, dimension_numbers=convolution.NHWC
  )

  @functools.partial(jax.jit, static_argnums=0)
  def judged(operation, x, kernel):
    y, pull = jax.vjp(operation, x, kernel)
    return y, *pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

  ours = judged(lambda x, kernel: convolution.conv(x, kernel, strides, padding), x, kernel)
  theirs = judged(plain, x, kernel)
  for mine, expected in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('case', CASES, ids=str)
def test_few_pixels_are_matrix_products_with_the_same_values_and_gradients(case):
  size, window, strides, padding = case
  x = jax.random.normal(jax.random.key(0), (2, *size, 3))
  kernel = jax.random.normal(jax.random.key(1), (*window, 3, 160)) / 6
  assert convolution._few_pixels(x, kernel, strides, padding)
  plain = functools.partial(
    lax.conv_general_dilated, window_strides=strides, padding=padding, dimension_numbers=convolution.NHWC
  )

  @functools.partial(jax.jit, static_argnums=0)
  def judged(operation, x, kernel):
    y, pull = jax.vjp(operation, x, kernel)
    return y, *pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

  ours = judged(lambda x, kernel: convolution.conv(x, kernel, strides, padding), x, kernel)
  for mine, expected in zip(ours, judged(plain, x, kernel), strict=True):
    np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-5)
  text = jax.jit(lambda x, kernel: convolution.conv(x, kernel, strides, padding)).lower(x, kernel).compile().as_text()
  assert 'dim_labels' not in text  # no convolution is left


def test_the_gradients_that_other_backends_get_are_the_same():
  x, kernel = jax.random.normal(jax.random.key(0), (2, 6, 6, 3)), jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
  dy = jax.random.normal(jax.random.key(2), (2, 3, 3, 4))
  options = ((2, 2), ((0, 1), (0, 1)), None)
  quick, plain = convolution._quick(*options, x, kernel, dy), convolution._as_jax(*options, x, kernel, dy)
  for mine, expected in zip(quick, plain, strict=True):
    np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-5)


def test_no_loop_holds_a_gradient_in_a_form_without_a_quick_kernel():
  """What makes a step of personalisation four times slower: 'f01b_i01o->01bf' and 'b01f_01oi->b01f' in the body."""
  x, kernel = jnp.ones((2, 4, 4, 8)), jnp.ones((3, 3, 8, 8))

  def looped(operation):
    def step(_, carry):
      return jax.tree.map(lambda a, g: a - g, carry, jax.grad(lambda c: jnp.sum(operation(*c) ** 2))(carry))

    text = jax.jit(lambda *carry: lax.fori_loop(0, 3, step, carry)).lower(x, kernel).compile().as_text()
    return {line.split('dim_labels=')[1].split(',')[0] for line in text.splitlines() if 'dim_labels=' in line}

  assert looped(lambda x, kernel: convolution.conv(x, kernel, (1, 1), ((1, 1), (1, 1)))) == {'b01f_01io->b01f'}


def test_a_module_of_flax_takes_it_and_what_it_cannot_do_is_refused():
  layer = nn.Conv(4, (3, 3), padding=1, conv_general_dilated=convolution.conv_general_dilated)
  x = jax.random.normal(jax.random.key(0), (1, 5, 5, 2))
  variables = layer.init(jax.random.key(1), x)
  np.testing.assert_allclose(layer.apply(variables, x), nn.Conv(4, (3, 3), padding=1).apply(variables, x), atol=1e-6)
  with pytest.raises(ValueError, match='no dilation'):
    layer.clone(kernel_dilation=2).init(jax.random.key(1), x)
