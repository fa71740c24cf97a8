"""The time grid: what may be seen before an action, and what is going on at each clip. No leak is a property test."""

import functools
import os
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from video.arr import annotations, grid
from video.arr.annotations import tables

UNKNOWN = 7


def table(rows) -> dict[str, np.ndarray]:
  """Columns of (video, start, stop, action)."""
  videos, starts, stops, actions = zip(*rows)
  count = len(rows)
  return tables.columns({
    'uid': [f'{i:04d}' for i in range(count)], 'video': videos, 'participant': ['p'] * count, 'start': starts,
    'stop': stops, 'verb': [-1] * count, 'noun': [-1] * count, 'action': actions, 'split': ['train'] * count,
    'target': [True] * count,
  })  # fmt: skip


def scan(segments, video: str, time: float, unknown: int) -> int:
  """The label of one moment, by looking at every segment: what `Timelines` must equal."""
  label, latest = unknown, -np.inf
  for i in range(len(segments['start'])):
    covers = segments['video'][i] == video and segments['start'][i] <= time < segments['stop'][i]
    if covers and segments['action'][i] >= 0 and segments['start'][i] >= latest:
      label, latest = int(segments['action'][i]), segments['start'][i]
  return label


@functools.cache
def real_or_generated() -> tuple[dict[str, np.ndarray], int]:
  """The validation segments of EPIC-KITCHENS-100 where the shared data lie beside the checkout; else made-up ones."""
  checkout = pathlib.Path(__file__).resolve().parents[3]
  root = pathlib.Path(os.environ.get('VERAX_SHARED_DATA', checkout.parent / 'shared' / 'data')) / 'action_anticipation'
  if root.is_dir():
    found = annotations.read('epic_kitchens_100', root)
    return tables.select(found.segments, found.segments['split'] == 'val'), found.vocabulary.classes
  rng = np.random.default_rng(0)
  starts = np.round(rng.uniform(0, 300, 600), 2)
  rows = zip(rng.choice(['a', 'b', 'c'], 600), starts, starts + rng.exponential(2, 600) + 0.1, rng.integers(0, 7, 600))
  return table(list(rows)), UNKNOWN


@functools.cache
def timelines() -> grid.Timelines:
  return grid.Timelines(*real_or_generated())


grids = st.builds(
  lambda clips, spacing, anticipation, frames, part: grid.Grid(clips, spacing, anticipation, frames, spacing * part),
  st.integers(1, 30), st.floats(0.1, 5), st.floats(0.01, 5), st.integers(1, 16), st.floats(0.1, 1),
)  # fmt: skip
quarters = st.integers(0, 40).map(lambda i: i / 4)
"""Times that often coincide, so that edges and ties are met."""
rows = st.tuples(st.sampled_from('ab'), quarters, quarters, st.integers(-1, UNKNOWN - 1))
tiny = st.lists(rows, min_size=1, max_size=12).map(lambda found: table([(v, a, a + b, c) for v, a, b, c in found]))


# The grid.


def test_default_grid_by_hand():
  found = grid.Grid(clips=3, spacing=2.0, anticipation=0.5, frames=4, span=1.0)
  np.testing.assert_array_equal(found.ends(10.0), [5.5, 7.5, 9.5])
  np.testing.assert_array_equal(found.ends(np.zeros((2, 5))).shape, (2, 5, 3))
  np.testing.assert_array_equal(found.times(9.5), [8.75, 9.0, 9.25, 9.5])
  assert found.length == 6.0 and grid.Grid(frames=1).times(3.0).tolist() == [3.0]


@given(grids, st.integers(0, 2**31))
@settings(deadline=None, max_examples=100)
def test_nothing_is_seen_after_tau_s_minus_tau_a(chosen, pick):
  """For segments of real videos: no frame is late, none lies outside its clip, and the grid ends where it must."""
  segments, _ = real_or_generated()
  start = segments['start'][np.random.default_rng(pick).integers(0, len(segments['start']), 200)]
  ends = chosen.ends(start)
  times = chosen.times(ends)
  assert times.shape == (200, chosen.clips, chosen.frames)
  assert np.all(times <= (start - chosen.anticipation)[:, None, None])
  np.testing.assert_array_equal(ends[:, -1], start - chosen.anticipation)
  np.testing.assert_array_equal(times[..., -1], ends)
  assert np.all(times > ends[..., None] - chosen.span) and np.all(np.diff(times, axis=-1) > 0)
  np.testing.assert_allclose(np.diff(ends, axis=-1), chosen.spacing, atol=1e-6)
  # Frames as they are numbered by a reader: none beyond floor((tau_s - tau_a) * fps).
  assert np.all(np.floor(times * 30) <= np.floor((start - chosen.anticipation) * 30)[:, None, None])


def test_the_clip_after_the_last_ends_at_the_start_of_the_action():
  """t_{T+1} = tau_s when the spacing is the anticipation time: next-action prediction IS anticipation."""
  segments, _ = real_or_generated()
  for tau in (0.5, 1.0):
    chosen = grid.Grid(spacing=tau, anticipation=tau, span=tau)
    np.testing.assert_allclose(chosen.ends(segments['start'])[:, -1] + tau, segments['start'], atol=1e-9)


@pytest.mark.parametrize(
  ('keys', 'message'),
  [
    ({'clips': 0}, 'clips'), ({'spacing': -1.0}, 'spacing'), ({'anticipation': 0.0}, 'anticipation'),
    ({'frames': 0}, 'frames'), ({'span': float('nan')}, 'span'), ({'spacing': 0.5}, 'would overlap'),
  ],
)  # fmt: skip
def test_impossible_grids_are_refused(keys, message):
  with pytest.raises(UserError, match=message):
    grid.Grid(**keys)
  assert grid.Grid(spacing=0.5, frames=1).span == 1.0  # one frame per clip: the span says nothing


# Labels.


@given(tiny, st.lists(st.integers(-8, 90).map(lambda i: i / 8), min_size=1, max_size=30))
@settings(deadline=None, max_examples=200)
def test_labels_equal_a_scan_of_all_segments(segments, times):
  found = grid.Timelines(segments, UNKNOWN)
  assert found.videos == tuple(sorted(set(segments['video'].tolist())))
  for video in found.videos:
    labels = found.labels(video, np.array(times))
    assert labels.dtype == np.int32
    assert labels.tolist() == [scan(segments, video, time, UNKNOWN) for time in times]


def test_labels_of_real_grids_equal_a_scan():
  segments, unknown = real_or_generated()
  rng = np.random.default_rng(1)
  for i in rng.integers(0, len(segments['start']), 60):
    video = str(segments['video'][i])
    own = tables.select(segments, segments['video'] == video)
    found = grid.window(timelines(), grid.Grid(), video, segments['start'][i])
    expected = [scan(own, video, t, unknown) if t > 0 else unknown for t in found['ends']]
    assert found['label'].tolist() == expected


def test_label_rules_by_hand():
  segments = table(
    [('v', 1.0, 9.0, 0), ('v', 2.0, 3.0, 1), ('v', 2.0, 4.0, 2), ('v', 5.0, 6.0, -1), ('w', 0.0, 99.0, 3)]
  )
  found = grid.Timelines(segments, UNKNOWN)
  asked = {0.999: UNKNOWN, 1.0: 0, 2.0: 2, 2.999: 2, 3.999: 2, 4.0: 0, 5.5: 0, 8.999: 0, 9.0: UNKNOWN}
  assert {time: int(found.labels('v', time)) for time in asked} == asked
  assert found.segments_of('v')['action'].tolist() == [0, 1, 2, -1]
  with pytest.raises(UserError, match="'P01_1O' is annotated.*mean 'P01_10'"):
    grid.Timelines(table([('P01_10', 0.0, 1.0, 0)]), 1).labels('P01_1O', 0.0)


def test_a_short_video_is_padded_and_unknown():
  segments = table([('v', 0.0, 2.5, 4), ('v', 2.5, 4.0, 5)])
  found = grid.window(grid.Timelines(segments, UNKNOWN), grid.Grid(clips=5), 'v', 2.5)
  np.testing.assert_allclose(found['ends'], [-2.5, -1.5, -0.5, 0.5, 1.5])
  assert found['pad'].tolist() == [True, True, True, False, False]
  assert found['label'].tolist() == [UNKNOWN, UNKNOWN, UNKNOWN, 4, 4]
  # A clip that ends exactly at 0 shows nothing, though a segment starts there.
  assert grid.window(grid.Timelines(segments, UNKNOWN), grid.Grid(clips=1), 'v', 1.0)['label'].tolist() == [UNKNOWN]


def test_windows_equal_window_by_window():
  segments, unknown = real_or_generated()
  shuffled = tables.select(segments, np.random.default_rng(2).permutation(len(segments['start'])))
  found = grid.windows(grid.Timelines(segments, unknown), grid.Grid(), shuffled)
  for i in range(0, len(shuffled['start']), 97):
    one = grid.window(timelines(), grid.Grid(), str(shuffled['video'][i]), shuffled['start'][i])
    for name in ('ends', 'label', 'pad'):
      np.testing.assert_array_equal(found[name][i], one[name])
      assert found[name].dtype == one[name].dtype


def test_the_order_of_the_segments_does_not_matter_but_for_ties():
  segments = table([('v', 1.0, 9.0, 0), ('v', 2.0, 3.0, 1), ('w', 2.0, 4.0, 2)])
  backwards = tables.select(segments, slice(None, None, -1))
  times = np.linspace(0, 10, 41)
  for video in 'vw':
    one, other = (grid.Timelines(rows, UNKNOWN).labels(video, times) for rows in (segments, backwards))
    np.testing.assert_array_equal(one, other)


# Windows for label-free training.

intervals = st.lists(st.tuples(quarters, quarters).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=5)


@given(grids, intervals, st.floats(0, 40), st.floats(0.1, 3))
@settings(deadline=None, max_examples=200)
def test_free_windows_touch_nothing_blocked_and_no_free_one_is_lost(chosen, blocked, duration, step):
  found = grid.free_ends(grid.Timelines(table([('v', 0.0, 1.0, 0)]), UNKNOWN), chosen, 'v', duration, blocked, step)
  assert np.all(found <= duration + 1e-9) and np.all(found >= chosen.length)
  tried = [
    chosen.length + step * i for i in range(int((duration - chosen.length) / step) + 1) if duration >= chosen.length
  ]
  free = [t for t in tried if all(t < low or t - chosen.length >= high for low, high in blocked)]
  np.testing.assert_array_equal(found, free)


def test_egtea_trap_training_windows_avoid_what_validation_looks_at():
  everything = table([('v', float(i), i + 1.0, i % 3) for i in range(0, 60, 4)])
  validation = grid.Timelines(tables.select(everything, np.array([5, 11])), UNKNOWN)
  whole, chosen = grid.Timelines(everything, UNKNOWN), grid.Grid(clips=3)
  blocked = grid.observed(validation, chosen, 'v')
  np.testing.assert_array_equal(blocked, [[16, 19], [40, 43]])
  ends = grid.free_ends(whole, chosen, 'v', None, blocked, 0.5)
  assert ends[0] == 3.0 and ends[-1] == 57.0  # until the last segment stops
  looked_at = chosen.times(chosen.ends(np.array([20.0, 44.0]))).ravel()
  for end in ends:
    assert not np.any((looked_at > end - chosen.length) & (looked_at <= end))
  assert 15.5 in ends and 16.0 not in ends and 21.5 not in ends and 22.0 in ends
  assert len(grid.free_ends(whole, chosen, 'v', 2.9, [], 0.5)) == 0  # shorter than a window


def test_real_grids_have_the_shares_of_unknown_that_the_specification_measured():
  segments, unknown = real_or_generated()
  if unknown == UNKNOWN:
    pytest.skip('no real annotations')
  found = grid.windows(timelines(), grid.Grid(), segments)
  assert abs(np.mean(found['label'] == unknown) - 0.31) < 0.01  # spec 4.1
  assert abs(np.mean(found['label'][:, -1] == unknown) - 0.36) < 0.015
  assert int(np.sum(segments['start'] - 1.0 < 1 / 30)) == 30  # spec 5.1
