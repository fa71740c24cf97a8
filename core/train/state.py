"""The training state: trainable and frozen leaves kept apart, so that a frozen leaf has no optimiser memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.core
import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp

from core.errors import UserError
from core.train import mesh as mesh_lib
from core.train import task as task_lib


@flax.struct.dataclass
class TrainState:
  """All that a step reads and writes. The random key of a step is derived from the seed and the step: nothing to save.

  Attributes:
    step: i32 scalar, steps done in this stage.
    trainable: {'/'-joined path: array} of 'params'.
    frozen: the other leaves of 'params', likewise.
    collections: the other Flax collections, {'batch_stats': tree, ...}.
    opt_state: optax state over `trainable`.
    ema: exponential moving average of `trainable`, or None.
    bad_step: i32 scalar, the step (within the stage) whose loss or gradient was not finite; -1 while all were.
  """

  step: jax.Array
  trainable: dict[str, jax.Array]
  frozen: dict[str, jax.Array]
  collections: dict[str, Any]
  opt_state: Any
  ema: dict[str, jax.Array] | None
  bad_step: jax.Array

  def variables(self, use_ema: bool = True) -> dict[str, Any]:
    """Flax variables; with the moving average in place of the trainable leaves where there is one."""
    trainable = self.ema if use_ema and self.ema is not None else self.trainable
    return join(trainable, self.frozen, self.collections)


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
  """{'a': {'b': x}} -> {'a/b': x}."""
  return flax.traverse_util.flatten_dict(flax.core.unfreeze(params), sep='/')


def join(trainable: Mapping[str, Any], frozen: Mapping[str, Any], collections: Mapping[str, Any]) -> dict[str, Any]:
  """Flax variables from the parts of a state."""
  return {'params': flax.traverse_util.unflatten_dict({**frozen, **trainable}, sep='/'), **collections}


def split(
  variables: task_lib.Variables, stage: task_lib.Stage
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
  """(trainable, frozen, collections) of Flax variables, by the stage's predicate.

  Raises:
    UserError: the predicate names no leaf, or one that is not a float.
  """
  flat = flatten(variables['params'])
  collections = {name: flax.core.unfreeze(tree) for name, tree in variables.items() if name != 'params'}
  if stage.run is not None:  # its procedure owns the weights: to the state they are all frozen
    return {}, flat, collections
  trainable = {path: leaf for path, leaf in flat.items() if stage.trainable(path)}
  if not trainable:
    raise UserError(f"stage '{stage.name}' trains no parameter; there are {sorted(flat)[:8]} ... ({len(flat)}).")
  for path, leaf in trainable.items():
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise UserError(f"stage '{stage.name}' trains {path}, which is {leaf.dtype}; expected a float.")
  frozen = {path: leaf for path, leaf in flat.items() if path not in trainable}
  return trainable, frozen, collections


def abstract(variables: task_lib.Variables, stage: task_lib.Stage, mesh: jax.sharding.Mesh) -> TrainState:
  """Shapes, types and shardings of the stage's state (leaves are `jax.ShapeDtypeStruct`), from variables or shapes."""
  shapes = jax.eval_shape(lambda tree: _build(tree, stage), dict(variables))
  shardings = state_sharding(shapes, stage, mesh)
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
  )


def create(variables: task_lib.Variables, stage: task_lib.Stage, mesh: jax.sharding.Mesh) -> TrainState:
  """The state at the start of a stage, placed on the mesh. Owns its buffers: the step may donate them."""
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract(variables, stage, mesh))
  trainable, frozen, collections = split(variables, stage)  # the predicate sees real leaves before they are traced
  return jax.jit(lambda tree: _build(tree, stage), out_shardings=shardings)(join(trainable, frozen, collections))


def state_sharding(state: TrainState, stage: task_lib.Stage, mesh: jax.sharding.Mesh) -> TrainState:
  """A sharding per leaf: parameters by rule, moments and averages like their parameter, all else copied.

  A leaf of the optimiser state belongs to the parameter whose path is its last dictionary key and whose shape it has.
  """
  params = {**state.frozen, **state.trainable}
  placed = mesh_lib.param_sharding(params, mesh, stage.sharding)
  copied = mesh_lib.replicated(mesh)

  def of_optimizer(path: tuple[Any, ...], leaf: Any) -> jax.sharding.NamedSharding:
    keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey) and key.key in state.trainable]
    return placed[keys[-1]] if keys and params[keys[-1]].shape == leaf.shape else copied

  return TrainState(
    step=copied,
    trainable={path: placed[path] for path in state.trainable},
    frozen={path: placed[path] for path in state.frozen},
    collections=jax.tree.map(lambda _: copied, state.collections),
    opt_state=jax.tree_util.tree_map_with_path(of_optimizer, state.opt_state),
    ema=None if state.ema is None else {path: placed[path] for path in state.ema},
    bad_step=copied,
  )


def _build(variables: task_lib.Variables, stage: task_lib.Stage) -> TrainState:
  """The state of step 0. Leaves are copied: the average must not share the buffers of what it averages."""
  trainable, frozen, collections = jax.tree.map(jnp.copy, split(variables, stage))
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    trainable=trainable,
    frozen=frozen,
    collections=collections,
    opt_state=() if stage.optimizer is None else stage.optimizer.transformation.init(trainable),
    ema=None if stage.ema_decay is None else jax.tree.map(jnp.copy, trainable),
    bad_step=jnp.full((), -1, jnp.int32),
  )
