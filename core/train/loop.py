"""The one training loop: stage after stage, step after step, from a task to a trained checkpoint.

Order of operations in a step, on which resuming bit for bit rests:

  draw the batch -> step -> log -> evaluate (and keep the best) -> save

The next batch is drawn only after the save: the saved iterator state then names exactly the batches that the saved
weights have not seen. Everything else that a step depends on is the seed and the step number.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from core.errors import UserError, nearest
from core.train import checkpoint as checkpoint_lib
from core.train import mesh as mesh_lib
from core.train import state as state_lib
from core.train import step as step_lib
from core.train import task as task_lib
from core.train.journal import Clock, Journal
from core.train.preemption import Preempted, Preemption


class Logger(Protocol):
  """Where a run writes its numbers (`core.train.loggers`)."""

  def scalars(self, step: int, values: Mapping[str, float], prefix: str) -> None:
    """Numbers of a step; prefix 'train', 'eval' or the name of a stage with its own procedure."""

  def progress(self, step: int, total: int, stage: str, loss: float, examples_per_second: float) -> None:
    """How far the run is, at every log point."""

  def message(self, text: str) -> None:
    """One line for the reader."""

  def close(self) -> None:
    """The end of the run."""


class NullLogger:
  """Writes nothing."""

  def scalars(self, step: int, values: Mapping[str, float], prefix: str) -> None:
    """Ignores them."""

  def progress(self, step: int, total: int, stage: str, loss: float, examples_per_second: float) -> None:
    """Ignores it."""

  def message(self, text: str) -> None:
    """Ignores it."""

  def close(self) -> None:
    """Nothing to close."""


Hook = Callable[[int, state_lib.TrainState, Mapping[str, Any]], None]
"""hook(step of the run, state after it, host batch), after every step and before its save."""


@dataclasses.dataclass
class TrainResult:
  """What a run leaves in memory.

  Attributes:
    variables: of the best checkpoint if the last stage has a monitor, else of the last step (the average, if kept).
    metadata: what the evaluators asked to keep with these weights.
    history: one flat dict per log point and evaluation: {'step', 'stage', 'kind': 'train' | 'eval', name: number}.
    evaluations: '<split>/<evaluator>' -> the latest `Evaluation` that this process computed.
    best_step: step of the run that the monitor chose; None without monitor.
  """

  variables: task_lib.Variables
  metadata: dict[str, Any]
  history: list[dict[str, Any]]
  evaluations: dict[str, task_lib.Evaluation]
  best_step: int | None


def train(
  task: task_lib.Task,
  workdir: str | pathlib.Path,
  *,
  logger: Logger,
  resume: bool = True,
  hooks: Sequence[Hook] = (),
) -> TrainResult:
  """Trains a task through all its stages; run again in the same folder, it goes on where it stopped.

  Args:
    task: read for its stages, initial variables and evaluators, and `config.seed`, `config.mesh.{data, fsdp, tensor}`,
      `config.train.{log_every, eval_every, checkpoint_every, keep}` (0 = only at the end of a stage; keep >= 1).
    workdir: the run's folder (on a file system that all processes share).
    logger: see `Logger`; is not closed.
    resume: False refuses a folder that already holds checkpoints.
    hooks: called after every step.

  Raises:
    Preempted: SIGTERM came; everything is saved.
    UserError: a loss was not finite, data ran out, or config, mesh and checkpoint do not fit each other.
  """
  run = _Run(task, pathlib.Path(workdir).resolve(), logger, hooks)
  try:
    with Preemption() as run.preemption:
      position = run.restore(resume)
      if position is None:
        first, variables = 0, run.initial_variables()
      else:
        first = position.stage
        variables = position.state.variables(use_ema=False)
      for index in range(first, len(run.stages)):
        stage = run.stages[index]
        here = position if position is not None and position.stage == index else None
        if stage.run is not None:
          state = here.state if here else run.procedure(index, variables)
        else:
          state = run.gradient_stage(index, variables, here)
        variables = state.variables(use_ema=False)
      return run.result(state)
  finally:
    run.checkpoints.close()


@dataclasses.dataclass
class _Position:
  """Where a restored run stands."""

  stage: int
  step: int
  state: state_lib.TrainState
  iterator: Any
  meta: dict[str, Any]


class _Run:
  """The parts of a run that outlive a stage: stages, mesh, checkpoints, journal, the best value so far."""

  def __init__(self, task: task_lib.Task, workdir: pathlib.Path, logger: Logger, hooks: Sequence[Hook]):
    self.task, self.config, self.workdir, self.logger, self.hooks = task, task.config, workdir, logger, hooks
    self.every = self.config.train
    self.mesh = mesh_lib.make(self.config.mesh.data, self.config.mesh.fsdp, self.config.mesh.tensor)
    self.stages = list(task.stages())
    self.evaluators = task.evaluators()
    _check(self.stages, self.evaluators)
    # A stage with its own procedure counts as one step, so that its checkpoint has a number of its own.
    lengths = [1 if stage.run is not None else stage.steps for stage in self.stages]
    self.first_steps = [sum(lengths[:index]) for index in range(len(lengths))]
    self.total = sum(lengths)
    workdir.mkdir(parents=True, exist_ok=True)
    self.checkpoints = checkpoint_lib.Checkpoints(workdir, self.config.train.keep)
    self.journal = Journal(workdir / 'history.jsonl')
    self.evaluations: dict[str, task_lib.Evaluation] = {}
    self.metadata: dict[str, Any] = {}
    self.metrics: dict[str, float] = {}
    self.best: dict[str, Any] | None = None
    self.preemption: Preemption

  def restore(self, resume: bool) -> _Position | None:
    """The newest checkpoint that can be read, or None for a fresh start."""
    steps = self.checkpoints.steps()
    if steps and not resume:
      raise UserError(f'{self.workdir} already holds checkpoints of steps {steps}: resume, or choose another workdir.')
    self.best = self.checkpoints.best_meta() if steps else None
    for step in steps:
      try:
        state, iterator, meta = self.checkpoints.restore(step, self.stages, self.mesh)
      except checkpoint_lib.Damaged as error:
        self._say(f'Ignoring the damaged checkpoint {error}')
        self.checkpoints.set_aside(step)
        continue
      self.metadata, self.metrics = meta['metadata'], meta['metrics']
      self.journal.resume(step)
      self._say(f"Resuming from step {step} (stage '{meta['stage_name']}') of {self.workdir}.")
      return _Position(meta['stage'], meta['stage_step'], state, iterator, meta)
    self.journal.resume(-1)
    return None

  def initial_variables(self) -> task_lib.Variables:
    """Fresh variables, made where the first stage wants them, with pretrained weights merged in."""
    key = jax.random.key(self.config.seed)
    shapes = jax.eval_shape(self.task.init, key)
    flat = mesh_lib.param_sharding(state_lib.flatten(shapes['params']), self.mesh, self.stages[0].sharding)
    copied = {
      name: jax.tree.map(lambda _: mesh_lib.replicated(self.mesh), tree)
      for name, tree in shapes.items()
      if name != 'params'
    }
    init = lambda key: state_lib.join(*state_lib.split(self.task.init(key), _ANY))  # noqa: E731
    # It runs once: on the CPU, compiling it without LLVM's optimisations takes a third less time.
    options = {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else {}
    shardings = state_lib.join(flat, {}, copied)
    variables = jax.jit(init, out_shardings=shardings, compiler_options=options)(key)
    return self.task.pretrained(variables)

  def procedure(self, index: int, variables: task_lib.Variables) -> state_lib.TrainState:
    """A stage that is not gradient training; killed inside, it starts again from the stage's beginning."""
    stage = self.stages[index]
    self.logger.message(f"stage '{stage.name}'")
    variables = stage.run(self._context(index, variables))
    state = state_lib.create(variables, stage, self.mesh)
    self._judge(index, 1, state)
    self._save(index, 1, state, iterator=None, pending=[])
    self._stop_if_asked(self.first_steps[index] + 1)
    return state

  def gradient_stage(self, index: int, variables: task_lib.Variables, here: _Position | None) -> state_lib.TrainState:
    """The steps of a stage, from its beginning or from a restored position."""
    stage, offset = self.stages[index], self.first_steps[index]
    state = here.state if here else state_lib.create(variables, stage, self.mesh)
    done = here.step if here else 0
    pending = list(here.meta['pending']) if here else []  # metrics since the last log point
    if here and here.meta['evaluation_due']:
      self._judge(index, done, state)
    if done == stage.steps:
      return state

    self.logger.message(f"stage '{stage.name}': {stage.steps} steps")
    iterator = iter(stage.data(self._context(index, variables)))
    del variables  # the step donates the state: nothing else may keep the first weights alive
    if here:
      iterator.set_state(here.iterator)
    train_step = step_lib.make_train_step(stage, self.mesh, state, seed=self.config.seed, first_step=offset)
    try:
      return self._steps(index, state, done, pending, iterator, train_step)
    finally:
      if hasattr(iterator, 'close'):  # its threads and worker processes
        iterator.close()

  def _steps(self, index, state, done, pending, iterator, train_step) -> state_lib.TrainState:
    """The loop itself: from step `done` of the stage to its last."""
    stage, offset = self.stages[index], self.first_steps[index]
    recent: collections.deque = collections.deque()  # (step, ids) since the last look at bad_step
    clock = Clock()
    while done < stage.steps:
      local = self._draw(iterator, stage, done)
      with jax.transfer_guard('disallow'):
        state, metrics = train_step(state, mesh_lib.put_batch(local, self.mesh))
      done += 1
      pending.append(metrics)
      recent.append((done - 1, local.get('id')))
      clock.rows += len(next(iter(local.values()))) * jax.process_count()
      for hook in self.hooks:
        hook(offset + done, state, local)

      last = done == stage.steps
      stop = self.preemption.reached(offset + done)
      evaluate = bool(stage.evaluate) and (last or _due(done, self.every.eval_every))
      save = last or stop or _due(done, self.every.checkpoint_every)
      log = last or _due(done, self.every.log_every)
      if log or evaluate or save:
        self._check_finite(stage, offset, state, recent)
        pending = [_to_host(metrics) for metrics in pending]
      if log:
        self._log(index, done, pending, clock.rate())
        pending = []
      with clock.paused():
        if evaluate and not stop:
          self._judge(index, done, state)
        if save:
          self._save(index, done, state, iterator.get_state(), pending, evaluation_due=evaluate and stop)
      self._stop_if_asked(offset + done, stop)
    return state

  def result(self, state: state_lib.TrainState) -> TrainResult:
    """The end of the run: the chosen weights, and what was seen on the way."""
    self.checkpoints.wait()
    variables, metadata, best_step = state.variables(), self.metadata, None
    if self._best_of(len(self.stages) - 1) is not None:
      best_step = self.best['step']
      restored, meta = checkpoint_lib.restore_variables(self.workdir, 'best')
      metadata = meta['metadata']
      placed = {'params': mesh_lib.param_sharding(restored['params'], self.mesh, self.stages[-1].sharding)}
      for name in restored:
        placed.setdefault(name, jax.tree.map(lambda _: mesh_lib.replicated(self.mesh), restored[name]))
      variables = jax.device_put(jax.tree.map(np.asarray, restored), placed)
    return TrainResult(variables, metadata, self.journal.rows, self.evaluations, best_step)

  def _context(self, index: int, variables: task_lib.Variables) -> task_lib.StageContext:
    stage, offset = self.stages[index], self.first_steps[index]

    def log(step: int, values: Mapping[str, float]) -> None:
      values = {name: float(value) for name, value in values.items()}
      # The stage counts as one step of the run: its own steps are kept in its own column.
      self.journal.write({'step': offset + 1, 'stage': stage.name, 'kind': 'stage', 'stage_step': int(step), **values})
      self.logger.scalars(int(step), values, prefix=stage.name)

    return task_lib.StageContext(variables, self.workdir, self.config.seed, self.mesh, log)

  def _draw(self, iterator: Iterator[Any], stage: task_lib.Stage, done: int) -> Mapping[str, Any]:
    try:
      return next(iterator)
    except StopIteration:
      raise UserError(
        f"stage '{stage.name}' has {stage.steps} steps but its data ended after {done}: repeat the data set, or ask for"
        ' fewer steps.'
      ) from None

  def _check_finite(self, stage, offset, state, recent) -> None:
    """Stops the run when a step since the last look was not finite. This is a synchronisation with the device."""
    bad = int(jax.device_get(state.bad_step))
    if bad < 0:
      recent.clear()
      return
    ids = next((ids for step, ids in recent if step == bad), None)
    named = 'unknown (the batch has no key id)' if ids is None else np.asarray(ids).tolist()
    part = f' (the part of process {jax.process_index()})' if jax.process_count() > 1 else ''
    self.checkpoints.wait()
    steps = self.checkpoints.steps()
    good = str(self.checkpoints.root / 'last' / str(steps[0])) if steps else 'none yet'
    raise UserError(
      f"stage '{stage.name}': the loss or its gradient was not finite at step {offset + bad + 1}. Batch ids{part}:"
      f' {named}. Last good checkpoint: {good}. Look at these examples, lower optim.learning_rate, or set'
      ' optim.clip_norm.'
    )

  def _log(self, index: int, done: int, pending: list[dict[str, Any]], rate: float) -> None:
    """Means over the steps since the last log point."""
    values: dict[str, float] = {}
    for name in sorted(pending[0]):
      mean = np.mean([np.asarray(metrics[name], np.float64) for metrics in pending], axis=0)
      entries = {name: mean} if mean.ndim == 0 else {f'{name}_{i}': value for i, value in enumerate(mean.reshape(-1))}
      values |= {key: float(value) for key, value in entries.items()}
    step, stage = self.first_steps[index] + done, self.stages[index].name
    self.journal.write({'step': step, 'stage': stage, 'kind': 'train', **values})
    self.logger.scalars(step, values, prefix='train')
    self.logger.progress(step, self.total, stage, values['loss'], rate)

  def _judge(self, index: int, done: int, state: state_lib.TrainState) -> None:
    """Runs the stage's evaluators and keeps the weights when they are the best of the stage."""
    stage, step = self.stages[index], self.first_steps[index] + done
    if not stage.evaluate:
      return
    variables, scalars = state.variables(), {}
    for name, split in stage.evaluate:
      evaluation = self.evaluators[name](variables, split)
      self.evaluations[f'{split}/{name}'] = evaluation
      scalars |= {f'{split}/{name}/{key}': float(value) for key, value in evaluation.scalars.items()}
      self.metadata = {**self.metadata, **checkpoint_lib.plain(evaluation.metadata)}
    self.metrics = scalars
    self.journal.write({'step': step, 'stage': stage.name, 'kind': 'eval', **scalars})
    self.logger.scalars(step, scalars, prefix='eval')
    if stage.monitor is None:
      return
    if stage.monitor not in scalars:
      raise UserError(
        f"stage '{stage.name}' monitors '{stage.monitor}', but its evaluators give {sorted(scalars)}."
        f'{nearest(stage.monitor, scalars)}'
      )
    value, best = scalars[stage.monitor], self._best_of(index)
    sign = 1 if stage.monitor_mode == 'max' else -1
    if np.isfinite(value) and (best is None or sign * value > sign * best['monitor_value']):
      meta = self._meta(index, done)
      self.checkpoints.save_best(step, state, meta)
      self.best = meta

  def _best_of(self, index: int) -> dict[str, Any] | None:
    """The meta of the best checkpoint if that is of this stage and of its monitor."""
    monitor = self.stages[index].monitor
    if self.best is None or monitor is None:
      return None
    return self.best if (self.best['stage'], self.best['monitor']) == (index, monitor) else None

  def _meta(self, index: int, done: int) -> dict[str, Any]:
    stage = self.stages[index]
    return {
      'format': checkpoint_lib.FORMAT,
      'step': self.first_steps[index] + done,
      'stage': index,
      'stage_name': stage.name,
      'stage_step': done,
      'finished': self.first_steps[index] + done == self.total,
      'config': checkpoint_lib.plain(self.config),
      'metadata': self.metadata,
      'metrics': self.metrics,
      'monitor': stage.monitor,
      'monitor_value': self.metrics.get(stage.monitor) if stage.monitor else None,
    }

  def _save(self, index, done, state, iterator, pending, evaluation_due=False) -> None:
    meta = {**self._meta(index, done), 'pending': checkpoint_lib.plain(pending), 'evaluation_due': evaluation_due}
    self.checkpoints.save_last(meta['step'], state, iterator, meta)

  def _stop_if_asked(self, step: int, stop: bool | None = None) -> None:
    """Leaves the run when it was preempted; called after a save."""
    if self.preemption.reached(step) if stop is None else stop:
      self.checkpoints.wait()
      raise Preempted(
        f'Stopped by SIGTERM; step {step} is saved in {self.workdir}: the same command goes on from there.'
      )

  def _say(self, text: str) -> None:
    if jax.process_index() == 0:
      print(text, flush=True)


_ANY = task_lib.Stage('init', run=lambda context: context.variables)


def _check(stages: Sequence[task_lib.Stage], evaluators: Mapping[str, Any]) -> None:
  """Names that do not fit are found before the first hour of training, not after."""
  if not stages:
    raise UserError('the task has no stages: there is nothing to train.')
  for stage in stages:
    for name, _ in stage.evaluate:
      if name not in evaluators:
        raise UserError(
          f"stage '{stage.name}' evaluates with '{name}', but the task's evaluators are {sorted(evaluators)}."
          f'{nearest(name, evaluators)}'
        )
    if stage.monitor is not None and not stage.evaluate:
      raise UserError(f"stage '{stage.name}' monitors '{stage.monitor}' but evaluates nothing.")


def _due(done: int, every: int) -> bool:
  return every > 0 and done % every == 0


def _to_host(metrics: Mapping[str, Any]) -> dict[str, Any]:
  """Metrics as plain floats (or lists of them); those already fetched pass through."""
  return {
    name: np.asarray(jax.device_get(value)).tolist() if isinstance(value, jax.Array) else value
    for name, value in metrics.items()
  }
