"""Which frames a run trains on and is judged on, and where its records come from.

Records hold one domain (a public dataset, or one capture set-up of the face world) each. A protocol names source domains
and a target. Within the sources, a share of the SUBJECTS is held out for validation, so that neither the checkpoint nor
the threshold is chosen on the target (our choice; the release selects on the target).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import grain
import jax
import numpy as np

from core.data import face_frames, pipeline, records
from core.data.antispoofing import prepare as antispoofing
from core.data.antispoofing import protocols
from core.errors import UserError
from core.synth.faces import dataset as face_world

SPLITS = ('train', 'val', 'test')
"""Training subjects of the sources, held-out subjects of the sources, the whole target."""


def protocol_names(config: Any) -> list[str]:
  """The folds of `config.data.protocol`: one name per target, e.g. ['phone&tablet->laptop', ...]."""
  return [p.name for p in protocols.resolve(config.data.protocol, tuple(config.data.domains))]


def protocol(config: Any) -> protocols.Protocol:
  """The one protocol that a run with this config trains; raises `UserError` where the name means several."""
  found = protocols.resolve(config.data.protocol, tuple(config.data.domains))
  if len(found) != 1:
    raise UserError(
      f"config.data.protocol '{config.data.protocol}' means {len(found)} runs ({', '.join(p.name for p in found)}); "
      'a single task needs one of them.'
    )
  return found[0]


def records_root(config: Any) -> pathlib.Path:
  """Folder of the records; the face world's name carries a hash of what it was rendered with."""
  root = pathlib.Path(config.data.records).expanduser()
  if config.data.kind != 'face_world':
    return root
  settings = {'seed': config.seed * 0, 'size': config.data.size, **_face_world_settings(config)}
  digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
  return root / f'face_world-{digest}'
