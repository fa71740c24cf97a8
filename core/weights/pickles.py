"""Torch checkpoints (.pt, .pth, .bin) without torch and without running what is in them.

A checkpoint is a pickle: a small program that names functions to call. Here it may name what makes tensors and
parameters, OrderedDict, set and torch.Size; a file that names anything else is refused, by that name. Read only where
asked for: `core.weights.files.read(source, allow_pickle=True)`, `launch.convert --pickle`.

Both forms are known. Since torch 1.6 a file is a zip archive: NAME/data.pkl, and NAME/data/KEY for the numbers of each
storage. Before, it was a row of pickles (a magic number, a version, the machine, the object, the storages' keys),
followed by each storage as its count (int64) and its numbers.
"""

from __future__ import annotations

import collections
import math
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from core.errors import UserError

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""First two pickles of the form before torch 1.6."""
STORAGES: dict[str, Any] = {
  'DoubleStorage': np.float64, 'FloatStorage': np.float32, 'HalfStorage': np.float16,
  'BFloat16Storage': ml_dtypes.bfloat16, 'LongStorage': np.int64, 'IntStorage': np.int32, 'ShortStorage': np.int16,
  'CharStorage': np.int8, 'ByteStorage': np.uint8, 'BoolStorage': np.bool_,
}  # fmt: skip
UNUSED = ('INST', 'OBJ', 'NEWOBJ', 'NEWOBJ_EX', 'EXT1', 'EXT2', 'EXT4', 'BYTEARRAY8', 'NEXT_BUFFER', 'READONLY_BUFFER')
"""Instructions of pickles that are not followed: other ways to make objects, and buffers from outside."""
DEPTH = 50
"""Containers inside each other; more, or one inside itself, is no checkpoint."""


class Storage(NamedTuple):
  """Where numbers lie: a type of `STORAGES`, the name of the storage, and which part of it."""

  kind: str
  key: str
  start: int
  count: int


class Stored(NamedTuple):
  """A tensor that has not been read."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class Tensors(Mapping[str, np.ndarray]):
  """The tensors of torch checkpoints by name, each read when it is asked for, as `core.weights.files.Tensors`.

  A name is the path of keys to the tensor, joined by '.': 'model_state_dict.module.bert.embeddings...'. What is no
  tensor (an epoch, a learning rate) is left out.

  Attributes:
    source: what was asked for, for messages.
    shapes: name -> shape, known without reading.
    config: the config.json beside the weights, or {}.
  """

  def __init__(self, source: str, files: list[pathlib.Path], config: Mapping[str, Any] | None = None):
    self.source = source
    self.config = dict(config or {})
    self.shapes: dict[str, tuple[int, ...]] = {}
    self._where: dict[str, tuple[Archive | Row, Stored]] = {}
    for path in files:
      form = _open(path)
      for name, stored in _tensors(form.content, path):
        if name in self._where:
          raise UserError(f"{source}: two tensors are called '{name}'.")
        self.shapes[name] = stored.shape
        self._where[name] = form, stored
    if not self._where:
      raise UserError(f'{source} holds no tensor.')

  def __getitem__(self, name: str) -> np.ndarray:
    form, (storage, offset, shape, strides) = self._where[name]
    numbers = form.numbers(storage)
    if len(numbers) < storage.count:  # or the view below would reach beyond them
      raise UserError(f"{self.source}: the storage of '{name}' has {len(numbers)} numbers, expected {storage.count}.")
    strides = tuple(stride * numbers.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, strides).copy()

  def __iter__(self) -> Iterator[str]:
    return iter(self._where)

  def __len__(self) -> int:
    return len(self._where)


class Archive:
  """A zip archive of torch 1.6 and later; `content` is its object with `Stored` tensors."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    with zipfile.ZipFile(path) as archive:
      self._sizes = {info.filename: info.file_size for info in archive.infolist()}
      inside = [name for name in self._sizes if name.split('/')[1:] == ['data.pkl']]
      if len(inside) != 1:
        raise UserError(
          f'{path} is a zip archive, but not of a torch checkpoint: it has no data.pkl in its one folder.'
        )
      self._prefix = inside[0].removesuffix('data.pkl')
      order = f'{self._prefix}byteorder'
      if order in self._sizes and archive.read(order) != b'little':
        raise UserError(f'{path} was written on a machine with another order of bytes ({archive.read(order)!r}).')
      with archive.open(inside[0]) as file:
        self.content, storages = _unpickled(file, path)
    for storage in storages:
      expected, found = _bytes(storage.kind, storage.count), self._sizes.get(self._member(storage.key))
      if found != expected:
        raise UserError(f"{path}: storage '{storage.key}' has {found} bytes, expected {expected}. Download it again.")

  def numbers(self, storage: Storage) -> np.ndarray:
    """All numbers of a storage."""
    try:
      with zipfile.ZipFile(self._path) as archive:
        data = archive.read(self._member(storage.key))
    except zipfile.BadZipFile as error:
      raise UserError(f'{self._path} is damaged ({error}). Download it again.') from error
    return np.frombuffer(data, STORAGES[storage.kind])

  def _member(self, key: str) -> str:
    return f'{self._prefix}data/{key}'


class Row:
  """A row of pickles, as torch wrote before 1.6; `content` is its object with `Stored` tensors."""

  def __init__(self, path: pathlib.Path):
    self._path, size = path, path.stat().st_size
    with path.open('rb') as file:
      magic, version, machine = (_unpickled(file, path)[0] for _ in range(3))
      if (magic, version) != (MAGIC, PROTOCOL) or not isinstance(machine, dict):
        raise UserError(
          f'{path} is a pickle, but not a torch checkpoint: it begins with {magic!r:.60}, {version!r:.60}.'
        )
      if not machine.get('little_endian', True):
        raise UserError(f'{path} was written on a machine with another order of bytes.')
      self.content, storages = _unpickled(file, path)
      kinds = {storage.key: storage.kind for storage in storages}
      keys = _unpickled(file, path)[0]
      if not isinstance(keys, list) or not set(map(str, keys)) <= set(kinds):
        raise UserError(f'{path} is damaged: its storages {keys!r:.100} are not those that its tensors need.')
      self._at: dict[str, tuple[int, int]] = {}
      for key in map(str, keys):
        head = file.read(8)
        count = struct.unpack('<q', head)[0] if len(head) == 8 else -1
        end = file.tell() + _bytes(kinds[key], count)
        if count < 0 or end > size:
          raise UserError(f"{path} is truncated: {size} bytes, and storage '{key}' is not whole. Download it again.")
        self._at[key] = file.tell(), count
        file.seek(end)
    for storage in storages:
      if storage.start + storage.count > self._at.get(storage.key, (0, -1))[1]:
        raise UserError(f"{path}: storage '{storage.key}' is absent or too short. Download it again.")

  def numbers(self, storage: Storage) -> np.ndarray:
    """The numbers of a storage's part."""
    start = self._at[storage.key][0] + _bytes(storage.kind, storage.start)
    return np.fromfile(self._path, STORAGES[storage.kind], storage.count, offset=start)


class _Unpickler(pickle._Unpickler):
  """Builds plain containers with `Stored` in the place of tensors; `storages` lists what the pickle points to.

  Python's own unpickler, not the one in C: its table of instructions can be cut to those that checkpoints need, and no
  number in a file makes it claim memory for more than the file has.
  """

  dispatch = {
    code: load for code, load in pickle._Unpickler.dispatch.items()
    if code not in b''.join(getattr(pickle, name) for name in UNUSED)
  }  # fmt: skip

  def __init__(self, file: BinaryIO, path: pathlib.Path):
    super().__init__(file, encoding='latin1')  # checkpoints of Python 2 have bytes as keys
    self._path = path
    self.storages: list[Storage] = []

  def load_build(self) -> None:
    """Leaves out what a pickle would set on an object (the `_metadata` of a state dict), so that it can set nothing."""
    self.stack.pop()

  dispatch[pickle.BUILD[0]] = load_build

  def find_class(self, module: str, name: str) -> Any:
    known = {
      ('collections', 'OrderedDict'): collections.OrderedDict,
      ('builtins', 'set'): set,
      ('torch', 'Size'): tuple,
      ('torch._utils', '_rebuild_tensor'): self._tensor,
      ('torch._utils', '_rebuild_tensor_v2'): self._tensor,
      ('torch._utils', '_rebuild_parameter'): self._parameter,
      ('torch._utils', '_rebuild_parameter_with_state'): self._parameter,
    }
    module = {'__builtin__': 'builtins'}.get(module, module)
    if module == 'torch' and name in STORAGES:
      return name
    if (module, name) not in known:
      raise UserError(
        f"{self._path} asks for '{module}.{name}': it holds more than tensors in plain containers, and reading that"
        ' could run any code. If you trust its origin, save its tensors alone, once, in an environment with torch:\n'
        f"  torch.save(torch.load('{self._path}', map_location='cpu', weights_only=False)['state_dict'], 'tensors.pth')"
      )
    return known[module, name]

  def persistent_load(self, pid: Any) -> Storage:
    """('storage', type, key, device, count), and (key, start, count) of a part of it in old files."""
    what, kind, key, _, count, *part = pid
    start = 0
    if part and part[0] is not None:
      _, start, count = part[0]
    if what != 'storage' or kind not in STORAGES or not isinstance(key, str) or min(_whole(start, count)) < 0:
      raise UserError(f'{self._path} points to {pid!r:.200}, which is no storage of numbers.')
    self.storages.append(Storage(kind, key, start, count))
    return self.storages[-1]

  def _tensor(self, storage: Storage, offset: int, shape: Any, strides: Any, *_: Any) -> Stored:
    """Refuses a tensor that lies outside its storage: its strides would read foreign memory."""
    shape, strides = _whole(*shape), _whole(*strides)
    if (
      not isinstance(storage, Storage) or len(shape) != len(strides) or min((*_whole(offset), *shape, *strides, 0)) < 0
    ):
      raise ValueError('a tensor without a storage, or with negative sizes')
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
    count = math.prod(shape)
    absurd = math.prod(size or 1 for size in shape) > 2**40  # numpy cannot make even an empty array of it
    if (count and last >= storage.count) or count > storage.count or absurd:
      raise ValueError(f'a tensor of {shape} with strides {strides} in a storage of {storage.count} numbers')
    return Stored(storage, offset, shape, strides)

  def _parameter(self, tensor: Any, *_: Any) -> Any:
    return tensor


def _open(path: pathlib.Path) -> Archive | Row:
  if zipfile.is_zipfile(path):
    return Archive(path)
  with path.open('rb') as file:
    if file.read(4) == b'PK\x03\x04':
      raise UserError(f'{path} is truncated: a zip archive without its end. Download it again.')
  return Row(path)


def _unpickled(file: BinaryIO, path: pathlib.Path) -> tuple[Any, list[Storage]]:
  """(the next object of a file, the storages that it points to)."""
  unpickler = _Unpickler(file, path)
  try:
    return unpickler.load(), unpickler.storages
  except UserError:
    raise
  except Exception as error:  # a damaged pickle raises nearly anything
    message = f'{path} is not a torch checkpoint, or is damaged ({type(error).__name__}: {str(error)[:200]}).'
    raise UserError(message) from error


def _tensors(content: Any, path: pathlib.Path, name: str = '', depth: int = 0) -> Iterator[tuple[str, Stored]]:
  """(keys joined by '.', tensor) of all tensors inside containers."""
  if depth > DEPTH:
    raise UserError(f'{path}: its containers lie more than {DEPTH} deep inside each other ({name[:60]}...).')
  if isinstance(content, Stored):
    yield name, content
  elif isinstance(content, Mapping | list | tuple):
    for key, value in content.items() if isinstance(content, Mapping) else enumerate(content):
      yield from _tensors(value, path, f'{name}.{key}' if name else str(key), depth + 1)


def _whole(*values: Any) -> tuple[int, ...]:
  """The values, which must be whole numbers."""
  if not all(type(value) is int for value in values):
    raise ValueError(f'expected whole numbers, found {values!r:.100}')
  return values


def _bytes(kind: str, count: int) -> int:
  return np.dtype(STORAGES[kind]).itemsize * count
