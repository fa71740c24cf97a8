"""How a classifier is judged: error rates at two levels and four readings of HTER, and which artefact flips decisions.

The score of a frame is P(live), that of a video the mean over its frames (spec section 5). The threshold that a run is
judged at, and that its checkpoint keeps, is the equal-error threshold of the split 'val': subjects of the SOURCE
domains that were held out of training. It never looks at the target (spec section 10: "which threshold is HTER?").
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from core.data import face_frames, pipeline
from core.metrics import biometrics
from core.train import forward
from core.train.task import Evaluation, Variables
from fas.fas_aug import operators, policy
from fas.fas_aug.assets import Assets

LIVE = face_frames.LABELS.index('live')
LEVELS = ('frame', 'video')

ARTEFACT_LEVELS = (3, 6, 9)
"""Operator levels k of the artefact report, of 0..9 (our choice: weak, middle, strongest)."""

ARTEFACT_FRAMES = 128
"""Frames per class that the artefact report alters (our choice: a rate is then known to about 4 percent points)."""


@dataclasses.dataclass(frozen=True)
class Scores:
  """Scores of one split, one row per frame or per video.

  Attributes:
    score: f64 [n], P(live).
    label: int64 [n], 1 live, 0 spoof.
    attack: str [n], 'live', 'print', 'replay' or 'mask'.
    video: str [n], 'domain/video': unique over all domains.
    domain: str [n].
    subject: str [n], 'domain/subject'.
    frame: int64 [n], number of the frame in its video; of a video, how many frames were averaged.
    position: int64 [n], where the frame (the video's first frame) stands in the split's records.
  """

  score: np.ndarray
  label: np.ndarray
  attack: np.ndarray
  video: np.ndarray
  domain: np.ndarray
  subject: np.ndarray
  frame: np.ndarray
  position: np.ndarray

  def videos(self) -> Scores:
    """The same split with one row per video."""
    mean = biometrics.video_level(self.score, self.label, self.video)
    first = {name: getattr(self, name)[mean.first] for name in ('attack', 'domain', 'subject', 'position')}
    return Scores(score=mean.scores, label=mean.labels, video=mean.ids, frame=mean.frames, **first)

  def at(self, level: str) -> Scores:
    """These scores at the level 'frame' or 'video'."""
    return self.videos() if level == 'video' else self


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
  """The thresholds that decisions are made at.

  Attributes:
    frame: accepts a single frame at or above it.
    video: accepts a video's mean score at or above it.
    held_out: whether held-out source subjects chose them; otherwise both are 0.5.
    chosen_by: which data chose them, in words.
  """

  frame: float
  video: float
  held_out: bool
  chosen_by: str

  def at(self, level: str) -> float:
    """The threshold of the level 'frame' or 'video'."""
    return self.video if level == 'video' else self.frame

  @classmethod
  def of(cls, validation: Scores | None) -> OperatingPoint:
    """The equal-error thresholds of held-out subjects; 0.5 where there are none, or of one class only."""
    if validation is None:
      return cls(0.5, 0.5, False, 'fixed at 0.5: no source subject was held out (config.data.validation_fraction)')
    thresholds = {level: biometrics.eer(*_pair(validation.at(level)))[1] for level in LEVELS}
    domains = ', '.join(np.unique(validation.domain))
    videos = validation.videos().label
    counted = f'{int(np.sum(videos == 1))} live and {int(np.sum(videos == 0))} spoof videos'
    who = f'{counted} of {len(np.unique(validation.subject))} held-out subjects of the sources ({domains})'
    if np.isnan(thresholds['video']):
      return cls(0.5, 0.5, False, f'fixed at 0.5: {who} lack a class')
    return cls(thresholds['frame'], thresholds['video'], True, f'EER of {who}')


class Scorer:
  """Live scores of pictures, in batches of one size, on the devices where the variables lie (also divided ones)."""

  def __init__(self, classifier: Any, batch_size: int):
    self.batch_size = batch_size
    self._score = jax.jit(lambda variables, images: live_scores(classifier, variables, to_unit(images)))

  def __call__(self, variables: Variables, images: np.ndarray) -> np.ndarray:
    """P(live), f64 [N], of uint8 [N, S, S, 3]."""
    return forward.in_batches(self._score, variables, [images], self.batch_size).astype(np.float64)

  def over(self, variables: Variables, batches: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """P(live), f64 [N], of the 'image' of batches as `pipeline.eval_batches` makes them."""
    return forward.over(self._score, variables, batches, ('image',)).astype(np.float64)


class Judge:
  """The evaluators of FAS-Aug: `(variables, split) -> Evaluation`.

  Scores are kept as long as the same variables are asked about, so that the threshold that 'val' chooses is at hand for
  every other split without a second pass.
  """

  def __init__(self, classifier: Any, frames: Any, config: Any, assets: Assets | None = None):
    """Args: classifier: `model.Classifier`; frames: `data.Frames`; config: the experiment's; assets: a user's own."""
    self.frames, self.batch_size = frames, config.eval.batch_size
    self._assets = Assets() if assets is None else assets
    self._held_out = bool(config.data.validation_fraction)
    self._scorer = Scorer(classifier, self.batch_size)
    self._altered = jax.jit(lambda *arguments: altered_scores(classifier, *arguments))
    self.scores = forward.Memo(self._score_split)  # (variables, split) -> Scores of all frames
    self._announced = ''

  def biometrics(self, variables: Variables, split: str) -> Evaluation:
    """Error rates of a split at frame and video level.

    Returns:
      scalars '<level>/<name>' with the names of `core.metrics.biometrics.summary` ('apcer/print', 'apcer/replay' ... by
      attack), and '<level>/threshold', at which APCER, BPCER and ACER are taken; arrays as in `Scores`; metadata: see
      `_metadata`. Rates of a class that the split lacks are NaN.
    """
    point = self.operating_point(variables)
    scores = self.scores(variables, split)
    scalars: dict[str, float] = {}
    for level in LEVELS:
      judged, threshold = scores.at(level), point.at(level)
      rates = biometrics.summary(
        *_pair(judged),
        attack_types=judged.attack,
        dev_threshold=threshold if point.held_out else None,
        threshold=threshold,
      )
      scalars |= {f'{level}/{name}': value for name, value in rates.items()} | {f'{level}/threshold': threshold}
    arrays = {field.name: getattr(scores, field.name) for field in dataclasses.fields(scores)}
    return Evaluation(scalars, arrays, _metadata(point))

  def artefacts(self, variables: Variables, split: str) -> Evaluation:
    """Which operator at which level flips decisions, on up to `ARTEFACT_FRAMES` frames per class at the threshold.

    Returns:
      scalars '<operator>/<level>/bpcer' (live frames that an operator which keeps the label makes rejected) and
      '<operator>/<level>/apcer': spoof frames accepted, of operators that keep the label; live frames with the artefact
      that are still accepted as live, of operators that make a spoof. 'none/bpcer' and 'none/apcer' are the unaltered
      frames. arrays: 'operator' [8], 'flips' [8], 'level' [3], 'bpcer' and 'apcer' f64 [8, 3] (NaN: not defined), and
      'none' [bpcer, apcer], 'threshold', 'frames' [live, spoof].
    """
    point = self.operating_point(variables)
    scores = self.scores(variables, split)
    records = self.frames.split(split)
    chosen = {label: _spread(np.flatnonzero(scores.label == label), ARTEFACT_FRAMES) for label in (0, 1)}
    accepted = lambda values: float(np.mean(values >= point.frame)) if len(values) else biometrics.NAN  # noqa: E731
    none = (1 - accepted(scores.score[chosen[1]]), accepted(scores.score[chosen[0]]))
    pictures = {label: [records[int(i)]['image'] for i in which] for label, which in chosen.items()}
    shape = (len(operators.NAMES), len(ARTEFACT_LEVELS))
    bpcer, apcer = np.full(shape, np.nan), np.full(shape, np.nan)
    for o, flips in enumerate(operators.FLIPS):
      for j, level in enumerate(ARTEFACT_LEVELS):
        after = {}
        for label in (1,) if flips else (0, 1):
          strength = np.float32(level / (operators.LEVELS - 1))
          after[label] = accepted(self._alter(variables, pictures[label], chosen[label], o, strength))
        apcer[o, j] = after[1] if flips else after[0]
        bpcer[o, j] = np.nan if flips else 1 - after[1]
    return _artefact_evaluation(bpcer, apcer, none, point, [len(chosen[1]), len(chosen[0])])

  def operating_point(self, variables: Variables) -> OperatingPoint:
    """The thresholds that held-out source subjects choose for these variables; says once which data they are."""
    point = OperatingPoint.of(self.scores(variables, 'val') if self._held_out else None)
    if point.chosen_by != self._announced and jax.process_index() == 0:
      print(f'Decision threshold: {point.chosen_by}.', flush=True)
    self._announced = point.chosen_by
    return point

  def _score_split(self, variables: Variables, split: str) -> Scores:
    records = self.frames.split(split)
    batches = pipeline.eval_batches(records, self.batch_size, _picture)
    scores = self._scorer.over(variables, batches)
    table, domain = records.table, records.table['domain'].astype(str)
    return Scores(
      score=scores,
      label=table['label'].astype(np.int64),
      attack=np.array(face_frames.ATTACKS)[table['attack']],
      video=np.strings.add(np.strings.add(domain, '/'), table['video'].astype(str)),
      domain=domain,
      subject=np.strings.add(np.strings.add(domain, '/'), table['subject'].astype(str)),
      frame=table['frame'].astype(np.int64),
      position=np.arange(len(scores)),
    )

  def _alter(self, variables, pictures: list[np.ndarray], positions: np.ndarray, operator: int, level) -> np.ndarray:
    """Scores f64 [N] of pictures after one operator."""
    if not pictures:
      return np.zeros(0)
    share = policy.level_shares(pictures[0].shape[0]).get(operators.NAMES[operator], 1.0)
    step = lambda *arrays: self._altered(*arrays, np.int32(operator), np.float32(level * share), self._assets)  # noqa: E731
    rows = [np.stack(pictures), positions.astype(np.uint32)]
    return forward.in_batches(step, variables, rows, self.batch_size).astype(np.float64)


def live_scores(classifier: Any, variables: Variables, images: jax.Array) -> jax.Array:
  """P(live), f32 [B], of images f32 [B, H, W, 3] in [0, 1]."""
  outputs, _ = classifier.apply(variables, images)
  return jax.nn.softmax(outputs['logits'].astype(jnp.float32))[..., LIVE]


def altered_scores(
  classifier: Any,
  variables: Variables,
  images: jax.Array,
  ids: jax.Array,
  operator: jax.Array,
  level: jax.Array,
  assets: Assets,
) -> jax.Array:
  """P(live), f32 [B], after one operator on every image.

  Args:
    classifier: `model.Classifier`.
    variables: its variables.
    images: uint8 [B, S, S, 3].
    ids: uint32 [B]; the operator's randomness on an image follows from its id alone.
    operator: i32 scalar, place in `operators.NAMES`; a conditional, not a select: only this operator is computed.
    level: f32 scalar in [0, 1].
    assets: what the operators draw from.
  """
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), ids)
  branches = [
    jax.vmap(functools.partial(getattr(operators, name), assets=assets), (0, 0, None)) for name in operators.NAMES
  ]
  return live_scores(classifier, variables, jax.lax.switch(operator, branches, keys, to_unit(images), level))


def to_unit(images: jax.Array) -> jax.Array:
  """uint8 pictures as f32 in [0, 1]."""
  return images.astype(jnp.float32) / 255.0


def _picture(record: dict[str, Any]) -> dict[str, Any]:
  """What scoring needs of a record; the rest comes from the table, without decoding anything."""
  return {'image': record['image']}


def _pair(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
  return scores.score, scores.label


def _spread(indices: np.ndarray, count: int) -> np.ndarray:
  """At most `count` of the indices at even distances: all domains, attacks and subjects stay represented."""
  return indices[np.unique(np.linspace(0, len(indices) - 1, min(count, len(indices))).round().astype(np.int64))]


def _metadata(point: OperatingPoint) -> dict[str, Any]:
  """What the checkpoint keeps for `launch.predict` and for a reader."""
  return {
    'threshold': point.video,
    'threshold_level': 'video',
    'frame_threshold': point.frame,
    'threshold_held_out': point.held_out,
    'threshold_from': point.chosen_by,
    'classes': list(face_frames.LABELS),
    'decision': "'live' where the score, P(live), is at or above the threshold; 'spoof' below",
  }


def _artefact_evaluation(
  bpcer: np.ndarray, apcer: np.ndarray, none: tuple[float, float], point: OperatingPoint, frames: list[int]
) -> Evaluation:
  """The matrices as named scalars and as arrays for a heat map."""
  scalars = {'none/bpcer': none[0], 'none/apcer': none[1]}
  for o, name in enumerate(operators.NAMES):
    for j, level in enumerate(ARTEFACT_LEVELS):
      scalars[f'{name}/{level}/apcer'] = float(apcer[o, j])
      if not operators.FLIPS[o]:
        scalars[f'{name}/{level}/bpcer'] = float(bpcer[o, j])
  arrays = {
    'operator': np.array(operators.NAMES),
    'flips': np.array(operators.FLIPS),
    'level': np.array(ARTEFACT_LEVELS),
    'bpcer': bpcer,
    'apcer': apcer,
    'none': np.array(none),
    'threshold': np.array(point.frame),
    'frames': np.array(frames),
  }
  return Evaluation(scalars, arrays)
