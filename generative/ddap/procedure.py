"""The stage 'protect': set B of every person, by every method; what is done is kept, so that a kill costs one set."""

from __future__ import annotations

import hashlib
import io
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from core.atomic import write_atomically
from core.data import image
from core.data.ahead import ahead
from core.diffusion import personalisation
from core.errors import UserError, nearest
from core.train.checkpoint import plain
from generative.ddap import localisation, methods, protection
from generative.ddap.people import Person

MASKS = ('data', 'localise')
"""Where a mask comes from: the records, or cross-attention of the pre-trained model."""


class Protector:
  """Protects persons with the model that it is given."""

  def __init__(self, task: Any, params: Mapping[str, Any], prior: np.ndarray):
    """Args: task: `task.Task`; params: {'autoencoder', 'unet', 'text'}; prior: class photos uint8 [n, H, W, 3]."""
    self.task, self.config, self.model = task, task.config, task.model
    self.params, self.instance = params, jnp.asarray(task.attacker.instance)
    self.recipe = personalisation.Recipe.from_config(task.config.surrogate)
    self.prior = self._encoded(prior, task.attacker.prior)

  def __call__(
    self, person: Person, method: methods.Method, on_step: Callable[..., None] | None = None
  ) -> protection.Protected:
    """Set B of a person, protected; noise belongs to (seed, person, photo) and is the same for every method."""
    digest = int(hashlib.sha256(person.name.encode()).hexdigest()[:8], 16)
    key = jax.random.fold_in(jax.random.key(self.config.seed), digest)
    return protection.protect(
      self.model, self.params, image.from_levels(jnp.asarray(person.photos)), method,
      keys=jax.random.split(key, len(person.photos)), instance_ids=self.instance,
      reference=self._encoded(person.reference, self.instance) if method.fits else None, prior=self.prior,
      recipe=self.recipe, mask=self.mask(person, key) if method.masked else None, micro=self.config.protect.micro,
      on_step=on_step,
    )  # fmt: skip

  def mask(self, person: Person, key: jax.Array) -> np.ndarray:
    """Where the person is on set B: f32 [n, H, W, 1] in 0..1."""
    if self.config.protect.mask == 'data':
      return person.face.astype(np.float32)
    words = self.config.prompts
    photos = image.from_levels(jnp.asarray(person.photos))
    localiser = localisation.from_config(self.config.localise)
    keys = jax.random.split(jax.random.fold_in(key, 1), len(photos))
    tokenizer = self.task.foundation.tokenizer
    found = localisation.localise(
      self.model, self.params, photos, tokenizer, words.instance, words.noun, localiser, keys
    )
    return found.mask

  def _encoded(self, photos: np.ndarray, ids: np.ndarray) -> personalisation.Photos:
    photos = image.from_levels(jnp.asarray(photos))
    return personalisation.encode(self.model, self.params, photos, jnp.asarray(ids))


def protect_all(
  protector: Protector, names: Sequence[str], folder: pathlib.Path, log: Callable[[int, Mapping[str, float]], None]
) -> dict[str, dict[str, np.ndarray]]:
  """{method: {person: protected set B uint8 [n, H, W, 3]}}.

  Args:
    protector: with its weights.
    names: of methods, as `methods.build` knows them.
    folder: where finished sets are kept, by a digest of all that they depend on.
    log: gets the seconds per photo and the last losses of every method.
  """
  made, weights = {}, fingerprint(protector.params)
  for number, name in enumerate(names):
    begun = time.monotonic()
    made[name], losses = _by(protector, name, folder, weights)
    if losses:
      photos = sum(len(made[name][person]) for person in losses)
      seconds, last = (time.monotonic() - begun) / photos, list(losses.values())[-1]
      log(number, {f'{name}/seconds_per_photo': seconds, **{f'{name}/{loss}': value for loss, value in last.items()}})
      print(f'{name}: {len(losses)} persons, {seconds:.2f} s per photo, compilation included.', flush=True)
  return made


def _by(
  protector: Protector, name: str, folder: pathlib.Path, weights: str
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
  """Everybody's set B by one method, and the last losses of those persons whose set the folder did not hold."""
  config, people = protector.config, protector.task.people
  method = methods.from_config(name, config.method)
  settings = plain([method.__dict__, *(config[part] for part in ('protect', 'surrogate', 'localise', 'prompts'))])
  settings[1].pop('methods')  # the others do not concern this one
  paths = {}
  for person in people:
    key = digest([settings, config.seed, weights, person.name, fingerprint([person.photos, person.reference])])
    paths[person.name] = folder / f'{name}-{person.name}-{key}.npy'

  def kept(person: Person) -> dict[str, float]:
    found = protector(person, method)
    _keep(paths[person.name], np.asarray(image.to_levels(found.photos)))
    return {loss: float(each[-1].mean()) for loss, each in found.history.items() if loss != 'frequency'}

  todo = [person for person in people if not paths[person.name].exists()]
  losses = {person.name: last for person, last in zip(todo, ahead(kept, todo, config.workers))}
  return {person: np.load(path) for person, path in paths.items()}, losses


def fingerprint(arrays: Any) -> str:
  """Ten digits that change with any array of a tree."""
  found = hashlib.sha256()
  for leaf in jax.tree.leaves(arrays):
    found.update(np.ascontiguousarray(jax.device_get(leaf)).data)
  return found.hexdigest()[:10]


def digest(settings: Any) -> str:
  """Ten digits of plain data."""
  return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


def _keep(path: pathlib.Path, photos: np.ndarray) -> None:
  """One rename: a killed run leaves no half of a set."""
  buffer = io.BytesIO()
  np.save(buffer, photos)
  write_atomically(path, buffer.getvalue())


def check(config: Any) -> None:
  """Finds words that mean nothing before the first step."""
  if config.protect.mask not in MASKS:
    hint = nearest(config.protect.mask, MASKS)
    raise UserError(f"config.protect.mask is '{config.protect.mask}', expected one of {MASKS}.{hint}")
  if not config.protect.methods:
    raise UserError('config.protect.methods is empty: name one or more, such as ddap.')
  for name in config.protect.methods:
    methods.from_config(name, config.method)
  localisation.from_config(config.localise)
