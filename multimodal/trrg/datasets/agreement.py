"""The rule labeller beside a second opinion: the MeSH headings that people gave the reports of IU-Xray.

  python -m multimodal.trrg.datasets.agreement --root=../shared/data/iu_xray [--output=agreement.json]

Prints, per observation, in how many reports it is labelled positive, uncertain and negative, in how many a heading has
it, and how far the two agree. The headings are of the whole report, so findings and impression are labelled. They are
no ground truth: they name what the coder found worth indexing and know no negation, and a doubt may be indexed or not.
Agreement is therefore given twice: with uncertain as absent (the rule of clinical efficacy, spec 5.3) and as present.
Nor is it a test of the rules on unseen text: their phrases were gathered on these very reports.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import metrics

from core.errors import UserError
from multimodal.trrg import datasets, labeller
from multimodal.trrg.observations import BLANK, NEGATIVE, NO_FINDING, OBSERVATIONS, POSITIVE, SUPPORT_DEVICES, UNCERTAIN

NOT_INDEXED = 'no indexing'
"""The heading of a report that nobody read for its headings: it says nothing."""

HEADINGS = {
  'Enlarged Cardiomediastinum': r'mediastinum/(?!lymph nodes|blood vessels).*(?:enlarged|prominent)',
  'Cardiomegaly': r'cardiomegaly|(?:cardiac shadow|heart ventricles|heart atria)/.*enlarged',
  'Lung Opacity': r'opacity(?!/pleura)|infiltrate|airspace disease|density/lung|cicatrix(?:$|/lung|/diffuse)'
  r'|markings/.*interstitial|lung/.*interstitial|lung diseases, interstitial|pulmonary fibrosis|fibrosis',
  'Lung Lesion': r'nodule(?!.*(?:calci|breast))|mass(?:$|/(?!breast|abdomen))|cavitation|.*neoplasm',
  'Edema': r'pulmonary edema|pulmonary congestion|heart failure|edema',
  'Consolidation': r'consolidation',
  'Pneumonia': r'pneumonia|bronchopneumonia',
  'Atelectasis': r'pulmonary atelectasis|atelectasis|volume loss',
  'Pneumothorax': r'pneumothorax|hydropneumothorax|hemopneumothorax',
  'Pleural Effusion': r'pleural effusion|hydropneumothorax|hemopneumothorax|hemothorax',
  'Pleural Other': r'(?:thickening|cicatrix|calcinosis)/(?:.*/)?pleura|pleura/.*(?:thick|abnormal)',
  'Fracture': r'fractures, bone|.*fracture',
  'Support Devices': r'catheters, indwelling|implanted medical device|medical device|tube, inserted|stents|pacemaker.*',
}
"""Observation -> headings that have it, as patterns at the start of a heading in lower case, 'head/qualifier/...'.

Our reading of the collection's vocabulary, by the phrases of spec 5.3. Not taken: a blunted costophrenic angle
(effusion has its own heading), granulomas, bronchovascular markings, deformed bones, surgical clips and sutures."""

_PATTERNS = tuple(re.compile(rf'(?:{HEADINGS[name]})') for name in OBSERVATIONS if name in HEADINGS)


def given(problems: str) -> np.ndarray | None:
  """What the headings of a report say.

  Args:
    problems: headings, joined by ';'.

  Returns:
    bool [14], No Finding where none of the others but Support Devices is, as the labellers have it; None for a report
    without headings, or one that was not indexed.
  """
  listed = [heading.strip().lower() for heading in problems.split(';') if heading.strip()]
  if not listed or NOT_INDEXED in listed:
    return None
  found = np.array([any(pattern.match(heading) for heading in listed) for pattern in _PATTERNS] + [False])
  found[NO_FINDING] = not np.delete(found, [SUPPORT_DEVICES, NO_FINDING]).any()
  return found


@dataclasses.dataclass(frozen=True)
class Row:
  """One observation over the reports that have headings; shares are None where nothing could be counted.

  Attributes:
    name: the observation.
    positive, uncertain, negative: reports so labelled.
    headings: reports with a heading that has it.
    precision, recall: of the positive labels against the headings.
    kappa: Cohen's, of the positive labels and the headings.
    kappa_uncertain: with uncertain counted as present.
    label_only, heading_only: ids of the reports on which labels and headings differ.
  """

  name: str
  positive: int
  uncertain: int
  negative: int
  headings: int
  precision: float | None
  recall: float | None
  kappa: float | None
  kappa_uncertain: float | None
  label_only: tuple[str, ...]
  heading_only: tuple[str, ...]


def compare(ids: Sequence[str], labels: np.ndarray, headings: np.ndarray) -> list[Row]:
  """One row per observation.

  Args:
    ids: of N reports.
    labels: int8 [N, 14].
    headings: bool [N, 14].
  """
  rows = []
  for k, name in enumerate(OBSERVATIONS):
    label, truth = labels[:, k], headings[:, k]
    positive, present = label == POSITIVE, np.isin(label, (POSITIVE, UNCERTAIN))
    rows.append(Row(
      name, *(int(np.sum(label == value)) for value in (POSITIVE, UNCERTAIN, NEGATIVE)), int(truth.sum()),
      _number(metrics.precision_score(truth, positive, zero_division=np.nan)),
      _number(metrics.recall_score(truth, positive, zero_division=np.nan)),
      _kappa(truth, positive), _kappa(truth, present),
      tuple(np.asarray(ids)[positive & ~truth].tolist()), tuple(np.asarray(ids)[truth & ~positive].tolist()),
    ))  # fmt: skip
  return rows


def measure(
  root: str | pathlib.Path, layout: str = 'auto', label: labeller.Labeller = labeller.rules
) -> tuple[list[Row], dict[str, int]]:
  """The rows of a dataset with headings, and counts of its reports.

  Raises:
    UserError: no reports, or none with headings.
  """
  studies = datasets.read(layout, root, sections='findings+impression').studies
  said = [given(study.problems) for study in studies]
  indexed = [(study, headings) for study, headings in zip(studies, said) if headings is not None]
  if not indexed:
    raise UserError(f"No report in '{root}' has headings: only the Kaggle and Open-i layouts of IU-Xray carry them.")
  labels = label([study.report for study, _ in indexed])
  rows = compare([study.id for study, _ in indexed], labels, np.stack([headings for _, headings in indexed]))
  silent = int(np.sum(np.all(labels == BLANK, axis=1)))
  return rows, {'reports': len(studies), 'with headings': len(indexed), 'without any label': silent}


def table(rows: Sequence[Row], counts: dict[str, int]) -> str:
  """The rows as text, with the mean over the observations, and over them without No Finding."""
  head = f'{"":<27}{"positive":>9}{"uncertain":>10}{"negative":>9}{"headings":>9}'
  head += f'{"precision":>10}{"recall":>8}{"kappa":>7}{"kappa, uncertain as present":>29}'
  lines = [', '.join(f'{count:,} {name}' for name, count in counts.items()), head]
  for row in rows:
    numbers = f'{row.name:<27}{row.positive:>9}{row.uncertain:>10}{row.negative:>9}{row.headings:>9}'
    lines.append(numbers + _shares(row.precision, row.recall, row.kappa, row.kappa_uncertain))
  for name, chosen in (('mean', list(rows)), ('mean without No Finding', list(rows)[:NO_FINDING])):
    means = (_mean([getattr(row, field) for row in chosen]) for field in SHARES)
    lines.append(f'{name:<64}' + _shares(*means))
  return '\n'.join(lines)


SHARES = ('precision', 'recall', 'kappa', 'kappa_uncertain')


def _shares(precision: float | None, recall: float | None, kappa: float | None, uncertain: float | None) -> str:
  texts = ('-' if value is None else f'{value:.3f}' for value in (precision, recall, kappa, uncertain))
  return ''.join(f'{text:>{width}}' for text, width in zip(texts, (10, 8, 7, 29)))


def _kappa(one: np.ndarray, other: np.ndarray) -> float | None:
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # both constant: 0 / 0
    return _number(metrics.cohen_kappa_score(one, other))


def _mean(values: Sequence[float | None]) -> float | None:
  known = [value for value in values if value is not None]
  return sum(known) / len(known) if known else None


def _number(value: Any) -> float | None:
  return None if math.isnan(value) else float(value)


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit code."""
  parser = argparse.ArgumentParser('multimodal.trrg.datasets.agreement', description=__doc__.splitlines()[0])
  parser.add_argument('--root', required=True, help='folder of the reports')
  parser.add_argument('--layout', default='auto', help=f'auto, {", ".join(datasets.LAYOUTS)}')
  parser.add_argument('--labeller', default='rules', help='rules, or a CheXbert checkpoint')
  parser.add_argument('--tokenizer', default='', help="folder of CheXbert's tokenizer")
  parser.add_argument('--output', type=pathlib.Path, help='JSON of the rows, with the reports that differ')
  arguments = parser.parse_args(argv)
  try:
    label = labeller.open(arguments.labeller, tokenizer=arguments.tokenizer)
    rows, counts = measure(arguments.root, arguments.layout, label)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return UserError.EXIT_CODE
  print(table(rows, counts))
  if arguments.output:
    content = {'counts': counts, 'rows': [dataclasses.asdict(row) for row in rows]}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(content, indent=2) + '\n')
  return 0


if __name__ == '__main__':
  sys.exit(main())
