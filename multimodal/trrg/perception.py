"""Zero-shot disease perception (spec 3.4): prototypes and margins, thresholds, and the clues that pass them.

  g_k(+/-) = norm(mean_j q(prompt_kj(+/-)))        prototypes
  m_k      = e^tau (p . g_k+ - p . g_k-)           margin; its sigmoid saturates, so the margin is what is kept
  clue k   iff m_k > theta_k                       k = 1..13; theta_k maximises F1 on the validation split

Margins are computed on the device; what follows runs on the host, on the margins of a whole split.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError
from multimodal.trrg import contrast
from multimodal.trrg.observations import CLUES, POSITIVE

FEWEST = 5
"""Positives that a class needs before its threshold is searched for."""


def prototypes(q: jax.Array, owner: jax.Array, count: int) -> jax.Array:
  """The unit mean of each owner's embeddings: f32 [count, d_c] of q f32 [M, d_c] and owner i32 [M]."""
  return contrast.unit(means(q, owner, count))


def means(x: jax.Array, owner: jax.Array, count: int) -> jax.Array:
  """The mean of each owner's rows: f32 [count, d] of x f32 [M, d] and owner i32 [M] in [0, count)."""
  total = jax.ops.segment_sum(x, owner, count)
  number = jax.ops.segment_sum(jnp.ones_like(x[:, :1]), owner, count)
  return total / jnp.maximum(number, 1)


def margins(p: jax.Array, positive: jax.Array, negative: jax.Array, log_temperature: jax.Array) -> jax.Array:
  """m f32 [B, K] of films p f32 [B, d_c] (unit) and prototypes f32 [K, d_c]."""
  return jnp.exp(contrast.bounded(log_temperature)) * jnp.matmul(p, (positive - negative).T, precision='highest')


def best_thresholds(margins: np.ndarray, labels: np.ndarray, quantiles: int = 200, fallback: float = 0.0) -> np.ndarray:
  """The threshold of each observation with the best F1, found among quantiles of its margins.

  Args:
    margins: f32 [N, K].
    labels: int8 [N, K], coding of `observations`; only POSITIVE counts as present.
    quantiles: candidates per observation; with N <= quantiles every margin is one, and every cut is tried.
    fallback: of an observation with fewer than `FEWEST` positives.

  Returns:
    theta f32 [K]; of several that are equally good the lowest.
  """
  margins, present = np.asarray(margins, np.float32), np.asarray(labels) == POSITIVE
  if margins.shape != present.shape:
    raise UserError(f'margins {margins.shape} and labels {present.shape} are not of the same studies.')
  theta = np.full(margins.shape[1], fallback, np.float32)
  for k in np.flatnonzero(present.sum(0) >= FEWEST):
    column = margins[:, k]
    if len(column) <= quantiles:
      cuts = np.unique(column)
    else:
      cuts = np.unique(np.quantile(column, np.linspace(0, 1, quantiles), method='lower'))
    cuts = np.concatenate([[np.nextafter(cuts[0], np.float32(-np.inf))], cuts])  # the first lets all pass
    chosen = column[:, None] > cuts
    hits = (chosen & present[:, k, None]).sum(0)
    f1 = 2 * hits / (chosen.sum(0) + present[:, k].sum())
    theta[k] = cuts[f1.argmax()]
  return theta


def select(margins: np.ndarray, theta: np.ndarray, limit: int = CLUES) -> np.ndarray:
  """Which observations are clues: bool [N, 13], at most `limit` per film, those furthest above their threshold.

  Args:
    margins: f32 [N, 14] (or 13).
    theta: f32 [14] (or 13).
    limit: C.
  """
  above = (np.asarray(margins) - np.asarray(theta))[:, :CLUES]
  rank = (-above).argsort(axis=1, kind='stable').argsort(axis=1, kind='stable')
  return (above > 0) & (rank < limit)


def ordered(
  mask: np.ndarray, margins: np.ndarray, theta: np.ndarray, limit: int, rng: np.random.Generator | None = None
) -> np.ndarray:
  """Clue numbers i32 [N, limit], -1 behind the last.

  Args:
    mask: bool [N, 13].
    margins, theta: as in `select`.
    limit: C; of more clues those furthest above their threshold stay.
    rng: None: in descending order of margin - theta (inference); else in a random order (training).
  """
  above = (np.asarray(margins) - np.asarray(theta))[:, :CLUES]
  ids = np.full((len(mask), limit), -1, np.int32)
  for i, row in enumerate(np.asarray(mask)):
    clues = np.flatnonzero(row)
    clues = clues[(-above[i, clues]).argsort(kind='stable')][:limit]
    ids[i, : len(clues)] = clues if rng is None else rng.permutation(clues)
  return ids


def corrupt(ids: np.ndarray, rng: np.random.Generator, drop: float = 0.1, replace: float = 0.05) -> np.ndarray:
  """Clues as they might be wrong, for training (spec 4.2).

  Args:
    ids: i32 [N, C], -1 for none.
    rng: of the noise.
    drop: share of films that lose all their clues.
    replace: share of the other clues that become one that the film's list does not hold.
  """
  given, ids = np.asarray(ids), np.array(ids, np.int32)
  ids[rng.random(len(ids)) < drop] = -1
  for i, slot in zip(*np.nonzero((ids >= 0) & (rng.random(ids.shape) < replace)), strict=True):
    wrong = np.setdiff1d(np.arange(CLUES), [given[i], ids[i]])
    if wrong.size:
      ids[i, slot] = rng.choice(wrong)
  return ids
