"""Several ways to do one thing, timed side by side: a process each, taking turns on the same cores."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from typing import Any

Turn = tuple[float, Any]
"""Seconds, and what the function returned."""


class Contestant:
  """A function in a process of its own, run on demand.

  One process for all would not do: the threads and the allocator of each library slow the others down.
  """

  def __init__(self, name: str, make: Callable[..., Callable[[], Any]], *arguments: Any):
    """Args: make, arguments: `make(*arguments)` is the function; both travel to the process, where it is made."""
    context = multiprocessing.get_context('spawn')
    self.name = name
    self._pipe, theirs = context.Pipe()
    self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
    self._process.start()
    theirs.close()

  def turn(self) -> Turn:
    """Calls the function once. The first turn makes it too, which is where programs are compiled."""
    self._pipe.send(True)
    return self._pipe.recv()

  def close(self) -> None:
    """Ends the process."""
    self._pipe.send(False)
    self._process.join()


def _serve(pipe: Any, make: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]) -> None:
  run = None
  while pipe.recv():
    start = time.perf_counter()
    run = run or make(*arguments)
    value = run()
    pipe.send((time.perf_counter() - start, value))


def take_turns(contestants: Sequence[Contestant], repetitions: int) -> dict[str, list[Turn]]:
  """{name: its turns}, the contestants one after the other in every repetition."""
  turns: dict[str, list[Turn]] = {each.name: [] for each in contestants}
  for _ in range(repetitions):
    for each in contestants:
      turns[each.name].append(each.turn())
  return turns
