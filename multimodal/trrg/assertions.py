"""What one sentence says of the 14 observations: mentions, and the reach of the negations and doubts around them.

A sentence falls into clauses (`phrases.BREAKS`) that no cue leaves. Within a clause:

- A denial runs forward through a list ("no pneumothorax, effusion, or consolidation") and ends where something is
  asserted again; one that closes a statement ("... is not seen") runs back to where the statement began.
- A doubt runs the same ways. Where both reach a mention, the cue that comes first has the other within its reach:
  "no opacity to suggest pneumonia" denies, "cannot exclude" doubts.
- "a or b" asserts neither: both are left open.
- A part of the body says nothing by being mentioned; what is said of it does ("heart size is normal").
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from multimodal.trrg import phrases
from multimodal.trrg.observations import BLANK, NEGATIVE, OBSERVATIONS, POSITIVE, UNCERTAIN

STRENGTH = {BLANK: 0, NEGATIVE: 1, UNCERTAIN: 2, POSITIVE: 3}
"""Of two labels of an observation in one text, the stronger one counts."""

DENIED_FIRST, DENIED = 1, 2
"""Denied by a cue that no doubt precedes; denied otherwise."""


class Mention(NamedTuple):
  start: int
  end: int
  observation: int


class Part(NamedTuple):
  """A part of the body, and (words, label) of what may be said of it."""

  observation: int
  words: re.Pattern[str]
  said: tuple[tuple[re.Pattern[str], int], ...]


def _by_number(table: dict[str, tuple[str, ...]]) -> dict[int, re.Pattern[str]]:
  return {OBSERVATIONS.index(name): phrases.words(*listed) for name, listed in table.items()}


FINDINGS, EXCEPTIONS, ONLY_DENIED = (
  _by_number(table) for table in (phrases.FINDINGS, phrases.EXCEPTIONS, phrases.ONLY_DENIED)
)
PARTS = tuple(
  Part(OBSERVATIONS.index(name), phrases.words(*part), tuple((phrases.words(*listed), label) for listed, label in said))
  for name, part, said in phrases.ANATOMY
)
_ANY_PART = phrases.words(*(phrase for _, part, _ in phrases.ANATOMY for phrase in part))
_ANYTHING = phrases.words(
  *(phrase for listed in phrases.FINDINGS.values() for phrase in listed), r'abnormalit\w+', r'diseases?', r'process\w*'
)
_OR = re.compile(r'[\s,]*(?:and )?(?:or|versus|vs)(?: \w+){0,4}\s*')
_NO_SUBJECT = re.compile(r'\s*(?:and |or |nor |which |that )?(?:is|are|was|were|has|have|not)?\s*')


@functools.lru_cache(maxsize=1 << 16)
def read(sentence: str) -> tuple[tuple[int, ...], bool]:
  """(label of each of the 14 observations, whether it says that all is normal) of one sentence, raw or cleaned.

  No Finding is left BLANK: it is said of a whole text.
  """
  text = plain(sentence)
  labels = [BLANK] * len(OBSERVATIONS)
  for clause in phrases.BREAKS.split(phrases.HARMLESS.sub(' ', text)):
    for k, label in clause_labels(clause):
      if STRENGTH[label] > STRENGTH[labels[k]]:
        labels[k] = label
  return tuple(labels), bool(phrases.SAYS_NORMAL.search(text))


def plain(sentence: str) -> str:
  """Lower case with single spaces; brackets are commas, hyphens spaces, and words that are written in two ways one."""
  text = re.sub(r'["\'\\_]', '', sentence.lower())
  for old, new in (('w/o', 'without'), ('and/or', 'or'), ('/', ' and '), ('-', ' '), ('(', ', '), (')', ', ')):
    text = text.replace(old, new)
  text = ' '.join(text.split()).replace('air space', 'airspace').replace('cardio mediastinal', 'cardiomediastinal')
  return phrases.JOINS.sub(lambda match: match.group().replace(' with', ' being'), text)


def clause_labels(text: str) -> Iterator[tuple[int, int]]:
  """(observation, label) of each thing that a clause says."""
  denied, doubted = denials(text), doubts(text)
  found = mentions(text)
  for mention in found:
    at = mention.start
    if doubted[at] and denied[at] != DENIED_FIRST:
      yield mention.observation, UNCERTAIN
    elif denied[at]:
      yield mention.observation, NEGATIVE
    else:
      yield mention.observation, UNCERTAIN if _one_of_two(text, mention, found) else POSITIVE
  for k, words in ONLY_DENIED.items():
    if any(denied[match.start()] for match in words.finditer(text)):
      yield k, NEGATIVE
  for part in PARTS:
    for match in part.words.finditer(text):
      at, label = predicate(text, match, part.said)
      if label == POSITIVE and (denied[at] or doubted[at]):
        label = NEGATIVE if denied[at] else UNCERTAIN
      if label != BLANK:
        yield part.observation, label


def mentions(text: str) -> list[Mention]:
  """Where the words of findings stand, but for what only looks like them."""
  found = []
  for k, words in FINDINGS.items():
    skipped = [match.span() for match in EXCEPTIONS[k].finditer(text)] if k in EXCEPTIONS else []
    for match in words.finditer(text):
      if not any(start <= match.start() < end for start, end in skipped):
        found.append(Mention(match.start(), match.end(), k))
  return found


def _one_of_two(text: str, mention: Mention, found: Sequence[Mention]) -> bool:
  """Whether an `or` leaves the mention open ("atelectasis or infiltrate", "nodules versus nipple shadows")."""
  if re.match(r' (?:versus|vs)\b', text[mention.end :]):
    return True
  others = (other for other in found if other.observation != mention.observation)
  gaps = (text[mention.end : o.start] if o.start >= mention.end else text[o.end : mention.start] for o in others)
  return any(_OR.fullmatch(gap) for gap in gaps)


def denials(text: str) -> list[int]:
  """Per character of a clause: 0, DENIED_FIRST or DENIED."""
  reach = [0] * (len(text) + 1)
  first_doubt = next((match.start() for match in phrases.DOUBTS.finditer(text)), len(text))
  unsure = [match.span() for match in phrases.DOUBTED.finditer(text)]
  unsure += [match.span() for match in phrases.DOUBTS.finditer(text)]

  def counts(match: re.Match[str]) -> bool:
    return not any(start <= match.start() < end for start, end in unsure)

  for match in filter(counts, phrases.DENIED.finditer(text)):
    begin = _statement(text, match.start())
    reach[begin : match.start()] = [DENIED] * (match.start() - begin)
  for match in filter(counts, phrases.DENIES.finditer(text)):
    end = _end_of_list(text, match.end())
    reach[match.end() : end] = [DENIED if first_doubt < match.start() else DENIED_FIRST] * (end - match.end())
  return reach


def doubts(text: str) -> list[bool]:
  """Per character of a clause: whether it is left open."""
  reach = [False] * (len(text) + 1)
  for match in phrases.DOUBTS.finditer(text):
    end = len(text)
    for comma in re.finditer(',', text[match.end() :]):
      after = match.end() + comma.end()
      if phrases.VERB.search(text[after:].partition(',')[0]):
        end = after
        break
    reach[match.end() : end] = [True] * (end - match.end())
  for match in phrases.DOUBTED.finditer(text):
    begin = _statement(text, match.start())
    reach[begin : match.start()] = [True] * (match.start() - begin)
  return reach


def _end_of_list(text: str, start: int) -> int:
  """Where the reach of a denial ends: it runs through a list, and stops where something is asserted again."""
  stop = phrases.STOPS_DENIAL.search(text, start)
  limit = stop.start() if stop else len(text)
  for comma in re.finditer(',', text[start:limit]):
    if not _ANYTHING.search(text[start : start + comma.start()]):
      continue  # "no acute, displaced fracture": the list has not begun
    rest = text[start + comma.end() : limit].strip()
    item = rest.partition(',')[0].strip()
    listed = re.match(r'(?:or|nor|and)\b', item) or re.search(r'\b(?:or|nor)\b', rest)
    if not listed and (phrases.VERB.search(item) or phrases.PRESENT.match(item)):
      return start + comma.end()
  return limit


def _statement(text: str, end: int) -> int:
  """Where the statement that ends with the cue at `end` began: after the comma behind which its subject stands."""
  comma = text.rfind(',', 0, end)
  while comma > 0 and _NO_SUBJECT.fullmatch(text[comma + 1 : end]):
    comma = text.rfind(',', 0, comma)
  listed = comma > 0 and re.match(r'\s*(?:or|nor|and)\b', text[comma + 1 :])
  return 0 if listed else comma + 1


def predicate(text: str, part: re.Match[str], said: Sequence[tuple[re.Pattern[str], int]]) -> tuple[int, int]:
  """(position, label) of what is said of a part of the body, or (0, BLANK).

  An adjective right before it counts first ("normal heart size"), then what follows it ("heart size is normal"), then
  an adjective that it shares with the parts before it ("normal heart size and mediastinal contours").
  """
  spans = [(match.start(), match.end(), label) for words, label in said for match in words.finditer(text)]
  widest = sorted(spans, key=lambda span: span[0] - span[1])
  spans = [s for i, s in enumerate(widest) if not any(o[0] <= s[0] and s[1] <= o[1] for o in widest[:i])]
  last = max((s for s in spans if s[1] <= part.start()), key=lambda span: span[1], default=None)
  if last and re.fullmatch(r' (?:(?!and|or|with|is|are|stable|unchanged)\w+ ){0,3}', text[last[1] : part.start()]):
    return last[0], last[2]
  first = min((s for s in spans if s[0] >= part.end()), key=lambda span: span[0], default=None)
  if first and _carries(text[part.end() : first[0]]):
    return first[0], first[2]
  if last and _shared(text[last[1] : part.start()], last[2]):
    return last[0], last[2]
  return 0, BLANK


def _carries(gap: str) -> bool:
  """Whether what follows a gap can be said of what stands before it: no other part has its own verb between them."""
  verb = phrases.VERB.search(gap)
  return not (verb and _ANY_PART.search(gap, verb.end())) and not re.search(r'\bwith\b', gap)


def _shared(gap: str, label: int) -> bool:
  """Whether an adjective before a gap is shared by what stands behind it; across a comma only what is normal is."""
  stops = (phrases.VERB, phrases.STOPS_DENIAL, phrases.UNCHANGED)
  if any(words.search(gap) for words in stops) or not _ANY_PART.search(gap):
    return False
  return len(gap.split()) <= 8 and (label == NEGATIVE or ',' not in gap)
