"""The sections of a raw MIMIC-CXR report (spec 6.1).

A header is a line that begins, one blank in, with capitals and a colon. Of several sections of one kind the last that
is not empty counts. MIT-LCP's script has a table of some 60 studies by hand besides, which is not here: where equality
with its `mimic_cxr_sectioned.csv` matters, give that file (`mimic` takes it first).
"""

from __future__ import annotations

import difflib
import re

HEADER = re.compile(r'\n ([A-Z ()/,-]+):(?=\s)')

KINDS = {
  'impression': ('impression', 'conclusion'),
  'findings': ('finding',),
  'indication': ('indication', 'history', 'reason for exam', 'clinical information', 'pfi'),
  'comparison': ('comparison', 'reference exam'),
}
"""Kind of section -> what its header has in it; the first that fits counts: 'FINDINGS AND IMPRESSION' is the latter."""

TITLE = re.compile(r'chest|portable|view|pa and lat|ap and lat|lateral and [pa]|frontal|bone window|ribs')
"""Of a header that names the pictures: what follows it, if anything, is the findings."""


def extract(report: str) -> dict[str, str]:
  """'findings', 'impression', 'indication', 'comparison' of a whole report, without outer blanks; '' where absent."""
  found = dict.fromkeys(KINDS, '')
  headers = list(HEADER.finditer(report))
  ends = [header.start() for header in headers[1:]] + [len(report)]
  for header, end in zip(headers, ends):
    kind, text = _kind(header[1]), report[header.end() : end].strip()
    if kind and text:
      found[kind] = text
  return found


def _kind(header: str) -> str | None:
  header = header.lower().strip()
  for kind, words in KINDS.items():
    if any(word in header for word in words):
      return kind
  close = difflib.get_close_matches(header, KINDS, n=1, cutoff=0.85)  # IMPRESSON, FINDNGS, COMPARISION
  return close[0] if close else 'findings' if TITLE.search(header) else None
