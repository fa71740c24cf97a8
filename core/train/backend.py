"""The machine under a run: compilation cache, several processes, a summary for the report."""

from __future__ import annotations

import os
import pathlib
import platform
from importlib import metadata
from typing import Any

import jax

from core.errors import UserError
from core.train import memory

CACHE = '~/.cache/verax/jax'
"""Default folder of the persistent compilation cache; JAX_COMPILATION_CACHE_DIR names another, empty for none."""

MIN_COMPILE_SECONDS = 0.3
"""Programs that compile faster are not kept: reading them back takes as long (our choice)."""

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


def setup(
  *,
  distributed: bool = False,
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Joins the other processes of the run, if there are any; turns the compilation cache on; on CPUs keeps freed memory.

  To be called before anything else touches a device. Several processes are taken for granted where `distributed` or a
  `coordinator` asks for them, and in a Slurm step of several tasks. Without a coordinator, jax finds the others itself
  (Slurm, TPU pods, Open MPI, Kubernetes with the package `kubernetes`).

  Args:
    distributed: this process is one of several.
    coordinator: 'host:port' of process 0.
    num_processes: how many there are.
    process_id: which one this is, in [0, num_processes).

  Raises:
    UserError: they could not find each other.
  """
  _enable_cache()
  memory.keep_freed()
  given = {'coordinator_address': coordinator, 'num_processes': num_processes, 'process_id': process_id}
  missing = [name for name, value in given.items() if value is None]
  if 0 < len(missing) < len(given):
    raise UserError(
      f'--coordinator, --num_processes and --process_id come together; missing: {", ".join(missing)}. With none of'
      ' them, --distributed asks the scheduler.'
    )
  if missing and not distributed and int(os.environ.get('SLURM_STEP_NUM_TASKS', '1')) < 2:
    return
  if jax.distributed.is_initialized():
    return
  # Only the CPU backend reads this: it has no collectives across processes of its own.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  try:
    # Left to look around although all is given, jax would let a Slurm task that owns a node see one of its GPUs only.
    jax.distributed.initialize(**given, cluster_detection_method=None if missing else 'deactivate')
  except (ValueError, RuntimeError) as error:
    first = str(error).strip().partition('\n')[0]
    raise UserError(
      f'the processes of this run did not find each other ({first}). Give every one of them'
      ' --coordinator=HOST:PORT --num_processes=N --process_id=I.'
    ) from error


def summary() -> dict[str, Any]:
  """What the run ran on: {'devices': '2 x cpu', 'python': ..., package: version, ...}; plain data."""
  kinds = [device.device_kind for device in jax.devices()]
  devices = ', '.join(f'{kinds.count(kind)} x {kind}' for kind in dict.fromkeys(kinds))
  return {
    'backend': jax.default_backend(),
    'devices': devices,
    'processes': jax.process_count(),
    'CPU cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
    'host': platform.node(),
    'system': platform.platform(),
    'python': platform.python_version(),
    **{name: metadata.version(name) for name in PACKAGES},
  }


def _enable_cache() -> None:
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    folder = pathlib.Path(CACHE).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update('jax_compilation_cache_dir', str(folder))
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', MIN_COMPILE_SECONDS)
