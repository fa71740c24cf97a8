"""What may be asked of a generator, and what is refused."""

import pytest
from ml_collections import ConfigDict

from core import config
from core.errors import UserError
from core.generation import Decoding


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('beams', 0),
    ('temperature', 0.0),
    ('top_k', -1),
    ('top_p', 0.0),
    ('top_p', 1.1),
    ('repetition_penalty', 0.0),
    ('no_repeat_ngram', -1),
    ('max_new_tokens', 0),
    ('min_new_tokens', 129),
    ('min_new_tokens', -1),
    ('early_stopping', 'always'),
    ('early_stopping', 1),
    ('stop', 'end'),
    ('stop', ('',)),
  ],
)
def test_values_out_of_range_are_refused_by_name(field, value):
  with pytest.raises(UserError, match=f'{field} is'):
    Decoding(**{field: value})


def test_beams_that_draw_are_refused():
  with pytest.raises(UserError, match='several beams'):
    Decoding(beams=2, sample=True)


def test_a_section_of_a_config_is_read_whole():
  section = config.track(ConfigDict({'decoding': {'beams': 3, 'length_penalty': 2.0, 'stop': ['\n', 'END']}}))
  assert Decoding.from_config(section.decoding) == Decoding(beams=3, length_penalty=2.0, stop=('\n', 'END'))
  assert config.unread(section) == []
  assert Decoding.from_config({'stop': 'END'}).stop == ('END',)


def test_a_mistyped_key_is_named_with_its_neighbour():
  with pytest.raises(UserError, match="'repetition_penalty'"):
    Decoding.from_config({'repetition_penality': 2.0})
