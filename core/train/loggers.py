"""Where a run writes its numbers: a progress bar, TensorBoard events, metrics.csv.

All of them are readable while the run is going on and after it was killed, and a run that is resumed goes on in the
same files: what its former life wrote past the step that it goes on from is replaced. Only process 0 writes.
"""

from __future__ import annotations

import csv
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import jax
import tqdm
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.proto.summary_pb2 import Summary

from core.train.loop import Logger, NullLogger


def make(workdir: str | pathlib.Path, *, stream: TextIO | None = None) -> Logger:
  """The loggers of a run: `metrics.csv`, `tensorboard/` and its progress on a stream.

  Args:
    workdir: the run's folder.
    stream: where progress and messages go (stderr): a bar on a terminal, lines elsewhere.
  """
  if jax.process_index() != 0:
    return NullLogger()
  workdir, stream = pathlib.Path(workdir), stream or sys.stderr
  progress = Bar(stream) if stream.isatty() else Lines(stream)
  return Compound([progress, Csv(workdir / 'metrics.csv'), TensorBoard(workdir / 'tensorboard')])


class Compound:
  """Several loggers as one."""

  def __init__(self, loggers: Sequence[Logger]):
    self.loggers = list(loggers)

  def scalars(self, step: int, values: Mapping[str, float], prefix: str) -> None:
    """To each."""
    for logger in self.loggers:
      logger.scalars(step, values, prefix)

  def progress(self, step: int, total: int, stage: str, loss: float, examples_per_second: float) -> None:
    """To each."""
    for logger in self.loggers:
      logger.progress(step, total, stage, loss, examples_per_second)

  def message(self, text: str) -> None:
    """To each."""
    for logger in self.loggers:
      logger.message(text)

  def close(self) -> None:
    """Each."""
    for logger in self.loggers:
      logger.close()


class Bar(NullLogger):
  """Progress on a terminal: step, loss, examples/s, time left."""

  FORMAT = '{desc} {percentage:3.0f}% |{bar}| step {n_fmt}/{total_fmt}{postfix}, ETA {remaining}'

  def __init__(self, stream: TextIO):
    self.stream = stream
    self._bar: tqdm.tqdm | None = None

  def progress(self, step: int, total: int, stage: str, loss: float, examples_per_second: float) -> None:
    """Moves the bar to `step`."""
    if self._bar is None:
      # Made at the first log point: the time before it is mostly compilation and would spoil the estimate.
      self._bar = tqdm.tqdm(
        total=total, initial=step, file=self.stream, bar_format=self.FORMAT, dynamic_ncols=True, mininterval=0
      )
    self._bar.set_description_str(stage, refresh=False)
    self._bar.set_postfix_str(_state(loss, examples_per_second), refresh=False)
    self._bar.update(step - self._bar.n)
    self._bar.refresh()

  def message(self, text: str) -> None:
    """A line above the bar."""
    tqdm.tqdm.write(text, file=self.stream)

  def close(self) -> None:
    """Leaves the bar where it stands."""
    if self._bar is not None:
      self._bar.close()
      self._bar = None


class Lines(NullLogger):
  """The same in a file, a pipe or a batch system's log: one line per log point."""

  def __init__(self, stream: TextIO):
    self.stream = stream
    self._first: tuple[int, float] | None = None

  def progress(self, step: int, total: int, stage: str, loss: float, examples_per_second: float) -> None:
    """Writes a line."""
    now = time.monotonic()
    first_step, begun = self._first = self._first or (step, now)
    left = (now - begun) / (step - first_step) * (total - step) if step > first_step else None
    eta = '?' if left is None else tqdm.tqdm.format_interval(left)
    self.message(f'{stage} {step / total:4.0%} step {step}/{total}, {_state(loss, examples_per_second)}, ETA {eta}')

  def message(self, text: str) -> None:
    """Writes a line."""
    print(text, file=self.stream, flush=True)


class Csv(NullLogger):
  """metrics.csv: one row per log point and evaluation, one column per number; empty where a row has no such number.

  Columns: step, kind ('train', 'eval' or the name of a stage with its own procedure), then the names in the order in
  which they appeared. A name that appears late gets a column of its own, and the file is rewritten.
  """

  KEYS = ('step', 'kind')

  def __init__(self, path: pathlib.Path):
    self.path = path
    self._columns: list[str] = list(self.KEYS)
    self._rows: list[dict[str, str]] = []
    self._cut: set[str] = set()  # kinds whose rows of a former life were cut back
    if path.exists():
      # A killed process may have left its last line half-written: a whole one ends with a newline.
      reader = csv.DictReader(line for line in path.read_text().splitlines(keepends=True) if line.endswith('\n'))
      self._rows, self._columns = list(reader), list(reader.fieldnames or self.KEYS)

  def scalars(self, step: int, values: Mapping[str, float], prefix: str) -> None:
    """Adds a row; the first of each kind replaces all rows of this kind that are not before it."""
    row = {'step': str(step), 'kind': prefix, **{name: repr(float(value)) for name, value in values.items()}}
    fresh, first = [name for name in row if name not in self._columns], prefix not in self._cut
    if first:
      self._rows = [old for old in self._rows if old['kind'] != prefix or int(old['step']) < step]
      self._cut.add(prefix)
    self._rows.append(row)
    self._columns += fresh
    if first or fresh:
      self._rewrite()
    else:
      with self.path.open('a', newline='') as file:
        self._writer(file).writerow(row)

  def _rewrite(self) -> None:
    self.path.parent.mkdir(parents=True, exist_ok=True)
    half = self.path.with_suffix('.tmp')
    with half.open('w', newline='') as file:
      writer = self._writer(file)
      writer.writeheader()
      writer.writerows(self._rows)
    half.replace(self.path)

  def _writer(self, file: TextIO) -> csv.DictWriter:
    return csv.DictWriter(file, self._columns, restval='', lineterminator='\n')


class TensorBoard(NullLogger):
  """Events for `tensorboard --logdir`; tags are 'train/loss', 'eval/test/...'.

  Written by tensorboardX's synchronous writer: its SummaryWriter keeps events in a queue, which dies with the run.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self._writer: EventsWriter | None = None

  def scalars(self, step: int, values: Mapping[str, float], prefix: str) -> None:
    """Adds an event."""
    if self._writer is None:
      self.folder.mkdir(parents=True, exist_ok=True)
      # The name sorts by time, down to lives that begin in the same second.
      self._writer = EventsWriter(str(self.folder / 'events'), filename_suffix=f'.{time.time_ns()}')
      # Tells TensorBoard to drop what earlier files of the folder hold from this step on.
      self._write(step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
    entries = [Summary.Value(tag=f'{prefix}/{name}', simple_value=float(value)) for name, value in values.items()]
    self._write(step, summary=Summary(value=entries))
    self._writer.flush()

  def close(self) -> None:
    """Closes the file."""
    if self._writer is not None:
      self._writer.close()
      self._writer = None

  def _write(self, step: int, **content: Any) -> None:
    self._writer.write_event(event_pb2.Event(wall_time=time.time(), step=step, **content))


def _state(loss: float, examples_per_second: float) -> str:
  return f'loss {loss:.4g}, {examples_per_second:.4g} examples/s'
