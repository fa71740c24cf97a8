"""A text-to-image model of random weights, small enough for a test, as ours and as a folder of diffusers."""

import jax
import numpy as np

from core.data import clip_tokens
from core.diffusion import Schedule
from core.diffusion.latent import LatentDiffusion
from core.nn.autoencoder import Autoencoder
from core.nn.clip import ClipText
from core.nn.unet import UNet

TOKENIZER = clip_tokens.small(['a photo of sks person'])
SIZE = 16
"""Pixels along a side."""
MODEL = LatentDiffusion(
  Autoencoder(channels=(8, 12), layers=1, groups=4, scaling=0.7),
  UNet(channels=(8, 16), cross=(True, False), layers=1, heads=2, context_width=16, groups=4),
  ClipText(
    vocabulary=TOKENIZER.vocabulary, width=16, depth=2, heads=2, mlp_dim=32, activation='gelu', max_positions=12
  ),
  Schedule(prediction='v'),
)


def random_params(model=MODEL, seed=0):
  """Random leaves of a model, of a size that every part of it shows in what it gives."""
  rng = np.random.default_rng(seed)

  def leaf(path, shape):
    values = rng.normal(size=shape.shape).astype(np.float32)
    if path[-1].key == 'scale':
      return 1 + 0.1 * values
    fan_in = np.prod(shape.shape[:-1]) if path[-1].key == 'kernel' else 100
    return (values / np.sqrt(fan_in)).astype(np.float32)

  shapes = jax.eval_shape(lambda key: model.init(key, SIZE), jax.random.key(0))
  return jax.tree_util.tree_map_with_path(leaf, shapes)
