"""Changes of scores: beside plain definitions, and beside transformers' own processors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.generation import Decoding, processors
from core.generation.processors import Prompt

VOCABULARY, PLACES, ROWS = 11, 9, 3

histories = st.lists(
  st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=PLACES), min_size=ROWS, max_size=ROWS
).filter(lambda rows: min(map(len, rows)) > 0)


def placed(rows):
  """(ids [ROWS, PLACES], first [ROWS], length): every row ends at `length`, what is around it is rubbish."""
  length = max(map(len, rows))
  ids = np.full((ROWS, PLACES), 3, np.int32)
  for i, row in enumerate(rows):
    ids[i, length - len(row) : length] = row
  return ids, np.asarray([length - len(row) for row in rows], np.int32), np.int32(length)


SCORES = np.random.default_rng(0).normal(size=(ROWS, VOCABULARY)).astype(np.float32)
penalize = jax.jit(processors.penalize_repetition)
forbid = jax.jit(processors.forbid_ngrams, static_argnums=4)


@given(histories)
@settings(deadline=None, max_examples=60)
def test_a_token_that_occurred_is_penalised_once(rows):
  found = penalize(SCORES, *placed(rows), 2.0)
  for row, before, after in zip(rows, SCORES, found):
    factor = [(2.0 if score < 0 else 0.5) if token in row else 1.0 for token, score in enumerate(before)]
    np.testing.assert_array_equal(after, before * np.asarray(factor, np.float32))


@given(histories, st.integers(1, 4))
@settings(deadline=None, max_examples=120)
def test_exactly_the_tokens_that_would_repeat_n_in_a_row_are_forbidden(rows, n):
  found = forbid(SCORES, *placed(rows), n)
  for row, before, after in zip(rows, SCORES, found):
    grams = {tuple(row[i : i + n]) for i in range(len(row) - n + 1)}
    repeats = [len(row) >= n - 1 and (*row[len(row) - n + 1 :], token) in grams for token in range(VOCABULARY)]
    np.testing.assert_array_equal(after, np.where(repeats, -np.inf, before))


def test_windows_longer_than_the_places_forbid_nothing():
  np.testing.assert_array_equal(forbid(SCORES, *placed([[1, 2]] * ROWS), PLACES + 1), SCORES)


def test_soft_tokens_have_no_score_to_change():
  ids, first = np.full((1, 4), -1, np.int32), np.zeros(1, np.int32)
  np.testing.assert_array_equal(penalize(SCORES[:1], ids, first, 4, 2.0), SCORES[:1])
  np.testing.assert_array_equal(forbid(SCORES[:1], ids, first, 4, 2), SCORES[:1])


def test_top_k_keeps_k_and_ties_with_the_last_of_them():
  scores = jnp.asarray([[0.1, 3.0, 2.0, 2.0, -1.0]])
  np.testing.assert_array_equal(processors.keep_top_k(scores, 2) > -jnp.inf, [[False, True, True, True, False]])


def test_top_p_keeps_the_fewest_tokens_that_hold_p():
  scores = jnp.log(jnp.asarray([[0.1, 0.5, 0.15, 0.25]]))
  kept = lambda p: list((processors.keep_top_p(scores, p) > -jnp.inf)[0])  # noqa: E731
  assert kept(0.01) == [False, True, False, False]
  assert kept(0.51) == [False, True, False, True]
  assert kept(0.80) == [False, True, True, True]
  assert kept(0.95) == [True, True, True, True]


def test_prompts_are_packed_to_the_right_wherever_their_padding_is():
  ids = jnp.asarray([[5, 0, 6, 7], [0, 0, 4, 0], [1, 2, 3, 4]])
  prompt = Prompt.of(ids, jnp.asarray([[1, 0, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1]], bool))
  np.testing.assert_array_equal(prompt.first, [1, 3, 0])
  assert [row[start:].tolist() for row, start in zip(prompt.ids, prompt.first)] == [[5, 6, 7], [4], [1, 2, 3, 4]]
  unknown = Prompt.of(None, jnp.ones((2, 5), bool))
  assert unknown.ids.shape == (2, 0) and unknown.first.tolist() == [0, 0]


@pytest.mark.parametrize(
  'decoding',
  [
    Decoding(repetition_penalty=1.7, no_repeat_ngram=2, min_new_tokens=4),
    Decoding(repetition_penalty=0.6, no_repeat_ngram=1),
    Decoding(sample=True, temperature=0.7, top_k=4, top_p=0.8, min_new_tokens=4),
    Decoding(sample=True, temperature=1.9, top_p=0.3, no_repeat_ngram=3),
  ],
)
def test_all_of_them_together_are_those_of_transformers(decoding):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  kinds = transformers.generation.logits_process
  rng = np.random.default_rng(0)
  scores = rng.normal(0, 2, size=(40, VOCABULARY)).astype(np.float32)
  ids = rng.integers(0, VOCABULARY, (40, PLACES)).astype(np.int32)
  prompt = PLACES - 3
  theirs = [kinds.RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty)]
  if decoding.no_repeat_ngram:
    theirs.append(kinds.NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram))
  theirs.append(kinds.MinNewTokensLengthLogitsProcessor(prompt, decoding.min_new_tokens, [2, 5]))
  if decoding.sample:
    theirs.append(kinds.TemperatureLogitsWarper(decoding.temperature))
    theirs += [kinds.TopKLogitsWarper(decoding.top_k)] if decoding.top_k else []
    theirs += [kinds.TopPLogitsWarper(decoding.top_p)]
  expected = torch.tensor(scores)
  for each in theirs:
    expected = each(torch.tensor(ids, dtype=torch.int64), expected)
  first = np.zeros(40, np.int32)
  found = jax.jit(processors.process, static_argnums=(5, 6))(scores, ids, first, PLACES, 3, decoding, (2, 5))
  np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)
  assert 0.1 < np.isinf(found).mean() < 0.9
