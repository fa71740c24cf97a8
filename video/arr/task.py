"""How ARR trains and how it is judged.

Three stages, each of which `steps = 0` leaves out (spec 4.3):

  recognition   encoder and recognition head, on single labelled clips                    L_rec
  pretraining   decoder, on unlabelled windows, encoder frozen                            L_pre
  joint         everything, end to end, on the clips before each annotated action         L_nap + L_rec (+ L_feat)

Before the second the deviations of the features are measured: a stage of one step with its own procedure.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np

from core import config as config_lib
from core.data import pipeline
from core.data.records import PrepareReport
from core.errors import UserError, nearest
from core.train import forward, optim
from core.train import task as contract
from video.arr import data, losses, model, prediction, reporting, scoring

MEASURED = 256
"""Windows that the deviations of the features are measured on (our choice: 2,560 clips at T = 10)."""


class Task(contract.Task):
  """ARR on one fold of a dataset; `folds` makes one run per fold."""

  headline = tuple(
    f'val/{name}'
    for name in (
      'anticipation/action/class_mean_recall_at_5', 'anticipation/action/top_1', 'anticipation/action/top_5',
      'recognition/top_1', 'statistics/bigram/top_1',
    )
  )  # fmt: skip

  def __init__(self, config: Any):
    super().__init__(config)
    _check(config)
    self.fold = data.Fold(config)

  @classmethod
  def folds(cls, config: Any) -> list[tuple[str, Any]]:
    """One run per fold of `config.data.folds`: ('fold_1', config with data.fold = 1), ..."""
    chosen = tuple(config.data.folds)
    derived = [config_lib.derive(config, {'data.fold': int(fold)}) for fold in chosen]
    return [('' if len(chosen) == 1 else f'fold_{fold}', each) for fold, each in zip(chosen, derived)]

  @classmethod
  def procedural(cls, config: Any) -> bool:
    """True for the kitchen, and for annotation files that are read without media."""
    return data.is_procedural(config)

  @classmethod
  def prepare(cls, config: Any) -> list[PrepareReport]:
    """Writes the records of segments, and of frames where the media are 'records'."""
    return data.prepare(config)

  @functools.cached_property
  def model(self) -> model.Anticipator:
    """The network; its number of classes is the dataset's."""
    return self.anticipator(self.fold.vocabulary.classes)

  def anticipator(self, classes: int) -> model.Anticipator:
    """The network for a number of classes, without asking for the dataset (for a checkpoint on another machine)."""
    size = self.config.data.prototypes.size or self.config.data.feature_size
    order = self.config.loss.pretraining == 'order' and self.config.pretraining.steps > 0
    return model.Anticipator(self.config.model, classes=classes, grid=self.fold.grid, feature_size=size, order=order)

  def init(self, rng: jax.Array) -> contract.Variables:
    """Fresh variables."""
    return self.model.init(rng)

  def pretrained(self, variables: contract.Variables) -> contract.Variables:
    """Merges the public encoder `config.model.weights` in, printing the account."""
    return self.model.load(variables, self.config.model.weights)

  def reader(self, views: int = 1) -> data.Reader:
    """How rows are read: with one view, random in training, or with several in judgement (pixels)."""
    config, view, prototypes = self.config, None, None
    if self.fold.media is not None and self.fold.media.kind == 'pixels':
      view = data.View(config.model.image_size, tuple(config.augment.shorter), config.augment.flip, views)
    if config.data.prototypes.size:
      prototypes = data.Prototypes.draw(
        self.fold.vocabulary.classes, config.data.prototypes.size, config.data.prototypes.noise
      )
    return data.Reader(self.fold.media, self.fold.grid, view, prototypes)

  # Stages.

  def stages(self) -> Sequence[contract.Stage]:
    """The stages that have steps."""
    config, stages = self.config, []
    if config.recognition.steps:
      parts = (model.ENCODER, model.RECOGNITION)
      stages.append(self._stage('recognition', self.recognition_loss, self.moments, parts, 'recognition'))
    if config.pretraining.steps:
      stages.append(contract.Stage('deviation', run=self.measure))
      parts = (model.DECODER, model.ORDER)
      stages.append(self._stage('pretraining', self.pretraining_loss, self.windows, parts, 'pretraining'))
    if config.joint.steps:
      parts = (model.ENCODER, model.DECODER, model.RECOGNITION, model.ANTICIPATION)
      stages.append(self._stage('joint', self.joint_loss, self.samples, parts, 'anticipation'))
    return stages

  def _stage(
    self, name: str, loss: contract.LossFn, rows: Callable, parts: tuple[str, ...], evaluator: str
  ) -> contract.Stage:
    config, part = self.config, self.config[name]
    rates = {} if name == 'pretraining' else {f'{model.ENCODER}/': part.encoder_rate}
    return contract.Stage(
      name=name,
      steps=part.steps,
      loss=loss,
      data=rows,
      optimizer=optim.build(part.optim, part.steps, rates),
      trainable=lambda path: path.split('/')[0] in parts,
      accumulate=config.train.accumulate,
      ema_decay=part.optim.ema_decay or None,
      evaluate=((evaluator, 'val'),),
    )

  def moments(self, context: contract.StageContext) -> grain.IterDataset:
    """Stage 1: one clip of a random time per row."""
    moments = self.fold.moments()
    return self._batches(moments, data.MomentReader(moments, self.reader()), self.config.recognition.batch_size, 1)

  def windows(self, context: contract.StageContext) -> grain.IterDataset:
    """Stage 2: T + 1 clips per row."""
    return self._batches(self.fold.windows(), self.reader(), self.config.pretraining.batch_size, 2)

  def samples(self, context: contract.StageContext) -> grain.IterDataset:
    """Stage 3: the T clips before every annotated action."""
    return self._batches(self.fold.samples('train'), self.reader(), self.config.joint.batch_size, 3)

  def _batches(self, rows: Sequence, read: Callable, batch_size: int, stage: int) -> grain.IterDataset:
    stream = pipeline.rows(rows, seed=(self.config.seed, stage), random_transform=read)
    size = batch_size * self.config.train.accumulate
    return pipeline.build(stream, batch_size=size, workers=self.config.data.workers)

  def measure(self, context: contract.StageContext) -> contract.Variables:
    """The deviations sigma of z over clips of the training set, in the collection 'statistics' (spec 4.2)."""
    rows = self.fold.windows()
    spread = np.unique(np.linspace(0, len(rows) - 1, min(MEASURED, len(rows))).round().astype(int))
    batches = pipeline.eval_batches(
      [rows[i] for i in spread], self.config.eval.batch_size, self.reader(),
      workers=self.config.data.workers,
    )  # fmt: skip
    z = forward.over(jax.jit(self.model.encode), context.variables, batches, ('inputs',))
    return {**context.variables, 'statistics': {'sigma': np.asarray(losses.deviation(z))}}

  # Objectives. The weight is the number of rows: exact under accumulation unless unknown clips are left out (`losses`).

  @functools.cached_property
  def _options(self) -> dict[str, Any]:
    loss = self.config.loss
    weight = loss.unknown_weight
    if not weight:  # by the counts of the training grids
      labels = self.fold.samples('train').grids['label']
      weight = losses.balancing_weight(np.bincount(labels.ravel(), minlength=self.fold.vocabulary.classes + 1))
    return {'unknown': loss.unknown, 'unknown_weight': weight, 'smoothing': loss.smoothing}

  def recognition_loss(self, variables, batch, rng, step) -> tuple[jax.Array, contract.LossOutput]:
    """L_rec on single clips."""
    del step
    z = self.model.encode(variables, batch['inputs'], train=True)
    r = self.model.recognise(variables, z, train=True, rng=rng)
    loss = losses.recognition(r, batch['label'], **self._options)
    return loss.value, contract.LossOutput({'accuracy': (r.argmax(-1) == batch['label']).mean()}, weight=loss.weight)

  def pretraining_loss(self, variables, batch, rng, step) -> tuple[jax.Array, contract.LossOutput]:
    """L_pre on windows of T + 1 clips; the encoder is not trained."""
    del step
    kind = self.config.loss.pretraining
    z = jax.lax.stop_gradient(self.model.encode(variables, batch['inputs']))
    first = z[:, : self.fold.grid.clips]
    if kind == 'order':
      loss, metrics = losses.order(self.model.order(variables, first, train=True, rng=rng)), {}
    else:
      p = self.model.reason(variables, first, train=True, rng=rng)
      sigma = variables['statistics']['sigma']
      loss = losses.pretraining(p, z, sigma, kind=kind, temperature=self.config.loss.temperature)
      found = losses.skill(p, z)
      metrics = {'error': found.error, 'copying': found.copying}
    return loss.value, contract.LossOutput(metrics, weight=loss.weight)

  def joint_loss(self, variables, batch, rng, step) -> tuple[jax.Array, contract.LossOutput]:
    """L = L_nap + lam_rec L_rec + lam_feat L_feat."""
    del step
    weights = self.config.loss
    outputs = self.model.apply(variables, batch['inputs'], train=True, rng=rng)
    loss, terms = losses.joint(
      outputs, batch['label'], batch['target'], recognition_weight=weights.recognition, past_weight=weights.past,
      feature_weight=weights.feature, **self._options,
    )  # fmt: skip
    accuracy = (outputs['q'][:, -1, :-1].argmax(-1) == batch['target']).mean()
    return loss.value, contract.LossOutput({**terms, 'accuracy': accuracy}, weight=loss.weight)

  # Judgement, use, report.

  @functools.cached_property
  def judge(self) -> scoring.Judge:
    """Made when first asked for."""
    return scoring.Judge(self.model, self.fold, self.reader(self.config.eval.views), self.config)

  def evaluators(self) -> Mapping[str, contract.Evaluator]:
    """See `scoring`."""
    names = ('anticipation', 'recognition', 'pretraining', 'statistics')
    return contract.deferred(lambda: self.judge, names)

  def predictor(self, variables: contract.Variables, metadata: Mapping[str, Any]) -> contract.Predictor:
    """What comes next in a video file, from pixels."""
    return prediction.VideoPredictor(self, variables, metadata)

  def report(self, evaluations: Mapping[str, contract.Evaluation], variables: contract.Variables) -> Sequence[Any]:
    """Timelines, attention over the past, learned next actions beside the empirical ones, against n-grams."""
    return reporting.sections(self, evaluations, variables)


def _check(config: Any) -> None:
  """Finds words that mean nothing before the first step."""
  choices = {'loss.unknown': losses.UNKNOWN, 'loss.pretraining': losses.PRETRAINING, 'data.dataset': data.DATASETS}
  for key, known in choices.items():
    section, leaf = key.split('.')
    value = config[section][leaf]
    if value not in known:
      raise UserError(f"config.{key} is '{value}', expected one of {known}.{nearest(value, known)}")
  if not (config.recognition.steps or config.pretraining.steps or config.joint.steps):
    raise UserError('config.recognition.steps, pretraining.steps and joint.steps are all 0: nothing would be trained.')
  data.dataset_name(config)  # a fold that the dataset has
