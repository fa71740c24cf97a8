"""The training step: one jitted function of (state, batch), whatever the system and the mesh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from core.errors import UserError
from core.train import mesh as mesh_lib
from core.train import state as state_lib
from core.train import task as task_lib

TrainStep = Callable[[state_lib.TrainState, Mapping[str, jax.Array]], tuple[state_lib.TrainState, dict[str, jax.Array]]]


def make_train_step(
  stage: task_lib.Stage, mesh: jax.sharding.Mesh, state: state_lib.TrainState, *, seed: int, first_step: int = 0
) -> TrainStep:
  """Compiles-on-first-call `(state, batch) -> (state, metrics)`; the given state's buffers are donated.

  Metrics (f32, copied to every device): 'loss', 'grad_norm' (before clipping), 'learning_rate', and those of the loss.

  A step whose loss or gradient norm is not finite leaves parameters, averages and optimiser as they were and records
  itself in `state.bad_step`; all later steps leave them too, until the host looks and stops the run.

  Args:
    stage: gives the loss, the optimiser, `accumulate` and `ema_decay`.
    mesh: the mesh of `state`.
    state: the state (or its shapes with shardings) whose layout the compiled step keeps.
    seed: the run's seed. The key of a step is `fold_in(key(seed), first_step + state.step)`, and of micro-batch m of an
      accumulated step `fold_in(that, m)`.
    first_step: steps of the run before this stage, so that no two steps of a run share a key.
  """
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)

  def step(state: state_lib.TrainState, batch: Mapping[str, jax.Array]):
    rng = jax.random.fold_in(jax.random.key(seed), first_step + state.step)
    loss, grads, collections, metrics = _gradients(stage, mesh, state, batch, rng)
    norm = optax.tree.norm(jax.tree.map(lambda grad: grad.astype(jnp.float32), grads))
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    good = finite & (state.bad_step < 0)

    updates, opt_state = stage.optimizer.transformation.update(grads, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    ema = None
    if stage.ema_decay is not None:
      ema = jax.tree.map(lambda mean, new: mean + (1 - stage.ema_decay) * (new - mean), state.ema, trainable)
    new = (trainable, opt_state, ema, collections)
    old = (state.trainable, state.opt_state, state.ema, state.collections)
    trainable, opt_state, ema, collections = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)

    metrics = {
      **metrics,
      'loss': loss,
      'grad_norm': norm,
      'learning_rate': jnp.asarray(stage.optimizer.schedule(state.step), jnp.float32),
    }
    state = state.replace(
      step=state.step + 1,
      trainable=trainable,
      opt_state=opt_state,
      ema=ema,
      collections=collections,
      bad_step=jnp.where((state.bad_step < 0) & ~finite, state.step, state.bad_step),
    )
    return state, metrics

  return jax.jit(
    step,
    donate_argnums=0,
    in_shardings=(shardings, mesh_lib.batch_sharding(mesh)),
    out_shardings=(shardings, mesh_lib.replicated(mesh)),
  )


def micro_batches(batch: Mapping[str, Any], count: int, mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
  """[B, ...] -> [count, B / count, ...]: micro-batch m takes the m-th contiguous run of rows.

  Contiguous in the global batch, not within each shard: the rows that meet in a micro-batch (in batch statistics, in a
  variance between domains) are then the same on any number of devices. The price is one exchange of the input rows.
  Rows interleaved over D domains stay whole when B / count is a multiple of D.

  Raises:
    UserError: B is not a multiple of `count`, or B / count not of the mesh's shards.
  """
  sharding = NamedSharding(mesh, PartitionSpec(None, mesh_lib.BATCH_AXES))
  shards = mesh.shape['data'] * mesh.shape['fsdp']
  for name, value in batch.items():
    if value.shape[0] % (count * shards):
      raise UserError(
        f"batch['{name}'] has {value.shape[0]} rows, expected a multiple of {count} micro-batches x {shards} shards:"
        ' change the batch size, the accumulation or config.mesh.'
      )
  split = {name: value.reshape(count, value.shape[0] // count, *value.shape[1:]) for name, value in batch.items()}
  return {name: jax.lax.with_sharding_constraint(value, sharding) for name, value in split.items()}


def _gradients(stage, mesh, state, batch, rng):
  """(loss f32, gradients, new collections, metrics) on the whole batch, by one pass or by a scan over micro-batches."""

  def loss_fn(trainable, collections, batch, rng):
    variables = state_lib.join(trainable, state.frozen, collections)
    loss, out = stage.loss(variables, batch, rng, state.step)
    unknown = set(out.updates) - set(collections)
    if unknown:
      raise UserError(f"stage '{stage.name}': the loss updates {sorted(unknown)}, which `Task.init` did not create.")
    metrics = {name: jnp.asarray(value, jnp.float32) for name, value in out.metrics.items()}
    weight = jnp.asarray(out.weight, jnp.float32)
    return jnp.asarray(loss, jnp.float32), (metrics, weight, {**collections, **out.updates})

  gradient = jax.value_and_grad(loss_fn, has_aux=True)
  if stage.accumulate == 1:
    (loss, (metrics, _, collections)), grads = gradient(state.trainable, state.collections, batch, rng)
    return loss, grads, collections, metrics

  def micro(carry, xs):
    total, collections, sums = carry
    index, rows = xs
    key = jax.random.fold_in(rng, index)
    (loss, (metrics, weight, collections)), grads = gradient(state.trainable, collections, rows, key)
    # A micro-batch without a valid target may have a loss of 0 / 0: it counts as nothing, not as NaN.
    grads = jax.tree.map(lambda grad: grad.astype(jnp.float32), grads)
    weighted = jax.tree.map(lambda x: jnp.where(weight > 0, weight * x, 0.0), (loss, grads, metrics))
    return (total + weight, collections, jax.tree.map(jnp.add, sums, weighted)), None

  rows = micro_batches(batch, stage.accumulate, mesh)
  first = jax.tree.map(lambda value: value[0], rows)
  shapes = jax.eval_shape(gradient, state.trainable, state.collections, first, rng)
  (loss, (metrics, _, _)), grads = shapes
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), (loss, grads, metrics))
  start = (jnp.zeros((), jnp.float32), state.collections, zeros)
  (total, collections, sums), _ = jax.lax.scan(micro, start, (jnp.arange(stage.accumulate), rows))
  loss, grads, metrics = jax.tree.map(lambda x: x / total, sums)
  grads = jax.tree.map(lambda grad, leaf: grad.astype(leaf.dtype), grads, state.trainable)
  return loss, grads, collections, metrics
