"""Which part of a face-world domain costs a trained run its AUC: the target again, one part exchanged at a time.

  python -m benchmarks.domain_shift --workdir runs/fas_aug/to_phone [--other tablet]

Each row renders the target's people and videos with its camera, light, printer or screen taken from another domain
(which the run may have trained on), and scores them with the run's chosen checkpoint: frame AUC of all attacks, of
prints and of replays alone.
"""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np

from core import config as config_lib
from core.metrics import biometrics
from core.synth.faces import dataset, domains
from core.train import backend, checkpoint
from fas.fas_aug import data, evaluation
from fas.fas_aug.task import Task

PARTS = ('camera', 'light', 'printer', 'screen')


def scored(score, target: str, domain: domains.Domain, world: dataset.Config, seed: int) -> dict[str, float]:
  """AUC of the target's frames under the capture of `domain`: all, prints against live, replays against live."""
  frames = [frame for _, frame in dataset.examples(target, 'train', world, seed, domain.ranges())]
  scores = score(np.stack([frame['image'] for frame in frames]))
  labels, attacks = (np.array([frame[name] for frame in frames]) for name in ('label', 'attack'))
  without = lambda kind: attacks != dataset.ATTACKS.index(kind)  # noqa: E731
  return {
    'all': biometrics.auc(scores, labels),
    'print': biometrics.auc(scores[without('replay')], labels[without('replay')]),
    'replay': biometrics.auc(scores[without('print')], labels[without('print')]),
  }


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workdir', required=True, help='a trained fold of configs/fas/fas_aug.py')
  parser.add_argument('--other', default='tablet', help='the domain that lends its parts')
  options = parser.parse_args()
  backend.setup()
  variables, meta = checkpoint.restore_variables(options.workdir)
  task = Task(config_lib.restore(meta['config']))
  scorer = evaluation.Scorer(task.classifier, task.config.eval.batch_size)
  own, other = domains.get(task.protocol.target), domains.get(options.other)
  cases = {own.name: own}
  cases |= {f'{part} of {other.name}': dataclasses.replace(own, **{part: getattr(other, part)}) for part in PARTS}
  cases |= {
    f'  its {key}': dataclasses.replace(own, camera={**own.camera, key: other.camera[key]}) for key in own.camera
  }
  print(f'{"capture":<24}{"all":>8}{"print":>8}{"replay":>8}')
  for name, domain in cases.items():
    rates = scored(
      lambda images: scorer(variables, images), own.name, domain, data.world(task.config), task.config.data.seed
    )
    print(f'{name:<24}' + ''.join(f'{rates[kind]:>8.3f}' for kind in ('all', 'print', 'replay')), flush=True)


if __name__ == '__main__':
  main()
