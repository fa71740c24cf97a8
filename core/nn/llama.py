"""The LLaMA family (Touvron et al. 2023: LLaMA 1 to 3, Vicuna, TinyLlama; Qwen 1.5 and 2 with `qkv_bias`).

Pre-norm blocks: RMSNorm, rotary positions, grouped-query attention, SwiGLU. Knows no paper and no text: what goes in
are embeddings [B, T, D], from `embed` or from anywhere else (soft tokens, images), what comes out are hidden states.

Parameters, as '/'-joined paths:

  embed/embedding [V, D]
  block_0/norm_attention/scale
  block_0/attention/{query, key, value, out}/kernel, with `qkv_bias` {query, key, value}/bias
  block_0/norm_mlp/scale
  block_0/mlp/{gate, up, down}/kernel
  norm/scale
  head/kernel [D, V], absent where `tied`

Public weights: `core.weights.llama`; low-rank updates: `dense=core.nn.adapters.lora(...)`. Generation:
`core.generation`. A stream, one jitted step for all of it:

  cache = network.empty_cache(batch, places)
  x = network.apply(variables, ids, method='embed')
  h, cache = jax.jit(network.apply)(variables, x, mask=mask, cache=cache)
  logits = network.apply(variables, h[:, -1], method='logits')
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from core.errors import UserError, nearest
from core.nn import adapters, rotary
from core.nn.cache import Cache, Past, of_layer, recalled, remember, write
from core.nn.gpt import normal
from core.nn.layers import attention, dense
from core.nn.rotary import Scaling


class RMSNorm(nn.Module):
  """x / sqrt(mean x^2 + epsilon) * scale over the last axis; statistics in f32."""

  epsilon: float
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [..., D] -> [..., D] in `dtype`."""
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:], self.param_dtype)
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt((wide * wide).mean(-1, keepdims=True) + self.epsilon)
    return wide.astype(self.dtype) * scale.astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class View:
  """What all blocks of one pass share.

  Attributes:
    pairs: bool [B or 1, 1, T, M]; True where a position (T) may attend to another (M).
    start: number of the cache's places before these.
    before: (key, value, pairs) of the caches that this one goes on from, keys and values of all layers.
    turn: (cos, sin) f32 [B, T, 1, head width / 2].
    dense: makes the linear layers, dropout decided.
  """

  pairs: jax.Array
  start: jax.Array | int
  before: tuple[tuple[Any, Any, jax.Array], ...]
  turn: tuple[jax.Array, jax.Array]
  dense: Callable[..., nn.Module]


class Attention(nn.Module):
  """Grouped-query self-attention with rotary positions: `heads` queries share `kv_heads` keys and values."""

  heads: int
  kv_heads: int
  head_dim: int
  qkv_bias: bool
  depth: int

  @nn.compact
  def __call__(self, x: jax.Array, past: Past | None, layer: jax.Array | int, view: View) -> tuple[jax.Array, Any]:
    """x [B, T, D] -> ([B, T, D], the cache's keys and values with those of x in them)."""
    linear = functools.partial(view.dense, kernel_init=normal(0.02), use_bias=self.qkv_bias)
    query, key, value = (
      linear(count * self.head_dim, name=name)(x).reshape(*x.shape[:-1], count, self.head_dim)
      for name, count in (('query', self.heads), ('key', self.kv_heads), ('value', self.kv_heads))
    )
    query, key = rotary.turned(query, *view.turn), rotary.turned(key, *view.turn)
    if past is None:
      y = _grouped(query, key, value, view.pairs)
    else:
      past, known = remember(past, (key, value), layer, view.start)
      before = ((of_layer(key, layer), of_layer(value, layer), pairs) for key, value, pairs in view.before)
      y = recalled(query, [(*known, view.pairs), *before])
    y = y.reshape(*x.shape[:-1], -1)
    out = view.dense(x.shape[-1], name='out', use_bias=False, kernel_init=normal(0.02 * (2 * self.depth) ** -0.5))
    return out(y), past


class Mlp(nn.Module):
  """down(silu(gate x) * up x)."""

  hidden: int
  depth: int

  @nn.compact
  def __call__(self, x: jax.Array, view: View) -> jax.Array:
    """x [B, T, D] -> [B, T, D]."""
    linear = functools.partial(view.dense, use_bias=False)
    gate, up = (linear(self.hidden, name=name, kernel_init=normal(0.02))(x) for name in ('gate', 'up'))
    down = linear(x.shape[-1], name='down', kernel_init=normal(0.02 * (2 * self.depth) ** -0.5))
    return down(jax.nn.silu(gate) * up)


class Block(nn.Module):
  """x += attention(norm(x)); x += mlp(norm(x))."""

  attention: Callable[..., nn.Module]
  mlp: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: jax.Array, past: Past | None, layer: jax.Array | int, view: View) -> tuple[jax.Array, Any]:
    """As `Attention`."""
    y, past = self.attention(name='attention')(self.norm(name='norm_attention')(x), past, layer, view)
    x = x + y
    return x + self.mlp(name='mlp')(self.norm(name='norm_mlp')(x), view), past


class Llama(nn.Module):
  """Embeddings to hidden states (call), ids to embeddings (`embed`), hidden states to logits (`logits`).

  Attributes:
    vocabulary: V.
    width: D.
    depth: number of blocks.
    heads, kv_heads: of queries; of keys and values, which divides it.
    mlp_dim: hidden width of the MLPs.
    head_dim: width of one head, even; 0: width / heads.
    max_positions: the context: length of the longest sequence, prompt and answer together.
    theta: base of the rotary frequencies.
    scaling: of them, or None.
    epsilon: of the norms.
    tied: whether the head is the embedding, transposed.
    qkv_bias: whether query, key and value have biases (Qwen).
    dtype: compute type.
    param_dtype: of all parameters but low-rank updates, which are f32: a frozen base may lie in bf16.
    dense: makes the linear layers: `core.nn.layers.dense` or `core.nn.adapters.lora(...)`.
    remat: forget activations inside a block and compute them again on the way back.
    scan: one traced block, run `depth` times over weights stacked on a leading axis: paths are then 'blocks/...'
      (`core.nn.transformer.stack_blocks`).
  """

  vocabulary: int
  width: int
  depth: int
  heads: int
  kv_heads: int
  mlp_dim: int
  head_dim: int = 0
  max_positions: int = 2048
  theta: float = 10000.0
  scaling: Scaling | None = None
  epsilon: float = 1e-5
  tied: bool = False
  qkv_bias: bool = False
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  dense: Callable[..., nn.Module] = dense
  remat: bool = False
  scan: bool = False

  def setup(self) -> None:
    self._check_fields()
    norm = functools.partial(RMSNorm, self.epsilon, self.dtype, self.param_dtype)
    block = functools.partial(
      Block,
      functools.partial(Attention, self.heads, self.kv_heads, self._head_dim, self.qkv_bias, self.depth),
      functools.partial(Mlp, self.mlp_dim, self.depth),
      norm,
    )
    self._embed = nn.Embed(
      self.vocabulary, self.width, dtype=self.dtype, param_dtype=self.param_dtype, embedding_init=normal(0.02),
      name='embed',
    )  # fmt: skip
    if self.scan:
      self._blocks = block(name='blocks')
    else:
      self._blocks = [block(name=f'block_{i}') for i in range(self.depth)]
    self._norm = norm(name='norm')
    if not self.tied:
      shape = (self.width, self.vocabulary)
      self._head = self.param('head', lambda key: {'kernel': normal(0.02)(key, shape, self.param_dtype)})

  def __call__(
    self,
    x: jax.Array,
    *,
    mask: jax.Array | None = None,
    positions: jax.Array | None = None,
    cache: Cache | None = None,
    train: bool = False,
  ) -> Any:
    """Runs T positions: whole sequences, or the next ones of a stream.

    Args:
      x: embeddings [B, T, D].
      mask: bool [B, T]; False where a position is padding, on either side or between: no other attends to it.
      positions: i32 [B, T]; None: they count valid positions only, those in the cache first, so that padding does not
        shift them.
      cache: of the positions before x. Shapes are static, so a jitted step that overflows it cannot raise: h is NaN.
      train: whether the dropout of low-rank updates acts; it then needs the rng 'dropout'.

    Returns:
      h [B, T, D] after the final norm; with a cache (h, the cache with x in it).
    """
    self._check(x, cache)
    if self.is_initializing():
      self._embed(jnp.zeros((), jnp.int32))
    count, start = x.shape[1], 0 if cache is None else cache.length
    known = jnp.ones(x.shape[:2], bool) if mask is None else mask
    valid, seen, before = known, 0, []
    if cache is not None:
      valid = write(cache.attendable, known, start, 1)
      for each in cache.line():
        seen += jnp.repeat(each.attendable.sum(-1, keepdims=True), len(x) // len(each.attendable), axis=0)
        before.append((each.key, each.value, each.attendable[:, None, None]))
    if positions is None:
      positions = seen + jnp.maximum(jnp.cumsum(known, axis=-1) - 1, 0)
    linear = functools.partial(adapters.training(self.dense, train), dtype=self.dtype, param_dtype=self.param_dtype)
    turn = rotary.angles(positions, self._head_dim, self.theta, self.scaling)
    view = View(_pairs(valid, start, count), start, tuple(before[1:]), turn, linear)
    past = None if cache is None else (cache.key, cache.value)
    x, past = self._run(x.astype(self.dtype), past, view)
    h = self._norm(x)
    if cache is None:
      return h
    cache = cache.replace(key=past[0], value=past[1], attendable=valid, length=start + count)
    return jnp.where(start + count <= cache.places, h, jnp.nan), cache

  def embed(self, ids: jax.Array) -> jax.Array:
    """i32 [...] -> [..., D]."""
    return self._embed(ids)

  def logits(self, hidden: jax.Array) -> jax.Array:
    """[..., D], as called for -> f32 [..., V]."""
    hidden = hidden.astype(self.dtype)
    if self.tied:
      kernel = self._embed.embedding.astype(self.dtype)
      return jnp.einsum('...d,vd->...v', hidden, kernel, preferred_element_type=jnp.float32)
    kernel = self._head['kernel'].astype(self.dtype)
    return jnp.einsum('...d,dv->...v', hidden, kernel, preferred_element_type=jnp.float32)

  def empty_cache(self, batch: int, places: int) -> Cache:
    """A cache for `batch` streams of up to `places` positions."""
    return Cache.empty(self.depth, batch, places, self.kv_heads, self._head_dim, self.dtype, stacked=self.scan)

  @property
  def _head_dim(self) -> int:
    return self.head_dim or self.width // self.heads

  def _run(self, x: jax.Array, past: Past | None, view: View) -> tuple[jax.Array, Past | None]:
    """x through all blocks, and the cache's arrays with what they add."""

    def apply(block: nn.Module, carried: Any, layer: jax.Array | int) -> tuple[Any, None]:
      return block(*carried, layer, view), None

    if self.remat and past is None:  # nothing flows back through a cache
      apply = nn.remat(apply, prevent_cse=not self.scan)
    if self.scan:
      layers = nn.scan(
        apply, variable_axes={'params': 0}, split_rngs={'params': True, 'dropout': True}, length=self.depth
      )
      return layers(self._blocks, (x, past), jnp.arange(self.depth))[0]
    for i, block in enumerate(self._blocks):
      (x, past), _ = apply(block, (x, past), i)
    return x, past

  def _check_fields(self) -> None:
    """Raises UserError for sizes that do not go together."""
    if self.heads % self.kv_heads:
      raise UserError(f'{self.kv_heads} heads of keys and values do not divide the {self.heads} of queries.')
    if not self.head_dim and self.width % self.heads:
      raise UserError(f'{self.heads} attention heads do not divide the width {self.width}: give head_dim.')
    if self._head_dim % 2:
      raise UserError(f'heads are {self._head_dim} wide; rotary positions need an even number.')

  def _check(self, x: jax.Array, cache: Cache | None) -> None:
    """Raises UserError for what static shapes, and a length that is known, show to be wrong."""
    if x.shape[-1] != self.width:
      raise UserError(f'the language model is {self.width} wide and was given embeddings of {x.shape[-1]}.')
    room, count = self.max_positions, x.shape[1]
    if cache is not None:
      if (places := sum(each.places for each in cache.line())) > room:
        raise UserError(
          f'the cache has {places} places, the context of the language model is {room} positions'
          ' (max_positions): give a shorter prompt or ask for fewer new tokens.'
        )
      room = cache.places
      if not isinstance(cache.length, jax.core.Tracer):
        count += int(cache.length)
    if count > room:
      raise UserError(
        f'{count} positions do not fit into {room}: give a shorter prompt, or a language model of longer context.'
      )


def _grouped(query: jax.Array, key: jax.Array, value: jax.Array, pairs: jax.Array) -> jax.Array:
  """Attention of query [B, T, H, D] over key and value [B, M, K, D]: query head h looks at head h // (H / K).

  The queries of a group become further rows of one head: keys and values are not repeated.
  """
  batch, count, heads, width = query.shape
  groups = heads // key.shape[2]
  rows = query.reshape(batch, count, key.shape[2], groups, width).swapaxes(2, 3)
  rows = rows.reshape(batch, count * groups, key.shape[2], width)
  y = attention(rows, key, value, mask=jnp.repeat(pairs, groups, axis=2))
  return y.reshape(batch, count, groups, key.shape[2], width).swapaxes(2, 3).reshape(query.shape)


def _pairs(valid: jax.Array, start: jax.Array | int, count: int) -> jax.Array:
  """Which of `count` positions from place `start` on may attend to which: bool [B, 1, T, M] from valid bool [B, M].

  Every position may attend to itself, padding too: its row would otherwise be without any pair.
  """
  rows, columns = start + jnp.arange(count)[:, None], jnp.arange(valid.shape[1])[None]
  return ((columns <= rows) & (valid[:, None] | (columns == rows)))[:, None]


def sharding(prefix: str = '') -> tuple[tuple[str, PartitionSpec], ...]:
  """Rules for `core.train.task.Stage.sharding`, for the parameters whose path begins with `prefix`.

  Layers that fan out divide their outputs over 'tensor', those that add to the residual stream their inputs, and each
  the other axis over 'fsdp' (Shoeybi et al. 2019): one sum over 'tensor' per sublayer. Low-rank updates and norms are
  copied: they are small.
  """
  outward, inward, copied = ('fsdp', 'tensor'), ('tensor', 'fsdp'), PartitionSpec()
  start = f'^{prefix}'
  rules = [(rf'{start}.*(lora_[ab]|scale)$', copied)]
  for blocks, stacked in ((r'blocks/', (None,)), (r'block_\d+/', ())):
    inside = rf'{start}(.*/)?{blocks}(attention|mlp)/'
    rules += [
      (rf'{inside}(query|key|value|gate|up)/kernel$', PartitionSpec(*stacked, *outward)),
      (rf'{inside}(out|down)/kernel$', PartitionSpec(*stacked, *inward)),
      (rf'{inside}(query|key|value)/bias$', PartitionSpec(*stacked, 'tensor')),
    ]
  return (*rules, (rf'{start}(.*/)?embed/embedding$', PartitionSpec(*inward)),
          (rf'{start}(.*/)?head/kernel$', PartitionSpec(*outward)))  # fmt: skip


SHARDING = sharding()
"""`sharding` wherever the network stands."""

_LLAMA = {'vocabulary': 32000, 'width': 4096, 'depth': 32, 'heads': 32, 'kv_heads': 32, 'mlp_dim': 11008}
_LLAMA2 = {**_LLAMA, 'max_positions': 4096}
_LLAMA3 = {
  **_LLAMA, 'vocabulary': 128256, 'kv_heads': 8, 'mlp_dim': 14336, 'max_positions': 8192, 'theta': 500000.0,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
  'tiny': {
    'vocabulary': 512, 'width': 64, 'depth': 2, 'heads': 4, 'kv_heads': 2, 'mlp_dim': 176, 'max_positions': 512,
  },
  'tinyllama_1b': {**_LLAMA, 'width': 2048, 'depth': 22, 'kv_heads': 4, 'mlp_dim': 5632},
  'llama_7b': {**_LLAMA, 'epsilon': 1e-6},
  'llama2_7b': _LLAMA2,
  'llama2_13b': {**_LLAMA2, 'width': 5120, 'depth': 40, 'heads': 40, 'kv_heads': 40, 'mlp_dim': 13824},
  'vicuna_7b': _LLAMA2,
  'llama3_8b': _LLAMA3,
  'llama3.1_8b': {**_LLAMA3, 'max_positions': 131072, 'scaling': Scaling('llama3', 8.0, 8192)},
  'llama3.2_1b': {
    **_LLAMA3, 'width': 2048, 'depth': 16, 'mlp_dim': 8192, 'max_positions': 131072, 'tied': True,
    'scaling': Scaling('llama3', 32.0, 8192),
  },
  'qwen1.5_1.8b': {
    'vocabulary': 151936, 'width': 2048, 'depth': 24, 'heads': 16, 'kv_heads': 16, 'mlp_dim': 5504,
    'max_positions': 32768, 'theta': 1000000.0, 'epsilon': 1e-6, 'qkv_bias': True,
  },
}  # fmt: skip
"""Arguments of `Llama` by name; 'vicuna_7b' is version 1.5, on LLaMA-2 (its earlier versions are 'llama_7b')."""


def build(variant: str, **changes: Any) -> Llama:
  """A `Llama` of a public size, with `changes` to its arguments."""
  if variant not in VARIANTS:
    raise UserError(f"language model '{variant}', expected one of {sorted(VARIANTS)}.{nearest(variant, VARIANTS)}")
  return Llama(**{**VARIANTS[variant], **changes})
