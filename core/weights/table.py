"""Key tables: which of our leaves is which public tensor, used in both directions, with a full account.

A table is a tuple of `Key`s. Paths and names are patterns: '{i}' stands for a number, the same one on both sides, and
'{i-1}' or '{i+1}' for its neighbour.

  Key('encoder/block_{i}/mlp/up/kernel', 'blocks.{i}.mlp.fc1.weight', LINEAR)
  Key(('.../query/bias', '.../key/bias', '.../value/bias'), 'blocks.{i}.attn.qkv.bias', split(3))

Everything is accounted for: each of our leaves is loaded or fresh on purpose, each of their tensors is used or ignored
on purpose. All else is one error that lists it.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from core.errors import UserError, nearest

SHOWN = 24
"""Lines per list in messages and accounts."""


@dataclasses.dataclass(frozen=True)
class Transform:
  """How one public tensor becomes our leaves, and back: `export(*load(x)) == x`, bit for bit."""

  load: Callable[[np.ndarray], tuple[np.ndarray, ...]]
  export: Callable[..., np.ndarray]


COPY = Transform(lambda x: (x,), lambda x: x)
LINEAR = Transform(lambda x: (x.T,), lambda x: x.T)
"""[out, in] <-> [in, out]."""
CONV = Transform(
  lambda x: (x.transpose(*range(2, x.ndim), 1, 0),), lambda x: x.transpose(x.ndim - 1, x.ndim - 2, *range(x.ndim - 2))
)
"""[out, in, kh, kw] <-> [kh, kw, in, out]; with a time axis [out, in, kt, kh, kw] <-> [kt, kh, kw, in, out]."""


def split(parts: int, of: Transform = COPY, axis: int = 0) -> Transform:
  """One public tensor whose `axis` joins several of ours (a fused qkv), each further transformed by `of`."""

  def load(x: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(of.load(part)[0] for part in np.split(x, parts, axis))

  return Transform(load, lambda *ours: np.concatenate([of.export(x) for x in ours], axis))


@dataclasses.dataclass(frozen=True)
class Key:
  """One line of a table.

  Attributes:
    ours: pattern of our '/'-joined path, or several patterns for one public tensor.
    theirs: pattern of the public name.
    transform: between the two.
  """

  ours: str | tuple[str, ...]
  theirs: str
  transform: Transform = COPY

  @property
  def paths(self) -> tuple[str, ...]:
    """`ours` as a tuple."""
    return (self.ours,) if isinstance(self.ours, str) else self.ours


def layer(ours: str, theirs: str, kernel: Transform = LINEAR, bias: str = '') -> tuple[Key, ...]:
  """The two keys of a linear layer: torch keeps weights as [out, in] (`LINEAR`), a Conv1D of GPT-2 as we do (`COPY`).

  `bias` names theirs where it does not follow from `theirs`.
  """
  return Key(f'{ours}/kernel', f'{theirs}.weight', kernel), Key(f'{ours}/bias', bias or f'{theirs}.bias')


def norm(ours: str, theirs: str) -> tuple[Key, ...]:
  """The two keys of a layer norm."""
  return Key(f'{ours}/scale', f'{theirs}.weight'), Key(f'{ours}/bias', f'{theirs}.bias')


@dataclasses.dataclass(frozen=True)
class Layout:
  """A public way of naming one architecture's tensors.

  Attributes:
    name: 'timm', 'transformers', 'torchvision'.
    marker: a public name that only this layout has; what stands before it in a file is a prefix of all its names.
    keys: the table.
    ignored: (regex on the public name, why it is not used).
  """

  name: str
  marker: str
  keys: tuple[Key, ...]
  ignored: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass
class Account:
  """What became of every leaf and every tensor.

  Attributes:
    source: where the tensors came from.
    layout: name of the layout.
    loaded: our path -> (public name, elements, remark such as a resize or '').
    fresh: our path -> elements, left as they were.
    ignored: public name -> why.
  """

  source: str
  layout: str
  loaded: dict[str, tuple[str, int, str]] = dataclasses.field(default_factory=dict)
  fresh: dict[str, int] = dataclasses.field(default_factory=dict)
  ignored: dict[str, str] = dataclasses.field(default_factory=dict)

  def __str__(self) -> str:
    used = len({name for name, _, _ in self.loaded.values()})
    count = sum(size for _, size, _ in self.loaded.values())
    lines = [f'weights {self.source}, layout {self.layout}']
    lines.append(f'  loaded   {len(self.loaded)} leaves, {count:,} numbers, from {used} tensors')
    lines += [f'             {path}: {remark}' for path, (_, _, remark) in self.loaded.items() if remark]
    lines.append(f'  fresh    {len(self.fresh)} leaves, {sum(self.fresh.values()):,} numbers')
    lines += _grouped({path: f'{size:,}' for path, size in self.fresh.items()})
    lines.append(f'  ignored  {len(self.ignored)} tensors, on purpose')
    lines += _grouped(self.ignored)
    return '\n'.join(lines)


def chosen(layouts: Mapping[str, Layout], name: str, what: str) -> Layout:
  """The layout of a name, of the `layouts` that `what` ('a BERT') has."""
  if name not in layouts:
    known = sorted(layouts)
    raise UserError(f"{what} has no layout '{name}', expected one of {known}.{nearest(name, known)}")
  return layouts[name]


def detect(names: Sequence[str], layouts: Sequence[Layout], source: str) -> tuple[Layout, str]:
  """(layout, prefix) of a file, by its names.

  Raises:
    UserError: no layout's marker is among them.
  """
  for layout in layouts:
    for name in names:
      if name == layout.marker or name.endswith('.' + layout.marker):
        return layout, name[: -len(layout.marker)]
  markers = ', '.join(f"{layout.name} (has '{layout.marker}')" for layout in layouts)
  raise UserError(f'{source}: the names are of no known layout; expected {markers}; found {sorted(names)[:SHOWN]}.')


def load(
  ours: Mapping[str, Any],
  theirs: Mapping[str, np.ndarray],
  layout: Layout,
  *,
  source: str,
  prefix: str = '',
  fresh: Callable[[str], bool] = lambda path: False,
  fit: Mapping[str, Callable[[np.ndarray, tuple[int, ...]], tuple[np.ndarray, str]]] | None = None,
) -> tuple[dict[str, np.ndarray], Account]:
  """Fills our leaves from public tensors.

  Args:
    ours: {path: array or anything with shape and dtype}.
    theirs: {public name: array}.
    layout: the table.
    source: for messages.
    prefix: stands before the layout's names in `theirs`.
    fresh: our paths that have no public counterpart on purpose.
    fit: {path: (array, wanted shape) -> (array of that shape, remark or '')} for leaves whose size may differ.

  Returns:
    ({path: array in the dtype of ours} of the loaded leaves, account).

  Raises:
    UserError: one that lists all leaves without a tensor, tensors without a leaf, and shapes that differ.
  """
  account, loaded = Account(source, layout.name), {}
  missing, shapes = [], []
  wanted = [path for path in ours if not fresh(path)]
  matched, unmatched = match(wanted, layout)
  missing += [f"{path}: layout '{layout.name}' has no name for it" for path in unmatched]
  for key, name, paths in matched:
    if prefix + name not in theirs:
      missing.append(f'{", ".join(paths)}: no {prefix}{name}')
      continue
    for path, part in zip(paths, key.transform.load(theirs[prefix + name]), strict=True):
      shape, remark = tuple(ours[path].shape), ''
      if path in (fit or {}):
        part, remark = fit[path](part, shape)
      if part.shape != shape:
        shapes.append(f'{path}: {prefix}{name} gives {part.shape}, expected {shape}')
      loaded[path] = np.ascontiguousarray(part, dtype=ours[path].dtype)
      account.loaded[path] = (prefix + name, part.size, remark)
  account.fresh = {path: int(np.prod(ours[path].shape)) for path in ours if fresh(path)}
  used = {name for name, _, _ in account.loaded.values()}
  account.ignored = {name: why for name in theirs if name not in used and (why := _ignored(name, prefix, layout))}
  unused = [name for name in theirs if name not in used and name not in account.ignored]
  _complain(source, layout, {'without a tensor': missing, 'without a leaf': unused, 'of another shape': shapes})
  return loaded, account


def export(
  ours: Mapping[str, Any], layout: Layout, *, skip: Callable[[str], bool] = lambda path: False
) -> dict[str, Any]:
  """Public tensors from our leaves, the inverse of `load`.

  Args:
    ours: {path: array}.
    layout: the table.
    skip: our paths that the public layout has no place for, left out on purpose.

  Raises:
    UserError: a leaf has no public name.
  """
  matched, unmatched = match([path for path in ours if not skip(path)], layout)
  if unmatched:
    raise UserError(f"layout '{layout.name}' has no name for {len(unmatched)} of our leaves: {unmatched[:SHOWN]}.")
  return {name: key.transform.export(*(np.asarray(ours[path]) for path in paths)) for key, name, paths in matched}


def match(paths: Sequence[str], layout: Layout) -> tuple[list[tuple[Key, str, tuple[str, ...]]], list[str]]:
  """([(key, public name, our paths)], paths that no key names); a key of several paths needs all of them."""
  present, found, left = set(paths), [], dict.fromkeys(paths)
  for key in layout.keys:
    first = _regex(key.paths[0])
    for path in paths:
      numbers = first.fullmatch(path)
      if numbers is None:
        continue
      group = tuple(_fill(pattern, numbers.groupdict()) for pattern in key.paths)
      if all(each in present for each in group):
        found.append((key, _fill(key.theirs, numbers.groupdict()), group))
        for each in group:
          left.pop(each, None)
  return found, list(left)


def _regex(pattern: str) -> re.Pattern[str]:
  parts = re.split(r'\{(\w)\}', pattern)
  return re.compile(''.join(f'(?P<{part}>\\d+)' if i % 2 else re.escape(part) for i, part in enumerate(parts)))


def _fill(pattern: str, numbers: Mapping[str, str]) -> str:
  """'{i}' and '{i-1}' replaced by numbers."""
  return re.sub(r'\{(\w)([+-]\d+)?\}', lambda m: str(int(numbers[m[1]]) + int(m[2] or 0)), pattern)


def _ignored(name: str, prefix: str, layout: Layout) -> str:
  bare = name.removeprefix(prefix)
  return next((why for pattern, why in layout.ignored if re.fullmatch(pattern, bare)), '')


def _complain(source: str, layout: Layout, faults: Mapping[str, Sequence[str]]) -> None:
  """Raises one error over all faults."""
  if not any(faults.values()):
    return
  subjects = {'without a tensor': 'our leaves', 'without a leaf': 'its tensors', 'of another shape': 'its tensors'}
  lines = [f'weights {source} (layout {layout.name}) do not fit this network:']
  for kind, names in faults.items():
    if names:
      lines.append(f'  {len(names)} of {subjects[kind]} {kind}:')
      lines += [f'    {name}' for name in names[:SHOWN]]
      lines += [f'    ... and {len(names) - SHOWN} more'] if len(names) > SHOWN else []
  lines.append('Choose the variant that the file holds: `python -m launch.convert --input FILE` says which it is.')
  raise UserError('\n'.join(lines))


def _grouped(entries: Mapping[str, str]) -> list[str]:
  """One line per pattern: numbers in names become '*', so that twelve blocks are one line."""
  groups = collections.Counter((re.sub(r'\d+', '*', name), note) for name, note in entries.items())
  lines = [f'             {name}{f" x{count}" if count > 1 else ""}: {note}' for (name, note), count in groups.items()]
  return lines[:SHOWN] + ([f'             ... and {len(lines) - SHOWN} more'] if len(lines) > SHOWN else [])
