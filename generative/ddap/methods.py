"""Ways to perturb photos, as data: what DDAP is, its ablations, and the baselines that a user compares it with.

    method = build('ddap', eps_levels=8)
    method = build('spl+mask')                        # any name + '+mask': only where the caller's mask is 1
    method = from_config('ddap', config.protect)      # the same fields from a section of a config

Methods that differ only in numbers run the same compiled program (`generative.ddap.protection`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from core.errors import UserError, nearest
from generative.ddap.spatial import LATENT

LEVEL = 1 / 127.5
"""A level of 8 bits in -1..1."""
MASKED = '+mask'

CHOICES = {
  'domain': ('spatial', 'frequency', 'dual', 'noise'),
  'recon': ('denoising', 'decoder'),
  'latent': LATENT,
  'surrogate': ('aspl', 'fsmg', 'none'),
  'timesteps': ('uniform', 'simac'),
  'frequency_loss': ('rec', 'spl'),
  'frequency_mode': ('block_dct', 'spectrum_aug'),
}


@dataclasses.dataclass(frozen=True)
class Method:
  """One way to protect. The defaults are DDAP's: the schedule is Anti-DreamBooth's, the rest our choice (spec 4).

  Attributes:
    domain: 'spatial' (SPL steps), 'frequency' (FPL steps), 'dual' (both in turn), 'noise' (signs by chance, no steps).
    rec, lat, feature: λ of L_rec, of L_lat, and of SimAC's distance of features.
    recon: what L_rec is, the denoising loss or the decoder's error.
    latent: what L_lat compares, see `generative.ddap.spatial.LATENT`.
    frequency_loss: what FPL steps raise, 'rec' (L_rec alone) or 'spl' (L_SPL).
    frequency_mode: 'block_dct', or 'spectrum_aug': sign steps along gradients averaged over spectra.
    spectra: draws of 'spectrum_aug'.
    k0: FPL moves coefficients with u + v >= k0.
    frequency_t: FPL draws timesteps below this share of all, where details are formed; 1: all.
    alternate: of 'dual'. 'inner': every other step is FPL's; 'outer': every other outer iteration; 'blocks:K': K steps
      of each in turn.
    surrogate: the model attacked. 'aspl': personalised for a few steps on clean photos in every outer iteration, from
      a model that follows the protected ones; 'fsmg': personalised once; 'none': the pre-trained one.
    surrogate_steps: of 'aspl', each time.
    fsmg_steps: of 'fsmg'.
    timesteps: of L_rec, 'uniform' or 'simac' (those with the largest gradients, chosen per photo beforehand).
    outer, inner: iterations, and steps in each.
    eps_levels: largest change of a value, in levels of 8 bits; 6.375 is 0.05 in -1..1.
    step_levels: length of a step, in levels; None: a tenth of the budget.
    outside_levels: largest change outside the mask.
    start: share of the budget that the random start takes: L_lat has no gradient at the clean photo.
    masked: whether the method is one with a mask: then `protect` insists on one.
  """

  domain: str = 'dual'
  rec: float = 1.0
  lat: float = 1.0
  feature: float = 0.0
  recon: str = 'denoising'
  latent: str = 'mean'
  frequency_loss: str = 'rec'
  frequency_mode: str = 'block_dct'
  spectra: int = 20
  k0: int = 4
  frequency_t: float = 1.0
  alternate: str = 'inner'
  surrogate: str = 'aspl'
  surrogate_steps: int = 3
  fsmg_steps: int = 1000
  timesteps: str = 'uniform'
  outer: int = 50
  inner: int = 6
  eps_levels: float = 6.375
  step_levels: float | None = None
  outside_levels: float = 0.0
  start: float = 0.1
  masked: bool = False

  def __post_init__(self):
    for name, known in CHOICES.items():
      value = getattr(self, name)
      if value not in known:
        raise UserError(f"method: {name} is '{value}', expected one of {known}.{nearest(value, known)}")
    if not re.fullmatch(r'inner|outer|blocks:[1-9]\d*', self.alternate):
      raise UserError(
        f"method: alternate is '{self.alternate}', expected 'inner', 'outer' or 'blocks:K', K steps each."
      )
    numbers = ('rec', 'lat', 'feature', 'outer', 'inner', 'surrogate_steps', 'fsmg_steps', 'eps_levels')
    for name in (*numbers, 'outside_levels', 'start'):
      if getattr(self, name) < 0:
        raise UserError(f'method: {name} is {getattr(self, name)}, expected 0 or more.')
    if self.step_levels is not None and self.step_levels < 0:
      raise UserError(f'method: step_levels is {self.step_levels}, expected 0 or more, or None for eps_levels / 10.')
    if not 0 <= self.k0 <= 14:
      raise UserError(f'method: k0 is {self.k0}, expected 0 (every coefficient) to 14 (the finest alone).')
    if self.outside_levels > self.eps_levels:
      found = f'outside_levels is {self.outside_levels} with eps_levels {self.eps_levels}'
      raise UserError(f'method: {found}; the budget outside the mask is the smaller one.')
    if not 0 < self.frequency_t <= 1:
      raise UserError(f'method: frequency_t is {self.frequency_t}, expected a share in (0, 1].')

  @property
  def epsilon(self) -> float:
    """ε in -1..1."""
    return self.eps_levels * LEVEL

  @property
  def outside(self) -> float:
    """ε_out in -1..1."""
    return self.outside_levels * LEVEL

  @property
  def step(self) -> float:
    """α in -1..1."""
    return self.epsilon / 10 if self.step_levels is None else self.step_levels * LEVEL

  @property
  def steps(self) -> int:
    """All steps of the attack."""
    return 0 if self.domain == 'noise' else self.outer * self.inner

  @property
  def unet(self) -> bool:
    """Whether the U-Net and the text encoder are used at all."""
    if self.domain == 'noise':
      return False
    frequency = self.domain != 'spatial' and self.frequency_loss == 'rec'
    return (self.recon == 'denoising' and (self.rec > 0 or frequency)) or self.feature > 0

  @property
  def fits(self) -> bool:
    """Whether surrogates are personalised, which needs clean reference photos."""
    return self.unet and self.steps > 0 and self.surrogate != 'none'

  @property
  def idle(self) -> bool:
    """Whether there is nothing to do: the photos come back as they are, without even the random start."""
    still = self.step == 0 or self.steps == 0 or not any(any(row[1:]) for row in self.rows(0) + self.rows(1))
    return self.epsilon == 0 or (self.domain != 'noise' and still)

  def rows(self, outer: int) -> list[tuple[bool, float, float, float]]:
    """(whether it is FPL's, λ_rec, λ_lat, λ_feature) of every step of an outer iteration.

    λ_lat is negative where L_lat is to be lowered.
    """
    lat = -self.lat if self.latent == 'target' else self.lat
    spl = (self.rec, lat, self.feature)
    fpl = spl if self.frequency_loss == 'spl' else (1.0, 0.0, 0.0)
    turns = [self._frequency(outer, j) for j in range(self.inner)]
    return [(turn, *(fpl if turn else spl)) for turn in turns]

  def _frequency(self, outer: int, inner: int) -> bool:
    if self.domain != 'dual':
      return self.domain == 'frequency'
    if self.alternate == 'inner':
      return inner % 2 == 1
    if self.alternate == 'outer':
      return outer % 2 == 1
    period = int(self.alternate.removeprefix('blocks:'))
    return (outer * self.inner + inner) // period % 2 == 1


METHODS = {
  'random': Method(domain='noise'),
  'aspl': Method(domain='spatial', lat=0.0, start=0.0),
  'fsmg': Method(domain='spatial', lat=0.0, start=0.0, surrogate='fsmg'),
  # Encoder only. PID begins anywhere in the budget, PhotoGuard goes for a target.
  'latent': Method(domain='spatial', rec=0.0, surrogate='none', start=1.0),
  'photoguard': Method(domain='spatial', rec=0.0, latent='target', surrogate='none', start=0.0),
  # Mist sums its distance over 64 x 64 x 4 latents and adds 10000 times L_rec: as means that is 1.64 to 1.
  'mist': Method(domain='spatial', rec=1.0, lat=1.64, latent='target', surrogate='none', start=0.0),
  # SimAC as it was run: the distance of features is in its loss, but without a gradient. Then as it is written.
  'simac': Method(domain='spatial', lat=0.0, start=0.0, timesteps='simac'),
  'simac_feature': Method(domain='spatial', lat=0.0, feature=1.0, start=0.0, timesteps='simac'),
  'spl': Method(domain='spatial'),
  'fpl': Method(domain='frequency', lat=0.0, start=0.0),
  'ddap': Method(),
  # A preview of SPL: no U-Net, no surrogate, a fifth of the steps.
  'fast': Method(domain='spatial', rec=0.0, surrogate='none', outer=10),
}


def build(name: str, **overrides: Any) -> Method:
  """The method of a name in `METHODS`, with '+mask' for one within a mask, and any of its fields changed."""
  base = name.removesuffix(MASKED)
  if base not in METHODS:
    raise UserError(
      f"there is no method '{base}', expected one of {list(METHODS)}, with or without '{MASKED}'."
      f'{nearest(base, METHODS)}'
    )
  known = [field.name for field in dataclasses.fields(Method)]
  for key in overrides:
    if key not in known:
      raise UserError(f"method '{name}' has no '{key}', expected names among {known}.{nearest(key, known)}")
  if name.endswith(MASKED):
    overrides = {'masked': True, **overrides}
  return dataclasses.replace(METHODS[base], **overrides)


def from_config(name: str, section: Mapping[str, Any]) -> Method:
  """The method of a name, with the fields that a section of a config sets: budget, iterations and the like, one for
  all methods that are compared."""
  return build(name, **{key: section[key] for key in section})
