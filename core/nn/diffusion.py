"""What the two networks of latent diffusion share (Rombach et al. 2022, as diffusers builds them). Knows no paper.

Images and latents are NHWC. Norms take their statistics in f32, whatever `dtype` is. The epsilons are not one number:
the norms of the autoencoder and the group norm before a spatial transformer have 1e-6, all others of the U-Net 1e-5.

Parameters, as '/'-joined paths:

  ResBlock            {norm_1, norm_2}/{scale, bias}, {conv_1, conv_2}/{kernel, bias}; time/{kernel, bias} with a time
                      embedding; shortcut/{kernel, bias} where the number of channels changes
  Downsample, Upsample                                conv/{kernel, bias}
  SpatialTransformer  norm/{scale, bias}, {proj_in, proj_out}/{kernel, bias} [in, out]
    block_0/{norm_self, norm_cross, norm_mlp}/{scale, bias}
    block_0/{self, cross}/{query, key, value}/kernel, block_0/{self, cross}/out/{kernel, bias}
    block_0/mlp/{up, down}/{kernel, bias}             up is [C, 8C]: the values, then their gates
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from core.errors import UserError
from core.nn.convolution import conv_general_dilated
from core.nn.layers import LayerNorm, attention, attention_weights, dense, gelu

TRANSFORMER_EPSILON = 1e-6
"""Of the group norm before a spatial transformer; with the U-Net's own 1e-5 outputs are off by 5e-4 (spec 3.1)."""


def group_norm(groups: int, epsilon: float, dtype: Any, name: str, *, silu: bool = False) -> Callable[..., jax.Array]:
  """Group normalisation, followed by SiLU if asked for: [B, H, W, C] -> [B, H, W, C].

  Statistics are in f32 and in two passes: the one-pass variance loses digits where means are large. On the CPU it has
  its own forward and backward pass (`_normed`), with the same parameters.
  """
  if jax.default_backend() == 'cpu':
    return GroupNorm(groups, epsilon, dtype, silu, name=name)
  norm = nn.GroupNorm(groups, epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)
  return (lambda x: nn.silu(norm(x))) if silu else norm


class GroupNorm(nn.Module):
  """Group normalisation and SiLU in one; see `group_norm`."""

  groups: int
  epsilon: float
  dtype: Any
  silu: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, H, W, C] -> [B, H, W, C] in `dtype`."""
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
    bias = self.param('bias', nn.initializers.zeros, x.shape[-1:])
    return _normed(x.astype(jnp.float32), scale, bias, self.groups, self.epsilon, self.silu).astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _normed(x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float, silu: bool) -> jax.Array:
  """y = x̂ scale + bias, or y sigmoid(y); x f32 [B, H, W, C].

  Sums run over pixels first and over the channels of a group last: XLA on the CPU takes 12 ms and not 2 to sum 256x256
  pixels of 64 channels over pixels and pairs of channels at once. What is kept for the way back is x.
  """
  return _normed_forward(x, scale, bias, groups, epsilon, silu)[0]


def _normed_forward(x, scale, bias, groups, epsilon, silu):
  mean = _over_groups(x.mean((1, 2)), groups)
  factor = jax.lax.rsqrt(_over_groups(jnp.square(x - mean).mean((1, 2)), groups) + epsilon)
  y = (x - mean) * (factor * scale) + bias
  return y * jax.nn.sigmoid(y) if silu else y, (x, scale, bias, mean, factor)


def _normed_backward(groups, epsilon, silu, kept, gradient):
  del epsilon
  x, scale, bias, mean, factor = kept
  centred = x - mean
  if silu:
    y = centred * (factor * scale) + bias
    gate = jax.nn.sigmoid(y)
    gradient = gradient * (gate + y * gate * (1 - gate))
  pixels = x.shape[1] * x.shape[2]
  sums = gradient.sum((1, 2))
  along = (gradient * centred).sum((1, 2)) * factor[:, 0, 0]
  offset, slope = (_over_groups(each * scale / pixels, groups) for each in (sums, along))
  dx = factor * (gradient * scale - offset - centred * (factor * slope))
  return dx, along.sum(0).astype(scale.dtype), sums.sum(0).astype(bias.dtype)


_normed.defvjp(_normed_forward, _normed_backward)


def _over_groups(values: jax.Array, groups: int) -> jax.Array:
  """Means over the channels of each group, [B, C] -> [B, 1, 1, C]."""
  means = values.reshape(values.shape[0], groups, -1).mean(-1)
  return jnp.repeat(means, values.shape[1] // groups, axis=1)[:, None, None]


def conv(features: int, dtype: Any, name: str) -> nn.Conv:
  """3 x 3 convolution that keeps the size."""
  return nn.Conv(features, (3, 3), padding=1, dtype=dtype, conv_general_dilated=conv_general_dilated, name=name)


def check_groups(channels: Sequence[int], groups: int) -> None:
  """Refuses numbers of channels that the norms cannot split."""
  if odd := [width for width in channels if width % groups]:
    raise UserError(f'{groups} groups of the norms do not divide {odd[0]} channels, of {tuple(channels)}.')


class ResBlock(nn.Module):
  """x + conv(silu(norm(conv(silu(norm(x))) + time))), with a 1 x 1 convolution of x where the channels change.

  Attributes:
    features: channels of the output.
    groups, epsilon: of the norms.
    dtype: compute type; parameters are f32.
  """

  features: int
  groups: int = 32
  epsilon: float = 1e-5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, time: jax.Array | None = None) -> jax.Array:
    """x [B, H, W, C], time [B, D] or None -> [B, H, W, features]."""
    y = group_norm(self.groups, self.epsilon, self.dtype, 'norm_1', silu=True)(x)
    y = conv(self.features, self.dtype, 'conv_1')(y)
    if time is not None:
      y = y + dense(self.features, dtype=self.dtype, name='time')(nn.silu(time))[:, None, None]
    y = group_norm(self.groups, self.epsilon, self.dtype, 'norm_2', silu=True)(y)
    y = conv(self.features, self.dtype, 'conv_2')(y)
    if x.shape[-1] != self.features:
      x = dense(self.features, dtype=self.dtype, name='shortcut')(x)
    return x + y


class Downsample(nn.Module):
  """3 x 3 convolution of stride 2.

  Attributes:
    padding: rows and columns of zeros (before, after): (1, 1) in the U-Net, (0, 1) in the autoencoder's encoder.
  """

  padding: tuple[int, int]
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C] with padding (1, 1), floor with (0, 1)."""
    options = {'padding': (self.padding,) * 2, 'dtype': self.dtype, 'conv_general_dilated': conv_general_dilated}
    return nn.Conv(x.shape[-1], (3, 3), 2, name='conv', **options)(x)


class Upsample(nn.Module):
  """Every pixel four times, then a 3 x 3 convolution."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, size: tuple[int, int] | None = None) -> jax.Array:
    """x [B, H, W, C] -> [B, 2H, 2W, C], or cut to `size` (a level of odd size was halved upwards)."""
    x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    if size is not None:
      x = x[:, : size[0], : size[1]]
    return conv(x.shape[-1], self.dtype, 'conv')(x)


class Attention(nn.Module):
  """Multi-head attention of x to a context.

  Attributes:
    heads: number of heads; divides the width of x.
    bias: whether queries, keys and values have biases (the autoencoder's have).
    implementation: as in `core.nn.layers.attention`.
    dtype: compute type; parameters are f32.
  """

  heads: int
  bias: bool = False
  implementation: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, context: jax.Array, maps: bool = False) -> tuple[jax.Array, jax.Array | None]:
    """x [B, N, C], context [B, M, D] -> ([B, N, C], with `maps` the softmax, f32 [B, heads, N, M], else None)."""
    width = x.shape[-1]

    def split(source: jax.Array, name: str) -> jax.Array:
      y = dense(width, use_bias=self.bias, dtype=self.dtype, name=name)(source)
      return y.reshape(*y.shape[:2], self.heads, width // self.heads)

    query, key, value = split(x, 'query'), split(context, 'key'), split(context, 'value')
    weights = attention_weights(query, key) if maps else None
    if maps:
      y = jnp.einsum('bhnm,bmhd->bnhd', weights.astype(self.dtype), value)
    else:
      y = attention(query, key, value, implementation=self.implementation)
    return dense(width, dtype=self.dtype, name='out')(y.reshape(x.shape)), weights


class Mlp(nn.Module):
  """GEGLU (Shazeer 2020) with the exact GELU, then a linear layer: (a * gelu(b)) W with [a, b] = x V, 4C wide."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, N, C] -> [B, N, C]."""
    value, gate = jnp.split(dense(8 * x.shape[-1], dtype=self.dtype, name='up')(x), 2, axis=-1)
    return dense(x.shape[-1], dtype=self.dtype, name='down')(value * gelu(gate))


class TransformerBlock(nn.Module):
  """Self-attention, attention to the context, MLP; each added to what its layer norm (epsilon 1e-5) saw."""

  heads: int
  implementation: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, context: jax.Array, maps: bool = False) -> tuple[jax.Array, jax.Array | None]:
    """As `Attention`; the maps are those of the attention to the context."""

    def norm(name: str) -> LayerNorm:
      return LayerNorm(1e-5, self.dtype, name=name)

    def attend(name: str) -> Attention:
      return Attention(self.heads, False, self.implementation, self.dtype, name=name)

    y = norm('norm_self')(x)
    x = x + attend('self')(y, y)[0]
    y, weights = attend('cross')(norm('norm_cross')(x), context, maps)
    x = x + y
    return x + Mlp(self.dtype, name='mlp')(norm('norm_mlp')(x)), weights


class SpatialTransformer(nn.Module):
  """x + proj_out(blocks(proj_in(norm(x)))) over the pixels as tokens.

  Whether a checkpoint keeps the projections as 1 x 1 convolutions (SD 1.x) or as linear layers (SD 2.x) is a matter
  of its tensors' shapes (`core.weights.unet`): they compute the same.

  Attributes:
    heads: of every attention; divides the channels.
    depth: number of blocks.
    groups: of the norm.
    implementation: as in `core.nn.layers.attention`.
    dtype: compute type; parameters are f32.
  """

  heads: int
  depth: int = 1
  groups: int = 32
  implementation: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, context: jax.Array, maps: bool = False) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """x [B, H, W, C], context [B, T, D] -> ([B, H, W, C], with `maps` f32 [B, heads, H, W, T] per block, else ())."""
    batch, height, width, channels = x.shape
    y = group_norm(self.groups, TRANSFORMER_EPSILON, self.dtype, 'norm')(x).reshape(batch, height * width, channels)
    y = dense(channels, dtype=self.dtype, name='proj_in')(y)
    seen = []
    for i in range(self.depth):
      y, weights = TransformerBlock(self.heads, self.implementation, self.dtype, name=f'block_{i}')(y, context, maps)
      seen.append(weights)
    y = dense(channels, dtype=self.dtype, name='proj_out')(y).reshape(x.shape)
    shape = (batch, self.heads, height, width, context.shape[1])
    return x + y, tuple(weights.reshape(shape) for weights in seen) if maps else ()


def sinusoid(t: jax.Array, width: int) -> jax.Array:
  """Timesteps, f or i [B] -> f32 [B, width]: cosines, then sines, of t / 10000^(2k / width), k < width // 2.

  An odd width ends in a zero.
  """
  half = width // 2
  angles = t.astype(jnp.float32)[:, None] * jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
  return jnp.pad(jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1), ((0, 0), (0, width % 2)))


class TimeEmbedding(nn.Module):
  """Sinusoid, linear, SiLU, linear.

  Attributes:
    width: of the sinusoid; the embedding is four times as wide.
  """

  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, t: jax.Array) -> jax.Array:
    """t [B] -> [B, 4 width]."""
    y = dense(4 * self.width, dtype=self.dtype, name='up')(sinusoid(t, self.width))
    return dense(4 * self.width, dtype=self.dtype, name='down')(nn.silu(y))
