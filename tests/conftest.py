"""What tests share: the CPU, a compilation cache that outlives the run, where sample data lie, and small networks."""

import functools
import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(pathlib.Path('~/.cache/verax/jax').expanduser()))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')

import numpy as np
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope='session')
def shared_data() -> pathlib.Path:
  """The folder of small real data beside the checkout ($VERAX_SHARED_DATA); the test skips where it is absent."""
  root = pathlib.Path(os.environ.get('VERAX_SHARED_DATA', REPOSITORY.parent / 'shared' / 'data'))
  if not root.is_dir():
    pytest.skip(f'no real sample data at {root}')
  return root


@pytest.fixture(scope='module')
def smaller_networks():
  """The variants 'tiny' of latent diffusion as networks of one level, initialised by one draw: they compile soon."""
  from core.diffusion import latent
  from core.nn import autoencoder, clip, unet

  networks = {
    autoencoder: {'channels': (8,), 'layers': 0, 'groups': 4},
    unet: {'channels': (8,), 'cross': (False,), 'layers': 0, 'heads': 1, 'groups': 4, 'context_width': 16},
    clip: {'width': 16, 'mlp_dim': 16},
  }
  with pytest.MonkeyPatch.context() as patch:
    for network, changes in networks.items():
      patch.setitem(network.VARIANTS, 'tiny', {**network.VARIANTS['tiny'], **changes})
    patch.setattr(latent.LatentDiffusion, 'init', functools.partialmethod(_drawn_at_once, latent.LatentDiffusion.init))
    yield


def _drawn_at_once(model, init, rng, size=64):
  """Parameters of the shapes that `init` gives, which draws them one by one: 0.2 s of compiling for each kernel."""
  import jax

  def fill(path, shape):
    if path[-1].key in ('scale', 'bias'):
      return np.full(shape.shape, path[-1].key == 'scale', np.float32)
    return next(drawn)[: shape.size].reshape(shape.shape) * max(1, shape.size // shape.shape[-1]) ** -0.5

  shapes = _shapes(model, init, size)
  most = max(leaf.size for leaf in jax.tree.leaves(shapes))
  drawn = iter(jax.random.normal(rng, (len(jax.tree.leaves(shapes)), most)))
  return jax.tree_util.tree_map_with_path(fill, shapes)


@functools.cache
def _shapes(model, init, size):
  import jax

  return jax.eval_shape(lambda key: init(model, key, size), jax.random.key(0))
