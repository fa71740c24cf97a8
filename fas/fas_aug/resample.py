"""Resizing by weighted rows, with sizes that may be traced: each output row is a weighted sum of a few input rows.

OpenCV's conventions (half-pixel centres, no antialiasing but for 'area', cubic with a = -0.75), so that results agree
with cv2.resize on floats. Rows are gathered: with a few taps that is several times faster on a CPU than a dense matrix.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fas.fas_aug.staging import stage

FILTERS = ('area', 'linear', 'cubic', 'nearest')


class Taps(NamedTuple):
  """For each of n output rows the T input rows it is made of."""

  index: jax.Array  # int32 [n, T]
  weight: jax.Array  # f32 [n, T]


def _around(position: jax.Array, offsets: tuple[int, ...], weights, source: int) -> Taps:
  """Taps at floor(position) + offsets, borders repeated; `weights` takes the fraction to T weights."""
  base = jnp.floor(position)
  index = base.astype(jnp.int32)[..., None] + jnp.array(offsets)
  return Taps(jnp.clip(index, 0, source - 1), jnp.stack(weights(position - base), -1))


def _cubic(a: float):
  """The four weights of a cubic convolution kernel with parameter `a`."""

  def near(t):
    return ((a + 2) * t - (a + 3)) * t * t + 1

  def far(t):
    return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a

  return lambda f: (far(1 + f), near(f), near(1 - f), far(2 - f))


def nearest(row: jax.Array, source: int | jax.Array, target: int | jax.Array) -> Taps:
  """Row floor(row * source / target), in whole numbers."""
  return Taps((row * source // target)[..., None], jnp.ones((*row.shape, 1)))


def linear(row: jax.Array, source: int | jax.Array, target: int | jax.Array) -> Taps:
  """The two neighbours."""
  return _around((row + 0.5) * (source / target) - 0.5, (0, 1), lambda f: (1 - f, f), source)


def cubic(row: jax.Array, source: int, target: int | jax.Array, a: float = -0.75) -> Taps:
  """The four neighbours; a = -0.75 is OpenCV's kernel, -0.5 Pillow's."""
  return _around((row + 0.5) * (source / target) - 0.5, (-1, 0, 1, 2), _cubic(a), source)


def area(row: jax.Array, source: int, target: int | jax.Array, taps: int) -> Taps:
  """The mean over the row's extent in the source, for target <= source; `taps` >= source / target + 1."""
  scale = source / target
  low = (row * scale)[..., None]
  first = jnp.floor(low + 1e-4)  # an extent that ends on a row's edge takes nothing of that row
  place = first + jnp.arange(taps)
  weight = jnp.clip(jnp.minimum(place + 1, low + scale) - jnp.maximum(place, low), 0, 1)
  return Taps(jnp.clip(place, 0, source - 1).astype(jnp.int32), weight / weight.sum(-1, keepdims=True))


def _padded(taps: Taps, width: int) -> Taps:
  extra = [(0, 0)] * (taps.index.ndim - 1) + [(0, width - taps.index.shape[-1])]
  return Taps(jnp.pad(taps.index, extra), jnp.pad(taps.weight, extra))


def down_and_up(size: int, middle: jax.Array, shrink: jax.Array, smooth: jax.Array, taps: int) -> Taps:
  """Shrinks an axis to `middle` rows and enlarges it again to `size`, as one set of taps.

  Args:
    size: rows, static.
    middle: rows in between, int32 scalar in [1, size], may be traced.
    shrink: index into `FILTERS`, may be traced.
    smooth: enlarge by 'linear' where true, by 'nearest' where false.
    taps: width of the widest shrinking filter, static, >= size / middle + 1 and >= 4.
  """
  row = jnp.arange(size)
  up = linear(row, middle, size)
  still = nearest(row, middle, size)
  inner = jnp.where(smooth, up.index, still.index)  # [size, 2]
  outer_weight = jnp.where(smooth, up.weight, jnp.array([1.0, 0.0]))
  branches = [lambda: area(inner, size, middle, taps)]
  branches += [lambda f=f: _padded(f(inner, size, middle), taps) for f in (linear, cubic, nearest)]
  down = jax.lax.switch(shrink, branches)
  return Taps(down.index.reshape(size, -1), (outer_weight[..., None] * down.weight).reshape(size, -1))


def rows(x: jax.Array, taps: Taps) -> jax.Array:
  """[H, ...] -> [n, ...]."""

  def mix(flat, index, weight):
    return sum(weight[:, t, None] * flat[index[:, t]] for t in range(index.shape[1]))

  return stage(mix, x.reshape(x.shape[0], -1), *taps).reshape(taps.index.shape[0], *x.shape[1:])


def both(image: jax.Array, vertical: Taps, horizontal: Taps) -> jax.Array:
  """[H, W, ...] resampled along both of its first axes."""
  turned = stage(lambda x: jnp.swapaxes(x, 0, 1), rows(image, vertical))
  return jnp.swapaxes(rows(turned, horizontal), 0, 1)
