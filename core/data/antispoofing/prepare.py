"""From an official download (or a user's folder or lists) to face-frame records.

Per video: a few frames at even distances, a face found in each, a square crop. What is missing, broken, odd or without
a face is a line of the report; nothing disappears without one.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import itertools
import json
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from core.data import face, face_frames, records, video
from core.data.ahead import ahead
from core.data.antispoofing import detection, readers, sources
from core.data.antispoofing.items import Problem, VideoItem
from core.errors import UserError

Examples = list[tuple[str, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Settings:
  """How frames become crops.

  Attributes:
    frames_per_video: frames at `linspace(0, n - 1, frames_per_video)` (spec section 4: 5).
    size: side of the crops in pixels.
    margin: see `core.data.face.transform`.
    search: see `detection.SEARCH`.
  """

  frames_per_video: int = 5
  size: int = 256
  margin: float = 0.0
  search: int = detection.SEARCH


def prepare(
  root: str | pathlib.Path,
  out: str | pathlib.Path,
  dataset: str,
  frames_per_video: int = 5,
  size: int = 256,
  margin: float = 0.0,
  detector: str | face.Detector = 'haar',
  *,
  kind: str = 'auto',
  search: int = detection.SEARCH,
  workers: int = 0,
  version: str = '1.0.0',
  overwrite: bool = False,
  progress: Callable[[int, int], None] | None = None,
) -> records.PrepareReport:
  """Writes the face frames of one dataset to `out/dataset/version`.

  Args:
    root: the unpacked download, or a user's folder or CSV list.
    out: folder of all records.
    dataset: a name of `readers.READERS`, or any identifier for a user's own data.
    frames_per_video: see `Settings`.
    size: see `Settings`.
    margin: see `Settings`.
    detector: 'haar', the path of a YuNet ONNX file, or a `face.Detector`. Ready crops (zips, folders) need none.
    kind: see `readers.read`.
    search: see `Settings`.
    workers: threads that decode and detect; 0 for none. The records do not depend on it.
    version: of the records.
    overwrite: replaces existing records of this version.
    progress: called with (videos done, videos) after each video.

  Returns:
    Records per split, and every problem met: (kind, path, detail).

  Raises:
    UserError: nothing at `root`, or not one face in all of it.
  """
  settings = Settings(frames_per_video, size, margin, search)
  detector = face.build_detector(detector)
  listing = readers.read(root, dataset, kind=kind)
  problems = list(listing.problems)
  problems += [('left out on purpose', what, f'{n} files') for what, n in sorted(listing.ignored.items())]
  done = itertools.count(1)

  def examples(split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    mine = [item for item in listing.items if item.split == split]
    for rows, odd in _map(lambda item, own: crop_item(item, settings, own), mine, detector, workers):
      problems.extend(odd)
      if progress:
        progress(next(done), len(listing.items))
      yield from rows

  splits = sorted({item.split for item in listing.items})
  try:
    manifest = records.write(
      out, dataset, {split: examples(split) for split in splits}, face_frames.FEATURES, version,
      description=f'Face crops of {dataset}: {frames_per_video} frames per video, {size} px, margin {margin}.',
      info={'dataset': dataset, 'detector': detector.name, **dataclasses.asdict(settings)},
      overwrite=overwrite,
    )  # fmt: skip
  except UserError as error:
    raise UserError(f'{error}{_digest(problems)}') from error
  counts = {split: manifest.splits.get(split, 0) for split in splits}
  return records.PrepareReport(dataset, counts, problems, manifest)


def _digest(problems: list[Problem]) -> str:
  """Problems by kind, for an error message."""
  kinds = collections.Counter(kind for kind, _, _ in problems)
  return f' Met on the way: {", ".join(f"{n} x {kind}" for kind, n in kinds.most_common())}.' if kinds else ''


def _map(
  work: Callable[[VideoItem, face.Detector], tuple[Examples, list[Problem]]],
  todo: Iterable[VideoItem],
  detector: face.Detector,
  workers: int,
) -> Iterator[tuple[Examples, list[Problem]]]:
  """Results in the order of `todo`; with threads, a few items ahead and never more (frames are large)."""
  own = threading.local()  # OpenCV's detectors keep buffers of their own and must not be shared.

  def run(item: VideoItem) -> tuple[Examples, list[Problem]]:
    if not hasattr(own, 'detector'):
      own.detector = copy.deepcopy(detector)
    return work(item, own.detector)

  return ahead(run, todo, workers)


def crop_item(item: VideoItem, settings: Settings, detector: face.Detector) -> tuple[Examples, list[Problem]]:
  """The records of one item, and what was wrong with it.

  A picture that no detector finds a face in is skipped and reported; so is a whole file that cannot be read.
  """
  problems: list[Problem] = []

  def note(kind: str, detail: str) -> None:
    problems.append((kind, str(item.path), detail))

  try:
    source = sources.open_source(item.path)
    chosen = [source.numbers[i] for i in video.linspace_indices(len(source.numbers), settings.frames_per_video)]
    damage: list[str] = []
    pictures = source.read(chosen, damage)
  except UserError as error:
    note('unreadable', str(error))
    return [], problems
  for line in damage:
    note('damaged', line)
  if source.cropped:
    ready = {'detector': 'none', 'ready_crop': True}
    crops = [(number, face.square(picture, settings.size), ready) for number, picture in pictures]
  else:
    found = detection.find(
      source, pictures, detector, note,
      search=settings.search, maybe_upside_down=item.extra.get('maybe_upside_down', False),
    )  # fmt: skip
    size, margin = settings.size, settings.margin
    crops = [(each.number, each.crop(size, margin), each.describe(detector, margin)) for each in found]
  if not crops:
    note('no usable frame', f'{len(pictures)} of {len(chosen)} chosen frames readable, none gave a crop')
  elif len(source.numbers) < settings.frames_per_video and (source.cropped or source.total > 1):
    note('short', f'{len(source.numbers)} frames, {settings.frames_per_video} wanted')
  return [_example(item, source.total, *crop) for crop in crops], problems


def _example(item: VideoItem, total: int, number: int, crop: np.ndarray, about: dict[str, Any]):
  """(key, face-frame example) of one crop."""
  return f'{item.video_id}/{number:06d}', {
    'image': crop,
    'label': item.label,
    'attack': face_frames.ATTACKS.index(item.attack),
    'domain': item.domain,
    'subject': item.subject,
    'video': item.video_id,
    'frame': number,
    'frames_total': total,
    'landmarks': face_frames.NO_LANDMARKS,
    'info': json.dumps({**item.extra, **about}, sort_keys=True),
  }
