"""What `benchmarks.anticipation` measures: sizes of the network and random inputs, the same for every contestant."""

from __future__ import annotations

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from configs.video import arr


@dataclasses.dataclass(frozen=True)
class Case:
  """Sizes of a network and of a batch.

  Attributes:
    encoder: 'feature' or 'frame_vit'.
    variant: of the encoder.
    size: length F of the feature vectors, or side of the pictures.
    width: D; of 'frame_vit' its variant's own.
    clips: T.
    frames: n.
    layers, heads, decoder_width: L, A, d.
    classes: C.
    batch: rows of a training step.
    remat, scan: of the ViT, ours only.
  """

  encoder: str
  variant: str
  size: int
  width: int
  clips: int
  frames: int
  layers: int
  heads: int
  decoder_width: int
  classes: int
  batch: int = 1
  remat: bool = False
  scan: bool = False

  def config(self) -> ConfigDict:
    """The embedded experiment with these sizes, its stage 'joint' alone."""
    config = arr.embedded()
    config.recognition.steps = config.pretraining.steps = 0
    config.grid.clips, config.grid.frames = self.clips, self.frames
    config.model.update(
      encoder=self.encoder, variant=self.variant, width=self.width, remat=self.remat, scan=self.scan
    )  # fmt: skip
    config.model.decoder.update(layers=self.layers, heads=self.heads, width=self.decoder_width)
    if self.encoder == 'feature':
      config.data.feature_size = self.size
    else:
      config.model.image_size = self.size
    return config

  def shapes(self) -> dict[str, tuple[tuple[int, ...], type]]:
    """(shape, dtype) of a batch."""
    rows = (self.batch, self.clips)
    pixels = (*rows, self.frames, self.size, self.size, 3)
    inputs = ((*rows, self.size), np.float32) if self.encoder == 'feature' else (pixels, np.uint8)
    return {'inputs': inputs, 'label': (rows, np.int32), 'target': ((self.batch,), np.int32)}

  def rows(self) -> dict[str, np.ndarray]:
    """A random batch."""
    rng, found = np.random.default_rng(0), {}
    for name, (shape, dtype) in self.shapes().items():
      if dtype == np.float32:
        found[name] = rng.normal(size=shape).astype(dtype)
      else:
        found[name] = rng.integers(0, 256 if dtype == np.uint8 else self.classes, shape, dtype)
    return found


def features(layers: int) -> Case:
  """EPIC-KITCHENS-100 on one feature store, AVT's head at a quarter of its width."""
  return Case('feature', 'linear', 1024, 512, 10, 1, layers, 4, 512, classes=3806, batch=64)


PIXELS = Case('frame_vit', 'tiny_patch8', 64, 96, 10, 2, 2, 4, 128, classes=106, batch=8)
"""A small ViT per frame, end to end: 160 pictures of 64 px a step."""


def stream(clips: int) -> Case:
  """A camera of 224 px on two cores: ViT-Ti/16 and a decoder of six layers."""
  return Case('frame_vit', 'tiny_patch16', 224, 192, clips, 1, 6, 4, 512, classes=3806)


def paper(clips: int, remat: bool) -> Case:
  """AVT's network and its three rows per GPU: ViT-B/16 on one frame per clip, six layers of width 2048."""
  sizes = {'clips': clips, 'frames': 1, 'layers': 6, 'heads': 4, 'decoder_width': 2048, 'classes': 3806}
  return Case('frame_vit', 'base_patch16', 224, 768, **sizes, batch=3, remat=remat, scan=True)
