"""Prompts to the ids that CLIP's text encoder reads: the `tokenizer/` folder of a diffusers pipeline.

    tokenizer = clip_tokens.load('sd15/tokenizer')
    ids = clip_tokens.prompts(tokenizer, ['a photo of sks person', ''])

CLIP's pieces are byte-pair encoding of lower-cased words that end in '</w>'. Which id pads is the folder's own matter,
and since no mask hides the padding, it changes the pictures: EOS (49407) for Stable Diffusion 1.x, 0 ('!') for 2.x.

`small` makes one for a few prompts, for models that are trained on the spot.
"""

from __future__ import annotations

import collections
import itertools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, pre_tokenizers

from core.data.text import Tokenizer
from core.errors import UserError

LENGTH = 77
"""Positions of the published text encoders."""

WORDS = ('vocab.json', 'merges.txt')
"""What published folders hold; folders written by transformers 5 hold tokenizer.json in their place."""


def load(folder: str | os.PathLike[str]) -> Tokenizer:
  """Opens a CLIP tokenizer, as `transformers.CLIPTokenizer` reads it, added tokens included.

  A pad token that is also a word (the '!' of Stable Diffusion 2.x) pads where it stands in a prompt too, as there.

  Args:
    folder: with vocab.json and merges.txt, or tokenizer.json; tokenizer_config.json beside them names the pad token.
  """
  folder = pathlib.Path(folder).expanduser()
  if not folder.is_dir():
    raise UserError(f'tokenizer {folder}: no such folder. Expected the tokenizer folder of a diffusers pipeline.')
  lost = [name for name in WORDS if not (folder / name).is_file()]
  if lost and not (folder / 'tokenizer.json').is_file():  # transformers then makes one of three tokens, in silence
    raise UserError(f'{folder} holds no CLIP tokenizer: {lost[0]} is missing, and there is no tokenizer.json either.')
  import transformers  # takes most of a second

  try:
    theirs = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return _ours(theirs, str(folder))
  except Exception as error:  # the libraries raise plain Exception too
    raise UserError(f'{folder} is not a CLIP tokenizer that transformers can read: {error}') from error


def small(texts: Sequence[str]) -> Tokenizer:
  """A CLIP tokenizer in which every word of the texts is one piece; other words come in several, down to bytes.

  Its ids lie as in the published ones: bytes, bytes that end a word, merges, BOS, EOS, which also pads.
  """
  import transformers  # takes most of a second

  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  tokens = [*letters, *(f'{letter}</w>' for letter in letters)]
  rules = transformers.CLIPTokenizer().backend_tokenizer  # what a word is, is the library's to say
  pieces = (
    piece for text in texts for piece, _ in rules.pre_tokenizer.pre_tokenize_str(rules.normalizer.normalize_str(text))
  )
  merges = _merges(sorted(set(pieces)))
  tokens += [left + right for left, right in merges] + ['<|startoftext|>', '<|endoftext|>']
  vocabulary = {token: i for i, token in enumerate(tokens)}
  return _ours(transformers.CLIPTokenizer(vocab=vocabulary, merges=merges), 'small CLIP')


def _merges(words: Sequence[str]) -> list[tuple[str, str]]:
  """Byte-pair encoding until each word is one piece: the most frequent pair first, the first by name among equals."""
  split, merges = [(*word[:-1], f'{word[-1]}</w>') for word in words], []
  while pairs := collections.Counter(pair for word in split for pair in itertools.pairwise(word)):
    merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
    split = [_joined(word, merges[-1]) for word in split]
  return merges


def _joined(word: Sequence[str], pair: tuple[str, str]) -> tuple[str, ...]:
  """A word with every occurrence of a pair as one piece, from the left."""
  joined = []
  for piece in word:
    if joined and (joined[-1], piece) == pair:
      joined[-1] += piece
    else:
      joined.append(piece)
  return tuple(joined)


def _ours(theirs: Any, source: str) -> Tokenizer:
  """A `transformers.CLIPTokenizer` as one of this house."""
  library = tokenizers.Tokenizer.from_str(theirs.backend_tokenizer.to_str())
  library.decoder = decoders.Sequence(
    [decoders.ByteLevel(), decoders.Replace('</w>', ' '), decoders.Strip(' ', left=0, right=1)]
  )
  special = {'bos': theirs.bos_token, 'eos': theirs.eos_token, 'unk': theirs.unk_token, 'pad': theirs.pad_token}
  return Tokenizer(library, special, source)


def prompts(tokenizer: Tokenizer, texts: Sequence[str], length: int = LENGTH) -> np.ndarray:
  """i32 [B, length]: BOS, the pieces of a text, EOS, padding; a long text loses its end, not the EOS."""
  if tokenizer.bos is None or tokenizer.eos is None or tokenizer.pad is None:
    raise UserError(f'{tokenizer!r}: prompts need a bos, an eos and a pad token.')
  ids, _ = tokenizer.batch(texts, length, start=(tokenizer.bos,), end=(tokenizer.eos,))
  return ids
