"""The pipeline promises: batch k depends on the seed and k alone, not on workers, processes, or where a run resumed."""

import json
import os
import signal
import subprocess
import sys
import time

import hypothesis
import numpy as np
import pytest
from absl import flags
from hypothesis import strategies as st
from record_worlds import FEATURES, add_noise, cheap, examples

from core.data import pipeline, records
from core.errors import UserError

ALONE = {'process_index': 0, 'process_count': 1}


@pytest.fixture(scope='module')
def domains(tmp_path_factory):
  """Three domains of unequal size."""
  root = tmp_path_factory.mktemp('records')
  for i, count in enumerate((5, 8, 13)):
    records.write(root, f'domain{i}', {'train': examples(count, seed=i)}, FEATURES)
  whole = records.Records.concat([records.Records(root, f'domain{i}', 'train') for i in range(3)])
  of = np.repeat(range(3), (5, 8, 13))
  return [whole.select(of == i) for i in range(3)]


def stream(domains, **kwargs):
  parts = [pipeline.rows(d, seed=(7, i), random_transform=add_noise, transform=cheap) for i, d in enumerate(domains)]
  options = {'batch_size': 6, 'group': 3, **ALONE, **kwargs}
  return pipeline.build(pipeline.interleave(parts), **options)


def take(iterator, count):
  return [{k: np.array(v) for k, v in next(iterator).items()} for _ in range(count)]


def assert_same(found, expected):
  assert len(found) == len(expected)
  for a, b in zip(found, expected):
    assert a.keys() == b.keys()
    for field in a:
      np.testing.assert_array_equal(a[field], b[field])


def numbers(count):
  return [{'x': i} for i in range(count)]


def test_equal_seeds_give_equal_streams_and_others_do_not(domains):
  first = take(iter(stream(domains)), 6)
  assert_same(take(iter(stream(domains, threads=0, buffer=0)), 6), first)
  other = pipeline.rows(domains[0], seed=8, transform=cheap)
  same = pipeline.rows(domains[0], seed=8, transform=cheap)
  third = pipeline.rows(domains[0], seed=9, transform=cheap)
  ids = [[ds[i]['id'] for i in range(20)] for ds in (other, same, third)]
  assert ids[0] == ids[1] != ids[2]


def test_every_epoch_is_a_new_permutation_with_new_draws():
  dataset = pipeline.rows(numbers(50), seed=1, random_transform=add_noise)
  epochs = [[dataset[e * 50 + i] for i in range(50)] for e in range(3)]
  orders = [[row['x'] for row in epoch] for epoch in epochs]
  assert all(sorted(order) == list(range(50)) for order in orders)
  assert orders[0] != orders[1] != orders[2] and orders[0] != list(range(50))
  assert len({row['draw'] for epoch in epochs for row in epoch}) == 150


def test_interleaved_batches_hold_every_domain_equally(domains):
  batch = take(iter(stream(domains)), 1)[0]
  np.testing.assert_array_equal(np.digitize(batch['id'], [5, 13]), [0, 1, 2] * 2)


def test_ids_point_at_the_record(domains):
  row = pipeline.rows(domains[1], seed=0, shuffle=False)[3]
  assert row['id'] == domains[1].ids[3] == 5 + 3
  assert row['frame'] == 3


def test_workers_change_nothing_and_state_crosses_them(domains):
  assert 'tensorflow' not in sys.modules
  expected = take(iter(stream(domains)), 9)
  flags.FLAGS.unparse_flags()  # as in a notebook, where absl.app.run never ran
  with_workers = iter(stream(domains, workers=2))
  assert type(next(with_workers)['draw']) is np.ndarray
  with_workers.set_state({'next_batch': 0})
  assert_same(take(with_workers, 4), expected[:4])
  state = json.loads(json.dumps(with_workers.get_state()))
  take(with_workers, 2)
  with_workers.set_state(state)
  assert_same(take(with_workers, 2), expected[4:6])
  state = with_workers.get_state()
  with_workers.close()
  without = iter(stream(domains))
  without.set_state(state)
  assert_same(take(without, 3), expected[6:])


def fails(row):
  raise UserError(f'cannot use {row["x"]}')


@pytest.mark.parametrize('workers', [0, 1])
def test_a_users_error_in_a_transform_arrives_as_such(workers):
  dataset = pipeline.rows(numbers(4), seed=0, transform=fails)
  iterator = iter(pipeline.build(dataset, batch_size=2, workers=workers, **ALONE))
  with pytest.raises(UserError, match='cannot use'):
    next(iterator)
  iterator.close()


def test_state_before_the_first_batch_and_after_close(domains):
  iterator = iter(stream(domains))
  start = iterator.get_state()
  first = take(iterator, 2)
  iterator.set_state(start)
  assert_same(take(iterator, 2), first)
  iterator.close()
  with pytest.raises(ValueError, match='closed'):
    next(iterator)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
  sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
  groups=st.integers(1, 3),
  processes=st.integers(1, 4),
  step=st.integers(0, 5),
)
def test_process_parts_make_up_the_global_batch(sizes, groups, processes, step):
  dataset = pipeline.interleave([pipeline.rows(numbers(n), seed=(0, i)) for i, n in enumerate(sizes)])
  options = {'batch_size': len(sizes) * groups * processes, 'group': len(sizes), 'threads': 0, 'buffer': 0}
  parts = []
  for p in range(processes):
    iterator = iter(pipeline.build(dataset, process_index=p, process_count=processes, **options))
    iterator.set_state({'next_batch': step})
    parts.append(next(iterator)['x'])
  expected = [dataset[step * options['batch_size'] + i]['x'] for i in range(options['batch_size'])]
  assert np.concatenate(parts).tolist() == expected


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_interleave_deals_rows_in_turn(sizes):
  parts = [
    pipeline.rows([{'x': (i, j)} for j in range(n)], seed=0, shuffle=False, repeat=False) for i, n in enumerate(sizes)
  ]
  dealt = pipeline.interleave(parts)
  assert len(dealt) == len(sizes) * min(sizes)
  found = [dealt[k]['x'] for k in range(len(dealt))]
  assert found == [(i, j) for j in range(min(sizes)) for i in range(len(sizes))]


def test_endless_parts_interleave_with_finite_and_endless_ones():
  endless = [pipeline.rows(numbers(n), seed=0) for n in (2, 3, 5)]
  assert len(pipeline.interleave(endless)) > 10**15
  finite = pipeline.rows(numbers(4), seed=0, repeat=False)
  assert len(pipeline.interleave([endless[0], finite])) == 8


def test_a_finite_stream_ends_and_drops_its_remainder():
  finite = pipeline.rows(numbers(7), seed=0, shuffle=False, repeat=False)
  batches = pipeline.build(finite, batch_size=3, **ALONE)
  assert len(batches) == 2
  assert [b['x'].tolist() for b in batches] == [[0, 1, 2], [3, 4, 5]]
  iterator = iter(batches)
  iterator.set_state({'next_batch': 2})
  with pytest.raises(StopIteration):
    next(iterator)


def test_batches_that_do_not_divide_are_refused():
  dataset = pipeline.rows(numbers(7), seed=0)
  with pytest.raises(UserError, match='multiple of 6'):
    pipeline.build(dataset, batch_size=8, group=3, process_index=0, process_count=2)
  with pytest.raises(UserError, match='give no batch'):
    pipeline.build(pipeline.rows(numbers(2), seed=0, repeat=False), batch_size=3, **ALONE)
  with pytest.raises(UserError, match='No records'):
    pipeline.rows([], seed=0)
  with pytest.raises(UserError, match='No records'):
    pipeline.eval_batches([], 3)


KILLED = """
import multiprocessing, time
from record_worlds import add_noise
from core.data import pipeline
rows = pipeline.rows([{'x': i} for i in range(9)], seed=0, random_transform=add_noise)
batches = iter(pipeline.build(rows, batch_size=3, workers=2, process_index=0, process_count=1))
next(batches)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
time.sleep(60)
"""


def test_workers_end_with_a_killed_parent():
  environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
  parent = subprocess.Popen([sys.executable, '-c', KILLED], stdout=subprocess.PIPE, env=environment, text=True)
  workers = parent.stdout.readline().split()
  assert len(workers) == 2 and all(os.path.exists(f'/proc/{pid}') for pid in workers)
  parent.send_signal(signal.SIGKILL)
  parent.wait()
  end = time.monotonic() + 20
  while time.monotonic() < end and any(_alive(pid) for pid in workers):
    time.sleep(0.1)
  assert not [pid for pid in workers if _alive(pid)]


def _alive(pid):
  """Whether a process runs; one that ended and that nobody waits for does not."""
  try:
    with open(f'/proc/{pid}/stat') as file:
      return file.read().rsplit(')', 1)[1].split()[0] != 'Z'
  except FileNotFoundError:
    return False


@pytest.mark.parametrize('workers', [0, 1])
def test_evaluation_sees_every_record_once_in_order(domains, workers):
  batches = pipeline.eval_batches(domains[1], 3, cheap, workers=workers)
  assert len(batches) == 3
  for _ in range(2 - workers):  # can be run again
    found = list(batches)
    assert [b['mask'].tolist() for b in found] == [[True] * 3, [True] * 3, [True, True, False]]
    ids = np.concatenate([b['id'] for b in found])[np.concatenate([b['mask'] for b in found])]
    np.testing.assert_array_equal(ids, domains[1].ids)


def test_unequal_shapes_are_named():
  with pytest.raises(UserError, match=r"'image' has the shapes \[\(2,\), \(3,\)\]"):
    pipeline.collate([{'image': np.zeros(2)}, {'image': np.zeros(3)}])
