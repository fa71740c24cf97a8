"""Which operators an image meets: policies of FAS-Aug (spec 3.2, as released).

  policies = jax.vmap(lambda k: policy.sample(k, bag='fas'))(jax.random.split(key, 3))   # one per augmented domain
  images, labels, flipped = policy.apply_batch(key, images, labels, policies, domain)

A policy is Q sub-policies of two (operator, level) pairs, drawn anew for every epoch and augmented domain: operators
uniform with replacement, levels uniform over ten. An image of that domain takes one of the Q at random and meets its
two operators in order; there is no further chance of application. A live image becomes spoof where one of the two
changes the label and has a level above 0: with the bag 'fas', 81% of the time.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from core.errors import nearest
from fas.fas_aug import operators, traditional
from fas.fas_aug.assets import Assets
from fas.fas_aug.losses import SPOOF
from fas.fas_aug.operators import LEVELS, Entry

PAIRS = 2
"""Operators per sub-policy."""

RELEASED_CROP = 256
"""Side in pixels of the crops that the operators' magnitudes were made for."""

BAGS: dict[str, tuple[str, ...]] = {
  'fas': operators.NAMES,
  'trad': traditional.NAMES,
  'mix': operators.NAMES + traditional.NAMES,
}

_ENTRIES: dict[str, Entry] = operators.OPERATORS | traditional.OPERATORS


@struct.dataclass
class Policy:
  """Q sub-policies; or a stack of policies, with a leading axis."""

  ops: jax.Array  # int32 [Q, 2], index into the bag
  levels: jax.Array  # int32 [Q, 2], in 0..9; f32 after `scaled`


def _entries(bag: str) -> list[Entry]:
  if bag not in BAGS:
    raise ValueError(f"There is no bag '{bag}', expected one of {tuple(BAGS)}.{nearest(bag, BAGS)}")
  return [_ENTRIES[name] for name in BAGS[bag]]


def sample(key: jax.Array, sub_policies: int = 5, *, bag: str = 'fas') -> Policy:
  """Draws a policy of Q = `sub_policies` sub-policies (M = 1 policy per domain and epoch in the release)."""
  op_key, level_key = jax.random.split(key)
  shape = (sub_policies, PAIRS)
  return Policy(
    ops=jax.random.randint(op_key, shape, 0, len(_entries(bag))),
    levels=jax.random.randint(level_key, shape, 0, LEVELS),
  )


def level_shares(size: int) -> dict[str, float]:
  """Shares (see `scaled`) for crops of `size` px: none at the release's 256 and above.

  On 64 px, trembling of up to 16 px wipes a face out; with {'hand_trembling': 64 / 256} it moves as much of the face as
  it does on 256 px (our choice).
  """
  return {'hand_trembling': size / RELEASED_CROP} if size < RELEASED_CROP else {}


def scaled(policy: Policy, shares: Mapping[str, float], *, bag: str = 'fas') -> Policy:
  """Lowers the levels of some operators to a share, between the ten. Labels do not change: a level stays above 0."""
  if not shares:
    return policy
  factor = jnp.array([shares.get(name, 1.0) for name in BAGS[bag]], jnp.float32)
  return policy.replace(levels=policy.levels * factor[policy.ops])


def _parse(key: jax.Array, policy: Policy, domain: jax.Array | int | None) -> tuple[jax.Array, jax.Array, jax.Array]:
  """What one image meets: operators int32 [2], levels int32 [2], a key for each [2]."""
  choice, *keys = jax.random.split(key, 1 + PAIRS)
  chosen = jax.random.randint(choice, (), 0, policy.ops.shape[-2])
  at = (chosen,) if domain is None else (domain, chosen)
  return policy.ops[at], policy.levels[at], jnp.stack(keys)


def _flipped(ops: jax.Array, levels: jax.Array, bag: str) -> jax.Array:
  """Whether any of the operators [..., 2] makes its image a spoof, bool [...]."""
  flips = jnp.array([entry.flips for entry in _entries(bag)])
  return jnp.any(flips[ops] & (levels > 0), axis=-1)


def _as_float(images: jax.Array) -> jax.Array:
  return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images


def _share(levels: jax.Array) -> jax.Array:
  return levels.astype(jnp.float32) / (LEVELS - 1)


def _operate(key: jax.Array, image: jax.Array, op: jax.Array, level: jax.Array, bag: str, assets: Assets) -> jax.Array:
  """Applies operator `op` of the bag; at level 0 nothing is computed."""
  branches = [lambda _, image, __: image]
  branches += [lambda *a, f=entry.apply: f(*a, assets) for entry in _entries(bag)]
  return lax.switch(jnp.where(level > 0, op + 1, 0), branches, key, image, _share(level))


def _apply_one(key, image, label, policy, domain, bag, assets):
  ops, levels, keys = _parse(key, policy, domain)
  image = _as_float(image)
  for i in range(PAIRS):
    image = _operate(keys[i], image, ops[i], levels[i], bag, assets)
  flipped = _flipped(ops, levels, bag)
  return image, jnp.where(flipped, SPOOF, label), flipped, ops, levels


_apply_jitted = jax.jit(_apply_one, static_argnums=(4, 5))


def apply(
  key: jax.Array | int,
  image: jax.Array | np.ndarray,
  label: jax.Array | int,
  policy: Policy,
  *,
  bag: str = 'fas',
  assets: Assets | None = None,
) -> tuple[jax.Array | np.ndarray, jax.Array, jax.Array, jax.Array, jax.Array]:
  """Puts one image through one of the policy's sub-policies.

  Args:
    key: a JAX key (or, with a numpy image, an integer seed).
    image: f32 [H, W, 3] in [0, 1]; numpy (f32 or uint8) in, numpy out.
    label: int, 1 live, 0 spoof.
    policy: a single policy.
    bag: one of `BAGS`, the one the policy was drawn from.
    assets: a user's own textures and profiles; None for the procedural ones.

  Returns:
    image; label, spoof where `flipped`; flipped bool; operators int32 [2]; levels f32 [2] in [0, 1].
  """
  assets = Assets() if assets is None else assets
  if not isinstance(image, np.ndarray):
    *out, ops, levels = _apply_one(key, image, label, policy, None, bag, assets)
    return *out, ops, _share(levels)
  rest = []

  def run(key, image):
    out, *others = _apply_jitted(key, image, label, jax.tree.map(np.asarray, policy), None, bag, assets)
    rest.extend(np.asarray(a) for a in others)
    return out

  image = operators.on_cpu(run, key, image)
  label, flipped, ops, levels = rest
  return image, label, flipped, ops, levels.astype(np.float32) / (LEVELS - 1)


def apply_batch(
  key: jax.Array,
  images: jax.Array,
  labels: jax.Array,
  policies: Policy,
  domain: jax.Array,
  *,
  bag: str = 'fas',
  assets: Assets | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Puts every image through the policy of its domain; made for the inside of a jitted step.

  Args:
    key: randomness of the batch.
    images: uint8 or f32 in [0, 1], [N, H, W, 3]; uint8 saves a CPU a pass over the batch.
    labels: int32 [N], 1 live, 0 spoof.
    policies: E policies stacked, ops and levels int32 [E, Q, 2].
    domain: int [N] in [0, E).
    bag: one of `BAGS`.
    assets: a user's own textures and profiles; None for the procedural ones.

  Returns:
    images f32 [N, H, W, 3]; labels int32 [N]; flipped bool [N].
  """
  assets = Assets() if assets is None else assets
  route = one_by_one if jax.default_backend() == 'cpu' else by_operator
  return route(jax.random.split(key, len(images)), images, labels, policies, domain, bag=bag, assets=assets)


def one_by_one(keys, images, labels, policies, domain, *, bag, assets):
  """`apply_batch` for a CPU: image after image, each through the two branches it needs."""

  def one(at):
    return _apply_one(*at[:3], policies, at[3], bag, assets)[:3]

  return lax.map(one, (keys, images, labels, domain))


CHUNK = 8
"""Images that `by_operator` puts through an operator at once."""


def by_operator(keys, images, labels, policies, domain, *, bag, assets):
  """`apply_batch` for an accelerator: the rows sorted by operator, each operator on chunks of the rows that need it.

  A `switch` under `vmap` would put every image through all branches. Here an operator that n rows need runs
  ceil(n / CHUNK) times; a chunk's last rows may belong to no one and are computed for nothing.
  """
  ops, levels, op_keys = jax.vmap(_parse, (0, None, 0))(keys, policies, domain)
  entries = _entries(bag)
  images, number = _as_float(images), len(images)
  chunk = min(CHUNK, number)

  def through(images, at):
    keys, op, level = at
    op = jnp.where(level > 0, op, len(entries))  # level 0 needs none, and sorts last
    order = jnp.argsort(op)
    count = jnp.bincount(op, length=len(entries))
    first = jnp.cumsum(count) - count
    for index, entry in enumerate(entries):

      def rows(i, images, apply=entry.apply, index=index):
        place = i * chunk + jnp.arange(chunk)
        row = order[jnp.clip(first[index] + place, 0, number - 1)]
        made = jax.vmap(lambda *a: apply(*a, assets))(keys[row], images[row], _share(level)[row])
        return images.at[jnp.where(place < count[index], row, number)].set(made, mode='drop')

      images = lax.fori_loop(0, (count[index] + chunk - 1) // chunk, rows, images)
    return images, None

  images, _ = lax.scan(through, images, (jnp.swapaxes(op_keys, 0, 1), ops.T, levels.T))
  flipped = _flipped(ops, levels, bag)
  return images, jnp.where(flipped, SPOOF, labels), flipped


def describe(policy: Policy, bag: str = 'fas') -> list:
  """A policy as plain data: sub-policies, lists of {'operator': name, 'level': k}; for a stack, a list of policies."""
  ops, levels = np.asarray(policy.ops), np.asarray(policy.levels)
  if ops.ndim > 2:
    return [describe(Policy(o, k), bag) for o, k in zip(ops, levels, strict=True)]
  return [
    [{'operator': BAGS[bag][o], 'level': k.item()} for o, k in zip(*pair, strict=True)]
    for pair in zip(ops, levels, strict=True)
  ]
