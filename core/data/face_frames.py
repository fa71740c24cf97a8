"""Face frames: the record form of all face data, real and rendered, and how rows for a network are made of it.

One record is one aligned, cropped frame of a video (a photo is a video of one frame).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from core.errors import UserError

LABELS = ('spoof', 'live')
"""Class 1 is the bona fide face."""

ATTACKS = ('live', 'print', 'replay', 'mask')

FEATURES = {
  'image': tfds.features.Image(shape=(None, None, 3), doc='RGB crop, uint8 [S, S, 3], stored as PNG'),
  'label': tfds.features.ClassLabel(names=list(LABELS), doc='0 spoof, 1 live'),
  'attack': tfds.features.ClassLabel(names=list(ATTACKS), doc='what is before the camera'),
  'domain': tfds.features.Text(doc='dataset or capture set-up'),
  'subject': tfds.features.Text(doc='who, unique within the domain'),
  'video': tfds.features.Text(doc='unique within the domain'),
  'frame': tfds.features.Scalar(dtype=np.int32, doc='number of the frame in its video'),
  'frames_total': tfds.features.Scalar(dtype=np.int32, doc='number of frames of the video'),
  'landmarks': tfds.features.Tensor(shape=(68, 2), dtype=np.float32, doc='x, y in pixels of the crop; NaN if unknown'),
  'info': tfds.features.Text(doc='JSON: capture parameters, detector, margin ...'),
}

NO_LANDMARKS = np.full((68, 2), np.nan, np.float32)


def resize(image: np.ndarray, size: int) -> np.ndarray:
  """A uint8 image [H, W, 3] at the network's size: f32 [size, size, 3] in [0, 1].

  Plain bilinear sampling at pixel centres, without a low-pass filter before it: a filter would take the halftone and
  moire patterns away that tell a recapture (our choice; the released code also resizes without antialiasing).
  """
  if image.shape[:2] != (size, size):
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
  return image.astype(np.float32) / np.float32(255)


class ToRow:
  """The transform `record -> row` of a network: image resized to f32 [S, S, 3] in [0, 1], the cheap fields kept.

  Kept: label, attack, frame (int32), domain, subject, video (str), id; landmarks are scaled to the new size when asked
  for. A class, so that worker processes can be sent one.
  """

  def __init__(self, size: int, *, landmarks: bool = False):
    self.size, self.landmarks = size, landmarks

  def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
    image = record['image']
    row = {'image': resize(image, self.size)}
    row |= {field: np.int32(record[field]) for field in ('label', 'attack', 'frame')}
    row |= {field: record[field] for field in ('domain', 'subject', 'video')}
    if self.landmarks:
      # Pixel centres lie at integers; x' + 1/2 = (x + 1/2) * scale keeps a point where cv2.resize moves its pixel.
      scale = self.size / np.array([image.shape[1], image.shape[0]], np.float32)
      row['landmarks'] = ((record['landmarks'] + 0.5) * scale - 0.5).astype(np.float32)
    if 'id' in record:
      row['id'] = record['id']
    return row


def to_row(record: Mapping[str, Any], size: int, *, landmarks: bool = False) -> dict[str, Any]:
  """`ToRow(size, landmarks=landmarks)(record)`."""
  return ToRow(size, landmarks=landmarks)(record)


def sample_frames(table: Mapping[str, np.ndarray], per_video: int) -> np.ndarray:
  """Indices (int64, ascending) of at most `per_video` records of each video, evenly spread from its first to its last.

  Positions are `linspace(0, n - 1, per_video)` rounded, over the n records of the video in frame order; of a video with
  fewer records all are taken. Videos are told apart by domain and name.

  Args:
    table: `Records.table` with 'domain', 'video' and 'frame'.
    per_video: at least 1; of one frame the first is taken.
  """
  if per_video < 1:
    raise UserError(f'{per_video} frames per video were asked for, expected at least 1.')
  order = np.lexsort((table['frame'], table['video'], table['domain']))
  domain, video = table['domain'][order], table['video'][order]
  starts = np.flatnonzero(np.r_[True, (domain[1:] != domain[:-1]) | (video[1:] != video[:-1])]) if len(order) else []
  chosen = [
    members[np.unique(np.rint(np.linspace(0, len(members) - 1, min(per_video, len(members)))).astype(np.int64))]
    for members in np.split(order, starts[1:])
  ]
  return np.sort(np.concatenate(chosen)).astype(np.int64)


def held_out_subjects(table: Mapping[str, np.ndarray], fraction: float, seed: int) -> np.ndarray:
  """A mask (bool [N]) of the records of a random share of the subjects, drawn per domain; for validation.

  No subject is on both sides. In each domain round(fraction * subjects) are held out, but at least one and at most all
  but one; a domain with a single subject cannot be split and raises `UserError`. The draw depends on the seed and on
  the names of the domain and its subjects, not on the order of records or on the other domains.

  Args:
    table: `Records.table` with 'domain' and 'subject'.
    fraction: share of the subjects, in (0, 1); 0 holds out none.
    seed: of the draw.
  """
  if not 0 <= fraction < 1:
    raise UserError(f'Fraction {fraction} of held-out subjects lies outside [0, 1).')
  mask = np.zeros(len(table['subject']), bool)
  if not fraction:
    return mask
  for domain in np.unique(table['domain']):
    inside = table['domain'] == domain
    subjects = np.unique(table['subject'][inside])
    if len(subjects) < 2:
      raise UserError(f"Domain '{domain}' has the one subject {subjects.tolist()}: it cannot be split by subject.")
    count = int(np.clip(round(fraction * len(subjects)), 1, len(subjects) - 1))
    rng = np.random.default_rng([seed, *str(domain).encode()])
    mask |= inside & np.isin(table['subject'], rng.permutation(subjects)[:count])
  return mask
