"""Finding the face in chosen frames of a video: frames are set upright, and faceless ones replaced by a neighbour.

Preparation cuts training crops with it, prediction a user's own videos: a network must see both alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from core.data import face, video
from core.data.antispoofing import sources

SEARCH = 15
"""Where a chosen frame shows no face, the nearest of this many frames before and after it that does is taken."""


@dataclasses.dataclass(frozen=True)
class Found:
  """A frame that shows a face.

  Attributes:
    number: of the frame.
    wanted: number of the chosen frame that it stands for.
    picture: uint8 [H, W, 3], upright.
    faces: what the detector found in it, the most prominent first; at least one.
    turned: degrees counter-clockwise by which the picture was set upright, beyond the file's own tag.
  """

  number: int
  wanted: int
  picture: np.ndarray
  faces: list[face.Face]
  turned: int

  def crop(self, size: int, margin: float) -> np.ndarray:
    """The most prominent face, uint8 [size, size, 3]."""
    return face.crop(self.picture, self.faces[0], size, margin)

  def describe(self, detector: face.Detector, margin: float) -> dict[str, Any]:
    """Plain data on how the crop came about, for a record's `info`."""
    about = face.describe(detector, self.faces[0], margin)
    return about | {'wanted_frame': self.wanted, 'turned': self.turned, 'faces': len(self.faces)}


def find(
  source: sources.Source,
  pictures: list[tuple[int, np.ndarray]],
  detector: face.Detector,
  note: Callable[[str, str], None],
  *,
  search: int = SEARCH,
  maybe_upside_down: bool = False,
) -> list[Found]:
  """The pictures that show a face, or their nearest neighbours that do, in the order of their numbers.

  Args:
    source: of the pictures; read again for neighbours.
    pictures: the chosen (frame number, uint8 [H, W, 3]).
    detector: finds the faces.
    note: `note(kind, detail)` is told what was turned, replaced or left out.
    search: see `SEARCH`.
    maybe_upside_down: whether the video is known for a missing rotation tag, see `quarter_turns`.
  """
  turns = quarter_turns([picture for _, picture in pictures], detector, maybe_upside_down)
  if turns:
    note('turned', f'upright only after {90 * turns} degrees counter-clockwise; turned')
  taken, found = {number for number, _ in pictures}, []
  for wanted, picture in pictures:
    number, upright = wanted, np.ascontiguousarray(np.rot90(picture, turns))
    faces = detector.detect(upright)
    if not faces:
      number, upright, faces = _neighbour(source, wanted, taken, turns, search, detector)
      if not faces:
        note('no face', f'frame {wanted} and {search} frames around it')
        continue
      note('neighbour used', f'no face in frame {wanted}, frame {number} taken')
      taken.add(number)
    found.append(Found(number, wanted, upright, faces, 90 * turns))
  return sorted(found, key=lambda each: each.number)


def quarter_turns(pictures: list[np.ndarray], detector: face.Detector, maybe_upside_down: bool = False) -> int:
  """Quarter turns counter-clockwise that set a video upright.

  Some videos were recorded turned without a tag that says so (six of MSU-MFSD upside down). A video known for it is
  turned where the faces are stronger that way, since its copy may carry a tag or may have been put right. Any other is
  turned only where most of its pictures then show a face, more than three times as strong as they do now: a cascade
  also finds weak faces in turned pictures (upside down in 11 of our 15 sample photos, the upright one 1.9 to 611 times
  stronger). By this rule none of the 15 would be turned, and 13 of them upside down would be set upright.
  """
  if len(pictures) < 2:
    return 0  # photos have their EXIF tag
  pictures = [pictures[i] for i in video.linspace_indices(len(pictures), 3)]

  def evidence(turns: int) -> tuple[float, int]:
    """Sum of area times score; number of pictures with a face."""
    best = [faces[0] for p in pictures if (faces := detector.detect(np.ascontiguousarray(np.rot90(p, turns))))]
    return sum(each.area * each.score for each in best), len(best)

  found = {turns: evidence(turns) for turns in ((0, 2) if maybe_upside_down else (0, 2, 1, 3))}
  best = max(found, key=lambda turns: found[turns][0])
  if not maybe_upside_down and (found[best][0] <= 3 * found[0][0] or 2 * found[best][1] < len(pictures)):
    return 0
  return best


def _neighbour(
  source: sources.Source, wanted: int, taken: set[int], turns: int, search: int, detector: face.Detector
) -> tuple[int, np.ndarray | None, list[face.Face]]:
  """The nearest frame with a face that is not used yet; earlier wins a tie. No faces where there is none."""
  near = [n for n in source.numbers if abs(n - wanted) <= search and n not in taken]
  if near:
    # Damage was reported when the chosen frames were read.
    for number, picture in sorted(source.read(near, []), key=lambda pair: (abs(pair[0] - wanted), pair[0])):
      upright = np.ascontiguousarray(np.rot90(picture, turns))
      faces = detector.detect(upright)
      if faces:
        return number, upright, faces
  return wanted, None, []
