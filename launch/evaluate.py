"""Evaluates a trained run again, on any split.

  python -m launch.evaluate --workdir=runs/fas_aug --split=test
  python -m launch.evaluate --workdir=runs/fas_aug/to_phone --split=val --evaluator=biometrics --which=last
  python -m launch.evaluate --workdir=runs/fas_aug --set=data.records=/data/records

The task is built from the checkpoint's own config. The parent folder of several folds stands for all of them: their
numbers and the mean are printed. Writes evaluation_SPLIT.json into the folder (or --output), and beside it what an
evaluator writes in a benchmark's own format.
"""

from __future__ import annotations

import itertools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from core.errors import UserError, nearest
from core.train import backend, checkpoint, report
from core.train.task import Evaluation
from launch import command


def run(
  workdir: str | pathlib.Path,
  *,
  split: str = 'test',
  evaluators: Sequence[str] = (),
  which: str = 'best',
  changes: Sequence[str] = (),
) -> dict[str, dict[str, Evaluation]]:
  """Evaluates a run or all folds of an experiment; also for notebooks.

  Args:
    workdir: a run's folder, or the parent folder of several.
    split: name of a split that the evaluators know.
    evaluators: their names; () for those that `config.eval.final` uses on this split, or else its first one.
    which: 'best', 'last' or a step.
    changes: 'key=value' over the run's config.

  Returns:
    fold name ('' for a single run) -> '<split>/<evaluator>' -> `Evaluation`; its metadata also have the step.
  """
  results = {}
  for name, folder in command.folds_in(workdir).items():
    trained = command.restore(folder, which, changes)
    command.make_data(type(trained.task), trained.task.config)
    known = trained.task.evaluators()
    chosen = list(evaluators) or _usual(trained.task.config, split)
    for evaluator in chosen:
      if evaluator not in known:
        raise UserError(f"there is no evaluator '{evaluator}'; there are {sorted(known)}.{nearest(evaluator, known)}")
    results[name] = {f'{split}/{each}': known[each](trained.variables, split) for each in chosen}
    for evaluation in results[name].values():
      evaluation.metadata = {**evaluation.metadata, 'step': trained.meta['step']}
  return results


def _usual(config: Any, split: str) -> list[str]:
  """The evaluators that the run itself ended with."""
  final = [tuple(pair) for pair in config.eval.final]
  if not final:
    raise UserError('config.eval.final names no evaluator: choose one by --evaluator.')
  return list(dict.fromkeys(name for name, each in final if each == split)) or [final[0][0]]


def declare(values: flags.FlagValues) -> None:
  """The flags."""
  command.declare_run(values)
  flags.DEFINE_string('split', 'test', "Split: 'train', 'val', 'test' or what the system knows.", flag_values=values)
  text = 'Evaluators, comma-separated; by default those the run ended with.'
  flags.DEFINE_list('evaluator', [], text, flag_values=values)
  flags.DEFINE_string('output', None, 'JSON file; WORKDIR/evaluation_SPLIT.json by default.', flag_values=values)


def execute(arguments: command.Arguments) -> int:
  """Evaluates, prints, writes."""
  options = arguments.flags_only().flags
  workdir = pathlib.Path(arguments.required('workdir', 'runs/NAME'))
  backend.setup()
  results = run(workdir, split=options.split, evaluators=options.evaluator, which=options.which, changes=options.set)
  scalars = {name: {key: each.scalars for key, each in fold.items()} for name, fold in results.items()}
  for name, fold in scalars.items():
    print(f'\n{name or workdir}\n{command.text_table(report.evaluation_table(fold))}')
  content = {
    'command': arguments.command,
    'split': options.split,
    'folds': {name: _plain(fold) for name, fold in results.items()},
  }
  if len(scalars) > 1:
    flat = {
      name: {f'{key}/{scalar}': value for key, each in fold.items() for scalar, value in each.items()}
      for name, fold in scalars.items()
    }
    table = report.fold_table(flat)
    content['mean'] = command.json_numbers(dict(zip(table.header[1:], table.rows[-1][1:])))
    print(f'\nall folds\n{command.text_table(report.transposed(table))}')
  path = pathlib.Path(options.output or workdir / f'evaluation_{options.split}.json')
  written = [command.write_files(path.parent / name, fold.values()) for name, fold in results.items()]
  command.write_json(path, content)
  print('\nWritten to ' + ', '.join(map(str, [path, *itertools.chain.from_iterable(written)])) + '.')
  return 0


def _plain(fold: dict[str, Evaluation]) -> dict[str, Any]:
  return {
    name: {'scalars': command.json_numbers(each.scalars), 'metadata': checkpoint.plain(each.metadata)}
    for name, each in fold.items()
  }


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit code."""
  return command.main('launch.evaluate', __doc__, declare, execute, argv)


if __name__ == '__main__':
  sys.exit(main())
