"""Token for token what `transformers.generate` writes, on random models of two layers."""

import dataclasses
import functools

import flax.traverse_util
import jax
import numpy as np
import pytest

from core.generation import Decoding, Generator
from core.nn.llama import Llama
from core.weights import llama as weights

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

VOCABULARY, END, PAD, PLACES, NEW = 61, 2, 0, 12, 20
NETWORK = Llama(vocabulary=VOCABULARY, width=32, depth=2, heads=4, kv_heads=2, mlp_dim=56, max_positions=64)
GENERATOR = Generator(NETWORK, eos=END, pad=PAD, decode=lambda ids: ''.join(chr(ord('A') + token) for token in ids))

LENGTHS = (1, 12, 5, 9, 7)
"""Of the prompts of each of five models; ten prompts each."""

DEVIATIONS = {'head/kernel': 0.5, 'embed/embedding': 1.0}

DECODINGS = {
  'greedy': {},
  'greedy, repetition': {'repetition_penalty': 1.3, 'min_new_tokens': 6},
  'greedy, n-grams': {'no_repeat_ngram': 2},
  'beams': {'beams': 3},
  'r2gengpt': {'beams': 3, 'repetition_penalty': 2.0, 'length_penalty': 2.0, 'min_new_tokens': 8},
  'beams, first ones': {'beams': 4, 'early_stopping': True, 'no_repeat_ngram': 3},
  'beams, never early': {'beams': 3, 'early_stopping': 'never', 'length_penalty': 1.5},
  'beams, short ones': {'beams': 2, 'early_stopping': 'never', 'length_penalty': -1.0},
  'beams, sums': {'beams': 3, 'length_penalty': 0.0, 'repetition_penalty': 0.8},
}


@functools.cache
def model(seed):
  """(transformers' model, our variables): logits far from each other, and an end that comes about once in 20 tokens."""
  config = transformers.LlamaConfig(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, pad_token_id=PAD, bos_token_id=1,
    eos_token_id=END,
  )  # fmt: skip
  shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1, 32), np.float32))['params']
  rng = np.random.default_rng(seed)
  flat = {
    path: rng.uniform(0.5, 1.5, leaf.shape) if leaf.ndim == 1 else rng.normal(0, DEVIATIONS.get(path, 0.35), leaf.shape)
    for path, leaf in flax.traverse_util.flatten_dict(shapes, sep='/').items()
  }
  flat['head/kernel'][:, END] *= 1.8
  theirs = transformers.LlamaForCausalLM(config).eval()
  theirs.load_state_dict({name: torch.tensor(each) for name, each in weights.export(flat, 'transformers').items()})
  flat = {path: each.astype(np.float32) for path, each in flat.items()}
  return theirs, {'params': flax.traverse_util.unflatten_dict(flat, sep='/')}


def prompts(seed):
  """(ids [10, T] without padding, the same with padding at random places [10, PLACES], its mask)."""
  rng = np.random.default_rng(seed)
  bare = rng.integers(3, VOCABULARY, (10, LENGTHS[seed]))
  mask = np.argsort(rng.random((10, PLACES)), axis=1) < LENGTHS[seed]
  padded = np.full((10, PLACES), 17)  # what lies in padding must not matter
  padded[mask] = bare.ravel()
  return bare, padded, mask


def reference(theirs, decoding, **options):
  """(new tokens [B, <= N], scores [B] or None) of transformers."""
  with torch.no_grad():
    out = theirs.generate(
      num_beams=decoding.beams, do_sample=False, max_new_tokens=decoding.max_new_tokens, output_scores=True,
      min_new_tokens=decoding.min_new_tokens, repetition_penalty=decoding.repetition_penalty,
      no_repeat_ngram_size=decoding.no_repeat_ngram, length_penalty=decoding.length_penalty,
      early_stopping=decoding.early_stopping, return_dict_in_generate=True, **options,
    )  # fmt: skip
  given = options['inputs'].shape[1] if 'inputs' in options else 0
  return out.sequences[:, given:].numpy(), out.sequences_scores.numpy() if decoding.beams > 1 else None


def assert_same_texts(generated, tokens, scores):
  """Equal up to the end; returns the number of texts that came to an end of their own."""
  ends = 0
  for row, length, expected in zip(generated.tokens, generated.lengths, tokens):
    found = np.flatnonzero(expected == END)
    expected = expected[: found[0] + 1] if len(found) else expected
    assert row[:length].tolist() == expected.tolist()
    assert set(row[length:]) <= {PAD}
    ends += len(found) > 0
  if scores is not None:
    np.testing.assert_allclose(generated.scores, scores, rtol=1e-4)
  return ends


@pytest.mark.parametrize('name', DECODINGS)
def test_fifty_random_prompts(name):
  decoding = Decoding(max_new_tokens=NEW, **DECODINGS[name])
  ends = 0
  for seed in range(5):
    theirs, variables = model(seed)
    bare, padded, mask = prompts(seed)
    expected = reference(theirs, decoding, inputs=torch.tensor(bare), attention_mask=torch.ones(bare.shape))
    ends += assert_same_texts(GENERATOR.from_ids(variables, padded, mask, decoding), *expected)
  assert 5 <= ends < 50


@pytest.mark.parametrize('name', ['greedy, repetition', 'r2gengpt'])
def test_prompts_that_are_embeddings(name):
  """The penalty then sees new tokens only."""
  decoding = Decoding(max_new_tokens=NEW, **DECODINGS[name])
  theirs, variables = model(1)
  x = np.random.default_rng(0).normal(size=(10, PLACES, 32)).astype(np.float32)
  expected = reference(
    theirs, decoding, inputs_embeds=torch.tensor(x), attention_mask=torch.ones(x.shape[:2], dtype=torch.int64)
  )
  assert_same_texts(GENERATOR(variables, x, np.ones(x.shape[:2], bool), decoding), *expected)


def test_several_ends():
  ends = [END, 5, 40]
  for decoding in (Decoding(max_new_tokens=NEW), Decoding(max_new_tokens=NEW, beams=2, min_new_tokens=3)):
    theirs, variables = model(3)
    bare, padded, mask = prompts(3)
    tokens, _ = reference(
      theirs, decoding, inputs=torch.tensor(bare), attention_mask=torch.ones(bare.shape), eos_token_id=ends
    )
    generated = Generator(NETWORK, eos=ends, pad=PAD).from_ids(variables, padded, mask, decoding)
    for row, length, expected in zip(generated.tokens, generated.lengths, tokens):
      assert row[:length].tolist() == expected[:length].tolist() and set(expected[length:]) <= {PAD, END}
      assert length == NEW or row[length - 1] in ends


@pytest.mark.parametrize('beams', [1, 3])
def test_texts_that_end_at_a_stop_text(beams):
  """In a beam search a stop text finishes a beam, and others may still win."""
  theirs, variables = model(1)
  bare, padded, mask = prompts(1)
  plain = Decoding(max_new_tokens=NEW, beams=beams, min_new_tokens=8)
  texts = GENERATOR.from_ids(variables, padded, mask, plain).texts
  stop = tuple(text[4:6] for text in texts[:5])
  decoding = dataclasses.replace(plain, stop=stop)

  def stopped(ids, _):
    held = [GENERATOR.decode(row[PLACES:].tolist()) for row in ids]
    return torch.tensor([any(end in text for end in stop) for text in held])

  expected = reference(
    theirs, plain, inputs=torch.tensor(bare), attention_mask=torch.ones(bare.shape), stopping_criteria=[stopped]
  )
  generated = GENERATOR.from_ids(variables, padded, mask, decoding)
  for row, length, tokens in zip(generated.tokens, generated.lengths, expected[0]):
    assert row[:length].tolist() == tokens[:length].tolist() and set(tokens[length:]) <= {PAD, END}
  if beams > 1:
    np.testing.assert_allclose(generated.scores, expected[1], rtol=1e-4)
  assert all(end not in text for text in generated.texts for end in stop)
  assert sum(shorter != text for shorter, text in zip(generated.texts, texts)) > 3
