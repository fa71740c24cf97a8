"""Sets of photos from raw VGGFace2 or CelebA-HQ, as a list of files without a picture in it (DDAP spec 6).

  python -c "from core.data import identity_lists as l; l.build('/data/VGGFace2', 'sets.csv')"

The protocol of Anti-DreamBooth: persons with at least 15 photos of more than 500 pixels along both sides, 50 of them,
12 photos each, 4 to a set. What is chosen follows from the seed and the names alone: a rank is a hash of both, so that
the choice is the same everywhere, and one person more or less does not change that of the others.
"""

from __future__ import annotations

import collections
import csv
import hashlib
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

from PIL import Image

from core.data import image
from core.data.identities import PER_SET, SETS, Listing, Photo
from core.errors import UserError

MAPPING, IDENTITIES = 'CelebA-HQ-to-CelebA-mapping.txt', 'identity_CelebA.txt'
"""Lines 'idx orig_idx orig_file' under a headline, of CelebAMask-HQ; lines 'orig_file identity', of CelebA."""
FIELDS = ('identity', 'set', 'path')


def build(
  root: str | os.PathLike,
  output: str | os.PathLike,
  *,
  identities: int = 50,
  per_set: int = PER_SET,
  least: int = 15,
  above: int = 500,
  seed: int = 0,
) -> Listing:
  """Chooses sets among the raw photos under `root` and writes them to the CSV file `output`, paths relative to `root`.

  Args:
    root: see `find`.
    output: the list; its first line says how it was made.
    identities: see `choose`.
    per_set: see `choose`.
    least: see `choose`.
    above: see `choose`.
    seed: see `choose`.

  Returns:
    What was chosen; its problems are the persons that were passed over.
  """
  root, output = pathlib.Path(root).expanduser(), pathlib.Path(output).expanduser()
  found = find(root)
  listing = choose(found, identities=identities, per_set=per_set, least=least, above=above, seed=seed)
  output.parent.mkdir(parents=True, exist_ok=True)
  with output.open('w', newline='') as file:
    file.write(f'# {identities} of {len(found)} identities, seed {seed}, at least {least} photos above {above} px\n')
    writer = csv.writer(file)
    writer.writerow(FIELDS)
    writer.writerows((photo.identity, photo.set, photo.path.relative_to(root).as_posix()) for photo in listing.photos)
  return listing


def read(path: str | os.PathLike, root: str | os.PathLike) -> Listing:
  """The listing that `build` wrote, for `core.data.identities.prepare(root, ..., listing=)`.

  Raises:
    UserError: no such list, another form, or photos that are not under `root`.
  """
  path, root = pathlib.Path(path).expanduser(), pathlib.Path(root).expanduser()
  if not path.is_file():
    raise UserError(f"No list of photos at '{path}'. Make one by `core.data.identity_lists.build`.")
  with path.open(newline='') as file:
    rows = csv.DictReader(line for line in file if not line.startswith('#'))
    if tuple(rows.fieldnames or ()) != FIELDS:
      raise UserError(f"'{path}' begins with {rows.fieldnames}, expected the columns {', '.join(FIELDS)}.")
    photos = [Photo(row['identity'], row['set'], root / (row['path'] or '')) for row in rows]
  if odd := sorted({str(photo.set) for photo in photos} - set(SETS)):
    raise UserError(f"'{path}' names the sets {', '.join(odd)}, expected {', '.join(SETS)}.")
  if missing := [photo.path for photo in photos if not photo.path.is_file()]:
    raise UserError(f"{len(missing)} of {len(photos)} photos of '{path}' are not there, the first is '{missing[0]}'.")
  have = {(photo.identity, photo.set) for photo in photos}
  for photo in photos:
    if lacking := [name for name in SETS if (photo.identity, name) not in have]:
      raise UserError(f"'{path}' lists no photo of '{photo.identity}' for set {' and '.join(lacking)}.")
  if not photos:
    raise UserError(f"'{path}' lists no photo.")
  return Listing(tuple(photos))


def find(root: str | os.PathLike) -> dict[str, list[pathlib.Path]]:
  """All photos of each person, by name.

  With CelebA-HQ's mapping somewhere under `root`, and CelebA's identities beside it: photos whose name is their number
  in CelebAMask-HQ, 0 to 29999. Else a folder per person, under `root` or under its 'train', 'val' and 'test' together
  (VGGFace2; the annotated part of CelebA-HQ).

  Raises:
    UserError: nothing of that kind, or photos that are numbered otherwise.
  """
  root = pathlib.Path(root).expanduser()
  if not root.is_dir():
    raise UserError(f"No folder of raw photos at '{root}'.")
  mapping = next(iter(sorted(root.rglob(MAPPING))), None)
  found = _folders(root) if mapping is None else _celeba_hq(root, mapping)
  if not found:
    raise UserError(f"'{root}' holds no photos in folders of persons; expected such as train/n000002/0001_01.jpg.")
  return {name: sorted(found[name]) for name in sorted(found)}


def _folders(root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
  found = collections.defaultdict(list)
  for part in [path for name in ('train', 'val', 'test') if (path := root / name).is_dir()] or [root]:
    for folder in part.iterdir():
      photos = _photos(folder) if folder.is_dir() and not folder.name.startswith('.') else []
      if photos:
        found[folder.name] += photos
  return found


def _celeba_hq(root: pathlib.Path, mapping: pathlib.Path) -> dict[str, list[pathlib.Path]]:
  identities = next(iter(sorted(root.rglob(IDENTITIES))), None)
  if identities is None:
    raise UserError(f"'{root}' has {MAPPING} but not {IDENTITIES}. Put that file of CelebA's annotations beside it.")
  who = dict(line.split() for line in identities.read_text().splitlines() if line.strip())
  rows = [line.split() for line in mapping.read_text().splitlines()[1:] if line.strip()]
  try:
    person = {int(number): who[original] for number, _, original in rows}
  except (KeyError, ValueError) as error:
    raise UserError(f"'{mapping}' and '{identities}' do not belong together: {error}.") from error
  found = collections.defaultdict(list)
  for path in root.rglob('*'):
    # The masks of CelebAMask-HQ lie beside the photos: 00000_hair.png.
    if path.suffix.lower() not in image.SUFFIXES or not re.fullmatch(r'\d+', path.stem):
      continue
    if int(path.stem) not in person:
      raise UserError(
        f"'{path}' is no number of {MAPPING}. Copies of CelebA-HQ are numbered in several ways; that of CelebAMask-HQ "
        '(CelebA-HQ-img/0.jpg to 29999.jpg) is needed, or photos would go to the wrong persons.'
      )
    found[person[int(path.stem)]].append(path)
  return found


def _photos(folder: pathlib.Path) -> list[pathlib.Path]:
  return [path for path in folder.iterdir() if path.suffix.lower() in image.SUFFIXES and path.name[0] != '.']


def choose(
  found: Mapping[str, Sequence[pathlib.Path]],
  *,
  identities: int = 50,
  per_set: int = PER_SET,
  least: int = 15,
  above: int = 500,
  seed: int = 0,
) -> Listing:
  """Chooses persons, and of each the photos of the sets A, B and C.

  Args:
    found: photos of each person, see `find`.
    identities: how many persons.
    per_set: photos in each of the three sets.
    least: large photos that a person must have.
    above: pixels; a photo is large if both sides are longer. Headers are read, and only until enough persons are found.
    seed: of the choice.

  Returns:
    Photos by name of the person and set; problems are the persons that were passed over.

  Raises:
    UserError: too few such persons.
  """
  photos, problems = [], []
  for name in sorted(found, key=lambda name: _rank(seed, name)):
    if len(photos) == identities * per_set * len(SETS):
      break
    large = [path for path in found[name] if _short_side(path) > above]
    if len(large) < max(least, per_set * len(SETS)):
      problems.append(('too few large photos', name, f'{len(large)} of {len(found[name])} above {above} px'))
      continue
    large.sort(key=lambda path: _rank(seed, f'{name}/{path.name}'))
    for i, part in enumerate(SETS):
      photos += [Photo(name, part, path) for path in sorted(large[i * per_set : (i + 1) * per_set])]
  count = len(photos) // (per_set * len(SETS))
  if count < identities:
    raise UserError(
      f'{count} of {len(found)} persons have at least {least} photos above {above} pixels, {identities} are wanted: '
      'lower `identities`, `least` or `above`.'
    )
  return Listing(tuple(sorted(photos)), tuple(problems))


def _rank(seed: int, name: str) -> str:
  return hashlib.sha256(f'{seed}/{name}'.encode()).hexdigest()


def _short_side(path: pathlib.Path) -> int:
  """From the header; 0 for a file that is no picture."""
  try:
    with Image.open(path) as picture:
      return min(picture.size)
  except Exception:  # each of Pillow's decoders has its own on damaged bytes
    return 0
