"""Which folder of a user's disk holds which dataset."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence

from core.data.antispoofing import readers
from core.errors import UserError

NICKNAMES = {
  'msu_mfsd': ('msumfsd', 'msu', 'mfsd'),
  'replay_attack': ('replayattack', 'idiap', 'idiapreplayattack', 'replay'),
  'casia_fasd': ('casiafasd', 'casia', 'cbsr'),
  'oulu_npu': ('oulunpu', 'oulu'),
  'rose_youtu': ('roseyoutu', 'rose', 'youtu'),
  'siw_live': ('siw', 'siwlive'),
}
"""Folder names, lower case without punctuation, that the official downloads go by."""


def locate(root: str | pathlib.Path, datasets: Sequence[str], dataset: str = '') -> dict[str, pathlib.Path]:
  """Finds the folder (or CSV list) of each dataset.

  Args:
    root: a folder with one entry per dataset, named like it ('OULU-NPU', 'phones.csv'), or a single dataset.
    datasets: the names that an experiment knows.
    dataset: says that `root` itself is this dataset, any name will do; '' finds out by the folders' names.

  Returns:
    Dataset name -> path, in the order of `datasets`, of those that were found; at least one.

  Raises:
    UserError: no such root, or nothing in it has a known name.
  """
  root = pathlib.Path(root).expanduser()
  if not root.exists():
    raise UserError(f"There is no '{root}'; config.data.root is the folder of an official download, or of several.")
  if dataset:
    return {dataset: root}
  inside = sorted(root.iterdir()) if root.is_dir() else []
  found = {}
  for name in datasets:
    matches = [path for path in inside if _names(path, name)]
    if len(matches) > 1:
      raise UserError(f"'{root}' holds {len(matches)} entries for '{name}': {', '.join(p.name for p in matches)}.")
    if matches:
      found[name] = matches[0]
  found = found or {name: root for name in datasets if _names(root, name)}
  if not found:
    raise UserError(
      f"Neither '{root}' nor anything in it is named like one of {', '.join(datasets)}. If it is the download of one of"
      f' them, say which: --config.data.dataset=NAME (official layouts: {", ".join(readers.READERS)}; any other name is'
      ' read as a folder or a CSV list of your own).'
    )
  return found


def _names(path: pathlib.Path, dataset: str) -> bool:
  """Whether a file or folder is called like a dataset."""
  stem = re.sub(r'[^a-z0-9]', '', (path.name if path.is_dir() else path.stem).lower())
  usable = path.is_dir() or path.suffix.lower() == '.csv'
  return usable and stem in (re.sub(r'[^a-z0-9]', '', dataset.lower()), *NICKNAMES.get(dataset, ()))
