"""Purification: each operator does what its name says, and a sweep is read from strings."""

import io

import jax
import numpy as np
import pytest
from PIL import Image
from small_diffusion import MODEL, PROMPT, params, pictures, tokenizer

from core.data import clip_tokens
from core.data.image import from_levels, to_levels
from core.errors import UserError
from generative.ddap import purification
from generative.ddap.purification import Diffusion, parse

PHOTOS = pictures(2, 16, 24)
IDS = clip_tokens.prompts(tokenizer(), [PROMPT], MODEL.text.max_positions)
KEYS = jax.random.split(jax.random.key(5), 2)
THIEF = Diffusion(MODEL, params(), IDS, KEYS)


def noisy(photos, level=10, seed=1):
  """The photos with sign noise of `level` levels."""
  sign = np.random.default_rng(seed).choice([-level, level], photos.shape)
  return np.clip(photos.astype(int) + sign, 0, 255).astype(np.uint8)


def distance(a, b):
  """Root mean square, in levels."""
  return np.sqrt(np.square(a.astype(float) - b).mean())


@pytest.mark.parametrize('entry', [*purification.SWEEP, 'resize:0.05'])
def test_every_operator_gives_8_bit_photos_of_the_same_shape_each_by_itself(entry):
  operator = parse(entry)
  found = operator(PHOTOS, THIEF)
  assert found.shape == PHOTOS.shape and found.dtype == np.uint8 and (found != PHOTOS).any()
  beside_another = operator(np.stack([255 - PHOTOS[0], PHOTOS[1]]), THIEF)
  np.testing.assert_array_equal(beside_another[1], found[1])
  assert (beside_another[0] != found[0]).any()


@pytest.mark.parametrize('entry', ['jpeg:40', 'blur:1', 'resize:0.5', 'bilateral:30'])
def test_filters_take_most_of_the_noise_out_of_a_smooth_photo(entry):
  smooth = parse('blur:3')(pictures(2, 32, 32))
  before = distance(noisy(smooth), smooth)
  assert distance(parse(entry)(noisy(smooth)), smooth) < 0.7 * before


@pytest.mark.parametrize('milder, stronger', [
  ('jpeg:90', 'jpeg:20'), ('blur:0.7', 'blur:2'), ('resize:0.8', 'resize:0.2'), ('bilateral:10', 'bilateral:100'),
])  # fmt: skip
def test_a_stronger_setting_changes_more(milder, stronger):
  assert 0 < distance(parse(milder)(PHOTOS), PHOTOS) < distance(parse(stronger)(PHOTOS), PHOTOS)


def test_jpeg_is_the_file_that_pillow_writes_by_default():
  buffer = io.BytesIO()
  Image.fromarray(PHOTOS[0]).save(buffer, format='JPEG')
  np.testing.assert_array_equal(parse('jpeg:75')(PHOTOS)[0], np.asarray(Image.open(buffer)))


def test_blur_has_the_deviation_that_it_names():
  edge = np.zeros((1, 64, 64, 3), np.uint8)
  edge[:, :, 32:] = 255
  profile = np.diff(purification.blur(edge, 3.0)[0, 32, :, 0].astype(float))
  places = np.arange(63)
  mean = (profile * places).sum() / profile.sum()
  assert np.sqrt((profile * (places - mean) ** 2).sum() / profile.sum()) == pytest.approx(3, abs=0.1)


def test_the_bilateral_filter_keeps_an_edge_that_blur_does_not():
  edge = np.full((1, 32, 32, 3), 60, np.uint8)
  edge[:, :, 16:] = 190
  assert np.abs(parse('bilateral:20')(edge).astype(int) - edge).max() <= 1
  assert np.abs(parse('blur:2')(edge).astype(int) - edge).max() > 20


def test_resize_to_the_whole_size_changes_nothing():
  np.testing.assert_array_equal(parse('resize:1')(PHOTOS), PHOTOS)


def test_the_round_trip_of_the_autoencoder_is_the_decoded_mean():
  expected = jax.jit(lambda x: to_levels(MODEL.decode(params(), MODEL.latents(params(), x))))(from_levels(PHOTOS))
  assert np.abs(parse('autoencoder')(PHOTOS, THIEF).astype(int) - np.asarray(expected)).max() <= 1


def test_regeneration_goes_further_with_strength_and_is_fixed_by_its_keys():
  """From the round trip of the autoencoder, which every strength has."""
  base = parse('autoencoder')(PHOTOS, THIEF)
  mild, strong = (parse(f'diffusion:{each}')(PHOTOS, THIEF) for each in ('0.1', '0.3'))
  assert 0 < distance(mild, base) < distance(strong, base)
  np.testing.assert_array_equal(parse('diffusion:0.1')(PHOTOS, THIEF), mild)
  other = parse('diffusion:0.1')(PHOTOS, THIEF._replace(keys=KEYS[::-1]))
  assert (other != mild).any()


def test_a_sweep_keeps_its_order_and_knows_what_needs_a_model():
  found = purification.sweep(('blur:1', 'autoencoder', 'jpeg:75'))
  assert list(found) == ['blur:1', 'autoencoder', 'jpeg:75']
  assert [each.needs_model for each in found.values()] == [False, True, False]
  assert len(purification.sweep()) == len(purification.SWEEP)
  assert {each.name for each in purification.sweep().values()} == set(purification.OPERATORS)


def test_a_bare_name_has_its_usual_setting():
  assert parse('jpeg') == parse('jpeg:75') and parse('blur') == parse('blur:1')
  assert parse('bilateral').value == 30 and parse('diffusion').value == 0.3 and parse('autoencoder').value is None
  for kind in purification.OPERATORS.values():
    assert kind.usual is None if not kind.what else kind.low <= kind.usual <= kind.high


@pytest.mark.parametrize('entry, error', [
  ('jpg:75', "Did you mean 'jpeg'"), ('jpeg:', "expected 'jpeg:VALUE', quality from 1 to 100"),
  ('jpeg:0', 'quality from 1 to 100'), ('jpeg:best', 'quality from 1 to 100'), ('blur:nan', 'from 0.1 to 50'),
  ('autoencoder:2', "write 'autoencoder'"), ('diffusion:1.5', 'strength from 0.02 to 1'),
])  # fmt: skip
def test_entries_that_mean_nothing_are_refused(entry, error):
  with pytest.raises(UserError, match=error):
    parse(entry)


def test_operators_refuse_photos_that_are_not_8_bit_and_a_model_that_is_not_there():
  with pytest.raises(ValueError, match='Expected uint8 photos'):
    parse('blur:1')(PHOTOS.astype(np.float32))
  with pytest.raises(ValueError, match='Expected uint8 photos'):
    parse('blur:1')(PHOTOS[0])
  with pytest.raises(UserError, match="'autoencoder' passes photos through a model"):
    parse('autoencoder')(PHOTOS)
