"""What ARR's report shows is what was measured: a small invented dataset, a small decoder with random weights."""

import dataclasses
import functools
import itertools
import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from core.train import report
from core.train.task import Evaluation
from video.arr import data, drawing, evaluation, ngram, reporting, tracks
from video.arr.annotations import tables
from video.arr.model import Anticipator

VOCABULARY = tables.Vocabulary(('take plate', 'wash plate', 'cut onion', 'open drawer'))
UNKNOWN = 4


def config(**model):
  decoder = {'aggregation': 'decoder', 'layers': 2, 'heads': 2, 'width': 8, 'dropout': 0.1, 'causal': True}
  settings = {'encoder': 'label', 'variant': '', 'image_size': 0, 'width': 8, 'decoder': decoder | {'positions': True}}
  settings |= {'classifier_dropout': 0.0, 'share_heads': False, 'dtype': 'float32', 'remat': False, 'scan': False}
  return ConfigDict({
    'model': settings | model,
    'data': {'media': 'labels', 'dataset': 'egtea', 'fold': 1, 'workers': 0},
    'grid': {'clips': 5, 'spacing': 1.0, 'anticipation': 1.0, 'frames': 1, 'span': 1.0},
    'eval': {'batch_size': 8, 'ngram_prior': 2.0}, 'loss': {'recognition': 1.0}, 'recognition': {'steps': 1},
  })  # fmt: skip


def annotations(videos=8, each=18):
  """Segments of 2 to 4 s with gaps; the next action follows the last one with probability 0.8."""
  rng, rows = np.random.default_rng(0), []
  for v in range(videos):
    time, action = 2.0, 0
    for s in range(each):
      action = (action + 1) % 4 if rng.random() < 0.8 else int(rng.integers(4))
      stop = time + rng.uniform(2, 4)
      split = 'train' if v < videos // 2 else 'val'
      rows.append((f'v{v}_{s}', f'v{v}', 'p', time, stop, -1, -1, action, split, True))
      time = stop + (rng.uniform(0.5, 2) if rng.random() < 0.4 else 0)
  return tables.Annotations('small', VOCABULARY, tables.columns(dict(zip(tables.DTYPES, zip(*rows)))))


@functools.cache
def made():
  """(task, evaluations): its scores are the bigram's, nine in ten clips are recognised."""
  settings = config()
  fold = data.Fold(settings)
  fold.__dict__['annotations'] = annotations()
  model = Anticipator(settings.model, classes=4, grid=fold.grid)
  task = types.SimpleNamespace(config=settings, fold=fold, model=model, reader=lambda: data.Reader(None, fold.grid))
  return task, evaluated(fold)


def evaluated(fold):
  segments, rng = fold.annotations.segments, np.random.default_rng(1)
  rows, history = fold.targets('val'), fold.samples('val').grids['label']
  statistics = ngram.fit(segments, 4, 1.0, 2.0)
  after = ngram.histories(segments, 1.0)[(segments['split'] == 'val')]
  scores = ngram.scores(statistics, after, 'bigram').astype(np.float32)
  recognised = np.where(rng.random(history.shape) < 0.9, history, rng.integers(5, size=history.shape)).astype(np.int32)
  arrays = {'scores': scores, 'recognised': recognised, 'target': rows['action'], 'history': history}
  arrays |= {name: rows[name] for name in ('uid', 'video', 'start')}
  scalars, _ = evaluation.judge(scores, rows, VOCABULARY)
  anticipation = Evaluation(scalars, arrays, {'vocabulary': VOCABULARY.plain(), 'prior': fold.prior().tolist()})
  table = ngram.table(fold.annotations, 1.0, 2.0)
  statistics = Evaluation({f'{model}/{name}': value for model, each in table.items() for name, value in each.items()})
  return {'val/anticipation': anticipation, 'val/statistics': statistics}


@functools.cache
def judged():
  task, evaluations = made()
  return reporting.Judged.of(task, evaluations['val/anticipation'])


def variables():
  return made()[0].model.init(jax.random.key(0))


def test_the_report_has_all_parts_and_becomes_a_page(tmp_path):
  task, evaluations = made()
  parts = reporting.sections(task, evaluations, variables())
  titles = [
    'Beside label statistics',
    'Timelines',
    'What follows what',
    'What the decoder looks at',
    'Confident errors',
  ]
  assert [part.title for part in parts] == titles
  page = report.write(tmp_path / 'report.html', title='a run', summary={}, sections=parts).read_text()
  assert page.count('<figure>') == 1 + 3 + 1 + 2


def test_what_was_not_evaluated_is_left_out():
  task, evaluations = made()
  assert reporting.sections(task, {'val/statistics': evaluations['val/statistics']}, {}) == []
  blind = types.SimpleNamespace(**vars(task) | {'model': types.SimpleNamespace(has_blocks=False)})
  parts = reporting.sections(blind, {'val/anticipation': evaluations['val/anticipation']}, {})
  assert 'What the decoder looks at' not in [part.title for part in parts]
  assert [row[0] for row in parts[0].items[0].rows] == ['ARR']


def test_the_table_has_arr_and_the_n_grams():
  task, evaluations = made()
  table = reporting.beside_statistics(task, judged(), evaluations).items[0]
  cells = {row[0]: row[1:] for row in table.rows}
  assert list(cells) == ['ARR', 'unigram', 'bigram', 'debiased', 'trigram']
  np.testing.assert_allclose(cells['ARR'], cells['bigram'], atol=1e-6)  # its scores are the bigram's
  assert cells['ARR'][2] == pytest.approx(100 * np.mean(judged().best[:, 0] == judged().target))


def test_tracks_are_what_is_annotated_and_recognised():
  task, _ = made()
  segments = task.fold.annotations.segments
  mine = np.flatnonzero(segments['video'] == 'v5')
  runs = tracks.annotated(task.fold.whole, 'v5', 0.0, float(segments['stop'][mine[-1]]))
  assert runs[0] == (0.0, 2.0, UNKNOWN)
  assert all(a[1] == pytest.approx(b[0]) and a[2] != b[2] for a, b in itertools.pairwise(runs))
  for begin, end, action in runs:
    assert task.fold.whole.labels('v5', (begin + end) / 2) == action
  chosen = np.flatnonzero(judged().video == 'v5')
  seen = tracks.of_clips(task.fold.grid, judged().start[chosen], judged().recognised[chosen])
  ends = task.fold.grid.ends(judged().start[chosen])
  assert seen[0][0] >= 0 and all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(seen))
  for k, end in enumerate(ends[3]):  # a clip's own label at its end, unless another ends at the very same time
    (label,) = [action for begin, stop, action in seen if begin + 1e-9 < end <= stop + 1e-9]
    assert label == judged().recognised[chosen[3], k]


def test_a_timeline_marks_what_came_true():
  task = types.SimpleNamespace(config=config(encoder='frame_vit'), fold=made()[0].fold)
  mine = np.flatnonzero(judged().video == 'v6')[:10]
  figure = reporting.timeline(task, judged(), mine)
  texts = [text.get_text() for text in figure.axes[-1].texts]
  marks = [text for text in texts if text in '✓5✗']
  expected = [(reporting.RIGHT, reporting.NEAR, reporting.WRONG)[mark][0] for mark in judged().marks()[mine]]
  assert marks == expected and '✓' in marks and '5' in marks  # four classes: nothing is outside of the first five
  assert [axis.get_ylabel() for axis in figure.axes] == ['annotated', 'recognised', 'anticipated']
  names = [text for text in texts if text not in '✓5✗']
  assert names == [VOCABULARY.actions[best] for best in judged().best[mine, 0]]


def test_the_busiest_stretch_is_drawn():
  segments = made()[0].fold.annotations.segments
  mine = np.flatnonzero(judged().video == 'v5')
  assert (reporting.busiest(judged(), segments, mine) == mine[: reporting.TARGETS]).all()
  gap = judged().start.copy()
  gap[mine[3:]] += 1000  # three, then a long pause, then the rest
  late = dataclasses.replace(judged(), start=gap)
  assert (reporting.busiest(late, segments, mine[::-1]) == mine[3 : 3 + reporting.TARGETS]).all()


def test_a_run_without_a_recogniser_has_no_such_track():
  task, _ = made()
  assert not reporting.recognises(task.config) and len(reporting.timeline(task, judged(), np.arange(9)).axes) == 2


def test_videos_from_the_best_to_the_worst():
  titles, videos = zip(*reporting.chosen_videos(judged()))
  right = [np.mean((judged().best[:, 0] == judged().target)[judged().video == video]) for video in videos]
  assert titles == ('best', 'median', 'worst') and right == sorted(right, reverse=True) and len(set(videos)) == 3


def test_the_learned_table_of_a_bigram_is_the_counted_one():
  task, _ = made()
  counted = ngram.next_action_table(task.fold.annotations, 1.0, 4, 2.0)
  learned, counts = reporting.learned_table(judged(), counted.actions)
  np.testing.assert_allclose(learned, counted.probability, atol=1e-6)
  assert counts.sum() == (judged().last >= 0).sum()
  never = dataclasses.replace(judged(), last=np.where(judged().last == counted.actions[1], -1, judged().last))
  missing, counts = reporting.learned_table(never, counted.actions)
  assert counts[1] == 0 and np.isnan(missing[1]).all() and not np.isnan(missing[[0, 2, 3]]).any()
  section = reporting.next_actions(task, judged())
  assert section.items[0].caption.endswith('0.0 points.')
  middle = section.items[0].figure.axes[1]
  assert [text.get_text() for text in middle.texts][:4] == [f'{100 * value:.0f}' for value in learned[0]]


def test_attention_is_the_models():
  task, _ = made()
  weights = variables()
  section = reporting.attention(task, judged(), weights)
  places = np.unique(np.linspace(0, len(judged().target) - 1, reporting.LOOKED_AT).round().astype(int))
  z = task.model.encode(weights, judged().history[places])
  mean = np.asarray(task.model.attention(weights, z)).mean((0, 2))  # [L, T, T]
  maps = [axis.collections[0].get_array() for axis in section.items[0].figure.axes if axis.get_title()]
  for layer, shown in enumerate(maps):
    np.testing.assert_allclose(shown, mean[layer], atol=1e-5)
  bars = [[bar.get_height() for bar in axis.patches] for axis in section.items[1].figure.axes[:2]]
  np.testing.assert_allclose(np.sum(bars, axis=1), 1, atol=1e-5)


def test_confident_errors_are_the_surest():
  rows = reporting.confident_errors(judged()).items[0].rows
  wrong = judged().best[:, 0] != judged().target
  assert len(rows) == min(wrong.sum(), reporting.WORST)
  sure = [float(row[4][:-1]) for row in rows]
  assert sure == sorted(sure, reverse=True) and sure[0] == pytest.approx(100 * judged().top[wrong].max(), abs=0.51)
  assert all(row[3] != row[5] and row[7] > 1 for row in rows)


def test_every_action_has_its_dot():
  task, _ = made()
  figure, _ = reporting.recall_by_frequency(task, judged())
  (dots,) = figure.axes[0].collections
  trained = np.bincount(task.fold.targets('train')['action'], minlength=4)
  assert sorted(dots.get_offsets()[:, 0]) == sorted(trained)


def test_colours_stay_with_actions():
  shades = drawing.colors({'a': 3.0, 'b': 5.0, drawing.UNKNOWN: 9.0})
  assert shades['b'] == drawing.PALETTE[0] and shades['a'] == drawing.PALETTE[1]
