"""From records to batches with grain: shuffled, transformed, interleaved, sharded by process, fetched ahead, resumable.

  sources = [pipeline.rows(r, seed=(seed, i), random_transform=augment) for i, r in enumerate(domains)]
  batches = pipeline.build(pipeline.interleave(sources), batch_size=96, workers=2)

Everything up to the batch is a `grain.MapDataset`: element i is a pure function of (records, seed, i). So the k-th
GLOBAL batch is the same for any number of workers, threads and processes, and the state of an iterator is one number,
which stays valid when a run resumes with other workers or on another number of hosts.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from core.data.records import Records
from core.errors import UserError

Row = Mapping[str, Any]
Transform = Callable[[dict[str, Any]], Row]
RandomTransform = Callable[[dict[str, Any], np.random.Generator], Row]


def rows(
  records: Records | Sequence[Row],
  *,
  seed: int | Sequence[int],
  shuffle: bool = True,
  repeat: bool = True,
  transform: Transform | None = None,
  random_transform: RandomTransform | None = None,
) -> grain.MapDataset:
  """The decoded records as a grain dataset of rows, each with an 'id'.

  Args:
    records: what to read; any sequence of dicts will do.
    seed: seeds the shuffles and `random_transform`. Several datasets of one batch need different seeds, else domains of
      equal size are shuffled alike: pass (seed, number of the domain).
    shuffle: whether each epoch goes through the records in a fresh random order.
    repeat: whether epoch follows epoch for ever.
    transform: `row -> row`, applied last.
    random_transform: `(row, numpy Generator) -> row`, applied before `transform`; the generator depends on the seed and
      on the position in the stream alone, so every epoch draws anew and a resumed run draws the same.

  Returns:
    A dataset of dicts; 'id' (int64) is `records.ids[i]`, or i for a plain sequence.
  """
  if not len(records):
    raise UserError(f'No records to draw from: {records!r} is empty. Check the split, the subjects and the domain.')
  dataset = grain.MapDataset.source(_Identified(records)).seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
  if shuffle:
    dataset = dataset.shuffle()
  if repeat:
    dataset = dataset.repeat()
  if random_transform is not None:
    dataset = dataset.random_map(random_transform)
  return dataset if transform is None else dataset.map(transform)


def interleave(datasets: Sequence[grain.MapDataset]) -> grain.MapDataset:
  """Row i comes from dataset i % D, which advances by itself: with D domains, any D consecutive rows hold each once.

  Datasets that repeat for ever may differ in size; among finite ones the shortest ends the stream.
  """
  if not datasets:
    raise ValueError('Nothing to interleave.')
  return _Interleaved(datasets)


def build(
  dataset: grain.MapDataset,
  *,
  batch_size: int,
  group: int = 1,
  workers: int = 0,
  threads: int = 2,
  buffer: int = 4,
  process_index: int | None = None,
  process_count: int | None = None,
) -> Batches:
  """This process's part of every global batch, fetched ahead.

  Global batch k is rows [k * batch_size, (k + 1) * batch_size) of `dataset`; process p of P gets its p-th contiguous
  P-th. A remainder at the end of a finite dataset is dropped.

  Args:
    dataset: rows, from `rows` or `interleave`.
    batch_size: rows of the GLOBAL batch, over all processes.
    group: rows that belong together (the number of interleaved domains): each process's part holds whole groups.
    workers: worker processes (0: threads of this process do the work). In a script the call must be reachable only
      under `if __name__ == '__main__'`, because workers import the main module.
    threads: reading threads, per worker where there are workers.
    buffer: batches fetched ahead, per worker where there are workers.
    process_index: this process's number; `jax.process_index()` by default.
    process_count: number of processes; `jax.process_count()` by default.

  Returns:
    A `grain.IterDataset` of dicts of arrays with leading axis batch_size / process_count.

  Raises:
    UserError: when the batch does not divide into processes and groups.
  """
  if process_index is None or process_count is None:
    import jax  # here, so that worker processes that import this module start no jax backend

    process_index, process_count = jax.process_index(), jax.process_count()
  if batch_size < 1 or batch_size % (process_count * group):
    raise UserError(
      f'A global batch of {batch_size} rows does not divide into {process_count} process(es) with whole groups of '
      f'{group} row(s) each; make it a multiple of {process_count * group}.'
    )
  if len(dataset) < batch_size:
    raise UserError(f'{len(dataset)} rows give no batch of {batch_size}; lower the batch size or let the rows repeat.')
  part = _ProcessPart(dataset, batch_size, process_index, process_count)
  return Batches(part.batch(part.rows, drop_remainder=True, batch_fn=collate), workers, threads, buffer)


def eval_batches(
  records: Records | Sequence[Row],
  batch_size: int,
  transform: Transform | None = None,
  *,
  workers: int = 0,
  threads: int = 2,
  buffer: int = 4,
) -> Batches:
  """All records once, in order, in batches of one size: the last is padded with the last record.

  Every batch has 'mask' (bool [batch_size]), False on padding. No part is sharded: each process sees every record.
  """
  if not len(records):
    raise UserError(f'No records to evaluate: {records!r} is empty. Check the split, the subjects and the domain.')
  dataset = grain.MapDataset.source(_Padded(_Identified(records), batch_size))
  if transform is not None:
    dataset = dataset.map(_KeepMask(transform))
  return Batches(dataset.batch(batch_size, batch_fn=collate), workers, threads, buffer)


def collate(batch: Sequence[Row]) -> dict[str, np.ndarray]:
  """Stacks rows field by field; texts become an array of str. Raises `UserError` naming a field of unequal shapes."""
  stacked = {}
  for field in batch[0]:
    values = [row[field] for row in batch]
    try:
      stacked[field] = np.stack([np.asarray(value) for value in values])
    except ValueError as error:
      shapes = sorted({np.shape(value) for value in values})
      raise UserError(
        f"Field '{field}' has the shapes {shapes} within one batch; resize or drop it in the transform."
      ) from error
  return stacked


class Batches(grain.IterDataset):
  """A `grain.IterDataset` over the elements of a `grain.MapDataset`, with threads or workers that fetch ahead.

  The state of its iterators is `{'next_batch': k}`: plain data, independent of workers, threads and processes.
  """

  def __init__(self, batches: grain.MapDataset, workers: int, threads: int, buffer: int):
    super().__init__()
    self.batches, self.workers, self.threads, self.buffer = batches, workers, threads, buffer

  def __len__(self) -> int:
    """Number of batches; enormous where rows repeat for ever."""
    return len(self.batches)

  def __iter__(self) -> BatchIterator:
    return BatchIterator(self)

  def starting_at(self, index: int) -> Iterator[dict[str, np.ndarray]]:
    """A plain grain iterator that begins with batch `index`."""
    options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=self.buffer)
    dataset = self.batches.slice(slice(index, None)).to_iter_dataset(options)
    if self.workers:
      if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain reads absl flags when it starts workers; notebooks and tests parse none
      options = grain.MultiprocessingOptions(self.workers, per_worker_buffer_size=self.buffer)
      dataset = dataset.mp_prefetch(options, _end_with_parent)
    return iter(dataset)


class BatchIterator(grain.DatasetIterator):
  """Iterates over `Batches`; workers start with the first batch asked for."""

  def __init__(self, batches: Batches):
    super().__init__()
    self._source, self._next, self._inner = batches, 0, None

  def __next__(self) -> dict[str, np.ndarray]:
    self._assert_not_closed()
    self.start_prefetch()
    if self._inner is None:
      raise StopIteration
    batch = next(self._inner)
    self._next += 1
    # Workers hand over views of shared memory that end with the view; a copy of its own outlives whatever jax keeps.
    return {field: np.array(value) for field, value in batch.items()} if self._source.workers else batch

  def start_prefetch(self) -> None:
    """Begins to fetch ahead before the first batch is asked for."""
    if self._inner is None and self._next < len(self._source):
      self._inner = self._source.starting_at(self._next)
      self._inner.start_prefetch()

  def get_state(self) -> dict[str, int]:
    """The number of the batch that comes next."""
    return {'next_batch': self._next}

  def set_state(self, state: Mapping[str, int]) -> None:
    """Goes to a batch; what was fetched ahead is thrown away."""
    self._stop()
    self._next = int(state['next_batch'])

  def close(self) -> None:
    """Stops threads and workers."""
    super().close()
    self._stop()

  def _stop(self) -> None:
    if self._inner is not None:
      self._inner.close()
      self._inner = None


def _end_with_parent(worker: int, workers: int) -> None:
  """Ends a worker when the process that it works for is killed; by itself it would wait for ever, memory and all."""
  del worker, workers
  parent = multiprocessing.parent_process()

  def watch() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


class _Identified:
  """Records as a source of mutable rows with 'id'."""

  def __init__(self, records: Records | Sequence[Row]):
    self.records = records

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> dict[str, Any]:
    ids = getattr(self.records, 'ids', None)
    return {**self.records[index], 'id': np.int64(index if ids is None else ids[index])}


class _Padded:
  """A source whose length is rounded up to whole batches; rows beyond the end repeat the last with mask False."""

  def __init__(self, source: _Identified, batch_size: int):
    self.source, self.batch_size = source, batch_size

  def __len__(self) -> int:
    return -(-len(self.source) // self.batch_size) * self.batch_size

  def __getitem__(self, index: int) -> dict[str, Any]:
    last = len(self.source) - 1
    return {**self.source[min(index, last)], 'mask': np.bool_(index <= last)}


class _KeepMask:
  """A transform that need not know of 'mask' and 'id'."""

  def __init__(self, transform: Transform):
    self.transform = transform

  def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
    return {'id': row['id'], **self.transform(row), 'mask': row['mask']}


class _Interleaved(grain.MapDataset):
  """See `interleave`."""

  def __init__(self, datasets: Sequence[grain.MapDataset]):
    super().__init__(list(datasets))

  def __len__(self) -> int:
    count = len(self.parents)
    return min(*(len(parent) for parent in self.parents), sys.maxsize // count) * count

  def __getitem__(self, index: int) -> Any:
    if isinstance(index, slice):
      return self.slice(index)
    turn, which = divmod(index, len(self.parents))
    return self.parents[which][turn]


class _ProcessPart(grain.MapDataset):
  """The rows of one process: its contiguous part of global batch 0, then of batch 1, and so on."""

  def __init__(self, dataset: grain.MapDataset, batch_size: int, process_index: int, process_count: int):
    super().__init__(dataset)
    self.batch_size, self.rows = batch_size, batch_size // process_count
    self.offset = process_index * self.rows

  def __len__(self) -> int:
    return len(self.parents[0]) // self.batch_size * self.rows

  def __getitem__(self, index: int) -> Any:
    if isinstance(index, slice):
      return self.slice(index)
    step, row = divmod(index, self.rows)
    return self.parents[0][step * self.batch_size + self.offset + row]
