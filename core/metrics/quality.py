"""Learnt measures of picture quality: LPIPS against an original, BRISQUE without one. Both need public weights by path.

LPIPS (Zhang et al. 2018, version 0.1), for features f_l of an AlexNet or a VGG-16, each scaled to unit length over the
channels, and weights w_l >= 0 fitted to human judgements:

  d(x, x0) = sum_l mean_hw sum_c w_l,c (f_l(x) - f_l(x0))^2_hwc

Nothing is downloaded. Without its files a measure is absent, with an error that says which they are and where from.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any, NamedTuple

import cv2
import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError, nearest
from core.weights import files, table
from core.weights.table import CONV, Account, Key, Layout, Transform

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""LPIPS's scaling of RGB in -1..1: the statistics of ImageNet."""
TINY = 1e-10
"""Added to the length of a feature vector."""


class Conv(NamedTuple):
  """A convolution of a trunk; `index` is its place in torchvision's `features`."""

  index: int
  width: int
  kernel: int = 3
  stride: int = 1


class Trunk(NamedTuple):
  """A network of features.

  Attributes:
    stages: convolutions, each with a rectifier; the features are the output of every stage.
    pooled: which stages begin with a max pooling of stride 2.
    pool: its window.
    least: pixels that the shorter side of an image must have.
    public: torchvision's file.
  """

  stages: tuple[tuple[Conv, ...], ...]
  pooled: tuple[bool, ...]
  pool: int
  least: int
  public: str


NETWORKS = {
  'alex': Trunk(
    stages=((Conv(0, 64, 11, 4),), (Conv(3, 192, 5),), (Conv(6, 384),), (Conv(8, 256),), (Conv(10, 256),)),
    pooled=(False, True, True, False, False),
    pool=3,
    least=31,
    public='alexnet-owt-7be5be79.pth',
  ),
  'vgg': Trunk(
    stages=(
      (Conv(0, 64), Conv(2, 64)),
      (Conv(5, 128), Conv(7, 128)),
      (Conv(10, 256), Conv(12, 256), Conv(14, 256)),
      (Conv(17, 512), Conv(19, 512), Conv(21, 512)),
      (Conv(24, 512), Conv(26, 512), Conv(28, 512)),
    ),
    pooled=(False, True, True, True, True),
    pool=2,
    least=16,
    public='vgg16-397923af.pth',
  ),
}
"""What LPIPS calls them; published tables are mostly 'alex', losses mostly 'vgg'."""


class Lpips(nn.Module):
  """Learnt perceptual distance; it means nothing before `load_lpips` has filled it.

  Parameters, as '/'-joined paths: conv_{i}/{kernel, bias} (i as in torchvision's `features`), lin_{0..4} [C].
  """

  network: str = 'alex'

  @nn.compact
  def __call__(self, image: jax.Array, original: jax.Array) -> jax.Array:
    """The distance of each pair, differentiable everywhere.

    Args:
      image: [B, H, W, 3], RGB in -1..1.
      original: the same shape.

    Returns:
      f32 [B], 0 for equal images (1e-14 where a device rounds by place in the batch).
    """
    trunk = _trunk(self.network)
    if image.shape != original.shape or image.ndim != 4 or image.shape[-1] != 3:
      raise UserError(f'LPIPS compares images [B, H, W, 3], found {image.shape} and {original.shape}.')
    if min(image.shape[1:3]) < trunk.least:
      raise UserError(
        f"LPIPS with '{self.network}' needs at least {trunk.least} pixels along a side,"
        f' found {image.shape[1]} x {image.shape[2]}.'
      )
    x = (jnp.concatenate([image, original]).astype(jnp.float32) - jnp.array(SHIFT)) / jnp.array(SCALE)
    distance = jnp.zeros(len(image))
    for i, (stage, pooled) in enumerate(zip(trunk.stages, trunk.pooled, strict=True)):
      if pooled:
        x = nn.max_pool(x, (trunk.pool, trunk.pool), (2, 2))
      for conv in stage:
        x = nn.relu(_layer(conv)(x))
      weights = self.param(f'lin_{i}', nn.initializers.ones, (x.shape[-1],))
      unit = _unit(x)
      distance += (jnp.square(unit[: len(image)] - unit[len(image) :]) * weights).sum(-1).mean((1, 2))
    return distance


def _layer(conv: Conv) -> nn.Conv:
  # AlexNet's first convolution alone is not padded to 'same': 2 pixels for a kernel of 11.
  padding = 2 if conv.stride > 1 else conv.kernel // 2
  return nn.Conv(
    conv.width,
    (conv.kernel, conv.kernel),
    conv.stride,
    padding,
    precision=jax.lax.Precision.HIGHEST,
    name=f'conv_{conv.index}',
  )


def _unit(x: jax.Array) -> jax.Array:
  """Feature vectors of unit length.

  Where all features are zero the root's slope is NaN; `nn.relu` stops it there (`jnp.maximum` would let it through).
  """
  return x / (jnp.sqrt(jnp.square(x).sum(-1, keepdims=True)) + TINY)


def _trunk(network: str) -> Trunk:
  if network not in NETWORKS:
    raise UserError(f"LPIPS network '{network}': expected one of {sorted(NETWORKS)}.{nearest(network, NETWORKS)}")
  return NETWORKS[network]


LIN = Transform(lambda x: (x.reshape(-1),), lambda x: x.reshape(1, -1, 1, 1))
"""A convolution [1, C, 1, 1] without bias <-> [C]."""


def layouts(network: str) -> tuple[Layout, Layout]:
  """How public files name it: 'torchvision' features beside lpips' `linN`, and 'lpips', the whole of its class."""
  torchvision, lpips = [], []
  for s, stage in enumerate(_trunk(network).stages, 1):
    lin = Key(f'lin_{s - 1}', f'lin{s - 1}.model.1.weight', LIN)
    for keys, start in ((torchvision, 'features'), (lpips, f'net.slice{s}')):
      keys.append(lin)
      for conv in stage:
        keys.append(Key(f'conv_{conv.index}/kernel', f'{start}.{conv.index}.weight', CONV))
        keys.append(Key(f'conv_{conv.index}/bias', f'{start}.{conv.index}.bias'))
  return (
    Layout('torchvision', 'features.0.weight', tuple(torchvision), ((r'classifier\..*', 'its own classifier'),)),
    Layout(
      'lpips',
      'net.slice1.0.weight',
      tuple(lpips),
      ((r'lins\.\d\.model\.1\.weight', 'linN once more'), (r'scaling_layer\..*', 'constants of version 0.1')),
    ),
  )


def load_lpips(*sources: str | os.PathLike[str]) -> tuple[Lpips, dict[str, Any], Account]:
  """The measure from local safetensors; which network it is follows from the first convolution.

  `model, params, _ = load_lpips('alexnet.safetensors', 'alex.safetensors')`, then
  `jax.jit(model.apply)({'params': params}, image, original)`.

  Args:
    sources: torchvision's trunk and lpips' linear weights; or one file with all of it, as lpips' class saves itself.

  Returns:
    (module, its parameters as a nested dict, account of every tensor).

  Raises:
    UserError: files are missing (the message says which there are), or do not belong together.
  """
  tensors, name = {}, ' + '.join(str(source) for source in sources)
  for source in sources:
    found = files.read(source)
    if twice := sorted(set(found) & set(tensors)):
      raise UserError(f'{name}: {len(twice)} tensors are in more than one of the files, the first is {twice[0]}.')
    tensors.update(found)
  first = next((tensors[key] for key in ('features.0.weight', 'net.slice1.0.weight') if key in tensors), None)
  if first is None or 'lin0.model.1.weight' not in tensors:
    raise UserError(_absent(name, 'linear weights' if first is not None else 'network'))
  model = Lpips('alex' if first.shape[-1] == NETWORKS['alex'].stages[0][0].kernel else 'vgg')
  layout, _ = table.detect(list(tensors), layouts(model.network), name)
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image, image)['params']
  loaded, account = table.load(flax.traverse_util.flatten_dict(shapes, sep='/'), tensors, layout, source=name)
  return model, flax.traverse_util.unflatten_dict(loaded, sep='/'), account


def _absent(found: str, lacks: str) -> str:
  trunks = ' or '.join(trunk.public for trunk in NETWORKS.values())
  return (
    f'LPIPS has no {lacks} (files given: {found or "none"}). It needs {trunks} of torchvision, and alex.pth or vgg.pth'
    ' of the same network from lpips/weights/v0.1 of github.com/richzhang/PerceptualSimilarity. Convert each once by'
    ' `python -m launch.convert --pickle --input=FILE.pth --output=FILE.safetensors`, and name both.'
  )


class Brisque:
  """Blind quality of one picture (Mittal et al. 2012) by OpenCV: 0 best, 100 worst, clamped there.

  Other packages do not clamp, and were fitted anew: the `brisque` package's numbers (DDAP spec 7) go below 0. Never
  compare across packages.
  """

  def __init__(self, model: str | os.PathLike[str], features: str | os.PathLike[str]):
    """Opens the two files of OpenCV's samples.

    Args:
      model: brisque_model_live.yml, the regression.
      features: brisque_range_live.yml, the ranges of its features.

    Raises:
      UserError: this OpenCV has no module 'quality', or a file is not there.
    """
    if not hasattr(cv2, 'quality'):
      raise UserError(
        f"BRISQUE is in OpenCV's contrib module 'quality', which this OpenCV {cv2.__version__} was built without. It"
        ' comes with the package opencv-contrib-python-headless, which takes the place of opencv-python-headless:'
        ' uninstall that first.'
      )
    for path in (model, features):
      if not pathlib.Path(path).is_file():
        raise UserError(
          f'{path}: no such file. BRISQUE needs brisque_model_live.yml and brisque_range_live.yml, from'
          ' modules/quality/samples of github.com/opencv/opencv_contrib.'
        )
    self._measure = cv2.quality.QualityBRISQUE_create(str(model), str(features))

  def __call__(self, image: np.ndarray) -> float:
    """uint8 [H, W, 3] RGB -> 0..100, lower is more natural."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
      raise UserError(f'BRISQUE judges 8-bit RGB pictures [H, W, 3], found {image.dtype} {image.shape}.')
    return float(self._measure.compute(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[0])
