"""Indiana University's chest films as spread on Kaggle: indiana_reports.csv, indiana_projections.csv and PNG files.

The films carry the projection, frontal or lateral, that Open-i's own files lack. There is no official split: ours is
by the sha256 of CXRuid, 70 / 10 / 20 % (`gathering.own_split`), the same as for Open-i's files. The token XXXX stands
where something was taken out; it is kept, as published baselines keep it (spec 6.2). A uid is a report, and a patient:
the collection has one report of each.
"""

from __future__ import annotations

import pathlib

from multimodal.trrg.datasets import gathering, tables

REPORTS, PROJECTIONS = 'indiana_reports.csv', 'indiana_projections.csv'
MEDIA = ('images/images_normalized', 'images_normalized', 'images', '.')


def folders(root: str | pathlib.Path) -> list[pathlib.Path]:
  """Where files of this layout lie, at or directly below a folder."""
  return gathering.folders_with(root, (REPORTS,))


def read(root: str | pathlib.Path, sections: str = 'findings', annotation: str = '') -> tables.Corpus:
  """Reads the reports; without `indiana_projections.csv` they have no films.

  Raises:
    UserError: no such file, or not one usable report.
  """
  del annotation
  folder = gathering.locate(root, 'the reports of IU-Xray as CSV', (REPORTS,))
  gather = gathering.Gathering('iu_xray_kaggle', sections)
  films = _films(gather, folder)
  columns = ['uid', 'MeSH', 'indication', 'comparison', 'findings', 'impression']
  for where, fields in gathering.rows(folder / REPORTS, columns):
    if not fields:
      gather.problem('bad line', where, 'not the number of fields that the header has')
      continue
    uid, mesh, indication, comparison, findings, impression = fields
    report = gather.target(findings, impression)
    study = tables.Study(
      uid, uid, gathering.own_split(f'CXR{uid}'), report, findings, impression, indication, comparison, mesh,
      tuple(films.pop(uid, ())),
    )  # fmt: skip
    gather.study(where, study)
  if films:
    left = sum(map(len, films.values()))
    gather.problem('films without a report', PROJECTIONS, f'{left} films of {len(films)} uids, the first {min(films)}')
  return gather.corpus(folder / REPORTS)


def projections(path: pathlib.Path) -> list[tuple[str, str, str]]:
  """(uid, file name, view) of the lines of a projections file that can be used."""
  views = {'frontal': 'frontal', 'lateral': 'lateral'}
  lines = (fields for _, fields in gathering.rows(path, ['uid', 'filename', 'projection']) if fields)
  return [(uid, name, views.get(projection.lower(), 'other')) for uid, name, projection in lines]


def _films(gather: gathering.Gathering, folder: pathlib.Path) -> dict[str, list[tables.Film]]:
  if not (folder / PROJECTIONS).is_file():
    gather.problem('missing file', str(folder / PROJECTIONS), 'the reports are read without films')
    return {}
  listed = projections(folder / PROJECTIONS)
  media = gathering.media(folder, MEDIA, [name for _, name, _ in listed])
  films: dict[str, list[tables.Film]] = {}
  for uid, name, view in listed:
    films.setdefault(uid, []).append(tables.Film(view, media / name))
  return films
