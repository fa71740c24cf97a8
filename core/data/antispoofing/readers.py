"""Readers of the official trees of the five public datasets (and SiW's live videos), from names and lists alone.

Layouts and counts: spec section 6. A reader opens no video; it returns a `Listing` of what there is, of what should be
there and is not, and of what it does not know. Nothing is dropped without a line in `Listing.problems` or a count in
`Listing.ignored`.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable

from core.data.antispoofing import items, lists
from core.data.antispoofing.items import Listing
from core.errors import UserError, nearest


def _padded(first: int, last: int, digits: int = 0) -> list[str]:
  return [str(i).zfill(digits) for i in range(first, last + 1)]


CASIA_ATTACKS = {
  **dict.fromkeys(('1', '2', 'HR_1'), ('live', 'live')),
  **dict.fromkeys(('3', '4', 'HR_2'), ('print', 'warped photo')),
  **dict.fromkeys(('5', '6', 'HR_3'), ('print', 'cut photo')),
  **dict.fromkeys(('7', '8', 'HR_4'), ('replay', 'video')),
}
"""File stem -> (attack, artefact). Which of 3-6 is warped and which cut is from memory; both are prints."""


def casia_fasd(root: str | pathlib.Path) -> Listing:
  """CASIA-FASD: `{train_release,test_release}/<id>/<n>.avi`; 20 + 30 people, numbered from 1 in either split."""
  folders = {'train_release': 'train', 'test_release': 'test'}
  base = items.find_base(root, tuple(folders), 'CASIA-FASD')
  listing = items.new('casia_fasd')
  for path in items.files(base):
    parts = path.relative_to(base).parts
    if len(parts) == 3 and parts[0] in folders and path.suffix.lower() == '.avi' and path.stem in CASIA_ATTACKS:
      split = folders[parts[0]]
      attack, artefact = CASIA_ATTACKS[path.stem]
      quality = 'high' if path.stem.startswith('HR') else ('low', 'normal')[(int(path.stem) - 1) % 2]
      # Train and test both count people from 1; they are different people.
      subject = f'{split}_{int(parts[1])}' if parts[1].isdigit() else f'{split}_{parts[1]}'
      listing.items.append(
        items.make(path, base, 'casia_fasd', split, subject, attack, artefact=artefact, quality=quality)
      )
    else:
      items.classify_rest(listing, path, base, '<split>_release/<id>/{1-8,HR_1-HR_4}.avi')
  items.check_subjects(
    listing, {s: [f'{s}_{i}' for i in range(1, n + 1)] for s, n in (('train', 20), ('test', 30))}, per_subject=12
  )
  return items.finish(listing)


REPLAY_REAL = re.compile(r'client(\d{3})_session01_webcam_authenticate_(adverse|controlled)_([12])$')
REPLAY_ATTACK = re.compile(
  r'attack_(print|mobile|highdef)_client(\d{3})_session01_(\w+?)_(photo|video)_(adverse|controlled)$'
)


def replay_attack(root: str | pathlib.Path) -> Listing:
  """Replay-Attack: `<split>/real/*.mov`, `<split>/attack/{fixed,hand}/*.mov`; the enrolment videos are left out."""
  folders = {'train': 'train', 'devel': 'dev', 'test': 'test'}
  base = items.find_base(root, ('devel',), 'Replay-Attack')
  listing = items.new('replay_attack')
  for path in items.files(base):
    parts = path.relative_to(base).parts
    if 'enroll' in parts[0] or 'enroll' in path.stem:
      listing.ignore('enrolment videos')
      continue
    split = folders.get(parts[0])
    real = REPLAY_REAL.match(path.stem) if parts[1:-1] == ('real',) else None
    attack = REPLAY_ATTACK.match(path.stem) if parts[1:-1] in (('attack', 'fixed'), ('attack', 'hand')) else None
    if split and path.suffix.lower() == '.mov' and real:
      client, light, shot = real.groups()
      listing.items.append(items.make(path, base, 'replay_attack', split, client, 'live', light=light, shot=int(shot)))
    elif split and path.suffix.lower() == '.mov' and attack:
      device, client, source, medium, light = attack.groups()
      listing.items.append(
        items.make(
          path, base, 'replay_attack', split, client, 'print' if device == 'print' else 'replay',
          device=device, source=source, medium=medium, light=light, support=parts[2],
        )
      )  # fmt: skip
    else:
      items.classify_rest(listing, path, base, 'the Replay-Attack names (spec section 6)')
  items.check_counts(
    listing,
    {s: {'live': 4 * n, 'print': 4 * n, 'replay': 16 * n} for s, n in (('train', 15), ('dev', 15), ('test', 20))},
  )
  return items.finish(listing)


MSU_NAME = re.compile(
  r'(?:real_client(\d{3})_(android|laptop)_SD'
  r'|attack_client(\d{3})_(android|laptop)_SD_(printed_photo|ipad_video|iphone_video))_scene01$'
)
MSU_TRAIN = ('02', '03', '05', '06', '07', '08', '09', '11', '12', '21', '22', '34', '53', '54', '55')
MSU_TEST = (
  '01', '13', '14', '23', '24', '26', '28', '29', '30', '32',
  '33', '35', '36', '37', '39', '42', '48', '49', '50', '51',
)  # fmt: skip
"""The official subjects, as the list files of the download and of Bob's `bob.db.msu_mfsd_mod` have them."""

MSU_UPSIDE_DOWN = tuple(f'real_client{i:03d}_android_SD_scene01' for i in (3, 5, 6, 7, 8, 9))
"""Six videos that were recorded upside down (list in `bob.db.msu_mfsd_mod`)."""


def msu_mfsd(root: str | pathlib.Path) -> Listing:
  """MSU-MFSD: `scene01/{real,attack}/*.{mp4,mov}`, split by `train_sub_list.txt` and `test_sub_list.txt`.

  The lists of a well-known release are swapped. Lists that contradict the official subjects are put right and reported.
  A subject of neither list gets its official split, or 'unlisted' where it has none.
  """
  base = items.find_base(root, ('scene01',), 'MSU-MFSD')
  listing = items.new('msu_mfsd')
  split_of = _msu_splits(base, listing)
  unlisted = set()
  for path in items.files(base):
    name = MSU_NAME.match(path.stem)
    folder = path.relative_to(base).parts[:-1]
    if name and path.suffix.lower() in ('.mp4', '.mov') and folder in (('scene01', 'real'), ('scene01', 'attack')):
      real, real_device, spoofed, spoof_device, medium = name.groups()
      subject = f'{int(real or spoofed):02d}'
      if (folder[1] == 'real') != bool(real):
        listing.problem('label surprise', path.relative_to(base), f'its name says {"live" if real else "attack"}; used')
      if subject not in split_of:
        unlisted.add(subject)
      attack = 'live' if real else ('print' if medium == 'printed_photo' else 'replay')
      extra = {'device': real_device or spoof_device, 'medium': medium or ''}
      if path.stem in MSU_UPSIDE_DOWN:
        extra['maybe_upside_down'] = True
      listing.items.append(
        items.make(path, base, 'msu_mfsd', split_of.get(subject, 'unlisted'), subject, attack, **extra)
      )
    elif path.name not in ('train_sub_list.txt', 'test_sub_list.txt'):
      items.classify_rest(listing, path, base, 'the MSU-MFSD names (spec section 6)')
  for subject in sorted(unlisted):
    listing.problem('subject in no list', subject, "in neither sub_list.txt nor the official lists; split 'unlisted'")
  items.check_subjects(
    listing, {s: [k for k, v in split_of.items() if v == s] for s in ('train', 'test')}, per_subject=8
  )
  return items.finish(listing)


def _msu_splits(base: pathlib.Path, listing: Listing) -> dict[str, str]:
  """subject -> split from the list files, put right by what is known of the official lists."""
  official = {**dict.fromkeys(MSU_TRAIN, 'train'), **dict.fromkeys(MSU_TEST, 'test')}
  listed: dict[str, str] = {}
  for split in ('train', 'test'):
    found = [p for p in (base / f'{split}_sub_list.txt', base / 'scene01' / f'{split}_sub_list.txt') if p.is_file()]
    if not found:
      listing.problem('missing list', f'{split}_sub_list.txt', 'the official subject list is used instead')
      continue
    for word in found[0].read_text(errors='replace').split():
      if not word.isdigit():
        listing.problem('odd list entry', found[0].name, f"'{word}' is not a subject number")
        continue
      subject = f'{int(word):02d}'
      if listed.get(subject, split) != split:
        listing.problem('subject in two lists', subject, f"in both lists; '{official.get(subject, split)}' is used")
      listed[subject] = split
  wrong = sorted(s for s, split in listed.items() if official.get(s, split) != split)
  right = [s for s, split in listed.items() if official.get(s) == split]
  if wrong and len(wrong) > len(right):
    listing.problem(
      'swapped lists', 'train_sub_list.txt, test_sub_list.txt',
      f'{len(wrong)} of {len(listed)} subjects are in the wrong file (official train subjects are {MSU_TRAIN[0]}, '
      f'{MSU_TRAIN[1]}, ...); swapped back',
    )  # fmt: skip
  else:
    for subject in wrong:
      listing.problem(
        'list differs', subject, f"listed '{listed[subject]}', officially '{official[subject]}'; put right"
      )
  for subject in sorted(set(official) - set(listed)) if listed else ():
    listing.problem('subject in no list', subject, f"the official split '{official[subject]}' is used")
  return {**listed, **official}


OULU_NAME = re.compile(r'(\d)_(\d)_(\d{1,2})_(\d)$')
OULU_TYPES = {
  '1': ('live', ''),
  '2': ('print', 'printer 1'),
  '3': ('print', 'printer 2'),
  '4': ('replay', 'display 1'),
  '5': ('replay', 'display 2'),
}


def oulu_npu(root: str | pathlib.Path) -> Listing:
  """OULU-NPU: `{Train,Dev,Test}_files/<phone>_<session>_<user>_<type>.avi`; users 1-20, 21-35, 36-55."""
  folders = {'Train_files': 'train', 'Dev_files': 'dev', 'Test_files': 'test'}
  base = items.find_base(root, tuple(folders), 'OULU-NPU')
  listing = items.new('oulu_npu')
  for path in items.files(base):
    parts, name = path.relative_to(base).parts, OULU_NAME.match(path.stem)
    known = name and name[1] in '123456' and name[2] in '123' and name[4] in OULU_TYPES
    if len(parts) == 2 and parts[0] in folders and path.suffix.lower() == '.avi' and known:
      phone, session, user, kind = name.groups()
      attack, medium = OULU_TYPES[kind]
      listing.items.append(
        items.make(
          path, base, 'oulu_npu', folders[parts[0]], f'{int(user):02d}', attack,
          phone=int(phone), session=int(session), medium=medium,
        )
      )  # fmt: skip
    else:
      items.classify_rest(listing, path, base, '<phone 1-6>_<session 1-3>_<user>_<type 1-5>.avi')
  # Which user is in which split is from memory; a difference is reported, and the folder is believed.
  users = {'train': _padded(1, 20, 2), 'dev': _padded(21, 35, 2), 'test': _padded(36, 55, 2)}
  items.check_subjects(listing, users, per_subject=90)
  return items.finish(listing)


ROSE_NAME = re.compile(r'(G|Ps|Pq|Mc|Mf|Mu|Vl|Vm)_(T|NT)_(.+?)_(g|wg)_E_(\w+?)_(\d+)$')
ROSE_COUNTS = {'G': 897, 'Mc': 399, 'Mf': 200, 'Mu': 400, 'Pq': 400, 'Ps': 400, 'Vl': 401, 'Vm': 400}


def rose_youtu(root: str | pathlib.Path) -> Listing:
  """ROSE-YOUTU: `{train/<id>,test/_<id>}/<L>_<T,NT>_<device>_<g,wg>_E_<id>_<n>.mp4`; paper masks count as print."""
  base = items.find_base(root, ('train', 'test'), 'ROSE-YOUTU')
  listing = items.new('rose_youtu')
  kinds = dict.fromkeys(ROSE_COUNTS, 0)
  for path in items.files(base):
    parts, name = path.relative_to(base).parts, ROSE_NAME.match(path.stem)
    if len(parts) == 3 and parts[0] in ('train', 'test') and path.suffix.lower() == '.mp4' and name:
      kind, talking, device, glasses, subject, _ = name.groups()
      if parts[1].lstrip('_') != subject:
        listing.problem('label surprise', path.relative_to(base), f"folder says subject '{parts[1]}', name '{subject}'")
      kinds[kind] += 1
      attack = 'live' if kind == 'G' else 'replay' if kind in ('Vl', 'Vm') else 'print'
      listing.items.append(
        items.make(
          path, base, 'rose_youtu', parts[0], subject, attack,
          artefact=kind, talking=talking == 'T', device=device, glasses=glasses == 'g',
        )
      )  # fmt: skip
    else:
      items.classify_rest(listing, path, base, '<L>_<T,NT>_<device>_<g,wg>_E_<id>_<n>.mp4')
  for kind, count in ROSE_COUNTS.items():
    if kinds[kind] != count:
      listing.problem('count', kind, f'{kinds[kind]} videos, expected {count}')
  for split, people, videos in (('train', 10, 1775), ('test', 10, 1722)):
    mine = [item for item in listing.items if item.split == split]
    subjects = {item.subject for item in mine}
    if (len(subjects), len(mine)) != (people, videos):
      listing.problem(
        'count', split, f'{len(subjects)} subjects, {len(mine)} videos; expected {people} subjects, {videos} videos'
      )
  return items.finish(listing)


SIW_NAME = re.compile(r'(\d{3})-(\d)-(\d)-(\d)-(\d)$')


def siw_live(root: str | pathlib.Path) -> Listing:
  """SiW, live videos of the training set only: `Train/live/<id>/<id>-<session>-1-*-*.mov`.

  A live-only extra source, as the release uses it. Spoof videos are counted, not read.
  """
  base = items.find_base(root, ('Train',), 'SiW')
  listing = items.new('siw_live')
  for path in items.files(base):
    parts, name = path.relative_to(base).parts, SIW_NAME.match(path.stem)
    if parts[0] != 'Train' or (len(parts) > 1 and parts[1] == 'spoof'):
      listing.ignore('videos and files that are not live training videos')
    elif len(parts) == 4 and parts[1] == 'live' and path.suffix.lower() == '.mov' and name and name[3] == '1':
      listing.items.append(items.make(path, base, 'siw_live', 'train', name[1], 'live', session=int(name[2])))
    elif name and name[3] != '1':
      listing.problem('label surprise', path.relative_to(base), f"type field '{name[3]}' is not live; not used")
    else:
      items.classify_rest(listing, path, base, '<id>-<session>-1-<n>-<n>.mov')
  items.check_counts(listing, {'train': {'live': 1313}})
  return items.finish(listing)


READERS: dict[str, Callable[[str | pathlib.Path], Listing]] = {
  'msu_mfsd': msu_mfsd,
  'replay_attack': replay_attack,
  'casia_fasd': casia_fasd,
  'oulu_npu': oulu_npu,
  'rose_youtu': rose_youtu,
  'siw_live': siw_live,
}
"""Dataset name -> reader. Anything else is read as a folder or a list (`core.data.antispoofing.lists`)."""


def read(root: str | pathlib.Path, dataset: str, *, kind: str = 'auto') -> Listing:
  """Reads a dataset by name.

  Args:
    root: the unpacked download; for a user's own data a folder or a CSV file.
    dataset: a name of `READERS`, or any other name for a user's own data.
    kind: 'auto', or 'folder' / 'list' to read a user's data in that way whatever its name.

  Raises:
    UserError: nothing there, or nothing usable.
  """
  root = pathlib.Path(root).expanduser()
  if kind not in ('auto', 'folder', 'list'):
    raise UserError(f"Unknown kind '{kind}' of dataset '{dataset}'; expected 'auto', 'folder' or 'list'.")
  if kind == 'auto' and dataset in READERS:
    listing = READERS[dataset](root)
  elif kind == 'list' or root.suffix.lower() == '.csv' or (kind == 'auto' and any(root.glob('*.csv'))):
    listing = lists.read_lists(root, dataset)
  else:
    close = nearest(dataset, READERS) if kind == 'auto' else ''
    try:
      listing = lists.read_folder(root, dataset)
    except UserError as error:
      raise UserError(f"{error} (Dataset '{dataset}' is none of {', '.join(READERS)}.{close})") from error
  if not listing.items:
    odd = '; '.join(f'{kind}: {path}' for kind, path, _ in listing.problems[:3])
    raise UserError(f"No usable video of '{dataset}' below '{root}'{f' ({odd} ...)' if odd else ''}.")
  return listing
