"""From weights to what a run is judged by.

perception     zero-shot recognition of the observations, and the clues that the thresholds leave (spec 3.4)
report         the written reports: language metrics, clinical efficacy, truthfulness (spec 5.2 to 5.4)
interventions  the same reports with no clues, with those of another study, with those of the reference (spec 5.4)
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import sklearn.metrics

from core.data import pipeline
from core.metrics import text as text_metrics
from core.train import forward
from core.train.task import Evaluation, Variables
from multimodal.trrg import cleaning, clinical, data, perception, truthfulness, writing
from multimodal.trrg.data import Clues, Corpus
from multimodal.trrg.model import Reporter
from multimodal.trrg.observations import BLANK, CLUES, OBSERVATIONS, POSITIVE


class Judge:
  """The evaluators `(variables, split) -> Evaluation`, and the clues that stage 2 trains on."""

  def __init__(self, reporter: Reporter, corpus: Corpus, config: Any):
    self.reporter, self.corpus, self.config = reporter, corpus, config
    self.writer = writing.Writer(reporter, corpus.tokenizers, config.decoding)
    self.margins = forward.Memo(self._margins)
    self.texts = forward.Memo(self._texts)
    self._see = jax.jit(reporter.margins)

  def clues(self, variables: Variables, split: str) -> Clues:
    """What is perceived in every study of a split; with `clues.source` 'labels', what its reference says."""
    if self.config.clues.source == 'labels':
      chosen = self.corpus.labels(split)[:, :CLUES] == POSITIVE
      margins = np.where(self.corpus.labels(split) == POSITIVE, data.SURE, -data.SURE).astype(np.float32)
      return Clues(margins, chosen, np.zeros(len(OBSERVATIONS), np.float32))
    theta = np.asarray(jax.device_get(variables['clues']['theta']))
    margins = self.margins(variables, split)
    return Clues(margins, perception.select(margins, theta, self.config.model.clues.limit), theta)

  def _margins(self, variables: Variables, split: str) -> np.ndarray:
    """f32 [N, 14] of all studies of a split."""
    rows = data.Rows(range(len(self.corpus.columns(split)['id'])))
    batches = self._batches(rows, data.StudyReader(self.corpus, split))
    return forward.over(self._see, variables, batches, ('image', 'view_mask'))

  def _batches(self, rows: data.Rows, reader: data.StudyReader) -> pipeline.Batches:
    return pipeline.eval_batches(rows, self.config.eval.batch_size, reader, workers=self.config.data.workers)

  def perception(self, variables: Variables, split: str) -> Evaluation:
    """'auroc' (macro over the observations that occur and do not occur) and 'auroc/<name>', positive against the rest;
    'clue/f1', 'clue/precision', 'clue/recall' (macro over the 13) and 'clue/micro_f1' of the chosen clues; 'clues',
    their number per study.

    Returns:
      arrays: 'margin' f32 [N, 14], 'chosen' bool [N, 13], 'labels' int8 [N, 14].
    """
    labels, found = self.corpus.labels(split), self.clues(variables, split)
    present = labels == POSITIVE
    scalars = {}
    for k, name in enumerate(OBSERVATIONS):
      if 0 < present[:, k].sum() < len(present):
        scalars[f'auroc/{name}'] = float(sklearn.metrics.roc_auc_score(present[:, k], found.margins[:, k]))
    scalars = {'auroc': float(np.mean(list(scalars.values()))) if scalars else float('nan'), **scalars}
    scores = clinical.efficacy(_coded(found.chosen), labels)
    scalars |= {f'clue/{name}': scores[f'macro_13/{name}'] for name in ('f1', 'precision', 'recall')}
    scalars |= {'clue/micro_f1': scores['micro/f1'], 'clues': float(found.chosen.sum(1).mean())}
    return Evaluation(scalars, {'margin': found.margins, 'chosen': found.chosen, 'labels': labels}, self._metadata())

  def report(self, variables: Variables, split: str) -> Evaluation:
    """Language metrics as '<protocol>/bleu_4' ..., `clinical.efficacy` as 'ce/...', `truthfulness.diagnostics` as
    'truth/...', 'distinct' (different reports), 'tokens' (words and stops per report).

    Returns:
      arrays: 'id', 'text', 'reference' str [M], 'margin', 'chosen', 'labels', 'written' (labels of the texts); `files`
      has the reports as JSON. M is N, or `eval.limit`.
    """
    rows, found = self._judged(split), self.clues(variables, split)
    texts = self.texts(variables, f'{split}|predicted')
    meteor = 'auto' if split in self.config.eval.meteor else 'off'
    scalars, written = self._scores(split, texts, found, meteor)
    labels, columns = self.corpus.labels(split)[rows.indices], self.corpus.columns(split)
    references = [self.corpus.reports(split)[i] for i in rows.indices]
    arrays = {
      'id': columns['id'][rows.indices], 'text': np.array(texts), 'reference': np.array(references),
      'margin': found.margins[rows.indices], 'chosen': found.chosen[rows.indices], 'labels': labels, 'written': written,
    }  # fmt: skip
    names = [[OBSERVATIONS[k] for k in np.flatnonzero(chosen)] for chosen in arrays['chosen']]
    lines = [
      {'id': str(study), 'report': text, 'reference': reference, 'clues': clues}
      for study, text, reference, clues in zip(arrays['id'], texts, references, names)
    ]
    return Evaluation(scalars, arrays, self._metadata(), {f'reports_{split}.json': lines})

  def interventions(self, variables: Variables, split: str) -> Evaluation:
    """'<clues>/bleu_4', '<clues>/macro_f1' (of the 13), '<clues>/micro_f1', '<clues>/distinct' and
    '<clues>/faithfulness' for every one of `data.SOURCES`."""
    scalars = {}
    for name in data.SOURCES:
      found = self.clues(variables, split).source(name, self.corpus.labels(split))
      each, _ = self._scores(split, self.texts(variables, f'{split}|{name}'), found)
      chosen = {
        'bleu_4': f'{self.config.eval.references[0]}/bleu_4', 'macro_f1': 'ce/macro_13/f1', 'micro_f1': 'ce/micro/f1',
        'distinct': 'distinct', 'faithfulness': 'truth/faithfulness',
      }  # fmt: skip
      scalars |= {f'{name}/{short}': each[key] for short, key in chosen.items()}
    return Evaluation(scalars, metadata=self._metadata())

  def _judged(self, split: str) -> data.Rows:
    """The studies that a report is written for: all, or `eval.limit` of them, spread over the split."""
    count, limit = len(self.corpus.columns(split)['id']), self.config.eval.limit
    if not limit or limit >= count:
      return data.Rows(range(count))
    return data.Rows(np.linspace(0, count - 1, limit).round().astype(int))

  def _texts(self, variables: Variables, key: str) -> list[str]:
    """The written reports of '<split>|<clues>'."""
    split, source = key.split('|')
    clues = self.clues(variables, split).source(source, self.corpus.labels(split))
    batches = self._batches(self._judged(split), data.StudyReader(self.corpus, split, clues))
    texts: list[str] = []
    for arrays, kept in forward.placed(variables, batches, writing.FIELDS):
      written = self.writer(variables, arrays)
      texts += [written[i] for i in kept]
    return texts

  def _scores(
    self, split: str, texts: list[str], clues: Clues, meteor: str = 'off'
  ) -> tuple[dict[str, float], np.ndarray]:
    """(scalars, labels int8 [M, 14] of the texts)."""
    indices = self._judged(split).indices
    labels, written = self.corpus.labels(split)[indices], self.corpus.labeller(texts)
    scalars: dict[str, float] = {}
    whole = [self.corpus.reports(split)[i] for i in indices]
    for protocol in self.config.eval.references:
      references = cleaning.references(
        whole, protocol, tokenizer=self.corpus.tokenizers.language, limit=self.config.eval.reference_length,
        words=self._words if protocol == 'r2gen' else None,
      )  # fmt: skip
      scores = text_metrics.language(texts, references, meteor=meteor)
      scalars |= {f'{protocol}/{name}': value for name, value in scores.items()}
    scalars |= {f'ce/{name}': value for name, value in clinical.efficacy(written, labels).items()}
    scores = truthfulness.diagnostics(clues.chosen[indices], written, labels)
    scalars |= {f'truth/{name}': value for name, value in scores.items()}
    scalars['distinct'] = float(text_metrics.distinct(texts))
    scalars['tokens'] = float(np.mean([len(text.split()) for text in texts]))
    return scalars, written

  @functools.cached_property
  def _words(self) -> Any:
    """The words that R2Gen's references keep: 3 times in training for IU-Xray, 10 times for MIMIC-CXR (spec 5.2)."""
    least = 10 if self.config.data.dataset == 'mimic_cxr' else 3
    return cleaning.vocabulary(self.corpus.reports('train'), least)

  def _metadata(self) -> dict[str, Any]:
    return {'tokenizers': self.corpus.tokenizers.plain()}


def _coded(chosen: np.ndarray) -> np.ndarray:
  """Clues bool [N, 13] as labels int8 [N, 14]: what a report that says just these would be labelled."""
  coded = np.full((len(chosen), len(OBSERVATIONS)), BLANK, np.int8)
  coded[:, :CLUES][chosen] = POSITIVE
  return coded
