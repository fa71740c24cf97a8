"""Caches that go on from another: the same numbers as a cache of one's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from core.errors import UserError
from core.nn import transformer
from core.nn.llama import Llama

MODEL = Llama(vocabulary=5, width=24, depth=2, heads=4, kv_heads=2, mlp_dim=20, max_positions=16)
RNG = np.random.default_rng(0)
PROMPT = RNG.normal(size=(2, 5, 24)).astype(np.float32)
KNOWN = np.asarray([[True, False, True, True, True], [True, True, True, False, False]])
NEW = RNG.normal(size=(6, 3, 24)).astype(np.float32)


@functools.cache
def variables():
  params = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 1, 24)))['params']
  return {'params': jax.tree.map(lambda leaf: leaf + 0.2 * RNG.normal(size=leaf.shape).astype(np.float32), params)}


def step(model):
  return jax.jit(lambda variables, x, cache, mask=None: model.apply(variables, x, mask=mask, cache=cache))


def expected():
  """h of the new positions, every row after a prompt of its own, in one pass."""
  x = np.concatenate([PROMPT.repeat(3, 0), NEW], axis=1)
  mask = np.concatenate([KNOWN.repeat(3, 0), np.ones((6, 3), bool)], axis=1)
  return jax.jit(lambda v, x, mask: MODEL.apply(v, x, mask=mask))(variables(), x, mask)[:, 5:]


@pytest.mark.parametrize('scan', [False, True])
def test_rows_that_share_a_prompt_see_it_as_their_own(scan):
  model, own = MODEL.clone(scan=scan), variables()
  if scan:
    flat = transformer.stack_blocks(traverse_util.flatten_dict(own['params'], sep='/'))
    own = {'params': traverse_util.unflatten_dict(flat, sep='/')}
  run = step(model)
  _, cache = run(own, PROMPT, model.empty_cache(2, 5), KNOWN)
  branch = cache.branch(3, 4)
  first, branch = run(own, NEW[:, :1], branch)
  rest, branch = run(own, NEW[:, 1:], branch)
  np.testing.assert_allclose(jnp.concatenate([first, rest], axis=1), expected(), atol=1e-5)
  assert int(branch.length) == 3 and branch.places == 4 and branch.shared.places == 5
  overflown, _ = run(own, NEW[:, 1:], branch)
  assert np.isnan(overflown).all()


def test_a_branch_may_be_branched_again():
  run = step(MODEL)
  _, cache = run(variables(), PROMPT, MODEL.empty_cache(2, 5), KNOWN)
  _, cache = run(variables(), NEW[::3, :1], cache.branch(1, 1))
  h, _ = run(variables(), NEW[:, 1:], cache.branch(3, 2))
  x = np.concatenate([PROMPT.repeat(3, 0), NEW[::3, :1].repeat(3, 0), NEW[:, 1:]], axis=1)
  mask = np.concatenate([KNOWN.repeat(3, 0), np.ones((6, 3), bool)], axis=1)
  whole = jax.jit(lambda v, x, mask: MODEL.apply(v, x, mask=mask))(variables(), x, mask)
  np.testing.assert_allclose(h, whole[:, 6:], atol=1e-5)


def test_rows_of_a_branch_change_places_and_keep_their_prompt():
  run = step(MODEL)
  _, cache = run(variables(), PROMPT, MODEL.empty_cache(2, 5), KNOWN)
  _, branch = run(variables(), NEW[:, :2], cache.branch(3, 4))
  rows = jnp.asarray([2, 0, 0, 3, 5, 4])
  h, _ = run(variables(), NEW[rows, 2:], branch.take(rows))
  np.testing.assert_allclose(h, expected()[rows, 2:], atol=1e-5)


def test_what_is_shared_counts_for_the_context():
  _, cache = step(MODEL)(variables(), PROMPT, MODEL.empty_cache(2, 5), KNOWN)
  with pytest.raises(UserError, match='17 places, the context of the language model is 16'):
    MODEL.apply(variables(), NEW, cache=cache.branch(3, 12))
