"""Trains on Kubernetes: renders a JobSet of the same `python -m launch.train` in every pod, and hands it to kubectl.

  python -m launch.kubernetes.train --name=fas-aug --image=REGISTRY/verax --hosts=4 --claim=runs \\
    --resource=nvidia.com/gpu=8 -- --config=configs/fas/fas_aug.py:release --workdir=/data/runs/fas_aug
  python -m launch.kubernetes.train --dry-run ...    # prints the YAML; needs no cluster

Needs the JobSet controller (https://jobset.sigs.k8s.io) in the cluster, an image with this package installed, and a
volume claim that all pods can write to, mounted at /data. Options after -- are launch.train's.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import string
import subprocess
import sys

from core.errors import UserError
from core.train.preemption import Preempted

TEMPLATE = pathlib.Path(__file__).with_name('jobset.yaml')
PORT = 29400
"""Where process 0 waits for the others; any free port will do, and a pod has all of its own."""


def render(options: argparse.Namespace, train: list[str]) -> str:
  """The JobSet as YAML. Every value from outside is written as JSON, which YAML reads as it stands.

  Args:
    options: the parsed command line, see `parser`.
    train: arguments of launch.train.
  """
  # Kubernetes replaces $(NAME) in arguments by environment variables, and reads $$( as a plain $(.
  arguments = [argument.replace('$(', '$$(') for argument in train]
  if options.hosts > 1:
    arguments += [
      f'--coordinator={options.name}-train-0-0.{options.name}:{PORT}',
      f'--num_processes={options.hosts}',
      '--process_id=$(PROCESS_ID)',
    ]
  plain = {'name': options.name, 'hosts': options.hosts, 'restarts': options.restarts, 'grace': options.grace}
  plain |= {'port': PORT, 'preempted': Preempted.EXIT_CODE, 'user_error': UserError.EXIT_CODE}
  quoted = {'namespace': options.namespace, 'image': options.image, 'claim': options.claim, 'mount': options.mount}
  quoted |= {'resources': dict(options.resource), 'node_selector': dict(options.node_selector)}
  args = '\n'.join(f'{" " * 20}- {json.dumps(argument)}' for argument in arguments)
  values = {name: json.dumps(value) for name, value in quoted.items()}
  return string.Template(TEMPLATE.read_text(encoding='utf-8')).substitute(plain | values | {'args': args})


def parser() -> argparse.ArgumentParser:
  """The command line, without launch.train's part."""
  flags = argparse.ArgumentParser(
    prog='python -m launch.kubernetes.train', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument('--name', type=_name, required=True, help='of the JobSet: lower-case letters, digits, dashes')
  flags.add_argument('--image', required=True, help='container image with this package installed')
  flags.add_argument('--claim', required=True, help='persistent volume claim that all pods can write to')
  flags.add_argument('--mount', default='/data', help='where the claim appears in the pods')
  flags.add_argument('--namespace', default='default')
  flags.add_argument('--hosts', type=_positive, default=1, help='pods, one process each')
  flags.add_argument('--resource', type=_pair, action='append', default=[], help='of a pod, e.g. nvidia.com/gpu=8')
  flags.add_argument('--node_selector', type=_pair, action='append', default=[], help='label=value of the nodes to use')
  flags.add_argument('--restarts', type=int, default=10, help='times that a crashed run starts again')
  flags.add_argument('--grace', type=_positive, default=120, help='seconds from SIGTERM to SIGKILL')
  flags.add_argument('--dry-run', dest='dry_run', action='store_true', help='print the YAML, apply nothing')
  return flags


def main(argv: list[str]) -> None:
  """Renders, and applies or prints."""
  split = argv.index('--') if '--' in argv else len(argv)
  options, train = parser().parse_args(argv[:split]), argv[split + 1 :]
  if not train:
    parser().error('the options of launch.train are missing: give them after --')
  manifest = render(options, train)
  if options.dry_run:
    print(manifest, end='')
    return
  try:
    subprocess.run(['kubectl', 'apply', '--filename', '-'], input=manifest, text=True, check=True)
  except FileNotFoundError:
    sys.exit('kubectl is not on the PATH: install it, or pipe the output of --dry-run to where it is.')
  except subprocess.CalledProcessError as error:
    sys.exit(error.returncode)


def _name(text: str) -> str:
  # The longest name made of it, name-train-0-<index>, must be a host name: 63 characters at most.
  if not re.fullmatch(r'[a-z]([-a-z0-9]{0,40}[a-z0-9])?', text):
    raise argparse.ArgumentTypeError(f"'{text}': expected at most 42 lower-case letters, digits and dashes")
  return text


def _pair(text: str) -> tuple[str, str]:
  name, found, value = text.partition('=')
  if not (name and found and value):
    raise argparse.ArgumentTypeError(f"'{text}': expected NAME=VALUE")
  return name, value


def _positive(text: str) -> int:
  if not text.isdigit() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"'{text}': expected a number of at least 1")
  return int(text)


if __name__ == '__main__':
  main(sys.argv[1:])
