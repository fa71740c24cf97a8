"""What a run writes down on the way: its history, which survives a kill, and how fast it goes."""

from __future__ import annotations

import contextlib
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax


class Journal:
  """The run's history: rows in memory and, on process 0, one JSON line each, cut back to the restored step."""

  def __init__(self, path: pathlib.Path):
    self.path, self.rows = path, []

  def resume(self, step: int) -> None:
    """Keeps what was written up to `step`; a line that a killed process left half-written is dropped."""
    for line in self.path.read_text().splitlines() if self.path.exists() else []:
      with contextlib.suppress(json.JSONDecodeError):
        row = json.loads(line)
        if row['step'] <= step:
          self.rows.append(row)
    if jax.process_index() == 0:
      whole = self.path.with_suffix('.tmp')
      whole.write_text(''.join(json.dumps(row) + '\n' for row in self.rows))
      whole.replace(self.path)

  def write(self, row: dict[str, Any]) -> None:
    """Adds a row, in memory and on disk."""
    self.rows.append(row)
    if jax.process_index() == 0:
      with self.path.open('a') as file:
        file.write(json.dumps(row) + '\n')


class Clock:
  """Examples per second since the last reading, without evaluations and saves."""

  def __init__(self):
    self.rows, self._start = 0, time.monotonic()

  def rate(self) -> float:
    """Reads and restarts."""
    now = time.monotonic()
    rate = self.rows / max(now - self._start, 1e-9)
    self.rows, self._start = 0, now
    return rate

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Time inside does not count."""
    begun = time.monotonic()
    yield
    self._start += time.monotonic() - begun
