"""How FAS-Aug + SARE trains and how it is judged.

One step draws b frames from each of S source domains and E augmented domains (streams over the union of the sources), in
rows interleaved domain after domain; applies the epoch's policy to the augmented rows; and minimises

  L = L_CE + beta * L_SARE + alpha * L_con        (spec section 4)

over the adapters and the head (frozen backbone) or over everything (small backbone from scratch).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from core.data import pipeline
from core.data.records import PrepareReport
from core.train import optim
from core.train import task as contract
from fas.fas_aug import data, evaluation, losses, model, policy, prediction, reporting


class Task(contract.Task):
  """FAS-Aug + SARE on one protocol (sources -> target); `folds` makes one run per target of a family of protocols."""

  def __init__(self, config: Any):
    super().__init__(config)
    self.classifier = model.Classifier(config.model)
    self.protocol = data.protocol(config)
    self.num_sources = len(self.protocol.sources)
    self.num_augmented = config.augment.domains if config.augment.bag != 'none' else 0
    self.num_domains = self.num_sources + self.num_augmented
    self.frames = data.Frames(config, self.protocol)

  @classmethod
  def folds(cls, config: Any) -> list[tuple[str, Any]]:
    """One run per target: ('to_phone', config with the protocol 'laptop&tablet->phone'), ..."""
    found = data.protocols_of(config)
    if len(found) == 1:
      return [('', config)]
    runs = []
    for each in found:
      fold = ConfigDict(config.to_dict())
      fold.data.protocol = each.name
      runs.append((f'to_{each.target}', fold))
    return runs

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
        evaluate=(('biometrics', 'test' if self.config.eval.select_on_target else 'val'),),
        monitor=self.config.eval.monitor,
        monitor_mode=self.config.eval.monitor_mode,
      )
    ]

  def steps_per_epoch(self) -> int:
    """Batches of one augmented stream (release: the other streams cycle); of the longest source without augmentation."""
    per_domain = self.config.train.batch_per_domain * self.config.train.accumulate
    if self.num_augmented:
      frames = len(self.frames.augmented())
    else:
      frames = max(len(self.frames.source(name)) for name in self.protocol.sources)
    return max(1, frames // per_domain)

  def steps(self) -> int:
    """Optimiser steps of the run: `config.train.steps`, or `config.train.epochs` epochs where that is 0."""
    steps, epochs = self.config.train.steps, self.config.train.epochs
    return steps or epochs * self.steps_per_epoch()

  # Data: S source streams and E augmented streams, interleaved.

  def batches(self, context: contract.StageContext) -> grain.IterDataset:
    """This process's part of the global batches; writes the policies of all epochs to `policies.json`."""
    config = self.config
    streams = [
      pipeline.rows(self.frames.source(name), seed=config.seed + d, transform=data.Row(d))
      for d, name in enumerate(self.protocol.sources)
    ]
    per_domain = config.train.batch_per_domain * config.train.accumulate
    for e in range(self.num_augmented):
      d = self.num_sources + e
      rows = pipeline.rows(self.frames.augmented(), seed=config.seed + d, transform=data.Row(d))
      if config.augment.where == 'host':
        rows = rows.map_with_index(self.host_augmentation(e, per_domain))
      streams.append(rows)
    if self.num_augmented and jax.process_index() == 0:
      self.write_policies(context.workdir / 'policies.json')
    return pipeline.build(
      pipeline.interleave(streams),
      batch_size=per_domain * self.num_domains,
      workers=config.data.workers,
    )

  def policies(self, epoch: jax.Array | int) -> policy.Policy:
    """The policies of an epoch, stacked over the E augmented domains; a pure function of (seed, epoch)."""
    key = jax.random.fold_in(jax.random.key(self.config.seed), epoch)
    keys = jax.random.split(key, self.num_augmented)
    bag, sub_policies = self.config.augment.bag, self.config.augment.sub_policies
    return jax.vmap(lambda k: policy.sample(k, sub_policies, bag=bag))(keys)

  def augment(self, batch: contract.Batch, key: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Applies the epoch's policies to the augmented rows of an interleaved batch, on the device.

    Args:
      batch: 'image' uint8 [B, S, S, 3], 'label' int32 [B], rows interleaved over the D domains.
      key: randomness of this step.
      step: i32 scalar, selects the epoch.

    Returns:
      images f32 [B, S, S, 3] in [0, 1]; labels int32 [B], spoof where an operator made them so; flipped bool [B].
    """
    images = batch['image'].astype(jnp.float32) / 255.0
    labels = batch['label']
    if not self.num_augmented or self.config.augment.where == 'host':
      return images, labels, batch.get('flipped', jnp.zeros(labels.shape, bool))
    by_domain = images.reshape(-1, self.num_domains, *images.shape[1:])
    labels_by_domain = labels.reshape(-1, self.num_domains)
    s, per_domain = self.num_sources, by_domain.shape[0]
    synthetic, synthetic_labels, flipped = policy.apply_batch(
      key,
      by_domain[:, s:].reshape(-1, *images.shape[1:]),
      labels_by_domain[:, s:].reshape(-1),
      self.policies(step // self.steps_per_epoch()),
      jnp.tile(jnp.arange(self.num_augmented), per_domain),
    )
    by_domain = by_domain.at[:, s:].set(synthetic.reshape(per_domain, self.num_augmented, *images.shape[1:]))
    labels_by_domain = labels_by_domain.at[:, s:].set(synthetic_labels.reshape(per_domain, -1))
    flips = jnp.concatenate([jnp.zeros((per_domain, s), bool), flipped.reshape(per_domain, -1)], axis=1)
    return by_domain.reshape(images.shape), labels_by_domain.reshape(-1), flips.reshape(-1)

  # The objective.

  def loss(
    self, variables: contract.Variables, batch: contract.Batch, rng: jax.Array, step: jax.Array
  ) -> tuple[jax.Array, contract.LossOutput]:
    """L = L_CE + beta L_SARE + alpha L_con on one batch (spec section 4)."""
    config = self.config.loss
    augment_key, dropout_key = jax.random.split(rng)
    images, labels, flipped = self.augment(batch, augment_key, step)
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
      'flip_rate': jnp.mean(flipped, dtype=jnp.float32),
    }
    return total, contract.LossOutput(metrics, weight=labels.shape[0], updates=updates)

  # Judgement, use, report.

  def evaluators(self) -> Mapping[str, contract.Evaluator]:
    """'biometrics': error rates of a split; 'artefacts': which operator at which level flips decisions."""
    judge = evaluation.Judge(self.classifier, self.frames, self.config)
    return {'biometrics': judge.biometrics, 'artefacts': judge.artefacts}

  def predictor(self, variables: contract.Variables, metadata: Mapping[str, Any]) -> contract.Predictor:
    """Scores faces in photos and videos with the checkpoint's threshold."""
    return prediction.FacePredictor(self.classifier, variables, self.config, metadata)

  def report(self, evaluations: Mapping[str, contract.Evaluation], variables: contract.Variables) -> Sequence[Any]:
    """ROC and DET, score histograms, errors per attack and artefact, a sheet of augmented faces, the worst errors."""
    return reporting.sections(self, evaluations)
