"""What a run writes is readable at every moment, and a resumed run goes on in the same files."""

import csv
import io

import pytest
from tensorboardX.proto import event_pb2

from core.train import loggers


def table(path):
  with path.open(newline='') as file:
    return list(csv.DictReader(file))


def events(folder):
  """(tag, step, value) of all event files, and the steps from which a file declares earlier ones stale."""
  scalars, restarts = [], []
  for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    while data:
      size = int.from_bytes(data[:8], 'little')
      event = event_pb2.Event.FromString(data[12 : 12 + size])
      data = data[16 + size :]
      scalars += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
      if event.session_log.status == event_pb2.SessionLog.START:
        restarts.append(event.step)
  return scalars, restarts


def test_columns_may_appear_later(tmp_path):
  logger = loggers.Csv(tmp_path / 'metrics.csv')
  logger.scalars(3, {'loss': 0.5}, 'train')
  logger.scalars(4, {'val/auc': 0.75}, 'eval')
  logger.scalars(6, {'loss': 0.25, 'learning_rate': 1e-3}, 'train')
  rows = table(tmp_path / 'metrics.csv')
  assert list(rows[0]) == ['step', 'kind', 'loss', 'val/auc', 'learning_rate']
  assert [(row['step'], row['kind'], row['loss'], row['val/auc'], row['learning_rate']) for row in rows] == [
    ('3', 'train', '0.5', '', ''),
    ('4', 'eval', '', '0.75', ''),
    ('6', 'train', '0.25', '', '0.001'),
  ]


def test_a_resumed_run_replaces_what_its_former_life_wrote_too_much(tmp_path):
  path = tmp_path / 'metrics.csv'
  former = loggers.Csv(path)
  for step in (3, 6, 9):
    former.scalars(step, {'loss': float(step)}, 'train')
  former.scalars(9, {'rmse': 1.0}, 'eval')
  former.scalars(1, {'shifted': 1.0}, 'shift')
  resumed = loggers.Csv(path)  # from the checkpoint of step 6
  resumed.scalars(9, {'loss': 90.0}, 'train')
  resumed.scalars(9, {'rmse': 2.0}, 'eval')
  resumed.scalars(12, {'loss': 120.0}, 'train')
  rows = [(row['step'], row['kind'], row['loss'] or row['rmse'] or row['shifted']) for row in table(path)]
  assert sorted(rows) == [
    ('1', 'shift', '1.0'), ('12', 'train', '120.0'), ('3', 'train', '3.0'), ('6', 'train', '6.0'),
    ('9', 'eval', '2.0'), ('9', 'train', '90.0'),
  ]  # fmt: skip


def test_a_line_that_a_kill_cut_off_is_dropped(tmp_path):
  path = tmp_path / 'metrics.csv'
  loggers.Csv(path).scalars(3, {'loss': 0.5}, 'train')
  with path.open('a') as file:
    file.write('6,train,0.2')  # of 0.25
  loggers.Csv(path).scalars(9, {'loss': 0.125}, 'train')
  assert [row['loss'] for row in table(path)] == ['0.5', '0.125']


def test_tensorboard_events_are_on_disk_before_the_run_ends(tmp_path):
  logger = loggers.TensorBoard(tmp_path)
  logger.scalars(3, {'loss': 0.5}, 'train')
  logger.scalars(6, {'val/auc': 0.75}, 'eval')
  assert events(tmp_path)[0] == [('train/loss', 3, 0.5), ('eval/val/auc', 6, 0.75)]
  resumed = loggers.TensorBoard(tmp_path)  # the first was never closed
  resumed.scalars(4, {'loss': 0.25}, 'train')
  assert events(tmp_path)[1][-1] == 4
  resumed.close()


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_the_bar_shows_step_loss_speed_and_time_left():
  stream = Terminal()
  bar = loggers.Bar(stream)
  bar.progress(20, 100, 'train', 0.6931, 512.0)
  bar.message('a word')
  bar.progress(60, 100, 'train', 0.25, 1024.0)
  bar.close()
  shown = stream.getvalue()
  assert 'a word\n' in shown
  last = shown.rstrip().split('\r')[-1]
  assert 'train  60% |' in last and 'step 60/100, loss 0.25, 1024 examples/s, ETA 00:' in last


def test_off_a_terminal_there_is_one_line_per_log_point(tmp_path):
  stream = io.StringIO()
  logger = loggers.make(tmp_path, stream=stream)
  logger.message("stage 'train': 100 steps")
  logger.progress(20, 100, 'train', 0.6931, 512.0)
  logger.progress(60, 100, 'train', 0.25, 1024.0)
  logger.scalars(60, {'loss': 0.25}, 'train')
  logger.close()
  first, second, third = stream.getvalue().splitlines()
  assert first == "stage 'train': 100 steps" and second.endswith('ETA ?')
  assert third.startswith('train  60% step 60/100, loss 0.25, 1024 examples/s, ETA 00:')
  assert table(tmp_path / 'metrics.csv') == [{'step': '60', 'kind': 'train', 'loss': '0.25'}]
  assert events(tmp_path / 'tensorboard')[0] == [('train/loss', 60, pytest.approx(0.25))]


def test_other_processes_write_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr('jax.process_index', lambda: 1)
  loggers.make(tmp_path).scalars(1, {'loss': 1.0}, 'train')
  assert not list(tmp_path.iterdir())
