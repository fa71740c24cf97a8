"""What is done to the scores of the next token before one is chosen: pure functions of arrays.

R rows, V tokens in the vocabulary, H places for the tokens so far. A row's tokens are `ids[first:length]`.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from core.generation.decoding import Decoding


class Prompt(flax.struct.PyTreeNode):
  """What the penalties know of the prompt: of T positions, or of none where the prompt is embeddings.

  Attributes:
    ids: i32 [B, T], padding first, then the tokens in their order.
    first: i32 [B], where they begin.
  """

  ids: jax.Array
  first: jax.Array

  @classmethod
  def of(cls, ids: jax.Array | None, mask: jax.Array) -> Prompt:
    """From ids i32 [B, T] with their padding anywhere (mask bool [B, T] is False there), or from None."""
    if ids is None:
      return cls(jnp.zeros((mask.shape[0], 0), jnp.int32), jnp.zeros(mask.shape[0], jnp.int32))
    order = jnp.argsort(mask, axis=1, stable=True)
    return cls(jnp.take_along_axis(ids.astype(jnp.int32), order, axis=1), mask.shape[1] - mask.sum(1, dtype=jnp.int32))


def process(
  scores: jax.Array,
  ids: jax.Array,
  first: jax.Array,
  length: jax.Array,
  new: jax.Array,
  decoding: Decoding,
  eos: tuple[int, ...],
) -> jax.Array:
  """All that `decoding` asks for, in the order of transformers.

  Args:
    scores: f32 [R, V], logits of a chain or log-probabilities of a beam.
    ids: i32 [R, H].
    first: i32 [R].
    length: i32 scalar.
    new: i32 scalar, how many of the tokens were generated.
    decoding: what is asked for.
    eos: the tokens that end a text.

  Returns:
    f32 [R, V]; -inf where a token is forbidden.
  """
  if decoding.repetition_penalty != 1.0:
    scores = penalize_repetition(scores, ids, first, length, decoding.repetition_penalty)
  if decoding.no_repeat_ngram:
    scores = forbid_ngrams(scores, ids, first, length, decoding.no_repeat_ngram)
  if decoding.min_new_tokens:
    ended = jnp.isin(jnp.arange(scores.shape[1]), jnp.asarray(eos))
    scores = jnp.where(ended & (new < decoding.min_new_tokens), -jnp.inf, scores)
  if decoding.sample:
    scores = scores / decoding.temperature
    if 0 < decoding.top_k < scores.shape[1]:
      scores = keep_top_k(scores, decoding.top_k)
    if decoding.top_p < 1.0:
      scores = keep_top_p(scores, decoding.top_p)
  return scores


def penalize_repetition(
  scores: jax.Array, ids: jax.Array, first: jax.Array, length: jax.Array, penalty: float
) -> jax.Array:
  """Scores of tokens that occurred: divided by the penalty where positive, multiplied where negative (Keskar 2019).

  Once per token however often it occurred. Arguments as in `process`.
  """
  place = jnp.arange(ids.shape[1])
  occurred = (place >= first[:, None]) & (place < length)
  old = jnp.take_along_axis(scores, jnp.where(occurred, ids, 0).clip(0), axis=1)
  return _put(scores, occurred, ids, jnp.where(old < 0, old * penalty, old / penalty))


def forbid_ngrams(scores: jax.Array, ids: jax.Array, first: jax.Array, length: jax.Array, n: int) -> jax.Array:
  """-inf for every token that would repeat n tokens in a row. Arguments as in `process`."""
  windows = ids.shape[1] - n + 1
  if windows < 1:
    return scores
  start = jnp.arange(windows)
  same = (start >= first[:, None]) & (start + n <= length) & (length - (n - 1) >= first)[:, None]
  for k in range(n - 1):
    latest = jax.lax.dynamic_slice_in_dim(ids, length - (n - 1) + k, 1, axis=1)
    same &= ids[:, k : k + windows] == latest
  return _put(scores, same, ids[:, n - 1 :], -jnp.inf)


def keep_top_k(scores: jax.Array, k: int) -> jax.Array:
  """-inf for all but the k best of every row, and what equals the k-th."""
  return jnp.where(scores < jax.lax.top_k(scores, k)[0][:, -1:], -jnp.inf, scores)


def keep_top_p(scores: jax.Array, p: float) -> jax.Array:
  """-inf for the least probable tokens that hold at most 1 - p of a row's probability together; the best one stays."""
  order = jnp.argsort(scores, axis=1)  # ascending
  ranked = jnp.take_along_axis(scores, order, axis=1)
  below = jnp.cumsum(jax.nn.softmax(ranked), axis=1) <= 1 - p
  below = below.at[:, -1].set(False)
  return _put(scores, below, order, -jnp.inf)


def _put(scores: jax.Array, chosen: jax.Array, ids: jax.Array, values: jax.Array | float) -> jax.Array:
  """scores [R, V] with `values` at the tokens of ids [R, K] that are chosen [R, K]; soft tokens have no score."""
  rows, vocabulary = scores.shape
  nowhere = jnp.where(chosen & (ids >= 0), ids, vocabulary)
  return scores.at[jnp.arange(rows)[:, None], nowhere].set(values, mode='drop')
