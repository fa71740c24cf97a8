"""The vision transformer (Dosovitskiy et al. 2021): patches, positions, an encoder, one feature per image.

Parameters, as '/'-joined paths:

  patches/{kernel [ph, pw, 3, C], bias}
  class_token [1, 1, C]
  position [1, 1 + rows * columns, C]
  encoder/block_0/norm_attention/{scale, bias}
  encoder/block_0/attention/{query, key, value, out}/{kernel, bias}
  encoder/block_0/norm_mlp/{scale, bias}
  encoder/block_0/mlp/{up, down}/{kernel, bias}
  encoder/norm/{scale, bias}

Public weights: `core.weights.vit`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from core.errors import UserError, nearest
from core.nn.layers import dense
from core.nn.transformer import Adapter, Encoder, Tokens

VARIANTS = {
  'tiny_patch8': {'patch': 8, 'width': 96, 'depth': 4, 'heads': 3, 'mlp_dim': 384},  # ours, for 64 px on a CPU
  'mini_patch16': {'patch': 16, 'width': 96, 'depth': 4, 'heads': 3, 'mlp_dim': 384},  # ours: 64 px in 16 patches
  # Ours, for few pictures of one place on a CPU: learns in minutes from scratch where hands and things are.
  'tiny_places8': {
    'patch': 8,
    'width': 96,
    'depth': 2,
    'heads': 3,
    'mlp_dim': 192,
    'class_token': False,
    'pool': 'places',
  },
  'tiny_patch16': {'patch': 16, 'width': 192, 'depth': 12, 'heads': 3, 'mlp_dim': 768},
  'small_patch16': {'patch': 16, 'width': 384, 'depth': 12, 'heads': 6, 'mlp_dim': 1536},
  'base_patch16': {'patch': 16, 'width': 768, 'depth': 12, 'heads': 12, 'mlp_dim': 3072},
  'base_patch32': {'patch': 32, 'width': 768, 'depth': 12, 'heads': 12, 'mlp_dim': 3072},
  'large_patch16': {'patch': 16, 'width': 1024, 'depth': 24, 'heads': 16, 'mlp_dim': 4096},
  'huge_patch14': {'patch': 14, 'width': 1280, 'depth': 32, 'heads': 16, 'mlp_dim': 5120},
}
POOLS = ('class', 'mean', 'places')


class Patches(nn.Module):
  """Cuts an image into patches, or a clip into tubelets, and projects each: a convolution whose stride is its kernel.

  As one matrix product over reshaped pixels: on the CPU 10% faster than the convolution. Pixels right and
  below the last whole patch, and frames after it, are left out, as a strided convolution does.

  Attributes:
    patch: (height, width) or (frames, height, width).
    width: channels of the result.
    dtype: compute type.
  """

  patch: tuple[int, ...]
  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """images [B, (frames,) H, W, 3] -> [B, (frames,) rows, columns, width]."""
    batch, *sizes, channels = images.shape
    axes = len(self.patch)
    grid = [size // side for size, side in zip(sizes, self.patch, strict=True)]
    if not all(grid):
      what, found, side = 'a clip' if axes == 3 else 'an image', *('x'.join(map(str, x)) for x in (sizes, self.patch))
      raise UserError(f'{what} of {found} has no whole patch of {side}.')
    kernel = self.param('kernel', nn.initializers.lecun_normal(), (*self.patch, channels, self.width))
    bias = self.param('bias', nn.initializers.zeros, (self.width,))
    whole = (slice(None), *(slice(count * side) for count, side in zip(grid, self.patch)))
    pixels = images[whole].astype(self.dtype)
    pixels = pixels.reshape(batch, *(size for pair in zip(grid, self.patch) for size in pair), channels)
    pixels = pixels.transpose(0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1)
    pixels = pixels.reshape(batch, *grid, -1)
    return pixels @ kernel.reshape(-1, self.width).astype(self.dtype) + bias.astype(self.dtype)


class ViT(nn.Module):
  """Images to one feature each. The grid follows from the image that it is initialised with.

  Attributes:
    patch: side of a patch, or (height, width).
    width, depth, heads, mlp_dim: of the encoder.
    class_token: whether a learned token is put before the patches.
    pool: what the feature is, after the final norm: 'class' (the class token), 'mean' (the mean over patches) or
      'places' (a linear layer over all patches side by side: where something is counts from the first step on; ours).
    qkv_bias, epsilon, dtype, adapter, dense, remat, scan: see `core.nn.transformer.Encoder`.
  """

  patch: int | tuple[int, int]
  width: int
  depth: int
  heads: int
  mlp_dim: int
  class_token: bool = True
  pool: str = 'class'
  qkv_bias: bool = True
  epsilon: float = 1e-6
  dtype: Any = jnp.float32
  adapter: Adapter | None = None
  dense: Callable[..., nn.Module] = dense
  remat: bool = False
  scan: bool = False

  def tokens(self, image_size: tuple[int, int]) -> Tokens:
    """How the tokens of an image of (height, width) are laid out."""
    height, width = _pair(self.patch)
    return Tokens(int(self.class_token), (image_size[0] // height, image_size[1] // width))

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
    """images [B, H, W, 3] -> {'feature': [B, C], 'tokens': [B, N, C]}, both after the final norm."""
    if self.pool not in POOLS or (self.pool == 'class' and not self.class_token):
      raise UserError(f"ViT pool is '{self.pool}' with class_token={self.class_token}: expected one of {POOLS}.")
    x = Patches(_pair(self.patch), self.width, self.dtype, name='patches')(images)
    tokens = Tokens(int(self.class_token), x.shape[1:3])
    x = x.reshape(x.shape[0], -1, self.width)
    small = nn.initializers.normal(0.02)
    if self.class_token:
      token = self.param('class_token', small, (1, 1, self.width)).astype(self.dtype)
      x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], axis=1)
    x = x + self.param('position', small, (1, *x.shape[1:])).astype(self.dtype)
    x = Encoder(
      self.depth, self.heads, self.mlp_dim, self.qkv_bias, self.epsilon, self.dtype, self.adapter, self.dense,
      self.remat, self.scan, name='encoder',
    )(x, tokens, not train)  # fmt: skip
    if self.pool == 'class':
      feature = x[:, 0]
    elif self.pool == 'mean':
      feature = x[:, tokens.prefix :].mean(axis=1)
    else:
      feature = self.dense(self.width, dtype=self.dtype, name='places')(x[:, tokens.prefix :].reshape(x.shape[0], -1))
    return {'feature': feature, 'tokens': x}


def build(variant: str, **options: Any) -> ViT:
  """The ViT of a name in `VARIANTS`, with any attribute of `ViT` changed."""
  if variant not in VARIANTS:
    raise UserError(f"there is no ViT '{variant}', expected one of {sorted(VARIANTS)}.{nearest(variant, VARIANTS)}")
  return ViT(**{**VARIANTS[variant], **options})


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
  return (value, value) if isinstance(value, int) else tuple(value)
