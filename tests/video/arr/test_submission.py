"""The challenge file: what is written passes the check and scores like `judge`; each fault is named."""

import copy
import json

import numpy as np
import pytest

from core.errors import UserError
from video.arr import annotations, evaluation, submission

RNG = np.random.default_rng(4)
PAIRS = [(v, n) for v in range(11) for n in range(11)]  # 121 actions: more than the 100 that a file takes
VOCABULARY = annotations.Vocabulary(
  actions=tuple(f'{v} {n}' for v, n in PAIRS), verbs=tuple('abcdefghijk'), nouns=tuple('lmnopqrstuv'),
  verb_of=tuple(v for v, _ in PAIRS), noun_of=tuple(n for _, n in PAIRS),
)  # fmt: skip
UIDS = [f'P01_11_{i}' for i in range(60)]
ACTIONS = RNG.integers(0, len(PAIRS), len(UIDS))
COUNTS = {'verbs': 11, 'nouns': 11, 'pairs': 100}


def probabilities(ties=False):
  logits = 2 * RNG.normal(size=(len(UIDS), len(PAIRS))) + 3 * np.eye(len(PAIRS))[ACTIONS]
  scores = np.exp(logits.round() if ties else logits)
  return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope='module')
def content():
  return submission.submission(UIDS, probabilities(), VOCABULARY, sls=(2, 3, 4))


def test_what_is_written_passes_and_survives_json(content):
  read = json.loads(json.dumps(content, allow_nan=False))
  submission.validate(read, UIDS, **COUNTS)
  assert read == content
  assert [read[level] for level in ('sls_pt', 'sls_tl', 'sls_td')] == [2, 3, 4]
  assert {len(each['action']) for each in read['results'].values()} == {100}


def rank(scores):
  """The server's order of a {class: score}: ascending, read backwards."""
  names = list(scores)
  return [names[i] for i in np.argsort(list(scores.values()), kind='stable')[::-1][:5]]


@pytest.mark.parametrize('ties', (False, True))
def test_the_file_scores_like_judge(ties):
  scores = probabilities(ties)
  results = submission.submission(UIDS, scores, VOCABULARY)['results']
  labels = {'action': [f'{v},{n}' for v, n in np.array(PAIRS)[ACTIONS]]}
  labels |= {space: [str(i) for i in np.array(PAIRS)[ACTIONS, j]] for j, space in enumerate(('verb', 'noun'))}
  rows = {'action': ACTIONS, 'verb': np.array(PAIRS)[ACTIONS, 0], 'noun': np.array(PAIRS)[ACTIONS, 1]}
  scalars, _ = evaluation.judge(scores, {**rows, 'participant': np.array(['P01'] * 60)}, VOCABULARY)
  for space, truth in labels.items():
    hit = np.array([label in rank(results[uid][space]) for uid, label in zip(UIDS, truth)])
    recall = 100 * np.mean([hit[np.array(truth) == c].mean() for c in set(truth)])
    assert recall == pytest.approx(scalars[f'{space}/class_mean_recall_at_5'])
    assert 0 < recall < 100


def test_fewer_than_100_actions_are_all_written():
  few = annotations.Vocabulary(('a', 'b', 'c'), ('v', 'w'), ('n', 'o'), (0, 0, 1), (0, 1, 1))
  content = submission.submission(['x'], np.array([[0.5, 0.2, 0.3]], np.float32), few)
  submission.validate(content, ['x'], verbs=2, nouns=2, pairs=3)
  assert content['results']['x'] == {
    'verb': pytest.approx({'0': 0.7, '1': 0.3}), 'noun': pytest.approx({'0': 0.5, '1': 0.5}),
    'action': pytest.approx({'0,0': 0.5, '0,1': 0.2, '1,1': 0.3}),
  }  # fmt: skip


def put(*path, value):
  def change(content):
    for key in path[:-1]:
      content = content[key]
    content[path[-1]] = value

  return change


def drop(*path):
  def change(content):
    for key in path[:-1]:
      content = content[key]
    del content[path[-1]]

  return change


FAULTS = {
  'version': (put('version', value='0.1'), "'version' is '0.1', expected '0.2'"),
  'challenge': (drop('challenge'), "'challenge' is None"),
  'level': (put('sls_tl', value=6), "'sls_tl' is 6"),
  'no level': (drop('sls_pt'), "'sls_pt' is None"),
  'no results': (drop('results'), "'results' is absent"),
  'missing segment': (drop('results', 'P01_11_3'), r'1 of 60 segments have no result .first: P01_11_3'),
  'strange segment': (put('results', 'P01_11_77', value={}), 'P01_11_77.*Did you mean'),
  'no noun': (drop('results', 'P01_11_3', 'noun'), "P01_11_3, 'noun': no scores found"),
  'missing verb': (drop('results', 'P01_11_3', 'verb', '7'), r'1 of 11 classes have no score .first: 7'),
  'strange verb': (put('results', 'P01_11_3', 'verb', '11', value=0.1), "'11' is no class, expected '0' to '10'"),
  'text': (put('results', 'P01_11_3', 'verb', '7', value='0.1'), "score of '7' is '0.1'"),
  'not a number': (put('results', 'P01_11_3', 'noun', '7', value=float('nan')), "score of '7' is nan"),
  'too many pairs': (put('results', 'P01_11_3', 'action', '99,99', value=0.1), '101 pairs found, expected exactly 100'),
}


@pytest.mark.parametrize('change, named', FAULTS.values(), ids=FAULTS)
def test_each_fault_is_named(content, change, named):
  broken = copy.deepcopy(content)
  change(broken)
  with pytest.raises(UserError, match=named):
    submission.validate(broken, UIDS, **COUNTS)


@pytest.mark.parametrize('pair', ('11,0', '0,11', '0', '0,0,0', 'a,b', '-1,0'))
def test_a_pair_of_no_classes_is_named(content, pair):
  broken = copy.deepcopy(content)
  pairs = broken['results']['P01_11_3']['action']
  pairs.pop(next(iter(pairs)))
  pairs[pair] = 0.1
  with pytest.raises(UserError, match=f"'{pair}' is no pair"):
    submission.validate(broken, UIDS, **COUNTS)


def test_the_challenges_own_numbers_are_the_default(content):
  with pytest.raises(UserError, match='86 of 97 classes'):
    submission.validate(content, UIDS)


def test_what_cannot_be_written_is_named():
  with pytest.raises(UserError, match='needs verbs and nouns'):
    submission.submission(['x'], np.ones((1, 2), np.float32), annotations.Vocabulary(('a', 'b')))
  with pytest.raises(UserError, match=r'2 narration ids .1 different.*expected different ids and .2, 121'):
    submission.submission(['x', 'x'], np.ones((2, 121), np.float32), VOCABULARY)
