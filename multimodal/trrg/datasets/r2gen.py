"""The annotation.json of R2Gen, which most report generators share, for IU-Xray and for MIMIC-CXR (spec 6.1, 6.2).

`{"train": [item, ...], "val": [...], "test": [...]}`, an item being `{"id", "report", "image_path": [...], "split"}`,
for MIMIC-CXR with `study_id` and `subject_id` too. A flat list of items is read as well: an item that names no split is
in the test split (PromptMRG's IU-Xray). Films that the file does not name stay unread; views are not said.

For MIMIC-CXR an item is one film with the report of its study, which several films repeat: R2Gen counts films, and so
do its tables. Its reports are the findings alone; R2GenGPT's file of the same form has findings and impression, and
scores on the two do not compare.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from core.errors import UserError
from multimodal.trrg.datasets import gathering, tables

FILE = 'annotation.json'
MEDIA = ('images', 'files', 'images300', '.')


def folders(root: str | pathlib.Path) -> list[pathlib.Path]:
  """Where files of this layout lie, at or directly below a folder."""
  return gathering.folders_with(root, (FILE,))


def annotation_file(root: str | pathlib.Path, annotation: str = '') -> pathlib.Path:
  """The annotation: `annotation` under `root` or absolute, else the annotation.json that is there.

  Raises:
    UserError: there is none.
  """
  if not annotation:
    return gathering.locate(root, 'an annotation of R2Gen', (FILE,)) / FILE
  path = pathlib.Path(root).expanduser() / pathlib.Path(annotation).expanduser()
  if not path.is_file():
    raise UserError(f"There is no annotation file '{path}'.")
  return path


def kind(path: pathlib.Path) -> str:
  """'r2gen_mimic' for an annotation whose items have a `subject_id` or lie in patients' folders, else 'r2gen'."""
  for _, _, item in _items(path):
    first = str((_paths(item) or [''])[0])
    return 'r2gen_mimic' if 'subject_id' in item or first.startswith(('p1', 'files/p1')) else 'r2gen'
  raise UserError(f'{path} has no item.')


def read(root: str | pathlib.Path, sections: str = 'findings', annotation: str = '') -> tables.Corpus:
  """Reads an annotation of IU-Xray: one study per item, all its films."""
  return _read('iu_xray', root, sections, annotation)


def read_mimic(root: str | pathlib.Path, sections: str = 'findings', annotation: str = '') -> tables.Corpus:
  """Reads an annotation of MIMIC-CXR: one study per film."""
  return _read('mimic_cxr', root, sections, annotation)


def _read(name: str, root: str | pathlib.Path, sections: str, annotation: str) -> tables.Corpus:
  path = annotation_file(root, annotation)
  gather = gathering.Gathering(name, sections)
  if sections != 'findings':
    gather.problem('sections not chosen', path.name, f"its reports are taken as they are, not as '{sections}'")
  items = list(_items(path))
  media = gathering.media(path.parent, MEDIA, [str(file) for _, _, item in items[:100] for file in _paths(item)])
  for where, listed, item in items:
    split = gathering.SPLITS.get(str(item.get('split', listed)).lower())
    report, files = item.get('report'), _paths(item)
    if 'id' not in item or not isinstance(report, str) or split is None or not all(isinstance(f, str) for f in files):
      gather.problem('bad item', where, f'expected id, report, image_path and a split: {json.dumps(item)[:120]}')
      continue
    uid = str(item['id'])
    patient = str(item.get('subject_id', uid.split('_')[0]))
    films = tuple(tables.Film('other', media / file) for file in files)
    findings = report if sections == 'findings' else ''
    gather.study(where, tables.Study(uid, patient, split, report.strip(), findings.strip(), films=films))
  return gather.corpus(path)


def _items(path: pathlib.Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
  """('file:split:number', the split under which it is listed, item)."""
  try:
    content = json.loads(path.read_bytes())
  except (OSError, ValueError) as error:
    raise UserError(f'{path} is no JSON file ({error}). Download it again.') from error
  lists = {'test': content} if isinstance(content, list) else content
  if not isinstance(lists, dict) or not all(isinstance(items, list) for items in lists.values()):
    raise UserError(f'{path} is no annotation: expected a list of items, or lists under "train", "val" and "test".')
  for split, items in lists.items():
    for number, item in enumerate(items):
      yield f'{path.name}:{split}:{number}', split, item if isinstance(item, dict) else {'item': item}


def _paths(item: dict[str, Any]) -> list[Any]:
  paths = item.get('image_path', [])
  return paths if isinstance(paths, list) else [paths]
