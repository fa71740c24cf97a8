"""Policies: what is drawn, how often labels flip, what a seed parses to, and that both routes through a batch agree."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fas.fas_aug import assets, operators, policy, traditional

GOLDEN = pathlib.Path(__file__).with_name('golden_policy.json')
DRAWS = 20_000


def parse(seed: int) -> dict:
  """Policies of two domains, and what eight live images of each meet."""
  policies = jax.vmap(policy.sample)(jax.random.split(jax.random.key(seed), 2))
  domain = np.arange(16) % 2
  keys = jax.random.split(jax.random.key(seed + 1), 16)
  ops, levels, _ = jax.vmap(policy._parse, (0, None, 0))(keys, policies, domain)
  return {
    'policies': policy.describe(policies),
    'ops': ops.tolist(),
    'levels': levels.tolist(),
    'flipped': policy._flipped(ops, levels, 'fas').tolist(),
  }


def test_golden_parse():
  """A seed means the same policies, choices and flips as on the day this file was written.

  Renewed by `test_policy.GOLDEN.write_text(json.dumps(test_policy.parse(666)))`.
  """
  assert parse(666) == json.loads(GOLDEN.read_text())


def test_bags():
  assert policy.BAGS['fas'] == operators.NAMES
  assert policy.BAGS['trad'] == traditional.NAMES
  assert len(policy.BAGS['mix']) == 23
  with pytest.raises(ValueError, match="Did you mean 'trad'"):
    policy.sample(jax.random.key(0), bag='trade')


@pytest.mark.parametrize('bag', policy.BAGS)
def test_operators_and_levels_are_uniform(bag):
  drawn = jax.vmap(lambda k: policy.sample(k, bag=bag))(jax.random.split(jax.random.key(0), 2000))
  assert drawn.ops.shape == drawn.levels.shape == (2000, 5, 2)
  for values, count in ((drawn.ops, len(policy.BAGS[bag])), (drawn.levels, operators.LEVELS)):
    share = np.bincount(np.ravel(values), minlength=count) / values.size
    assert len(share) == count
    np.testing.assert_allclose(share, 1 / count, atol=0.015)


@pytest.fixture(scope='module')
def met():
  """Operators and levels that 20k images of fresh policies meet."""
  keys = jax.random.split(jax.random.key(0), (DRAWS, 2))

  @jax.jit
  @jax.vmap
  def draw(keys):
    return policy._parse(keys[1], policy.sample(keys[0]), None)[:2]

  return draw(keys)


def test_flip_statistics(met):
  ops, levels = met
  flipped = np.asarray(policy._flipped(ops, levels, 'fas'))
  assert abs(flipped.mean() - (1 - (7 / 16) ** 2)) < 0.01
  assert abs(np.all(levels == 0, axis=1).mean() - 0.01) < 0.003
  kept = ~np.isin(np.asarray(ops), [1, 2, 3, 4, 5]).any(1)
  assert kept.sum() > 1000
  assert not flipped[kept].any()
  assert flipped[np.isin(np.asarray(ops), [1, 2, 3, 4, 5]).all(1) & np.all(levels > 0, axis=1)].all()


def test_sub_policies_are_chosen_evenly():
  single = policy.Policy(ops=jnp.arange(5)[:, None].repeat(2, 1), levels=jnp.ones((5, 2), int))
  ops, _, _ = jax.vmap(policy._parse, (0, None, None))(jax.random.split(jax.random.key(0), 4000), single, None)
  np.testing.assert_allclose(np.bincount(ops[:, 0]) / 4000, 0.2, atol=0.025)


def test_traditional_bag_never_flips():
  drawn = jax.vmap(lambda k: policy.sample(k, bag='trad'))(jax.random.split(jax.random.key(0), 100))
  assert not policy._flipped(drawn.ops, drawn.levels, 'trad').any()
  only_eight = policy._flipped(drawn.ops, jnp.ones_like(drawn.levels), 'mix')  # the first eight are FAS-Aug's
  np.testing.assert_array_equal(only_eight, (drawn.ops < 6).any(-1) & ((drawn.ops >= 1) & (drawn.ops <= 5)).any(-1))


# Images.

SIZE, ROWS = 30, 18


@pytest.fixture(scope='module')
def batch():
  images = jax.random.uniform(jax.random.key(9), (ROWS, SIZE, SIZE, 3))
  labels = jnp.arange(ROWS) % 2
  policies = jax.vmap(policy.sample)(jax.random.split(jax.random.key(4), 3))
  return images, labels, policies, jnp.arange(ROWS) % 3


@pytest.fixture(scope='module')
def through(batch):
  return jax.jit(policy.apply_batch)(jax.random.key(1), *batch)


def test_spoof_stays_spoof_and_flipped_live_becomes_spoof(batch, through):
  _, labels, _, _ = batch
  _, after, flipped = through
  np.testing.assert_array_equal(after, np.where(flipped, 0, labels))
  assert flipped.any()
  assert not flipped.all()
  assert (np.asarray(labels) > after).any()


def test_batch_is_the_single_images(batch, through):
  images, labels, policies, domain = batch
  keys = jax.random.split(jax.random.key(1), ROWS)
  for i in range(0, ROWS, 2):
    single = jax.tree.map(lambda a, i=i: a[domain[i]], policies)
    image, label, flipped, ops, levels = policy.apply(keys[i], np.asarray(images[i]), labels[i], single)
    assert isinstance(image, np.ndarray)
    np.testing.assert_allclose(image, through[0][i], atol=2e-6)
    assert (label, flipped) == (through[1][i], through[2][i])
    assert flipped == any(operators.FLIPS[o] and k > 0 for o, k in zip(ops, levels, strict=True))
    assert ((levels >= 0) & (levels <= 1)).all()


def test_operators_are_applied_in_order_each_with_its_key(batch):
  """By hand: moire, then low resolution; and level 0 leaves the image alone."""
  image = np.asarray(batch[0][0])
  moire, low = (operators.NAMES.index(n) for n in ('moire', 'low_resolution'))
  single = policy.Policy(ops=jnp.array([[moire, low]]), levels=jnp.array([[9, 5]]))
  key = jax.random.key(7)
  found, label, flipped, ops, levels = policy.apply(key, image, 1, single)
  _, first, second = jax.random.split(key, 3)
  expected = operators.low_resolution(second, operators.moire(first, image, 1.0), 5 / 9)
  np.testing.assert_allclose(found, expected, atol=2e-6)
  assert (label, bool(flipped), list(ops)) == (0, True, [moire, low])
  np.testing.assert_allclose(levels, [1, 5 / 9])
  still, label, flipped, _, _ = policy.apply(key, image, 1, single.replace(levels=jnp.zeros((1, 2), int)))
  np.testing.assert_array_equal(still, image)
  assert (label, bool(flipped)) == (1, False)


def test_bytes_are_taken_as_they_are(batch):
  images, labels, policies, domain = batch
  whole = jnp.round(images * 255)
  run = jax.jit(policy.apply_batch)
  found = run(jax.random.key(2), whole.astype(jnp.uint8), labels, policies, domain)
  expected = run(jax.random.key(2), whole / 255, labels, policies, domain)
  assert found[0].dtype == jnp.float32
  np.testing.assert_allclose(found[0], expected[0], atol=2e-6)


def test_the_accelerators_route_gives_the_same(batch, through):
  images, labels, policies, domain = batch
  keys = jax.random.split(jax.random.key(1), ROWS)

  @jax.jit
  def sorted_route(*batch):
    return policy.by_operator(keys, *batch, bag='fas', assets=assets.Assets())

  found = sorted_route(images, labels, policies, domain)
  np.testing.assert_allclose(found[0], through[0], atol=2e-6)
  np.testing.assert_array_equal(found[1], through[1])
  np.testing.assert_array_equal(found[2], through[2])


def test_mixed_bag_and_uint8_images(batch):
  image = np.asarray(batch[0][0] * 255).astype(np.uint8)
  drawn = policy.sample(jax.random.key(3), bag='mix')
  outs = [policy.apply(seed, image, 1, drawn, bag='mix') for seed in range(4)]
  assert all(o[0].dtype == np.uint8 and o[0].shape == image.shape for o in outs)
  assert len({o[0].tobytes() for o in outs}) > 1


def test_description_is_plain_data(batch):
  described = policy.describe(batch[2])
  assert json.loads(json.dumps(described)) == described
  assert len(described) == 3
  assert len(described[0]) == 5
  first = described[1][2][0]
  assert first == {'operator': operators.NAMES[batch[2].ops[1, 2, 0]], 'level': int(batch[2].levels[1, 2, 0])}
