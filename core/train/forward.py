"""Forward passes over many rows, on the devices where the variables lie: what evaluators and predictors stand on.

Each process holds all rows, its devices compute their part of every batch; each process has all results.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from core.train import mesh as mesh_lib

Function = Callable[..., Any]
"""A jitted `function(variables, *arrays)` that gives a tree of arrays with one row per row."""


def in_batches(function: Function, variables: Any, arrays: Sequence[np.ndarray], batch_size: int) -> Any:
  """`function(variables, *rows of arrays)` over all rows, as a tree of host arrays [N, ...].

  Every call gets one number of rows: `batch_size`, or the next power of two where there are fewer rows (a single photo
  should not cost a batch), rounded up to the shards of the mesh that the variables lie on. The last row is repeated to
  fill the last call, and what the repeats give is dropped.
  """
  sharding = _batch_sharding(variables)
  count = len(arrays[0])
  size = _whole(min(batch_size, 1 << max(count - 1, 0).bit_length()), sharding)
  results = []
  for start in range(0, count, size):
    rows = np.minimum(np.arange(start, start + size), count - 1)
    results.append(function(variables, *(_placed(array[rows], sharding) for array in arrays)))
  return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *mesh_lib.host_arrays(results))


def over(function: Function, variables: Any, batches: Iterable[Mapping[str, Any]], fields: Sequence[str]) -> Any:
  """`function(variables, *fields of the batch)` over `core.data.pipeline.eval_batches`, as a tree of host arrays.

  Rows whose 'mask' is false are dropped.
  """
  results = []
  for arrays, kept in placed(variables, batches, fields):
    out = function(variables, *arrays)
    results.append(jax.tree.map(lambda leaf: leaf[kept], mesh_lib.host_arrays(out)))  # noqa: B023 - called at once
  return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def placed(
  variables: Any, batches: Iterable[Mapping[str, Any]], fields: Sequence[str]
) -> Iterator[tuple[list[Any], np.ndarray]]:
  """(the batch's fields where the variables lie, the rows of it that are not padding) for every batch, one at a time.

  A batch is let go before the next is read, so that pixels of many clips need not lie in memory at once; a batch that
  the shards do not divide has its last row repeated.
  """
  sharding = _batch_sharding(variables)
  for batch in batches:
    count = len(batch['mask'])
    rows = np.minimum(np.arange(_whole(count, sharding)), count - 1)
    yield [_placed(np.asarray(batch[field])[rows], sharding) for field in fields], np.flatnonzero(batch['mask'])


class Memo:
  """`compute(variables, key)`, kept per key as long as the same variables are asked about.

  Several evaluators need the same pass over a split; this makes it once.
  """

  def __init__(self, compute: Callable[[Any, str], Any]):
    self._compute = compute
    self._variables: list[weakref.ref] = []
    self._results: dict[str, Any] = {}

  def __call__(self, variables: Any, key: str) -> Any:
    """The result for these variables (the same arrays, not equal ones)."""
    leaves = jax.tree.leaves(variables)
    if len(leaves) != len(self._variables) or any(known() is not leaf for known, leaf in zip(self._variables, leaves)):
      # Weak: a memo must not keep a former step's weights alive.
      self._variables, self._results = [weakref.ref(leaf) for leaf in leaves], {}
    if key not in self._results:
      self._results[key] = self._compute(variables, key)
    return self._results[key]


def _batch_sharding(variables: Any) -> jax.sharding.NamedSharding | None:
  """How rows lie on the mesh of placed variables; None for host arrays and single devices."""
  for leaf in jax.tree.leaves(variables):
    sharding = getattr(leaf, 'sharding', None)
    if isinstance(sharding, jax.sharding.NamedSharding) and set(mesh_lib.BATCH_AXES) <= set(sharding.mesh.axis_names):
      return mesh_lib.batch_sharding(sharding.mesh)
  return None


def _whole(rows: int, sharding: jax.sharding.NamedSharding | None) -> int:
  """The rows rounded up to a multiple of the shards."""
  shards = sharding.num_devices if sharding is not None else 1
  return -(-rows // shards) * shards


def _placed(part: np.ndarray, sharding: jax.sharding.NamedSharding | None) -> Any:
  return part if sharding is None else jax.make_array_from_callback(part.shape, sharding, part.__getitem__)
