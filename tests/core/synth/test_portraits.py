"""The portrait world: what stays with a person, what does not, and the records that are made of it."""

import dataclasses

import numpy as np
import pytest

from core.data import identities, records
from core.data import image as images
from core.errors import UserError
from core.synth import portraits
from core.synth.portraits import sheet

SMALL = portraits.Config(identities=2, photos=3, test=2, sets={'A': 1, 'B': 2, 'C': 3})


def person(seed=0, **changes):
  return dataclasses.replace(portraits.sample_identity(np.random.default_rng(seed)), **changes)


def photo(seed=0, **changes):
  return dataclasses.replace(portraits.sample_photo(np.random.default_rng(seed)), **changes)


def test_parameters_fill_the_ranges_of_the_spec():
  rng = np.random.default_rng(0)
  people = [portraits.sample_identity(rng) for _ in range(400)]
  taken = [portraits.sample_photo(rng) for _ in range(400)]
  found = {
    'skin': np.concatenate([each.skin for each in people]),
    'aspect': [each.aspect for each in people],
    'frequency': [each.stripe_frequency for each in people],
    'angle': [each.stripe_angle for each in people],
    'amplitude': [each.stripe_amplitude for each in people],
    'centre': np.concatenate([each.centre for each in taken]),
    'radius': [each.radius for each in taken],
    'brightness': [each.brightness for each in taken],
  }
  ranges = {
    'skin': (-0.2, 0.9), 'aspect': (0.8, 1.25), 'frequency': (0.22, 0.42), 'angle': (0, np.pi),
    'amplitude': (0.15, 0.35), 'centre': (13, 19), 'radius': (0.27, 0.34), 'brightness': (0.85, 1.1),
  }  # fmt: skip
  for name, (low, high) in ranges.items():
    room = 0.05 * (high - low)
    assert low <= np.min(found[name]) < low + room and high - room < np.max(found[name]) <= high, name
  assert {len(each.discs) for each in taken} == {1, 2, 3}


def test_skin_is_its_colour_with_stripes_under_the_light():
  who = person(skin=np.array([0.1, 0.3, -0.1]), hair_height=0.9, mouth_curve=0.0)
  when = photo(centre=np.array([16.0, 16.0]), brightness=0.9)
  image, _ = portraits.render(who, when, 32)
  y, x = 17, 16  # between eyes and mouth
  across = np.cos(who.stripe_angle) * (x + 0.5 - 16) + np.sin(who.stripe_angle) * (y + 0.5 - 16)
  stripe = who.stripe_amplitude * np.sin(2 * np.pi * who.stripe_frequency * across)
  np.testing.assert_allclose(image[y, x], (who.skin + stripe + 1) * 0.9 - 1, atol=1e-6)


@pytest.mark.parametrize('frequency', [0.22, 0.32, 0.42])
def test_stripes_have_the_frequency_of_the_person_at_every_size(frequency):
  who = person(stripe_frequency=frequency, stripe_angle=0.0, skin=np.zeros(3), stripe_amplitude=0.3)
  for size in (32, 64):
    striped, mask = portraits.render(who, photo(brightness=1.0), size)
    plain, _ = portraits.render(dataclasses.replace(who, stripe_amplitude=0.0), photo(brightness=1.0), size)
    delta = (striped - plain).mean(-1)
    assert not np.any(delta[~mask][np.abs(delta[~mask]) > 0.16])  # no more than the soft edge
    spectrum = np.abs(np.fft.rfft(delta, n=256, axis=1)).sum(0)
    assert abs(np.argmax(spectrum) / 256 - frequency) < 0.02


def test_the_background_is_the_photo_and_the_head_the_person():
  when = photo()
  one, mask_one = portraits.render(person(1), when, 32)
  two, mask_two = portraits.render(person(2), when, 32)
  y, x = np.mgrid[:32, :32] + 0.5
  far = np.hypot(x - when.centre[0], y - when.centre[1]) > 1.3 * when.radius * 32
  np.testing.assert_array_equal(one[far], two[far])
  both = mask_one & mask_two
  assert np.abs(one - two)[both].mean() > 0.1 and both.sum() > 200
  again, _ = portraits.render(
    person(1), photo(3, centre=when.centre, radius=when.radius, brightness=when.brightness), 32
  )
  inner = np.hypot(x - when.centre[0], y - when.centre[1]) < 0.8 * when.radius * 32
  np.testing.assert_array_equal(one[inner], again[inner])
  assert np.abs(one - again)[far].mean() > 0.1


def test_the_mask_is_the_head():
  for seed in range(10):
    who, when = person(seed), photo(seed)
    image, mask = portraits.render(who, when, 64)
    area = np.pi * (when.radius * 64) ** 2
    assert 0.95 * area < mask.sum() < 1.25 * area and mask.dtype == bool
    assert image.shape == (64, 64, 3) and image.dtype == np.float32 and np.abs(image).max() <= 1
    rows, columns = np.nonzero(mask)
    np.testing.assert_allclose(columns.mean() + 0.5, 2 * when.centre[0], atol=0.5)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert abs(height / width - who.aspect) < 0.2


def test_examples_are_records_of_identities(tmp_path):
  splits = {split: portraits.examples(split, SMALL, 0) for split in ('train', 'test')}
  records.write(tmp_path, 'portraits', splits, identities.FEATURES)
  train, test = (records.Records(tmp_path, 'portraits', split) for split in ('train', 'test'))
  assert (len(train), len(test)) == (2 * 3, 2 * 6)
  assert set(train.table['set']) == {'train'}
  assert not set(train.table['identity']) & set(test.table['identity'])
  people = identities.Identities(test)
  first = people.names[0]
  assert [len(people.photos(first, name)) for name in 'ABC'] == [1, 2, 3]
  mask, shown = people.masks(first, 'B'), people.photos(first, 'B')
  assert shown.shape == (2, 32, 32, 3) and mask.dtype == bool and 0.15 < mask.mean() < 0.5
  assert train[0]['path'] == 'train_0000/set_train/000.png'


def test_an_example_depends_on_the_seed_and_its_place_alone():
  few = dict(portraits.examples('test', SMALL, 0))
  more = dict(portraits.examples('test', dataclasses.replace(SMALL, test=3), 0))
  other = dict(portraits.examples('test', SMALL, 1))
  assert len(more) == 18 and list(few) == list(other)
  for key, example in few.items():
    np.testing.assert_array_equal(example['image'], more[key]['image'])
    assert (example['image'] != other[key]['image']).mean() > 0.5
  shown = [example['image'].tobytes() for example in few.values()]
  assert len(set(shown)) == len(shown)
  with pytest.raises(UserError, match="no split 'tset'.*'test'"):
    next(portraits.examples('tset', SMALL, 0))


def test_the_sheet_shows_what_is_rendered(tmp_path):
  path = sheet.contact_sheet(tmp_path / 'sheet.png', people=2, photos=3, zoom=2)
  shown = images.read(path)
  assert shown.shape == (2 * 32 * 2, (3 + 1) * 32 * 2, 3)
  rng = np.random.default_rng(5)
  first, _ = portraits.render(portraits.sample_identity(rng), portraits.sample_photo(rng), 32)
  np.testing.assert_array_equal(shown[:64:2, :64:2], images.to_levels(first))
