"""What a perturbation raises: the losses of spatial perturbation learning (spec 3.2). Pure functions of arrays.

  L_SPL = λ_rec L_rec + λ_lat L_lat

Every loss gives f32 [B], a mean over the values of each photo, and its noise comes in as arguments (`Draws`): the same
draws give the same loss. `moments` is what the fixed encoder says of the photos, (mean, log-variance), unscaled.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from core.diffusion.latent import LatentDiffusion, Params, normal

Moments = tuple[jax.Array, jax.Array]

LATENT = ('mean', 'mean_logvar', 'sample', 'target')
"""What L_lat compares: scaled means; unscaled means and log-variances (PID's "add-log"); scaled samples, which differ
without any perturbation; scaled means with those of a target photo, to come nearer to them (Mist, PhotoGuard)."""

PHOTO = (1, 2, 3)


class Draws(NamedTuple):
  """The chance in one evaluation of the losses.

  Attributes:
    eta: N(0, 1), f32 [B, h, w, D]: the latent within its distribution.
    other: N(0, 1), like `eta`: that of the clean photo.
    noise: N(0, 1), like `eta`: what the diffusion adds.
    t: i32 [B], its timestep.
  """

  eta: jax.Array
  other: jax.Array
  noise: jax.Array
  t: jax.Array


def draw(keys: jax.Array, shape: tuple[int, ...], times: jax.Array) -> Draws:
  """Draws with a key per photo.

  Args:
    keys: [B].
    shape: (h, w, D) of a latent.
    times: bool [B, T], the timesteps that may be drawn, all equally likely.
  """
  keys = jax.vmap(lambda key: jax.random.split(key, 4))(keys)
  eta, other, noise = (normal(keys[:, i], shape) for i in range(3))
  t = jax.vmap(lambda key, allowed: jax.random.categorical(key, jnp.where(allowed, 0.0, -jnp.inf)))(keys[:, 3], times)
  return Draws(eta, other, noise, t)


def sample(model: LatentDiffusion, moments: Moments, eta: jax.Array) -> jax.Array:
  """z̃ = s (μ + σ η), f32 [B, h, w, D]."""
  return model.autoencoder.scaling * (moments[0] + jnp.exp(0.5 * moments[1]) * eta)


def denoising_loss(
  model: LatentDiffusion, params: Params, moments: Moments, context: jax.Array, draws: Draws
) -> jax.Array:
  """L_rec, what DreamBooth minimises: the mean squared error of the prediction on z̃ at t.

  Args:
    model: the networks.
    params: of which 'unet' is used.
    moments: of the photos.
    context: f [1, T, width], of the instance prompt.
    draws: eta, noise and t are used.
  """
  latents = sample(model, moments, draws.eta)
  return model.errors(params, latents, _rows(context, latents), draws.t, draws.noise).mean(PHOTO)


def decoder_loss(model: LatentDiffusion, params: Params, moments: Moments, photos: jax.Array) -> jax.Array:
  """The other reading of "reconstruction loss": mean of (Dec(μ) - photos)², `photos` being the clean ones."""
  decoded = model.decode(params, model.autoencoder.scaling * moments[0])
  return jnp.square(decoded - photos).mean(PHOTO)


def latent_loss(
  model: LatentDiffusion, moments: Moments, anchor: Moments, draws: Draws | None = None, *, mode: str = 'mean'
) -> jax.Array:
  """L_lat, how far the latents are from the anchor's.

  Zero with a gradient of zero where photo and anchor are one ('sample' excepted): begin a little away from it.

  Args:
    model: of which the scaling is used.
    moments: of the photos.
    anchor: of the clean photos, or of the target with the mode 'target', which is to be lowered then.
    draws: eta and other are used, with 'sample' only.
    mode: one of `LATENT`.
  """
  if mode == 'sample':
    return jnp.square(sample(model, moments, draws.eta) - sample(model, anchor, draws.other)).mean(PHOTO)
  if mode == 'mean_logvar':
    return sum(jnp.square(a - b).mean(PHOTO) for a, b in zip(moments, anchor, strict=True))
  return jnp.square(model.autoencoder.scaling * (moments[0] - anchor[0])).mean(PHOTO)


def feature_loss(
  model: LatentDiffusion, params: Params, moments: Moments, anchor: Moments, context: jax.Array, draws: Draws
) -> jax.Array:
  """SimAC's second loss: how far the U-Net's features are from those of the clean photo with the same noise.

  Features: what the residual blocks of the last level on the way up add to their input.
  """
  seen = []
  for each, eta in ((moments, draws.eta), (anchor, draws.other)):
    latents = sample(model, each, eta)
    noisy = model.schedule.add_noise(latents, draws.noise, draws.t)
    seen.append(_features(model, params, noisy, draws.t, _rows(context, latents)))
  moved, clean = seen
  pairs = zip(jax.tree.leaves(moved), jax.tree.leaves(jax.lax.stop_gradient(clean)), strict=True)
  return jnp.stack([jnp.square(a - b).mean(PHOTO) for a, b in pairs]).mean(0)


def _features(model: LatentDiffusion, params: Params, noisy: jax.Array, t: jax.Array, context: jax.Array) -> Any:
  """Outputs of the second convolutions of the blocks at the last level on the way up."""
  level = f'up_{len(model.unet.channels) - 1}_resnet_'

  def wanted(module: Any, method: str) -> bool:
    return (
      method == '__call__' and len(module.path) == 2 and module.path[0].startswith(level) and module.name == 'conv_2'
    )

  variables = {'params': params['unet']}
  _, state = model.unet.apply(variables, noisy, t, context, capture_intermediates=wanted, mutable=['intermediates'])
  return state['intermediates']


def pattern(height: int, width: int, period: int = 16) -> np.ndarray:
  """A target that is no photo: black and white tiles with a finer grid inside, f32 [height, width, 3] in -1..1.

  Targeted attacks take such an image (Mist's is a page of repeated letters); ours needs no file.
  """
  y, x = np.mgrid[:height, :width]
  tiles = (y // period + x // period) % 2
  lines = ((y % period) // (period // 4) + (x % period) // (period // 4)) % 2
  return np.repeat((2.0 * (tiles ^ lines) - 1)[..., None], 3, axis=-1).astype(np.float32)


def _rows(context: jax.Array, latents: jax.Array) -> jax.Array:
  return jnp.broadcast_to(context, (latents.shape[0], *context.shape[1:]))
