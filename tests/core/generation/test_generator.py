"""The generator's promises that need no reference: independence of the batch, streaming, stop texts, errors, memory."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from core.generation import Decoding, Generator
from core.nn.llama import Llama

VOCABULARY, END, PAD, PLACES = 61, 2, 0, 10
NETWORK = Llama(vocabulary=VOCABULARY, width=32, depth=1, heads=4, kv_heads=2, mlp_dim=56, max_positions=64)
GREEDY = Decoding(max_new_tokens=12)
BEAMS = Decoding(max_new_tokens=12, beams=3, repetition_penalty=1.5, min_new_tokens=4)
DRAWN = Decoding(max_new_tokens=12, sample=True, temperature=1.5, top_k=20)
PENALISED = Decoding(max_new_tokens=12, repetition_penalty=3.0)


def spelled(ids):
  """Every token a letter."""
  return ''.join(chr(ord('A') + token) for token in ids)


GENERATOR = Generator(NETWORK, eos=END, pad=PAD, decode=spelled)


@functools.cache
def variables():
  """Random, with logits far from each other."""
  init = jax.jit(NETWORK.init)(jax.random.key(0), jnp.zeros((1, 1, 32)))['params']
  rng = np.random.default_rng(0)
  noisy = jax.tree.map(lambda leaf: leaf + 0.35 * rng.normal(size=leaf.shape).astype(np.float32), init)
  noisy['head']['kernel'] = noisy['head']['kernel'].at[:, END].multiply(1.8)
  return {'params': noisy}


def prompts(count, places=PLACES, seed=0):
  """Ragged prompts, padded on the right: (ids [count, places], mask)."""
  rng = np.random.default_rng(seed)
  mask = np.arange(places) < rng.integers(1, PLACES + 1, (count, 1))
  return np.where(mask, rng.integers(3, VOCABULARY, (count, places)), PAD), mask


@pytest.mark.parametrize('decoding', [GREEDY, BEAMS, DRAWN], ids=['greedy', 'beams', 'drawn'])
def test_a_sample_has_one_answer_alone_in_any_batch_and_wherever_its_padding_is(decoding):
  ids, mask = prompts(16)
  write = lambda ids, mask: GENERATOR.from_ids(variables(), ids, mask, decoding, rng=jax.random.key(5))  # noqa: E731
  all_of_them = write(ids, mask)
  assert len(set(all_of_them.lengths)) > 3 and len(set(all_of_them.texts)) > 12
  rng = np.random.default_rng(1)
  places = np.argsort(~(rng.random((16, PLACES)) < 0.5), axis=1, kind='stable')  # tokens keep their order
  for batch in (1,) if decoding is DRAWN else (1, 2):
    found = write(ids[:batch], mask[:batch])
    np.testing.assert_array_equal(found.tokens, all_of_them.tokens[:batch])
    np.testing.assert_allclose(found.scores, all_of_them.scores[:batch], rtol=1e-4)
  moved_ids, moved_mask = np.full_like(ids, 7), np.zeros_like(mask)
  for row, (tokens, known) in enumerate(zip(ids, mask)):
    to = np.sort(places[row][: known.sum()])
    moved_ids[row, to], moved_mask[row, to] = tokens[known], True
  assert (moved_mask != mask).any(1).sum() > 8
  moved = write(moved_ids, moved_mask)
  np.testing.assert_array_equal(moved.tokens, all_of_them.tokens)
  np.testing.assert_array_equal(moved.lengths, all_of_them.lengths)


@jax.jit
def log_probabilities(variables, ids, mask):
  """f32 [B, T, V] of what follows each token, without a cache."""
  h = NETWORK.apply(variables, NETWORK.apply(variables, ids, method='embed'), mask=mask)
  return jax.nn.log_softmax(NETWORK.apply(variables, h, method='logits'))


def test_scores_are_the_networks_own_log_probabilities():
  ids, mask = prompts(16)
  generated = GENERATOR.from_ids(variables(), ids, mask, PENALISED)
  new = np.arange(12) < generated.lengths[:, None]
  whole, known = np.concatenate([ids, generated.tokens], axis=1), np.concatenate([mask, new], axis=1)
  log_p = log_probabilities(variables(), whole, known)
  for row in range(16):
    places = np.flatnonzero(known[row])
    steps = [log_p[row, before, whole[row, at]] for before, at in itertools.pairwise(places) if at >= PLACES]
    np.testing.assert_allclose(generated.scores[row], sum(steps), rtol=1e-4)


def test_embeddings_are_prompts_too():
  ids, mask = prompts(16)
  x = NETWORK.apply(variables(), ids, method='embed')
  known = GENERATOR(variables(), x, mask, PENALISED, prompt_ids=ids)
  np.testing.assert_array_equal(known.tokens, GENERATOR.from_ids(variables(), ids, mask, PENALISED).tokens)
  unknown = GENERATOR(variables(), x, mask, PENALISED)  # new tokens only are penalised
  soft = GENERATOR(variables(), x, mask, PENALISED, prompt_ids=np.full_like(ids, -1))
  np.testing.assert_array_equal(unknown.tokens, soft.tokens)
  assert (known.tokens != unknown.tokens).any()


def test_drawn_tokens_follow_the_distribution():
  """4,000 draws of one token, against the softmax of the scores that are left."""
  ids, mask = prompts(1, seed=3)
  decoding = Decoding(max_new_tokens=1, sample=True, temperature=2.0, top_k=5)
  many = GENERATOR.from_ids(
    variables(), ids.repeat(4000, 0), mask.repeat(4000, 0), decoding, rng=jax.random.key(0)
  ).tokens[:, 0]
  logits = np.asarray(log_probabilities(variables(), ids, mask))[0, mask.sum() - 1] / 2.0
  best = np.argsort(logits)[-5:]
  expected = np.exp(logits[best] - logits[best].max())
  expected /= expected.sum()
  counts = np.asarray([(many == token).sum() for token in best])
  assert counts.sum() == 4000
  assert (np.abs(counts / 4000 - expected) < 4 * np.sqrt(expected * (1 - expected) / 4000) + 1e-9).all()


def test_a_key_decides_what_is_drawn_and_the_best_alone_is_greedy():
  ids, mask = prompts(16)
  write = functools.partial(GENERATOR.from_ids, variables(), ids, mask)
  first, again, other = (write(DRAWN, rng=jax.random.key(seed)).tokens for seed in (1, 1, 2))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any(1).sum() > 8
  best = Decoding(max_new_tokens=12, sample=True, top_k=1)
  np.testing.assert_array_equal(write(best, rng=jax.random.key(0)).tokens, write(GREEDY).tokens)


def test_streaming_gives_the_tokens_of_the_loop_as_they_come():
  ids, mask = prompts(16)
  whole, steps = GENERATOR.from_ids(variables(), ids, mask, GREEDY), []
  streamed = GENERATOR.from_ids(variables(), ids, mask, GREEDY, on_token=lambda tokens: steps.append(tokens.copy()))
  np.testing.assert_array_equal(streamed.tokens, whole.tokens)
  np.testing.assert_allclose(streamed.scores, whole.scores, rtol=1e-5)
  assert len(steps) == whole.lengths.max()
  np.testing.assert_array_equal(np.stack(steps, axis=1), whole.tokens[:, : len(steps)])


def test_a_stop_text_may_begin_in_one_token_and_end_in_another():
  ids, mask = prompts(16)
  free = GENERATOR.from_ids(variables(), ids, mask, GREEDY)
  long = [text for text in free.texts if len(text) == 12 and text.find(text[3:6]) == 3]
  stop = long[0][3:6]  # of three tokens
  stopped = GENERATOR.from_ids(variables(), ids, mask, dataclasses.replace(GREEDY, stop=(stop, 'never')))
  cut = [text.find(stop) for text in free.texts]
  assert 0 < sum(at >= 0 for at in cut) < 16
  for row, at in enumerate(cut):
    if at >= 0:
      assert stopped.texts[row] == free.texts[row][:at] and stopped.lengths[row] == at + 3
      assert (stopped.tokens[row][at + 3 :] == PAD).all()
    else:
      np.testing.assert_array_equal(stopped.tokens[row], free.tokens[row])


def test_the_loop_ends_with_the_last_text():
  """Steps are counted through the compiled loop, by a network that tells."""
  calls = []

  class Telling(Llama):
    def logits(self, hidden):
      jax.debug.callback(lambda: calls.append(1))
      return super().logits(hidden)

  fields = {name: getattr(NETWORK, name) for name in ('vocabulary', 'width', 'depth', 'heads', 'kv_heads', 'mlp_dim')}
  telling = Generator(Telling(**fields, max_positions=64), eos=END, pad=PAD)
  ids, mask = prompts(3)
  generated = telling.from_ids(variables(), ids[:1], mask[:1], GREEDY)
  jax.effects_barrier()
  assert len(calls) == generated.lengths[0] < 12


def test_the_search_can_be_traced_into_a_larger_program():
  ids, mask = prompts(2)

  @jax.jit
  def program(variables, ids, mask):
    x = NETWORK.apply(variables, ids, method='embed')
    return GENERATOR.search(variables, x, mask, prompt_ids=ids, decoding=BEAMS)[0]

  np.testing.assert_array_equal(
    program(variables(), ids, mask), GENERATOR.from_ids(variables(), ids, mask, BEAMS).tokens
  )


def test_memory_does_not_grow_with_the_tokens_but_for_the_cache_that_is_there_from_the_start():
  """By the compiler's account: 300 tokens more cost their places in the cache, up to four times each, and no more."""

  def temporaries(count):
    decoding = Decoding(max_new_tokens=count, beams=3)
    wide = NETWORK.clone(max_positions=1024, vocabulary=2000)
    empty = jax.eval_shape(wide.init, jax.random.key(0), jnp.zeros((1, 1, 32)))
    lowered = jax.jit(functools.partial(Generator(wide, eos=END, pad=PAD).search, decoding=decoding)).lower(
      empty, jax.ShapeDtypeStruct((2, 16, 32), jnp.float32), jax.ShapeDtypeStruct((2, 16), bool)
    )
    return lowered.compile().memory_analysis().temp_size_in_bytes

  place = 2 * 3 * 2 * 2 * 8 * 4  # bytes: rows, key and value, 2 heads of 8, f32
  few, many = temporaries(100), temporaries(400)
  assert 0 < many - few < 4 * 300 * place


def refused(match, *, ids=None, mask=None, decoding=GREEDY, **options):
  given = prompts(2)
  with pytest.raises(UserError, match=match):
    GENERATOR.from_ids(
      variables(), given[0] if ids is None else ids, given[1] if mask is None else mask, decoding, **options
    )


def test_what_cannot_be_done_is_refused():
  refused('context of 64 positions', decoding=Decoding(max_new_tokens=55))
  refused('prompt 1 is empty', mask=np.asarray([[True] * PLACES, [False] * PLACES]))
  refused('found embeddings', mask=np.ones((2, PLACES + 1), bool))
  refused('needs a key', decoding=DRAWN)
  refused('cannot be streamed', decoding=BEAMS, on_token=print)
  with pytest.raises(UserError, match='can decode'):
    Generator(NETWORK, eos=END, pad=PAD).from_ids(variables(), *prompts(1), Decoding(stop=('.',), max_new_tokens=2))
  with pytest.raises(UserError, match='use fewer beams'):
    GENERATOR.from_ids(variables(), *prompts(1), Decoding(beams=31, max_new_tokens=2))
