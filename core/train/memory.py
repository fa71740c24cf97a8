"""How the C library's allocator treats what XLA frees on the CPU."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util

import jax

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Parameters of glibc's mallopt."""


def keep_freed() -> bool:
  """Keeps freed memory in the process instead of giving it back to the system; True where that was done.

  XLA on the CPU allocates a program's temporaries anew in every call. Large blocks come from the system page by page,
  each page a fault: 29,000 of them per block and step of ViT-B/16 at batch 8, a tenth of the step, and more where the
  machine is virtual. One arena that never shrinks has none. Does nothing where an accelerator computes or the C library
  is not glibc. To be called before jax makes its threads, which is when the first device is looked for.
  """
  if _accelerated():
    return False
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is None:
    return False
  return all(mallopt(key, value) for key, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1)))


def _accelerated() -> bool:
  """Whether jax will compute on something else than the CPU, as far as can be told without asking for a device."""
  if jax.config.jax_platforms:
    return jax.config.jax_platforms.split(',')[0] != 'cpu'
  plugins = importlib.metadata.entry_points(group='jax_plugins')
  return bool(plugins) or importlib.util.find_spec('libtpu') is not None
