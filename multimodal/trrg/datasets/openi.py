"""Indiana University's chest films as Open-i gives them: NLMCXR_reports.tgz (XML) and NLMCXR_png.tgz, unpacked.

A report is `ecgen-radiology/N.xml`, its films are the ids of its `parentImage` elements, as `NLMCXR_png/ID.png`. The
files do not say which film is frontal: where the projections of the Kaggle copy lie beside them they are used, else a
view is 'other'. Split, XXXX and patients as in `kaggle`. Elements are found by local name, in whatever namespace.
"""

from __future__ import annotations

import pathlib
import re
from xml.etree import ElementTree

from multimodal.trrg.datasets import gathering, kaggle, tables

MARKS = ('ecgen-radiology/*.xml', 'NLMCXR_reports/ecgen-radiology/*.xml', 'NLMCXR_reports/*.xml', 'reports/*.xml')
MEDIA = ('NLMCXR_png', 'images', 'png', '.')


def folders(root: str | pathlib.Path) -> list[pathlib.Path]:
  """Where files of this layout lie, at or directly below a folder."""
  return gathering.folders_with(root, MARKS)


def read(root: str | pathlib.Path, sections: str = 'findings', annotation: str = '') -> tables.Corpus:
  """Reads the reports.

  Raises:
    UserError: no such files, or not one usable report.
  """
  del annotation
  folder = gathering.locate(root, 'the reports of Open-i', MARKS)
  gather = gathering.Gathering('iu_xray_openi', sections)
  views = _views(folder)
  files = sorted((path for mark in MARKS for path in folder.glob(mark)), key=lambda path: _number(path.stem))
  media = None
  for path in files:
    where = str(path.relative_to(folder))
    try:
      document = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as error:
      gather.problem('broken XML', where, str(error))
      continue
    images = [element.get('id', '') for element in _all(document, 'parentImage')]
    if media is None and images:
      media = gathering.media(folder, MEDIA, [f'{name}.png' for name in images])
    films = tuple(tables.Film(views.get(_stem(name), 'other'), media / f'{name}.png') for name in images if name)
    gather.study(where, _study(gather, document, path.stem, films))
  return gather.corpus(folder)


def _study(
  gather: gathering.Gathering, document: ElementTree.Element, stem: str, films: tuple[tables.Film, ...]
) -> tables.Study:
  sections: dict[str, list[str]] = {}
  for element in _all(document, 'AbstractText'):
    sections.setdefault(element.get('Label', '').lower(), []).append(_text(element))
  findings, impression, indication, comparison = (
    ' '.join(filter(None, sections.get(name, ()))) for name in ('findings', 'impression', 'indication', 'comparison')
  )
  headings = [_text(major) for mesh in _all(document, 'MeSH') for major in _all(mesh, 'major')]
  uid = next((element.get('id', '') for element in _all(document, 'uId')), '') or f'CXR{_number(stem)}'
  return tables.Study(
    uid, uid, gathering.own_split(uid), gather.target(findings, impression), findings, impression,
    indication, comparison, ';'.join(headings), films,
  )  # fmt: skip


def _all(element: ElementTree.Element, name: str) -> list[ElementTree.Element]:
  return [found for found in element.iter() if isinstance(found.tag, str) and found.tag.rpartition('}')[2] == name]


def _text(element: ElementTree.Element) -> str:
  return ' '.join(''.join(element.itertext()).split())


def _number(name: str) -> int | str:
  """The number in 'CXR12' or '12'; the name itself where there is none."""
  found = re.search(r'\d+', name)
  return int(found[0]) if found else name


def _stem(name: str) -> str:
  """What both copies call a film: '1_IM-0001-3001' of 'CXR1_1_IM-0001-3001' and of '1_IM-0001-3001.dcm.png'."""
  return re.sub(r'^CXR\d+_(?=\d+_)|^CXR|\.dcm\.png$', '', name)


def _views(folder: pathlib.Path) -> dict[str, str]:
  path = folder / kaggle.PROJECTIONS
  return {_stem(name): view for _, name, view in kaggle.projections(path)} if path.is_file() else {}
