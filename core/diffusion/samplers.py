"""Samplers: DDIM, DDPM, DPM-Solver++(2M) and Euler, as one compiled loop over a table of numbers.

A step of each is linear in five arrays: x, the sample and the noise that the network's prediction implies, the sample
of the step before, and fresh noise. So a sampler is a table of factors (`Walk`), computed once on the host in f64, and
one `lax.scan` runs them all. Everything is in the coordinates of variance-preserving diffusion, x = sqrt(ᾱ) z +
sqrt(1 - ᾱ) ε; Euler, which others write for x / sqrt(ᾱ), is the same walk in them.

Timesteps, last steps and roundings are those of diffusers' schedulers, sample for sample.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from core.diffusion.schedule import VARIANTS, Schedule, split
from core.errors import UserError, nearest

Denoise = Callable[[jax.Array, jax.Array, Any], jax.Array]
"""(x f32 [B, ...], t [B], context) -> prediction [B, ...]; t is i32, or f32 with Euler, which may stand between two."""
RHO = 7.0
"""The exponent of Karras et al. (arXiv 2206.00364, table 1)."""


class Walk(NamedTuple):
  """N steps of a sampler, each array [N] (f32, timesteps i32 or f32):

    x <- x * x + sample * ẑ + epsilon * ε̂ + previous * ẑ of the step before + fresh * noise

  signal and noise are the rates at which the network's prediction is read, as ẑ and ε̂.
  """

  timesteps: np.ndarray
  signal: np.ndarray
  noise: np.ndarray
  x: np.ndarray
  sample: np.ndarray
  epsilon: np.ndarray
  previous: np.ndarray
  fresh: np.ndarray


@dataclasses.dataclass(frozen=True)
class Sampler:
  """A way to walk a schedule.

  Attributes:
    name: 'ddim' (arXiv 2010.02502), 'ddpm' (2006.11239, with the small variance), 'dpmpp_2m' (2211.01095, algorithm 2)
      or 'euler' (2206.00364, without churn).
    schedule: what the network was trained with.
    eta: DDIM's share of fresh noise: 0 for none, 1 for as much as DDPM.
  """

  name: str = 'ddim'
  schedule: Schedule = VARIANTS['sd1']
  eta: float = 0.0

  def __post_init__(self):
    if self.name not in _WALKS:
      raise UserError(f"sampler '{self.name}' is not known; there are {', '.join(_WALKS)}.{nearest(self.name, _WALKS)}")
    if self.eta and self.name != 'ddim':
      raise UserError(f"sampler '{self.name}' has no eta (found {self.eta}); leave it 0, or take 'ddim'.")
    if not 0 <= self.eta <= 1:
      raise UserError(f'eta is {self.eta}; expected 0 to 1.')

  def walk(self, steps: int, strength: float = 1.0) -> Walk:
    """The table of `steps` steps, without the first of them where `strength` < 1 (image to image)."""
    if not 1 <= steps <= self.schedule.steps:
      raise UserError(f'steps is {steps}; expected 1 to {self.schedule.steps}, the timesteps of the schedule.')
    if not 0 < strength <= 1:
      raise UserError(f'strength is {strength}; expected a share in (0, 1].')
    first = steps - int(steps * strength)
    if first == steps:
      raise UserError(f'strength {strength} of {steps} steps is no step; raise strength to {1 / steps:.3g} or more.')
    columns = _WALKS[self.name](self, steps, first)
    timesteps = columns.pop('timesteps')
    zeros = np.zeros(len(timesteps), np.float32)
    filled = {name: np.asarray(columns.get(name, zeros), np.float32) for name in Walk._fields[1:]}
    return Walk(np.asarray(timesteps, np.float32 if self.name == 'euler' else np.int32), **filled)


def sample(
  denoise: Denoise,
  noise: jax.Array,
  sampler: Sampler,
  steps: int,
  *,
  context: Any = None,
  negative: Any = None,
  guidance: float | jax.Array = 7.5,
  rng: jax.Array | None = None,
  image: jax.Array | None = None,
  strength: float = 1.0,
) -> jax.Array:
  """Makes samples from noise. Call it within `jax.jit`, with the network's parameters an argument of that function.

  Args:
    denoise: the network, a function of (x, t, context).
    noise: N(0, 1), [B, ...].
    sampler: the sampler, with its schedule.
    steps: how many; one evaluation of the network each.
    context: what the network is given beside x and t, a tree of arrays [B, ...].
    negative: like `context`, for classifier-free guidance (arXiv 2207.12598): both run in one batch of 2B. None for no
      guidance.
    guidance: the scale w of negative + w (context - negative); used with `negative` only.
    rng: a typed key, or [B] of them, so that a row does not depend on its batch. Read where there is fresh noise.
    image: latents [B, ...] to start from, in the place of noise alone.
    strength: with `image`, the share of the steps that is walked; the first 1 - strength are left out.

  Returns:
    f32 [B, ...].
  """
  walk = sampler.walk(steps, strength)
  _check(sampler, walk, noise, context, negative, rng, image, strength)
  predict = denoise if negative is None else _guided(denoise, negative, guidance)
  clip = sampler.schedule.clip if sampler.name in ('ddim', 'ddpm') else None

  def step(carry, row_and_index):
    x, before = carry
    row, index = row_and_index
    t = jnp.full(x.shape[:1], row.timesteps)
    z, eps = split(sampler.schedule.prediction, predict(x, t, context), x, row.signal, row.noise)
    if clip is not None:
      z = jnp.clip(z, -clip, clip)
    new = row.x * x + row.sample * z + row.epsilon * eps + row.previous * before
    if walk.fresh.any():
      new += row.fresh * step_noise(rng, index, x.shape)
    return (new, z), None

  x = _start(sampler, walk, noise.astype(jnp.float32), image)
  rows = jax.tree.map(jnp.asarray, walk)
  (x, _), _ = jax.lax.scan(step, (x, jnp.zeros_like(x)), (rows, jnp.arange(len(walk.timesteps))))
  return x


def step_noise(rng: jax.Array, step: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """The fresh noise of a step, f32 of `shape` [B, ...]; from one key, or from a key for each row."""
  if rng.ndim == 0:
    return jax.random.normal(jax.random.fold_in(rng, step), shape)
  return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), shape[1:]))(rng)


def _check(
  sampler: Sampler,
  walk: Walk,
  noise: jax.Array,
  context: Any,
  negative: Any,
  rng: jax.Array | None,
  image: jax.Array | None,
  strength: float,
) -> None:
  """Refuses arguments of `sample` that do not go together."""
  if image is None and strength != 1:
    raise UserError(f'strength is {strength} but there is no image to start from; give `image`, or leave strength 1.')
  if image is not None and image.shape != noise.shape:
    raise UserError(f'image is {image.shape} and noise {noise.shape}; expected latents and noise of one shape.')
  if negative is not None and context is None:
    raise UserError('there is a `negative` but no `context` to lead to; give both, or neither for no guidance.')
  if not walk.fresh.any():
    return
  if rng is None:
    raise UserError(f"sampler '{sampler.name}' (eta {sampler.eta}) draws fresh noise at every step; give `rng`.")
  typed = jnp.issubdtype(rng.dtype, jax.dtypes.prng_key)
  if not typed or rng.shape not in ((), noise.shape[:1]):
    expected = f'a key of jax.random.key, or {noise.shape[0]} of them, one for each row'
    raise UserError(f'rng is {rng.dtype} {rng.shape}; expected {expected}.')


def _start(sampler: Sampler, walk: Walk, noise: jax.Array, image: jax.Array | None) -> jax.Array:
  if image is not None:
    return walk.signal[0] * image.astype(jnp.float32) + walk.noise[0] * noise
  # diffusers' Euler begins with σ_max ε, unless the timesteps are 'leading', in coordinates where that is not N(0, 1).
  exact = sampler.name == 'euler' and sampler.schedule.spacing != 'leading'
  return walk.noise[0] * noise if exact else noise


def _guided(denoise: Denoise, negative: Any, guidance: float | jax.Array) -> Denoise:
  """Classifier-free guidance: the network sees a batch of 2B, where row 2i is without and row 2i + 1 with context i.

  So both rows of a sample lie on its device when the batch is sharded; with one half after the other they would move.
  """

  def pair(first, second):
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])

  def predict(x, t, context):
    prediction = denoise(pair(x, x), pair(t, t), jax.tree.map(pair, negative, context)).astype(jnp.float32)
    without, within = prediction[0::2], prediction[1::2]
    return without + guidance * (within - without)

  return predict


def _ddim(sampler: Sampler, steps: int, first: int) -> dict[str, np.ndarray]:
  """Equations 12 and 16. The step before t is t - T // steps, whatever the spacing, as in diffusers."""
  schedule = sampler.schedule
  t = _timesteps(schedule, schedule.spacing or 'leading', steps)[first:]
  alphas = schedule.alphas_cumprod.astype(np.float64)
  last = 1.0 if schedule.set_alpha_to_one else alphas[0]
  to = t - schedule.steps // steps
  now, then = alphas[t], np.where(to >= 0, alphas[to], last)
  deviation = sampler.eta * np.sqrt((1 - then) / (1 - now) * (1 - now / then))
  return {
    'timesteps': t,
    'signal': np.sqrt(now),
    'noise': np.sqrt(1 - now),
    'sample': np.sqrt(then),
    'epsilon': np.sqrt(1 - then - deviation**2),
    'fresh': deviation,
  }


def _ddpm(sampler: Sampler, steps: int, first: int) -> dict[str, np.ndarray]:
  """Equations 6 and 7, over the timesteps that are visited; the last step goes to ᾱ = 1 and draws no noise."""
  schedule = sampler.schedule
  t = _timesteps(schedule, schedule.spacing or 'leading', steps)[first:]
  now = schedule.alphas_cumprod.astype(np.float64)[t]
  then = np.append(now[1:], 1.0)
  beta = 1 - now / then
  return {
    'timesteps': t,
    'signal': np.sqrt(now),
    'noise': np.sqrt(1 - now),
    'x': np.sqrt(now / then) * (1 - then) / (1 - now),
    'sample': np.sqrt(then) * beta / (1 - now),
    'fresh': np.sqrt((1 - then) / (1 - now) * beta),
  }


def _dpmpp_2m(sampler: Sampler, steps: int, first: int) -> dict[str, np.ndarray]:
  """Second order by the sample of the step before; first order in the first step, and in the last, where σ is 0."""
  schedule = sampler.schedule
  spacing = schedule.spacing or 'linspace'
  levels = _levels(schedule)
  if schedule.karras:
    sigmas = _karras(levels[-1], levels[0], steps)
    t = np.round(_timestep_of(levels, sigmas)).astype(np.int64)
  else:
    # One timestep more than steps, the lowest left out: the solver ends at σ = 0 and not at timestep 0.
    t = _timesteps(schedule, spacing, steps if spacing == 'trailing' else steps + 1)[:steps]
    sigmas = levels[t]
  t, sigmas = t[first:], sigmas[first:]
  signal = 1 / np.sqrt(sigmas**2 + 1)
  noise, to = sigmas * signal, np.append(sigmas[1:], 0.0)
  gain = (1 - to / sigmas) / np.sqrt(to**2 + 1)
  correction = np.zeros_like(gain)
  h = -np.diff(np.log(sigmas))
  correction[1:-1] = gain[1:-1] * 0.5 * h[1:] / h[:-1]
  return {
    'timesteps': t,
    'signal': signal,
    'noise': noise,
    'x': to / np.sqrt(to**2 + 1) / noise,
    'sample': gain + correction,
    'previous': -correction,
  }


def _euler(sampler: Sampler, steps: int, first: int) -> dict[str, np.ndarray]:
  """x / sqrt(ᾱ) moves by (σ' - σ) ε̂, σ = sqrt(1/ᾱ - 1); timesteps may be fractions, between which σ is interpolated."""
  schedule = sampler.schedule
  spacing = schedule.spacing or 'linspace'
  levels = _levels(schedule)
  t = _timesteps(schedule, spacing, steps, fractions=True)
  sigmas = np.interp(t, np.arange(schedule.steps), levels)
  if schedule.karras:
    sigmas = _karras(sigmas[0], sigmas[-1], steps)
    t = _timestep_of(levels, sigmas)
  t, sigmas = t[first:], sigmas[first:]
  to = np.append(sigmas[1:], 0.0)
  signal, then = 1 / np.sqrt(sigmas**2 + 1), 1 / np.sqrt(to**2 + 1)
  return {
    'timesteps': t,
    'signal': signal,
    'noise': sigmas * signal,
    'x': then / signal,
    'epsilon': then * (to - sigmas),
  }


_WALKS = {'ddim': _ddim, 'ddpm': _ddpm, 'dpmpp_2m': _dpmpp_2m, 'euler': _euler}


def _timesteps(schedule: Schedule, spacing: str, count: int, *, fractions: bool = False) -> np.ndarray:
  """`count` timesteps from high to low (arXiv 2305.08891, table 2); whole, unless 'linspace' may have fractions."""
  if spacing == 'leading':
    t = np.arange(count)[::-1] * (schedule.steps // count) + schedule.steps_offset
  elif spacing == 'trailing':
    t = np.round(schedule.steps - np.arange(count) * (schedule.steps / count)) - 1
  else:
    t = np.linspace(0, schedule.steps - 1, count)[::-1]
    t = t.astype(np.float32) if fractions else np.round(t)
  if t[0] >= schedule.steps or (np.diff(t) >= 0).any():
    found = f"{count} timesteps with spacing '{spacing}' and steps_offset {schedule.steps_offset}"
    raise UserError(f'{found} do not fit into 0 to {schedule.steps - 1}, each once; take fewer steps.')
  return t if fractions else t.astype(np.int64)


def _levels(schedule: Schedule) -> np.ndarray:
  """σ_t = sqrt((1 - ᾱ_t) / ᾱ_t), f64 [T], rising."""
  alphas = schedule.alphas_cumprod.astype(np.float64)
  return np.sqrt((1 - alphas) / alphas)


def _karras(highest: float, lowest: float, steps: int) -> np.ndarray:
  """Noise levels from the highest to the lowest, evenly spaced in σ^(1/7)."""
  return np.linspace(highest ** (1 / RHO), lowest ** (1 / RHO), steps) ** RHO


def _timestep_of(levels: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
  """The timestep, a fraction, at which log σ has a value."""
  return np.interp(np.log(sigmas), np.log(levels), np.arange(len(levels)))
