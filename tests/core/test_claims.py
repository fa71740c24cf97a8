"""The claims engine: three verdicts, controls, resuming, changed settings, files that are whole or absent."""

import importlib
import json
import linecache
import math
import sys
import types

import ml_collections
import numpy as np
import pytest

from core import claims, claims_report
from core.claims import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED, Check, Claim, Experiment, NonClaim
from core.errors import UserError
from core.train.task import Evaluation, Stage, Task

TRAINED: list[tuple[str, int]] = []


def measure(seed, workdir, *, name='', values=(0.0, 0.0, 0.0), stop_at=None):
  """A variant that 'trains' by looking its result up."""
  TRAINED.append((name, seed))
  (workdir / 'checkpoint').write_text('something that a training leaves')
  if stop_at == seed:
    raise UserError('stopped')
  return {'auc': values[seed], 'hter': 1 - values[seed]}


def variant(name, *values, **options):
  return Experiment(measure, {'name': name, 'values': values, **options})


@pytest.fixture(autouse=True)
def nothing_trained():
  TRAINED.clear()


def cells(**values):
  return {name: [{'auc': value} for value in each] for name, each in values.items()}


BETTER = Check('new', 'auc', '>=', 'old', margin=0.1)


@pytest.mark.parametrize(
  'new, verdict',
  [
    ((0.81, 0.82, 0.83), SUPPORTED),  # excess .01 .02 .03: mean .02, standard error .0058
    ((0.81, 0.82, 0.74), INCONCLUSIVE),  # the margin is missed on the mean, within noise
    ((0.75, 0.86, 0.79), INCONCLUSIVE),  # the margin is met on the mean, within noise
    ((0.71, 0.72, 0.73), NOT_SUPPORTED),  # better, but not by the margin
    ((0.8, 0.8, 0.8), SUPPORTED),  # exactly the margin, without spread
    ((0.9, 0.9, math.nan), INCONCLUSIVE),
  ],
)
def test_a_check_is_judged_by_its_mean_against_two_standard_errors(new, verdict):
  assert claims.judge(BETTER, cells(new=new, old=(0.7, 0.7, 0.7))).verdict == verdict


def test_the_excess_is_paired_by_seed_and_its_error_is_that_of_the_mean():
  judgement = claims.judge(BETTER, cells(new=(0.5, 0.7, 0.95), old=(0.3, 0.5, 0.7)))
  assert judgement.excess == pytest.approx(np.mean([0.1, 0.1, 0.15]))
  assert judgement.standard_error == pytest.approx(np.std([0.1, 0.1, 0.15], ddof=1) / np.sqrt(3))
  assert judgement.verdict == SUPPORTED  # although the seeds themselves spread far more than the margin


def test_one_seed_decides_nothing():
  judgement = claims.judge(BETTER, cells(new=(0.99,), old=(0.5,)))
  assert judgement.verdict == INCONCLUSIVE and math.isnan(judgement.standard_error)


def test_relations_factors_and_numbers():
  measured = cells(new=(0.1, 0.1), old=(0.4, 0.4))
  assert claims.judge(Check('new', 'auc', '<=', 'old', factor=1 / 3), measured).verdict == SUPPORTED
  assert claims.judge(Check('new', 'auc', '<=', 'old', factor=0.2), measured).verdict == NOT_SUPPORTED
  assert claims.judge(Check('new', 'auc', '>=', 0.5), measured).excess == pytest.approx(-0.4)
  assert claims.judge(Check('new', 'auc', '<=', 'old', margin=-0.35), measured).verdict == NOT_SUPPORTED
  assert str(Check('a', 'auc', '<=', 'b', margin=-0.02, factor=0.5)) == 'auc of [a] <= 0.5 x [b] - 0.02'


def claim_of(new, control, check=BETTER):
  fails = Check('control', 'auc', '>=', 'old', margin=0.1)
  return Claim('T1', 'New is better.', 'a test', {'new': None, 'old': None, 'control': None}, [check], [fails]), cells(
    new=new, old=(0.7, 0.7, 0.7), control=control
  )


@pytest.mark.parametrize(
  'new, control, verdict',
  [
    ((0.9, 0.9, 0.91), (0.6, 0.6, 0.61), SUPPORTED),
    ((0.9, 0.9, 0.91), (0.9, 0.9, 0.91), NOT_SUPPORTED),  # the control does as well: the experiment cannot tell
    ((0.9, 0.9, 0.91), (0.7, 0.9, 0.8), INCONCLUSIVE),
    ((0.7, 0.7, 0.71), (0.6, 0.6, 0.61), NOT_SUPPORTED),
    ((0.75, 0.86, 0.79), (0.9, 0.9, 0.91), NOT_SUPPORTED),  # the worst verdict wins
  ],
)
def test_a_claim_needs_its_checks_and_the_failure_of_its_controls(new, control, verdict):
  assert claims.assess(*claim_of(new, control)).verdict == verdict


def test_a_claim_that_nothing_could_refute_is_refused():
  with pytest.raises(ValueError, match='no checks'):
    Claim('T1', 'x', 'y', {}, [])
  with pytest.raises(ValueError, match=r"Did you mean 'new'"):
    Claim('T1', 'x', 'y', {'new': None, 'old': None}, [Check('mew', 'auc', '>=', 'old')])
  with pytest.raises(ValueError, match='expected one of'):
    Check('a', 'auc', '==', 'b')


def test_a_metric_that_was_not_measured_is_named():
  with pytest.raises(ValueError, match=r"measures \['auc'\].*'eer'"):
    claims.judge(Check('new', 'eer', '>=', 0.5), cells(new=(0.5, 0.5)))


# Cells.


def two(new=(0.9, 0.91, 0.92), old=(0.7, 0.7, 0.7), **options):
  return Claim(
    'T1',
    'New is better.',
    'a test',
    {'new': variant('new', *new, **options), 'old': variant('old', *old)},
    [BETTER],
    [Check('old', 'auc', '>=', 0.8)],
  )


def quiet(line):
  del line


def test_only_missing_cells_are_trained(tmp_path):
  (first,) = claims.run([two()], tmp_path, seeds=2, log=quiet)
  assert sorted(TRAINED) == [('new', 0), ('new', 1), ('old', 0), ('old', 1)]
  TRAINED.clear()
  (second,) = claims.run([two()], tmp_path, log=quiet)  # the claim's own three seeds
  assert sorted(TRAINED) == [('new', 2), ('old', 2)]
  assert first.verdict == second.verdict == SUPPORTED
  assert [metrics['auc'] for metrics in second.cells['new']] == [0.9, 0.91, 0.92]


def test_a_stopped_run_goes_on(tmp_path):
  with pytest.raises(UserError, match='stopped'):
    claims.run([two(stop_at=1)], tmp_path, log=quiet)
  done = {path.name.rsplit('-', 1)[1] for path in (tmp_path / 'cells').glob('*.json')}
  assert done == {'seed0.json'}  # seed after seed: both variants of the first
  assert len(list((tmp_path / 'cells').glob('*.run'))) == 1  # what the stopped training left, for it to go on from
  TRAINED.clear()
  claims.run([two()], tmp_path, log=quiet)
  assert ('old', 0) not in TRAINED and ('old', 1) in TRAINED


def test_the_folder_of_a_training_outlives_a_stop_and_not_its_success(tmp_path):
  seen = []

  def train(seed, workdir):
    seen.append((workdir / 'step').exists())
    (workdir / 'step').write_text('1')
    if len(seen) == 1:
      raise KeyboardInterrupt
    return {'auc': 0.5}

  claim = Claim('T1', 'x', 'y', {'a': Experiment(train)}, [Check('a', 'auc', '>=', 0.4)], seeds=1)
  with pytest.raises(KeyboardInterrupt):
    claims.run([claim], tmp_path, log=quiet)
  claims.run([claim], tmp_path, log=quiet)
  assert seen == [False, True]
  assert [path.suffix for path in (tmp_path / 'cells').iterdir()] == ['.json']


def test_cells_of_other_settings_are_not_mixed_in(tmp_path):
  claims.run([two()], tmp_path, log=quiet)
  TRAINED.clear()
  lines = []
  (changed,) = claims.run([two(new=(0.71, 0.72, 0.73))], tmp_path, log=lines.append)
  assert {name for name, _ in TRAINED} == {'new'}
  assert changed.verdict == NOT_SUPPORTED
  assert any('settings have changed' in line for line in lines)


def test_changed_code_counts_as_a_change_and_a_comment_does_not(tmp_path, monkeypatch):
  def digest(source):
    (tmp_path / 'experiment.py').write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'experiment', raising=False)
    importlib.invalidate_caches()
    linecache.clearcache()
    sys.modules['experiment'] = importlib.import_module('experiment')
    claims.code_hash.cache_clear()
    return claims.code_hash('experiment')

  first = digest('"""One."""\nRATE = 0.1\n')
  assert digest('"""Another."""\n# why\nRATE  =  0.1\n') == first
  assert digest('"""One."""\nRATE = 0.2\n') != first


def test_claims_share_equal_variants_without_confusing_equal_names(tmp_path):
  shared = two()
  other = Claim('T2', 'x', 'y', {'new': variant('other', 0.1, 0.1, 0.1), 'old': shared.variants['old']}, [BETTER])
  lines = []
  first, second = claims.run([shared, other], tmp_path, log=lines.append)
  assert TRAINED.count(('old', 0)) == 1
  assert (first.verdict, second.verdict) == (SUPPORTED, NOT_SUPPORTED)
  assert not any('settings have changed' in line for line in lines)


def test_a_torn_cell_counts_as_missing(tmp_path):
  claims.run([two()], tmp_path, log=quiet)
  (path,) = (tmp_path / 'cells').glob('new-*-seed1.json')
  path.write_text(path.read_text()[:40])
  TRAINED.clear()
  lines = []
  claims.run([two()], tmp_path, log=lines.append)
  assert TRAINED == [('new', 1)] and any('torn' in line for line in lines)


def test_only_trains_the_named_claims_but_judges_what_there_is(tmp_path):
  other = Claim('T2', 'x', 'y', {'b': variant('b', 0.5, 0.5, 0.5)}, [Check('b', 'auc', '>=', 0.4)])
  _, second = claims.run([two(), other], tmp_path, only=['T2'], log=quiet)
  assert {name for name, _ in TRAINED} == {'b'} and second.verdict == SUPPORTED
  TRAINED.clear()
  first, second = claims.run([two(), other], tmp_path, only=['T1'], log=quiet)
  assert {name for name, _ in TRAINED} == {'new', 'old'}
  assert (first.verdict, second.verdict) == (SUPPORTED, SUPPORTED)
  with pytest.raises(UserError, match=r'T1, T2.*Did you mean'):
    claims.run([two(), other], tmp_path, only=['T11'], log=quiet)
  with pytest.raises(UserError, match='0 seeds'):
    claims.run([two()], tmp_path, seeds=0, log=quiet)


# What is written.


def test_the_report_shows_every_seed_and_the_honest_non_claims(tmp_path):
  results = claims.run([two(), Claim('T2', 'not yet', 'y', two().variants, [BETTER], seeds=3)], tmp_path, log=quiet)
  non_claims = [
    NonClaim('Old reaches .8.', 'a test', 'T1', [Check('old', 'auc', '>=', 0.8)]),
    NonClaim('New reaches .8.', 'a test', 'T1', [Check('new', 'auc', '>=', 0.8)]),
    NonClaim('All is well.', 'hearsay', finding='It is not.'),
  ]
  text = claims_report.write(results, non_claims, tmp_path, title='Claims of a test')
  assert text == (tmp_path / 'claims.md').read_text()
  assert '0.910 +- 0.010 (0.900 0.910 0.920)' in text
  assert (
    'Old reaches .8.' in text
    and 'does not hold' in text
    and 'HOLDS HERE' in text
    and '"All is well." (hearsay) It is not.' in text
  )
  assert 'fails, as it must' in text
  data = json.loads((tmp_path / 'claims.json').read_text())
  assert data['claims'][0]['cells']['new'][1]['auc'] == 0.91
  assert data['claims'][0]['verdict'] == SUPPORTED
  assert data['non_claims'][0]['checks'][0]['verdict'] == 'does not hold'
  assert (tmp_path / 'claims.png').read_bytes().startswith(b'\x89PNG')


def test_a_claim_without_its_cells_is_reported_as_not_run(tmp_path):
  claim = two()
  text = claims_report.write([claim], [NonClaim('x', 'y', 'T1', [BETTER])], tmp_path, title='t')
  assert '| T1 | **not run** |' in text
  assert json.loads((tmp_path / 'claims.json').read_text())['claims'][0]['verdict'] == 'not run'


def test_json_has_no_nan(tmp_path):
  results = claims.run([two(new=(0.9, math.nan, 0.9))], tmp_path, log=quiet)
  claims_report.write(results, [], tmp_path, title='t')
  data = json.loads((tmp_path / 'claims.json').read_text(), parse_constant=pytest.fail)
  assert data['claims'][0]['cells']['new'][1]['auc'] is None
  assert data['claims'][0]['verdict'] == INCONCLUSIVE


# Variants that are overrides of a config.

CONFIG = """
from ml_collections import ConfigDict

def get_config(preset='embedded'):
  return ConfigDict({
    'system': 'house.toy', 'seed': 0, 'gain': 1.0, 'folds': ('a', 'b'), 'fold': '',
    'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
    'train': {'log_every': 1, 'eval_every': 0, 'checkpoint_every': 0, 'keep': 1},
  })
"""


class ToyTask(Task):
  """Its one stage multiplies a number by `gain`; the folds differ by a constant."""

  prepared = 0

  @classmethod
  def procedural(cls, config):
    return True

  @classmethod
  def prepare(cls, config):
    cls.prepared += 1
    return []

  @classmethod
  def folds(cls, config):
    runs = []
    for name in config.folds:
      fold = ml_collections.ConfigDict(config.to_dict())
      fold.fold = name
      runs.append((f'to_{name}', fold))
    return runs

  def init(self, rng):
    return {'params': {'x': np.ones((), np.float32)}}

  def stages(self):
    return [Stage('only', run=lambda context: {'params': {'x': context.variables['params']['x'] * self.config.gain}})]

  def evaluators(self):
    shift = {'a': 0.0, 'b': 0.5}[self.config.fold]

    def judge(variables, split):
      assert split == 'test'
      return Evaluation({'frame/auc': float(variables['params']['x']) + shift + self.config.seed})

    return {'rates': judge}


@pytest.fixture
def toy(tmp_path, monkeypatch):
  """A config file, and the system it names."""
  (tmp_path / 'toy.py').write_text(CONFIG)
  module = types.ModuleType('house.toy.task')
  module.Task = ToyTask
  ToyTask.prepared = 0
  monkeypatch.setitem(sys.modules, 'house.toy.task', module)
  return str(tmp_path / 'toy.py')


def test_a_config_variant_trains_every_fold_and_averages(toy, tmp_path):
  trained = claims.Trained(toy, {'gain': 3.0}, {'auc': 'test/rates/frame/auc'})
  metrics = trained(2, tmp_path / 'run')
  assert metrics == {'auc': 5.25, 'auc/to_a': 5.0, 'auc/to_b': 5.5}
  assert ToyTask.prepared == 1
  assert (tmp_path / 'run' / 'to_b').is_dir()


def test_the_settings_of_a_config_variant_are_its_whole_config_without_the_seed(toy):
  settings = claims.Trained(toy, {'gain': 3.0}, {'auc': 'x'}).settings()
  assert settings['config']['gain'] == 3.0 and settings['config']['train']['keep'] == 1
  assert 'seed' not in settings['config']
  json.dumps(settings)


def test_a_mistyped_metric_is_answered_with_the_nearest(toy, tmp_path):
  trained = claims.Trained(toy, {}, {'auc': 'test/rates/frame/acu'})
  with pytest.raises(UserError, match=r"Did you mean 'test/rates/frame/auc'"):
    trained(0, tmp_path / 'run')
