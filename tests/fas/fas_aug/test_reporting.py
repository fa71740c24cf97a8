"""What the report shows is what was measured."""

import types

import numpy as np
import pytest

from core.data import face_frames
from core.metrics import biometrics
from core.train import report
from core.train.task import Evaluation
from fas.fas_aug import drawing, evaluation, operators, reporting

SIDE = 32


class Pictures:
  """Records in memory: videos of two frames, every picture of a grey of its own."""

  def __init__(self, attacks, domain='phone'):
    count = 2 * len(attacks)
    self.grey = np.linspace(10, 240, count).astype(np.uint8)
    attack = np.repeat([face_frames.ATTACKS.index(a) for a in attacks], 2)
    self.table = {
      'domain': np.full(count, domain),
      'video': np.array([f'v{i // 2}' for i in range(count)]),
      'subject': np.array([f's{i // 2 % 2}' for i in range(count)]),
      'frame': np.arange(count) % 2,
      'attack': attack,
      'label': (attack == 0).astype(np.int64),
    }

  def __len__(self):
    return len(self.grey)

  def __getitem__(self, index):
    return {'image': np.full((SIDE, SIDE, 3), self.grey[index], np.uint8)}


def judged(records, scores, held_out=True):
  """An evaluation as `evaluation.Judge.biometrics` returns it."""
  table = records.table
  domain, attack = table['domain'].astype(str), np.array(face_frames.ATTACKS)[table['attack']]
  video = np.array([f'{d}/{v}' for d, v in zip(domain, table['video'])])
  arrays = {'score': np.asarray(scores, np.float64), 'label': table['label'], 'attack': attack, 'video': video}
  arrays |= {'domain': domain, 'subject': table['subject'], 'frame': table['frame'], 'position': np.arange(len(domain))}
  metadata = {'threshold': 0.45, 'frame_threshold': 0.55, 'threshold_held_out': held_out}
  metadata['threshold_from'] = 'EER of 4 live and 4 spoof videos'
  scalars = {}
  for level in evaluation.LEVELS:
    at = evaluation.Scores(**arrays).at(level)
    threshold = 0.45 if level == 'video' else 0.55
    rates = biometrics.summary(at.score, at.label, attack_types=at.attack, threshold=threshold)
    scalars |= {f'{level}/{name}': rate for name, rate in rates.items()}
  return Evaluation(scalars, arrays, metadata)


ATTACKS = ('live', 'print', 'live', 'replay', 'live', 'print')
SCORES = (0.9, 0.8, 0.2, 0.3, 0.6, 0.1, 0.95, 0.97, 0.7, 0.65, 0.4, 0.99)


@pytest.fixture
def records():
  return Pictures(ATTACKS)


@pytest.fixture
def task(records):
  protocol = types.SimpleNamespace(name='laptop->phone', sources=('laptop',), target='phone')
  frames = types.SimpleNamespace(split=lambda name: records, augmented=lambda: records)
  return types.SimpleNamespace(
    protocol=protocol,
    frames=frames,
    bag='fas',
    assets=None,
  )


def artefacts():
  keeps = ~np.array(operators.FLIPS)
  apcer = np.linspace(0, 1, 24).reshape(8, 3)
  arrays = {'operator': np.array(operators.NAMES), 'flips': ~keeps, 'level': np.array([3, 6, 9]), 'apcer': apcer}
  arrays |= {'bpcer': np.where(keeps[:, None], 1 - apcer, np.nan), 'none': np.array([0.1, 0.2])}
  return Evaluation({}, arrays | {'threshold': np.array(0.5), 'frames': np.array([5, 6])})


def test_the_report_has_all_parts_and_becomes_a_page(task, records, tmp_path):
  evaluations = {
    'val/biometrics': judged(records, SCORES),
    'test/biometrics': judged(records, SCORES[::-1]),
    'test/artefacts': artefacts(),
  }
  parts = reporting.sections(task, evaluations)
  titles = ['Error rates', 'Scores', 'Attacks and artefacts', 'Augmented faces', 'Worst errors']
  assert [part.title for part in parts] == titles
  page = report.write(tmp_path / 'report.html', title='a run', summary={'steps': 1}, sections=parts).read_text()
  assert 'EER of 4 live and 4 spoof videos' in page and page.count('<figure>') == 6


def test_what_was_not_evaluated_is_left_out(task, records):
  task.bag = 'none'
  assert reporting.sections(task, {}) == []
  assert [p.title for p in reporting.sections(task, {'test/artefacts': artefacts()})] == ['Attacks and artefacts']
  own = reporting.sections(task, {'tablet/biometrics': judged(records, SCORES)})
  assert [p.title for p in own] == ['Error rates', 'Scores', 'Attacks and artefacts', 'Worst errors']


def test_the_table_has_the_four_readings_and_their_thresholds(task, records):
  each = judged(records, SCORES)
  (table, _) = reporting.error_rates(task.protocol, {'test': each}).items
  labels = records.table['label']
  cells = {row[0]: row[2:] for row in table.rows}
  frames = {
    'HTER at EER threshold': biometrics.eer(SCORES, labels),
    'lowest HTER': biometrics.min_hter(SCORES, labels),
    'HTER at 0.5': (biometrics.hter(SCORES, labels, 0.5), 0.5),
    'HTER at source threshold': (biometrics.hter(SCORES, labels, 0.55), 0.55),
  }
  for name, (rate, threshold) in frames.items():
    assert cells[name][0] == f'{rate:.1%} at {threshold:.3f}'
  videos = biometrics.video_level(SCORES, labels, each.arrays['video'])
  assert cells['HTER at source threshold'][1] == f'{biometrics.hter(videos.scores, videos.labels, 0.45):.1%} at 0.450'
  assert cells['AUC'][0] == f'{biometrics.auc(SCORES, labels):.4f}'
  fixed = reporting.error_rates(task.protocol, {'test': judged(records, SCORES, held_out=False)}).items[0]
  assert {row[0]: row[2:] for row in fixed.rows}['HTER at source threshold'] == ['–', '–']


@pytest.mark.parametrize('attacks', [('live', 'live'), ('print', 'mask')])
def test_one_class_draws_what_there_is(task, attacks):
  one = Pictures(attacks)
  task.frames.split = task.frames.augmented = lambda name='': one
  parts = reporting.sections(task, {'test/biometrics': judged(one, [0.1, 0.2, 0.8, 0.9])})
  assert len(parts) == 5
  assert parts[0].items[0].rows[0][2:] == ['–', '–']


def test_curves_mark_the_thresholds_where_they_lie(records):
  figure = reporting.roc_and_det({'test': judged(records, SCORES)})
  videos = evaluation.Scores(**judged(records, SCORES).arrays).at('video')
  far, frr = biometrics.far_frr(videos.score, videos.label, 0.45)
  diamonds = [line for line in figure.axes[0].lines if line.get_marker() == 'D' and len(line.get_xdata())]
  assert [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in diamonds] == [(far, 1 - frr)]


def captured(monkeypatch):
  """The rows that a sheet is made of."""
  rows = []
  monkeypatch.setattr(drawing, 'sheet', lambda given, **_: rows.extend(given) or np.zeros((4, 4, 3), np.uint8))
  return rows


def test_worst_errors_are_the_most_misleading_videos(records, monkeypatch):
  rows = captured(monkeypatch)
  reporting.worst_errors(records, 'test', judged(records, SCORES))
  (_, spoofs), (_, lives) = rows
  assert [cell.verdict for cell in spoofs] == ['live 0.990', 'live 0.970', 'spoof 0.300']  # one frame per video
  assert spoofs[0].lines == ['is print', 'phone', 'v5']
  assert [cell.verdict for cell in lives] == ['spoof 0.100', 'live 0.650', 'live 0.800']
  assert (spoofs[0].picture == records.grey[11]).all() and spoofs[0].color == 'live'


def test_augmented_faces_show_the_labels_that_training_sees(records, monkeypatch):
  rows = captured(monkeypatch)
  reporting.augmented_faces(records, 'fas')
  assert len(rows) == 1 + len(operators.NAMES)
  for (title, cells), flips in zip(rows[1:], operators.FLIPS):
    live, spoof = cells[:3], cells[3:]
    assert {cell.color for cell in live} == {'spoof' if flips else 'live'}
    assert {cell.color for cell in spoof} == {'spoof'}
    assert title.endswith('live becomes spoof' if flips else 'label is kept')
    assert [cell.verdict.split()[0] for cell in live] == ['k=3', 'k=6', 'k=9']
  noisy = next(cells for title, cells in rows if title.startswith('blue noise'))
  contrast = [cell.picture.std() for cell in noisy[:3]]
  assert 0 < contrast[0] < contrast[1] < contrast[2]  # one face, one operator, rising levels


def test_example_faces_are_of_one_subject_where_they_can_be():
  assert reporting.example_faces(Pictures(('print', 'live', 'live', 'live'))) == [4, 0]  # s0: v0 print, v2 live
  assert reporting.example_faces(Pictures(('live', 'live'))) == [0]
  assert reporting.example_faces(Pictures(('live', 'print'))) == [0, 2]


def test_artefact_maps_hold_the_numbers():
  figure = reporting.artefact_rates(artefacts())
  texts = [[text.get_text() for text in axis.texts] for axis in figure.axes]
  assert texts[0][:4] == ['10%', '100%', '96%', '91%']
  assert [len(each) for each in texts] == [12, 12, 15]


def test_sheets_have_a_place_for_every_cell():
  picture = np.full((64, 64, 3), (10, 200, 30), np.uint8)
  cell = drawing.Cell(picture, 'live 0.9', 'live', ['one'])
  sheet = drawing.sheet([('a row\nsmall', [cell, None]), ('another', [cell, cell])], columns=['left', 'right'])
  green = (sheet == (10, 200, 30)).all(-1)
  assert green.sum() == 3 * 128 * 128
  assert (sheet == drawing.COLORS['live']).all(-1).sum() > 3 * 128 * 10
