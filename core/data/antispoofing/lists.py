"""A user's own anti-spoofing data: a folder with one sub-folder per class, or CSV lists in the release's form."""

from __future__ import annotations

import csv
import pathlib
import re

from core.data import image, video
from core.data.antispoofing import items
from core.data.antispoofing.items import Listing
from core.errors import UserError

CLASSES = {
  **dict.fromkeys(('live', 'real', 'genuine', 'bonafide', 'bona_fide'), 'live'),
  **dict.fromkeys(('print', 'photo', 'paper'), 'print'),
  **dict.fromkeys(('replay', 'screen', 'video'), 'replay'),
  **dict.fromkeys(('mask', '3d_mask'), 'mask'),
  **dict.fromkeys(('spoof', 'fake', 'attack'), 'print'),
}
"""Folder or label word -> attack class. 'spoof' does not say which attack; it is filed under print, and reported."""

UNSPECIFIC = ('spoof', 'fake', 'attack')

SPLITS = {
  **dict.fromkeys(('train', 'training'), 'train'),
  **dict.fromkeys(('dev', 'devel', 'val', 'validation'), 'dev'),
  **dict.fromkeys(('test', 'testing'), 'test'),
}

LABELS = {'0': 'live', '1': 'print', '2': 'replay', '3': 'mask'}
"""Numbers in the release's lists (spec section 6). NB 0 means LIVE there."""


def read_folder(root: str | pathlib.Path, domain: str) -> Listing:
  """Reads `[<split>/]<class>/[<subject>/]<file>`: videos, photos, zips of crops.

  Class folders: see `CLASSES`. Without a split folder everything is 'train'. Without subject folders each file counts
  as a subject of its own, which is reported: a split by subject may then leak a person.

  Raises:
    UserError: no class folder anywhere.
  """
  root = pathlib.Path(root).expanduser()
  if not root.is_dir():
    raise UserError(f"No folder at '{root}' for dataset '{domain}'.")
  listing = items.new(domain)
  classes = without_subject = unspecific = 0
  for path in items.files(root):
    parts = [part.lower() for part in path.relative_to(root).parts]
    split = SPLITS.get(parts[0], 'train')
    depth = 1 if parts[0] in SPLITS else 0
    if len(parts) < depth + 2 or parts[depth] not in CLASSES:
      items.classify_rest(listing, path, root, '[<split>/]<class>/[<subject>/]<file>')
      continue
    classes += 1
    if not (items.is_video(path) or items.is_image(path) or path.suffix.lower() == '.zip'):
      items.classify_rest(listing, path, root, 'a video, an image or a zip')
      continue
    unspecific += parts[depth] in UNSPECIFIC
    has_subject = len(parts) > depth + 2
    without_subject += not has_subject
    subject = path.relative_to(root).parts[depth + 1] if has_subject else path.relative_to(root).as_posix()
    listing.items.append(items.make(path, root, domain, split, subject, CLASSES[parts[depth]]))
  if not classes:
    seen = ', '.join(sorted(p.name for p in root.iterdir())[:8]) or 'nothing'
    raise UserError(
      f"'{root}' has no class folder: expected live/ and spoof/ (or print/, replay/, mask/), found {seen}."
    )
  _note_gaps(listing, without_subject, unspecific)
  return items.finish(listing)


def _note_gaps(listing: Listing, without_subject: int, unspecific: int) -> None:
  if without_subject:
    listing.problem('subject unknown', listing.domain, f'{without_subject} files; each counts as a person of its own')
  if unspecific:
    listing.problem('attack unknown', listing.domain, f'{unspecific} spoof files of no stated kind, filed under print')


def read_lists(root: str | pathlib.Path, domain: str) -> Listing:
  """Reads one CSV list, or all `*.csv` of a folder.

  Without a header the columns are `path,label[,frames_with_face,frames_total]` with label 0 live / 1 print / 2 screen /
  3 mask (the release's form). With one, `path` and `label` are needed and `split`, `subject` and any further column are
  taken along. A label may also be a class word. Paths are relative to the list's folder and may lack their ending;
  what they name is a video, a photo, a folder of crops or a zip of crops. The split is read from the list's name
  ('..._test.csv', 'OULU-NPU-TRAIN.csv') where no column says it, and is 'train' otherwise.

  Raises:
    UserError: no list.
  """
  root = pathlib.Path(root).expanduser()
  paths = [root] if root.is_file() else sorted(root.glob('*.csv'))
  if not paths:
    raise UserError(
      f"No CSV list at '{root}' for dataset '{domain}'; rows are path,label[,frames_with_face,frames_total]."
    )
  listing, folder = items.new(domain), paths[0].parent
  first: dict[str, str] = {}
  without_subject = unspecific = 0
  for path in paths:
    for number, row in _rows(path):
      where, word = f'{path.name}:{number}', row['label'].lower()
      attack = LABELS.get(word) or CLASSES.get(word)
      target = _locate(folder, row['path'])
      if attack is None or not row['path']:
        detail = f"path '{row['path']}', label '{word}'; labels are {', '.join([*LABELS, *CLASSES])}"
        listing.problem('odd row', where, detail)
        continue
      if target is None:
        listing.problem('listed but missing', row['path'], f'{where}; nothing of that name below {folder}')
        continue
      if str(target) in first:
        listing.problem('duplicate', row['path'], f'{where}; listed before in {first[str(target)]}, which counts')
        continue
      first[str(target)] = where
      without_subject += not row.get('subject')
      unspecific += word in UNSPECIFIC
      split = SPLITS.get(row.get('split', '').lower()) or split_of_name(path.stem)
      extra = {k: v for k, v in row.items() if k not in ('path', 'label', 'split', 'subject') and v}
      subject = row.get('subject') or row['path']
      listing.items.append(items.make(target, folder, domain, split, subject, attack, **extra))
  _note_gaps(listing, without_subject, unspecific)
  return items.finish(listing)


def _rows(path: pathlib.Path) -> list[tuple[int, dict[str, str]]]:
  """(line number, column -> stripped text) of a list with or without a header; blank lines left out."""
  with path.open(newline='', encoding='utf-8-sig', errors='replace') as file:
    lines = [(i, [cell.strip() for cell in row]) for i, row in enumerate(csv.reader(file), start=1) if any(row)]
  names = ['path', 'label', 'frames_with_face', 'frames_total']
  if lines and 'path' in (header := [cell.lower() for cell in lines[0][1]]):
    if 'label' not in header:
      raise UserError(f"'{path}' has a header without a column 'label': {', '.join(header)}.")
    names, lines = header, lines[1:]
  blank = {'path': '', 'label': ''}
  return [(i, blank | dict(zip(names, row))) for i, row in lines]


def _locate(folder: pathlib.Path, name: str) -> pathlib.Path | None:
  """The file or folder that a row means, its ending completed where the list left it out."""
  relative = name.replace('\\', '/').lstrip('/')
  target = folder / relative
  if not relative or '..' in pathlib.PurePosixPath(relative).parts:
    return None
  if target.exists():
    return target
  endings = ('.zip', *video.SUFFIXES, *image.SUFFIXES)
  candidates = [target.with_name(target.name + ending) for ending in endings]
  # The release stores a zip of crops where the list names the video.
  candidates += [target.with_suffix('.zip'), target.with_suffix('')] if target.suffix else []
  return next((c for c in candidates if c.exists()), None)


def split_of_name(stem: str) -> str:
  """The split that a list's name speaks of ('MSU-MFSD_TEST' -> 'test'); 'train' where it speaks of none."""
  words = re.split(r'[^a-z]+', stem.lower())
  return next((SPLITS[word] for word in reversed(words) if word in SPLITS), 'train')
