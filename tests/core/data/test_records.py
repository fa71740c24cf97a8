"""Records promise: what was written is read back, half-written output never counts, damage is found and named."""

import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from record_worlds import FEATURES, examples

from core.data import manifest, records
from core.errors import UserError

INFO = {'seed': 3, 'sizes': (8, 8)}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  folder = tmp_path_factory.mktemp('records')
  records.write(
    folder, 'toy', {'train': examples(20), 'test': examples(6, seed=1), 'dev': iter(())}, FEATURES, info=INFO
  )
  return folder


@pytest.fixture
def fresh(tmp_path):
  """A dataset that a test may damage."""
  records.write(tmp_path, 'toy', {'train': examples(6)}, FEATURES)
  return tmp_path


def damage(path, at=0.5):
  """Flips bytes in the middle of a file, leaving its size."""
  content = bytearray(path.read_bytes())
  middle = int(len(content) * at)
  content[middle : middle + 64] = bytes(255 - b for b in content[middle : middle + 64])
  path.write_bytes(content)


def test_what_was_written_is_read_back_in_order(root):
  written = list(examples(20))
  read = records.Records(root, 'toy', 'train')
  assert len(read) == 20
  for i, (_, expected) in enumerate(written):
    found = read[i]
    assert set(found) == set(expected)
    np.testing.assert_array_equal(found['image'], expected['image'])
    np.testing.assert_array_equal(found['landmarks'], expected['landmarks'])  # NaN included
    assert found['image'].dtype == np.uint8 and found['landmarks'].dtype == np.float32
    assert {f: found[f] for f in ('label', 'subject', 'frame', 'info')} == {
      f: expected[f] for f in ('label', 'subject', 'frame', 'info')
    }


def test_table_has_the_cheap_fields_and_follows_select_and_concat(root):
  train, test = (records.Records(root, 'toy', split) for split in ('train', 'test'))
  assert set(train.table) == {'key', 'label', 'subject', 'frame'}  # 'info' is long, images and tensors are not cheap
  assert train.table['key'][4] == '0-0004'
  live = train.select(train.table['label'] == 1)
  both = records.Records.concat([test, live.select([2, 0])])
  assert both.table['frame'].tolist() == [0, 1, 2, 3, 4, 5, 5, 1]
  assert [row['frame'] for row in both] == both.table['frame'].tolist()
  assert both.ids.tolist() == [0, 1, 2, 3, 4, 5, 6 + 5, 6 + 1]
  assert both[-1]['frame'] == 1
  with pytest.raises(IndexError):
    both[8]
  with pytest.raises(ValueError, match='mask'):
    live.select(np.ones(3, bool))


def test_a_pickled_view_reads_the_same(root):
  view = records.Records(root, 'toy', 'train').select([7, 3])
  view[0], view.table
  pickled = pickle.dumps(view)
  assert len(pickled) < 20_000
  again = pickle.loads(pickled)
  assert [row['frame'] for row in again] == [7, 3]
  assert again.table['frame'].tolist() == [7, 3]


def test_writing_twice_gives_the_same_bytes(root, tmp_path):
  again = records.write(
    tmp_path, 'toy', {'train': examples(20), 'test': examples(6, seed=1), 'dev': []}, FEATURES, info=INFO
  )
  first = records.verify(root, 'toy')
  assert sum('array_record' in name or 'index' in name for name in first.files) == 4
  assert again.files == first.files
  assert again.fingerprint == first.fingerprint
  other = records.write(tmp_path, 'toy', {'train': examples(20, seed=2)}, FEATURES, '2.0.0')
  assert other.fingerprint != first.fingerprint


@pytest.mark.parametrize('rival', [3, 4])
def test_of_two_writers_at_once_the_second_accepts_an_equal_dataset_only(tmp_path, rival):
  def while_another_writes():
    yield from examples(3)
    records.write(tmp_path, 'toy', {'train': examples(rival)}, FEATURES)

  if rival == 3:
    assert records.write(tmp_path, 'toy', {'train': while_another_writes()}, FEATURES).splits == {'train': 3}
  else:
    with pytest.raises(UserError, match='another process'):
      records.write(tmp_path, 'toy', {'train': while_another_writes()}, FEATURES)
  assert len(records.Records(tmp_path, 'toy', 'train')) == rival


def test_an_empty_split_is_said_counted_and_refused(root, tmp_path, capsys):
  assert records.Records(root, 'toy', 'train').manifest.splits == {'train': 20, 'test': 6, 'dev': 0}
  with pytest.raises(UserError, match=r"'dev'.*empty"):
    records.Records(root, 'toy', 'dev')
  records.write(tmp_path, 'half', {'a': examples(1), 'b': []}, FEATURES)
  assert "'b'" in capsys.readouterr().out
  with pytest.raises(UserError, match='no example in any'):
    records.write(tmp_path, 'toy', {'train': iter(())}, FEATURES)
  assert not (tmp_path / 'toy' / '1.0.0').exists()


def test_missing_names_and_versions_teach(root):
  with pytest.raises(UserError, match=r"Did you mean 'toy'.*launch.prepare"):
    records.Records(root, 'toyy', 'train')
  with pytest.raises(UserError, match="Did you mean 'train'"):
    records.Records(root, 'toy', 'trian')
  with pytest.raises(UserError, match=r'version 2.0.0'):
    records.Records(root, 'toy', 'train', '2.0.0')
  with pytest.raises(UserError, match='no dataset at all'):
    records.Records(root / 'nowhere', 'toy', 'train')


def test_is_written_compares_parameters(root):
  assert records.is_written(root, 'toy') and records.is_written(root, 'toy', info=INFO)
  assert not records.is_written(root, 'toy', info={**INFO, 'seed': 4})
  assert not records.is_written(root, 'toy', '1.0.1')


def test_the_newest_version_is_found(tmp_path):
  for version in ('2.0.0', '10.0.0'):
    records.write(tmp_path, 'toy', {'train': examples(int(version[:2].strip('.')))}, FEATURES, version)
  assert len(records.Records(tmp_path, 'toy', 'train')) == 10
  assert len(records.Records(tmp_path, 'toy', 'train', '2.0.0')) == 2


@pytest.mark.parametrize('pattern', ['*.array_record*', 'index-*.npz', 'features.json'])
def test_verify_finds_flipped_bytes_missing_and_short_files(fresh, pattern):
  records.verify(fresh, 'toy')
  path = next((fresh / 'toy' / '1.0.0').glob(pattern))
  whole = path.read_bytes()
  damage(path)
  with pytest.raises(UserError, match=f'{path.name} is corrupt: its sha256'):
    records.verify(fresh, 'toy')
  path.write_bytes(whole[:-1])
  with pytest.raises(UserError, match=f'{path.name} is corrupt: {len(whole) - 1} bytes'):
    records.Records(fresh, 'toy', 'train')
  path.unlink()
  with pytest.raises(UserError, match=f'{path.name} is missing'):
    records.Records(fresh, 'toy', 'train')


def test_damaged_records_and_index_are_named_when_read(fresh):
  folder = fresh / 'toy' / '1.0.0'
  damage(next(folder.glob('*.array_record*')), at=0.001)
  damage(folder / 'index-train.npz')
  read = records.Records(fresh, 'toy', 'train')
  with pytest.raises(UserError, match=r"split 'train'.*launch.prepare"):
    list(read)
  with pytest.raises(UserError, match=r'index-train\.npz is corrupt'):
    _ = read.table


@pytest.mark.parametrize('content', ['', '{}', '[]', '{"format": 99, "fingerprint": ""}'])
def test_a_broken_manifest_is_named(fresh, content):
  (fresh / 'toy' / '1.0.0' / manifest.FILE).write_text(content)
  with pytest.raises(UserError, match=r'manifest\.json'):
    records.Records(fresh, 'toy', 'train')


def test_an_edited_manifest_is_refused(fresh):
  path = fresh / 'toy' / '1.0.0' / manifest.FILE
  path.write_text(path.read_text().replace('"train": 6', '"train": 5'))
  with pytest.raises(UserError, match='changed after it was written'):
    records.Records(fresh, 'toy', 'train')


def test_existing_datasets_are_replaced_only_on_request_and_only_by_whole_ones(fresh):
  def breaks():
    yield from examples(3)
    raise RuntimeError('camera unplugged')

  with pytest.raises(UserError, match='exists already'):
    records.write(fresh, 'toy', {'train': examples(2)}, FEATURES)
  with pytest.raises(RuntimeError, match='camera unplugged'):
    records.write(fresh, 'toy', {'train': breaks()}, FEATURES, overwrite=True)
  assert len(records.Records(fresh, 'toy', 'train')) == 6
  records.write(fresh, 'toy', {'train': examples(2)}, FEATURES, overwrite=True)
  assert len(records.Records(fresh, 'toy', 'train')) == 2
  assert [path.name for path in (fresh / 'toy').iterdir()] == ['1.0.0']


def test_bad_examples_are_named(tmp_path):
  (key, good), *_ = examples(1)
  for bad, message in [
    ([(key, good), (key, good)], 'occurs twice'),
    ([(key, {**good, 'extra': 1})], 'has the fields'),
    ([(key, {**good, 'image': good['image'].astype(np.float32)})], 'float32'),
  ]:
    with pytest.raises(UserError, match=message):
      records.write(tmp_path, 'toy', {'train': bad}, FEATURES)
  for name, version in [('no-dash', '1.0.0'), ('toy', '1')]:
    with pytest.raises(UserError, match='must be'):
      records.write(tmp_path, name, {'train': [(key, good)]}, FEATURES, version)


KILLED = """
import sys, time
from record_worlds import FEATURES, examples
from core.data import records
assert 'tensorflow' not in sys.modules
def slow():
  yield from examples(5)
  print('writing', flush=True)
  time.sleep(60)
records.write(sys.argv[1], 'toy', {'train': slow()}, FEATURES)
"""


def test_a_killed_writer_leaves_nothing_that_counts(tmp_path, capsys):
  process = subprocess.Popen(
    [sys.executable, '-c', KILLED, str(tmp_path)],
    stdout=subprocess.PIPE,
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
  )
  assert process.stdout.readline() == b'writing\n'
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not records.is_written(tmp_path, 'toy')
  with pytest.raises(UserError, match='No dataset'):
    records.Records(tmp_path, 'toy', 'train')
  records.write(tmp_path, 'toy', {'train': examples(2)}, FEATURES)
  assert '.incomplete-' in capsys.readouterr().out
  assert len(records.Records(tmp_path, 'toy', 'train')) == 2


def test_encoded_bytes_pass_unchanged(tmp_path):
  (key, example), *_ = examples(1)
  encoded = records.encode_image(example['image'])
  records.write(tmp_path, 'toy', {'train': [(key, {**example, 'image': encoded})]}, FEATURES)
  np.testing.assert_array_equal(records.Records(tmp_path, 'toy', 'train')[0]['image'], example['image'])


def test_three_thousand_small_frames_take_seconds(tmp_path):
  start = time.perf_counter()
  records.write(tmp_path, 'toy', {'train': examples(3000, size=64)}, FEATURES)
  assert time.perf_counter() - start < 30  # 1.6 s on two idle cores
  assert 'tensorflow' not in sys.modules


def test_the_report_counts_problems():
  problems = [('unreadable', 'a.avi', 'no frames'), ('unreadable', 'b.avi', 'moov atom'), ('odd', 'c', 'left over')]
  text = str(records.PrepareReport('msu', {'train': 7, 'test': 5}, problems))
  assert '12 records' in text and '2 x unreadable' in text and 'moov atom' in text
