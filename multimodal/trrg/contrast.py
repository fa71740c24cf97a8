"""Stage 1, sentences against films (spec 3.3 and 4.1): pure functions of arrays, and the choice of a sentence.

  S_ij = e^tau p_i . q_j                                                      films i, sentences j
  L    = -1/(2B) sum_ij [ Yr_ij log softmax_j(S)_ij + Yc_ij log softmax_i(S)_ij ]

Reports repeat themselves: "no pneumothorax" of one patient is not a false sentence for the film of another. The targets
Yr (rows sum to 1) and Yc (columns sum to 1) say which pairs of the batch belong together. Inside `jit` over a mesh the
batch is the whole one: nothing has to be gathered.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError, nearest
from multimodal.trrg.observations import BLANK, NEGATIVE

TARGETS = ('identity', 'label_match', 'study_match', 'medclip_soft')

ABNORMAL = 2
"""As `multimodal.trrg.sentences.kinds` codes a sentence that asserts a disease, or suspects one."""

INITIAL = float(np.log(1 / 0.07))
LARGEST = float(np.log(100.0))
"""tau starts at ln(1 / 0.07) and stays within 0 and ln 100."""


def embed(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """W x / |W x|, f32 [..., d_c], of x [..., d] and the head's kernel [d, d_c]."""
  return unit(x.astype(jnp.float32) @ kernel.astype(jnp.float32))


def unit(x: jax.Array) -> jax.Array:
  """x / |x| over the last axis; of a zero vector: zero, with a gradient that is no NaN."""
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-12))


@jax.custom_vjp
def bounded(log_temperature: jax.Array) -> jax.Array:
  """tau within its bounds.

  Beyond a bound the gradient that leads back passes and the other does not: like MedCLIP's clamping of the parameter
  after each step, and unlike a plain clip, which would hold tau there for good.
  """
  return jnp.clip(log_temperature, 0.0, LARGEST)


def _bounded_backward(log_temperature: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
  outward = ((log_temperature >= LARGEST) & (gradient < 0)) | ((log_temperature <= 0) & (gradient > 0))
  return (jnp.where(outward, 0.0, gradient),)


bounded.defvjp(lambda x: (bounded(x), x), _bounded_backward)


def targets(
  kind: str, text_key: jax.Array, sentence_label: jax.Array, study_label: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Which sentence belongs to which film.

  'identity'      the film's own sentence alone (CLIP)
  'label_match'   also the same words, or the same labels where there are any
  'study_match'   also a sentence with labels, all of which the film's whole report agrees with
  'medclip_soft'  softmax of (label of the report . label of the sentence), over sentences and over films. Labels are 1
                  where present or suspected, -1 where denied, else 0 (our choice: as `ABNORMAL` counts the suspected)

  Args:
    kind: one of `TARGETS`.
    text_key: int32 [B], equal where two sentences have the same words.
    sentence_label, study_label: int8 [B, 14], coding of `observations`.

  Returns:
    (Yr, Yc), f32 [films, sentences] each: rows of the first and columns of the second sum to 1.
  """
  if kind not in TARGETS:
    raise UserError(f"contrast.targets is '{kind}', expected one of {TARGETS}.{nearest(kind, TARGETS)}")
  if kind == 'medclip_soft':
    similarity = _signs(study_label) @ _signs(sentence_label).T
    return jax.nn.softmax(similarity, axis=1), jax.nn.softmax(similarity, axis=0)
  matrix = jnp.eye(len(text_key), dtype=bool)
  mentions = sentence_label != BLANK
  if kind == 'label_match':
    same = (sentence_label[:, None] == sentence_label[None]).all(-1) & mentions.any(-1)
    matrix |= (text_key[:, None] == text_key[None]) | same
  elif kind == 'study_match':
    agrees = (study_label[:, None] == sentence_label[None]) | ~mentions[None]
    matrix |= agrees.all(-1) & mentions.any(-1)[None]
  matrix = matrix.astype(jnp.float32)
  return matrix / matrix.sum(1, keepdims=True), matrix / matrix.sum(0, keepdims=True)


def loss(
  p: jax.Array, q: jax.Array, log_temperature: jax.Array, rows: jax.Array, columns: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """L, in f32.

  Args:
    p, q: f32 [B, d_c], unit vectors of films and sentences.
    log_temperature: tau, f32 scalar.
    rows, columns: of `targets`.

  Returns:
    (L, {'accuracy': share of films whose nearest sentence belongs to them, 'temperature': e^tau}).
  """
  tau = bounded(log_temperature)
  scores = jnp.exp(tau) * jnp.matmul(p, q.T, precision='highest')
  by_row = jnp.sum(rows * jax.nn.log_softmax(scores, axis=1))
  by_column = jnp.sum(columns * jax.nn.log_softmax(scores, axis=0))
  chosen = jnp.take_along_axis(rows, scores.argmax(1, keepdims=True), axis=1)[:, 0]
  return -(by_row + by_column) / (2 * len(p)), {'accuracy': jnp.mean(chosen > 0), 'temperature': jnp.exp(tau)}


def sample(kinds: Sequence[int] | np.ndarray, rng: np.random.Generator, abnormal_first: float = 0.8) -> int:
  """Chooses one sentence of a report (spec 4.1).

  Args:
    kinds: int8 [S], of `sentences.kinds`.
    rng: consumed the same way whatever the report.
    abnormal_first: with this probability one that asserts or suspects a disease, if there is one; else any. 0: uniform.

  Returns:
    Its index. The share of abnormal ones is abnormal_first + (1 - abnormal_first) a / S where a of S > 0 are.
  """
  kinds = np.asarray(kinds)
  if not kinds.size:
    raise UserError('a report without a sentence has nothing to contrast: leave the study out.')
  first, place = rng.random(2)
  abnormal = np.flatnonzero(kinds == ABNORMAL)
  candidates = abnormal if abnormal.size and first < abnormal_first else np.arange(kinds.size)
  return int(candidates[int(place * len(candidates))])


def _signs(labels: jax.Array) -> jax.Array:
  return jnp.where(labels == BLANK, 0.0, jnp.where(labels == NEGATIVE, -1.0, 1.0))
