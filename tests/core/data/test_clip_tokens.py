"""CLIP's tokenizer folders: the ids of transformers, padded as the folder says."""

import json
import pickle

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from core.data import clip_tokens
from core.data.text import Tokenizer
from core.errors import UserError

MERGES = ('s k', 'sk s</w>', 'o f</w>', 'p h', 'ph o', 'pho t', 'phot o</w>', "' s</w>")
TEXTS = [
  'a photo of sks person', '', 'A  PHOTO\nof\tSKS', "it's 2026, Café! 心 \U0001f600", 'a!!b', 'photo ' * 80,
  'photo of <|endoftext|> sks',
]  # fmt: skip


def folder(path, **config):
  """A tokenizer folder in the layout of Stable Diffusion's: '!' is 0, then bytes, merges, BOS and EOS last."""
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  assert letters[0] == '!'
  joined = [merge.replace(' ', '') for merge in MERGES]
  tokens = [*letters, *(f'{letter}</w>' for letter in letters), *joined, '<|startoftext|>', '<|endoftext|>']
  path.mkdir(parents=True, exist_ok=True)
  (path / 'vocab.json').write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding='utf-8')
  (path / 'merges.txt').write_text('\n'.join(['#version: 0.2', *MERGES, '']), encoding='utf-8')
  if config:
    (path / 'tokenizer_config.json').write_text(json.dumps({'tokenizer_class': 'CLIPTokenizer', **config}))
  return path


BOS, EOS = 2 * 256 + len(MERGES), 2 * 256 + len(MERGES) + 1


@pytest.mark.parametrize(('pad', 'wanted'), [('<|endoftext|>', EOS), ('!', 0), (None, EOS)])
def test_ids_are_those_of_transformers_and_pad_as_the_folder_says(tmp_path, pad, wanted):
  transformers = pytest.importorskip('transformers')
  path = folder(tmp_path, **({'pad_token': pad, 'model_max_length': 77} if pad else {}))
  tokenizer = clip_tokens.load(path)
  ids = clip_tokens.prompts(tokenizer, TEXTS)
  theirs = transformers.CLIPTokenizer.from_pretrained(path)
  expected = theirs(TEXTS, padding='max_length', max_length=77, truncation=True)['input_ids']
  np.testing.assert_array_equal(ids, expected)
  assert ids.dtype == np.int32 and ids.shape == (len(TEXTS), 77)
  sks, photo, of = (512 + MERGES.index(merge) for merge in ('sk s</w>', 'phot o</w>', 'o f</w>'))
  letter_a = 256 + ord('a') - ord('!')
  np.testing.assert_array_equal(ids[2, :6], [BOS, letter_a, photo, of, sks, EOS])
  assert (ids[:, 0] == BOS).all() and ids[0, -1] == wanted and (ids[1] == [BOS, EOS] + 75 * [wanted]).all()
  assert ids[5, -1] == EOS and (ids[5, 1:-1] == photo).all()  # 80 do not fit: their end is cut, EOS stays


def test_text_comes_back_and_pickling_keeps_the_tokenizer(tmp_path):
  tokenizer = clip_tokens.load(folder(tmp_path))
  ids = clip_tokens.prompts(tokenizer, ['a photo of sks, café person'])
  assert tokenizer.decode(ids[0]) == 'a photo of sks , café person'
  copy = pickle.loads(pickle.dumps(tokenizer))
  np.testing.assert_array_equal(clip_tokens.prompts(copy, TEXTS), clip_tokens.prompts(tokenizer, TEXTS))
  assert copy.fingerprint() == tokenizer.fingerprint() and tokenizer.vocabulary == EOS + 1


def test_added_tokens_and_folders_of_transformers_5(tmp_path):
  transformers = pytest.importorskip('transformers')
  path = folder(tmp_path / 'old', pad_token='!')
  (path / 'added_tokens.json').write_text(json.dumps({'<me>': EOS + 1}))
  tokenizer = clip_tokens.load(path)
  assert tokenizer.vocabulary == EOS + 2 and tokenizer.encode('photo of <me>')[-1] == EOS + 1
  transformers.CLIPTokenizer.from_pretrained(path).save_pretrained(tmp_path / 'new')
  assert not (tmp_path / 'new' / 'vocab.json').exists()
  new = clip_tokens.load(tmp_path / 'new')
  np.testing.assert_array_equal(clip_tokens.prompts(new, TEXTS), clip_tokens.prompts(tokenizer, TEXTS))
  assert (new.pad, new.encode('<me>')) == (0, [EOS + 1])


def test_a_trained_tokenizer_gives_prompts_too():
  tokenizer = Tokenizer.train('bpe', TEXTS, 300)
  ids = clip_tokens.prompts(tokenizer, ['a photo'], 24)
  assert ids.shape == (1, 24) and ids[0, 0] == tokenizer.bos and ids[0, -1] == tokenizer.pad
  with pytest.raises(UserError, match='prompts need a bos'):
    clip_tokens.prompts(Tokenizer.train('wordpiece', TEXTS, 300), ['a'])


def test_a_folder_that_is_not_one_is_refused(tmp_path):
  with pytest.raises(UserError, match='no such folder'):
    clip_tokens.load(tmp_path / 'nothing')
  with pytest.raises(UserError, match='vocab.json is missing, and there is no tokenizer.json'):
    clip_tokens.load(tmp_path)
  path = folder(tmp_path)
  (path / 'merges.txt').unlink()
  with pytest.raises(UserError, match='merges.txt is missing'):
    clip_tokens.load(path)
  folder(tmp_path)
  (path / 'vocab.json').write_text('{"a": ')
  with pytest.raises(UserError, match='not a CLIP tokenizer that transformers can read'):
    clip_tokens.load(tmp_path)


def test_a_small_one_has_whole_words_and_is_read_by_transformers(tmp_path):
  transformers = pytest.importorskip('transformers')
  said = ['A photo of sks person', 'to', 'toto', "it's a dslr portrait"]
  tokenizer = clip_tokens.small(said)
  ids = clip_tokens.prompts(tokenizer, ['a PHOTO of sks person to toto', 'photon', '心'], 16)
  assert ids[0].tolist() == [tokenizer.bos, *ids[0, 1:8], *[tokenizer.eos] * 8]  # seven words, seven pieces
  assert len(set(ids[0, 1:8])) == 7 and (ids[:, 1] < tokenizer.bos).all()
  assert (ids[1] == tokenizer.eos).argmax() > 2  # a word that it does not know comes in pieces
  assert (ids[2] == tokenizer.eos).argmax() == 4  # down to the three bytes of a sign
  tokenizer.save(tmp_path)
  theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
  np.testing.assert_array_equal(theirs(TEXTS, padding='max_length', max_length=77, truncation=True)['input_ids'],
                                clip_tokens.prompts(tokenizer, TEXTS))  # fmt: skip
  assert clip_tokens.small(reversed(said)).fingerprint() == tokenizer.fingerprint()
