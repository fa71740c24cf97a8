"""Work done ahead by threads, in order and never far: for what lets other threads run, such as decoding, scaling,
coding, and compiled programs of networks too small to fill the cores of a CPU."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any


def ahead(work: Callable[[Any], Any], todo: Iterable[Any], workers: int) -> Iterator[Any]:
  """`map(work, todo)`, in order; with `workers` threads, at most twice as many items ahead (results are large)."""
  if workers < 1:
    yield from map(work, todo)
    return
  with futures.ThreadPoolExecutor(workers) as pool:
    waiting: collections.deque[futures.Future] = collections.deque()
    for item in todo:
      waiting.append(pool.submit(work, item))
      if len(waiting) > 2 * workers:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
