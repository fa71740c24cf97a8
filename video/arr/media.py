"""Pixels or features of videos, behind one interface: `open` from a config, `check` against the annotations.

  media = arr_media.open(config.data)                                  # Records, Files, Folders, Lmdb or Npy
  media.frames('P01_11', times=[8.2, 8.7], limit=8.7)                  # uint8 [2, H, W, 3], kind 'pixels'
  media.features('P01_11', times=[8.2, 8.7], limit=8.7)                # f32 [2, D], kind 'features'

Nothing later than `limit` is ever read. What each kind of folder looks like is in the docstring of its class.
"""

from __future__ import annotations

import csv
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from core.errors import UserError, nearest
from video.arr import pixels
from video.arr.pixels import Files, Folders, Records
from video.arr.sources import Features, Media, Pixels, latest, resize
from video.arr.stores import Lmdb, Npy, stores_of

__all__ = [
  'KINDS',
  'Features',
  'Files',
  'Folders',
  'Lmdb',
  'Media',
  'Npy',
  'Pixels',
  'Problem',
  'Records',
  'check',
  'footage_of',
  'latest',
  'open',
  'resize',
  'stores_of',
]

KINDS = ('records', 'videos', 'frames', 'lmdb', 'npy', 'labels')
"""Values of config.data.media. 'labels' is no media at all: the clips are their labels."""

SLACK = 1.0
"""Seconds by which an annotation may end after its video before that is reported (our choice)."""

ERRATA = ('P01_109', 'P27_103')
"""Videos of EPIC-KITCHENS-100 whose pre-extracted frames do not fit the time stamps (spec 6.1)."""

Problem = tuple[str, str, str]


def open(data: Any, records: str | os.PathLike | None = None) -> Media | None:
  """The media that `config.data` names; None for 'labels'.

  Keys: media (one of `KINDS`), media_root ('': as root), media_fps (of extracted frames and stores; 0 for frames: as
  EPIC_100_video_info.csv under root says), pixels (shorter side), feature_size (0: as found); for 'records' dataset.

  Args:
    data: `config.data`.
    records: folder of the records; `data.records` by default.
  """
  if data.media not in KINDS:
    raise UserError(f"config.data.media is '{data.media}', expected one of {KINDS}.{nearest(data.media, KINDS)}")
  if data.media == 'labels':
    return None
  if data.media == 'records':
    return Records(data.records if records is None else records, data.dataset, data.pixels)
  root = _root(data)
  if data.media == 'videos':
    return Files(root, data.pixels)
  if data.media == 'frames':
    return Folders(root, data.pixels, data.media_fps or official_fps(data.root))
  if not data.media_fps > 0:
    raise UserError(
      'config.data.media_fps is 0: give the frames per second that the numbers in the store count '
      '(30 for RULSTM and irCSN, however many of them are stored).'
    )
  if data.media == 'npy':
    return Npy(root, data.media_fps, data.feature_size)
  return Lmdb(stores_of(root), data.media_fps, data.feature_size)


def footage_of(data: Any) -> Pixels:
  """The videos, or else the folders of extracted frames, under `config.data.media_root`: what records are made from."""
  root = _root(data)
  try:
    return Files(root, data.pixels)
  except UserError:
    if not pixels.has_frames(root):
      raise
  return Folders(root, data.pixels, data.media_fps or official_fps(data.root))


def _root(data: Any) -> str:
  if not (data.media_root or data.root):
    raise UserError(
      f"config.data.media is '{data.media}': say where the footage or the features lie, --config.data.media_root=/path."
    )
  return data.media_root or data.root


def official_fps(root: str | pathlib.Path) -> Mapping[str, float]:
  """Video -> frames per second, from EPIC_100_video_info.csv in `root` or a folder of it."""
  folder = pathlib.Path(root).expanduser()
  path = next(iter([*folder.glob('EPIC_100_video_info.csv'), *folder.glob('*/EPIC_100_video_info.csv')]), None)
  if not root or path is None:
    raise UserError(
      f"The fps of the extracted frames is not known: there is no EPIC_100_video_info.csv in '{root}'. "
      'Give config.data.media_fps.'
    )
  with path.open(newline='') as file:
    try:
      return {row['video_id']: float(row['fps']) for row in csv.DictReader(file)}
    except (KeyError, TypeError, ValueError) as error:
      raise UserError(f"{path} has no columns 'video_id' and 'fps' with numbers ({error!r}).") from error


def check(media: Media, annotations: Any) -> list[Problem]:
  """Compares the videos with the segments that refer to them.

  Args:
    media: what `open` gave.
    annotations: `annotations.tables.Annotations`.

  Returns:
    (kind, path, detail) for every annotated video that is absent, unreadable or ends before its last segment does.

  Raises:
    UserError: not one annotated video is there, or the stated fps cannot be right (half of the videos end too early).
  """
  names = annotations.segments['video']
  known, problems, reach = set(media.videos()), [], []
  wanted = sorted(set(names.tolist()))
  if known.isdisjoint(wanted):
    raise UserError(
      f'{media.root} has none of the {len(wanted)} videos that {annotations.name} names. It holds '
      f'{", ".join(sorted(known)[:3])} ...; expected {", ".join(wanted[:3])} ...'
    )
  for video in wanted:
    rows = names == video
    last = float(annotations.segments['stop'][rows].max())
    if video not in known:
      problems.append(('absent video', f'{media.root}: {video}', f'{int(rows.sum())} segments refer to it'))
      continue
    try:
      duration = media.duration(video)
    except UserError as error:
      problems.append(('unreadable video', f'{media.root}: {video}', str(error)))
      continue
    reach.append(duration / max(last, 1e-9))
    if duration + SLACK < last:
      late = int((annotations.segments['start'][rows] > duration).sum())
      detail = f'{duration:.2f} s, its last segment ends at {last:.2f} s; {late} segments start after its end'
      problems.append(('short video', f'{media.root}: {video}', detail))
    if isinstance(media, Folders) and video in ERRATA:
      problems.append(('known erratum', f'{media.root}: {video}', 'extracted frames do not fit the time stamps'))
  _check_rate(media, reach)
  return problems


def _check_rate(media: Media, reach: list[float]) -> None:
  """Doubts a stated fps by which videos end long before their last segment, or go on for as long again."""
  typical = float(np.median(reach)) if reach else 1.0
  if media.numbered and not 0.9 < typical < 1.9:
    raise UserError(
      f'By their frame numbers and the stated fps, the videos in {media.root} last {typical:.2f} times as long as '
      f'their annotations (median of {len(reach)}): the true fps is about {typical:.2f} times the stated one. Mend '
      'config.data.media_fps.'
    )
