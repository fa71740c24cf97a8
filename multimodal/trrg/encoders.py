"""The two encoders of TRRG: a film becomes tokens (spec 3.1), a sentence becomes states (spec 3.2).

  vit    class token and patches
  swin   patches of the last stage; v_cls is their mean, which says nothing new and is no token (R2GenGPT's 49 tokens)
  none   one learned token, the same for every film: a writer without eyes, for reports alone

Films are grey: the three channels of a public encoder get the same picture, normalised as ImageNet's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError, nearest
from core.nn import adapters, bert, swin, vit
from core.nn.transformer import Tokens
from core.weights import bert as bert_weights
from core.weights import files
from core.weights import swin as swin_weights
from core.weights import vit as vit_weights
from core.weights.table import Account

ENCODERS = ('vit', 'swin', 'none')
VIEWS = ('mean', 'concat')
POOLING = ('mean', 'medclip')
TUNING = ('train', 'lora', 'frozen')
"""What the second stage does with its copy of the image encoder: all of it, updates of rank 16 on query and value, or
nothing (R2GenGPT's deep, delta and shallow)."""

MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
"""Per channel of [0, 1]: ImageNet's."""
LORA = {'rank': 16, 'alpha': 16.0}


class Film(NamedTuple):
  """What the image encoder makes of N films: v_cls f32 [N, d_v] and the tokens [N, n, d_v]."""

  summary: jax.Array
  tokens: jax.Array


class Constant(nn.Module):
  """One learned token, whatever the film. Starts at zero."""

  width: int

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
    """[N, H, W, 3] -> {'feature' [N, C], 'tokens' [N, 1, C]}."""
    del train
    token = self.param('token', nn.initializers.zeros, (self.width,))
    tokens = jnp.broadcast_to(token, (images.shape[0], 1, self.width))
    return {'feature': tokens[:, 0], 'tokens': tokens}


class Vision:
  """E_img. Holds no weights.

  Attributes:
    width: d_v.
    layout: how the tokens of one film are laid out: class token, then rows and columns.
  """

  def __init__(self, config: Any, *, image_size: int, dtype: Any, blind_width: int, adapted: bool = False):
    """Reads the section `config.model.vision`.

    Args:
      config: encoder (`ENCODERS`), variant (a name of `core.nn.vit` or `core.nn.swin`, or the sizes themselves).
      image_size: side of the films.
      dtype: of computation.
      blind_width: d_v of 'none', which has no variant.
      adapted: whether query and value have low-rank updates.

    Raises:
      UserError: a choice that does not exist.
    """
    _known('vision.encoder', config.encoder, ENCODERS)
    self.kind, self.size = config.encoder, int(image_size)
    options = {'dtype': dtype}
    if adapted:
      if self.kind != 'vit':
        raise UserError(
          f"model.vision.tuning 'lora' attaches to a 'vit', not to '{self.kind}': use 'train' or 'frozen'."
        )
      options['dense'] = adapters.lora(**LORA)
    if self.kind == 'none':
      self.module, self.layout = Constant(blind_width), Tokens(1)
    elif self.kind == 'swin':
      self.module = sized(swin, swin.Swin, config.variant, **options)
      self.layout = self.module.tokens((self.size, self.size))
    else:
      self.module = sized(vit, vit.ViT, config.variant, **options)
      if not self.module.class_token or self.module.pool != 'class':
        raise UserError('model.vision.variant has no class token, which the contrast reads: choose another ViT.')
      self.layout = self.module.tokens((self.size, self.size))
    self.width = self.module.feature_width if self.kind == 'swin' else self.module.width

  @property
  def blind(self) -> bool:
    """Whether nothing is seen."""
    return self.kind == 'none'

  def init(self, rng: jax.Array) -> Mapping[str, Any]:
    """Fresh parameters; pure."""
    return self.module.init(rng, jnp.zeros((1, self.size, self.size, 3)))['params']

  def __call__(
    self, params: Mapping[str, Any], films: jax.Array, *, train: bool = False, rng: jax.Array | None = None
  ) -> Film:
    """uint8 or f32 [N, H, W], grey in 0..255 -> `Film`."""
    if films.ndim != 3 or films.shape[1:] != (self.size, self.size):
      raise UserError(f'films have the shape {films.shape}, expected [films, {self.size}, {self.size}] in grey.')
    images = (films[..., None].astype(jnp.float32) / 255.0 - MEAN) / STD
    out = self.module.apply({'params': params}, images, train=train, rngs=dropout(rng))
    return Film(out['feature'].astype(jnp.float32), out['tokens'])

  def load(self, params: Mapping[str, Any], path: str) -> tuple[dict[str, np.ndarray], Account]:
    """Public weights for flat parameters {'/'-joined path: array}."""
    if self.blind:
      raise UserError(f"model.vision.weights is '{path}', but the encoder 'none' has none.")
    tensors = files.read(path)
    if self.kind == 'swin':
      return swin_weights.load(params, tensors)
    return vit_weights.load(params, tensors, grid=self.layout.grid)


def fuse(tokens: jax.Array, view_mask: jax.Array, how: str) -> tuple[jax.Array, jax.Array]:
  """One sequence from the views of a study.

  Args:
    tokens: [B, V, n, d].
    view_mask: bool [B, V]; films that are not there are left out.
    how: 'mean' (of the views, token by token: R2GenGPT) or 'concat' (R2Gen).

  Returns:
    (tokens [B, N, d], bool [B, N] which of them are there); N = n or V n.
  """
  _known('views', how, VIEWS)
  batch, _, count, width = tokens.shape
  if how == 'mean':
    return masked_mean(tokens, view_mask[:, :, None, None], axis=1), jnp.ones((batch, count), bool)
  tokens = jnp.where(view_mask[:, :, None, None], tokens, 0)
  return tokens.reshape(batch, -1, width), jnp.repeat(view_mask, count, axis=1)


def check_views(view_mask: np.ndarray) -> None:
  """Raises UserError where a study has no film at all; on the host."""
  empty = np.flatnonzero(~np.asarray(view_mask).any(axis=-1))
  if empty.size:
    raise UserError(
      f'{empty.size} of {len(view_mask)} studies have no film (rows {empty[:8].tolist()}): every study needs one view.'
    )


class Sentence(NamedTuple):
  """What the text encoder makes of B sentences: f32 [B, d_t], and its words f32 [B, L, d_t]."""

  summary: jax.Array
  words: jax.Array


class Text:
  """E_txt. Holds no weights. `width` is d_t."""

  def __init__(self, config: Any, *, vocabulary: int, dtype: Any):
    """Reads the section `config.model.text`: variant (a name of `core.nn.bert`, or the sizes themselves), pooling."""
    _known('text.pooling', config.pooling, POOLING)
    self.pooling = config.pooling
    self.module = sized(bert, bert.Bert, config.variant, vocabulary=vocabulary, dtype=dtype)
    self.width = self.module.width
    if self.pooling == 'medclip' and self.module.depth < 2:
      raise UserError(f"model.text.pooling 'medclip' reads the blocks 1, 2 and last; there are {self.module.depth}.")

  def init(self, rng: jax.Array) -> Mapping[str, Any]:
    """Fresh parameters; pure."""
    return self.module.init(rng, jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool))['params']

  def __call__(
    self,
    params: Mapping[str, Any],
    ids: jax.Array,
    mask: jax.Array,
    *,
    train: bool = False,
    rng: jax.Array | None = None,
  ) -> Sentence:
    """i32 and bool [B, L] -> `Sentence`.

    Words are the states of the last block, or the mean of the first, second and last (MedCLIP); a sentence is the mean
    of its words, special ones included, padding not (spec 3.2).
    """
    out = self.module.apply({'params': params}, ids, mask, train=train, rngs=dropout(rng))
    words = out['tokens'].astype(jnp.float32)
    if self.pooling == 'medclip':
      words = sum(out['layers'][i].astype(jnp.float32) for i in (1, 2, -1)) / 3
    return Sentence(masked_mean(words, mask[..., None], axis=1), words)

  def load(self, params: Mapping[str, Any], path: str) -> tuple[dict[str, np.ndarray], Account]:
    """Public weights for flat parameters {'/'-joined path: array}."""
    return bert_weights.load(params, files.read(path))


def sized(module: Any, network: type[nn.Module], variant: str | Mapping[str, Any], **options: Any) -> Any:
  """The network of a name in the module's table, or of sizes that are given, with other attributes set."""
  if isinstance(variant, str):
    return module.build(variant, **options)
  return network(**{**dict(variant), **options})


def masked_mean(x: jax.Array, mask: jax.Array, axis: int) -> jax.Array:
  """Mean of x over an axis where the mask (bool, broadcastable) says so; of nothing: 0."""
  count = jnp.sum(mask, axis=axis, dtype=x.dtype)
  return jnp.sum(jnp.where(mask, x, 0), axis=axis) / jnp.maximum(count, 1)


def dropout(rng: jax.Array | None) -> dict[str, jax.Array]:
  """What `apply` takes as `rngs`."""
  return {} if rng is None else {'dropout': rng}


def _known(name: str, value: str, known: tuple[str, ...]) -> None:
  if value not in known:
    raise UserError(f"model.{name} is '{value}', expected one of {known}.{nearest(value, known)}")
