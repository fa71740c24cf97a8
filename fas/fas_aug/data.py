"""Which frames a run trains on and is judged on, and where its records come from.

A dataset of records holds one domain: a public dataset, or one capture set-up of the face world. A protocol names
source domains and a target. Within the sources, a share of the SUBJECTS is held out for validation, so that neither the
checkpoint nor the threshold is chosen on the target (our choice; the release selects on the target).
"""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from core.data import face_frames, manifest, records
from core.data.antispoofing import downloads, protocols
from core.data.antispoofing import prepare as antispoofing
from core.errors import UserError, nearest
from core.synth.faces import dataset as face_world

SPLITS = ('train', 'val', 'test')
"""Training subjects of the sources; held-out subjects of the sources; the whole target."""

KINDS = ('face_world', 'videos')


def protocols_of(config: Any) -> list[protocols.Protocol]:
  """The runs that `config.data.protocol` means, one per target."""
  return protocols.resolve(config.data.protocol, tuple(config.data.domains))


def protocol(config: Any) -> protocols.Protocol:
  """The one protocol of a single run.

  Raises:
    UserError: the name means several runs.
  """
  found = protocols_of(config)
  if len(found) != 1:
    names = ', '.join(f"'{each.name}'" for each in found)
    raise UserError(f"config.data.protocol '{config.data.protocol}' means {len(found)} runs; choose one of {names}.")
  return found[0]


# Records: where they lie, and how they are made.


def is_procedural(config: Any) -> bool:
  """Whether the records are rendered on the spot."""
  if config.data.kind not in KINDS:
    raise UserError(f"config.data.kind is '{config.data.kind}', expected one of {KINDS}.")
  return config.data.kind == 'face_world'


def world(config: Any) -> face_world.Config:
  """How much of the face world `config.data` asks for."""
  return face_world.Config(
    size=config.data.size,
    subjects=config.data.subjects,
    frames_per_video=config.data.frames_per_video,
    videos=tuple(config.data.videos),
  )


def records_root(config: Any) -> pathlib.Path:
  """Folder of the records; that of a face world carries a hash of what it is rendered from."""
  root = pathlib.Path(config.data.records).expanduser()
  if not is_procedural(config):
    return root
  digest = hashlib.sha256(json.dumps(_world_info(config), sort_keys=True).encode()).hexdigest()[:10]
  return root / f'face_world-{digest}'


def prepare(config: Any) -> list[records.PrepareReport]:
  """Writes the records that the domains of `config.data` need, where they are missing.

  Renders the face world, or crops the official downloads (or a user's own folders and lists) under `config.data.root`.
  Records of a download that exist already are replaced only with `config.data.overwrite`.
  """
  return _render(config) if is_procedural(config) else _crop(config)


def _world_info(config: Any) -> dict[str, Any]:
  return {'world_seed': config.data.seed, **vars(world(config))}


def _render(config: Any) -> list[records.PrepareReport]:
  root, info, reports = records_root(config), _world_info(config), []
  for domain in config.data.domains:
    if not records.is_written(root, domain, info=info):
      examples = face_world.examples(domain, 'train', world(config), config.data.seed)
      records.write(
        root, domain, {'train': examples}, face_frames.FEATURES, info=info,
        description=f"Procedural faces before the camera of the domain '{domain}'.",
      )  # fmt: skip
    written = manifest.load(records.find(root, domain))
    reports.append(records.PrepareReport(domain, written.splits, [], written))
  return reports


def _crop(config: Any) -> list[records.PrepareReport]:
  data = config.data
  if not data.root:
    raise UserError('config.data.root is empty: give the folder of an official download, --config.data.root=/path.')
  return [
    antispoofing.prepare(
      path, records_root(config), name, data.frames_per_video, data.size, data.margin, data.detector,
      workers=data.workers, overwrite=data.overwrite,
    )
    for name, path in downloads.locate(data.root, tuple(data.domains), data.dataset).items()
  ]  # fmt: skip


# Frames: who is in which part of a protocol.


class Frames:
  """The frames of one protocol: source domains divided by subject into training and validation, and the target."""

  def __init__(self, config: Any, protocol: protocols.Protocol):
    self.config, self.protocol, self.root = config.data, protocol, records_root(config)

  def source(self, domain: str) -> records.Records:
    """Training frames of one source domain, `frames_per_video` of each video."""
    return self._of_training(domain, self.config.frames_per_video)

  def augmented(self) -> records.Records:
    """Training frames that the augmented streams draw from: the union of the sources, fewer of each video.

    The release takes round(5 / 3) = 2 per video, so that the union has about the size of one source.
    """
    per_video = self.config.augmented_frames_per_video
    return records.Records.concat([self._of_training(domain, per_video) for domain in self.protocol.sources])

  @functools.lru_cache(maxsize=8)  # noqa: B019 - a Frames lives as long as its run
  def split(self, name: str) -> records.Records:
    """Frames of 'train', 'val' or 'test', or all videos of a domain by its name; `frames_per_video` of each."""
    per_video = self.config.frames_per_video
    if name == 'train':
      return records.Records.concat([self.source(domain) for domain in self.protocol.sources])
    if name == 'val':
      if not self.config.validation_fraction:
        raise UserError("Split 'val' is empty: config.data.validation_fraction is 0, so no source subject is held out.")
      parts = [self._all(domain) for domain in self.protocol.sources]
      return records.Records.concat([_sampled(part.select(self._held_out(part)), per_video) for part in parts])
    domain = self.protocol.target if name == 'test' else name
    known = (*SPLITS, *self.protocol.sources, self.protocol.target)
    if domain not in known:
      raise UserError(f"There is no split '{name}'.{nearest(name, known)} Known: {', '.join(known)}.")
    return _sampled(self._all(domain), per_video)

  def _of_training(self, domain: str, per_video: int) -> records.Records:
    everyone = self._all(domain)
    return _sampled(everyone.select(~self._held_out(everyone)), per_video)

  def _held_out(self, part: records.Records) -> np.ndarray:
    return face_frames.held_out_subjects(part.table, self.config.validation_fraction, self.config.seed)

  def _all(self, domain: str) -> records.Records:
    """All records of a domain, whatever official splits they come from."""
    splits = manifest.load(records.find(self.root, domain)).splits
    return records.Records.concat([records.Records(self.root, domain, split) for split in splits if splits[split]])


def _sampled(part: records.Records, per_video: int) -> records.Records:
  return part.select(face_frames.sample_frames(part.table, per_video))


class Row:
  """The transform `record -> row` of a training stream. A class, so that worker processes can be sent one.

  Attributes:
    domain: number of the stream, in [0, D): sources first, then augmented ones.
  """

  def __init__(self, domain: int):
    self.domain = domain

  def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
    """Row: image uint8 [S, S, 3] (the operators want the crop before it is resized), label, domain int32, id."""
    return {
      'image': record['image'],
      'label': np.int32(record['label']),
      'domain': np.int32(self.domain),
      'id': record['id'],
    }
