"""Face frames promise: rows for networks, an even choice of frames, subjects on one side only."""

import json

import cv2
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from core.data import face_frames, pipeline, records
from core.errors import UserError


def frame(i, size=12):
  image = np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8)
  live = i % 2
  return f'frame{i}', {
    'image': image,
    'label': face_frames.LABELS[live],
    'attack': 'live' if live else 'print',
    'domain': f'd{i % 2}',
    'subject': f's{i // 4}',
    'video': f'v{i // 2}',
    'frame': i,
    'frames_total': 9,
    'landmarks': face_frames.NO_LANDMARKS,
    'info': json.dumps({'margin': 0.1}),
  }


def test_frames_travel_from_records_to_batches(tmp_path):
  records.write(tmp_path, 'faces', {'train': map(frame, range(10))}, face_frames.FEATURES)
  read = records.Records(tmp_path, 'faces', 'train')
  expected = {'key', 'label', 'attack', 'domain', 'subject', 'video', 'frame', 'frames_total', 'info'}
  assert set(read.table) == expected
  batch = next(iter(pipeline.eval_batches(read, 4, face_frames.ToRow(8, landmarks=True))))
  assert batch['image'].shape == (4, 8, 8, 3) and batch['image'].dtype == np.float32
  assert batch['image'].min() >= 0 and batch['image'].max() <= 1
  assert batch['label'].tolist() == [0, 1, 0, 1] and batch['attack'].tolist() == [1, 0, 1, 0]
  assert batch['domain'].tolist() == ['d0', 'd1', 'd0', 'd1'] and np.isnan(batch['landmarks']).all()


def test_resize_is_exact_at_the_same_size_and_unfiltered_below():
  stripes = np.zeros((8, 8, 3), np.uint8)
  stripes[:, ::4] = 255
  np.testing.assert_array_equal(face_frames.resize(stripes, 8), stripes / np.float32(255))
  assert face_frames.resize(stripes, 2).max() == 0.0  # samples fall between the stripes; a filter would give 0.25


def test_landmarks_follow_the_pixels():
  image = np.zeros((32, 32, 3), np.uint8)
  cv2.circle(image, (20, 9), 3, (255, 255, 255), -1)
  record = {**frame(0)[1], 'image': image, 'label': 0, 'attack': 1, 'landmarks': np.tile([20.0, 9.0], (68, 1))}
  row = face_frames.to_row(record, 16, landmarks=True)
  weight = row['image'][..., 0]
  centre = [(weight * axis).sum() / weight.sum() for axis in np.meshgrid(range(16), range(16))]
  np.testing.assert_allclose(row['landmarks'][0], centre, atol=0.05)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), per_video=st.integers(1, 6))
def test_frames_are_spread_over_each_video(lengths, per_video):
  video = np.repeat([f'v{i % 3}' for i in range(len(lengths))], lengths)
  domain = np.repeat([f'd{i // 3}' for i in range(len(lengths))], lengths)
  number = np.concatenate([np.arange(n) for n in lengths])
  mixed = np.random.default_rng(0).permutation(len(number))
  table = {'video': video[mixed], 'domain': domain[mixed], 'frame': number[mixed]}
  chosen = face_frames.sample_frames(table, per_video)
  assert np.all(np.diff(chosen) > 0)
  names = np.char.add(table['domain'], table['video'])
  for name in np.unique(names):
    members = chosen[names[chosen] == name]
    length = np.sum(names == name)
    found = sorted(table['frame'][members])
    assert len(found) == min(per_video, length) and found[0] == 0
    assert per_video == 1 or found[-1] == length - 1


def test_no_subject_is_on_both_sides_and_the_draw_is_stable():
  domain = np.repeat(['a', 'b'], 60)
  subject = np.tile(np.repeat([f's{i}' for i in range(20)], 3), 2)
  table = {'domain': domain, 'subject': subject}
  mask = face_frames.held_out_subjects(table, 0.15, seed=1)
  for name in 'ab':
    inside = domain == name
    held, kept = set(subject[inside & mask]), set(subject[inside & ~mask])
    assert len(held) == 3 and not held & kept
  assert set(subject[mask & (domain == 'a')]) != set(subject[mask & (domain == 'b')])
  order = np.random.default_rng(0).permutation(120)[:119]
  again = face_frames.held_out_subjects({k: v[order] for k, v in table.items()}, 0.15, seed=1)
  np.testing.assert_array_equal(again, mask[order])
  assert not np.array_equal(face_frames.held_out_subjects(table, 0.15, seed=2), mask)
  assert not face_frames.held_out_subjects(table, 0.0, seed=1).any()


def test_what_cannot_be_split_is_refused():
  table = {'domain': np.array(['a', 'a']), 'subject': np.array(['s', 's'])}
  with pytest.raises(UserError, match='one subject'):
    face_frames.held_out_subjects(table, 0.5, seed=0)
  with pytest.raises(UserError, match='outside'):
    face_frames.held_out_subjects(table, 1.5, seed=0)
