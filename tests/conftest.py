"""What every test shares: the CPU, a compilation cache that outlives the run, and where the real sample data lie."""

import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(pathlib.Path('~/.cache/verax/jax').expanduser()))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope='session')
def shared_data() -> pathlib.Path:
  """The folder of small real data beside the checkout ($VERAX_SHARED_DATA); the test skips where it is absent."""
  root = pathlib.Path(os.environ.get('VERAX_SHARED_DATA', REPOSITORY.parent / 'shared' / 'data'))
  if not root.is_dir():
    pytest.skip(f'no real sample data at {root}')
  return root


@pytest.fixture
def fresh_compilation():
  """No persistent cache: jax 0.10 loses the donation of a CPU program that it reads back from there (it then copies)."""
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()
  yield
  jax.config.update('jax_enable_compilation_cache', True)
  compilation_cache.reset_cache()
