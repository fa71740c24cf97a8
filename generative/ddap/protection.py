"""Protects photos: the dual-domain loop of DDAP, and every other method of `generative.ddap.methods` (spec 3.5).

    protected = protect(model, params, photos, build('ddap'), keys=jax.random.split(key, len(photos)),
                        instance_ids=ids, reference=reference, prior=prior, recipe=recipe)

  f <- pre-trained
  every outer iteration:   f' <- f, personalised for a few steps on clean photos of the person
                           sign steps on the photos against f', in pixels and in coefficients in turn
                           f  <- f, personalised for a few steps on the photos as they are now

The inner steps are one compiled loop. What is a number (budget, step, λ, the kept coefficients, masks, timesteps) is an
argument of it, so that methods share one program unless they need other networks or losses (`Plan`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from core.attacks import gradient as attacks
from core.diffusion import personalisation
from core.diffusion.latent import LatentDiffusion, Params
from core.diffusion.personalisation import Photos, Recipe
from core.errors import UserError
from core.metrics.frequency import BLOCK
from generative.ddap import frequency, selection, spatial
from generative.ddap.methods import Method

SURROGATE = Recipe(instance_batch=1, prior_batch=1)
"""How surrogates are personalised: one photo of the person and one of the class per step (spec 4)."""

# What is folded into keys beside the numbers of steps.
_START, _SELECT, _FIT = (2**31 + i for i in range(3))


class Protected(NamedTuple):
  """What `protect` gives.

  Attributes:
    photos: f32 [n, H, W, 3] in -1..1, within the budget; not yet rounded to 8 bits.
    history: {'reconstruction', 'latent': f32 [steps, n] before each step, 'frequency': bool [steps]}; L_rec is 0 where
      it is not computed.
  """

  photos: jax.Array
  history: Mapping[str, np.ndarray]


class Plan(NamedTuple):
  """What makes another program.

  Attributes:
    unet, decoder, feature: which of L_rec (as denoising loss or as the decoder's error) and the features' loss exist.
    latent: mode of L_lat.
    spectra: draws of spectrum augmentation, 0 without.
    micro: photos whose gradients are computed at a time, 0 for all.
  """

  unet: bool
  decoder: bool
  feature: bool
  latent: str
  spectra: int
  micro: int


class Anchor(NamedTuple):
  """What belongs to each photo and stays: the clean photo f32 [n, H, W, 3], the moments f32 [n, h, w, D] that it is
  compared with, its own or the target's, and the timesteps bool [n, T] that may be drawn."""

  photo: jax.Array
  mean: jax.Array
  log_variance: jax.Array
  times: jax.Array


class Numbers(NamedTuple):
  """What a method sets, all in -1..1: ε, ε_out, α, α_f, and H f32 [8, 8]."""

  epsilon: jax.Array
  outside: jax.Array
  step: jax.Array
  frequency_step: jax.Array
  detail: jax.Array


class Row(NamedTuple):
  """One step: its number, whether it is FPL's, its λ, and the timestep that it stays below."""

  index: jax.Array
  frequency: jax.Array
  rec: jax.Array
  lat: jax.Array
  feature: jax.Array
  below: jax.Array


def protect(
  model: LatentDiffusion,
  params: Params,
  photos: jax.Array,
  method: Method,
  *,
  keys: jax.Array,
  instance_ids: jax.Array,
  reference: Photos | None = None,
  prior: Photos | None = None,
  recipe: Recipe = SURROGATE,
  mask: jax.Array | None = None,
  target: jax.Array | None = None,
  rng: jax.Array | None = None,
  micro: int = 0,
  on_step: Callable[[int, int, Mapping[str, float]], None] | None = None,
) -> Protected:
  """Perturbs photos within the method's budget.

  A photo does not depend on its batch, unless surrogates follow the protected photos (surrogate 'aspl').

  Args:
    model: the networks.
    params: theirs; not changed. A method without U-Net needs 'autoencoder' only.
    photos: f32 [n, H, W, 3] in -1..1, sides multiples of 8.
    method: which, and how far.
    keys: [n], one per photo.
    instance_ids: i32 [1, T], the prompt of the person ('a photo of sks person').
    reference: clean photos of the person for the surrogates (set A); `personalisation.encode`.
    prior: photos of the class for the surrogates, or None.
    recipe: of the surrogates.
    mask: [n, H, W, 1] in 0..1, where to perturb; None: everywhere.
    target: f32 [H, W, 3] in -1..1, of the methods with a target; None: `spatial.pattern`.
    rng: key of the surrogates; None: one made of keys[0].
    micro: photos whose gradients are computed at a time, for less memory; 0: all.
    on_step: called after every outer iteration with (steps done, steps in all, {'reconstruction', 'latent'}).

  Raises:
    UserError: the photos have no whole blocks; the method needs a mask or clean photos and has none.
  """
  photos = jnp.asarray(photos, jnp.float32)
  mask = _checked(model, method, photos, mask, keys, reference)
  if method.idle:
    return Protected(photos, {})
  numbers = _numbers(method)
  budget = (mask, numbers.outside)
  starts = attacks.fold(keys, _START)
  if method.domain == 'noise':
    return Protected(_random(starts, photos, numbers.epsilon, *budget), {})

  parts = ('autoencoder', 'unet', 'text') if method.unet else ('autoencoder',)
  params = {part: params[part] for part in parts}
  rng = jax.random.fold_in(keys[0], _FIT) if rng is None else rng
  surrogate = _Surrogate(model, params, method, instance_ids, reference, prior, recipe, rng)
  anchor = _anchor(model, params, method, photos, mask, numbers, instance_ids, target, keys)
  plan = _plan(method, micro)
  x = _started(starts, photos, method.start, numbers.epsilon, *budget)
  history = []
  for i in range(method.outer):
    attacked, rows = surrogate.attacked(i), _rows(model, method, i)
    x, seen = _attack(model, plan, attacked, instance_ids, x, mask, anchor, numbers, rows, keys)
    surrogate.follow(i, x)
    history.append(seen)
    if on_step is not None:
      on_step((i + 1) * method.inner, method.steps, {name: float(values[-1].mean()) for name, values in seen.items()})
  whole = {name: np.concatenate([np.asarray(each[name]) for each in history]) for name in history[0]}
  turns = [row[0] for i in range(method.outer) for row in method.rows(i)]
  return Protected(x, {**whole, 'frequency': np.array(turns)})


@dataclasses.dataclass
class _Surrogate:
  """The model that is attacked, and the one behind it (f), as the method's scheme has them.

  Attributes:
    model, method, ids, reference, prior, recipe, rng: as `protect` has them.
    f: pre-trained at first, and then personalised on the photos as they change, with 'aspl'.
  """

  model: LatentDiffusion
  f: Params
  method: Method
  ids: jax.Array
  reference: Photos | None
  prior: Photos | None
  recipe: Recipe
  rng: jax.Array

  def attacked(self, outer: int) -> Params:
    """f', for the steps of an outer iteration."""
    if not self.method.fits:
      return self.f
    if self.method.surrogate == 'fsmg':
      if outer == 0:
        self.f = self._learnt(self.reference, 0, self.method.fsmg_steps)
      return self.f
    return self._learnt(self.reference, 2 * outer, self.method.surrogate_steps)

  def follow(self, outer: int, photos: jax.Array) -> None:
    """f learns from the photos as they are after an outer iteration, if there is another one to come."""
    if self.method.fits and self.method.surrogate == 'aspl' and outer + 1 < self.method.outer:
      now = personalisation.encode(self.model, self.f, photos, self.ids)
      self.f = self._learnt(now, 2 * outer + 1, self.method.surrogate_steps)

  def _learnt(self, photos: Photos, number: int, steps: int) -> Params:
    key = jax.random.fold_in(self.rng, number)
    return personalisation.fit(self.model, self.f, photos, self.prior, self.recipe, key, steps=steps)


def _plan(method: Method, micro: int) -> Plan:
  return Plan(
    unet=method.unet and method.recon == 'denoising',
    decoder=method.recon == 'decoder',
    feature=method.feature > 0,
    latent='mean' if method.latent == 'target' else method.latent,  # the same numbers of another anchor
    spectra=method.spectra if method.frequency_mode == 'spectrum_aug' else 0,
    micro=micro,
  )


_random = jax.jit(attacks.random_signs)


@jax.jit
def _started(keys, photos, share, epsilon, *budget):
  """The photos moved by up to `share` of the budget."""
  mask, outside = budget
  return attacks.random_start(keys, photos, share * epsilon, mask, share * outside)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _attack(model, plan, params, ids, x, mask, anchor, numbers, rows, keys):
  """The steps of one outer iteration: (x, {'reconstruction', 'latent': f32 [steps, n]})."""
  context = model.context(params, ids) if plan.unet or plan.feature else None
  differentiate = functools.partial(_gradient, model, plan, params, context)

  def step(x: jax.Array, row: Row):
    keys_now = attacks.fold(keys, row.index)
    slope, seen = differentiate(x, keys_now, anchor, row)
    pixels = numbers.step * jnp.sign(slope)
    if plan.spectra:
      direction = pixels
    else:
      detail = frequency.detail_direction(slope, numbers.frequency_step, numbers.detail)
      direction = jnp.where(row.frequency, detail, pixels)
    return attacks.move(x, anchor.photo, direction, numbers.epsilon, mask, numbers.outside), seen

  return jax.lax.scan(step, x, rows)


def _gradient(model, plan, params, context, x, keys, anchor, row):
  """(∇ of the step's loss f32 [n, H, W, 3], the losses f32 [n] each), `plan.micro` photos at a time."""

  def objective(x, keys, anchor):
    moments = model.moments(params, x)
    below = jnp.arange(model.schedule.steps) < row.below
    draws = spatial.draw(keys, moments[0].shape[1:], anchor.times & below)
    clean = (anchor.mean, anchor.log_variance)
    rec = feature = jnp.zeros(x.shape[0])
    if plan.unet:
      rec = spatial.denoising_loss(model, params, moments, context, draws)
    elif plan.decoder:
      rec = spatial.decoder_loss(model, params, moments, anchor.photo)
    if plan.feature:
      feature = spatial.feature_loss(model, params, moments, clean, context, draws)
    lat = spatial.latent_loss(model, moments, clean, draws, mode=plan.latent)
    total = row.rec * rec + row.lat * lat + row.feature * feature
    return total.sum(), {'reconstruction': rec, 'latent': lat}

  slope = jax.grad(objective, has_aux=True)

  def group(x, keys, anchor):
    if not plan.spectra:
      return slope(x, keys, anchor)
    return jax.lax.cond(
      row.frequency, lambda: _averaged(slope, plan.spectra, x, keys, anchor), lambda: slope(x, keys, anchor)
    )

  if not plan.micro:
    return group(x, keys, anchor)

  def single(photo):
    return jax.tree.map(lambda leaf: leaf[0], group(*jax.tree.map(lambda leaf: leaf[None], photo)))

  return jax.lax.map(single, (x, keys, anchor), batch_size=plan.micro)


def _averaged(slope, spectra, x, keys, anchor):
  """Mean gradient and losses over `spectra` photos of other spectra."""

  def one(total, i):
    own = attacks.fold(keys, i)
    return jax.tree.map(jnp.add, total, slope(frequency.spectrum_aug(x, own), own, anchor)), None

  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(slope, x, keys, anchor))
  total, _ = jax.lax.scan(one, zeros, jnp.arange(spectra))
  return jax.tree.map(lambda leaf: leaf / spectra, total)


def _anchor(model, params, method, photos, mask, numbers, ids, target, keys) -> Anchor:
  """What L_lat compares with, encoded once, and the timesteps of L_rec."""
  compared = photos
  if method.latent == 'target':
    target = spatial.pattern(*photos.shape[1:3]) if target is None else jnp.asarray(target, jnp.float32)
    if target.shape != photos.shape[1:]:
      raise UserError(f'a target of shape {target.shape} for photos of shape {photos.shape[1:]}: expected the same.')
    compared = jnp.asarray(target)[None]
  anchor = personalisation.encode(model, params, compared, ids)
  moments = [jnp.broadcast_to(each, (photos.shape[0], *each.shape[1:])) for each in anchor[:2]]
  times = jnp.ones((photos.shape[0], model.schedule.steps), bool)
  if method.timesteps == 'simac' and method.unet:
    chosen = attacks.fold(keys, _SELECT)
    times = selection.timesteps(model, params, photos, ids, chosen, numbers.step, numbers.epsilon, mask)
  return Anchor(photos, *moments, times)


def _numbers(method: Method) -> Numbers:
  detail = frequency.detail_weights(method.k0)
  numbers = (method.epsilon, method.outside, method.step, frequency.matched_step(method.step, method.k0), detail)
  return Numbers(*(jnp.asarray(each, jnp.float32) for each in numbers))


def _rows(model: LatentDiffusion, method: Method, outer: int) -> Row:
  """The steps of an outer iteration as arrays [inner]."""
  rows = method.rows(outer)
  whole, share = model.schedule.steps, method.frequency_t
  turns, rec, lat, feature = (np.array(column) for column in zip(*rows, strict=True))
  below = np.where(turns, max(1, round(share * whole)), whole).astype(np.int32)
  index = np.arange(outer * method.inner, (outer + 1) * method.inner, dtype=np.int32)
  weights = [np.asarray(each, np.float32) for each in (rec, lat, feature)]
  return Row(*(jnp.asarray(each) for each in (index, turns, *weights, below)))


def _checked(model, method, photos, mask, keys, reference) -> jax.Array:
  """The mask, f32 [n, H, W, 1], of photos and arguments that fit each other."""
  side = int(np.lcm(BLOCK, model.autoencoder.factor))
  if photos.ndim != 4 or photos.shape[-1] != 3 or photos.shape[1] % side or photos.shape[2] % side:
    raise UserError(f'photos of shape {photos.shape}: expected [n, H, W, 3] with sides that are multiples of {side}.')
  if keys.shape != photos.shape[:1]:
    raise UserError(f'{photos.shape[0]} photos with keys of shape {keys.shape}: expected a key per photo.')
  if method.masked and mask is None:
    raise UserError('the method perturbs within a mask, and there is none: give one, or take the method without +mask.')
  if method.fits and reference is None:
    raise UserError(
      f"surrogate '{method.surrogate}' needs clean photos of the person (set A) to personalise a model on:"
      " give `reference`, or take surrogate='none', which attacks the model as it is."
    )
  wanted = (*photos.shape[:3], 1)
  if mask is None:
    return jnp.ones(wanted)
  if mask.shape != wanted:
    raise UserError(f'a mask of shape {mask.shape} for photos of shape {photos.shape}: expected {wanted}.')
  return jnp.asarray(mask, jnp.float32)
