"""What the readers share: finding a dataset's folder, reading its text with care, gathering segments line by line.

One rule for damage: a line that cannot be used costs itself and becomes a problem row; a file that is no table at all,
or of which no line can be used, is a `UserError`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import pathlib
from collections.abc import Iterator, Sequence

from core.errors import UserError, nearest
from video.arr.annotations import tables

DAMAGED = '\N{REPLACEMENT CHARACTER}'
"""What a byte that is not UTF-8 is read as."""


def locate(root: str | pathlib.Path, dataset: str, marks: Sequence[str]) -> pathlib.Path:
  """The folder that holds a dataset: `root`, or else one of its direct subfolders, whatever their names.

  Args:
    root: a user's folder.
    dataset: for the messages.
    marks: relative paths; the dataset is where at least one of them exists.

  Raises:
    UserError: there is no such root, or the dataset is nowhere or in several places.
  """
  root = pathlib.Path(root).expanduser()
  if not root.is_dir():
    raise UserError(f"There is no folder '{root}'; give the one with the annotation files of '{dataset}'.")
  if any((root / mark).exists() for mark in marks):
    return root
  found = sorted(folder for folder in root.iterdir() if any((folder / mark).exists() for mark in marks))
  if not found:
    inside = ', '.join(sorted(path.name for path in root.iterdir())[:12]) or 'nothing'
    raise UserError(
      f"Neither '{root}' nor a folder in it holds annotations of '{dataset}': found {inside}; expected at least one of "
      f'{", ".join(marks)}.'
    )
  if len(found) > 1:
    raise UserError(f"'{dataset}' is in {len(found)} folders of '{root}', {[f.name for f in found]}: name one of them.")
  return found[0]


def check_fold(dataset: str, fold: int, folds: int) -> None:
  """Raises `UserError` unless `fold` is in 1..folds."""
  if fold not in range(1, folds + 1):
    raise UserError(f"'{dataset}' has no fold {fold}, expected one of 1..{folds}.")


class Gathering:
  """The segments, problems and file hashes that a reader collects from one folder."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.problems: list[tables.Problem] = []
    self.sources: dict[str, str] = {}
    self._rows: dict[str, list] = {name: [] for name in tables.DTYPES}
    self._uids: set[str] = set()

  def first(self, *names: str) -> str | None:
    """The first of several file names that exists in the folder; None without any."""
    return next((name for name in names if (self.folder / name).is_file()), None)

  def problem(self, kind: str, where: str, detail: str) -> None:
    self.problems.append((kind, where, detail))

  def read(self, name: str) -> bytes:
    """A file's bytes; remembers their hash."""
    path = self.folder / name
    try:
      content = path.read_bytes()
    except OSError as error:
      raise UserError(f'{path} cannot be read: {error.strerror}.') from error
    self.sources[name] = hashlib.sha256(content).hexdigest()
    return content

  def text(self, name: str) -> str:
    """A file's text; bytes that are not UTF-8 become `DAMAGED`, for the caller to pass over."""
    return self.decode(self.read(name), name)

  def decode(self, content: bytes, name: str) -> str:
    if b'\0' in content:
      raise UserError(f'{self.folder / name} is not UTF-8 text: it has null bytes, as UTF-16 and binary files do.')
    return content.decode('utf-8-sig', errors='replace')

  def table(
    self, name: str, columns: Sequence[str], *, header: bool, delimiter: str = ','
  ) -> Iterator[tuple[str, list[str]]]:
    """The lines of a delimited file that can be used, as ('name:line', their fields without outer blanks).

    Args:
      name: relative path.
      columns: with a header, the columns that are wanted, in the order to give them in; without one, all columns.
      header: whether the first line names the columns (a leading '#' does not count).
      delimiter: between fields.

    Raises:
      UserError: no such file, a wanted column is missing, or no line has the right number of fields.
    """
    lines = self._lines(name, delimiter)
    if not lines:
      raise UserError(f'{self.folder / name} is empty, expected columns {", ".join(columns)}.')
    which = self._columns(name, lines[0][1], columns) if header else range(len(columns))
    width, usable = len(lines[0][1]) if header else len(columns), 0
    for where, line in lines[header:]:
      if len(line) != width:
        self.problem('bad line', where, f'{len(line)} fields, expected {width}: {delimiter.join(line)[:80]}')
        continue
      fields = [line[i] for i in which]
      if any(DAMAGED in field for field in fields):
        self.problem('not UTF-8', where, delimiter.join(fields)[:80])
        continue
      usable += 1
      yield where, fields
    if not usable and len(lines) > header:
      raise UserError(
        f'No line of {self.folder / name} can be used: expected {width} fields separated by {delimiter!r}'
        f' ({", ".join(columns)}), found {delimiter.join(lines[header][1])[:80]!r}.'
      )

  def _lines(self, name: str, delimiter: str) -> list[tuple[str, list[str]]]:
    """('name:line', fields) of all lines that are not blank."""
    lines = csv.reader(io.StringIO(self.text(name), newline=''), delimiter=delimiter)
    try:
      stripped = [(f'{name}:{lines.line_num}', [field.strip() for field in line]) for line in lines]
    except csv.Error as error:
      raise UserError(f'{self.folder / name} is no table with columns separated by {delimiter!r}: {error}.') from error
    return [(where, line) for where, line in stripped if any(line)]

  def _columns(self, name: str, line: Sequence[str], wanted: Sequence[str]) -> list[int]:
    found = [field.lstrip('# ') for field in line]
    for column in wanted:
      if column not in found:
        raise UserError(
          f"{self.folder / name} has no column '{column}': its first line is {', '.join(line)[:160]!r}, expected a "
          f'header with {", ".join(wanted)}.{nearest(column, found)}'
        )
    return [found.index(column) for column in wanted]

  def ids(self, name: str, column: str, header: bool = True) -> list[str]:
    """A list file: one id per line."""
    return [fields[0] for _, fields in self.table(name, [column], header=header)]

  def segment(
    self, where: str, *, uid: str, video: str, participant: str, start: float, stop: float, action: int,
    split: str, verb: int = -1, noun: int = -1, target: bool = True,
  ) -> bool:  # fmt: skip
    """Keeps a segment, or says in a problem row why not; returns whether it was kept."""
    if not (uid and video):
      self.problem('bad line', where, 'no id or no video')
    elif not (math.isfinite(stop) and start >= 0):
      self.problem('bad line', where, f'{uid} lasts from {start} to {stop} s')
    elif stop <= start:
      self.problem('stop before start', where, f'{uid} starts at {start:.3f} s and stops at {stop:.3f} s')
    elif uid in self._uids:
      self.problem('duplicate id', where, f'{uid} occurred before; the first one counts')
    else:
      self._uids.add(uid)
      row = (uid, video, participant, start, stop, verb, noun, action, split, target)
      for column, value in zip(self._rows.values(), row, strict=True):
        column.append(value)
      return True
    return False

  def annotations(self, name: str, vocabulary: tables.Vocabulary, splits: Sequence[str]) -> tables.Annotations:
    """All that was gathered; `splits` are those that should have segments.

    Raises:
      UserError: no segment at all.
    """
    for split in splits:
      if split not in self._rows['split']:
        self.problem('empty split', str(self.folder), f"no usable segment of split '{split}'")
    if not self._uids:
      found = '; '.join(f'{kind}: {where} {detail}' for kind, where, detail in self.problems[:3])
      raise UserError(f'{self.folder} has no usable segment of {name}: {len(self.problems)} problems, first {found}.')
    return tables.Annotations(name, vocabulary, tables.columns(self._rows), tuple(self.problems), self.sources)
