"""From films and clues to sentences: prompt, search, text (spec 5.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from core.errors import UserError, nearest
from core.generation import Decoding, Generator
from core.train import mesh
from core.train.task import Variables
from multimodal.trrg.data import Tokenizers
from multimodal.trrg.model import Reporter

DECODING = {
  'truthful': Decoding(beams=3, min_new_tokens=1, max_new_tokens=120),
  'r2gengpt': Decoding(
    beams=3, repetition_penalty=2.0, length_penalty=2.0, min_new_tokens=80, max_new_tokens=120
  ),
  'r2gengpt_iu': Decoding(
    beams=3, repetition_penalty=2.0, length_penalty=2.0, min_new_tokens=40, max_new_tokens=100
  ),
  'greedy': Decoding(min_new_tokens=1, max_new_tokens=120),
}  # fmt: skip
"""'r2gengpt': as its scripts set it for MIMIC-CXR and IU-Xray. Its penalty of 2 punishes the second "no" and the second
"." of a report, and its least length makes the model write filler: 'truthful' has neither (our choice, spec 5.1)."""

FIELDS = ('image', 'view_mask', 'margin', 'clue_ids')
"""What a prompt is made of."""


def decoding(section: Any) -> Decoding:
  """The preset of `config.decoding`, with its `beams` and `max_new_tokens` where they are not 0."""
  if section.preset not in DECODING:
    known = sorted(DECODING)
    raise UserError(
      f"config.decoding.preset is '{section.preset}', expected one of {known}.{nearest(section.preset, known)}"
    )
  preset = DECODING[section.preset]
  most = section.max_new_tokens or preset.max_new_tokens
  return dataclasses.replace(
    preset,
    beams=section.beams or preset.beams,
    max_new_tokens=most,
    min_new_tokens=min(preset.min_new_tokens, most),
  )


class Writer:
  """Writes reports; compiles once per shape of a batch."""

  def __init__(self, reporter: Reporter, tokenizers: Tokenizers, section: Any):
    """Args: section: `config.decoding`."""
    tokenizer = tokenizers.language
    self.decoding = decoding(section)
    self._prompt = jax.jit(reporter.prompt)
    self._tokenizer = tokenizer
    self._generate = Generator(
      reporter.language, eos=tokenizer.eos, pad=tokenizer.eos if tokenizer.pad is None else tokenizer.pad
    )

  def __call__(self, variables: Variables, arrays: Sequence[Any]) -> list[str]:
    """The reports of a batch.

    Args:
      variables: of the reporter.
      arrays: the `FIELDS` of `data.StudyReader`, stacked.
    """
    prompt = self._prompt(variables, dict(zip(FIELDS, arrays, strict=True)))
    language = {'params': variables['params']['language']}
    found = self._generate(language, prompt.embeddings, prompt.mask, self.decoding)
    tokens, lengths = mesh.host_arrays((found.tokens, found.lengths))
    return [self._tokenizer.decode(np.asarray(row)[:count].tolist()).strip() for row, count in zip(tokens, lengths)]
