"""From a user's films to reports: what a row holds, clues given by hand, evidence, and what is refused."""

import functools
import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image
from small_reporter import batch, built, felt
from small_task import CONFIG, SMALL

from core import config as config_lib
from core.data import text
from core.errors import UserError
from multimodal.trrg import data, drawing, prediction, truthfulness, writing
from multimodal.trrg.observations import NAMES, OBSERVATIONS, PROMPTS
from multimodal.trrg.task import Task

SENTENCES = [sentence for pair in PROMPTS for side in pair for sentence in side] + list(NAMES)


@functools.cache
def tokenizers():
  return data.Tokenizers(*(text.Tokenizer.train(kind, SENTENCES, 300) for kind in ('wordpiece', 'bpe')))


@functools.cache
def weights():
  return felt(task().reporter_of(tokenizers()).init)


def task(**changes):
  """A run whose data lie nowhere."""
  small = {**SMALL, 'data.records': '/nowhere', 'data.views': 2, 'decoding.max_new_tokens': 6}
  return Task(config_lib.load(CONFIG, {**small, **{key.replace('__', '.'): value for key, value in changes.items()}}))


def predictor(**changes):
  return prediction.FilmPredictor(task(**changes), weights(), {'tokenizers': tokenizers().plain()})


@functools.cache
def shared():
  """One predictor, compiled once."""
  return predictor()


def asked(words, *paths):
  """The row for clues given by hand, by the compiled predictor."""
  ours = shared()
  ours.given = prediction.given_clues(words, 2)
  try:
    return ours(*paths)[0], ours._sheets[str(paths[0])]
  finally:
    ours.given = None


@pytest.fixture(scope='module')
def films(tmp_path_factory):
  """Two films of unequal shapes."""
  folder = tmp_path_factory.mktemp('films')
  rng, paths = np.random.default_rng(0), [folder / 'frontal.png', folder / 'lateral.jpg']
  for path, shape in zip(paths, ((90, 70), (80, 110))):
    Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(path)
  return paths


def test_a_row_is_auditable(films):
  row = shared()(*films)[0]
  assert json.loads(json.dumps(row)) == row
  above = {name for name, margin in row['margins'].items() if margin > 0} - {'No Finding'}
  assert list(row['margins']) == list(row['probabilities']) == list(OBSERVATIONS)
  assert set(row['clues']) <= above and len(row['clues']) == min(len(above), 2)
  assert all(0 <= value <= 1 for value in row['probabilities'].values())
  assert row['report'] == ' '.join(sentence['text'] for sentence in row['sentences'])
  assert all(sentence['status'] in drawing.STATUS for sentence in row['sentences'])
  assert row['views'] == [str(path) for path in films] and row['given'] is False
  assert set(shared().shown) <= set(row)
  assert 'not a medical device' in row['notice'] and row['notice'] == prediction.NOTICE


def test_clues_given_by_hand_replace_the_perceived_ones(films):
  perceived = shared()(*films)[0]
  row, sheet = asked('Edema, nothing'.replace('nothing', 'lung nodule or mass'), *films)
  assert set(row['clues']) == {'Edema', 'Lung Lesion'} == set(sheet.evidence) and row['given'] is True
  assert row['margins'] == perceived['margins'], 'what is perceived must not be overwritten'
  row, sheet = asked('none', *films)
  assert row['clues'] == [] and sheet.evidence == {} and row['given'] is True


def test_clues_are_named_as_people_name_them():
  assert prediction.given_clues('auto', 3) is None
  both = [prediction.given_clues(name, 3).tolist() for name in ('pulmonary edema', 'EDEMA')]
  assert both[0] == both[1] and sum(both[0]) == 1
  with pytest.raises(UserError, match="'edem'.*Did you mean 'edema'") as error:
    prediction.given_clues('edem', 3)
  assert 'pleural effusion' in str(error.value)
  with pytest.raises(UserError, match='names 2 clues, this run takes at most 1'):
    prediction.given_clues('edema,fracture', 1)
  with pytest.raises(UserError, match="'no finding'"):
    prediction.given_clues('No Finding', 3)  # an absence is no clue


def test_sentences_are_marked_by_the_clues_the_writer_had():
  label = prediction.labeller.rules
  clues = prediction.given_clues('cardiomegaly,edema', 13)
  found = prediction.marked_sentences(
    'the heart is enlarged . there is a pleural effusion . no pulmonary edema . no pneumothorax . lines .', clues, label
  )
  assert [sentence['status'] for sentence in found] == [
    truthfulness.SUPPORTED, truthfulness.UNSUPPORTED, truthfulness.CONTRADICTED, truthfulness.CONSISTENT,
    found[4]['status'],
  ]  # fmt: skip
  assert found[0] == {
    'text': 'The heart is enlarged.', 'status': 'supported', 'observations': ['Cardiomegaly'],
  }  # fmt: skip


def test_files_named_together_are_one_study_and_sub_folders_are_studies():
  ours, root = shared(), pathlib.Path('/data')
  named = [root / 'a.png', root / 'b.png']
  assert ours.cases(named) == [tuple(named)]
  inside = [root / 'a.png', root / 'one/frontal.png', root / 'one/lateral.png', root / 'two/frontal.png']
  assert ours.cases(inside, root) == [(inside[0],), (inside[1], inside[2]), (inside[3],)]
  assert [ours._names[path] for path in (inside[0], inside[1], inside[3])] == ['a', 'one', 'two']


def test_more_films_than_views_are_refused_with_the_way_out(films):
  with pytest.raises(UserError, match=r'3 films .* at most 2 .*sub-folder'):
    shared()(*films, films[0])


def test_pictures_that_are_no_films_are_refused(films, tmp_path):
  colour, small = tmp_path / 'colour.png', tmp_path / 'small.png'
  Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)).save(colour)
  Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20).astype(np.uint8)).save(small)
  for path, reason in ((colour, 'in colour'), (small, 'at least 64'), (tmp_path / 'none.png', 'No image file')):
    with pytest.raises(UserError, match=reason):
      shared()(films[0], path)


def test_a_page_and_a_sheet_per_study(films, tmp_path):
  ours = shared()
  second = tmp_path / 'other' / 'frontal.png'
  second.parent.mkdir()
  shutil.copy(films[0], second)
  ours.cases([films[0]])
  ours.cases([second])
  rows = [{'file': str(path), **ours(path)[0]} for path in (films[0], second)]
  written = ours.finish([*rows, {'file': 'x.png', 'error': 'broken <picture>'}], tmp_path)
  assert [path.name for path in written] == ['frontal_report.png', 'frontal_2_report.png', 'reports.html']
  assert all(Image.open(path).width == drawing.WIDTH for path in written[:2])
  page = written[-1].read_text()
  assert page.count('<h2') == 4 and 'broken &lt;picture&gt;' in page
  assert page.count(prediction.NOTICE) == 3  # at the top and with each study
  assert 'src="http' not in page


def test_evidence_is_a_map_over_each_film():
  """Where views are averaged there is one map; where they stand in a row, one per view, and none where no film is."""
  inputs = batch([[3, 5], []], views=2)
  inputs['view_mask'][1, 1] = False
  inputs['clue_ids'][1, 0] = 4
  for views, count in (('mean', 1), ('concat', 2)):
    reporter, variables = built(views=views)
    maps = prediction.Look(reporter)(variables, [inputs[name] for name in writing.FIELDS])
    assert [set(study) for study in maps] == [{3, 5}, {4}]
    assert all(each.shape == (count, 2, 2) for study in maps for each in study.values())
    places = 5  # class token and 2 x 2 patches
    filled = [places * count, places]
    assert all(0 < each.sum() < total for study, total in zip(maps, filled) for each in study.values())
    if views == 'concat':
      assert not maps[1][4][1].any(), 'a film that is not there is not looked at'
  reporter, variables = built(**{'interaction.enabled': False})
  assert prediction.Look(reporter)(variables, [inputs[name] for name in writing.FIELDS]) == [{}, {}]


@pytest.mark.parametrize(
  ('changes', 'metadata', 'reason'),
  [
    ({'data__films': False, 'clues__source': 'labels', 'contrast__steps': 0}, True, 'sees no films'),
    ({'report__steps': 0}, True, 'writes no reports'),
    ({'clues__source': 'labels'}, True, 'no thresholds.*predict.clues'),
    ({}, False, 'does not hold its tokenizers'),
    ({'predict__clues': 'oedema'}, True, "no observation 'oedema'"),
  ],
)
def test_runs_that_cannot_serve_films_say_why(changes, metadata, reason):
  with pytest.raises(UserError, match=reason):
    prediction.FilmPredictor(task(**changes), {}, {'tokenizers': tokenizers().plain()} if metadata else {})


def test_real_films_go_through(shared_data, tmp_path):
  folder = shared_data / 'cxr_real'
  if not folder.is_dir():
    pytest.skip(f'no real films at {folder}')
  ours = shared()
  for path in sorted(folder.iterdir()):
    row = ours(path)[0]
    assert row['views'] == [str(path)] and np.isfinite(list(row['margins'].values())).all()
