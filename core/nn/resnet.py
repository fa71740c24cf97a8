"""Residual networks (He et al. 2016) with torch's padding: explicit and symmetric, where 'SAME' would be lopsided.

Parameters, as '/'-joined paths ('mean' and 'var' are in the collection 'batch_stats'):

  stem/{conv/kernel, norm/{scale, bias, mean, var}}
  stage_1_block_0/{conv_1/kernel, norm_1/..., conv_2/kernel, norm_2/..., [conv_3/kernel, norm_3/...]}
  stage_1_block_0/{shortcut_conv/kernel, shortcut_norm/...}     where the shape changes

The stride of a bottleneck is in its 3x3 convolution ("v1.5", as in torchvision and transformers). Public weights:
`core.weights.resnet`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from core.errors import UserError, nearest

VARIANTS = {
  'resnet18': {'depths': (2, 2, 2, 2), 'widths': (64, 128, 256, 512), 'bottleneck': False},
  'resnet34': {'depths': (3, 4, 6, 3), 'widths': (64, 128, 256, 512), 'bottleneck': False},
  'resnet50': {'depths': (3, 4, 6, 3), 'widths': (256, 512, 1024, 2048), 'bottleneck': True},
}


class BatchNorm(nn.Module):
  """Batch normalisation as in torch: running statistics move by 0.1, the running variance is the unbiased one.

  (flax's own keeps the biased variance.) In a jitted step over a mesh the statistics are those of the whole batch.
  """

  momentum: float = 0.1
  epsilon: float = 1e-5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """x [B, H, W, C] -> the same, by the batch's statistics in training and by the running ones otherwise."""
    shape = (x.shape[-1],)
    scale, bias = self.param('scale', nn.initializers.ones, shape), self.param('bias', nn.initializers.zeros, shape)
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
    running_var = self.variable('batch_stats', 'var', jnp.ones, shape)
    wide = x.astype(jnp.float32)
    if train:
      mean, var = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
      if not self.is_initializing():
        count = x.size // x.shape[-1]
        for running, new in ((running_mean, mean), (running_var, var * count / max(count - 1, 1))):
          running.value = running.value + self.momentum * (jax.lax.stop_gradient(new) - running.value)
    else:
      mean, var = running_mean.value, running_var.value
    factor = scale * jax.lax.rsqrt(var + self.epsilon)
    return ((wide - mean) * factor + bias).astype(self.dtype)


class ConvNorm(nn.Module):
  """Methods that a residual block and the stem share."""

  dtype: Any = jnp.float32

  def convolve(self, x: jax.Array, train: bool, width: int, kernel: int, stride: int, conv: str, norm: str):
    """Convolution without bias, padded by half its kernel, then batch normalisation; x [B, H, W, C]."""
    x = nn.Conv(
      width, (kernel, kernel), stride, padding=kernel // 2, use_bias=False, dtype=self.dtype, name=conv,
      kernel_init=nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'),
    )(x)  # fmt: skip
    return BatchNorm(dtype=self.dtype, name=norm)(x, train)


class Stem(ConvNorm):
  """7x7 convolution and 3x3 maximum, each with stride 2."""

  width: int = 64

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """x [B, H, W, 3] -> [B, about H/4, about W/4, width]."""
    x = nn.relu(self.convolve(x, train, self.width, 7, 2, 'conv', 'norm'))
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


class ResidualBlock(ConvNorm):
  """Two 3x3 convolutions, or 1x1, 3x3, 1x1 through a quarter of the width ('bottleneck'), beside a shortcut."""

  width: int = 64
  stride: int = 1
  bottleneck: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """x [B, H, W, C] -> [B, H / stride, W / stride, width], rounded up."""
    convolve = functools.partial(self.convolve, train=train)
    if self.bottleneck:
      plan = ((self.width // 4, 1, 1), (self.width // 4, 3, self.stride), (self.width, 1, 1))
    else:
      plan = ((self.width, 3, self.stride), (self.width, 3, 1))
    y = x
    for i, (width, kernel, stride) in enumerate(plan, start=1):
      y = convolve(y, width=width, kernel=kernel, stride=stride, conv=f'conv_{i}', norm=f'norm_{i}')
      y = nn.relu(y) if i < len(plan) else y
    if self.stride != 1 or x.shape[-1] != self.width:
      x = convolve(x, width=self.width, kernel=1, stride=self.stride, conv='shortcut_conv', norm='shortcut_norm')
    return nn.relu(x + y)


class ResNet(nn.Module):
  """Images to one feature each.

  Attributes:
    depths: blocks of each stage.
    widths: output channels of each stage.
    bottleneck: kind of block.
    stem_width: channels of the stem.
    dtype: compute type; parameters and statistics are f32.
  """

  depths: Sequence[int]
  widths: Sequence[int]
  bottleneck: bool = False
  stem_width: int = 64
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
    """images [B, H, W, 3] -> {'feature': [B, C], 'map': [B, H/32, W/32, C]}; to train, make 'batch_stats' mutable."""
    x = Stem(self.dtype, self.stem_width, name='stem')(images.astype(self.dtype), train)
    for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), start=1):
      for i in range(depth):
        stride = 2 if stage > 1 and i == 0 else 1
        block = ResidualBlock(self.dtype, width, stride, self.bottleneck, name=f'stage_{stage}_block_{i}')
        x = block(x, train)
    return {'feature': x.mean((1, 2)), 'map': x}


def build(variant: str, **options: Any) -> ResNet:
  """The ResNet of a name in `VARIANTS`, with any attribute of `ResNet` changed."""
  if variant not in VARIANTS:
    raise UserError(f"there is no ResNet '{variant}', expected one of {sorted(VARIANTS)}.{nearest(variant, VARIANTS)}")
  return ResNet(**{**VARIANTS[variant], **options})
