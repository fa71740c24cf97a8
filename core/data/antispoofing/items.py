"""What a reader of an anti-spoofing dataset returns, and the checks that all readers share."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from core.data import image, video
from core.data.face_frames import ATTACKS
from core.errors import UserError

Problem = tuple[str, str, str]
"""(kind, path or name, detail): one odd thing, as `core.data.records.PrepareReport` counts them."""


@dataclasses.dataclass(frozen=True)
class VideoItem:
  """One presentation of a face to a camera: a video, a photo, or a folder or zip of ready crops.

  Attributes:
    path: where it lies.
    domain: dataset name, e.g. 'oulu_npu'.
    split: 'train', 'dev', 'test', or 'unlisted' where the official lists do not say.
    subject: person, unique within the domain.
    label: 1 live, 0 spoof.
    attack: one of `core.data.face_frames.ATTACKS`; everything but 'live' has label 0.
    video_id: unique within the domain: the path below the dataset's root, without the ending.
    extra: plain data that the name tells (device, session, light ...); goes into the record's `info`.
  """

  path: pathlib.Path
  domain: str
  split: str
  subject: str
  label: int
  attack: str
  video_id: str
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Listing:
  """All items of a dataset, with everything about the tree that is not as the official description says.

  Attributes:
    domain: dataset name.
    items: sorted by split and id.
    problems: see `Problem`.
    ignored: kind -> number of files left out on purpose (side files, enrolment videos).
  """

  domain: str
  items: list[VideoItem]
  problems: list[Problem]
  ignored: dict[str, int] = dataclasses.field(default_factory=dict)

  def problem(self, kind: str, path: object, detail: str) -> None:
    """Notes one odd thing."""
    self.problems.append((kind, str(path), detail))

  def ignore(self, kind: str) -> None:
    """Counts one file that is left out on purpose."""
    self.ignored[kind] = self.ignored.get(kind, 0) + 1

  def counts(self) -> dict[str, dict[str, int]]:
    """split -> attack -> number of items."""
    table: dict[str, dict[str, int]] = {}
    for item in self.items:
      row = table.setdefault(item.split, dict.fromkeys(ATTACKS, 0))
      row[item.attack] += 1
    return table


def new(domain: str) -> Listing:
  """An empty listing."""
  return Listing(domain, [], [])


def make(
  path: pathlib.Path, root: pathlib.Path, domain: str, split: str, subject: str, attack: str, **extra: Any
) -> VideoItem:
  """A `VideoItem` whose label and id follow from its attack and path."""
  relative = path.relative_to(root)
  video_id = (relative if path.is_dir() else relative.with_suffix('')).as_posix()
  return VideoItem(path, domain, split, subject, int(attack == 'live'), attack, video_id, extra)


def files(root: pathlib.Path) -> list[pathlib.Path]:
  """All files below `root`, sorted; hidden files and folders (`._x.mov` of macOS, `.DS_Store`) left out."""
  found = (p for p in root.rglob('*') if p.is_file())
  return sorted(p for p in found if not any(part.startswith('.') for part in p.relative_to(root).parts))


def is_video(path: pathlib.Path) -> bool:
  """Whether the ending says video."""
  return path.suffix.lower() in video.SUFFIXES


def is_image(path: pathlib.Path) -> bool:
  """Whether the ending says still image."""
  return path.suffix.lower() in image.SUFFIXES


def find_base(root: str | pathlib.Path, folders: Sequence[str], dataset: str) -> pathlib.Path:
  """The folder that holds at least one of `folders`: `root` itself or one at most two levels below it.

  Raises:
    UserError: no such folder; names what lies there instead.
  """
  root = pathlib.Path(root).expanduser()
  if not root.is_dir():
    raise UserError(f"No folder at '{root}', where {dataset} was expected.")
  for pattern in ('.', '*', '*/*'):
    for base in [root] if pattern == '.' else sorted(p for p in root.glob(pattern) if p.is_dir()):
      if any((base / folder).is_dir() for folder in folders):
        return base
  seen = ', '.join(sorted(p.name for p in root.iterdir())[:8]) or 'nothing'
  raise UserError(
    f"'{root}' does not look like {dataset}: expected {' or '.join(repr(f) for f in folders)} in it, found {seen}. "
    'Point config.data.root to the unpacked download.'
  )


def classify_rest(listing: Listing, path: pathlib.Path, base: pathlib.Path, expected: str) -> None:
  """Notes a file that no pattern took: unknown if it is a video or an image, a side file otherwise."""
  if is_video(path) or is_image(path):
    listing.problem('unknown file', path.relative_to(base), f'name does not follow {expected}; not used')
  else:
    listing.ignore(f'side files ({path.suffix.lower() or "no ending"})')


def check_subjects(listing: Listing, expected: Mapping[str, Iterable[str]], per_subject: int) -> None:
  """Notes subjects without any video, subjects with too few or too many, and subjects of no official list.

  Args:
    listing: a finished listing.
    expected: split -> subjects of the official description.
    per_subject: how many videos each of them has officially.
  """
  found = collections.Counter((item.split, item.subject) for item in listing.items)
  for split, subjects in expected.items():
    subjects = set(subjects)
    for subject in sorted(subjects):
      count = found.get((split, subject), 0)
      if count == 0:
        listing.problem('missing subject', f'{split}/{subject}', f'0 of {per_subject} videos')
      elif count != per_subject:
        listing.problem('video count', f'{split}/{subject}', f'{count} videos, expected {per_subject}')
    for there, subject in sorted(found):
      if there == split and subject not in subjects:
        listing.problem('unknown subject', f'{split}/{subject}', 'not a subject of the official description; used')


def check_counts(listing: Listing, expected: Mapping[str, Mapping[str, int]]) -> None:
  """Notes every (split, attack) whose number differs from the official description."""
  found = listing.counts()
  for split, row in expected.items():
    for attack, count in row.items():
      have = found.get(split, {}).get(attack, 0)
      if have != count:
        listing.problem('count', f'{split}/{attack}', f'{have} videos, expected {count}')


def finish(listing: Listing) -> Listing:
  """Sorts the items; notes ids that occur twice and subjects that occur in two splits (a leak between them)."""
  listing.items.sort(key=lambda item: (item.split, item.video_id))
  twice = {key for key, n in collections.Counter(item.video_id for item in listing.items).items() if n > 1}
  for video_id in sorted(twice):
    listing.problem('duplicate', video_id, 'the same name with two endings; both used, the ending is kept in their ids')
  listing.items = [
    dataclasses.replace(item, video_id=item.video_id + item.path.suffix) if item.video_id in twice else item
    for item in listing.items
  ]
  splits = collections.defaultdict(set)
  for item in listing.items:
    splits[item.subject].add(item.split)
  for subject, where in sorted(splits.items()):
    if len(where) > 1:
      listing.problem('subject in two splits', subject, f'in {", ".join(sorted(where))}: these splits are not disjoint')
  return listing
