"""The small chest of the claims: films show what they should, reports assert it, the labeller is exact."""

import itertools

import numpy as np
import pytest

from multimodal.trrg import phantom as p
from multimodal.trrg.observations import BLANK, NEGATIVE, OBSERVATIONS, POSITIVE

NONE = np.zeros(6, bool)
NAMES = [finding.name for finding in p.FINDINGS]


@pytest.fixture(scope='module')
def studies():
  return p.studies((7, 0), 4000)


def only(name):
  return np.array([each == name for each in NAMES])


def test_studies_are_a_function_of_the_seed():
  first, again, other = (p.studies(seed, 5) for seed in ((0, 1), (0, 1), (0, 2)))
  assert np.array_equal(first.image, again.image) and first.reports == again.reports
  assert not np.array_equal(first.image, other.image) and first.reports != other.reports
  assert first.image.shape == (5, 48, 48) and first.image.dtype == np.float32


def test_prevalence_is_long_tailed_and_half_the_films_are_normal(studies):
  share = studies.present.mean(0)
  assert share == pytest.approx([0.20, 0.14, 0.10, 0.07, 0.05, 0.04], abs=0.02)
  assert (~studies.present.any(1)).mean() == pytest.approx(0.525, abs=0.03)


def test_reports_assert_what_is_there_and_nothing_else(studies):
  labels = p.label(studies.reports)
  assert np.array_equal(labels[:, p.COLUMNS] == POSITIVE, studies.present)
  absent = labels[:, p.COLUMNS][~studies.present]
  assert (absent == NEGATIVE).mean() == pytest.approx(0.8, abs=0.02) and (
    (absent == NEGATIVE) | (absent == BLANK)
  ).all()
  others = np.setdiff1d(np.arange(len(OBSERVATIONS)), p.COLUMNS)
  assert (labels[:, others] == BLANK).all()


def test_one_sentence_in_twelve_is_positive(studies):
  sentences = [sentence for study in studies.sentences for sentence in study]
  assert (p.label(sentences) == POSITIVE).any(1).mean() == pytest.approx(0.086, abs=0.01)
  assert len(sentences) / 4000 == pytest.approx(7, abs=0.2)
  lengths = [len(p.encode(report)) for report in studies.reports]
  assert min(lengths) >= 15 and max(lengths) <= 50 and len(p.WORDS) - len(p.SPECIAL) <= 42


def test_sentences_stand_in_the_order_of_the_findings(studies):
  for sentences in studies.sentences[:200]:
    labels = p.label(sentences)[:, p.COLUMNS]
    mentioned = [int(np.flatnonzero(row)[0]) for row in labels if row.any()]
    assert mentioned == sorted(mentioned) and len(sentences) - len(mentioned) == 2


def test_every_template_is_labelled_as_it_is_meant():
  for finding in p.FINDINGS:
    assert len(finding.positive) == len(finding.negative) == 3
    for text, expected in itertools.chain(
      ((t, POSITIVE) for t in finding.positive), ((t, NEGATIVE) for t in finding.negative)
    ):
      row = p.label([text])[0]
      assert row[finding.observation] == expected and np.count_nonzero(row) == 1, text
  assert not p.label(p.FILLERS).any()


def test_asserting_beats_denying_and_words_out_of_place_are_defined():
  texts = ['there is no nodule . there is a nodule .', 'there is a nodule . there is no nodule .', '', 'the heart is .']
  lesion = OBSERVATIONS.index('Lung Lesion')
  assert p.label(texts)[:, lesion].tolist() == [POSITIVE, POSITIVE, BLANK, BLANK]
  assert not p.label(texts[2:]).any()


def difference(name, count=60):
  """Mean film with one finding minus mean film without, [48, 48]."""
  with_it = np.mean([p.film(np.random.default_rng((1, i)), only(name)) for i in range(count)], axis=0)
  without = np.mean([p.film(np.random.default_rng((2, i)), NONE) for i in range(count)], axis=0)
  return with_it - without


def test_each_finding_changes_the_film_where_it_should():
  rows = np.arange(48)[:, None] + np.zeros((1, 48))
  wide = difference('cardiomegaly')
  assert wide[24:36, 14:18].mean() > 0.1 and wide[24:36, 32:36].mean() > 0.1 and abs(wide[:14].mean()) < 0.02
  fluid = difference('effusion')
  assert fluid[34:40, 10:16].mean() > 0.1 and fluid[34:40, 32:38].mean() > 0.1 and abs(fluid[:24].mean()) < 0.02
  air = difference('pneumothorax')
  assert air[10:20, 6:10].mean() < -0.015 and air[10:20, 38:42].mean() < -0.015 and abs(air[30:].mean()) < 0.01
  assert np.average(rows, weights=difference('device').clip(0.05) - 0.05) < 22
  for name in ('opacity', 'nodule'):
    assert difference(name)[12:36].mean() > 0.005


def test_noise_has_the_stated_size():
  films = np.stack([p.film(np.random.default_rng(i), NONE) for i in range(50)])
  assert films[:, :4].std() == pytest.approx(0.10, abs=0.005) and films[:, :4].mean() == pytest.approx(0.25, abs=0.005)


def test_words_and_numbers_are_inverse(studies):
  for report in studies.reports[:50]:
    assert p.decode([p.BOS, *p.encode(report), p.EOS, p.PAD]) == report
  ids, mask = p.batch(studies.reports[:8], 60, end=True)
  for row, valid, report in zip(ids, mask, studies.reports):
    assert p.decode(row) == report and row[valid][-1] == p.EOS and not valid[valid.sum() :].any()
  with pytest.raises(ValueError, match='3 words do not fit into 2'):
    p.batch(['there is no'], 2)
