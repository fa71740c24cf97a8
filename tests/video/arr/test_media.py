"""Every source of pixels and features shows what is there at a time, nothing after the limit; odd files are told."""

import math
import pickle
import threading

import lmdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from numbered_media import (
  FPS,
  VIDEOS,
  annotate,
  number_of,
  picture,
  write_folders,
  write_lmdb,
  write_npy,
  write_records,
  write_videos,
)

from core.data import image
from core.errors import UserError
from video.arr import media

# kind -> (what writes it, what opens it, the number of its first frame)
SOURCES = {
  'records': (write_records, lambda root: media.Records(root, 'test', 48), 0),
  'videos': (write_videos, lambda root: media.Files(root, 48), 0),
  'frames': (write_folders, lambda root: media.Folders(root, 48, FPS), 1),
  'lmdb': (write_lmdb, lambda root: media.Lmdb(root, FPS), 1),
  'npy': (write_npy, lambda root: media.Npy(root, FPS, 3), 0),
}


@pytest.fixture(scope='module', params=SOURCES)
def source(request, tmp_path_factory):
  """(media, number of the first frame, function that reads the numbers at some times)."""
  write, build, first = SOURCES[request.param]
  opened = build(write(tmp_path_factory.mktemp('media') / 'all'))

  def numbers(video, times, limit):
    if opened.kind == 'pixels':
      return [number_of(frame) for frame in opened.frames(video, times, limit)]
    rows = opened.features(video, times, limit)
    assert rows.dtype == np.float32 and rows.shape == (len(times), 3)
    return rows[:, 0].astype(int).tolist()

  return opened, first, numbers


def shown(times, limit, first, count):
  """The definition, by a scan: the latest of the frames at i / FPS, from `first` on, that time and limit allow."""
  there = range(first, first + count)
  if not any(i / FPS <= limit for i in there):
    return None  # nothing has been seen
  allowed = [[i for i in there if i / FPS <= min(t, limit)] for t in times]
  return [max(frames, default=first) for frames in allowed]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_nothing_later_than_the_limit_is_ever_given(source, data):
  opened, first, numbers = source
  video = data.draw(st.sampled_from(sorted(VIDEOS)))
  count = VIDEOS[video]
  end = (first + count - 1) / FPS
  moment = st.floats(-1, end) | st.integers(-5, count - 1 + first).map(lambda i: i / FPS)
  limit = data.draw(moment)
  times = data.draw(st.lists(moment | st.just(limit), min_size=1, max_size=5))
  found = numbers(video, times, limit)
  expected = shown(times, limit, first, count)
  if expected is None:
    assert set(found) == {-1 if opened.kind == 'pixels' else 0}  # black, or zeros
  else:
    assert found == expected and all(number / FPS <= limit for number in found)


def test_sources_know_their_videos_and_how_long_they_are(source):
  opened, _, _ = source
  assert opened.videos() == ('P01_01', 'P01_102')
  assert [opened.duration(name) for name in opened.videos()] == pytest.approx([6.0, 4.5], abs=1e-6)
  assert opened.size == (48 if opened.kind == 'pixels' else 3)
  assert media.check(opened, annotate()) == []
  read = opened.frames if opened.kind == 'pixels' else opened.features
  for ask in (opened.duration, lambda name: read(name, [0], 1)):
    with pytest.raises(UserError, match="No video 'P01_10'.*Did you mean 'P01_1"):
      ask('P01_10')


def test_sources_travel_to_workers_and_serve_threads(source):
  opened, _, numbers = source
  before = numbers('P01_01', [3.05], 4.0)
  copy = pickle.loads(pickle.dumps(opened))
  read = copy.frames if copy.kind == 'pixels' else copy.features
  results = {}

  def work(i):
    results[i] = read('P01_01', [3.05, i / 4], 4.0)

  threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(results) == 8 and before == numbers('P01_01', [3.05], 4.0)
  for i, both in results.items():
    np.testing.assert_array_equal(both[0], results[0][0])
    np.testing.assert_array_equal(both, read('P01_01', [3.05, i / 4], 4.0))


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([4, 10, 23.976, 25, 30, 50, 59.94, 1000 / 3]))
def test_frame_numbers_do_not_fall_to_rounding(number, fps):
  assert media.latest([number / fps], math.inf, fps) == number
  assert media.latest([np.nextafter(number / fps, -np.inf)], math.inf, fps) == number - 1
  assert media.latest([1e9], number / fps, fps) == number


def test_the_shorter_side_is_scaled_and_the_aspect_kept():
  wide = picture(5, 96, 160)
  assert media.resize(wide, 48).shape == (48, 80, 3) and media.resize(wide.transpose(1, 0, 2), 48).shape == (80, 48, 3)
  assert media.resize(wide, 120).shape == (120, 200, 3) and media.resize(wide, 96) is wide
  assert number_of(media.resize(wide, 48)) == 5


# Where things lie.


@pytest.mark.parametrize(
  'form',
  ['{name}.mp4', '{participant}/{name}.MP4', '{participant}/videos/{name}.MP4', 'rgb/{name}.avi', 'x/{name}.mkv'],
)
def test_video_trees_of_every_layout(tmp_path, form):
  files = media.Files(write_videos(tmp_path, form, {'rgb-01-1': 12}), 24)
  (tmp_path / '._rgb-01-1.mp4').write_bytes(b'litter of another system')
  assert files.videos() == ('rgb-01-1',)
  frames = files.frames('rgb-01-1', [0.55], 0.6)
  assert frames.shape == (1, 24, 32, 3) and number_of(frames[0]) == 5


@pytest.mark.parametrize('form', ['{name}', '{participant}/rgb_frames/{name}', '{participant}/{name}'])
def test_frame_folders_of_every_layout(tmp_path, form):
  write_folders(tmp_path, form, {'P01_01': 9})
  image.write_jpg(tmp_path / 'P01/flow_frames/P01_02/u/frame_0000000001.jpg', picture(1))
  folders = media.Folders(tmp_path, 48, {'P01_01': FPS})
  assert folders.videos() == ('P01_01',) and number_of(folders.frames('P01_01', [0.55], 1)[0]) == 5


def test_gaps_in_extracted_frames_are_bridged_backwards(tmp_path):
  folders = media.Folders(write_folders(tmp_path, videos={'P01_01': 30}, without=(8, 9, 10)), 48, FPS)
  assert [number_of(frame) for frame in folders.frames('P01_01', [0.6, 0.9, 1.1], 5)] == [6, 7, 11]


def test_odd_folders_are_user_errors(tmp_path):
  with pytest.raises(UserError, match='No folder'):
    media.Files(tmp_path / 'nowhere', 48)
  (tmp_path / 'P01').mkdir()
  (tmp_path / 'P01' / 'P01_01.tar').write_bytes(b'')
  with pytest.raises(UserError, match='No video in'):
    media.Files(tmp_path, 48)
  with pytest.raises(UserError, match='No folder of images.*Unpack P01_01.tar'):
    media.Folders(tmp_path, 48, FPS)
  write_folders(tmp_path, videos={'P01_01': 5}, without=(1, 2))
  with pytest.raises(UserError, match="set config.data.media='frames'"):
    media.Files(tmp_path, 48)
  with pytest.raises(UserError, match='begins with frame 3, expected 1'):
    media.Folders(tmp_path, 48, FPS).frames('P01_01', [0], 1)
  image.write_jpg(tmp_path / 'P01/rgb_frames/P01_01/other_1.jpg', picture(0))
  with pytest.raises(UserError, match='images of 2 kinds'):
    media.Folders(tmp_path, 48, FPS).duration('P01_01')
  with pytest.raises(UserError, match="fps of the frames of 'P01_01'"):
    media.Folders(tmp_path, 48, {}).fps('P01_01')
  write_videos(tmp_path, videos={'P01_01': 3})
  write_videos(tmp_path, '{participant}/{name}.avi', videos={'P01_01': 3})
  with pytest.raises(UserError, match="'P01_01' occurs twice"):
    media.Files(tmp_path, 48)


def test_a_broken_image_names_its_file(tmp_path):
  write_folders(tmp_path, videos={'P01_01': 5})
  (tmp_path / 'P01/rgb_frames/P01_01/frame_0000000003.jpg').write_bytes(b'')
  folders = media.Folders(tmp_path, 48, FPS)
  assert number_of(folders.frames('P01_01', [0.2], 1)[0]) == 2
  with pytest.raises(UserError, match='frame_0000000003.jpg.*0 bytes'):
    folders.frames('P01_01', [0.3], 1)


# Feature stores.


def test_a_missing_key_is_searched_backwards_then_zero_and_counted(tmp_path):
  path = write_lmdb(tmp_path / 'rgb', {'a': 60, 'b': 3}, without=range(20, 40))
  store = media.Lmdb(path, FPS)
  with pytest.warns(UserWarning, match="features of 'a' are missing"):
    values = store.features('a', [1.9, 2.0, 2.8, 2.9, 3.9, 4.0, 6.9, 7.0], 100)[:, 0]
  assert values.tolist() == [19, 19, 19, 0, 0, 40, 60, 0] and store.missing == {'a': 3}
  assert store.features('b', [0.0, 0.05, 0.1, 0.3, 1.2], 100)[:, 0].tolist() == [1, 1, 1, 3, 3]
  assert not store.features('b', [0.05], 0.05).any() and store.missing == {'a': 3}  # nothing seen is not a missing key
  with pytest.warns(UserWarning, match='missing'):
    assert media.Lmdb(path, FPS, back=0).features('a', [2.0], 100).tolist() == [[0, 0, 0]]


def test_several_stores_are_concatenated(tmp_path):
  write_lmdb(tmp_path / 'rgb', width=3)
  write_lmdb(tmp_path / 'flow', width=3, offset=0.5)
  write_lmdb(tmp_path / 'obj', width=2, step=3, offset=0.25)
  assert [path.rsplit('/', 1)[1] for path in media.stores_of(tmp_path)] == ['rgb', 'flow', 'obj']
  store = media.Lmdb(media.stores_of(tmp_path), FPS, 8)
  assert store.size == 8 and store.features('P01_01', [0.6], 9)[0].tolist() == [6, 6, 6, 6.5, 6.5, 6.5, 4.25, 4.25]
  again = media.Lmdb(tmp_path / 'rgb', FPS), media.Lmdb(tmp_path / 'rgb' / 'data.mdb', FPS)  # a folder opened twice
  assert all(each.features('P01_01', [0.6], 9)[0, 0] == 6 for each in again)
  with pytest.raises(UserError, match=r'\[3, 3, 2\] values, 8 in all; expected 2400'):
    media.Lmdb(media.stores_of(tmp_path), FPS, 2400)
  with pytest.raises(UserError, match="'P01_02'"):
    store.features('P01_02', [0.6], 9)
  write_lmdb(tmp_path / 'more', {'P01_01': 60})
  both = media.Lmdb(media.stores_of(f'{tmp_path}/rgb, {tmp_path}/more'), FPS)
  assert both.videos() == ('P01_01',)
  with pytest.raises(UserError, match="No video 'P01_102'"):  # in one store only
    both.features('P01_102', [0.6], 9)


def spoil(path, how):
  data = (path / 'data.mdb').read_bytes()
  (path / 'data.mdb').write_bytes(how(data))


@pytest.mark.parametrize(
  ('how', 'words'),
  [
    (lambda data: data[: len(data) // 2], 'was cut off'),
    (lambda data: data[:8192], 'was cut off'),
    (lambda data: data[:100], 'is not an LMDB store'),
    (lambda data: b'', 'is not an LMDB store'),
    (lambda data: b'<!DOCTYPE html>' * 3000, 'is not an LMDB store'),
  ],
)
def test_a_corrupt_store_is_a_user_error(tmp_path, how, words):
  path = write_lmdb(tmp_path / 'rgb', {'a': 300})
  spoil(path, how)
  with pytest.raises(UserError, match=words):
    media.Lmdb(path, FPS)


def test_a_store_with_overwritten_pages_is_a_user_error(tmp_path):
  path = write_lmdb(tmp_path / 'rgb', {'a': 3000})
  spoil(path, lambda data: data[:8192] + b'\xff' * (len(data) - 8192))
  with pytest.raises(UserError, match='corrupt'):
    media.Lmdb(path, FPS).features('a', [1.0], 9)


def put(path, items):
  with lmdb.open(str(path), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
    for key, value in items:
      transaction.put(key, value)


def test_odd_stores_are_user_errors(tmp_path):
  write_lmdb(tmp_path / 'rgb')
  with pytest.raises(UserError, match=r"No LMDB store at .*flow/data.mdb.*'rgb'"):
    media.Lmdb(tmp_path / 'flow', FPS)
  with pytest.raises(UserError, match='rgb.*name the ones you mean'):
    media.stores_of(write_lmdb(tmp_path / 'TSN' / 'x_rgb').parent)
  put(tmp_path / 'empty', [])
  with pytest.raises(UserError, match='is empty'):
    media.Lmdb(tmp_path / 'empty', FPS)
  put(tmp_path / 'keys', [(b'video1/00001', b'1234')])
  with pytest.raises(UserError, match="the key 'video1/00001'"):
    media.Lmdb(tmp_path / 'keys', FPS)
  put(tmp_path / 'bytes', [(b'a_frame_0000000001.jpg', b'12345')])
  with pytest.raises(UserError, match='a value of 5 bytes'):
    media.Lmdb(tmp_path / 'bytes', FPS)
  put(tmp_path / 'rgb', [(b'P01_01_frame_0000000007.jpg', b'1234' * 2)])
  store = media.Lmdb(tmp_path / 'rgb', FPS)
  with pytest.raises(UserError, match="'P01_01_frame_0000000007.jpg'.*holds 8 bytes, expected 12"):
    store.features('P01_01', [0.7], 9)
  assert store.features('P01_01', [0.6], 9)[0, 0] == 6
  with pytest.raises(UserError, match='lie 15 frames apart'):
    media.Lmdb(write_lmdb(tmp_path / 'sparse', {'a': 200}, step=15), FPS)


@pytest.mark.parametrize('transposed', [False, True])
def test_arrays_of_either_orientation(tmp_path, transposed):
  root = write_npy(tmp_path / 'a', {'x': 20, 'y': 30}, width=7, transposed=transposed)
  for size in (0, 7):
    store = media.Npy(root, FPS, size)
    assert store.size == 7 and store.duration('y') == 3.0
    assert store.features('y', [-1, 0, 1.25, 2.9, 9], 9)[:, 6].tolist() == [0, 0, 12, 29, 29]


def test_odd_arrays_are_user_errors(tmp_path):
  with pytest.raises(UserError, match='No .npy file'):
    media.Npy(tmp_path, FPS)
  write_npy(tmp_path / 'features')
  with pytest.raises(UserError, match=r"give its folder \['features'\]"):
    media.Npy(tmp_path, FPS)
  with pytest.raises(UserError, match='Which axis'):
    media.Npy(tmp_path / 'features', FPS, 2048)
  one = write_npy(tmp_path / 'one', {'x': 20})
  with pytest.raises(UserError, match='feature_size is 0'):
    media.Npy(one, FPS)
  np.save(one / 'z.npy', np.ones((8, 5), np.float32))
  with pytest.raises(UserError, match=r'\(8, 5\)'):
    media.Npy(one, FPS, 3)
  for value, words in (
    (np.array([{}, 1], object), 'Pickled objects are refused'),
    (np.ones(5, np.float32), r'holds float32 \(5,\)'),
    (np.ones((5, 3), np.int64), r'holds int64 \(5, 3\)'),
  ):
    np.save(one / 'z.npy', value, allow_pickle=True)
    with pytest.raises(UserError, match=words):
      media.Npy(one, FPS, 3)
  (one / 'z.npy').write_bytes(b'no array')
  with pytest.raises(UserError, match='cannot be read as an array'):
    media.Npy(one, FPS, 3)


# Against the annotations, and from a config.


def test_check_tells_absent_unreadable_and_short_videos(tmp_path):
  files = media.Files(write_videos(tmp_path, videos=VIDEOS | {'P02_01': 20, 'P02_02': 20}), 48)
  (tmp_path / 'P02/videos/P02_02.MP4').write_bytes(b'')
  annotated = annotate(VIDEOS | {'P02_01': 60, 'P02_02': 60, 'P03_01': 30})
  problems = {path.split(': ')[1]: (kind, detail) for kind, path, detail in media.check(files, annotated)}
  assert {video: kind for video, (kind, _) in problems.items()} == {
    'P02_01': 'short video', 'P02_02': 'unreadable video', 'P03_01': 'absent video',
  }  # fmt: skip
  assert '2.00 s, its last segment ends at 6.00 s; 3 segments' in problems['P02_01'][1]
  assert '0 bytes' in problems['P02_02'][1] and problems['P03_01'][1] == '3 segments refer to it'
  with pytest.raises(UserError, match='none of the 1 videos that test names'):
    media.check(files, annotate({'OP01-R01': 30}))


@pytest.mark.parametrize(('stated', 'ratio'), [(30.0, '0.33'), (4.0, '2.50')])
def test_check_doubts_a_wrong_fps(tmp_path, stated, ratio):
  for wrong in (media.Lmdb(write_lmdb(tmp_path / 'a'), stated), media.Npy(write_npy(tmp_path / 'b'), stated, 3)):
    with pytest.raises(UserError, match=f'{ratio} times the stated one'):
      media.check(wrong, annotate())


def test_the_erratum_videos_are_named(tmp_path):
  videos = {'P01_109': 20}
  folders = media.Folders(write_folders(tmp_path, videos=videos), 48, FPS)
  assert [kind for kind, _, _ in media.check(folders, annotate(videos))] == ['known erratum']


def config(**changes):
  values = {
    'media': 'labels', 'media_root': '', 'media_fps': 10.0, 'feature_size': 0, 'pixels': 24, 'records': '',
    'dataset': 'test', 'root': '',
  }  # fmt: skip
  return ConfigDict(values | changes)


def test_open_follows_the_config(tmp_path):
  assert media.open(config()) is None
  write_records(tmp_path / 'records')
  for values, kind in (
    ({'media': 'records', 'records': str(tmp_path / 'records')}, media.Records),
    ({'media': 'videos', 'media_root': str(write_videos(tmp_path / 'videos'))}, media.Files),
    ({'media': 'frames', 'media_root': str(write_folders(tmp_path / 'frames'))}, media.Folders),
    ({'media': 'lmdb', 'media_root': str(write_lmdb(tmp_path / 'lmdb'))}, media.Lmdb),
    ({'media': 'npy', 'root': str(write_npy(tmp_path / 'npy'))}, media.Npy),
  ):
    opened = media.open(config(**values))
    assert type(opened) is kind and opened.size == (24 if opened.kind == 'pixels' else 3)
  (tmp_path / 'EPIC_100_video_info.csv').write_text('video_id,duration,fps,resolution\nP01_01,6.0,20.0,64x48\n')
  folders = media.open(config(media='frames', media_root=str(tmp_path / 'frames'), media_fps=0, root=str(tmp_path)))
  assert folders.fps('P01_01') == 20 and folders.duration('P01_01') == 3.0
  for values, words in (
    ({'media': 'video'}, "Did you mean 'videos'"),
    ({'media': 'videos'}, 'media_root'),
    ({'media': 'lmdb', 'media_root': str(tmp_path / 'lmdb'), 'media_fps': 0}, 'media_fps is 0'),
    ({'media': 'frames', 'media_root': str(tmp_path / 'frames'), 'media_fps': 0}, 'EPIC_100_video_info.csv'),
  ):
    with pytest.raises(UserError, match=words):
      media.open(config(**values))
