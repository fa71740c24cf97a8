"""Records: datasets on disk as TFDS builders in ArrayRecord files, written once and read at random, without TensorFlow.

Every dataset, official or procedural, takes the same way: an iterator of `(key, example)` per split goes through
`write` (a `tfds.core.GeneratorBasedBuilder`) into `root/name/version`, and `Records` reads it back:

  root/name/version/
    name-train.array_record-00000-of-00001 ...   the examples, in the order of the source
    dataset_info.json  features.json ...         TFDS's own description (`tfds.builder_from_directory` opens it)
    index-train.npz                              the cheap fields of all records, in the same order
    manifest.json                                counts, generator parameters, sha256 of all of the above

Half-written output never counts: it lies under a dot-name until it is whole, and gets its final name in one rename.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from core.data import manifest as manifests
from core.errors import UserError, nearest

LONGEST_TABLE_STRING = 128
"""Characters; a text field with a longer value is not cheap and stays out of the index (our choice)."""

Example = Mapping[str, Any]


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """The TFDS builder of all our datasets: `write` makes a subclass per dataset and gives it the examples.

  It lives in a package folder because TFDS looks for a builder's side files beside its module.
  """

  VERSION = tfds.core.Version('1.0.0')
  pkg_dir_path = pathlib.Path(__file__).parent

  def __init__(self, *, splits: Mapping[str, Iterable[tuple[str, Example]]], features: Mapping, text: str, **kwargs):
    self._sources, self._features_dict, self._text = splits, features, text
    self.tables: dict[str, dict[str, np.ndarray]] = {}
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    # The order of the source is kept (videos stay together, shuffling is the pipeline's affair).
    features = tfds.features.FeaturesDict(dict(self._features_dict))
    return tfds.core.DatasetInfo(builder=self, description=self._text, features=features, disable_shuffling=True)

  def _log_download_bytes(self) -> None:
    pass  # TFDS would announce a download; there is none

  def _log_download_done(self) -> None:
    pass

  def _split_generators(self, dl_manager):
    del dl_manager
    generators = {}
    for name, source in self._sources.items():
      source = iter(source)
      first = next(source, None)
      self.tables[name] = {}
      if first is None:
        print(f"records: split '{name}' of '{self.name}' is empty and was left out.")
      else:
        generators[name] = self._generate_examples(name, itertools.chain([first], source))
    if not generators:
      raise UserError(f"Dataset '{self.name}' has no example in any of its splits {list(self._sources)}.")
    return generators

  def _generate_examples(self, split: str, source: Iterator[tuple[str, Example]]):
    names, keys = [name for name, feature in self.info.features.items() if _is_scalar(feature)], {}
    columns = {name: [] for name in names}
    for key, example in source:
      if key in keys:
        raise UserError(f"Key '{key}' occurs twice in split '{split}' of dataset '{self.name}': keys must be unique.")
      keys[key] = None
      example = self._checked(key, example)
      for name in names:
        columns[name].append(example[name])
      yield key, example
    table = {name: _column(self.info.features[name], values) for name, values in columns.items()}
    self.tables[split] = {'key': np.array([str(key) for key in keys]), **table}

  def _checked(self, key: str, example: Example) -> dict[str, Any]:
    """The example with its images as PNG bytes; raises `UserError` where its fields are not the declared ones."""
    declared = self.info.features
    if set(example) != set(declared):
      raise UserError(
        f"Example '{key}' of dataset '{self.name}' has the fields {sorted(example)}, expected {sorted(declared)}."
      )
    return {name: encode_image(value, key) if _is_image(declared[name]) else value for name, value in example.items()}


def write(
  root: str | os.PathLike,
  name: str,
  splits: Mapping[str, Iterable[tuple[str, Example]]],
  features: Mapping[str, tfds.features.FeatureConnector | type],
  version: str = '1.0.0',
  description: str = '',
  info: Mapping[str, Any] | None = None,
  *,
  overwrite: bool = False,
) -> manifests.Manifest:
  """Writes a dataset to `root/name/version`.

  Args:
    root: folder of all datasets.
    name: dataset name, a Python identifier.
    splits: split name -> iterable of (unique key, example). An example has one value per feature; an image is a uint8
      array [H, W, 3] or [H, W, 1] (stored as PNG, lossless) or encoded PNG or JPEG bytes. Iterables are consumed one
      after the other, so generators need not hold anything in memory. A split without examples is left out with a word.
    features: field name -> TFDS feature (`tfds.features.Image()`, `ClassLabel`, `Tensor`, `Text`, `np.int32` ...).
    version: 'major.minor.patch'.
    description: for people.
    info: plain data (JSON): the parameters that produced the records. `is_written` compares it.
    overwrite: whether an existing dataset of this name and version is replaced; until the new one is whole, the old one
      stays in place.

  Returns:
    The manifest.

  Raises:
    UserError: for a bad name or version, an existing dataset without `overwrite`, duplicate keys, wrong fields, or when
      all splits are empty. Whatever the source raises passes through; nothing is left behind but a dot-folder at most.
  """
  final = _final_folder(root, name, version)
  if final.exists() and not overwrite:
    raise UserError(f'{final} exists already. Delete it, choose another version, or pass overwrite=True.')
  final.parent.mkdir(parents=True, exist_ok=True)
  for leftover in final.parent.glob('.incomplete-*'):
    print(f'records: {leftover} is of a write that was killed or still runs; in the first case delete it.')
  with tempfile.TemporaryDirectory(dir=final.parent, prefix='.incomplete-', ignore_cleanup_errors=True) as temporary:
    folder, tables = _write_builder(pathlib.Path(temporary), name, version, splits, features, description)
    cheap = _write_tables(folder, tables)
    described = {key: repr(value) for key, value in tfds.features.FeaturesDict(dict(features)).items()}
    counts = {split: len(table['key']) if table else 0 for split, table in tables.items()}
    result = manifests.Manifest(
      name, version, description, dict(info or {}), described, cheap, counts, manifests.describe(folder)
    )
    result.save(folder)
    _publish(folder, final, pathlib.Path(temporary), result, overwrite)
  return result


def is_written(
  root: str | os.PathLike, name: str, version: str = '1.0.0', info: Mapping[str, Any] | None = None
) -> bool:
  """Whether `root/name/version` is a whole dataset; with `info`, whether it was written with just these parameters."""
  folder = _final_folder(root, name, version)
  if not (folder / manifests.FILE).is_file():
    return False
  manifest = manifests.load(folder)
  # Through JSON, where tuples are lists: that is how the manifest remembers them.
  return info is None or manifest.info == json.loads(json.dumps(dict(info)))


def verify(root: str | os.PathLike, name: str, version: str | None = None) -> manifests.Manifest:
  """Checks every file of a dataset against the sha256 in its manifest; raises `UserError` naming the first bad one."""
  folder = find(root, name, version)
  manifest = manifests.load(folder)
  manifest.verify(folder, hashes=True)
  return manifest


def find(root: str | os.PathLike, name: str, version: str | None = None) -> pathlib.Path:
  """Folder of a dataset, in its newest version unless one is named; raises `UserError` when there is none."""
  root = pathlib.Path(root).expanduser()
  if version is not None:
    folder = _final_folder(root, name, version)
    if not (folder / manifests.FILE).is_file():
      raise UserError(f"No dataset '{name}' version {version} at {folder}. {manifests.way_out(folder)}")
    return folder
  whole = [path.parent for path in (root / name).glob(f'*/{manifests.FILE}') if _VERSION.fullmatch(path.parent.name)]
  if not whole:
    known = sorted({path.parents[1].name for path in root.glob(f'*/*/{manifests.FILE}')})
    raise UserError(
      f"No dataset '{name}' in {root}; it holds {known or 'no dataset at all'}.{nearest(name, known)} "
      'Write it with `python -m launch.prepare`.'
    )
  return max(whole, key=lambda path: tuple(int(part) for part in path.name.split('.')))


class Records:
  """Random access to one split of a dataset, or to chosen records of it, or to several in a row.

  Cheap to make, to slice and to pickle (a worker process opens the files again by itself). `records[i]` reads and
  decodes record i: a dict with images as uint8 [H, W, C], labels and numbers as numpy scalars, texts as str, tensors as
  arrays. `records.table` has the cheap fields of all records without touching the images.

  Attributes:
    ids: int64 [N], the position of each record in its split as written; `concat` counts on through its parts. It names
      a record across `select`, so that an error message can point at it.
  """

  def __init__(self, root: str | os.PathLike, name: str, split: str, version: str | None = None):
    folder = find(root, name, version)
    manifest = manifests.load(folder)
    if split not in manifest.splits:
      raise UserError(
        f"Dataset '{name}' at {folder} has no split '{split}', it has {sorted(manifest.splits)}."
        f'{nearest(split, manifest.splits)}'
      )
    if not manifest.splits[split]:
      raise UserError(f"Split '{split}' of dataset '{name}' at {folder} is empty. {manifests.way_out(folder)}")
    manifest.verify(folder)
    self._parts = (_Split(folder, split, manifest.splits[split]),)
    self.ids = np.arange(manifest.splits[split])
    self.manifest = manifest

  def __len__(self) -> int:
    return len(self.ids)

  def __getitem__(self, index: int) -> dict[str, Any]:
    position = int(self.ids[index])
    for part in self._parts:
      if position < part.length:
        return part.read(position)
      position -= part.length
    raise IndexError(position)

  def __iter__(self) -> Iterator[dict[str, Any]]:
    return (self[i] for i in range(len(self)))

  def __repr__(self) -> str:
    parts = ' + '.join(f'{part.folder}:{part.split}' for part in self._parts)
    return f'Records({parts}, {len(self)} records)'

  @functools.cached_property
  def table(self) -> dict[str, np.ndarray]:
    """Field -> array [N]: 'key' and the scalar fields of every record, but for texts of more than 128 characters."""
    tables = [part.table for part in self._parts]
    shared = [field for field in tables[0] if all(field in table for table in tables)]
    return {field: np.concatenate([table[field] for table in tables])[self.ids] for field in shared}

  def __getstate__(self) -> dict[str, Any]:
    return {key: value for key, value in self.__dict__.items() if key != 'table'}

  def select(self, which: Sequence[int] | np.ndarray) -> Records:
    """A view of the records where a boolean mask [N] is true, or of those at the given indices, in their order."""
    which = np.asarray(which)
    if which.dtype == bool and which.shape != (len(self),):
      raise ValueError(f'The mask has shape {which.shape}, expected ({len(self)},).')
    view = copy.copy(self)
    view.ids = self.ids[which if which.dtype == bool else which.astype(np.int64)]
    return view

  @classmethod
  def concat(cls, parts: Sequence[Records]) -> Records:
    """Several records in a row. Their ids stay distinct: each part's start where those of the part before end."""
    if not parts:
      raise ValueError('Nothing to concatenate.')
    whole = copy.copy(parts[0])
    whole._parts = tuple(itertools.chain.from_iterable(part._parts for part in parts))
    sizes = [sum(split.length for split in part._parts) for part in parts]
    offsets = np.cumsum([0, *sizes[:-1]])
    whole.ids = np.concatenate([part.ids + offset for part, offset in zip(parts, offsets)])
    return whole


class _Split:
  """The files of one split; opened when first read, and again in each process."""

  def __init__(self, folder: pathlib.Path, split: str, length: int):
    self.folder, self.split, self.length = folder, split, length

  def __getstate__(self) -> dict[str, Any]:
    return {'folder': self.folder, 'split': self.split, 'length': self.length}

  @functools.cached_property
  def _source(self):
    builder = tfds.builder_from_directory(self.folder)
    texts = [name for name, feature in builder.info.features.items() if isinstance(feature, tfds.features.Text)]
    return builder.as_data_source(self.split), texts

  @functools.cached_property
  def table(self) -> dict[str, np.ndarray]:
    path = self.folder / f'index-{self.split}.npz'
    try:
      with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
      raise UserError(f'{path} is corrupt ({error}). {manifests.way_out(self.folder)}') from error

  def read(self, position: int) -> dict[str, Any]:
    """Reads and decodes one record."""
    try:
      source, texts = self._source
      example = source[position]
    except Exception as error:  # array_record, protobuf, OpenCV and numpy each raise their own on damaged bytes
      raise UserError(
        f"Record {position} of split '{self.split}' in {self.folder} cannot be read "
        f'({type(error).__name__}: {error}). {manifests.way_out(self.folder)}'
      ) from error
    for name in texts:
      value = example[name]
      example[name] = value.decode() if isinstance(value, bytes) else str(value)
    return example


@dataclasses.dataclass
class PrepareReport:
  """What a preparation found: printed by `launch.prepare`, so that nothing is dropped in silence.

  Attributes:
    dataset: its name.
    counts: split -> number of records written.
    problems: (kind, path, detail) for every file that was missing, unreadable or odd.
    manifest: of the written dataset, if one was written.
  """

  dataset: str
  counts: dict[str, int]
  problems: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
  manifest: manifests.Manifest | None = None

  def __str__(self) -> str:
    lines = [f'{self.dataset}: {sum(self.counts.values())} records']
    lines += [f'  {split:<12} {count:>8}' for split, count in self.counts.items()]
    kinds = collections.Counter(kind for kind, _, _ in self.problems)
    lines += [f'  {count} x {kind}' for kind, count in sorted(kinds.items())]
    width = max((len(kind) for kind in kinds), default=0)
    lines += [f'    {kind:<{width}}  {path}  {detail}' for kind, path, detail in self.problems]
    return '\n'.join(lines)


def encode_image(image: np.ndarray | bytes, key: str = '') -> bytes:
  """A uint8 image [H, W, 3] (RGB) or [H, W, 1] as PNG; bytes pass unchanged. Raises `UserError` for other arrays."""
  if isinstance(image, bytes):
    return image
  image = np.asarray(image)
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3) or not image.size:
    raise UserError(f"Image of example '{key}' is {image.dtype} {image.shape}, expected uint8 [H, W, 3] or [H, W, 1].")
  # OpenCV's defaults: on 256 px frames they took half the time of an explicit level 1 and a sixth of level 6, and the
  # files were no larger (101 kB against 112 and 108; smooth images with noise, OpenCV 4.14).
  _, encoded = cv2.imencode('.png', image[..., ::-1])
  return encoded.tobytes()


_NAME, _VERSION = re.compile(r'[a-zA-Z]\w*'), re.compile(r'\d+\.\d+\.\d+')


def _final_folder(root: str | os.PathLike, name: str, version: str) -> pathlib.Path:
  if not _NAME.fullmatch(name):
    raise UserError(f"Dataset name '{name}' must be a letter followed by letters, digits and underscores.")
  if not _VERSION.fullmatch(version):
    raise UserError(f"Version '{version}' of dataset '{name}' must be three numbers, such as '1.0.0'.")
  return pathlib.Path(root).expanduser() / name / version


def _is_image(feature: tfds.features.FeatureConnector) -> bool:
  return isinstance(feature, tfds.features.Image)


def _is_scalar(feature: tfds.features.FeatureConnector) -> bool:
  return isinstance(feature, tfds.features.Tensor) and feature.shape == () and not _is_image(feature)


def _column(feature: tfds.features.FeatureConnector, values: Sequence[Any]) -> np.ndarray | None:
  """The index column [N] of a scalar field; None for texts too long to be cheap."""
  if isinstance(feature, tfds.features.Text):
    column = np.array([value.decode() if isinstance(value, bytes) else str(value) for value in values])
    return column if column.dtype.itemsize <= 4 * LONGEST_TABLE_STRING else None
  if isinstance(feature, tfds.features.ClassLabel):
    values = [feature.encode_example(value) for value in values]
  return np.asarray(values, dtype=feature.np_dtype)


def _write_builder(folder, name, version, splits, features, description):
  """Writes the ArrayRecord files under `folder`; returns their folder and split -> table."""
  class_name = ''.join(part.capitalize() for part in name.split('_'))
  fields = {'name': name, 'VERSION': tfds.core.Version(version)}
  builder_class = type(Builder)(class_name, (Builder,), fields, skip_registration=True)
  tfds.disable_progress_bar()  # callers that take long have their own, with the number of videos in it
  options = {'splits': splits, 'features': features, 'text': description or name}
  builder = builder_class(**options, data_dir=folder, file_format='array_record')
  builder.download_and_prepare(download_dir=folder / 'downloads')
  return folder / name / version, builder.tables


def _write_tables(folder: pathlib.Path, tables: Mapping[str, Mapping[str, np.ndarray | None]]) -> list[str]:
  """Writes `index-<split>.npz` of every split that has records; returns the columns that all of them have."""
  written = [table for table in tables.values() if table]
  names = [name for name in written[0] if all(table[name] is not None for table in written)]
  for split, table in tables.items():
    if table:
      np.savez_compressed(folder / f'index-{split}.npz', **{name: table[name] for name in names})
  return names


def _publish(
  folder: pathlib.Path, final: pathlib.Path, temporary: pathlib.Path, manifest: manifests.Manifest, overwrite: bool
) -> None:
  """Gives a whole dataset its final name; an older one of that name steps aside first and goes with `temporary`.

  Without `overwrite` the name was free when the writing began. If another process has taken it since (two hosts of one
  run that prepare the same data), an equal dataset is as good as ours, and another is an error.
  """
  if overwrite:
    with contextlib.suppress(FileNotFoundError):
      final.rename(temporary / 'replaced')
  try:
    folder.rename(final)
  except OSError as error:
    if not final.is_dir():
      raise
    if manifests.load(final).fingerprint != manifest.fingerprint:
      raise UserError(f'{final} was written by another process meanwhile, and with other content.') from error
