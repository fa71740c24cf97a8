"""Whether pictures show a face, and whose: FDFR, ISM and SER-FIQ, over a detector and an embedder of your choice.

For generated pictures of a person (DDAP spec 5):

  FDFR     share of pictures in which no face is found
  ISM      cosine between the embedding of a picture's largest face and the mean embedding of the person's clean photos;
           mean over the pictures with a face
  SER-FIQ  quality of a face from how much T stochastic embeddings of it, at unit length, differ: d = mean Euclidean
           distance of the pairs, q = 2 / (1 + e^d), score = 1 / (1 + e^(-130 (q - 0.88))); mean over those pictures

Who protects a person wants FDFR up, ISM and SER-FIQ down. A method that destroys faces leaves a biased rest, therefore
`ism_missing_zero` counts pictures without a face as 0. What cannot be computed is None with its reason, never a number.

What may be compared: figures of one detector, one embedder, one alignment, and clean photos of the same sets (here all
of A, B and C); `Judge.describe` names them, so keep it beside every figure. Published tables of Anti-DreamBooth use
RetinaFace at 0.9 and ArcFace of deepface 0.0.79: with another detector or embedder the numbers are others. Never
compare across repositories: HF-ADB's "FDFR" counts detections and its ISM resizes the whole picture without looking for
a face, MetaCloak reports distances of VGG-Face, PID counts missing faces as 0. An embedder that sees unaligned crops
(detectors without landmarks, such as 'haar') gives lower cosines for one person, in clean photos as well.

Nothing is downloaded, and no weights come with Verax: SER-FIQ's are for non-commercial use only (CC BY-NC-SA).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from scipy.spatial import distance

from core.data import face, image
from core.errors import UserError

SIDE = 112
"""Pixels of the crop that embedders of the ArcFace family take."""
TEMPLATE = (
  np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]) + 0.5
) / SIDE
"""Where eyes, nose and mouth corners lie in that crop, as shares of its side: ArcFace's points in pixels of the field's
aligned crops, whose pixel centres are at integers; ours are at halves."""
BOX_MARGIN = 0.13
"""Added on each side of a box without landmarks, as a share of it (our choice: eyes are then as far apart as in an
aligned crop, if they are 0.4 of the box apart)."""
YUNET_SCORE = 0.9
"""Least score of a YuNet face: the threshold that the field uses with RetinaFace (spec 5)."""
SLOPE, CENTRE = 130.0, 0.88
"""SER-FIQ's logistic scaling."""

Embedder = Callable[[np.ndarray], np.ndarray]
"""uint8 RGB [n, 112, 112, 3] -> f32 [n, D], of any length; an attribute `name` is kept beside the figures."""
Stochastic = Callable[[np.ndarray], np.ndarray]
"""uint8 RGB [112, 112, 3] -> f32 [T, D], the same face T times with dropout (T = 100 in the paper)."""


class OnnxEmbedder:
  """An ArcFace-like network through `cv2.dnn`, from the user's ONNX file.

  Attributes:
    name: the file's stem and the beginning of its sha256.
  """

  def __init__(self, path: str | os.PathLike, mean: float = 127.5, scale: float = 127.5):
    """Loads it; pixels go in as (RGB - mean) / scale.

    Args:
      path: input [1, 3, 112, 112], output [1, D].
      mean: 127.5 for InsightFace's networks (w600k_r50.onnx); 0 where the network normalises by itself, as those
        exported from MXNet do (arcfaceresnet100 of the ONNX zoo; from memory also face_recognition_sface of OpenCV's).
      scale: 127.5, or 1 with mean 0.

    Raises:
      UserError: no such file, or none that OpenCV can load.
    """
    self.path, self.mean, self.scale = str(path), float(mean), float(scale)
    self._load()

  def _load(self):
    file = face.onnx_file(self.path, 'face embedding', 'Give an ArcFace-like .onnx network with 112x112 input.')
    self.name = f'{file.stem}-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}'
    try:
      self._net = cv2.dnn.readNetFromONNX(str(file))
    except cv2.error as error:
      raise UserError(f"OpenCV cannot load '{file}' as a network: {error.err or error}.") from error

  def __getstate__(self):
    return {k: v for k, v in self.__dict__.items() if k != '_net'}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._load()

  def __call__(self, faces: np.ndarray) -> np.ndarray:
    """uint8 RGB [n, 112, 112, 3] -> f32 [n, D], of the length that the network gives."""
    return np.stack([self._one(image.check(each)) for each in faces])

  def _one(self, pixels: np.ndarray) -> np.ndarray:
    # One by one: many files are exported for a batch of 1.
    blob = cv2.dnn.blobFromImage(pixels, 1 / self.scale, (SIDE, SIDE), (self.mean,) * 3, swapRB=False)
    try:
      self._net.setInput(blob)
      output = self._net.forward()
    except cv2.error as error:
      raise UserError(f"'{self.path}' does not take a face [1, 3, {SIDE}, {SIDE}]: {error.err or error}.") from error
    if output.ndim != 2 or len(output) != 1:
      raise UserError(f"'{self.path}' gives {list(output.shape)} for one face, expected [1, D]: is it an embedder?")
    return output[0].astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Scores:
  """Figures of the pictures of one person (and one prompt).

  Attributes:
    images: how many pictures.
    faces: in how many of them a face was found.
    fdfr: share without a face.
    ism: -1..1, over the pictures with a face; None when there is none.
    ism_missing_zero: over all pictures, those without a face counted 0.
    ser_fiq: 0..1, over the pictures with a face; None when there is none.
    absent: for every figure that is None, why.
  """

  images: int
  faces: int
  fdfr: float
  ism: float | None
  ism_missing_zero: float | None
  ser_fiq: float | None
  absent: Mapping[str, str]


class Judge:
  """FDFR, ISM and SER-FIQ of pictures.

  `judge = Judge('yunet.onnx', 'arcface.onnx')`, then `judge.scores(generated, judge.reference(clean))`.
  """

  def __init__(
    self,
    detector: str | face.Detector = 'haar',
    embedder: str | os.PathLike | Embedder | None = None,
    stochastic: Stochastic | None = None,
  ):
    """Chooses the parts.

    Args:
      detector: 'haar', the path of a YuNet ONNX file, or a `face.Detector`.
      embedder: path of an `OnnxEmbedder`, or a function; None or '' for none, then there is no ISM.
      stochastic: a function; None for none, then there is no SER-FIQ.
    """
    if isinstance(detector, (str, os.PathLike)) and str(detector).endswith('.onnx'):
      detector = face.YuNetDetector(detector, YUNET_SCORE)
    self.detector = face.build_detector(detector)
    self.embedder = (
      OnnxEmbedder(embedder) if isinstance(embedder, (str, os.PathLike)) and embedder else embedder or None
    )
    self.stochastic = stochastic

  def describe(self) -> dict[str, str]:
    """Names of the parts: figures are comparable only where these are equal."""
    parts = {'detector': self.detector, 'embedder': self.embedder, 'stochastic': self.stochastic}
    return {part: 'none' if each is None else _name(each) for part, each in parts.items()}

  def crop(self, picture: np.ndarray) -> np.ndarray | None:
    """The largest face of uint8 RGB [H, W, 3] as uint8 [112, 112, 3], aligned where landmarks are known; else None."""
    found = self.detector.detect(image.check(picture))
    if not found:
      return None
    largest = max(found, key=lambda each: each.area)
    return face.crop(picture, largest, SIDE, 0.0 if largest.landmarks is not None else BOX_MARGIN, TEMPLATE)

  def reference(self, clean: Sequence[np.ndarray]) -> np.ndarray | None:
    """Mean embedding f64 [D] of the clean photos of a person, of all sets: uint8 RGB [n, H, W, 3].

    The mean is over the photos with a face. None without an embedder, or when no photo has a face.
    """
    crops = [crop for picture in clean if (crop := self.crop(picture)) is not None]
    return mean_embedding(self.embedder(np.stack(crops))) if crops and self.embedder else None

  def scores(self, generated: Sequence[np.ndarray], reference: np.ndarray | None = None) -> Scores:
    """Judges pictures of one person.

    Args:
      generated: uint8 RGB [n, H, W, 3], or pictures of several sizes.
      reference: what `reference` gave for the person's clean photos.

    Raises:
      UserError: no picture at all, or an embedder whose embeddings have another length than the reference.
    """
    crops = [self.crop(picture) for picture in generated]
    found, absent = [crop for crop in crops if crop is not None], {}
    rate = fdfr([crop is not None for crop in crops])
    ism = missing_zero = quality = None
    if self.embedder is None:
      absent['ism'] = absent['ism_missing_zero'] = 'no embedder was given (an ArcFace-like .onnx file, or a function)'
    elif reference is None:
      absent['ism'] = absent['ism_missing_zero'] = "no face was found in the person's clean photos"
    else:
      cosines = similarities(self.embedder(np.stack(found)), reference) if found else np.zeros(0)
      ism, missing_zero = _mean(cosines), float(cosines.sum() / len(crops))
    if self.stochastic is None:
      absent['ser_fiq'] = 'no stochastic embedder was given'
    else:
      quality = _mean([ser_fiq(self.stochastic(crop)) for crop in found])
    if not found:
      absent = {'ism': 'no face was found in any picture', 'ser_fiq': 'no face was found in any picture', **absent}
    return Scores(len(crops), len(found), rate, ism, missing_zero, quality, absent)


def _name(part: Any) -> str:
  return getattr(part, 'name', None) or getattr(part, '__name__', None) or type(part).__name__


def _mean(values: Sequence[float]) -> float | None:
  return float(np.mean(values)) if len(values) else None


def fdfr(found: Sequence[bool]) -> float:
  """Face detection failure rate: the share of pictures without a face; `found` says for each whether it has one."""
  if not len(found):
    raise UserError('FDFR of no picture: generate some first.')
  return float(np.mean([not each for each in found]))


def mean_embedding(embeddings: np.ndarray) -> np.ndarray:
  """f32 [n, D] -> f64 [D], the mean of the embeddings that there are (not of the files) at the length they have."""
  embeddings = np.asarray(embeddings, np.float64)
  if embeddings.ndim != 2 or not len(embeddings):
    raise UserError(f'the mean of embeddings [n, D] is asked for, found {list(embeddings.shape)}.')
  return embeddings.mean(0)


def similarities(embeddings: np.ndarray, reference: np.ndarray) -> np.ndarray:
  """Cosines f64 [n] of embeddings [n, D] with a reference [D]."""
  embeddings, reference = np.asarray(embeddings, np.float64), np.asarray(reference, np.float64)
  if embeddings.ndim != 2 or embeddings.shape[1:] != reference.shape:
    raise UserError(
      f'embeddings are {list(embeddings.shape)}, the reference {list(reference.shape)}: of two embedders?'
    )
  return _unit(embeddings) @ _unit(reference)


def _unit(x: np.ndarray) -> np.ndarray:
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def ser_fiq(embeddings: np.ndarray) -> float:
  """Quality 0..1 of one face from T >= 2 stochastic embeddings [T, D] of it (Terhoerst et al. 2020, spec 5)."""
  embeddings = np.asarray(embeddings, np.float64)
  if embeddings.ndim != 2 or len(embeddings) < 2:
    raise UserError(f'SER-FIQ compares at least two embeddings [T, D] of a face, found {list(embeddings.shape)}.')
  spread = distance.pdist(_unit(embeddings)).mean()
  quality = 2 / (1 + np.exp(spread))
  return float(1 / (1 + np.exp(-SLOPE * (quality - CENTRE))))


def average(scores: Sequence[Scores]) -> dict[str, float]:
  """Over persons, each with the same weight: {figure: mean over those that have it}.

  Besides the figures: 'identities', and 'identities_without_face', those that the mean of `ism` leaves out. Figures
  that nobody has are not there.
  """
  if not scores:
    raise UserError('the mean over no identity is asked for.')
  result = {'identities': float(len(scores)), 'identities_without_face': float(sum(not each.faces for each in scores))}
  for name in ('fdfr', 'ism', 'ism_missing_zero', 'ser_fiq'):
    values = [value for each in scores if (value := getattr(each, name)) is not None]
    if values:
      result[name] = float(np.mean(values))
  return result
