"""How much memory a training run will take on each device, stage by stage, before any device is asked for it.

  python -m launch.plan --config=configs/multimodal/trrg.py:mimic_cxr
  python -m launch.plan --config=configs/multimodal/trrg.py:mimic_cxr --devices=8,64 --mesh=config

From shapes and sharding rules alone, so a laptop plans for a cluster. By default all of a number of devices divide the
parameters between them (fsdp); --mesh=config divides as the config's `mesh` says. What is counted are weights,
gradients, the optimiser's state and the moving average; activations come on top.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from core.errors import UserError
from core.train import backend, plan
from core.train import mesh as mesh_lib
from launch import command

DEVICES = (1, 2, 4, 8, 16, 64)


def run(config: Any, devices: Sequence[int] = DEVICES, mesh: str = 'fsdp') -> dict[str, list[plan.Account]]:
  """Prints the plan of every stage of a config (of its first fold), and returns it by the stage's name.

  Args:
    config: of `core.config.load`.
    devices: numbers of devices, a row each; those that the sizes or shapes do not divide are said to be so.
    mesh: 'fsdp', or 'config' for the config's own sizes.
  """
  cls = command.task_class(config.system)
  command.make_data(cls, config)
  task = cls(cls.folds(config)[0][1])
  variables, plans = plan.shapes(task), {}
  for stage in task.stages():
    accounts, refused = [], []
    for count in devices:
      try:
        sizes = (1, count, 1) if mesh == 'fsdp' else mesh_lib.resolve(count, **dict(config.mesh))
        accounts.append(plan.account(variables, stage, sizes))
      except UserError as error:
        refused.append(f'{count} devices: {error}')
    plans[stage.name] = accounts
    numbers = [
      f'{name} {" + ".join(f"{count:,} {kind}" for kind, count in kinds.items()) or "nothing"}'
      for name, kinds in plan.counts(variables, stage).items()
    ]
    print(f'\nStage {stage.name}: {"a procedure; " if stage.run else ""}{", ".join(numbers)}')
    print('\n'.join([*([command.text_table(plan.table(accounts))] if accounts else []), *refused]), flush=True)
  return plans


def declare(values: flags.FlagValues) -> None:
  """The flags."""
  command.declare_config(values)
  flags.DEFINE_list('devices', [str(count) for count in DEVICES], 'Numbers of devices.', flag_values=values)
  text = "How they are used: 'fsdp' or 'config' (the config's mesh)."
  flags.DEFINE_enum('mesh', 'fsdp', ['fsdp', 'config'], text, flag_values=values)


def execute(arguments: command.Arguments) -> int:
  """Plans and prints."""
  options = arguments.flags_only().flags
  config = arguments.config()
  words = options.devices
  if not words or not all(word.strip().isdigit() and int(word) for word in words):
    raise UserError(f'--devices={",".join(words)}: expected numbers of devices, such as 1,8,64.')
  backend.setup()
  run(config, [int(word) for word in words], options.mesh)
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit code."""
  return command.main('launch.plan', __doc__, declare, execute, argv)


if __name__ == '__main__':
  sys.exit(main())
