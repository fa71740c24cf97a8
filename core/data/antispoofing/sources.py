"""Where an item's pictures come from: a video, one photo, or ready crops in a folder or a zip (as released)."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import zipfile
from collections.abc import Callable, Sequence

import numpy as np

from core.data import image, video
from core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Source:
  """Pictures by number.

  Attributes:
    numbers: frame numbers that can be read, ascending.
    total: frames of the original video (more than `numbers` where crops without a face are missing).
    cropped: whether the pictures are face crops already.
    read: `(numbers, problems) -> [(number, uint8 [H, W, 3])]`; damage is appended to `problems`.
  """

  numbers: tuple[int, ...]
  total: int
  cropped: bool
  read: Callable[[Sequence[int], list[str]], list[tuple[int, np.ndarray]]]


def open_source(path: pathlib.Path) -> Source:
  """Opens an item's pictures by the kind of its path.

  Raises:
    UserError: unreadable, or nothing in it.
  """
  if path.is_dir():
    return _folder(path)
  suffix = path.suffix.lower()
  if suffix == '.zip':
    return _zip(path)
  if suffix in image.SUFFIXES:
    picture = image.read(path)
    return Source((0,), 1, False, lambda numbers, problems: [(0, picture)] if 0 in numbers else [])
  about = video.info(path)
  return Source(
    tuple(range(about.frames)), max(about.frames, about.frames_stated), False,
    lambda numbers, problems: video.frames(path, numbers, problems=problems),
  )  # fmt: skip


def _folder(path: pathlib.Path) -> Source:
  pictures = {p.name: p for p in path.iterdir() if p.suffix.lower() in image.SUFFIXES}
  text = (path / 'info.txt').read_text(errors='replace') if (path / 'info.txt').is_file() else ''
  return _crops(path, list(pictures), text, lambda name: image.read(pictures[name]))


def _zip(path: pathlib.Path) -> Source:
  try:
    with zipfile.ZipFile(path) as archive:
      names = [n for n in archive.namelist() if n.lower().endswith(image.SUFFIXES)]
      text = archive.read('info.txt').decode(errors='replace') if 'info.txt' in archive.namelist() else ''
  except (zipfile.BadZipFile, OSError) as error:
    raise UserError(f"'{path}' is not a whole zip file ({error}). Copy or download it again.") from error

  def read(name: str) -> np.ndarray:
    try:
      with zipfile.ZipFile(path) as archive:
        return image.read(archive.read(name), name=f'{path}:{name}')
    except (zipfile.BadZipFile, OSError) as error:
      raise UserError(f"'{path}:{name}' cannot be unpacked ({error}).") from error

  return _crops(path, names, text, read)


def _crops(path: pathlib.Path, names: list[str], text: str, read: Callable[[str], np.ndarray]) -> Source:
  """Crops named by frame number; zip order is insertion order and 10 sorts before 9 as text, so sort by number."""
  numbered = {}
  for name in names:
    digits = re.findall(r'\d+', pathlib.PurePosixPath(name).stem)
    if digits:
      numbered[int(digits[-1])] = name
  if not numbered:
    raise UserError(f"'{path}' holds no crop named <frame number>.png ({len(names)} images).")
  stated = re.findall(r'\d+', text)
  total = int(stated[1]) if len(stated) >= 2 else max(numbered) + 1

  def read_all(numbers: Sequence[int], problems: list[str]) -> list[tuple[int, np.ndarray]]:
    found = []
    for number in numbers:
      try:
        found.append((number, read(numbered[number])))
      except UserError as error:
        problems.append(str(error))
    return found

  if stated and len(stated) >= 2 and int(stated[0]) != len(numbered):
    read_all = _with_note(read_all, f'info.txt states {stated[0]} crops, found {len(numbered)}')
  return Source(tuple(sorted(numbered)), total, True, read_all)


def _with_note(read: Callable, note: str) -> Callable:
  """A reader that also reports `note`."""

  def reader(numbers: Sequence[int], problems: list[str]) -> list[tuple[int, np.ndarray]]:
    problems.append(note)
    return read(numbers, problems)

  return reader
