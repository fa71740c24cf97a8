"""The pixels of a dataset as records: one record is one frame, with its video and its time.

Decoding and scaling hours of 1080p is the bottleneck of training on pixels (spec 11), so it is done once: every video
at a few frames per second, its shorter side scaled down, JPEG. Drawn films take the same form, lossless.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds

from core.data import manifest as manifests
from core.data import records
from core.data.ahead import ahead
from core.errors import UserError
from video.arr import media

FEATURES = {
  'video': tfds.features.Text(doc='name, as the annotations say it'),
  'index': tfds.features.Scalar(dtype=np.int32, doc='number of the frame among those kept of its video, from 0'),
  'time': tfds.features.Scalar(dtype=np.float64, doc='seconds from the start of the video; ascends from 0'),
  'image': tfds.features.Image(shape=(None, None, 3), doc='RGB, uint8 [H, W, 3]'),
}

QUALITY = 92
"""Of the JPEGs (our choice)."""

CHUNK = 64
"""Frames that are decoded in one go: what a worker holds in memory, as JPEGs (our choice)."""

Film = Iterable[tuple[float, np.ndarray | bytes]]
"""(time in seconds, uint8 [H, W, 3] or the bytes of a JPEG or PNG), times ascending from 0."""


def write(
  root: str | os.PathLike,
  name: str,
  videos: Iterable[tuple[str, Film]],
  *,
  info: Mapping[str, Any],
  problems: list[media.Problem] | None = None,
  overwrite: bool = True,
) -> records.PrepareReport:
  """Writes films as the records `root/<name>_frames`, split 'frames'; nothing is held in memory.

  Equal records that exist, by `info`, are left alone.

  Args:
    root: folder of all records.
    name: of the dataset.
    videos: (name, film), each name once; a film without a frame leaves no record.
    info: plain data: what the frames were made from and how.
    problems: goes into the report; a generator of `videos` may fill it while it is consumed.
    overwrite: whether records with another `info` are replaced; else they are a `UserError`.
  """
  dataset = f'{name}_frames'
  if not records.is_written(root, dataset, info=info):
    records.write(
      root, dataset, {'frames': _examples(videos)}, FEATURES, info=info, overwrite=overwrite,
      description=f"Frames of the videos of '{name}'.",
    )  # fmt: skip
  written = manifests.load(records.find(root, dataset))
  return records.PrepareReport(dataset, written.splits, [] if problems is None else problems, written)


def _examples(videos: Iterable[tuple[str, Film]]) -> Iterator[tuple[str, dict[str, Any]]]:
  for video, film in videos:
    before = None
    for index, (time, image) in enumerate(film):
      if (before is None and time != 0) or (before is not None and time <= before):
        raise UserError(f"Frame {index} of '{video}' comes at {time} s after {before}: times must ascend from 0.")
      before = time
      yield f'{video}/{index:06d}', {'video': video, 'index': index, 'time': time, 'image': image}


def prepare(config: Any, annotations: Any, root: str | os.PathLike | None = None) -> records.PrepareReport:
  """Turns the annotated videos (or extracted frames) under `config.data.media_root` into records.

  Kept are the frames shown at i / config.data.fps, shorter side config.data.pixels. With config.data.workers threads
  decode ahead: decoding, scaling and JPEG coding all release the interpreter's lock. Records of other settings are
  replaced with config.data.overwrite only.

  Args:
    config: of the experiment.
    annotations: `annotations.tables.Annotations`: names the videos.
    root: folder of the records; `config.data.records` by default.

  Returns:
    A report with all problems: absent, unreadable, damaged and short videos.

  Raises:
    UserError: none of the videos is there.
  """
  data = config.data
  source = media.footage_of(data)
  problems = media.check(source, annotations)
  wanted = sorted(set(annotations.segments['video'].tolist()) & set(source.videos()))
  info = {'fps': data.fps, 'pixels': data.pixels, 'quality': QUALITY, 'source': type(source).__name__, 'videos': wanted}
  films = _films(source, wanted, data.fps, data.workers, problems)
  return write(
    data.records if root is None else root, data.dataset, films, info=info, problems=problems, overwrite=data.overwrite
  )


class _Chunk(NamedTuple):
  """Some successive frames of a video, decoded."""

  video: str
  film: list[tuple[float, bytes]]
  problems: list[media.Problem]


def _films(
  source: media.Pixels, names: list[str], fps: float, workers: int, problems: list[media.Problem]
) -> Iterator[tuple[str, Film]]:
  """The films of some videos, in their order; what was wrong with them joins `problems`."""
  todo = ((name, times) for name in names for times in _schedule(source, name, fps))
  chunks = ahead(lambda chunk: _decode(source, *chunk), todo, workers)
  for name, group in itertools.groupby(chunks, lambda chunk: chunk.video):
    yield name, _film(group, problems)


def _film(chunks: Iterator[_Chunk], problems: list[media.Problem]) -> Film:
  """A video's frames up to where it cannot be read any more; `groupby` drops the rest."""
  for chunk in chunks:
    problems.extend(chunk.problems)
    if not chunk.film:
      return
    yield from chunk.film


def _schedule(source: media.Pixels, video: str, fps: float) -> Iterator[list[float]]:
  """The times of the frames to keep, i / fps from 0 to the end, a chunk at a time; none of an unreadable video."""
  try:
    duration = source.duration(video)
  except UserError:
    return  # `media.check` has told
  times = [i / fps for i in range(math.ceil(duration * fps) + 1)]
  times = [time for time in times if time < duration or time == 0]
  for first in range(0, len(times), CHUNK):
    yield times[first : first + CHUNK]


def _decode(source: media.Pixels, video: str, times: list[float]) -> _Chunk:
  damage: list[str] = []
  where = f'{source.root}: {video}'
  try:
    frames = source.frames(video, times, problems=damage)
  except UserError as error:
    return _Chunk(video, [], [('unreadable from here on', where, f'at {times[0]:g} s: {error}')])
  film = [(time, _jpeg(frame)) for time, frame in zip(times, frames)]
  return _Chunk(video, film, [('damaged', where, f'from {times[0]:g} s on: {line}') for line in damage])


def _jpeg(frame: np.ndarray) -> bytes:
  _, encoded = cv2.imencode('.jpg', frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
  return encoded.tobytes()
