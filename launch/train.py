"""Trains a system, evaluates the chosen checkpoint and writes the report.

  python -m launch.train --config=configs/fas/fas_aug.py --workdir=runs/fas_aug
  python -m launch.train --config=configs/fas/fas_aug.py:release --workdir=runs/low --config.optim.learning_rate=3e-5

An experiment of several folds (leave-one-out targets) trains one after the other, each in a folder of its own. The same
command again goes on where it was stopped, and leaves finished folds alone. In the folder: report.html, results.json,
metrics.csv, tensorboard/, history.jsonl, config.json, checkpoints/.

Several processes: in a step of several Slurm tasks, with --distributed (TPU pods and other places where the scheduler
knows the processes), or with --coordinator, --num_processes and --process_id.
Exit codes: 0 done, 2 something to mend (one line says what), 75 preempted and saved: start again.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags

from core import config as config_lib
from core.errors import UserError, nearest
from core.train import backend, checkpoint, loggers, loop, report
from core.train.task import Task
from launch import command

HOW = ('mesh.', 'train.log_every', 'train.checkpoint_every', 'train.keep', 'data.records', 'data.root', 'data.workers')
"""Keys (or beginnings) that say where and how a run computes, not what: a run may go on with others."""


@dataclasses.dataclass
class Fold:
  """One trained run of an experiment.

  Attributes:
    workdir: its folder.
    evaluations: '<split>/<evaluator>' -> scalars of the chosen checkpoint.
    result: what training left in memory; None for a fold that had been finished by an earlier call.
    unread: config keys that the run never read; none where it did not begin in this call (it has then not read again
      what only a beginning needs).
  """

  workdir: pathlib.Path
  evaluations: dict[str, dict[str, float]]
  result: loop.TrainResult | None = None
  unread: Sequence[str] = ()

  @property
  def scalars(self) -> dict[str, float]:
    """'<split>/<evaluator>/<name>' -> number."""
    return {f'{name}/{key}': value for name, each in self.evaluations.items() for key, value in each.items()}


def run(config: Any, workdir: str | pathlib.Path, *, invocation: str = '') -> dict[str, Fold]:
  """Trains and evaluates all folds of a config; also for notebooks.

  Args:
    config: of `core.config.load`.
    workdir: the experiment's folder; the run itself where there is one fold (named ''), else a folder per fold.
    invocation: the command line, for the report.

  Returns:
    fold name -> `Fold`.
  """
  config = config if isinstance(config, config_lib.Tracked) else config_lib.track(config)
  workdir, task = pathlib.Path(workdir).resolve(), command.task_class(config.system)
  runs = task.folds(config)
  folds = {name: _finished(workdir / name, fold_config) for name, fold_config in runs}
  todo = [name for name, fold in folds.items() if fold is None]
  for name in (name for name in folds if name not in todo):
    _say(f'{name or workdir}: finished before.')
  if todo:
    command.make_data(task, config)
  for name, fold_config in runs:
    if name in todo:
      _say(f'{name} ({1 + list(folds).index(name)} of {len(folds)})' if name else str(workdir))
      folds[name] = _train(task, fold_config, workdir / name, name, invocation)
  if len(folds) > 1:
    _write_overview(task, config, workdir, folds, invocation)
  if unread := folds[runs[-1][0]].unread:
    _say(f'Config keys that this run never read: {", ".join(unread)}.')
  _say(f'Report: {workdir / "report.html"}')
  return folds


def _train(task_class: type[Task], config: Any, workdir: pathlib.Path, name: str, invocation: str) -> Fold:
  """One fold, from its data to its report."""
  task, begun = task_class(config), time.monotonic()
  evaluators, final = task.evaluators(), [tuple(pair) for pair in config.eval.final]
  for evaluator, _ in final:
    if evaluator not in evaluators:
      hint = nearest(evaluator, evaluators)
      raise UserError(f"config.eval.final names the evaluator '{evaluator}'; there are {sorted(evaluators)}.{hint}")
  _keep_config(workdir, config)
  begins = not any((workdir / 'checkpoints' / 'last').glob('[0-9]*'))
  logger = loggers.make(workdir)
  try:
    result = loop.train(task, workdir, logger=logger)
  finally:
    logger.close()
  evaluations = {f'{split}/{evaluator}': evaluators[evaluator](result.variables, split) for evaluator, split in final}
  result.evaluations |= evaluations
  fold = Fold(workdir, {key: dict(each.scalars) for key, each in evaluations.items()}, result)
  sections = task.report(evaluations, result.variables)
  fold.unread = config_lib.unread(config) if begins else ()
  if jax.process_index() == 0:
    _write(fold, task, sections, name, invocation, time.monotonic() - begun)
    shown = report.Table(['', 'chosen checkpoint'], [[key, fold.scalars[key]] for key in headline(task, fold.scalars)])
    print(command.text_table(shown), flush=True)
  return fold


def _write(fold: Fold, task: Task, sections: Sequence[Any], name: str, invocation: str, seconds: float) -> None:
  """report.html and, last of all, results.json, which says that the fold is finished."""
  config, result = task.config, fold.result
  steps = max((row['step'] for row in result.history), default=0)
  times = {'chosen step': result.best_step or steps, 'steps': steps, 'seconds since the last start': round(seconds)}
  report.write(
    fold.workdir / 'report.html',
    title=f'{config.system}: {name}' if name else config.system,
    command=invocation,
    summary={**{key: fold.scalars[key] for key in headline(task, fold.scalars)}, **times},
    history=result.history,
    sections=sections,
    evaluations=fold.evaluations,
    entries=task.entries(),
    best_step=result.best_step,
    config=config,
    unread=fold.unread,
    platform=backend.summary(),
  )
  command.write_files(fold.workdir, [result.evaluations[key] for key in fold.evaluations])
  command.write_json(fold.workdir / 'results.json', {
    'system': config.system, 'fold': name, 'finished': True, 'command': invocation, **times,
    'evaluations': {key: command.json_numbers(each) for key, each in fold.evaluations.items()},
    'metadata': checkpoint.plain({key: result.evaluations[key].metadata for key in fold.evaluations}),
    'unread': list(fold.unread), 'platform': backend.summary(),
  })  # fmt: skip


def headline(task: Task | type[Task], scalars: Mapping[str, float]) -> list[str]:
  """The names to show first: the task's own, as far as they were evaluated, or else the first few."""
  return [name for name in task.headline if name in scalars] or list(scalars)[:4]


def _write_overview(
  task: type[Task], config: Any, workdir: pathlib.Path, folds: Mapping[str, Fold], invocation: str
) -> None:
  """The table of all folds and their mean: printed, and as report.html and results.json of the parent folder."""
  scalars = {name: fold.scalars for name, fold in folds.items()}
  shown = headline(task, next(iter(scalars.values())))
  table = report.fold_table(scalars, shown)
  if jax.process_index() != 0:
    return
  print(command.text_table(table), flush=True)
  means = dict(zip(table.header[1:], table.rows[-1][1:]))
  every = report.fold_table(scalars)
  report.write_overview(
    workdir / 'report.html',
    title=config.system,
    command=invocation,
    summary={'folds': len(folds), **{f'mean {name}': value for name, value in means.items()}},
    folds=scalars,
    headline=shown,
    config=config,
    unread=list(folds.values())[-1].unread,
    platform=backend.summary(),
  )
  command.write_json(workdir / 'results.json', {
    'system': config.system, 'finished': True, 'command': invocation,
    'folds': {name: command.json_numbers(each) for name, each in scalars.items()},
    'mean': command.json_numbers(dict(zip(every.header[1:], every.rows[-1][1:]))),
  })  # fmt: skip


# What a folder holds already.


def _finished(workdir: pathlib.Path, config: Any) -> Fold | None:
  """The fold as an earlier call finished it, or None; raises `UserError` when the folder is of another config."""
  kept = workdir / 'config.json'
  if kept.exists():
    before, now = config_lib.flatten(json.loads(kept.read_text())), config_lib.flatten(checkpoint.plain(config))
    differ = [f'{key} ({before.get(key)} there, {now.get(key)} here)' for key in sorted({**before, **now})
              if repr(before.get(key)) != repr(now.get(key)) and not key.startswith(HOW)]  # fmt: skip
    if differ:
      raise UserError(f'{workdir} holds a run of another config: {"; ".join(differ)}. Choose another --workdir.')
  results = workdir / 'results.json'
  if not results.exists():
    return None
  stored = json.loads(results.read_text())['evaluations']
  numbers = {name: {key: float('nan') if value is None else value for key, value in each.items()}
             for name, each in stored.items()}  # fmt: skip
  return Fold(workdir, numbers)


def _keep_config(workdir: pathlib.Path, config: Any) -> None:
  if jax.process_index() == 0:
    command.write_json(workdir / 'config.json', checkpoint.plain(config))


def _say(text: str) -> None:
  if jax.process_index() == 0:
    print(text, flush=True)


# The command line.


def declare(values: flags.FlagValues) -> None:
  """The flags."""
  command.declare_config(values)
  flags.DEFINE_string('workdir', None, 'Folder of the experiment, seen by all processes.', flag_values=values)
  flags.DEFINE_bool('distributed', False, 'This process is one of several; the scheduler knows.', flag_values=values)
  flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0, where no scheduler knows.', flag_values=values)
  flags.DEFINE_integer('num_processes', None, 'How many processes there are.', flag_values=values)
  flags.DEFINE_integer('process_id', None, 'Which of them this is, from 0.', flag_values=values)


def execute(arguments: command.Arguments) -> int:
  """Trains."""
  options = arguments.flags_only().flags
  workdir = arguments.required('workdir', 'runs/NAME')
  backend.setup(
    distributed=options.distributed, coordinator=options.coordinator,
    num_processes=options.num_processes, process_id=options.process_id,
  )  # fmt: skip
  run(arguments.config(), workdir, invocation=arguments.command)
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit code."""
  return command.main('launch.train', __doc__, declare, execute, argv)


if __name__ == '__main__':
  sys.exit(main())
