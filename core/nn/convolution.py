"""A convolution whose gradients are quick on a CPU, also in a loop. Knows no paper.

XLA's CPU compiler brings the two gradients of a convolution into a form that its quick kernels take, but not in the
body of a loop (jax 0.11: the weight gradient of 8x8x64 channels takes 21 ms in a `lax.scan` and 0.7 ms outside of one,
on one core). Here they are written in that form: both are plain convolutions of transposed arrays. Other backends have
kernels for the gradients as JAX writes them, and get these.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

NHWC = ('NHWC', 'HWIO', 'NHWC')


def conv_general_dilated(
  lhs: jax.Array, rhs: jax.Array, window_strides: Sequence[int], padding: Sequence[tuple[int, int]], **options: Any
) -> jax.Array:
  """What to give `nn.Conv` as `conv_general_dilated`: images NHWC, neither dilation nor groups."""
  ones, groups = (lhs.ndim - 2) * (1,), options['feature_group_count']
  dilations = tuple(options['lhs_dilation']), tuple(options['rhs_dilation'])
  if isinstance(padding, str) or lhs.ndim != 4 or groups != 1 or dilations != (ones, ones):
    raise ValueError(f'Expected images [B, H, W, C], padding in numbers, one group, no dilation; got {options}.')
  return conv(lhs, rhs, tuple(window_strides), tuple(map(tuple, padding)), options['precision'])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def conv(
  x: jax.Array,
  kernel: jax.Array,
  strides: tuple[int, int] = (1, 1),
  padding: tuple[tuple[int, int], ...] = ((0, 0), (0, 0)),
  precision: Any = None,
) -> jax.Array:
  """x [B, H, W, C], kernel [kh, kw, C, D] -> [B, h, w, D]; padding (before, after) in rows and columns."""
  return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=NHWC, precision=precision)


def _forward(x, kernel, strides, padding, precision):
  return conv(x, kernel, strides, padding, precision), (x, kernel)


def _backward(strides, padding, precision, kept, dy):
  plain = functools.partial(_as_jax, strides, padding, precision)
  return lax.platform_dependent(*kept, dy, cpu=functools.partial(_quick, strides, padding, precision), default=plain)


conv.defvjp(_forward, _backward)


def _as_jax(strides, padding, precision, x, kernel, dy):
  """(dx, dkernel) as JAX derives them."""
  options = {'dimension_numbers': NHWC, 'precision': precision}
  return jax.vjp(lambda x, kernel: lax.conv_general_dilated(x, kernel, strides, padding, **options), x, kernel)[1](dy)


def _quick(strides, padding, precision, x, kernel, dy):
  """(dx, dkernel) as plain convolutions of stride 1; zeros go between the pixels of a dy that was strided."""
  options = {'dimension_numbers': NHWC, 'precision': precision}
  dy = lax.pad(dy, jnp.zeros((), dy.dtype), [(0, 0, 0), *((0, 0, stride - 1) for stride in strides), (0, 0, 0)])
  size, seen, window = x.shape[1:3], dy.shape[1:3], kernel.shape[:2]
  before = [k - 1 - low for k, (low, _) in zip(window, padding)]
  after = [n + k - 1 - d - low for n, k, d, low in zip(size, window, seen, before)]
  turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
  dx = lax.conv_general_dilated(dy, turned, (1, 1), list(zip(before, after)), **options)
  # The kernel slides over what dy has seen: pixels behind its last window count for nothing.
  after = [d + k - 1 - n - low for n, k, d, (low, _) in zip(size, window, seen, padding)]
  pads = [(low, high) for (low, _), high in zip(padding, after)]
  flipped = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)
  dkernel = lax.conv_general_dilated(*flipped, (1, 1), pads, **options).transpose(1, 2, 0, 3)
  return dx, dkernel
