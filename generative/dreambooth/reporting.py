"""What a run of DreamBooth shows in its report: the person, and what the model makes of prompts, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from core.data.drawing import font, wrapped
from core.train import report
from core.train.task import Evaluation, Variables

SIDE, GAP, LABEL = 96, 6, 160
"""Pixels of a picture, between two, and of the names beside them."""
SHOWN = 8
"""Pictures in a row."""
NOTICE = (
  'Pictures of a person who did not agree to them can do harm. Personalise on photos of people who agreed, and say of'
  ' what you publish that it was made by a model.'
)


def sections(task: Any, evaluations: Mapping[str, Evaluation], variables: Variables) -> list[report.Section]:
  """The sections of a run's report; what was not evaluated is left out."""
  found = []
  if (evaluation := evaluations.get('test/personalisation')) is not None:
    found += [known(evaluation), made(task, evaluation), photos(task, variables)]
  if (evaluation := evaluations.get('test/model')) is not None:
    found.append(model(evaluation))
  return found


def known(evaluation: Evaluation) -> report.Section:
  """The figures before and after."""
  scalars = evaluation.scalars
  names = [name for name in ('face_loss', 'fdfr', 'ism') if name in scalars]
  rows = [[name, scalars.get(f'before/{name}'), scalars[name]] for name in names]
  text = (
    'face_loss: the denoising loss inside the face, under the prompt of the person, on photos that nothing learned'
    ' from; lower is known better. fdfr: share of generated pictures without a face. ism: likeness of their faces to'
    f' the person, by an embedder. Of the face loss {scalars["gain"]:.1%} is gone.'
  )
  return report.Section('How well the person is known', text, [report.Table(['', 'before', 'after'], rows)])


def made(task: Any, evaluation: Evaluation) -> report.Section:
  """Generated pictures."""
  rows = []
  for i, prompt in enumerate(task.config.eval.prompts):
    for when, name in (('before', 'before/generated'), ('after', 'generated')):
      rows.append((f'{when}: {prompt}', list(evaluation.arrays[name][i])))
  text = f'The same noise before and after.\n\n{NOTICE}'
  return report.Section('What the model makes of prompts', text, [report.Figure(image=sheet(rows))])


def photos(task: Any, variables: Variables) -> report.Section:
  """What was learned from."""
  person = task.person
  rows = [('learned from', list(person.photos)), ('held out', list(person.held_out))]
  rows.append((f'class: {task.config.prompts.prior}', list(np.asarray(variables['prior']['photos']))))
  text = f'Photos of {person.name}; those of the class were made by the model itself, before it learned.'
  return report.Section('Photos', text, [report.Figure(image=sheet(rows))])


def model(evaluation: Evaluation) -> report.Section:
  """The model as it is at the end."""
  rows = [(name, list(evaluation.arrays[name])) for name in ('photos', 'decoded', 'generated')]
  scalars = evaluation.scalars
  text = (
    f'Autoencoder: PSNR {scalars["psnr"]:.1f} dB. Denoising loss under the class prompt {scalars["denoising"]:.4f}.'
  )
  return report.Section('The model', text, [report.Figure(image=sheet(rows))])


def sheet(rows: Sequence[tuple[str, Sequence[np.ndarray]]]) -> np.ndarray:
  """Pictures uint8 [H, W, 3], the first `SHOWN` of each row, beside the rows' names; uint8 [h, w, 3] on white."""
  step, count = SIDE + GAP, max(min(len(pictures), SHOWN) for _, pictures in rows)
  canvas = Image.new('RGB', (LABEL + count * step, GAP + len(rows) * step), 'white')
  draw = ImageDraw.Draw(canvas)
  for r, (name, pictures) in enumerate(rows):
    for i, line in enumerate(wrapped(name, 12, LABEL - 12)[:6]):
      draw.text((6, GAP + r * step + 15 * i), line, font=font(12), fill='black')
    for i, picture in enumerate(pictures[:SHOWN]):
      way = cv2.INTER_AREA if picture.shape[0] > SIDE else cv2.INTER_NEAREST
      square = cv2.resize(np.asarray(picture), (SIDE, SIDE), interpolation=way)
      canvas.paste(Image.fromarray(square), (LABEL + i * step, GAP + r * step))
  return np.asarray(canvas)
