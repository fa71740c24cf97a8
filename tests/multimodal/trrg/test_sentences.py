"""Where a report falls into sentences, when two are the same, and what they are to the sampler."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from multimodal.trrg import cleaning, sentences
from multimodal.trrg.observations import BLANK, NEGATIVE, NO_FINDING, POSITIVE, SUPPORT_DEVICES, UNCERTAIN


@pytest.mark.parametrize(
  ('report', 'expected'),
  [
    ('No pneumothorax. Mild cardiomegaly.', ['No pneumothorax', 'Mild cardiomegaly']),
    ('1. Heart is big. 2. Nodule of 1.5 cm in 2011. 3) Stable lungs.',
     ['Heart is big', 'Nodule of 1.5 cm in 2011', 'Stable lungs']),
    ('the heart is normal . no effusion .', ['the heart is normal', 'no effusion']),
    ('No focal disease.Heart size normal..', ['No focal disease', 'Heart size normal']),
    ('Seen by Dr. Smith at 5 p.m. today. T12. Clear lungs', ['Seen by Dr. Smith at 5 p.m. today', 'Clear lungs']),
    ('The lungs are\nclear.\n\nNo effusion', ['The lungs are clear', 'No effusion']),
    ('XXXX. Clear. . ', []),
    ('', []),
  ],
)  # fmt: skip
def test_sentences_of_a_report(report, expected):
  assert sentences.split(report) == expected


def test_single_words_are_kept_when_asked_for():
  assert sentences.split('Cardiomegaly. No edema.', tokens=1) == ['Cardiomegaly', 'No edema']


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(text=st.text(alphabet='Ab1. ,\n)-', max_size=50))
def test_no_word_is_lost_but_enumerators(text):
  kept = ' '.join(sentences.split(text, tokens=1))
  assert [c for c in kept if c in 'Ab'] == [c for c in text if c in 'Ab']
  assert all(sentence == sentence.strip() and '\n' not in sentence for sentence in sentences.split(text, tokens=1))


def test_raw_and_cleaned_reports_have_the_same_sentences():
  report = 'Well-expanded lungs. No effusion, no edema. Heart size is normal.'
  raw, cleaned = (sentences.split(text) for text in (report, cleaning.clean(report)))
  assert [*map(sentences.normalized, raw)] == [*map(sentences.normalized, cleaned)]


def test_normalized_ignores_case_stops_and_hyphens_only():
  same = {sentences.normalized(s) for s in ('No pleural effusion.', 'no PLEURAL  effusion', 'No pleural-effusion!')}
  assert same == {'no pleural effusion'}
  assert sentences.normalized('No effusion') != sentences.normalized('Effusion no')


def test_kinds_of_sentences():
  labels = np.zeros((7, 14), np.int8)
  labels[0, 3] = POSITIVE
  labels[1, [3, 4]] = UNCERTAIN, NEGATIVE
  labels[2, 4] = NEGATIVE
  labels[3, NO_FINDING] = POSITIVE
  labels[4, [4, NO_FINDING]] = NEGATIVE, POSITIVE
  labels[5, SUPPORT_DEVICES] = POSITIVE
  kinds = sentences.kinds(labels)
  a, d, n = sentences.ABNORMAL, sentences.NEGATED, sentences.NEUTRAL
  assert kinds.dtype == np.int8 and kinds.tolist() == [a, a, d, d, d, a, n]
  assert (n, d, a) == (0, 1, 2) and BLANK == 0
  assert sentences.kinds(np.zeros((0, 14), np.int8)).shape == (0,)
