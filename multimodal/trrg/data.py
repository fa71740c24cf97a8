"""What a run reads: studies put together from records, labels, tokenizers and films, as rows of the two stages.

  sentences   stage 1: a film and one sentence of its report, abnormal ones first (spec 4.1)
  studies     stage 2 and judgement: the films of a study, its clues, its report

A row is small until it is read: it says which study. Reading is a grain transform, so that worker processes decode, and
what is drawn at random (sentence, crop, order and loss of clues) depends on (seed, position) alone.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.data import text
from core.data.records import PrepareReport
from core.errors import UserError, nearest
from multimodal.trrg import cleaning, contrast, datasets, labeller, perception, sentences
from multimodal.trrg.chest import dataset as chest
from multimodal.trrg.datasets import films as films_lib
from multimodal.trrg.datasets import tables
from multimodal.trrg.observations import BLANK, CLUES, NAMES, NEGATIVE, NO_FINDING, POSITIVE, PROMPTS

DATASETS = ('chest', 'iu_xray', 'mimic_cxr')
SPLITS = ('train', 'val', 'test')
SOURCES = ('predicted', 'none', 'shuffled', 'oracle')
"""Clues at judgement (spec 5.4): perceived; an empty list; those of the study before; those of the reference report."""

BANKS, BANK = ('prompts', 'sentences'), 10
"""Where the sentences of the clue bank come from, and how many training sentences there are per side at most."""

PROMPT_COUNT = 100
"""How often the prompt counts among the reports that a tokenizer is trained on (our choice)."""

SURE = 2.0
"""Margin over the threshold that a clue gets at least when it is given and not perceived (our choice)."""


# Records: where they lie, and how they are made.


def is_procedural(config: Any) -> bool:
  """Whether the records are made on the spot: films that are drawn, or tables of reports without films."""
  if config.data.dataset not in DATASETS:
    known = nearest(config.data.dataset, DATASETS)
    raise UserError(f"config.data.dataset is '{config.data.dataset}', expected one of {DATASETS}.{known}")
  return config.data.dataset == 'chest' or not config.data.films


def records_root(config: Any) -> pathlib.Path:
  """Folder of the records; its name carries a hash of what drawn films and chosen sections depend on."""
  digest = hashlib.sha256(json.dumps(_described(config), sort_keys=True).encode()).hexdigest()[:10]
  return pathlib.Path(config.data.records).expanduser() / f'{config.data.dataset}-{digest}'


def prepare(config: Any) -> list[PrepareReport]:
  """Writes the records that `config.data` needs: draws films, or reads the official files under `config.data.root`."""
  root, data = records_root(config), config.data
  if data.dataset == 'chest':
    corpus = chest.studies(_world(config), data.seed)
  elif not data.root:
    raise UserError(f"config.data.root is empty: give the folder of '{data.dataset}', --config.data.root=/path.")
  else:
    corpus = datasets.read(data.layout, data.root, sections=data.sections, annotation=data.annotation)
    corpus = dataclasses.replace(corpus, name=data.dataset)
  return tables.write(
    root, corpus, pixels=data.pixels, films=data.films, workers=data.workers, overwrite=data.overwrite,
    info=_described(config),
  )  # fmt: skip


def _world(config: Any) -> chest.Config:
  amount = config.data.chest
  return chest.Config(size=config.data.pixels, train=amount.train, val=amount.val, test=amount.test)


def _described(config: Any) -> dict[str, Any]:
  data = config.data
  if data.dataset == 'chest':
    return {'seed': data.seed, 'films': data.films, **dataclasses.asdict(_world(config))}
  return {'sections': data.sections, 'pixels': data.pixels, 'layout': data.layout, 'films': data.films}


# Texts and their labels.


@dataclasses.dataclass(frozen=True)
class Tokenizers:
  """Of the text encoder and of the language model; `plain` travels in a checkpoint's metadata."""

  text: text.Tokenizer
  language: text.Tokenizer

  def plain(self) -> dict[str, str]:
    """JSON texts, complete."""
    return {'text': self.text.to_json(), 'language': self.language.to_json()}

  @classmethod
  def from_plain(cls, plain: Mapping[str, str]) -> Tokenizers:
    """The inverse of `plain`."""
    return cls(text.Tokenizer.from_json(plain['text']), text.Tokenizer.from_json(plain['language']))


@dataclasses.dataclass(frozen=True)
class Sentences:
  """The sentences of one report with their labels int8 [S, 14] and kinds int8 [S] (`sentences.kinds`)."""

  texts: tuple[str, ...]
  labels: np.ndarray
  kinds: np.ndarray


class Corpus:
  """Reports, labels, sentences, tokenizers and films of a dataset; each is read when it is first asked for."""

  def __init__(self, config: Any):
    self.config, self.root = config, records_root(config)
    self._columns: dict[str, dict[str, np.ndarray]] = {}

  def columns(self, split: str) -> dict[str, np.ndarray]:
    """'id', 'patient', 'report' ... of a split, [N] each."""
    if split not in self._columns:
      self._columns[split] = tables.load(self.root, self.config.data.dataset, split)
    return self._columns[split]

  @functools.cached_property
  def films(self) -> tables.Films:
    """Films by study."""
    return tables.Films(self.root, self.config.data.dataset)

  @functools.cached_property
  def labeller(self) -> labeller.Labeller:
    """Labels of texts; those of CheXbert are kept on disk."""
    data = self.config.data
    found = labeller.open(data.labeller, tokenizer=data.labeller_tokenizer)
    if data.labeller == 'rules':
      return found
    about = pathlib.Path(data.labeller).expanduser().stat()  # another checkpoint has labels of its own
    return labeller.cached(found, self.root / f'labels-{about.st_size}-{about.st_mtime_ns}.npz')

  @functools.cache  # noqa: B019 - a corpus lives as long as its run
  def reports(self, split: str) -> list[str]:
    """The cleaned reports [N]: what the language model learns to write and is compared with."""
    return [cleaning.clean(report, self.config.data.cleaning) for report in self.columns(split)['report'].tolist()]

  @functools.cache  # noqa: B019
  def labels(self, split: str) -> np.ndarray:
    """int8 [N, 14], of the whole reports."""
    return self.labeller(self.columns(split)['report'].tolist())

  @functools.cache  # noqa: B019
  def sentences(self, split: str) -> list[Sentences]:
    """The sentences of every report."""
    parts = [tuple(sentences.split(report)) for report in self.columns(split)['report'].tolist()]
    distinct = list(dict.fromkeys(sentence for part in parts for sentence in part))
    labels = dict(zip(distinct, self.labeller(distinct))) if distinct else {}
    found = []
    for part in parts:
      each = np.stack([labels[sentence] for sentence in part]) if part else np.zeros((0, len(PROMPTS)), np.int8)
      found.append(Sentences(part, each, sentences.kinds(each)))
    return found

  @functools.cached_property
  def tokenizers(self) -> Tokenizers:
    """Loaded where the config names them, else trained on the training reports and kept beside the records."""
    config = self.config
    return Tokenizers(
      self._tokenizer('wordpiece', config.text, self._phrases), self._tokenizer('bpe', config.language, self._reports)
    )

  def _phrases(self) -> list[str]:
    prompts = [sentence for pair in PROMPTS for side in pair for sentence in side]
    return [each for part in self.sentences('train') for each in part.texts] + prompts

  def _reports(self) -> list[str]:
    # The words of the prompt stand in every sample: counted once, each would be spelled letter by letter.
    prompt = [
      *NAMES,
      self.config.language.instruction,
      'Human: <Img> </Img> <Clue> </Clue> \nAssistant: no abnormal clue',
    ]
    return self.reports('train') + PROMPT_COUNT * prompt

  def _tokenizer(self, kind: str, section: Any, texts: Any) -> text.Tokenizer:
    if section.tokenizer:
      return text.Tokenizer.load(section.tokenizer)
    corpus = texts()
    digest = hashlib.sha256('\n'.join([kind, str(section.vocabulary), *corpus]).encode()).hexdigest()[:10]
    path = self.root / f'tokenizer-{kind}-{digest}.json'
    if not path.is_file():
      partial = path.with_name(f'{path.name}.partial-{os.getpid()}')
      partial.write_text(text.Tokenizer.train(kind, corpus, section.vocabulary).to_json(), encoding='utf-8')
      partial.replace(path)
    return text.Tokenizer.from_json(path.read_text(encoding='utf-8'))


# The sentences that prototypes are made of.


def bank_sentences(corpus: Corpus, source: str) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
  """Per observation [14] (sentences that assert it, sentences that deny it), for the prototypes (spec 3.4).

  Args:
    corpus: whose training sentences are drawn from.
    source: 'prompts', the bank of `observations`; 'sentences', up to `BANK` training sentences that say something of
      this observation alone (MedCLIP's way), those that are said most often; the bank's where there are none.
  """
  if source not in BANKS:
    raise UserError(f"config.clues.bank is '{source}', expected one of {BANKS}.{nearest(source, BANKS)}")
  if source == 'prompts':
    return list(PROMPTS)
  said: dict[tuple[int, int], collections.Counter] = collections.defaultdict(collections.Counter)
  for part in corpus.sentences('train'):
    for sentence, labels in zip(part.texts, part.labels):
      about = np.flatnonzero(labels[:CLUES] != BLANK)
      if len(about) == 1:
        said[int(about[0]), int(labels[about[0]])][sentence] += 1
      elif not len(about) and labels[NO_FINDING] == POSITIVE:
        said[NO_FINDING, POSITIVE][sentence] += 1
  often = lambda k, label: tuple(sentence for sentence, _ in said[k, label].most_common(BANK))  # noqa: E731
  return [(often(k, POSITIVE) or yes, often(k, NEGATIVE) or no) for k, (yes, no) in enumerate(PROMPTS)]


# Rows.


class Rows(Sequence):
  """Row i: {'study': index of a study}."""

  def __init__(self, indices: Sequence[int]):
    self.indices = np.asarray(indices)

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, i: int) -> dict[str, Any]:
    return {'study': int(self.indices[i])}


def described(corpus: Corpus, split: str) -> Rows:
  """The studies whose report has a sentence: those that stage 1 can learn from."""
  found = [i for i, each in enumerate(corpus.sentences(split)) if each.texts]
  if not found:
    raise UserError(
      f"no report of split '{split}' has a sentence of two words: there is nothing to contrast films with."
    )
  return Rows(found)


class SentenceReader:
  """Stage 1: row -> 'image' uint8 [H, W] (the first film, frontal where there is one), one sentence, labels."""

  def __init__(self, corpus: Corpus, split: str):
    config = corpus.config
    self.films, self.studies = corpus.films, corpus.columns(split)['id'].tolist()
    self.sentences, self.labels = corpus.sentences(split), corpus.labels(split)
    self.size, self.augment = config.data.image_size, config.augment.contrast
    self.abnormal_first = config.contrast.abnormal_first
    distinct = dict.fromkeys(sentences.normalized(each) for part in self.sentences for each in part.texts)
    self.ids, self.mask = sentence_ids(corpus.tokenizers.text, list(distinct), config.text.length)
    self.key = {sentence: i for i, sentence in enumerate(distinct)}

  def __call__(self, row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    study, part = row['study'], self.sentences[row['study']]
    film = self.films.views(self.studies[study], 1)[0]
    image = films_lib.random_fit(film, self.size, rng) if self.augment else films_lib.fit(film, self.size)
    chosen = contrast.sample(part.kinds, rng, self.abnormal_first)
    key = self.key[sentences.normalized(part.texts[chosen])]
    return {
      'image': image, 'text_ids': self.ids[key], 'text_mask': self.mask[key], 'text_key': np.int32(key),
      'sentence_label': part.labels[chosen], 'study_label': self.labels[study],
    }  # fmt: skip


def sentence_ids(tokenizer: text.Tokenizer, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
  """(ids int32 [N, length], mask bool [N, length]) of sentences as the text encoder reads them: [CLS] ... [SEP]."""
  return tokenizer.batch(texts, length, start=(tokenizer.cls,), end=(tokenizer.sep,))


@dataclasses.dataclass(frozen=True)
class Clues:
  """What stage 2 is told of every study of a split: margins f32 [N, 14], clues bool [N, 13], thresholds f32 [14]."""

  margins: np.ndarray
  chosen: np.ndarray
  theta: np.ndarray

  def given(self, chosen: np.ndarray) -> Clues:
    """Other clues than the perceived ones; those that perception does not see are believed by `SURE`."""
    margins = self.margins.copy()
    floor = self.theta[:CLUES] + SURE
    margins[:, :CLUES] = np.where(chosen, np.maximum(margins[:, :CLUES], floor), margins[:, :CLUES])
    return dataclasses.replace(self, margins=margins, chosen=chosen)

  def source(self, name: str, labels: np.ndarray) -> Clues:
    """One of `SOURCES`; labels int8 [N, 14] are those of the references."""
    if name == 'none':
      return self.given(np.zeros_like(self.chosen))
    if name == 'shuffled':
      return Clues(np.roll(self.margins, 1, 0), np.roll(self.chosen, 1, 0), self.theta)
    if name == 'oracle':
      return self.given(labels[:, :CLUES] == POSITIVE)
    if name != 'predicted':
      raise UserError(f"there are no clues '{name}', expected one of {SOURCES}.{nearest(name, SOURCES)}")
    return self


class StudyReader:
  """Stage 2: row -> the batch of `model.Reporter.forward`; with a generator in training, without in judgement."""

  def __init__(self, corpus: Corpus, split: str, clues: Clues | None = None):
    """Args: clues: None where they are not needed yet (perception reads the films alone)."""
    config = self.config = corpus.config
    self.films = corpus.films if config.data.films else None
    self.studies, self.labels, self.clues = corpus.columns(split)['id'].tolist(), corpus.labels(split), clues
    self.reports = corpus.reports(split)
    self.tokenizer = corpus.tokenizers.language

  def __call__(self, row: dict[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
    study = row['study']
    image, mask = self.views(self.studies[study], rng)
    found = {'image': image, 'view_mask': mask, 'labels': self.labels[study]}
    if self.clues is None:
      return found
    ids, report_mask = report_ids(self.tokenizer, [self.reports[study]], self.config.language.length)
    return {
      **found, 'margin': self.clues.margins[study].astype(np.float32), 'clue_ids': self._clue_ids(study, rng),
      'report_ids': ids[0], 'report_mask': report_mask[0],
    }  # fmt: skip

  def _clue_ids(self, study: int, rng: np.random.Generator | None) -> np.ndarray:
    limit = self.config.model.clues.limit
    chosen, margins = self.clues.chosen[study : study + 1], self.clues.margins[study : study + 1]
    ids = perception.ordered(chosen, margins, self.clues.theta, limit, rng)
    if rng is not None:
      ids = perception.corrupt(ids, rng, drop=self.config.clues.drop, replace=self.config.clues.replace)
    return ids[0]

  def views(self, study: str, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [V, S, S], bool [V]): the films of a study; a lacking view is black and masked."""
    size, limit = self.config.data.image_size, self.config.data.views
    if self.films is None:
      return np.zeros((limit, size, size), np.uint8), np.ones(limit, bool)
    films = self.films.views(study, limit)
    if rng is not None and self.config.augment.report:
      return stacked([films_lib.random_fit(film, size, rng, films_lib.CROP) for film in films], limit)
    return stacked([films_lib.fit(film, size) for film in films], limit)


def stacked(films: Sequence[np.ndarray], limit: int) -> tuple[np.ndarray, np.ndarray]:
  """(uint8 [limit, S, S], bool [limit]) of 1 to `limit` films [S, S]."""
  if not films:
    raise UserError('a study without a film cannot be read: at least one view is expected.')
  image = np.zeros((limit, *films[0].shape), np.uint8)
  image[: len(films)] = films
  return image, np.arange(limit) < len(films)


def report_ids(tokenizer: text.Tokenizer, reports: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
  """(ids int32 [N, length], mask bool [N, length]) of reports as the language model learns them, </s> at the end."""
  return tokenizer.batch(reports, length, end=(tokenizer.eos,))


class LanguageReader:
  """The stage 'language': row -> a report alone, 'report_ids' int32 [T] and 'report_mask' bool [T]."""

  def __init__(self, corpus: Corpus, split: str):
    self.ids, self.mask = report_ids(corpus.tokenizers.language, corpus.reports(split), corpus.config.language.length)

  def __call__(self, row: dict[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
    return {'report_ids': self.ids[row['study']], 'report_mask': self.mask[row['study']]}
