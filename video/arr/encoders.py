"""The recognition network E of ARR: every clip by itself becomes one vector, z_k = E(V_k) in R^D (spec 3.1).

  frame_vit    pixels: a ViT's class token of each of the n frames, mean over the frames (n = 1: AVT's encoder)
  tubelet_vit  pixels: VideoMAE's joint attention over space and time, mean over tokens
  feature      features from a store: LayerNorm and a linear layer, or ('mlp') linear, GELU, linear
  label        the clip's own label, embedded: the perfect recogniser of the label-grid experiments (spec 9b)

Clips [B, T, ...] are folded into [B * T, ...]: no layer sees two of them at once. The first weights of the two small
encoders are flax's defaults (our choice): N(0, 0.01), which AVT gives its linear layers, would leave z near zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError, nearest
from core.nn import videomae, vit
from core.nn.layers import LayerNorm, dense, gelu
from core.weights import files
from core.weights import videomae as videomae_weights
from core.weights import vit as vit_weights
from core.weights.table import Account
from video.arr.grid import Grid

FEATURE_VARIANTS = ('linear', 'mlp')

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Mean and standard deviation per channel of [0, 1] that the public ImageNet-21k ViTs were trained with."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Those of the public VideoMAE models."""


class Encoder(Protocol):
  """What the model asks of an encoder. `width` is D."""

  width: int

  def init(self, rng: jax.Array) -> Mapping[str, Any]:
    """Fresh parameters; pure."""

  def __call__(self, params: Mapping[str, Any], inputs: jax.Array, train: bool) -> jax.Array:
    """Inputs [B, T, ...] -> z f32 [B, T, D]."""


class Pixels:
  """'frame_vit' and 'tubelet_vit'."""

  def __init__(self, config: Any, grid: Grid):
    """Reads variant, image_size, dtype, remat, scan of `config.model`; n from the grid."""
    self.shape = (grid.frames, int(config.image_size), int(config.image_size), 3)
    options = {'dtype': jnp.dtype(config.dtype), 'remat': config.remat, 'scan': config.scan}
    self.tubelets = config.encoder == 'tubelet_vit'
    self.module = (videomae if self.tubelets else vit).build(config.variant, **options)
    self.width = self.module.width
    self.mean, self.std = (np.asarray(each, np.float32) for each in (IMAGENET if self.tubelets else HALF))

  def init(self, rng: jax.Array) -> Mapping[str, Any]:
    """See `Encoder`."""
    return self.module.init(rng, jnp.zeros((1, *self.shape) if self.tubelets else (1, *self.shape[1:])))['params']

  def __call__(self, params: Mapping[str, Any], inputs: jax.Array, train: bool) -> jax.Array:
    """uint8 or f32 [B, T, n, H, W, 3] in 0..255 -> z f32 [B, T, D]."""
    if inputs.ndim != 6 or inputs.shape[2:] != self.shape:
      raise UserError(
        f'clips have the shape {inputs.shape}, expected [batch, clips, {", ".join(map(str, self.shape))}].'
      )
    batch, clips, frames = inputs.shape[:3]
    images = (inputs.astype(jnp.float32) / 255.0 - self.mean) / self.std
    if self.tubelets:
      feature = self.module.apply({'params': params}, images.reshape(-1, *self.shape), train=train)['feature']
    else:
      feature = self.module.apply({'params': params}, images.reshape(-1, *self.shape[1:]), train=train)['feature']
      feature = feature.astype(jnp.float32).reshape(batch * clips, frames, -1).mean(axis=1)
    return feature.astype(jnp.float32).reshape(batch, clips, -1)

  def load(self, params: Mapping[str, Any], path: str) -> tuple[dict[str, np.ndarray], Account]:
    """Public weights for flat parameters {'/'-joined path: array}; a classifier in the source is ignored."""
    tensors = files.read(path)
    if self.tubelets:
      return videomae_weights.load(params, tensors)
    return vit_weights.load(params, tensors, grid=self.module.tokens(self.shape[1:3]).grid)


class Feature(nn.Module):
  """Attributes: width: D; variant: one of `FEATURE_VARIANTS`."""

  width: int
  variant: str

  @nn.compact
  def __call__(self, features: jax.Array) -> jax.Array:
    """f32 [..., F] -> [..., D]."""
    if self.variant == 'linear':
      return dense(self.width, name='linear')(LayerNorm(name='norm')(features))
    return dense(self.width, name='down')(gelu(dense(self.width, name='up')(features)))


class Features:
  """'feature': vectors from a store."""

  def __init__(self, width: int, variant: str, size: int):
    """Takes D, one of `FEATURE_VARIANTS` and F, the length of the vectors."""
    if variant not in FEATURE_VARIANTS:
      known = f'expected one of {FEATURE_VARIANTS} for the encoder "feature"'
      raise UserError(f"model.variant is '{variant}', {known}.{nearest(variant, FEATURE_VARIANTS)}")
    if size < 1:
      raise UserError(f'the encoder "feature" needs the length of its vectors, got {size}: set data.feature_size.')
    self.width, self.size, self.module = width, size, Feature(width, variant)

  def init(self, rng: jax.Array) -> Mapping[str, Any]:
    """See `Encoder`."""
    return self.module.init(rng, jnp.zeros((1, self.size)))['params']

  def __call__(self, params: Mapping[str, Any], inputs: jax.Array, train: bool) -> jax.Array:
    """f32 [B, T, F] -> z f32 [B, T, D]."""
    del train
    if inputs.ndim != 3 or inputs.shape[2] != self.size:
      raise UserError(f'features have the shape {inputs.shape}, expected [batch, clips, {self.size}].')
    return self.module.apply({'params': params}, inputs.astype(jnp.float32))


class Labels:
  """'label': integers in [0, C]."""

  def __init__(self, width: int, classes: int):
    """Takes D and C."""
    self.width, self.module = width, nn.Embed(classes + 1, width)

  def init(self, rng: jax.Array) -> Mapping[str, Any]:
    """See `Encoder`."""
    return self.module.init(rng, jnp.zeros((1,), jnp.int32))['params']

  def __call__(self, params: Mapping[str, Any], inputs: jax.Array, train: bool) -> jax.Array:
    """int [B, T] -> z f32 [B, T, D]."""
    del train
    if inputs.ndim != 2 or not jnp.issubdtype(inputs.dtype, jnp.integer):
      raise UserError(
        f'labels have the shape {inputs.shape} and type {inputs.dtype}, expected integers [batch, clips].'
      )
    return self.module.apply({'params': params}, inputs)


ENCODERS = ('frame_vit', 'tubelet_vit', 'feature', 'label')


def build(config: Any, *, classes: int, grid: Grid, feature_size: int) -> Encoder:
  """The encoder of a section `config.model`: encoder (`ENCODERS`), and what the chosen one reads.

  Raises:
    UserError: a choice that does not exist.
  """
  if config.encoder not in ENCODERS:
    hint = nearest(config.encoder, ENCODERS)
    raise UserError(f"model.encoder is '{config.encoder}', expected one of {ENCODERS}.{hint}")
  if config.encoder == 'feature':
    return Features(int(config.width), config.variant, feature_size)
  if config.encoder == 'label':
    return Labels(int(config.width), classes)
  return Pixels(config, grid)
