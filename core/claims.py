"""Claims: the comparisons that a paper or our spec makes, trained over several seeds and judged by one rule.

A system's `claims.py` declares `CLAIMS` (list of `Claim`) and `NON_CLAIMS` (list of `NonClaim`), which `launch.claims`
runs:

  results = claims.run(CLAIMS, workdir, seeds=3)                            # trains the missing (variant, seed) cells
  print(claims_report.write(results, NON_CLAIMS, workdir, title='Claims'))  # claims.md, claims.json, claims.png

The rule. A check compares a metric of two variants (or of a variant and a number), seed by seed. Its excess is by how
much the comparison is fulfilled: for `left >= factor * right + margin` it is left - factor * right - margin. With the
mean of the excess over the seeds and the standard error of that mean,

  supported       mean >=  2 standard errors      the comparison, its margin included, holds beyond the seeds' noise
  not supported   mean <= -2 standard errors      it fails beyond the noise
  inconclusive    in between, a single seed, or a metric that is not a number

Two standard errors are a convention, not a proof: with three seeds an effect of exactly the margin passes in one case
of eleven (P(t > 2) of Student's t with two degrees of freedom); more seeds make it sharper.

A claim is supported when all its checks are, and not supported when one is not. Its negative controls are comparisons
that must NOT hold: a control that comes out supported says that the experiment cannot tell, and then the claim is not
supported, whatever its checks say.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import math
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from core import config as config_lib
from core.atomic import write_atomically
from core.errors import UserError, nearest
from core.train import backend, loop
from core.train.checkpoint import plain

SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = 'supported', 'not supported', 'inconclusive'
RELATIONS = {'>=': 1.0, '<=': -1.0}
STANDARD_ERRORS = 2.0

Metrics = Mapping[str, float]


class Variant(Protocol):
  """One side of a comparison: a training that a seed repeats."""

  def settings(self) -> Mapping[str, Any]:
    """All that the outcome depends on beside the seed, as plain data: results of other settings are not mixed in."""

  def __call__(self, seed: int, workdir: pathlib.Path) -> Metrics:
    """Trains and measures; called again in the same folder after a kill, it may go on where it was."""


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A variant given as a function: `function(seed, workdir, **options) -> {metric: number}`.

  Its settings are its options and the code of the module that it stands in (comments and docstrings aside): a changed
  experiment starts afresh. The code of other modules does not count; delete the cells when it matters.
  """

  function: Callable[..., Metrics]
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def settings(self) -> Mapping[str, Any]:
    """The function's name, its module's code as a hash, its options."""
    name = f'{self.function.__module__}.{self.function.__qualname__}'
    return {'function': name, 'code': code_hash(self.function.__module__), 'options': dict(self.options)}

  def __call__(self, seed: int, workdir: pathlib.Path) -> Metrics:
    return self.function(seed, workdir, **self.options)


@dataclasses.dataclass(frozen=True)
class Trained:
  """A variant given as overrides of a config: the system's own task, trained on every fold, metrics averaged over them.

  Attributes:
    config: a config file with optional preset, 'configs/fas/fas_aug.py:embedded', relative to the repository.
    overrides: {'loss.sare_weight': 0.0, ...}.
    metrics: {name: '<split>/<evaluator>/<scalar>'}; each fold's own value is kept as '<name>/<fold>'.
  """

  config: str
  overrides: Mapping[str, Any]
  metrics: Mapping[str, str]

  def settings(self) -> Mapping[str, Any]:
    """The whole config, so that a changed default counts as a change, without its seed."""
    config = {key: value for key, value in plain(self._load(seed=0)).items() if key != 'seed'}
    return {'config': config, 'metrics': dict(self.metrics)}

  def __call__(self, seed: int, workdir: pathlib.Path) -> Metrics:
    config = self._load(seed)
    task_class = importlib.import_module(f'{config.system}.task').Task
    if task_class.procedural(config):
      task_class.prepare(config)
    values: dict[str, list[float]] = {name: [] for name in self.metrics}
    by_fold: dict[str, float] = {}
    for fold, fold_config in task_class.folds(config):
      task = task_class(fold_config)
      result = loop.train(task, workdir / (fold or 'run'), logger=loop.NullLogger())
      for name, value in self._measure(task, result.variables).items():
        values[name].append(value)
        by_fold |= {f'{name}/{fold}': value} if fold else {}
    return {name: float(np.mean(each)) for name, each in values.items()} | by_fold

  def _measure(self, task: Any, variables: Any) -> dict[str, float]:
    """The metrics of one fold, each evaluator run once per split."""
    evaluators, scalars = task.evaluators(), {}
    for split, evaluator in sorted({tuple(path.split('/', 2)[:2]) for path in self.metrics.values()}):
      evaluation = evaluators[evaluator](variables, split)
      scalars |= {f'{split}/{evaluator}/{name}': float(value) for name, value in evaluation.scalars.items()}
    missing = sorted(set(self.metrics.values()) - set(scalars))
    if missing:
      raise UserError(f"{self.config} gives no '{missing[0]}', only {sorted(scalars)}.{nearest(missing[0], scalars)}")
    return {name: scalars[path] for name, path in self.metrics.items()}

  def _load(self, seed: int) -> Any:
    return config_lib.load(self.config, {**self.overrides, 'seed': seed})


@dataclasses.dataclass(frozen=True)
class Check:
  """`left.metric  relation  factor * right.metric + margin`, seed by seed.

  Attributes:
    left: a variant's name.
    metric: what is compared.
    relation: '>=' or '<='.
    right: a variant's name, or a number.
    margin: by how much more (or less, where negative), in the metric's own unit.
    factor: how many times the right side.
  """

  left: str
  metric: str
  relation: str
  right: str | float
  margin: float = 0.0
  factor: float = 1.0

  def __post_init__(self):
    if self.relation not in RELATIONS:
      raise ValueError(f"Relation '{self.relation}' in a check of '{self.metric}': expected one of {list(RELATIONS)}.")

  def __str__(self) -> str:
    right = f'{self.right:g}' if isinstance(self.right, int | float) else f'[{self.right}]'
    right = right if self.factor == 1 else f'{self.factor:.3g} x {right}'
    margin = '' if self.margin == 0 else f' {"+" if self.margin > 0 else "-"} {abs(self.margin):g}'
    return f'{self.metric} of [{self.left}] {self.relation} {right}{margin}'

  @property
  def variants(self) -> tuple[str, ...]:
    """The variants that it needs."""
    return (self.left, self.right) if isinstance(self.right, str) else (self.left,)


@dataclasses.dataclass(frozen=True)
class Claim:
  """A sentence, and what must be measured for it to stand.

  Attributes:
    id: short and unique, e.g. 'C1'.
    statement: what is claimed.
    source: where it comes from: paper, section of the spec, "our choice".
    variants: {name: what to train}. Two claims may share variants: equal names and settings are trained once.
    checks: comparisons that must hold, the most telling first: its metric is the one that is plotted.
    controls: comparisons that must NOT hold.
    seeds: how many seeds, 0, 1, ...
  """

  id: str
  statement: str
  source: str
  variants: Mapping[str, Variant]
  checks: Sequence[Check]
  controls: Sequence[Check] = ()
  seeds: int = 3

  def __post_init__(self):
    if not self.checks:
      raise ValueError(f'Claim {self.id} has no checks: nothing could speak against it.')
    for check in (*self.checks, *self.controls):
      for name in check.variants:
        if name not in self.variants:
          raise ValueError(f"Claim {self.id}: '{check}' needs a variant '{name}'.{nearest(name, self.variants)}")


@dataclasses.dataclass(frozen=True)
class NonClaim:
  """A sentence that one might expect here and that we measured not to hold, or not to be shown.

  Attributes:
    statement: the sentence that we do NOT claim.
    source: where it was measured.
    claim: id of the claim whose variants it is measured on; '' without measurement.
    checks: what would have to hold for the sentence to be claimed.
    finding: what is the case instead.
  """

  statement: str
  source: str
  claim: str = ''
  checks: Sequence[Check] = ()
  finding: str = ''


@dataclasses.dataclass(frozen=True)
class Judgement:
  """A check, measured.

  Attributes:
    check: the comparison.
    left: the left metric of every seed.
    right: the right metric of every seed, before factor and margin.
    excess: mean over the seeds of how far the comparison is fulfilled; negative where it fails.
    standard_error: of that mean; NaN for a single seed.
    verdict: one of SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE.
  """

  check: Check
  left: tuple[float, ...]
  right: tuple[float, ...]
  excess: float
  standard_error: float
  verdict: str


@dataclasses.dataclass(frozen=True)
class Result:
  """A claim, measured.

  Attributes:
    claim: the declaration.
    cells: {variant: [metrics of seed 0, of seed 1, ...]}.
    checks: judgements of the claim's checks.
    controls: judgements of its controls: good when their verdict is NOT_SUPPORTED.
    verdict: of the whole.
  """

  claim: Claim
  cells: Mapping[str, Sequence[Metrics]]
  checks: Sequence[Judgement]
  controls: Sequence[Judgement]
  verdict: str


def judge(check: Check, cells: Mapping[str, Sequence[Metrics]]) -> Judgement:
  """Measures a check on {variant: [metrics of each seed]}, paired by seed; the rule is in the module's docstring."""
  left = np.array([_metric(metrics, check, check.left) for metrics in cells[check.left]], np.float64)
  if isinstance(check.right, str):
    right = np.array([_metric(metrics, check, check.right) for metrics in cells[check.right]], np.float64)
  else:
    right = np.full(left.shape, float(check.right))
  each = RELATIONS[check.relation] * (left - check.factor * right - check.margin)
  excess = float(np.round(each.mean(), 12))  # sums of decimals: 0.3 - 0.1 - 0.2 counts as 0
  error = float(each.std(ddof=1) / math.sqrt(len(each))) if len(each) > 1 else math.nan
  if not math.isfinite(excess) or not math.isfinite(error):
    verdict = INCONCLUSIVE
  elif excess >= STANDARD_ERRORS * error:
    verdict = SUPPORTED
  elif excess <= -STANDARD_ERRORS * error:
    verdict = NOT_SUPPORTED
  else:
    verdict = INCONCLUSIVE
  return Judgement(check, tuple(left.tolist()), tuple(right.tolist()), excess, error, verdict)


def assess(claim: Claim, cells: Mapping[str, Sequence[Metrics]]) -> Result:
  """Judges a claim's checks and controls on the cells of its variants."""
  checks = [judge(check, cells) for check in claim.checks]
  controls = [judge(check, cells) for check in claim.controls]
  # What a control must come out as is the opposite of a check; inconclusive stays inconclusive.
  opposite = {SUPPORTED: NOT_SUPPORTED, NOT_SUPPORTED: SUPPORTED, INCONCLUSIVE: INCONCLUSIVE}
  verdicts = {*(j.verdict for j in checks), *(opposite[j.verdict] for j in controls)}
  verdict = next((v for v in (NOT_SUPPORTED, INCONCLUSIVE) if v in verdicts), SUPPORTED)
  return Result(claim, {name: list(cells[name]) for name in claim.variants}, checks, controls, verdict)


def run(
  claims: Sequence[Claim],
  workdir: str | pathlib.Path,
  *,
  only: Iterable[str] = (),
  seeds: int | None = None,
  log: Callable[[str], None] = print,
) -> list[Result | Claim]:
  """Trains the cells that are missing and judges; run again in the same folder, it goes on where it was stopped.

  Args:
    claims: the system's claims.
    workdir: every (variant, seed) cell is a JSON file under `workdir / 'cells'`, written when the cell is done.
    only: ids of the claims to train; all when empty. Other claims are judged too where their cells exist already.
    seeds: number of seeds instead of each claim's own.
    log: gets a line per trained cell.

  Returns:
    In the order of `claims`: a `Result`, or the `Claim` itself while it lacks cells.

  Raises:
    UserError: an id in `only` is unknown, or a training failed for a reason that a user can mend.
  """
  known, only = [claim.id for claim in claims], list(only)
  for wanted in only:
    if wanted not in known:
      raise UserError(f"There is no claim '{wanted}'; there are {', '.join(known)}.{nearest(wanted, known)}")
  if seeds is not None and seeds < 1:
    raise UserError(f'{seeds} seeds asked for; expected 1 or more (a verdict needs at least 2).')
  results: list[Result | Claim] = []
  for claim in claims:
    store = _Cells(pathlib.Path(workdir), log)
    numbers = range(claim.seeds if seeds is None else seeds)
    if not only or claim.id in only:
      for seed in numbers:  # seed after seed, so that a run that is stopped early has seen every variant
        for name, variant in claim.variants.items():
          store.get(claim.id, name, variant, seed)
    cells = {name: [store.find(name, v, seed) for seed in numbers] for name, v in claim.variants.items()}
    complete = all(metrics is not None for each in cells.values() for metrics in each)
    results.append(assess(claim, cells) if complete else claim)
  return results


def slug(text: str) -> str:
  """A name for a file: lower-case letters, digits and single dashes."""
  return '-'.join(''.join(c if c.isalnum() else ' ' for c in text.lower()).split())


@functools.cache
def code_hash(module: str) -> str:
  """Ten digits that change with the code of an imported module, but not with its comments, docstrings and layout."""
  tree = ast.parse(inspect.getsource(sys.modules[module]))
  for node in ast.walk(tree):
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
      node.value.value = ''
  return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:10]


class _Cells:
  """The JSON files of trained cells: <variant>-<hash of its settings>-seed<k>.json."""

  def __init__(self, workdir: pathlib.Path, log: Callable[[str], None]):
    self.folder, self.log = workdir / 'cells', log

  def path(self, name: str, variant: Variant, seed: int) -> pathlib.Path:
    """Where a cell lies; another name for other settings."""
    text = json.dumps(variant.settings(), sort_keys=True)
    return self.folder / f'{slug(name)}-{hashlib.sha256(text.encode()).hexdigest()[:10]}-seed{seed}.json'

  def find(self, name: str, variant: Variant, seed: int) -> Metrics | None:
    """The metrics of a cell, or None when it is missing or cannot be read."""
    path = self.path(name, variant, seed)
    if not path.exists():
      return None
    metrics = _read(path).get('metrics')
    if metrics is None:
      self.log(f'{path} is not a result (torn or edited): it counts as missing.')
    return metrics

  def get(self, claim: str, name: str, variant: Variant, seed: int) -> Metrics:
    """The metrics of a cell, trained now if they are missing."""
    metrics = self.find(name, variant, seed)
    if metrics is not None:
      return metrics
    path = self.path(name, variant, seed)
    for other in sorted(self.folder.glob(f'{slug(name)}-{"?" * 10}-seed{seed}.json')):
      if other != path and _read(other).get('trained_for') == [claim, name]:
        self.log(f'{claim} [{name}] seed {seed}: settings have changed, so {other.name} is not used.')
    scratch, begun = path.with_suffix('.run'), time.monotonic()
    scratch.mkdir(parents=True, exist_ok=True)
    metrics = {key: float(value) for key, value in variant(seed, scratch).items()}
    seconds = round(time.monotonic() - begun, 1)
    cell = {'trained_for': [claim, name], 'seed': seed, 'metrics': metrics, 'seconds': seconds}
    cell |= {'settings': variant.settings(), 'machine': backend.summary()}
    write_atomically(path, json.dumps(cell, indent=1, sort_keys=True))
    shutil.rmtree(scratch, ignore_errors=True)  # another process may have trained the same cell
    jax.clear_caches()  # every training compiles a step of its own: hundreds of them would fill the memory
    shown = ', '.join(f'{key} {value:.3f}' for key, value in metrics.items() if '/' not in key)
    self.log(f'{claim} [{name}] seed {seed}: {shown} ({seconds} s)')
    return metrics


def _read(path: pathlib.Path) -> dict[str, Any]:
  """A cell's file; {} when it is not one."""
  try:
    cell = json.loads(path.read_text())
  except ValueError:
    return {}
  return cell if isinstance(cell, dict) else {}


def _metric(metrics: Metrics, check: Check, variant: str) -> float:
  if check.metric not in metrics:
    raise ValueError(f"[{variant}] measures {sorted(metrics)}, but a check needs '{check.metric}': {check}.")
  return metrics[check.metric]
