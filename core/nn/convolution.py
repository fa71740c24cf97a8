"""A convolution whose gradients are quick on a CPU, also in a loop. Knows no paper.

XLA's CPU compiler brings the two gradients of a convolution into a form that its quick kernels take, but not in the
body of a loop (jax 0.11: the weight gradient of 8x8x64 channels takes 21 ms in a `lax.scan` and 0.7 ms outside of one,
on one core). Here they are written in that form: both are plain convolutions of transposed arrays. Other backends have
kernels for the gradients as JAX writes them, and get these.

Where an image has few pixels and the kernel many channels, as at the small levels of a U-Net, arranging the kernel for
a convolution takes longer than the convolution. There value and input gradient are matrix products with the kernel as
it lies in memory (8x8 pixels, 1280 to 640 channels, f32 on one core: 11 ms for 15, the input gradient 9 ms for 26).
So is the input gradient of a strided convolution, three quarters of whose products would be with zeros (128x128 pixels
of 128 channels, stride 2: 10 ms for 30).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
  plain = functools.partial(
    lax.conv_general_dilated, window_strides=strides, padding=padding, dimension_numbers=NHWC, precision=precision
  )
  if not _few_pixels(x, kernel, strides, padding):
    return plain(x, kernel)
  return lax.platform_dependent(x, kernel, cpu=functools.partial(_product, strides, padding, precision), default=plain)


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
  """(dx, dkernel) as products or plain convolutions of stride 1."""
  options = {'dimension_numbers': NHWC, 'precision': precision}
  if _few_pixels(x, kernel, strides, padding) or max(strides) > 1:
    dx = _product_dx(strides, padding, precision, x.shape, kernel, dy)
  else:
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    pads = [(k - 1 - low, k - 1 - high) for k, (low, high) in zip(kernel.shape[:2], padding)]
    dx = lax.conv_general_dilated(dy, turned, (1, 1), pads, **options)
  # For the kernel's, zeros go between the pixels of a dy that was strided. The kernel slides over what dy has seen:
  # pixels behind its last window count for nothing.
  dy = lax.pad(dy, jnp.zeros((), dy.dtype), [(0, 0, 0), *((0, 0, stride - 1) for stride in strides), (0, 0, 0)])
  sizes = zip(x.shape[1:3], kernel.shape[:2], dy.shape[1:3], padding)
  pads = [(low, d + k - 1 - n - low) for n, k, d, (low, _) in sizes]
  flipped = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)
  dkernel = lax.conv_general_dilated(*flipped, (1, 1), pads, **options).transpose(1, 2, 0, 3)
  return dx, dkernel


def _few_pixels(x, kernel, strides, padding) -> bool:
  """Whether the output has no more pixels, of all images, than channels (measured: from there on products win)."""
  return x.shape[0] * math.prod(_output_size(x.shape, kernel.shape, strides, padding)) <= kernel.shape[-1]


def _output_size(shape, kernel_shape, strides, padding) -> tuple[int, ...]:
  """Pixels (h, w) of the output."""
  sizes = zip(shape[1:3], kernel_shape[:2], strides, padding)
  return tuple((n + low + high - k) // stride + 1 for n, k, stride, (low, high) in sizes)


def _product(strides, padding, precision, x, kernel):
  """The convolution as a product of the windows [B h w, kh kw C] and the kernel [kh kw C, D]."""
  height, width = _output_size(x.shape, kernel.shape, strides, padding)
  batch, channels = x.shape[0], x.shape[3]
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  windows = [
    lax.slice(
      x, (0, i, j, 0), (batch, i + (height - 1) * strides[0] + 1, j + (width - 1) * strides[1] + 1, channels),
      (1, *strides, 1),
    )
    for i, j in np.ndindex(kernel.shape[:2])
  ]  # fmt: skip
  flat = jnp.concatenate(windows, axis=-1).reshape(-1, math.prod(kernel.shape[:3]))
  y = jnp.matmul(flat, kernel.reshape(-1, kernel.shape[-1]), precision=precision)
  return y.reshape(batch, height, width, -1)


def _product_dx(strides, padding, precision, shape, kernel, dy):
  """The gradient of `_product` in x of `shape`: windows of it by a product, each added where it was cut out."""
  flat = dy.reshape(-1, dy.shape[-1]), kernel.reshape(-1, kernel.shape[-1])
  windows = jnp.einsum('nd,cd->nc', *flat, precision=precision).reshape(*dy.shape[:3], -1, kernel.shape[2])
  zero, dx = jnp.zeros((), dy.dtype), jnp.zeros(shape, dy.dtype)
  for tap, place in enumerate(np.ndindex(kernel.shape[:2])):
    pads = []
    for n, seen, stride, (low, _), at in zip(shape[1:3], dy.shape[1:3], strides, padding, place):
      pads.append((at - low, n - (seen - 1) * stride - 1 - (at - low), stride - 1))
    dx += lax.pad(windows[:, :, :, tap], zero, [(0, 0, 0), *pads, (0, 0, 0)])
  return dx
