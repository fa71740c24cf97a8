"""The task contract: all that the training loop knows of a system.

A system subclasses `Task`. The loop asks it for its stages, initialises its variables, and then, stage after stage,
draws batches from `Stage.data`, differentiates `Stage.loss` with respect to the leaves that `Stage.trainable` names,
and calls the evaluators. A procedure that is not gradient training on a data stream (a prompt search, the protection of
a photo, the building of a clue bank) is a stage too: it gives `run` instead of `loss`.

The contract was tried against four kinds of system before it was fixed:
  images       several domains in one batch: rows are interleaved, domain after domain (`pipeline.interleave`),
               so that every shard and every micro-batch holds all; batch statistics travel in `LossOutput.updates`;
  sequences    several stages with other trainable leaves; a stage that measures what the next one needs (`run`);
               unequal numbers of valid targets in micro-batches (`weight`); results in a benchmark's format (`files`);
  language     a frozen base model in bf16 with trainable low-rank leaves; data of a stage that depend on the weights of
               the stage before (`Stage.data` is given the variables);
  diffusion    stages that alternate with their own procedure (`Stage.run`), frozen encoders beside a trained network.
"""

from __future__ import annotations

import abc
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import grain
import jax
import numpy as np

from core.errors import UserError

Variables = Mapping[str, Any]
"""Flax variables: {'params': tree, 'batch_stats': tree, ...}."""

Batch = Mapping[str, Any]
"""Arrays whose first axis is the example. String arrays stay on the host; key 'id' names the examples in errors."""


@flax.struct.dataclass
class LossOutput:
  """What a loss returns beside its scalar.

  Attributes:
    metrics: name -> f32 scalar or small vector (one entry per domain, say); averaged like the loss and logged.
    weight: f32 scalar, the loss's denominator: number of examples or tokens it is a mean over. Micro-batches of one
      accumulated step are averaged with these weights, which makes the accumulated gradient of any mean loss equal to
      the gradient on the whole batch. (A loss that is not a mean over examples, such as a variance between domains or
      a contrast within the batch, is then averaged over micro-batches, which is another objective: its system says so.)
    updates: new values of collections other than 'params', e.g. {'batch_stats': tree}.
  """

  metrics: Mapping[str, jax.Array]
  weight: jax.Array | float = 1.0
  updates: Mapping[str, Any] = flax.struct.field(default_factory=dict)


LossFn = Callable[[Variables, Batch, jax.Array, jax.Array], tuple[jax.Array, LossOutput]]
"""(variables, batch, rng, step i32 scalar) -> (loss f32 scalar, LossOutput).

Pure; only its arguments differ from step to step."""


@dataclasses.dataclass(frozen=True)
class StageContext:
  """What a stage is given when it starts.

  Attributes:
    variables: the weights as the former stage left them (host or device arrays).
    workdir: folder of this run; a stage may cache derived data under `workdir / 'cache'`.
    seed: the run's seed.
    mesh: device mesh with axes ('data', 'fsdp', 'tensor').
    log: `log(step, {name: number})` into the run's loggers, for stages with their own `run`.
  """

  variables: Variables
  workdir: pathlib.Path
  seed: int
  mesh: jax.sharding.Mesh
  log: Callable[[int, Mapping[str, float]], None]


def everything(path: str) -> bool:
  """The predicate that trains every parameter."""
  del path
  return True


@dataclasses.dataclass(frozen=True)
class Stage:
  """One part of a training run: a loss (or a procedure), its data, its optimiser and how it is judged.

  Attributes:
    name: short identifier, used in logs and checkpoints.
    steps: number of optimiser steps.
    loss: see `LossFn`; None for a stage with `run`.
    data: `(StageContext) -> grain.IterDataset` of this PROCESS's part of the global batches (dicts of numpy arrays).
    optimizer: `core.train.optim.Optimizer` (an optax transformation with its learning-rate schedule, for the log).
    trainable: predicate on '/'-joined parameter paths; the other parameters are frozen and have no optimiser state.
    accumulate: micro-batches per step, computed one after the other inside the jitted step.
    ema_decay: decay of an exponential moving average of the trainable parameters, evaluated in their place, or None.
    sharding: ((regex on the path, PartitionSpec), ...): first match wins; other leaves follow the fsdp default rule.
    evaluate: ((evaluator name, split), ...) run every `eval_every` steps and at the end of the stage.
    monitor: name of the scalar, '<split>/<evaluator>/<name>', that chooses the best checkpoint; None: only the last.
    monitor_mode: 'min' or 'max'.
    run: `(StageContext) -> Variables`, the procedure of a stage that is not gradient training.
  """

  name: str
  steps: int = 0
  loss: LossFn | None = None
  data: Callable[[StageContext], grain.IterDataset] | None = None
  optimizer: Any = None
  trainable: Callable[[str], bool] = everything
  accumulate: int = 1
  ema_decay: float | None = None
  sharding: Sequence[tuple[str, jax.sharding.PartitionSpec]] = ()
  evaluate: Sequence[tuple[str, str]] = ()
  monitor: str | None = None
  monitor_mode: str = 'min'
  run: Callable[[StageContext], Variables] | None = None

  def __post_init__(self):
    if (self.loss is None) == (self.run is None):
      raise ValueError(f"Stage '{self.name}' needs exactly one of `loss` and `run`.")
    if self.loss is not None and (self.data is None or self.optimizer is None or self.steps < 1):
      raise ValueError(f"Stage '{self.name}' trains, so it needs `data`, `optimizer` and `steps` >= 1.")
    if self.monitor_mode not in ('min', 'max'):
      raise ValueError(f"Stage '{self.name}': monitor_mode is '{self.monitor_mode}', expected 'min' or 'max'.")


@dataclasses.dataclass
class Evaluation:
  """What an evaluator returns.

  Attributes:
    scalars: flat {name: number}.
    arrays: numpy arrays to plot or to save (scores, labels, confusion counts ...).
    metadata: plain data to keep in the checkpoint (a decision threshold, class names), merged over evaluators.
    files: {name ending in .json: plain data} that launch.train and launch.evaluate write beside their results (a
      submission in a benchmark's own format).
  """

  scalars: dict[str, float]
  arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
  files: dict[str, Any] = dataclasses.field(default_factory=dict)


Evaluator = Callable[[Variables, str], Evaluation]
"""(variables, split) -> Evaluation."""


def deferred(judge: Callable[[], Any], names: Sequence[str]) -> dict[str, Evaluator]:
  """Evaluators that are methods of `judge()`, which is called, and opens its data, only when one of them is."""

  def evaluator(name: str) -> Evaluator:
    return lambda variables, split: getattr(judge(), name)(variables, split)

  return {name: evaluator(name) for name in names}


class Predictor(abc.ABC):
  """Applies a trained system to a user's own files, case by case, so that a broken file costs only its own case."""

  suffixes: tuple[str, ...] = ()
  """Lower-case endings of the files it takes, e.g. ('.jpg', '.mp4')."""

  shown: tuple[str, ...] = ()
  """Keys of its rows that the printed table has; () for all. A report's margins would not fit on a line."""

  progress: Callable[[float], None] = staticmethod(lambda share: None)
  """A system whose cases take minutes calls it inside one, with the share in 0..1 of this case that is done; `serve` of
  `launch.predict` puts its own in the place."""

  def begin(self, output: pathlib.Path) -> None:
    """Says, before the first case, where the results go.

    A slow system keeps each case there as it is done, so that the same command goes on where it was stopped.

    Args:
      output: an existing folder, with the results of a former call perhaps.
    """
    del output

  def cases(
    self, files: Sequence[pathlib.Path], folder: pathlib.Path | None = None
  ) -> Sequence[tuple[pathlib.Path, ...]]:
    """How files belong together: each is a case of its own, unless a system knows better (the films of a study).

    Args:
      files: those that were named by the user, or those found under `folder`, sorted.
      folder: where they were found; None: they were named.
    """
    del folder
    return [(path,) for path in files]

  @abc.abstractmethod
  def __call__(self, *paths: pathlib.Path) -> list[dict[str, Any]]:
    """Returns one or more result rows (plain data) for one case; raises `UserError` when it cannot be served."""

  def finish(self, rows: list[dict[str, Any]], output: pathlib.Path) -> list[pathlib.Path]:
    """Writes what concerns the whole batch (a contact sheet, a timeline).

    Args:
      rows: those of all files, and {'file': path, 'error': reason} of every file that could not be served.
      output: an existing folder.

    Returns:
      The files written.
    """
    del rows, output
    return []


class Task(abc.ABC):
  """A system, as the loop and the launchers see it. Built from a config; holds no weights and no hidden state."""

  headline: tuple[str, ...] = ()
  """The scalars '<split>/<evaluator>/<name>' that summaries and tables over folds show first."""

  def __init__(self, config: Any):
    self.config = config

  @classmethod
  def folds(cls, config: Any) -> list[tuple[str, Any]]:
    """The runs that one experiment consists of (leave-one-out targets, cross-validation folds): (name, config) each."""
    return [('', config)]

  @classmethod
  def procedural(cls, config: Any) -> bool:
    """Whether the data are made on the spot, drawn or read off annotation files in seconds.

    `launch.train` then calls `prepare` first, which keeps what is there.
    """
    del config
    return False

  @classmethod
  def prepare(cls, config: Any) -> list[Any]:
    """Turns raw data into records (`launch.prepare`); returns one `core.data.records.PrepareReport` per dataset."""
    raise UserError(f'{cls.__module__} has no data to prepare.')

  @classmethod
  def untrained(cls, config: Any) -> bool:
    """Whether it can be applied to files as `init` and `pretrained` leave it, without a training run of its own.

    `launch.predict --config=...` then does so, and gives `predictor` no metadata.
    """
    del config
    return False

  @abc.abstractmethod
  def init(self, rng: jax.Array) -> Variables:
    """Fresh variables from a key; pure, so that `jax.eval_shape` and `jax.jit` with output shardings can trace it."""

  @abc.abstractmethod
  def stages(self) -> Sequence[Stage]:
    """The stages in order; each starts from the former's weights."""

  def pretrained(self, variables: Variables) -> Variables:
    """Returns `variables` with pretrained weights merged in, printing what was loaded, left fresh and left unused."""
    return variables

  def restored(self, metadata: Mapping[str, Any]) -> None:
    """Tells a task that it will judge or apply a checkpoint's weights, and what the checkpoint's metadata hold.

    What the weights belong to (a tokenizer) is then taken from there, and not from the data as they are today.
    """
    del metadata

  def evaluators(self) -> Mapping[str, Evaluator]:
    """Named evaluators."""
    return {}

  def predictor(self, variables: Variables, metadata: Mapping[str, Any]) -> Predictor:
    """What a user runs on their own files, from a checkpoint's variables and metadata."""
    raise UserError(f'{type(self).__module__} does not predict on files.')

  def entries(self) -> Mapping[str, Sequence[str]]:
    """Names of the entries of vector metrics, for the report's curves: {'risk': ('phone', 'tablet')}."""
    return {}

  def report(self, evaluations: Mapping[str, Evaluation], variables: Variables) -> Sequence[Any]:
    """Sections (`core.train.report.Section`) that the run's report.html shows beside the curves.

    Args:
      evaluations: '<split>/<evaluator>' -> its `Evaluation` on the chosen checkpoint.
      variables: the chosen checkpoint's variables.
    """
    del evaluations, variables
    return []
