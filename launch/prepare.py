"""Turns raw data into records: official downloads, a user's own files, or procedural data.

  python -m launch.prepare --config=configs/fas/fas_aug.py:release --config.data.root=/data/OULU-NPU
  python -m launch.prepare --config=configs/fas/fas_aug.py

Prints, per dataset, how many records each split got and everything odd that was met, counted by kind with examples; the
whole list is written to problems_DATASET.csv in config.data.records. Exit codes: 0 done, 2 something to mend.
"""

from __future__ import annotations

import csv
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from core.data.records import PrepareReport
from core.errors import UserError
from core.train import backend
from launch import command

EXAMPLES = 3
"""Problems of a kind that are printed."""


def run(config: Any) -> list[PrepareReport]:
  """Prepares the data of a config, prints what was met and writes it down; also for notebooks.

  Raises:
    UserError: no raw data, or a dataset without a record.
  """
  reports = command.task_class(config.system).prepare(config)
  root = pathlib.Path(config.data.records).expanduser()
  for report in reports:
    path = root / f'problems_{report.dataset}.csv'
    print(describe(report, path), flush=True)
    path.unlink(missing_ok=True)
    if report.problems:
      _write(path, report.problems)
  empty = [report.dataset for report in reports if not sum(report.counts.values())]
  if empty or not reports:
    raise UserError(f'no record was written for {", ".join(empty) or "any dataset"}: see the problems above.')
  return reports


def describe(report: PrepareReport, path: pathlib.Path) -> str:
  """The report as text: counts per split, problems by kind with a few examples, and where all of them are listed."""
  lines = [f'{report.dataset}: {sum(report.counts.values())} records']
  lines += [f'  {split:<12} {count:>8}' for split, count in report.counts.items()]
  kinds: dict[str, list[tuple[str, str]]] = {}
  for kind, where, detail in report.problems:
    kinds.setdefault(kind, []).append((where, detail))
  for kind, met in sorted(kinds.items(), key=lambda item: -len(item[1])):
    lines.append(f'  {len(met)} x {kind}')
    lines += [f'      {where}  {detail}' for where, detail in met[:EXAMPLES]]
    lines += [f'      and {len(met) - EXAMPLES} more'] if len(met) > EXAMPLES else []
  lines += [f'  All {len(report.problems)} problems: {path}'] if report.problems else []
  return '\n'.join(lines)


def _write(path: pathlib.Path, problems: Sequence[tuple[str, str, str]]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(('kind', 'path', 'detail'))
    writer.writerows(problems)


def execute(arguments: command.Arguments) -> int:
  """Prepares."""
  config = arguments.flags_only().config()
  backend.setup()
  run(config)
  return 0


def declare(values: flags.FlagValues) -> None:
  """The flags."""
  command.declare_config(values)


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit code."""
  return command.main('launch.prepare', __doc__, declare, execute, argv)


if __name__ == '__main__':
  sys.exit(main())
