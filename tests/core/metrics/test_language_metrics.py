"""Language metrics: the field's scorers against the formulas they stand for, and what happens without Java."""

import collections
import math
import shutil

import numpy as np
import pytest

from core.errors import UserError
from core.metrics import text

WORDS = ('the', 'heart', 'lungs', 'are', 'clear', 'no', 'effusion', 'or', 'edema', 'is', 'seen', '.', 'normal', 'in')


@pytest.fixture(scope='module')
def pairs():
  """200 texts that share some of their words in order."""
  rng = np.random.default_rng(0)
  references = [' '.join(rng.choice(WORDS, rng.integers(6, 40))) for _ in range(200)]
  hypotheses = [
    ' '.join(w if rng.random() < 0.7 else rng.choice(WORDS) for w in r.split() if rng.random() < 0.9) or 'the'
    for r in references
  ]
  return hypotheses, references


def grams(words, n):
  return collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu(hypotheses, references, order):
  clipped = np.zeros(order)
  total = np.zeros(order)
  for h, r in zip(hypotheses, references, strict=True):
    for n in range(order):
      mine, theirs = grams(h.split(), n + 1), grams(r.split(), n + 1)
      clipped[n] += sum((mine & theirs).values())
      total[n] += max(sum(mine.values()), 0)
  c, r = (sum(len(t.split()) for t in texts) for texts in (hypotheses, references))
  return math.exp(min(0.0, 1 - r / c)) * float(np.exp(np.mean(np.log(clipped / total))))


def rouge_l(hypothesis, reference, beta=1.2):
  h, r = hypothesis.split(' '), reference.split(' ')
  table = np.zeros((len(h) + 1, len(r) + 1), int)
  for i, a in enumerate(h, 1):
    for j, b in enumerate(r, 1):
      table[i, j] = table[i - 1, j - 1] + 1 if a == b else max(table[i - 1, j], table[i, j - 1])
  precision, recall = table[-1, -1] / len(h), table[-1, -1] / len(r)
  return (1 + beta**2) * precision * recall / (recall + beta**2 * precision) if precision else 0.0


def cider(hypotheses, references, sigma=6.0):
  count = len(references)
  frequency = collections.Counter(g for r in references for n in range(1, 5) for g in grams(r.split(), n))

  def vector(words, n):
    return {g: c * (math.log(count) - math.log(max(1, frequency[g]))) for g, c in grams(words, n).items()}

  scores = []
  for h, r in zip(hypotheses, references, strict=True):
    per_order = []
    for n in range(1, 5):
      a, b = vector(h.split(), n), vector(r.split(), n)
      dot = sum(min(a[g], b.get(g, 0)) * b.get(g, 0) for g in a)
      size = math.sqrt(sum(v**2 for v in a.values())) * math.sqrt(sum(v**2 for v in b.values()))
      # The scorer takes the number of bigrams as the length of a text.
      gap = sum(grams(h.split(), 2).values()) - sum(grams(r.split(), 2).values())
      per_order.append((dot / size if size else 0.0) * math.exp(-(gap**2) / (2 * sigma**2)))
    scores.append(10 * np.mean(per_order))
  return float(np.mean(scores))


def test_scores_are_those_of_the_formulas(pairs):
  scores = text.language(*pairs, meteor='off')
  for n in range(1, 5):
    assert scores[f'bleu_{n}'] == pytest.approx(bleu(*pairs, n), abs=1e-6)
  assert scores['rouge_l'] == pytest.approx(np.mean([rouge_l(*pair) for pair in zip(*pairs, strict=True)]), abs=1e-6)
  assert scores['cider'] == pytest.approx(cider(*pairs), abs=1e-6)
  assert set(scores) == {'bleu_1', 'bleu_2', 'bleu_3', 'bleu_4', 'rouge_l', 'cider'}


def test_a_stop_between_spaces_is_a_token_and_nothing_else_is_split_off():
  assert text.language(['no edema .'], ['no edema .'], meteor='off')['bleu_1'] == pytest.approx(1)
  assert text.language(['no edema.'], ['no edema .'], meteor='off')['bleu_1'] < 0.5


def test_nothing_is_printed_and_empty_texts_score_zero(capsys):
  scores = text.language(['', ''], ['no edema .', 'the heart is normal .'], meteor='off')
  assert all(value == pytest.approx(0, abs=1e-6) for value in scores.values())
  assert capsys.readouterr().out == ''


def test_a_line_break_is_a_space():
  pair = ['the lungs\nare clear .'], ['the lungs are clear .']
  assert text.language(*pair, meteor='off')['rouge_l'] == 1


@pytest.mark.skipif(shutil.which('java') is None, reason='METEOR is a Java program')
def test_meteor_runs_where_java_is():
  references = ['the lungs are clear .', 'there is a pleural effusion .', 'no edema .']
  hypotheses = ['the lungs\nare clear .', 'pleural effusions ||| are seen .', '']
  assert 0.2 < text.language(hypotheses, references, meteor='on')['meteor'] < 0.7


def test_without_java_it_is_said_once_and_left_out(monkeypatch):
  monkeypatch.setattr(text.shutil, 'which', lambda name: None)
  text._java.cache_clear()
  text._say.cache_clear()
  try:
    with pytest.warns(UserWarning, match='no java on this machine: METEOR is left out') as caught:
      scores = [text.language(['a b'], ['a b']) for _ in range(3)]
    assert len(caught) == 1 and not any('meteor' in each for each in scores)
    with pytest.raises(UserError, match='Install a Java runtime'):
      text.language(['a b'], ['a b'], meteor='on')
  finally:
    text._java.cache_clear()


def test_distinct_counts_texts_up_to_their_spaces():
  assert text.distinct(['a  b', 'a b ', 'b a']) == 2 and text.distinct([]) == 0


@pytest.mark.parametrize(
  ('texts', 'references', 'message'),
  [(['a'], [], '1 texts and 0'), ([], [], 'at least one'), (['a', 'b'], ['a', ' '], 'reference 1 is empty')],
)
def test_what_cannot_be_scored_is_refused(texts, references, message):
  with pytest.raises(UserError, match=message):
    text.language(texts, references, meteor='off')
  with pytest.raises(UserError, match="meteor 'maybe'"):
    text.language(['a'], ['a'], meteor='maybe')
