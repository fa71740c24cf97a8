"""How DDAP is tried: a model, persons whose photos every method protects, a DreamBooth attacker on what they leave.

Stages (spec 9c), the first of them only where no diffusers folder is given:

  autoencoder, latents, diffusion, diffusion_transfer     `core.diffusion.foundation`
  prior                                                   photos of the class, by the model itself
  protect                                                 set B of every person by every method
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from core.data import identities
from core.data.records import PrepareReport
from core.diffusion import foundation, personalisation
from core.diffusion.latent import LatentDiffusion
from core.train import task as contract
from generative.ddap import attacker, evaluation, people, prediction, procedure, purification, reporting


class Task(contract.Task):
  """DDAP, its ablations and its rivals on one world of persons."""

  headline = (
    'test/visibility/ddap/psnr', 'test/visibility/ddap/ssim', 'test/protection/white/ddap/R',
    'test/protection/white/spl/R', 'test/protection/white/random/R', 'test/protection/transfer/ddap/R',
    'test/purification/jpeg:75/left',
  )  # fmt: skip

  def __init__(self, config: Any):
    super().__init__(config)
    procedure.check(config)
    purification.sweep(config.purify.operators)
    self.foundation = foundation.Foundation(config)

  @classmethod
  def procedural(cls, config: Any) -> bool:
    """True for drawn portraits."""
    return foundation.procedural(config)

  @classmethod
  def prepare(cls, config: Any) -> list[PrepareReport]:
    """Draws the portraits, or reads folders of persons."""
    return foundation.prepare(config)

  @classmethod
  def untrained(cls, config: Any) -> bool:
    """True: weights come from a folder of diffusers. Without one they are random, which `prediction` says aloud."""
    del config
    return True

  @property
  def model(self) -> LatentDiffusion:
    """The networks."""
    return self.foundation.model

  @functools.cached_property
  def people(self) -> list[people.Person]:
    """The persons that are protected and attacked, read when first asked for."""
    rows = foundation.opened(self.config, 'test')
    return people.gather(identities.Identities(rows, self.config.data.limit))

  @functools.cached_property
  def attacker(self) -> attacker.Attacker:
    """DreamBooth by `config.personalise`."""
    words, recipe = self.config.prompts, personalisation.Recipe.from_config(self.config.personalise)
    ids = [self.foundation.ids(text) for text in (words.instance, words.prior, '')]
    return attacker.Attacker(self.model, *ids, recipe, self.config.seed)

  def init(self, rng: jax.Array) -> contract.Variables:
    """Fresh parameters of the model, and of the second one."""
    return {'params': self.foundation.init(rng)}

  def pretrained(self, variables: contract.Variables) -> contract.Variables:
    """The weights of diffusers folders, where the config names them."""
    return self.foundation.pretrained(variables)

  def restored(self, metadata: Mapping[str, Any]) -> None:
    """The tokenizer of the checkpoint."""
    self.foundation.restored(metadata)

  # Stages.

  def stages(self) -> Sequence[contract.Stage]:
    """The model's own, class photos, and the protection, whose evaluation puts the tokenizer into the checkpoint."""
    return [
      *self.foundation.stages(),
      contract.Stage('prior', run=self.make_prior),
      contract.Stage('protect', run=self.protect, evaluate=(('visibility', 'test'),)),
    ]

  def make_prior(self, context: contract.StageContext) -> contract.Variables:
    """Adds the collection 'prior': class photos uint8 [n, H, W, 3]."""
    params, folder = self.foundation.view(context.variables['params']), context.workdir / 'cache' / 'prior'
    return {**context.variables, 'prior': self.prior(params, folder)}

  def prior(self, params: Mapping[str, Any], folder: pathlib.Path) -> np.ndarray:
    """Photos of the class that the model itself makes, uint8 [n, H, W, 3]; those that the folder holds are kept."""
    config, made = self.config.prior, self.attacker
    return personalisation.prior_photos(
      self.model, params, made.prior, config.count, self.config.model.size, self.config.seed, folder,
      negative=made.empty, steps=config.steps, guidance=config.guidance, batch_size=config.batch_size,
    )  # fmt: skip

  def protect(self, context: contract.StageContext) -> contract.Variables:
    """Adds the collection 'protected', {method: {person: set B uint8 [n, H, W, 3]}}."""
    variables = context.variables
    protector = procedure.Protector(self, self.foundation.view(variables['params']), variables['prior'])
    folder = context.workdir / 'cache' / 'protected'
    made = procedure.protect_all(protector, self.config.protect.methods, folder, context.log)
    return {**variables, 'protected': made}

  # Judgement, use, report.

  @functools.cached_property
  def judge(self) -> evaluation.Judge:
    """Made when first asked for."""
    return evaluation.Judge(self)

  def evaluators(self) -> Mapping[str, contract.Evaluator]:
    """'model' of the foundation; see `evaluation` for the others."""
    names = ('visibility', 'protection', 'purification', 'faces')
    return {**self.foundation.evaluators(), **contract.deferred(lambda: self.judge, names)}

  def predictor(self, variables: contract.Variables, metadata: Mapping[str, Any]) -> contract.Predictor:
    """Protects a user's own photos."""
    return prediction.PhotoPredictor(self, variables, metadata)

  def report(self, evaluations: Mapping[str, contract.Evaluation], variables: contract.Variables) -> Sequence[Any]:
    """Protected photos, what they cost whom, what attackers make of them, what filters leave."""
    return reporting.sections(self, evaluations, variables)
