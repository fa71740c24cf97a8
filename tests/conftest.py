"""What every test shares: the CPU, a compilation cache that outlives the run, and where the real sample data lie."""

import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(pathlib.Path('~/.cache/verax/jax').expanduser()))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope='session')
def shared_data() -> pathlib.Path:
  """The folder of small real data beside the checkout ($VERAX_SHARED_DATA); the test skips where it is absent."""
  root = pathlib.Path(os.environ.get('VERAX_SHARED_DATA', REPOSITORY.parent / 'shared' / 'data'))
  if not root.is_dir():
    pytest.skip(f'no real sample data at {root}')
  return root
