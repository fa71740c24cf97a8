"""Sets are chosen by seed and name alone, from persons with enough large photos."""

import numpy as np
import pytest
from PIL import Image

from core.data import identities, identity_lists, records
from core.errors import UserError

SMALL = {'identities': 3, 'per_set': 2, 'least': 7, 'above': 20}


def picture(path, side=24):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.full((side, side + 2, 3), 9, np.uint8)).save(path)


@pytest.fixture
def raw(tmp_path):
  """VGGFace2's tree: six persons in 'train' and 'test'; n000003 has too few large photos."""
  for person in range(6):
    for number in range(8):
      large = person != 3 or number < 6
      picture(
        tmp_path / 'raw' / ('test' if person == 5 else 'train') / f'n{person:06d}' / f'{number:04d}_01.jpg',
        24 if large else 20,
      )
  return tmp_path / 'raw'


def test_the_choice_has_the_protocols_form(raw):
  found = identity_lists.find(raw)
  assert sorted(found) == [f'n{person:06d}' for person in range(6)] and all(len(each) == 8 for each in found.values())
  listing = identity_lists.choose(found, **{**SMALL, 'identities': 5})
  assert [kind for kind, name, _ in listing.problems if name == 'n000003'] == ['too few large photos']
  chosen = {}
  for photo in listing.photos:
    assert photo.path.parent.name == photo.identity
    chosen.setdefault(photo.identity, []).append(photo)
  assert len(chosen) == 5 and 'n000003' not in chosen
  for photos in chosen.values():
    assert [photo.set for photo in photos] == list('AABBCC') and len({photo.path for photo in photos}) == 6


def test_the_choice_follows_seed_and_names_alone(raw):
  found = identity_lists.find(raw)
  first = identity_lists.choose(found, **SMALL)
  backwards = {name: photos[::-1] for name, photos in reversed(found.items())}
  assert identity_lists.choose(backwards, **SMALL).photos == first.photos
  others = [identity_lists.choose(found, **SMALL, seed=seed).photos for seed in range(1, 5)]
  assert all(other != first.photos for other in others)
  assert len({tuple(sorted({photo.identity for photo in other})) for other in others}) > 1
  # One person less: the sets of all others stay.
  gone = first.photos[0].identity
  fewer = identity_lists.choose({name: each for name, each in found.items() if name != gone}, **SMALL)
  assert {photo for photo in first.photos if photo.identity != gone} < set(fewer.photos)


def test_a_photo_must_be_larger_than_the_limit(raw):
  found = identity_lists.find(raw)
  identity_lists.choose(found, **{**SMALL, 'above': 23})
  with pytest.raises(UserError, match='0 of 6 persons'):
    identity_lists.choose(found, **{**SMALL, 'above': 24})


def test_too_few_persons_is_an_error_and_damage_no_crash(raw):
  for path in (raw / 'train' / 'n000001').iterdir():
    path.write_bytes(b'\xff\xd8 broken')
  with pytest.raises(UserError, match='4 of 6 persons.*5 are wanted'):
    identity_lists.choose(identity_lists.find(raw), **{**SMALL, 'identities': 5})


def test_a_list_travels_without_pictures_and_becomes_records(raw, tmp_path):
  built = identity_lists.build(raw, tmp_path / 'lists' / 'sets.csv', **SMALL)
  text = (tmp_path / 'lists' / 'sets.csv').read_text()
  assert text.startswith('# 3 of 6 identities, seed 0') and str(raw) not in text
  listing = identity_lists.read(tmp_path / 'lists' / 'sets.csv', raw)
  assert listing.photos == built.photos
  report = identities.prepare(raw, tmp_path / 'out', 'people', 16, listing=listing)
  people = identities.Identities(records.Records(tmp_path / 'out', 'people', 'test'))
  assert report.counts == {'test': 18} and len(people) == 3
  assert people.photos(people.names[0], 'C').shape == (2, 16, 16, 3)
  assert people.paths(people.names[0], 'A')[0] == built.photos[0].path.relative_to(raw).as_posix()


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('a,b\n', 'expected the columns identity, set, path'),
    ('identity,set,path\n', 'lists no photo'),
    ('identity,set,path\nn000000,D,train/n000000/0000_01.jpg\n', 'names the sets D'),
    ('identity,set,path\nn000000,A,train/n000000/none.jpg\n', '1 of 1 photos .* are not there'),
    ('identity,set,path\nn000000,A,train/n000000/0000_01.jpg\n', "no photo of 'n000000' for set B and C"),
  ],
)
def test_bad_lists_are_named(raw, tmp_path, text, message):
  (tmp_path / 'sets.csv').write_text(text)
  with pytest.raises(UserError, match=message):
    identity_lists.read(tmp_path / 'sets.csv', raw)


def test_missing_lists_and_folders(tmp_path):
  with pytest.raises(UserError, match='No list'):
    identity_lists.read(tmp_path / 'none.csv', tmp_path)
  with pytest.raises(UserError, match='No folder of raw photos'):
    identity_lists.find(tmp_path / 'none')
  with pytest.raises(UserError, match='n000002'):
    identity_lists.find(tmp_path)


@pytest.fixture
def celeba(tmp_path):
  """Six photos of CelebAMask-HQ, of persons 7 and 12, a mask among them."""
  for number in range(6):
    picture(tmp_path / 'CelebA-HQ-img' / f'{number}.jpg')
  picture(tmp_path / 'masks' / '00000_hair.png')
  rows = ''.join(f'{number:<10}{100 + number:<10}{101 + number:06d}.jpg\n' for number in range(6))
  (tmp_path / identity_lists.MAPPING).write_text('idx       orig_idx  orig_file\n' + rows)
  lines = ''.join(f'{101 + number:06d}.jpg {7 if number % 2 else 12}\n' for number in range(6))
  (tmp_path / identity_lists.IDENTITIES).write_text(lines)
  return tmp_path


def test_celeba_hq_is_joined_with_celebas_identities(celeba):
  found = identity_lists.find(celeba)
  assert {name: [path.name for path in paths] for name, paths in found.items()} == {
    '12': ['0.jpg', '2.jpg', '4.jpg'],
    '7': ['1.jpg', '3.jpg', '5.jpg'],
  }


def test_other_numberings_of_celeba_hq_are_refused(celeba):
  picture(celeba / 'CelebA-HQ-img' / '6.jpg')
  with pytest.raises(UserError, match='numbered in several ways'):
    identity_lists.find(celeba)


def test_celeba_hq_needs_both_files(celeba):
  (celeba / identity_lists.IDENTITIES).write_text('000001.jpg 3\n')
  with pytest.raises(UserError, match='do not belong together'):
    identity_lists.find(celeba)
  (celeba / identity_lists.IDENTITIES).unlink()
  with pytest.raises(UserError, match=f'not {identity_lists.IDENTITIES}'):
    identity_lists.find(celeba)
