"""SimAC's choice of timesteps: those at which the loss says most about the pixels (arXiv 2312.07865, as in its code).

Per photo, while more than a tenth of all timesteps remains: draw five of them, strike those around the one with the
smallest gradient, and take one sign step at the one with the largest. What remains is drawn from afterwards. (There the
window and the remainder are 40 and 100 of 1000; ours are these shares of the schedule. A photo that still has more
after 50 rounds keeps them; there it is lost.)
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from core.attacks import gradient as attacks
from core.diffusion.latent import LatentDiffusion, Params
from generative.ddap import spatial

CANDIDATES = 5
ROUNDS = 50
WINDOW = 20 / 1000
"""Share of the timesteps struck on either side."""
REMAINDER = 100 / 1000


@functools.partial(jax.jit, static_argnums=0)
def timesteps(
  model: LatentDiffusion,
  params: Params,
  photos: jax.Array,
  ids: jax.Array,
  keys: jax.Array,
  step: float | jax.Array,
  epsilon: float | jax.Array,
  mask: jax.Array | None = None,
) -> jax.Array:
  """Which timesteps to draw from.

  Args:
    model: the networks.
    params: theirs.
    photos: f32 [n, H, W, 3] in -1..1.
    ids: i32 [1, T], the prompt.
    keys: [n].
    step: of the sign steps.
    epsilon: their budget.
    mask: [n, H, W, 1], where they move.

  Returns:
    bool [n, T].
  """
  context, count = model.context(params, ids), model.schedule.steps

  def total(x: jax.Array, keys: jax.Array, times: jax.Array) -> tuple[jax.Array, jax.Array]:
    moments = model.moments(params, x)
    draws = spatial.draw(keys, moments[0].shape[1:], times)
    return spatial.denoising_loss(model, params, moments, context, draws).sum(), draws.t

  slope = jax.grad(total, has_aux=True)

  def round_(carry):
    i, x, left = carry
    keys_now = attacks.fold(keys, i)

    def candidate(_, j):
      gradient, t = slope(x, attacks.fold(keys_now, j), left)
      return None, (t, jnp.abs(gradient).sum((1, 2, 3)))

    _, (t, score) = jax.lax.scan(candidate, None, jnp.arange(CANDIDATES))
    weakest, strongest = (_chosen(t, at(score, axis=0)) for at in (jnp.argmin, jnp.argmax))
    active = _open(left)
    gradient, _ = slope(x, attacks.fold(keys_now, CANDIDATES), jnp.arange(count) == strongest[:, None])
    moved = attacks.sign_step(x, photos, gradient, step, epsilon, mask)
    x = jnp.where(active[:, None, None, None], moved, x)
    return i + 1, x, left & ~(active[:, None] & _around(weakest, count))

  start = (0, photos, jnp.ones((photos.shape[0], count), bool))
  return jax.lax.while_loop(lambda carry: (carry[0] < ROUNDS) & _open(carry[2]).any(), round_, start)[2]


def _open(left: jax.Array) -> jax.Array:
  """Whether more than the remainder is left, bool [n]."""
  return left.sum(-1) > max(1, round(REMAINDER * left.shape[-1]))


def _chosen(t: jax.Array, index: jax.Array) -> jax.Array:
  """t [candidates, n] at index [n] -> [n]."""
  return jnp.take_along_axis(t, index[None], axis=0)[0]


def _around(t: jax.Array, count: int) -> jax.Array:
  """bool [n, T]: the window around t, all of it within the schedule."""
  half = max(1, round(WINDOW * count))
  centre = jnp.clip(t, half, count - half)[:, None]
  every = jnp.arange(count)
  return (every >= centre - half) & (every < centre + half)
