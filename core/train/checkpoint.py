"""Checkpoints: orbax, asynchronous, the last few and the best one.

Layout under a run's folder:

  checkpoints/last/<step>/   everything a run needs to go on
    variables/               {'trainable', 'frozen': {path: array}, 'collections': tree, 'ema': {path: array} or none}
    optimizer/               {'step', 'bad_step', 'opt_state'}
    iterator/                JSON: one grain iterator state per process
    meta/                    JSON: position, config, metadata of the evaluators, format version
  checkpoints/best/<step>/   variables/ and meta/ of the step that the stage's monitor chose

<step> counts over the stages of a run. orbax writes into a temporary folder and renames it when every process is done;
a folder named by a plain number that holds commit_success.txt is complete. What a killed save left behind is removed,
with a word, by the next run.
A complete checkpoint that cannot be read (a truncated disk, a partial copy) is moved to checkpoints/damaged and the run
goes on from the one before.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from core.errors import UserError
from core.train import mesh as mesh_lib
from core.train import state as state_lib
from core.train import task as task_lib

FORMAT = 1
"""Version of this layout, kept in every meta: a reader refuses what it does not know."""


class Damaged(Exception):
  """A checkpoint folder that is there but cannot be read back."""


class Checkpoints:
  """The checkpoints of one run. Every process of the run makes the same calls in the same order."""

  def __init__(self, workdir: str | pathlib.Path, keep: int = 1):
    """Opens `workdir / 'checkpoints'`, removing what killed saves left behind.

    Args:
      workdir: the run's folder, shared by all processes.
      keep: how many of the last checkpoints to keep (>= 1).
    """
    if keep < 1:
      raise UserError(f'train.keep is {keep}, expected at least 1: a run without a checkpoint cannot resume.')
    self.root = pathlib.Path(workdir).resolve() / 'checkpoints'
    for folder in (self.root / 'last', self.root / 'best'):
      for path in _unfinished(folder):
        _say(f'Ignoring the unfinished checkpoint {path}: its save was interrupted.')
    json_item, tree_item = ocp.JsonCheckpointHandler, ocp.StandardCheckpointHandler
    self._last = ocp.CheckpointManager(
      self.root / 'last',
      options=_options(keep),
      item_handlers={
        'variables': tree_item(), 'optimizer': tree_item(), 'iterator': json_item(), 'meta': json_item(),
      },
    )  # fmt: skip
    self._best = ocp.CheckpointManager(
      self.root / 'best', options=_options(1), item_handlers={'variables': tree_item(), 'meta': json_item()}
    )

  def steps(self) -> list[int]:
    """Steps of the complete last checkpoints, newest first."""
    return sorted(self._last.all_steps(), reverse=True)

  def save_last(self, step: int, state: state_lib.TrainState, iterator: Any, meta: Mapping[str, Any]) -> None:
    """Starts saving everything; returns when the state's buffers may be donated.

    Args:
      step: step of the run, greater than any saved one.
      state: the state after that step.
      iterator: this process's iterator state, plain data; gathered so that every process's is kept.
      meta: plain data, equal on every process.
    """
    self.wait()
    optimizer = {'step': state.step, 'bad_step': state.bad_step, 'opt_state': state.opt_state}
    items = ocp.args.Composite(
      variables=ocp.args.StandardSave(_variables_item(state)),
      optimizer=ocp.args.StandardSave(optimizer),
      iterator=ocp.args.JsonSave(gather(iterator)),
      meta=ocp.args.JsonSave(dict(meta)),
    )
    if not self._last.save(step, args=items, force=True):
      raise RuntimeError(f'orbax declined to save step {step} in {self.root / "last"}')

  def save_best(self, step: int, state: state_lib.TrainState, meta: Mapping[str, Any]) -> None:
    """Starts replacing the best checkpoint (without optimiser and iterator)."""
    self.wait()
    for stale in [old for old in self._best.all_steps() if old >= step]:  # of a run that was resumed from before it
      self._best.delete(stale)
    items = ocp.args.Composite(
      variables=ocp.args.StandardSave(_variables_item(state)), meta=ocp.args.JsonSave(dict(meta))
    )
    if not self._best.save(step, args=items, force=True):
      raise RuntimeError(f'orbax declined to save step {step} in {self.root / "best"}')

  def best_meta(self) -> dict[str, Any] | None:
    """The meta of the best checkpoint on disk, or None."""
    self.wait()
    for step in sorted(self._best.all_steps(), reverse=True):
      try:
        return self._best.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))['meta']
      except Exception as error:
        _say(f'Ignoring the damaged checkpoint {self.root / "best" / str(step)}: {_first_line(error)}')
        self._set_aside('best', step)
    return None

  def restore(
    self, step: int, stages: Sequence[task_lib.Stage], mesh: jax.sharding.Mesh
  ) -> tuple[state_lib.TrainState, Any, dict[str, Any]]:
    """(state on the mesh, this process's iterator state, meta) of a last checkpoint.

    Raises:
      Damaged: it cannot be read.
      UserError: it can, but does not fit the stages (the config or the code has changed since).
    """
    folder = self.root / 'last' / str(step)
    json_restore = ocp.args.JsonRestore()
    read = _reading(folder, lambda: self._last.restore(step, args=ocp.args.Composite(meta=json_restore)))
    meta = read['meta']
    _check_format(meta, folder)
    shapes = _reading(folder, lambda: self._last.item_metadata(step)['variables'].tree)
    stored = _reading(folder, lambda: self._last.item_metadata(step)['optimizer'].tree)
    target = self._target(folder, meta, shapes, stored, stages, mesh)
    optimizer = {'step': target.step, 'bad_step': target.bad_step, 'opt_state': target.opt_state}
    args = ocp.args.Composite(
      variables=ocp.args.StandardRestore(_variables_item(target)),
      optimizer=ocp.args.StandardRestore(optimizer),
      iterator=json_restore,
    )
    items = _reading(folder, lambda: self._last.restore(step, args=args))
    state = state_lib.TrainState(**items['variables'], **items['optimizer'])
    return state, _own_iterator(items['iterator'], folder), meta

  def set_aside(self, step: int) -> None:
    """Moves a damaged last checkpoint out of the way, so that the same step can be saved again."""
    self._set_aside('last', step)

  def wait(self) -> None:
    """Returns when no save is under way.

    Raises:
      UserError: a save in the background failed (a full disk, a lost file system).
    """
    try:
      self._last.wait_until_finished()
      self._best.wait_until_finished()
    except Exception as error:
      raise UserError(
        f'A checkpoint could not be written to {self.root} ({_first_line(error)}). Make room there and run the same'
        ' command again: it goes on from the last complete checkpoint.'
      ) from error

  def close(self) -> None:
    """Finishes the saves and the threads."""
    self._last.close()
    self._best.close()

  def _set_aside(self, kind: str, step: int) -> None:
    if jax.process_index() == 0:
      target = self.root / 'damaged' / f'{kind}-{step}'
      shutil.rmtree(target, ignore_errors=True)
      target.parent.mkdir(exist_ok=True)
      shutil.move(self.root / kind / str(step), target)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(f'verax:set_aside:{kind}:{step}')
    (self._last if kind == 'last' else self._best).reload()

  def _target(self, folder, meta, shapes, stored, stages, mesh) -> state_lib.TrainState:
    """The shapes to restore into: parameters as the checkpoint has them, optimiser state as the stage makes it."""
    index = meta['stage']
    if index >= len(stages) or stages[index].name != meta['stage_name']:
      names = [stage.name for stage in stages]
      raise UserError(
        f"{folder} was saved in stage {index} '{meta['stage_name']}', but the task's stages are {names}: resume with"
        ' the config of that run, or choose another workdir.'
      )
    arrays = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), shapes)
    variables = state_lib.join(arrays['trainable'] or {}, arrays['frozen'] or {}, arrays['collections'] or {})
    target = state_lib.abstract(variables, stages[index], mesh)
    same = (
      set(target.trainable) == set(arrays['trainable'] or {})
      and (target.ema is None) == (not arrays['ema'])
      and _names(target.opt_state) == _names(stored['opt_state'])
    )
    if not same:
      raise UserError(
        f"{folder} holds other trainable leaves, averages or optimiser state than stage '{stages[index].name}' makes:"
        ' resume with the config of that run, or choose another workdir.'
      )
    return target


def restore_variables(workdir: str | pathlib.Path, which: str | int = 'best') -> tuple[dict[str, Any], dict[str, Any]]:
  """The weights of a trained run, without its task or config.

  Args:
    workdir: the run's folder.
    which: 'best' (the last one, where the final stage had no monitor), 'last', or a step.

  Returns:
    (Flax variables on the default device, the moving average in place of the trained leaves where there was one; meta:
    plain data with 'step', 'stage_name', 'config', 'metadata', 'metrics', ...).

  Raises:
    UserError: there is no such checkpoint, or it cannot be read.
  """
  folder = _find(pathlib.Path(workdir).resolve() / 'checkpoints', which)
  try:
    meta = _read_meta(folder)
    _check_format(meta, folder)
    item = _read_arrays(folder / 'variables')
  except UserError:
    raise
  except Exception as error:
    raise UserError(
      f'The checkpoint {folder} cannot be read ({_first_line(error)}): it is incomplete or damaged. Copy it again, or'
      ' choose another one (--which=last, or a step).'
    ) from error
  trainable = item.get('ema') or item.get('trainable') or {}
  variables = state_lib.join(trainable, item.get('frozen') or {}, item.get('collections') or {})
  return jax.tree.map(jax.device_put, variables), meta


def plain(value: Any) -> Any:
  """Configs, mappings, sequences, numpy scalars and paths as JSON data; tuples become lists.

  Raises:
    TypeError: something else is in it.
  """
  if hasattr(value, 'to_dict'):
    return plain(value.to_dict())
  if isinstance(value, Mapping):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple, set, frozenset)):
    return [plain(item) for item in value]
  if isinstance(value, (np.ndarray, np.generic)):
    return value.tolist()
  if isinstance(value, pathlib.PurePath):
    return str(value)
  if value is None or isinstance(value, (bool, int, float, str)):
    return value
  raise TypeError(f'a checkpoint holds plain data, found {type(value).__name__}: {value!r}')


def gather(value: Any) -> list[Any]:
  """One plain value per process, in the order of processes, known to all of them."""
  text = json.dumps(plain(value))
  if jax.process_count() == 1:
    return [json.loads(text)]
  data = np.frombuffer(text.encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.asarray([data.size], np.int32)).reshape(-1)
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: data.size] = data
  rows = multihost_utils.process_allgather(padded).reshape(jax.process_count(), -1)
  return [json.loads(bytes(row[:size]).decode()) for row, size in zip(rows, sizes)]


def _options(keep: int) -> ocp.CheckpointManagerOptions:
  return ocp.CheckpointManagerOptions(
    max_to_keep=keep, create=True, cleanup_tmp_directories=True, enable_async_checkpointing=True
  )


def _variables_item(state: state_lib.TrainState) -> dict[str, Any]:
  return {'trainable': state.trainable, 'frozen': state.frozen, 'collections': state.collections, 'ema': state.ema}


def _own_iterator(states: list[Any], folder: pathlib.Path) -> Any:
  """This process's iterator state; another number of processes is served when all states are equal."""
  if len(states) == jax.process_count():
    return states[jax.process_index()]
  if all(state == states[0] for state in states):
    return states[0]
  raise UserError(
    f'{folder} was saved by {len(states)} processes whose data iterators stood at different places; this run has'
    f' {jax.process_count()}. Resume with {len(states)} processes.'
  )


def _reading(folder: pathlib.Path, read: Any) -> Any:
  """`read()`, with any failure on any process as `Damaged` on every process."""
  value, error = None, None
  try:
    value = read()
  except Exception as caught:
    error = caught
  failed = error is not None
  if jax.process_count() > 1:
    failed = bool(np.any(multihost_utils.process_allgather(np.asarray([failed]))))
  if failed:
    raise Damaged(f'{folder}: {_first_line(error)}') from error
  return value


def _names(tree: Any) -> set[str]:
  """Paths of the array leaves, the same for named tuples in memory and for the dictionaries that orbax stores."""
  return {mesh_lib.key_path(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _unfinished(folder: pathlib.Path) -> list[pathlib.Path]:
  """Entries of a checkpoint folder that are not complete checkpoints."""
  entries = sorted(folder.iterdir()) if folder.is_dir() else []
  return [path for path in entries if path.is_dir() and not _complete(path)]


def _complete(path: pathlib.Path) -> bool:
  return path.name.isdigit() and (path / 'commit_success.txt').is_file()


def _find(root: pathlib.Path, which: str | int) -> pathlib.Path:
  """The folder of a checkpoint."""
  found = {
    kind: {int(path.name): path for path in (root / kind).iterdir() if path.is_dir() and _complete(path)}
    if (root / kind).is_dir()
    else {}
    for kind in ('best', 'last')
  }
  if not found['best'] and not found['last']:
    raise UserError(f'There is no complete checkpoint under {root}: expected the workdir of a run of launch.train.')
  if str(which).isdigit():
    for kind in ('last', 'best'):
      if int(which) in found[kind]:
        return found[kind][int(which)]
  elif which == 'last' and found['last']:
    return found['last'][max(found['last'])]
  elif which == 'best':
    last = found['last'][max(found['last'])] if found['last'] else None
    monitored = found['best'] and (last is None or _monitored(last))
    return found['best'][max(found['best'])] if monitored or last is None else last
  has = ', '.join(f'{kind}: {sorted(steps) or "none"}' for kind, steps in found.items())
  raise UserError(f"There is no checkpoint '{which}' under {root}; found {has}. Expected 'best', 'last' or a step.")


def _monitored(folder: pathlib.Path) -> bool:
  """False when the stage that the last checkpoint belongs to keeps no best one (an earlier stage's is then stale)."""
  try:
    return _read_meta(folder)['monitor'] is not None
  except Exception:
    return True  # unreadable: the best one is then what is left


def _read_meta(folder: pathlib.Path) -> dict[str, Any]:
  return json.loads((folder / 'meta' / 'metadata').read_text())


def _read_arrays(folder: pathlib.Path) -> dict[str, Any]:
  """A stored tree as numpy arrays, whatever devices it was saved from."""
  # The handler alone: a Checkpointer around it would warn that this folder, one of several items, has no metadata.
  with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
    tree = handler.metadata(folder).tree
    args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=args))


def _check_format(meta: Mapping[str, Any], folder: pathlib.Path) -> None:
  if meta.get('format') != FORMAT:
    raise UserError(
      f'{folder} has format {meta.get("format")}, this program reads format {FORMAT}: use its own version.'
    )


def _first_line(error: BaseException | None) -> str:
  text = str(error).strip().splitlines()[0] if error is not None and str(error).strip() else 'no message'
  text = text if len(text) <= 300 else f'{text[:100]} ... {text[-200:]}'  # the system's own word comes last
  return f'{type(error).__name__}: {text}' if error is not None else 'another process failed to read it'


def _say(text: str) -> None:
  if jax.process_index() == 0:
    print(text, flush=True)
