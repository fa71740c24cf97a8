"""Radiology reports and their films: one reader per layout, and the table where all of them end.

kaggle, openi   Indiana University's collection: as two CSV files, and as Open-i gives it (XML and PNG)
r2gen           annotation.json of R2Gen and its descendants, for IU-Xray and for MIMIC-CXR
mimic           MIMIC-CXR-JPG with the reports of MIMIC-CXR
sections        a raw report into its sections
gathering       what the readers share: careful reading, and what becomes of a line that cannot be used
tables          studies and films, to records and back
films           one film: read, checked, brought to size
agreement       the rule labeller beside the headings that people gave the same reports
"""

from __future__ import annotations

import pathlib

from core.errors import UserError, nearest
from multimodal.trrg.datasets import kaggle, mimic, openi, r2gen
from multimodal.trrg.datasets.gathering import SECTIONS
from multimodal.trrg.datasets.tables import Corpus

__all__ = ['LAYOUTS', 'SECTIONS', 'read', 'recognise']

LAYOUTS = ('r2gen', 'r2gen_mimic', 'openi', 'kaggle', 'mimic')

_READERS = {
  'r2gen': r2gen.read, 'r2gen_mimic': r2gen.read_mimic, 'openi': openi.read, 'kaggle': kaggle.read, 'mimic': mimic.read,
}  # fmt: skip


def read(layout: str, root: str | pathlib.Path, *, sections: str = 'findings', annotation: str = '') -> Corpus:
  """Reads the reports of a user's folder; the films are only looked up, never opened.

  Args:
    layout: one of `LAYOUTS`, or 'auto': told from the files.
    root: the dataset's folder, or one that holds it.
    sections: what is to be reported: 'findings', 'impression' or 'findings+impression'. The annotations of R2Gen have
      made that choice already: theirs is findings.
    annotation: of R2Gen's layouts, the file if not `annotation.json`; under `root`, or absolute.

  Raises:
    UserError: an unknown name, files that are missing or of another form, or not one usable report.
  """
  if sections not in SECTIONS:
    raise UserError(f"There are no sections '{sections}'.{nearest(sections, SECTIONS)} Known: {', '.join(SECTIONS)}.")
  if layout == 'auto':
    layout = recognise(root, annotation)
  if layout not in LAYOUTS:
    raise UserError(f"There is no layout '{layout}'.{nearest(layout, LAYOUTS)} Known: auto, {', '.join(LAYOUTS)}.")
  if annotation and layout not in ('r2gen', 'r2gen_mimic'):
    raise UserError(f"An annotation file was given ('{annotation}'), but the layout '{layout}' has none.")
  return _READERS[layout](root, sections, annotation)


def recognise(root: str | pathlib.Path, annotation: str = '') -> str:
  """The layout of a folder, one of `LAYOUTS`.

  Raises:
    UserError: it has the files of none or of several.
  """
  if annotation:
    return r2gen.kind(r2gen.annotation_file(root, annotation))
  found = [
    name for name, reader in (('kaggle', kaggle), ('openi', openi), ('mimic', mimic)) if reader.folders(root)
  ]  # fmt: skip
  annotations = r2gen.folders(root)
  if len(annotations) == 1:
    found.append(r2gen.kind(annotations[0] / r2gen.FILE))
  if len(found) != 1 or len(annotations) > 1:
    what = f'files of {len(found)} layouts ({", ".join(found)})' if found else 'no file of a known layout'
    raise UserError(
      f"'{root}' holds {what}; expected one of annotation.json (R2Gen), indiana_reports.csv (Kaggle), "
      'ecgen-radiology/*.xml (Open-i), mimic-cxr-2.0.0-split.csv.gz (MIMIC-CXR-JPG). Name a folder, or the layout.'
    )
  return found[0]
