"""Bicubic resizing against torch, and against what jax calls cubic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from core.nn.resize import bicubic


@pytest.mark.parametrize('shape, size', [((2, 8, 8, 3), (64, 64)), ((1, 5, 7, 2), (13, 4)), ((2, 1, 3, 1), (4, 9))])
def test_bicubic_equals_torch(shape, size):
  torch = pytest.importorskip('torch')
  x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  theirs = torch.nn.functional.interpolate(torch.tensor(np.moveaxis(x, -1, 1)), size=size, mode='bicubic')
  expected = np.moveaxis(theirs.numpy(), 1, -1)
  assert np.abs(np.asarray(jax.jit(bicubic, static_argnums=1)(x, size)) - expected).max() < 1e-5


def test_bicubic_is_not_the_cubic_of_jax():
  ramp = jnp.arange(4.0)[None, :, None]
  found, other = bicubic(ramp, (1, 8))[0, :, 0], jax.image.resize(ramp, (1, 8, 1), 'cubic')[0, :, 0]
  assert float(found[0]) == pytest.approx(-0.105469, abs=1e-5) and float(other[0]) == pytest.approx(-0.088, abs=1e-3)
  assert float(jnp.abs(found - other).max()) > 0.01


def test_leading_axes_are_batches_and_the_same_size_changes_nothing():
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 2))
  found = bicubic(x, (8, 6))
  assert found.shape == (2, 3, 8, 6, 2)
  np.testing.assert_allclose(found[1, 2], bicubic(x[1, 2], (8, 6)), atol=1e-6)
  np.testing.assert_allclose(bicubic(x, (4, 5)), x, atol=1e-6)


def test_arrays_without_sides_are_refused():
  with pytest.raises(UserError, match=r'shape \(4, 4\)'):
    bicubic(jnp.zeros((4, 4)), (8, 8))
  with pytest.raises(UserError, match=r'size \(0, 8\)'):
    bicubic(jnp.zeros((4, 4, 1)), (0, 8))
