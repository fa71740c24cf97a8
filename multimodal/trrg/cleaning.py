"""How the field cleans reports before it trains on them and scores against them (spec 6.3, 5.2).

Published language metrics depend on these steps to the letter, their oddities included, so they are kept:

- The character class of R2Gen holds `:-[`, which is a range: it takes `: ; < = > ? @ [` out and leaves the hyphen in.
- Sentences that become empty are not dropped: doubled stops survive as repeated "." tokens.
- "1. " goes wherever it stands ("in 2011. the" loses its last digit), and "2." to "5." only between spaces.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Collection, Iterable, Sequence

from core.data.text import Tokenizer
from core.errors import UserError, nearest

STYLES = ('r2gen', 'r2gen_mimic', 'r2gengpt_mimic')
"""R2Gen's cleaning of IU-Xray (R2GenGPT has the same) and of MIMIC-CXR, and R2GenGPT's of MIMIC-CXR."""

PROTOCOLS = ('full', 'r2gengpt', 'r2gen')
"""What a report is scored against: all of it; its first tokens; its first words, the rare ones unknown."""

UNKNOWN = '<unk>'

_R2GEN = re.compile(r'[.,?;*!%^&_+():-\[\]{}]')
_R2GENGPT_MIMIC = re.compile(r'[.,?;*!%^&_+()\[\]{}]')
_ENUMERATORS = (
  *(('1. ', ''),),
  *((f'. {i}. ', '. ') for i in range(2, 6)),
  *((f' {i}. ', '. ') for i in range(2, 6)),
)
_COLLAPSED = {
  'r2gen': (('..', '.', 3),),
  'r2gen_mimic': (('\n', ' ', 1), ('__', '_', 7), ('  ', ' ', 6), ('..', '.', 8)),
}
_COLLAPSED['r2gengpt_mimic'] = _COLLAPSED['r2gen_mimic']
"""(what, by what, how many passes): a longer run than the passes can halve is left over, there as here."""


def clean(report: str, style: str = 'r2gen') -> str:
  """A report as lower-case sentences around " . ", as the field trains on it.

  Args:
    report: raw.
    style: one of `STYLES`.

  Raises:
    UserError: no such style.
  """
  if style not in STYLES:
    raise UserError(f"cleaning '{style}': expected one of {', '.join(STYLES)}.{nearest(style, STYLES)}")
  for old, new, passes in _COLLAPSED[style]:
    for _ in range(passes):
      report = report.replace(old, new)
  for old, new in _ENUMERATORS:
    report = report.replace(old, new)
  if style == 'r2gengpt_mimic':
    report = report.replace(':', ' :')
  removed = _R2GENGPT_MIMIC if style == 'r2gengpt_mimic' else _R2GEN
  sentences = report.strip().lower().split('. ')
  return ' . '.join(removed.sub('', re.sub(r'["/\\\']', '', sentence).strip()) for sentence in sentences) + ' .'


def vocabulary(reports: Iterable[str], least: int) -> frozenset[str]:
  """The words that occur `least` times or more in cleaned training reports: R2Gen takes 3 for IU-Xray, 10 for MIMIC."""
  counts = collections.Counter(word for report in reports for word in report.split())
  return frozenset(word for word, count in counts.items() if count >= least)


def references(
  texts: Sequence[str],
  protocol: str,
  *,
  tokenizer: Tokenizer | None = None,
  limit: int = 0,
  words: Collection[str] | None = None,
) -> list[str]:
  """What generated reports are scored against (spec 5.2): name the protocol with every number.

  Args:
    texts: cleaned reports.
    protocol: 'full', the reports as they are; 'r2gengpt', cut to `limit` tokens of the language model and decoded;
      'r2gen', cut to `limit` ids of which the first opens the sequence (so to limit - 1 words), rare words unknown.
    tokenizer: of the language model, for 'r2gengpt'.
    limit: 60 for IU-Xray and 100 for MIMIC-CXR in both.
    words: `vocabulary` of the training reports, for 'r2gen'.

  Returns:
    One string per text, tokens separated by spaces.

  Raises:
    UserError: no such protocol, or what it needs is not given.
  """
  if protocol not in PROTOCOLS:
    raise UserError(f"references '{protocol}': expected one of {', '.join(PROTOCOLS)}.{nearest(protocol, PROTOCOLS)}")
  if protocol == 'full':
    return list(texts)
  if limit < 1:
    raise UserError(f"references '{protocol}' are cut to a length: found a limit of {limit}, expected 60 or 100.")
  if protocol == 'r2gengpt':
    if tokenizer is None:
      raise UserError("references 'r2gengpt' are cut in tokens: give the tokenizer of the language model.")
    cut = (tokenizer.decode(tokenizer.encode(text)[:limit]) for text in texts)
    return [text.strip().replace(UNKNOWN, '') for text in cut]
  if words is None:
    raise UserError("references 'r2gen' know the words of the training reports only: give `vocabulary` of them.")
  return [' '.join(w if w in words else UNKNOWN for w in text.split()[: limit - 1]) for text in texts]
