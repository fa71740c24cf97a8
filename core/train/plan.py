"""How much memory the parts of a training run take on each device, from shapes alone: no device is touched.

What is counted is what lies there between steps, and the gradients. Activations are not: they depend on the batch, on
`remat` and on what XLA fuses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from core.train import mesh as mesh_lib
from core.train import report
from core.train import state as state_lib
from core.train import task as task_lib

PARTS = ('weights', 'gradients', 'optimiser', 'average')
UNITS = {'MiB': 2**20, 'GiB': 2**30}


@dataclasses.dataclass(frozen=True)
class Account:
  """One stage on one mesh.

  Attributes:
    sizes: of the mesh's axes 'data', 'fsdp', 'tensor'.
    parts: bytes per device of each of `PARTS`: all parameters and other collections, the gradients of the trainable
      ones (f32 sums beside them where a step accumulates micro-batches), the optimiser's state, the moving average.
  """

  sizes: tuple[int, int, int]
  parts: Mapping[str, int]

  @property
  def devices(self) -> int:
    """Number of devices."""
    return int(np.prod(self.sizes))

  @property
  def total(self) -> int:
    """Bytes per device."""
    return sum(self.parts.values())


def shapes(task: task_lib.Task) -> task_lib.Variables:
  """The variables of a task as `jax.ShapeDtypeStruct`s."""
  return jax.eval_shape(task.init, jax.random.key(0))


def account(variables: task_lib.Variables, stage: task_lib.Stage, sizes: Sequence[int]) -> Account:
  """The memory of a stage on a mesh of these sizes.

  Args:
    variables: arrays or shapes.
    stage: gives the optimiser, what it trains, and where leaves lie.
    sizes: of 'data', 'fsdp', 'tensor'.

  Raises:
    UserError: a rule of the stage asks for a division that a shape does not allow.
  """
  mesh = AbstractMesh(tuple(sizes), mesh_lib.AXES, axis_types=(AxisType.Auto,) * len(mesh_lib.AXES))
  state = state_lib.abstract(variables, stage, mesh)
  sums = jax.tree.map(lambda leaf: leaf.update(dtype=np.float32), state.trainable)
  parts = {
    'weights': (state.trainable, state.frozen, state.collections),
    'gradients': (state.trainable, sums if stage.accumulate > 1 else None),
    'optimiser': state.opt_state,
    'average': state.ema,
  }
  return Account(tuple(sizes), {name: _bytes(tree) for name, tree in parts.items()})


def counts(variables: task_lib.Variables, stage: task_lib.Stage) -> dict[str, dict[str, int]]:
  """{'trainable': {dtype: numbers}, 'frozen': ...}: the parameters of a stage."""
  trainable, frozen, _ = state_lib.split(variables, stage)
  found: dict[str, dict[str, int]] = {}
  for name, leaves in (('trainable', trainable), ('frozen', frozen)):
    kinds = sorted({str(leaf.dtype) for leaf in leaves.values()})
    found[name] = {kind: sum(leaf.size for leaf in leaves.values() if str(leaf.dtype) == kind) for kind in kinds}
  return found


def table(accounts: Sequence[Account]) -> report.Table:
  """GiB per device, MiB for small networks: a row per mesh."""
  unit = 'GiB' if max((each.total for each in accounts), default=0) >= UNITS['GiB'] else 'MiB'
  rows = [
    [
      each.devices,
      ' x '.join(map(str, each.sizes)),
      *(f'{size / UNITS[unit]:.2f}' for size in [*(each.parts[part] for part in PARTS), each.total]),
    ]
    for each in accounts
  ]
  return report.Table(['devices', ' x '.join(mesh_lib.AXES), *PARTS, f'{unit} per device'], rows)


def _bytes(tree: Any) -> int:
  """What one device holds of a tree of shapes with shardings."""
  return sum(
    int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
  )
