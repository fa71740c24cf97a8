"""A border that XLA's CPU compiler does not fuse across."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def stage(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
  """function(*arrays), written to memory before anything reads it.

  The CPU compiler merges a chain of gathers and pointwise steps into one loop, and computes a shared part again for
  each element that reads it: 5 to 12 times slower for our separable filters. `lax.optimization_barrier` is gone before
  it does so (jax 0.10), but a conditional whose predicate it cannot see through stays. Elsewhere this is a plain call.
  """
  if jax.default_backend() != 'cpu':
    return function(*arrays)
  out = jax.eval_shape(function, *arrays)
  return lax.cond(lax.optimization_barrier(True), function, lambda *_: jnp.zeros(out.shape, out.dtype), *arrays)
