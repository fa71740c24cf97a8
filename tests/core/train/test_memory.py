"""Freed memory stays in the process: a large block is faulted in once."""

import subprocess
import sys

import jax
import pytest

from core.train import memory

PROGRAM = """
import resource, sys
import jax, numpy as np
from core.train import memory
if sys.argv[1] == 'kept':
  assert memory.keep_freed()
work = jax.jit(lambda x: (x @ x) @ x)
x = jax.numpy.ones((1500, 1500))
work(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
  work(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
  """Page faults of five calls of a program with 9 MB of temporaries and 9 MB of result (4,400 pages)."""
  done = subprocess.run([sys.executable, '-c', PROGRAM, mode], capture_output=True, text=True, check=True)
  return int(done.stdout.split()[-1])


@pytest.mark.skipif(sys.platform != 'linux', reason='mallopt is glibc')
def test_temporaries_are_faulted_in_once():
  given_back = faults('given back')
  if given_back < 5_000:
    pytest.skip('this system gives large blocks as huge pages')
  assert faults('kept') < given_back / 5


def test_nothing_is_done_where_an_accelerator_computes(monkeypatch):
  monkeypatch.setattr(memory.ctypes, 'CDLL', lambda name: pytest.fail('the allocator was touched'))
  before = jax.config.jax_platforms
  try:
    jax.config.update('jax_platforms', 'cuda,cpu')
    assert memory.keep_freed() is False
  finally:
    jax.config.update('jax_platforms', before)
