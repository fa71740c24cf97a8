"""Error rates of presentation attack detection: functions of (scores, labels), and counts that merge over batches.

Conventions (FAS-Aug spec section 5; ISO/IEC 30107-3 for APCER and BPCER): a score is larger for a live face, the label
is 1 for live and 0 for spoof, and a sample is accepted as live when `score >= threshold`.

  FAR(t)  = #{spoof: s >= t} / #spoof        FRR(t) = #{live: s < t} / #live        HTER(t) = (FAR + FRR) / 2
  EER     = HTER at the threshold where |FAR - FRR| is smallest
  APCER   = FAR of the worst attack type     BPCER  = FRR                           ACER    = (APCER + BPCER) / 2

"HTER" without a threshold means four different things in the literature; `hter_readings` gives them all, by name.

Undefined rates are NaN and never an exception: a domain with one class only is an everyday thing in leave-one-out
work, and one such domain must not end an evaluation. What the caller got wrong (shapes, labels other than 0 and 1,
scores that are not numbers) is a `UserError`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics

from core.errors import UserError

NAN = float('nan')


@dataclasses.dataclass(frozen=True)
class Curve:
  """Error rates at every threshold that can be told apart, from the strictest to the most lenient.

  Attributes:
    thresholds: f64 [n + 1], falling: first one that rejects every sample (above the highest score), then every
      distinct score.
    far: f64 [n + 1], rises from 0 to 1; NaN without spoof samples.
    frr: f64 [n + 1], falls from 1 to 0; NaN without live samples.
  """

  thresholds: np.ndarray
  far: np.ndarray
  frr: np.ndarray


def roc(scores: Any, labels: Any) -> Curve:
  """FAR and FRR at every threshold; `1 - frr` over `far` is the ROC curve, `frr` over `far` the DET curve.

  Equal to `sklearn.metrics.roc_curve(labels, scores, drop_intermediate=False)`, except that the first threshold is a
  finite number.

  Args:
    scores: [n], any finite numbers, larger for live.
    labels: [n], 1 live, 0 spoof.
  """
  scores, labels = _checked(scores, labels)
  order = np.argsort(-scores, kind='stable')
  ranked, live = scores[order], labels[order]
  last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # the last sample of each group of equal scores
  accepted_live, accepted_spoof = np.cumsum(live)[last], np.cumsum(~live)[last]
  far = np.append(0.0, accepted_spoof) / (_count(~live) or NAN)
  frr = 1.0 - np.append(0.0, accepted_live) / (_count(live) or NAN)
  return Curve(np.append(np.nextafter(ranked[0], np.inf), ranked[last]), far, frr)


def auc(scores: Any, labels: Any) -> float:
  """Area under the ROC curve: P(live scores above spoof), ties counting one half; NaN when a class is missing."""
  curve = roc(scores, labels)
  return float(np.trapezoid(1.0 - curve.frr, curve.far))


def far_frr(scores: Any, labels: Any, threshold: float) -> tuple[float, float]:
  """(FAR, FRR) at a threshold; a rate whose class is missing is NaN, and both are at a NaN threshold."""
  scores, labels = _checked(scores, labels)
  accepted = _accepted(scores, threshold)
  return _mean(accepted[~labels]), _mean(1 - accepted[labels])


def hter(scores: Any, labels: Any, threshold: float) -> float:
  """Half total error rate, (FAR + FRR) / 2, at a threshold; NaN when a class is missing."""
  return float(np.mean(far_frr(scores, labels, threshold)))


def eer(scores: Any, labels: Any) -> tuple[float, float]:
  """(equal error rate, its threshold): the HTER where |FAR - FRR| is smallest, the lower HTER among equals.

  The threshold lies half-way between the two neighbouring scores (our choice: it decides these samples alike, and
  is kinder to the next sample than a score that happened to occur). Both are NaN when a class is missing; constant
  scores give (0.5, above the constant: reject).
  """
  curve = roc(scores, labels)
  if np.isnan(curve.far[0] + curve.frr[0]):
    return NAN, NAN
  total = (curve.far + curve.frr) / 2
  # Rates are ratios of counts: equal gaps may differ in the last bit.
  gap = np.round(np.abs(curve.far - curve.frr), 12)
  best = int(np.lexsort((total, gap))[0])
  return float(total[best]), _between(curve.thresholds, best)


def min_hter(scores: Any, labels: Any, grid: int = 0) -> tuple[float, float]:
  """(lowest HTER over all thresholds, its threshold), chosen on these very samples.

  Args:
    scores: [n], larger for live.
    labels: [n], 1 live, 0 spoof.
    grid: 0 tries every threshold that can be told apart; n > 0 tries n equally spaced ones between the lowest and the
      highest score (FAS-Aug release: 100001), which can only be higher.
  """
  curve = roc(scores, labels)
  if np.isnan(curve.far[0] + curve.frr[0]):
    return NAN, NAN
  if grid:
    tried = np.linspace(curve.thresholds[-1], curve.thresholds[1], grid)
    # Thresholds fall: the rates at t are those of the last point of the curve whose threshold is >= t.
    at = np.searchsorted(-curve.thresholds, -tried, side='right') - 1
    total = (curve.far + curve.frr)[at] / 2
    best = int(np.argmin(total))
    return float(total[best]), float(tried[best])
  total = (curve.far + curve.frr) / 2
  best = int(np.argmin(total))
  return float(total[best]), _between(curve.thresholds, best)


def hter_readings(scores: Any, labels: Any, dev_threshold: float | None = None) -> dict[str, float]:
  """The four readings of "HTER" (spec section 5).

  Returns:
    'hter_at_eer': threshold at the EER of these samples (SSDG, ViTAF, SA-FAS: the field's habit);
    'min_hter': the best threshold on these samples (FAS-Aug release, which also selects the model with it);
    'hter_at_0.5': fixed;
    'hter_at_dev': `dev_threshold`, the EER threshold of held-out SOURCE videos: the only one of the four that does not
      look at the labels it is judged by. NaN when `dev_threshold` is None.
  """
  return {
    'hter_at_eer': eer(scores, labels)[0],
    'min_hter': min_hter(scores, labels)[0],
    'hter_at_0.5': hter(scores, labels, 0.5),
    'hter_at_dev': NAN if dev_threshold is None else hter(scores, labels, dev_threshold),
  }


def apcer_bpcer_acer(scores: Any, labels: Any, attack_types: Any, threshold: float) -> dict[str, Any]:
  """ISO/IEC 30107-3 rates at a threshold.

  Args:
    scores: [n], larger for live.
    labels: [n], 1 live, 0 spoof.
    attack_types: [n], name or number of the attack of each spoof sample; ignored on live samples.
    threshold: accepted as live at or above it.

  Returns:
    'apcer': of the worst attack type; 'bpcer'; 'acer'; 'apcer_by_type': {type: rate}. NaN where a class is missing, or
    the threshold is NaN.
  """
  scores, labels = _checked(scores, labels)
  kinds = np.asarray(attack_types)
  if kinds.shape != scores.shape:
    raise UserError(f'attack_types has the shape {kinds.shape}, expected one per score: {scores.shape}.')
  accepted = _accepted(scores, threshold)
  by_type = {kind: _mean(accepted[~labels & (kinds == kind)]) for kind in np.unique(kinds[~labels]).tolist()}
  apcer, bpcer = max(by_type.values(), default=NAN), _mean(1 - accepted[labels])
  return {'apcer': apcer, 'bpcer': bpcer, 'acer': (apcer + bpcer) / 2, 'apcer_by_type': by_type}


def frr_at_far(scores: Any, labels: Any, far: float) -> tuple[float, float]:
  """(lowest FRR among thresholds whose FAR is at most `far`, its threshold): 'BPCER at 1% APCER' and the like."""
  curve = roc(scores, labels)
  if np.isnan(curve.far[0] + curve.frr[0]):
    return NAN, NAN
  allowed = int(np.flatnonzero(curve.far <= far)[-1])  # far[0] is 0; FRR falls along the curve
  allowed = int(np.flatnonzero(curve.frr == curve.frr[allowed])[0])
  return float(curve.frr[allowed]), _between(curve.thresholds, allowed)


def summary(
  scores: Any,
  labels: Any,
  *,
  attack_types: Any = None,
  dev_threshold: float | None = None,
  threshold: float | None = None,
) -> dict[str, float]:
  """All scalar rates of one set of samples, flat.

  Args:
    scores: [n], larger for live.
    labels: [n], 1 live, 0 spoof.
    attack_types: [n] or None: without it all spoofs count as one type.
    dev_threshold: for 'hter_at_dev', see `hter_readings`.
    threshold: where APCER, BPCER and ACER are taken: `dev_threshold` when None, and the EER threshold when both are.

  Returns:
    'auc', 'eer', 'eer_threshold', the readings of `hter_readings`, 'apcer', 'bpcer', 'acer', 'frr_at_far_0.01',
    'apcer/<type>' for each attack type when these are given, 'live' and 'spoof' (counts).
  """
  rate, own_threshold = eer(scores, labels)
  at = next((t for t in (threshold, dev_threshold) if t is not None), own_threshold)
  checked, live = _checked(scores, labels)
  kinds = np.zeros(checked.shape, np.int8) if attack_types is None else attack_types
  iso = apcer_bpcer_acer(checked, live, kinds, at)
  by_type = {} if attack_types is None else {f'apcer/{kind}': r for kind, r in iso['apcer_by_type'].items()}
  return {
    'auc': auc(scores, labels),
    'eer': rate,
    'eer_threshold': own_threshold,
    **hter_readings(scores, labels, dev_threshold),
    **{name: iso[name] for name in ('apcer', 'bpcer', 'acer')},
    'frr_at_far_0.01': frr_at_far(scores, labels, 0.01)[0],
    **by_type,
    'live': float(_count(live)),
    'spoof': float(_count(~live)),
  }


@dataclasses.dataclass(frozen=True)
class Videos:
  """Scores of videos.

  Attributes:
    scores: f64 [videos], mean of each video's frame scores.
    labels: int64 [videos].
    ids: [videos], sorted.
    first: int64 [videos], index of each video's first frame: `attack_types[first]` is one entry per video.
    frames: int64 [videos], number of frames.
  """

  scores: np.ndarray
  labels: np.ndarray
  ids: np.ndarray
  first: np.ndarray
  frames: np.ndarray


def video_level(scores: Any, labels: Any, video_ids: Any) -> Videos:
  """Means of frame scores per video (spec section 5).

  Raises:
    UserError: frames of one video have different labels: its id is not unique (two domains may use the same ids).
  """
  scores, labels = _checked(scores, labels)
  videos = np.asarray(video_ids)
  if videos.shape != scores.shape:
    raise UserError(f'video_ids has the shape {videos.shape}, expected one per score: {scores.shape}.')
  ids, first, inverse, frames = np.unique(videos, return_index=True, return_inverse=True, return_counts=True)
  mixed = ids[np.bincount(inverse, labels != labels[first][inverse]) > 0]
  if len(mixed):
    raise UserError(
      f'Frames of video {mixed[0]!s} are labelled both live and spoof ({len(mixed)} such videos): make video ids'
      " unique, for example 'domain/video'."
    )
  means = np.bincount(inverse, scores) / frames
  return Videos(means, labels[first].astype(np.int64), ids, first, frames)


@flax.struct.dataclass
class ScoreHistogram(clu_metrics.Metric):
  """Counts of scores in [0, 1], per class: merges over batches, devices and processes, and holds no samples.

  For evaluations too large to gather. Its rates are those of scores rounded down to 1 / BINS.

  Attributes:
    counts: f32 [2, BINS]; row 0 spoof, row 1 live. Exact up to 2^24 samples per bin.
  """

  BINS = 1000

  counts: jax.Array

  @classmethod
  def empty(cls) -> ScoreHistogram:
    """No samples."""
    return cls(jnp.zeros((2, cls.BINS), jnp.float32))

  @classmethod
  def from_model_output(cls, score: jax.Array, label: jax.Array, mask: jax.Array | None = None, **_) -> ScoreHistogram:
    """Counts of one batch: `score` f32 [B] in [0, 1], `label` int [B], `mask` bool [B] (False: padding)."""
    bins = jnp.clip((score * cls.BINS).astype(jnp.int32), 0, cls.BINS - 1)
    weights = jnp.ones(score.shape, jnp.float32) if mask is None else mask.astype(jnp.float32)
    return cls(jnp.zeros((2, cls.BINS), jnp.float32).at[label.astype(jnp.int32), bins].add(weights))

  def merge(self, other: ScoreHistogram) -> ScoreHistogram:
    """The samples of both."""
    return type(self)(self.counts + other.counts)

  def compute(self) -> Mapping[str, float]:
    """`summary` of the counted samples, without attack types."""
    counts = np.asarray(self.counts, np.int64)
    if not counts.sum():
      return {}
    floors = np.arange(self.BINS) / self.BINS
    scores = np.concatenate([np.repeat(floors, row) for row in counts])
    return summary(scores, np.repeat([0, 1], counts.sum(axis=1)))


def _checked(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
  """Scores as f64 [n] and labels as bool [n]."""
  scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
  if scores.ndim != 1 or scores.shape != labels.shape or not len(scores):
    raise UserError(
      f'Scores of shape {scores.shape} and labels of shape {labels.shape}: expected two vectors of one length > 0.'
    )
  strange = np.setdiff1d(labels, (0, 1))
  if len(strange):
    raise UserError(f'Label {strange[0]} found; expected 1 (live) or 0 (spoof): map attack types to 0 first.')
  if not np.isfinite(scores).all():
    raise UserError(
      f'{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite (first: sample'
      f' {int(np.flatnonzero(~np.isfinite(scores))[0])}); a diverged model gives such scores.'
    )
  return scores, labels.astype(bool)


def _accepted(scores: np.ndarray, threshold: float) -> np.ndarray:
  """f64 [n]: 1 where accepted as live; NaN everywhere for a NaN threshold (an undefined one must not look strict)."""
  return np.full(scores.shape, NAN) if np.isnan(threshold) else (scores >= threshold).astype(np.float64)


def _between(thresholds: np.ndarray, index: int) -> float:
  """A threshold that decides like `thresholds[index]`, half-way to the next lower score where there is one."""
  if index + 1 == len(thresholds):
    return float(thresholds[index])
  middle = (thresholds[index] + thresholds[index + 1]) / 2
  return float(middle if middle > thresholds[index + 1] else thresholds[index])


def _count(mask: np.ndarray) -> int:
  return int(np.count_nonzero(mask))


def _mean(values: np.ndarray) -> float:
  """Mean, NaN (without a warning) of nothing."""
  return float(np.mean(values)) if len(values) else NAN
