"""Blue noise is blue and even, moire has its pitch, reflections are as bright as photographs; folders are read."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from core.errors import UserError
from fas.fas_aug import assets, operators, textures


def radial_power(tile):
  """Power relative to white noise of the same variance, and the radius (of N/2) of each frequency."""
  x = tile.astype(float)
  power = np.abs(np.fft.fft2(x - x.mean())) ** 2 / (x.size * x.var())
  f = np.fft.fftfreq(len(x))
  return power, np.hypot(f[:, None], f) * len(x)


# Blue noise.


def test_tiles_have_an_exactly_uniform_histogram():
  tiles = textures.blue_noise_tiles()
  assert tiles.shape == (16, 64, 64)
  for tile in tiles:
    np.testing.assert_array_equal(np.bincount(tile.ravel(), minlength=256), 16)


def test_tiles_have_a_blue_spectrum():
  for tile in textures.blue_noise_tiles():
    power, radius = radial_power(tile)
    n = len(tile)
    assert power[(radius > 0) & (radius < n / 4)].mean() < 0.05
    assert power[(radius > 0) & (radius < n / 8)].mean() < 0.01
    assert 0.1 < power[np.abs(radius - n / 4) < 1].mean() < 0.3  # .17 to .19 in the spec's tiles, at half of Nyquist
    assert 1.2 < power[(radius > 0.37 * n) & (radius < 0.47 * n)].mean() < 1.8  # 1.3 to 1.6


def test_tiles_differ():
  tiles = textures.blue_noise_tiles().reshape(16, -1).astype(float)
  assert np.abs(np.corrcoef(tiles) - np.eye(16)).max() < 0.1


def test_blue_noise_has_independent_or_grey_channels_and_repeats_its_tile():
  draw = jax.jit(jax.vmap(lambda k: textures.blue_noise(k, 100, 80)))
  drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 300)))
  grey = (drawn == drawn[..., :1]).all((1, 2, 3))
  assert 0.25 < grey.mean() < 0.42
  np.testing.assert_array_equal(drawn[:, 64:], drawn[:, :36])
  np.testing.assert_array_equal(drawn[:, :, 64:], drawn[:, :, :16])
  correlation = [abs(np.corrcoef(d[:64, :64].reshape(-1, 3).T)[0, 1]) for d in drawn[~grey]]
  assert np.mean(np.array(correlation) < 0.1) > 0.95
  assert len({d.tobytes() for d in drawn}) > 295


def test_parity_mode_does_not_roll():
  drawn = [np.asarray(textures.blue_noise(jax.random.key(s), 64, 64, roll=False))[..., 0] for s in range(5)]
  tiles = textures.blue_noise_tiles().astype(np.float32) / 255
  assert all(any(np.allclose(d, t) for t in tiles) for d in drawn)


# Moire.

SIDE = 256
NAMES = list(textures.LATTICES)


@pytest.fixture(scope='module')
def lattice():
  return jax.jit(lambda seed, family: textures.moire(jax.random.key(seed), SIDE, SIDE, antialias=False, family=family))


@pytest.mark.parametrize('name', NAMES)
def test_moire_peaks_at_its_pitch(lattice, name):
  """Point samples; a finer pitch than two pixels is seen under its alias."""
  family = textures.LATTICES[name]
  texture = np.asarray(lattice(3, NAMES.index(name)))
  assert set(np.unique(texture.round(5))) <= {0.0, 1.0}
  spectrum = np.abs(np.fft.fft2(texture[..., 1] - texture[..., 1].mean()))
  down, across = (np.abs(np.fft.fftfreq(SIDE)[i]) for i in np.unravel_index(spectrum.argmax(), spectrum.shape))
  along, other = (down, across) if family.turned else (across, down)
  # In cycles per pixel of the picture, which spans three texture pixels.
  low, high = sorted(3 / np.array(family.pitch))
  alias = [abs(f - round(f)) for f in np.linspace(0.9 * low, 1.1 * high, 200)]
  assert min(alias) - 0.01 <= along <= max(alias) + 0.01
  assert other <= 0.06 * max(1, 3 * high)  # within three degrees of the axis


@pytest.mark.parametrize('name', ['RGB', 'RGB2', 'RGBG', 'RGBWS'])
def test_moire_has_its_exact_pitch_on_the_texture_itself(name):
  """At three times the size and a third of the step there is no alias: the peak is the pitch to 10%."""
  low, high = textures.LATTICES[name].pitch
  texture = np.asarray(textures.moire(jax.random.key(0), 600, 600, antialias=False, family=NAMES.index(name)))[..., 1]
  middle = texture[200:400, 200:400]
  spectrum = np.abs(np.fft.fft(middle - middle.mean(1, keepdims=True), n=4096, axis=1)).mean(0)[:2048]
  period = 3 * 4096 / spectrum.argmax()  # texture px
  assert 0.9 * low <= period <= 1.1 * high


def test_colours_follow_the_order_of_the_stripes():
  for name, order in (('RGB', (0, 1, 2)), ('BGR', (2, 1, 0))):
    row = np.asarray(textures.moire(jax.random.key(1), 64, 64, antialias=True, family=NAMES.index(name)))[32]
    phase = np.unwrap(
      np.angle(np.fft.fft(row - row.mean(0), axis=0)[np.abs(np.fft.fft(row[:, 0] - row[:, 0].mean()))[:32].argmax()])
    )
    step = (phase[order[1]] - phase[order[0]] + np.pi) % (2 * np.pi) - np.pi
    np.testing.assert_allclose(step, -2 * np.pi / 3, atol=0.35)


def test_gaps_darken_and_white_sub_pixels_lighten():
  mean = {
    n: float(textures.moire(jax.random.key(0), 96, 96, antialias=False, family=NAMES.index(n)).mean()) for n in NAMES
  }
  # The release's textures: .39 .45 .56 for stripes of three pitches, .30 with gaps, .55 and .43 with white sub-pixels.
  for name, level in {'RGB': 0.39, 'RGB2': 0.45, 'RGB3': 0.56, 'BGRwB': 0.30, 'RGBW': 0.55, 'RGBWwB': 0.43}.items():
    assert abs(mean[name] - level) < 0.05, (name, mean[name])
  assert mean['RGBWSwB'] < mean['RGBWS'] - 0.05


def test_antialiasing_takes_contrast_from_fine_lattices_and_point_samples_keep_it():
  def contrast(name, antialias):
    drawn = [textures.moire(jax.random.key(s), 96, 96, antialias=antialias, family=NAMES.index(name)) for s in range(2)]
    return 255 * float(np.mean([d.std() for d in drawn]))

  smooth = [contrast(name, True) for name in ('RGB', 'RGB2', 'RGB3')]
  sharp = [contrast(name, False) for name in ('RGB', 'RGB2', 'RGB3')]
  assert smooth[0] > 95 > smooth[1] > 60 > smooth[2]  # the release's, by Pillow's bicubic: 100, 68, 24
  assert min(sharp) > 110


def test_default_mixes_both_resamplings():
  draw = jax.jit(jax.vmap(lambda k: textures.moire(k, 32, 32)))
  drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 200))).round(5)
  binary = np.isin(drawn, [0.0, 1.0]).all((1, 2, 3))
  assert 0.4 < binary.mean() < 0.6


# Reflections.


def test_reflections_are_as_bright_as_photographs_and_rough_like_them():
  draw = jax.jit(jax.vmap(lambda k: textures.reflection(k, 48, 64)))
  drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 200)))
  assert drawn.shape == (200, 48, 64, 3)
  assert drawn.min() >= 0
  assert drawn.max() <= 1
  luminance = 255 * (drawn @ textures.LUMA).mean((1, 2))
  assert 120 < luminance.mean() < 150
  assert np.percentile(luminance, 2) > 60
  assert np.percentile(luminance, 98) < 210
  assert luminance.std() > 25
  assert (drawn @ textures.LUMA).std((1, 2)).min() > 0.03
  spectrum = np.mean([np.abs(np.fft.fft(d[..., 1] - d[..., 1].mean(), axis=1)).mean(0) for d in drawn], 0)
  assert spectrum[1] > 3 * spectrum[4] > 6 * spectrum[16]  # coarse dominates fine


# A user's folders.


@pytest.fixture
def folder(tmp_path):
  """Writes pictures {file name: uint8 array} into a folder of their own."""

  def write(name, **pictures):
    root = tmp_path / name
    root.mkdir()
    for stem, pixels in pictures.items():
      PIL.Image.fromarray(pixels).save(root / f'{stem}.png')
    return str(root)

  return write


def plain(height, width, value):
  return np.full((height, width, 3), value, np.uint8)


def test_users_reflections_are_windows_of_twice_the_side(folder):
  wide = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 30, 0).repeat(3, 2)  # 30 x 200, value = column
  loaded = assets.load_assets(reflection_dir=folder('photos', wide=wide))
  draw = jax.jit(jax.vmap(lambda k: textures.reflection_from(k, 20, 40, loaded.reflections, loaded.reflection_shapes)))
  drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 50))) * 255
  extent = drawn[:, 0, -1, 0] - drawn[:, 0, 0, 0]
  np.testing.assert_allclose(extent, 78, atol=0.5)  # 80 of the 200 columns in 40 pixels
  assert drawn[:, 0, 0, 0].std() > 20
  assert drawn.min() >= 0
  assert drawn.max() <= 199


def test_users_folders_replace_the_procedural_textures(folder):
  loaded = assets.load_assets(
    reflection_dir=folder('photos', a=plain(50, 70, 10)),
    blue_noise_dir=folder('noise', a=plain(16, 16, 20), b=plain(16, 16, 20)),
    moire_dir=folder('moire', a=plain(150, 160, 30)),
  )
  image = np.zeros((40, 40, 3), np.float32)
  for name, value in (('reflection', 10), ('blue_noise', 20), ('moire', 30)):
    out = operators.OPERATORS[name].apply(0, image, 1.0, loaded)
    np.testing.assert_allclose(out, operators.magnitude(name, 9) * value / 255, atol=1e-6)


def test_assets_stay_under_their_budget(folder):
  noise = np.random.default_rng(0).integers(0, 256, (1200, 1100, 3), dtype=np.uint8)
  root = folder('photos', **{f'p{i}': noise for i in range(3)})
  original, assets.BUDGET = assets.BUDGET, 3_000_000
  try:
    loaded = assets.load_assets(reflection_dir=root, moire_dir=root)
  finally:
    assets.BUDGET = original
  assert loaded.reflections.nbytes <= 3_000_000
  assert loaded.moire.nbytes <= 3_000_000
  h, w, scale = loaded.reflection_shapes[0]
  np.testing.assert_allclose([h / scale, w / scale], [1200, 1100], rtol=0.01)


def test_bad_folders_are_named(folder, tmp_path):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'broken').mkdir()
  (tmp_path / 'broken' / 'x.png').write_bytes(b'no picture')
  with pytest.raises(UserError, match='empty'):
    assets.load_assets(reflection_dir=str(tmp_path / 'empty'))
  with pytest.raises(UserError, match=r'x\.png'):
    assets.load_assets(moire_dir=str(tmp_path / 'broken'))
  with pytest.raises(UserError, match='blue noise any more'):
    assets.load_assets(blue_noise_dir=folder('tiles', a=plain(16, 16, 0), b=plain(32, 32, 0)))
  with pytest.raises(UserError, match='rgb_dir'):
    assets.load_assets(cmyk_dir=str(tmp_path))


def test_moire_window_of_a_small_texture_is_continued_by_reflection():
  texture = np.arange(8, dtype=np.uint8)[None, None, :, None].repeat(8, 1).repeat(3, 3)
  row = np.asarray(textures.moire_from(jax.random.key(0), 4, 20, jnp.asarray(texture)))[0, :, 0] * 255
  np.testing.assert_allclose(row, [*range(8), *range(7, -1, -1), 0, 1, 2, 3], atol=1e-4)
