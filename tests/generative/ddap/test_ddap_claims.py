"""DDAP's claims: what they declare, and the experiment behind them, on a tiny world."""

import numpy as np
import pytest
from small_ddap import SMALL

from core.claims import Claim, judge
from core.errors import UserError
from generative.ddap import mechanisms, methods
from generative.ddap.claims import CLAIMS, NON_CLAIMS

TINY = {key: value for key, value in SMALL.items() if key != 'protect.methods'} | {'method.outer': 2}


@pytest.fixture(scope='module')
def cells(tmp_path_factory, smaller_networks):
  """Metrics of three cells that share a world, and its folder."""
  folder = tmp_path_factory.mktemp('claims') / 'cells'
  config = {**TINY, 'data.records': str(tmp_path_factory.mktemp('records'))}
  cell = lambda name, *args, **options: mechanisms.measured(0, folder / name, *args, config=config, **options)  # noqa: E731
  return folder, {
    'SPL + mask': cell('a', 'spl+mask'),
    'SPL + mask, mask ignored': cell('b', 'spl+mask', control='mask ignored'),
    'FPL, every coefficient': cell('c', 'fpl', {'k0': 0}),
    'FPL': cell('d', 'fpl', transfer=True),
  }


def test_the_experiment_measures_all_that_the_claims_compare(cells):
  _, found = cells
  comparisons = [(each, {**c.variants}) for c in CLAIMS for each in (*c.checks, *c.controls)]
  variants = {name: variant for claim in CLAIMS for name, variant in claim.variants.items()}
  comparisons += [(each, variants) for n in NON_CLAIMS for each in n.checks]
  for check, given in comparisons:
    for side in (check.left, check.right):
      if isinstance(side, str):
        with_transfer = given[side].options.get('transfer', False)
        assert check.metric in found['FPL' if with_transfer else 'SPL + mask'], (check, side)
  for metrics in found.values():
    assert all(np.isscalar(value) for value in metrics.values())
  assert 'transfer_R' not in found['SPL + mask']


def test_a_world_is_made_once_for_all_methods(cells):
  folder, _ = cells
  shared = list((folder / 'shared').iterdir())
  assert len(shared) == 1 and (shared[0] / 'bases.json').exists()


def test_the_controls_of_the_mask_and_of_the_spectrum_fail(cells):
  _, found = cells
  assert found['SPL + mask']['outside'] == 0 < found['SPL + mask, mask ignored']['outside']
  assert found['SPL + mask']['psnr'] > found['SPL + mask, mask ignored']['psnr'] + 1
  assert found['FPL']['hf_share'] > 0.85 > found['FPL, every coefficient']['hf_share'] - 0.1
  assert found['FPL']['hf_share'] > found['FPL, every coefficient']['hf_share']


def test_a_flipped_method_goes_the_other_way():
  method = methods.build('ddap', outer=2)
  flipped = mechanisms._controlled(method, 'sign flipped')
  for row, other in zip(method.rows(1), flipped.rows(1), strict=True):
    assert row[0] == other[0] and [-value for value in row[1:]] == list(other[1:])
  assert mechanisms._controlled(method, '') is method
  assert flipped.steps == method.steps and flipped.unet == method.unet


def test_unknown_controls_are_refused(tmp_path):
  with pytest.raises(UserError, match="no control 'sign flip'.*Did you mean 'sign flipped'"):
    mechanisms.measured(0, tmp_path, 'ddap', control='sign flip')


def test_the_numbers_of_the_spec_pass_the_claims():
  """The reference run of spec 9c, as cells of three equal seeds: every check of the spec's own assertions holds."""
  columns = ('psnr', 'hf_share', 'face_latent', 'decoded_hf_share', 'R', 'transfer_effect', 'effect')
  table = {
    'random': (26.1, 0.835, 0.008, 0.105, 0.05, 0.0007, 0.0010),
    'FPL': (27.2, 0.950, 0.023, 0.256, 0.11, 0.0022, 0.0024),
    'ASPL': (26.9, 0.373, 0.075, 0.150, 0.45, 0.0094, 0.0094),
    'SPL': (26.4, 0.381, 0.108, 0.182, 0.55, 0.0110, 0.0114),
    'DDAP': (26.9, 0.622, 0.078, 0.205, 0.44, 0.0090, 0.0093),
    'SPL + mask': (31.5, 0.443, 0.079, 0.217, 0.23, 0.0047, 0.0048),
    'ASPL + mask': (32.2, 0.427, 0.055, 0.181, 0.09, 0.0026, 0.0019),
  }
  cells = {name: dict(zip(columns, row), outside=0.0) for name, row in table.items()}
  for metrics in cells.values():
    metrics['transfer_share'] = metrics['transfer_effect'] / metrics['effect']
  for claim in CLAIMS[:6]:
    assert isinstance(claim, Claim) and claim.controls
    for check in claim.checks:
      verdict = judge(check, {name: [metrics] * 3 for name, metrics in cells.items()}).verdict
      assert verdict == 'supported', (claim.id, str(check))
  for each in (n for n in NON_CLAIMS if n.claim in ('P3', 'P6')):
    for check in each.checks:
      assert judge(check, {name: [metrics] * 3 for name, metrics in cells.items()}).verdict == 'not supported'
