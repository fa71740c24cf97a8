"""The prompt: what stands in it, and that empty places might as well not be there (spec 9b, 6)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_reporter import BOS, TEMPLATE, batch, built, encode, felt

from core.errors import UserError
from multimodal.trrg import injection
from multimodal.trrg.observations import NAMES

LISTS = [[3, 5, 12], [], [0], [7, 2]]


def ids_as_embeddings(ids):
  """An 'embedding' that shows which token it is of."""
  return jnp.asarray(ids)[..., None].astype(jnp.float32)


def readable(lists, inject=True, visual=2):
  """The filled places of the prompts, token by token; films are -1, soft tokens -100 - clue."""
  clue_ids = batch(lists)['clue_ids']
  count = len(lists)
  slots = (-100.0 - clue_ids)[..., None]
  x, mask = injection.sequence(
    TEMPLATE, ids_as_embeddings, -jnp.ones((count, visual, 1)), jnp.ones((count, visual), bool), slots, clue_ids,
    inject=inject,
  )  # fmt: skip
  assert mask[:, -1].all()
  return [np.asarray(row)[np.asarray(known), 0].astype(int).tolist() for row, known in zip(x, mask)]


def test_a_prompt_reads_as_the_text_that_it_is():
  start, end = [BOS, *encode('Human: <Img>'), -1, -1], encode('</Clue> Describe this film . Assistant:')
  for row, clues in zip(readable(LISTS), LISTS, strict=True):
    said = [token for k in clues for token in (-100 - k, *encode(NAMES[k]), *encode(','))]
    assert row == [*start, *encode('</Img> <Clue>'), *(said or encode('no abnormal clue')), *end]


def test_without_injection_it_is_the_prompt_of_r2gengpt():
  plain = [BOS, *encode('Human: <Img>'), -1, -1, *encode('</Img> Describe this film . Assistant:')]
  assert readable(LISTS, inject=False) == [plain] * len(LISTS)
  pieces = []
  injection.template(lambda text: pieces.append(text) or [1])
  assert (
    '</Img> Generate a comprehensive and detailed diagnosis report for this chest xray image. \nAssistant:' in pieces
  )


def test_the_number_of_tokens_is_that_of_the_pieces():
  ours, variables = built()
  lists = [[1, 2, 3, 4], [], [12]]
  prompt = jax.jit(ours.prompt)(variables, batch(lists))
  fixed = 1 + len(TEMPLATE.before) + 5 + len(TEMPLATE.between) + len(TEMPLATE.after)  # 4 patches and a class token
  named = TEMPLATE.name_mask.sum(1)
  expected = [fixed + sum(1 + named[k] + len(TEMPLATE.comma) for k in clues) for clues in lists]
  expected[1] += len(TEMPLATE.none)
  assert prompt.mask.sum(1).tolist() == expected


def test_packing_to_the_left_gives_the_same_states():
  """Positions count what is there: holes in the prompt are no different from a shorter prompt."""
  ours, variables = built()
  prompt = jax.jit(ours.prompt)(variables, batch([[5, 1], [], [7]]))
  language = {'params': variables['params']['language']}
  run = jax.jit(ours.language.apply)
  states = run(language, prompt.embeddings, mask=prompt.mask)
  packed, known = np.zeros_like(prompt.embeddings), np.zeros_like(prompt.mask)
  for i, mask in enumerate(np.asarray(prompt.mask)):
    packed[i, : mask.sum()], known[i, : mask.sum()] = prompt.embeddings[i][mask], True
  left = run(language, packed, mask=known)
  for i, mask in enumerate(np.asarray(prompt.mask)):
    np.testing.assert_allclose(left[i, : mask.sum()], states[i][mask], atol=1e-5)


def test_soft_tokens_are_normalised_projections():
  module = injection.Injection(width=6)
  rng = np.random.default_rng(0)
  visual, slots = rng.normal(size=(2, 3, 4)).astype(np.float32), rng.normal(size=(2, 2, 5)).astype(np.float32)
  params = felt(module.init, visual, slots)
  for found, x, name in zip(module.apply(params, visual, slots), (visual, slots), ('visual', 'clues'), strict=True):
    linear, norm = params['params'][name], params['params'][f'norm_{name}']
    y = x @ linear['kernel'] + linear['bias']
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(found, y * norm['scale'] + norm['bias'], atol=1e-5)


def test_a_tokenizer_without_a_first_token_has_none_in_the_prompt():
  assert injection.template(encode).start == tuple(encode('Human: <Img>'))
  assert injection.template(encode, bos=7).start[0] == 7


def test_a_piece_that_the_tokenizer_loses_is_named():
  with pytest.raises(UserError, match="makes nothing of ','"):
    injection.template(lambda text: [] if text == ',' else [1])
