"""The autoencoder of latent diffusion (Rombach et al. 2022; diffusers' AutoencoderKL). Knows no paper.

A photo becomes the mean and log-variance of a normal distribution over latents an eighth of its size (with four
levels); the decoder makes a photo of a latent. Both are residual convolutions with one attention over all pixels at the
smallest level. All norms have epsilon 1e-6.

Parameters, as '/'-joined paths (blocks: `core.nn.diffusion`):

  encoder/conv_in                     3 -> channels[0]
  encoder/down_0_resnet_0             `layers` per level
  encoder/down_0_downsample           not at the last level
  {encoder, decoder}/{mid_resnet_0, mid_attention, mid_resnet_1}
    mid_attention/norm/{scale, bias}, mid_attention/attention/{query, key, value, out}/{kernel, bias}
  decoder/conv_in                     latent -> channels[-1]
  decoder/up_0_resnet_0               `layers` + 1 per level, up_0 the smallest
  decoder/up_0_upsample               not at the last level
  {encoder, decoder}/{norm_out/{scale, bias}, conv_out/{kernel, bias}}
  {quant, post_quant}/{kernel, bias}  1 x 1: behind the encoder, before the decoder

Public weights: `core.weights.autoencoder`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from core.errors import UserError, nearest
from core.nn.diffusion import Attention, Downsample, ResBlock, Upsample, check_groups, conv, group_norm
from core.nn.layers import dense

EPSILON = 1e-6
LOG_VARIANCE = (-30.0, 20.0)
"""Range that the log-variance is cut to: a variance that overflows would make every sample infinite."""

VARIANTS = {
  'tiny': {'channels': (16, 32, 32), 'layers': 1, 'groups': 8},  # ours, for 32 x 32 pixels on a CPU
  'sd': {'channels': (128, 256, 512, 512), 'layers': 2, 'groups': 32},  # Stable Diffusion 1.x and 2.x
}


class MidAttention(nn.Module):
  """x + attention(norm(x)) over all pixels, one head."""

  groups: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, H, W, C] -> [B, H, W, C]."""
    y = group_norm(self.groups, EPSILON, self.dtype, 'norm')(x).reshape(x.shape[0], -1, x.shape[-1])
    return x + Attention(1, bias=True, dtype=self.dtype, name='attention')(y, y)[0].reshape(x.shape)


class _Half(nn.Module):
  """What encoder and decoder share: their fields and parts.

  Attributes:
    channels: of every level, from the largest.
    out: channels of the output.
    layers, groups, remat, dtype: as in `Autoencoder`.
  """

  channels: tuple[int, ...]
  out: int
  layers: int
  groups: int
  remat: bool
  dtype: Any

  def resnet(self, features: int, name: str) -> nn.Module:
    """A residual block without time."""
    kind = nn.remat(ResBlock) if self.remat else ResBlock
    return kind(features, self.groups, EPSILON, self.dtype, name=name)

  def middle(self, x: jax.Array) -> jax.Array:
    """Residual block, attention, residual block."""
    x = self.resnet(self.channels[-1], 'mid_resnet_0')(x)
    x = MidAttention(self.groups, self.dtype, name='mid_attention')(x)
    return self.resnet(self.channels[-1], 'mid_resnet_1')(x)

  def head(self, x: jax.Array) -> jax.Array:
    """Norm, SiLU, convolution."""
    x = group_norm(self.groups, EPSILON, self.dtype, 'norm_out', silu=True)(x)
    return conv(self.out, self.dtype, 'conv_out')(x)


class Encoder(_Half):
  """Photo to the two moments, before `quant`."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, H, W, 3] -> [B, h, w, out]."""
    x = conv(self.channels[0], self.dtype, 'conv_in')(x)
    for i, features in enumerate(self.channels):
      for j in range(self.layers):
        x = self.resnet(features, f'down_{i}_resnet_{j}')(x)
      if i + 1 < len(self.channels):
        x = Downsample((0, 1), self.dtype, name=f'down_{i}_downsample')(x)
    return self.head(self.middle(x))


class Decoder(_Half):
  """Latent, behind `post_quant`, to photo."""

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    """z [B, h, w, latent] -> [B, H, W, out]."""
    x = self.middle(conv(self.channels[-1], self.dtype, 'conv_in')(z))
    for i, features in enumerate(reversed(self.channels)):
      for j in range(self.layers + 1):
        x = self.resnet(features, f'up_{i}_resnet_{j}')(x)
      if i + 1 < len(self.channels):
        x = Upsample(self.dtype, name=f'up_{i}_upsample')(x)
    return self.head(x)


class Autoencoder(nn.Module):
  """Photos to latents and back.

  Attributes:
    channels: of every level, from the largest; each level after the first halves the size.
    layers: residual blocks per level of the encoder; the decoder has one more.
    latent: channels of a latent.
    groups: of the norms; divides all channels.
    colours: channels of a photo.
    scaling: what the diffusion multiplies a latent by, and divides it by again; left to the caller.
    remat: forget activations inside residual blocks and compute them again on the way back.
    dtype: compute type; parameters are f32.
  """

  channels: tuple[int, ...] = (128, 256, 512, 512)
  layers: int = 2
  latent: int = 4
  groups: int = 32
  colours: int = 3
  scaling: float = 0.18215
  remat: bool = False
  dtype: Any = jnp.float32

  def setup(self):
    check_groups(self.channels, self.groups)
    options = (self.layers, self.groups, self.remat, self.dtype)
    self.encoder = Encoder(self.channels, 2 * self.latent, *options)
    self.decoder = Decoder(self.channels, self.colours, *options)
    self.quant = dense(2 * self.latent, dtype=self.dtype)
    self.post_quant = dense(self.latent, dtype=self.dtype)

  @property
  def factor(self) -> int:
    """Pixels along a side per latent."""
    return 2 ** (len(self.channels) - 1)

  def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Photos, f [B, H, W, colours] in -1..1, -> (mean, log-variance in -30..20), f32 [B, h, w, latent].

    h = H // factor: pixels at the right and the bottom that fill no latent count only through the convolutions.
    """
    if x.ndim != 4 or x.shape[-1] != self.colours or min(x.shape[1:3]) < self.factor:
      raise UserError(
        f'photos of shape {x.shape}: expected [B, H, W, {self.colours}] with sides of {self.factor} pixels or more.'
      )
    mean, log_variance = jnp.split(self.quant(self.encoder(x)).astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(log_variance, *LOG_VARIANCE)

  def decode(self, z: jax.Array) -> jax.Array:
    """Latents, f [B, h, w, latent], -> photos, f32 [B, factor h, factor w, colours], about -1..1 and not cut to it."""
    if z.ndim != 4 or z.shape[-1] != self.latent:
      raise UserError(f'latents of shape {z.shape}: expected [B, h, w, {self.latent}].')
    return self.decoder(self.post_quant(z)).astype(jnp.float32)

  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Photos -> (the photo decoded from the mean, mean, log-variance); what `init` runs."""
    mean, log_variance = self.encode(x)
    return self.decode(mean), mean, log_variance


def sample(key: jax.Array, mean: jax.Array, log_variance: jax.Array) -> jax.Array:
  """A latent of the distribution that `Autoencoder.encode` gives: mean + exp(log_variance / 2) noise."""
  return mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape, mean.dtype)


def build(variant: str, **options: Any) -> Autoencoder:
  """The autoencoder of a name in `VARIANTS`, with any attribute of `Autoencoder` changed."""
  if variant not in VARIANTS:
    raise UserError(
      f"there is no autoencoder '{variant}', expected one of {sorted(VARIANTS)}.{nearest(variant, VARIANTS)}"
    )
  return Autoencoder(**{**VARIANTS[variant], **options})
