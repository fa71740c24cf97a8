"""Configs: loaded from a file with changes on top, checked against typing errors, and aware of what a run reads.

  config = track(load('configs/fas/fas_aug.py:release', ['optim.learning_rate=3e-4']))
  ...                                    # train
  unread(config)                         # ['data.margin', ...]: keys that had no effect

A config is an `ml_collections.ConfigDict`, locked: a key that the file does not define cannot be set, and a value keeps
its type. Text values are read as `ml_collections.config_flags` reads them.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from core.errors import UserError, nearest

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
"""Where a relative path is looked for when it is not under the working directory (a notebook's, say)."""

Overrides = Sequence[str] | Mapping[str, Any]
"""'key=value' texts, a dotted key each (a tuple's key may come several times), or {dotted key: value}."""


def load(spec: str, overrides: Overrides = ()) -> ConfigDict:
  """The config of a file under a preset, changed and locked.

  Args:
    spec: 'configs/fas/fas_aug.py' or 'configs/fas/fas_aug.py:preset'; the preset is the argument of its `get_config`.
    overrides: see `Overrides`.

  Raises:
    UserError: no such file, preset or key, or a value of another type.
  """
  path, _, preset = spec.partition(':')
  function = _get_config(path)
  try:
    config = function(preset) if preset else function()
  except ValueError as error:
    raise UserError(f"config '{spec}': {error}") from error
  return change(config.lock(), overrides, source=path)


def restore(stored: Mapping[str, Any]) -> ConfigDict:
  """The config of a checkpoint's meta (plain data): its lists are the tuples that they were. Locked."""
  return ConfigDict(_tuples(stored)).lock()


def change(config: ConfigDict, overrides: Overrides, source: str = 'the config') -> ConfigDict:
  """Sets keys in place and returns the config; `source` names it in errors."""
  with _unrecorded(config):
    if isinstance(overrides, Mapping):
      for key, value in overrides.items():
        _check_key(config, key, source)
        _set(config, key, value)
    else:
      for key, texts in _grouped(overrides).items():
        _check_key(config, key, source)
        _set(config, key, _parsed(config, key, texts))
  return config


def flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """{'optim.learning_rate': 0.001, ...}: every leaf under its dotted key, in the config's order."""
  leaves: dict[str, Any] = {}
  for key, value in (config.to_dict() if isinstance(config, ConfigDict) else config).items():
    leaves |= flatten(value, f'{prefix}{key}.') if isinstance(value, Mapping) else {f'{prefix}{key}': value}
  return leaves


# Which keys a run reads.


class Tracked(ConfigDict):
  """A config that remembers which leaves were read, by attribute or item; made by `track`.

  Printing, comparing, `to_dict` and serialising it (a checkpoint keeps the config) do not count as reading. A copy made
  by `derive` or `copy.deepcopy` shares the record; one that is pickled into another process does not.
  """

  def __init__(self, initial_dictionary: Any = None, *args: Any, **kwargs: Any):
    object.__setattr__(self, '_record', _Record())
    object.__setattr__(self, '_prefix', '')
    super().__init__(initial_dictionary, *args, **kwargs)

  def __getitem__(self, key: str) -> Any:
    value = super().__getitem__(key)
    if not isinstance(value, ConfigDict):
      self._record.add(f'{self._prefix}{key}')
    return value

  def __deepcopy__(self, memo: dict[int, Any]) -> Tracked:
    return _tracked(self, self._record, self._prefix)


def _without_record(name: str) -> Callable[..., Any]:
  """The method of ConfigDict with the record paused."""
  method = getattr(ConfigDict, name)

  def quiet(self: Tracked, *args: Any, **kwargs: Any) -> Any:
    with _unrecorded(self):
      return method(self, *args, **kwargs)

  quiet.__name__, quiet.__doc__ = name, method.__doc__
  return quiet


for _name in ('to_dict', 'to_json', 'to_json_best_effort', 'to_yaml', 'get_type', 'copy_and_resolve_references'):
  setattr(Tracked, _name, _without_record(_name))


def track(config: ConfigDict) -> Tracked:
  """A copy of the config, of which nothing has been read yet."""
  return _tracked(config, _Record(), '')


def derive(config: ConfigDict, overrides: Overrides) -> ConfigDict:
  """A changed copy (a fold, a variant): what is read of it counts as read of `config`, and the other way round."""
  if isinstance(config, Tracked):
    copy = _tracked(config, config._record, config._prefix)
  else:
    copy = config.copy_and_resolve_references()
  return change(copy, overrides)


def unread(config: Tracked) -> list[str]:
  """Dotted keys of the leaves that were never read, sorted."""
  return sorted(set(flatten(config)) - config._record.keys)


class _Record:
  """The keys that were read, by all configs that share it."""

  def __init__(self):
    self.keys: set[str] = set()
    self.paused = 0

  def add(self, key: str) -> None:
    if not self.paused:
      self.keys.add(key)


@contextlib.contextmanager
def _unrecorded(config: ConfigDict) -> Iterator[None]:
  """Reads inside do not count."""
  record = config._record if isinstance(config, Tracked) else _Record()
  record.paused += 1
  try:
    yield
  finally:
    record.paused -= 1


def _tracked(config: ConfigDict, record: _Record, prefix: str) -> Tracked:
  """A tracked deep copy whose leaves are recorded under `prefix`."""
  copy = Tracked()
  object.__setattr__(copy, '_record', record)
  object.__setattr__(copy, '_prefix', prefix)
  with _unrecorded(config):
    items = config.items()
  for key, value in items:
    copy[key] = _tracked(value, record, f'{prefix}{key}.') if isinstance(value, ConfigDict) else value
  object.__setattr__(copy, '_type_safe', config.is_type_safe)
  return copy.lock() if config.is_locked else copy


# Files, keys and values.


def _get_config(path: str) -> Callable[..., ConfigDict]:
  """The function `get_config` of a config file."""
  places = (pathlib.Path(path), CHECKOUT / path)
  file = next((place for place in places if place.is_file()), None)
  if file is None:
    others = [str(pathlib.Path(path).with_name(other.name)) for place in places for other in place.parent.glob('*.py')]
    hint = nearest(path, others) or ' Expected configs/DOMAIN/NAME.py[:preset].'
    raise UserError(f"there is no config file '{path}'.{hint}")
  spec = importlib.util.spec_from_file_location(f'verax_config_{file.stem}', file)
  if spec is None or spec.loader is None:
    raise UserError(f"config file '{path}' is not a Python file: expected configs/DOMAIN/NAME.py[:preset].")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    raise UserError(f"config file '{path}' defines no get_config(preset), which is to return a ConfigDict.")
  return module.get_config


def _grouped(overrides: Sequence[str]) -> dict[str, list[str]]:
  """{key: its texts, in order}."""
  groups: dict[str, list[str]] = {}
  for text in overrides:
    key, equals, value = text.partition('=')
    if not equals:
      raise UserError(f"config override '{text}' has no value: expected key=value, such as optim.learning_rate=3e-4.")
    groups.setdefault(key, []).append(value)
  return groups


def _check_key(config: ConfigDict, key: str, source: str) -> None:
  """Raises `UserError` unless `key` is a leaf."""
  leaves = flatten(config)
  if key in leaves:
    return
  inside = [leaf for leaf in leaves if leaf.startswith(f'{key}.')]
  if inside:
    raise UserError(f"config key '{key}' is a section: set one of its keys {', '.join(inside)}.")
  raise UserError(f"unknown config key '{key}' in {source}.{_hint(key, leaves)}")


def _hint(key: str, leaves: Iterable[str]) -> str:
  """The nearest key of the same section; without such a section, of the whole config; else what there is."""
  section, _, name = key.rpartition('.')
  beside = {leaf.rpartition('.')[2]: leaf for leaf in leaves if section and leaf.rpartition('.')[0] == section}
  if not beside:
    return nearest(key, leaves) or f' Known: {", ".join(sorted({leaf.partition(".")[0] for leaf in leaves}))}.'
  close = difflib.get_close_matches(name, beside, n=1)
  return f" Did you mean '{beside[close[0]]}'?" if close else f' Section {section} has {", ".join(beside.values())}.'


def _parsed(config: ConfigDict, key: str, texts: list[str]) -> Any:
  """What `config_flags` makes of the texts, given the type of the present value."""
  value = config[key]
  if isinstance(value, (tuple, list)):
    texts = [_listed(text, value) for text in texts]
  values = flags.FlagValues()
  argv = ['load', *(f'--config.{key}={text}' for text in texts)]
  config_flags.DEFINE_config_dict('config', ConfigDict(config.to_dict()), flag_values=values, sys_argv=argv)
  try:
    values(argv)
  except flags.Error as error:
    raise UserError(f"config key '{key}' is '{texts[-1]}', expected {_expected(value)}.") from error
  return values['config'].override_values[key]


def _listed(text: str, value: Sequence[Any]) -> str:
  """'a,b' for a tuple of texts is ('a', 'b'); config_flags would take it for one text with a comma."""
  plain = text.strip()[:1] not in ('(', '[', '"', "'")
  texts = all(isinstance(item, str) for item in value)
  return repr(tuple(part.strip() for part in text.split(','))) if plain and texts and ',' in text else text


def _set(config: ConfigDict, key: str, value: Any) -> None:
  """Sets a leaf to a value of its type."""
  section, _, name = key.rpartition('.')
  holder = config[section] if section else config
  present = holder[name]
  wrong = isinstance(value, bool) != isinstance(present, bool) and present is not None
  kinds = {type(item) for item in present} if isinstance(present, (tuple, list)) else set()
  if len(kinds) == 1 and isinstance(value, (tuple, list)):
    kind = kinds.pop()
    value = type(present)(float(item) if kind is float and type(item) is int else item for item in value)
    wrong = any(type(item) is not kind for item in value)
  try:
    if wrong:
      raise TypeError
    holder[name] = value
  except TypeError:
    raise UserError(f"config key '{key}' is {value!r}, expected {_expected(present)}.") from None


def _expected(value: Any) -> str:
  """'a float, such as 0.001'."""
  names = {bool: 'true or false', int: 'an integer', float: 'a number', str: 'a text', tuple: 'a tuple', list: 'a list'}
  return f'{names.get(type(value), type(value).__name__)}, such as {value!r}'


def _tuples(value: Any) -> Any:
  """Plain data with tuples for lists."""
  if isinstance(value, Mapping):
    return {key: _tuples(item) for key, item in value.items()}
  return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
