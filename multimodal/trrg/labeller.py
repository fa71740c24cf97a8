"""What a text says of each of the 14 observations: the rule labeller, and how any labeller is opened and cached.

A labeller is a function `(texts) -> int8 [N, 14]` in the coding of `observations`. The rules (spec 5.3) need no licence
and no weights: per sentence, the words that name an observation, and whether they stand within the reach of a negation
or of a doubt. `phrases.py` has the words, this file the reach.

    rules(['The heart is enlarged. No effusion; pneumonia cannot be excluded.'])
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from core.errors import UserError
from multimodal.trrg import observations, phrases, sentences
from multimodal.trrg.observations import BLANK, NEGATIVE, POSITIVE, UNCERTAIN

Labeller = Callable[[Sequence[str]], np.ndarray]
"""texts -> int8 [N, 14]."""

_STRENGTH = np.array([0, 3, 1, 2])
"""Of BLANK, POSITIVE, NEGATIVE, UNCERTAIN: which label of a sentence decides for the report."""


def rules(texts: Sequence[str]) -> np.ndarray:
  """Labels by phrases, negation and doubt (spec 5.3).

  A report's label of an observation is the strongest of its sentences': POSITIVE over UNCERTAIN over NEGATIVE. No
  Finding is POSITIVE when none of the others but Support Devices is positive or uncertain and the text denies
  something or says that all is normal; a text that speaks of none of this ("the trachea is midline", an empty one)
  is BLANK throughout, where CheXpert's labeller would call it normal: our choice, because saying nothing is no claim,
  and because single sentences are labelled with the same function.

  Args:
    texts: reports or sentences, raw or cleaned.

  Returns:
    int8 [N, 14].
  """
  labels = np.zeros((len(texts), len(observations.OBSERVATIONS)), np.int8)
  for row, text in zip(labels, texts, strict=True):
    said, normal = [BLANK] * len(row), False
    for sentence in sentences.split(text, tokens=1):
      found, says_normal = _sentence(sentence)
      said = [a if _STRENGTH[a] >= _STRENGTH[b] else b for a, b in zip(said, found, strict=True)]
      normal |= says_normal
    row[:] = said
    others = np.delete(row, [observations.SUPPORT_DEVICES, observations.NO_FINDING])
    if not np.isin(others, (POSITIVE, UNCERTAIN)).any() and (normal or (others == NEGATIVE).any()):
      row[observations.NO_FINDING] = POSITIVE
  return labels


def open(source: str, *, tokenizer: str = '') -> Labeller:
  """The labeller that a config names.

  Args:
    source: 'rules', or the path of a CheXbert checkpoint (chexbert.pth, or converted safetensors).
    tokenizer: folder of bert-base-uncased's tokenizer, for CheXbert.
  """
  if source == 'rules':
    return rules
  path = pathlib.Path(source).expanduser()
  if not path.exists():
    raise UserError(
      f"labeller '{source}': expected 'rules' or the path of a CheXbert checkpoint, and there is no such file."
    )
  from multimodal.trrg import chexbert

  return chexbert.Labeller(path, tokenizer)


def cached(labeller: Labeller, path: str | os.PathLike[str]) -> Labeller:
  """A labeller that asks `labeller` once per distinct text, ever: its answers are kept in `path` (.npz).

  The file knows texts by digest only, so it holds nothing of the reports. It must be used with one labeller: give
  each its own path.
  """
  path = pathlib.Path(path).expanduser()
  known: dict[bytes, np.ndarray] = {}
  if path.is_file():
    try:
      with np.load(path) as file:
        known = dict(zip((row.tobytes() for row in file['digests']), file['labels'], strict=True))
    except (ValueError, KeyError, OSError) as error:
      raise UserError(f'{path} is not a cache of labels ({error}): delete it, it is made again.') from error

  def label(texts: Sequence[str]) -> np.ndarray:
    digests = [hashlib.sha256(text.encode()).digest() for text in texts]
    new = {digest: text for digest, text in zip(digests, texts, strict=True) if digest not in known}
    if new:
      known.update(zip(new, np.asarray(labeller(list(new.values())), np.int8), strict=True))
      _keep(path, known)
    empty = np.zeros((0, len(observations.OBSERVATIONS)), np.int8)
    return np.stack([known[digest] for digest in digests]) if digests else empty

  return label


def _keep(path: pathlib.Path, known: dict[bytes, np.ndarray]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'{path.name}.partial-{os.getpid()}')
  with partial.open('wb') as file:
    digests = np.frombuffer(b''.join(known), np.uint8).reshape(-1, 32)
    np.savez_compressed(file, digests=digests, labels=np.stack(list(known.values())))
  partial.replace(path)


def _words(pattern: str) -> re.Pattern[str]:
  return re.compile(rf'\b(?:{pattern})\b')


_FINDINGS = {observations.OBSERVATIONS.index(name): _words(words) for name, words in phrases.FINDINGS.items()}
_EXCEPTIONS = {observations.OBSERVATIONS.index(name): _words(words) for name, words in phrases.EXCEPTIONS.items()}
_ANATOMY = tuple(
  (k, _words(part), tuple((_words(words), label) for words, label in said)) for k, part, said in phrases.ANATOMY
)
_PARTS = _words('|'.join(part for _, part, _ in phrases.ANATOMY))
_ONLY_DENIED = tuple((k, _words(words)) for k, words in phrases.ONLY_DENIED)
_OR = re.compile(r'[\s,]*(?:and )?(?:or|versus|vs)(?: \w+){0,4} |[\s,]*(?:or|versus|vs) ')


@functools.lru_cache(maxsize=1 << 16)
def _sentence(sentence: str) -> tuple[tuple[int, ...], bool]:
  """(label of each observation, whether it says that all is normal) of one sentence."""
  text = sentence.lower().replace('-', ' ').replace('/', ' or ').replace('(', ', ').replace(')', ', ')
  text = ' '.join(re.sub(r'["\'\\_]', '', text).split())
  text = text.replace('air space', 'airspace').replace('cardio mediastinal', 'cardiomediastinal')
  text = phrases.JOINS.sub(lambda match: match.group().replace(' with', ' being'), text)
  labels = [BLANK] * len(observations.OBSERVATIONS)
  for clause in phrases.BREAKS.split(phrases.HARMLESS.sub(' ', text)):
    for k, label in _clause(clause):
      if _STRENGTH[label] > _STRENGTH[labels[k]]:
        labels[k] = label
  return tuple(labels), bool(phrases.SAYS_NORMAL.search(text))


def _clause(text: str) -> Iterator[tuple[int, int]]:
  """(observation, label) of each mention in a stretch of text that no cue leaves."""
  denied, doubted = _denied(text), _doubted(text)
  mentions = []
  for k, words in _FINDINGS.items():
    skipped = [match.span() for match in _EXCEPTIONS[k].finditer(text)] if k in _EXCEPTIONS else []
    for match in words.finditer(text):
      if not any(start <= match.start() < end for start, end in skipped):
        mentions.append((match.start(), match.end(), k))
  for start, end, k in mentions:
    if doubted[start] and not denied[start] == 1:
      yield k, UNCERTAIN
    elif denied[start]:
      yield k, NEGATIVE
    else:
      yield k, UNCERTAIN if _alternative(text, start, end, k, mentions) else POSITIVE
  for k, words in _ONLY_DENIED:
    if any(denied[match.start()] for match in words.finditer(text)):
      yield k, NEGATIVE
  for k, part, said in _ANATOMY:
    for match in part.finditer(text):
      if (found := _predicate(text, match, said)) is None:
        continue
      start, label = found
      if label == POSITIVE and denied[start]:
        label = NEGATIVE
      elif label == POSITIVE and doubted[start]:
        label = UNCERTAIN
      yield k, label


def _alternative(text: str, start: int, end: int, k: int, mentions: list[tuple[int, int, int]]) -> bool:
  """Whether a mention is one of two that an `or` leaves open ("atelectasis or infiltrate")."""
  for other_start, other_end, other in mentions:
    between = text[end:other_start] if other_start >= end else text[other_end:start] if other_end <= start else None
    if other != k and between is not None and _OR.fullmatch(between + ' '):
      return True
  return False


def _denied(text: str) -> list[int]:
  """Per character: 0 not denied, 1 denied by a word before it that no doubt comes before, 2 denied otherwise."""
  reach = [0] * len(text)
  doubts = [match.start() for match in phrases.DOUBTS.finditer(text)]
  unsure = [match.span() for match in phrases.DOUBTED.finditer(text)]
  for match in phrases.DENIES.finditer(text):
    if any(start <= match.start() < end for start, end in unsure):
      continue
    if text[max(0, match.start() - 12) : match.start()].rstrip().endswith(('not', 'cannot', 'to', 'be')):
      continue
    first = 2 if any(doubt < match.start() for doubt in doubts) else 1
    end = _end_of_denial(text, match.end())
    reach[match.end() : end] = [first] * (end - match.end())
  for match in phrases.DENIED.finditer(text):
    if not any(start <= match.start() < end for start, end in unsure):
      begin = _segment(text, match.start())
      reach[begin : match.start()] = [max(r, 2) if r != 1 else 1 for r in reach[begin : match.start()]]
  return reach


def _end_of_denial(text: str, start: int) -> int:
  """Where the reach of a denial ends: it runs through a list, and stops where something is asserted again."""
  stop = phrases.STOPS_DENIAL.search(text, start)
  limit = stop.start() if stop else len(text)
  for comma in re.finditer(',', text[start:limit]):
    after = start + comma.end()
    rest = text[after:limit].strip()
    segment = rest.partition(',')[0].strip()
    listed = re.match(r'(?:or|nor|and)\b', segment) or re.search(r'\b(?:or|nor)\b', rest)
    if (phrases.VERB.search(segment) or phrases.PRESENT.match(segment)) and not listed:
      return after
  return limit


def _doubted(text: str) -> list[bool]:
  reach = [False] * len(text)
  for match in phrases.DOUBTS.finditer(text):
    end = next(
      (
        match.end() + comma.end()
        for comma in re.finditer(',', text[match.end() :])
        if phrases.VERB.search(text[match.end() + comma.end() :].partition(',')[0])
      ),
      len(text),
    )
    reach[match.end() : end] = [True] * (end - match.end())
  for match in phrases.DOUBTED.finditer(text):
    begin = _segment(text, match.start())
    reach[begin : match.start()] = [True] * (match.start() - begin)
  return reach


def _segment(text: str, position: int) -> int:
  """Where the statement that a word at `position` closes began: after the last comma behind which it has its subject."""
  comma = text.rfind(',', 0, position)
  while comma > 0 and re.match(
    r'\s*(?:and |or |nor |which |that )?(?:is|are|was|were|has|have|not)?\s*$', text[comma + 1 : position]
  ):
    comma = text.rfind(',', 0, comma)
  if comma > 0 and re.match(r'\s*(?:or|nor|and)\b', text[comma + 1 :]):
    return 0
  return comma + 1


def _predicate(text: str, part: re.Match[str], said: Sequence[tuple[re.Pattern[str], int]]) -> tuple[int, int] | None:
  """(position, label) of what is said of a part of the body: an adjective before it, else what follows it."""
  spans = [(match.start(), match.end(), label) for words, label in said for match in words.finditer(text)]
  spans = [
    span
    for span in spans
    if not any(o is not span and o[0] <= span[0] and span[1] <= o[1] and o[1] - o[0] > span[1] - span[0] for o in spans)
  ]
  before = [span for span in spans if span[1] <= part.start()]
  after = [span for span in spans if span[0] >= part.end()]
  last = max(before, key=lambda span: span[1], default=None)
  if last and re.fullmatch(r' (?:(?!and|or|with|is|are)\w+ ){0,3}', text[last[1] : part.start()]):
    return last[0], last[2]
  first = min(after, key=lambda span: span[0], default=None)
  if first and _reaches(text[part.end() : first[0]]):
    return first[0], first[2]
  if (
    last
    and not phrases.VERB.search(gap := text[last[1] : part.start()])
    and _PARTS.search(gap)
    and len(gap.split()) <= 8
  ):
    if not phrases.STOPS_DENIAL.search(gap):
      return last[0], last[2]
  return None


def _reaches(gap: str) -> bool:
  """Whether what is said at the end of a gap can be said of what stands before it: no other part has a verb between."""
  verb = phrases.VERB.search(gap)
  if verb and _PARTS.search(gap, verb.end()):
    return False
  return not re.search(r'\bwith\b', gap)
