"""Beam search as transformers does it: the K best texts so far go on, the best finished ones are kept.

Every step ranks all continuations of the K open beams of a sample and takes the best (1 + ends) K of them, so that K
stay open even when some have ended. Those among the best K that ended are finished: ranked by
sum(log p) / length^length_penalty, the K best finished ones are kept. Samples do not see each other.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError
from core.generation import processors
from core.generation.decoding import Decoding
from core.generation.processors import Prompt

NEVER = -1e9
"""Score of a beam that must not be chosen, as transformers has it: finite, so that it can be added."""


class State(flax.struct.PyTreeNode):
  """K open and K finished beams of B samples.

  Attributes:
    step: i32 scalar, tokens so far.
    ids: i32 [B, K, T + N], of the open beams: the prompt's tokens, then the new ones.
    first: i32 [B], where the prompt begins.
    scores: f32 [B, K], sums of log p after the penalties, best first.
    parents: i32 [B, K], the beam of the former step that each goes on from.
    done: i32 [B, K, N], new tokens of the finished beams, pad after the end.
    done_scores: f32 [B, K], their scores, best first.
    done_lengths: i32 [B, K], new tokens up to the end and with it.
    finished: bool [B, K], whether there is one.
    improvable: bool [B], whether an open beam may still beat a finished one.
    open: bool [B], whether the sample goes on.
  """

  step: jax.Array
  ids: jax.Array
  first: jax.Array
  scores: jax.Array
  parents: jax.Array
  done: jax.Array
  done_scores: jax.Array
  done_lengths: jax.Array
  finished: jax.Array
  improvable: jax.Array
  open: jax.Array


class Candidates(flax.struct.PyTreeNode):
  """The best C continuations of every sample, best first.

  Attributes:
    token: i32 [B, C].
    parent: i32 [B, C], the beam that each continues.
    scores: f32 [B, C].
    ids: i32 [B, C, N], the new tokens with the last one.
    ended: bool [B, C], whether that is an end.
  """

  token: jax.Array
  parent: jax.Array
  scores: jax.Array
  ids: jax.Array
  ended: jax.Array


@dataclasses.dataclass(frozen=True)
class Beams:
  """The search: pure functions of its state.

  Attributes:
    decoding: what is asked for.
    eos: tokens that end a text.
    pad: token after the end.
  """

  decoding: Decoding
  eos: tuple[int, ...]
  pad: int

  def begin(self, prompt: Prompt, key: jax.Array | None = None) -> State:
    """Nothing written yet; only the first beam counts, as all are the same."""
    del key
    batch, beams, count = prompt.first.shape[0], self.decoding.beams, self.decoding.max_new_tokens
    ids = jnp.pad(prompt.ids, ((0, 0), (0, count)), constant_values=self.pad)
    return State(
      step=jnp.zeros((), jnp.int32),
      ids=jnp.repeat(ids[:, None], beams, axis=1),
      first=prompt.first,
      scores=jnp.full((batch, beams), NEVER).at[:, 0].set(0.0),
      parents=jnp.zeros((batch, beams), jnp.int32),
      done=jnp.full((batch, beams, count), self.pad, jnp.int32),
      done_scores=jnp.full((batch, beams), NEVER),
      done_lengths=jnp.zeros((batch, beams), jnp.int32),
      finished=jnp.zeros((batch, beams), bool),
      improvable=jnp.ones(batch, bool),
      open=jnp.ones(batch, bool),
    )

  def propose(self, state: State, logits: jax.Array) -> Candidates:
    """logits f32 [B * K, V] of the open beams, or [B, V] of the prompt alone -> the best continuations."""
    batch, beams, places = state.ids.shape
    vocabulary, known = logits.shape[-1], places - self.decoding.max_new_tokens
    count = (1 + max(1, len(self.eos))) * beams
    if count > vocabulary:
      raise UserError(
        f'{beams} beams need {count} candidates, the vocabulary has {vocabulary} tokens: use fewer beams.'
      )
    if logits.shape[0] == batch:
      logits = jnp.repeat(logits, beams, axis=0)
    scores = processors.process(
      jax.nn.log_softmax(logits),
      state.ids.reshape(-1, places),
      jnp.repeat(state.first, beams),
      known + state.step,
      state.step,
      self.decoding,
      self.eos,
    )
    scores = scores.reshape(batch, beams, vocabulary) + state.scores[:, :, None]
    best, place = jax.lax.top_k(scores.reshape(batch, -1), count)
    token, parent = (place % vocabulary).astype(jnp.int32), (place // vocabulary).astype(jnp.int32)
    ids = jnp.take_along_axis(state.ids[:, :, known:], parent[:, :, None], axis=1)
    ids = jax.lax.dynamic_update_slice_in_dim(ids, token[:, :, None], state.step, axis=2)
    return Candidates(token, parent, best, ids, jnp.isin(token, jnp.asarray(self.eos)))

  def accept(self, state: State, candidates: Candidates, ended: jax.Array) -> State:
    """Goes on from the candidates; those that ended, bool [B, C], are finished."""
    ended |= state.step + 1 >= self.decoding.max_new_tokens
    state = self._finish(state, candidates, ended)
    state = self._go_on(state, candidates, ended)
    improvable = state.improvable & self._improvable(state)
    full = state.finished.all(1) & (self.decoding.early_stopping is True)
    return state.replace(improvable=improvable, open=state.open & improvable & ~full & ~ended.all(1))

  def _finish(self, state: State, candidates: Candidates, ended: jax.Array) -> State:
    """The best of what was finished before and what is now."""
    beams = self.decoding.beams
    ended &= jnp.arange(ended.shape[1]) < beams  # the others are there to keep enough beams open
    closed = ~state.improvable | (state.finished.all(1) & (self.decoding.early_stopping is True))
    scores = candidates.scores / self._divisor(state.step + 1)
    scores = scores + jnp.where(closed[:, None], NEVER, 0.0) + jnp.where(ended, 0.0, NEVER)
    both = lambda old, new: jnp.concatenate([old, new], axis=1)  # noqa: E731
    best, chosen = jax.lax.top_k(both(state.done_scores, scores), beams)
    lengths = jnp.full(ended.shape, state.step + 1, jnp.int32)
    return state.replace(
      done=jnp.take_along_axis(both(state.done, candidates.ids), chosen[:, :, None], axis=1),
      done_scores=best,
      done_lengths=jnp.take_along_axis(both(state.done_lengths, lengths), chosen, axis=1),
      finished=jnp.take_along_axis(both(state.finished, ended), chosen, axis=1),
    )

  def _go_on(self, state: State, candidates: Candidates, ended: jax.Array) -> State:
    """The best candidates that have not ended are the open beams."""
    known = state.ids.shape[2] - self.decoding.max_new_tokens
    scores, chosen = jax.lax.top_k(candidates.scores + jnp.where(ended, NEVER, 0.0), self.decoding.beams)
    new = jnp.take_along_axis(candidates.ids, chosen[:, :, None], axis=1)
    return state.replace(
      step=state.step + 1,
      ids=state.ids.at[:, :, known:].set(new),  # a sample's beams share the prompt
      scores=scores,
      parents=jnp.take_along_axis(candidates.parent, chosen, axis=1),
    )

  def _improvable(self, state: State) -> jax.Array:
    """bool [B]: whether the best open beam would beat a finished one, or there are fewer than K."""
    longest = self.decoding.early_stopping == 'never' and self.decoding.length_penalty > 0
    length = self.decoding.max_new_tokens if longest else state.step
    best = state.scores[:, 0] / self._divisor(length)
    worst = jnp.where(state.finished.all(1), state.done_scores.min(1), NEVER)
    return best > worst

  def _divisor(self, length: jax.Array | int) -> jax.Array:
    """length^length_penalty, rounded once: an f32 power would differ from transformers' in the last digit."""
    lengths = np.arange(self.decoding.max_new_tokens + 1, dtype=np.float64)
    lengths[0] = 1.0  # no text is empty
    return jnp.asarray((lengths**self.decoding.length_penalty).astype(np.float32))[length]

  def going(self, state: State) -> jax.Array:
    """bool [B], which are not finished."""
    return state.open

  def latest(self, state: State) -> tuple[jax.Array, jax.Array]:
    """(i32 [B * K], the tokens written last; i32 [B * K], the rows of the former step that they go on from)."""
    batch, beams, places = state.ids.shape
    token = jax.lax.dynamic_index_in_dim(
      state.ids, places - self.decoding.max_new_tokens + state.step - 1, axis=2, keepdims=False
    )
    return token.reshape(-1), (state.parents + beams * jnp.arange(batch)[:, None]).reshape(-1)

  def result(self, state: State) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(tokens i32 [B, N], lengths i32 [B], scores f32 [B]) of the best finished beams."""
    return state.done[:, 0], state.done_lengths[:, 0], state.done_scores[:, 0]
