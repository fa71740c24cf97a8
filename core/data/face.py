"""Finding a face in a photo and cutting it out.

Two detectors share one interface: OpenCV's Haar cascades, which come with `opencv-python-headless<5` and need no file,
and YuNet, for which the user brings the ONNX file. Crops decide results (spec section 10), so detector and margin are
described by `describe` and travel with every record and checkpoint.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any, Protocol

import cv2
import numpy as np

from core.data.image import check
from core.errors import UserError

MEAN_FACE = np.array(
  [[0.224152, 0.211947], [0.756101, 0.211947], [0.490127, 0.628106], [0.254149, 0.780233], [0.726104, 0.780233]]
)
"""Where eyes, nose and mouth corners (left in the picture first) lie in a crop of margin 0, as shares of its side.
The mean face of the MTCNN alignment that the field's crops were made with, from memory."""


@dataclasses.dataclass(frozen=True)
class Face:
  """One detected face.

  Attributes:
    box: x, y, width, height in pixels; may reach beyond the picture.
    score: the detector's confidence; comparable within one detector only.
    landmarks: f32 [5, 2] pixels (x, y): eyes, nose, mouth corners, left in the picture first; None where unknown.
  """

  box: tuple[float, float, float, float]
  score: float
  landmarks: np.ndarray | None = None

  @property
  def area(self) -> float:
    """Box area in square pixels."""
    return self.box[2] * self.box[3]


class Detector(Protocol):
  """Anything with a name that finds faces."""

  name: str

  def detect(self, image: np.ndarray) -> list[Face]:
    """Faces in uint8 RGB [H, W, 3], the most prominent first."""


class HaarDetector:
  """Frontal Haar cascade, eyes as witnesses.

  The picture is shrunk to `working_side`; a first pass is strict, a second, on the equalised picture, is lenient but
  believes only boxes in which the eye cascade finds an eye. On our 15 sample photos (12 portraits, 3 anti-spoofing
  shots) the strict pass found 14 faces, the lenient one the 15th; three photos also gave a false box, without an eye,
  so faces with eyes go first. A score is the cascade's weight, times 1/3, 2/3 or 1 for no, one or two eyes.
  """

  name = 'haar'

  def __init__(self, working_side: int = 640, min_face: float = 0.1):
    """Args: working_side: longer side in pixels to work at; min_face: smallest face, as a share of the shorter side."""
    self.working_side, self.min_face = working_side, min_face
    self._load()

  def _load(self):
    self._frontal = _cascade('haarcascade_frontalface_default.xml')
    self._eye = _cascade('haarcascade_eye.xml')

  def __getstate__(self):
    # cv2 objects do not pickle; workers load the cascades anew.
    return {'working_side': self.working_side, 'min_face': self.min_face}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._load()

  def detect(self, image: np.ndarray) -> list[Face]:
    """Faces in uint8 RGB [H, W, 3]: those with eyes first, then by size times score. No landmarks."""
    grey = cv2.cvtColor(check(image), cv2.COLOR_RGB2GRAY)
    scale = min(1.0, self.working_side / max(grey.shape))
    if scale < 1:
      grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    found = self._pass(grey, neighbours=4, step=1.1)
    if not found:
      equalised = cv2.equalizeHist(grey)
      found = [(eyes, face) for eyes, face in self._pass(equalised, neighbours=3, step=1.05) if eyes]
    found.sort(key=lambda pair: (min(pair[0], 2), pair[1].area * pair[1].score), reverse=True)
    return [dataclasses.replace(face, box=tuple(v / scale for v in face.box)) for _, face in found]

  def _pass(self, grey: np.ndarray, neighbours: int, step: float) -> list[tuple[int, Face]]:
    """(number of eyes, face) in working pixels."""
    side = max(20, int(self.min_face * min(grey.shape)))
    boxes, _, weights = self._frontal.detectMultiScale3(
      grey, step, neighbours, minSize=(side, side), outputRejectLevels=True
    )
    faces = []
    for (x, y, w, h), weight in zip(boxes, weights):
      upper, eye_side = grey[y : y + int(0.6 * h), x : x + w], max(8, int(w) // 8)
      eyes = self._eye.detectMultiScale(upper, 1.1, 3, minSize=(eye_side, eye_side))
      score = max(float(weight), 0.1) * (1 + min(len(eyes), 2)) / 3
      faces.append((len(eyes), Face((float(x), float(y), float(w), float(h)), score)))
    return faces


def _cascade(name: str) -> cv2.CascadeClassifier:
  if not hasattr(cv2, 'CascadeClassifier'):
    raise UserError(
      f"OpenCV {cv2.__version__} has no Haar cascades; install 'opencv-python-headless<5' or give a YuNet ONNX file."
    )
  cascade = cv2.CascadeClassifier(os.path.join(cv2.data.haarcascades, name))
  if cascade.empty():
    raise UserError(f"OpenCV's cascade '{name}' is missing in '{cv2.data.haarcascades}'; reinstall the package.")
  return cascade


class YuNetDetector:
  """YuNet through `cv2.FaceDetectorYN`: boxes with five landmarks, from the user's ONNX file."""

  name = 'yunet'

  def __init__(self, onnx_path: str | pathlib.Path, score_threshold: float = 0.7, working_side: int = 640):
    """Args: onnx_path: `face_detection_yunet_*.onnx` of OpenCV Zoo; working_side: longer side in pixels to work at."""
    self.onnx_path, self.score_threshold, self.working_side = str(onnx_path), score_threshold, working_side
    self._load()

  def _load(self):
    path = onnx_file(self.onnx_path, 'YuNet', 'Download face_detection_yunet_2023mar.onnx from OpenCV Zoo.')
    try:
      self._net = cv2.FaceDetectorYN.create(str(path), '', (320, 320), self.score_threshold)
    except cv2.error as error:
      raise UserError(f"OpenCV cannot load '{path}' as a YuNet network: {error.err or error}.") from error

  def __getstate__(self):
    return {k: v for k, v in self.__dict__.items() if k != '_net'}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._load()

  def detect(self, image: np.ndarray) -> list[Face]:
    """Faces in uint8 RGB [H, W, 3] by size times score, with landmarks."""
    picture = cv2.cvtColor(check(image), cv2.COLOR_RGB2BGR)
    scale = min(1.0, self.working_side / max(picture.shape[:2]))
    if scale < 1:
      picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    self._net.setInputSize((picture.shape[1], picture.shape[0]))
    _, rows = self._net.detect(picture)
    return faces_from_yunet(np.zeros((0, 15)) if rows is None else rows, scale)


def onnx_file(path: str | os.PathLike, what: str, way_out: str) -> pathlib.Path:
  """The path of a network that the user brings; raises `UserError` where no file is, or a pointer or a page instead."""
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    raise UserError(f"No {what} file at '{path}'. {way_out}")
  with path.open('rb') as file:
    head = file.read(200).lstrip().lower()
  if not head or head.startswith((b'version https', b'<')):
    raise UserError(f"'{path}' is empty, a web page or a Git LFS pointer, not an ONNX file. Download the file itself.")
  return path


def faces_from_yunet(rows: np.ndarray, scale: float) -> list[Face]:
  """Turns YuNet's rows [N, 15] (box, five points, score), found at `scale`, into faces by size times score."""
  faces = [
    Face(tuple((row[:4] / scale).tolist()), float(row[14]), (row[4:14].reshape(5, 2) / scale).astype(np.float32))
    for row in np.asarray(rows, np.float64)
  ]
  return sorted(faces, key=lambda face: face.area * face.score, reverse=True)


def build_detector(name: str | Detector) -> Detector:
  """'haar', or the path of a YuNet ONNX file; a detector passes through."""
  if not isinstance(name, (str, os.PathLike)):
    return name
  if str(name) == 'haar':
    return HaarDetector()
  if str(name).endswith('.onnx'):
    return YuNetDetector(name)
  raise UserError(f"Unknown face detector '{name}'; expected 'haar' or the path of a YuNet .onnx file.")


def describe(detector: Detector | None, face: Face | None, margin: float) -> dict[str, Any]:
  """Plain data on how a crop came about, for a record's `info` and a checkpoint's metadata."""
  if detector is None or face is None:
    return {'detector': 'none', 'aligned': False, 'margin': margin}
  return {
    'detector': detector.name,
    'aligned': face.landmarks is not None,
    'margin': margin,
    'box': [round(v, 1) for v in face.box],
    'score': round(face.score, 4),
  }


def transform(face: Face, size: int = 256, margin: float = 0.0, template: np.ndarray = MEAN_FACE) -> np.ndarray:
  """The similarity that maps picture pixels to crop pixels.

  With landmarks: the least-squares similarity (Umeyama) from the five points to `template`. Without: the square around
  the box, upright.

  Args:
    face: what to crop.
    size: side of the crop in pixels.
    margin: added on each side, as a share of the crop of margin 0.
    template: f64 [5, 2], where the points shall lie, as shares of the side of the crop of margin 0.

  Returns:
    f64 [2, 3]: crop (x, y) = M @ (x, y, 1), pixel corners at integers.
  """
  if face.landmarks is not None and np.isfinite(face.landmarks).all():
    target = (template + margin) / (1 + 2 * margin) * size
    return _similarity(np.asarray(face.landmarks, np.float64), target)
  x, y, w, h = face.box
  side = max(w, h) * (1 + 2 * margin)
  scale = size / side
  return np.array([[scale, 0, -scale * (x + w / 2 - side / 2)], [0, scale, -scale * (y + h / 2 - side / 2)]])


def _similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
  """Least-squares rotation, scale and shift of points [N, 2] onto [N, 2]; no reflection (Umeyama 1991)."""
  # In complex numbers the similarity is z -> p z + q, an ordinary linear regression.
  z, w = source @ [1, 1j], target @ [1, 1j]
  centred = z - z.mean()
  p = np.vdot(centred, w - w.mean()) / max(np.vdot(centred, centred).real, 1e-12)
  q = w.mean() - p * z.mean()
  return np.array([[p.real, -p.imag, q.real], [p.imag, p.real, q.imag]])


def crop(
  image: np.ndarray, face: Face, size: int = 256, margin: float = 0.0, template: np.ndarray = MEAN_FACE
) -> np.ndarray:
  """Cuts a face out, aligned where landmarks are known.

  Large pictures are area-averaged before the warp, so that a crop does not alias: moire in a crop is evidence, and must
  come from the scene. Beyond the picture's edge its last pixels repeat (our choice: a black wedge would be a cue).

  Args:
    image: uint8 RGB [H, W, 3].
    face: from `Detector.detect`.
    size: side of the crop in pixels.
    margin: see `transform`.
    template: see `transform`.

  Returns:
    uint8 RGB [size, size, 3].
  """
  matrix = transform(face, size, margin, template)
  scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
  if scale < 1:
    height, width = max(1, round(check(image).shape[0] * scale)), max(1, round(image.shape[1] * scale))
    sx, sy = width / image.shape[1], height / image.shape[0]
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    matrix = matrix @ np.diag([1 / sx, 1 / sy, 1.0])
  # OpenCV puts pixel CENTRES at integers, we put corners there.
  centre = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
  matrix = (np.linalg.inv(centre) @ np.vstack([matrix, [0, 0, 1]]) @ centre)[:2]
  return cv2.warpAffine(check(image), matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def square(image: np.ndarray, size: int) -> np.ndarray:
  """Resizes a ready crop (centre square of a picture that is not square) to uint8 [size, size, 3]."""
  height, width = check(image).shape[:2]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  image = image[top : top + side, left : left + side]
  if side == size:
    return np.ascontiguousarray(image)
  return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)
