"""A user's photos and videos, with a detector that knows drawn faces; the real detector on real photographs."""

import json

import cv2
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from PIL import Image

from core.data import face, image, video
from core.errors import UserError
from fas.fas_aug import drawing, prediction

METADATA = {'threshold': 0.6, 'frame_threshold': 0.4, 'threshold_from': 'EER of 8 live and 9 spoof videos'}
PLAIN = (90, 90, 90)


class Brightness:
  """P(live) is the mean brightness of the crop."""

  def apply(self, variables, images, *, train=False, rng=None):
    bright = jnp.clip(jnp.mean(images, (1, 2, 3)), 1e-3, 1 - 1e-3)
    return {'logits': jnp.stack([jnp.zeros_like(bright), jnp.log(bright / (1 - bright))], -1)}, {}


class RedFrameDetector:
  """Finds grey squares within a pure red frame, the largest first."""

  name = 'red frames'

  def detect(self, picture):
    red = ((picture[..., 0] > 150) & (picture[..., 1] < 100)).astype(np.uint8)
    count, _, boxes, _ = cv2.connectedComponentsWithStats(red)
    faces = [face.Face(tuple(float(v) for v in boxes[i][:4]), float(boxes[i][2])) for i in range(1, count)]
    return sorted((f for f in faces if f.box[2] > 8), key=lambda f: f.area, reverse=True)


def drawn(*faces, width=160, height=120):
  """A picture with (x, y, side, grey) squares, each in a red frame of three pixels."""
  picture = np.full((height, width, 3), PLAIN, np.uint8)
  for x, y, side, grey in faces:
    picture[y : y + side, x : x + side] = (255, 0, 0)
    picture[y + 3 : y + side - 3, x + 3 : x + side - 3] = grey
  return picture


@pytest.fixture
def predictor():
  config = {'data': {'detector': RedFrameDetector(), 'size': 32, 'margin': -0.2, 'frames_per_video': 3}}
  return prediction.FacePredictor(Brightness(), {'params': {}}, ml_collections.ConfigDict(config), METADATA)


def test_a_photo_gives_a_row_per_face(predictor, tmp_path):
  image.write_png(tmp_path / 'two.png', drawn((10, 20, 60, 204), (100, 40, 40, 51)))
  rows = predictor(tmp_path / 'two.png')
  assert [row['box'] for row in rows] == [[10, 20, 60, 60], [100, 40, 40, 40]]
  assert [row['live_score'] for row in rows] == pytest.approx([0.8, 0.2], abs=1e-3)
  assert [row['decision'] for row in rows] == ['live', 'spoof']
  assert {row['threshold'] for row in rows} == {0.4} and {row['frame'] for row in rows} == {0}
  json.dumps(rows)


def test_weak_further_boxes_are_not_faces(predictor, tmp_path):
  image.write_png(tmp_path / 'one.png', drawn((10, 20, 60, 204), (100, 40, 20, 51)))  # a third of the first's score
  assert len(predictor(tmp_path / 'one.png')) == 1


def test_the_exif_tag_is_honoured(predictor, tmp_path):
  stored = Image.fromarray(np.ascontiguousarray(np.rot90(drawn((10, 20, 60, 204)))))
  exif = Image.Exif()
  exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
  stored.save(tmp_path / 'turned.png', exif=exif)
  assert predictor(tmp_path / 'turned.png')[0]['box'] == [10, 20, 60, 60]


def test_a_video_is_the_mean_of_its_frames(predictor, tmp_path):
  greys = [255, 20, 20, 102, 20, 20, 153]
  video.write(tmp_path / 'clip.mkv', [drawn((20, 20, 64, g)) for g in greys], codec='ffv1')
  whole, *rows = predictor(tmp_path / 'clip.mkv')
  assert [row['frame'] for row in rows] == [0, 3, 6]
  assert [row['live_score'] for row in rows] == pytest.approx([0.999, 0.4, 0.6], abs=2e-3)
  assert whole['kind'] == 'video' and whole['frame'] is None and whole['box'] is None
  assert whole['live_score'] == pytest.approx(np.mean([row['live_score'] for row in rows]))
  assert whole['threshold'] == 0.6 and {row['threshold'] for row in rows} == {0.4}
  assert [row['decision'] for row in rows] == ['live', 'live', 'live'] and whole['decision'] == 'live'
  assert set(whole) == set(rows[0])  # one table


def test_a_faceless_frame_is_replaced_by_its_neighbour(predictor, tmp_path):
  frames = [drawn() if i in (0, 1) else drawn((20, 20, 64, 100)) for i in range(9)]
  video.write(tmp_path / 'clip.mkv', frames, codec='ffv1')
  whole, *rows = predictor(tmp_path / 'clip.mkv')
  assert [row['frame'] for row in rows] == [2, 4, 8]
  assert 'no face in frame 0, frame 2 taken' in whole['notes']


def test_what_cannot_be_served_says_why(predictor, tmp_path):
  image.write_png(tmp_path / 'empty_room.png', drawn())
  with pytest.raises(UserError, match=r"empty_room.png': no face found in 160x120 pixels \(detector 'red frames'\)"):
    predictor(tmp_path / 'empty_room.png')
  video.write(tmp_path / 'empty.mp4', [drawn()] * 4)
  with pytest.raises(UserError, match='no face found in 3 frames and their neighbours'):
    predictor(tmp_path / 'empty.mp4')
  (tmp_path / 'broken.jpg').write_bytes(b'\xff\xd8\xff\xe0' + b'x' * 100)
  with pytest.raises(UserError, match='broken.jpg'):
    predictor(tmp_path / 'broken.jpg')
  (tmp_path / 'broken.mp4').write_bytes(b'x' * 100)
  with pytest.raises(UserError, match='cannot be opened as a video'):
    predictor(tmp_path / 'broken.mp4')


def test_a_checkpoint_without_threshold_decides_at_one_half(tmp_path):
  config = {'data': {'detector': RedFrameDetector(), 'size': 32, 'margin': -0.2, 'frames_per_video': 3}}
  predictor = prediction.FacePredictor(Brightness(), {'params': {}}, ml_collections.ConfigDict(config), {})
  image.write_png(tmp_path / 'one.png', drawn((10, 20, 60, 120)))
  assert predictor(tmp_path / 'one.png')[0]['threshold'] == 0.5
  assert 'fixed at 0.5' in predictor._explanation()


def has(sheet, color):
  return (np.abs(sheet.astype(int) - color).max(-1) <= 2).sum()


def test_the_contact_sheet_shows_every_file(predictor, tmp_path):
  image.write_png(tmp_path / 'real.png', drawn((10, 20, 60, 204)))
  image.write_png(tmp_path / 'paper.png', drawn((10, 20, 60, 30), (100, 20, 50, 230)))
  video.write(tmp_path / 'clip.mkv', [drawn((20, 20, 64, 230))] * 3, codec='ffv1')
  rows = [row for name in ('real.png', 'paper.png', 'clip.mkv') for row in predictor(tmp_path / name)]
  broken = tmp_path / 'broken.jpg'
  rows.append({'file': str(broken), 'error': f"'{broken}' is a broken image: {'x ' * 99}"})
  (written,) = predictor.finish(rows, tmp_path / 'out')
  assert written == tmp_path / 'out' / 'contact_sheet.png'
  sheet = image.read(written)
  tile = prediction.PICTURE + 66 + prediction.MARGIN
  assert sheet.shape[0] > 2 * tile and sheet.shape[1] == 3 * (prediction.TILE + prediction.MARGIN) + prediction.MARGIN
  for kind in ('live', 'spoof', 'error'):
    assert (
      has(sheet, drawing.COLORS[kind]) > 26 * prediction.TILE / 2
    )  # at least one bar of each verdict, less its letters
  assert predictor.finish([], tmp_path / 'out') == []


def test_many_files_make_pages(predictor, tmp_path, monkeypatch):
  monkeypatch.setattr(prediction, 'PAGE', 4)
  rows = [{'file': f'{i}.jpg', 'error': 'missing'} for i in range(9)]
  names = [path.name for path in predictor.finish(rows, tmp_path)]
  assert names == ['contact_sheet_1.png', 'contact_sheet_2.png', 'contact_sheet_3.png']
  assert image.read(tmp_path / 'contact_sheet_3.png').shape[0] < image.read(tmp_path / 'contact_sheet_1.png').shape[0]


def test_real_photographs_and_a_film_of_them(shared_data, tmp_path):
  photos = sorted((shared_data / 'fas_real').glob('*.jpg'))
  if not photos:
    pytest.skip('no photographs')
  config = {'data': {'detector': 'haar', 'size': 64, 'margin': 0.2, 'frames_per_video': 3}}
  predictor = prediction.FacePredictor(Brightness(), {'params': {}}, ml_collections.ConfigDict(config), METADATA)
  rows = [row for path in photos for row in predictor(path)]
  assert [row['file'] for row in rows] == [str(path) for path in photos]  # one face each
  for path in photos:
    picture = image.read(path)
    video.write(tmp_path / f'{path.stem}.mp4', [picture] * 5)
    whole, *frames = predictor(tmp_path / f'{path.stem}.mp4')
    photo = next(row for row in rows if row['file'] == str(path))
    assert len(frames) == 3
    assert whole['live_score'] == pytest.approx(photo['live_score'], abs=0.03)
    np.testing.assert_allclose(frames[0]['box'], photo['box'], atol=12)
    rows_of_video = [whole, *frames]
    assert all(row['kind'] in ('video', 'face') for row in rows_of_video)
