"""Being told to stop: SIGTERM, from a scheduler, noticed between two steps by all processes of a run alike."""

from __future__ import annotations

import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
  """The run was asked to stop (SIGTERM), has saved, and goes on where it was when started again."""

  EXIT_CODE = 75
  """EX_TEMPFAIL: what a scheduler is to read as 'start me again'."""


class Preemption:
  """Notices SIGTERM. With several processes, the runtime's own notice makes all of them stop at the same step."""

  def __init__(self):
    self._noticed = False

  def __enter__(self) -> Preemption:
    self._own = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
    if self._own:
      self._former = signal.signal(signal.SIGTERM, self._notice)
    return self

  def __exit__(self, *error: Any) -> None:
    if self._own:
      signal.signal(signal.SIGTERM, self._former)

  def _notice(self, *_: Any) -> None:
    self._noticed = True

  def reached(self, step: int) -> bool:
    """True once the run is to save and stop; with several processes, called at every step of all of them."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._noticed
