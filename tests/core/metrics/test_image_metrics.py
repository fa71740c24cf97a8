"""PSNR, SSIM, budgets and latent displacement against scipy and their definitions; the block DCT against scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.ndimage

from core.errors import UserError
from core.metrics import frequency, image

RNG = np.random.default_rng(5)
CLEAN = RNG.uniform(-1, 1, (2, 24, 32, 3)).astype(np.float32)
CLEAN[0] = scipy.ndimage.gaussian_filter(CLEAN[0], (3, 3, 0))  # a smooth picture beside a rough one
CHANGED = np.clip(CLEAN + RNG.normal(0, 0.1, CLEAN.shape), -1, 1).astype(np.float32)
RANGES = {'-1..1': (1, 0, 2), '0..1': (0.5, 0.5, 1), '8 bits': (127.5, 127.5, 255)}
each_range = pytest.mark.parametrize(('scale', 'shift', 'data_range'), RANGES.values(), ids=RANGES)


def blur(v):
  """Means under a Gaussian window of 11 pixels, where it fits."""
  return scipy.ndimage.gaussian_filter(v, 1.5, truncate=3.5)[5:-5, 5:-5]


def ssim_by_scipy(x, y, data_range):
  """Wang et al.'s formula for one image, in f64, on scipy's Gaussian filter."""
  values = []
  for c in range(x.shape[-1]):
    a, b = x[..., c].astype(np.float64), y[..., c].astype(np.float64)
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    cov = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values.append((2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
  return np.mean(values)


@each_range
def test_ssim_is_the_papers_formula(scale, shift, data_range):
  clean, changed = CLEAN * scale + shift, CHANGED * scale + shift
  expected = [ssim_by_scipy(x, y, data_range) for x, y in zip(changed, clean)]
  assert expected[0] + 0.1 < expected[1]  # the same noise is seen on the smooth picture
  np.testing.assert_allclose(image.ssim(changed, clean, data_range=data_range), expected, atol=2e-5)


def test_ssim_equals_scikit_image():
  metrics = pytest.importorskip('skimage.metrics')
  options = {'gaussian_weights': True, 'sigma': 1.5, 'use_sample_covariance': False, 'channel_axis': -1}
  expected = [metrics.structural_similarity(x, y, data_range=2, **options) for x, y in zip(CHANGED, CLEAN)]
  np.testing.assert_allclose(image.ssim(CHANGED, CLEAN, data_range=2), expected, atol=2e-5)


def test_ssim_of_flat_bright_8_bit_pictures_keeps_its_digits():
  """E[x^2] - E[x]^2 in f32 loses them where values are large and nearly equal."""
  clean = np.full((1, 32, 32, 1), 250, np.float32) + RNG.integers(0, 2, (1, 32, 32, 1))
  changed = clean + RNG.integers(-1, 2, clean.shape)
  expected = ssim_by_scipy(changed[0], clean[0], 255)
  assert float(image.ssim(changed, clean, data_range=255)[0]) == pytest.approx(expected, abs=1e-6)


@each_range
def test_psnr_linf_and_l2_follow_their_definitions_in_every_range(scale, shift, data_range):
  clean, changed = CLEAN * scale + shift, CHANGED * scale + shift
  delta = (CHANGED.astype(np.float64) - CLEAN) / 2  # as in 0..1
  expected = -10 * np.log10(np.mean(delta**2, (1, 2, 3)))
  np.testing.assert_allclose(image.psnr(changed, clean, data_range=data_range), expected, rtol=1e-5)
  expected = 255 * np.abs(delta).max((1, 2, 3))
  np.testing.assert_allclose(image.linf(changed, clean, data_range=data_range), expected, rtol=1e-5)
  expected = np.sqrt((delta**2).sum((1, 2, 3)))
  np.testing.assert_allclose(image.l2(changed, clean, data_range=data_range), expected, rtol=1e-5)


def test_the_budget_of_anti_dreambooth_is_six_levels_and_a_bit():
  assert float(image.linf(CLEAN[0] + 0.05, CLEAN[0], data_range=2)) == pytest.approx(6.375, abs=1e-3)


def test_equal_images():
  assert np.all(np.isposinf(image.psnr(CLEAN, CLEAN, data_range=2)))
  np.testing.assert_allclose(image.ssim(CLEAN, CLEAN, data_range=2), 1, atol=1e-6)


def test_bytes_do_not_wrap_around():
  dark, bright = np.full((16, 16, 3), 10, np.uint8), np.full((16, 16, 3), 20, np.uint8)
  both = [float(image.linf(x, y, data_range=255)) for x, y in ((dark, bright), (bright, dark))]
  assert both == [10, 10]
  assert float(image.psnr(dark, bright, data_range=255)) == pytest.approx(20 * np.log10(25.5), rel=1e-6)


@pytest.mark.parametrize('measure', [image.psnr, image.ssim, image.linf, image.l2])
def test_an_image_alone_a_batch_and_a_compiled_batch_agree(measure):
  batch = measure(CHANGED, CLEAN, data_range=2)
  assert batch.shape == (2,)
  compiled = jax.jit(measure, static_argnames='data_range')(CHANGED, CLEAN, data_range=2)
  np.testing.assert_allclose(compiled, batch, rtol=1e-5)
  np.testing.assert_allclose(measure(CHANGED[1], CLEAN[1], data_range=2), batch[1], rtol=1e-5)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: image.psnr(CLEAN, CLEAN[:, 1:], data_range=2), r'\(2, 24, 32, 3\) and \(2, 23, 32, 3\)'),
    (lambda: image.psnr(CLEAN[0, 0], CLEAN[0, 0], data_range=2), r'\(32, 3\)'),
    (lambda: image.psnr(CLEAN, CLEAN, data_range=0), 'data_range 0'),
    (lambda: image.ssim(CLEAN[:, :10], CLEAN[:, :10], data_range=2), '10 x 32'),
    (lambda: frequency.block_dct(CLEAN[:, :20]), 'crop it to 16 x 32'),
    (lambda: image.latent_displacement(CLEAN, CLEAN, np.ones((2, 40, 32, 1))), '40 x 32.* 24 x 32'),
  ],
)
def test_what_cannot_be_compared_is_said(call, message):
  with pytest.raises(UserError, match=message):
    call()


def test_latent_displacement_is_relative_and_weighs_by_the_mask():
  z0 = RNG.normal(size=(2, 4, 4, 4)).astype(np.float32)
  np.testing.assert_allclose(image.latent_displacement(1.1 * z0, z0), 0.01, rtol=1e-4)
  z, mask = z0.copy(), np.zeros((2, 32, 32, 1))
  z[:, 1, 2] += 1
  mask[:, 8:16, 16:24] = 1  # the pixels of latent (1, 2)
  mask[:, 0:4, 0:8] = 1  # half of those of latent (0, 0)
  expected = 4 / (np.square(z0[:, 1, 2]).sum(-1) + np.square(z0[:, 0, 0]).sum(-1) / 2)
  np.testing.assert_allclose(image.latent_displacement(z, z0, mask), expected, rtol=1e-5)
  np.testing.assert_allclose(image.latent_displacement(z, z0, np.roll(mask, 16, 1)), 0)
  assert np.isnan(image.latent_displacement(z, z0, 0 * mask)).all()


def test_block_dct_equals_scipys_block_by_block():
  found = np.asarray(frequency.block_dct(CLEAN))
  assert found.shape == (2, 3, 4, 8, 8, 3)
  for i in range(3):
    for j in range(4):
      block = CLEAN[:, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8].astype(np.float64)
      np.testing.assert_allclose(found[:, i, j], scipy.fft.dctn(block, axes=(1, 2), norm='ortho'), atol=1e-5)


def test_block_dct_is_orthonormal_and_comes_back():
  coefficients = jax.jit(frequency.block_dct)(CLEAN)
  np.testing.assert_allclose(jax.jit(frequency.block_idct)(coefficients), CLEAN, atol=1e-6)
  np.testing.assert_allclose(jnp.linalg.norm(coefficients.ravel()), np.linalg.norm(CLEAN.ravel()), rtol=1e-6)
  other = RNG.normal(size=coefficients.shape).astype(np.float32)
  left, right = np.vdot(coefficients, other), np.vdot(CLEAN, frequency.block_idct(other))
  assert left == pytest.approx(right, abs=1e-3) and abs(left) > 1


def test_the_gradient_of_coefficients_is_the_transform_of_the_gradient_of_pixels():
  """What lets a sign step be taken in the frequency domain without differentiating through the DCT."""

  def loss(x):
    return jnp.sum(jnp.sin(3 * x) * CHANGED)

  through = jax.grad(lambda y: loss(frequency.block_idct(y)))(frequency.block_dct(CLEAN))
  np.testing.assert_allclose(through, frequency.block_dct(jax.grad(loss)(CLEAN)), atol=1e-4)


def test_detail_is_54_of_64_coefficients_without_the_mean():
  mask = frequency.detail_mask()
  assert mask.sum() == 54 and not mask[0, 0] and not mask[3, 0] and not mask[1, 2] and mask[2, 2] and mask[0, 4]
  assert frequency.detail_mask(0).all()


def test_hf_share_of_noise_is_its_share_of_coefficients_and_of_a_smooth_change_none():
  noise = RNG.choice([-1.0, 1.0], (2, 128, 128, 3))
  np.testing.assert_allclose(frequency.hf_share(noise), 54 / 64, atol=0.01)
  np.testing.assert_allclose(frequency.hf_share(7 * noise), frequency.hf_share(noise), rtol=1e-5)
  np.testing.assert_allclose(frequency.hf_share(np.ones((2, 16, 16, 3))), 0, atol=1e-6)
  assert np.isnan(frequency.hf_share(np.zeros((8, 8, 3))))


def test_hf_share_of_one_coefficient_each_side_of_the_border():
  for (u, v), expected in (((0, 3), 0), ((2, 1), 0), ((0, 4), 1), ((3, 1), 1), ((7, 7), 1)):
    coefficients = np.zeros((1, 1, 8, 8, 1), np.float32)
    coefficients[0, 0, u, v] = 2
    assert float(frequency.hf_share(frequency.block_idct(coefficients))) == pytest.approx(expected, abs=1e-6), (u, v)
