"""What `benchmarks.diffusion` measures: networks, weights and inputs, the same numbers for every contestant."""

from __future__ import annotations

import dataclasses
import math

import flax.traverse_util
import jax
import numpy as np

from core.diffusion.latent import LatentDiffusion
from core.diffusion.schedule import Schedule
from core.nn import autoencoder, clip, unet

ROWS = {
  'unet_forward': 'the U-Net, forward',
  'unet_gradient': 'the U-Net: denoising loss and its gradient in the latents',
  'sample': '20 steps of DDIM with guidance',
  'encode_gradient': 'the encoder: size of the latents and its gradient in the photo',
  'spl': 'one inner step of SPL (spec 3.2)',
  'fpl': 'one inner step of FPL (spec 3.3)',
}
SCHEDULE = Schedule()
STEPS, GUIDANCE = 20, 7.5
EPSILON, ALPHA, FIRST = 0.05, 0.005, 4
"""Budget and step in -1..1, and the diagonal of the DCT from which on FPL moves (spec 4)."""
TIMESTEP = 500
POOL = 1048573
"""Random numbers that all weights are cut from, a prime: 860 million of them anew would take longer than the test."""


@dataclasses.dataclass(frozen=True)
class Case:
  """Sizes of the networks and of a batch.

  Attributes:
    channels, heads, groups, layers, context_width, tokens: of the U-Net; it attends at all levels but the last.
    photo_channels: of the autoencoder, whose layers and groups are those of the U-Net.
    size: pixels along a side.
    batch: photos.
  """

  channels: tuple[int, ...]
  heads: int | tuple[int, ...]
  context_width: int
  photo_channels: tuple[int, ...]
  size: int
  batch: int = 1
  groups: int = 32
  layers: int = 2
  tokens: int = 77

  def unet(self, dtype: str = 'float32') -> unet.UNet:
    """Ours."""
    cross = (*(True for _ in self.channels[1:]), False)
    return unet.UNet(
      self.channels, cross, self.layers, self.heads, context_width=self.context_width, groups=self.groups, dtype=dtype
    )

  def autoencoder(self, dtype: str = 'float32') -> autoencoder.Autoencoder:
    """Ours."""
    return autoencoder.Autoencoder(self.photo_channels, self.layers, groups=self.groups, dtype=dtype)

  def model(self, dtype: str) -> LatentDiffusion:
    """Both, and a text encoder that is never run."""
    text = clip.ClipText(vocabulary=1, width=self.context_width, depth=1, heads=1, mlp_dim=1)
    return LatentDiffusion(self.autoencoder(dtype), self.unet(dtype), text, SCHEDULE)

  def arrays(self) -> dict[str, np.ndarray]:
    """Inputs, f32 NHWC: x0 and x (photos and where an attack stands), noise, eta, context, negative."""
    rng = np.random.default_rng(0)
    side = self.size // self.autoencoder().factor
    photos, latents = (self.batch, self.size, self.size, 3), (self.batch, side, side, 4)
    x0 = rng.uniform(-0.9, 0.9, photos)
    found = {
      'x0': x0, 'x': x0 + rng.uniform(-EPSILON, EPSILON, photos), 'noise': rng.normal(size=latents),
      'eta': rng.normal(size=latents),
    }  # fmt: skip
    for name in ('context', 'negative'):
      found[name] = rng.normal(size=(self.batch, self.tokens, self.context_width))
    return {name: value.astype(np.float32) for name, value in found.items()}

  def weights(self) -> dict[str, dict[str, np.ndarray]]:
    """{'unet', 'autoencoder'}: {path: f32}: kernels normal with variance 1 / fan-in, scales 1, biases 0."""
    arrays, key = self.arrays(), jax.random.key(0)
    shapes = {
      'unet': jax.eval_shape(self.unet().init, key, arrays['noise'], np.zeros(1, np.float32), arrays['context']),
      'autoencoder': jax.eval_shape(self.autoencoder().init, key, arrays['x0']),
    }
    pool = np.random.default_rng(1).standard_normal(POOL, np.float32)
    return {name: _filled(tree['params'], pool) for name, tree in shapes.items()}


def _filled(shapes: dict, pool: np.ndarray) -> dict[str, np.ndarray]:
  found = {}
  for path, leaf in flax.traverse_util.flatten_dict(shapes, sep='/').items():
    if len(leaf.shape) == 1:
      found[path] = np.full(leaf.shape, float(path.endswith('scale')), np.float32)
    else:
      pool = np.roll(pool, 1 + len(found))
      found[path] = np.resize(pool, leaf.shape) * np.float32(math.prod(leaf.shape[:-1]) ** -0.5)
  return found


CASES = {
  # a few seconds: does it run?
  'tiny': Case((32, 64), 2, 32, (16, 32), size=32, batch=2, groups=8, layers=1, tokens=8),
  # half of Stable Diffusion 1 in width and in pixels along a side: what two CPU cores do in a second
  'half': Case((160, 320, 640, 640), 4, 384, (64, 128, 256, 256), size=256),
  'sd1': Case((320, 640, 1280, 1280), 8, 768, (128, 256, 512, 512), size=512),
  'sd2': Case((320, 640, 1280, 1280), (5, 10, 20, 20), 1024, (128, 256, 512, 512), size=512),
}
