"""What comes next in a video file, from a small model with random weights: times, numbers, notes and pictures."""

import functools
import json
import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from core.data import image, video
from core.errors import UserError
from video.arr import drawing, prediction
from video.arr.annotations.tables import Vocabulary
from video.arr.data import View
from video.arr.grid import Grid
from video.arr.model import Anticipator
from video.arr.sources import resize

VOCABULARY = Vocabulary(
  actions=('take plate', 'wash plate', 'take knife', 'cut onion', 'wash knife', 'open drawer'),
  verbs=('take', 'wash', 'cut', 'open'), nouns=('plate', 'knife', 'onion', 'drawer'),
  verb_of=(0, 1, 0, 2, 1, 3), noun_of=(0, 0, 1, 2, 1, 3),
)  # fmt: skip
METADATA = {'vocabulary': VOCABULARY.plain(), 'prior': [1 / 6] * 6}
GRID = Grid(clips=4, spacing=1.0, anticipation=1.5, frames=2, span=1.0)
SIDE = 16


def config(encoder='frame_vit'):
  decoder = {'aggregation': 'decoder', 'layers': 1, 'heads': 2, 'width': 8, 'dropout': 0.1}
  return ConfigDict({
    'model': {
      'encoder': encoder, 'variant': 'linear' if encoder == 'feature' else 'tiny_patch8', 'image_size': SIDE,
      'width': 8,
      'decoder': decoder | {'causal': True, 'positions': True}, 'classifier_dropout': 0.2, 'share_heads': True,
      'dtype': 'float32', 'remat': False, 'scan': True, 'weights': '',
    },
    'data': {'pixels': 24}, 'augment': {'shorter': (20, 24), 'flip': True},
  })  # fmt: skip


class Fold:
  """Has the grid; anything else would be on the machine that trained."""

  grid = GRID

  def __getattr__(self, name):
    raise AssertionError(f'a predictor asked for the training data: fold.{name}')


def fake_task(encoder='frame_vit'):
  chosen = config(encoder)
  build = lambda classes: Anticipator(chosen.model, classes=classes, grid=GRID, feature_size=7)  # noqa: E731
  return types.SimpleNamespace(config=chosen, fold=Fold(), anticipator=build)


@functools.cache
def made():
  """(model, variables with logits that differ by clip, predictor)."""
  task = fake_task()
  model = task.anticipator(VOCABULARY.classes)
  variables = jax.tree.map(lambda leaf: 3 * leaf, model.init(jax.random.key(0)))
  return model, variables, prediction.VideoPredictor(task, variables, METADATA)


def scene(i, width=40, height=30):
  """A picture whose colour and square move with i."""
  picture = np.full((height, width, 3), (40 + 5 * i % 200, 90, 200 - 4 * i % 180), np.uint8)
  picture[5:20, 3 + i % 20 : 13 + i % 20] = (250, 250, 30)
  return picture


def film(path, seconds, fps=8):
  video.write(path, [scene(i) for i in range(round(seconds * fps))], fps, codec='ffv1')
  return path


def test_rows_are_those_of_the_offline_model(tmp_path):
  model, variables, predictor = made()
  path = film(tmp_path / 'kitchen.mkv', 6.25)
  rows = predictor(path)
  assert [row['time'] for row in rows] == [1, 2, 3, 4, 5, 6]
  assert [row['starts_at'] for row in rows] == [2.5, 3.5, 4.5, 5.5, 6.5, 7.5]
  view = View(SIDE, (20, 24), True)
  apply = jax.jit(model.apply)
  for row in rows:
    ends = GRID.ends(row['starts_at'])
    numbers = np.clip(np.floor(GRID.times(ends) * 8 + 1e-9), 0, None).astype(int)
    frames = np.stack([resize(scene(i), 24) for i in numbers.ravel()])
    clips = view(frames, None).reshape(1, *numbers.shape, SIDE, SIDE, 3)
    out = apply(variables, clips)
    following = np.asarray(jax.nn.softmax(out['q'][0, -1, :-1]))
    ranked = np.argsort(-following)[:5]
    assert [row[f'next_{k}'] for k in range(1, 6)] == [VOCABULARY.actions[i] for i in ranked]
    np.testing.assert_allclose([row[f'p_{k}'] for k in range(1, 6)], following[ranked], atol=2e-3)  # yuv rounding
    recognised = np.asarray(jax.nn.softmax(out['r'][0, -1]))
    assert row['p_recognised'] == pytest.approx(recognised.max(), abs=2e-3)
    assert row['recognised'] == [*VOCABULARY.actions, drawing.UNKNOWN][recognised.argmax()]
  assert len({row['p_1'] for row in rows}) == 6  # what is seen matters


def test_verbs_and_nouns_are_marginals(tmp_path):
  _, _, predictor = made()
  answer = np.array([0.3, 0.1, 0.15, 0.25, 0.12, 0.08], np.float32)
  assert predictor._marginals(answer) == {
    'verb': 'take', 'p_verb': pytest.approx(0.45), 'noun': 'plate', 'p_noun': pytest.approx(0.4),
  }  # fmt: skip


def test_what_lies_before_the_film_is_noted(tmp_path, capsys):
  rows = made()[2](film(tmp_path / 'long.mkv', 6))
  assert [row['notes'][:9] for row in rows] == ['3 of 4 cl', '2 of 4 cl', '1 of 4 cl', '', '', '']
  short = made()[2](film(tmp_path / 'short.mkv', 1.5))  # shorter than the four clips that are observed
  assert len(short) == 1 and short[0]['notes'].startswith('3 of 4 clips lie before the film')
  assert all(row['latency_ms'] > 0 for row in rows)
  assert '6 steps, encoder ' in capsys.readouterr().out
  json.dumps(rows)


def test_what_cannot_be_served_says_why(tmp_path):
  predictor = made()[2]
  with pytest.raises(UserError, match=r"blink.mkv' is 0.50 s long, shorter than one clip of 1 s"):
    predictor(film(tmp_path / 'blink.mkv', 0.5))
  (tmp_path / 'broken.mp4').write_bytes(b'x' * 100)
  with pytest.raises(UserError, match=r"broken.mp4' cannot be opened as a video"):
    predictor(tmp_path / 'broken.mp4')
  whole = film(tmp_path / 'whole.mkv', 2).read_bytes()
  (tmp_path / 'cut.mkv').write_bytes(whole[:900])
  with pytest.raises(UserError, match=r"cut.mkv'"):
    predictor(tmp_path / 'cut.mkv')


def test_runs_without_pixels_or_names_are_refused():
  with pytest.raises(UserError, match=r"encoder 'feature'.*which a video file does not hold.*launch.evaluate"):
    prediction.VideoPredictor(fake_task('feature'), {}, METADATA)
  with pytest.raises(UserError, match="evaluator 'anticipation' never ran"):
    prediction.VideoPredictor(fake_task(), {}, {})


def test_a_frame_is_shown_until_the_next_one():
  frames = [(time, functools.partial(np.full, 1, time)) for time in (0.0, 0.4, 0.8, 0.8, 1.2)]
  asked = [0.0, 0.0, 0.39, 0.4, 0.9, 5.0]
  assert [float(each[0]) for each in prediction.shown(iter(frames), asked)] == [0, 0, 0, 0.4, 0.8, 1.2]
  decoded = []
  stream = ((decoded.append(time), (time, read))[1] for time, read in frames)
  next(prediction.shown(stream, asked))
  assert decoded == [0.0, 0.4]  # no frame is decoded before it is needed
  assert list(prediction.shown(iter([]), asked)) == []


def test_pictures_show_what_the_rows_say(tmp_path):
  predictor = made()[2]
  rows = predictor(film(tmp_path / 'a.mkv', 5.5))
  (tmp_path / 'other').mkdir()
  rows += predictor(film(tmp_path / 'other' / 'a.mkv', 2))
  rows.append({'file': 'gone.mp4', 'error': 'there is no such file'})
  out = tmp_path / 'out'
  out.mkdir()
  names = [path.name for path in predictor.finish(rows, out)]
  assert names == ['a_timeline.png', 'a_captioned.mp4', 'a_2_timeline.png', 'a_2_captioned.mp4']
  sheet = image.read(out / 'a_timeline.png')
  color = drawing.step_colors(rows[:5])[rows[0]['recognised']]
  assert (sheet == color).all(-1).sum() > drawing.COLUMN * drawing.BAR / 3
  about = video.info(out / 'a_captioned.mp4')
  assert (about.frames, about.fps, about.width, about.height) == (44, 8, 480, 360 + drawing.PANEL)
  (_, first), (_, last) = video.frames(out / 'a_captioned.mp4', [0, 43])
  above = first[:360].astype(int) - video.frames(tmp_path / 'a.mkv', [0])[0][1].repeat(12, 0).repeat(12, 1)
  assert np.abs(above).mean() < 8  # the frame itself
  assert np.abs(first[360:].astype(int) - last[360:]).mean() > 2  # "watching" first, an answer at the end


def test_a_long_film_shows_some_of_its_steps():
  step = {'recognised': 'take plate', 'p_recognised': 0.5, 'next_1': 'cut onion', 'p_1': 0.4}
  steps = [step | {'time': float(i), 'starts_at': i + 1.5} for i in range(150)]
  pictures = [np.zeros((60, 80, 3), np.uint8)] * 150
  whole = drawing.timeline('a film', '150 steps', steps, pictures)
  least = drawing.timeline('a film', '60 steps', steps[:60], pictures[:60])
  assert whole.shape[1] == least.shape[1] and whole.shape[0] <= least.shape[0]


def test_the_likeliest_names_have_their_own_colours():
  found = drawing.colors({f'action {i}': 20.0 - i for i in range(14)} | {drawing.UNKNOWN: 50.0})
  assert len({found[f'action {i}'] for i in range(10)}) == 10
  assert found['action 12'] == drawing.OTHER and found[drawing.UNKNOWN] == drawing.GREY


def test_real_films(shared_data, tmp_path):
  films = sorted((shared_data / 'action_video_real').glob('*.mp4'))
  if not films:
    pytest.skip('no films')
  predictor = made()[2]
  for path in films:
    rows = predictor(path)
    assert [row['time'] for row in rows] == list(range(1, 11))  # 10.01 s each
    sure = np.array([[row[f'p_{k}'] for k in range(1, 6)] for row in rows])
    assert np.isfinite(sure).all() and (sure > 0).all() and (sure.sum(1) <= 1 + 1e-6).all()
    assert (np.diff(sure) <= 0).all()
    assert all(0 < row['p_recognised'] <= 1 and 0 < row['p_verb'] <= 1 + 1e-6 for row in rows)
