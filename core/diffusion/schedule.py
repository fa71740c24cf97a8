"""The process that adds noise: z_t = sqrt(ᾱ_t) z + sqrt(1 - ᾱ_t) ε (spec 3.1; DDPM, arXiv 2006.11239, equation 4).

A network predicts ε, or v = sqrt(ᾱ_t) ε - sqrt(1 - ᾱ_t) z (arXiv 2202.00512). Rates stay in f32 whatever the dtype of
the latents: in bfloat16 ᾱ_0 is 1, and the noise of the first timestep gone.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError, nearest

BETAS = ('scaled_linear', 'linear')
PREDICTIONS = {'epsilon': 'epsilon', 'v_prediction': 'v'}
"""Names of diffusers, and ours."""
SPACINGS = ('leading', 'trailing', 'linspace')


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How much noise each timestep has, and which timesteps a sampler visits. The defaults are Stable Diffusion 1's.

  Attributes:
    betas: 'scaled_linear' (linear in the root, as latent diffusion has it) or 'linear' (DDPM).
    beta_start: β of the first timestep.
    beta_end: β of the last.
    steps: timesteps in training, T; a timestep is 0..T-1.
    prediction: what the network gives, 'epsilon' or 'v'.
    spacing: which timesteps a sampler takes: 'leading', 'trailing' or 'linspace' (arXiv 2305.08891, table 2); None for
      the sampler's own, which is 'leading' for DDIM and DDPM, 'linspace' for DPM-Solver++ and Euler.
    steps_offset: added to timesteps with 'leading'.
    set_alpha_to_one: whether DDIM's last step goes to ᾱ = 1, or to ᾱ_0 and so keeps the noise of timestep 0.
    clip: the bound that DDIM and DDPM clip the predicted sample to; None for latents, which have no bound.
    karras: whether DPM-Solver++ and Euler take the noise levels of Karras et al. (arXiv 2206.00364, equation 5).
  """

  betas: str = 'scaled_linear'
  beta_start: float = 0.00085
  beta_end: float = 0.012
  steps: int = 1000
  prediction: str = 'epsilon'
  spacing: str | None = None
  steps_offset: int = 1
  set_alpha_to_one: bool = False
  clip: float | None = None
  karras: bool = False

  def __post_init__(self):
    _one_of('betas', self.betas, BETAS)
    _one_of('prediction', self.prediction, tuple(PREDICTIONS.values()))
    if self.spacing is not None:
      _one_of('spacing', self.spacing, SPACINGS)
    if not (0 < self.beta_start <= self.beta_end < 1 and self.steps > 0):
      found = f'beta_start {self.beta_start}, beta_end {self.beta_end}, steps {self.steps}'
      raise UserError(f'Schedule: found {found}; expected 0 < beta_start <= beta_end < 1 and at least one step.')

  @functools.cached_property
  def alphas_cumprod(self) -> np.ndarray:
    """ᾱ_t, f32 [T]. Multiplied in f64 and rounded once (our choice; diffusers' f32 product is within 1e-6)."""
    if self.betas == 'linear':
      betas = np.linspace(self.beta_start, self.beta_end, self.steps)
    else:
      betas = np.linspace(math.sqrt(self.beta_start), math.sqrt(self.beta_end), self.steps) ** 2
    return np.cumprod(1 - betas).astype(np.float32)

  @functools.cached_property
  def rates(self) -> tuple[np.ndarray, np.ndarray]:
    """(sqrt(ᾱ_t), sqrt(1 - ᾱ_t)): the shares of sample and noise, f32 [T] each."""
    alphas = self.alphas_cumprod.astype(np.float64)
    return np.sqrt(alphas).astype(np.float32), np.sqrt(1 - alphas).astype(np.float32)

  def add_noise(self, z: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
    """z_t of the samples `z` [B, ...] with the noise `eps` [B, ...] at `t` i32 [B]; in z's dtype, computed in f32."""
    signal, noise = self._rates_at(t, z.ndim)
    return (signal * z.astype(jnp.float32) + noise * eps.astype(jnp.float32)).astype(z.dtype)

  def target(self, z: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
    """What the network should give for `add_noise(z, eps, t)`: ε or v, in z's dtype, computed in f32."""
    if self.prediction == 'epsilon':
      return eps.astype(z.dtype)
    signal, noise = self._rates_at(t, z.ndim)
    return (signal * eps.astype(jnp.float32) - noise * z.astype(jnp.float32)).astype(z.dtype)

  def to_sample(self, prediction: jax.Array, z_t: jax.Array, t: jax.Array) -> jax.Array:
    """The noiseless sample that a network's prediction at `z_t` [B, ...], `t` i32 [B] implies, f32."""
    return split(self.prediction, prediction, z_t, *self._rates_at(t, z_t.ndim))[0]

  def to_epsilon(self, prediction: jax.Array, z_t: jax.Array, t: jax.Array) -> jax.Array:
    """The noise that a network's prediction at `z_t` [B, ...], `t` i32 [B] implies, f32."""
    return split(self.prediction, prediction, z_t, *self._rates_at(t, z_t.ndim))[1]

  def _rates_at(self, t: jax.Array, ndim: int) -> tuple[jax.Array, jax.Array]:
    """The rates at timesteps [B] or [], shaped to multiply an array of `ndim` axes."""
    t = jnp.asarray(t)
    shape = t.shape + (1,) * (ndim - t.ndim)
    return tuple(jnp.asarray(rate)[t].reshape(shape) for rate in self.rates)

  @classmethod
  def from_config(cls, config: Mapping[str, Any], source: str = 'scheduler_config.json') -> Schedule:
    """The schedule that a scheduler's configuration of diffusers describes; keys that are not there have its defaults.

    The class that it names (often PNDM) says what the defaults are, not which sampler is used.

    Raises:
      UserError: something in it would change the samples and is not built here.
    """
    _refuse(config, source)
    kind = config.get('_class_name', 'DDIMScheduler')
    prediction = config.get('prediction_type', 'epsilon')
    betas = config.get('beta_schedule', 'linear')
    _one_of(f'{source}: prediction_type', prediction, tuple(PREDICTIONS))
    _one_of(f'{source}: beta_schedule', betas, BETAS)
    # Only schedulers of pixels clip by default. Elsewhere an absent key means that nothing was ever clipped.
    clips = config.get('clip_sample', kind in ('DDIMScheduler', 'DDPMScheduler'))
    return cls(
      betas=betas,
      beta_start=config.get('beta_start', 0.0001),
      beta_end=config.get('beta_end', 0.02),
      steps=config.get('num_train_timesteps', 1000),
      prediction=PREDICTIONS[prediction],
      spacing=config.get('timestep_spacing'),
      steps_offset=config.get('steps_offset', 0),
      set_alpha_to_one=config.get('set_alpha_to_one', kind != 'PNDMScheduler'),
      clip=config.get('clip_sample_range', 1.0) if clips else None,
      karras=bool(config.get('use_karras_sigmas', False)),
    )

  def to_config(self) -> dict[str, Any]:
    """The configuration for a scheduler/ folder of diffusers; `from_config` gives this schedule back."""
    config = {
      '_class_name': 'DPMSolverMultistepScheduler' if self.karras else 'DDIMScheduler',
      'beta_schedule': self.betas,
      'beta_start': self.beta_start,
      'beta_end': self.beta_end,
      'num_train_timesteps': self.steps,
      'prediction_type': next(theirs for theirs, ours in PREDICTIONS.items() if ours == self.prediction),
      'steps_offset': self.steps_offset,
      'set_alpha_to_one': self.set_alpha_to_one,
      'clip_sample': self.clip is not None,
    }
    if self.clip is not None:
      config['clip_sample_range'] = self.clip
    if self.spacing is not None:
      config['timestep_spacing'] = self.spacing
    if self.karras:
      config['use_karras_sigmas'] = True
    return config


# Keys whose other values give other samples, with the values that are built here.
_ONLY = {
  'trained_betas': (None,),
  'thresholding': (False,),
  'rescale_betas_zero_snr': (False,),
  'variance_type': (None, 'fixed_small'),
  'algorithm_type': ('dpmsolver++',),
  'solver_order': (2,),
  'solver_type': ('midpoint',),
  'final_sigmas_type': ('zero',),
  'interpolation_type': ('linear',),
  'timestep_type': ('discrete',),
  'lambda_min_clipped': (-math.inf, None),
  'sigma_min': (None,),
  'sigma_max': (None,),
  'use_exponential_sigmas': (False, None),
  'use_beta_sigmas': (False, None),
  'use_lu_lambdas': (False,),
  'use_flow_sigmas': (False,),
  'use_dynamic_shifting': (False,),
}
# Keys that are read, and keys that change nothing where those above have these values.
_READ = (
  'beta_schedule', 'beta_start', 'beta_end', 'num_train_timesteps', 'prediction_type', 'timestep_spacing',
  'steps_offset', 'set_alpha_to_one', 'clip_sample', 'clip_sample_range', 'use_karras_sigmas',
)  # fmt: skip
_IDLE = (
  'skip_prk_steps', 'dynamic_thresholding_ratio', 'sample_max_value', 'lower_order_final', 'euler_at_final',
  'flow_shift', 'time_shift_type',
)  # fmt: skip


def read(path: str | os.PathLike[str]) -> Schedule:
  """The schedule of a folder of diffusers.

  Args:
    path: a model's folder, its scheduler/ folder, or the scheduler_config.json itself.
  """
  path = pathlib.Path(path).expanduser()
  name = 'scheduler_config.json'
  candidates = [path / 'scheduler' / name, path / name, path]
  file = next((candidate for candidate in candidates if candidate.is_file()), None)
  if file is None:
    raise UserError(f"{path}: no schedule there; expected {name} in it, or in its folder 'scheduler'.")
  try:
    config = json.loads(file.read_text(encoding='utf-8'))
  except ValueError as error:
    raise UserError(f'{file}: expected JSON, found something else ({error}).') from None
  if not isinstance(config, dict):
    raise UserError(f'{file}: expected an object with the keys of a scheduler, found a {type(config).__name__}.')
  return Schedule.from_config(config, str(file))


def split(
  kind: str, prediction: jax.Array, x: jax.Array, signal: jax.Array, noise: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """(sample, ε) that a prediction of `kind` implies for x = signal * sample + noise * ε, in f32."""
  prediction, x = prediction.astype(jnp.float32), x.astype(jnp.float32)
  if kind == 'epsilon':
    return (x - noise * prediction) / signal, prediction
  return signal * x - noise * prediction, signal * prediction + noise * x


def _refuse(config: Mapping[str, Any], source: str) -> None:
  for key, value in config.items():
    if key in _ONLY and value not in _ONLY[key]:
      way_out = 'Take the schedule of another model, or change the key and expect other samples.'
      built = ' or '.join(repr(known) for known in _ONLY[key])
      raise UserError(f"{source}: '{key}' is {value!r}, but only {built} is built here. {way_out}")
    if not key.startswith('_') and key not in (*_ONLY, *_READ, *_IDLE):
      hint = nearest(key, (*_ONLY, *_READ, *_IDLE)) or ' Remove it if it does not change the samples.'
      raise UserError(f"{source}: the key '{key}' is not known here.{hint}")


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
  if value not in known:
    raise UserError(f'{name} is {value!r}; expected one of {", ".join(known)}.{nearest(value, known)}')


VARIANTS = {
  'tiny': Schedule(beta_end=0.06, steps=200),  # spec 9c, for small latents on a CPU
  'sd1': Schedule(),
  'sd2': Schedule(),
  'sd2_768': Schedule(prediction='v'),
}
"""Stable Diffusion 1.x, 2.x-base and 2.x at 768 pixels have one process and two predictions (spec 3.1)."""
