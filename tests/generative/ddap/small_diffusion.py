"""A latent diffusion and a tokenizer small enough to compile in seconds, and sample photos."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from core.data.text import Tokenizer
from core.diffusion.latent import LatentDiffusion
from core.diffusion.schedule import Schedule
from core.nn.autoencoder import Autoencoder
from core.nn.clip import ClipText
from core.nn.unet import UNet

PROMPT = 'a photo of sks person'
WORDS = ('[PAD]', '[BOS]', '[EOS]', '[UNK]', 'a', 'photo', 'of', 'sks', 'per', '##son', 'man')

MODEL = LatentDiffusion(
  Autoencoder(channels=(8, 8), layers=0, groups=4, scaling=0.5),
  UNet(channels=(8,), cross=(True,), layers=0, heads=2, groups=4, context_width=8),
  ClipText(vocabulary=len(WORDS), width=8, depth=1, heads=2, mlp_dim=16, max_positions=10),
  Schedule(beta_end=0.06, steps=200),
)


def tokenizer():
  """Of `WORDS`, with the pieces of CLIP's in kind: 'person' is two."""
  library = tokenizers.Tokenizer(
    tokenizers.models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token='[UNK]')
  )
  library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  return Tokenizer(library, {'pad': '[PAD]', 'bos': '[BOS]', 'eos': '[EOS]', 'unk': '[UNK]'})


@functools.cache
def params(model=MODEL):
  """Every leaf of a model random; queries to the prompt are larger, so that places differ in what they see."""
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  rng = np.random.default_rng(1)

  def leaf(path, shape):
    size = 2.0 if {'cross', 'query'} <= {each.key for each in path} else 0.2
    return jnp.asarray(rng.normal(0.05, size, shape.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(leaf, shapes)


def pictures(count, height, width, seed=0):
  """uint8 [count, height, width, 3], smooth, with some noise."""
  rng = np.random.default_rng(seed)
  rows, columns = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)
  waves = [np.sin(6 * (rng.uniform() * rows + rng.uniform() * columns) + 6 * rng.uniform()) for _ in range(count * 3)]
  waves = np.stack(waves).reshape(count, 3, height, width).transpose(0, 2, 3, 1)
  return np.clip(127 + 90 * waves + rng.normal(0, 5, waves.shape), 0, 255).astype(np.uint8)
