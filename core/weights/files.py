"""Reading and writing safetensors: a file, a folder (sharded or not), or a repository of the Hugging Face Hub.

What is not safetensors is refused by name: pickles (unless asked for, and then through `core.weights.pickles`, which
runs no code of theirs), web pages and git-LFS pointers that were saved in the place of weights, truncated files.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from core.errors import UserError
from core.weights import pickles

PLAIN = ('diffusion_pytorch_model.safetensors', 'model.safetensors')
"""Names of the weights in full precision, beside which the libraries put variants: model.fp16.safetensors."""

PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.pickle')
MAX_HEADER = 100_000_000
"""Bytes; the limit of the safetensors format itself."""
DTYPES = {
  'F64': np.float64, 'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16,
  'I64': np.int64, 'I32': np.int32, 'I16': np.int16, 'I8': np.int8,
  'U64': np.uint64, 'U32': np.uint32, 'U16': np.uint16, 'U8': np.uint8, 'BOOL': np.bool_,
}  # fmt: skip


class Tensors(Mapping[str, np.ndarray]):
  """The tensors of a source by name, each read when it is asked for.

  Attributes:
    source: what was asked for, for messages.
    shapes: name -> shape, known without reading.
    config: the config.json beside the weights, or {}.
  """

  def __init__(self, source: str, files: list[pathlib.Path], config: Mapping[str, Any] | None = None):
    self.source = source
    self.config = dict(config or {})
    self.shapes: dict[str, tuple[int, ...]] = {}
    self._file: dict[str, pathlib.Path] = {}
    for path in files:
      for name, entry in header(path).items():
        if entry['dtype'] not in DTYPES:
          known = ', '.join(DTYPES)
          raise UserError(f"{path}: tensor '{name}' has type {entry['dtype']}, expected one of {known}.")
        if name in self._file:
          raise UserError(f"{source}: tensor '{name}' is both in {self._file[name].name} and in {path.name}.")
        self.shapes[name] = tuple(entry['shape'])
        self._file[name] = path

  def __getitem__(self, name: str) -> np.ndarray:
    with safetensors.safe_open(self._file[name], framework='np') as file:
      return file.get_tensor(name)

  def __iter__(self) -> Iterator[str]:
    return iter(self._file)

  def __len__(self) -> int:
    return len(self._file)


def read(
  source: str | os.PathLike[str], *, sha256: str = '', size: int = 0, allow_pickle: bool = False
) -> Tensors | pickles.Tensors:
  """Opens weights.

  Args:
    source: a .safetensors file; a folder with one, or with shards and an index; or 'owner/name[@revision]' on the Hub.
    sha256: what the file's digest must be; '' for no check. Only for a single file.
    size: what the file's size must be, in bytes; 0 for no check. Only for a single file.
    allow_pickle: whether a checkpoint of torch (.bin, .pt, .pth) is read too, where there is no safetensors file.

  Raises:
    UserError: nothing there, not safetensors, damaged, or not the file that was meant.
  """
  source = str(source)
  path = pathlib.Path(source).expanduser()
  if path.is_file():
    verify(path, sha256, size)
    kind = pickles.Tensors if allow_pickle and _is_pickle(path) else Tensors
    return kind(source, [path], _config(path.parent))
  if not path.is_dir():
    if not re.fullmatch(r'[\w.-]+/[\w.-]+(@[\w./-]+)?', source) or path.suffix in ('.safetensors', *PICKLES):
      raise UserError(
        f'weights {source}: no such file or folder. Expected a .safetensors file, a folder, or owner/name.'
      )
    path = download(source, allow_pickle)
  if sha256 or size:
    raise UserError(f'weights {source} is a folder: sha256 and size belong to a single file.')
  if allow_pickle and not any(path.glob('*.safetensors')):
    return pickles.Tensors(source, _folder_pickles(path), _config(path))
  return Tensors(source, folder_files(path), _config(path))


def write(path: str | os.PathLike[str], tensors: Mapping[str, Any]) -> None:
  """Writes tensors as one safetensors file that torch's and our readers take; a killed write leaves no half file."""
  path = pathlib.Path(path).expanduser()
  if path.suffix != '.safetensors':
    raise UserError(f'weights are written as .safetensors, not as {path.name}.')
  path.parent.mkdir(parents=True, exist_ok=True)
  arrays = {name: np.asarray(value, order='C') for name, value in tensors.items()}
  partial = path.with_name(f'{path.name}.partial-{os.getpid()}')
  safetensors.numpy.save_file(arrays, partial, metadata={'format': 'pt'})
  partial.replace(path)


def folder_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The safetensors files that make up the weights of a folder, by its index if it has one."""
  indices = sorted(folder.glob('*.safetensors.index.json'))
  files = sorted(folder.glob('*.safetensors'))
  if len(indices) == 1:
    return _shards(indices[0], header)
  if len(files) == 1:
    return files
  if not files:
    others = [path for path in sorted(folder.iterdir()) if path.suffix in PICKLES]
    if others:
      raise _pickle(others[0])
    raise UserError(f'{folder} holds no .safetensors file.')
  if plain := [path for path in files if path.name in PLAIN]:
    return plain[:1]
  names = ', '.join(path.name for path in files[:8])
  raise UserError(
    f'{folder} holds {len(files)} safetensors files and no single index ({names}): name the one you mean.'
  )


def _folder_pickles(folder: pathlib.Path) -> list[pathlib.Path]:
  """The torch checkpoints that make up the weights of a folder, by their index if it has one."""
  indices = sorted(folder.glob('*.bin.index.json'))
  if len(indices) == 1:
    return _shards(indices[0], lambda path: pickles.Tensors(str(path), [path]))
  files = [path for path in sorted(folder.iterdir()) if path.suffix in PICKLES]
  plain = folder / 'pytorch_model.bin'
  if plain in files:
    return [plain]
  if len(files) != 1:
    names = ', '.join(path.name for path in files[:8]) or 'none'
    raise UserError(f'{folder} holds no safetensors file and {len(files)} torch checkpoints ({names}): name one.')
  return files


def header(path: pathlib.Path) -> dict[str, dict[str, Any]]:
  """name -> {'dtype', 'shape', 'data_offsets'} of a safetensors file, after checking that the file is one and is whole.

  Raises:
    UserError: it is something else, or ends too early.
  """
  size = path.stat().st_size
  with path.open('rb') as file:
    head = file.read(512)
    _refuse(path, head)
    if _pickled(path, head):
      raise _pickle(path)
    length = struct.unpack('<Q', head[:8])[0] if size >= 8 else 0
    if not 2 <= length <= MAX_HEADER:
      raise UserError(f'{path} ({size} bytes) is not a safetensors file: it begins with {head[:16]!r}.')
    file.seek(8)
    text = file.read(length)
  if len(text) < length:
    raise UserError(f'{path} is truncated: its header alone has {length} bytes, the file {size}. Download it again.')
  try:
    entries = json.loads(text)
  except ValueError as error:
    raise UserError(f'{path} is not a safetensors file: its header is not JSON ({error}).') from error
  entries.pop('__metadata__', None)
  expected = 8 + length + max((entry['data_offsets'][1] for entry in entries.values()), default=0)
  if size != expected:
    kind = 'is truncated' if size < expected else 'has bytes after its end'
    raise UserError(f'{path} {kind}: {size} bytes, its header promises {expected}. Download it again.')
  return entries


def verify(path: pathlib.Path, sha256: str = '', size: int = 0) -> None:
  """Checks a file's size and digest where they are given."""
  found = path.stat().st_size
  if size and found != size:
    raise UserError(f'{path} has {found} bytes, expected {size}: the download is broken, or this is another file.')
  if sha256:
    with path.open('rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
    if digest != sha256.lower():
      raise UserError(
        f'{path} has sha256 {digest}, expected {sha256}: the download is broken, or this is another file.'
      )


def download(repository: str, allow_pickle: bool = False) -> pathlib.Path:
  """Fetches the safetensors of 'owner/name[@revision]' from the Hub into its cache, checked by the Hub's digests.

  A torch checkpoint is fetched only where it is allowed and there are no safetensors.
  """
  import huggingface_hub

  name, _, revision = repository.partition('@')
  patterns = ['*.safetensors', '*.safetensors.index.json', 'config.json']
  try:
    info = huggingface_hub.HfApi().model_info(name, revision=revision or None, files_metadata=True)
    found = {pathlib.Path(file.rfilename).suffix for file in info.siblings or ()}
    if allow_pickle and '.safetensors' not in found:
      patterns += ['pytorch_model*.bin', 'pytorch_model*.bin.index.json']
    folder = huggingface_hub.snapshot_download(name, revision=info.sha, allow_patterns=patterns)
  except Exception as error:
    raise UserError(
      f'weights {repository}: there is no such file or folder here, and the Hugging Face Hub did not give it'
      f' ({type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ""}).'
      ' Check the name and the network, or download it yourself and give the path.'
    ) from error
  if not allow_pickle and '.safetensors' not in found and found & set(PICKLES):
    raise _pickle(pathlib.Path(name), f'the weights {repository} on the Hub are')
  folder = pathlib.Path(folder)
  for file in info.siblings or ():
    if file.lfs is not None and (folder / file.rfilename).is_file():
      verify(folder / file.rfilename, file.lfs.sha256, file.lfs.size)
  return folder


def _shards(index: pathlib.Path, names: Callable[[pathlib.Path], Iterable[str]]) -> list[pathlib.Path]:
  """The files that an index names; all must be there and hold what it says; `names` are the tensors in one."""
  try:
    where = json.loads(index.read_text(encoding='utf-8'))['weight_map']
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{index} is not an index of shards: expected JSON with 'weight_map'.") from error
  files = [index.parent / name for name in sorted(set(where.values()))]
  absent = [path.name for path in files if not path.is_file()]
  if absent:
    raise UserError(f'{index.parent} lacks {len(absent)} of the {len(files)} shards its index names: {absent[:8]}.')
  inside = {path.name: set(names(path)) for path in files}
  lost = sorted(name for name, file in where.items() if name not in inside[file])
  if lost:
    raise UserError(f'{index}: {len(lost)} tensors are not in the shard that the index names: {lost[:8]}.')
  return files


def _config(folder: pathlib.Path) -> dict[str, Any]:
  path = folder / 'config.json'
  try:
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}
  except ValueError as error:
    raise UserError(f'{path} is not JSON: {error}.') from error


def _refuse(path: pathlib.Path, head: bytes) -> None:
  """Names what is often found in the place of weights."""
  start = head.lstrip().lower()
  if head.startswith(b'version https://git-lfs'):
    raise UserError(
      f'{path} is a git-LFS pointer, not the weights: run `git lfs pull` there, or download the file itself.'
    )
  if start.startswith((b'<!doctype', b'<html', b'<?xml')):
    raise UserError(f'{path} is a web page, not weights: use the direct link (on the Hub, .../resolve/main/FILE).')


def _is_pickle(path: pathlib.Path) -> bool:
  with path.open('rb') as file:
    head = file.read(512)
  _refuse(path, head)
  return _pickled(path, head)


def _pickled(path: pathlib.Path, head: bytes) -> bool:
  """Whether a file is a pickle or a zip archive of one, by its name or its first bytes.

  A safetensors file begins with the length of its header, which may look like a pickle's first bytes, and a '{'.
  """
  starts = (b'PK\x03\x04', b'\x80\x02', b'\x80\x03', b'\x80\x04', b'\x80\x05')
  return path.suffix in PICKLES or (head.startswith(starts) and head[8:9] != b'{')


def _pickle(path: pathlib.Path, what: str = '') -> UserError:
  """The error about a file, or about `what` in a repository."""
  target = path.with_suffix('.safetensors').name
  return UserError(
    f'{what or f"{path} is"} a pickle: opening one may run the code in it, so it is not read unless asked for. Convert'
    ' it once, by a reader that takes tensors only and runs no code of the file:\n'
    f'  python -m launch.convert --pickle --input={path} --output={target}'
  )
