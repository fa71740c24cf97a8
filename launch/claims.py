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
from types import ModuleType

from absl import app, flags

import core
from core import claims, claims_report
from core.errors import UserError, nearest
from core.train import backend
from core.train.loop import Preempted

_SYSTEM = flags.DEFINE_string('system', None, "a system by its folder: 'fas_aug' or 'fas.fas_aug'", required=True)
_ONLY = flags.DEFINE_list('only', [], 'ids of the claims to train; all by default')
_SEEDS = flags.DEFINE_integer('seeds', None, "number of seeds; each claim's own (3 or more) by default")
_WORKDIR = flags.DEFINE_string('workdir', None, 'folder of cells and results; runs/claims/<system> by default')

REPOSITORY = pathlib.Path(core.__file__).resolve().parent.parent


def systems(root: pathlib.Path = REPOSITORY) -> list[str]:
  """Names of all systems that make claims, 'domain.system', by the files `domain/system/claims.py`."""
  found = (path.relative_to(root).parts[:2] for path in root.glob('*/*/claims.py'))
  return sorted('.'.join(parts) for parts in found if parts[0] not in ('core', 'launch', 'tests'))


def resolve(name: str, known: list[str]) -> str:
  """The full name of a system given by that or by its folder; raises `UserError` when that is not exactly one."""
  matches = [system for system in known if name in (system, system.split('.')[1])]
  if len(matches) != 1:
    problem = f"'{name}' means {' and '.join(matches)}" if matches else f"There is no system '{name}' with claims"
    names = [*known, *(system.split('.')[1] for system in known)]
    hint = '' if matches else nearest(name, names)
    raise UserError(f'--system: {problem}; there are {", ".join(known) or "none"}.{hint}')
  return matches[0]


def judge_system(module: ModuleType, name: str, workdir: pathlib.Path, only: list[str], seeds: int | None) -> str:
  """Runs the claims of a system's `claims` module; returns the text of claims.md, which it also writes."""
  results = claims.run(module.CLAIMS, workdir, only=only, seeds=seeds, log=lambda line: print(line, flush=True))
  return claims_report.write(results, module.NON_CLAIMS, workdir, title=f'Claims of {name}')


def main(argv: list[str]) -> None:
  """Parses, runs, prints."""
  try:
    if len(argv) > 1:
      raise UserError(f"'{argv[1]}' is not a flag; --system, --only, --seeds and --workdir are.")
    name = resolve(_SYSTEM.value, systems())
    backend.setup()
    workdir = pathlib.Path(_WORKDIR.value or f'runs/claims/{name.split(".")[1]}')
    module = importlib.import_module(f'{name}.claims')
    print('\n' + judge_system(module, name, workdir, _ONLY.value, _SEEDS.value))
    print(f'Written to {workdir}: claims.md, claims.json, claims.png.')
  except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(UserError.EXIT_CODE)
  except Preempted as stop:
    print(stop, file=sys.stderr)
    sys.exit(Preempted.EXIT_CODE)


if __name__ == '__main__':
  app.run(main)
