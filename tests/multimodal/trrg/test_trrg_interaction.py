"""What the interaction promises for any number of clues, none included (spec 9b, 1 to 5)."""

import functools

import flax.traverse_util
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from core.errors import UserError
from multimodal.trrg import interaction

PLACES, VISUAL, TEXT, WORDS, CLUES = 5, 7, 6, 3, 4
MODULE = interaction.Interaction(width=8, heads=2, layers=2, dropout=0.5)

seeds = st.integers(0, 2**16)
masks = st.lists(st.booleans(), min_size=CLUES, max_size=CLUES)
everywhere = hypothesis.settings(deadline=None, max_examples=40)


def inputs(seed, clues=CLUES, mask=None, batch=1):
  """(V, its mask, sentence, words, their mask, clue mask, confidence), what is given being random."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  known = np.ones((batch, clues), bool) if mask is None else np.broadcast_to(np.array(mask, bool), (batch, clues))
  word_mask = np.arange(WORDS) <= rng.integers(0, WORDS, (batch, clues, 1))
  return [
    normal(batch, PLACES, VISUAL), np.ones((batch, PLACES), bool), normal(batch, clues, TEXT),
    normal(batch, clues, WORDS, TEXT), word_mask, known, rng.random((batch, clues)).astype(np.float32),
  ]  # fmt: skip


@functools.cache
def params(gates=0.7):
  """Random weights, larger than the initial ones; all gates at one value."""
  shapes = jax.eval_shape(MODULE.init, jax.random.key(0), *inputs(0))['params']
  rng = np.random.default_rng(0)
  flat = {
    path: np.full(leaf.shape, gates, np.float32) if path[-1].startswith('gate') else
    (0.4 * rng.normal(size=leaf.shape) + (path[-1] == 'scale')).astype(np.float32)
    for path, leaf in flax.traverse_util.flatten_dict(shapes).items()
  }  # fmt: skip
  return flax.traverse_util.unflatten_dict(flat)


@functools.partial(jax.jit, static_argnames='evidence')
def run(weights, arrays, evidence=False):
  return MODULE.apply({'params': weights}, *arrays, evidence=evidence)


def moved(arrays, order):
  """The same clues in other slots."""
  return [*arrays[:2], *(each[:, order] for each in arrays[2:])]


@everywhere
@hypothesis.given(seed=seeds, mask=masks, order=st.permutations(range(CLUES)))
def test_the_order_of_the_clues_moves_their_slots_and_nothing_else(seed, mask, order):
  arrays = inputs(seed, mask=mask)
  visual, slots, seen = run(params(), arrays, evidence=True)
  other_visual, other_slots, other_seen = run(params(), moved(arrays, np.array(order)), evidence=True)
  np.testing.assert_allclose(other_visual, visual, atol=1e-5)
  np.testing.assert_allclose(other_slots, slots[:, np.array(order)], atol=1e-5)
  np.testing.assert_allclose(other_seen, seen[:, np.array(order)], atol=1e-5)


@everywhere
@hypothesis.given(seed=seeds, mask=masks)
def test_empty_slots_at_the_end_change_nothing_and_are_zero(seed, mask):
  arrays, more = inputs(seed, mask=mask), inputs(seed + 1, clues=2, mask=[False] * 2)
  padded = [*arrays[:2], *(np.concatenate(pair, 1) for pair in zip(arrays[2:], more[2:], strict=True))]
  visual, slots, _ = run(params(), arrays)
  other_visual, other_slots, _ = run(params(), padded)
  np.testing.assert_allclose(other_visual, visual, atol=1e-5)
  np.testing.assert_allclose(other_slots[:, :CLUES], slots, atol=1e-5)
  assert not np.asarray(other_slots[:, CLUES:]).any() and not np.asarray(slots)[:, ~np.array(mask)].any()


@everywhere
@hypothesis.given(seed=seeds, mask=masks)
def test_with_gates_at_zero_the_film_is_untouched_whatever_the_clues(seed, mask):
  arrays = inputs(seed, mask=mask)
  assert np.array_equal(run(params(gates=0.0), arrays)[0], arrays[0])


@everywhere
@hypothesis.given(seed=seeds)
def test_no_clue_at_all_is_well_defined(seed):
  """Either no slot is filled or there is none."""
  empty, none = inputs(seed, mask=[False] * CLUES), inputs(seed, clues=0)
  none[0] = empty[0]
  visual, slots, seen = run(params(), empty, evidence=True)
  other_visual, other_slots, other_seen = run(params(), none, evidence=True)
  assert np.isfinite(visual).all() and not np.asarray(slots).any() and not np.asarray(seen).any()
  assert other_slots.shape == (1, 0, MODULE.width) and other_seen.shape == (1, 0, PLACES)
  np.testing.assert_allclose(other_visual, visual, atol=1e-5)
  assert np.abs(visual - empty[0]).max() > 1e-3  # the film still goes through its own layers


@everywhere
@hypothesis.given(seed=seeds, slot=st.integers(0, CLUES - 1))
def test_nothing_flows_out_of_an_empty_slot(seed, slot):
  mask = np.arange(CLUES) != slot
  gradients = gradient(params(), inputs(seed, mask=mask))
  for each in gradients:
    each = np.asarray(each)
    assert not each[:, slot].any() and np.isfinite(each).all()
    assert np.abs(each[:, mask]).max() > 0


@jax.jit
def gradient(weights, arrays):
  """Of a mixture of all outputs, with respect to sentences, words and confidence."""

  def mixture(sentence, words, confidence):
    visual, slots, _ = MODULE.apply({'params': weights}, *arrays[:2], sentence, words, *arrays[4:6], confidence)
    return jnp.sum(jnp.sin(3 * visual)) + jnp.sum(jnp.sin(3 * slots))

  return jax.grad(mixture, argnums=(0, 1, 2))(arrays[2], arrays[3], arrays[6])


@everywhere
@hypothesis.given(seed=seeds, slot=st.integers(0, CLUES - 1))
def test_another_clue_changes_what_is_seen_and_its_neighbours(seed, slot):
  arrays, other = inputs(seed), inputs(seed + 1)
  changed = [*arrays[:2], *(each.copy() for each in arrays[2:])]
  changed[2][:, slot] = other[2][:, slot]
  (visual, slots, _), (new_visual, new_slots, _) = run(params(), arrays), run(params(), changed)
  assert np.abs(new_visual - visual).max() > 1e-5
  assert (np.abs(np.asarray(new_slots - slots)).max((0, 2)) > 1e-6).all()  # every clue reads every other


def test_words_and_confidence_are_read():
  arrays = inputs(0)
  visual, slots, _ = run(params(), arrays)
  last = np.argmin(arrays[4][0].all(-1))  # a clue with a place that holds no word
  assert not arrays[4][0, last].all()
  words = [each.copy() for each in arrays]
  words[3][0, last, ~arrays[4][0, last]] += 1.0
  assert np.array_equal(run(params(), words)[0], visual)
  words[3][0, last, 0] += 1.0
  assert np.abs(run(params(), words)[0] - visual).max() > 1e-5
  sure = [each.copy() for each in arrays]
  sure[6][0, 1] = 1 - sure[6][0, 1]
  assert np.abs(run(params(), sure)[1] - slots).max() > 1e-4


def test_what_the_clues_look_at_sums_to_one_and_leaves_out_views_that_are_not_there():
  arrays = inputs(3, mask=[True, False, True, True], batch=2)
  arrays[1][1, 3:] = False
  visual, slots, seen = map(np.asarray, run(params(), arrays, evidence=True))
  np.testing.assert_allclose(seen.sum(-1), arrays[5], atol=1e-6)
  assert not seen[1, :, 3:].any() and seen[0, 0].min() > 0
  other = [each.copy() for each in arrays]
  other[0][1, 3:] += 1.0
  new_visual, new_slots, _ = map(np.asarray, run(params(), other))
  np.testing.assert_allclose(new_slots, slots, atol=1e-6)
  np.testing.assert_allclose(new_visual[:, :3], visual[:, :3], atol=1e-6)


def test_it_starts_as_the_network_without_clues_and_learns_to_leave():
  shapes = jax.eval_shape(MODULE.init, jax.random.key(0), *inputs(0))['params']
  chosen = [(f'layer_{i}', gate) for i in (0, 1) for gate in ('gate_film', 'gate_mlp')]
  fresh = jax.jit(lambda key: {'/'.join(path): MODULE.init(key, *inputs(0))['params'][path[0]][path[1]]
                               for path in [*chosen, ('fused', 'kernel')]})(jax.random.key(1))  # fmt: skip
  back = fresh.pop('fused/kernel')
  assert not any(fresh.values()) and 0.01 < np.std(back) < 0.04
  assert set(shapes['fused']) == {'kernel'}  # no bias, which would move V
  arrays = inputs(0)
  slope = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(3 * MODULE.apply({'params': p}, *arrays)[0]))))(params(gates=0.0))
  assert all(abs(float(slope[layer][gate])) > 1e-6 for layer, gate in chosen)


def test_without_layers_film_and_clues_do_not_meet():
  module = interaction.Interaction(width=8, heads=2, layers=0)
  arrays, other = inputs(0), inputs(1)
  weights = module.init(jax.random.key(0), *arrays)
  visual, slots, seen = module.apply(weights, *arrays, evidence=True)
  assert np.array_equal(visual, arrays[0]) and seen is None
  assert np.array_equal(module.apply(weights, other[0], *arrays[1:])[1], slots)


def test_dropout_acts_in_training_alone_and_follows_its_key():
  arrays = inputs(0)
  train = jax.jit(
    lambda seed: MODULE.apply({'params': params()}, *arrays, train=True, rngs={'dropout': jax.random.key(seed)})[1]
  )
  assert np.array_equal(train(0), train(0)) and np.abs(train(0) - train(1)).max() > 1e-3
  assert np.array_equal(run(params(), arrays)[1], run(params(), arrays)[1])


def test_a_layer_has_twenty_squares_of_its_width():
  module = interaction.Interaction(width=768, heads=12)
  arrays = jax.eval_shape(lambda: [jnp.zeros(each.shape, each.dtype) for each in inputs(0)])
  flat = flax.traverse_util.flatten_dict(jax.eval_shape(module.init, jax.random.key(0), *arrays)['params'], sep='/')
  squares = sum(np.prod(leaf.shape) for path, leaf in flat.items() if path.startswith('layer_') and leaf.ndim == 2)
  assert squares == pytest.approx(2 * 20 * 768**2, rel=1e-4)  # 23.6 million


def test_heads_that_do_not_divide_the_width_are_named():
  with pytest.raises(UserError, match='3 attention heads do not divide the width 8'):
    interaction.Interaction(width=8, heads=3).init(jax.random.key(0), *inputs(0))
