"""Cross-modal clue interaction, for any number of clues (spec 3.5; its layers are our choice).

  u_k = LN(W_s c^s_k) + W_m [sigma(m_k - theta_k)] + e        a slot per clue
  w_k = LN(W_w c^w_k)                                         its words
  x   = LN(W_x V)                                             the film
  N times:
    u += MHA(LN u; LN u)                                      diseases that come together
    u += MHA(LN u; LN x)                                      evidence for the clue in the film
    x += tanh(g) MHA(LN x; [null, LN u, LN w])                the film reads clues, coarse and fine
    u += MLP(LN u);  x += tanh(g') MLP(LN x)
  V' = V + W_o (x_N - x_0),  Z = LN(u)

The gates g start at 0, so that V' = V: at first the network is the one without clues. `null` can always be attended to:
a film without clues has no empty softmax. Nothing tells the slots apart but what is in them, nothing flows out of an
empty slot, and its Z is 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from core.errors import UserError
from core.nn.layers import LayerNorm, attention, attention_weights, dense, gelu

REFERENCE_WIDTH = 768
"""Width that the spec's deviation of 0.02 is made for."""
EPSILON = 1e-5


def initial(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
  """Kernels [inputs, outputs]: truncated normal with deviation 0.02 (spec 3.8), wider below 768 inputs.

  The widening keeps a layer's gain in narrow networks (our choice, as in `core.nn.gpt.normal`).
  """
  deviation = 0.02 * max(1.0, (REFERENCE_WIDTH / shape[0]) ** 0.5)
  return nn.initializers.truncated_normal(deviation)(key, shape, dtype)


linear = functools.partial(dense, kernel_init=initial)
norm = functools.partial(LayerNorm, EPSILON)


class Attention(nn.Module):
  """Multi-head attention of one sequence on another.

  Attributes:
    width: of the result; `heads` divides it.
    heads: number of heads.
    dtype: compute type.
  """

  width: int
  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, context: jax.Array, mask: jax.Array | None = None, looking: bool = False
  ) -> tuple[jax.Array, jax.Array | None]:
    """x [B, N, *], context [B, M, *], mask bool [B, M] -> ([B, N, width], f32 [B, N, M] if `looking`).

    The second is the attention, mean over heads.
    """
    if self.width % self.heads:
      raise UserError(f'{self.heads} attention heads do not divide the width {self.width}.')
    split = lambda y: y.reshape(*y.shape[:2], self.heads, -1)  # noqa: E731
    layer = functools.partial(linear, self.width, dtype=self.dtype)
    query, key, value = (split(layer(name=name)(y)) for name, y in (('query', x), ('key', context), ('value', context)))
    pairs = None if mask is None else mask[:, None, None]
    y = attention(query, key, value, mask=pairs).reshape(*x.shape[:2], self.width)
    seen = attention_weights(query, key, mask=pairs).mean(1) if looking else None
    return layer(name='out')(y), seen


class Mlp(nn.Module):
  """Linear, exact GELU, linear."""

  hidden: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, N, C] -> [B, N, C]."""
    hidden = gelu(linear(self.hidden, dtype=self.dtype, name='up')(x))
    return linear(x.shape[-1], dtype=self.dtype, name='down')(hidden)


class Masks(NamedTuple):
  """What is there: films' tokens bool [B, N], clues bool [B, C], words of clues bool [B, C L_w]."""

  visual: jax.Array
  clues: jax.Array
  words: jax.Array


class Layer(nn.Module):
  """One round of the interaction."""

  heads: int
  mlp_dim: int
  dtype: Any

  @nn.compact
  def __call__(
    self,
    u: jax.Array,
    w: jax.Array,
    x: jax.Array,
    masks: Masks,
    drop: Callable[[jax.Array], jax.Array],
    looking: bool,
  ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """u [B, C, d], w [B, C L_w, d], x [B, N, d] -> (u, x, evidence f32 [B, C, N] if `looking`)."""
    batch, clues, width = u.shape
    attend = functools.partial(Attention, width, self.heads, self.dtype)
    gate = lambda name: jnp.tanh(self.param(name, nn.initializers.zeros, ())).astype(self.dtype)  # noqa: E731
    null = self.param('null', nn.initializers.normal(0.02), (1, width)).astype(self.dtype)
    seen, film = None, norm(self.dtype, name='norm_film')(x)
    keys, known = [jnp.broadcast_to(null, (batch, 1, width))], [jnp.ones((batch, 1), bool)]
    if clues:
      own = norm(self.dtype, name='norm_clues')(u)
      u = u + drop(attend(name='clues')(own, own, masks.clues)[0])
      y, seen = attend(name='evidence')(norm(self.dtype, name='norm_evidence')(u), film, masks.visual, looking)
      u = u + drop(y)
      keys += [norm(self.dtype, name='norm_slots')(u), norm(self.dtype, name='norm_words')(w)]
      known += [masks.clues, masks.words]
    y, _ = attend(name='film')(film, jnp.concatenate(keys, 1), jnp.concatenate(known, 1))
    x = x + gate('gate_film') * drop(y)
    if clues:
      u = u + drop(Mlp(self.mlp_dim, self.dtype, name='mlp_clues')(norm(self.dtype, name='norm_mlp_clues')(u)))
    y = Mlp(self.mlp_dim, self.dtype, name='mlp_film')(norm(self.dtype, name='norm_mlp_film')(x))
    return u, x + gate('gate_mlp') * drop(y), seen


class Interaction(nn.Module):
  """The module.

  Attributes:
    width: d.
    heads: of every attention.
    layers: N; 0: film and clues do not meet, V' = V.
    mlp_ratio: hidden width of the MLPs over d.
    dropout: probability, on what each attention and MLP adds, in training.
    dtype: compute type.
  """

  width: int
  heads: int
  layers: int = 2
  mlp_ratio: float = 2
  dropout: float = 0.1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    visual: jax.Array,
    visual_mask: jax.Array,
    sentence: jax.Array,
    words: jax.Array,
    word_mask: jax.Array,
    clue_mask: jax.Array,
    confidence: jax.Array,
    *,
    train: bool = False,
    evidence: bool = False,
  ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Lets a film and its clues read each other.

    Args:
      visual: V [B, N, d_v].
      visual_mask: bool [B, N].
      sentence: c^s f32 [B, C, d_t]; C may be 0.
      words: c^w f32 [B, C, L_w, d_t].
      word_mask: bool [B, C, L_w].
      clue_mask: bool [B, C]; may be False throughout.
      confidence: f32 [B, C], sigma(m - theta) of each clue.
      train: whether dropout acts; it then needs the rng 'dropout'.
      evidence: whether to return what the clues look at.

    Returns:
      V' [B, N, d_v] in the type of V; Z [B, C, d], 0 where there is no clue; with `evidence`, and layers, f32
      [B, C, N]: the last layer's attention of each clue on the film, mean over heads, 0 where there is no clue.
    """
    batch, count = clue_mask.shape
    layer = functools.partial(linear, self.width, dtype=self.dtype)
    slot_mask = clue_mask[..., None]
    kind = self.param('clue', nn.initializers.normal(0.02), (self.width,)).astype(self.dtype)
    u = norm(self.dtype, name='norm_sentence')(layer(name='sentence')(jnp.where(slot_mask, sentence, 0)))
    u = u + layer(use_bias=False, name='confidence')(jnp.where(slot_mask, confidence[..., None], 0)) + kind
    seen, fused = None, visual
    if self.layers:
      known = word_mask & slot_mask
      flat = jnp.where(known[..., None], words, 0).reshape(batch, -1, words.shape[-1])
      w = norm(self.dtype, name='norm_word')(layer(name='word')(flat))
      start = norm(self.dtype, name='norm_visual')(layer(name='visual')(visual))
      masks = Masks(visual_mask, clue_mask, known.reshape(batch, -1))
      drop = lambda y: nn.Dropout(self.dropout, deterministic=not train)(y)  # noqa: E731
      x = start
      for i in range(self.layers):
        block = Layer(self.heads, int(self.mlp_ratio * self.width), self.dtype, name=f'layer_{i}')
        u, x, seen = block(u, w, x, masks, drop, evidence and i == self.layers - 1)
      back = linear(
        visual.shape[-1], use_bias=False, dtype=self.dtype, name='fused', kernel_init=nn.initializers.normal(0.02)
      )
      fused = visual + back(x - start).astype(visual.dtype)
    z = jnp.where(slot_mask, norm(self.dtype, name='norm')(u), 0)
    if evidence and self.layers:
      seen = jnp.zeros((batch, 0, visual.shape[1])) if not count else jnp.where(slot_mask, seen, 0)
    return fused, z, seen
