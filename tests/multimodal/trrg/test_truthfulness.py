"""What is asserted against what is known: per test set, and sentence by sentence."""

import math

import numpy as np
import pytest

from multimodal.trrg import labeller, truthfulness
from multimodal.trrg.observations import CLUES, NEGATIVE, NO_FINDING, OBSERVATIONS, POSITIVE, UNCERTAIN

EFFUSION, EDEMA, DEVICE = (OBSERVATIONS.index(name) for name in ('Pleural Effusion', 'Edema', 'Support Devices'))


def clues(*which):
  mask = np.zeros(CLUES, bool)
  mask[list(which)] = True
  return mask


def labels(**by_row):
  rows = np.zeros((len(by_row), 14), np.int8)
  for row, said in zip(rows, by_row.values(), strict=True):
    for k, label in said.items():
      row[k] = label
  return rows


def test_diagnostics_count_clues_asserted_clues_denied_and_what_comes_from_nowhere():
  given = np.stack([clues(0, 1), clues(2), clues()])
  found = labels(
    a={0: POSITIVE, 1: NEGATIVE, 3: POSITIVE, 4: POSITIVE, NO_FINDING: POSITIVE}, b={2: UNCERTAIN}, c={5: POSITIVE}
  )
  reference = labels(a={3: POSITIVE}, b={2: POSITIVE}, c={5: UNCERTAIN})
  scores = truthfulness.diagnostics(given, found, reference)
  assert scores == {
    'faithfulness': pytest.approx(1 / 3),  # clue 0; 1 is denied, 2 left open
    'contradiction': pytest.approx(1 / 3),
    'hallucination': pytest.approx(2 / 4),  # 4 of the first, 5 of the third; 3 is in the reference
    'hallucinations_per_report': pytest.approx(2 / 3),
  }


def test_diagnostics_of_no_clues_and_no_positives_are_nan():
  scores = truthfulness.diagnostics(np.zeros((2, 13), bool), np.zeros((2, 14)), np.zeros((2, 14)))
  assert math.isnan(scores['faithfulness']) and math.isnan(scores['hallucination'])
  assert scores['hallucinations_per_report'] == 0


@pytest.mark.parametrize(
  ('sentence', 'status', 'rests'),
  [
    ('There is a small left pleural effusion.', 'supported', (EFFUSION,)),
    ('Effusion cannot be excluded.', 'supported', (EFFUSION,)),
    ('There is pulmonary edema.', 'unsupported', (EDEMA,)),
    ('Edema with pleural effusion.', 'unsupported', (EDEMA,)),
    ('No pleural effusion.', 'contradicted', (EFFUSION,)),
    ('There is edema but no effusion.', 'contradicted', (EFFUSION,)),
    ('No pulmonary edema.', 'consistent', (EDEMA,)),
    ('No acute cardiopulmonary abnormality.', 'contradicted', (NO_FINDING,)),
    ('The trachea is midline.', 'neutral', ()),
  ],
)
def test_support_of_a_sentence_when_the_clue_is_an_effusion(sentence, status, rests):
  assert truthfulness.support([sentence], clues(EFFUSION), labeller.rules) == [(status, rests)]


def test_all_is_normal_agrees_with_no_clue_and_with_a_device():
  for given in (clues(), clues(DEVICE)):
    assert truthfulness.support(['No acute disease.'], given, labeller.rules)[0][0] == 'consistent'
  assert truthfulness.support([], clues(), labeller.rules) == []
