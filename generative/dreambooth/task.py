"""How DreamBooth trains and how it is judged.

Stages:

  (the model)    `core.diffusion.foundation`, where it does not come from a folder of diffusers
  prior          class photos by the model itself, and what it knows of the person before       (a procedure)
  personalise    L = denoising loss on the person + prior_weight * that on the class photos     (spec 4)

The stage 'personalise' is `personalisation.fit` through the common loop: the same loss and optimiser, with checkpoints,
curves and sharding. All weights of U-Net and text encoder learn, or low-rank updates alone, part 'lora' of the params.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from core.data import identities, image, pipeline
from core.data.records import PrepareReport
from core.diffusion import foundation, personalisation
from core.diffusion.latent import LatentDiffusion
from core.diffusion.personalisation import Photos
from core.errors import UserError
from core.metrics import identity
from core.metrics.image import pooled
from core.train import optim
from core.train import task as contract
from generative.dreambooth import prediction, reporting

PERSONALISED = 'personalisation'
"""Name of the evaluator."""


class Task(contract.Task):
  """One model and one person."""

  headline = ('test/personalisation/face_loss', 'test/personalisation/before/face_loss', 'test/personalisation/gain')

  def __init__(self, config: Any):
    super().__init__(config)
    self.foundation = foundation.Foundation(config)
    self.recipe = personalisation.Recipe.from_config(config.personalise)
    _check(config, self.recipe)

  @classmethod
  def procedural(cls, config: Any) -> bool:
    """True for drawn portraits."""
    return foundation.procedural(config)

  @classmethod
  def prepare(cls, config: Any) -> list[PrepareReport]:
    """Draws the portraits, or reads folders of persons."""
    return foundation.prepare(config)

  @property
  def model(self) -> LatentDiffusion:
    """The networks."""
    return self.foundation.model

  @functools.cached_property
  def person(self) -> Person:
    """Whom `config.data.identity` names, read when first asked for."""
    return Person(identities.Identities(foundation.opened(self.config, 'test')), self.config.data)

  def ids(self, name: str) -> jax.Array:
    """i32 [1, T] of a prompt of the config: 'instance' or 'prior'."""
    return jnp.asarray(self.foundation.ids(self.config.prompts[name]))

  def init(self, rng: jax.Array) -> contract.Variables:
    """Fresh parameters; with `lora_rank` also the updates, which change nothing yet."""
    params = self.foundation.init(rng)
    if self.recipe.lora_rank:
      params = personalisation.add_lora(params, self.recipe, jax.random.fold_in(rng, 2))
    return {'params': params}

  def pretrained(self, variables: contract.Variables) -> contract.Variables:
    """The weights of a diffusers folder, where the config names one."""
    return self.foundation.pretrained(variables)

  def restored(self, metadata: Mapping[str, Any]) -> None:
    """The tokenizer of the checkpoint."""
    self.foundation.restored(metadata)

  def view(self, variables: contract.Variables) -> dict[str, Any]:
    """The three networks, low-rank updates merged: {'autoencoder', 'unet', 'text'}."""
    return personalisation.merge(variables['params'], self.recipe.lora_alpha)

  # Stages.

  def stages(self) -> Sequence[contract.Stage]:
    """The model's own, then the person."""
    personalise = contract.Stage(
      name='personalise',
      steps=self.recipe.steps,
      loss=self.loss,
      data=self.rows,
      optimizer=optim.Optimizer(self.recipe.optimizer(), optax.constant_schedule(self.recipe.learning_rate)),
      trainable=self.recipe.trains,
      accumulate=self.config.train.accumulate,
      evaluate=((PERSONALISED, 'test'),),
    )
    return [*self.foundation.stages(), contract.Stage('prior', run=self.begin), personalise]

  def begin(self, context: contract.StageContext) -> contract.Variables:
    """Adds the collections 'prior', class photos uint8 [n, S, S, 3], and 'before', what the model knows so far."""
    params, prior = self.view(context.variables), self.config.prior
    made = personalisation.prior_photos(
      self.model, params, self.foundation.ids(self.config.prompts.prior), prior.count, self.config.model.size,
      self.config.seed, context.workdir / 'cache' / 'prior', negative=self.foundation.ids(''), steps=prior.steps,
      guidance=prior.guidance, batch_size=prior.batch_size,
    )  # fmt: skip
    before = {'face_loss': self.face_loss(params), 'generated': self.generated(params)}
    return {**context.variables, 'prior': {'photos': made}, 'before': before}

  def rows(self, context: contract.StageContext) -> grain.IterDataset:
    """Batches of moments, photos encoded once: 'mean' and 'log_variance' of the person, 'prior_...' of the class."""
    params = self.view(context.variables)
    mine, others = (
      personalisation.encode(self.model, params, image.from_levels(jnp.asarray(photos)), ids)
      for photos, ids in (
        (self.person.photos, self.ids('instance')),
        (context.variables['prior']['photos'], self.ids('prior')),
      )
    )
    fields = {'mean': np.asarray(mine.mean), 'log_variance': np.asarray(mine.log_variance)}
    photos = [{name: value[i] for name, value in fields.items()} for i in range(len(fields['mean']))]
    paired = _Paired(np.asarray(others.mean), np.asarray(others.log_variance))
    stream = pipeline.rows(photos, seed=(self.config.seed, 4), random_transform=paired)
    return pipeline.build(stream, batch_size=self.recipe.instance_batch * self.config.train.accumulate)

  def loss(
    self, variables: contract.Variables, batch: contract.Batch, rng: jax.Array, step: jax.Array
  ) -> tuple[jax.Array, contract.LossOutput]:
    """`personalisation.loss` of a batch of `rows`."""
    del step
    person = Photos(batch['mean'], batch['log_variance'], self.ids('instance'))
    prior = Photos(batch['prior_mean'], batch['prior_log_variance'], self.ids('prior'))
    loss, metrics = personalisation.loss(self.model, variables['params'], person, prior, rng, self.recipe)
    return loss, contract.LossOutput(metrics, weight=len(batch['mean']))

  # Judgement, use, report.

  def face_loss(self, params: Mapping[str, Any]) -> np.ndarray:
    """f32 [n]: the denoising loss inside the face on photos of the person that nothing learned from."""
    latents = personalisation.latents(self.model, params, self.person.held_out)
    weights = pooled(jnp.asarray(self.person.face, jnp.float32), latents.shape[1:3])
    key = jax.random.key(self.config.seed)
    return np.asarray(personalisation.face_loss(self.model, params, latents, weights, self.ids('instance'), key))

  def generated(self, params: Mapping[str, Any]) -> np.ndarray:
    """uint8 [prompts, n, S, S, 3]: what the model makes of the prompts of `config.eval`."""
    section = self.config.eval
    make = prediction.Generator(self, params, section.steps, section.guidance)
    return np.stack([make(prompt, section.generated, self.config.seed) for prompt in section.prompts])

  def evaluators(self) -> Mapping[str, contract.Evaluator]:
    """'model' of the foundation, and 'personalisation'."""
    return {**self.foundation.evaluators(), PERSONALISED: self.personalisation}

  def personalisation(self, variables: contract.Variables, split: str) -> contract.Evaluation:
    """How well the person is known, beside what was known before.

    Returns:
      scalars: 'face_loss', 'before/face_loss', 'gain' (their difference, the share of the latter that is gone); with
        `config.eval.detector` also 'fdfr', 'before/fdfr', with `config.eval.embedder` 'ism' and 'before/ism'.
      arrays: 'face_loss' and 'before/face_loss' f32 [n]; 'generated', 'before/generated' uint8 [prompts, n, S, S, 3].
    """
    if split != 'test':
      raise UserError(f"the evaluator '{PERSONALISED}' has the split 'test', found '{split}'.")
    params = self.view(variables)
    before = {name: np.asarray(value) for name, value in variables['before'].items()}
    arrays = {'face_loss': self.face_loss(params), 'generated': self.generated(params)}
    arrays |= {f'before/{name}': value for name, value in before.items()}
    scalars = {name: float(arrays[name].mean()) for name in ('face_loss', 'before/face_loss')}
    scalars['gain'] = 1 - scalars['face_loss'] / scalars['before/face_loss']
    metadata = self.foundation.metadata()
    if self.config.eval.detector:
      found, metadata['judge'] = self._recognised(arrays)
      scalars |= found
    return contract.Evaluation(scalars, arrays, metadata)

  def _recognised(self, arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, float], dict[str, str]]:
    """FDFR and ISM of what was generated, and the parts that they were measured with."""
    judge = identity.Judge(self.config.eval.detector, self.config.eval.embedder or None)
    reference = judge.reference([*self.person.photos, *self.person.held_out])
    scalars = {}
    for prefix in ('', 'before/'):
      scores = judge.scores(arrays[f'{prefix}generated'].reshape(-1, *arrays['generated'].shape[2:]), reference)
      values = {'fdfr': scores.fdfr, 'ism': scores.ism}
      scalars |= {f'{prefix}{name}': value for name, value in values.items() if value is not None}
    return scalars, judge.describe()

  def predictor(self, variables: contract.Variables, metadata: Mapping[str, Any]) -> contract.Predictor:
    """Prompts to photos."""
    return prediction.PromptPredictor(self, variables, metadata)

  def report(self, evaluations: Mapping[str, contract.Evaluation], variables: contract.Variables) -> Sequence[Any]:
    """The person, and what the model makes of the prompts, before and after."""
    return reporting.sections(self, evaluations, variables)


class Person:
  """Photos of one identity.

  Attributes:
    name: of the identity.
    photos: uint8 [n, S, S, 3], those that are learned from.
    held_out: uint8 [m, S, S, 3], set C.
    face: bool [m, S, S, 1], where the face is on them.
  """

  def __init__(self, people: identities.Identities, section: Any):
    """Args: people: all; section: `config.data`, which says who, and the set to learn from."""
    self.name = section.identity or people.names[0]
    self.photos = people.photos(self.name, section.learn)
    self.held_out = people.photos(self.name, 'C')
    self.face = people.masks(self.name, 'C')[..., None]


class _Paired:
  """A random transform that gives a photo one of the class; a class, so that worker processes can be sent one."""

  def __init__(self, mean: np.ndarray, log_variance: np.ndarray):
    self.mean, self.log_variance = mean, log_variance

  def __call__(self, row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    i = rng.integers(len(self.mean))
    return {**row, 'prior_mean': self.mean[i], 'prior_log_variance': self.log_variance[i]}


def _check(config: Any, recipe: personalisation.Recipe) -> None:
  """Finds what does not go together before anything is read."""
  if recipe.instance_batch != recipe.prior_batch:
    raise UserError(
      f'config.personalise.instance_batch is {recipe.instance_batch} and prior_batch {recipe.prior_batch}: expected'
      ' equal numbers, since each photo of the person is paired with one of the class.'
    )
  if config.data.learn not in ('A', 'B'):
    raise UserError(f"config.data.learn is '{config.data.learn}', expected 'A' or 'B': set C is what is judged on.")
  if config.prior.count < 1 or recipe.steps < 1:
    raise UserError('config.prior.count and config.personalise.steps: expected 1 or more of each.')
