"""The manifest of a dataset on disk: what was written, with which parameters, and the hash of every file.

A folder of records counts as a dataset only when it holds a `manifest.json`; the manifest is written last, into a
folder that gets its final name last. Whether the bytes on disk are still those that were written is checked in two
depths: sizes whenever a dataset is opened (milliseconds), sha256 on demand (`verify`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

from core.errors import UserError

FILE = 'manifest.json'
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What one version of a dataset is.

  Attributes:
    name: dataset name (a Python identifier).
    version: 'major.minor.patch'.
    description: one or two sentences for people.
    info: plain data, the parameters that the records were generated or prepared with.
    features: field name -> description of its type, shape and dtype.
    table: names of the cheap fields that the index holds.
    splits: split name -> number of records; a split that came out empty is listed with 0.
    files: relative path -> {'bytes': size, 'sha256': hex digest}, all files but the manifest itself.
  """

  name: str
  version: str
  description: str
  info: dict[str, Any]
  features: dict[str, str]
  table: list[str]
  splits: dict[str, int]
  files: dict[str, dict[str, Any]]

  @property
  def fingerprint(self) -> str:
    """sha256 (hex) of the manifest's content: equal for two datasets exactly when nothing in them differs."""
    return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

  def save(self, folder: pathlib.Path) -> None:
    """Writes `manifest.json` into `folder`."""
    content = {'format': FORMAT, **dataclasses.asdict(self), 'fingerprint': self.fingerprint}
    (folder / FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + '\n', encoding='utf-8')

  def verify(self, folder: pathlib.Path, *, hashes: bool = False) -> None:
    """Raises `UserError` naming the first file of `folder` that is missing, resized or (with `hashes`) altered."""
    for name, expected in self.files.items():
      path = folder / name
      if not path.is_file():
        raise UserError(f'{path} is missing, though {folder / FILE} lists it. {way_out(folder)}')
      size = path.stat().st_size
      if size != expected['bytes']:
        raise UserError(f'{path} is corrupt: {size} bytes found, {expected["bytes"]} expected. {way_out(folder)}')
      if hashes and digest(path) != expected['sha256']:
        raise UserError(f'{path} is corrupt: its sha256 is not the one in {folder / FILE}. {way_out(folder)}')


def describe(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Size and sha256 of every file under `folder` but the manifest, by relative path."""
  paths = sorted(p for p in folder.rglob('*') if p.is_file() and p.name != FILE)
  return {p.relative_to(folder).as_posix(): {'bytes': p.stat().st_size, 'sha256': digest(p)} for p in paths}


def digest(path: pathlib.Path) -> str:
  """sha256 of a file, hex."""
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def load(folder: pathlib.Path) -> Manifest:
  """Reads the manifest in `folder`; raises `UserError` when it is absent, unreadable, altered or of another format."""
  path = folder / FILE
  if not path.is_file():
    raise UserError(f'No dataset at {folder}: {FILE} is missing. {way_out(folder)}')
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
    found, fingerprint = content.pop('format'), content.pop('fingerprint')
    manifest = Manifest(**content) if found == FORMAT else None
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f'{path} is not a readable manifest ({error}). {way_out(folder)}') from error
  if manifest is None:
    raise UserError(f'{path} has format {found}, expected {FORMAT}. {way_out(folder)}')
  if manifest.fingerprint != fingerprint:
    raise UserError(f'{path} was changed after it was written: its fingerprint does not match. {way_out(folder)}')
  return manifest


def way_out(folder: pathlib.Path) -> str:
  """What to do about a dataset that is missing or broken."""
  return f'Delete {folder} if it exists and write it again with `python -m launch.prepare`.'
