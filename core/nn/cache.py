"""Keys and values of the positions that a causal decoder has seen, in arrays of a fixed size."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


class Cache(flax.struct.PyTreeNode):
  """P places for each of B rows, the first `length` of them filled; rows differ in which places may be attended.

  Attributes:
    key, value: [L, B, P, H, D], zero where nothing is yet; H may be fewer heads than the queries have.
    attendable: bool [B, P]; True where a position is filled and is not padding.
    length: i32 scalar.
  """

  key: jax.Array
  value: jax.Array
  attendable: jax.Array
  length: jax.Array

  @classmethod
  def empty(cls, layers: int, batch: int, places: int, heads: int, width: int, dtype: Any = jnp.float32) -> Cache:
    """A cache without a position; `width` is that of one head."""
    shape = (layers, batch, places, heads, width)  # two arrays: one twice could not be donated
    return cls(
      jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((batch, places), bool), jnp.zeros((), jnp.int32)
    )

  @property
  def places(self) -> int:
    """P, the number of positions that there is room for."""
    return self.key.shape[2]

  def extend(self, key: jax.Array, value: jax.Array, attendable: jax.Array) -> Cache:
    """The cache with N more positions: key, value [L, B, N, H, D], attendable bool [B, N]."""
    return Cache(
      write(self.key, key, self.length, 2),
      write(self.value, value, self.length, 2),
      write(self.attendable, attendable, self.length, 1),
      self.length + key.shape[2],
    )

  def take(self, rows: jax.Array) -> Cache:
    """The cache whose row i is this one's row rows[i]: i32 [B'], repeats allowed (beams that go on from another)."""
    key, value = (jnp.take(array, rows, axis=1, mode='clip') for array in (self.key, self.value))
    return self.replace(key=key, value=value, attendable=jnp.take(self.attendable, rows, axis=0, mode='clip'))


def write(array: jax.Array, update: jax.Array, start: jax.Array | int, axis: int) -> jax.Array:
  """`array` with `update` in it from `start` on along `axis`, in the array's dtype."""
  return jax.lax.dynamic_update_slice_in_dim(array, update.astype(array.dtype), start, axis)
