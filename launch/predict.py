"""Applies a trained run, or a system that needs no training, to files: photos, videos, folders of them.

  python -m launch.predict --workdir=runs/fas_aug --input photos/ clip.mp4 --output=predictions
  python -m launch.predict --workdir=runs/fas_aug --fold=to_phone --input=a.jpg --input=b.jpg --output=predictions
  python -m launch.predict --config=configs/generative/ddap.py:sd15 --config.model.path=sd15 --input a.jpg --output=out

Folders are searched through, except --output itself. A file that cannot be served gets its reason in its row, and the
others are still served. Prints a table and writes predictions.json, predictions.csv and what the system adds (a contact
sheet) into --output. How far it is, and the time left, go to the terminal, or into a log every half minute.
Exit codes: 0 when something was served, 2 otherwise.
"""

from __future__ import annotations

import csv
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

import jax
import tqdm
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
  folder = _choose(workdir, fold)
  trained = command.restore(folder, which, changes)
  predictor = trained.task.predictor(trained.variables, trained.meta['metadata'])
  return serve(predictor, inputs, output, {'run': str(folder), 'step': trained.meta['step']})


def run_untrained(config: Any, inputs: Sequence[str | pathlib.Path], output: str | pathlib.Path) -> list[Row]:
  """The same with a system that needs no training run, whose weights are those that its config names.

  Args:
    config: of `core.config.load`.
    inputs, output: as in `run`.
  """
  task_class = command.task_class(config.system)
  if not task_class.untrained(config):
    raise UserError(
      f'{config.system} cannot be applied from its config alone: its weights come from training. Train it by'
      ' `python -m launch.train --config=... --workdir=DIR`, then give --workdir=DIR here in the place of --config.'
    )
  task = task_class(config)
  variables = task.pretrained(jax.jit(task.init)(jax.random.key(config.seed)))
  source = {'system': config.system, 'config': checkpoint.plain(config.to_dict())}
  return serve(task.predictor(variables, {}), inputs, output, source)


def serve(
  predictor: Predictor, inputs: Sequence[str | pathlib.Path], output: str | pathlib.Path, source: Row
) -> list[Row]:
  """Predicts on files and writes the results; `source` says in predictions.json where the weights come from."""
  output, rows = pathlib.Path(output), []
  cases = _cases(inputs, predictor, output)
  output.mkdir(parents=True, exist_ok=True)
  predictor.begin(output)
  bar = Progress(sum(not problem for _, problem in cases))
  predictor.progress = bar.inside
  for case, problem in cases:
    rows += [{'file': str(case[0]), 'error': problem}] if problem else _serve(predictor, case)
    if not problem:
      bar.done()
  bar.close()
  _write(output, rows, source)
  written = predictor.finish(rows, output)
  _show(rows, predictor.shown)
  for path in (output / 'predictions.json', output / 'predictions.csv', *written):
    print(f'Written: {path}', flush=True)
  return rows


class Progress:
  """How many cases are done and the time left: a bar on a terminal, elsewhere a line now and then.

  What takes no time prints nothing. The bar moves with every share of a case that a system tells.
  """

  FORMAT = '{desc} {percentage:3.0f}% |{bar}| ETA {remaining}'
  EVERY = 30.0
  """Seconds between lines."""
  DELAY = 2.0
  """Seconds before there is a bar."""

  def __init__(self, cases: int, stream: TextIO | None = None):
    self._cases, self._done = cases, 0
    self._stream = sys.stderr if stream is None else stream
    self._begun = self._said = time.monotonic()
    self._bar = None
    if self._stream.isatty():
      options = {'bar_format': self.FORMAT, 'dynamic_ncols': True, 'smoothing': 0, 'mininterval': 0, 'miniters': 0}
      self._bar = tqdm.tqdm(total=cases, file=self._stream, leave=False, delay=self.DELAY, **options)

  def inside(self, share: float) -> None:
    """`share` in 0..1 of the case at work is done."""
    at = self._done + min(max(share, 0.0), 1.0)
    text = f'case {min(self._done + 1, self._cases)} of {self._cases}'
    if self._bar is not None:
      self._bar.set_description_str(text, refresh=False)
      self._bar.update(at - self._bar.n)
      return
    now = time.monotonic()
    if now - self._said >= self.EVERY:
      self._said = now
      left = tqdm.tqdm.format_interval((now - self._begun) / at * (self._cases - at)) if at else '?'
      print(f'{text}, {at / self._cases:.0%}, ETA {left}', file=self._stream, flush=True)

  def done(self) -> None:
    """A case is done."""
    self.inside(1.0)
    self._done += 1

  def close(self) -> None:
    """Takes the bar away."""
    if self._bar is not None:
      self._bar.close()


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


def _cases(
  inputs: Sequence[str | pathlib.Path], predictor: Predictor, output: pathlib.Path
) -> list[tuple[tuple[pathlib.Path, ...], str]]:
  """(the files of a case, what is wrong with the first or '') of every case, each file once; folders are sorted.

  What lies in `output`, the results of a former call, is not found in a folder around it.
  """
  named: dict[pathlib.Path, str] = {}
  folders: dict[pathlib.Path, list[pathlib.Path]] = {}
  endings = ', '.join(predictor.suffixes)
  for path in map(pathlib.Path, inputs):
    if path.is_dir():
      inside = [
        each for each in sorted(path.rglob('*')) if each.is_file() and each.suffix.lower() in predictor.suffixes
      ]
      # Names with a dot in front are side files of other systems (._a.jpg), not pictures.
      inside = [each for each in inside if not any(p.startswith('.') for p in each.relative_to(path).parts)]
      around = path.resolve() in output.resolve().parents
      folders[path] = [each for each in inside if not (around and output.resolve() in each.resolve().parents)]
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
  command.declare_config(values)
  flags.DEFINE_multi_string('input', [], 'Files and folders; as many as you like.', flag_values=values)
  flags.DEFINE_string('output', None, 'Folder for the results.', flag_values=values)
  flags.DEFINE_string('fold', None, 'Fold, where --workdir holds several; the first by default.', flag_values=values)


def execute(arguments: command.Arguments) -> int:
  """Predicts."""
  options = arguments.flags
  if not options.workdir and not options.config:
    raise UserError('expected either --workdir=runs/NAME (a trained run) or --config=FILE (a system that needs none).')
  inputs, output = [*options.input, *arguments.positional], arguments.required('output', 'predictions')
  _check_choice(arguments)
  if not inputs:
    raise UserError('--input is missing: expected --input=FILE_OR_FOLDER, as many as you like.')
  backend.setup()
  if options.config:
    rows = run_untrained(arguments.config(), inputs, output)
  else:
    rows = run(options.workdir, inputs, output, fold=options.fold, which=options.which, changes=options.set)
  if all('error' in row for row in rows):
    raise UserError('nothing could be served; the reasons are above.')
  return 0


def _check_choice(arguments: command.Arguments) -> None:
  """Refuses flags that contradict each other."""
  options = arguments.flags
  if options.workdir and options.config:
    raise UserError('--workdir (a trained run, which has its config) and --config exclude each other: leave out one.')
  if options.workdir and arguments.overrides:
    change = arguments.overrides[0]
    raise UserError(f"--config.{change}: a run's own config is changed by --set={change}.")
  if options.config and (given := [name for name in ('fold', 'which', 'set') if options[name].present]):
    way_out = 'change the config by --config.KEY=VALUE' if given == ['set'] else 'leave it out'
    raise UserError(f'--{given[0]} belongs to --workdir, and --config was given: {way_out}.')


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit code."""
  return command.main('launch.predict', __doc__, declare, execute, argv)


if __name__ == '__main__':
  sys.exit(main())
