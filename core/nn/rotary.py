"""Rotary positions (Su et al. 2021), and their frequencies for contexts longer than those of pre-training."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError, nearest

SCALINGS = ('linear', 'llama3', 'yarn')


@dataclasses.dataclass(frozen=True)
class Scaling:
  """How rotary frequencies are changed for contexts longer than those of pre-training.

  Attributes:
    kind: 'linear' (Chen et al. 2023: all frequencies divided), 'llama3' (long waves divided, short ones kept, between
      them a mixture by wavelength) or 'yarn' (Peng et al. 2023: a mixture by index, and hotter attention).
    factor: what frequencies are divided by, >= 1.
    original: positions of pre-training; not of 'linear'.
    low, high: 'llama3': waves longer than original / low are divided, those shorter than original / high kept;
      'yarn': the numbers of turns over `original` positions between which the mixture goes (beta_slow, beta_fast).
    attention: 'yarn': factor on cos and sin; 0: 0.1 ln(factor) + 1.
  """

  kind: str
  factor: float
  original: int = 0
  low: float = 1.0
  high: float = 4.0
  attention: float = 0.0

  def __post_init__(self):
    if self.kind not in SCALINGS:
      raise UserError(
        f"rotary scaling '{self.kind}', expected one of {SCALINGS}.{nearest(self.kind, SCALINGS)}"
        " ('dynamic' is none of them: what it gives for a sequence depends on the longest one of the batch.)"
      )
    if self.factor < 1:
      raise UserError(f"rotary scaling '{self.kind}' has factor {self.factor}, expected a number >= 1.")
    if self.kind != 'linear' and (self.original < 1 or not 0 < self.low < self.high):
      raise UserError(
        f"rotary scaling '{self.kind}' has original {self.original}, low {self.low}, high {self.high};"
        ' expected original >= 1 and 0 < low < high.'
      )


def frequencies(width: int, theta: float, scaling: Scaling | None = None) -> tuple[np.ndarray, float]:
  """Angle per position of each pair of a head's numbers, f32 [width / 2], and the factor on cos and sin."""
  plain = 1.0 / theta ** (np.arange(0, width, 2, dtype=np.float32) / width)
  if scaling is None:
    return plain.astype(np.float32), 1.0
  divided, factor = plain / scaling.factor, 1.0
  if scaling.kind == 'linear':
    mixed = divided
  elif scaling.kind == 'llama3':
    turns = scaling.original * plain / (2 * math.pi)
    kept = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
    mixed = (1 - kept) * divided + kept * plain
  else:
    first, last = (
      width * math.log(scaling.original / (turns * 2 * math.pi)) / (2 * math.log(theta))
      for turns in (scaling.high, scaling.low)
    )
    first, last = max(math.floor(first), 0), min(math.ceil(last), width - 1)
    kept = 1 - np.clip((np.arange(width // 2) - first) / max(last - first, 0.001), 0, 1)
    mixed = (1 - kept) * divided + kept * plain
    factor = scaling.attention or 0.1 * math.log(scaling.factor) + 1
  return mixed.astype(np.float32), factor


def angles(
  positions: jax.Array, width: int, theta: float, scaling: Scaling | None = None
) -> tuple[jax.Array, jax.Array]:
  """cos and sin of the angles at positions i32 [B, T]: f32 [B, T, 1, width / 2]."""
  rates, factor = frequencies(width, theta, scaling)
  turns = positions[..., None, None].astype(jnp.float32) * rates
  return jnp.cos(turns) * factor, jnp.sin(turns) * factor


def turned(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """x [B, T, H, D] turned by its positions' angles: number i of the first half pairs with number i of the second."""
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
