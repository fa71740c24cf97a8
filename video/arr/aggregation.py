"""What makes p_k, the expected feature of clip k + 1, of the clips z_1..z_k: the decoder G of ARR and its rivals.

  decoder  causal masked self-attention, GPT-2 blocks between two projections (spec 3.3)
  last     z_k alone
  mean     the mean of z_1..z_k, which knows no order
  lstm     an LSTM over z_1..z_k (as RULSTM, one layer)

The rivals are the temporal aggregations that the paper says are less effective (spec 7, ablation a). All of them end in
the same bias-free projection W_out into the space of z, and all can be fed clip by clip with a cache. Projections start
as N(0, 0.01) (AVT), the GPT-2 blocks as N(0, 0.02) with scaled residual projections; both at widths of 768 and more,
with the same gain at smaller ones (`core.nn.gpt.normal`).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from core.errors import UserError, nearest
from core.nn import gpt
from core.nn.layers import dense

AGGREGATIONS = ('decoder', 'last', 'mean', 'lstm')


def projection(features: int, name: str) -> nn.Module:
  """A linear layer without bias."""
  return dense(features, use_bias=False, kernel_init=gpt.normal(0.01), name=name)


class Decoder(nn.Module):
  """h^0_k = W_in z_k + e_k; GPT-2 blocks; p_k = W_out LN_f(h^L_k).

  Attributes:
    features: D.
    gpt: blocks of width d, which add the positions e and hold the final norm.
  """

  features: int
  gpt: gpt.Decoder

  @nn.compact
  def __call__(self, z: jax.Array, *, train: bool = False, cache: Any = None, return_attention: bool = False) -> Any:
    """z [B, T, D] -> p f32 [B, T, D]; (p, cache) with a cache; (p, attention f32 [B, L, H, T, T]) if asked for."""
    out = self.gpt(projection(self.gpt.width, 'input')(z), train=train, cache=cache, return_attention=return_attention)
    h, *rest = out if isinstance(out, tuple) else (out,)
    p = projection(self.features, 'output')(h.astype(jnp.float32))
    return (p, *rest) if rest else p

  def empty_cache(self, batch: int) -> Any:
    """Of no clip, for `batch` streams."""
    return self.gpt.empty_cache(batch)


class Last(nn.Module):
  """p_k = W_out z_k."""

  features: int

  @nn.compact
  def __call__(self, z: jax.Array, *, train: bool = False, cache: Any = None) -> Any:
    """z [B, T, D] -> p [B, T, D]; (p, cache) where one is given."""
    del train
    p = projection(self.features, 'output')(z)
    return p if cache is None else (p, cache)

  def empty_cache(self, batch: int) -> Any:
    """Nothing is kept."""
    del batch
    return ()


class Mean(nn.Module):
  """p_k = W_out mean_{j <= k} z_j."""

  features: int

  @nn.compact
  def __call__(self, z: jax.Array, *, train: bool = False, cache: Any = None) -> Any:
    """z [B, T, D] -> p [B, T, D]; (p, cache) where one is given."""
    del train
    total, count = self.empty_cache(z.shape[0]) if cache is None else cache
    sums = total[:, None] + jnp.cumsum(z, axis=1)
    counts = count + 1 + jnp.arange(z.shape[1])
    p = projection(self.features, 'output')(sums / counts[:, None])
    return p if cache is None else (p, (sums[:, -1], counts[-1]))

  def empty_cache(self, batch: int) -> Any:
    """Sum f32 [B, D] and number of the clips so far."""
    return jnp.zeros((batch, self.features)), jnp.zeros((), jnp.int32)


class Recurrent(nn.Module):
  """p_k = W_out LSTM(z_1..z_k). Attributes: features: D; width: d of the LSTM."""

  features: int
  width: int

  @nn.compact
  def __call__(self, z: jax.Array, *, train: bool = False, cache: Any = None) -> Any:
    """z [B, T, D] -> p [B, T, D]; (p, cache) where one is given."""
    del train
    carry = self.empty_cache(z.shape[0]) if cache is None else cache
    lstm = nn.RNN(nn.OptimizedLSTMCell(self.width, name='lstm'), return_carry=True, name='rnn')
    carry, h = lstm(z, initial_carry=carry)
    p = projection(self.features, 'output')(h)
    return p if cache is None else (p, carry)

  def empty_cache(self, batch: int) -> Any:
    """Cell and output f32 [B, d]."""
    return jnp.zeros((batch, self.width)), jnp.zeros((batch, self.width))


def build(config: Any, *, features: int, clips: int, dtype: Any) -> nn.Module:
  """The aggregation of a section `config.model.decoder`.

  Args:
    config: aggregation (`AGGREGATIONS`), width (d of 'decoder' and 'lstm'), and of 'decoder': layers, heads, dropout,
      causal, positions (False, False: ablations).
    features: D.
    clips: T, the number of positions.
    dtype: compute type of the blocks.

  Raises:
    UserError: an aggregation that does not exist.
  """
  name = config.aggregation
  if name not in AGGREGATIONS:
    hint = nearest(name, AGGREGATIONS)
    raise UserError(f"model.decoder.aggregation is '{name}', expected one of {AGGREGATIONS}.{hint}")
  if name == 'last':
    return Last(features)
  if name == 'mean':
    return Mean(features)
  if name == 'lstm':
    return Recurrent(features, int(config.width))
  blocks = gpt.Decoder(
    depth=config.layers,
    heads=config.heads,
    width=config.width,
    max_positions=clips,
    dropout=config.dropout,
    causal=config.causal,
    positions=config.positions,
    dtype=dtype,
  )
  return Decoder(features, blocks)
