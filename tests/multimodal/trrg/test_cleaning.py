"""The cleaning that published metrics depend on, to the letter, and what reports are scored against."""

import re

import hypothesis
import pytest
from hypothesis import strategies as st

from core.data.text import Tokenizer
from core.errors import UserError
from multimodal.trrg import cleaning

GOLDEN = [
  ('r2gen', 'The heart is NORMAL. No effusion.', 'the heart is normal . no effusion .'),
  ('r2gen', 'Well-expanded: clear; no (air-space) disease?', 'well-expanded clear no air-space disease .'),
  ('r2gen', '1. Cardiomegaly. 2. No edema. 3. Stable.', 'cardiomegaly . no edema . stable .'),
  ('r2gen', 'Clear.. lungs... Normal heart.', 'clear . lungs . normal heart .'),
  ('r2gen', 'Clear. . Normal.', 'clear .  . normal .'),  # the empty sentence stays
  ('r2gen', 'In 2011. Stable.', 'in 201stable .'),  # "1. " goes wherever it stands
  ('r2gen', "The patient's \"chest\" 24/7 <XXXX> a=b@c", 'the patients chest 247 xxxx abc .'),
  ('r2gen', 'Nodule of 1.5 cm.', 'nodule of 15 cm .'),
  ('r2gen', 'two  spaces\nand a line', 'two  spaces\nand a line .'),
  ('r2gen_mimic', 'two  spaces\nand a ____ line.  Next: part', 'two spaces and a  line . next part .'),
  ('r2gengpt_mimic', 'Next: part; <a> = b. c.', 'next : part <a> = b . c .'),
  ('r2gen', '', ' .'),
]  # fmt: skip


@pytest.mark.parametrize(('style', 'report', 'expected'), GOLDEN)
def test_golden_strings(style, report, expected):
  assert cleaning.clean(report, style) == expected


def test_longer_runs_than_the_passes_can_halve_are_left_over():
  assert cleaning.clean('1' + '.' * 16 + ' b') == '1 . b .'  # three passes: 16, 8, 4, 2, so it is no enumerator yet
  assert cleaning.clean('1' + '.' * 8 + ' b') == 'b .'
  assert cleaning.clean('a' + ' ' * 200 + 'b', 'r2gen_mimic') == 'a' + ' ' * 4 + 'b .'  # six: 200, ..., 7, 4


@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(text=st.text(alphabet='aB 1.2,;:-<"/\n_', max_size=60), style=st.sampled_from(cleaning.STYLES))
def test_nothing_that_is_to_go_survives(text, style):
  cleaned = cleaning.clean(text, style)
  assert cleaned.endswith(' .') and cleaned == cleaned.lower()
  assert not re.search(r'[,;"/_]' if style != 'r2gengpt_mimic' else r'[,;"/]', cleaned)
  assert cleaned.count('-') == text.count('-')
  assert all(part.strip('.') == '' or '.' not in part for part in cleaned.split(' '))


def test_references_by_the_three_protocols():
  texts = [cleaning.clean('The heart is normal. No pneumothorax is seen.'), cleaning.clean('Zebra.')]
  assert cleaning.references(texts, 'full') == texts
  words = cleaning.vocabulary([texts[0], texts[0], 'zebra'], 2)
  assert 'zebra' not in words and '.' in words
  assert cleaning.references(texts, 'r2gen', limit=6, words=words) == ['the heart is normal .', '<unk> .']
  tokenizer = Tokenizer.train('bpe', texts, 259)  # one token per letter, and one for the space that opens a text
  assert cleaning.references(texts, 'r2gengpt', tokenizer=tokenizer, limit=10) == ['the heart', 'zebra .']
  assert cleaning.references(texts, 'r2gengpt', tokenizer=tokenizer, limit=11) == ['the heart', 'zebra .']


def test_what_a_protocol_needs_is_asked_for():
  with pytest.raises(UserError, match="Did you mean 'r2gen'"):
    cleaning.clean('a', 'r2gne')
  with pytest.raises(UserError, match="Did you mean 'r2gengpt'"):
    cleaning.references(['a'], 'r2gengtp')
  with pytest.raises(UserError, match='limit of 0'):
    cleaning.references(['a'], 'r2gen', words=['a'])
  with pytest.raises(UserError, match='give the tokenizer'):
    cleaning.references(['a'], 'r2gengpt', limit=60)
  with pytest.raises(UserError, match='give `vocabulary`'):
    cleaning.references(['a'], 'r2gen', limit=60)
