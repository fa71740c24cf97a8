"""How FAS-Aug + SARE trains and how it is judged.

One step draws b frames from each of S source domains and of E augmented domains (streams over the union of the
sources), in rows interleaved domain after domain; applies the epoch's policies to the augmented rows; and minimises

  L = L_CE + beta * L_SARE + alpha * L_con        (spec section 4)

over the adapters and the head (frozen backbone) or over everything (small backbone from scratch).
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp

from core import config as config_lib
from core.data import pipeline
from core.data.records import PrepareReport
from core.errors import UserError, nearest
from core.train import optim
from core.train import task as contract
from fas.fas_aug import assets, data, evaluation, losses, model, policy, prediction, reporting


class Task(contract.Task):
  """FAS-Aug + SARE on one protocol (sources -> target); `folds` makes one run per target of a family of protocols."""

  headline = tuple(
    f'test/biometrics/{scalar}'
    for scalar in ('frame/auc', 'frame/eer', 'frame/hter_at_dev', 'video/auc', 'video/hter_at_dev')
  )

  def __init__(self, config: Any):
    super().__init__(config)
    self.classifier = model.Classifier(config.model)
    self.protocol = data.protocol(config)
    self.num_sources = len(self.protocol.sources)
    self.bag = config.augment.bag
    self.num_augmented = config.augment.domains if self.bag != 'none' else 0
    self.num_domains = self.num_sources + self.num_augmented
    self.per_domain = config.train.batch_per_domain * config.train.accumulate
    self.frames = data.Frames(config, self.protocol)
    self.assets = assets.load_assets(**config.augment.assets)
    _check(config)

  @classmethod
  def folds(cls, config: Any) -> list[tuple[str, Any]]:
    """One run per target: ('to_phone', config with the protocol 'laptop&tablet->phone'), ..."""
    found = data.protocols_of(config)
    if len(found) == 1:
      return [('', config)]
    return [(f'to_{each.target}', config_lib.derive(config, {'data.protocol': each.name})) for each in found]

  @classmethod
  def procedural(cls, config: Any) -> bool:
    """True for the face world."""
    return data.is_procedural(config)

  @classmethod
  def prepare(cls, config: Any) -> list[PrepareReport]:
    """Writes the records that the config's domains need: renders the face world, or crops official downloads."""
    return data.prepare(config)

  def init(self, rng: jax.Array) -> contract.Variables:
    """Fresh variables of the classifier."""
    return self.classifier.init(rng)

  def pretrained(self, variables: contract.Variables) -> contract.Variables:
    """Merges `config.model.weights` in, printing the account."""
    return self.classifier.load(variables, self.config.model.weights)

  def stages(self) -> Sequence[contract.Stage]:
    """The single stage of the method."""
    train, steps = self.config.train, self.steps()
    judged_on = 'test' if self.config.eval.select_on_target else 'val'
    return [
      contract.Stage(
        name='train',
        steps=steps,
        loss=self.loss,
        data=self.batches,
        optimizer=optim.build(self.config.optim, steps),
        trainable=self.classifier.trainable,
        accumulate=train.accumulate,
        ema_decay=self.config.optim.ema_decay or None,
        evaluate=(('biometrics', judged_on),),
        monitor=f'{judged_on}/biometrics/{self.config.eval.monitor}',
      )
    ]

  @functools.cache  # noqa: B019 - a task lives as long as its run
  def steps_per_epoch(self) -> int:
    """Batches of one augmented stream (release: the others cycle); of the longest source where there is none."""
    if self.num_augmented:
      frames = len(self.frames.augmented())
    else:
      frames = max(len(self.frames.source(name)) for name in self.protocol.sources)
    return max(1, frames // self.per_domain)

  def steps(self) -> int:
    """Optimiser steps of the run: `config.train.steps`, or `config.train.epochs` epochs where that is 0."""
    steps, epochs = self.config.train.steps, self.config.train.epochs
    return steps or epochs * self.steps_per_epoch()

  # Data: S source streams and E augmented streams, interleaved.

  def batches(self, context: contract.StageContext) -> grain.IterDataset:
    """This process's part of the global batches; writes the policies of the run to `policies.json`."""
    if self.num_augmented and self.config.augment.refresh == 'epoch' and jax.process_index() == 0:
      self.write_policies(context.workdir / 'policies.json')
    sources = [self.frames.source(name) for name in self.protocol.sources]
    augmented = [self.frames.augmented()] * self.num_augmented
    # Stream d is shuffled by (seed, d): the augmented streams read the same frames in different orders.
    streams = [
      pipeline.rows(frames, seed=(self.config.seed, d), transform=data.Row(d))
      for d, frames in enumerate([*sources, *augmented])
    ]
    return pipeline.build(
      pipeline.interleave(streams),
      batch_size=self.per_domain * self.num_domains,
      group=self.num_domains,
      workers=self.config.data.workers,
    )

  def policies(self, epoch: jax.Array | int) -> policy.Policy:
    """The policies of an epoch, stacked over the E augmented domains; a pure function of (seed, epoch)."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(self.config.seed), epoch), self.num_augmented)
    return self.policies_from(keys, self.config.augment.sub_policies)

  def policies_from(self, keys: jax.Array, sub_policies: int) -> policy.Policy:
    """A policy per key, stacked; on crops smaller than the release's, trembling in proportion."""
    drawn = jax.vmap(lambda key: policy.sample(key, sub_policies, bag=self.bag))(keys)
    return policy.scaled(drawn, policy.level_shares(self.config.data.size), bag=self.bag)

  def write_policies(self, path: pathlib.Path) -> None:
    """Writes the policies of every epoch as JSON: [epoch][augmented domain][sub-policy][operator, level]."""
    epochs = jnp.arange(-(-self.steps() // self.steps_per_epoch()))
    every = jax.device_get(jax.jit(jax.vmap(self.policies))(epochs))
    described = [
      [policy.describe(jax.tree.map(lambda leaf: leaf[n, e], every), bag=self.bag) for e in range(self.num_augmented)]  # noqa: B023
      for n in range(len(epochs))
    ]
    path.write_text(json.dumps(described) + '\n')

  def augment(self, batch: contract.Batch, key: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Applies policies to the augmented rows of an interleaved batch, on the device.

    Args:
      batch: 'image' uint8 [B, S, S, 3], 'label' int32 [B], rows interleaved over the D domains.
      key: randomness of this step.
      step: i32 scalar, selects the epoch.

    Returns:
      images f32 [B, S, S, 3] in [0, 1]; labels int32 [B], spoof where an operator made them so; f32 scalar, the share
      of the live augmented images that became spoof (0.809 in the mean under the paper's policy).
    """
    images, labels = batch['image'].astype(jnp.float32) / 255.0, batch['label']
    if not self.num_augmented:
      return images, labels, jnp.zeros(())
    groups, s = labels.shape[0] // self.num_domains, self.num_sources
    images = images.reshape(groups, self.num_domains, *images.shape[1:])
    labels = labels.reshape(groups, self.num_domains)
    before = labels[:, s:].reshape(-1)
    if self.config.augment.refresh == 'epoch':
      policies = self.policies(step // self.steps_per_epoch())
      which = jnp.tile(jnp.arange(self.num_augmented), groups)
    else:  # a sub-policy of its own for every image: a lower variance of the label balance
      key, own = jax.random.split(key)
      policies = self.policies_from(jax.random.split(own, before.shape[0]), 1)
      which = jnp.arange(before.shape[0])
    flat = images[:, s:].reshape(-1, *images.shape[2:])
    changed, after, flipped = policy.apply_batch(key, flat, before, policies, which, bag=self.bag, assets=self.assets)
    live = before == losses.LIVE
    flip_rate = jnp.sum(flipped & live) / jnp.maximum(jnp.sum(live), 1)
    images = images.at[:, s:].set(changed.reshape(groups, -1, *images.shape[2:]))
    labels = labels.at[:, s:].set(after.reshape(groups, -1))
    return images.reshape(-1, *images.shape[2:]), labels.reshape(-1), flip_rate

  # The objective.

  def loss(
    self, variables: contract.Variables, batch: contract.Batch, rng: jax.Array, step: jax.Array
  ) -> tuple[jax.Array, contract.LossOutput]:
    """L = L_CE + beta L_SARE + alpha L_con on one batch (spec section 4)."""
    config = self.config.loss
    augment_key, dropout_key = jax.random.split(rng)
    images, labels, flip_rate = self.augment(batch, augment_key, step)
    outputs, updates = self.classifier.apply(variables, images, train=True, rng=dropout_key)
    weights = losses.class_weights(labels) if config.class_balance else None
    each = losses.cross_entropy(outputs['logits'], labels)
    base = losses.base(each, weights)
    sare, risks, counts = losses.sare(
      each, labels, batch['domain'], self.num_domains, samples=config.sare_samples, missing=config.sare_missing
    )
    contrast = losses.live_contrastive(outputs['feature'], labels, temperature=config.contrastive_temperature)
    beta = losses.annealed(config.sare_weight, step, config.sare_anneal_steps)
    total = base + beta * sare + config.contrastive_weight * contrast
    metrics = {
      'base': base,
      'sare': sare,
      'contrastive': contrast,
      'risk': risks,
      'spoof_count': counts,
      'accuracy': jnp.mean(jnp.argmax(outputs['logits'], -1) == labels),
      'flip_rate': flip_rate,
    }
    return total, contract.LossOutput(metrics, weight=labels.shape[0], updates=updates)

  # Judgement, use, report.

  def evaluators(self) -> Mapping[str, contract.Evaluator]:
    """'biometrics': error rates of a split; 'artefacts': which operator at which level flips decisions."""
    judge = evaluation.Judge(self.classifier, self.frames, self.config, self.assets)
    return {'biometrics': judge.biometrics, 'artefacts': judge.artefacts}

  def predictor(self, variables: contract.Variables, metadata: Mapping[str, Any]) -> contract.Predictor:
    """Scores faces in photos and videos with the checkpoint's threshold."""
    return prediction.FacePredictor(self.classifier, variables, self.config, metadata)

  def entries(self) -> Mapping[str, Sequence[str]]:
    """The domains of the risks: sources by name, then the augmented ones."""
    domains = (*self.protocol.sources, *(f'augmented {e + 1}' for e in range(self.num_augmented)))
    return {'risk': domains, 'spoof_count': domains}

  def report(self, evaluations: Mapping[str, contract.Evaluation], variables: contract.Variables) -> Sequence[Any]:
    """ROC and DET, score histograms, errors per attack and artefact, a sheet of augmented faces, the worst errors."""
    return reporting.sections(self, evaluations)


def _check(config: Any) -> None:
  """Finds words that mean nothing before the first step."""
  choices = {
    'augment.bag': (config.augment.bag, ('none', *policy.BAGS)),
    'augment.refresh': (config.augment.refresh, ('epoch', 'image')),
    'loss.sare_samples': (config.loss.sare_samples, losses.SAMPLES),
    'loss.sare_missing': (config.loss.sare_missing, losses.MISSING),
  }
  for key, (value, known) in choices.items():
    if value not in known:
      raise UserError(f"config.{key} is '{value}', expected one of {known}.{nearest(value, known)}")
  if not config.train.steps and not config.train.epochs:
    raise UserError('config.train.steps and config.train.epochs are both 0: one of them must say how long to train.')
