"""Prompts to the ids that CLIP's text encoder reads: the `tokenizer/` folder of a diffusers pipeline.

    tokenizer = clip_tokens.load('sd15/tokenizer')
    ids = clip_tokens.prompts(tokenizer, ['a photo of sks person', ''])

CLIP's pieces are byte-pair encoding of lower-cased words that end in '</w>'. Which id pads is the folder's own matter,
and since no mask hides the padding, it changes the pictures: EOS (49407) for Stable Diffusion 1.x, 0 ('!') for 2.x.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

import numpy as np
import tokenizers
from tokenizers import decoders

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
    library = tokenizers.Tokenizer.from_str(theirs.backend_tokenizer.to_str())
  except Exception as error:  # the libraries raise plain Exception too
    raise UserError(f'{folder} is not a CLIP tokenizer that transformers can read: {error}') from error
  library.decoder = decoders.Sequence(
    [decoders.ByteLevel(), decoders.Replace('</w>', ' '), decoders.Strip(' ', left=0, right=1)]
  )
  special = {'bos': theirs.bos_token, 'eos': theirs.eos_token, 'unk': theirs.unk_token, 'pad': theirs.pad_token}
  return Tokenizer(library, special, str(folder))


def prompts(tokenizer: Tokenizer, texts: Sequence[str], length: int = LENGTH) -> np.ndarray:
  """i32 [B, length]: BOS, the pieces of a text, EOS, padding; a long text loses its end, not the EOS."""
  if tokenizer.bos is None or tokenizer.eos is None or tokenizer.pad is None:
    raise UserError(f'{tokenizer!r}: prompts need a bos, an eos and a pad token.')
  ids, _ = tokenizer.batch(texts, length, start=(tokenizer.bos,), end=(tokenizer.eos,))
  return ids
