"""The experiment of TRRG's claims (spec 9c): the method's own networks, small, on the chest of `phantom.py`.

Stage 1 trains perception on films and text; stage 2 trains a language model on films, clues and reports, given that
perception. Both run through the one loop. Stage 1 is trained once per seed and kept beside the cells for the methods of
stage 2, and a method of stage 2 once for all clues that it is then given; two processes may work in one folder.

What the spec leaves open, settled before the first full run:

  networks   those of `model.Reporter`: ViT 64 wide, 3 deep, 4 heads; BERT 64 wide, 2 deep; LLaMA 96 wide, 2 deep;
             interaction 64 wide, 2 layers, gates at 0, with its dropout of .1 (3.5)
  recipe     AdamW at 1e-3 for every part, the copied film encoder too; warm-up 10%, cosine, weight decay .01, clipping
             at 1, batches of 64; 16 passes in stage 1, 12 in stage 2; films as they are
  words      the prompt's and the grammar's in one vocabulary; the language model starts from nothing
  prompts    the three templates of each side; the first that asserts is what the interaction reads of a clue
  clues      as perceived, 10% of the studies without any and 5% of the clues wrong in training (4.2); observations that
             no report mentions have a threshold out of reach, and L_dac leaves them out as it does uncertain ones
  reports    greedy, at most 48 words with the end; 1,000 test films
  control    "pairs shuffled": every training film gets the report of another; validation and test keep theirs
  failures   of a finished model, at judgement: clue mask inverted (what was not perceived), clues shifted (the next
             finding in place of each), all clues on, prototypes swapped (and thresholds searched for anew)
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import sklearn.metrics
from ml_collections import ConfigDict

from core import claims
from core.atomic import write_atomically
from core.data import pipeline
from core.generation import Decoding, Generator
from core.metrics import text as text_metrics
from core.train import forward, loop, optim
from core.train import task as contract
from multimodal.trrg import consistency, contrast, injection, model, perception, phantom, sentences
from multimodal.trrg.data import Clues
from multimodal.trrg.observations import CLUES, OBSERVATIONS, POSITIVE, UNCERTAIN

BATCH, RATE = 64, 1e-3
SENTENCE, REPORT = 8, 48
"""Words that a sentence, and a report with its end, fill at most."""

SPLITS = ('train', 'val', 'test')
AMOUNT = {'train': 3000, 'val': 500, 'test': 1000}
FIRST = {
  **AMOUNT, 'text': 'sentence', 'abnormal_first': 0.8, 'targets': 'label_match', 'shuffle_pairs': False, 'passes': 16,
}  # fmt: skip
"""Stage 1 as the method has it; `text` 'report' gives the encoder whole reports."""

SECOND = {'encoder': 'contrast', 'inject': True, 'interaction': True, 'disease': 'full', 'passes': 12}
"""Stage 2 as the method has it, on `FIRST`; `encoder` 'scratch' does not start from the film encoder of stage 1."""

PROMPTS = ('as written', 'swapped')
"""At judgement of stage 1: the sentences that assert and deny, or each in place of the other."""

SOURCES = ('predicted', 'none', 'shuffled', 'oracle', 'inverted', 'shifted', 'all', 'swapped')
"""At judgement of stage 2: clues as perceived; none; those of the film before; those of the truth; and four failures.
The swapped ones come from a perception whose prompts are swapped."""

OUT_OF_REACH = 1e6
LIMIT = len(phantom.FINDINGS)
KNOWN = np.isin(np.arange(CLUES), phantom.COLUMNS)


# Films and texts.


@dataclasses.dataclass(frozen=True)
class Texts:
  """The distinct texts of some studies, sentences or whole reports.

  Attributes:
    ids, mask: i32 and bool [S, L].
    labels: int8 [S, 14].
    kinds: int8 [S], `sentences.kinds`.
    of: per study, the numbers of its texts.
  """

  ids: np.ndarray
  mask: np.ndarray
  labels: np.ndarray
  kinds: np.ndarray
  of: list[np.ndarray]


def texts(studies: phantom.Studies, text: str) -> Texts:
  """The texts that stage 1 reads: 'sentence' or 'report'."""
  parts = studies.sentences if text == 'sentence' else [[report] for report in studies.reports]
  number = {each: i for i, each in enumerate(dict.fromkeys(each for part in parts for each in part))}
  ids, mask = phantom.batch(list(number), SENTENCE if text == 'sentence' else REPORT)
  labels = phantom.label(list(number))
  return Texts(ids, mask, labels, sentences.kinds(labels), [np.array([number[x] for x in part]) for part in parts])


@functools.lru_cache(maxsize=4)
def world(seed: int, train: int, val: int, test: int, shuffle_pairs: bool = False) -> dict[str, phantom.Studies]:
  """Split -> studies, drawn independently of each other; shared by the methods of a seed."""
  found = {name: phantom.studies((seed, i), count) for i, (name, count) in enumerate(zip(SPLITS, (train, val, test)))}
  if shuffle_pairs:
    order = np.random.default_rng((seed, 3)).permutation(train)
    lines = found['train'].sentences
    found['train'] = dataclasses.replace(found['train'], sentences=[lines[i] for i in order])
  return found


def films(studies: phantom.Studies) -> tuple[np.ndarray, np.ndarray]:
  """('image' f32 [N, 1, 48, 48] in 0..255 but for the noise, 'view_mask' bool [N, 1])."""
  return studies.image[:, None] * 255, np.ones((len(studies.image), 1), bool)


# Networks.


def settings(**changes: Any) -> ConfigDict:
  """The section `config.model`, small; `changes` are those of `SECOND`."""
  chosen = {**SECOND, **changes}
  return ConfigDict({
    'vision': {
      'encoder': 'vit', 'weights': '', 'tuning': 'train',
      'variant': {'patch': 8, 'width': 64, 'depth': 3, 'heads': 4, 'mlp_dim': 256},
    },
    'text': {'variant': {'width': 64, 'depth': 2, 'heads': 4, 'mlp_dim': 256}, 'weights': '', 'pooling': 'mean'},
    'contrast_width': 64, 'views': 'mean', 'dtype': 'float32',
    'interaction': {
      'enabled': chosen['interaction'], 'width': 64, 'heads': 4, 'layers': 2, 'mlp_ratio': 2, 'dropout': 0.1,
      'words': SENTENCE,
    },
    'clues': {'limit': LIMIT, 'inject': chosen['inject']},
    'language': {
      'variant': {'width': 96, 'depth': 2, 'heads': 4, 'kv_heads': 4, 'mlp_dim': 256, 'max_positions': 256},
      'weights': '', 'tuning': 'full', 'dtype': 'float32', 'param_dtype': 'float32', 'remat': False, 'scan': False,
      'lora': {'rank': 0, 'alpha': 0.0, 'dropout': 0.0, 'targets': ()},
    },
    'disease': {'loss': chosen['disease'], 'weight': 0.5, 'consistency': 0.5},
  })  # fmt: skip


def reporter(**changes: Any) -> model.Reporter:
  """The networks of a method."""
  names = ['other'] * CLUES
  for finding in phantom.FINDINGS:
    names[finding.observation] = finding.name
  template, words = injection.template(phantom.encode, '', bos=phantom.BOS, names=names), len(phantom.WORDS)
  return model.Reporter(
    settings(**changes), image_size=phantom.SIZE, text_vocabulary=words, language_vocabulary=words, template=template
  )


def bank(networks: model.Reporter, variables: contract.Variables, prompts: str = 'as written') -> contract.Variables:
  """Variables with the prototypes and clue embeddings of their text encoder; see `PROMPTS`.

  Both sides of an observation that no report mentions are a filler: its margin is 0.
  """
  asserted, denied = ([phantom.FILLERS[:1]] * len(OBSERVATIONS) for _ in range(2))
  for finding in phantom.FINDINGS:
    asserted[finding.observation], denied[finding.observation] = finding.positive, finding.negative
  words = phantom.batch([each[0] for each in asserted[:CLUES]], SENTENCE)
  order = (asserted, denied) if prompts == 'as written' else (denied, asserted)
  sides = [[phantom.batch(side, SENTENCE) for side in each] for each in order]
  return {**variables, 'clues': {**variables['clues'], **networks.bank(variables, *sides, words)}}


def thresholds(margins: np.ndarray, studies: phantom.Studies) -> np.ndarray:
  """f32 [14]: those of the findings by the best F1, those of what is never mentioned out of reach."""
  theta = np.full(len(OBSERVATIONS), OUT_OF_REACH, np.float32)
  found = perception.best_thresholds(margins, phantom.label(studies.reports))
  theta[phantom.COLUMNS] = found[phantom.COLUMNS]
  return theta


# Training.


class Batches:
  """Row i of the pipeline is the whole batch i: rows drawn one by one would cost more than the step itself.

  `draw(studies i64 [BATCH], rng)` makes it. Every pass goes through the studies in fresh order; what does not fill a
  batch is left out.
  """

  def __init__(self, count: int, passes: int, seed: Sequence[int], draw: Any):
    self.each, self.passes, self.seed, self.draw, self.count = count // BATCH, passes, tuple(seed), draw, count

  def __len__(self) -> int:
    return self.each * self.passes

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    number, place = divmod(index, self.each)
    order = np.random.default_rng((*self.seed, 0, number)).permutation(self.count)
    return self.draw(order[place * BATCH : (place + 1) * BATCH], np.random.default_rng((*self.seed, 1, index)))


class Training(contract.Task):
  """What both stages share; `world` is split -> studies."""

  def __init__(self, options: Mapping[str, Any], seed: int, networks: model.Reporter, studies: Mapping[str, Any]):
    every = {'log_every': 100, 'eval_every': 0, 'checkpoint_every': 0, 'keep': 1}
    mesh = {'data': -1, 'fsdp': 1, 'tensor': 1}
    super().__init__(ConfigDict({'seed': seed, 'mesh': mesh, 'train': every, 'options': dict(options)}))
    self.options, self.networks, self.world = options, networks, studies

  def init(self, rng: jax.Array) -> contract.Variables:
    """Fresh variables."""
    return self.networks.init(rng)

  def gradient_stage(self, name: str, loss: contract.LossFn, draw: Any, perception_only: bool) -> contract.Stage:
    """The recipe of both stages. Stage 1 trains perception, stage 2 all the rest."""
    source = Batches(len(self.world['train'].image), self.options['passes'], (self.config.seed, *name.encode()), draw)
    optimizer = optim.build(
      ConfigDict({
        'name': 'adamw', 'learning_rate': RATE, 'schedule': 'cosine', 'warmup_steps': len(source) // 10,
        'weight_decay': 0.01, 'momentum': 0.0, 'clip_norm': 1.0,
      }),
      len(source),
    )  # fmt: skip
    return contract.Stage(
      name,
      steps=len(source),
      loss=loss,
      data=lambda context: pipeline.build(pipeline.rows(source, seed=0, shuffle=False, repeat=False), batch_size=1),
      optimizer=optimizer,
      trainable=lambda path: path.startswith(f'{model.PERCEPTION}/') == perception_only,
    )


class Contrast(Training):
  """Stage 1, then the clue bank and the thresholds."""

  def stages(self) -> Sequence[contract.Stage]:
    """In order."""
    train = self.world['train']
    read, study_labels = texts(train, self.options['text']), phantom.label(train.reports)

    def draw(rows: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
      of = [read.of[row] for row in rows]
      chosen = np.array([each[contrast.sample(read.kinds[each], rng, self.options['abnormal_first'])] for each in of])
      return {
        'image': train.image[rows] * 255, 'text_ids': read.ids[chosen], 'text_mask': read.mask[chosen],
        'text_key': chosen.astype(np.int32), 'sentence_label': read.labels[chosen], 'study_label': study_labels[rows],
      }  # fmt: skip

    return [self.gradient_stage('contrast', self.loss, draw, True), contract.Stage('perceive', run=self.perceive)]

  def loss(self, variables, batch, rng, step):
    """L_con."""
    del step
    batch = jax.tree.map(lambda x: x[0], batch)
    value, metrics = self.networks.contrast_loss(variables, batch, self.options['targets'], rng=rng)
    return value, contract.LossOutput(metrics)

  def perceive(self, context: contract.StageContext) -> contract.Variables:
    """Prototypes, thresholds on the validation films, weights of the positives."""
    variables = bank(self.networks, context.variables)
    theta = thresholds(margins(self.networks, variables, self.world['val']), self.world['val'])
    weights = consistency.positive_weights(phantom.label(self.world['train'].reports))
    return {**variables, 'clues': {**variables['clues'], 'theta': theta, 'pos_weight': weights}}


class Report(Training):
  """Stage 2, from the variables that stage 1 left."""

  def __init__(self, options, seed, networks, studies, first: contract.Variables):
    super().__init__(options, seed, networks, studies)
    self.first = first

  def pretrained(self, variables: contract.Variables) -> contract.Variables:
    """Perception with its clues, and the film encoder that starts as its copy, or anew."""
    params = {**variables['params'], model.PERCEPTION: self.first['params'][model.PERCEPTION]}
    begun = self.networks.begin({**variables, 'params': params, 'clues': self.first['clues']})
    if self.options['encoder'] == 'contrast':
      return begun
    return {**begun, 'params': {**begun['params'], model.VISION: variables['params'][model.VISION]}}

  def stages(self) -> Sequence[contract.Stage]:
    """The one stage."""
    train, clues = self.world['train'], perceived(self.networks, self.first, self.world['train'])
    ids, mask = phantom.batch(train.reports, REPORT, end=True)
    image, view_mask = films(train)
    labels = np.where(np.isin(np.arange(len(OBSERVATIONS)), phantom.COLUMNS), phantom.label(train.reports), UNCERTAIN)

    def draw(rows: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
      chosen = perception.ordered(clues.chosen[rows], clues.margins[rows], clues.theta, LIMIT, rng)
      return {
        'image': image[rows], 'view_mask': view_mask[rows], 'margin': clues.margins[rows],
        'clue_ids': perception.corrupt(chosen, rng, drop=0.1, replace=0.05),
        'report_ids': ids[rows], 'report_mask': mask[rows], 'labels': labels[rows].astype(np.int8),
      }  # fmt: skip

    return [self.gradient_stage('report', self.loss, draw, False)]

  def loss(self, variables, batch, rng, step):
    """L_LM + lambda L_dac."""
    del step
    batch = jax.tree.map(lambda x: x[0], batch)
    value, metrics, weight = self.networks.loss(variables, batch, train=True, rng=rng)
    return value, contract.LossOutput(metrics, weight)


# Perception, and what is done to it.


def margins(networks: model.Reporter, variables: contract.Variables, studies: phantom.Studies) -> np.ndarray:
  """f32 [N, 14]."""
  return forward.in_batches(jax.jit(networks.margins), variables, films(studies), 256)


def perceived(networks: model.Reporter, variables: contract.Variables, studies: phantom.Studies) -> Clues:
  """The clues of films by the thresholds in `variables`."""
  found, theta = margins(networks, variables, studies), np.asarray(variables['clues']['theta'])
  return Clues(found, perception.select(found, theta, LIMIT), theta)


def given(clues: Clues, source: str, labels: np.ndarray) -> Clues:
  """Other clues than the perceived ones; see `SOURCES`. labels: int8 [N, 14], the truth."""
  if source == 'inverted':
    return clues.given(KNOWN & ~clues.chosen)
  if source == 'all':
    return clues.given(np.broadcast_to(KNOWN, clues.chosen.shape))
  if source == 'shifted':
    moved = np.zeros_like(clues.chosen)
    moved[:, phantom.COLUMNS] = np.roll(clues.chosen[:, phantom.COLUMNS], 1, axis=1)
    return clues.given(moved)
  return clues.source(source, labels)


def zero_shot(found: np.ndarray, theta: np.ndarray, studies: phantom.Studies) -> dict[str, float]:
  """'auroc' and 'auroc/<finding>' of margins f32 [N, 14]; 'clue_f1' (macro) of the clues that the thresholds leave."""
  each = {
    f'auroc/{finding.name}': float(sklearn.metrics.roc_auc_score(present, found[:, finding.observation]))
    for finding, present in zip(phantom.FINDINGS, studies.present.T)
  }
  chosen = perception.select(found, theta, LIMIT)[:, phantom.COLUMNS]
  f1 = sklearn.metrics.f1_score(studies.present, chosen, average='macro', zero_division=0)
  return {'auroc': float(np.mean(list(each.values()))), **each, 'clue_f1': float(f1)}


# Experiments.


@contextlib.contextmanager
def shared(workdir: pathlib.Path, name: str, seed: int, options: Mapping[str, Any]) -> Iterator[pathlib.Path]:
  """A folder beside the cells for what several of them need; whoever comes second waits for the first."""
  text = json.dumps([claims.code_hash(__name__), dict(options)], sort_keys=True)
  folder = workdir.parent / 'shared' / f'{name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}-seed{seed}'
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / 'lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield folder


def first_stage(
  seed: int, workdir: pathlib.Path, options: Mapping[str, Any]
) -> tuple[model.Reporter, contract.Variables, dict[str, phantom.Studies]]:
  """Networks, variables and films of a method of stage 1, trained where it is not yet."""
  studies, networks = world(seed, *(options[split] for split in SPLITS), options['shuffle_pairs']), reporter()
  with shared(workdir, 'contrast', seed, options) as folder:
    result = loop.train(Contrast(options, seed, networks, studies), folder, logger=loop.NullLogger())
  return networks, result.variables, studies


def contrasted(seed: int, workdir: pathlib.Path, prompts: str = 'as written', **options: Any) -> dict[str, float]:
  """Trains a method of stage 1 and measures its perception on the test films.

  Args:
    seed: of the films, the weights and the batches.
    workdir: folder of the cell.
    prompts: one of `PROMPTS`.
    **options: `FIRST` with the method's changes.

  Returns:
    See `zero_shot`.
  """
  networks, variables, studies = first_stage(seed, workdir, options)
  variables = bank(networks, variables, prompts)
  theta = thresholds(margins(networks, variables, studies['val']), studies['val'])
  return zero_shot(margins(networks, variables, studies['test']), theta, studies['test'])


def reported(
  seed: int, workdir: pathlib.Path, first: Mapping[str, Any], clues: str = 'predicted', **options: Any
) -> dict[str, float]:
  """Trains a method of stage 2 on what a method of stage 1 perceives, and measures its reports on the test films.

  Args:
    seed, workdir: as above.
    first: `FIRST`, or its changes.
    clues: at judgement, one of `SOURCES`.
    **options: `SECOND` with the method's changes.

  Returns:
    'macro_f1', 'micro_f1' and 'f1/<finding>' of what is asserted, 'bleu_4', 'distinct' (different reports);
    'bleu_4_loss_by_order', how much of it is lost with the words of every sentence in reverse order.
  """
  with shared(workdir, 'report', seed, {'first': dict(first), **options}) as folder:
    kept = folder / 'outcome.json'
    if not kept.exists():
      write_atomically(kept, json.dumps(_second_stage(seed, workdir, folder, first, options)))
    return json.loads(kept.read_text())[clues]


def _second_stage(seed, workdir, folder, first, options) -> dict[str, dict[str, float]]:
  """Source of clues -> scores."""
  _, perceiving, studies = first_stage(seed, workdir, first)
  changes = {key: options[key] for key in ('inject', 'interaction', 'disease')}
  networks, test = reporter(**changes), studies['test']
  result = loop.train(Report(options, seed, networks, studies, perceiving), folder, logger=loop.NullLogger())
  found, labels = perceived(networks, result.variables, test), phantom.label(test.reports)
  write = writer(networks)
  outcome = {}
  for source in SOURCES if options['inject'] else SOURCES[:1]:
    if source == 'swapped':
      confused = bank(networks, result.variables, 'swapped')
      theta = thresholds(margins(networks, confused, studies['val']), studies['val'])
      seen = margins(networks, confused, test)
      chosen = Clues(seen, perception.select(seen, theta, LIMIT), theta)
    else:
      chosen = given(found, source, labels)
    outcome[source] = scores(write(result.variables, test, chosen), test)
  return outcome


def writer(networks: model.Reporter) -> Any:
  """(variables, studies, clues) -> reports, greedily."""
  generator = Generator(networks.language, eos=phantom.EOS, pad=phantom.PAD)
  decoding = Decoding(max_new_tokens=REPORT)

  @jax.jit
  def search(variables, image, view_mask, margin, clue_ids):
    batch = {'image': image, 'view_mask': view_mask, 'margin': margin, 'clue_ids': clue_ids}
    prompt = networks.prompt(variables, batch)
    return generator.search(
      {'params': variables['params'][model.LANGUAGE]}, prompt.embeddings, prompt.mask, decoding=decoding
    )[0]

  def write(variables: contract.Variables, studies: phantom.Studies, clues: Clues) -> list[str]:
    ids = perception.ordered(clues.chosen, clues.margins, clues.theta, LIMIT)
    tokens = forward.in_batches(search, variables, (*films(studies), clues.margins, ids), 256)
    return [phantom.decode(row) for row in tokens]

  return write


def scores(written: Sequence[str], studies: phantom.Studies) -> dict[str, float]:
  """Of reports, see `reported`."""
  asserted = phantom.label(written)[:, phantom.COLUMNS] == POSITIVE
  each = sklearn.metrics.f1_score(studies.present, asserted, average=None, zero_division=0)
  backwards = [phantom.join([' '.join(line.split()[::-1]) for line in phantom.part(text)]) for text in written]
  bleu, reversed_bleu = (
    text_metrics.language(each, studies.reports, meteor='off')['bleu_4'] for each in (written, backwards)
  )
  return {
    'macro_f1': float(each.mean()),
    'micro_f1': float(sklearn.metrics.f1_score(studies.present, asserted, average='micro', zero_division=0)),
    'bleu_4': bleu,
    'bleu_4_loss_by_order': bleu - reversed_bleu,
    'distinct': float(text_metrics.distinct(written)),
    **{f'f1/{finding.name}': float(value) for finding, value in zip(phantom.FINDINGS, each)},
  }


def normal(seed: int, workdir: pathlib.Path, **options: Any) -> dict[str, float]:
  """Scores of the report that denies everything, for every test film; options: `AMOUNT`."""
  del workdir
  test = world(seed, *(options[split] for split in SPLITS))['test']
  report = phantom.join([*(finding.negative[0] for finding in phantom.FINDINGS), *phantom.FILLERS[:2]])
  return scores([report] * len(test.image), test)
