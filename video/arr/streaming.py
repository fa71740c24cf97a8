"""Anticipation of a stream: one clip in, what comes next out; the encoder runs once per clip.

  streamer = Streamer(model, variables, grid, history='exact')
  following, recognised = streamer.push(clip)        # f32 [C], f32 [C + 1]

What is kept of the past is one of two things:

  exact    a ring of the last T clip features; the decoder runs over all of them at every step, O(T). From the T-th clip
           on this is the offline model on the last T clips.
  cached   the decoder's key/value cache, one position per step, O(1). There are T learned positions: when all are taken
           the cache is made anew from the last T // 2 clips. The context is therefore not T clips but T // 2 + 1 to T
           of them, and one step in (T + 1) // 2 also pays for a pass over T // 2 clips: amortised O(1). Every answer is
           the offline decoder's over exactly the clips of its context.

Until T clips have come both hold a prefix: clip k stands at position k and the answer is q_k, which next action
prediction has trained. An evaluation instead repeats the first frame where clips would lie before the video. `begin`
does the same, so that the answers about a film are, from its first clip on, those that the model is judged by.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError, nearest
from video.arr.grid import Grid
from video.arr.model import DECODER, Anticipator, Variables

HISTORIES = ('exact', 'cached')


class Answer(NamedTuple):
  """What a step gives.

  Attributes:
    following: f32 [C], probability of each action to start tau_a after the end of the clip; "unknown" is removed.
    recognised: f32 [C + 1], probability of each action to be going on in the clip, the last one "unknown".
  """

  following: np.ndarray
  recognised: np.ndarray


class Latency(NamedTuple):
  """Milliseconds per step; NaN before the first. Compilation is apart.

  Attributes:
    steps: how many were measured.
    encode: median of the encoder and the recognition head.
    decode: median of the decoder and the anticipation head.
    slowest: of all steps, both together.
    compilation: once per streamer.
  """

  steps: int
  encode: float
  decode: float
  slowest: float
  compilation: float

  def __str__(self) -> str:
    return (
      f'{self.steps} steps, encoder {self.encode:.1f} ms, decoder {self.decode:.1f} ms (medians), slowest step '
      f'{self.slowest:.1f} ms, compiled in {self.compilation / 1000:.1f} s'
    )


class Streamer:
  """One stream at a time; `reset` starts another one with the programs that are compiled already.

  Attributes:
    encode_ms, decode_ms: of every step since the reset.
  """

  def __init__(self, model: Anticipator, variables: Variables, grid: Grid, history: str = 'exact'):
    """Args: grid: the model's; its T is the length of the history. history: one of `HISTORIES`."""
    if history not in HISTORIES:
      raise UserError(f"history is '{history}', expected one of {HISTORIES}.{nearest(history, HISTORIES)}")
    self._blind = model.has_blocks and not model.decoder.gpt.causal
    if self._blind and history == 'cached':
      raise UserError("a decoder without its causal mask has no cache, as every clip changes all of them: use 'exact'.")
    # Through the host: arrays that lie on a training mesh would make the state lie there too after its first step, and
    # the second step compile once more.
    self._variables = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), variables)
    self._past = (_Exact if history == 'exact' else _Cached)(model, grid.clips)
    self._encode = jax.jit(lambda variables, clip: _recognise(model, variables, clip))
    self._decode = jax.jit(self._past.step, donate_argnums=2)
    self._compilation = float('nan')
    self.reset()

  def reset(self) -> None:
    """Forgets the stream and its times."""
    self._state, self._begun = self._past.empty(), False
    self.encode_ms: list[float] = []
    self.decode_ms: list[float] = []

  def begin(self, clip: np.ndarray) -> None:
    """Starts the stream as if this clip had been shown for T clips: of a film, its first frame n times."""
    self.reset()
    self._compile(clip)
    z, _ = self._encode(self._variables, clip[None, None])
    self._state, self._begun = self._past.filled(z), True

  def push(self, clip: np.ndarray) -> Answer:
    """The next clip.

    Args:
      clip: what the encoder takes of one clip: uint8 [n, H, W, 3], f32 [F], or an int label of shape [].

    Raises:
      UserError: a clip of another shape; a decoder without causal mask and no `begin`.
    """
    clip = np.asarray(clip)
    if self._blind and not self._begun:
      raise UserError('a decoder without its causal mask needs T clips at once: give it a past with `begin` first.')
    self._compile(clip)
    started = time.perf_counter()
    z, recognised = jax.block_until_ready(self._encode(self._variables, clip[None, None]))
    encoded = time.perf_counter()
    following, self._state = jax.block_until_ready(self._decode(self._variables, z, self._state))
    self.encode_ms.append(1000 * (encoded - started))
    self.decode_ms.append(1000 * (time.perf_counter() - encoded))
    return Answer(np.asarray(following), np.asarray(recognised))

  def latency(self) -> Latency:
    """Of the steps since the reset."""
    encode, decode = (np.array(each or [np.nan]) for each in (self.encode_ms, self.decode_ms))
    slowest = float((encode + decode).max())
    return Latency(len(self.encode_ms), float(np.median(encode)), float(np.median(decode)), slowest, self._compilation)

  def _compile(self, clip: np.ndarray) -> None:
    """Runs both programs once on the side, before the first step, so that no step's time holds a compilation."""
    if np.isnan(self._compilation):
      started = time.perf_counter()
      z, _ = self._encode(self._variables, clip[None, None])
      jax.block_until_ready(self._decode(self._variables, z, self._past.empty()))
      self._compilation = 1000 * (time.perf_counter() - started)


def _recognise(model: Anticipator, variables: Variables, clip: jax.Array) -> tuple[jax.Array, jax.Array]:
  """clip [1, 1, ...] -> z [1, D], probabilities [C + 1]."""
  z = model.encode(variables, clip)[:, 0]
  return z, jax.nn.softmax(model.recognise(variables, z)[0])


def _following(q: jax.Array) -> jax.Array:
  """q [1, C + 1] -> probabilities [C] without "unknown"."""
  return jax.nn.softmax(q[0, :-1])


class _Exact:
  """State: z f32 [1, T, D], oldest first, zeros behind the last; how many there are."""

  def __init__(self, model: Anticipator, clips: int):
    self.model, self.clips = model, clips

  def empty(self) -> Any:
    return jnp.zeros((1, self.clips, self.model.width)), jnp.zeros((), jnp.int32)

  def filled(self, z: jax.Array) -> Any:
    return jnp.tile(z[:, None], (1, self.clips, 1)), jnp.full((), self.clips, jnp.int32)

  def step(self, variables: Variables, z_k: jax.Array, state: Any) -> tuple[jax.Array, Any]:
    """The decoder over all places: those behind the last clip cannot be seen from it."""
    z, count = state
    z = jnp.where(count == self.clips, jnp.roll(z, -1, axis=1), z)
    place = jnp.minimum(count, self.clips - 1)
    z = z.at[:, place].set(z_k)
    q = self.model.anticipate(variables, self.model.reason(variables, z)[:, place])
    return _following(q), (z, place + 1)


class _Cached:
  """State: the decoder's cache; how many positions are taken; the last T // 2 features f32 [1, T // 2, D]."""

  def __init__(self, model: Anticipator, clips: int):
    self.model, self.clips, self.kept = model, clips, clips // 2

  def empty(self) -> Any:
    recent = jnp.zeros((1, self.kept, self.model.width))
    return self.model.empty_cache(1), jnp.zeros((), jnp.int32), recent

  def filled(self, z: jax.Array) -> Any:
    """All positions are taken, so that the next step makes the cache anew from the recent features."""
    cache, _, _ = self.empty()
    return cache, jnp.full((), self.clips, jnp.int32), jnp.tile(z[:, None], (1, self.kept, 1))

  def step(self, variables: Variables, z_k: jax.Array, state: Any) -> tuple[jax.Array, Any]:
    """One position; before it, where there is none left, the cache anew."""
    cache, taken, recent = state
    full = taken == self.clips
    cache = jax.lax.cond(full, self._anew, lambda variables, recent, cache: cache, variables, recent, cache)
    q, cache = self.model.step(variables, z_k, cache)
    recent = jnp.concatenate([recent, z_k[:, None]], axis=1)[:, 1:]
    return _following(q), (cache, jnp.where(full, self.kept, taken) + 1, recent)

  def _anew(self, variables: Variables, recent: jax.Array, cache: Any) -> Any:
    """One pass over the recent features into an empty cache."""
    del cache
    empty = self.model.empty_cache(1)
    if not self.kept:
      return empty
    params = {'params': variables['params'][DECODER]}
    return self.model.decoder.apply(params, recent, cache=empty)[1]
