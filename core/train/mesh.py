"""The device mesh, where parameters and batches lie on it, and how host batches get there.

Axes: 'data' (parameters copied, batch divided), 'fsdp' (parameters and batch divided), 'tensor' (parameters divided by
the stage's own rules, batch copied).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from core.errors import UserError

AXES = ('data', 'fsdp', 'tensor')
BATCH_AXES = ('data', 'fsdp')
FSDP_MIN_SIZE = 2**14
"""Leaves with fewer elements are copied to every device: dividing them saves little and costs a gather (our choice)."""


def make(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
  """The mesh over all devices of all processes; at most one size may be -1: what is left over.

  Raises:
    UserError: the sizes do not multiply to the number of devices.
  """
  sizes = resolve(jax.device_count(), data, fsdp, tensor)
  return jax.make_mesh(sizes, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def resolve(devices: int, data: int = -1, fsdp: int = 1, tensor: int = 1) -> tuple[int, int, int]:
  """The sizes of a mesh over so many devices; as `make`."""
  sizes = [data, fsdp, tensor]
  named = f'mesh data={data}, fsdp={fsdp}, tensor={tensor}'
  if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
    raise UserError(f'{named}: expected positive sizes, at most one of them -1.')
  if -1 in sizes:
    sizes[sizes.index(-1)] = devices // -int(np.prod(sizes)) or 1
  if int(np.prod(sizes)) != devices:
    raise UserError(f'{named} asks for {abs(int(np.prod(sizes)))} devices or a multiple, found {devices}.')
  return tuple(sizes)


def replicated(mesh: Mesh) -> NamedSharding:
  """One copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Axis 0 divided over 'data' x 'fsdp'."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def leaf_sharding(
  path: str,
  shape: Sequence[int],
  mesh: Mesh,
  rules: Sequence[tuple[str, PartitionSpec]] = (),
  min_size: int = FSDP_MIN_SIZE,
) -> NamedSharding:
  """Where one parameter lies: by the first rule whose regex is found in its path, else by the fsdp default.

  The default divides the largest axis that 'fsdp' divides, of every leaf with at least `min_size` elements.

  Raises:
    UserError: a rule asks for a division that the shape does not allow.
  """
  for pattern, spec in rules:
    if re.search(pattern, path):
      sharding = NamedSharding(mesh, spec)
      try:
        sharding.shard_shape(tuple(shape))
      except ValueError as error:
        raise UserError(f"sharding rule '{pattern}' gives {path} {tuple(shape)} the spec {spec}: {error}") from error
      return sharding
  size = mesh.shape['fsdp']
  axes = [axis for axis, length in enumerate(shape) if length % size == 0]
  if size == 1 or not axes or int(np.prod(shape)) < min_size:
    return replicated(mesh)
  spec: list[str | None] = [None] * len(shape)
  spec[max(axes, key=lambda axis: shape[axis])] = 'fsdp'
  return NamedSharding(mesh, PartitionSpec(*spec))


def param_sharding(
  tree: Any, mesh: Mesh, rules: Sequence[tuple[str, PartitionSpec]] = (), min_size: int = FSDP_MIN_SIZE
) -> Any:
  """`leaf_sharding` for every leaf of a nested or flat tree of arrays (or shapes); same structure out."""

  def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
    return leaf_sharding(key_path(path), leaf.shape, mesh, rules, min_size)

  return jax.tree_util.tree_map_with_path(place, tree)


def key_path(path: tuple[Any, ...]) -> str:
  """A jax key path as a '/'-joined string."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def device_arrays(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The entries of a host batch that travel to devices: strings left out, 64-bit numbers narrowed to 32 as jax does."""
  arrays = {name: np.asarray(value) for name, value in batch.items()}
  arrays = {name: value for name, value in arrays.items() if value.dtype.kind not in 'USOT'}
  return {name: value.astype(jax.dtypes.canonicalize_dtype(value.dtype), copy=False) for name, value in arrays.items()}


def put_batch(local_batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
  """Places this process's rows of the global batch; the result is global, axis 0 divided as `batch_sharding` says.

  Raises:
    UserError: the global number of rows is not a multiple of the shards.
  """
  sharding, shards = batch_sharding(mesh), mesh.shape['data'] * mesh.shape['fsdp']
  placed = {}
  for name, value in device_arrays(local_batch).items():
    rows = (value.shape[0] if value.ndim else 0) * jax.process_count()
    if rows == 0 or rows % shards:
      raise UserError(
        f"batch['{name}'] has {rows} rows, expected a multiple of the {shards} shards of the mesh"
        ' (data x fsdp): change the batch size or config.mesh.'
      )
    # This is the one transfer that is meant; with several processes jax counts it as implicit.
    with jax.transfer_guard_host_to_device('allow'):
      placed[name] = jax.make_array_from_process_local_data(sharding, value)
  return placed


def host_arrays(tree: Any) -> Any:
  """Every leaf as a whole numpy array on every process, also of leaves divided between processes (all must call)."""

  def fetch(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
      return multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)

  return jax.tree.map(fetch, tree)


def placed(array: np.ndarray, like: Any) -> Any:
  """A host array where `like` lies, whatever devices and processes it is divided over."""
  if not isinstance(like, jax.Array):
    return array
  return jax.make_array_from_callback(like.shape, like.sharding, lambda index: array[index])
