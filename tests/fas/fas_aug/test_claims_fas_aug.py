"""The claims of FAS-Aug + SARE: well declared; and, with `-m slow`, C1-C3 trained and held against the spec."""

import json

import numpy as np
import pytest

from core import claims
from core.claims import Trained
from fas.fas_aug import claims as declared

BY_ID = {claim.id: claim for claim in declared.CLAIMS}


def test_every_claim_has_sources_controls_and_three_seeds():
  assert list(BY_ID) == ['C1', 'C2', 'C3', 'C4', 'C5']
  for claim in declared.CLAIMS:
    assert claim.source and claim.controls and claim.seeds >= 3


def test_every_variant_is_another_experiment():
  for claim in declared.CLAIMS:
    settings = {name: json.dumps(v.settings(), sort_keys=True, default=str) for name, v in claim.variants.items()}
    assert len(set(settings.values())) == len(settings), claim.id


def test_non_claims_compare_what_is_trained():
  for non_claim in declared.NON_CLAIMS:
    assert non_claim.statement and non_claim.source
    for check in non_claim.checks:
      assert set(check.variants) <= set(BY_ID[non_claim.claim].variants)


def test_the_face_world_variants_differ_from_the_embedded_config_by_what_they_are_named_after():
  def config(name):
    variant = {**BY_ID['C4'].variants, **BY_ID['C5'].variants}[name]
    assert isinstance(variant, Trained)
    return variant.settings()['config']

  assert config('ERM')['augment']['bag'] == 'none'
  assert config('traditional augmentation')['augment']['bag'] == 'trad'
  assert config('FAS-Aug')['augment']['bag'] == 'fas'
  for name in ('ERM', 'traditional augmentation', 'FAS-Aug'):
    assert config(name)['loss']['sare_weight'] == config(name)['loss']['contrastive_weight'] == 0
  assert config('FAS-Aug + SARE')['loss']['sare_weight'] == 10
  assert config('FAS-Aug + SARE')['augment'] == config('FAS-Aug')['augment']


def test_c4_and_c5_share_their_trainings():
  assert BY_ID['C4'].variants['FAS-Aug'] is BY_ID['C5'].variants['FAS-Aug']


# The spec's assertions, on the means over the seeds.


def run(claim_id, workdir, seeds=3):
  (result,) = claims.run([BY_ID[claim_id]], workdir, seeds=seeds)
  return result


def mean(result, variant, metric):
  return float(np.mean([cell[metric] for cell in result.cells[variant]]))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_c1_reproduces_the_table_of_the_spec(tmp_path):
  result = run('C1', tmp_path)
  assert result.verdict == claims.SUPPORTED
  for variant, auc in (
    ('beta 0 (ERM)', 0.743),
    ('beta 1', 0.779),
    ('beta 10', 0.872),
    ('beta 100', 0.910),
    ('beta 10, all samples (V-REx)', 0.815),
    ('beta -10', 0.2),
  ):
    assert mean(result, variant, 'target_auc') == pytest.approx(auc, abs=0.025)
