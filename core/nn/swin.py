"""The Swin transformer (Liu et al. 2021): attention inside windows that shift from block to block, on coarser grids.

A stage works on one grid; between stages 2 x 2 tokens become one of twice the width. Odd blocks shift the windows by
half a window: tokens that meet only because the shift wraps around do not attend to each other. Pixels are padded to
whole patches, grids to whole windows and to even sides, with zeros right and below, as transformers does.

Parameters, as '/'-joined paths:

  patches/{kernel [p, p, 3, C], bias}
  norm_patches/{scale, bias}
  stage_0/block_0/norm_attention/{scale, bias}
  stage_0/block_0/attention/{query, key, value, out}/{kernel, bias}
  stage_0/block_0/attention/offset [(2 window - 1)^2, heads]    a score per distance of two tokens
  stage_0/block_0/norm_mlp/{scale, bias}
  stage_0/block_0/mlp/{up, down}/{kernel, bias}
  stage_0/merge/norm/{scale, bias}                              of all stages but the last
  stage_0/merge/reduction/kernel [4 C, 2 C]
  norm/{scale, bias}

Public weights: `core.weights.swin`.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError, nearest
from core.nn.layers import MASKED, LayerNorm, dense
from core.nn.transformer import Mlp, Tokens
from core.nn.vit import Patches

VARIANTS = {  # all: patches of 4 pixels, windows of 7 tokens, 224 pixels
  'swin_tiny': {'width': 96, 'depths': (2, 2, 6, 2), 'heads': (3, 6, 12, 24)},
  'swin_small': {'width': 96, 'depths': (2, 2, 18, 2), 'heads': (3, 6, 12, 24)},
  'swin_base': {'width': 128, 'depths': (2, 2, 18, 2), 'heads': (4, 8, 16, 32)},
  'swin_large': {'width': 192, 'depths': (2, 2, 18, 2), 'heads': (6, 12, 24, 48)},
}

_initial = nn.initializers.truncated_normal(0.02)


class WindowAttention(nn.Module):
  """Multi-head self-attention inside each window, its scores offset by how far apart two tokens are.

  Attributes:
    heads: number of heads; divides the width.
    window: side of the window that the offsets are for; windows may be smaller.
    qkv_bias: whether query, key and value have biases.
    dtype: compute type; parameters are f32.
  """

  heads: int
  window: int
  qkv_bias: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, side: int, mask: np.ndarray | None) -> jax.Array:
    """x [B, M, N, C], M windows of N = side * side tokens; mask bool [M, N, N], True where a pair may attend."""
    width = x.shape[-1]
    if width % self.heads:
      raise UserError(f'{self.heads} attention heads do not divide the width {width}.')
    linear = functools.partial(dense, width, dtype=self.dtype, kernel_init=_initial)
    query, key, value = (
      linear(use_bias=self.qkv_bias, name=name)(x).reshape(*x.shape[:-1], self.heads, width // self.heads)
      for name in ('query', 'key', 'value')
    )
    offset = self.param('offset', _initial, ((2 * self.window - 1) ** 2, self.heads))
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = product('bmnhd,bmkhd->bmhnk', query * query.shape[-1] ** -0.5, key)
    scores = scores + jnp.moveaxis(offset[offsets(side, self.window)], -1, 0)
    if mask is not None:
      scores = jnp.where(mask[:, None], scores, MASKED)
    y = jnp.einsum('bmhnk,bmkhd->bmnhd', jax.nn.softmax(scores).astype(self.dtype), value)
    return linear(name='out')(y.reshape(x.shape))


class Block(nn.Module):
  """x += attention(norm(x)) in windows; x += mlp(norm(x)).

  Attributes:
    heads, window, qkv_bias, dtype: of the attention.
    mlp_ratio: hidden width of the MLP over the width.
    shifted: whether the windows are shifted by half their side.
    path_dropout: probability that a sample's sublayer is left out in training (stochastic depth).
    epsilon: of the norms.
  """

  heads: int
  window: int
  mlp_ratio: float = 4.0
  shifted: bool = False
  qkv_bias: bool = True
  path_dropout: float = 0.0
  epsilon: float = 1e-5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """x [B, rows, columns, C] -> the same shape."""
    _, rows, columns, width = x.shape
    norm = functools.partial(LayerNorm, self.epsilon, self.dtype)
    drop = functools.partial(nn.Dropout(self.path_dropout, broadcast_dims=(1, 2, 3)), deterministic=not train)
    # A grid that one window covers is not shifted; windows are never larger than the grid's shorter side.
    side = min(self.window, rows, columns)
    shift = side // 2 if self.shifted and min(rows, columns) > self.window else 0
    y = jnp.pad(norm(name='norm_attention')(x), ((0, 0), (0, -rows % side), (0, -columns % side), (0, 0)))
    grid = y.shape[1:3]
    y = jnp.roll(y, (-shift, -shift), (1, 2))
    layer = WindowAttention(self.heads, self.window, self.qkv_bias, self.dtype, name='attention')
    y = layer(_windows(y, side), side, together(grid, side, shift) if shift else None)
    y = jnp.roll(_grid(y, side, grid), (shift, shift), (1, 2))[:, :rows, :columns]
    x = x + drop(y)
    y = Mlp(int(self.mlp_ratio * width), self.dtype, name='mlp')(norm(name='norm_mlp')(x))
    return x + drop(y)


class Merge(nn.Module):
  """2 x 2 tokens side by side, a norm, a linear layer to twice the width."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, rows, columns, C] -> [B, (rows + 1) // 2, (columns + 1) // 2, 2 C]."""
    _, rows, columns, width = x.shape
    x = jnp.pad(x, ((0, 0), (0, rows % 2), (0, columns % 2), (0, 0)))
    x = jnp.concatenate([x[:, row::2, column::2] for column in range(2) for row in range(2)], axis=-1)
    x = LayerNorm(1e-5, self.dtype, name='norm')(x)
    return dense(2 * width, use_bias=False, dtype=self.dtype, kernel_init=_initial, name='reduction')(x)


class Stage(nn.Module):
  """Blocks on one grid, every second one shifted, and the merge to the next grid."""

  heads: int
  window: int
  mlp_ratio: float
  qkv_bias: bool
  path_dropout: tuple[float, ...]
  merge: bool
  epsilon: float = 1e-5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """x [B, rows, columns, C]; one block per entry of `path_dropout`."""
    for i, rate in enumerate(self.path_dropout):
      x = Block(
        self.heads, self.window, self.mlp_ratio, i % 2 == 1, self.qkv_bias, rate, self.epsilon, self.dtype,
        name=f'block_{i}',
      )(x, train)  # fmt: skip
    return Merge(self.dtype, name='merge')(x) if self.merge else x


class Swin(nn.Module):
  """Images to one feature each. Parameters do not depend on the image's size.

  Attributes:
    width: of the first stage; each further one has twice that of the one before.
    depths: blocks of every stage.
    heads: of every stage; divide its width.
    patch: side of a patch in pixels.
    window: side of a window in tokens.
    mlp_ratio, qkv_bias: see `Block`.
    path_dropout: that of the last block; it grows linearly from 0 at the first (Liu et al. 2021).
    epsilon: of the norms inside blocks and of the last one.
    dtype: compute type; parameters are f32.
  """

  width: int
  depths: tuple[int, ...]
  heads: tuple[int, ...]
  patch: int = 4
  window: int = 7
  mlp_ratio: float = 4.0
  qkv_bias: bool = True
  path_dropout: float = 0.0
  epsilon: float = 1e-5
  dtype: Any = jnp.float32

  @property
  def feature_width(self) -> int:
    """Channels of the feature and of the tokens."""
    return self.width * 2 ** (len(self.depths) - 1)

  def tokens(self, image_size: tuple[int, int]) -> Tokens:
    """How the tokens of an image of (height, width) are laid out."""
    grid = [-(-size // self.patch) for size in image_size]
    for _ in self.depths[1:]:
      grid = [(side + 1) // 2 for side in grid]
    return Tokens(0, tuple(grid))

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
    """images [B, H, W, 3] -> {'feature': [B, C] the mean over tokens, 'tokens': [B, N, C]}, after the final norm.

    In training with `path_dropout` it needs the rng 'dropout'.
    """
    if len(self.depths) != len(self.heads):
      raise UserError(f'a Swin of {len(self.depths)} stages with heads for {len(self.heads)}: expected one per stage.')
    height, width = images.shape[1:3]
    images = jnp.pad(images, ((0, 0), (0, -height % self.patch), (0, -width % self.patch), (0, 0)))
    x = Patches((self.patch, self.patch), self.width, self.dtype, name='patches')(images)
    x = LayerNorm(1e-5, self.dtype, name='norm_patches')(x)
    rates = [float(rate) for rate in np.linspace(0.0, self.path_dropout, sum(self.depths))]
    for i, (depth, heads) in enumerate(zip(self.depths, self.heads)):
      done = sum(self.depths[:i])
      x = Stage(
        heads, self.window, self.mlp_ratio, self.qkv_bias, tuple(rates[done : done + depth]), i + 1 < len(self.depths),
        self.epsilon, self.dtype, name=f'stage_{i}',
      )(x, train)  # fmt: skip
    x = LayerNorm(self.epsilon, self.dtype, name='norm')(x).reshape(x.shape[0], -1, x.shape[-1])
    return {'feature': x.mean(axis=1), 'tokens': x}


def build(variant: str, **options: Any) -> Swin:
  """The Swin of a name in `VARIANTS`, with any attribute of `Swin` changed."""
  if variant not in VARIANTS:
    raise UserError(f"there is no Swin '{variant}', expected one of {sorted(VARIANTS)}.{nearest(variant, VARIANTS)}")
  return Swin(**{**VARIANTS[variant], **options})


def offsets(side: int, window: int) -> np.ndarray:
  """Row of the table of a window's offsets for each pair of tokens of a window of `side`: int [side^2, side^2].

  Row (dy + window - 1) (2 window - 1) + (dx + window - 1) is for a query dy below and dx right of its key.
  """
  places = np.stack(np.divmod(np.arange(side * side), side), axis=-1)
  dy, dx = np.moveaxis(places[:, None] - places[None], -1, 0) + window - 1
  return dy * (2 * window - 1) + dx


def together(grid: tuple[int, int], side: int, shift: int) -> np.ndarray:
  """Which tokens of a shifted window were neighbours before the shift: bool [M, side^2, side^2].

  After the roll the last `shift` rows and columns of the grid are those that came from the other end.
  """
  bands = [(np.arange(n) >= n - side).astype(int) + (np.arange(n) >= n - shift) for n in grid]
  region = bands[0][:, None] * 3 + bands[1]
  region = _windows(region[None, ..., None], side)[0, ..., 0]
  return region[:, :, None] == region[:, None, :]


def _windows(x: Any, side: int) -> Any:
  """[B, rows, columns, C] -> [B, M, side^2, C], windows row by row."""
  batch, rows, columns, width = x.shape
  x = x.reshape(batch, rows // side, side, columns // side, side, width).swapaxes(2, 3)
  return x.reshape(batch, -1, side * side, width)


def _grid(x: jax.Array, side: int, grid: tuple[int, int]) -> jax.Array:
  """The inverse of `_windows` for a grid of (rows, columns)."""
  batch, width = x.shape[0], x.shape[-1]
  x = x.reshape(batch, grid[0] // side, grid[1] // side, side, side, width).swapaxes(2, 3)
  return x.reshape(batch, *grid, width)
