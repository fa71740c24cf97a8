"""Small trainable parts for a frozen transformer. They attach to any `core.nn.transformer.Block`.

  convpass(...)    parallel: a 3x3 convolution in a narrow space (Jie and Deng 2022, "Convolutional bypasses")
  bottleneck(...)  sequential: h + W2 gelu(W1 h) behind each sublayer (Houlsby et al. 2019; "ViT-Adapter" in FAS-Aug)
  lora(...)        low-rank updates of named linear layers (Hu et al. 2021)

Each starts as an exact no-op. `is_adapter` tells their parameters from the rest.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError
from core.nn.layers import dense, gelu, quick_gelu
from core.nn.transformer import Adapter, Tokens

_xavier = nn.initializers.xavier_uniform
_zeros = nn.initializers.zeros


def is_adapter(path: str) -> bool:
  """Whether the parameter at a '/'-joined path belongs to an adapter."""
  return any(part.endswith('_adapter') or part in ('lora_a', 'lora_b') for part in path.split('/'))


def convpass(hidden: int = 8, dropout: float = 0.1, scale: float = 1.0, dtype: Any = jnp.float32) -> Adapter:
  """`ConvPass` beside attention and MLP."""
  return Adapter(functools.partial(ConvPass, hidden, dropout, scale, dtype), 'parallel')


def bottleneck(hidden: int, dtype: Any = jnp.float32) -> Adapter:
  """`Bottleneck` behind attention and MLP."""
  return Adapter(functools.partial(Bottleneck, hidden, dtype), 'sequential')


def lora(
  rank: int, alpha: float, targets: Sequence[str] = ('query', 'value'), dropout: float = 0.0
) -> Callable[..., nn.Module]:
  """What to give a block as `dense`: low-rank updates on the linear layers named in `targets`, plain ones elsewhere.

  Args:
    rank: r >= 1.
    alpha: the update is scaled by alpha / rank.
    targets: names of layers: 'query', 'key', 'value', 'out', 'up', 'down', of a LLaMA also 'gate'.
    dropout: probability of dropping a number of the update's input in training, for networks that say when they train
      (those that call `training`).
  """
  if rank < 1:
    raise UserError(f'LoRA rank is {rank}, expected at least 1.')
  if not 0 <= dropout < 1:
    raise UserError(f'LoRA dropout is {dropout}, expected a number from 0 up to 1.')
  return LoRA(rank, alpha, tuple(targets), dropout)


@dataclasses.dataclass(frozen=True)
class LoRA:
  """What `lora` returns; `train` is None until a network says whether its pass is one of training."""

  rank: int
  alpha: float
  targets: tuple[str, ...]
  dropout: float
  train: bool | None = None

  def __call__(self, features: int, *, name: str, **options: Any) -> nn.Module:
    """A linear layer, with `nn.Dense`'s arguments."""
    if name not in self.targets:
      return dense(features, name=name, **options)
    if self.dropout and self.train is None:
      raise UserError(f'LoRA dropout is {self.dropout}, but this network does not say when it trains: expected 0.')
    dropout = self.dropout if self.train else 0.0
    return LoRADense(features, rank=self.rank, alpha=self.alpha, dropout=dropout, name=name, **options)


def training(linear: Callable[..., nn.Module], train: bool) -> Callable[..., nn.Module]:
  """`linear`, a maker of layers such as `lora(...)`, for a pass in which dropout acts or does not."""
  return dataclasses.replace(linear, train=train) if isinstance(linear, LoRA) else linear


class ConvPass(nn.Module):
  """Down to a few channels, a 3x3 convolution over the token grid, and up again.

  down -> QuickGELU -> the same convolution on the grid and on every prefix token as a 1x1 image -> QuickGELU -> dropout
  -> up. A grid with more than two axes (a clip) is convolved frame by frame.

  Attributes:
    hidden: channels of the convolution.
    dropout: probability of dropping a hidden number in training.
    scale: factor of the output.
    dtype: compute type.
  """

  hidden: int = 8
  dropout: float = 0.1
  scale: float = 1.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, tokens: Tokens, deterministic: bool) -> jax.Array:
    """x [B, N, C] -> [B, N, C]."""
    if len(tokens.grid) < 2 or tokens.prefix + int(np.prod(tokens.grid)) != x.shape[1]:
      raise UserError(f'ConvPass needs an image grid; {x.shape[1]} tokens were declared as {tokens}.')
    h = quick_gelu(dense(self.hidden, dtype=self.dtype, kernel_init=_xavier(), name='down')(x))
    conv = nn.Conv(self.hidden, (3, 3), padding=1, dtype=self.dtype, kernel_init=_xavier(), name='conv')
    prefix, grid = h[:, : tokens.prefix], h[:, tokens.prefix :]
    convolved = conv(grid.reshape(-1, *tokens.grid[-2:], self.hidden)).reshape(grid.shape)
    if tokens.prefix:
      alone = conv(prefix.reshape(-1, 1, 1, self.hidden)).reshape(prefix.shape)
      convolved = jnp.concatenate([alone, convolved], axis=1)
    h = nn.Dropout(self.dropout)(quick_gelu(convolved), deterministic=deterministic)
    return self.scale * dense(x.shape[-1], dtype=self.dtype, kernel_init=_zeros, name='up')(h)


class Bottleneck(nn.Module):
  """h + up(GELU(down(h))); `up` starts at zero (our choice: an exact no-op)."""

  hidden: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, tokens: Tokens, deterministic: bool) -> jax.Array:
    """x [B, N, C] -> [B, N, C]."""
    del tokens, deterministic
    h = gelu(dense(self.hidden, dtype=self.dtype, kernel_init=_xavier(), name='down')(x))
    return x + dense(x.shape[-1], dtype=self.dtype, kernel_init=_zeros, name='up')(h)


class LoRADense(nn.Module):
  """x W + b + (alpha / rank) (drop(x) A) B, with W and b under `nn.Dense`'s own names: public weights load as ever.

  A starts uniform in +-1/sqrt(fan in) (torch's default for a linear layer, as in the reference), B at zero. A and B are
  f32 whatever W is: a frozen W may lie in bf16.
  """

  features: int
  rank: int
  alpha: float
  use_bias: bool = True
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  kernel_init: Callable[..., jax.Array] = _xavier()
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [..., C] -> [..., features]."""
    uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
    kernel = self.param('kernel', self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
    down = self.param('lora_a', uniform, (x.shape[-1], self.rank))
    up = self.param('lora_b', _zeros, (self.rank, self.features))
    x, kernel, down, up = (value.astype(self.dtype) for value in (x, kernel, down, up))
    dropped = nn.Dropout(self.dropout)(x, deterministic=self.dropout == 0)
    y = x @ kernel + (self.alpha / self.rank) * ((dropped @ down) @ up)
    if self.use_bias:
      y = y + self.param('bias', _zeros, (self.features,), self.param_dtype).astype(self.dtype)
    return y


def merge_lora(params: Mapping[str, Any], alpha: float) -> dict[str, Any]:
  """Adds the low-rank updates into their kernels and drops them: the parameters of the plain network.

  Args:
    params: {'/'-joined path: array}, from a loop or from a scan over blocks.
    alpha: as given to `lora`; the rank is read from the arrays.
  """
  merged = {path: leaf for path, leaf in params.items() if path.split('/')[-1] not in ('lora_a', 'lora_b')}
  for path, down in params.items():
    if path.split('/')[-1] == 'lora_a':
      layer = path[: -len('lora_a')]
      update = jnp.matmul(down, params[f'{layer}lora_b'], precision='highest')
      kernel = merged[f'{layer}kernel']
      merged[f'{layer}kernel'] = (kernel + alpha / down.shape[-1] * update).astype(kernel.dtype)
  return merged
