"""What a run of FAS-Aug shows in its report: error rates and what chose each threshold, scores, artefacts, faces.

Every figure draws the same thing in the same colour (`drawing.COLORS`); held-out source subjects are dotted, the target
is solid; thresholds have one mark each wherever they appear.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import matplotlib.lines
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import norm

from core.data import face_frames
from core.metrics import biometrics
from core.train import plots, report
from core.train.task import Evaluation
from fas.fas_aug import drawing, operators, policy
from fas.fas_aug.assets import Assets
from fas.fas_aug.evaluation import ARTEFACT_LEVELS, LEVELS, LIVE, OperatingPoint, Scores

READINGS = {
  'eer': ('o', 'EER threshold', 'the judged samples themselves (the habit of the field)'),
  'min': ('^', 'lowest HTER', 'the judged samples themselves (FAS-Aug release)'),
  'half': ('s', '0.5', 'nothing: fixed'),
  'dev': ('D', 'source threshold', 'held-out source subjects: the honest figure of a deployment'),
}
"""Reading of HTER -> (mark, name, what chose its threshold)."""

ARTEFACT_TITLES = {
  'live': 'live rejected (BPCER)',
  'spoof': 'spoof accepted (APCER)',
  'made': 'altered live accepted (APCER)',
}

WORST = 7
"""Pictures per row of the worst errors."""

LOWEST_RATE = 0.002
"""Where the axes of the DET plot begin: a probit axis has no zero."""


def sections(task: Any, evaluations: Mapping[str, Evaluation]) -> list[report.Section]:
  """The sections of a run's report.

  Args:
    task: `task.Task`; its frames give the pictures, its policies the augmentation.
    evaluations: '<split>/<evaluator>' -> `Evaluation`; what is absent is left out.
  """
  judged = {name.rpartition('/')[0]: each for name, each in evaluations.items() if name.endswith('/biometrics')}
  altered = {name.rpartition('/')[0]: each for name, each in evaluations.items() if name.endswith('/artefacts')}
  parts = []
  if judged:
    parts += [error_rates(task.protocol, judged), score_distributions(judged)]
  if judged or altered:
    parts.append(attacks_and_artefacts(judged, altered))
  if task.bag != 'none':
    parts.append(augmented_faces(task.frames.augmented(), task.bag, task.assets))
  if judged:
    split = 'test' if 'test' in judged else next(iter(judged))
    parts.append(worst_errors(task.frames.split(split), split, judged[split]))
  return parts


# Error rates.


def error_rates(protocol: Any, judged: Mapping[str, Evaluation]) -> report.Section:
  """The four readings of HTER, ROC and DET."""
  first = next(iter(judged.values()))
  text = (
    f'Protocol {protocol.name}: trained on {", ".join(protocol.sources)}, tested on {protocol.target}. A frame or the'
    ' mean of a video is accepted as live when its score, P(live), reaches the threshold. Source threshold:'
    f' {first.metadata["threshold_from"]}.'
  )
  columns = [f'{split}, {level}s' for split in judged for level in LEVELS]
  rows = []
  for reading, (_, name, chosen_by) in READINGS.items():
    cells = []
    for each in judged.values():
      for level in LEVELS:
        rate, threshold = readings(each, level)[reading]
        cells.append('–' if np.isnan(rate) else f'{rate:.1%} at {threshold:.3f}')
    rows.append([f'HTER at {name}' if reading != 'min' else name, chosen_by, *cells])
  rows.append(['AUC', '', *(f'{each.scalars[f"{level}/auc"]:.4f}' for each in judged.values() for level in LEVELS)])
  caption = 'HTER and the threshold it is taken at. Only the last reading does not look at the labels it is judged by.'
  table = report.Table(['reading', 'threshold chosen by', *columns], rows, caption)
  curves = report.Figure(
    figure=roc_and_det(judged),
    caption='ROC and DET (normal-deviate axes: a straight line means normally distributed scores). Thin: frames, thick:'
    ' videos; marks: the thresholds of the table, for videos.',
  )
  return report.Section('Error rates', text, [table, curves])


def readings(evaluation: Evaluation, level: str) -> dict[str, tuple[float, float]]:
  """Reading of HTER -> (HTER, threshold), both NaN where it is not defined."""
  scores, point = scores_of(evaluation).at(level), operating_point(evaluation)
  pair, dev = (scores.score, scores.label), point.at(level)
  return {
    'eer': biometrics.eer(*pair),
    'min': biometrics.min_hter(*pair),
    'half': (biometrics.hter(*pair, 0.5), 0.5),
    'dev': (biometrics.hter(*pair, dev), dev) if point.held_out else (np.nan, np.nan),
  }


def scores_of(evaluation: Evaluation) -> Scores:
  """The scores that an evaluation holds as arrays."""
  return Scores(**evaluation.arrays)


def operating_point(evaluation: Evaluation) -> OperatingPoint:
  """The thresholds that an evaluation holds as metadata."""
  kept = evaluation.metadata
  return OperatingPoint(kept['frame_threshold'], kept['threshold'], kept['threshold_held_out'], kept['threshold_from'])


def roc_and_det(judged: Mapping[str, Evaluation]) -> Figure:
  """Both curves of all splits and levels."""
  with matplotlib.rc_context(report.STYLE):
    figure = Figure(figsize=(10, 4.6), layout='constrained')
    roc, det = figure.subplots(1, 2)
    for split, each in judged.items():
      for level in LEVELS:
        _trace(roc, det, each, split, level)
    roc.plot([0, 1], [0, 1], color='#888888', linewidth=0.8, zorder=0)
    roc.set(
      xlabel='spoof accepted (FAR)', ylabel='live accepted (1 − FRR)', title='ROC', xlim=(-0.01, 1), ylim=(0, 1.01)
    )
    ticks = np.array([0.002, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8])
    place, ends = norm.ppf(ticks), norm.ppf([LOWEST_RATE, 0.9])
    names = [f'{tick:.1%}' if tick < 0.01 else f'{tick:.0%}' for tick in ticks]
    det.set(xlabel='spoof accepted (FAR)', ylabel='live rejected (FRR)', title='DET', xlim=ends, ylim=ends)
    det.set_xticks(place, names)
    det.set_yticks(place, names)
    det.plot(ends, ends, color='#888888', linewidth=0.8, zorder=0)
    for reading, (_, name, _) in READINGS.items():
      roc.plot([], [], label=name, **_mark(reading))
    roc.legend(loc='lower right')
  return figure


def _trace(roc: Any, det: Any, each: Evaluation, split: str, level: str) -> None:
  """One split at one level, with its thresholds marked where the level is the video."""
  scores, videos = scores_of(each).at(level), level == 'video'
  curve = biometrics.roc(scores.score, scores.label)
  if np.isnan(curve.far[0] + curve.frr[0]):
    return
  style = {'color': _split_color(split), 'linestyle': '-' if split != 'val' else (0, (2, 1.2))}
  style |= {'linewidth': 2.0 if videos else 0.9}
  probit = lambda rate: norm.ppf(np.clip(rate, LOWEST_RATE, 0.9999))  # noqa: E731
  roc.plot(curve.far, 1 - curve.frr, label=f'{split}, {level}s', **style)
  det.plot(probit(curve.far), probit(curve.frr), **style)
  for reading, (_, threshold) in readings(each, level).items() if videos else ():
    if not np.isnan(threshold):
      far, frr = biometrics.far_frr(scores.score, scores.label, threshold)
      mark = _mark(reading, style['color']) | {'clip_on': False}
      roc.plot(far, 1 - frr, **mark)
      det.plot(probit(far), probit(frr), **mark)


def _mark(reading: str, color: str = '#222222') -> dict[str, Any]:
  """How a threshold is drawn; the filled mark fits into the hollow ones, which may lie at the same place."""
  solid = reading == 'dev'
  style = {'marker': READINGS[reading][0], 'linestyle': '', 'color': color}
  return style | {'markerfacecolor': color if solid else 'none', 'markersize': 5 if solid else 8}


def _split_color(split: str) -> str:
  return '#888888' if split == 'val' else '#222222'


# Scores.


def score_distributions(judged: Mapping[str, Evaluation]) -> report.Section:
  """Histograms of scores by attack with all thresholds."""
  with matplotlib.rc_context(report.STYLE):
    figure = Figure(figsize=(10, 2.7 * len(judged) + 0.5), layout='constrained')
    axes = figure.subplots(len(judged), len(LEVELS), sharex=True, squeeze=False)
    for row, (split, each) in zip(axes, judged.items()):
      for axis, level in zip(row, LEVELS):
        _histogram(axis, each, level)
        axis.set_title(f'{split}, {level}s', pad=14)
    for axis in axes[-1]:
      axis.set_xlabel('score, P(live), on a log-odds axis')
    for axis in axes[:, 0]:
      axis.set_ylabel('share of the class')
    handles, labels = axes[0, 0].get_legend_handles_labels()
    marks = [matplotlib.lines.Line2D([], [], **_mark(reading)) for reading in READINGS]
    names = [name for _, name, _ in READINGS.values()]
    figure.legend(handles + marks, labels + names, loc='outside lower center', ncols=len(labels) + len(names))
  caption = 'Scores by what was before the camera; lines: thresholds, with the marks of the curves above.'
  return report.Section('Scores', '', [report.Figure(figure=figure, caption=caption)])


def _histogram(axis: Any, each: Evaluation, level: str) -> None:
  scores = scores_of(each).at(level)
  bins = 1 / (1 + np.exp(-np.linspace(-7, 7, 36)))
  values = np.clip(scores.score, bins[0], bins[-1])
  for attack in face_frames.ATTACKS:
    mine = values[scores.attack == attack]
    if len(mine):
      color, live = _color(attack), attack == 'live'
      weights = np.full(len(mine), 1 / len(mine))
      shape = {'histtype': 'stepfilled' if live else 'step', 'alpha': 0.45 if live else 1.0, 'linewidth': 1.8}
      axis.hist(mine, bins, weights=weights, color=color, label=attack, **shape)
  axis.set_xscale('logit')
  axis.set_xlim(bins[0], bins[-1])
  axis.set_xticks([0.01, 0.1, 0.5, 0.9, 0.99], ['0.01', '0.1', '0.5', '0.9', '0.99'])
  axis.minorticks_off()
  for reading, (_, threshold) in readings(each, level).items():
    if not np.isnan(threshold):
      place = np.clip(threshold, bins[0], bins[-1])
      axis.axvline(place, color='#222222', linewidth=1.6 if reading == 'dev' else 0.8, zorder=3)
      axis.plot(place, 1.05, transform=axis.get_xaxis_transform(), clip_on=False, **_mark(reading))


def _color(name: str) -> tuple[float, ...]:
  """A colour of `drawing` as matplotlib wants it."""
  return tuple(value / 255 for value in drawing.COLORS[name])


# Attacks and artefacts.


def attacks_and_artefacts(judged: Mapping[str, Evaluation], altered: Mapping[str, Evaluation]) -> report.Section:
  """Error rates at the source threshold by attack, and by operator and level."""
  text = (
    'At the source threshold. APCER: spoofs accepted as live, by attack; BPCER: live faces rejected. Below, the same'
    ' frames after one operator: three only alter a live face, which should stay live; five make it look recaptured,'
    ' and accepting it means that this artefact alone does not give a spoof away.'
  )
  items = []
  if judged:
    items.append(report.Figure(figure=attack_rates(judged), caption='Error rates by what was before the camera.'))
  for split, each in altered.items():
    live, spoof = each.arrays['frames'].tolist()
    caption = f'{split}: one operator on {live} live and {spoof} spoof frames, at the levels k of 0 to 9 below.'
    items.append(report.Figure(figure=artefact_rates(each), caption=caption))
  return report.Section('Attacks and artefacts', text, items)


def attack_rates(judged: Mapping[str, Evaluation]) -> Figure:
  """Heat map: attack x (split, level)."""
  kinds = [a for a in face_frames.ATTACKS if any((e.arrays['attack'] == a).any() for e in judged.values())]
  columns = [(split, level) for split in judged for level in LEVELS]
  name = {'live': 'bpcer'} | {kind: f'apcer/{kind}' for kind in kinds if kind != 'live'}
  rates = [[judged[split].scalars.get(f'{level}/{name[k]}', np.nan) for split, level in columns] for k in kinds]
  with matplotlib.rc_context(report.STYLE):
    figure = Figure(figsize=(1.4 + 1.35 * len(columns), 0.8 + 0.42 * len(kinds)), layout='constrained')
    axis = figure.subplots()
    rows = [f'{kind} {"rejected" if kind == "live" else "accepted"}' for kind in kinds]
    plots.heat_map(axis, np.array(rates), rows, [f'{split}, {level}s' for split, level in columns])
  return figure


def artefact_rates(evaluation: Evaluation) -> Figure:
  """Three heat maps: operator x level."""
  arrays = evaluation.arrays
  flips, none = arrays['flips'], arrays['none']
  names = np.array([name.replace('_', ' ') for name in arrays['operator']])
  levels = [f'k = {level}' for level in arrays['level']]
  keeps = ~flips
  before = lambda rate: np.full((int(keeps.sum()), 1), rate)  # noqa: E731
  panels = {
    'live': (np.hstack([before(none[0]), arrays['bpcer'][keeps]]), names[keeps], ['none', *levels]),
    'spoof': (np.hstack([before(none[1]), arrays['apcer'][keeps]]), names[keeps], ['none', *levels]),
    'made': (arrays['apcer'][flips], names[flips], levels),
  }
  with matplotlib.rc_context(report.STYLE):
    figure = Figure(figsize=(10, 2.9), layout='constrained')
    axes = figure.subplots(1, 3, width_ratios=[4, 4, 3.4])
    for axis, (kind, (rates, rows, columns)) in zip(axes, panels.items()):
      plots.heat_map(axis, rates, rows, columns)
      axis.set_title(ARTEFACT_TITLES[kind], pad=8)
    axes[1].set_yticklabels([])
  return figure


# Faces.


def augmented_faces(records: Any, bag: str, assets: Assets | None = None) -> report.Section:
  """Each operator at a few levels on a live and a spoof face, with the label that the policy gives."""
  names, chosen = policy.BAGS[bag], example_faces(records)
  kinds = [face_frames.ATTACKS[records.table['attack'][face]] for face in chosen]
  cases = [(o, face, level) for o in range(len(names)) for face in chosen for level in ARTEFACT_LEVELS]
  pictures, known = [records[face]['image'] for _, face, _ in cases], [records.table['label'][f] for _, f, _ in cases]
  images, labels = altered(pictures, known, [(o, level) for o, _, level in cases], bag, assets)
  cells = [_labelled(image, level, label) for image, label, (_, _, level) in zip(images, labels, cases)]
  plain = []
  for face in chosen:
    first = _labelled(records[face]['image'], 0, records.table['label'][face])
    plain += [first, *[None] * (len(ARTEFACT_LEVELS) - 1)]
  rows, per_row = [('unaltered', plain)], len(plain)
  for o, name in enumerate(names):
    flips = name in operators.NAMES and operators.FLIPS[operators.NAMES.index(name)]
    rule = 'live becomes spoof' if flips else 'label is kept'
    rows.append((f'{name.replace("_", " ")}\n{rule}', cells[o * per_row : (o + 1) * per_row]))
  columns = [f'a {kind} face' if i == 0 else '' for kind in kinds for i in range(len(ARTEFACT_LEVELS))]
  caption = (
    f'The {len(names)} operators of the bag {bag!r} on two training faces: level k of 0 to 9, and the label that'
    ' training gives the result. A policy applies two of them in a row.'
  )
  figure = report.Figure(image=drawing.sheet(rows, columns=columns), caption=caption)
  return report.Section('Augmented faces', '', [figure])


def _labelled(image: np.ndarray, level: int, label: int) -> drawing.Cell:
  name = face_frames.LABELS[label]
  return drawing.Cell(image, f'k={level}  {name}', name)


def example_faces(records: Any) -> list[int]:
  """Positions of a live frame and of a spoof frame, of one subject where there is one with both."""
  table = records.table
  live, spoof = np.flatnonzero(table['label'] == LIVE), np.flatnonzero(table['label'] != LIVE)
  person = np.strings.add(np.strings.add(table['domain'].astype(str), '/'), table['subject'].astype(str))
  both = live[np.isin(person[live], person[spoof])]
  chosen = [int((both if len(both) else live)[0])] if len(live) else []
  same = spoof[np.isin(person[spoof], person[chosen])]
  return chosen + [int(part[0]) for part in (same if len(same) else spoof,) if len(part)]


def altered(
  pictures: Sequence[np.ndarray],
  labels: Sequence[int],
  cases: Sequence[tuple[int, int]],
  bag: str,
  assets: Assets | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Applies one operator per picture through the policy itself, so that labels are what training sees.

  Args:
    pictures: uint8 [S, S, 3] each.
    labels: 1 live, 0 spoof.
    cases: (operator, level k) of each.
    bag: name in `policy.BAGS`.
    assets: a user's own textures and profiles.

  Returns:
    uint8 [N, S, S, 3]; int [N].
  """
  # The second operator of the only sub-policy is at level 0, which changes nothing.
  ops = np.array([[[operator, operator]] for operator, _ in cases], np.int32)
  levels = np.array([[[level, 0]] for _, level in cases], np.int32)
  images = np.stack(pictures).astype(np.float32) / 255
  policies = policy.scaled(policy.Policy(ops, levels), policy.level_shares(images.shape[1]), bag=bag)
  out, new, _ = _apply(bag)(
    jax.random.key(0), images, np.array(labels, np.int32), policies, np.arange(len(cases)), assets=assets
  )
  return np.round(np.asarray(out) * 255).astype(np.uint8), np.asarray(new)


@functools.cache
def _apply(bag: str) -> Any:
  """The jitted policy, compiled once for all folds of a run."""
  return jax.jit(functools.partial(policy.apply_batch, bag=bag))


def worst_errors(records: Any, split: str, evaluation: Evaluation) -> report.Section:
  """The spoofs that look most alive and the live faces that look least so, one frame per video."""
  scores, threshold = scores_of(evaluation), operating_point(evaluation).frame
  rows = []
  for label, title in ((0, 'spoofs\nhighest scores'), (1, 'live faces\nlowest scores')):
    mine = np.flatnonzero(scores.label == label)
    order = mine[np.argsort(scores.score[mine] if label else -scores.score[mine], kind='stable')]
    _, first = np.unique(scores.video[order], return_index=True)
    cells = []
    for i in order[np.sort(first)][:WORST]:
      verdict = 'live' if scores.score[i] >= threshold else 'spoof'
      lines = [f'is {scores.attack[i]}', scores.domain[i], scores.video[i].partition('/')[2]]
      picture = records[int(scores.position[i])]['image']
      cells.append(drawing.Cell(picture, f'{verdict} {scores.score[i]:.3f}', verdict, lines))
    rows.append((title, cells))
  text = (
    f'{split}: the bar has the decision at the source threshold ({threshold:.3f}) and the score, P(live); below it what'
    ' was before the camera, the domain and the video.'
  )
  sheet = drawing.sheet([row for row in rows if row[1]], label=120)
  caption = 'Most misleading videos of each class, by their worst frame.'
  return report.Section('Worst errors', text, [report.Figure(image=sheet, caption=caption)])
