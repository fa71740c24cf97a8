"""What the readers share: finding a dataset's folder, reading its text with care, gathering studies one by one.

One rule for damage: a report that cannot be used costs itself and becomes a problem row; a file that is no table at
all, or of which nothing can be used, is a `UserError`.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import pathlib
import zlib
from collections.abc import Iterator, Sequence

from core.errors import UserError, nearest
from multimodal.trrg.datasets import tables

SECTIONS = ('findings', 'impression', 'findings+impression')
"""What the target of a study may consist of (spec 6.1)."""

DAMAGED = '\N{REPLACEMENT CHARACTER}'
"""What a byte that is not UTF-8 is read as."""

SPLITS = {'train': 'train', 'val': 'val', 'valid': 'val', 'validate': 'val', 'validation': 'val', 'test': 'test'}
"""What datasets call the splits."""

SHARES = (('train', 0.7), ('val', 0.1), ('test', 0.2))
"""Of our own split, for layouts that have none (our choice, R2Gen's shares)."""

csv.field_size_limit(1 << 24)  # a report may be longer than the 128 kB that a field may have by default


def folders_with(root: str | pathlib.Path, marks: Sequence[str], depth: int = 1) -> list[pathlib.Path]:
  """`root` if it has at least one of the marks (glob patterns), else the folders at most `depth` below that have."""
  level = [pathlib.Path(root).expanduser()]
  for _ in range(depth + 1):
    found = [folder for folder in level if any(next(folder.glob(mark), None) for mark in marks)]
    if found:
      return found
    level = sorted(path for folder in level if folder.is_dir() for path in folder.iterdir() if path.is_dir())
  return []


def locate(root: str | pathlib.Path, what: str, marks: Sequence[str], depth: int = 1) -> pathlib.Path:
  """The one folder that `folders_with` finds.

  Raises:
    UserError: there is no such root, or what is sought is nowhere in it or in several places.
  """
  root = pathlib.Path(root).expanduser()
  if not root.is_dir():
    raise UserError(f"There is no folder '{root}'; give the one with {what}.")
  found = folders_with(root, marks, depth)
  if not found:
    inside = ', '.join(sorted(path.name for path in root.iterdir())[:12]) or 'nothing'
    raise UserError(f"'{root}' does not hold {what}: found {inside}; expected one of {', '.join(marks)}.")
  if len(found) > 1:
    raise UserError(f"'{root}' holds {what} in {len(found)} folders, {[f.name for f in found]}: name one of them.")
  return found[0]


def media(root: pathlib.Path, candidates: Sequence[str], names: Sequence[str]) -> pathlib.Path:
  """Where the films lie: the first of the candidate folders with one of the first of them, else the first there is."""
  folders = [root / candidate for candidate in candidates]
  for folder in folders:
    if any((folder / name).is_file() for name in names[:100]):
      return folder
  return next((folder for folder in folders if folder.is_dir()), folders[0])


def rows(path: pathlib.Path, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
  """The lines of a CSV file, plain or .gz, as ('name:line', the wanted fields without outer blanks).

  Lines without the full number of fields come with an empty list.

  Raises:
    UserError: it cannot be read, or a column is missing.
  """
  try:
    with (gzip.open if path.suffix == '.gz' else open)(
      path, 'rt', encoding='utf-8-sig', errors='replace', newline=''
    ) as file:  # fmt: skip
      lines = csv.reader(file)
      header = [field.strip() for field in next(lines, [])]
      for column in columns:
        if column not in header:
          raise UserError(
            f"{path} has no column '{column}': its first line is {', '.join(header)[:160]!r}, expected a header with "
            f'{", ".join(columns)}.{nearest(column, header)}'
          )
      which = [header.index(column) for column in columns]
      for line in lines:
        if any(line):
          full = len(line) == len(header)
          yield f'{path.name}:{lines.line_num}', [line[i].strip() for i in which] if full else []
  except (OSError, EOFError, zlib.error, csv.Error) as error:
    raise UserError(f'{path} cannot be read ({error}). Download it again.') from error


def own_split(uid: str) -> str:
  """Our split of a collection that has none: by the sha256 of the patient's id, so it is the same for everyone."""
  place = int(hashlib.sha256(uid.encode()).hexdigest()[:8], 16) / 16**8
  for split, share in SHARES:
    if place < share:
      return split
    place -= share
  return SHARES[-1][0]


class Gathering:
  """The studies and problems that a reader collects."""

  def __init__(self, name: str, sections: str = 'findings'):
    self.name, self.sections = name, sections
    self.problems: list[tables.Problem] = []
    self._studies: dict[str, tables.Study] = {}

  def problem(self, kind: str, where: str, detail: str) -> None:
    self.problems.append((kind, where, detail))

  def target(self, findings: str, impression: str) -> str:
    """The text of the wanted sections; '' where there is none."""
    wanted = {'findings': [findings], 'impression': [impression]}.get(self.sections, [findings, impression])
    return ' '.join(text for text in wanted if text)

  def study(self, where: str, study: tables.Study) -> None:
    """Keeps a study, or says in a problem row why not."""
    if not study.id:
      self.problem('no id', where, study.report[:80])
    elif study.id in self._studies:
      self.problem('duplicate id', where, f'{study.id} occurred before; the first one counts')
    elif not study.report.strip():
      self.problem('no report', where, f'study {study.id} has no text in its {self.sections}')
    else:
      if DAMAGED in study.report:
        self.problem('not UTF-8', where, f'study {study.id} is kept, with {DAMAGED} in its report')
      self._studies[study.id] = study

  def corpus(self, source: str | pathlib.Path) -> tables.Corpus:
    """All that was gathered.

    Raises:
      UserError: no study at all.
    """
    if not self._studies:
      found = '; '.join(f'{kind}: {where} {detail}' for kind, where, detail in self.problems[:3]) or 'it is empty'
      raise UserError(f'{source} has no usable report: {len(self.problems)} problems, first {found}.')
    return tables.Corpus(self.name, tuple(self._studies.values()), tuple(self.problems))
