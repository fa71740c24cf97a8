"""The objectives of ARR: pure functions of arrays (spec section 4).

  L     = L_nap + lam_rec L_rec + lam_feat L_feat                       joint training (4.1)
  L_nap = CE(q_T, y_{T+1}) + lam_past mean_{k<T} CE(q_k, y_{k+1})       next action prediction
  L_rec = mean_k CE(r_k, y_k)                                           recognition
  L_feat = mean_{k<T} mean_D (p_k - stop_gradient(z_{k+1}))^2           AVT's auxiliary
  L_pre                                                                 pre-training of the decoder, no labels (4.2)

Shapes: z f32 [B, T, D] the features of the clips; r, q f32 [B, T, C + 1] logits of the clip itself and of the clip
after it; p f32 [B, T, D] the expected feature of the clip after it; labels int [B, T] in [0, C], where C is "unknown"
(nothing is annotated); target int [B] in [0, C), the action to anticipate.

Every mean comes as `Mean(value, weight)`, its weight being the denominator: micro-batches averaged with it
(`core.train.task.LossOutput.weight`) give the gradient of the large batch. A sum of means with different denominators
has no single one: `joint` is exact where unknown clips count like the others (unknown = 'class', unknown_weight = 1, as
by default), and is else the mean over micro-batches of their own objectives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from core.errors import UserError, nearest

UNKNOWN = ('class', 'ignore')
"""What "unknown" clips are: class C like any other (spec), or left out of every mean (AVT). With 'ignore' column C of
the logits stays in the softmax, as a class that never occurs."""

PRETRAINING = ('mse', 'cosine', 'infonce', 'order')
"""What the decoder is pre-trained on: the next feature (spec's default) by three distances, or DCR's frame order."""


class Mean(NamedTuple):
  """A weighted mean and its denominator, both f32 scalars; of nothing: 0 and 0."""

  value: jax.Array
  weight: jax.Array


def mean(values: jax.Array, weights: jax.Array) -> Mean:
  """sum(weights * values) / sum(weights); the gradient of a value with weight 0 is 0."""
  total = jnp.sum(weights)
  return Mean(jnp.sum(weights * values) / jnp.where(total > 0, total, 1.0), total)


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
  """Softmax cross-entropy f32 [...] of logits [..., C + 1] and labels int [...].

  Smoothing s gives every class s / (C + 1) and the label 1 - s on top.
  """
  logits = logits.astype(jnp.float32)
  hard = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  if not smoothing:
    return hard
  return (1 - smoothing) * hard - smoothing * jnp.mean(jax.nn.log_softmax(logits), axis=-1)


def clip_weights(labels: jax.Array, classes: int, *, unknown: str = 'class', unknown_weight: float = 1.0) -> jax.Array:
  """What each clip counts, f32 like `labels` int [...]: 1; unknown clips `unknown_weight`, or 0 with 'ignore'."""
  if unknown not in UNKNOWN:
    raise UserError(f"loss.unknown is '{unknown}', expected one of {UNKNOWN}.{nearest(unknown, UNKNOWN)}")
  return jnp.where(labels == classes, unknown_weight if unknown == 'class' else 0.0, 1.0)


def balancing_weight(counts: np.ndarray) -> float:
  """The `unknown_weight` under which unknown does not dominate the softmax (spec 4.1).

  Args:
    counts: int [C + 1], clips of each class in the training set, unknown last.

  Returns:
    min(1, median count of the classes that occur / count of unknown).
  """
  counts = np.asarray(counts)
  seen = counts[:-1][counts[:-1] > 0]
  return float(min(1.0, np.median(seen) / counts[-1])) if counts[-1] and len(seen) else 1.0


def recognition(
  r: jax.Array, labels: jax.Array, *, unknown: str = 'class', unknown_weight: float = 1.0, smoothing: float = 0.0
) -> Mean:
  """L_rec over all clips of the batch.

  Args:
    r: f32 [..., C + 1].
    labels: int [...] in [0, C].
    unknown: one of `UNKNOWN`.
    unknown_weight: what an unknown clip counts with 'class'.
    smoothing: of the labels, in [0, 1).
  """
  weights = clip_weights(labels, r.shape[-1] - 1, unknown=unknown, unknown_weight=unknown_weight)
  return mean(cross_entropy(r, labels, smoothing), weights)


class NextAction(NamedTuple):
  """The two parts of L_nap: that of the anticipated action and that of the steps within the observed clips."""

  last: Mean
  past: Mean


def next_action(
  q: jax.Array,
  labels: jax.Array,
  target: jax.Array,
  *,
  unknown: str = 'class',
  unknown_weight: float = 1.0,
  smoothing: float = 0.0,
) -> NextAction:
  """L_nap in its two parts: step T on the target, step k < T on the label of clip k + 1 (spec 4.1).

  Args:
    q: f32 [B, T, C + 1].
    labels: int [B, T] in [0, C]; the label of clip 1 is predicted by no step. T = 1: `past` is a mean of nothing.
    target: int [B] in [0, C).
    unknown, unknown_weight, smoothing: as in `recognition`; they concern the past, and smoothing also the last step.
  """
  last = cross_entropy(q[:, -1], target, smoothing)
  following = {'unknown': unknown, 'unknown_weight': unknown_weight, 'smoothing': smoothing}
  return NextAction(mean(last, jnp.ones_like(last)), recognition(q[:, :-1], labels[:, 1:], **following))


def joint(
  outputs: Mapping[str, jax.Array],
  labels: jax.Array,
  target: jax.Array,
  *,
  recognition_weight: float = 1.0,
  past_weight: float = 1.0,
  feature_weight: float = 0.0,
  **options: Any,
) -> tuple[Mean, dict[str, jax.Array]]:
  """L of the joint training.

  Args:
    outputs: 'z', 'r', 'p', 'q' of `model.Anticipator.apply`.
    labels: int [B, T].
    target: int [B].
    recognition_weight, past_weight, feature_weight: lam_rec, lam_past, lam_feat.
    **options: unknown, unknown_weight, smoothing.

  Returns:
    (L with the number of samples as its weight, its four terms by name before their weights).
  """
  nap = next_action(outputs['q'], labels, target, **options)
  terms = {
    'next_action': nap.last.value,
    'next_action_past': nap.past.value,
    'recognition': recognition(outputs['r'], labels, **options).value,
    'feature': feature(outputs['p'], outputs['z']).value,
  }
  weights = (1.0, past_weight, recognition_weight, feature_weight)
  total = sum(weight * term for weight, term in zip(weights, terms.values(), strict=True) if weight)
  return Mean(total, nap.last.weight), terms


# Without labels.


def _paired(p: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(p_k, stop_gradient(z_{k+1})), k = 1, 2, ... as far as z reaches: [B, T - 1, D] for T clips, [B, T, D] for T + 1.

  The gradient stops because features that may move towards their own prediction collapse.
  """
  following = jax.lax.stop_gradient(z[:, 1:]).astype(jnp.float32)
  return p[:, : following.shape[1]].astype(jnp.float32), following


def _over_clips(each: jax.Array) -> Mean:
  """The mean of f32 [B, T]; its weight is the number of entries."""
  return mean(each, jnp.ones_like(each))


def feature(p: jax.Array, z: jax.Array) -> Mean:
  """L_feat: the squared error of p_k [B, T, D] against z_{k+1}, z [B, T, D] or [B, T + 1, D]; T = 1: 0."""
  predicted, following = _paired(p, z)
  return _over_clips(jnp.mean(jnp.square(predicted - following), axis=-1))


def pretraining(
  p: jax.Array, z: jax.Array, sigma: jax.Array | None = None, *, kind: str = 'mse', temperature: float = 0.1
) -> Mean:
  """L_pre: how far the expected features are from those that come (spec 4.2).

  'mse'      mean_D ((p_k - z_{k+1}) / sigma)^2
  'cosine'   1 - cos(p_k, z_{k+1})
  'infonce'  -log softmax over all clips j of all windows of the batch of cos(p_k, z_j) / temperature, at j = k + 1.
             It contrasts within the batch: with micro-batches it has fewer negatives, which is another objective.

  p_k stays in the raw space of z, where a shared classifier can read it; sigma only evens out the dimensions. 'order'
  is of another kind, a loss of positions: `order`.

  Args:
    p: f32 [B, T, D], from the first T clips.
    z: f32 [B, T + 1, D] of a window (or [B, T, D]: the T - 1 pairs within).
    sigma: f32 [D], `deviation` of the training set's features; read by 'mse' alone.
    kind: 'mse', 'cosine' or 'infonce'.
    temperature: of 'infonce'.
  """
  known = tuple(name for name in PRETRAINING if name != 'order')
  if kind not in known:
    raise UserError(f"the next feature is predicted by one of {known}, not '{kind}'.{nearest(kind, known)}")
  predicted, following = _paired(p, z)
  if kind == 'mse':
    return _over_clips(jnp.mean(jnp.square((predicted - following) / sigma), axis=-1))
  predicted, following = _unit(predicted), _unit(following)
  if kind == 'cosine':
    return _over_clips(1 - jnp.sum(predicted * following, axis=-1))
  scores = jnp.einsum('bkd,cjd->bkcj', predicted, following) / temperature
  scores = scores.reshape(*scores.shape[:2], -1)
  return _over_clips(cross_entropy(scores, jnp.arange(scores.shape[-1]).reshape(scores.shape[:2])))


def order(scores: jax.Array, width: float = 5.0) -> Mean:
  """DCR's frame order: at which place of the window does each clip stand?

  The decoder runs without positions and without its mask, so that nothing but the content can tell; a cosine classifier
  over its outputs gives the scores (`model.Anticipator.order`). Near places are nearly right: place j has the target
  exp(-((i - j) / width)^2), not normalised, as in DCR's code.

  Args:
    scores: f32 [B, T, T], cosine of clip i (first T) with the prototype of place j.
    width: in clips (DCR: 5, for 48 clips at 4 a second).
  """
  place = jnp.arange(scores.shape[-1])
  targets = jnp.exp(-jnp.square((place[:, None] - place) / width))
  return _over_clips(-jnp.sum(targets * jax.nn.log_softmax(scores.astype(jnp.float32)), axis=-1))


def _unit(x: jax.Array) -> jax.Array:
  """x / |x| over the last axis; a zero vector has a zero, and not a NaN, gradient."""
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-12))


def deviation(z: jax.Array) -> jax.Array:
  """sigma f32 [D] of features [..., D]: standard deviations, none below a hundredth of their mean.

  The floor is ours: a dimension that hardly moves would otherwise weigh without bound.
  """
  sigma = jnp.std(z.astype(jnp.float32).reshape(-1, z.shape[-1]), axis=0)
  return jnp.maximum(sigma, jnp.maximum(0.01 * jnp.mean(sigma), 1e-6))


class Skill(NamedTuple):
  """Squared errors of prediction and of copying, and what the former saves of the latter; f32 scalars."""

  skill: jax.Array
  error: jax.Array
  copying: jax.Array


def skill(p: jax.Array, z: jax.Array) -> Skill:
  """1 - MSE(p_k, z_{k+1}) / MSE(z_k, z_{k+1}): neighbouring clips are alike, so a small error alone means nothing.

  Of a video in which nothing moves (copying is perfect): 0 where the prediction is perfect too, else -inf.
  Arguments as in `feature`. To average over batches, average the two errors.
  """
  error, copying = feature(p, z).value, feature(z, z).value
  return Skill(skill_of(error, copying), error, copying)


def skill_of(error: jax.Array, copying: jax.Array) -> jax.Array:
  """The skill of two mean squared errors, guarded as in `skill`."""
  ratio = error / jnp.where(copying > 0, copying, 1.0)
  return jnp.where(copying > 0, 1 - ratio, jnp.where(error > 0, -jnp.inf, 0.0))
