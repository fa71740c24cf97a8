"""Personalisation: a text-to-image model learns a person from a few photos (DreamBooth, arXiv 2208.12242; LoRA).

    recipe = Recipe(steps=800, learning_rate=1e-6)
    person = encode(model, params, photos, ids)                   # ids of 'a photo of sks person'
    others = encode(model, params, class_photos, class_ids)       # ids of 'a photo of person'
    learned = fit(model, params, person, others, recipe, jax.random.key(0))

The U-Net and the text encoder learn, the autoencoder is fixed: so photos are encoded once, to the distributions of
their latents, of which every step draws anew (spec 4). The loss on class photos, which the model itself has made, keeps
what the noun meant before (prior preservation).

`fit` is what an attacker does, in one compiled loop; a protection calls it between its own steps. To train through the
common loop, with checkpoints: `loss` and `Recipe.optimizer`, as `generative.dreambooth` does.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from core.atomic import write_atomically
from core.data import image
from core.diffusion.latent import LatentDiffusion, Params, normal, timesteps
from core.errors import UserError, nearest
from core.nn import adapters

ENCODED = 8
"""Photos that `encode` runs at a time: more would need more memory, and be no faster."""

TIMES = tuple(0.025 + 0.075 * i for i in range(13))
"""Where `face_loss` looks, as shares of the schedule: 5, 20, ..., 185 of 200 timesteps (spec 9c)."""

_ATTENTION = re.compile(r'(self|cross|attention)/(query|key|value|out)/kernel$')
"""Kernels that low-rank updates are for: those of every attention, as in diffusers' scripts."""


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a model is personalised. The defaults are the attack of Anti-DreamBooth (spec 4).

  Attributes:
    steps: optimiser steps.
    learning_rate: of AdamW, constant (betas 0.9 and 0.999, epsilon 1e-8).
    weight_decay: of AdamW, on every leaf that learns, biases and norms too, as torch's does.
    clip_norm: bound of the gradient's global norm, over both networks together; 0: none.
    prior_weight: factor of the loss on class photos.
    instance_batch, prior_batch: photos of the person and of the class per step.
    train_text: whether the text encoder learns, beside the U-Net.
    lora_rank: of low-rank updates to the kernels of every attention; 0: all weights learn.
    lora_alpha: the updates are scaled by lora_alpha / lora_rank.
  """

  steps: int = 1000
  learning_rate: float = 5e-7
  weight_decay: float = 1e-2
  clip_norm: float = 1.0
  prior_weight: float = 1.0
  instance_batch: int = 2
  prior_batch: int = 2
  train_text: bool = True
  lora_rank: int = 0
  lora_alpha: float = 4.0

  def __post_init__(self):
    lows = {'steps': 0, 'weight_decay': 0, 'clip_norm': 0, 'prior_weight': 0, 'lora_rank': 0}
    lows |= {'instance_batch': 1, 'prior_batch': 1}
    for name, low in lows.items():
      if getattr(self, name) < low:
        raise UserError(f'personalise.{name} is {getattr(self, name)}, expected {low} or more.')
    for name in ('learning_rate', 'lora_alpha'):
      if getattr(self, name) <= 0:
        raise UserError(f'personalise.{name} is {getattr(self, name)}, expected a number > 0.')

  @classmethod
  def from_config(cls, section: Mapping[str, Any]) -> Recipe:
    """From a section of a config; keys that it lacks have their default."""
    known = [field.name for field in dataclasses.fields(cls)]
    for key in section:
      if key not in known:
        raise UserError(f"personalise has no '{key}', expected keys among {known}.{nearest(key, known)}")
    return cls(**{key: section[key] for key in section})

  def trains(self, path: str) -> bool:
    """Whether the parameter at a '/'-joined path ('unet/conv_in/kernel') learns."""
    if self.lora_rank:
      return path.startswith('lora/')
    return path.startswith('unet/') or (self.train_text and path.startswith('text/'))

  def optimizer(self) -> optax.GradientTransformation:
    """AdamW behind the clipping of the global norm."""
    adamw = optax.adamw(self.learning_rate, weight_decay=self.weight_decay)
    return optax.chain(optax.clip_by_global_norm(self.clip_norm), adamw) if self.clip_norm else adamw


class Photos(NamedTuple):
  """Photos of one prompt, as distributions of their latents.

  Attributes:
    mean, log_variance: f32 [n, h, w, D], unscaled.
    ids: i32 [1, T], the prompt.
  """

  mean: jax.Array
  log_variance: jax.Array
  ids: jax.Array


def encode(model: LatentDiffusion, params: Params, photos: jax.Array, ids: jax.Array) -> Photos:
  """Photos f32 [n, H, W, 3] in -1..1 with their prompt i32 [1, T]."""
  parts = [photos[i : i + ENCODED] for i in range(0, len(photos), ENCODED)]
  moments = [_moments(model, {'autoencoder': params['autoencoder']}, part) for part in parts]
  mean, log_variance = (jnp.concatenate(each) for each in zip(*moments, strict=True))
  return Photos(mean, log_variance, jnp.asarray(ids))


_moments = jax.jit(LatentDiffusion.moments, static_argnums=0)


def latents(model: LatentDiffusion, params: Params, photos: np.ndarray) -> jax.Array:
  """Scaled mean latents f32 [n, h, w, D] of photos uint8 [n, H, W, 3], `ENCODED` at a time."""
  none = np.zeros((1, 0), np.int32)
  return model.autoencoder.scaling * encode(model, params, image.from_levels(jnp.asarray(photos)), none).mean


def pick(photos: Photos, count: int, key: jax.Array) -> Photos:
  """`count` photos by chance; none twice before every one was taken."""
  n = photos.mean.shape[0]
  rows = jnp.resize(jax.random.permutation(key, n), (count,))
  return Photos(photos.mean[rows], photos.log_variance[rows], photos.ids)


def loss(
  model: LatentDiffusion, params: Params, photos: Photos, prior: Photos | None, key: jax.Array, recipe: Recipe
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The denoising loss on `photos`, plus `recipe.prior_weight` times that on `prior`; every row given is used.

  Args:
    model: the networks.
    params: 'unet', 'text' and, if there are low-rank updates, 'lora'.
    photos: of the person.
    prior: of the class, or None.
    key: of all noise; row i draws from `fold_in(key, i)`, the prior's rows after the person's.
    recipe: of which the weights of the parts are read.

  Returns:
    f32 scalar, {'instance': its first part, 'prior': its second without the weight}.
  """
  params = merge(params, recipe.lora_alpha)
  ids = photos.ids if prior is None else jnp.concatenate([photos.ids, prior.ids])
  return _denoising(model, params, model.context(params, ids), photos, prior, key, recipe)


def _denoising(
  model: LatentDiffusion,
  params: Params,
  context: jax.Array,
  photos: Photos,
  prior: Photos | None,
  key: jax.Array,
  recipe: Recipe,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """`loss`, given the context [1 or 2, T, D] of the prompts."""
  count = photos.mean.shape[0]
  mean, log_variance, prompts = photos.mean, photos.log_variance, [0] * count
  if prior is not None:
    mean = jnp.concatenate([mean, prior.mean])
    log_variance = jnp.concatenate([log_variance, prior.log_variance])
    prompts += [1] * prior.mean.shape[0]
  keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(len(prompts)))
  keys = jax.vmap(functools.partial(jax.random.split, num=3))(keys)
  latents = model.draw(mean, log_variance, keys[:, 0])
  noise = normal(keys[:, 1], mean.shape[1:])
  t = timesteps(keys[:, 2], model.schedule.steps)
  errors = model.errors(params, latents, context[jnp.array(prompts)], t, noise)
  instance = jnp.mean(errors[:count])
  if prior is None:
    return instance, {'instance': instance}
  kept = jnp.mean(errors[count:])
  return instance + recipe.prior_weight * kept, {'instance': instance, 'prior': kept}


def fit(
  model: LatentDiffusion,
  params: Params,
  photos: Photos,
  prior: Photos | None,
  recipe: Recipe,
  key: jax.Array,
  *,
  steps: int | None = None,
) -> dict[str, Any]:
  """Personalises: `steps` (else `recipe.steps`) optimiser steps from fresh moments, photos drawn by chance.

  The loop is compiled once per model, recipe and number of photos, whatever the number of steps. Needs memory for two
  sets of the weights that learn, their gradient and two moments.

  Args:
    model: the networks.
    params: its parameters; not changed.
    photos: of the person.
    prior: of the class, or None for none.
    recipe: how.
    key: of the choice of photos and all noise.
    steps: in place of the recipe's.

  Returns:
    `params` with what was learned: the same tree, low-rank updates merged.
  """
  start = merge({part: params[part] for part in ('unet', 'text', 'lora') if part in params}, recipe.lora_alpha)
  steps = recipe.steps if steps is None else steps
  recipe = dataclasses.replace(recipe, steps=0)  # no part of what is compiled
  if recipe.lora_rank:
    key, fresh = jax.random.split(key)
    start = add_lora(start, recipe, fresh)
  trained, frozen = _split(start, recipe)
  trained = _fit(model, recipe, trained, frozen, photos, prior, key, jnp.asarray(steps))
  learned = merge(_joined(trained, frozen), recipe.lora_alpha)
  return {**{name: tree for name, tree in params.items() if name != 'lora'}, **learned}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fit(model, recipe, trained, frozen, photos, prior, key, steps):
  """{path: leaf} that learn, after `steps` of `fit`."""
  optimizer = recipe.optimizer()
  ids = photos.ids if prior is None else jnp.concatenate([photos.ids, prior.ids])
  # A text encoder that does not learn says the same at every step.
  fixed = None if _text_learns(trained) else model.context(_joined({}, frozen), ids)

  def objective(trained, photos, prior, key):
    params = merge(_joined(trained, frozen), recipe.lora_alpha)
    context = model.context(params, ids) if fixed is None else fixed
    return _denoising(model, params, context, photos, prior, key, recipe)[0]

  def step(i, carry):
    trained, moments = carry
    chosen, others, noise = jax.random.split(jax.random.fold_in(key, i), 3)
    batch = pick(photos, recipe.instance_batch, chosen)
    kept = None if prior is None else pick(prior, recipe.prior_batch, others)
    gradient = jax.grad(objective)(trained, batch, kept, noise)
    updates, moments = optimizer.update(gradient, moments, trained)
    return optax.apply_updates(trained, updates), moments

  return jax.lax.fori_loop(0, steps, step, (trained, optimizer.init(trained)))[0]


def _text_learns(trained: Mapping[str, jax.Array]) -> bool:
  return any(path.removeprefix('lora/').startswith('text/') for path in trained)


def _split(params: Params, recipe: Recipe) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """({path: leaf} that learn, the others)."""
  flat = flax.traverse_util.flatten_dict(params, sep='/')
  trained = {path: leaf for path, leaf in flat.items() if recipe.trains(path)}
  return trained, {path: leaf for path, leaf in flat.items() if path not in trained}


def _joined(trained: Mapping[str, jax.Array], frozen: Mapping[str, jax.Array]) -> dict[str, Any]:
  return flax.traverse_util.unflatten_dict({**frozen, **trained}, sep='/')


# Low-rank updates.


def add_lora(params: Params, recipe: Recipe, key: jax.Array) -> dict[str, Any]:
  """`params` with a part 'lora': for every kernel of an attention [in, out], of the U-Net and of a text encoder that
  learns, lora_a [in, rank], uniform in +-1/sqrt(in), and lora_b [rank, out], zero (as `core.nn.adapters.LoRADense`)."""
  uniform = jax.nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
  parts = ('unet', 'text') if recipe.train_text else ('unet',)
  flat = flax.traverse_util.flatten_dict({part: params[part] for part in parts}, sep='/')
  paths = [path for path in sorted(flat) if _ATTENTION.search(path)]
  updates = {}
  for i, path in enumerate(paths):
    layer, (fan_in, fan_out) = path.removesuffix('kernel'), flat[path].shape
    updates[f'{layer}lora_a'] = uniform(jax.random.fold_in(key, i), (fan_in, recipe.lora_rank), jnp.float32)
    updates[f'{layer}lora_b'] = jnp.zeros((recipe.lora_rank, fan_out))
  return {**params, 'lora': flax.traverse_util.unflatten_dict(updates, sep='/')}


def merge(params: Params, alpha: float) -> dict[str, Any]:
  """`params` without the part 'lora', whose updates, times alpha / rank, are added to their kernels."""
  if 'lora' not in params:
    return dict(params)
  plain = {part: tree for part, tree in params.items() if part != 'lora'}
  flat = flax.traverse_util.flatten_dict({part: plain[part] for part in params['lora']}, sep='/')
  flat |= flax.traverse_util.flatten_dict(params['lora'], sep='/')
  return {**plain, **flax.traverse_util.unflatten_dict(adapters.merge_lora(flat, alpha), sep='/')}


# Judgement.


@functools.partial(jax.jit, static_argnums=0, static_argnames=('size', 'steps'))
def pictures(
  model: LatentDiffusion,
  params: Params,
  ids: jax.Array,
  negative: jax.Array | None,
  keys: jax.Array,
  *,
  size: int,
  steps: int,
  guidance: float,
) -> jax.Array:
  """Photos of one prompt i32 [1, T] as 8-bit pictures, uint8 [B, size, size, 3]; arguments as in `prior_photos`."""
  context = jnp.repeat(model.context(params, ids), len(keys), 0)
  against = None if negative is None else jnp.repeat(model.context(params, negative), len(keys), 0)
  made = model.generate(params, context, keys, size=size, steps=steps, negative=against, guidance=guidance)
  return image.to_levels(made)


@functools.partial(jax.jit, static_argnums=0)
def face_loss(
  model: LatentDiffusion, params: Params, latents: jax.Array, weights: jax.Array, ids: jax.Array, key: jax.Array
) -> jax.Array:
  """How well a model knows a person: its denoising loss on photos that it has not seen, inside the face (spec 9c).

  Args:
    model: the networks.
    params: 'unet' and 'text', low-rank updates merged.
    latents: f32 [n, h, w, D], scaled, of clean photos.
    weights: f32 [n, h, w, 1] >= 0, the face.
    ids: i32 [1, T], the person's prompt.
    key: of the noise, which belongs to (photo, timestep): two models are judged on the same.

  Returns:
    f32 [n], each a mean over `TIMES`.
  """
  context = jnp.repeat(model.context(params, ids), len(latents), 0)
  keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(len(latents)))

  def at(t):
    noise = normal(jax.vmap(jax.random.fold_in, (0, None))(keys, t), latents.shape[1:])
    errors = model.errors(params, latents, context, jnp.full(len(latents), t), noise).mean(-1, keepdims=True)
    return jnp.sum(weights * errors, (1, 2, 3)) / jnp.sum(weights, (1, 2, 3))

  return jax.lax.map(at, jnp.round(jnp.array(TIMES) * model.schedule.steps).astype(jnp.int32)).mean(0)


# Class photos.


def prior_photos(
  model: LatentDiffusion,
  params: Params,
  ids: np.ndarray,
  count: int,
  size: int,
  seed: int,
  folder: str | os.PathLike[str],
  *,
  negative: np.ndarray | None = None,
  steps: int = 20,
  guidance: float = 7.5,
  batch_size: int = 8,
) -> np.ndarray:
  """What the model makes of the class's prompt, made once: a folder keeps them as 0000.png, 0001.png ...

  Photo i depends on `fold_in(key(seed), i)` alone. So a run that was stopped goes on where it was, and a folder of
  fewer photos is added to.

  Args:
    model, params: what makes them, before it is personalised.
    ids: i32 [1, T], the prompt.
    count: how many.
    size: pixels along a side.
    seed: of the noise.
    folder: of the cache; made if it is not there.
    negative: i32 [1, T], the empty prompt, for guidance; None: no guidance.
    steps, guidance: of the sampler.
    batch_size: photos made at a time.

  Returns:
    uint8 [count, size, size, 3].

  Raises:
    UserError: the folder holds the class photos of something else.
  """
  folder = pathlib.Path(folder).expanduser()
  about = {'model': fingerprint(params), 'size': size, 'seed': seed, 'steps': steps, 'ids': np.asarray(ids).tolist()}
  about |= {} if negative is None else {'negative': np.asarray(negative).tolist(), 'guidance': guidance}
  _claim(folder, about)
  paths = [folder / f'{i:04d}.png' for i in range(count)]
  lost = [i for i, path in enumerate(paths) if not path.exists()]
  key, options = jax.random.key(seed), {'size': size, 'steps': steps, 'guidance': guidance}
  for first in range(0, len(lost), batch_size):
    rows = lost[first : first + batch_size]
    filled = jnp.array((rows * batch_size)[:batch_size])  # one shape, compiled once
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(filled)
    made = np.asarray(pictures(model, params, ids, negative, keys, **options))
    for i, photo in zip(rows, made, strict=False):
      write_atomically(paths[i], image.png_bytes(photo))
  return np.stack([image.read(path, min_side=1) for path in paths])


def fingerprint(params: Params) -> str:
  """A digest of the three networks' parameters: names, shapes, and the first numbers of every leaf."""
  digest = hashlib.sha256()
  parts = {part: params[part] for part in ('autoencoder', 'unet', 'text')}
  for path, leaf in sorted(flax.traverse_util.flatten_dict(parts, sep='/').items()):
    digest.update(f'{path} {leaf.shape}'.encode())
    digest.update(np.asarray(leaf.reshape(-1)[:64], np.float32).tobytes())
  return digest.hexdigest()[:16]


def _claim(folder: pathlib.Path, about: Mapping[str, Any]) -> None:
  """Writes what a folder's photos are made of, or compares it with what is written there."""
  record = folder / 'prior.json'
  if not record.exists():
    if folder.exists() and any(folder.iterdir()):
      raise UserError(f'{folder}: expected an empty folder, or one of class photos with prior.json. Name another one.')
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(record, json.dumps(about, indent=1).encode())
  known = json.loads(record.read_text())
  if changed := [name for name in sorted({*about, *known}) if about.get(name) != known.get(name)]:
    raise UserError(
      f'{folder}: its class photos were made with another {" and another ".join(changed)}. Delete the folder to make'
      ' them anew, or name another one.'
    )
