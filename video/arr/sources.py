"""What a source of pixels or of features is to ARR: one video, some times, and a limit that it never looks past.

Conventions: a time is seconds from the start of the video. Frame i of a numbered source (extracted frames, feature
stores) belongs to i / fps, so that no number exceeds floor(limit * fps) (spec 2); the frame shown at a time is the
latest one that belongs to it or to an earlier time.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence

import cv2
import numpy as np

from core.errors import UserError, nearest


class Media(abc.ABC):
  """Pixels or features of the videos of one dataset. Cheap to pickle: files are opened again in each process.

  Attributes:
    kind: 'pixels' or 'features'.
    size: shorter side of the frames in pixels; width D of the features.
    root: where it lies, for messages.
    numbered: whether durations follow from frame numbers and a stated fps (which `media.check` then doubts).
  """

  kind: str
  size: int
  root: str
  numbered = False

  @abc.abstractmethod
  def videos(self) -> tuple[str, ...]:
    """Names of all videos, sorted."""

  @abc.abstractmethod
  def duration(self, video: str) -> float:
    """Seconds; raises `UserError` for a video that is absent or cannot be read."""

  def _require(self, video: str, known) -> None:
    if video not in known:
      raise UserError(f"No video '{video}' in {self.root}, which holds {len(known)}.{nearest(video, known)}")


class Pixels(Media):
  """A source of frames."""

  kind = 'pixels'

  def frames(
    self, video: str, times: Sequence[float], limit: float = math.inf, problems: list[str] | None = None
  ) -> np.ndarray:
    """The frames shown at some times.

    Args:
      video: its name.
      times: seconds [K], in any order; those before the first frame give the first, those past the end the last, those
        after `limit` what is shown at `limit`.
      limit: seconds; nothing later is read. Where the video begins after it, nothing has been seen: black frames.
      problems: damage is described here, a line each; without it, it is a Python warning.

    Returns:
      uint8 [K, H, W, 3], the shorter side `size` pixels.

    Raises:
      UserError: no such video, or nothing at or before `limit` can be read.
    """
    if limit < self._begin(video):
      first = self._read(video, np.zeros(1), math.inf, problems)[0]
      return np.zeros((len(times), *first.shape), np.uint8)
    return np.stack(self._read(video, np.minimum(np.asarray(times, np.float64), limit), float(limit), problems))

  def _begin(self, video: str) -> float:
    """Seconds of the first frame."""
    del video
    return 0.0

  @abc.abstractmethod
  def _read(self, video: str, times: np.ndarray, limit: float, problems: list[str] | None) -> list[np.ndarray]:
    """Frames at `times`, none of which is after `limit`, at their final size."""


class Features(Media):
  """A source of feature vectors."""

  kind = 'features'

  @abc.abstractmethod
  def features(self, video: str, times: Sequence[float], limit: float = math.inf) -> np.ndarray:
    """The feature vectors that belong to some times.

    Args:
      video: its name.
      times: seconds [K]; those before the first vector give the first, those after `limit` that of `limit`.
      limit: seconds; nothing later is read. Where the video begins after it, nothing has been seen: zeros.

    Returns:
      f32 [K, D].
    """


def latest(times: Sequence[float] | np.ndarray, limit: float, fps: float) -> np.ndarray:
  """Numbers i (int64 [K]) of the latest frames of which i / fps <= min(time, limit) holds, in float64 as written."""
  times = np.minimum(np.asarray(times, np.float64), limit)
  number = np.floor(times * fps).astype(np.int64)
  number += (number + 1) / fps <= times  # the product may be rounded across a whole number, either way
  number -= number / fps > times
  return number


def resize(image: np.ndarray, short: int) -> np.ndarray:
  """A uint8 image [H, W, 3] with its shorter side at `short` pixels, the aspect kept; averaged where it shrinks."""
  height, width = image.shape[:2]
  if min(height, width) == short:
    return image
  scale = short / min(height, width)
  size = (max(short, round(width * scale)), max(short, round(height * scale)))
  return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
