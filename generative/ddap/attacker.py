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
from core.diffusion.latent import LatentDiffusion, Params
from core.metrics.image import pooled
from generative.ddap.people import Person


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
    latents = personalisation.latents(self.model, params, person.held_out)
    weights = pooled(jnp.asarray(person.held_out_face, jnp.float32), latents.shape[1:3])
    networks = {part: params[part] for part in ('unet', 'text')}
    key = jax.random.key(self.seed)
    losses = personalisation.face_loss(self.model, networks, latents, weights, jnp.asarray(self.instance), key)
    return float(losses.mean())

  def pictures(
    self, params: Params, ids: np.ndarray, count: int, *, size: int, steps: int, guidance: float, batch_size: int
  ) -> np.ndarray:
    """What he asks the model for: uint8 [count, size, size, 3] of the prompt `ids` i32 [1, T]."""
    keys = jax.random.split(jax.random.key(self.seed), count)
    prompts = jnp.asarray(ids), jnp.asarray(self.empty)
    make = functools.partial(personalisation.pictures, self.model, params, *prompts)
    parts = [keys[i : i + batch_size] for i in range(0, count, batch_size)]
    return np.concatenate([np.asarray(make(part, size=size, steps=steps, guidance=guidance)) for part in parts])
