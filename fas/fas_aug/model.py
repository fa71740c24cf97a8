"""The classifier of FAS-Aug: an ImageNet backbone, small trainable adapters, two logits (spec section 3.3).

Backbones are the ground floor's; what this file adds is the input convention and the choice of trained leaves:

  convpass     frozen ViT, a ConvPass module beside attention and beside the MLP of every block (released default)
  vit_adapter  frozen ViT, a bottleneck adapter after attention and after the MLP (the release's older commit)
  resnet18     full fine-tuning, the CNN baseline "bc"
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from core.errors import UserError, nearest
from core.nn import adapters, resnet, vit

SPOOF, LIVE = 0, 1
"""Class indices of the two logits (released convention)."""

NORMALIZATIONS = {
  'none': ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),  # the release feeds [0, 1]
  'unit_half': ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # what timm's vit_base_patch16_224 was trained with
  'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # what torchvision's ResNets were trained with
}
"""name -> (mean, standard deviation) per RGB channel, for images in [0, 1]."""
