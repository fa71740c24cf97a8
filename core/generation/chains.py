"""One token after the other: the most probable one, or one drawn (transformers' greedy search and sampling)."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from core.generation import processors
from core.generation.decoding import Decoding
from core.generation.processors import Prompt


class State(flax.struct.PyTreeNode):
  """B texts being written.

  Attributes:
    step: i32 scalar, tokens so far.
    ids: i32 [B, T + N], the prompt's and then the new ones; pad where there is none yet, and after the end.
    first: i32 [B], where the prompt begins.
    scores: f32 [B], the sum of log p of the new tokens, p being the network's, before any penalty.
    lengths: i32 [B], new tokens up to the end and with it.
    open: bool [B].
    key: key array [B]; None where nothing is drawn.
  """

  step: jax.Array
  ids: jax.Array
  first: jax.Array
  scores: jax.Array
  lengths: jax.Array
  open: jax.Array
  key: jax.Array | None


class Candidates(flax.struct.PyTreeNode):
  """What would be written next.

  Attributes:
    token: i32 [B].
    log_probability: f32 [B].
    ids: i32 [B, 1, N], the new tokens with it.
    ended: bool [B, 1], whether it is an end.
  """

  token: jax.Array
  log_probability: jax.Array
  ids: jax.Array
  ended: jax.Array


@dataclasses.dataclass(frozen=True)
class Chains:
  """The search: pure functions of its state.

  Attributes:
    decoding: what is asked for.
    eos: tokens that end a text.
    pad: token after the end.
  """

  decoding: Decoding
  eos: tuple[int, ...]
  pad: int

  def begin(self, prompt: Prompt, key: jax.Array | None) -> State:
    """Nothing written yet. Every row has a key of its own, so that it draws the same in any batch."""
    batch = prompt.first.shape[0]
    if key is not None:
      key = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    return State(
      step=jnp.zeros((), jnp.int32),
      ids=jnp.pad(prompt.ids, ((0, 0), (0, self.decoding.max_new_tokens)), constant_values=self.pad),
      first=prompt.first,
      scores=jnp.zeros(batch),
      lengths=jnp.zeros(batch, jnp.int32),
      open=jnp.ones(batch, bool),
      key=key,
    )

  def propose(self, state: State, logits: jax.Array) -> Candidates:
    """logits f32 [B, V] of the next token -> which it is."""
    known = state.ids.shape[1] - self.decoding.max_new_tokens
    length = known + state.step
    scores = processors.process(logits, state.ids, state.first, length, state.step, self.decoding, self.eos)
    if self.decoding.sample:
      keys = jax.vmap(jax.random.fold_in, (0, None))(state.key, state.step)
      token = jax.vmap(jax.random.categorical)(keys, scores)
    else:
      token = scores.argmax(1)
    token = jnp.where(state.open, token, self.pad).astype(jnp.int32)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
    ids = jax.lax.dynamic_update_slice_in_dim(state.ids, token[:, None], length, axis=1)
    ended = jnp.isin(token, jnp.asarray(self.eos))
    return Candidates(token, chosen - jax.nn.logsumexp(logits, axis=1), ids[:, None, known:], ended[:, None])

  def accept(self, state: State, candidates: Candidates, ended: jax.Array) -> State:
    """Writes the candidates; ended bool [B, 1] closes their texts."""
    known = state.ids.shape[1] - self.decoding.max_new_tokens
    return state.replace(
      step=state.step + 1,
      ids=jax.lax.dynamic_update_slice_in_dim(state.ids, candidates.token[:, None], known + state.step, axis=1),
      scores=state.scores + jnp.where(state.open, candidates.log_probability, 0.0),
      lengths=state.lengths + state.open,
      open=state.open & ~ended[:, 0],
    )

  def going(self, state: State) -> jax.Array:
    """bool [B], which are not finished."""
    return state.open & (state.step < self.decoding.max_new_tokens)

  def latest(self, state: State) -> tuple[jax.Array, None]:
    """(i32 [B], the tokens written last; None, as every row goes on from itself)."""
    known = state.ids.shape[1] - self.decoding.max_new_tokens
    return jax.lax.dynamic_index_in_dim(state.ids, known + state.step - 1, axis=1, keepdims=False), None

  def result(self, state: State) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(tokens i32 [B, N], lengths i32 [B], scores f32 [B])."""
    return state.ids[:, state.ids.shape[1] - self.decoding.max_new_tokens :], state.lengths, state.scores
