"""CLIP's text encoder (Radford et al. 2021): word pieces to one state each, which see themselves and what is before.

Pre-norm blocks under a causal mask, learned absolute positions, a final norm. What conditions Stable Diffusion: 1.x
takes the states of OpenAI's ViT-L/14, 2.x those of OpenCLIP's ViT-H without its last block (spec 3.1). Knows no paper.

Parameters, as '/'-joined paths:

  words/embedding [vocabulary, D]
  position [max_positions, D]
  block_0/norm_attention/{scale, bias}
  block_0/attention/{query, key, value, out}/{kernel, bias}
  block_0/norm_mlp/{scale, bias}
  block_0/mlp/{up, down}/{kernel, bias}
  norm/{scale, bias}
  projection/kernel [D, P]                            where there is one

Public weights: `core.weights.clip`; prompts to ids: `core.data.clip_tokens`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from core.errors import UserError, nearest
from core.nn.layers import LayerNorm, dense, gelu, quick_gelu
from core.nn.transformer import Block

ACTIVATIONS = {'quick_gelu': quick_gelu, 'gelu': gelu}
"""By the names of transformers' `hidden_act`; 'gelu' is the exact one."""

VARIANTS = {
  'tiny': {
    'vocabulary': 64, 'width': 64, 'depth': 1, 'heads': 2, 'mlp_dim': 128, 'max_positions': 8,
    'activation': 'quick_gelu',
  },
  'sd1': {
    'vocabulary': 49408, 'width': 768, 'depth': 12, 'heads': 12, 'mlp_dim': 3072, 'activation': 'quick_gelu',
    'eos': 49407,
  },
  'sd2': {
    'vocabulary': 49408, 'width': 1024, 'depth': 23, 'heads': 16, 'mlp_dim': 4096, 'activation': 'gelu', 'eos': 49407,
  },
}  # fmt: skip
"""One of ours for prompts of six words on a CPU; those of Stable Diffusion 1.x (CLIP ViT-L/14) and 2.x (OpenCLIP ViT-H
less its last block), spec 3.1."""

_initial = nn.initializers.normal(0.02)


class ClipTextOutput(NamedTuple):
  """What `ClipText` gives, all f32.

  Attributes:
    states: [B, T, D] after the last block and the final norm: the context of Stable Diffusion's U-Net.
    penultimate: [B, T, D] before the last block, through the same final norm (diffusers' `clip_skip=1`).
    pooled: [B, D], the state at the text's end.
    projected: [B, P], `pooled` in the space that texts and images share; None without a projection.
  """

  states: jax.Array
  penultimate: jax.Array
  pooled: jax.Array
  projected: jax.Array | None


class ClipText(nn.Module):
  """Prompts to what conditions a U-Net.

  Attributes:
    vocabulary: number of word pieces.
    width: D.
    depth: number of blocks.
    heads: of every block; divides the width.
    mlp_dim: hidden width of the MLPs.
    max_positions: length of the longest prompt.
    activation: a name in `ACTIVATIONS`.
    eos: id that ends a text, whose first place gives `pooled`; None: the place of the greatest id, as OpenAI's code and
      old configs (`eos_token_id` 2) have it: right as long as no id was added behind EOS.
    projection: P; 0: none.
    epsilon: of the norms.
    dtype: compute type; parameters, the final norm and what comes out are f32.
    dense: makes the blocks' linear layers: `core.nn.layers.dense`, or `core.nn.adapters.lora(...)`.
  """

  vocabulary: int
  width: int
  depth: int
  heads: int
  mlp_dim: int
  max_positions: int = 77
  activation: str = 'quick_gelu'
  eos: int | None = None
  projection: int = 0
  epsilon: float = 1e-5
  dtype: Any = jnp.float32
  dense: Callable[..., nn.Module] = dense

  def setup(self):
    if self.activation not in ACTIVATIONS:
      raise UserError(
        f"activation '{self.activation}' of a CLIP text encoder, expected one of {sorted(ACTIVATIONS)}."
        + nearest(self.activation, ACTIVATIONS)
      )
    if self.depth < 1:
      raise UserError(f'a CLIP text encoder of {self.depth} blocks: expected at least one.')
    self.words = nn.Embed(self.vocabulary, self.width, dtype=self.dtype, embedding_init=_initial)
    self.position = self.param('position', _initial, (self.max_positions, self.width))
    options = {'epsilon': self.epsilon, 'dtype': self.dtype, 'dense': self.dense}
    activation = ACTIVATIONS[self.activation]
    self.block = [Block(self.heads, self.mlp_dim, activation=activation, **options) for _ in range(self.depth)]
    self.norm = LayerNorm(self.epsilon)
    if self.projection:
      self.project = nn.Dense(self.projection, use_bias=False, name='projection')

  def __call__(self, ids: jax.Array, *, mask: jax.Array | None = None) -> ClipTextOutput:
    """Runs B prompts of T word pieces.

    Args:
      ids: i32 [B, T], T at most `max_positions`.
      mask: bool [B, T]; False where nothing may attend to. None, as Stable Diffusion has it: padding is read too, and
        its states are part of the context.
    """
    length = ids.shape[1]
    if length > self.max_positions:
      raise UserError(f'{length} word pieces do not fit into {self.max_positions} positions: cut the prompt.')
    pairs = jnp.tril(jnp.ones((1, 1, length, length), bool))
    if mask is not None:
      pairs = pairs & mask[:, None, None]
    x = before = self.words(ids) + self.position[:length].astype(self.dtype)
    for block in self.block:
      before, x = x, block(x, mask=pairs)
    states = self.norm(x)
    ends = ids if self.eos is None else ids == self.eos
    pooled = jnp.take_along_axis(states, ends.argmax(-1)[:, None, None], axis=1)[:, 0]
    projected = self.project(pooled) if self.projection else None
    return ClipTextOutput(states, self.norm(before), pooled, projected)


def build(variant: str, **options: Any) -> ClipText:
  """The text encoder of a name in `VARIANTS`, with any attribute of `ClipText` changed."""
  if variant not in VARIANTS:
    raise UserError(
      f"there is no CLIP text encoder '{variant}', expected one of {sorted(VARIANTS)}.{nearest(variant, VARIANTS)}"
    )
  return ClipText(**{**VARIANTS[variant], **options})
