"""Freed memory stays in the process: what a program let go of is there for its next call."""

import subprocess
import sys

import jax
import pytest

from core.train import memory

PROGRAM = """
import ctypes, sys
import jax
from core.train import memory

class Info(ctypes.Structure):  # struct mallinfo2 of glibc 2.33 and later; fordblks counts the free bytes held
  _fields_ = [(n, ctypes.c_size_t) for n in
              'arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost'.split()]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Info
if sys.argv[1] == 'kept':
  assert memory.keep_freed()
grow = jax.jit(lambda x: jax.numpy.ones((4096, 4096)) * x)
y = grow(2.0).block_until_ready()
before = mallinfo2().fordblks
y.delete()
print(mallinfo2().fordblks - before)
"""
BLOCK = 4096 * 4096 * 4
"""Bytes of the program's result: more than the 32 MiB up to which glibc may keep a block of itself."""


def held(mode: str) -> int:
  """Bytes that the process still holds of a result of `BLOCK` bytes that it has let go of."""
  done = subprocess.run([sys.executable, '-c', PROGRAM, mode], capture_output=True, text=True, check=True)
  return int(done.stdout.split()[-1])


@pytest.mark.skipif(
  not hasattr(memory.ctypes.CDLL(None), 'mallinfo2'), reason='the C library is not glibc 2.33 or later'
)
def test_a_freed_result_stays_in_the_process_only_when_asked_for():
  assert held('given back') < BLOCK / 8
  assert held('kept') >= BLOCK


def test_nothing_is_done_where_an_accelerator_computes(monkeypatch):
  monkeypatch.setattr(memory.ctypes, 'CDLL', lambda name: pytest.fail('the allocator was touched'))
  before = jax.config.jax_platforms
  try:
    jax.config.update('jax_platforms', 'cuda,cpu')
    assert memory.keep_freed() is False
  finally:
    jax.config.update('jax_platforms', before)
