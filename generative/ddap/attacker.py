"""The attacker: personalises a model on the photos he finds, and how well he then knows the face (spec 5, 9c)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from core.data import image
from core.diffusion import personalisation
from core.diffusion.latent import LatentDiffusion, Params, normal
from core.metrics.image import pooled
from generative.ddap.people import Person

TIMES = tuple(range(5, 200, 15))
"""Of 200, where the denoising loss is measured: 13 steps, in proportion on longer schedules (spec 9c)."""


@dataclasses.dataclass(frozen=True)
class Attacker:
  """DreamBooth on a person's photos.

  Attributes:
    model: the networks.
    instance, prior, empty: ids i32 [1, T] of the person's prompt, of the class's, and of no words.
    recipe: how he personalises.
    seed: of all his noise; the same for every protection, so that differences come from the photos alone.
  """

  model: LatentDiffusion
  instance: np.ndarray
  prior: np.ndarray
  empty: np.ndarray
  recipe: personalisation.Recipe
  seed: int

  def learn(self, params: Params, photos: np.ndarray, prior: np.ndarray) -> dict[str, Any]:
    """The parameters after personalisation on photos and class photos, both uint8 [n, H, W, 3]."""
    mine, others = (
      personalisation.encode(self.model, params, image.from_levels(jnp.asarray(each)), ids)
      for each, ids in ((photos, self.instance), (prior, self.prior))
    )
    return personalisation.fit(self.model, params, mine, others, self.recipe, jax.random.key(self.seed))

  def face_loss(self, params: Params, person: Person) -> float:
    """The denoising loss inside the face, under the person's prompt, on clean photos that nobody trained on."""
    latents = encode(self.model, params, person.held_out)
    weights = pooled(jnp.asarray(person.held_out_face, jnp.float32), latents.shape[1:3])
    key = jax.random.key(self.seed)
    return float(_face_loss(self.model, _denoiser(params), latents, weights, jnp.asarray(self.instance), key))

  def pictures(
    self, params: Params, ids: np.ndarray, count: int, *, size: int, steps: int, guidance: float, batch_size: int
  ) -> np.ndarray:
    """What he asks the model for: uint8 [count, size, size, 3] of the prompt `ids` i32 [1, T]."""
    keys = jax.random.split(jax.random.key(self.seed), count)
    options = (size, steps, guidance)
    make = functools.partial(_generate, self.model, options, params, jnp.asarray(ids), jnp.asarray(self.empty))
    return np.concatenate([np.asarray(make(keys[i : i + batch_size])) for i in range(0, count, batch_size)])


def encode(model: LatentDiffusion, params: Params, photos: np.ndarray) -> jax.Array:
  """Scaled mean latents f32 [n, h, w, D] of photos uint8 [n, H, W, 3], a few at a time."""
  autoencoder, step = {'autoencoder': params['autoencoder']}, personalisation.ENCODED
  parts = [_encode(model, autoencoder, jnp.asarray(photos[i : i + step])) for i in range(0, len(photos), step)]
  return jnp.concatenate(parts)


@functools.partial(jax.jit, static_argnums=0)
def _encode(model: LatentDiffusion, params: Params, photos: jax.Array) -> jax.Array:
  return model.latents(params, image.from_levels(photos))


def _denoiser(params: Params) -> dict[str, Any]:
  return {part: params[part] for part in ('unet', 'text')}


@functools.partial(jax.jit, static_argnums=0)
def _face_loss(model, params, latents, weights, ids, key) -> jax.Array:
  """Mean over `TIMES` of the error inside the weights; noise belongs to (photo, time) and is never drawn anew."""
  count = len(latents)
  context = jnp.repeat(model.context(params, ids), count, 0)
  photos = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(count))

  def at(t):
    noise = normal(jax.vmap(jax.random.fold_in, (0, None))(photos, t), latents.shape[1:])
    errors = model.errors(params, latents, context, jnp.full((count,), t), noise)
    return jnp.sum(weights * errors.mean(-1, keepdims=True)) / jnp.sum(weights)

  times = jnp.array([round(t * model.schedule.steps / 200) for t in TIMES])
  return jnp.mean(jax.lax.map(at, times))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(model, options, params, ids, empty, keys) -> jax.Array:
  """`LatentDiffusion.generate` as 8-bit pictures."""
  size, steps, guidance = options
  context, negative = (jnp.repeat(model.context(params, each), len(keys), 0) for each in (ids, empty))
  made = model.generate(params, context, keys, size=size, steps=steps, negative=negative, guidance=guidance)
  return image.to_levels(made)
