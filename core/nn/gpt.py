"""A causal decoder in the manner of GPT-2 (Radford et al. 2019) over embeddings that are given. Knows no paper.

Pre-norm blocks, learned absolute positions, tanh GELU, dropout on the attention weights and on what each sublayer adds.
There is no vocabulary: what goes in is [B, T, C], what comes out is [B, T, C] after the final norm.

Parameters, as '/'-joined paths:

  position [max_positions, C]
  block_0/norm_attention/{scale, bias}
  block_0/attention/{query, key, value, out}/{kernel, bias}
  block_0/norm_mlp/{scale, bias}
  block_0/mlp/{up, down}/{kernel, bias}
  norm/{scale, bias}

Public weights: `core.weights.gpt2`. A stream, one jitted step for all of it:

  cache = decoder.empty_cache(batch)
  h, cache = jax.jit(decoder.apply)(variables, x[:, :1], cache=cache)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from core.errors import UserError
from core.nn.cache import Cache, write
from core.nn.layers import LayerNorm, attention, attention_weights, dense
from core.nn.transformer import Mlp

gelu_tanh = functools.partial(jax.nn.gelu, approximate=True)
"""GPT-2's GELU ('gelu_new'): 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""


SMALLEST = 768
"""Width of the smallest GPT-2."""


Past = tuple[jax.Array, jax.Array]
"""One layer's part of a cache, or what it adds to it: key and value [B H, N, D]."""


@dataclasses.dataclass(frozen=True)
class View:
  """What all blocks of one pass share.

  Attributes:
    pairs: bool [B or 1, 1, T, M]; True where a position (T) may attend to another (M); None: all may.
    start: number of positions before these.
    train: whether dropout acts.
    attention: whether the attention weights are wanted.
  """

  pairs: jax.Array | None
  start: jax.Array | int
  train: bool
  attention: bool


class Attention(nn.Module):
  """Multi-head self-attention whose keys and values may begin with those of a cache.

  Attributes:
    heads: number of heads; divides the width.
    dropout: probability of dropping an attention weight in training.
    dtype: compute type.
    dense: makes the linear layers, with `nn.Dense`'s arguments.
  """

  heads: int
  dropout: float
  dtype: Any
  dense: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: jax.Array, past: Past | None, view: View) -> tuple[jax.Array, Past, jax.Array | None]:
    """x [B, T, C] -> ([B, T, C], keys and values of x, weights f32 [B, H, T, M] if wanted)."""
    linear = functools.partial(self.dense, x.shape[-1], dtype=self.dtype)
    query, *new = (
      linear(name=name)(x).reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)
      for name in ('query', 'key', 'value')
    )
    key, value = new
    if past is not None:
      new = [part.swapaxes(1, 2).reshape(-1, *part.shape[1::2]) for part in new]
      known = (write(old, part, view.start, 1) for old, part in zip(past, new, strict=True))
      key, value = (part.reshape(x.shape[0], self.heads, *part.shape[1:]).swapaxes(1, 2) for part in known)
    weights = None
    if view.attention or (view.train and self.dropout > 0):
      weights = attention_weights(query, key, mask=view.pairs)
      kept = nn.Dropout(self.dropout)(weights, deterministic=not view.train).astype(self.dtype)
      y = jnp.einsum('bhnm,bmhd->bnhd', kept, value)
    else:
      y = attention(query, key, value, mask=view.pairs)
    return linear(name='out')(y.reshape(x.shape)), tuple(new), weights if view.attention else None


class Block(nn.Module):
  """x += dropout(attention(norm(x))); x += dropout(mlp(norm(x)))."""

  heads: int
  mlp_dim: int
  dropout: float
  epsilon: float
  dtype: Any
  dense: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: jax.Array, past: Past | None, view: View) -> tuple[jax.Array, Past, jax.Array | None]:
    """As `Attention`."""
    norm = functools.partial(LayerNorm, self.epsilon, self.dtype)
    drop = functools.partial(nn.Dropout(self.dropout), deterministic=not view.train)
    layer = Attention(self.heads, self.dropout, self.dtype, self.dense, name='attention')
    y, new, weights = layer(norm(name='norm_attention')(x), past, view)
    x = x + drop(y)
    y = Mlp(self.mlp_dim, self.dtype, self.dense, gelu_tanh, name='mlp')(norm(name='norm_mlp')(x))
    return x + drop(y), new, weights


class Decoder(nn.Module):
  """Embeddings to what follows them: h_k sees x_1..x_k and nothing later.

  Attributes:
    depth: number of blocks.
    heads: of every block; divides the width.
    width: C.
    mlp_dim: hidden width of the MLPs; 0: 4 * width.
    max_positions: length of the longest sequence.
    dropout: probability, for attention weights and for what each sublayer adds, in training.
    causal: whether a position sees only itself and earlier ones; False for ablations.
    positions: whether learned absolute positions are added; False for ablations.
    epsilon: of the norms.
    dtype: compute type; parameters are f32.
    remat, scan: as in `core.nn.transformer.Encoder`; `stack_blocks` there converts the parameters.
  """

  depth: int
  heads: int
  width: int
  mlp_dim: int = 0
  max_positions: int = 1024
  dropout: float = 0.0
  causal: bool = True
  positions: bool = True
  epsilon: float = 1e-5
  dtype: Any = jnp.float32
  remat: bool = False
  scan: bool = False

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    train: bool = False,
    mask: jax.Array | None = None,
    cache: Cache | None = None,
    return_attention: bool = False,
  ) -> Any:
    """Runs T positions: a whole sequence, or the next ones of a stream.

    Args:
      x: [B, T, C].
      train: whether dropout acts; it then needs the rng 'dropout'.
      mask: bool [B, T]; False where a position is padding: no other attends to it, it attends to itself.
      cache: of the positions before x. Shapes are static, so a jitted step that overflows it cannot raise: h is NaN.
      return_attention: whether to return the attention weights too.

    Returns:
      h [B, T, C] after the final norm. With a cache (h, the cache with x in it). With `return_attention` a last part,
      the weights before dropout: f32 [B, L, H, T, T], the last axis being the cache's places where there is a cache.
    """
    self._check(x, cache)
    count, start = x.shape[1], 0 if cache is None else cache.length
    x = x.astype(self.dtype)
    if self.positions:
      position = self.param('position', nn.initializers.normal(0.02), (self.max_positions, self.width))
      x = x + jax.lax.dynamic_slice_in_dim(position, start, count).astype(self.dtype)
    if cache is not None:
      known = jnp.ones(x.shape[:2], bool) if mask is None else mask
      mask = write(cache.attendable, known, start, 1)
    view = View(_pairs(count, start, mask, self.causal), start, train, return_attention)
    x, new, weights = self._blocks(x, None if cache is None else (cache.key, cache.value), view)
    out = [LayerNorm(self.epsilon, self.dtype, name='norm')(x)]
    if cache is not None:
      out = [jnp.where(start + count <= cache.places, out[0], jnp.nan), cache.extend(*new, known)]
    if return_attention:
      out.append(jnp.swapaxes(weights, 0, 1))
    return tuple(out) if len(out) > 1 else out[0]

  def _blocks(self, x: jax.Array, past: Past | None, view: View) -> tuple[jax.Array, Past | None, jax.Array | None]:
    """x through all blocks; what they add to a cache if there is one, their weights [L, B, H, T, M] if wanted."""
    block = functools.partial(
      Block, self.heads, self.mlp_dim or 4 * self.width, self.dropout, self.epsilon, self.dtype, _linear(self.depth)
    )

    def apply(module: nn.Module, x: jax.Array, past: Past | None) -> tuple[jax.Array, tuple[Any, Any]]:
      x, new, weights = module(x, past, view)
      return x, (None if past is None else new, weights)

    if self.remat:
      apply = nn.remat(apply, prevent_cse=not self.scan)
    if self.scan:
      layers = nn.scan(
        apply, variable_axes={'params': 0}, split_rngs={'params': True, 'dropout': True}, length=self.depth
      )
      x, extras = layers(block(name='blocks'), x, past)
    else:
      each = []
      for i in range(self.depth):
        x, extras = apply(block(name=f'block_{i}'), x, None if past is None else (past[0][i], past[1][i]))
        each.append(extras)
      added, weights = zip(*each, strict=True)
      weights = jnp.stack(weights) if view.attention else None
      extras = (None if past is None else tuple(zip(*added, strict=True)), weights)
    return x, *extras

  def empty_cache(self, batch: int, places: int = 0) -> Cache:
    """A cache for `batch` streams of up to `places` positions (0: max_positions)."""
    places = places or self.max_positions
    return Cache.empty(self.depth, batch, places, self.heads, self.width // self.heads, self.dtype, self.scan)

  def _check(self, x: jax.Array, cache: Cache | None) -> None:
    """Raises UserError for what static shapes, and a length that is known, show to be wrong."""
    if self.width % self.heads:
      raise UserError(f'{self.heads} attention heads do not divide the width {self.width}.')
    if x.shape[-1] != self.width:
      raise UserError(f'the decoder is {self.width} wide and was given embeddings of {x.shape[-1]}.')
    room, count = self.max_positions if self.positions else x.shape[1], x.shape[1]
    if cache is not None:
      if not self.causal:
        raise UserError('a decoder with causal=False cannot be streamed: past outputs would change with every input.')
      if self.positions and cache.places > room:
        raise UserError(f'the cache has {cache.places} places, the decoder {room} positions (max_positions).')
      room = cache.places
      if not isinstance(cache.length, jax.core.Tracer):
        count += int(cache.length)
    if count > room:
      raise UserError(f'{count} positions do not fit into {room}: give a shorter sequence or raise max_positions.')


def _linear(depth: int) -> Callable[..., nn.Module]:
  """Makes a block's linear layers with GPT-2's initial values: `normal(0.02)`, scaled by 1 / sqrt(2 depth) where they
  add to the residual stream, as two per block do."""

  def make(features: int, *, name: str, **options: Any) -> nn.Module:
    deviation = 0.02 * (2 * depth) ** -0.5 if name in ('out', 'down') else 0.02
    return dense(features, name=name, **{**options, 'kernel_init': normal(deviation)})

  return make


def normal(deviation: float) -> Callable[..., jax.Array]:
  """The initial values of a kernel [inputs, outputs]: N(0, deviation), wider where there are fewer than 768 inputs.

  768 is the width of the smallest GPT-2; below it the deviation grows so that the layer's gain stays. (Our choice: with
  0.02 as it is, a decoder 64 wide starts at a third of that gain and learns more slowly; next-action accuracy after 600
  steps of the last-step rows of video/arr/mechanisms.py: 0.69 and 0.74 against 0.79 and 0.81.)
  """

  def initial(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    return deviation * max(1.0, (SMALLEST / shape[0]) ** 0.5) * jax.random.normal(key, shape, dtype)

  return initial


def _pairs(count: int, start: jax.Array | int, mask: jax.Array | None, causal: bool) -> jax.Array | None:
  """Which of `count` positions from `start` on may attend to which: bool [B or 1, 1, T, M], None for all.

  Every position may attend to itself, padding too: its row would otherwise be without any pair.
  """
  if mask is None and not causal:
    return None
  rows = start + jnp.arange(count)[:, None]
  columns = jnp.arange(count if mask is None else mask.shape[1])[None]
  pairs = jnp.ones((1, count, columns.shape[1]), bool)
  if causal:
    pairs &= columns <= rows
  if mask is not None:
    pairs &= mask[:, None] | (columns == rows)
  return pairs[:, None]
