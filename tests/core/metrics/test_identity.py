"""FDFR, ISM and SER-FIQ mean what the field means by them; each known trap has its test."""

import pickle

import numpy as np
import onnx_by_hand
import pytest

from core.data import face, image
from core.errors import UserError
from core.metrics import identity


class RedDetector:
  """A face is the box of what is red; without red there is none. Two patches in one picture are two faces."""

  name = 'red'

  def __init__(self, landmarks=False):
    self.landmarks = landmarks

  def detect(self, picture):
    faces = []
    for level in (255, 254):
      ys, xs = np.nonzero(picture[..., 0] == level)
      if len(xs):
        x, y, w, h = float(xs.min()), float(ys.min()), float(np.ptp(xs) + 1), float(np.ptp(ys) + 1)
        points = identity.TEMPLATE * (w, h) + (x, y) if self.landmarks else None
        faces.append(face.Face((x, y, w, h), 1.0, points))
    return faces


def colours(faces):
  """Mean green and blue of the middle: f32 [n, 2]."""
  return faces[:, 40:72, 40:72, 1:].mean((1, 2)).astype(np.float32)


def person(green, blue, *, side=60):
  """A picture with one face of that colour."""
  picture = np.zeros((160, 200, 3), np.uint8)
  picture[30 : 30 + side, 40 : 40 + side] = (255, green, blue)
  return picture


NOBODY = np.zeros((160, 200, 3), np.uint8)


def cosine(a, b):
  return float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


def test_fdfr_counts_pictures_without_a_face():
  judge = identity.Judge(RedDetector())
  two = person(9, 9, side=40)
  two[100:140, 100:140] = (254, 9, 9)
  scores = judge.scores([two, NOBODY, person(9, 9), NOBODY, NOBODY])
  # Trap 3: HF-ADB's script gives detections, 3 / 5 here.
  assert (scores.fdfr, scores.faces, scores.images) == (0.6, 2, 5)


def test_ism_is_the_mean_cosine_over_pictures_with_a_face():
  judge = identity.Judge(RedDetector(), colours)
  reference = judge.reference([person(200, 100), person(100, 50)])
  scores = judge.scores([person(200, 0), NOBODY, person(0, 90), person(20, 10)], reference)
  expected = [cosine((200, 0), (2, 1)), cosine((0, 90), (2, 1)), 1.0]
  assert scores.ism == pytest.approx(np.mean(expected), abs=1e-6)
  assert scores.ism_missing_zero == pytest.approx(np.sum(expected) / 4, abs=1e-6)
  assert 'ism' not in scores.absent and 'stochastic' in scores.absent['ser_fiq']


def test_the_reference_divides_by_embeddings_and_not_by_files():
  """Trap 1: the script divides by the number of files."""
  judge = identity.Judge(RedDetector(), colours)
  some = judge.reference([person(200, 100), NOBODY, person(100, 200), NOBODY])
  np.testing.assert_allclose(some, [150, 150], atol=1)
  # Sets are joined before the mean (trap 2): sets of unequal size would weigh unequally after it.
  joined = judge.reference([person(200, 100)] * 3 + [person(100, 200)])
  np.testing.assert_allclose(joined, [175, 125], atol=1)


def test_the_largest_face_is_judged_and_not_the_picture():
  """Trap 3: HF-ADB embeds the whole picture; and a detector may name a small face first."""
  judge = identity.Judge(RedDetector(), colours)
  picture = np.full((160, 200, 3), (0, 0, 250), np.uint8)
  picture[10:40, 10:40] = (255, 0, 200)  # small, first in the detector's list
  picture[60:140, 60:140] = (254, 200, 0)
  assert judge.scores([picture], np.array([1.0, 0.0])).ism == pytest.approx(1, abs=1e-3)


def test_figures_without_a_face_are_none_with_a_reason():
  """Trap 4: SER-FIQ would divide by zero; ISM has nothing to average."""
  judge = identity.Judge(RedDetector(), colours, lambda crop: np.ones((5, 3)))
  scores = judge.scores([NOBODY, NOBODY], np.array([1.0, 2.0]))
  assert scores.fdfr == 1 and scores.ism is None and scores.ser_fiq is None and scores.ism_missing_zero == 0
  assert scores.absent == dict.fromkeys(('ism', 'ser_fiq'), 'no face was found in any picture')
  assert judge.reference([NOBODY]) is None
  unknown = judge.scores([person(9, 9)], None)
  assert unknown.ism is None and unknown.ism_missing_zero is None and unknown.ser_fiq == pytest.approx(1, abs=1e-6)
  assert 'clean photos' in unknown.absent['ism']


def test_without_an_embedder_ism_is_none_and_says_why():
  for nothing in (None, ''):
    judge = identity.Judge(RedDetector(), nothing)
    assert judge.reference([person(1, 2)]) is None
    scores = judge.scores([person(1, 2)], None)
    assert scores.ism is None and 'no embedder' in scores.absent['ism'] and scores.fdfr == 0
    assert judge.describe() == {'detector': 'red', 'embedder': 'none', 'stochastic': 'none'}


def test_ser_fiq_is_the_formula():
  rng = np.random.default_rng(0)
  draws = rng.normal(size=(7, 16)) * 0.17 + rng.normal(size=16)
  unit = draws / np.linalg.norm(draws, axis=1, keepdims=True)
  pairs = [np.linalg.norm(unit[i] - unit[j]) for i in range(7) for j in range(i)]
  quality = 2 / (1 + np.exp(np.mean(pairs)))
  expected = 1 / (1 + np.exp(-130 * (quality - 0.88)))
  assert 0.01 < expected < 0.99
  assert identity.ser_fiq(draws) == pytest.approx(expected, abs=1e-6)
  assert identity.ser_fiq(3 * draws) == pytest.approx(expected, abs=1e-6)


def test_ser_fiq_of_equal_embeddings_is_one():
  assert identity.ser_fiq(np.tile(np.random.default_rng(1).normal(size=512), (100, 1))) > 0.9999998
  with pytest.raises(UserError, match='at least two'):
    identity.ser_fiq(np.ones((1, 4)))


def test_ser_fiq_of_pictures_is_the_mean_over_faces():
  def stochastic(crop):
    spread = crop[56, 56, 1] / 400
    return np.array([[1, spread], [1, -spread], [1, 0]])

  judge = identity.Judge(RedDetector(), stochastic=stochastic)
  each = [judge.scores([person(green, 0)]).ser_fiq for green in (10, 90)]
  assert each[0] > each[1] + 0.1
  assert judge.scores([person(10, 0), NOBODY, person(90, 0)]).ser_fiq == pytest.approx(np.mean(each))


def test_persons_weigh_the_same():
  judge = identity.Judge(RedDetector(), colours)
  reference = np.array([1.0, 0.0])
  many, lost = judge.scores([person(200, 0)] * 3, reference), judge.scores([NOBODY], reference)
  half = judge.scores([person(0, 200), NOBODY], reference)
  means = identity.average([many, half, lost])
  assert means['fdfr'] == pytest.approx(0.5) and means['ism'] == pytest.approx(0.5)
  assert means['ism_missing_zero'] == pytest.approx(1 / 3)
  assert means['identities'] == 3 and means['identities_without_face'] == 1 and 'ser_fiq' not in means
  with pytest.raises(UserError, match='no identity'):
    identity.average([])


def test_what_does_not_fit_is_an_error():
  judge = identity.Judge(RedDetector(), colours)
  with pytest.raises(UserError, match='no picture'):
    judge.scores([])
  with pytest.raises(UserError, match='two embedders'):
    judge.scores([person(1, 2)], np.ones(3))
  with pytest.raises(UserError, match='mean of embeddings'):
    identity.mean_embedding(np.zeros((0, 4)))


def test_landmarks_are_put_where_arcface_expects_them():
  judge = identity.Judge(RedDetector(landmarks=True))
  picture = person(0, 0, side=112)
  rng = np.random.default_rng(0)
  picture[30:142, 40:152, 1:] = rng.integers(0, 256, (112, 112, 2))
  # The landmarks lie in the box as in the template: the aligned crop is the box itself.
  assert np.array_equal(judge.crop(picture), picture[30:142, 40:152])
  np.testing.assert_allclose(identity.TEMPLATE[0] * 112 - 0.5, [38.2946, 51.6963])


def test_boxes_without_landmarks_get_a_margin():
  crop = identity.Judge(RedDetector()).crop(person(0, 0, side=60))
  assert crop.shape == (112, 112, 3)
  # 60 pixels and 0.13 of them on each side make 112: red begins after 11.6 and ends before 100.4.
  assert crop[56, 14:98, 0].min() > 250 and crop[56, :10, 0].max() < 5 and crop[56, 102:, 0].max() < 5


def test_an_onnx_embedder_sees_rgb_scaled_as_told(tmp_path):
  path = onnx_by_hand.embedder(tmp_path / 'quadrants.onnx')
  faces = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), dtype=np.uint8)
  faces[..., 0] //= 4  # red is told from blue
  means = faces.reshape(3, 2, 56, 2, 56, 3).mean((2, 4)).transpose(0, 3, 1, 2).reshape(3, 12)
  embedder = identity.OnnxEmbedder(path)
  np.testing.assert_allclose(embedder(faces), (means - 127.5) / 127.5, atol=1e-4)
  again = pickle.loads(pickle.dumps(identity.OnnxEmbedder(path, mean=0, scale=1)))
  np.testing.assert_allclose(again(faces), means, atol=1e-2)
  assert embedder.name.startswith('quadrants-') and embedder.name == again.name
  judge = identity.Judge(RedDetector(), str(path))
  assert judge.describe()['embedder'] == embedder.name
  assert judge.scores([person(50, 200)], judge.reference([person(50, 200)])).ism == pytest.approx(1, abs=1e-6)


def test_bad_onnx_files_are_named(tmp_path):
  with pytest.raises(UserError, match='No face embedding file'):
    identity.OnnxEmbedder(tmp_path / 'none.onnx')
  path = tmp_path / 'arcface.onnx'
  path.write_text('version https://git-lfs.github.com/spec/v1\n')
  with pytest.raises(UserError, match='Git LFS pointer'):
    identity.OnnxEmbedder(path)
  path.write_bytes(bytes(range(256)) * 20)
  with pytest.raises(UserError, match='cannot load'):
    identity.OnnxEmbedder(path)
  nodes = [onnx_by_hand.node('AveragePool', ['input'], 'output', kernel_shape=[56, 56], strides=[56, 56])]
  onnx_by_hand.write(path, nodes, {'input': (1, 3, 112, 112)}, {'output': (1, 3, 2, 2)})
  with pytest.raises(UserError, match='is it an embedder'):
    identity.OnnxEmbedder(path)(np.zeros((1, 112, 112, 3), np.uint8))
  kernel = {'w': np.ones((3, 4, 1, 1), np.float32)}
  nodes = [onnx_by_hand.node('Conv', ['input', 'w'], 'output', kernel_shape=[1, 1])]
  onnx_by_hand.write(path, nodes, {'input': (1, 4, 112, 112)}, {'output': (1, 3, 112, 112)}, kernel)
  with pytest.raises(UserError, match=r'cannot load|does not take a face'):
    identity.OnnxEmbedder(path)(np.zeros((1, 112, 112, 3), np.uint8))


def test_a_yunet_file_finds_and_aligns(tmp_path):
  """The whole way from two ONNX files to figures; red is a face for this network."""
  judge = identity.Judge(
    str(onnx_by_hand.yunet(tmp_path / 'yunet.onnx')), onnx_by_hand.embedder(tmp_path / 'quadrants.onnx')
  )
  assert judge.describe()['detector'] == 'yunet'
  picture = np.zeros((640, 640, 3), np.uint8)
  picture[160:176, 320:336] = (255, 80, 0)
  found = judge.detector.detect(picture)
  assert len(found) == 1
  np.testing.assert_allclose(found[0].box, (320 - 8, 160 - 8, 32, 32), atol=0.01)
  np.testing.assert_allclose(found[0].landmarks, onnx_by_hand.POINTS * 16 + (320, 160), atol=0.01)
  blue, weak = picture[..., ::-1].copy(), picture // 4 * 3  # scores 0 and 0.86, below 0.9
  scores = judge.scores([picture, blue, weak], judge.reference([picture]))
  assert scores.fdfr == pytest.approx(2 / 3) and scores.ism == pytest.approx(1, abs=1e-6)


def test_the_sample_photos_have_a_face_and_a_wall_has_none(shared_data):
  photos = [image.read(path) for path in sorted((shared_data / 'faces_n000050').glob('set_A/*.png'))]
  if not photos:
    pytest.skip('no sample photos')
  wall = np.full((512, 512, 3), 128, np.uint8)
  judge = identity.Judge('haar', colours)
  scores = judge.scores([*photos, wall], judge.reference(photos))
  assert scores.fdfr == pytest.approx(1 / 5) and scores.ism > 0.9
