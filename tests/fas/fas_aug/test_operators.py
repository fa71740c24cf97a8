"""What every operator promises (identity at level 0, range, determinism, numpy = JAX), and what each one does."""

import itertools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from fas.fas_aug import operators, resample, textures, traditional
from fas.fas_aug.assets import Assets

ALL = operators.OPERATORS | traditional.OPERATORS
SHAPES = [(36, 36, 3), (48, 33, 3)]
MAGNITUDES = {  # spec 3.1
  'reflection': [0.031, 0.052, 0.073, 0.094, 0.116, 0.137, 0.158, 0.179, 0.200],
  'blue_noise': [0.053, 0.097, 0.140, 0.183, 0.227, 0.270, 0.313, 0.357, 0.400],
  'moire': [0.042, 0.074, 0.107, 0.139, 0.171, 0.203, 0.236, 0.268, 0.300],
  'sfc_halftone': [0.031, 0.052, 0.073, 0.094, 0.116, 0.137, 0.158, 0.179, 0.200],
  'hand_trembling': [2, 4, 6, 7, 9, 11, 12, 14, 16],
  'low_resolution': [232, 211, 190, 169, 148, 127, 106, 85, 64],
}
LENGTHS = [1, *MAGNITUDES['hand_trembling']]


def picture(shape, seed=0):
  """A smooth picture with fine noise, f32 in [.04, .96] on the grid of 8 bits."""
  rng = np.random.default_rng(seed)
  smooth = cv2.resize(rng.random((5, 5, 3), np.float32), shape[1::-1], interpolation=cv2.INTER_CUBIC)
  return (np.rint(np.clip(smooth + 0.1 * rng.normal(size=shape), 0.04, 0.96) * 255) / 255).astype(np.float32)


@pytest.fixture(scope='module', params=SHAPES, ids=str)
def runs(request):
  """{name: (two levels, two keys) results} of every operator on one shape, each compiled once."""
  image = jnp.asarray(picture(request.param))

  @jax.jit
  def everything(key, image, level):
    return {name: entry.apply(key, image, level) for name, entry in ALL.items()}

  cases = [(0, 0.0), (0, 0.5), (0, 0.5), (1, 0.5), (2, 1.0)]
  return image, [jax.device_get(everything(jax.random.key(seed), image, level)) for seed, level in cases]


@pytest.mark.parametrize('name', ALL)
def test_operator_keeps_shape_range_and_identity_at_level_zero(runs, name):
  image, results = runs
  np.testing.assert_array_equal(results[0][name], image)
  for out in (r[name] for r in results):
    assert out.shape == image.shape
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    assert out.min() >= 0
    assert out.max() <= 1


DETERMINED = {'sfc_halftone', 'autocontrast', 'invert', 'equalize', 'solarize', 'posterize'}
DETERMINED |= {'contrast', 'color', 'brightness', 'sharpness'}


@pytest.mark.parametrize('name', ALL)
def test_operator_is_a_function_of_its_key(runs, name):
  image, (_, first, again, other, third) = runs
  np.testing.assert_array_equal(first[name], again[name])
  if name in DETERMINED:
    np.testing.assert_array_equal(first[name], other[name])
  else:  # three draws of a sign, a profile or a direction may agree, but not all of them at two levels
    assert np.abs(first[name] - other[name]).max() > 1e-3 or np.abs(first[name] - third[name]).max() > 1e-3
  if name not in ('brightness', 'contrast', 'color', 'sharpness'):  # whose level .5 is the picture itself
    assert max(np.abs(r[name] - image).max() for r in (first, other, third)) > 1e-3


@pytest.mark.parametrize('name', operators.NAMES)
def test_jit_numpy_and_vmap_agree(name):
  images = np.stack([picture((30, 30, 3), s) for s in range(2)])
  keys, levels = jax.random.split(jax.random.key(3), 2), np.array([4 / 9, 1.0], np.float32)
  op = ALL[name].apply
  batch = jax.jit(jax.vmap(op))(keys, jnp.asarray(images), levels)
  for key, image, level, expected in zip(keys, images, levels, batch, strict=True):
    alone = op(key, image, level)
    assert isinstance(alone, np.ndarray)
    np.testing.assert_allclose(alone, expected, atol=2e-6)
  np.testing.assert_allclose(op(keys[1], jnp.asarray(images[1]), 1.0), batch[1], atol=2e-6)  # outside of jit


def test_uint8_in_is_uint8_out_and_a_seed_is_a_key():
  image = (picture((24, 24, 3)) * 255).astype(np.uint8)
  out = operators.moire(5, image, 1.0)
  assert out.dtype == np.uint8
  exact = operators.moire(jax.random.key(5), image.astype(np.float32) / 255, 1.0)
  np.testing.assert_array_equal(out, np.rint(exact * 255))
  np.testing.assert_array_equal(operators.moire(5, image, 0.0), image)


def test_wrong_type_of_image_is_named():
  with pytest.raises(ValueError, match='int32'):
    operators.moire(0, np.zeros((8, 8, 3), np.int32), 1.0)


def test_eight_operators_five_of_which_flip():
  assert list(operators.NAMES) == ['color_diversity', 'color_distortion', *MAGNITUDES]
  assert operators.FLIPS == (False, True, True, True, True, True, False, False)


@pytest.mark.parametrize('name', MAGNITUDES)
def test_magnitudes_are_the_spec_table(name):
  found = [operators.magnitude(name, k) for k in range(1, 10)]
  if name in ('hand_trembling', 'low_resolution'):
    assert found == MAGNITUDES[name]
    assert all(isinstance(m, int) for m in found)
  else:
    np.testing.assert_allclose(found, MAGNITUDES[name], atol=5.1e-4)


def test_traced_magnitudes_equal_the_table():
  levels = jnp.arange(10, dtype=jnp.int32)[1:].astype(jnp.float32) / 9
  np.testing.assert_array_equal(jax.jit(operators.kernel_length)(levels), MAGNITUDES['hand_trembling'])
  side = jax.jit(operators.intermediate_side, static_argnums=1)(levels, 256)
  np.testing.assert_array_equal(side, MAGNITUDES['low_resolution'])


@pytest.mark.parametrize('name', ['reflection', 'blue_noise', 'moire', 'sfc_halftone'])
def test_blends_change_the_image_in_proportion_to_their_amount(name):
  image, key, op = jnp.asarray(picture((36, 36, 3))), jax.random.key(1), jax.jit(ALL[name].apply)
  change = [float(jnp.abs(op(key, image, k / 9) - image).mean()) / operators.magnitude(name, k) for k in range(1, 10)]
  np.testing.assert_allclose(change, change[0], rtol=1e-3)
  assert change[0] > 0.05


def test_blend_is_pillows():
  rng = np.random.default_rng(0)
  a, b = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
  for amount in (0.01, 0.137, 0.4):
    expected = np.asarray(PIL.Image.blend(PIL.Image.fromarray(a), PIL.Image.fromarray(b), amount), np.float32)
    found = operators.blend(a / np.float32(255), b / np.float32(255), amount) * 255
    assert np.abs(found - expected).max() <= 1  # Pillow truncates


# Laser dots.


def double_loop(greys):
  """The definition, cell by cell."""
  order = [[3, 1, 5], [8, 9, 6], [4, 7, 2]]
  out = np.zeros((3 * greys.shape[0], 3 * greys.shape[1]), bool)
  for y in range(out.shape[0]):
    for x in range(out.shape[1]):
      out[y, x] = greys[y // 3, x // 3] >= order[y % 3][x % 3]
  return out


def test_sfc_dots_are_the_double_loop_bit_for_bit_and_lit_by_grey():
  greys = np.random.default_rng(0).integers(0, 10, (12, 15))
  dots = np.asarray(operators.sfc_dots(jnp.asarray(greys)))
  np.testing.assert_array_equal(dots, double_loop(greys))
  np.testing.assert_array_equal(dots.reshape(12, 3, 15, 3).sum((1, 3)), greys)


@pytest.mark.parametrize('shape', [(60, 60, 3), (64, 64, 3), (47, 65, 3)], ids=str)
def test_sfc_greys_are_the_formula(shape):
  image = picture(shape)
  grey = image @ np.array([0.299, 0.587, 0.114], np.float32)
  small = cv2.resize(grey, (shape[1] // 3, shape[0] // 3), interpolation=cv2.INTER_LINEAR)
  exact = 9 * (small - small.min()) / (small.max() - small.min())
  found = np.asarray(operators.sfc_greys(jnp.asarray(image)))
  away = np.abs(exact - np.rint(exact)) > 1e-3  # elsewhere the two roundings may differ
  np.testing.assert_array_equal(found[away], np.floor(exact)[away])
  assert found.min() == 0
  assert found.max() == 9


def test_sfc_of_one_grey_is_level_four():
  assert (np.asarray(operators.sfc_greys(jnp.full((9, 9, 3), 0.3))) == 4).all()


def test_sfc_stretches_its_dots_as_pillow_does():
  image = picture((64, 64, 3))
  dots = np.asarray(operators.sfc_dots(operators.sfc_greys(jnp.asarray(image))))
  stretched = PIL.Image.fromarray(np.uint8(dots) * 255).resize((64, 64), PIL.Image.Resampling.BICUBIC)
  amount = operators.magnitude('sfc_halftone', 9)
  found = (operators.sfc_halftone(0, image, 1.0) - (1 - amount) * image) / amount * 255
  np.testing.assert_allclose(found[..., 0], np.asarray(stretched, np.float32), atol=1)


def test_parity_mode_swaps_the_weights_of_grey():
  red = np.zeros((9, 9, 3), np.float32)
  red[:, :4, 0], red[:, 4:, 2] = 1, 1  # red beside blue: which is the lighter depends on the weights
  usual = operators.sfc_halftone(0, red, 1.0)
  swapped = operators.sfc_halftone(0, red, 1.0, Assets(parity=True))
  assert usual[:, :3].mean() > red[:, :3].mean() - 0.01
  assert swapped[:, :3].mean() < usual[:, :3].mean() - 0.05


# Hand trembling.


def release_kernel(length, direction):
  """The line kernels of the release, for cv2.filter2D."""
  kernel = np.zeros((length, length), np.float32)
  middle = int((length - 1) / 2)
  diagonal = np.arange(length)
  if direction == 'H':
    kernel[middle] = 1
  elif direction == 'V':
    kernel[:, middle] = 1
  elif direction == 'D':
    kernel[diagonal, diagonal] = 1
  else:
    kernel[diagonal, length - 1 - diagonal] = 1
  return kernel / length


@pytest.mark.parametrize('direction', operators.DIRECTIONS)
def test_line_blur_is_filter2d(direction):
  image = picture((40, 33, 3))
  blur = jax.jit(operators.line_blur)
  for length in LENGTHS:
    expected = cv2.filter2D((image * 255).astype(np.uint8), -1, release_kernel(length, direction))
    found = blur(image, length, operators.DIRECTIONS.index(direction)) * 255
    assert np.abs(found - expected).max() <= 0.51, length


def laplacian_energy(image):
  return float(np.mean(np.square(cv2.Laplacian(np.asarray(image), cv2.CV_32F))))


def test_stronger_blur_and_lower_resolution_leave_less_detail():
  noise = np.random.default_rng(0).random((60, 60, 3), np.float32)
  lengths = [laplacian_energy(operators.line_blur(jnp.asarray(noise), n, 0)) for n in LENGTHS]
  assert all(a > b for a, b in itertools.pairwise(lengths))
  sides = [60, 50, 40, 30, 20, 15]
  shrink = jax.jit(lambda side: operators.shrink_and_enlarge(jnp.asarray(noise), (side, side), 0, True))
  energies = [laplacian_energy(shrink(side)) for side in sides]
  assert all(a > b for a, b in itertools.pairwise(energies))


@pytest.mark.parametrize('name', ['hand_trembling', 'low_resolution'])
def test_blurs_keep_a_constant_image(name):
  image = np.full((33, 40, 3), 0.37, np.float32)
  for seed in range(4):
    np.testing.assert_allclose(ALL[name].apply(seed, image, 1.0), image, atol=1e-6)


# Low resolution.

CV2 = {
  'area': cv2.INTER_AREA,
  'linear': cv2.INTER_LINEAR,
  'cubic': cv2.INTER_CUBIC,
  'nearest': cv2.INTER_NEAREST,
}


def edge_on_edge(size, middle, name, smooth):
  """Rows of the result that a 'nearest' step takes from a place between two rows."""
  shrunk_from_edge = (np.arange(middle) * size % middle == 0) & (np.arange(middle) > 0) & (name == 'nearest')
  row = np.arange(size)
  if smooth:
    place = np.clip((row + 0.5) * middle / size - 0.5, 0, middle - 1)
    return shrunk_from_edge[np.floor(place).astype(int)] | shrunk_from_edge[np.ceil(place).astype(int)]
  return shrunk_from_edge[row * middle // size] | ((row * middle % size == 0) & (row > 0))


@pytest.mark.parametrize('smooth', [False, True])
@pytest.mark.parametrize('name', resample.FILTERS)
def test_low_resolution_is_cv2_resize(name, smooth):
  image = picture((64, 50, 3))
  ours = jax.jit(operators.shrink_and_enlarge)
  for level in (1, 4, 5, 9):
    down, across = (operators.magnitude('low_resolution', level, n) for n in (64, 50))
    small = cv2.resize(image, (across, down), interpolation=CV2[name])
    expected = cv2.resize(small, (50, 64), interpolation=cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST)
    found = np.asarray(ours(image, (down, across), resample.FILTERS.index(name), smooth))
    wrong = np.abs(found - expected).max(-1) > 1e-4
    # Where pixels meet edge on edge, OpenCV's double takes either neighbour; we reckon 'nearest' in whole numbers.
    wrong[edge_on_edge(64, down, name, smooth)] = False
    wrong[:, edge_on_edge(50, across, name, smooth)] = False
    assert not wrong.any(), (level, wrong.sum())


# The traditional bag, against Pillow.


def pillow(name, image, value):
  from PIL import ImageEnhance, ImageOps

  w, h = image.size
  by_name = {
    'shear_x': lambda: image.transform(image.size, PIL.Image.Transform.AFFINE, (1, value, 0, 0, 1, 0)),
    'shear_y': lambda: image.transform(image.size, PIL.Image.Transform.AFFINE, (1, 0, 0, value, 1, 0)),
    'translate_x': lambda: image.transform(image.size, PIL.Image.Transform.AFFINE, (1, 0, value * w, 0, 1, 0)),
    'translate_y': lambda: image.transform(image.size, PIL.Image.Transform.AFFINE, (1, 0, 0, 0, 1, value * h)),
    'rotate': lambda: image.rotate(value),
    'autocontrast': lambda: ImageOps.autocontrast(image),
    'invert': lambda: ImageOps.invert(image),
    'equalize': lambda: ImageOps.equalize(image),
    'solarize': lambda: ImageOps.solarize(image, value),
    'posterize': lambda: ImageOps.posterize(image, int(value)),
    'contrast': lambda: ImageEnhance.Contrast(image).enhance(value),
    'color': lambda: ImageEnhance.Color(image).enhance(value),
    'brightness': lambda: ImageEnhance.Brightness(image).enhance(value),
    'sharpness': lambda: ImageEnhance.Sharpness(image).enhance(value),
  }
  return np.asarray(by_name[name](), np.float32)


@pytest.mark.parametrize('name', [n for n in traditional.NAMES if n != 'cutout'])
def test_traditional_operator_is_pillows(name):
  image = np.uint8(picture((48, 42, 3)) * 200 + 20)
  for k in (2, 7):
    value = traditional.magnitude(name, k / 9) if name in traditional.RANGES else 0
    found = traditional.OPERATORS[name].apply(k, image, k / 9).astype(np.float32)
    signs = (1, -1) if name in ('shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate') else (1,)
    wrong = [np.mean(np.abs(found - pillow(name, PIL.Image.fromarray(image), s * value)).max(-1) > 1.5) for s in signs]
    assert min(wrong) < 0.01, wrong  # a pixel on the border between two nearest neighbours may fall to either


def test_cutout_is_a_grey_square_of_the_stated_side():
  image = np.zeros((50, 50, 3), np.float32)
  out = np.stack([traditional.OPERATORS['cutout'].apply(seed, image, 1.0) for seed in range(12)])
  cut = out[..., 0] > 0
  np.testing.assert_allclose(out[cut], np.broadcast_to(traditional.CUTOUT_COLOUR, (cut.sum(), 3)))
  assert cut.sum((1, 2)).max() == 11 * 11  # side .2 x 50, both ends included as Pillow draws rectangles
  assert len({tuple(np.argwhere(c).mean(0)) for c in cut}) > 6


def test_no_traditional_operator_flips():
  assert len(traditional.NAMES) == 15
  assert not any(entry.flips for entry in traditional.OPERATORS.values())


def test_textures_are_not_all_alike():
  """Guards the fixtures above: a texture of one colour would pass most of them."""
  for draw in (textures.reflection, textures.blue_noise, textures.moire):
    assert float(draw(jax.random.key(0), 32, 32).std()) > 0.05
