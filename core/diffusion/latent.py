"""Latent diffusion (Rombach et al. 2022): the networks of Stable Diffusion and the process between them, as one.

    model = latent.build('tiny', vocabulary=tokenizer.vocabulary)
    params = model.init(jax.random.key(0), size=32)
    context = model.context(params, ids)
    photos = model.generate(params, context, jax.random.split(key, 4), size=32, steps=20)

`LatentDiffusion` holds no weights: every method is a pure function of `params`, {'autoencoder', 'unet', 'text'}, each
the parameters of its network. Wherever noise is drawn there is a key per row, so that a photo does not depend on its
batch. From and to the folders of diffusers: `core.diffusion.pipeline`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from core.diffusion import samplers
from core.diffusion.schedule import VARIANTS as SCHEDULES
from core.diffusion.schedule import Schedule
from core.errors import UserError, nearest
from core.nn import autoencoder, clip, unet

Params = Mapping[str, Any]
"""{'autoencoder': tree, 'unet': tree, 'text': tree}."""

PARTS = ('autoencoder', 'unet', 'text')


@dataclasses.dataclass(frozen=True)
class LatentDiffusion:
  """A text-to-image model. Latents in here are always scaled (`autoencoder.scaling`), moments never.

  Attributes:
    autoencoder: photos to latents and back; fixed when a model is personalised.
    unet: predicts what `schedule.prediction` says.
    text: prompts to the context that the U-Net attends to.
    schedule: the process that adds noise.
  """

  autoencoder: autoencoder.Autoencoder
  unet: unet.UNet
  text: clip.ClipText
  schedule: Schedule

  def __post_init__(self):
    if self.text.width != self.unet.context_width:
      raise UserError(
        f'the text encoder gives states of width {self.text.width}, the U-Net attends to {self.unet.context_width}:'
        ' take both from one model.'
      )
    if self.autoencoder.latent != self.unet.inputs:
      raise UserError(
        f'the autoencoder gives latents of {self.autoencoder.latent} channels, the U-Net takes {self.unet.inputs}:'
        ' a U-Net for inpainting or upscaling cannot be used here.'
      )

  def init(self, rng: jax.Array, size: int = 64) -> dict[str, Any]:
    """Fresh parameters; pure. `size`: pixels along a side, any multiple of the autoencoder's factor."""
    keys = jax.random.split(rng, 3)
    photos = jnp.zeros((1, size, size, self.autoencoder.colours))
    ids = jnp.zeros((1, self.text.max_positions), jnp.int32)
    latents = jnp.zeros((1, *self._grid(size), self.unet.inputs))
    context = jnp.zeros((1, self.text.max_positions, self.text.width))
    return {
      'autoencoder': self.autoencoder.init(keys[0], photos)['params'],
      'unet': self.unet.init(keys[1], latents, jnp.zeros((1,)), context)['params'],
      'text': self.text.init(keys[2], ids)['params'],
    }

  def context(self, params: Params, ids: jax.Array) -> jax.Array:
    """Prompts i32 [B, T] -> f32 [B, T, D], what the U-Net attends to."""
    return self.text.apply({'params': params['text']}, ids).states

  def moments(self, params: Params, photos: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Photos [B, H, W, 3] in -1..1 -> (mean, log-variance) f32 [B, h, w, D] of their latents, unscaled."""
    return self.autoencoder.apply({'params': params['autoencoder']}, photos, method='encode')

  def latents(self, params: Params, photos: jax.Array) -> jax.Array:
    """Photos [B, H, W, 3] in -1..1 -> f32 [B, h, w, D], the scaled means."""
    return self.autoencoder.scaling * self.moments(params, photos)[0]

  def draw(self, mean: jax.Array, log_variance: jax.Array, keys: jax.Array) -> jax.Array:
    """Scaled latents f32 [B, h, w, D] drawn from moments, with a key per row [B]."""
    noise = normal(keys, mean.shape[1:])
    return self.autoencoder.scaling * (mean + jnp.exp(0.5 * log_variance) * noise)

  def decode(self, params: Params, latents: jax.Array) -> jax.Array:
    """Scaled latents -> photos f32 [B, H, W, 3], about -1..1 and not cut to it."""
    unscaled = latents / self.autoencoder.scaling
    return self.autoencoder.apply({'params': params['autoencoder']}, unscaled, method='decode')

  def predict(self, params: Params, noisy: jax.Array, t: jax.Array, context: jax.Array, *, maps: bool = False) -> Any:
    """The U-Net on noisy latents [B, h, w, D] at t [B]; with `maps` also its attention to the context."""
    return self.unet.apply({'params': params['unet']}, noisy, t, context, maps=maps)

  def errors(self, params: Params, latents: jax.Array, context: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
    """Squared errors of the prediction, f32 [B, h, w, D]; their mean is the denoising loss.

    Args:
      params: all parts, of which the U-Net is used.
      latents: [B, h, w, D], scaled.
      context: [B, T, width].
      t: i32 [B].
      noise: N(0, 1), like the latents.
    """
    noisy = self.schedule.add_noise(latents, noise, t)
    prediction = self.predict(params, noisy, t, context)
    return jnp.square(prediction - self.schedule.target(latents, noise, t))

  def generate(
    self,
    params: Params,
    context: jax.Array,
    keys: jax.Array,
    *,
    size: int,
    sampler: str = 'dpmpp_2m',
    steps: int = 20,
    negative: jax.Array | None = None,
    guidance: float = 7.5,
  ) -> jax.Array:
    """Makes photos; call it within `jax.jit`, with `params` an argument of that function.

    Args:
      params: all parts.
      context: [B, T, width] of the prompts.
      keys: [B], one per photo.
      size: pixels along a side.
      sampler: a name of `core.diffusion.samplers`.
      steps: evaluations of the U-Net.
      negative: [B, T, width], of the empty prompt usually, for classifier-free guidance; None: no guidance.
      guidance: its scale.

    Returns:
      f32 [B, size, size, 3] in -1..1.
    """
    pairs = jax.vmap(jax.random.split)(keys)
    noise = normal(pairs[:, 0], (*self._grid(size), self.unet.inputs))
    walk = samplers.Sampler(sampler, self.schedule)
    denoise = lambda x, t, context: self.predict(params, x, t, context)  # noqa: E731
    latents = samplers.sample(
      denoise, noise, walk, steps, context=context, negative=negative, guidance=guidance, rng=pairs[:, 1]
    )
    return jnp.clip(self.decode(params, latents), -1, 1)

  def _grid(self, size: int) -> tuple[int, int]:
    """Latents along both sides of a square photo."""
    if size % self.autoencoder.factor:
      raise UserError(f'photos of {size} pixels: expected a multiple of {self.autoencoder.factor}.')
    return (size // self.autoencoder.factor,) * 2


def normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """N(0, 1), f32 [B, *shape], with a key per row [B]."""
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def timesteps(keys: jax.Array, stop: int, start: int = 0) -> jax.Array:
  """Uniform i32 [B] in start..stop - 1, with a key per row [B]."""
  return jax.vmap(lambda key: jax.random.randint(key, (), start, stop))(keys)


VARIANTS = {
  # ours, 32 x 32 photos on a CPU; the names of the parts' variants
  'tiny': {'autoencoder': 'tiny', 'unet': 'tiny', 'text': 'tiny', 'schedule': 'tiny'},
  'sd1': {'autoencoder': 'sd', 'unet': 'sd1', 'text': 'sd1', 'schedule': 'sd1'},
  'sd2': {'autoencoder': 'sd', 'unet': 'sd2', 'text': 'sd2', 'schedule': 'sd2'},
  'sd2_768': {'autoencoder': 'sd', 'unet': 'sd2', 'text': 'sd2', 'schedule': 'sd2_768'},
}


def build(
  variant: str, *, vocabulary: int | None = None, dtype: Any = jnp.float32, remat: bool = False
) -> LatentDiffusion:
  """The model of a name in `VARIANTS`.

  Args:
    variant: its name.
    vocabulary: word pieces of the text encoder, where they are not the published ones.
    dtype: compute type of all networks; parameters are f32.
    remat: compute activations of the autoencoder and the U-Net again on the way back.
  """
  if variant not in VARIANTS:
    known = sorted(VARIANTS)
    raise UserError(f"there is no latent diffusion '{variant}', expected one of {known}.{nearest(variant, known)}")
  names = VARIANTS[variant]
  words = {} if vocabulary is None else {'vocabulary': vocabulary}
  return LatentDiffusion(
    autoencoder.build(names['autoencoder'], dtype=dtype, remat=remat),
    unet.build(names['unet'], dtype=dtype, remat=remat),
    clip.build(names['text'], dtype=dtype, **words),
    SCHEDULES[names['schedule']],
  )
