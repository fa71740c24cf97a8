"""BERT (Devlin et al. 2019): word pieces to one state each, every one seeing all others. Knows no paper.

Post-norm blocks, learned absolute positions and segment types, exact GELU, dropout on the embeddings, on the attention
weights and on what each sublayer adds. There is no pooler and no head: the states are the output.

Parameters, as '/'-joined paths:

  words/embedding [vocabulary, C]
  position [max_positions, C]
  type [types, C]
  norm/{scale, bias}                                  of the embeddings
  block_0/attention/{query, key, value, out}/{kernel, bias}
  block_0/norm_attention/{scale, bias}                after the sum
  block_0/mlp/{up, down}/{kernel, bias}
  block_0/norm_mlp/{scale, bias}

Public weights: `core.weights.bert`.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from core.errors import UserError, nearest
from core.nn.layers import LayerNorm, attention, attention_weights, dense, gelu

VARIANTS = {
  'tiny': {'width': 64, 'depth': 2, 'heads': 4, 'mlp_dim': 256},  # ours, for short texts on a CPU
  'base': {'width': 768, 'depth': 12, 'heads': 12, 'mlp_dim': 3072},
  'large': {'width': 1024, 'depth': 24, 'heads': 16, 'mlp_dim': 4096},
}

_initial = nn.initializers.truncated_normal(0.02)


class Attention(nn.Module):
  """Multi-head self-attention with dropout on its weights.

  Attributes:
    heads: number of heads; divides the width.
    dropout: probability of dropping an attention weight in training.
    dtype: compute type; parameters are f32.
  """

  heads: int
  dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool = False) -> jax.Array:
    """x [B, L, C] -> [B, L, C]; mask as in `core.nn.layers.attention`."""
    linear = functools.partial(dense, x.shape[-1], dtype=self.dtype, kernel_init=_initial)
    query, key, value = (
      linear(name=name)(x).reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)
      for name in ('query', 'key', 'value')
    )
    if train and self.dropout > 0:
      weights = attention_weights(query, key, mask=mask)
      kept = nn.Dropout(self.dropout)(weights, deterministic=False).astype(self.dtype)
      y = jnp.einsum('bhnm,bmhd->bnhd', kept, value)
    else:
      y = attention(query, key, value, mask=mask)
    return linear(name='out')(y.reshape(x.shape))


class Mlp(nn.Module):
  """Linear, exact GELU, linear."""

  hidden: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, L, C] -> [B, L, C]."""
    linear = functools.partial(dense, dtype=self.dtype, kernel_init=_initial)
    return linear(x.shape[-1], name='down')(gelu(linear(self.hidden, name='up')(x)))


class Block(nn.Module):
  """x = norm(x + dropout(attention(x))); x = norm(x + dropout(mlp(x)))."""

  heads: int
  mlp_dim: int
  dropout: float = 0.0
  epsilon: float = 1e-12
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool = False) -> jax.Array:
    """As `Attention`."""
    norm = functools.partial(LayerNorm, self.epsilon, self.dtype)
    drop = functools.partial(nn.Dropout(self.dropout), deterministic=not train)
    y = Attention(self.heads, self.dropout, self.dtype, name='attention')(x, mask, train)
    x = norm(name='norm_attention')(x + drop(y))
    return norm(name='norm_mlp')(x + drop(Mlp(self.mlp_dim, self.dtype, name='mlp')(x)))


class Bert(nn.Module):
  """Word pieces, or embeddings in their place, to states.

  Attributes:
    vocabulary: number of word pieces.
    width: C.
    depth: number of blocks.
    heads: of every block; divides the width.
    mlp_dim: hidden width of the MLPs.
    max_positions: length of the longest text.
    types: number of segment types.
    dropout: probability, in training.
    epsilon: of the norms.
    dtype: compute type; parameters are f32.
  """

  vocabulary: int
  width: int
  depth: int
  heads: int
  mlp_dim: int
  max_positions: int = 512
  types: int = 2
  dropout: float = 0.0
  epsilon: float = 1e-12
  dtype: Any = jnp.float32

  def setup(self):
    if self.width % self.heads:
      raise UserError(f'{self.heads} attention heads do not divide the width {self.width}.')
    self.words = nn.Embed(self.vocabulary, self.width, dtype=self.dtype, embedding_init=_initial)
    self.position = self.param('position', _initial, (self.max_positions, self.width))
    self.type = self.param('type', _initial, (self.types, self.width))
    self.norm = LayerNorm(self.epsilon, self.dtype)
    self.drop = nn.Dropout(self.dropout)
    self.block = [Block(self.heads, self.mlp_dim, self.dropout, self.epsilon, self.dtype) for _ in range(self.depth)]

  def __call__(
    self, ids: jax.Array, mask: jax.Array | None = None, types: jax.Array | None = None, *, train: bool = False
  ) -> dict[str, Any]:
    """Runs B texts of L word pieces.

    Args:
      ids: i32 [B, L], or f [B, L, C] that stand in the place of the words' embeddings (soft tokens, `embed`).
      mask: bool [B, L]; False where there is padding: nothing attends to it, and its own state means nothing.
      types: i32 [B, L], the segments; None: all are of the first.
      train: whether dropout acts; it then needs the rng 'dropout'.

    Returns:
      {'tokens': [B, L, C] of the last block, 'layers': (the embeddings, then each block's states), all [B, L, C]}.
    """
    length = ids.shape[1]
    if length > self.max_positions:
      raise UserError(f'{length} word pieces do not fit into {self.max_positions} positions: cut the text.')
    if self.is_initializing():
      self.embed(jnp.zeros((), jnp.int32))  # the words are there even where embeddings are given
    x = self.embed(ids) if ids.ndim == 2 else ids.astype(self.dtype)
    if x.shape[-1] != self.width:
      raise UserError(f'the BERT is {self.width} wide and was given embeddings of {x.shape[-1]}.')
    segment = self.type[:1] if types is None else self.type[types]
    x = x + (self.position[:length] + segment).astype(self.dtype)
    x = self.drop(self.norm(x), deterministic=not train)
    layers, pairs = [x], None if mask is None else mask[:, None, None]
    for block in self.block:
      layers.append(block(layers[-1], pairs, train))
    return {'tokens': layers[-1], 'layers': tuple(layers)}

  def embed(self, ids: jax.Array) -> jax.Array:
    """ids i32 [...] -> the words' embeddings [..., C], without positions and types."""
    return self.words(ids)


def build(variant: str, vocabulary: int, **options: Any) -> Bert:
  """The BERT of a name in `VARIANTS` for a number of word pieces, with any attribute of `Bert` changed."""
  if variant not in VARIANTS:
    raise UserError(f"there is no BERT '{variant}', expected one of {sorted(VARIANTS)}.{nearest(variant, VARIANTS)}")
  return Bert(vocabulary=vocabulary, **{**VARIANTS[variant], **options})
