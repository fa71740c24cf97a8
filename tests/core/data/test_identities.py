"""Sets of photos come in upright, square and complete; what lacks is named."""

import os

import numpy as np
import pytest
from PIL import Image

from core.data import identities, image, records
from core.errors import UserError


def photo(seed, height=20, width=24):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path):
  """Identities 'ann' and 'bob', sets of 4 photos; colours tell identity, set and number apart."""
  for who, name in enumerate(('bob', 'ann')):
    for which, part in enumerate('ABC'):
      for number in (3, 1, 2, 0):
        pixels = np.full((24, 32, 3), (100 * who, 50 * which, 10 * number), np.uint8)
        image.write_png(tmp_path / 'raw' / name / f'set_{part}' / f'{number}.png', pixels)
  return tmp_path / 'raw'


def opened(out, name='people', **options):
  return identities.Identities(records.Records(out, name, 'test'), **options)


def test_sets_come_back_by_identity_and_name(root, tmp_path):
  report = identities.prepare(root, tmp_path / 'out', 'people', 20)
  assert report.counts == {'test': 24} and report.problems == []
  people = opened(tmp_path / 'out')
  assert people.names == ('ann', 'bob') and len(people) == 2 and people.sets('bob') == ('A', 'B', 'C')
  photos = people.photos('ann', 'B')
  assert photos.shape == (4, 20, 20, 3) and photos.dtype == np.uint8
  assert photos[:, 5, 5].tolist() == [[100, 50, 10 * number] for number in range(4)]
  masks = people.masks('ann', 'B')
  assert masks.shape == (4, 20, 20) and masks.dtype == bool and masks.all()
  assert people.paths('bob', 'C') == tuple(f'bob/set_C/{number}.png' for number in range(4))
  assert opened(tmp_path / 'out', limit=1).names == ('ann',)


def test_masks_of_records_are_kept(tmp_path):
  mask = np.zeros((20, 20, 1), np.uint8)
  mask[:7] = 255
  example = {'image': photo(0, 20, 20), 'mask': mask, 'identity': 'x', 'set': 'train', 'path': ''}
  records.write(tmp_path, 'people', {'test': [('k', example)]}, identities.FEATURES)
  masks = opened(tmp_path).masks('x', 'train')
  assert masks[0, :7].all() and not masks[0, 7:].any()


def test_one_identity_may_be_the_root(root, tmp_path):
  report = identities.prepare(root / 'bob', tmp_path / 'out', 'people', 20)
  assert report.counts == {'test': 12} and opened(tmp_path / 'out').names == ('bob',)


def test_unknown_names_are_answered_with_the_nearest(root, tmp_path):
  identities.prepare(root, tmp_path / 'out', 'people', 20)
  people = opened(tmp_path / 'out', limit=1)
  with pytest.raises(UserError, match="Did you mean 'ann'"):
    people.photos('anna', 'A')
  with pytest.raises(UserError, match="no set 'D', it has A, B, C"):
    people.masks('ann', 'D')
  with pytest.raises(UserError, match="No identity 'bob'"):  # beyond the limit
    people.paths('bob', 'A')


def test_prepared_once_for_the_same_files(root, tmp_path):
  first = identities.prepare(root, tmp_path / 'out', 'people', 20).manifest
  files = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*') if path.is_file()}
  assert identities.prepare(root, tmp_path / 'out', 'people', 20).manifest == first
  assert files == {path: path.stat().st_mtime_ns for path in files}
  with pytest.raises(UserError, match='overwrite'):
    identities.prepare(root, tmp_path / 'out', 'people', 18)
  os.utime(root / 'ann' / 'set_A' / '0.png', (1, 1))
  with pytest.raises(UserError, match='overwrite'):
    identities.prepare(root, tmp_path / 'out', 'people', 20)
  assert identities.prepare(root, tmp_path / 'out', 'people', 18, overwrite=True).manifest.info['size'] == 18


@pytest.mark.parametrize('kept', [True, False])
def test_an_empty_or_missing_set_is_an_error(root, tmp_path, kept):
  folder = root / 'ann' / 'set_B'
  for path in folder.iterdir():
    path.unlink()
  if not kept:
    folder.rmdir()
  with pytest.raises(UserError, match="'ann' has no photo in set_B"):
    identities.prepare(root, tmp_path / 'out', 'people', 20)


def test_odd_things_are_reported(root, tmp_path):
  (root / 'ann' / 'set_A' / '3.png').unlink()
  (root / 'ann' / 'set_B' / '3.png').write_bytes(b'not a picture')
  (root / 'ann' / 'set_C' / 'notes.txt').write_text('who?')
  (root / 'ann' / 'set_D').mkdir()
  (root / 'lists').mkdir()
  (root / '.cache').mkdir()
  report = identities.prepare(root, tmp_path / 'out', 'people', 40)
  kinds = sorted((kind, os.path.relpath(path, root)) for kind, path, _ in report.problems if kind != 'enlarged')
  assert kinds == [
    ('not a photo', 'ann/set_C/notes.txt'),
    ('not an identity', 'lists'),
    ('other number of photos', 'ann/set_A'),
    ('unknown set', 'ann/set_D'),
    ('unreadable', 'ann/set_B/3.png'),
  ]
  assert sum(kind == 'enlarged' for kind, _, _ in report.problems) == report.counts['test'] == 22


def test_a_set_without_a_readable_photo_leaves_nothing_behind(root, tmp_path):
  for path in (root / 'bob' / 'set_C').iterdir():
    path.write_bytes(b'')
  with pytest.raises(UserError, match="'bob': no photo of set_C can be used.*empty"):
    identities.prepare(root, tmp_path / 'out', 'people', 20)
  assert not records.is_written(tmp_path / 'out', 'people')


def test_folders_without_identities_name_the_way_out(tmp_path):
  with pytest.raises(UserError, match='No folder'):
    identities.read(tmp_path / 'none')
  for name in ('empty', 'other/folder'):
    (tmp_path / name).mkdir(parents=True)
  for name, found in (('empty', 'nothing'), ('other', 'folder')):
    with pytest.raises(UserError, match=f'holds no identity.*{found}.*identity_lists.build'):
      identities.read(tmp_path / name)


def test_photos_are_turned_upright(root, tmp_path):
  upright, exif = photo(0, 20, 20), Image.Exif()
  exif[0x0112] = 6
  Image.fromarray(np.ascontiguousarray(np.rot90(upright, 1))).save(root / 'ann' / 'set_A' / '0.png', exif=exif)
  identities.prepare(root, tmp_path / 'out', 'people', 20)
  assert np.array_equal(opened(tmp_path / 'out').photos('ann', 'A')[0], upright)


def test_fit_takes_the_centre_of_what_has_the_size():
  wide, tall = photo(1, 20, 26), photo(2, 27, 20)
  assert np.array_equal(identities.fit(wide, 20), wide[:, 3:23])
  assert np.array_equal(identities.fit(tall, 20), tall[4:24])  # 3.5 rounds to the even number, as torchvision's does


@pytest.mark.parametrize(('height', 'width'), [(90, 61), (50, 133), (30, 40)])
def test_fit_is_bilinear_with_a_low_pass(height, width):
  torch = pytest.importorskip('torch')
  pixels, size = photo(3, height, width), 48
  short = min(height, width)
  full = (int(size * height / short), int(size * width / short))
  x = torch.tensor(pixels).permute(2, 0, 1)[None].float()
  x = torch.nn.functional.interpolate(x, full, mode='bilinear', antialias=True, align_corners=False)[0]
  top, left = round((full[0] - size) / 2), round((full[1] - size) / 2)
  expected = x.permute(1, 2, 0).numpy()[top : top + size, left : left + size]
  assert np.abs(identities.fit(pixels, size) - expected).max() <= 1.01  # Pillow rounds to levels between the axes


def test_fit_refuses_strips():
  with pytest.raises(UserError, match='1700x100'):
    identities.fit(np.zeros((100, 1700, 3), np.uint8), 64)


def test_the_sample_identity_is_read(shared_data, tmp_path):
  root = shared_data / 'faces_n000050'
  if not root.is_dir():
    pytest.skip('no sample identity')
  report = identities.prepare(root, tmp_path, 'people', 512)
  assert report.counts == {'test': 12} and report.problems == []
  people = opened(tmp_path)
  assert people.names == ('faces_n000050',)
  original = image.read(root / 'set_B' / '0012_01.png')
  assert np.array_equal(people.photos('faces_n000050', 'B')[0], original)
