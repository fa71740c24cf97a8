"""The classifier of FAS-Aug: an ImageNet backbone, small trainable adapters, two logits (spec section 3.3).

Backbones are the ground floor's; what this file adds is the input convention and the choice of trained leaves:

  convpass     frozen ViT, a ConvPass module beside attention and beside the MLP of every block (released default)
  vit_adapter  frozen ViT, a bottleneck adapter after attention and after the MLP (the release's older commit)
  resnet18     full fine-tuning, the CNN baseline "bc"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError, nearest
from core.nn import adapters, resnet, vit
from core.nn.transformer import Adapter
from core.train import mesh
from core.weights import files
from core.weights import resnet as resnet_weights
from core.weights import vit as vit_weights

SPOOF, LIVE = 0, 1
"""Class indices of the two logits (released convention)."""

NORMALIZATIONS = {
  'none': ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),  # the release feeds [0, 1]
  'unit_half': ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # what timm's vit_base_patch16_224 was trained with
  'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # what torchvision's ResNets were trained with
}
"""name -> (mean, standard deviation) per RGB channel, for images in [0, 1]."""

Variables = Mapping[str, Any]
ADAPTERS = ('convpass', 'vit_adapter', 'none')
BACKBONES = ('vit', 'resnet18')
BACKBONE, HEAD = 'backbone/', 'head/'


class Network(nn.Module):
  """Backbone and head. The feature is the head's input (ViT: the class token after the final norm), both f32."""

  backbone: nn.Module
  classes: int = 2

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> dict[str, jax.Array]:
    """Normalised images [B, H, W, 3] -> {'logits': f32 [B, 2], 'feature': f32 [B, C]}."""
    feature = self.backbone(images, train=train)['feature'].astype(jnp.float32)
    logits = nn.Dense(self.classes, kernel_init=nn.initializers.normal(0.02), name='head')(feature)
    return {'logits': logits, 'feature': feature}


class Classifier:
  """The network with its input convention, pretrained weights and choice of trained leaves. Holds no weights."""

  def __init__(self, config: Any):
    """Reads the section `config.model`.

    Args:
      config: backbone ('vit', 'resnet18'), variant (of the ViT, `core.nn.vit.VARIANTS`), image_size (pixels, square),
        adapter ('convpass', 'vit_adapter', 'none'; ViT only), adapter_dropout, freeze, normalize (`NORMALIZATIONS`),
        dtype (of computation), remat, scan (ViT only). `weights` is for the caller, who gives it to `load`.

    Raises:
      UserError: a choice that does not exist or that does not go together.
    """
    for key, known in (('backbone', BACKBONES), ('adapter', ADAPTERS), ('normalize', NORMALIZATIONS)):
      if config[key] not in known:
        raise UserError(f"model.{key} is '{config[key]}', expected one of {tuple(known)}.{nearest(config[key], known)}")
    self.image_size = int(config.image_size)
    self.frozen = bool(config.freeze)
    self.mean, self.std = (np.asarray(numbers, np.float32) for numbers in NORMALIZATIONS[config.normalize])
    dtype = jnp.dtype(config.dtype)
    if config.backbone == 'vit':
      plain = vit.build(config.variant, dtype=dtype, remat=config.remat, scan=config.scan)
      adapter = adapter_of(config.adapter, plain.width, config.adapter_dropout, dtype)
      self.backbone: nn.Module = plain.clone(adapter=adapter)
    else:
      self.backbone = resnet.build(config.backbone, dtype=dtype)
    self.network = Network(self.backbone)

  def init(self, rng: jax.Array) -> dict[str, Any]:
    """Fresh variables; pure and traceable. Adapters start as exact no-ops."""
    return self.network.init(rng, jnp.zeros((1, self.image_size, self.image_size, 3)))

  def apply(
    self, variables: Variables, images: jax.Array, *, train: bool = False, rng: jax.Array | None = None
  ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """Scores images.

    Args:
      variables: from `init`, `load` or a checkpoint.
      images: f32 [B, H, W, 3] in [0, 1], of any size.
      train: adapters drop out, batch normalisation uses the batch.
      rng: key of the dropout; needed when `train` and there is dropout.

    Returns:
      {'logits': f32 [B, 2] (spoof, live), 'feature': f32 [B, C]}; the collections that changed ({} or 'batch_stats').
    """
    images = (resize(images, self.image_size) - self.mean) / self.std
    rngs = {} if rng is None else {'dropout': rng}
    if train and 'batch_stats' in variables and not self.frozen:  # frozen: the running statistics hold
      return self.network.apply(variables, images, train=True, rngs=rngs, mutable=['batch_stats'])
    train = train and 'batch_stats' not in variables
    return self.network.apply(variables, images, train=train, rngs=rngs), {}

  def load(self, variables: Variables, path: str) -> Variables:
    """Merges a public backbone (`core.weights.files.read`) in and prints the account; '' changes nothing.

    Adapters and head stay as they are; the classifier of the source is ignored.
    """
    if not path:
      return variables
    tensors = files.read(path)
    collections = {name: flax.traverse_util.flatten_dict(tree, sep='/') for name, tree in variables.items()}
    own = {
      path.removeprefix(BACKBONE): leaf
      for tree in collections.values()
      for path, leaf in tree.items()
      if path.startswith(BACKBONE)
    }
    if isinstance(self.backbone, vit.ViT):
      grid = self.backbone.tokens((self.image_size, self.image_size)).grid
      loaded, account = vit_weights.load(own, tensors, grid=grid)
    else:
      loaded, account = resnet_weights.load(own, tensors)
    account.fresh |= {path: leaf.size for path, leaf in collections['params'].items() if path.startswith(HEAD)}
    if jax.process_index() == 0:
      print(account, flush=True)
    for tree in collections.values():
      found = {path: loaded[path.removeprefix(BACKBONE)] for path in tree if path.removeprefix(BACKBONE) in loaded}
      tree.update({path: mesh.placed(array, tree[path]) for path, array in found.items()})
    return {name: flax.traverse_util.unflatten_dict(tree, sep='/') for name, tree in collections.items()}

  def trainable(self, path: str) -> bool:
    """Adapters and head of a frozen backbone, everything otherwise (spec section 3.3)."""
    return not self.frozen or adapters.is_adapter(path) or path.startswith(HEAD)


def adapter_of(name: str, width: int, dropout: float, dtype: Any) -> Adapter | None:
  """The adapters of spec section 3.3 for a ViT of some width."""
  if name == 'convpass':
    return adapters.convpass(hidden=8, dropout=dropout, dtype=dtype)
  if name == 'vit_adapter':
    return adapters.bottleneck(hidden=2 * width, dtype=dtype)
  return None


def resize(images: jax.Array, size: int) -> jax.Array:
  """[B, H, W, C] -> [B, size, size, C], bilinear without antialias, half-pixel centres (OpenCV's INTER_LINEAR)."""
  if images.shape[1:3] == (size, size):
    return images
  shape = (images.shape[0], size, size, images.shape[3])
  return jax.image.resize(images, shape, 'bilinear', antialias=False)
