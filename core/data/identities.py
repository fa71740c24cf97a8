"""Photos of persons, a folder each: the sets of personalisation and of protection against it (DDAP spec 6).

Anti-DreamBooth's layout is read, `<root>/<identity>/set_{A,B,C}/*.{png,jpg}`, 4 photos in each set: A clean and never
published, B to protect, C further clean ones. `core.data.identity_lists` makes such sets from raw VGGFace2 or
CelebA-HQ. Faces are biometric data: none come with Verax, and both datasets are for research only.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from core.data import image, manifest, records
from core.errors import UserError, nearest

SETS = ('A', 'B', 'C')
"""Clean reference photos, photos to protect, extra clean photos."""
PER_SET = 4
"""Photos of a set in the protocol of Anti-DreamBooth."""
LONGEST = 16
"""Longer over shorter side of a photo; beyond, resizing the shorter side would fill the memory (our choice)."""

FEATURES = {
  'image': tfds.features.Image(shape=(None, None, 3), doc='RGB, uint8 [size, size, 3], stored as PNG'),
  'mask': tfds.features.Image(shape=(None, None, 1), doc='255 on the face, 0 elsewhere; all 255 where nobody knows'),
  'identity': tfds.features.Text(doc='who'),
  'set': tfds.features.Text(doc="'A', 'B', 'C'; or 'train' for identities that a model is trained on"),
  'path': tfds.features.Text(doc='where the photo came from'),
}


class Photo(NamedTuple):
  """A photo that was found: whose it is, its set 'A', 'B' or 'C', and its file."""

  identity: str
  set: str
  path: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Listing:
  """Photos by identity, set and name, and what was odd on the way: (kind, path, detail)."""

  photos: tuple[Photo, ...]
  problems: tuple[tuple[str, str, str], ...] = ()


def read(root: str | os.PathLike) -> Listing:
  """Lists `<root>/<identity>/set_{A,B,C}/*`, names sorted; `root` may also be the folder of one identity.

  Sets of another size than 4, foreign files and foreign folders are problems of the listing.

  Raises:
    UserError: no folder, no identity in it, or an identity one of whose sets is empty or missing.
  """
  root = pathlib.Path(root).expanduser()
  if not root.is_dir():
    raise UserError(f"No folder of identities at '{root}'.")
  folders = [root.absolute()] if any(root.glob('set_*')) else _visible(root)
  photos, problems = [], []
  for folder in folders:
    if not any(folder.glob('set_*')):
      problems.append(('not an identity', str(folder), 'no folder set_A, set_B or set_C in it'))
      continue
    found, odd = _identity(folder)
    photos += found
    problems += odd
  if not photos:
    raise UserError(
      f"'{root}' holds no identity: expected <identity>/set_A, set_B and set_C with photos, found "
      f'{[path.name for path in folders[:3]] or "nothing"}. Sets are made from raw VGGFace2 or CelebA-HQ by '
      '`core.data.identity_lists.build`.'
    )
  return Listing(tuple(photos), tuple(problems))


def _identity(folder: pathlib.Path) -> tuple[list[Photo], list[tuple[str, str, str]]]:
  """The photos of one identity's folder, and what is odd in it."""
  wanted = [f'set_{name}' for name in SETS]
  problems = [('unknown set', str(path), '') for path in _visible(folder) if path.name not in wanted]
  photos, empty = [], []
  for name in SETS:
    inside = _visible(folder / f'set_{name}') if (folder / f'set_{name}').is_dir() else []
    taken = [path for path in inside if path.suffix.lower() in image.SUFFIXES]
    problems += [('not a photo', str(path), '') for path in inside if path not in taken]
    if not taken:
      empty.append(f'set_{name}')
    elif len(taken) != PER_SET:
      problems.append(
        ('other number of photos', str(folder / f'set_{name}'), f'{len(taken)}, the protocol has {PER_SET}')
      )
    photos += [Photo(folder.name, name, path) for path in taken]
  if empty:
    raise UserError(
      f"Identity '{folder.name}' has no photo in {' and '.join(empty)}: expected {folder}/set_A, set_B and set_C with "
      f'{PER_SET} photos each ({", ".join(image.SUFFIXES)}).'
    )
  return photos, problems


def _visible(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(path for path in folder.iterdir() if not path.name.startswith('.'))


def fit(photo: np.ndarray, size: int) -> np.ndarray:
  """The square of the protocol: shorter side to `size`, then the centre (spec 2).

  As torchvision's `Resize(size)` and `CenterCrop(size)` on a Pillow image: bilinear, antialiased, the longer side
  rounded down.

  Args:
    photo: uint8 RGB [H, W, 3].
    size: pixels.

  Returns:
    uint8 RGB [size, size, 3].

  Raises:
    UserError: a side is more than 16 times the other.
  """
  height, width = image.check(photo).shape[:2]
  short, long = min(height, width), max(height, width)
  if long > LONGEST * short:
    raise UserError(f'the photo is {width}x{height} pixels: cut out the person first, no side over {LONGEST} x other.')
  if short != size:
    height, width = size * height // short, size * width // short
    photo = np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BILINEAR))
  top, left = round((height - size) / 2), round((width - size) / 2)
  return np.ascontiguousarray(photo[top : top + size, left : left + size])


def prepare(
  root: str | os.PathLike,
  out: str | os.PathLike,
  name: str,
  size: int,
  *,
  listing: Listing | None = None,
  version: str = '1.0.0',
  overwrite: bool = False,
) -> records.PrepareReport:
  """Writes the photos under `root` as split 'test' of the dataset `out/name/version`.

  Records of the very same files at the same size are kept as they are, so that a run may ask each time.

  Args:
    root: see `read`.
    out: folder of all records.
    name: of the dataset, an identifier.
    size: side of the records in pixels, see `fit`.
    listing: which photos; those of `read(root)` by default.
    version: of the records.
    overwrite: replaces records of other files or another size.

  Returns:
    Records per split, and every problem met: (kind, path, detail). A photo that cannot be read is one.

  Raises:
    UserError: see `read`; an identity of which no photo of a set can be read; other records are there already.
  """
  listing = read(root) if listing is None else listing
  info = {'dataset': name, 'size': size, 'photos': len(listing.photos), 'files': _digest(listing)}
  problems = list(listing.problems)
  if overwrite or not records.is_written(out, name, version, info):
    records.write(
      out, name, {'test': _examples(root, listing, size, problems)}, FEATURES, version,
      description=f'Photos of persons, {size} px, in the sets A, B and C.', info=info, overwrite=overwrite,
    )  # fmt: skip
  written = manifest.load(records.find(out, name, version))
  return records.PrepareReport(name, dict(written.splits), problems, written)


def _digest(listing: Listing) -> str:
  """Of names, lengths and times of change: equal for the same files, wherever they lie, without reading them."""
  facts = [(who, name, path.name, path.stat().st_size, path.stat().st_mtime_ns) for who, name, path in listing.photos]
  return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _examples(root, listing: Listing, size: int, problems: list) -> Iterator[tuple[str, dict[str, Any]]]:
  """The examples of `FEATURES`; adds to `problems` what cannot be read, or is enlarged."""
  root = pathlib.Path(root).expanduser().absolute()
  left = collections.Counter((photo.identity, photo.set) for photo in listing.photos)
  for identity, name, path in listing.photos:
    where = path.absolute()
    where = where.relative_to(root).as_posix() if where.is_relative_to(root) else str(where)
    try:
      pixels = image.read(path)
      square = fit(pixels, size)
    except UserError as error:
      problems.append(('unreadable', str(path), str(error)))
      left[identity, name] -= 1
      if not left[identity, name]:
        raise UserError(f"Identity '{identity}': no photo of set_{name} can be used, the last: {error}") from error
      continue
    if min(pixels.shape[:2]) < size:
      problems.append(('enlarged', str(path), f'{pixels.shape[1]}x{pixels.shape[0]} to {size}'))
    mask = np.full((size, size, 1), 255, np.uint8)
    example = {'image': square, 'mask': mask, 'identity': identity, 'set': name, 'path': where}
    yield f'{identity}/set_{name}/{path.name}', example


class Identities:
  """Persons and their photos, from records of `FEATURES`.

  Attributes:
    names: of the identities, in the order of the records.
  """

  def __init__(self, rows: records.Records, limit: int = 0):
    """Args: rows: one split or a part of it; limit: how many identities to keep, the first ones; 0 for all."""
    self._records, self._rows = rows, {}
    for index, (identity, name) in enumerate(zip(rows.table['identity'], rows.table['set'], strict=True)):
      self._rows.setdefault(str(identity), {}).setdefault(str(name), []).append(index)
    self.names = tuple(self._rows)[: limit or None]

  def __len__(self) -> int:
    return len(self.names)

  def sets(self, identity: str) -> tuple[str, ...]:
    """Names of the sets of one identity."""
    if identity not in self.names:
      close = nearest(identity, self.names)
      raise UserError(f"No identity '{identity}' among {len(self)}: {', '.join(self.names[:5])} ...{close}")
    return tuple(self._rows[identity])

  def photos(self, identity: str, name: str) -> np.ndarray:
    """uint8 RGB [n, H, W, 3], the photos of one set in the order of their names."""
    return np.stack([self._records[i]['image'] for i in self._which(identity, name)])

  def masks(self, identity: str, name: str) -> np.ndarray:
    """bool [n, H, W], true on the face; true everywhere where nobody knows."""
    return np.stack([self._records[i]['mask'][..., 0] > 127 for i in self._which(identity, name)])

  def paths(self, identity: str, name: str) -> tuple[str, ...]:
    """Where the photos came from."""
    return tuple(str(self._records[i]['path']) for i in self._which(identity, name))

  def _which(self, identity: str, name: str) -> list[int]:
    if name not in self.sets(identity):
      raise UserError(f"Identity '{identity}' has no set '{name}', it has {', '.join(self.sets(identity))}.")
    return self._rows[identity][name]
