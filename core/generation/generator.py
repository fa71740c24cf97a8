"""Runs a search over a network: prefill, then cached steps, in one compiled loop.

Where texts must be looked at between two tokens (stop texts, streaming) the same functions run a step at a time, with
the host in between.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError
from core.generation.beams import Beams
from core.generation.chains import Chains
from core.generation.decoding import Decoding
from core.generation.processors import Prompt
from core.train import mesh as mesh_lib

OnToken = Callable[[np.ndarray], None]
"""Is given every step's tokens, i32 [B]; pad for the rows that have ended."""


@dataclasses.dataclass(frozen=True)
class Generated:
  """Texts of B samples.

  Attributes:
    tokens: i32 [B, N], the end with them, pad after it.
    lengths: i32 [B], how many of them are text, the end included.
    scores: f32 [B]. One beam: the sum of log p under the network, without penalties. Several: the score by which the
      beam was chosen, penalties included, divided by length^length_penalty.
    texts: decoded, without the end and cut before a stop text; None where the generator cannot decode.
  """

  tokens: np.ndarray
  lengths: np.ndarray
  scores: np.ndarray
  texts: list[str] | None


class Generator:
  """Writes texts with a decoder.

  The network is a `core.nn.llama.Llama` or whatever has its methods: `apply(variables, x, mask=, cache=)`,
  `embed(ids)`, `logits(hidden)`, `empty_cache(batch, places)`, and the attribute `max_positions`. Every shape of a
  prompt, and every decoding, is compiled once. A sample's text does not depend on the batch that it is in, nor on
  where its padding lies.
  """

  def __init__(
    self,
    network: Any,
    *,
    eos: int | Sequence[int],
    pad: int,
    decode: Callable[[Sequence[int]], str] | None = None,
  ):
    """Args: eos: the token, or tokens, that end a text. pad: fills up after it. decode: ids to text."""
    self.network, self.pad, self.decode = network, pad, decode
    self.eos = (int(eos),) if isinstance(eos, int | np.integer) else tuple(int(token) for token in eos)
    self._search = jax.jit(self.search, static_argnames='decoding')
    self._first = jax.jit(self._prefill, static_argnames='decoding')
    self._next = jax.jit(self._step, static_argnames='decoding', donate_argnames='cache')
    self._accept = jax.jit(lambda decoding, *arguments: self._plan(decoding).accept(*arguments), static_argnums=0)
    self._embed = jax.jit(functools.partial(network.apply, method='embed'))

  def __call__(
    self,
    variables: Any,
    embeddings: jax.Array,
    mask: jax.Array,
    decoding: Decoding,
    *,
    rng: jax.Array | None = None,
    prompt_ids: jax.Array | None = None,
    on_token: OnToken | None = None,
  ) -> Generated:
    """Continues prompts that are given as embeddings.

    Args:
      variables: {'params': of the network}.
      embeddings: [B, T, D].
      mask: bool [B, T]; False where a position is padding, wherever that lies.
      decoding: how tokens are chosen.
      rng: key, for `decoding.sample`.
      prompt_ids: i32 [B, T], which tokens the embeddings are (-1: none, a soft token): repetition penalty and n-grams
        then see the prompt too. None: they see new tokens only (spec 5.1).
      on_token: called with every step's tokens as they come; with one beam only.

    Raises:
      UserError: a prompt that leaves no room for `max_new_tokens`, or an empty one.
    """
    mask = np.asarray(mask, bool)
    self._check(embeddings, mask, decoding, rng, prompt_ids, on_token)
    embeddings, mask, prompt_ids = jax.device_put((embeddings, mask, prompt_ids))
    inputs = (variables, embeddings, mask, rng if decoding.sample else None, prompt_ids)
    plain = dataclasses.replace(decoding, stop=())
    if on_token is None and not decoding.stop:
      found = self._search(*inputs, decoding=plain)
    else:
      found = self._with_host(inputs, plain, decoding.stop, on_token)
    tokens, lengths, scores = mesh_lib.host_arrays(found)
    texts = None
    if self.decode is not None:
      texts = [self._text(row[:length], decoding.stop) for row, length in zip(tokens, lengths)]
    return Generated(tokens, lengths, scores, texts)

  def from_ids(self, variables: Any, ids: jax.Array, mask: jax.Array, decoding: Decoding, **options: Any) -> Generated:
    """Continues prompts of tokens, i32 [B, T], as transformers does; otherwise as a call."""
    ids = jnp.asarray(ids, jnp.int32)
    return self(variables, self._embed(variables, ids), mask, decoding, prompt_ids=ids, **options)

  def search(
    self,
    variables: Any,
    embeddings: jax.Array,
    mask: jax.Array,
    rng: jax.Array | None = None,
    prompt_ids: jax.Array | None = None,
    *,
    decoding: Decoding,
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a call compiles: (tokens i32 [B, N], lengths i32 [B], scores f32 [B]), to be traced into larger programs.

    Arguments as in a call. Stop texts are not seen here.
    """
    plan = self._plan(decoding)

    def body(carry):
      state, cache = carry
      candidates, cache = self._step(variables, state, cache, decoding=decoding)
      return plan.accept(state, candidates, candidates.ended), cache

    state, candidates, cache = self._prefill(variables, embeddings, mask, rng, prompt_ids, decoding=decoding)
    state = plan.accept(state, candidates, candidates.ended)
    state, _ = jax.lax.while_loop(lambda carry: plan.going(carry[0]).any(), body, (state, cache))
    return plan.result(state)

  def _plan(self, decoding: Decoding) -> Chains | Beams:
    return (Chains if decoding.beams == 1 else Beams)(decoding, self.eos, self.pad)

  def _prefill(self, variables, embeddings, mask, rng, prompt_ids, *, decoding):
    """(state, candidates for the first token, cache with the prompts, a row per beam)."""
    batch, count = mask.shape
    plan = self._plan(decoding)
    state = plan.begin(Prompt.of(prompt_ids, mask), rng)
    cache = self.network.empty_cache(batch, count)
    hidden, cache = self.network.apply(variables, embeddings, mask=mask, cache=cache)
    last = (count - 1 - mask[:, ::-1].argmax(1))[:, None, None]  # the last that is not padding
    logits = self._logits(variables, jnp.take_along_axis(hidden, last, axis=1))
    return state, plan.propose(state, logits), cache.branch(decoding.beams, decoding.max_new_tokens)

  def _step(self, variables, state, cache, *, decoding):
    """(candidates for the token after the latest, cache with the latest)."""
    plan = self._plan(decoding)
    token, parents = plan.latest(state)
    if parents is not None:
      cache = cache.take(parents)
    embedded = self.network.apply(variables, token[:, None], method='embed')
    hidden, cache = self.network.apply(variables, embedded, cache=cache)
    return plan.propose(state, self._logits(variables, hidden)), cache

  def _logits(self, variables: Any, hidden: jax.Array) -> jax.Array:
    """f32 [B, V] of hidden states [B, 1, D]."""
    return self.network.apply(variables, hidden[:, 0], method='logits').astype(jnp.float32)

  def _with_host(self, inputs: tuple[Any, ...], decoding: Decoding, stop: tuple[str, ...], on_token: OnToken | None):
    """As `search`, a step at a time."""
    plan = self._plan(decoding)
    state, candidates, cache = self._first(*inputs, decoding=decoding)
    while True:
      ended = candidates.ended
      if stop:
        ended = np.asarray(ended) | self._stopped(np.asarray(candidates.ids), int(state.step) + 1, stop)
      state = self._accept(decoding, state, candidates, ended)
      if on_token is not None:
        on_token(np.asarray(candidates.token))
      if not np.asarray(plan.going(state)).any():
        return plan.result(state)
      candidates, cache = self._next(inputs[0], state, cache, decoding=decoding)

  def _stopped(self, ids: np.ndarray, count: int, stop: tuple[str, ...]) -> np.ndarray:
    """bool [B, C]: whether the first `count` of ids [B, C, N] hold a stop text."""
    texts = (self.decode(each[:count].tolist()) for each in ids.reshape(-1, ids.shape[2]))
    found = [any(end in text for end in stop) for text in texts]
    return np.asarray(found).reshape(ids.shape[:2])

  def _text(self, tokens: np.ndarray, stop: tuple[str, ...]) -> str:
    text = self.decode([int(token) for token in tokens if int(token) not in self.eos])
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]

  def _check(self, embeddings, mask, decoding, rng, prompt_ids, on_token) -> None:
    """Raises UserError for what cannot be done."""
    if mask.shape != embeddings.shape[:2] or (prompt_ids is not None and prompt_ids.shape != mask.shape):
      shapes = {'embeddings': embeddings, 'mask': mask} | ({} if prompt_ids is None else {'prompt_ids': prompt_ids})
      found = ', '.join(f'{name} {tuple(each.shape)}' for name, each in shapes.items())
      raise UserError(f'a prompt is embeddings [B, T, D], a mask [B, T] and, if given, ids [B, T]; found {found}.')
    lengths = mask.sum(1)
    if not lengths.all():
      raise UserError(f'prompt {int(lengths.argmin())} is empty: every prompt needs a token, such as the begin token.')
    count, context = mask.shape[1], self.network.max_positions
    if count + decoding.max_new_tokens > context:
      raise UserError(
        f'prompts of {count} positions, of which at most {lengths.max()} are no padding, and max_new_tokens '
        f'{decoding.max_new_tokens} do not fit into the context of {context} positions (max_positions): '
        'shorten the prompts or lower max_new_tokens.'
      )
    if decoding.sample and rng is None:
      raise UserError('decoding draws tokens (sample=True) and needs a key: pass rng=jax.random.key(0).')
    if decoding.stop and self.decode is None:
      raise UserError(f'stop texts {decoding.stop} need a generator that can decode: Generator(..., decode=...).')
    if on_token is not None and decoding.beams > 1:
      raise UserError(f'{decoding.beams} beams cannot be streamed: the best text is known at the end. Use beams=1.')
