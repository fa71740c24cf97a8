"""The tokenizers: special tokens stay the caller's, trained ones invert, public formats agree with their libraries."""

import json
import pickle

import hypothesis
import numpy as np
import pytest
import tokenizers
from hypothesis import strategies as st

from core.data.text import Tokenizer
from core.errors import UserError

TEXTS = [
  'the heart is normal in size . the lungs are clear .',
  'there is a small left pleural effusion . no pneumothorax is seen .',
  'mild cardiomegaly with pulmonary edema, 1.5 cm nodule (XXXX) in the right upper lobe .',
  'no focal consolidation, pneumothorax, or pleural effusion identified .',
  'bibasilar atelectasis . degenerative changes of the thoracic spine .',
] * 4


@pytest.fixture(scope='module')
def bpe():
  return Tokenizer.train('bpe', TEXTS, 340)


@pytest.fixture(scope='module')
def wordpiece():
  return Tokenizer.train('wordpiece', TEXTS, 200)


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(text=st.text(max_size=60))
def test_bpe_gives_every_text_back(bpe, text):
  hypothesis.assume(not any(token in text for token in bpe.special.values()))
  assert bpe.decode(bpe.encode(text)) == text


def test_bpe_has_one_token_for_a_word_wherever_it_stands(bpe):
  assert bpe.encode('heart the')[-1] == bpe.encode('the heart')[0]


def test_special_tokens_of_the_trained(bpe, wordpiece):
  assert (bpe.pad, bpe.bos, bpe.eos, bpe.cls) == (0, 1, 2, None)
  assert (wordpiece.pad, wordpiece.unk, wordpiece.cls, wordpiece.sep, wordpiece.bos) == (0, 1, 2, 3, None)
  assert bpe.vocabulary <= 340 and wordpiece.vocabulary <= 200
  assert bpe.decode([bpe.bos, *bpe.encode('no edema .'), bpe.eos, bpe.pad, bpe.vocabulary + 5]) == 'no edema .'


def test_wordpiece_lowers_and_knows_what_it_does_not_know(wordpiece):
  assert wordpiece.encode('The HEART') == wordpiece.encode('the heart')
  assert wordpiece.decode(wordpiece.encode('The heart is normal .')) == 'the heart is normal .'
  assert wordpiece.encode('心') == [wordpiece.unk]


@pytest.mark.parametrize('kind', ['bpe', 'wordpiece'])
def test_training_is_deterministic_and_text_carries_everything(kind):
  a, b = (Tokenizer.train(kind, TEXTS, 300) for _ in range(2))
  assert a.fingerprint() == b.fingerprint()
  again = Tokenizer.from_json(a.to_json())
  assert again.fingerprint() == a.fingerprint() and again.special == a.special
  copy = pickle.loads(pickle.dumps(a))
  assert copy.fingerprint() == a.fingerprint() and copy.encode(TEXTS[2]) == a.encode(TEXTS[2])
  assert Tokenizer.train(kind, TEXTS[:2], 300).fingerprint() != a.fingerprint()


def test_the_fingerprint_sees_the_special_tokens(bpe):
  other = Tokenizer.from_json(bpe.to_json().replace('"eos": "</s>"', '"eos": "<s>"'))
  assert other.eos == bpe.bos and other.fingerprint() != bpe.fingerprint()


def test_batch_puts_padding_and_special_tokens_where_asked(bpe):
  texts = ['no edema .', '', TEXTS[2]]
  right, right_mask = bpe.batch(texts, 12, start=(bpe.bos,), end=(bpe.eos,))
  left, left_mask = bpe.batch(texts, 12, start=(bpe.bos,), end=(bpe.eos,), side='left')
  assert right.dtype == np.int32 and right_mask.dtype == bool and right.shape == right_mask.shape == (3, 12)
  for row, text in enumerate(texts):
    whole = [bpe.bos, *bpe.encode(text)[:10], bpe.eos]
    assert right[row][right_mask[row]].tolist() == left[row][left_mask[row]].tolist() == whole
    assert right_mask[row, : len(whole)].all() and left_mask[row, -len(whole) :].all()
    assert (right[row][~right_mask[row]] == bpe.pad).all()


def test_batch_refuses_what_cannot_be(bpe):
  with pytest.raises(UserError, match='text 1 has .* tokens, and 4 fit'):
    bpe.batch(['', TEXTS[0]], 4, truncate=False)
  with pytest.raises(UserError, match='no room for the 3'):
    bpe.batch(['a'], 2, start=(1, 1), end=(2,))
  with pytest.raises(UserError, match="'middle'"):
    bpe.batch(['a'], 2, side='middle')


def test_check_refuses_the_table_of_another_vocabulary(bpe):
  bpe.check(bpe.vocabulary)
  bpe.check(bpe.vocabulary + 60)
  with pytest.raises(UserError, match=f'ids up to {bpe.vocabulary - 1}, the decoder embeds {bpe.vocabulary - 1}'):
    bpe.check(bpe.vocabulary - 1, 'the decoder')
  with pytest.raises(UserError, match='most rows would never be used'):
    bpe.check(32000)


def test_saved_folder_loads_here_and_in_transformers(tmp_path, wordpiece):
  wordpiece.save(tmp_path)
  again = Tokenizer.load(tmp_path)
  assert again.special == wordpiece.special and again.encode(TEXTS[1]) == wordpiece.encode(TEXTS[1])
  transformers = pytest.importorskip('transformers')
  theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
  assert theirs(TEXTS[1], add_special_tokens=False)['input_ids'] == wordpiece.encode(TEXTS[1])
  assert (theirs.cls_token_id, theirs.pad_token_id) == (wordpiece.cls, wordpiece.pad)


def test_what_a_file_says_of_padding_truncation_and_templates_is_not_done(tmp_path, bpe):
  library = tokenizers.Tokenizer.from_str(json.dumps(json.loads(bpe.to_json())['tokenizer']))
  library.enable_padding(length=50)
  library.enable_truncation(3)
  library.post_processor = tokenizers.processors.TemplateProcessing(
    single='<s> $A </s>', special_tokens=[('<s>', 1), ('</s>', 2)]
  )
  library.save(str(tmp_path / 'tokenizer.json'))
  loaded = Tokenizer.load(tmp_path / 'tokenizer.json')
  assert loaded.encode(TEXTS[0]) == bpe.encode(TEXTS[0])
  assert (loaded.bos, loaded.eos, loaded.pad) == (1, 2, 0)  # by their usual names


def test_roles_come_from_the_config_beside_the_file(tmp_path, bpe):
  bpe.save(tmp_path)
  config = {'eos_token': {'content': '<s>'}, 'pad_token': '<nowhere>', 'bos_token': None}
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  loaded = Tokenizer.load(tmp_path)
  assert (loaded.bos, loaded.eos, loaded.pad) == (1, 1, 0)


def test_vocabulary_of_bert_by_its_text_file(tmp_path, wordpiece):
  library = tokenizers.Tokenizer.from_str(json.dumps(json.loads(wordpiece.to_json())['tokenizer']))
  tokens = sorted(library.get_vocab(), key=library.get_vocab().get)
  (tmp_path / 'vocab.txt').write_text('\n'.join(tokens) + '\n', encoding='utf-8')
  loaded = Tokenizer.load(tmp_path)
  assert [loaded.encode(text) for text in TEXTS] == [wordpiece.encode(text) for text in TEXTS]
  assert loaded.special == wordpiece.special
  (tmp_path / 'tokenizer_config.json').write_text('{"do_lower_case": false}')
  assert Tokenizer.load(tmp_path).encode('Heart') == [loaded.unk]
  (tmp_path / 'vocab.txt').write_text('a\nb\n')
  with pytest.raises(UserError, match=r'no \[UNK\]'):
    Tokenizer.load(tmp_path)


ODD = [
  '',
  ' ',
  '  two  spaces ',
  'XXXX',
  'unseen: zebra quartz',
  'café 心 \U0001f600',
  'a\tb',
  '1.5 cm',
  'No Edema',
  'ﬁne',
]


@pytest.mark.parametrize(
  ('kind', 'options'),
  [
    ('bpe', {'byte_fallback': True, 'normalization_rule_name': 'identity', 'remove_extra_whitespaces': False}),
    ('bpe', {}),
    ('unigram', {'add_dummy_prefix': False}),
    ('unigram', {'byte_fallback': True, 'user_defined_symbols': ['<img>']}),
  ],
)
def test_sentencepiece_files_give_the_ids_and_texts_of_sentencepiece(tmp_path, kind, options):
  sentencepiece = pytest.importorskip('sentencepiece')
  size = 330 if options.get('byte_fallback') else 70
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXTS), model_prefix=str(tmp_path / 'tokenizer'), vocab_size=size, model_type=kind,
    hard_vocab_limit=False, minloglevel=2, **options,
  )  # fmt: skip
  theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / 'tokenizer.model'))
  ours = Tokenizer.load(tmp_path)
  for text in [*TEXTS[:5], *ODD]:
    ids = theirs.encode(text)
    assert ours.encode(text) == ids, text
    if theirs.unk_id() not in ids:
      assert ours.decode(ids) == theirs.decode(ids)
  assert (ours.bos, ours.eos, ours.unk, ours.vocabulary) == (1, 2, 0, theirs.get_piece_size())


def test_errors_name_what_is_there_and_what_was_expected(tmp_path):
  with pytest.raises(UserError, match='holds no tokenizer'):
    Tokenizer.load(tmp_path)
  with pytest.raises(UserError, match='no such file or folder'):
    Tokenizer.load(tmp_path / 'absent' / 'tokenizer.json')
  (tmp_path / 'tokenizer.json').write_text('<html>')
  with pytest.raises(UserError, match='not the JSON of a tokenizer'):
    Tokenizer.load(tmp_path)
  (tmp_path / 'tokenizer.model').write_bytes(b'\xff' * 40)
  with pytest.raises(UserError, match='not a SentencePiece model'):
    Tokenizer.load(tmp_path / 'tokenizer.model')
  with pytest.raises(UserError, match="Did you mean 'wordpiece'"):
    Tokenizer.train('wordpeice', TEXTS, 100)
  with pytest.raises(UserError, match='at least 259'):
    Tokenizer.train('bpe', TEXTS, 100)
  with pytest.raises(UserError, match='for their single letters'):
    Tokenizer.train('wordpiece', TEXTS, 20)
