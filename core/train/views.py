"""Looking at a run from a notebook, one verb per view: what is trained, where it lies, a batch, the cost of a step.

  print(views.parameters(task.init(key), stage))
  print(views.placement(state))
  print(views.batch(next(iter(stage.data(context)))))
  views.cost(train_step, state, batch)

Nothing here runs a step or changes a state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from clu import parameter_overview

from core.train import mesh as mesh_lib
from core.train import state as state_lib
from core.train import step as step_lib
from core.train import task as task_lib


@dataclasses.dataclass
class _Parameter:
  name: str
  shape: tuple[int, ...]
  dtype: str
  size: int
  trained: str


@dataclasses.dataclass
class _Placed:
  name: str
  shape: tuple[int, ...]
  dtype: str
  divided: str
  per_device: str


@dataclasses.dataclass
class _Field:
  name: str
  shape: tuple[int, ...]
  dtype: str
  lowest: str
  highest: str


def parameters(variables: task_lib.Variables, stage: task_lib.Stage) -> str:
  """A table of all parameters (arrays or shapes) with those marked that the stage trains, and their numbers."""
  trainable, frozen, _ = state_lib.split(variables, stage)
  sizes = {path: int(np.prod(leaf.shape)) for path, leaf in {**trainable, **frozen}.items()}
  rows = [
    _Parameter(path, tuple(leaf.shape), str(leaf.dtype), sizes[path], 'yes' if path in trainable else 'frozen')
    for path, leaf in sorted({**trainable, **frozen}.items())
  ]
  trained = sum(sizes[path] for path in trainable)
  return f"{parameter_overview.make_table(rows)}\nStage '{stage.name}' trains {trained:,} of {sum(sizes.values()):,}."


def placement(state: state_lib.TrainState) -> str:
  """A table of all arrays of a state (optimiser state included): over which mesh axes divided, MB on each device."""
  rows, total = [], 0
  for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
    part = int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
    spec = tuple(getattr(leaf.sharding, 'spec', ()))
    divided = ', '.join(str(axis) for axis in spec if axis is not None) or 'copied'
    name = mesh_lib.key_path(path)
    rows.append(_Placed(name, leaf.shape, str(leaf.dtype), divided, f'{part / 1e6:.3f} MB'))
    total += part
  return f'{parameter_overview.make_table(rows)}\n{total / 1e6:.1f} MB on each device.'


def batch(values: task_lib.Batch) -> str:
  """A table of the fields of a host batch: shape, type, lowest and highest value."""
  rows = []
  for name, value in values.items():
    value = np.asarray(value)
    bounds = (min(value.flat), max(value.flat)) if value.dtype.kind in 'US' else (value.min(), value.max())
    rows.append(_Field(name, value.shape, str(value.dtype), *(_short(bound) for bound in bounds)))
  return parameter_overview.make_table(rows)


def cost(
  train_step: step_lib.TrainStep, state: state_lib.TrainState, batch: Mapping[str, jax.Array]
) -> dict[str, float]:
  """What XLA says of a compiled step, without running it; of one device.

  Args:
    train_step: of `core.train.step.make_train_step`.
    state: its state, or shapes with shardings (`core.train.state.abstract`).
    batch: a batch on the devices (`core.train.mesh.put_batch`), or shapes with shardings.

  Returns:
    'flops' and 'bytes_accessed' (of loops only one pass is counted: micro-batches, scanned layers); memory in bytes:
    'state' (donated), 'temporary', 'code'. Entries that the backend does not tell are left out.
  """
  compiled = train_step.lower(state, batch).compile()
  costs, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
  found = {'flops': costs.get('flops'), 'bytes_accessed': costs.get('bytes accessed')}
  if memory is not None:
    found |= {
      'state': memory.alias_size_in_bytes,
      'temporary': memory.temp_size_in_bytes,
      'code': memory.generated_code_size_in_bytes,
    }
  return {name: float(value) for name, value in found.items() if value is not None}


def _short(value: Any) -> str:
  return f'{value:.4g}' if isinstance(value, (float, np.floating)) else str(value)
