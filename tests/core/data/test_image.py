"""Images come back upright, in RGB, or as an error that names the file and the reason."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from core.data import image
from core.errors import UserError


def picture(height=20, width=30):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_png_round_trip_is_exact_and_makes_folders(tmp_path):
  image.write_png(tmp_path / 'a' / 'b.png', picture())
  assert np.array_equal(image.read(tmp_path / 'a' / 'b.png'), picture())
  assert np.array_equal(image.read(image.png_bytes(picture())), picture())


def test_jpg_is_near(tmp_path):
  smooth = np.broadcast_to(np.arange(0, 240, 8, dtype=np.uint8)[None, :, None], (20, 30, 3))
  image.write_jpg(tmp_path / 'a.jpg', np.ascontiguousarray(smooth))
  assert np.abs(image.read(tmp_path / 'a.jpg').astype(int) - smooth).max() <= 4


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation_is_undone(tmp_path, orientation):
  upright = picture()
  # What a camera stores so that the tag's turn shows `upright`.
  stored = {
    1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
    6: np.rot90(upright, 1), 7: upright.transpose(1, 0, 2)[::-1, ::-1], 8: np.rot90(upright, -1),
  }[orientation]  # fmt: skip
  exif = Image.Exif()
  exif[0x0112] = orientation
  Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / 'a.png', exif=exif)
  assert np.array_equal(image.read(tmp_path / 'a.png'), upright)


def test_other_modes_become_rgb(tmp_path):
  grey16 = np.linspace(0, 65535, 400).reshape(20, 20).astype(np.uint16)
  Image.fromarray(grey16).save(tmp_path / 'grey16.png')
  grey = image.read(tmp_path / 'grey16.png')
  assert grey.shape == (20, 20, 3) and grey.max() == 255 and abs(int(grey[10, 0, 0]) - 128) <= 2
  clear = Image.new('RGBA', (20, 20), (255, 0, 0, 0))
  clear.save(tmp_path / 'clear.png')
  assert (image.read(tmp_path / 'clear.png') == 255).all()
  Image.new('P', (20, 20)).save(tmp_path / 'palette.png')
  assert image.read(tmp_path / 'palette.png').shape == (20, 20, 3)


def broken_files():
  png, buffer = image.png_bytes(picture(200, 200)), io.BytesIO()
  frames = [Image.new('RGB', (20, 20), colour) for colour in ('red', 'blue')]
  frames[0].save(buffer, format='GIF', save_all=True, append_images=frames[1:])
  return {
    'is empty': b'',
    'broken image': png[: len(png) // 2],
    'web page': b'<!DOCTYPE html><html></html>',
    'not an image': b'hello',
    'animated': buffer.getvalue(),
    '8x40 pixels': image.png_bytes(picture(40, 8)),
  }


@pytest.mark.parametrize(('message', 'data'), broken_files().items())
def test_bad_files_are_named_with_the_reason(tmp_path, message, data):
  path = tmp_path / 'odd.png'
  path.write_bytes(data)
  with pytest.raises(UserError, match=message) as caught:
    image.read(path)
  assert 'odd.png' in str(caught.value)


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP', 'TIFF', 'BMP', 'GIF'])
@pytest.mark.filterwarnings('ignore::UserWarning')  # Pillow's own words on damaged EXIF and TIFF fields
def test_any_damage_gives_pixels_or_a_user_error(kind):
  buffer, exif = io.BytesIO(), Image.Exif()
  exif[0x0112] = 6
  Image.fromarray(picture(16, 16)).save(buffer, format=kind, exif=exif)
  data, rng = buffer.getvalue(), np.random.default_rng(0)
  damaged = [data[:at] + bytes([value]) + data[at + 1 :] for at in range(min(len(data), 100)) for value in (0, 5, 255)]
  damaged += [data[:at] for at in rng.integers(1, len(data), 50)]
  outcomes = set()
  for each in damaged:
    try:
      image.read(each)
      outcomes.add('read')
    except UserError:
      outcomes.add('refused')
  assert outcomes == {'read', 'refused'}


def test_missing_file_and_wrong_array(tmp_path):
  with pytest.raises(UserError, match='No image file'):
    image.read(tmp_path / 'none.png')
  with pytest.raises(ValueError, match='uint8 image'):
    image.write_png(tmp_path / 'a.png', np.zeros((4, 4, 3), np.float32))


def test_levels_round_half_up_and_stay_in_range():
  ends = np.array([-2, -1, -1 + 0.99 / 255, -1 + 1.01 / 255, 0, 1 - 1.01 / 255, 1 - 0.99 / 255, 1, 2], np.float32)
  levels = image.to_levels(ends)
  assert levels.dtype == np.uint8 and levels.tolist() == [0, 0, 0, 1, 128, 254, 255, 255, 255]


def test_levels_come_back_exactly_from_both_libraries():
  levels = np.arange(256, dtype=np.uint8)
  inside = image.from_levels(levels)
  assert inside.dtype == np.float32 and inside[0] == -1 and inside[-1] == 1
  assert np.array_equal(image.to_levels(inside), levels)
  there_and_back = jax.jit(lambda each: image.to_levels(image.from_levels(each)))(jnp.asarray(levels))
  assert there_and_back.dtype == jnp.uint8 and np.array_equal(there_and_back, levels)
  with pytest.raises(ValueError, match='uint8 levels'):
    image.from_levels(inside)
