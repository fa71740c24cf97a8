"""Prompts to photos: text files with a prompt on every line, photos as PNG, a sheet of all.

OUTPUT/generated/FILE_LINE_00.png   photo 0 of a line of a file
OUTPUT/sheet.png                    every prompt with its photos
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from core.data import clip_tokens, image
from core.diffusion import personalisation
from core.errors import UserError
from core.train import task as contract
from generative.dreambooth import reporting


class Generator:
  """Makes photos of prompts: photo i of a seed is the same whatever the batch."""

  def __init__(self, task: Any, params: Mapping[str, Any], steps: int, guidance: float):
    self._task, self._params = task, params
    self._options = {'size': task.config.model.size, 'steps': steps, 'guidance': guidance}

  def __call__(self, prompt: str, count: int, seed: int) -> np.ndarray:
    """uint8 [count, S, S, 3]."""
    foundation_, batch = self._task.foundation, self._task.config.eval.batch_size
    ids, negative = (jnp.asarray(foundation_.ids(text)) for text in (prompt, ''))
    made = []
    for first in range(0, count, batch):
      rows = jnp.arange(first, first + min(batch, count - first))
      keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(rows)
      made.append(personalisation.pictures(self._task.model, self._params, ids, negative, keys, **self._options))
    return np.concatenate([np.asarray(each) for each in made])


class PromptPredictor(contract.Predictor):
  """A row per prompt: 'prompt', 'photos' (paths under the output folder), 'notes'."""

  suffixes = ('.txt',)
  shown = ('prompt', 'photos', 'notes')

  def __init__(self, owner: Any, variables: contract.Variables, metadata: Mapping[str, Any]):
    """Args: owner: `task.Task`, already told of the metadata; variables: of a checkpoint."""
    del metadata
    section = owner.config.predict
    self.task, self.section = owner, section
    self._make = Generator(owner, owner.view(variables), section.steps, section.guidance)
    self._drawn: dict[tuple[str, str], Any] = {}
    self.output = pathlib.Path()

  def begin(self, output: pathlib.Path) -> None:
    """Photos go there, each as it is done."""
    self.output = output

  def __call__(self, *paths: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of one file; empty lines are passed over.

    Raises:
      UserError: the file is no text, or holds no prompt.
    """
    (path,) = paths
    try:
      lines = path.read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError:
      raise UserError(f"'{path}' is not a text in UTF-8: expected a prompt on every line.") from None
    prompts = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
      raise UserError(f"'{path}' holds no prompt: expected one on every line.")
    rows = []
    for done, (number, prompt) in enumerate(prompts):
      rows.append(self._row(path, number, prompt))
      self.progress((done + 1) / len(prompts))
    return rows

  def _row(self, path: pathlib.Path, number: int, prompt: str) -> dict[str, Any]:
    made = self._make(prompt, self.section.count, self.section.seed)
    names = [f'generated/{path.stem}_{number}_{i:02d}.png' for i in range(len(made))]
    for name, photo in zip(names, made, strict=True):
      image.write_png(self.output / name, photo)
    self._drawn[str(path), prompt] = made
    return {'prompt': prompt, 'photos': names, 'notes': self._notes(prompt)}

  def _notes(self, prompt: str) -> str:
    """What a user should know of a prompt: that its end was not read."""
    tokenizer, length = self.task.foundation.tokenizer, self.task.model.text.max_positions
    pieces = len(tokenizer.encode(prompt))
    room = length - 2  # BOS and EOS
    if pieces > room:
      whole = clip_tokens.prompts(tokenizer, [prompt], length)[0]
      return f'only the first {room} of {pieces} word pieces were read: {tokenizer.decode(whole.tolist())}'
    return ''

  def finish(self, rows: list[dict[str, Any]], output: pathlib.Path) -> list[pathlib.Path]:
    """Draws the sheet."""
    served = [row for row in rows if 'error' not in row]
    if not served:
      return []
    pictures = [(row['prompt'], list(self._drawn[str(row['file']), row['prompt']])) for row in served]
    image.write_png(output / 'sheet.png', reporting.sheet(pictures))
    return [output / 'sheet.png']
