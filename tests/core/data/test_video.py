"""Frames come back by their number and upright, from every container; damage is told."""

import av
import cv2
import numpy as np
import pytest

from core.data import video
from core.errors import UserError

# Every container and codec that the public datasets use, as far as PyAV's wheel can encode it.
KINDS = [('avi', 'mjpeg'), ('avi', 'mpeg4'), ('mov', 'mpeg4'), ('mov', 'mjpeg'), ('mp4', 'h264'), ('mp4', 'mpeg4')]


def numbered(count=12, height=48, width=64):
  """Frames that tell their number by their brightness, and their orientation by a dark top-left corner."""
  frames = [np.full((height, width, 3), 60 + 12 * i, np.uint8) for i in range(count)]
  for frame in frames:
    frame[: height // 3, : width // 4] = 0
  return frames


def number_of(frame):
  return round((float(np.median(frame)) - 60) / 12)


@pytest.mark.parametrize(('suffix', 'codec'), KINDS)
def test_frames_come_back_by_their_number(tmp_path, suffix, codec):
  path = tmp_path / f'a.{suffix}'
  video.write(path, numbered(), fps=10, codec=codec)
  about = video.info(path)
  assert (about.width, about.height, about.frames, about.frames_stated) == (64, 48, 12, 12)
  assert about.codec == codec and about.fps == pytest.approx(10) and about.rotation == 0 and not about.truncated
  problems = []
  found = video.frames(path, [7, 2, 11], problems=problems)
  assert [i for i, _ in found] == [2, 7, 11] == [number_of(f) for _, f in found] and not problems
  for _, frame in found:
    assert frame.dtype == np.uint8 and frame.shape == (48, 64, 3) and frame[4, 4].max() < 30
  assert [i for i, _ in video.frames(path, linspace=5)] == [0, 2, 5, 8, 11]
  assert [(i, number_of(f)) for i, f in video.iterate(path)] == [(i, i) for i in range(12)]
  assert len(video.frames(path)) == 12


@pytest.mark.parametrize('suffix', ['mp4', 'mov'])
@pytest.mark.parametrize('rotation', [0, 90, 180, 270])
@pytest.mark.parametrize('mirrored', [False, True])
def test_rotation_tags_are_honoured(tmp_path, suffix, rotation, mirrored):
  path, stored = tmp_path / f'a.{suffix}', numbered(3)
  video.write(path, stored, rotation=rotation, mirrored=mirrored)
  expected = np.rot90(stored[0], rotation // 90)
  expected = expected[:, ::-1] if mirrored else expected
  (_, frame), about = video.frames(path, [0])[0], video.info(path)
  assert frame.shape == expected.shape == (about.height, about.width, 3)
  assert np.abs(frame.astype(int) - expected).mean() < 4
  assert (about.rotation, about.mirrored) == (rotation, mirrored)
  if not mirrored:  # OpenCV's reader turns by the tag too, and knows no mirrors.
    ok, reference = cv2.VideoCapture(str(path)).read()
    assert ok and np.abs(reference[..., ::-1].astype(int) - frame).mean() < 2


def test_avi_takes_no_rotation_tag(tmp_path):
  with pytest.raises(UserError, match='no rotation tag'):
    video.write(tmp_path / 'a.avi', numbered(2), rotation=90)


def test_linspace_indices():
  assert video.linspace_indices(100, 5) == [0, 24, 49, 74, 99]
  assert video.linspace_indices(3, 5) == [0, 1, 2]
  assert video.linspace_indices(1, 5) == [0] and video.linspace_indices(9, 1) == [0]
  assert video.linspace_indices(0, 5) == []


def test_truncated_avi_gives_what_it_has_and_says_so(tmp_path):
  path = tmp_path / 'a.avi'
  rng = np.random.default_rng(0)
  noise = [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(20)]
  video.write(path, noise)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  about, problems = video.info(path), []
  assert about.truncated and 5 <= about.frames <= 12 and about.frames_stated == 20
  found = video.frames(path, linspace=5, problems=problems)
  assert 4 <= len(found) <= 5 and found[0][0] == 0 and found[-1][0] <= about.frames - 1
  assert any('truncated' in line and '20' in line for line in problems)
  with pytest.warns(UserWarning, match='truncated'):
    video.frames(path, [0])


def test_frames_beyond_the_end_are_reported(tmp_path):
  video.write(tmp_path / 'a.avi', numbered(4))
  problems = []
  assert [i for i, _ in video.frames(tmp_path / 'a.avi', [1, 9], problems=problems)] == [1]
  assert len(problems) == 1 and 'first: 9' in problems[0]


def overwrite_packet(path, number, start, length):
  """Zeroes bytes `start` to `start + length` of a video packet, after its 8-byte head."""
  with av.open(str(path)) as container:
    packets = [(p.pos, p.size) for p in container.demux(container.streams.video[0]) if p.size]
  position, size = packets[number]
  data = bytearray(path.read_bytes())
  begin, end = position + max(8, start), position + min(size, start + length)
  data[begin:end] = bytes(end - begin)
  path.write_bytes(data)


@pytest.mark.parametrize(('length', 'left', 'words'), [(10**6, 8, 'could not be decoded'), (100, 9, 'with errors')])
def test_broken_packets_are_counted(tmp_path, length, left, words):
  path = tmp_path / 'a.avi'
  rng = np.random.default_rng(0)
  video.write(path, [rng.integers(0, 255, (96, 128, 3), dtype=np.uint8) for _ in range(9)], codec='mpeg4')
  overwrite_packet(path, 3, 0 if length > 100 else 2000, length)
  problems = []
  assert len(video.frames(path, problems=problems)) == left
  assert any(words in line and line.startswith('1 ') for line in problems)


def write_sound_only(path):
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('pcm_s16le', rate=8000)
    sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format='s16', layout='mono')
    sound.sample_rate = 8000
    container.mux(stream.encode(sound))
    container.mux(stream.encode())


def test_titles_in_any_encoding_are_no_obstacle(tmp_path):
  path = tmp_path / 'a.mov'
  with av.open(str(path), 'w') as container:
    container.metadata['title'] = 'TITLE'
    stream = container.add_stream('mjpeg', rate=10)
    stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuvj420p'
    for frame in numbered(3):
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
    container.mux(stream.encode())
  data = path.read_bytes()
  assert data.count(b'TITLE') == 1
  path.write_bytes(data.replace(b'TITLE', '\u6d3b\u4f53'.encode('gbk') + b' '))
  assert len(video.frames(path)) == 3


@pytest.mark.parametrize(('suffix', 'codec'), KINDS)
def test_any_damage_gives_frames_or_a_user_error(tmp_path, suffix, codec):
  path, rng, outcomes = tmp_path / f'a.{suffix}', np.random.default_rng(0), set()
  video.write(path, numbered(4), codec=codec)
  data = path.read_bytes()
  for _ in range(30):
    damaged = bytearray(data)
    for at in rng.integers(0, len(data), rng.integers(1, 30)):
      damaged[at] = rng.integers(256)
    path.write_bytes(damaged[: rng.integers(len(data) // 2, 2 * len(data))])
    try:
      outcomes.add('read' if video.frames(path, linspace=3, problems=[]) else 'nothing')
    except UserError:
      outcomes.add('refused')
  assert outcomes == {'read', 'refused'}


def test_unreadable_videos_are_user_errors(tmp_path):
  path = tmp_path / 'a.mp4'
  with pytest.raises(UserError, match='No video file'):
    video.frames(path)
  path.write_bytes(b'')
  with pytest.raises(UserError, match='0 bytes'):
    video.info(path)
  path.write_bytes(b'no video at all' * 50)
  with pytest.raises(UserError, match='cannot be opened'):
    video.info(path)
  video.write(path, numbered())
  path.write_bytes(path.read_bytes()[:-400])  # the index of an mp4 lies at its end
  with pytest.raises(UserError, match='lost its index'):
    video.frames(path, linspace=3)
  write_sound_only(tmp_path / 'sound.avi')
  with pytest.raises(UserError, match='no video stream'):
    video.frames(tmp_path / 'sound.avi')
