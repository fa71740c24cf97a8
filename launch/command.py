"""What the launchers share: command lines, the end of a run that the user must mend, tasks and runs found by name."""

from __future__ import annotations

import collections
import dataclasses
import importlib
import importlib.util
import json
import math
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import flags, logging

from core import config as config_lib
from core.errors import UserError, nearest
from core.train import checkpoint, report
from core.train.preemption import Preempted
from core.train.report_html import is_number, value_text
from core.train.task import Evaluation, Task, Variables

_OVERRIDE = re.compile(r'--?(no)?config\.([^=\s]+)(?:=(.*))?', re.DOTALL)


@dataclasses.dataclass
class Arguments:
  """A parsed command line.

  Attributes:
    flags: values by name: `arguments.flags.workdir`.
    positional: what belongs to no flag.
    overrides: 'key=value' of every --config.key=value.
    command: the command line, to be shown and to be run again.
  """

  flags: flags.FlagValues
  positional: list[str]
  overrides: list[str]
  command: str

  def config(self) -> config_lib.Tracked:
    """The config that --config and --config.key=value name."""
    spec = self.required('config', 'configs/fas/fas_aug.py')
    return config_lib.track(config_lib.load(spec, self.overrides))

  def required(self, name: str, example: str) -> str:
    """The value of a flag that must be given."""
    value = self.flags[name].value
    if not value:
      raise UserError(f'--{name} is missing: expected --{name}={example}. --help shows all flags.')
    return value

  def flags_only(self) -> Arguments:
    """Itself; raises `UserError` when something on the command line belongs to no flag."""
    if self.positional:
      raise UserError(f"'{self.positional[0]}' belongs to no flag: expected --NAME=VALUE. --help shows all flags.")
    return self


def main(
  module: str,
  text: str,
  declare: Callable[[flags.FlagValues], None],
  execute: Callable[[Arguments], int],
  argv: Sequence[str] | None = None,
) -> int:
  """Parses, executes, and turns the expected ends of a run into exit codes.

  Args:
    module: 'launch.train'.
    text: what --help says before the list of flags (the module's docstring).
    declare: defines the flags in the values that it is given.
    execute: does the work; returns the exit code.
    argv: arguments without the program's name; those of this process by default.

  Returns:
    0, `UserError.EXIT_CODE` after one line that says what to mend, or `Preempted.EXIT_CODE`: start me again.
  """
  words = list(sys.argv[1:] if argv is None else argv)
  try:
    arguments = parse(module, words, declare)
    if arguments.flags.help:
      print(f'{text.strip()}\n\nFlags:\n{_described(arguments.flags)}')
      return 0
    flags.FLAGS.mark_as_parsed()  # grain's worker processes ask absl's global flags
    logging.set_verbosity(logging.ERROR)  # orbax warns of files that it does not need
    return execute(arguments)
  except UserError as error:
    print(f'{module}: {error}', file=sys.stderr)
    return UserError.EXIT_CODE
  except Preempted as stop:
    print(f'{module}: {stop}', file=sys.stderr)
    return Preempted.EXIT_CODE


def parse(module: str, words: Sequence[str], declare: Callable[[flags.FlagValues], None]) -> Arguments:
  """The command line's flags (absl) and config overrides (for `core.config`, which reads them as config_flags does)."""
  values = flags.FlagValues()
  values.set_gnu_getopt(True)  # flags may follow positional arguments: --input a.jpg b.jpg --output=x
  flags.DEFINE_bool('help', False, 'Prints this.', flag_values=values)
  declare(values)
  words_without, overrides = _split(words)
  if overrides and 'config' not in values:
    raise UserError(f"'{overrides[0]}': this launcher takes the config from --workdir; change it by --set=key=value.")
  try:
    positional = values([module, *words_without])[1:]
  except flags.Error as error:
    raise UserError(f'{str(error).strip()} (--help shows all flags)') from error
  return Arguments(values, positional, overrides, shlex.join(['python', '-m', module, *words]))


def declare_config(values: flags.FlagValues) -> None:
  """--config and, beside it, --config.key=value."""
  text = 'Config file and preset: configs/DOMAIN/NAME.py[:PRESET]. --config.KEY=VALUE changes one of its keys.'
  flags.DEFINE_string('config', None, text, flag_values=values)


def declare_run(values: flags.FlagValues) -> None:
  """Flags that pick a trained run: --workdir, --which and --set."""
  flags.DEFINE_string('workdir', None, "A run's folder, or the folder of all its folds.", flag_values=values)
  flags.DEFINE_string('which', 'best', "Which checkpoint: 'best', 'last' or a step.", flag_values=values)
  flags.DEFINE_multi_string('set', [], "KEY=VALUE changes a key of the run's config; repeatable.", flag_values=values)


# Systems and runs.


def systems() -> list[str]:
  """Names of all systems of the checkout, 'domain.system'."""
  found = (path.relative_to(config_lib.CHECKOUT).parts[:2] for path in config_lib.CHECKOUT.glob('*/*/task.py'))
  return sorted('.'.join(parts) for parts in found if parts[0] not in ('core', 'tests'))


def task_class(system: str) -> type[Task]:
  """The class `Task` of the module `<system>.task`."""
  try:
    known = importlib.util.find_spec(f'{system}.task') is not None
  except (ModuleNotFoundError, ValueError):
    known = False
  if not known:
    raise UserError(f"config.system is '{system}'; there are {', '.join(systems())}.{nearest(system, systems())}")
  return importlib.import_module(f'{system}.task').Task


def make_data(task: type[Task], config: Any) -> None:
  """Writes the records of procedural data, where they are missing."""
  if not task.procedural(config):
    return
  print(f'Making the data of {config.system}, where they are missing.', flush=True)
  counts = [f'{each.dataset} {sum(each.counts.values())}' for each in task.prepare(config)]
  print(f'Records: {", ".join(counts)}.', flush=True)


def folds_in(workdir: str | pathlib.Path) -> dict[str, pathlib.Path]:
  """The runs of a folder: {'': itself}, or {fold: its folder} for the parent of several folds."""
  workdir = pathlib.Path(workdir)
  if not workdir.is_dir():
    raise UserError(f"--workdir: there is no folder '{workdir}': expected the workdir of a run of launch.train.")
  if (workdir / 'checkpoints').is_dir():
    return {'': workdir}
  folds = {path.name: path for path in sorted(workdir.iterdir()) if (path / 'checkpoints').is_dir()}
  if not folds:
    raise UserError(f"--workdir: no checkpoint under '{workdir}': expected the workdir of a run of launch.train.")
  return folds


@dataclasses.dataclass
class Trained:
  """A run, brought back from its checkpoint: its task, built from its own config; weights; meta."""

  task: Task
  variables: Variables
  meta: dict[str, Any]


def restore(workdir: pathlib.Path, which: str, changes: Sequence[str]) -> Trained:
  """Brings a run back; `changes` are 'key=value' over its config."""
  variables, meta = checkpoint.restore_variables(workdir, which)
  config = config_lib.change(config_lib.restore(meta['config']), changes, source=f"the config of '{workdir}'")
  task = task_class(config.system)(config)
  task.restored(meta['metadata'])
  return Trained(task, variables, meta)


# Reading.


def text_table(table: report.Table) -> str:
  """A table for the terminal; numbers flush right."""
  numeric = [any(is_number(row[i]) for row in table.rows) for i in range(len(table.header))]
  cells = [[str(name) for name in table.header], *([value_text(value) for value in row] for row in table.rows)]
  widths = [max(len(row[i]) for row in cells) for i in range(len(table.header))]

  def line(row: Sequence[str]) -> str:
    padded = (text.rjust(width) if right else text.ljust(width) for text, width, right in zip(row, widths, numeric))
    return '  '.join(padded).rstrip()

  return '\n'.join([line(cells[0]), '  '.join('-' * width for width in widths), *(line(row) for row in cells[1:])])


def write_json(path: pathlib.Path, content: Mapping[str, Any], indent: int | None = 2) -> None:
  """In one rename: a reader never finds half a file."""
  path.parent.mkdir(parents=True, exist_ok=True)
  half = path.with_suffix('.tmp')
  half.write_text(json.dumps(content, indent=indent) + '\n')
  half.replace(path)


def write_files(folder: pathlib.Path, evaluations: Iterable[Evaluation]) -> list[pathlib.Path]:
  """Writes the `files` of evaluations into a folder, each in one rename; returns their paths."""
  files = {folder / name: content for each in evaluations for name, content in each.files.items()}
  for path, content in files.items():
    write_json(path, content, indent=None)
  return list(files)


def json_numbers(scalars: Mapping[str, Any]) -> dict[str, float | None]:
  """Numbers as JSON has them: NaN and infinities, which it has not, become null."""
  return {name: float(value) if math.isfinite(value) else None for name, value in scalars.items()}


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
  """(words without config overrides, 'key=value' of each override)."""
  rest, overrides, todo = [], [], collections.deque(words)
  while todo:
    word = todo.popleft()
    match = _OVERRIDE.fullmatch(word)
    if match is None:
      rest.append(word)
      continue
    negated, key, value = match.groups()
    if negated:
      value = 'false'
    elif value is None:
      # --config.key VALUE; a truth value may stand alone, and a negative number is no flag.
      given = todo and (not todo[0].startswith('-') or re.match(r'-[\d.]', todo[0]))
      value = todo.popleft() if given else 'true'
    overrides.append(f'{key}={value}')
  return rest, overrides


def _described(values: flags.FlagValues) -> str:
  lines = []
  for name in sorted(values):
    default = values[name].default
    shown = '' if default in (None, False, []) else f' (default: {default})'
    lines.append(f'  --{name}: {values[name].help}{shown}')
  return '\n'.join(lines)
