"""Applies a trained run to files: photos, videos, folders of them.

  python -m launch.predict --workdir=runs/fas_aug --input photos/ clip.mp4 --output=predictions
  python -m launch.predict --workdir=runs/fas_aug --fold=to_phone --input=a.jpg --input=b.jpg --output=predictions

Folders are searched through. A file that cannot be served gets its reason in its row, and the others are still served.
Prints a table and writes predictions.json, predictions.csv and what the system adds (a contact sheet) into --output.
Exit codes: 0 when something was served, 2 otherwise.
"""

from __future__ import annotations

import csv
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from core.errors import UserError, nearest
from core.train import backend, checkpoint, report
from core.train.task import Predictor
from launch import command

Row = dict[str, Any]


def run(
  workdir: str | pathlib.Path,
  inputs: Sequence[str | pathlib.Path],
  output: str | pathlib.Path,
  *,
  fold: str | None = None,
  which: str = 'best',
  changes: Sequence[str] = (),
) -> list[Row]:
  """Predicts on files and writes the results; also for notebooks.

  Args:
    workdir: a run's folder, or the parent folder of several folds.
    inputs: files and folders.
    output: folder for the results.
    fold: which fold, where there are several; the first by default.
    which: 'best', 'last' or a step.
    changes: 'key=value' over the run's config.

  Returns:
    Rows of the system, each with 'file'; {'file', 'error'} for what could not be served.
  """
  folder, output = _choose(workdir, fold), pathlib.Path(output)
  trained = command.restore(folder, which, changes)
  predictor = trained.task.predictor(trained.variables, trained.meta['metadata'])
  rows = []
  for case, problem in _cases(inputs, predictor):
    rows += [{'file': str(case[0]), 'error': problem}] if problem else _serve(predictor, case)
  output.mkdir(parents=True, exist_ok=True)
  _write(output, rows, {'run': str(folder), 'step': trained.meta['step']})
  written = predictor.finish(rows, output)
  _show(rows, predictor.shown)
  for path in (output / 'predictions.json', output / 'predictions.csv', *written):
    print(f'Written: {path}', flush=True)
  return rows


def _choose(workdir: str | pathlib.Path, fold: str | None) -> pathlib.Path:
  """The folder of the run to use; a choice among several is said aloud."""
  folds = command.folds_in(workdir)
  if fold is not None and fold not in folds:
    names = ', '.join(name for name in folds if name) or 'none: it is a single run'
    raise UserError(f"--fold: there is no fold '{fold}' in '{workdir}'; there are {names}.{nearest(fold, folds)}")
  chosen = next(iter(folds)) if fold is None else fold
  if fold is None and len(folds) > 1:
    print(f"Using fold '{chosen}' of {', '.join(folds)}; --fold chooses another.", flush=True)
  return folds[chosen]


def _cases(inputs: Sequence[str | pathlib.Path], predictor: Predictor) -> list[tuple[tuple[pathlib.Path, ...], str]]:
  """(the files of a case, what is wrong with the first or '') of every case, each file once; folders are sorted."""
  named: dict[pathlib.Path, str] = {}
  folders: dict[pathlib.Path, list[pathlib.Path]] = {}
  endings = ', '.join(predictor.suffixes)
  for path in map(pathlib.Path, inputs):
    if path.is_dir():
      inside = [
        each for each in sorted(path.rglob('*')) if each.is_file() and each.suffix.lower() in predictor.suffixes
      ]
      # Names with a dot in front are side files of other systems (._a.jpg), not pictures.
      folders[path] = [each for each in inside if not any(p.startswith('.') for p in each.relative_to(path).parts)]
    elif not path.exists():
      named[path] = 'there is no such file or folder'
    elif path.suffix.lower() not in predictor.suffixes:
      named[path] = f"files that end in '{path.suffix}' are not served; {endings} are"
    else:
      named[path] = ''
  found = [((path,), problem) for path, problem in named.items() if problem]
  served = [path for path, problem in named.items() if not problem]
  found += [(case, '') for case in predictor.cases(served)] if served else []
  seen = set(named)
  for folder, files in folders.items():
    new = [path for path in files if path not in seen]
    seen.update(new)
    if not files:
      found.append(((folder,), f'the folder holds no file that ends in {endings}'))
    found += [(case, '') for case in predictor.cases(new, folder)] if new else []
  return found


def _serve(predictor: Predictor, case: Sequence[pathlib.Path]) -> list[Row]:
  try:
    return [{'file': str(case[0]), **row} for row in predictor(*case)]
  except UserError as error:
    return [{'file': str(case[0]), 'error': str(error)}]


def _write(output: pathlib.Path, rows: Sequence[Row], source: Row) -> None:
  """predictions.json and predictions.csv; a list in a cell of the latter is JSON."""
  served = len({row['file'] for row in rows if 'error' not in row})
  failed = len({row['file'] for row in rows if 'error' in row})
  content = {**source, 'served': served, 'failed': failed, 'rows': checkpoint.plain(rows)}
  command.write_json(output / 'predictions.json', content)
  with (output / 'predictions.csv').open('w', newline='') as file:
    writer = csv.DictWriter(file, _columns(rows), restval='')
    writer.writeheader()
    for row in checkpoint.plain(rows):
      writer.writerow({k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in row.items()})


def _show(rows: Sequence[Row], shown: Sequence[str] = ()) -> None:
  """A table of what was served, and a line with its reason for everything that was not."""
  served = [row for row in rows if 'error' not in row]
  if served:
    columns = ['file', *shown] if shown else _columns(served)
    print(command.text_table(report.Table(columns, [[row.get(name) for name in columns] for row in served])))
  for row in rows:
    if 'error' in row:
      print(f'NOT SERVED {row["file"]}: {row["error"]}')


def _columns(rows: Sequence[Row]) -> list[str]:
  """All keys: 'file' first, 'error' last."""
  names = dict.fromkeys(name for row in rows for name in row if name not in ('file', 'error'))
  return ['file', *names, *(['error'] if any('error' in row for row in rows) else [])]


def declare(values: flags.FlagValues) -> None:
  """The flags."""
  command.declare_run(values)
  flags.DEFINE_multi_string('input', [], 'Files and folders; as many as you like.', flag_values=values)
  flags.DEFINE_string('output', None, 'Folder for the results.', flag_values=values)
  flags.DEFINE_string('fold', None, 'Fold, where --workdir holds several; the first by default.', flag_values=values)


def execute(arguments: command.Arguments) -> int:
  """Predicts."""
  options = arguments.flags
  workdir, output = arguments.required('workdir', 'runs/NAME'), arguments.required('output', 'predictions')
  inputs = [*options.input, *arguments.positional]
  if not inputs:
    raise UserError('--input is missing: expected --input=FILE_OR_FOLDER, as many as you like.')
  backend.setup()
  rows = run(workdir, inputs, output, fold=options.fold, which=options.which, changes=options.set)
  if all('error' in row for row in rows):
    raise UserError('nothing could be served; the reasons are above.')
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit code."""
  return command.main('launch.predict', __doc__, declare, execute, argv)


if __name__ == '__main__':
  sys.exit(main())
