"""Rows of the three stages: what they hold, that they never look ahead, that training sees no validation footage."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from video.arr import data
from video.arr.annotations import tables
from video.arr.grid import Grid, Timelines

GRID = Grid(clips=3, spacing=1.0, anticipation=1.0, frames=2, span=1.0)


def segments(rows):
  """Columns of (video, start, stop, action, split)."""
  video, start, stop, action, split = zip(*rows)
  return tables.columns({
    'uid': [f's{i}' for i in range(len(rows))], 'video': video, 'participant': ['P'] * len(rows), 'start': start,
    'stop': stop, 'verb': [-1] * len(rows), 'noun': [-1] * len(rows), 'action': action, 'split': split,
    'target': [True] * len(rows),
  })  # fmt: skip


class Film:
  """Pixels that say which moment they show: a media of constant pictures, in tenths of seconds."""

  kind = 'pixels'

  def __init__(self, height=20, width=24):
    self.shape, self.latest = (height, width), []

  def frames(self, video, times, limit):
    assert np.all(times <= limit)
    self.latest.append(float(np.max(times)))
    return np.stack([np.full((*self.shape, 3), round(10 * max(t, 0)) % 256, np.uint8) for t in times])

  def duration(self, video):
    return 30.0


def fold(rows, media=None, **changes):
  """A `Fold` without records."""
  made = data.Fold.__new__(data.Fold)
  made.config = _config(**changes)
  made.grid = GRID
  made.__dict__['annotations'] = tables.Annotations('toy', tables.Vocabulary(('a', 'b', 'c')), segments(rows))
  made.__dict__['media'] = media or Film()
  return made


def _config(**changes):
  from core import config as config_lib

  return config_lib.load('configs/video/arr.py', changes)


ROWS = [
  ('v', 2.0, 4.0, 0, 'train'), ('v', 6.0, 8.0, 1, 'val'), ('v', 20.0, 24.0, 2, 'train'), ('v', 24.0, 26.0, 1, 'train'),
  ('w', 5.0, 9.0, 1, 'val'),
]  # fmt: skip


def test_a_sample_is_the_clips_before_a_target():
  samples = fold(ROWS).samples('train')
  row = samples[2]
  assert len(samples) == 3 and row['video'] == 'v' and row['target'] == 1
  np.testing.assert_array_equal(row['ends'], [21.0, 22.0, 23.0])
  np.testing.assert_array_equal(row['label'], [2, 2, 2])
  first = samples[0]
  np.testing.assert_array_equal(first['pad'], [True, True, False])
  np.testing.assert_array_equal(first['label'], [3, 3, 3])


def test_training_sees_no_label_of_another_split_and_a_judge_sees_all():
  rows = [('v', 0.0, 3.0, 0, 'val'), ('v', 4.0, 5.0, 1, 'train'), ('v', 6.0, 7.0, 2, 'val')]
  here = fold(rows)
  np.testing.assert_array_equal(here.samples('train')[0]['label'], [3, 3, 3])
  np.testing.assert_array_equal(here.samples('val')[1]['label'], [3, 1, 3])
  np.testing.assert_array_equal(here.samples('val').grids['label'][1], [3, 1, 3])


def test_windows_of_pretraining_avoid_what_validation_looks_at():
  found = fold(ROWS).windows()
  assert {video for video, _ in found.rows} == {'v'}  # w holds nothing but validation
  for i, (_, end) in enumerate(found.rows):
    row = found[i]
    assert len(row['ends']) == GRID.clips + 1
    assert end < 2.0 or row['ends'][0] - 1.0 >= 8.0 or end <= 6.0 - 1.0 - 3.0
  freely = fold(ROWS, **{'data.transductive': True}).windows()
  assert len(freely) > len(found)


def test_a_moment_lies_in_its_segment_or_gap():
  moments = fold(ROWS).moments()
  rng = np.random.default_rng(0)
  seen = set()
  for i in list(range(len(moments))) * 20:
    low, high = moments[i]['low'], moments[i]['high']
    row = moments.draw({**moments[i], 'id': i}, rng)
    assert low <= row['ends'][0] <= high
    expected = Timelines(fold(ROWS).training.segments_of('v'), 3).labels('v', row['ends'])
    assert row['label'] == expected
    seen.add(int(row['label'][0]))
  assert seen == {0, 1, 2, 3}
  ignoring = fold(ROWS, **{'loss.unknown': 'ignore'}).moments()
  assert len(ignoring) == 3


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.0, 30.0), min_size=1, max_size=5), st.booleans())
def test_no_frame_after_the_observation_is_asked_for(starts, training):
  film = Film()
  rows = [('v', start, start + 1.0, 0, 'val') for start in starts]
  here = fold(rows, film)
  reader = data.Reader(film, GRID, data.View(16, (18, 20), True))
  samples = here.samples('val')
  for i in range(len(samples)):
    row = reader({**samples[i], 'id': i}, np.random.default_rng(i) if training else None)
    assert film.latest[-1] <= samples.targets['start'][i] - GRID.anticipation + 1e-9
    assert row['inputs'].shape == (3, 2, 16, 16, 3) and row['inputs'].dtype == np.uint8


def test_a_picture_shows_the_moment_that_it_is_read_for():
  reader = data.Reader(Film(), GRID, data.View(16, (18, 20), False))
  row = reader({'video': 'v', 'ends': np.array([3.0, 4.0, 5.0]), 'id': 0})
  np.testing.assert_array_equal(row['inputs'][:, :, 0, 0, 0], [[25, 30], [35, 40], [45, 50]])


def test_one_crop_for_all_frames_of_a_sample_and_the_same_draw_for_the_same_key():
  film = np.random.default_rng(0).integers(0, 255, (1, 40, 60, 3), np.uint8).repeat(4, axis=0)
  view = data.View(24, (30, 40), True)
  one, two = view(film, np.random.default_rng(5)), view(film, np.random.default_rng(5))
  np.testing.assert_array_equal(one, two)
  np.testing.assert_array_equal(one[0], one[3])
  drawn = [view(film, np.random.default_rng(seed)) for seed in range(6)]
  assert any(not np.array_equal(drawn[0], other) for other in drawn[1:])


def test_six_views_are_three_crops_and_their_mirrors():
  film = np.random.default_rng(0).integers(0, 255, (2, 30, 50, 3), np.uint8)
  views = data.View(30, (30, 34), True, views=6)(film, None)
  assert views.shape == (6, 2, 30, 30, 3)
  np.testing.assert_array_equal(views[0], film[:, :, :30])
  np.testing.assert_array_equal(views[2], film[:, :, 20:])
  np.testing.assert_array_equal(views[3:], views[:3, :, :, ::-1])
  with pytest.raises(UserError, match='views is 2'):
    data.View(30, (30, 34), True, views=2)
  with pytest.raises(UserError, match=r'shorter is \(20, 34\)'):
    data.View(30, (20, 34), True)


def test_synthetic_features_are_their_prototype_where_there_is_no_noise():
  clean, noisy = (data.Prototypes.draw(3, 8, noise) for noise in (0.0, 0.5))
  row = {'video': 'v', 'ends': np.array([1.0, 2.0]), 'label': np.array([3, 1])}
  np.testing.assert_allclose(clean(row, None), clean.vectors[[3, 1]])
  np.testing.assert_array_equal(noisy(row, None), noisy(row, None))
  assert not np.array_equal(noisy(row, np.random.default_rng(0)), noisy(row, np.random.default_rng(1)))
  assert 0.2 < np.linalg.norm(noisy(row, None) - clean(row, None), axis=1).mean() < 0.8


def test_a_split_without_targets_is_named():
  with pytest.raises(UserError, match="no split 'vla'.*Did you mean 'val'"):
    fold(ROWS).targets('vla')
  nothing = [('v', 0.5, 1.0, 0, 'train'), ('v', 9.0, 9.5, 0, 'val')]
  with pytest.raises(UserError, match='no segment that can be anticipated'):
    fold(nothing).targets('train')


def test_no_room_for_a_window_is_said():
  short = [('v', 2.0, 4.0, 0, 'train')]
  here = fold(short)
  here.grid = dataclasses.replace(GRID, clips=60)
  with pytest.raises(UserError, match='pretraining.steps=0'):
    here.windows()
