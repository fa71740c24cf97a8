"""How a protection is judged: what it costs the photos, what it costs an attacker, what is left of it (spec 5, 9c).

  visibility    protected against clean photos of set B, as 8-bit pictures: PSNR, SSIM, L-infinity in levels, where in
                the spectrum the change lies, how far latents move, in all and in the face
  protection    an attacker personalises on clean and on protected photos; how well he then knows the face is the
                denoising loss inside it, on clean photos that he has not seen. Suppression R is 0 where he learns as
                from clean photos and 1 where he learns nothing; a ratio of means over the persons, for single persons
                vary widely
  purification  the same after the photos went through a filter, with clean photos through the same filter beside them:
                a blur keeps an attacker from learning, protected or not
  faces         whether what the attacker generates shows a face at all (FDFR), and whose (ISM), how natural it looks
                (BRISQUE); measures of real photos, which need models by path and mean nothing on drawn ones

Nothing here is a promise: a small drawn world and one attacker. What a figure can be compared with is what stands in
the same table.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from core.data import image
from core.data.ahead import ahead
from core.errors import UserError, nearest
from core.metrics import frequency, identity, quality
from core.metrics import image as metrics
from core.train import forward
from core.train.task import Evaluation, Variables
from generative.ddap import purification
from generative.ddap.people import Person

VICTIMS = ('white', 'transfer')
"""Whose model the attacker personalises: the one that the protection knew, or another."""

FIGURES = ('fdfr', 'ism', 'ism_missing_zero', 'brisque')
"""Of `Judge.faces`."""

BEFORE, CLEAN = 'before', 'clean'
"""Beside the names of the methods: no attack yet, and photos as they are."""


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What attackers had from the photos of all persons.

  Attributes:
    losses: f64 [persons], the denoising loss inside the face.
    pictures: uint8 [persons, prompts x generated, H, W, 3] that they then make; None where nobody asked.
  """

  losses: np.ndarray
  pictures: np.ndarray | None = None


class Judge:
  """The evaluators of DDAP: `(variables, split) -> Evaluation`; what an attacker learned is kept per variables."""

  def __init__(self, task: Any):
    """Args: task: `task.Task`, whose model, attacker and people these are."""
    self.task, self.people, self.config = task, task.people, task.config
    self.model, self.attacker = task.model, task.attacker
    self.outcome = forward.Memo(self._outcome)
    """(variables, '<victim>/<name>' or '<victim>/<name>/<operator>') -> `Outcome`."""

  # What it costs the photos.

  def visibility(self, variables: Variables, split: str) -> Evaluation:
    """How the protected photos differ from the clean ones.

    Returns:
      scalars '<method>/<name>', means over photos, persons alike: 'psnr' (dB), 'ssim', 'linf' (8-bit levels, the
      largest of all), 'hf_share' of the change, 'latent' and 'face_latent' (displacement of the latent means),
      'decoded_hf_share' of the change of what the decoder makes of them, 'outside' (levels, the largest change where
      the face is not), 'lpips' where `config.eval.lpips` names its files.
    """
    _check(split)
    scalars = {}
    autoencoder = {'autoencoder': variables['params']['autoencoder']}
    for method in variables['protected']:
      photos = [self.photos(variables, method, each) for each in self.people]
      rows = [visible(self.model, autoencoder, p, each.photos, each.face) for p, each in zip(photos, self.people)]
      if self.config.eval.lpips:
        rows = [{**row, 'lpips': self._lpips(p, each.photos)} for row, p, each in zip(rows, photos, self.people)]
      for name in rows[0]:
        values = np.concatenate([np.asarray(row[name]) for row in rows])
        scalars[f'{method}/{name}'] = float(values.max() if name in ('linf', 'outside') else values.mean())
    return Evaluation(scalars, metadata=self.task.foundation.metadata())

  @functools.cached_property
  def _lpips(self) -> Callable[[np.ndarray, np.ndarray], jax.Array]:
    """Photos uint8 [n, H, W, 3] and originals -> f32 [n]."""
    network, params, account = quality.load_lpips(*self.config.eval.lpips)
    print(account)
    apply = jax.jit(lambda params, *photos: network.apply({'params': params}, *map(image.from_levels, photos)))
    return functools.partial(apply, params)

  def photos(self, variables: Variables, name: str, person: Person) -> np.ndarray:
    """Set B uint8 [n, H, W, 3] as a method left it, or 'clean'."""
    return person.photos if name == CLEAN else np.asarray(variables['protected'][name][person.name])

  # What it costs an attacker.

  def protection(self, variables: Variables, split: str) -> Evaluation:
    """The attacker on clean and protected photos, with the model that the protection knew and with the other.

    Returns:
      scalars '<victim>/before', '<victim>/clean', '<victim>/<method>/loss' (mean loss in the face), '.../effect' (loss
      over that of clean photos) and '.../R'; arrays 'people', '<victim>/<name>' f64 [persons], the losses of each, and
      'generated/<name>' uint8 [persons, prompts x generated, H, W, 3], what the white-box attacker then makes.
    """
    _check(split)
    scalars, arrays = {}, {'people': np.array([each.name for each in self.people])}
    for victim in self.victims(variables):
      before, clean = (self.outcome(variables, f'{victim}/{name}').losses for name in (BEFORE, CLEAN))
      _warn(victim, before, clean)
      scalars |= {f'{victim}/{BEFORE}': float(before.mean()), f'{victim}/{CLEAN}': float(clean.mean())}
      arrays |= {f'{victim}/{BEFORE}': before, f'{victim}/{CLEAN}': clean}
      for name in self.attacked(variables, victim):
        losses = arrays[f'{victim}/{name}'] = self.outcome(variables, f'{victim}/{name}').losses
        scalars |= {f'{victim}/{name}/{key}': value for key, value in suppression(losses, before, clean).items()}
    for name in (CLEAN, *variables['protected']):
      arrays[f'generated/{name}'] = self.outcome(variables, f'white/{name}').pictures
    return Evaluation(scalars, arrays, self.task.foundation.metadata())

  def attacked(self, variables: Variables, victim: str) -> list[str]:
    """The methods whose photos an attacker learns from: all, with the other model those of `config.eval.transfer`."""
    names, wanted = list(variables['protected']), self.config.eval.transfer
    return [name for name in names if victim == 'white' or name in wanted]

  def victims(self, variables: Variables) -> tuple[str, ...]:
    """Those of `VICTIMS` that there are parameters for, and methods to try them on."""
    both = 'transfer' in variables['params'] and bool(self.attacked(variables, 'transfer'))
    return VICTIMS if both else VICTIMS[:1]

  def params(self, variables: Variables, victim: str) -> dict[str, Any]:
    """The parameters of one of `VICTIMS`."""
    return self.task.foundation.view(variables['params'], transfer=victim == 'transfer')

  def _outcome(self, variables: Variables, key: str) -> Outcome:
    victim, name, operator = (*key.split('/'), '')[:3]
    params = self.params(variables, victim)
    shown = victim == 'white' and not operator and name != BEFORE

    def attacked(person: Person) -> tuple[float, np.ndarray | None]:
      learned = params
      if name != BEFORE:
        photos = self.photos(variables, name, person)
        photos = self.purified(variables, operator, photos) if operator else photos
        learned = self.attacker.learn(params, photos, np.asarray(variables['prior']))
      return self.attacker.face_loss(learned, person), self.generated(learned) if shown else None

    losses, pictures = zip(*ahead(attacked, self.people, self.config.workers))
    return Outcome(np.array(losses), np.stack(pictures) if shown else None)

  def generated(self, params: Any) -> np.ndarray:
    """Pictures of every prompt of `config.eval.prompts`, uint8 [prompts x generated, H, W, 3]."""
    config, size = self.config.eval, self.config.model.size
    make = functools.partial(
      self.attacker.pictures, params, count=config.generated, size=size, steps=config.steps, guidance=config.guidance,
      batch_size=config.batch_size,
    )  # fmt: skip
    return np.concatenate([make(self.task.foundation.ids(prompt)) for prompt in config.prompts])

  def faces(self, variables: Variables, split: str) -> Evaluation:
    """FDFR, ISM and BRISQUE of the attacker's pictures (spec 5): by person and prompt, then means over the persons.

    Returns:
      scalars '<clean or method>/<prompt>/<figure>': 'fdfr'; with `config.eval.embedder` 'ism' (over the pictures with a
      face) and 'ism_missing_zero'; with `config.eval.brisque` 'brisque'. What cannot be computed is not there. The
      reference of ISM is the mean over all clean photos of a person. Metadata 'judge': what they were measured with.
    """
    _check(split)
    section, scalars = self.config.eval, {}
    judge = identity.Judge(section.detector, section.embedder or None)
    brisque = None
    if section.brisque:
      folder = pathlib.Path(section.brisque).expanduser()
      brisque = quality.Brisque(folder / 'brisque_model_live.yml', folder / 'brisque_range_live.yml')
    references = [judge.reference([*each.reference, *each.photos, *each.held_out]) for each in self.people]
    for name in (CLEAN, *variables['protected']):
      made = self.outcome(variables, f'white/{name}').pictures
      made = made.reshape(len(made), len(section.prompts), section.generated, *made.shape[2:])
      for i, prompt in enumerate(section.prompts):
        figures = identity.average([judge.scores(*each) for each in zip(made[:, i], references)])
        if brisque is not None:
          figures['brisque'] = float(np.mean([brisque(each) for each in made[:, i].reshape(-1, *made.shape[3:])]))
        scalars |= {f'{name}/{prompt}/{figure}': figures[figure] for figure in FIGURES if figure in figures}
    return Evaluation(scalars, metadata={**self.task.foundation.metadata(), 'judge': judge.describe()})

  # What is left of it.

  def purification(self, variables: Variables, split: str) -> Evaluation:
    """The white-box attacker after each operator of `config.purify.operators` on the photos of `config.purify.method`.

    Returns:
      scalars 'none/R' (no operator), '<operator>/R' of protected and '<operator>/clean_R' of clean photos, which is
      how much the operator alone keeps him from learning, and '<operator>/left', their difference.
    """
    _check(split)
    method = self.config.purify.method
    if method not in variables['protected']:
      known = list(variables['protected'])
      hint = nearest(method, known)
      raise UserError(f"config.purify.method is '{method}', but config.protect.methods made {known}.{hint}")
    before, clean = (self.outcome(variables, f'white/{name}').losses for name in (BEFORE, CLEAN))
    ratio = lambda key: suppression(self.outcome(variables, f'white/{key}').losses, before, clean)['R']  # noqa: E731
    scalars = {'none/R': ratio(method), 'none/clean_R': 0.0, 'none/left': ratio(method)}
    for operator in self.config.purify.operators:
      protected, alone = ratio(f'{method}/{operator}'), ratio(f'{CLEAN}/{operator}')
      values = {'R': protected, 'clean_R': alone, 'left': protected - alone}
      scalars |= {f'{operator}/{name}': value for name, value in values.items()}
    return Evaluation(scalars, metadata=self.task.foundation.metadata())

  def purified(self, variables: Variables, operator: str, photos: np.ndarray) -> np.ndarray:
    """Photos after an operator of `purification`, whose model is the white-box one."""
    params = self.params(variables, 'white')
    keys = jax.random.split(jax.random.key(self.config.seed), len(photos))
    model = purification.Diffusion(self.model, params, jnp.asarray(self.attacker.prior), keys)
    return purification.parse(operator)(photos, model)


def _check(split: str) -> None:
  if split != 'test':
    raise UserError(f"protection is judged on the split 'test', not on '{split}': only its persons are protected.")


def _warn(victim: str, before: np.ndarray, clean: np.ndarray) -> None:
  """Without an attacker that works there is nothing to protect against (spec 10)."""
  if clean.mean() >= before.mean():
    print(
      f'The attacker learns nothing from clean photos ({victim}: loss {before.mean():.4f} before, {clean.mean():.4f}'
      ' after): suppression means nothing here. Give him more steps or another rate (config.personalise).',
      flush=True,
    )


def suppression(losses: np.ndarray, before: np.ndarray, clean: np.ndarray) -> dict[str, float]:
  """'loss', 'effect' = loss - clean, 'R' = effect / (before - clean), all of means over the persons (spec 9c).

  R is NaN where the attacker learns nothing from clean photos.
  """
  loss, learned = float(np.mean(losses)), float(np.mean(before) - np.mean(clean))
  effect = loss - float(np.mean(clean))
  return {'loss': loss, 'effect': effect, 'R': effect / learned if learned > 0 else float('nan')}


@functools.partial(jax.jit, static_argnums=0)
def visible(model, params, photos, original, face) -> dict[str, jax.Array]:
  """The measures of `Judge.visibility`, f32 [n] each.

  Args:
    model: the networks.
    params: of which the autoencoder is used.
    photos, original: uint8 [n, H, W, 3].
    face: bool [n, H, W, 1].
  """
  after, before = image.from_levels(photos), image.from_levels(original)
  latents, clean = model.latents(params, after), model.latents(params, before)
  outside = jnp.where(face, 0, jnp.abs(photos.astype(jnp.int32) - original.astype(jnp.int32)))
  decoded = model.decode(params, latents) - model.decode(params, clean)
  return {
    'psnr': metrics.psnr(photos, original, data_range=255),
    'ssim': metrics.ssim(photos, original, data_range=255),
    'linf': metrics.linf(photos, original, data_range=255),
    'hf_share': frequency.hf_share(after - before),
    'latent': metrics.latent_displacement(latents, clean),
    'face_latent': metrics.latent_displacement(latents, clean, face),
    'decoded_hf_share': frequency.hf_share(decoded),
    'outside': outside.max((1, 2, 3)),
  }
