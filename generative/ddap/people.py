"""The persons of an experiment: photos that are never published, photos to protect, photos to judge by (spec 6)."""

from __future__ import annotations

import dataclasses

import numpy as np

from core.data.identities import Identities


@dataclasses.dataclass(frozen=True)
class Person:
  """One identity. Photos are uint8 [n, H, W, 3], faces bool [n, H, W, 1].

  Attributes:
    name: of the identity.
    reference: set A, clean and never published: what the surrogate learns from.
    photos: set B, to be protected.
    face: where the face is on set B; True everywhere when nobody knows.
    held_out: set C, clean: what an attacker is judged by.
    held_out_face: the same of set C.
  """

  name: str
  reference: np.ndarray
  photos: np.ndarray
  face: np.ndarray
  held_out: np.ndarray
  held_out_face: np.ndarray


def gather(identities: Identities) -> list[Person]:
  """All of them, by name."""
  return [_person(identities, name) for name in identities.names]


def _person(identities: Identities, name: str) -> Person:
  face = {each: np.asarray(identities.masks(name, each), bool)[..., None] for each in ('B', 'C')}
  photos = {each: np.asarray(identities.photos(name, each)) for each in ('A', 'B', 'C')}
  return Person(name, photos['A'], photos['B'], face['B'], photos['C'], face['C'])
