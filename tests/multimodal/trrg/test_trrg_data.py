"""What TRRG reads: sentences and studies as rows, and the clues that stand beside them."""

import dataclasses
import pickle

import numpy as np
import pytest
from small_task import CONFIG, SMALL

from core import config as config_lib
from core.errors import UserError
from multimodal.trrg import data, labeller, sentences
from multimodal.trrg.observations import CLUES, NEGATIVE, POSITIVE, PROMPTS


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  config = config_lib.load(CONFIG, {**SMALL, 'data.records': str(tmp_path_factory.mktemp('records'))})
  data.prepare(config)
  return data.Corpus(config)


@pytest.fixture(scope='module')
def clues(corpus):
  labels = corpus.labels('train')
  rng = np.random.default_rng(0)
  margins = rng.normal(size=labels.shape).astype(np.float32)
  return data.Clues(margins, margins[:, :CLUES] > 1, np.full(14, 0.5, np.float32))


def test_records_are_made_once_and_of_another_world_elsewhere(corpus):
  before = {path: path.stat().st_mtime_ns for path in corpus.root.rglob('*') if path.is_file()}
  data.prepare(corpus.config)
  assert before == {path: path.stat().st_mtime_ns for path in corpus.root.rglob('*') if path.is_file()}
  other = config_lib.derive(corpus.config, {'data.seed': 1})
  assert data.records_root(other) != corpus.root and data.is_procedural(other)


def test_labels_of_reports_and_sentences_come_from_the_labeller(corpus):
  reports = corpus.columns('train')['report'].tolist()
  assert len(reports) == 24 and np.array_equal(corpus.labels('train'), labeller.rules(reports))
  for report, each in zip(reports, corpus.sentences('train'), strict=True):
    assert list(each.texts) == sentences.split(report)
    assert np.array_equal(each.labels, labeller.rules(each.texts))
    assert np.array_equal(each.kinds, sentences.kinds(each.labels))


def test_tokenizers_are_trained_once_and_travel_as_text(corpus):
  tokenizers = corpus.tokenizers
  again = data.Tokenizers.from_plain(tokenizers.plain())
  cached = data.Corpus(corpus.config).tokenizers
  for report in corpus.reports('test'):
    ids = tokenizers.language.encode(report)
    assert tokenizers.language.decode(ids).strip() == report
    assert ids == again.language.encode(report) == cached.language.encode(report)
  assert len(list(corpus.root.glob('tokenizer-*.json'))) == 2


def test_a_row_of_stage_one_is_a_film_and_one_of_its_sentences(corpus):
  rows, reader = data.described(corpus, 'train'), data.SentenceReader(corpus, 'train')
  size, tokenizer = corpus.config.data.image_size, corpus.tokenizers.text
  for row in rows:
    made = reader(row, np.random.default_rng(7))
    again = pickle.loads(pickle.dumps(reader))(row, np.random.default_rng(7))
    assert all(np.array_equal(made[name], again[name]) for name in made)
    assert made['image'].shape == (size, size) and made['image'].dtype == np.uint8
    part = corpus.sentences('train')[row['study']]
    words = tokenizer.decode(made['text_ids'][made['text_mask']])
    known = [tokenizer.decode(tokenizer.encode(text)[: corpus.config.text.length - 2]) for text in part.texts]
    assert words in known
    chosen = [i for i, each in enumerate(known) if each == words]
    assert any(np.array_equal(made['sentence_label'], part.labels[i]) for i in chosen)
    assert np.array_equal(made['study_label'], corpus.labels('train')[row['study']])


def test_equal_keys_are_equal_sentences(corpus):
  reader = data.SentenceReader(corpus, 'train')
  rng = np.random.default_rng(0)
  made = [reader({'study': i % 24}, rng) for i in range(96)]
  by_key = {}
  for row in made:
    by_key.setdefault(int(row['text_key']), set()).add(row['text_ids'].tobytes())
  assert all(len(texts) == 1 for texts in by_key.values()) and len(by_key) > 5


def test_a_row_of_stage_two(corpus, clues):
  config, reader = corpus.config, data.StudyReader(corpus, 'train', clues)
  tokenizer = corpus.tokenizers.language
  for i in range(24):
    made = reader({'study': i})
    assert made['image'].shape == (1, 32, 32) and made['view_mask'].tolist() == [True]
    chosen = np.flatnonzero(clues.chosen[i])
    above = clues.margins[i] - clues.theta
    expected = sorted(chosen, key=lambda k: -above[k])[: config.model.clues.limit]
    assert made['clue_ids'][made['clue_ids'] >= 0].tolist() == expected
    ids = made['report_ids'][made['report_mask']]
    assert ids[-1] == tokenizer.eos
    assert corpus.reports('train')[i].startswith(tokenizer.decode(ids[:-1].tolist()).strip())


def test_training_loses_and_replaces_some_clues_and_judgement_none(corpus, clues):
  whole = dataclasses.replace(clues, chosen=np.ones_like(clues.chosen))
  reader = data.StudyReader(corpus, 'train', whole)
  rng = np.random.default_rng(0)
  drawn = np.stack([reader({'study': i % 24}, rng)['clue_ids'] for i in range(600)])
  assert abs((drawn < 0).all(1).mean() - corpus.config.clues.drop) < 0.05
  assert len({tuple(row) for row in drawn[:24:1].tolist()}) > 5
  assert all((reader({'study': i})['clue_ids'] >= 0).all() for i in range(24))


def test_interventions(corpus, clues):
  labels = corpus.labels('train')
  oracle = clues.source('oracle', labels)
  assert np.array_equal(oracle.chosen, labels[:, :CLUES] == POSITIVE)
  assert (oracle.margins[:, :CLUES][oracle.chosen] >= clues.theta[0] + data.SURE).all()
  assert np.array_equal(oracle.margins[:, :CLUES][~oracle.chosen], clues.margins[:, :CLUES][~oracle.chosen])
  assert not clues.source('none', labels).chosen.any()
  shuffled = clues.source('shuffled', labels)
  assert np.array_equal(shuffled.chosen[1:], clues.chosen[:-1])
  assert np.array_equal(shuffled.margins[0], clues.margins[-1])
  assert clues.source('predicted', labels) is clues
  with pytest.raises(UserError, match="'oracel'.*oracle"):
    clues.source('oracel', labels)


def test_prototypes_can_be_made_of_training_sentences(corpus):
  assert data.bank_sentences(corpus, 'prompts') == list(PROMPTS)
  bank = data.bank_sentences(corpus, 'sentences')
  own = {text for part in corpus.sentences('train') for text in part.texts}
  found = 0
  for k, (sides, prompts) in enumerate(zip(bank, PROMPTS, strict=True)):
    for side, usual, label in zip(sides, prompts, (POSITIVE, NEGATIVE), strict=True):
      assert 0 < len(side) <= max(data.BANK, len(usual))
      if side != usual:
        found += 1
        assert set(side) <= own and (labeller.rules(side)[:, k] == label).all()
        others = np.delete(labeller.rules(side)[:, :CLUES], k, 1) if k < CLUES else labeller.rules(side)[:, :CLUES]
        assert not others.any()
  assert found > 8
  with pytest.raises(UserError, match="'sentenses'.*sentences"):
    data.bank_sentences(corpus, 'sentenses')


def test_bad_input_is_named(corpus, tmp_path):
  with pytest.raises(UserError, match='without a film'):
    data.stacked([], 2)
  with pytest.raises(UserError, match="'chets'.*chest"):
    data.is_procedural(config_lib.derive(corpus.config, {'data.dataset': 'chets'}))
  with pytest.raises(UserError, match=r'data\.root is empty'):
    data.prepare(config_lib.derive(corpus.config, {'data.dataset': 'iu_xray'}))
  with pytest.raises(UserError, match='tset'):
    data.Corpus(corpus.config).columns('tset')
  text = config_lib.derive(corpus.config, {'data.labeller': str(tmp_path / 'chexbert.pth')})
  with pytest.raises(UserError, match=r'chexbert\.pth'):
    data.Corpus(text).labels('train')


def test_the_public_reports_are_read_without_films(shared_data, tmp_path):
  config = config_lib.load(f'{CONFIG}:iu_text', {
    'data.root': str(shared_data / 'iu_xray'), 'data.records': str(tmp_path),
  })  # fmt: skip
  reports = data.prepare(config)
  assert data.is_procedural(config) and sum(reports[0].counts.values()) > 2500
  corpus = data.Corpus(config)
  image, mask = data.StudyReader(corpus, 'test').views('any', None)
  assert image.shape == (1, 64, 64) and not image.any() and mask.all()
  assert 0.3 < (corpus.labels('train')[:, 13] == POSITIVE).mean() < 0.8
