"""MIMIC-CXR-JPG (films, official split) with the reports of MIMIC-CXR, as PhysioNet gives them (spec 6.1).

  mimic-cxr-2.0.0-split.csv.gz      required: which films there are, and their split
  mimic-cxr-2.0.0-metadata.csv.gz   their view positions
  files/p10/p10000032/s50414267/DICOM.jpg
  mimic_cxr_sectioned.csv, or mimic-cxr-reports.zip, or files/p10/p10000032/s50414267.txt: the first that is found

in one folder or in two beside each other (`mimic-cxr-jpg/2.0.0`, `mimic-cxr/2.0.0`), the tables packed or not. One
study is one visit with all its films; R2Gen's benchmark counts films instead (`r2gen`). Studies without the wanted
sections are left out, each with its problem row: about a third has no findings.
"""

from __future__ import annotations

import pathlib
import zipfile
from collections.abc import Callable

from core.errors import UserError
from multimodal.trrg.datasets import gathering, sections, tables

SPLIT, METADATA = 'mimic-cxr-2.*-split.csv*', 'mimic-cxr-2.*-metadata.csv*'
SECTIONED, ARCHIVE, FOLDER = 'mimic_cxr_sectioned.csv*', 'mimic-cxr-reports.zip', 'files/p1*/p1*/s*.txt'
DEPTH = 2
"""Folders below the root that are looked through: mimic-cxr-jpg/2.0.0."""

VIEWS = {'PA': 'frontal', 'AP': 'frontal', 'LATERAL': 'lateral', 'LL': 'lateral', 'XTABLE LATERAL': 'lateral'}
"""ViewPosition -> view. PA and AP with a word behind (AP AXIAL, PA LLD) are frontal too, the rest is 'other'."""

Sections = dict[str, str]


def folders(root: str | pathlib.Path) -> list[pathlib.Path]:
  """Where files of this layout lie, at or not far below a folder."""
  return gathering.folders_with(root, (SPLIT,), DEPTH)


def read(root: str | pathlib.Path, sections: str = 'findings', annotation: str = '') -> tables.Corpus:
  """Reads split, views and reports.

  Raises:
    UserError: no split file, no reports in any form, or not one usable report.
  """
  del annotation
  folder = gathering.locate(root, 'MIMIC-CXR-JPG', (SPLIT,), DEPTH)
  gather = gathering.Gathering('mimic_cxr_jpg', sections)
  report_of = _reports(gather, pathlib.Path(root).expanduser())
  views = _views(gather, folder)
  visits: dict[str, tuple[str, str, str, list[tables.Film]]] = {}
  for where, fields in gathering.rows(_file(folder, SPLIT), ['dicom_id', 'study_id', 'subject_id', 'split']):
    split = gathering.SPLITS.get(fields[3].lower()) if fields else None
    if split is None:
      gather.problem('bad line', where, f'expected dicom_id, study_id, subject_id and a split, found {fields}')
      continue
    dicom, study, subject, _ = fields
    path = folder / 'files' / f'p{subject[:2]}' / f'p{subject}' / f's{study}' / f'{dicom}.jpg'
    film = tables.Film(views.get(dicom, 'other'), path)
    visits.setdefault(study, (where, subject, split, []))[-1].append(film)
  for study, (where, subject, split, films) in visits.items():
    texts = report_of(subject, study)
    if texts is None:
      gather.problem('missing report', where, f'study s{study} of patient p{subject}')
      continue
    findings, impression = texts['findings'], texts['impression']
    report = gather.target(findings, impression)
    gather.study(where, tables.Study(
      f's{study}', f'p{subject}', split, report, findings, impression, texts.get('indication', ''),
      texts.get('comparison', ''), films=tuple(films),
    ))  # fmt: skip
  return gather.corpus(folder)


def _file(folder: pathlib.Path, pattern: str) -> pathlib.Path:
  return min(folder.glob(pattern))


def _views(gather: gathering.Gathering, folder: pathlib.Path) -> dict[str, str]:
  if not any(folder.glob(METADATA)):
    gather.problem('missing file', str(folder / METADATA), 'no film is known to be frontal')
    return {}
  rows = gathering.rows(_file(folder, METADATA), ['dicom_id', 'ViewPosition'])
  return {fields[0]: _view(fields[1]) for _, fields in rows if fields}


def _view(position: str) -> str:
  position = position.upper()
  return VIEWS.get(position) or ('frontal' if position.startswith(('PA ', 'AP ')) else 'other')


def _reports(gather: gathering.Gathering, root: pathlib.Path) -> Callable[[str, str], Sections | None]:
  """(subject, study) -> sections, None where there is no report."""
  for pattern, opened in ((SECTIONED, _sectioned), (ARCHIVE, _archive), (FOLDER, _folder)):
    found = gathering.folders_with(root, (pattern,), DEPTH)
    if found:
      return opened(found[0] if pattern == FOLDER else _file(found[0], pattern), gather)
  raise UserError(
    f"'{root}' holds no reports of MIMIC-CXR: expected mimic_cxr_sectioned.csv (of MIT-LCP's create_section_files.py), "
    f'{ARCHIVE}, or files/p10/p10000032/s50414267.txt. They are in the dataset MIMIC-CXR, not in MIMIC-CXR-JPG.'
  )


def _sectioned(path: pathlib.Path, gather: gathering.Gathering) -> Callable[[str, str], Sections | None]:
  columns = ['study', 'findings', 'impression', 'comparison']
  table = {}
  for where, fields in gathering.rows(path, columns):
    if fields:
      table[fields[0]] = dict(zip(columns[1:], fields[1:]))
    else:
      gather.problem('bad line', where, 'not the number of fields that the header has')
  return lambda subject, study: table.get(f's{study}')


def _archive(path: pathlib.Path, gather: gathering.Gathering) -> Callable[[str, str], Sections | None]:
  del gather
  try:
    archive = zipfile.ZipFile(path)
  except (OSError, zipfile.BadZipFile) as error:
    raise UserError(f'{path} is no zip file ({error}). Download it again.') from error

  def report_of(subject: str, study: str) -> Sections | None:
    try:
      content = archive.read(_member(subject, study))
    except KeyError:
      return None
    except (OSError, zipfile.BadZipFile) as error:
      raise UserError(f'{path} is damaged at {_member(subject, study)} ({error}). Download it again.') from error
    return sections.extract(content.decode('utf-8', 'replace'))

  return report_of


def _folder(path: pathlib.Path, gather: gathering.Gathering) -> Callable[[str, str], Sections | None]:
  del gather

  def report_of(subject: str, study: str) -> Sections | None:
    file = path / _member(subject, study)
    return sections.extract(file.read_text('utf-8', 'replace')) if file.is_file() else None

  return report_of


def _member(subject: str, study: str) -> str:
  return f'files/p{subject[:2]}/p{subject}/s{study}.txt'
