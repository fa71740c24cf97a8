"""Clinical efficacy against scikit-learn, in all three conventions."""

import numpy as np
import pytest
import sklearn.metrics

from core.errors import UserError
from multimodal.trrg import clinical
from multimodal.trrg.observations import BLANK, FIVE, NEGATIVE, NO_FINDING, OBSERVATIONS, POSITIVE, UNCERTAIN


@pytest.fixture(scope='module')
def labels():
  """Two label sets that agree often; some rows and one class have no positive at all."""
  rng = np.random.default_rng(1)
  reference = rng.choice([BLANK, POSITIVE, NEGATIVE, UNCERTAIN], (60, 14), p=[0.4, 0.2, 0.3, 0.1]).astype(np.int8)
  found = np.where(rng.random((60, 14)) < 0.3, rng.permutation(reference), reference)
  reference[:5] = NEGATIVE
  found[3:8] = UNCERTAIN
  reference[:, 6] = found[:, 6] = BLANK
  return found, reference


@pytest.mark.parametrize(
  ('name', 'average', 'columns'),
  [
    ('example', 'samples', range(14)),
    ('micro', 'micro', range(14)),
    ('macro', 'macro', range(14)),
    ('macro_13', 'macro', range(13)),
    ('five_micro', 'micro', FIVE),
    ('five_macro', 'macro', FIVE),
  ],
)
def test_averages_are_those_of_sklearn(labels, name, average, columns):
  found, reference = (each[:, list(columns)] == POSITIVE for each in labels)
  theirs = sklearn.metrics.precision_recall_fscore_support(reference, found, average=average, zero_division=0)[:3]
  ours = clinical.efficacy(*labels)
  assert [ours[f'{name}/{rate}'] for rate in clinical.RATES] == pytest.approx(theirs, abs=1e-12)


def test_per_class_and_shares(labels):
  found, reference = (each == POSITIVE for each in labels)
  ours = clinical.efficacy(*labels)
  theirs = sklearn.metrics.f1_score(reference, found, average=None, zero_division=0)
  assert [ours[f'class/{name}/f1'] for name in OBSERVATIONS] == pytest.approx(theirs)
  assert ours['class/Pneumonia/f1'] == 0
  assert ours['positive_share'] == pytest.approx(found[:, :13].mean())
  assert ours['positive_share_reference'] == pytest.approx(reference[:, :13].mean())


def test_always_normal_looks_good_by_example_and_not_by_macro():
  """The shortcut that spec 5.3 warns of: half of the studies are normal, and nothing else is ever said."""
  reference = np.zeros((40, 14), np.int8)
  reference[:20, NO_FINDING] = POSITIVE
  reference[20:, 1] = POSITIVE
  found = np.zeros((40, 14), np.int8)
  found[:, NO_FINDING] = POSITIVE
  scores = clinical.efficacy(found, reference)
  assert scores['example/f1'] == 0.5 and scores['macro/recall'] == pytest.approx(1 / 14) and scores['macro_13/f1'] == 0
  assert scores['positive_share'] == 0


def test_shapes_are_checked():
  with pytest.raises(UserError, match='expected twice'):
    clinical.efficacy(np.zeros((3, 13)), np.zeros((3, 13)))
  with pytest.raises(UserError, match='N at least 1'):
    clinical.efficacy(np.zeros((0, 14)), np.zeros((0, 14)))
