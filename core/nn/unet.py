"""The U-Net of latent diffusion with text (Rombach et al. 2022; diffusers' UNet2DConditionModel). Knows no paper.

Noisy latents, timesteps and the text's states become the prediction, noise or velocity, of the latents' shape. Every
level has residual blocks, most of them followed by a spatial transformer that attends to the text; the way up joins
what the way down left behind.

Parameters, as '/'-joined paths (blocks: `core.nn.diffusion`):

  time/{up, down}                             sinusoid -> time embedding
  conv_in                                     inputs -> channels[0]
  down_0_resnet_0, down_0_transformer_0       `layers` per level; transformers where `cross` is true
  down_0_downsample                           not at the last level
  mid_resnet_0, mid_transformer_0, mid_resnet_1
  up_0_resnet_0, up_0_transformer_0           `layers` + 1 per level, up_0 the smallest
  up_0_upsample                               not at the last level
  norm_out/{scale, bias}, conv_out/{kernel, bias}

Public weights: `core.weights.unet`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from core.errors import UserError, nearest
from core.nn.diffusion import (
  Downsample,
  ResBlock,
  SpatialTransformer,
  TimeEmbedding,
  Upsample,
  check_groups,
  conv,
  group_norm,
)

VARIANTS = {
  # ours, for small latents on a CPU
  'tiny': {'channels': (32, 64), 'cross': (True, True), 'layers': 1, 'heads': 2, 'groups': 8, 'context_width': 64},
  'sd1': {'heads': 8, 'context_width': 768},  # Stable Diffusion 1.x
  'sd2': {'heads': (5, 10, 20, 20), 'context_width': 1024},  # 2.x: 2.1 at 768 pixels predicts the velocity
}


class UNet(nn.Module):
  """Noisy latents to the prediction.

  Attributes:
    channels: of every level, from the largest; each level after the first halves the size.
    cross: whether a level attends to the context, on the way down and up; the middle always does.
    layers: residual blocks per level on the way down; the way up has one more.
    heads: attention heads, of every level or of each (diffusers' `attention_head_dim`, which is no dimension); divide
      the channels where there is attention.
    depth: transformer blocks per spatial transformer.
    context_width: D of the context.
    inputs, outputs: channels of the latents and of the prediction.
    groups, epsilon: of the norms; groups divide all channels.
    implementation: of the attention, as in `core.nn.layers.attention`.
    remat: forget activations inside residual blocks and spatial transformers and compute them again on the way back.
    dtype: compute type; parameters are f32.
  """

  channels: tuple[int, ...] = (320, 640, 1280, 1280)
  cross: tuple[bool, ...] = (True, True, True, False)
  layers: int = 2
  heads: int | tuple[int, ...] = 8
  depth: int = 1
  context_width: int = 768
  inputs: int = 4
  outputs: int = 4
  groups: int = 32
  epsilon: float = 1e-5
  implementation: str | None = None
  remat: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, t: jax.Array, context: jax.Array, *, maps: bool = False
  ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
    """Runs B latents.

    Args:
      x: f [B, h, w, inputs], noisy latents, already scaled.
      t: f or i [B] or [], timesteps 0..999 (Stable Diffusion).
      context: f [B, T, context_width], the text's states.
      maps: whether to give the attention to the context too, through an explicit softmax.

    Returns:
      The prediction, f32 [B, h, w, outputs]; with `maps` also {name of the attention, such as
      'down_0_transformer_0/block_0/cross': f32 [B, heads, h_i, w_i, T], which sums to 1 over T}.
    """
    self._check(x, context)
    time = TimeEmbedding(self.channels[0], self.dtype, name='time')(jnp.broadcast_to(t, x.shape[:1]))
    context, seen, last = context.astype(self.dtype), {}, len(self.channels) - 1
    x = conv(self.channels[0], self.dtype, 'conv_in')(x)
    left = [x]
    for i in range(last + 1):
      for j in range(self.layers):
        x = self._resnet(i, f'down_{i}_resnet_{j}')(x, time)
        if self.cross[i]:
          x = self._attend(x, context, maps, i, f'down_{i}_transformer_{j}', seen)
        left.append(x)
      if i < last:
        x = Downsample((1, 1), self.dtype, name=f'down_{i}_downsample')(x)
        left.append(x)
    x = self._resnet(last, 'mid_resnet_0')(x, time)
    x = self._attend(x, context, maps, last, 'mid_transformer_0', seen)
    x = self._resnet(last, 'mid_resnet_1')(x, time)
    for i in range(last + 1):
      for j in range(self.layers + 1):
        x = self._resnet(last - i, f'up_{i}_resnet_{j}')(jnp.concatenate([x, left.pop()], axis=-1), time)
        if self.cross[last - i]:
          x = self._attend(x, context, maps, last - i, f'up_{i}_transformer_{j}', seen)
      if i < last:
        x = Upsample(self.dtype, name=f'up_{i}_upsample')(x, left[-1].shape[1:3])
    x = group_norm(self.groups, self.epsilon, self.dtype, 'norm_out', silu=True)(x)
    x = conv(self.outputs, self.dtype, 'conv_out')(x).astype(jnp.float32)
    return (x, seen) if maps else x

  def _resnet(self, level: int, name: str) -> nn.Module:
    kind = nn.remat(ResBlock) if self.remat else ResBlock
    return kind(self.channels[level], self.groups, self.epsilon, self.dtype, name=name)

  def _attend(self, x: jax.Array, context: jax.Array, maps: bool, level: int, name: str, seen: dict) -> jax.Array:
    """The spatial transformer of a name; its maps go into `seen`."""
    kind = nn.remat(SpatialTransformer, static_argnums=(3,)) if self.remat else SpatialTransformer
    heads = self._heads[level]
    module = kind(heads, self.depth, self.groups, self.implementation, self.dtype, name=name)
    x, weights = module(x, context, maps)
    seen.update({f'{name}/block_{i}/cross': each for i, each in enumerate(weights)})
    return x

  @property
  def _heads(self) -> tuple[int, ...]:
    return (self.heads,) * len(self.channels) if isinstance(self.heads, int) else tuple(self.heads)

  def _check(self, x: jax.Array, context: jax.Array) -> None:
    """Refuses fields and inputs that do not fit each other."""
    check_groups(self.channels, self.groups)
    levels = len(self.channels)
    if (len(self.cross), len(self._heads)) != (levels, levels):
      raise UserError(f'{levels} levels of channels, but {len(self.cross)} of cross and {len(self._heads)} of heads.')
    used = [*self.cross[:-1], True]  # the middle attends at the last level
    for width, heads, attends in zip(self.channels, self._heads, used, strict=True):
      if attends and width % heads:
        raise UserError(f'{heads} attention heads do not divide {width} channels.')
    if x.ndim != 4 or x.shape[-1] != self.inputs:
      raise UserError(f'latents of shape {x.shape}: expected [B, h, w, {self.inputs}].')
    if context.ndim != 3 or context.shape[::2] != (x.shape[0], self.context_width):
      raise UserError(
        f'a context of shape {context.shape} for latents of shape {x.shape}: expected'
        f' [{x.shape[0]}, T, {self.context_width}]; SD 1.x has texts of width 768, SD 2.x of 1024.'
      )


def build(variant: str, **options: Any) -> UNet:
  """The U-Net of a name in `VARIANTS`, with any attribute of `UNet` changed."""
  if variant not in VARIANTS:
    raise UserError(f"there is no U-Net '{variant}', expected one of {sorted(VARIANTS)}.{nearest(variant, VARIANTS)}")
  return UNet(**{**VARIANTS[variant], **options})
