"""What a run shows: every section from its evaluations, nothing from those that are absent, and the drawings."""

import dataclasses

import jax
import numpy as np
import pytest
from small_reporter import felt
from small_task import CONFIG, SMALL

from core import config as config_lib
from core.train import report
from core.train.task import Evaluation
from multimodal.trrg import clinical, data, drawing, perception, reporting, truthfulness
from multimodal.trrg.observations import OBSERVATIONS, POSITIVE
from multimodal.trrg.task import Task


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  config = config_lib.load(CONFIG, {**SMALL, 'data.records': str(tmp_path_factory.mktemp('records'))})
  Task.prepare(config)
  return config


@pytest.fixture(scope='module')
def task(config):
  return Task(config)


@pytest.fixture(scope='module')
def variables(task):
  return jax.device_put(felt(task.init))


@pytest.fixture(scope='module')
def evaluations(task, variables):
  """As `scoring` makes them, for reports that are the references of other studies."""
  corpus, split = task.corpus, 'test'
  labels, references = corpus.labels(split), np.array(corpus.reports(split))
  margins = np.random.default_rng(0).normal(size=labels.shape).astype(np.float32)
  texts, written = np.roll(references, 1), np.roll(labels, 1, 0)
  chosen = perception.select(margins, np.asarray(variables['clues']['theta']), 2)
  scalars = {f'ce/{name}': value for name, value in clinical.efficacy(written, labels).items()}
  scalars |= {f'truth/{name}': value for name, value in truthfulness.diagnostics(chosen, written, labels).items()}
  scalars |= {'full/bleu_1': 0.5, 'full/bleu_4': 0.25, 'r2gengpt/bleu_4': 0.75, 'distinct': 7.0, 'tokens': 40.5}
  arrays = {
    'id': corpus.columns(split)['id'], 'text': texts, 'reference': references, 'margin': margins, 'chosen': chosen,
    'labels': labels, 'written': written,
  }  # fmt: skip
  clues = {'auroc': 0.75, 'auroc/Edema': 0.75, 'clues': 1.5}
  clues |= {f'clue/{name}': 0.5 for name in ('f1', 'precision', 'recall', 'micro_f1')}
  names = ('bleu_4', 'macro_f1', 'micro_f1', 'distinct', 'faithfulness')
  sources = {f'{source}/{name}': 0.1 * i for i, source in enumerate(data.SOURCES) for name in names}
  sources['none/faithfulness'] = float('nan')
  return {
    'test/perception': Evaluation(clues, {name: arrays[name] for name in ('margin', 'chosen', 'labels')}),
    'test/report': Evaluation(scalars, arrays),
    'test/interventions': Evaluation(sources),
  }


def titled(found):
  return {section.title: section for section in found}


def rows(section):
  return {row[0]: row[1:] for item in section.items if isinstance(item, report.Table) for row in item.rows}


def test_a_run_shows_everything(task, evaluations, variables, tmp_path):
  found = titled(task.report(evaluations, variables))
  assert list(found) == [
    'Studies', 'Clinical efficacy', 'Language', 'Interventions on the clues', 'Zero-shot perception',
  ]  # fmt: skip
  assert drawing.NOTICE in found['Studies'].text
  assert len(found['Studies'].items) == 3 and all(
    item.image.shape[1] == drawing.WIDTH for item in found['Studies'].items
  )
  scalars = evaluations['test/report'].scalars
  table = rows(found['Clinical efficacy'])
  for name in ('example', 'micro', 'macro', 'macro_13', 'five_micro', 'five_macro'):
    assert table[name][:3] == [scalars[f'ce/{name}/{rate}'] for rate in ('precision', 'recall', 'f1')]
  assert table['hallucination'][0] == scalars['truth/hallucination']
  assert rows(found['Language']) == {'full': [0.5, 0.25], 'r2gengpt': [None, 0.75]}
  assert '7 of 8' in found['Language'].text
  assert rows(found['Interventions on the clues'])['oracle'] == pytest.approx([0.3] * 5)
  page = report.write(tmp_path / 'report.html', title='x', summary={}, sections=list(found.values())).read_text()
  assert page.count('<h2') == 5


def test_what_was_not_evaluated_is_left_out(task, evaluations, variables):
  assert reporting.sections(task, {}, variables) == []
  only = reporting.sections(task, {'val/interventions': evaluations['test/interventions']}, variables)
  assert [section.title for section in only] == ['Interventions on the clues'] and 'Split val' in only[0].text
  zero = reporting.sections(task, {'val/zero_shot': evaluations['test/perception']}, variables)
  assert [section.title for section in zero] == ['Zero-shot perception']


def test_a_run_without_films_shows_its_texts(config, evaluations, variables):
  blind = Task(config_lib.derive(config, {
    'data.films': False, 'clues.source': 'labels', 'contrast.steps': 0, 'model.vision.encoder': 'none',
  }))  # fmt: skip
  blind.corpus = Task(config).corpus
  blind.corpus.config = blind.config
  found = titled(reporting.sections(blind, evaluations, jax.device_put(felt(blind.init))))
  assert 'Zero-shot perception' not in found and len(found['Studies'].items) == 3


def test_best_median_and_worst_are_of_studies_with_a_finding():
  labels, written = np.zeros((5, 14), np.int8), np.zeros((5, 14), np.int8)
  labels[:4, 1] = POSITIVE  # study 4 is normal
  written[[1, 2], 1] = POSITIVE
  written[2, 5] = POSITIVE
  assert reporting.chosen_studies(written, labels) == [('best', 1), ('median', 0), ('worst', 3)]
  assert reporting.chosen_studies(written[1:3], labels[1:3]) == [('best', 0), ('worst', 1)]
  assert reporting.chosen_studies(written[4:], labels[4:]) == [('best', 0)]


def test_heat_lies_where_the_clue_looks_and_an_even_look_leaves_the_film():
  film = np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)
  plain = drawing.heat(film, np.ones((4, 4)), 80)
  assert np.array_equal(plain, np.repeat(drawing.square(film, 80)[..., None], 3, -1))
  seen = np.full((4, 4), 0.5)
  seen[0, 3] = drawing.STRONGEST
  hot = drawing.heat(film, seen, 80).astype(int)
  red = hot[..., 0] - hot[..., 2]
  assert red[:16, 64:].min() > 60 and not red[40:, :40].any()


def sheet(**changes):
  sentence = {'text': 'No edema.', 'status': 'consistent', 'observations': ['Edema']}
  below = dict.fromkeys(OBSERVATIONS, -1.0)
  base = drawing.Sheet('t', 'a', [np.full((64, 64), 90, np.uint8)], {}, below, [], [sentence])
  return dataclasses.replace(base, **changes)


def holds(picture, colour):
  return bool((picture == np.array(colour)).all(-1).any())


def test_a_sheet_shows_clues_marks_and_the_notice(monkeypatch):
  plain = sheet().draw()
  assert not holds(plain, drawing.CLUE)
  assert holds(sheet(margins={'Edema': 1.0}, clues=['Edema']).draw(), drawing.CLUE)
  for status, (_, colour, _) in drawing.STATUS.items():
    assert holds(sheet(sentences=[{'text': 'X.', 'status': status, 'observations': []}]).draw(), colour), status
  assert not holds(plain, drawing.STATUS['contradicted'][1])
  assert sheet(reference=['A reference.'] * 200).draw().shape[0] > plain.shape[0]
  assert sheet(films=[], sentences=[]).strip() is None and sheet(films=[], sentences=[], margins={}).draw().size
  words = []
  monkeypatch.setattr(drawing.ImageDraw.ImageDraw, 'text', lambda self, at, text, **_: words.append(text))
  sheet().draw()
  assert drawing.NOTICE in ' '.join(words)


def test_a_picture_per_film_and_per_map():
  films = [np.full((64, 80), 90, np.uint8), np.full((70, 64), 20, np.uint8)]
  names = [name for name, _ in sheet(films=films, evidence={'Edema': np.ones((2, 4, 4))}).tiles()]
  assert names == ['film 1', 'film 2', 'Edema, film 1', 'Edema, film 2']
  names = [name for name, _ in sheet(films=films, evidence={'Edema': np.ones((1, 4, 4))}).tiles()]
  assert names == ['film 1', 'film 2', 'Edema']
