"""A contact sheet: what the portrait world looks like.

python -m core.synth.portraits.sheet docs/portrait_world.png
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np
from PIL import Image

from core.data import image as images
from core.synth.portraits import painter


def contact_sheet(
  path: str | pathlib.Path, *, people: int = 5, photos: int = 10, size: int = 32, zoom: int = 3, seed: int = 5
) -> pathlib.Path:
  """Writes a PNG: one row per person, the last column the mask of the photo before it.

  Args:
    path: where to write.
    people: rows.
    photos: of each person.
    size: pixels along a side.
    zoom: how many pixels of the sheet a pixel becomes, along a side.
    seed: which people.
  """
  rng, rows = np.random.default_rng(seed), []
  for _ in range(people):
    identity = painter.sample_identity(rng)
    drawn = [painter.render(identity, painter.sample_photo(rng), size) for _ in range(photos)]
    mask = np.repeat(drawn[-1][1][..., None] * 255, 3, axis=-1).astype(np.uint8)
    rows.append(np.concatenate([*(images.to_levels(image) for image, _ in drawn), mask], axis=1))
  sheet = np.concatenate(rows).repeat(zoom, axis=0).repeat(zoom, axis=1)
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(sheet).save(path, optimize=True)
  return path


if __name__ == '__main__':
  print(contact_sheet(sys.argv[1] if len(sys.argv) > 1 else 'docs/portrait_world.png'))
