"""Colour against LittleCMS (through Pillow), the ink table, and a power function against the library's.

Pillow can build sRGB alone; the full comparison runs where $VERAX_ICC_RGB and $VERAX_ICC_CMYK name folders with the
profiles of the FAS-Aug release (they may not be redistributed).
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from PIL import ImageCms

from core.errors import UserError
from fas.fas_aug import assets, color, operators


@pytest.fixture(scope='module')
def pixels():
  """uint8 [48, 48, 3]: a ramp, the corners of the cube, and random colours."""
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)
  image[0] = np.linspace(0, 255, 48, dtype=np.uint8)[:, None]
  image[1, :8] = 255 * np.array(list(np.ndindex(2, 2, 2)))
  return image


def directory(variable):
  path = os.environ.get(variable, '')
  if not path:
    pytest.skip(f'${variable} names no folder of ICC profiles')
  return path


def test_power_is_pow():
  x = jnp.linspace(0, 1, 4001)
  for exponent in (0.4167, 0.4547, 1.7969, 2.1992, 2.4):
    np.testing.assert_allclose(jax.jit(color.power)(x, exponent)[1:], np.asarray(x, float)[1:] ** exponent, rtol=3e-6)
    assert color.power(x, exponent)[0] < 1e-12


@pytest.mark.parametrize('profile', range(11))
def test_encode_undoes_decode(profile):
  x = jnp.linspace(0, 1, 256)
  linear = color.decode(x, profile)
  assert jnp.all(jnp.diff(linear) > 0)
  np.testing.assert_allclose(color.encode(linear, profile), x, atol=1e-5)
  np.testing.assert_allclose(color.encode(jnp.array([-0.5, 2.0]), profile), [0, 1], atol=1e-5)


@pytest.mark.parametrize('profile', range(11))
def test_same_profile_twice_changes_nearly_nothing_and_white_stays_white(pixels, profile):
  image = jnp.asarray(pixels, jnp.float32) / 255
  assert np.abs(color.convert(image, profile, profile) - image).max() < 1e-3
  other = (profile + 3) % 11
  np.testing.assert_allclose(color.convert(jnp.ones((2, 2, 3)), profile, other), 1, atol=2e-3)


def test_srgb_to_srgb_is_littlecms(pixels):
  srgb = ImageCms.createProfile('sRGB')
  expected = np.asarray(ImageCms.profileToProfile(PIL.Image.fromarray(pixels), srgb, srgb), np.float32)
  at = color.PROFILES.index('srgb')
  assert np.abs(color.convert(jnp.asarray(pixels, jnp.float32) / 255, at, at) * 255 - expected).max() <= 1.5


def test_srgb_to_xyz_is_littlecms(pixels):
  """The matrix and the curve of sRGB against the profile that Pillow builds, through its own conversion to Lab."""
  lab = ImageCms.buildTransform(ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), 'RGB', 'LAB')
  found = np.asarray(ImageCms.applyTransform(PIL.Image.fromarray(pixels), lab)).astype(float)
  lightness = found[..., 0] / 2.55
  at = color.PROFILES.index('srgb')
  linear = np.asarray(color.decode(jnp.asarray(pixels, jnp.float32) / 255, at))
  y = linear @ color.TO_XYZ[at][1]
  expected = np.where(y > (6 / 29) ** 3, 116 * np.cbrt(y) - 16, 903.3 * y)
  assert np.abs(lightness - expected).max() < 0.6
  assert np.abs(lightness - expected).mean() < 0.2


def test_all_pairs_are_littlecms_with_the_releases_profiles(pixels):
  profiles = color.profiles_in(directory('VERAX_ICC_RGB'), 'RGB', color.RGB_FILES)
  ordered = [profiles[name] for name in color.RGB_FILES]
  convert = jax.jit(color.convert)
  errors = []
  for a, source in enumerate(ordered):
    for b, target in enumerate(ordered):
      expected = ImageCms.profileToProfile(PIL.Image.fromarray(pixels), source, target)
      errors.append(np.abs(convert(jnp.asarray(pixels, jnp.float32) / 255, a, b) * 255 - np.asarray(expected, float)))
  errors = np.array(errors)
  assert errors.mean((1, 2, 3)).max() <= 0.3
  assert np.percentile(errors, 99.9) <= 1
  assert errors.max() <= 3  # on the border of the gamut, where LittleCMS's own fixed-point matrix leaves 0 or 2 for 1


# Inks.

CORNERS = {  # spec 3.1: K B G C R M Y
  'euroscale_coated': [
    (47, 43, 34),
    (46, 29, 134),
    (0, 152, 54),
    (0, 166, 235),
    (230, 0, 4),
    (229, 0, 131),
    (255, 237, 0),
  ],
  'us_web_coated': [
    (54, 54, 57),
    (46, 48, 146),
    (0, 166, 80),
    (0, 174, 239),
    (237, 28, 36),
    (236, 0, 140),
    (255, 242, 0),
  ],
  'us_sheetfed_coated': [
    (54, 31, 37),
    (52, 28, 121),
    (0, 151, 64),
    (0, 163, 230),
    (222, 37, 22),
    (227, 33, 126),
    (255, 237, 0),
  ],
}
INTENDED = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0)]


@pytest.mark.parametrize('ink', CORNERS)
def test_full_inks_print_their_corner_colours(ink):
  image = jnp.array([*INTENDED, (1, 1, 1)], jnp.float32)[None]
  out = color.printed(image, color.INKS.index(ink), color.PROFILES.index('srgb')) * 255
  np.testing.assert_allclose(out[0], [*CORNERS[ink], (255, 255, 255)], atol=1)


def test_dot_gain_darkens_the_middle_tones():
  grey = jnp.full((1, 1, 3), 0.5)
  at = color.PROFILES.index('srgb')
  coated, uncoated = (color.INKS.index(f'euroscale_{kind}') for kind in ('coated', 'uncoated'))
  weak = float(color.printed(grey, coated, at).mean())
  gain = color._INK.gain.copy()
  color._INK.gain[coated] = gain[uncoated]
  try:
    strong = float(color.printed(grey, coated, at).mean())
  finally:
    color._INK.gain[:] = gain
  assert strong < weak - 0.01


def test_uncoated_us_ink_counts_twice():
  drawn = np.asarray(jax.vmap(color.draw_ink)(jnp.linspace(0, 1, 7001)[:-1]))
  counts = np.bincount(drawn, minlength=6) / 1000
  np.testing.assert_allclose(counts, [1, 1, 1, 1, 2, 1], atol=0.01)
  assert color.INKS[4] == 'us_uncoated'


# Baked tables.


def test_baked_table_of_srgb_to_srgb_is_the_identity(pixels):
  srgb = ImageCms.createProfile('sRGB')
  table = color.bake(srgb, srgb, 'RGB')
  assert table.shape == (17, 17, 17, 3)
  image = jnp.asarray(pixels, jnp.float32) / 255
  assert np.abs(color.look_up(image, jnp.asarray(table)) - image).max() * 255 <= 1


def test_look_up_is_trilinear():
  rng = np.random.default_rng(0)
  image = rng.random((20, 20, 3)).astype(np.float32)
  nodes = np.linspace(0, 1, 17)
  r, g, b = np.meshgrid(nodes, nodes, nodes, indexing='ij')
  table = np.stack([r * g * b, r + g * b, 1 - b * r], -1)  # trilinear functions are met exactly
  r, g, b = np.moveaxis(image, 2, 0)
  found = color.look_up(jnp.asarray(image), jnp.asarray(table * 255, jnp.float32))
  np.testing.assert_allclose(found, np.stack([r * g * b, r + g * b, 1 - b * r], -1), atol=1e-5)


def test_operator_uses_the_baked_tables():
  tables = np.stack([np.full((17, 17, 17, 3), value, np.uint8) for value in (51, 102)]).reshape(1, 2, 17, 17, 17, 3)
  baked = assets.Assets(icc=tables)
  outs = {operators.color_distortion(s, np.zeros((4, 4, 3), np.uint8), 1.0, baked).max() for s in range(12)}
  assert outs == {51, 102}


def test_exact_inks_are_littlecms_with_the_releases_profiles(pixels):
  cmyk, rgb = directory('VERAX_ICC_CMYK'), directory('VERAX_ICC_RGB')
  tables = color.bake_icc(cmyk, rgb)
  inks = list(color.profiles_in(cmyk, 'CMYK', color.CMYK_FILES).values())
  spaces = list(color.profiles_in(rgb, 'RGB', color.RGB_FILES).values())
  assert tables.shape == (len(inks), len(spaces), 17, 17, 17, 3)
  look_up = jax.jit(color.look_up)
  errors = []
  for i, ink in enumerate(inks):
    for s, space in enumerate(spaces):
      transform = ImageCms.buildTransformFromOpenProfiles(ink, space, 'CMYK', 'RGB')
      expected = np.asarray(ImageCms.applyTransform(PIL.Image.fromarray(pixels).convert('CMYK'), transform), float)
      errors.append(np.abs(look_up(jnp.asarray(pixels, jnp.float32) / 255, tables[i, s]) * 255 - expected))
  errors = np.array(errors)
  assert errors.mean() <= 0.4
  assert np.percentile(errors, 99) <= 2


def test_profile_folders_are_checked(tmp_path):
  with pytest.raises(UserError, match='No ICC profiles'):
    color.profiles_in(tmp_path, 'CMYK')
  (tmp_path / 'x.icc').write_bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes())
  assert list(color.profiles_in(tmp_path, 'RGB')) == ['x']
  with pytest.raises(UserError, match='expected CMYK'):
    color.bake_icc(tmp_path, tmp_path)
