"""The encoder of VideoMAE (Tong et al. 2022): a clip as tubelets, joint space-time attention.

Parameters, as '/'-joined paths:

  tubelets/{kernel [frames, ph, pw, 3, C], bias}
  encoder/block_0/norm_attention/{scale, bias}
  encoder/block_0/attention/{query, value, out}/{kernel, bias}, encoder/block_0/attention/key/kernel
  encoder/block_0/norm_mlp/{scale, bias}
  encoder/block_0/mlp/{up, down}/{kernel, bias}
  encoder/norm/{scale, bias}   norm='tokens'
  norm_pooled/{scale, bias}    norm='pooled'

Public weights: `core.weights.videomae`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError, nearest
from core.nn.layers import LayerNorm
from core.nn.transformer import Encoder, Tokens
from core.nn.vit import Patches

VARIANTS = {
  'tiny_patch8': {'patch': (2, 8, 8), 'width': 96, 'depth': 4, 'heads': 3, 'mlp_dim': 384},  # ours, for CPUs
  'small_patch16': {'patch': (2, 16, 16), 'width': 384, 'depth': 12, 'heads': 6, 'mlp_dim': 1536},
  'base_patch16': {'patch': (2, 16, 16), 'width': 768, 'depth': 12, 'heads': 12, 'mlp_dim': 3072},
  'large_patch16': {'patch': (2, 16, 16), 'width': 1024, 'depth': 24, 'heads': 16, 'mlp_dim': 4096},
}
NORMS = ('pooled', 'tokens', 'none')
BIASED = ('query', 'value')
"""A bias of the keys would move all scores of a query alike, which the softmax does not see."""


class VideoMAE(nn.Module):
  """Clips to one feature each. Positions follow from the clip, so any size runs; public weights know 16 x 224 x 224.

  Attributes:
    patch: (frames, height, width) of a tubelet.
    width, depth, heads, mlp_dim: of the encoder.
    norm: where the last LayerNorm stands: 'pooled', on the mean over tokens, as in weights that were fine-tuned
      ('fc_norm'); 'tokens', on every token before the mean, as in weights that were only pre-trained; 'none'.
    epsilon: of the encoder's norms, as transformers has it; `POOLED_EPSILON` is that of the pooled one.
    dtype, remat, scan: see `core.nn.transformer.Encoder`.
  """

  patch: tuple[int, int, int]
  width: int
  depth: int
  heads: int
  mlp_dim: int
  norm: str = 'pooled'
  epsilon: float = 1e-12
  dtype: Any = jnp.float32
  remat: bool = False
  scan: bool = False

  @nn.compact
  def __call__(self, clips: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
    """clips [B, frames, H, W, 3] -> {'feature': [B, C], the mean over tokens, 'tokens': [B, N, C]}.

    Tokens run over time, then rows, then columns. The feature is after the last norm; tokens only if it is 'tokens'.
    """
    if self.norm not in NORMS:
      raise UserError(f"VideoMAE norm is '{self.norm}', expected one of {NORMS}.{nearest(self.norm, NORMS)}")
    x = Patches(self.patch, self.width, self.dtype, name='tubelets')(clips)
    tokens = Tokens(0, x.shape[1:4])
    x = x.reshape(x.shape[0], -1, self.width)
    x = x + jnp.asarray(sinusoids(x.shape[1], self.width), self.dtype)
    x = Encoder(
      self.depth, self.heads, self.mlp_dim, BIASED, self.epsilon, self.dtype, remat=self.remat, scan=self.scan,
      final_norm=self.norm == 'tokens', name='encoder',
    )(x, tokens, not train)  # fmt: skip
    feature = x.mean(axis=1)
    if self.norm == 'pooled':
      feature = LayerNorm(POOLED_EPSILON, self.dtype, name='norm_pooled')(feature)
    return {'feature': feature, 'tokens': x}


POOLED_EPSILON = 1e-5


def sinusoids(count: int, width: int) -> np.ndarray:
  """Positions f32 [count, width]: sin (even channels) and cos (odd ones) of n / 10000^(2 floor(c / 2) / width)."""
  channels = np.arange(width)
  angles = np.arange(count)[:, None] / 10000.0 ** (2 * (channels // 2) / width)
  return np.where(channels % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


def build(variant: str, **options: Any) -> VideoMAE:
  """The VideoMAE of a name in `VARIANTS`, with any attribute of `VideoMAE` changed."""
  if variant not in VARIANTS:
    raise UserError(
      f"there is no VideoMAE '{variant}', expected one of {sorted(VARIANTS)}.{nearest(variant, VARIANTS)}"
    )
  return VideoMAE(**{**VARIANTS[variant], **options})
