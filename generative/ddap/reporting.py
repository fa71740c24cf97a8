"""What a run of DDAP shows in its report: protected photos, the table of spec 9c, what attackers make, what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from core.train import report
from core.train.task import Evaluation, Variables
from generative.ddap import drawing
from generative.ddap.evaluation import BEFORE, CLEAN, FIGURES, VICTIMS

PEOPLE, PHOTOS = 4, 2
"""Persons on a sheet, and photos of each."""

PROTECTED, ALONE = '#2f6fb2', '#8a8f98'

CAUTION = (
  'A small drawn world, one attacker, few persons: figures compare methods within this table and promise nothing about'
  ' photos on the net. A protection may be filtered out, and cannot be mended once a photo is public.'
)


def sections(task: Any, evaluations: Mapping[str, Evaluation], variables: Variables) -> list[report.Section]:
  """The sections of a run's report.

  Args:
    task: `task.Task`.
    evaluations: '<split>/<evaluator>' -> `Evaluation`; what is absent is left out.
    variables: the chosen checkpoint's.
  """
  found = {name.rpartition('/')[2]: each for name, each in evaluations.items()}
  parts = []
  if 'protected' in variables:
    parts.append(photos(task, variables))
  if 'visibility' in found or 'protection' in found:
    parts.append(figures(found.get('visibility'), found.get('protection'), task.config.protect.methods))
  if 'protection' in found:
    parts.append(generated(task, found['protection']))
  if 'faces' in found:
    parts.append(faces(found['faces']))
  if 'purification' in found:
    parts.append(purification(task.config.purify.method, found['purification']))
  if 'model' in found:
    parts.append(model(found['model']))
  return parts


def photos(task: Any, variables: Variables) -> report.Section:
  """Clean and protected photos with what was changed."""
  people, levels = task.people[:PEOPLE], task.config.method.eps_levels
  rows = [('clean', [picture for each in people for picture in (*each.photos[:PHOTOS], *[None] * PHOTOS)])]
  for name in task.config.protect.methods:  # a restored tree has them by name
    pictures = []
    for each in people:
      after = np.asarray(variables['protected'][name][each.name])[:PHOTOS]
      pictures += [*after, *(drawing.difference(a, b, levels) for a, b in zip(after, each.photos))]
    rows.append((name, pictures))
  columns = [text for each in people for text in (each.name, *[''] * (PHOTOS - 1), 'change', *[''] * (PHOTOS - 1))]
  caption = f'Photos of set B and their change: grey is none, black and white are the budget of {levels:g} levels.'
  sheet = report.Figure(image=drawing.sheet(rows, columns=columns, side=_side(task), label=110), caption=caption)
  return report.Section('Protected photos', CAUTION, [sheet])


VISIBLE = {
  'psnr': 'PSNR, dB', 'ssim': 'SSIM', 'linf': 'L∞, levels', 'hf_share': 'HF share of change',
  'face_latent': 'face latent displacement', 'decoded_hf_share': 'HF share of decoded change', 'lpips': 'LPIPS',
}  # fmt: skip


def figures(visibility: Evaluation | None, protection: Evaluation | None, methods: Sequence[str]) -> report.Section:
  """The table of spec 9c: what a method costs the photos, and the attackers."""
  victims = [v for v in VICTIMS if protection is not None and f'{v}/{CLEAN}' in protection.scalars]
  there = [key for key in VISIBLE if visibility and f'{methods[0]}/{key}' in visibility.scalars]
  header = ['', *(VISIBLE[key] for key in there), *(f'{v}: {part}' for v in victims for part in ('loss', 'R'))]
  rows = []
  for name in methods:
    seen = [visibility.scalars[f'{name}/{key}'] for key in there]
    cost = [protection.scalars.get(f'{v}/{name}/{key}') for v in victims for key in ('loss', 'R')]
    rows.append([name, *seen, *cost])
  text, items = '', [report.Table(header, rows)]
  if victims:
    of = protection.scalars
    base = '; '.join(
      f'{v}: {of[f"{v}/{BEFORE}"]:.4f} before, {of[f"{v}/{CLEAN}"]:.4f} after clean ones' for v in victims
    )
    text = (
      'Loss: denoising loss inside the face, on clean photos that nobody trained on, after DreamBooth on protected ones'
      f' ({base}). R: 0 where the attacker learns as from clean photos, 1 where he learns nothing; a ratio of means'
      ' over persons. White: the model that the protection knew; transfer: another one.'
    )
    items.append(report.Figure(figure=_suppression(protection, methods, victims), caption='Dots: single persons.'))
  return report.Section('Visibility and suppression', text, items)


def _suppression(protection: Evaluation, methods: Sequence[str], victims: Sequence[str]) -> Figure:
  """R of every method, with that of each person (which may lie far away: the axis is cut)."""
  with matplotlib.rc_context(report.STYLE):
    figure = Figure(figsize=(9, 3.4), layout='constrained')
    axis = figure.subplots()
    width, place = 0.8 / len(victims), np.arange(len(methods))
    for i, (victim, color) in enumerate(zip(victims, (PROTECTED, ALONE))):
      arrays, shift = protection.arrays, (i - (len(victims) - 1) / 2) * width
      before, clean = (arrays[f'{victim}/{name}'] for name in (BEFORE, CLEAN))
      tried = [k for k, name in enumerate(methods) if f'{victim}/{name}' in arrays]
      values = [protection.scalars[f'{victim}/{methods[k]}/R'] for k in tried]
      axis.bar(place[tried] + shift, values, width * 0.9, color=color, label=victim)
      each = np.stack([(arrays[f'{victim}/{methods[k]}'] - clean) / (before - clean) for k in tried])
      axis.plot(np.repeat(place[tried] + shift, each.shape[1]), each.ravel(), '.', color='#222222', markersize=4)
    axis.set_xticks(place, methods)
    axis.set(ylabel='suppression R', ylim=(-0.5, 2))
    axis.axhline(0, color='#888888', linewidth=0.8)
    axis.legend()
  return figure


def generated(task: Any, protection: Evaluation) -> report.Section:
  """What the attacker makes of each person, from clean and from protected photos."""
  people, made = task.people[:PEOPLE], protection.arrays
  names = (CLEAN, *task.config.protect.methods)
  count = min(PHOTOS + 1, made[f'generated/{CLEAN}'].shape[1], *(len(each.held_out) for each in people))
  rows = [('real, set C', [photo for each in people for photo in each.held_out[:count]])]
  for name in names:
    pictures = made[f'generated/{name}'][: len(people), :count]
    rows.append((f'from {name}', list(pictures.reshape(-1, *pictures.shape[2:]))))
  columns = [text for each in people for text in (each.name, *[''] * (count - 1))]
  text = f'Prompts: {"; ".join(task.config.eval.prompts)}. The same noise in every row.'
  sheet = drawing.sheet(rows, columns=columns, side=_side(task), label=150)
  return report.Section('What the attacker makes', text, [report.Figure(image=sheet)])


def faces(evaluation: Evaluation) -> report.Section:
  """FDFR, ISM and BRISQUE of what the attacker makes, a row per method and prompt."""
  scalars = evaluation.scalars
  names = list(dict.fromkeys(name.rpartition('/')[0] for name in scalars))
  header = [figure for figure in FIGURES if any(name.endswith(f'/{figure}') for name in scalars)]
  rows = [[*name.split('/', 1), *(scalars.get(f'{name}/{figure}') for figure in header)] for name in names]
  judge = ', '.join(f'{part} {name}' for part, name in evaluation.metadata['judge'].items())
  text = f'Measured with: {judge}. Figures of another detector or embedder are others.'
  return report.Section('Faces in what the attacker makes', text, [report.Table(['from', 'prompt', *header], rows)])


def purification(method: str, evaluation: Evaluation) -> report.Section:
  """What an operator leaves of the suppression."""
  scalars = evaluation.scalars
  operators = list(dict.fromkeys(name.rpartition('/')[0] for name in scalars))
  rows = [[name, *(scalars[f'{name}/{key}'] for key in ('R', 'clean_R', 'left'))] for name in operators]
  text = (
    f'The photos that {method} protected, after an operator that a thief may use. An operator alone keeps him from'
    ' learning too, since it takes detail away: what is left of the protection is the difference. No figure here is a'
    ' promise: other filters exist.'
  )
  with matplotlib.rc_context(report.STYLE):
    figure = Figure(figsize=(9, 3.0), layout='constrained')
    axis, place = figure.subplots(), np.arange(len(operators))
    axis.bar(place - 0.2, [row[1] for row in rows], 0.38, color=PROTECTED, label='protected')
    axis.bar(place + 0.2, [row[2] for row in rows], 0.38, color=ALONE, label='clean, operator alone')
    axis.set_xticks(place, operators)
    axis.set_ylabel('suppression R')
    axis.axhline(0, color='#888888', linewidth=0.8)
    axis.legend()
  table = report.Table(['operator', 'R, protected', 'R, clean', 'left'], rows)
  return report.Section('Purification', text, [table, report.Figure(figure=figure)])


def model(evaluation: Evaluation) -> report.Section:
  """What the model makes of nothing, and of photos that pass its autoencoder."""
  arrays, scalars = evaluation.arrays, evaluation.scalars
  names = {'photos': 'photos', 'decoded': 'through the\nautoencoder', 'generated': 'generated'}
  names['transfer/generated'] = 'generated by\nthe other model'
  rows = [(names[name], list(arrays[name][:12])) for name in names if name in arrays]
  text = (
    f'Autoencoder: PSNR {scalars["psnr"]:.1f} dB. Denoising loss {scalars["denoising"]:.4f}. Nobody that is protected'
    ' was among the photos that the model was trained on.'
  )
  return report.Section('The model', text, [report.Figure(image=drawing.sheet(rows, side=64, label=130))])


def _side(task: Any) -> int:
  """Of a picture on a sheet: small ones twice as large, large ones smaller."""
  return min(2 * task.config.model.size, 160)
