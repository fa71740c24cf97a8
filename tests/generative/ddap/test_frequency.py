"""FPL's step on coefficients, and spectrum augmentation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

from core.metrics.frequency import block_dct, detail_mask, hf_share
from generative.ddap import frequency

GRADIENT = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 24, 3)), jnp.float32)
STEP = 0.01


def direction(k0):
  step = frequency.matched_step(STEP, k0)
  return frequency.detail_direction(GRADIENT, step, frequency.detail_weights(k0))


def test_a_step_leaves_means_and_coarse_coefficients_alone():
  found = direction(4)
  coefficients = np.asarray(block_dct(found))
  assert np.abs(coefficients[..., ~detail_mask(4), :]).max() < 1e-6
  np.testing.assert_allclose(np.abs(coefficients[..., detail_mask(4), :]), 1.0887 * STEP, rtol=1e-3)
  np.testing.assert_allclose(np.asarray(found).reshape(2, 2, 8, 3, 8, 3).mean((2, 4)), 0, atol=1e-6)
  np.testing.assert_allclose(hf_share(found), 1, atol=1e-6)


def test_the_step_climbs_the_gradient_of_the_coefficients():
  found = direction(4)
  own = np.stack([
    scipy.fft.dctn(np.asarray(GRADIENT)[0, 8:16, 16:24, c], type=2, norm='ortho') for c in range(3)
  ], -1)  # fmt: skip
  block = np.asarray(block_dct(found))[0, 1, 2]
  np.testing.assert_array_equal(np.sign(block[detail_mask(4)]), np.sign(own[detail_mask(4)]))
  assert (found * GRADIENT).sum() > 0


@pytest.mark.parametrize('k0', [0, 4, 9])
def test_a_step_is_as_long_as_a_sign_step_on_the_pixels(k0):
  blocks = np.asarray(direction(k0)).reshape(2, 2, 8, 3, 8, 3)
  np.testing.assert_allclose(np.square(blocks).sum((2, 4)), 64 * STEP**2, rtol=1e-4)


def test_without_a_lower_bound_most_of_a_step_may_be_coarse():
  assert hf_share(direction(0)).max() < 0.9


def test_spectrum_augmentation_without_noise_and_spread_is_the_photo():
  keys = jax.random.split(jax.random.key(0), 2)
  np.testing.assert_allclose(frequency.spectrum_aug(GRADIENT, keys, 0.0, 0.0), GRADIENT, atol=1e-5)


def test_spectrum_augmentation_scales_each_coefficient_of_the_whole_photo_by_its_own_factor():
  keys = jax.random.split(jax.random.key(0), 2)
  found = frequency.spectrum_aug(GRADIENT, keys, 0.5, 0.0)
  spectra = [scipy.fft.dctn(np.asarray(x), axes=(1, 2), type=2, norm='ortho') for x in (found, GRADIENT)]
  factors = (spectra[0] / spectra[1])[np.abs(spectra[1]) > 0.1]
  assert 0.499 < factors.min() < 0.52 and 1.48 < factors.max() < 1.501
  np.testing.assert_allclose(frequency.spectrum_aug(GRADIENT[1:], keys[1:], 0.5, 0.0)[0], found[1], atol=1e-5)


def test_spectrum_augmentation_adds_noise_of_sixteen_levels():
  keys = jax.random.split(jax.random.key(1), 2)
  noise = np.asarray(frequency.spectrum_aug(GRADIENT, keys, 0.0) - GRADIENT)
  assert np.std(noise) * 127.5 == pytest.approx(16, rel=0.05)
