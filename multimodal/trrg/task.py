"""How TRRG trains and how it is judged.

Stages, each of which `steps = 0` leaves out (spec 3, 4):

  contrast    perception: film and sentence encoders, on single sentences, abnormal ones first    L_con
  perceive    the clue bank, thresholds on the validation split, the copy of the film encoder      (a procedure)
  language    the language model on reports alone, where it does not come trained (our choice)     L_LM
  report      film, clues, report; perception frozen                                               L_LM + lambda L_dac

With `clues.crossfit = 2` the clues of the training films come from two more perceptions, each trained on the half of
the patients that it is not asked about: 'contrast_0', 'margins_0', 'contrast_1', 'margins_1' stand before 'contrast'.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from core.data import pipeline
from core.data.records import PrepareReport
from core.errors import UserError, nearest
from core.nn import adapters, llama
from core.train import optim
from core.train import task as contract
from multimodal.trrg import consistency, contrast, data, injection, model, perception, prediction, reporting, scoring
from multimodal.trrg.observations import CLUES, POSITIVE, PROMPTS

HALVES = 2
"""Of the patients, for `clues.crossfit`."""


class Task(contract.Task):
  """TRRG on one dataset."""

  headline = (
    'test/perception/auroc', 'test/perception/clue/f1', 'test/report/ce/macro_13/f1', 'test/report/ce/micro/f1',
    'test/report/full/bleu_4', 'test/report/full/cider', 'test/report/distinct',
  )  # fmt: skip

  def __init__(self, config: Any):
    super().__init__(config)
    _check(config)
    self.corpus = data.Corpus(config)

  @classmethod
  def procedural(cls, config: Any) -> bool:
    """True for drawn films, and for reports that are read without films."""
    return data.is_procedural(config)

  @classmethod
  def prepare(cls, config: Any) -> list[PrepareReport]:
    """Writes the records of reports and films."""
    return data.prepare(config)

  @functools.cached_property
  def reporter(self) -> model.Reporter:
    """The networks, with the tokenizers of the corpus."""
    return self.reporter_of(self.corpus.tokenizers)

  def reporter_of(self, tokenizers: data.Tokenizers) -> model.Reporter:
    """The networks for given tokenizers, without asking for the dataset (for a checkpoint on another machine)."""
    language = tokenizers.language
    rows = self._vocabularies(tokenizers)
    tokenizers.text.check(rows[0], 'the text encoder (config.text.vocabulary)')
    language.check(rows[1], 'the language model (config.language.vocabulary)')
    return self._networks(rows, injection.template(language.encode, self.config.language.instruction, bos=language.bos))

  def _vocabularies(self, tokenizers: data.Tokenizers | None = None) -> tuple[int, int]:
    """Rows of the two embedding tables: what a trained tokenizer has, or what the config says of a public one."""

    def rows(name: str) -> int:
      section = self.config[name]
      own = not section.tokenizer
      return getattr(tokenizers or self.corpus.tokenizers, name).vocabulary if own else section.vocabulary

    return rows('text'), rows('language')

  def _networks(self, vocabularies: tuple[int, int], template: injection.Template | None) -> model.Reporter:
    return model.Reporter(
      self.config.model, image_size=self.config.data.image_size, text_vocabulary=vocabularies[0],
      language_vocabulary=vocabularies[1], template=template,
    )  # fmt: skip

  def init(self, rng: jax.Array) -> contract.Variables:
    """Fresh variables; with `clues.crossfit` also room for the margins of the training films."""
    variables = self._networks(self._vocabularies(), None).init(rng)  # shapes alone: a plan needs no tokenizer
    if self.config.clues.crossfit:
      count = len(self.corpus.columns('train')['id'])
      variables = {**variables, 'crossfit': {'margin': jnp.zeros((count, len(PROMPTS)))}}
    return variables

  def pretrained(self, variables: contract.Variables) -> contract.Variables:
    """Merges the public weights of the three networks in, printing what was loaded."""
    return self._networks(self._vocabularies(), None).load(variables)

  # Stages.

  def stages(self) -> Sequence[contract.Stage]:
    """The stages that have steps."""
    config, stages = self.config, []
    if config.contrast.steps:
      for half in range(config.clues.crossfit):
        stages.append(self._contrast(f'contrast_{half}', half))
        stages.append(contract.Stage(f'margins_{half}', run=functools.partial(self.measure, half=half)))
      stages.append(self._contrast('contrast', None))
    if config.report.steps:
      stages.append(contract.Stage('perceive', run=self.perceive))
    if config.language_model.steps:
      stages.append(self._stage('language', config.language_model, self.language_loss, self.texts, self._is_base))
    if config.report.steps:
      rates = {f'{model.VISION}/': config.report.vision_rate}
      stages.append(
        self._stage(
          'report', config.report, self.report_loss, self.studies, self._is_second, rates,
          evaluate=(('report', 'val'),), monitor='val/report/ce/macro_13/f1', monitor_mode='max',
        )
      )  # fmt: skip
    return stages

  def _contrast(self, name: str, half: int | None) -> contract.Stage:
    rows = functools.partial(self.sentences, half=half)
    judged = (('zero_shot', 'val'),) if half is None else ()
    return self._stage(name, self.config.contrast, self.contrast_loss, rows, _is_first, evaluate=judged)

  def _stage(self, name, section, loss, rows, trainable, rates=None, **judgement) -> contract.Stage:
    return contract.Stage(
      name=name,
      steps=section.steps,
      loss=loss,
      data=rows,
      optimizer=optim.build(section.optim, section.steps, rates or {}),
      trainable=trainable,
      accumulate=self.config.train.accumulate,
      ema_decay=section.optim.ema_decay or None,
      sharding=llama.sharding(f'{model.LANGUAGE}/'),
      **judgement,
    )

  def _is_base(self, path: str) -> bool:
    return path.startswith(f'{model.LANGUAGE}/') and not adapters.is_adapter(path)

  def _is_second(self, path: str) -> bool:
    """What stage 2 trains: all but perception, as far as `tuning` lets it (spec 3.8)."""
    part = path.split('/')[0]
    if part in (model.LANGUAGE, model.VISION):
      tuning = self.config.model[part].tuning
      return tuning in ('full', 'train') or (tuning == 'lora' and adapters.is_adapter(path))
    return part != model.PERCEPTION

  def sentences(self, context: contract.StageContext, half: int | None = None) -> grain.IterDataset:
    """Stage 1: one sentence of each film's report."""
    rows = data.described(self.corpus, 'train')
    if half is not None:
      rows = data.Rows(rows.indices[self.halves()[rows.indices] == half])
    seed = 1 if half is None else 10 + half
    return self._batches(rows, data.SentenceReader(self.corpus, 'train'), self.config.contrast.batch_size, seed)

  def texts(self, context: contract.StageContext) -> grain.IterDataset:
    """The stage 'language': reports alone."""
    reader = data.LanguageReader(self.corpus, 'train')
    return self._batches(self._all(), reader, self.config.language_model.batch_size, 2)

  def studies(self, context: contract.StageContext) -> grain.IterDataset:
    """Stage 2: films, clues and reports; what is perceived is computed once, from the frozen perception."""
    clues = self.training_clues(context.variables)
    return self._batches(self._all(), data.StudyReader(self.corpus, 'train', clues), self.config.report.batch_size, 3)

  def training_clues(self, variables: contract.Variables) -> data.Clues:
    """The clues of the training split, out of fold with `clues.crossfit`."""
    if not self.config.clues.crossfit:
      return self.judge.clues(variables, 'train')
    margins, theta = jax.device_get((variables['crossfit']['margin'], variables['clues']['theta']))
    return data.Clues(margins, perception.select(margins, theta, self.config.model.clues.limit), theta)

  def _all(self) -> data.Rows:
    return data.Rows(range(len(self.corpus.columns('train')['id'])))

  def _batches(self, rows: Sequence, reader: Any, batch_size: int, stage: int) -> grain.IterDataset:
    stream = pipeline.rows(rows, seed=(self.config.seed, stage), random_transform=reader)
    size = batch_size * self.config.train.accumulate
    return pipeline.build(stream, batch_size=size, workers=self.config.data.workers)

  # Procedures.

  def halves(self) -> np.ndarray:
    """int [N]: the half that each training patient belongs to, by a hash of the patient."""
    patients = self.corpus.columns('train')['patient'].tolist()
    return np.array([int(hashlib.sha256(patient.encode()).hexdigest(), 16) % HALVES for patient in patients])

  def measure(self, context: contract.StageContext, half: int) -> contract.Variables:
    """Margins of the patients that this half's perception has not seen; perception then starts anew."""
    variables = {**context.variables, 'clues': {**context.variables['clues'], **self.bank(context.variables)}}
    margins = self.judge.margins(variables, 'train')
    kept = np.asarray(jax.device_get(variables['crossfit']['margin']))
    fresh = self.pretrained(self.init(jax.random.key(self.config.seed)))
    params = {**variables['params'], model.PERCEPTION: fresh['params'][model.PERCEPTION]}
    crossfit = {'margin': np.where((self.halves() == half)[:, None], kept, margins)}
    return {**variables, 'params': params, 'crossfit': crossfit}

  def bank(self, variables: contract.Variables) -> dict[str, Any]:
    """The prototypes and clue embeddings of the text encoder as it is (spec 3.4)."""
    tokenizer, length = self.corpus.tokenizers.text, self.config.text.length
    said = data.bank_sentences(self.corpus, self.config.clues.bank)
    sides = [[data.sentence_ids(tokenizer, pair[side], length) for pair in said] for side in (0, 1)]
    words = data.sentence_ids(tokenizer, [prompts[0][0] for prompts in PROMPTS[:CLUES]], self.reporter.words)
    return jax.jit(lambda weights: self.reporter.bank(weights, *sides, words))(variables)

  def perceive(self, context: contract.StageContext) -> contract.Variables:
    """Clue bank, thresholds, class weights; stage 2 starts from a copy of the film encoder (spec 3.4, 3.8)."""
    weights = consistency.positive_weights(self.corpus.labels('train'))
    clues = {**context.variables['clues'], **self.bank(context.variables), 'pos_weight': weights}
    variables = self.reporter.begin({**context.variables, 'clues': clues})
    if self.config.clues.source == 'perceived':
      margins = self.judge.margins(variables, 'val')
      theta = perception.best_thresholds(margins, self.corpus.labels('val') == POSITIVE)
      variables = {**variables, 'clues': {**variables['clues'], 'theta': theta.astype(np.float32)}}
    return variables

  # Objectives.

  def contrast_loss(self, variables, batch, rng, step) -> tuple[jax.Array, contract.LossOutput]:
    """L_con on one sentence per film."""
    del step
    loss, metrics = self.reporter.contrast_loss(variables, batch, self.config.contrast.targets, rng=rng)
    return loss, contract.LossOutput(metrics, weight=batch['text_ids'].shape[0])

  def language_loss(self, variables, batch, rng, step) -> tuple[jax.Array, contract.LossOutput]:
    """L_LM on reports alone."""
    del step
    loss, metrics, tokens = self.reporter.language_loss(variables, batch, rng=rng)
    return loss, contract.LossOutput(metrics, weight=tokens)

  def report_loss(self, variables, batch, rng, step) -> tuple[jax.Array, contract.LossOutput]:
    """L_LM + lambda L_dac."""
    del step
    loss, metrics, tokens = self.reporter.loss(variables, batch, train=True, rng=rng)
    return loss, contract.LossOutput(metrics, weight=tokens)

  # Judgement, use, report.

  def restored(self, metadata: Mapping[str, Any]) -> None:
    """The tokenizers of the checkpoint: its embeddings belong to them."""
    if 'tokenizers' in metadata:
      self.corpus.tokenizers = data.Tokenizers.from_plain(metadata['tokenizers'])

  @functools.cached_property
  def judge(self) -> scoring.Judge:
    """Made when first asked for."""
    return scoring.Judge(self.reporter, self.corpus, self.config)

  def evaluators(self) -> Mapping[str, contract.Evaluator]:
    """See `scoring`; 'zero_shot' is 'perception' before there are thresholds."""
    names = ('perception', 'report', 'interventions')
    return {'zero_shot': self.zero_shot, **contract.deferred(lambda: self.judge, names)}

  def zero_shot(self, variables: contract.Variables, split: str) -> contract.Evaluation:
    """'perception' with the prototypes of the text encoder as it is, and thresholds of 0."""
    clues = {**variables['clues'], **self.bank(variables)}
    return self.judge.perception({**variables, 'clues': clues}, split)

  def predictor(self, variables: contract.Variables, metadata: Mapping[str, Any]) -> contract.Predictor:
    """Reports for film files."""
    return prediction.FilmPredictor(self, variables, metadata)

  def report(self, evaluations: Mapping[str, contract.Evaluation], variables: contract.Variables) -> Sequence[Any]:
    """Films with their reports and evidence, margins, what interventions do."""
    return reporting.sections(self, evaluations, variables)


def _is_first(path: str) -> bool:
  return path.split('/')[0] == model.PERCEPTION


def _check(config: Any) -> None:
  """Finds words that mean nothing, and choices that do not go together, before the first step."""
  data.is_procedural(config)
  choices = {
    'contrast.targets': contrast.TARGETS, 'model.disease.loss': consistency.LOSSES,
    'clues.source': ('perceived', 'labels'), 'clues.crossfit': (0, HALVES), 'clues.bank': data.BANKS,
  }  # fmt: skip
  for key, known in choices.items():
    section, leaf = key.rsplit('.', 1)
    value = functools.reduce(lambda node, part: node[part], section.split('.'), config)[leaf]
    if value not in known:
      hint = nearest(value, known) if isinstance(value, str) else ''
      raise UserError(f"config.{key} is '{value}', expected one of {known}.{hint}")
  if not (config.contrast.steps or config.report.steps):
    raise UserError('config.contrast.steps and config.report.steps are both 0: nothing would be trained.')
  if not config.data.films and (config.clues.source != 'labels' or config.contrast.steps):
    raise UserError(
      "config.data.films is False: without films there is nothing to perceive; expected clues.source='labels' and"
      ' contrast.steps=0 (the preset iu_text).'
    )
