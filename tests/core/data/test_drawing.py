"""Lettering that fits and can be read."""

from core.data import drawing


def test_long_names_keep_both_ends():
  name = 'a_recording_with_a_very_long_name_that_does_not_fit_0017.mov'
  short = drawing.shorten(name, 13, 240)
  assert drawing.font(13).getlength(short) <= 240 < drawing.font(13).getlength(name)
  assert short.startswith('a_recording') and short.endswith('0017.mov')
  assert drawing.shorten('short.jpg', 13, 240) == 'short.jpg'


def test_text_breaks_between_words():
  lines = drawing.wrapped('a threshold that held-out subjects chose ' * 4, 13, 200)
  assert len(lines) > 3 and all(drawing.font(13).getlength(line) <= 200 for line in lines)
  assert ' '.join(lines).split() == ('a threshold that held-out subjects chose ' * 4).split()


def test_letters_stand_out_from_their_ground():
  assert drawing.ink((230, 159, 0)) == 'black' and drawing.ink((0, 114, 178)) == 'white'
