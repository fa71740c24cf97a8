"""Photos of persons, a folder each: the sets of personalisation and of protection against it (DDAP spec 6).

Set A are clean photos that are never published, set B those to protect, set C further clean ones.
"""

from __future__ import annotations

import tensorflow_datasets as tfds

FEATURES = {
  'image': tfds.features.Image(shape=(None, None, 3)),
  'mask': tfds.features.Image(shape=(None, None, 1)),
  'identity': tfds.features.Text(),
  'set': tfds.features.Text(),
  'path': tfds.features.Text(),
}
"""image: uint8 RGB [size, size, 3]. mask: 255 where the face is, 0 elsewhere; all 255 where nobody knows. identity: its
name. set: 'A', 'B', 'C', or 'train' for identities that a model is trained on. path: where the photo came from."""
