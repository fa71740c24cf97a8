"""The frame shown at a time is the one that decoding from the start shows, and nothing behind a limit is touched."""

import math

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_films import decode, encode, number_of

from core.data import seek, video
from core.errors import UserError

RNG = np.random.default_rng(0)
UNEVEN = np.cumsum(np.r_[0, RNG.integers(5, 90, 149)])
B_FRAMES = {'bf': '3', 'b_strategy': '0', 'g': '60', 'sc_threshold': '0'}

# name -> (ending, arguments of `encode`, whether times are counted because the container states none)
FILMS = {
  'mp4 long': ('mp4', {'rate': '60000/1001', 'options': {'g': '250'}}, False),
  'mp4 b-frames': ('mp4', {'rate': '30000/1001', 'options': B_FRAMES}, False),
  'mp4 open gop': ('mp4', {'options': B_FRAMES | {'x264-params': 'open-gop=1:keyint=30'}}, False),
  'mp4 refresh': ('mp4', {'options': {'g': '40', 'x264-params': 'intra-refresh=1:bframes=0'}}, False),
  'mp4 uneven': ('mp4', {'options': B_FRAMES | {'g': '40'}, 'ticks': UNEVEN}, False),
  'mp4 late': ('mp4', {'options': B_FRAMES, 'ticks': UNEVEN + 700}, False),
  'mp4 cut': ('mp4', {'options': {'g': '40', 'bf': '0'}, 'ticks': UNEVEN - 700}, False),  # an edit list drops the start
  'mkv b-frames': ('mkv', {'rate': '60000/1001', 'options': B_FRAMES}, False),
  'mkv uneven': ('mkv', {'options': B_FRAMES, 'ticks': UNEVEN}, False),
  'mkv late': ('mkv', {'options': {'g': '25'}, 'ticks': UNEVEN + 700}, False),
  'mp4 mpeg4': ('mp4', {'codec': 'mpeg4', 'options': {'bf': '2', 'g': '50', 'sc_threshold': '1000000000'}}, False),
  'mpg': ('mpg', {'codec': 'mpeg2video', 'rate': 25, 'options': {'bf': '2', 'g': '15'}}, False),
  'webm': ('webm', {'codec': 'libvpx-vp9', 'options': {'g': '60', 'deadline': 'realtime', 'cpu-used': '8'}}, False),
  'avi': ('avi', {'codec': 'mpeg4', 'rate': 24, 'options': {'g': '50', 'sc_threshold': '1000000000'}}, False),
  'avi mjpeg': ('avi', {'codec': 'mjpeg', 'rate': 24}, False),
  'avi b-frames': ('avi', {'codec': 'h264', 'options': B_FRAMES}, True),
  'avi mpeg4 b': ('avi', {'codec': 'mpeg4', 'options': {'bf': '2', 'g': '50', 'sc_threshold': '1000000000'}}, True),
}


@pytest.fixture(scope='module', params=FILMS)
def film(request, tmp_path_factory):
  """(open Seeker, times, numbers) of one kind of film, 150 frames."""
  suffix, arguments, counted = FILMS[request.param]
  path = encode(tmp_path_factory.mktemp('film') / f'a.{suffix}', 150, **arguments)
  times, numbers = decode(path, counted)
  assert len(set(numbers)) > 130 and np.all(np.diff(times) > 0)  # the comparison tells frames apart
  with seek.Seeker(path) as seeker:
    yield seeker, times, numbers


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_frames_by_time_are_those_of_decoding_from_the_start(film, data):
  seeker, times, numbers = film
  anywhere = st.floats(-1, times[-1], allow_subnormal=False)
  asked = data.draw(st.lists(anywhere | st.sampled_from(times.tolist()), max_size=6))
  limit = data.draw(st.none() | st.floats(0, times[-1] + 1))
  found = seeker.at(asked, limit=limit)
  ceiling = math.inf if limit is None else limit
  wanted = [max(int(np.searchsorted(times, min(t, ceiling), side='right')) - 1, 0) for t in asked]
  assert [number_of(frame) for frame in found] == [numbers[i] for i in wanted]
  assert all(times[i] <= max(min(t, ceiling), 0) for i, t in zip(wanted, asked))


def test_a_film_that_is_played_gives_every_frame_at_its_time(film):
  seeker, times, numbers = film
  played = [(time, number_of(read())) for time, read in seeker.play()]
  np.testing.assert_allclose([time for time, _ in played], times, atol=1e-9)
  assert [number for _, number in played] == numbers
  time, read = next(seeker.play())  # left early, and begun again
  assert time == 0 and number_of(read()) == numbers[0]


def test_duration_is_the_end_of_the_last_frame(film):
  seeker, times, _ = film
  frame = np.median(np.diff(times))
  assert times[-1] + 0.2 * frame < seeker.duration < times[-1] + 3 * frame
  assert seek.duration(seeker.path) == seeker.duration


@pytest.mark.parametrize(('b_frames', 'reordering'), [('0', 0), ('3', 3)])
def test_neither_the_past_nor_the_future_is_decoded(tmp_path, b_frames, reordering):
  path = encode(
    tmp_path / 'a.mp4', 600, rate=10, options={'g': '50', 'bf': b_frames, 'b_strategy': '0', 'sc_threshold': '0'}
  )
  with seek.Seeker(path) as seeker:
    seeker.at([59.5])
    assert seeker.decoded <= 46 + reordering  # frames 550 to 595 of 600
    for limit in (0.0, 0.3, 7.4, 12.3, 31.0):
      seeker.decoded = 0
      numbers = [number_of(frame) for frame in seeker.at([0.0, limit, 60.0], limit=limit)]
      needed = round(limit * 10) % 50 + 1 + (1 if limit >= 5 else 0)  # and frame 0
      assert numbers == [0, round(limit * 10), round(limit * 10)]
      assert needed <= seeker.decoded <= needed + reordering
    seeker.decoded = 0
    seeker.at([t / 10 for t in range(100, 150)])
    assert seeker.decoded == 50  # one key frame, one run


def test_counted_frames_after_the_limit_are_not_decoded_either(tmp_path):
  path = encode(tmp_path / 'a.avi', 60, rate=10, options=B_FRAMES)
  with seek.Seeker(path) as seeker:
    assert number_of(seeker.at([9.0], limit=2.0)[0]) == 20
    assert 21 <= seeker.decoded <= 21 + 4  # four frames of delay: three B-frames, one of them a reference


def test_a_transform_is_applied_once_per_frame_as_it_is_found(tmp_path):
  path, sizes = encode(tmp_path / 'a.mp4', 10, rate=10), []
  with seek.Seeker(path) as seeker:
    found = seeker.at([0.5, 0.1, 0.55, 0.1], transform=lambda image: sizes.append(image.shape) or image[::2])
  assert [number_of(frame) for frame in found] == [5, 1, 5, 1]
  assert sizes == [(48, 64, 3)] * 2 and found[0] is found[2]


@pytest.mark.parametrize('rotation', [90, 180, 270])
def test_rotation_tags_are_honoured_after_a_seek(tmp_path, rotation):
  path = encode(tmp_path / 'a.mp4', 60, rate=10, options={'g': '20'}, rotation=rotation)
  (frame,) = video.at_times(path, [4.5])
  assert number_of(np.rot90(frame, -rotation // 90)) == 45
  assert frame.shape == ((64, 48, 3) if rotation % 180 else (48, 64, 3))


def test_times_past_the_end_give_the_last_frame_and_say_so(tmp_path):
  path, problems = encode(tmp_path / 'a.mp4', 30, rate=10), []
  found = video.at_times(path, [2.95, 3.0, 77.0], problems=problems)
  assert [number_of(frame) for frame in found] == [29, 29, 29]
  assert len(problems) == 1 and '2 times past the end' in problems[0] and '3 s' in problems[0]
  with pytest.warns(UserWarning, match='past the end'):
    video.at_times(path, [77.0])
  assert video.duration(path) == pytest.approx(3.0)


@pytest.mark.parametrize(
  ('suffix', 'codec', 'container'),
  [('mkv', 'h264', {}), ('avi', 'mpeg4', {}), ('mp4', 'h264', {'movflags': 'faststart'}), ('avi', 'h264', {})],
)
def test_a_truncated_file_ends_where_it_was_cut(tmp_path, suffix, codec, container):
  path = encode(tmp_path / f'a.{suffix}', 300, rate=10, codec=codec, options={'g': '20'}, container=container)
  path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
  problems = []
  early, late = video.at_times(path, [5.0, 29.9], problems=problems)
  end = video.duration(path)
  assert number_of(early) == 50 and 12 < end < 28 and abs(number_of(late) - end * 10) < 3
  assert any('past the end' in line for line in problems)


def blank_key_packet(path, number):
  """Zeroes the payload of a key packet of an avi file."""
  with av.open(str(path)) as file:
    keys = [(p.pos, p.size) for p in file.demux(file.streams.video[0]) if p.size and p.is_keyframe]
  data = bytearray(path.read_bytes())
  position, size = keys[number]
  data[position : position + size] = bytes(size)
  path.write_bytes(data)


def test_before_a_broken_key_frame_the_frame_before_is_shown(tmp_path):
  path, problems = tmp_path / 'a.avi', []
  encode(path, 60, rate=10, codec='mpeg4', options={'g': '20', 'sc_threshold': '1000000000'})
  blank_key_packet(path, 1)
  assert number_of(video.at_times(path, [2.0], problems=problems)[0]) == 19
  assert any('could not be decoded' in line for line in problems)


def test_of_a_broken_start_the_first_frame_that_decodes_is_shown_if_the_limit_allows(tmp_path):
  path, problems = encode(tmp_path / 'a.avi', 20, rate=10, codec='mjpeg'), []
  blank_key_packet(path, 0)
  first, later = video.at_times(path, [0.0, 0.5], limit=0.5, problems=problems)
  assert number_of(first) == 1 and number_of(later) == 5
  assert 'no frame before 0.1 s can be decoded' in problems
  with pytest.raises(UserError, match='no frame at or before 0.05 s'):
    video.at_times(path, [0.0], limit=0.05)


def test_any_damage_gives_frames_or_a_user_error(tmp_path):
  path, rng, outcomes = encode(tmp_path / 'a.mkv', 40, options={'g': '10'}), np.random.default_rng(0), set()
  data = path.read_bytes()
  for _ in range(40):
    damaged = bytearray(data)
    for at in rng.integers(0, len(data), rng.integers(1, 30)):
      damaged[at] = rng.integers(256)
    path.write_bytes(damaged[: rng.integers(len(data) // 3, 2 * len(data))])
    try:
      outcomes.add('read' if len(video.at_times(path, [0.0, 0.5, 1.0], problems=[])) == 3 else 'nothing')
    except UserError:
      outcomes.add('refused')
  assert outcomes == {'read', 'refused'}


def test_what_cannot_be_asked_is_refused(tmp_path):
  path = encode(tmp_path / 'a.mp4', 5)
  with pytest.raises(UserError, match='nothing at or before -0.5 s'):
    video.at_times(path, [0.0], limit=-0.5)
  with pytest.raises(ValueError, match='finite'):
    video.at_times(path, [float('nan')])
  with pytest.raises(UserError, match='No video file'):
    video.at_times(tmp_path / 'b.mp4', [0.0])
  assert video.at_times(path, []) == []


def test_real_films_agree_with_decoding_from_the_start(shared_data):
  paths = sorted((shared_data / 'action_video_real').glob('*.mp4'))
  if not paths:
    pytest.skip('no real videos there')
  for path in paths:
    whole = [frame for _, frame in video.iterate(path)]
    rate = 30000 / 1001
    numbers = np.random.default_rng(0).integers(0, len(whole), 12)
    found = video.at_times(path, [(n + 0.5) / rate for n in numbers])
    for number, frame in zip(numbers, found):
      np.testing.assert_array_equal(frame, whole[number])
    assert video.duration(path) == pytest.approx(len(whole) / rate)
