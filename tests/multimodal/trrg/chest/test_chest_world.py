"""What the chest world promises: films that show what is drawn, reports that say it, all from (config, seed)."""

import collections
import dataclasses
import hashlib
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import roc_auc_score

from core.errors import UserError
from multimodal.trrg import labeller
from multimodal.trrg.chest import anatomy, dataset, findings, grammar, painter, sheet
from multimodal.trrg.chest.findings import Finding
from multimodal.trrg.datasets import tables
from multimodal.trrg.observations import CLUES, NEGATIVE, NO_FINDING, OBSERVATIONS, POSITIVE, UNCERTAIN

REPORTS = 1500


@pytest.fixture(scope='module')
def written():
  """(cases, their sentences) of training studies."""
  return (
    [dataset.case(0, 'train', i) for i in range(REPORTS)],
    [dataset.sentences(0, 'train', i) for i in range(REPORTS)],
  )


@pytest.fixture(scope='module')
def body():
  """A chest that is no exception in anything."""
  return dataclasses.replace(
    anatomy.body(np.random.default_rng(5)), curve=0.0, rotation=0.0, middle=0.0, bases=(0.33, 0.37), marker=0
  )


def shot(body, *found, size=64, seed=1):
  """A film f32 in [0, 255]."""
  return painter.film(body, found, size, np.random.default_rng(seed)).astype(np.float32)


def fingerprint(seed):
  """sha256 of texts and films of a few studies."""
  digest = hashlib.sha256()
  for study in dataset.studies(dataset.Config(size=48, train=6, val=2, test=2), seed).studies:
    texts = dataclasses.replace(study, films=())
    digest.update(repr(texts).encode() + study.films[0].read().tobytes())
  return digest.hexdigest()


# Reports.


def test_every_sentence_is_labelled_as_the_grammar_means_it():
  sentences = {sentence.text: sentence for sentence in grammar.every()}
  wrong = [
    (text, meant.tolist(), read.tolist())
    for (text, sentence), read in zip(sentences.items(), labeller.rules(list(sentences))[:, :CLUES])
    if not np.array_equal(meant := grammar.labels([sentence]), read)
  ]
  assert not wrong and len(sentences) > 300
  said = {pair for sentence in sentences.values() for pair in sentence.meaning}
  assert said >= {(k, label) for k in range(CLUES) for label in (POSITIVE, NEGATIVE)}
  assert said >= {(k, UNCERTAIN) for k in range(CLUES - 1)}


def test_reports_hold_no_sentence_beyond_those_and_are_labelled_as_meant(written):
  _, reports = written
  known = {sentence.text for sentence in grammar.every()}
  assert {sentence.text for said in reports for sentence in said} <= known
  read = labeller.rules([' '.join(sentence.text for sentence in said) for said in reports])
  meant = np.stack([grammar.labels(said) for said in reports])
  np.testing.assert_array_equal(read[:, :CLUES], meant)
  sick = np.isin(meant[:, : CLUES - 1], (POSITIVE, UNCERTAIN)).any(1)
  assert np.mean((read[:, NO_FINDING] == POSITIVE) == ~sick) > 0.99  # but for reports that deny nothing at all


def test_a_report_asserts_what_is_there_hedges_what_is_faint_and_denies_only_what_is_absent(written):
  for case, said in zip(*written):
    labels = grammar.labels(said)
    present = {finding.what: finding for finding in case.found}
    for what in range(CLUES):
      if what in present:
        assert labels[what] == (UNCERTAIN if present[what].hedged else POSITIVE)
      else:
        assert labels[what] not in (POSITIVE, UNCERTAIN)
    mentions = [what for sentence in said for what, _ in sentence.meaning]
    assert len(mentions) == len(set(mentions))
    firsts = [grammar.ORDER.index(sentence.meaning[0][0]) for sentence in said if sentence.meaning]
    assert firsts == sorted(firsts)


def test_side_zone_and_degree_are_those_of_the_finding():
  rng = np.random.default_rng(0)
  someone = anatomy.body(rng)

  def words(finding):
    return next(s.text for s in grammar.write((finding,), someone, rng) if finding.what in dict(s.meaning)).lower()

  for _ in range(5):
    assert 'large right' in words(Finding(findings.PNEUMOTHORAX, 0.9, anatomy.RIGHT))
    assert 'small left' in words(Finding(findings.EFFUSION, 0.3, anatomy.LEFT))
    assert 'bilateral' in words(Finding(findings.EFFUSION, 0.6))
    assert 'right middle lobe' in words(Finding(findings.CONSOLIDATION, 0.6, anatomy.RIGHT, 'middle'))
    assert 'left mid lung' in words(Finding(findings.CONSOLIDATION, 0.6, anatomy.LEFT, 'middle'))
    assert 'multiple' in words(Finding(findings.FRACTURE, 0.9, anatomy.LEFT, kind='rib'))


def test_denials_outnumber_assertions_as_in_real_reports(written):
  cases, reports = written
  kinds = collections.Counter()
  for said in reports:
    for sentence in said:
      labels = {label for _, label in sentence.meaning}
      kinds[
        'positive' if POSITIVE in labels else 'other' if UNCERTAIN in labels else 'no' if labels else 'neutral'
      ] += 1
  share = {kind: count / kinds.total() for kind, count in kinds.items()}
  assert 0.06 < share['positive'] <= 0.12 and share['no'] > 0.6 and 0.1 < share['neutral'] < 0.25
  assert 0.4 < np.mean([not case.found for case in cases]) < 0.55
  rate = np.mean([np.isin(range(CLUES), [x.what for x in case.found]) for case in cases], axis=0)
  assert rate.min() > 0.02 and rate.max() < 0.2 and rate.max() > 3 * rate.min()
  assert len({' '.join(s.text for s in said) for said in reports}) > 0.95 * REPORTS
  assert max(sum(len(s.text.split()) for s in said) for said in reports) < 100


def test_neutral_remarks_tell_the_truth(written):
  marks = {
    'rotated': 'rotated', 'shallow': 'olumes are low', 'scoliotic': 'scoliosis', 'tortuous': 'tortuous',
  }  # fmt: skip
  for trait, words in marks.items():
    told = [getattr(case.body, trait) for case, said in zip(*written) if any(words in s.text for s in said)]
    assert told and all(told)
  shifted = [case for case, said in zip(*written) if any('midline' in s.text for s in said)]
  assert not any(findings.PNEUMOTHORAX in {finding.what for finding in case.found} for case in shifted)


# Films.


def test_a_film_is_laid_out_like_a_chest(body):
  film = shot(body, size=128)
  lungs = film[40:76, 24:44].mean(), film[40:76, 84:104].mean()
  heart, abdomen, air = film[70:80, 60:72].mean(), film[112:122, 40:90].mean(), film[70:100, :2].mean()
  assert max(lungs) < 0.65 * heart < abdomen and air < 10
  assert film[70:80, 72:90].mean() > film[70:80, 38:56].mean() + 20  # the apex of the heart is on the right of the film
  assert abs(lungs[0] - lungs[1]) < 25


def test_sizes_show_the_same_picture():
  large = dataset.film(128, 3, 'val', 4).astype(np.float32).reshape(64, 2, 64, 2).mean((1, 3))
  small = dataset.film(64, 3, 'val', 4).astype(np.float32)
  other = dataset.film(64, 3, 'val', 5).astype(np.float32)
  assert np.abs(large - small).mean() < 7 < 10 < np.abs(large - other).mean()


@pytest.mark.parametrize('what', range(CLUES - 1), ids=OBSERVATIONS[: CLUES - 1])
def test_a_finding_shows_on_its_side_and_more_the_stronger_it_is(body, what):
  rng = np.random.default_rng(what)
  drawn = findings.one(what, rng, 0.5)
  kind = 'nodule' if what == findings.LESION else 'rib' if what == findings.FRACTURE else drawn.kind
  central = what in (findings.HEART, findings.MEDIASTINUM, findings.EDEMA)
  for side in (findings.BOTH,) if central else (anatomy.LEFT, anatomy.RIGHT):
    finding = dataclasses.replace(drawn, side=side, kind=kind, zone=drawn.zone or 'middle')
    change = dict.fromkeys((0.1, 0.5, 0.95), 0.0)
    halves = np.zeros(2)
    for s in change:
      for seed in range(3):  # the noise is drawn last, so it differs too
        film = shot(dataclasses.replace(body, noise=0.0), dataclasses.replace(finding, strength=s), seed=seed)
        difference = np.abs(film - shot(dataclasses.replace(body, noise=0.0)))
        change[s] += difference.mean() / 3
        halves += difference[:, :32].sum(), difference[:, 32:].sum()
    assert 0.02 < change[0.1] < change[0.5] < change[0.95]
    if side != findings.BOTH:  # the patient's left is on the right of the film
      assert halves[int(side == anatomy.LEFT)] > 1.5 * halves[int(side == anatomy.RIGHT)]


@pytest.mark.parametrize('kind', ['endotracheal tube', 'central line', 'pacemaker', 'nasogastric tube', 'chest tube'])
def test_devices_are_bright(body, kind):
  finding = Finding(findings.DEVICE, 1.0, anatomy.LEFT, kind=kind)
  added = shot(dataclasses.replace(body, noise=0.0), finding) - shot(dataclasses.replace(body, noise=0.0))
  assert added.min() > -1 and added.max() > 35 and 0.002 < (added > 15).mean() < 0.06


def test_what_tells_the_findings_apart_can_be_learnt_from_few_films():
  """A ridge classifier on 16 x 16 pixels, of 900 films; a small network does better (see `dataset`)."""

  def films(split, count):
    pixels = np.stack([dataset.film(32, 0, split, i) for i in range(count)]).astype(np.float32)
    labels = np.stack([grammar.labels(dataset.sentences(0, split, i)) for i in range(count)])
    return pixels.reshape(count, 16, 2, 16, 2).mean((2, 4)).reshape(count, -1) / 60, labels == POSITIVE

  (x, y), (test, truth) = films('train', 900), films('test', 400)
  scores = RidgeClassifier(alpha=30.0).fit(x, y.astype(int)).decision_function(test)
  area = {OBSERVATIONS[k]: roc_auc_score(truth[:, k], scores[:, k]) for k in range(CLUES)}
  assert min(area[name] for name in ('Edema', 'Cardiomegaly', 'Pleural Effusion', 'Pneumothorax')) > 0.85
  assert np.mean(list(area.values())) > 0.75
  assert np.mean([roc_auc_score(truth[::-1, k], scores[:, k]) for k in range(CLUES)]) < 0.6


# The corpus.


def test_everything_is_a_function_of_config_and_seed_in_any_process():
  here = fingerprint(7)
  assert here == fingerprint(7) != fingerprint(8)
  code = f'import sys; sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r}); import test_chest_world as t; '
  environment = {**os.environ, 'PYTHONHASHSEED': '11', 'PYTHONPATH': str(pathlib.Path(__file__).parents[4])}
  done = subprocess.run(
    [sys.executable, '-c', code + 'print(t.fingerprint(7))'],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.strip() == here


def test_studies_keep_the_contract_and_do_not_depend_on_their_number():
  few = dataset.studies(dataset.Config(train=5, val=3, test=2), 0)
  many = dataset.studies(dataset.Config(train=9, val=3, test=4), 0)
  assert few.name == 'chest' and [study.split for study in few.studies] == ['train'] * 5 + ['val'] * 3 + ['test'] * 2
  assert len({study.id for study in many.studies}) == len({study.patient for study in many.studies}) == len(many)
  known = {study.id: study for study in many.studies}
  for study in few.studies:
    again = known[study.id]
    assert dataclasses.replace(study, films=()) == dataclasses.replace(again, films=())
    assert study.report == study.findings and study.impression
    (film,) = pickle.loads(pickle.dumps(study)).films
    assert film.view == 'frontal' and film.read().shape == (64, 64) and film.read().dtype == np.uint8
    np.testing.assert_array_equal(film.read(), again.films[0].read())
    drawn = set(study.problems.split(';')) - {'normal'}
    label = labeller.rules([study.report])[0, :CLUES]
    assert {OBSERVATIONS[k] for k in np.flatnonzero(np.isin(label, (POSITIVE, UNCERTAIN)))} == drawn


def test_written_and_read_back(tmp_path):
  corpus = dataset.studies(dataset.Config(size=48, train=4, val=2, test=2), 0)
  tables.write(tmp_path, corpus, pixels=48)
  columns, films = tables.load(tmp_path, 'chest', 'train'), tables.Films(tmp_path, 'chest')
  assert columns['report'].tolist() == [study.report for study in corpus.studies[:4]]
  for study in corpus.studies:
    (film,) = films.views(study.id, 2)
    np.testing.assert_array_equal(film, study.films[0].read())


def test_impossible_configurations_are_refused_by_name():
  with pytest.raises(UserError, match=r"'size' is 8"):
    dataset.Config(size=8)


def test_contact_sheet_has_a_row_per_observation():
  image = sheet.sheet(0, size=48, columns=2)
  assert image.dtype == np.uint8 and image.shape == (7 * (33 + 48 + 6), 2 * (4 * (48 + 6) + 8))
  assert (image < 128).mean() > 0.2
