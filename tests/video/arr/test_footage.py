"""Videos become records of JPEGs at the asked rate and size; what is wrong with them is told and costs only itself."""

import av
import numpy as np
import pytest
from ml_collections import ConfigDict
from numbered_media import FPS, VIDEOS, annotate, number_of, picture, write_folders, write_videos

from core.data import records
from core.errors import UserError
from video.arr import footage, media


def config(root, **changes):
  values = {
    'dataset': 'test', 'media': 'records', 'media_root': str(root / 'raw'), 'media_fps': float(FPS), 'root': '',
    'records': str(root / 'records'), 'fps': 4.0, 'pixels': 24, 'workers': 0, 'overwrite': False,
  }  # fmt: skip
  return ConfigDict({'data': values | changes})


def prepared(root, name='test_frames'):
  return records.Records(root / 'records', name, 'frames')


def test_drawn_films_come_back_bit_for_bit(tmp_path):
  rng = np.random.default_rng(0)
  films = {name: [(i / 4, rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)) for i in range(5)] for name in ('a', 'b')}
  report = footage.write(tmp_path, 'drawn', films.items(), info={'seed': 0})
  assert report.counts == {'frames': 10} and not report.problems and report.dataset == 'drawn_frames'
  source = media.Records(tmp_path, 'drawn', 9)
  assert source.videos() == ('a', 'b') and source.duration('a') == 1.25
  for name, film in films.items():
    times = [time for time, _ in film]
    np.testing.assert_array_equal(source.frames(name, times, 9), [image for _, image in film])

  def never():
    raise AssertionError('films were drawn although equal records exist')
    yield

  assert footage.write(tmp_path, 'drawn', never(), info={'seed': 0}).counts == {'frames': 10}
  assert footage.write(tmp_path, 'drawn', [('a', films['a'])], info={'seed': 1}).counts == {'frames': 5}
  with pytest.raises(UserError, match='exists already'):
    footage.write(tmp_path, 'drawn', [('a', films['a'])], info={'seed': 2}, overwrite=False)


@pytest.mark.parametrize('times', [(0.25, 0.5), (0.0, 0.5, 0.5), (0.0, 0.5, 0.25)])
def test_times_must_ascend_from_zero(tmp_path, times):
  with pytest.raises(UserError, match='must ascend from 0'):
    footage.write(tmp_path, 'drawn', [('a', [(time, picture(0)) for time in times])], info={})


def test_films_are_consumed_as_they_are_written(tmp_path):
  alive, most = 0, 0

  def film():
    nonlocal alive, most
    for i in range(40):
      alive += 1
      most = max(most, alive)
      yield i / 4, picture(i)
      alive -= 1

  footage.write(tmp_path, 'drawn', ((name, film()) for name in ('a', 'b')), info={})
  assert most == 1


@pytest.mark.parametrize('workers', [0, 3])
@pytest.mark.parametrize(('write', 'behind'), [(write_videos, 0), (write_folders, 1)])
def test_official_trees_become_records(tmp_path, monkeypatch, write, behind, workers):
  monkeypatch.setattr(footage, 'CHUNK', 7)
  write(tmp_path / 'raw')
  report = footage.prepare(config(tmp_path, workers=workers), annotate())
  assert report.counts == {'frames': 24 + 18} and not report.problems
  table = prepared(tmp_path).table
  for name, count in VIDEOS.items():
    rows = np.flatnonzero(table['video'] == name)
    assert table['index'][rows].tolist() == list(range(len(rows)))
    assert table['time'][rows].tolist() == [i / 4 for i in range(len(rows))] and len(rows) == count * 4 // FPS
    numbers = [number_of(prepared(tmp_path)[int(row)]['image']) for row in rows]
    first = [behind] if behind else []
    assert numbers == (first + [i * FPS // 4 for i in range(len(rows))][len(first) :])
  assert prepared(tmp_path)[0]['image'].shape == (24, 32, 3)
  source = media.open(config(tmp_path).data)
  assert number_of(source.frames('P01_01', [3.6], 3.6)[0]) == 35  # the frame kept at 3.5 s


def test_records_are_made_once_and_replaced_only_on_demand(tmp_path, monkeypatch):
  write_videos(tmp_path / 'raw', videos={'P01_01': 20})
  annotations = annotate({'P01_01': 20})
  footage.prepare(config(tmp_path), annotations)
  with monkeypatch.context() as patch:
    patch.setattr(footage, '_decode', None)
    assert footage.prepare(config(tmp_path), annotations).counts == {'frames': 8}
    with pytest.raises(UserError, match='exists already'):
      footage.prepare(config(tmp_path, fps=2.0), annotations)
  assert footage.prepare(config(tmp_path, fps=2.0, overwrite=True), annotations).counts == {'frames': 4}
  elsewhere = footage.prepare(config(tmp_path), annotations, tmp_path / 'other')
  assert elsewhere.counts == {'frames': 8} and records.is_written(tmp_path / 'other', 'test_frames')


@pytest.mark.parametrize('workers', [0, 2])
def test_a_bad_video_costs_only_itself(tmp_path, workers):
  write_videos(tmp_path / 'raw', videos={'P01_01': 20, 'P01_02': 20, 'P02_01': 20})
  (tmp_path / 'raw/P01/videos/P01_02.MP4').write_bytes(b'<html>not found</html>')
  report = footage.prepare(
    config(tmp_path, workers=workers), annotate({'P01_01': 20, 'P01_02': 20, 'P02_01': 90, 'P03_01': 10})
  )
  assert report.counts == {'frames': 16}
  assert sorted(kind for kind, _, _ in report.problems) == ['absent video', 'short video', 'unreadable video']
  assert set(prepared(tmp_path).table['video']) == {'P01_01', 'P02_01'}


def test_a_video_that_breaks_off_keeps_what_came_before(tmp_path, monkeypatch):
  monkeypatch.setattr(footage, 'CHUNK', 4)
  write_folders(tmp_path / 'raw', videos={'P01_01': 40, 'P01_02': 20})
  (tmp_path / 'raw/P01/rgb_frames/P01_01/frame_0000000025.jpg').write_bytes(b'no picture')
  report = footage.prepare(config(tmp_path), annotate({'P01_01': 40, 'P01_02': 20}))
  ((kind, where, detail),) = report.problems
  assert kind == 'unreadable from here on' and 'P01_01' in where and 'at 2 s' in detail
  assert '0000000025' in detail
  videos = prepared(tmp_path).table['video']
  assert (videos == 'P01_01').sum() == 8 and (videos == 'P01_02').sum() == 8


def test_damage_is_told_with_its_place(tmp_path, monkeypatch):
  monkeypatch.setattr(footage, 'CHUNK', 4)
  path = write_videos(tmp_path / 'raw', '{name}.avi', {'P01_01': 40}) / 'P01_01.avi'
  with av.open(str(path)) as file:
    position, size = [(packet.pos, packet.size) for packet in file.demux(video=0)][15]
  data = bytearray(path.read_bytes())
  data[position : position + size] = bytes(size)
  path.write_bytes(data)
  report = footage.prepare(config(tmp_path), annotate({'P01_01': 40}))
  ((kind, where, detail),) = report.problems
  assert kind == 'damaged' and 'P01_01' in where and detail == 'from 1 s on: 1 packets could not be decoded'
  numbers = [number_of(record['image']) for record in prepared(tmp_path)]
  assert numbers == [14 if i == 6 else i * FPS // 4 for i in range(16)]  # the frame before stands in


def test_a_truncated_video_is_short(tmp_path):
  path = write_videos(tmp_path / 'raw', '{name}.mkv', {'P01_01': 40}) / 'P01_01.mkv'
  path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
  report = footage.prepare(config(tmp_path), annotate({'P01_01': 40}))
  assert [kind for kind, _, _ in report.problems] == ['short video'] and 0 < report.counts['frames'] < 16


def test_no_footage_at_all_is_a_user_error(tmp_path):
  (tmp_path / 'raw').mkdir()
  with pytest.raises(UserError, match='No video in'):
    footage.prepare(config(tmp_path), annotate())
  write_videos(tmp_path / 'raw', videos={'P09_01': 10})
  with pytest.raises(UserError, match='none of the 2 videos'):
    footage.prepare(config(tmp_path), annotate())
  with pytest.raises(UserError, match='media_root'):
    footage.prepare(config(tmp_path, media_root=''), annotate())
