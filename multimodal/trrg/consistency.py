"""The disease-aware consistency loss (spec 4.2): film, language model and reference must agree on the diseases.

  a_k   = MHA(e_k; V')                                  lv_k = w_k . a_k + b_k         what the film says
  h     = state at the last place of the prompt         ll   = W_h LN(h) + b_h         what the writer is about to say
  L_dac = 1/2 [BCE_w(lv, y) + BCE_w(ll, y)] + beta mean_k KL(Bern(sg sigma(lv_k)) || Bern(sigma(ll_k)))

h stands before the first word of the report: further on, under teacher forcing, the answer could be read off the text.
The name is the paper's, the formula our choice; its parts can be switched off.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from core.errors import UserError, nearest
from multimodal.trrg.interaction import Attention, initial, linear, norm
from multimodal.trrg.observations import OBSERVATIONS, POSITIVE, UNCERTAIN

LOSSES = ('full', 'visual_only', 'llm_only', 'off')


class Disease(nn.Module):
  """The two readings of the diseases.

  Attributes:
    width: of the attention on the film.
    heads: of the same.
    query_width: of the queries e_k: d_t, as they start as the text prototypes (`Reporter.begin`).
    dtype: compute type of the attention.
  """

  width: int
  heads: int
  query_width: int
  dtype: Any = jnp.float32

  def setup(self):
    count = len(OBSERVATIONS)
    self.query = self.param('query', nn.initializers.normal(0.02), (count, self.query_width))
    self.attention = Attention(self.width, self.heads, self.dtype)
    self.classifier = self.param('classifier', lambda key, shape: initial(key, shape[::-1]).T, (count, self.width))
    self.bias = self.param('bias', nn.initializers.zeros, (count,))
    self.norm = norm()
    self.language_head = linear(count)

  def __call__(self, visual: jax.Array, visual_mask: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    """V' [B, N, d_v], bool [B, N], h [B, D] -> (lv, ll), f32 [B, 14] each."""
    return self.visual(visual, visual_mask), self.language(state)

  def visual(self, visual: jax.Array, visual_mask: jax.Array) -> jax.Array:
    """lv f32 [B, 14]."""
    query = jnp.broadcast_to(self.query, (visual.shape[0], *self.query.shape))
    seen, _ = self.attention(query, visual, visual_mask)
    return jnp.einsum('bkd,kd->bk', seen.astype(jnp.float32), self.classifier) + self.bias

  def language(self, state: jax.Array) -> jax.Array:
    """ll f32 [B, 14]."""
    return self.language_head(self.norm(state.astype(jnp.float32)))


def positive_weights(labels: np.ndarray) -> np.ndarray:
  """pos_weight_k = ln(N / N_k+), f32 [K], of labels int8 [N, K] of the training split (RaDialog's log weighting).

  A class without a positive gets that of one with a single positive; one that is nearly always there gets no less than
  0.1 (our choice: 0 would switch it off).
  """
  positives = np.maximum((np.asarray(labels) == POSITIVE).sum(0), 1)
  return np.maximum(np.log(len(labels) / positives), 0.1).astype(np.float32)


def cross_entropy(logits: jax.Array, labels: jax.Array, positive_weight: jax.Array | float = 1.0) -> jax.Array:
  """BCE_w, f32 scalar: mean over the entries that are not uncertain.

  Args:
    logits: f32 [B, K].
    labels: int8 [B, K], coding of `observations`: POSITIVE is 1, UNCERTAIN is left out, the rest is 0.
    positive_weight: f32 [K], factor of the positives' part.
  """
  y, known = labels == POSITIVE, labels != UNCERTAIN
  each = -jnp.where(y, positive_weight * jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits))
  return jnp.sum(jnp.where(known, each, 0)) / jnp.maximum(jnp.sum(known), 1)


def divergence(visual: jax.Array, language: jax.Array) -> jax.Array:
  """mean KL(Bern(sg sigma(visual)) || Bern(sigma(language))), f32 scalar >= 0; no gradient into `visual`."""
  p = jax.nn.sigmoid(jax.lax.stop_gradient(visual))
  entropy = optax.sigmoid_binary_cross_entropy(jax.lax.stop_gradient(visual), p)
  return jnp.mean(optax.sigmoid_binary_cross_entropy(language, p) - entropy)


def loss(
  visual: jax.Array,
  language: jax.Array,
  labels: jax.Array,
  positive_weight: jax.Array,
  *,
  kind: str = 'full',
  beta: float = 0.5,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """L_dac and its parts.

  Args:
    visual, language: lv, ll f32 [B, 14].
    labels: int8 [B, 14] of the reference.
    positive_weight: f32 [14].
    kind: 'full'; 'visual_only' and 'llm_only' are BCE_w of one reading without the KL, which needs both; 'off' is 0.
    beta: weight of the KL.

  Returns:
    (f32 scalar, {'disease_visual', 'disease_language', 'disagreement'} before their weights).
  """
  check(kind)
  parts = {
    'disease_visual': cross_entropy(visual, labels, positive_weight),
    'disease_language': cross_entropy(language, labels, positive_weight),
    'disagreement': divergence(visual, language),
  }
  if kind == 'full':
    total = 0.5 * (parts['disease_visual'] + parts['disease_language']) + beta * parts['disagreement']
  elif kind == 'off':
    total = jnp.zeros(())
  else:
    total = parts['disease_visual' if kind == 'visual_only' else 'disease_language']
  return total, parts


def check(kind: str) -> None:
  """Raises UserError for a variant that does not exist."""
  if kind not in LOSSES:
    raise UserError(f"model.disease.loss is '{kind}', expected one of {LOSSES}.{nearest(kind, LOSSES)}")
