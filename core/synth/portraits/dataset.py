"""Examples of the portrait world in the record form of `core.data.identities`.

'train' is the population that a model is trained on before anybody is protected; 'test' has new people, each with the
sets of the Anti-DreamBooth protocol: A (clean reference photos), B (photos to protect), C (held out).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from core.data import image as images
from core.errors import UserError, nearest
from core.synth.portraits import painter

SPLITS = ('train', 'test')


@dataclasses.dataclass(frozen=True)
class Config:
  """How much there is of it; the defaults are those of spec 9c.

  Attributes:
    size: pixels along a side.
    identities: people of 'train'.
    photos: of each of them.
    test: people of 'test'.
    sets: name -> photos of each of those.
  """

  size: int = 32
  identities: int = 300
  photos: int = 12
  test: int = 4
  sets: Mapping[str, int] = dataclasses.field(default_factory=lambda: {'A': 4, 'B': 4, 'C': 32})


def examples(split: str, config: Config, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
  """(key, example) of a split, person after person; example i does not depend on how many there are.

  Args:
    split: one of `SPLITS`.
    config: how much.
    seed: of the world.

  Yields:
    image uint8 [S, S, 3], mask uint8 [S, S, 1] (255 on the head), identity, set ('train', or a name of `config.sets`),
    path ('<identity>/set_<set>/<number>.png', where a folder of such photos would have it).
  """
  if split not in SPLITS:
    raise UserError(f"the portrait world has no split '{split}', expected one of {SPLITS}.{nearest(split, SPLITS)}")
  people, sets = (config.identities, {'train': config.photos}) if split == 'train' else (config.test, config.sets)
  for person in range(people):
    origin = [seed, SPLITS.index(split), person]
    identity = painter.sample_identity(np.random.default_rng(origin))
    for place, (name, count) in enumerate(sorted(sets.items())):
      for number in range(count):
        rng = np.random.default_rng([*origin, place, number])
        path = f'{split}_{person:04d}/set_{name}/{number:03d}.png'
        yield path, _example(identity, painter.sample_photo(rng), config.size, name, path)


def _example(identity: painter.Identity, photo: painter.Photo, size: int, name: str, path: str) -> dict[str, Any]:
  image, mask = painter.render(identity, photo, size)
  return {
    'image': images.to_levels(image),
    'mask': np.where(mask, 255, 0).astype(np.uint8)[..., None],
    'identity': path.split('/')[0],
    'set': name,
    'path': path,
  }
