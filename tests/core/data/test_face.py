"""Crops are exact geometry; the Haar detector is tried on real photographs where they are at hand."""

import pickle

import cv2
import numpy as np
import pytest

from core.data import face, image
from core.errors import UserError


def gradient(height=120, width=160):
  """Red grows with x, green with y: a pixel tells where it comes from."""
  y, x = np.mgrid[:height, :width]
  return np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8)


def similarity(points, angle, scale, shift):
  c, s = scale * np.cos(angle), scale * np.sin(angle)
  return points @ np.array([[c, s], [-s, c]]) + shift


@pytest.mark.parametrize('margin', [0.0, 0.3])
@pytest.mark.parametrize('angle', [0.0, 0.4, -2.0])
def test_alignment_puts_landmarks_on_the_mean_face(angle, margin):
  landmarks = similarity(face.MEAN_FACE, angle, 40.0, np.array([60.0, 50.0]))
  matrix = face.transform(face.Face((0, 0, 1, 1), 1.0, landmarks), size=100, margin=margin)
  placed = landmarks @ matrix[:, :2].T + matrix[:, 2]
  np.testing.assert_allclose(placed, (face.MEAN_FACE + margin) / (1 + 2 * margin) * 100, atol=1e-9)


def test_alignment_is_the_least_squares_similarity():
  rng = np.random.default_rng(0)
  landmarks = similarity(face.MEAN_FACE, 0.3, 70.0, np.array([20.0, 90.0])) + rng.normal(0, 2, (5, 2))
  matrix = face.transform(face.Face((0, 0, 1, 1), 1.0, landmarks), size=100)

  def error(m):
    return np.sum((landmarks @ m[:, :2].T + m[:, 2] - face.MEAN_FACE * 100) ** 2)

  for part in (
    np.array([[1.0, 0, 0], [0, 1, 0]]),
    np.array([[0.0, -1, 0], [1, 0, 0]]),
    np.array([[0.0, 0, 1], [0, 0, 0]]),
  ):
    for step in (1e-3, -1e-3):
      assert error(matrix + step * part) > error(matrix)


def test_box_crop_is_the_square_around_the_box():
  picture = gradient()
  crop = face.crop(picture, face.Face((30, 20, 40, 40), 1.0), size=40)
  assert np.array_equal(crop, picture[20:60, 30:70])
  wide = face.crop(picture, face.Face((30, 30, 40, 20), 1.0), size=60, margin=0.25)
  assert np.array_equal(wide, picture[10:70, 20:80])


def test_shrinking_crops_average_and_edges_repeat():
  stripes = np.zeros((80, 80, 3), np.uint8)
  stripes[:, ::2] = 200
  crop = face.crop(stripes, face.Face((0, 0, 80, 80), 1.0), size=20)
  assert np.abs(crop.astype(int) - 100).max() <= 2
  picture = gradient()
  corner = face.crop(picture, face.Face((-20, -20, 40, 40), 1.0), size=40)
  assert np.array_equal(corner[20:, 20:], picture[:20, :20]) and (corner[:20, :20] == 0).all()
  assert np.array_equal(corner[0, 20:], picture[0, :20])


def test_square_takes_the_centre():
  assert np.array_equal(face.square(gradient(40, 60), 40), gradient(40, 60)[:, 10:50])
  assert face.square(gradient(40, 60), 100).shape == (100, 100, 3)


def sample_photos(shared_data):
  return sorted((shared_data / 'faces_n000050').rglob('*.png')) + sorted((shared_data / 'fas_real').glob('*.jpg'))


def test_haar_finds_the_one_face_of_every_sample_photo(shared_data):
  photos = sample_photos(shared_data)
  if not photos:
    pytest.skip('no sample photos')
  detector = pickle.loads(pickle.dumps(face.HaarDetector()))
  for path in photos:
    picture = image.read(path)
    faces = detector.detect(picture)
    assert faces, path
    x, y, w, h = faces[0].box
    # All these photos are portraits: the face is large and holds the picture's upper middle.
    assert w > 0.3 * picture.shape[1], path
    assert x < 0.5 * picture.shape[1] < x + w and y < 0.5 * picture.shape[0] < y + h, path


def test_haar_boxes_are_in_pixels_of_the_picture(shared_data):
  photos = sample_photos(shared_data)
  if not photos:
    pytest.skip('no sample photos')
  picture = image.read(photos[2])
  large = cv2.resize(picture, None, fx=3, fy=3)
  small_box, large_box = (face.HaarDetector(512).detect(p)[0].box for p in (picture, large))
  np.testing.assert_allclose(np.array(large_box) / 3, small_box, atol=12)


def test_haar_finds_nothing_where_nothing_is():
  rng = np.random.default_rng(0)
  noise = cv2.GaussianBlur(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8), (9, 9), 3)
  assert face.HaarDetector().detect(noise) == []
  assert face.HaarDetector().detect(np.full((100, 100, 3), 128, np.uint8)) == []


def test_yunet_rows_become_faces():
  points = np.arange(10.0)
  rows = [[10, 20, 30, 40, *points, 0.9], [0, 0, 100, 100, *(points + 5), 0.8]]
  first, second = face.faces_from_yunet(np.array(rows, np.float32), scale=0.5)
  assert first.box == (0, 0, 200, 200) and second.box == (20, 40, 60, 80)
  np.testing.assert_allclose(second.landmarks, 2 * points.reshape(5, 2))
  assert face.faces_from_yunet(np.zeros((0, 15)), 1.0) == []


def test_detectors_by_name_and_their_errors(tmp_path):
  assert face.build_detector('haar').name == 'haar'
  own = face.HaarDetector()
  assert face.build_detector(own) is own
  with pytest.raises(UserError, match="'haar' or the path"):
    face.build_detector('mtcnn')
  with pytest.raises(UserError, match='No YuNet file'):
    face.build_detector(str(tmp_path / 'none.onnx'))
  path = tmp_path / 'yunet.onnx'
  path.write_text('version https://git-lfs.github.com/spec/v1\n' + 'x' * 2000)
  with pytest.raises(UserError, match='Git LFS pointer'):
    face.build_detector(str(path))
  path.write_bytes(bytes(range(256)) * 20)
  with pytest.raises(UserError, match='cannot load'):
    face.build_detector(str(path))


def test_describe_is_plain_data():
  found = face.Face((1, 2, 3, 4), 0.5, face.MEAN_FACE * 10)
  about = face.describe(face.HaarDetector(), found, 0.2)
  assert about == {'detector': 'haar', 'aligned': True, 'margin': 0.2, 'box': [1, 2, 3, 4], 'score': 0.5}
  assert face.describe(None, None, 0.0)['detector'] == 'none'
