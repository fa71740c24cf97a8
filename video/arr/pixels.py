"""Frames from our own records, from video files, and from folders of extracted frames."""

from __future__ import annotations

import array
import bisect
import collections
import contextlib
import functools
import os
import pathlib
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from core.data import image as images
from core.data import records
from core.data import video as videos
from core.errors import UserError
from video.arr.sources import Pixels, latest, resize


class Records(Pixels):
  """Frames that `footage.write` put into the records `<dataset>_frames`; found by the index, no image is touched."""

  def __init__(self, root: str | os.PathLike, dataset: str, size: int):
    self._records = records.Records(root, f'{dataset}_frames', 'frames')
    self.root, self.size = str(records.find(root, f'{dataset}_frames')), size
    self._name = (root, f'{dataset}_frames', 'frames')

  def __getstate__(self):
    return {key: value for key, value in self.__dict__.items() if key != '_index'}

  @functools.cached_property
  def _index(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Video -> ids int64 and times f64 of its frames, ascending in time."""
    # From records that are dropped again: the key texts of a large dataset are hundreds of megabytes.
    table = records.Records(*self._name).table
    order = np.lexsort((table['time'], table['video']))
    names, times = table['video'][order], table['time'][order].astype(np.float64)
    starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
    return {
      str(names[start]): (ids, times[start : start + len(ids)])
      for start, ids in zip(starts, np.split(order, starts[1:]))
    }

  def videos(self) -> tuple[str, ...]:
    return tuple(self._index)

  def duration(self, video: str) -> float:
    self._require(video, self._index)
    times = self._index[video][1]
    return float(times[-1] + (np.median(np.diff(times)) if len(times) > 1 else 0))

  def _begin(self, video: str) -> float:
    self._require(video, self._index)
    return float(self._index[video][1][0])

  def _read(self, video, times, limit, problems):
    del limit, problems
    ids, shown_from = self._index[video]
    chosen, which = np.unique(np.maximum(np.searchsorted(shown_from, times, side='right') - 1, 0), return_inverse=True)
    distinct = [resize(self._records[int(ids[i])]['image'], self.size) for i in chosen]
    return [distinct[i] for i in which]


class Files(Pixels):
  """Video files, decoded from the key frame before (`core.data.seek`).

  Recognised: ROOT/NAME.mp4, ROOT/PXX/NAME.MP4, ROOT/PXX/videos/NAME.MP4 (EPIC-KITCHENS-100), ROOT/rgb/NAME.avi (50
  Salads), with any ending of `core.data.video.SUFFIXES`.
  """

  def __init__(self, root: str | os.PathLike, size: int):
    self.root, self.size = str(root), size
    self._paths = _video_files(pathlib.Path(root).expanduser())
    self._open = _Seekers()

  def videos(self) -> tuple[str, ...]:
    return tuple(sorted(self._paths))

  def path(self, video: str) -> pathlib.Path:
    """The file of a video."""
    self._require(video, self._paths)
    return self._paths[video]

  def duration(self, video: str) -> float:
    with self._open.lend(self.path(video)) as seeker:
      return seeker.duration

  def _read(self, video, times, limit, problems):
    with self._open.lend(self.path(video)) as seeker:
      return seeker.at(times, limit=limit, transform=lambda image: resize(image, self.size), problems=problems)


class _Seekers:
  """Open videos, each lent to one thread at a time; a few wait idle for the next loan in the same process."""

  IDLE = 8

  def __init__(self):
    self._process, self._lock = os.getpid(), threading.Lock()
    self._idle: collections.OrderedDict[str, videos.Seeker] = collections.OrderedDict()

  def __reduce__(self):
    return _Seekers, ()

  @contextlib.contextmanager
  def lend(self, path: pathlib.Path) -> Iterator[videos.Seeker]:
    if self._process != os.getpid():  # a fork shares the position in the file with its parent
      self.__init__()
    with self._lock:
      seeker = self._idle.pop(str(path), None)
    seeker = seeker or videos.Seeker(path)
    try:
      yield seeker
    except BaseException:
      seeker.close()
      raise
    with self._lock:
      surplus = [self._idle.pop(str(path), None)]
      self._idle[str(path)] = seeker
      surplus += [self._idle.popitem(last=False)[1] for _ in range(len(self._idle) - self.IDLE)]
    for each in filter(None, surplus):
      each.close()


class Folders(Pixels):
  """Extracted frames: ROOT/NAME/frame_0000000001.jpg or ROOT/PXX/rgb_frames/NAME/frame_0000000001.jpg, numbered from 1.

  Gaps are bridged backwards: the frame shown is the latest there is. The number is the last run of digits of a name.
  """

  numbered = True

  def __init__(self, root: str | os.PathLike, size: int, fps: float | Mapping[str, float]):
    self.root, self.size, self._fps = str(root), size, fps
    self._folders = _frame_folders(pathlib.Path(root).expanduser())
    self._listings: dict[str, _Listing] = {}

  def fps(self, video: str) -> float:
    """Frames per second at which the frames were extracted."""
    if not isinstance(self._fps, Mapping):
      return float(self._fps)
    if video not in self._fps:
      raise UserError(f"The fps of the frames of '{video}' in {self.root} is not known: give config.data.media_fps.")
    return float(self._fps[video])

  def videos(self) -> tuple[str, ...]:
    return tuple(sorted(self._folders))

  def duration(self, video: str) -> float:
    return self._listing(video).numbers[-1] / self.fps(video)

  def _begin(self, video: str) -> float:
    return self._listing(video).numbers[0] / self.fps(video)

  def _read(self, video, times, limit, problems):
    del problems
    listing = self._listing(video)
    wanted = latest(times, limit, self.fps(video)).tolist()
    chosen = [listing.numbers[max(bisect.bisect_right(listing.numbers, number) - 1, 0)] for number in wanted]
    read = {
      number: resize(images.read(self._folders[video] / listing.name(number), min_side=1), self.size)
      for number in set(chosen)
    }
    return [read[number] for number in chosen]

  def _listing(self, video: str) -> _Listing:
    self._require(video, self._folders)
    if video not in self._listings:
      self._listings[video] = _list_frames(self._folders[video])
    return self._listings[video]


class _Listing(NamedTuple):
  """The files of one folder: numbers ascending (a range where there is no gap), and what stands around them."""

  numbers: Sequence[int]
  before: str
  digits: int
  after: str

  def name(self, number: int) -> str:
    return f'{self.before}{number:0{self.digits}d}{self.after}'


def _list_frames(folder: pathlib.Path) -> _Listing:
  numbers, forms = array.array('q'), {}
  for name in sorted(entry.name for entry in os.scandir(folder) if _is_image(entry.name)):
    match = _NUMBERED.fullmatch(name)
    before, digits, after = match.groups() if match else (name, '', '')
    numbers.append(int(digits or -1))
    forms.setdefault((before, after), name)
  if len(forms) != 1 or numbers[0] < 0:
    raise UserError(
      f'{folder} holds images of {len(forms)} kinds ({", ".join(sorted(forms.values())[:3])}); the frames of one video '
      "are expected, such as 'frame_0000000001.jpg'."
    )
  numbers = array.array('q', sorted(numbers))
  if numbers[0] > 1:
    raise UserError(f'{folder} begins with frame {numbers[0]}, expected 1 (or 0): extract the video from its start.')
  (before, after), name = next(iter(forms.items()))
  digits = len(name) - len(before) - len(after)
  whole = range(numbers[0], numbers[-1] + 1)
  return _Listing(whole if len(whole) == len(numbers) else numbers, before, digits, after)


_NUMBERED = re.compile(r'(.*?)(\d+)(\.\w+)')


def _is_image(name: str) -> bool:
  return name.lower().endswith(images.SUFFIXES) and not name.startswith('.')


def _folder(root: pathlib.Path) -> pathlib.Path:
  if not root.is_dir():
    raise UserError(f"No folder '{root}'. Give the folder of the videos or frames, --config.data.media_root=/path.")
  return root


def _subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(pathlib.Path(entry) for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != '.')


def _unique(root: pathlib.Path, found: Iterator[tuple[str, pathlib.Path]]) -> dict[str, pathlib.Path]:
  """Name -> path, where no name comes twice."""
  paths: dict[str, pathlib.Path] = {}
  for name, path in found:
    if name in paths:
      raise UserError(f"'{name}' occurs twice under {root}: {paths[name]} and {path}. Keep one of them there.")
    paths[name] = path
  return paths


def _video_files(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """Name -> file, two folders deep; folders of frames, which can hold millions, are not looked into."""

  def found() -> Iterator[tuple[str, pathlib.Path]]:
    for folder in [_folder(root), *(child for child in _subfolders(root) if not _holds_frames(child))]:
      inner = folder / 'videos'
      for place in [folder, inner] if inner.is_dir() and folder != root else [folder]:
        for entry in os.scandir(place):
          if entry.name.lower().endswith(videos.SUFFIXES) and entry.name[0] != '.':
            yield pathlib.Path(entry).stem, pathlib.Path(entry)

  paths = _unique(root, found())
  if not paths:
    hint = " It holds folders of frames: set config.data.media='frames'." if has_frames(root) else ''
    raise UserError(f'No video in {root}, {root}/* or {root}/*/videos ({", ".join(videos.SUFFIXES)}).{hint}')
  return paths


def has_frames(root: str | os.PathLike) -> bool:
  """Whether `Folders` finds something there."""
  return any(True for _ in _walk_frames(pathlib.Path(root).expanduser(), 3))


def _frame_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """Name -> folder that holds frames."""
  paths = _unique(root, ((folder.name, folder) for folder in _walk_frames(_folder(root), 3)))
  if not paths:
    packed = next(root.rglob('*.tar'), None)
    hint = f' Unpack {packed.name} and its like first.' if packed else ''
    raise UserError(f'No folder of images in {root}, {root}/* or {root}/*/rgb_frames.{hint}')
  return paths


def _walk_frames(folder: pathlib.Path, depth: int) -> Iterator[pathlib.Path]:
  for child in _subfolders(folder) if depth else ():
    if _holds_frames(child):
      yield child
    elif child.name != 'flow_frames':  # EPIC-KITCHENS-100 has optical flow beside the pictures
      yield from _walk_frames(child, depth - 1)


def _holds_frames(folder: pathlib.Path) -> bool:
  """Whether the first thing in a folder is an image: the frames of one video are nothing but images."""
  first = next((entry for entry in os.scandir(folder) if entry.name[0] != '.'), None)
  return first is not None and _is_image(first.name)
