"""Features per frame that others extracted: LMDB stores (RULSTM, AVT's irCSN), and one .npy array per video."""

from __future__ import annotations

import collections
import contextlib
import math
import os
import pathlib
import re
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence

import lmdb
import numpy as np

from core.errors import UserError
from video.arr.sources import Features, latest

BACK = 9
"""Frames that a missing key is searched backwards (AVT, spec 6.1)."""

MODALITIES = ('rgb', 'flow', 'obj')
"""RULSTM's stores of EPIC-KITCHENS-100, in the order of its features."""

_KEY = re.compile(rb'(.+)_frame_(\d{10})\.jpg')


class Lmdb(Features):
  """RULSTM's stores: key '<video>_frame_<i:010d>.jpg', i from 1, value raw little-endian f32 (spec 6.1).

  Several stores (rgb, flow, obj) are concatenated. A missing key is replaced by the latest of the `back` frames before
  it; where there is none, that store's part is zero, and `missing` counts it.

  Attributes:
    missing: video -> parts that were zero-filled, in this process.
  """

  numbered = True

  def __init__(
    self, paths: str | os.PathLike | Sequence[str | os.PathLike], fps: float, size: int = 0, back: int = BACK
  ):
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    self._stores = [_Store(path, back) for path in paths]
    self.root, self._fps = ', '.join(store.path for store in self._stores), float(fps)
    widths = [store.width for store in self._stores]
    self.size, self.missing = sum(widths), collections.Counter()
    if size not in (0, self.size):
      raise UserError(f'The features in {self.root} have {widths} values, {self.size} in all; expected {size}.')

  def fps(self, video: str) -> float:
    """Frames per second that the numbers in the keys count."""
    del video
    return self._fps

  def videos(self) -> tuple[str, ...]:
    return tuple(sorted(set.intersection(*(set(store.videos()) for store in self._stores))))

  def duration(self, video: str) -> float:
    return min(self._last(store, video) for store in self._stores) / self._fps

  def _last(self, store: _Store, video: str) -> int:
    """Number of the last frame of a video in a store; raises `UserError` where it has none."""
    last = store.last(video)
    if last is None:
      self._require(video, set(self.videos()) - {video})
    return last

  def features(self, video: str, times: Sequence[float], limit: float = math.inf) -> np.ndarray:
    result = np.zeros((len(times), self.size), np.float32)
    if limit < 1 / self._fps:
      return result  # the observation ends before frame 1
    numbers, column = np.maximum(latest(times, limit, self._fps), 1), 0
    for store in self._stores:
      missing = store.read(video, numbers, result[:, column : column + store.width])
      if missing:
        self._last(store, video)
        if video not in self.missing:
          warnings.warn(f"{store.path}: features of '{video}' are missing; they are zeros. Told once.", stacklevel=2)
        self.missing[video] += missing
      column += store.width
    return result


class _Store:
  """One LMDB folder, opened again in each process."""

  def __init__(self, path: str | os.PathLike, back: int):
    path = pathlib.Path(path).expanduser()
    self.path, self.back = str(path.parent if path.name == 'data.mdb' else path), back
    self._environment = None
    with self._cursor() as cursor:
      if not cursor.first():
        raise UserError(f'The LMDB store {self.path} is empty. Copy or download it again.')
      key, value = bytes(cursor.key()), cursor.value()
      if not _KEY.fullmatch(key) or not len(value) or len(value) % 4:
        raise UserError(
          f"The LMDB store {self.path} begins with the key '{key[:60].decode(errors='replace')}' and a value of "
          f"{len(value)} bytes; expected keys such as 'P01_01_frame_0000000001.jpg' and values of 32-bit floats."
        )
      self.width = len(value) // 4
      gap = _usual_gap(cursor)
    if gap > back + 1:
      raise UserError(
        f'The keys in {self.path} lie {gap} frames apart, but a missing key is searched only {back} frames back '
        f'(spec 6.1): RULSTM stores have every frame at 30 fps, irCSN every third. Extract the features more densely.'
      )

  def __getstate__(self):
    return {**self.__dict__, '_environment': None}

  @contextlib.contextmanager
  def _cursor(self) -> Iterator[lmdb.Cursor]:
    if self._environment is None:
      self._environment = _Environment.of(self.path)
    try:
      with self._environment.lmdb.begin(buffers=True) as transaction, transaction.cursor() as cursor:
        yield cursor
    except lmdb.Error as error:
      raise UserError(f'The LMDB store {self.path} is corrupt ({error}). Copy or download it again.') from error

  def videos(self) -> list[str]:
    """Names of the videos: from one to the next, without going through their frames."""
    names = []
    with self._cursor() as cursor:
      found = cursor.first()
      while found:
        match = _KEY.fullmatch(bytes(cursor.key()))
        if match:
          names.append(match[1].decode())
        found = cursor.set_range(match[1] + b'_frame_\xff') if match else cursor.next()
    return names

  def last(self, video: str) -> int | None:
    """Number of the last frame of a video; None where there is none."""
    with self._cursor() as cursor:
      return _at_or_before(cursor, video, 10**10 - 1)

  def read(self, video: str, numbers: Sequence[int], out: np.ndarray) -> int:
    """Fills `out` [K, width] with the vectors of some frames or of those just before; returns how many had none."""
    missing = 0
    with self._cursor() as cursor:
      for row, number in zip(out, numbers):
        found = _at_or_before(cursor, video, int(number))
        if found is None or found < number - self.back:
          missing += 1
          continue
        value = cursor.value()
        if len(value) != 4 * self.width:
          raise UserError(
            f"Key '{bytes(cursor.key()).decode()}' in {self.path} holds {len(value)} bytes, expected {4 * self.width} "
            f'({self.width} 32-bit floats, as the first key has). Copy or download the store again.'
          )
        row[:] = np.frombuffer(value, '<f4')
    return missing


def _at_or_before(cursor: lmdb.Cursor, video: str, number: int) -> int | None:
  """Puts the cursor on a video's last key that is not after frame `number`; returns its number, None without one."""
  wanted = f'{video}_frame_{number:010d}.jpg'.encode()
  exact = cursor.set_range(wanted) and bytes(cursor.key()) == wanted
  if exact:
    return number
  # `set_range` stands on the key after, or on none behind the last one.
  if not (cursor.prev() if cursor.key() else cursor.last()):
    return None
  match = _KEY.fullmatch(bytes(cursor.key()))
  return int(match[2]) if match and match[1] == video.encode() else None


def _usual_gap(cursor: lmdb.Cursor) -> int:
  """Median distance of the first frame numbers of the first video."""
  numbers, name = [], None
  for key in cursor.iternext(keys=True, values=False):
    match = _KEY.fullmatch(bytes(key))
    if match is None or name not in (None, match[1]) or len(numbers) == 64:
      break
    name = match[1]
    numbers.append(int(match[2]))
  return int(np.median(np.diff(numbers))) if len(numbers) > 1 else 1


class _Environment:
  """An open LMDB folder: one per folder and process, as LMDB wants it, closed when nobody uses it any more."""

  _open: weakref.WeakValueDictionary[str, _Environment] = weakref.WeakValueDictionary()
  _lock = threading.Lock()

  @classmethod
  def of(cls, path: str) -> _Environment:
    """The environment of a folder."""
    real = os.path.realpath(path)
    with cls._lock:
      environment = cls._open.get(real)
      if environment is None:
        environment = cls._open[real] = cls(path)
    return environment

  def __init__(self, path: str):
    file = pathlib.Path(path) / 'data.mdb'
    if not file.is_file():
      near = sorted(found.parent.name for found in file.parent.parent.glob('*/data.mdb'))
      raise UserError(f'No LMDB store at {file}. {file.parent.parent} has stores in {near or "no folder"}.')
    try:
      self.lmdb = lmdb.open(path, readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
      raise UserError(f'{file} is not an LMDB store ({error}). Copy or download it again.') from error
    pages, page = self.lmdb.info()['last_pgno'] + 1, self.lmdb.stat()['psize']
    if file.stat().st_size < pages * page:  # reading behind the end would kill the process
      raise UserError(
        f'{file} was cut off: it has {file.stat().st_size} bytes, its header states {pages * page}. Copy or download '
        'it again.'
      )


def stores_of(root: str | os.PathLike) -> list[str]:
  """Folders of LMDB stores: those that commas separate, `root` itself, or the ones of rgb, flow and obj inside it."""
  if ',' in str(root):
    return [path.strip() for path in str(root).split(',')]
  folder = pathlib.Path(root).expanduser()
  if folder.is_file() or (folder / 'data.mdb').is_file():
    return [str(folder)]
  parts = [str(folder / name) for name in MODALITIES if (folder / name / 'data.mdb').is_file()]
  if not parts:
    near = sorted(str(path.parent) for path in folder.glob('*/data.mdb'))
    raise UserError(
      f'No LMDB store at {folder}/data.mdb, nor in its folders {MODALITIES}.'
      f'{f" There are {near}: name the ones you mean, with commas between them." if near else ""}'
    )
  return parts


class Npy(Features):
  """One array per video, ROOT/<video>.npy, [L, D] or [D, L] (50 Salads' I3D), memory-mapped; row j belongs to j / fps.

  A video of which the array ends early gives its last row.
  """

  numbered = True

  def __init__(self, root: str | os.PathLike, fps: float, size: int = 0):
    self.root, self._fps = str(root), float(fps)
    folder = pathlib.Path(root).expanduser()
    self._paths = {path.stem: path for path in sorted(folder.glob('*.npy'))}
    if not self._paths:
      inner = [path.name for path in sorted(folder.glob('*')) if path.is_dir() and next(path.glob('*.npy'), None)]
      raise UserError(f'No .npy file in {folder}{f"; give its folder {inner}" if inner else ""}.')
    shapes = {name: self._load(name).shape for name in list(self._paths)[:16]}
    fits = [axis for axis in (1, 0) if len({shape[axis] for shape in shapes.values()} | {size} - {0}) == 1]
    if not fits or (len(shapes) == 1 and not size):
      raise UserError(
        f'Which axis of the arrays in {folder} is the frame, and which the feature? Their shapes are '
        f'{dict(list(shapes.items())[:3])}; config.data.feature_size is {size}: set it to the length of the features.'
      )
    self._axis = fits[0]
    self.size = next(iter(shapes.values()))[self._axis]

  def fps(self, video: str) -> float:
    """Rows per second."""
    del video
    return self._fps

  def videos(self) -> tuple[str, ...]:
    return tuple(self._paths)

  def duration(self, video: str) -> float:
    return len(self._rows(video)) / self._fps

  def features(self, video: str, times: Sequence[float], limit: float = math.inf) -> np.ndarray:
    rows = self._rows(video)
    if limit < 0:
      return np.zeros((len(times), self.size), np.float32)
    return np.array(rows[np.clip(latest(times, limit, self._fps), 0, len(rows) - 1)], np.float32)

  def _rows(self, video: str) -> np.ndarray:
    self._require(video, self._paths)
    array = self._load(video)
    if array.shape[self._axis] != self.size:
      raise UserError(f'{self._paths[video]} has the shape {array.shape}, expected {self.size} on axis {self._axis}.')
    return array if self._axis == 1 else array.T

  def _load(self, video: str) -> np.ndarray:
    path = self._paths[video]
    try:
      array = np.load(path, mmap_mode='r', allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
      raise UserError(
        f'{path} cannot be read as an array ({error}). Pickled objects are refused: save a plain array with np.save.'
      ) from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != 'f' or not array.size:
      found = f'{array.dtype} {array.shape}' if isinstance(array, np.ndarray) else type(array).__name__
      raise UserError(f'{path} holds {found}, expected floats of shape [frames, features].')
    return array
