"""A pre-norm transformer: the block, and a stack of blocks. Knows no modality and no paper.

Images, clips, sentences and latents are all token sequences [B, N, C] here. What a part may need to know about where
the tokens come from travels beside them as `Tokens`. Papers change blocks in two ways, both given from outside:

  adapter  an `Adapter`: a module beside ('parallel') or behind ('sequential') attention and MLP (`core.nn.adapters`)
  dense    what makes the block's linear layers: `core.nn.layers.dense`, or `core.nn.adapters.lora(...)`
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError
from core.nn.layers import LayerNorm, attention, dense, gelu

POSITIONS = ('parallel', 'sequential')


@dataclasses.dataclass(frozen=True)
class Tokens:
  """How a sequence is laid out: `prefix` tokens without a place (class, register), then a row-major grid.

  Attributes:
    prefix: number of tokens before the grid.
    grid: (rows, columns) of an image, (frames, rows, columns) of a clip, () for a sequence without a grid.
  """

  prefix: int = 0
  grid: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Adapter:
  """A module to attach to every block, once at its attention and once at its MLP.

  Attributes:
    make: `make(name=...)` -> module, called as `module(x, tokens, deterministic)` with x [B, N, C], giving [B, N, C].
    position: 'parallel': y = sublayer(norm(x)) + module(norm(x)); 'sequential': y = module(sublayer(norm(x))).
      The block then adds y to x.
  """

  make: Callable[..., nn.Module]
  position: str

  def __post_init__(self):
    if self.position not in POSITIONS:
      raise ValueError(f"an adapter's position is 'parallel' or 'sequential', not '{self.position}'.")


class SelfAttention(nn.Module):
  """Multi-head self-attention with separate query, key and value layers.

  Attributes:
    heads: number of heads; divides the width.
    qkv_bias: whether query, key and value have biases, or the names of those that have one.
    dtype: compute type; parameters are f32.
    dense: makes the linear layers, with `nn.Dense`'s arguments.
  """

  heads: int
  qkv_bias: bool | tuple[str, ...] = True
  dtype: Any = jnp.float32
  dense: Callable[..., nn.Module] = dense

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """x [B, N, C] -> [B, N, C]; mask as in `core.nn.layers.attention`."""
    width = x.shape[-1]
    if width % self.heads:
      raise UserError(f'{self.heads} attention heads do not divide the width {width}.')
    linear = functools.partial(self.dense, width, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
    names = ('query', 'key', 'value')
    biased = (names if self.qkv_bias else ()) if isinstance(self.qkv_bias, bool) else self.qkv_bias
    query, key, value = (
      linear(use_bias=name in biased, name=name)(x).reshape(*x.shape[:-1], self.heads, width // self.heads)
      for name in names
    )
    return linear(name='out')(attention(query, key, value, mask=mask).reshape(x.shape))


class Mlp(nn.Module):
  """Linear, activation (the exact GELU by default), linear."""

  hidden: int
  dtype: Any = jnp.float32
  dense: Callable[..., nn.Module] = dense
  activation: Callable[[jax.Array], jax.Array] = gelu

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, N, C] -> [B, N, C]."""
    linear = functools.partial(self.dense, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
    return linear(x.shape[-1], name='down')(self.activation(linear(self.hidden, name='up')(x)))


class Block(nn.Module):
  """x += attention(norm(x)); x += mlp(norm(x)); an adapter at each of the two, if given."""

  heads: int
  mlp_dim: int
  qkv_bias: bool | tuple[str, ...] = True
  epsilon: float = 1e-6
  dtype: Any = jnp.float32
  adapter: Adapter | None = None
  dense: Callable[..., nn.Module] = dense
  activation: Callable[[jax.Array], jax.Array] = gelu

  @nn.compact
  def __call__(
    self, x: jax.Array, tokens: Tokens = Tokens(), deterministic: bool = True, mask: jax.Array | None = None
  ) -> jax.Array:
    """x [B, N, C] -> [B, N, C]."""
    norm = functools.partial(LayerNorm, self.epsilon, self.dtype)
    h = norm(name='norm_attention')(x)
    y = SelfAttention(self.heads, self.qkv_bias, self.dtype, self.dense, name='attention')(h, mask)
    x = x + self._adapt('attention_adapter', h, y, tokens, deterministic)
    h = norm(name='norm_mlp')(x)
    y = Mlp(self.mlp_dim, self.dtype, self.dense, self.activation, name='mlp')(h)
    return x + self._adapt('mlp_adapter', h, y, tokens, deterministic)

  def _adapt(self, name: str, h: jax.Array, y: jax.Array, tokens: Tokens, deterministic: bool) -> jax.Array:
    """The sublayer's output y with the adapter's part in it; h is the sublayer's input."""
    if self.adapter is None:
      return y
    module = self.adapter.make(name=name)
    if self.adapter.position == 'parallel':
      return y + module(h, tokens, deterministic)
    return module(y, tokens, deterministic)


class Encoder(nn.Module):
  """`depth` blocks and a final norm, unless `final_norm` is off.

  Attributes:
    depth: number of blocks.
    heads, mlp_dim, qkv_bias, epsilon, dtype, adapter, dense: of every block.
    remat: forget activations inside a block and compute them again on the way back: less memory, a third more time.
    scan: one traced block, run `depth` times over weights stacked on a leading layer axis: a deep model compiles like a
      shallow one. Parameters are then 'blocks/...' instead of 'block_0/...', 'block_1/...' (`stack_blocks`).
  """

  depth: int
  heads: int
  mlp_dim: int
  qkv_bias: bool | tuple[str, ...] = True
  epsilon: float = 1e-6
  dtype: Any = jnp.float32
  adapter: Adapter | None = None
  dense: Callable[..., nn.Module] = dense
  remat: bool = False
  scan: bool = False
  final_norm: bool = True

  @nn.compact
  def __call__(
    self, x: jax.Array, tokens: Tokens = Tokens(), deterministic: bool = True, mask: jax.Array | None = None
  ) -> jax.Array:
    """x [B, N, C] -> [B, N, C]."""
    block = functools.partial(
      Block, self.heads, self.mlp_dim, self.qkv_bias, self.epsilon, self.dtype, self.adapter, self.dense
    )

    def apply(module: nn.Module, x: jax.Array) -> jax.Array:
      return module(x, tokens, deterministic, mask)

    if self.remat:
      apply = nn.remat(apply, prevent_cse=not self.scan)
    if self.scan:
      layers = nn.scan(
        lambda module, x, _: (apply(module, x), None),
        variable_axes={'params': 0},
        split_rngs={'params': True, 'dropout': True},
        length=self.depth,
      )
      x, _ = layers(block(name='blocks'), x, None)
    else:
      for i in range(self.depth):
        x = apply(block(name=f'block_{i}'), x)
    return LayerNorm(self.epsilon, self.dtype, name='norm')(x) if self.final_norm else x


def stack_blocks(params: Mapping[str, Any]) -> dict[str, Any]:
  """Weights of a loop over blocks as those of a scan: {'.../block_0/p': x0, ...} -> {'.../blocks/p': [depth, ...]}.

  Args:
    params: {'/'-joined path: array}; other paths pass through.
  """
  stacked: dict[str, Any] = {}
  layers: dict[str, dict[int, Any]] = {}
  for path, leaf in params.items():
    match = re.search(r'(^|/)block_(\d+)/', path)
    if match is None:
      stacked[path] = leaf
    else:
      name = f'{path[: match.start()]}{match[1]}blocks/{path[match.end() :]}'
      layers.setdefault(name, {})[int(match[2])] = leaf
  for name, by_layer in layers.items():
    stack = np.stack if isinstance(by_layer[0], np.ndarray) else jnp.stack  # host arrays stay on the host
    stacked[name] = stack([by_layer[i] for i in range(len(by_layer))])
  return stacked


def unstack_blocks(params: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `stack_blocks`."""
  loose: dict[str, Any] = {}
  for path, leaf in params.items():
    match = re.search(r'(^|/)blocks/', path)
    if match is None:
      loose[path] = leaf
    else:
      head, tail = path[: match.start()] + match[1], path[match.end() :]
      loose |= {f'{head}block_{i}/{tail}': leaf[i] for i in range(leaf.shape[0])}
  return loose
