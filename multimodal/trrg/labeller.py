"""What a text says of each of the 14 observations: the rule labeller, and how any labeller is opened and cached.

A labeller is a function `(texts) -> int8 [N, 14]` in the coding of `observations`. The rules (spec 5.3) need no licence
and no weights. `phrases.py` has their words, `assertions.py` reads one sentence, here sentences become a report.

    rules(['The heart is enlarged. No effusion; pneumonia cannot be excluded.'])
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import zipfile
from collections.abc import Callable, Sequence

import numpy as np

from core.errors import UserError
from multimodal.trrg import assertions, observations, sentences
from multimodal.trrg.observations import BLANK, NEGATIVE, POSITIVE, UNCERTAIN

Labeller = Callable[[Sequence[str]], np.ndarray]
"""texts -> int8 [N, 14]."""


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
      found, says_normal = assertions.read(sentence)
      said = [a if assertions.STRENGTH[a] >= assertions.STRENGTH[b] else b for a, b in zip(said, found, strict=True)]
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
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
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
