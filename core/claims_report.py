"""What a run of claims leaves: claims.md for reading, claims.json for programs, claims.png for looking at.

All three show every seed of every variant.
"""

from __future__ import annotations

import io
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from core.atomic import write_atomically
from core.claims import (
  INCONCLUSIVE,
  NOT_SUPPORTED,
  SUPPORTED,
  Claim,
  Judgement,
  NonClaim,
  Result,
  judge,
)

NOT_RUN = 'not run'
CONTROL_WORDS = {
  NOT_SUPPORTED: 'fails, as it must',
  SUPPORTED: 'HOLDS, although it must not',
  INCONCLUSIVE: INCONCLUSIVE,
}
NON_CLAIM_WORDS = {NOT_SUPPORTED: 'does not hold', SUPPORTED: 'HOLDS HERE: reconsider', INCONCLUSIVE: 'not shown'}
COLOURS = {SUPPORTED: '#2b7a4b', NOT_SUPPORTED: '#b3322c', INCONCLUSIVE: '#a67c00', NOT_RUN: '#777777'}


def write(
  results: Sequence[Result | Claim], non_claims: Sequence[NonClaim], workdir: str | pathlib.Path, *, title: str
) -> str:
  """Writes the three files into `workdir` and returns the text of claims.md.

  Args:
    results: what `core.claims.run` returned; a bare `Claim` is one that lacks cells.
    non_claims: measured on the claims they name, where those have been run.
    workdir: folder for the files.
    title: heading.
  """
  workdir = pathlib.Path(workdir)
  by_id = {result.claim.id: result for result in results if isinstance(result, Result)}
  denied = [(each, _judge_non_claim(each, by_id)) for each in non_claims]
  text = _markdown(results, denied, title)
  write_atomically(workdir / 'claims.md', text)
  write_atomically(workdir / 'claims.json', json.dumps(_plain(results, denied), indent=1, allow_nan=False))
  if by_id:
    write_atomically(workdir / 'claims.png', _png(list(by_id.values())))
  return text


def verdict_of(result: Result | Claim) -> str:
  """The verdict, or 'not run'."""
  return result.verdict if isinstance(result, Result) else NOT_RUN


def _judge_non_claim(non_claim: NonClaim, by_id: Mapping[str, Result]) -> list[Judgement]:
  result = by_id.get(non_claim.claim)
  return [judge(check, result.cells) for check in non_claim.checks] if result else []


# claims.md


def _markdown(results, denied, title: str) -> str:
  lines = [f'# {title}', '', '| claim | verdict | statement |', '|---|---|---|']
  for each in results:
    claim = each.claim if isinstance(each, Result) else each
    lines.append(f'| {claim.id} | **{verdict_of(each)}** | {claim.statement} |')
  for each in results:
    lines += ['', *(_claim_lines(each) if isinstance(each, Result) else [f'## {each.id}: {NOT_RUN}'])]
  if denied:
    lines += ['', '## What we do not claim', '']
  for non_claim, judgements in denied:
    finding = f' {non_claim.finding}' if non_claim.finding else ''
    lines.append(f'- Not claimed: "{non_claim.statement}" ({non_claim.source}){finding}')
    lines += [f'  - {_judgement_line(j)}: {NON_CLAIM_WORDS[j.verdict]}' for j in judgements]
  lines += [
    '',
    'Excess: how far a comparison is fulfilled, mean over the seeds +- its standard error. Beyond two standard',
  ]
  lines += ['errors it is supported or not supported, within them inconclusive (core/claims.py).', '']
  return '\n'.join(lines)


def _claim_lines(result: Result) -> list[str]:
  claim = result.claim
  seeds = len(next(iter(result.cells.values())))
  lines = [f'## {claim.id}: {result.verdict}', '', f'{claim.statement} ({claim.source}; {seeds} seeds)', '']
  metrics = _metrics(result)
  lines += [f'| variant | {" | ".join(metrics)} |', '|---' * (len(metrics) + 1) + '|']
  for name, cells in result.cells.items():
    entries = [_spread([cell.get(metric, math.nan) for cell in cells]) for metric in metrics]
    lines.append(f'| {name} | {" | ".join(entries)} |')
  lines.append('')
  lines += [f'- {_judgement_line(j)}: **{j.verdict}**' for j in result.checks]
  lines += [f'- control: {_judgement_line(j)}: **{CONTROL_WORDS[j.verdict]}**' for j in result.controls]
  return lines


def _judgement_line(judgement: Judgement) -> str:
  right = '' if not isinstance(judgement.check.right, str) else f' against {np.mean(judgement.right):.3f}'
  return (
    f'{judgement.check}: {np.mean(judgement.left):.3f}{right}, excess {judgement.excess:+.3f} +-'
    f' {judgement.standard_error:.3f}'
  )


def _spread(values: Sequence[float]) -> str:
  """'0.872 +- 0.004 (0.868 0.872 0.876)': mean, standard deviation over the seeds, every seed."""
  deviation = np.std(values, ddof=1) if len(values) > 1 else math.nan
  return f'{np.mean(values):.3f} +- {deviation:.3f} ({" ".join(f"{v:.3f}" for v in values)})'


def _metrics(result: Result) -> list[str]:
  """The metrics to show: those that checks use first, then the rest; parts ('auc/fold') only in the JSON."""
  used = [j.check.metric for j in (*result.checks, *result.controls)]
  measured = [name for cells in result.cells.values() for name in cells[0] if '/' not in name]
  return list(dict.fromkeys([*used, *measured]))


# claims.json


def _plain(results, denied) -> dict[str, Any]:
  claims = []
  for each in results:
    claim = each.claim if isinstance(each, Result) else each
    entry = {'id': claim.id, 'statement': claim.statement, 'source': claim.source, 'verdict': verdict_of(each)}
    if isinstance(each, Result):
      entry['cells'] = {
        name: [{k: _number(v) for k, v in cell.items()} for cell in cells] for name, cells in each.cells.items()
      }
      entry['checks'] = [_plain_judgement(j, j.verdict) for j in each.checks]
      entry['controls'] = [_plain_judgement(j, CONTROL_WORDS[j.verdict]) for j in each.controls]
    claims.append(entry)
  non_claims = [
    {
      'statement': non_claim.statement,
      'source': non_claim.source,
      'finding': non_claim.finding,
      'checks': [_plain_judgement(j, NON_CLAIM_WORDS[j.verdict]) for j in judgements],
    }
    for non_claim, judgements in denied
  ]
  return {'claims': claims, 'non_claims': non_claims}


def _plain_judgement(judgement: Judgement, words: str) -> dict[str, Any]:
  return {
    'check': str(judgement.check),
    'left': [_number(v) for v in judgement.left],
    'right': [_number(v) for v in judgement.right],
    'excess': _number(judgement.excess),
    'standard_error': _number(judgement.standard_error),
    'verdict': words,
  }


def _number(value: float) -> float | None:
  """JSON has no NaN."""
  return value if math.isfinite(value) else None


# claims.png


def _png(results: Sequence[Result]) -> bytes:
  """One panel per claim: every seed a dot, the mean a bar, per variant; the metric is that of the first check."""
  rows = [len(result.cells) for result in results]
  figure = Figure(figsize=(8, 0.38 * sum(rows) + 1.3 * len(rows)), layout='constrained')
  panels = figure.subplots(len(results), 1, squeeze=False, height_ratios=[n + 1 for n in rows])[:, 0]
  for panel, result in zip(panels, results):
    metric, colour = result.claim.checks[0].metric, COLOURS[result.verdict]
    for row, cells in enumerate(result.cells.values()):
      values = [cell.get(metric, math.nan) for cell in cells]
      panel.plot(values, [row] * len(values), 'o', color=colour, alpha=0.55, markeredgewidth=0)
      panel.plot([np.mean(values)] * 2, [row - 0.3, row + 0.3], color=colour, linewidth=2)
    panel.set_yticks(range(len(result.cells)), list(result.cells))
    panel.invert_yaxis()
    panel.set_ylim(len(result.cells) - 0.4, -0.6)
    panel.set_xlabel(metric.replace('_', ' '))
    panel.set_title(f'{result.claim.id}: {result.verdict}', loc='left', color=colour, fontsize=11)
    panel.grid(axis='x', alpha=0.3)
    panel.spines[['top', 'right']].set_visible(False)
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=130)
  return buffer.getvalue()
