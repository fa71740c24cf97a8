"""Reruns the comparisons that a system claims, over several seeds, and says which of them stand.

  python -m launch.claims --system=fas_aug
  python -m launch.claims --system=fas_aug --only=C1,C3 --seeds=5 --workdir=runs/claims/fas_aug

Trains what is missing (a run that was stopped goes on with the same command), prints claim, measured mean and spread of
every variant and the verdict, and writes claims.md, claims.json and claims.png into the working folder.
"""

from __future__ import annotations

import importlib
import pathlib
import sys
from collections.abc import Sequence
from types import ModuleType

from absl import flags

from core import claims, claims_report
from core.config import CHECKOUT
from core.errors import UserError, nearest
from core.train import backend
from launch import command


def systems(root: pathlib.Path = CHECKOUT) -> list[str]:
  """Names of all systems that make claims, 'domain.system', by the files `domain/system/claims.py`."""
  found = (path.relative_to(root).parts[:2] for path in root.glob('*/*/claims.py'))
  return sorted('.'.join(parts) for parts in found if parts[0] not in ('core', 'tests'))


def resolve(name: str, known: list[str]) -> str:
  """The full name of a system given by that or by its folder; raises `UserError` when that is not exactly one."""
  matches = [system for system in known if name in (system, system.split('.')[1])]
  if len(matches) != 1:
    problem = f"'{name}' means {' and '.join(matches)}" if matches else f"there is no system '{name}' with claims"
    names = [*known, *(system.split('.')[1] for system in known)]
    hint = '' if matches else nearest(name, names)
    raise UserError(f'--system: {problem}; there are {", ".join(known) or "none"}.{hint}')
  return matches[0]


def judge_system(module: ModuleType, name: str, workdir: pathlib.Path, only: list[str], seeds: int | None) -> str:
  """Runs the claims of a system's `claims` module; returns the text of claims.md, which it also writes."""
  results = claims.run(module.CLAIMS, workdir, only=only, seeds=seeds, log=lambda line: print(line, flush=True))
  return claims_report.write(results, module.NON_CLAIMS, workdir, title=f'Claims of {name}')


def declare(values: flags.FlagValues) -> None:
  """The flags."""
  flags.DEFINE_string('system', None, "A system by its folder: 'fas_aug' or 'fas.fas_aug'.", flag_values=values)
  flags.DEFINE_list('only', [], 'Ids of the claims to train, with commas; all by default.', flag_values=values)
  flags.DEFINE_integer('seeds', None, "Number of seeds; each claim's own by default.", flag_values=values)
  text = 'Folder of cells and results; runs/claims/SYSTEM by default.'
  flags.DEFINE_string('workdir', None, text, flag_values=values)


def execute(arguments: command.Arguments) -> int:
  """Trains, judges, prints."""
  options = arguments.flags_only().flags
  name = resolve(arguments.required('system', 'fas_aug'), systems())
  workdir = pathlib.Path(options.workdir or f'runs/claims/{name.split(".")[1]}')
  backend.setup()
  print('\n' + judge_system(importlib.import_module(f'{name}.claims'), name, workdir, options.only, options.seeds))
  print(f'Written to {workdir}: claims.md, claims.json, claims.png.')
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit code."""
  return command.main('launch.claims', __doc__, declare, execute, argv)


if __name__ == '__main__':
  sys.exit(main())
