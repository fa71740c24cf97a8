"""The experiment of DDAP's claims (spec 9c): the embedded run with models trained for longer (`TRAINED`), one
method at a time, with controls that must fail.

Every seed is a world of its own: other persons, another pair of models. The models, the class photos and what attackers
learn from clean photos are made once per seed and kept beside the cells; two processes may work in one folder.

  controls   "sign flipped": every step goes the other way; "mask ignored": the method is given a mask of ones
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from core import claims
from core import config as config_lib
from core.atomic import write_atomically
from core.data import image
from core.data.ahead import ahead
from core.errors import UserError, nearest
from core.train import loop
from core.train.task import Stage, Variables
from generative.ddap import evaluation, methods, procedure
from generative.ddap.people import Person
from generative.ddap.task import Task

CONFIG = 'configs/generative/ddap.py'
CONTROLS = ('', 'sign flipped', 'mask ignored')
TRAINED = {'autoencoder.steps': 1000, 'diffusion.steps': 2000}
"""Spec 9c's lengths of training; the embedded run, which is for a first look, has fewer steps."""


class Model(Task):
  """The stages before anybody is protected."""

  def stages(self) -> list[Stage]:
    """Without the last."""
    return list(super().stages())[:-1]


@dataclasses.dataclass(frozen=True)
class Flipped(methods.Method):
  """A method whose steps lower what they should raise."""

  def rows(self, outer: int) -> list[tuple[bool, float, float, float]]:
    """Those of the method, negative."""
    return [(turn, -rec, -lat, -feature) for turn, rec, lat, feature in super().rows(outer)]


def measured(
  seed: int,
  workdir: pathlib.Path,
  method: str,
  changes: Mapping[str, Any] | None = None,
  control: str = '',
  transfer: bool = False,
  config: Mapping[str, Any] | None = None,
) -> dict[str, float]:
  """Protects the persons of a seed by one method, and measures what spec 9c lists.

  Args:
    seed: of the world and of everything in it.
    workdir: folder of the cell.
    method: a name of `methods.build`.
    changes: of its fields.
    control: one of `CONTROLS`.
    transfer: whether the second model is attacked too.
    config: overrides of the embedded config.

  Returns:
    Those of `evaluation.Judge.visibility`; 'R' and 'effect' of the white-box attacker; 'R/<person>'; with `transfer`
    also 'transfer_R', 'transfer_effect' and 'transfer_share' (its effect over the white-box one).
  """
  if control not in CONTROLS:
    raise UserError(f"there is no control '{control}', expected one of {CONTROLS}.{nearest(control, CONTROLS)}")
  task = Model(config_lib.load(CONFIG, {**TRAINED, **(config or {}), 'seed': seed, 'data.seed': seed}))
  chosen = methods.build(method, **{**task.config.method.to_dict(), **(changes or {})})
  with shared(workdir, seed, config or {}) as folder:
    variables, bases = world(task, folder)
  made = protected(task, variables, _controlled(chosen, control), whole=control == 'mask ignored')
  variables = {**variables, 'protected': {'it': made}}
  seen = {name.partition('/')[2]: value for name, value in task.judge.visibility(variables, 'test').scalars.items()}
  victims = evaluation.VICTIMS if transfer else evaluation.VICTIMS[:1]
  return seen | _suppressed(task, variables, {victim: bases[victim] for victim in victims})


def _controlled(method: methods.Method, control: str) -> methods.Method:
  if control != 'sign flipped':
    return method
  return Flipped(**{field.name: getattr(method, field.name) for field in dataclasses.fields(method)})


def _suppressed(task: Task, variables: Variables, bases: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, float]:
  """What attackers lose."""
  found = {}
  for victim, base in bases.items():
    losses = task.judge.outcome(variables, f'{victim}/it').losses
    of = evaluation.suppression(losses, base['before'], base['clean'])
    prefix = '' if victim == 'white' else f'{victim}_'
    found |= {f'{prefix}R': of['R'], f'{prefix}effect': of['effect'], f'{prefix}loss': of['loss']}
    if victim == 'white':
      each = (losses - base['clean']) / (base['before'] - base['clean'])
      found |= {f'R/{person.name}': float(value) for person, value in zip(task.people, each)}
  if 'transfer_effect' in found:
    found['transfer_share'] = found['transfer_effect'] / found['effect']
  return found


def protected(task: Task, variables: Variables, method: methods.Method, whole: bool) -> dict[str, np.ndarray]:
  """Set B of every person uint8; `whole`: with masks of ones."""
  params = task.foundation.view(variables['params'])
  protector = procedure.Protector(task, params, np.asarray(variables['prior']))

  def of(person: Person) -> np.ndarray:
    given = dataclasses.replace(person, face=np.ones_like(person.face)) if whole else person
    return np.asarray(image.to_levels(jnp.asarray(protector(given, method).photos)))

  names = [person.name for person in task.people]
  return dict(zip(names, ahead(of, task.people, task.config.workers)))


def world(task: Task, folder: pathlib.Path) -> tuple[Variables, dict[str, dict[str, np.ndarray]]]:
  """(the variables of the models, {victim: {'before', 'clean': losses f64 [persons]}}), made where they are missing."""
  Task.prepare(task.config)
  variables = loop.train(task, folder, logger=loop.NullLogger()).variables
  kept = folder / 'bases.json'
  if not kept.exists():
    bases = {
      victim: {name: task.judge.outcome(variables, f'{victim}/{name}').losses.tolist() for name in ('before', 'clean')}
      for victim in evaluation.VICTIMS
    }
    write_atomically(kept, json.dumps(bases))
  bases = json.loads(kept.read_text())
  return variables, {victim: {name: np.array(each) for name, each in base.items()} for victim, base in bases.items()}


@contextlib.contextmanager
def shared(workdir: pathlib.Path, seed: int, config: Mapping[str, Any]) -> Iterator[pathlib.Path]:
  """A folder beside the cells for what all methods of a seed need; whoever comes second waits for the first."""
  digest = procedure.digest([claims.code_hash(__name__), dict(config)])
  folder = workdir.parent / 'shared' / f'model-{digest}-seed{seed}'
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / 'lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield folder
