"""Public ResNet weights (torchvision and timm, transformers) <-> `core.nn.resnet`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from core.weights import files, table
from core.weights.table import CONV, Account, Key, Layout, detect

BLOCK = 'stage_{s}_block_{b}'


def _conv_norm(ours: tuple[str, str], theirs: tuple[str, str]) -> tuple[Key, ...]:
  """A convolution and its batch normalisation."""
  public = {'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}
  conv = Key(f'{ours[0]}/kernel', f'{theirs[0]}.weight', CONV)
  return conv, *(Key(f'{ours[1]}/{leaf}', f'{theirs[1]}.{name}') for leaf, name in public.items())


_COUNTER = (r'.*num_batches_tracked', 'a counter without effect on the output')

TORCHVISION = Layout(
  name='torchvision',
  marker='layer1.0.conv1.weight',
  keys=(
    *_conv_norm(('stem/conv', 'stem/norm'), ('conv1', 'bn1')),
    *(
      key
      for n in (1, 2, 3)
      for key in _conv_norm(
        (f'{BLOCK}/conv_{n}', f'{BLOCK}/norm_{n}'), (f'layer{{s}}.{{b}}.conv{n}', f'layer{{s}}.{{b}}.bn{n}')
      )
    ),
    *_conv_norm(
      (f'{BLOCK}/shortcut_conv', f'{BLOCK}/shortcut_norm'), ('layer{s}.{b}.downsample.0', 'layer{s}.{b}.downsample.1')
    ),
  ),
  ignored=((r'fc\.(weight|bias)', "the source's own classifier"), _COUNTER),
)

_THEIRS = 'encoder.stages.{s-1}.layers.{b}'

TRANSFORMERS = Layout(
  name='transformers',
  marker='embedder.embedder.convolution.weight',
  keys=(
    *_conv_norm(('stem/conv', 'stem/norm'), ('embedder.embedder.convolution', 'embedder.embedder.normalization')),
    *(
      key
      for n in (1, 2, 3)
      for key in _conv_norm(
        (f'{BLOCK}/conv_{n}', f'{BLOCK}/norm_{n}'),
        (f'{_THEIRS}.layer.{n - 1}.convolution', f'{_THEIRS}.layer.{n - 1}.normalization'),
      )
    ),
    *_conv_norm(
      (f'{BLOCK}/shortcut_conv', f'{BLOCK}/shortcut_norm'),
      (f'{_THEIRS}.shortcut.convolution', f'{_THEIRS}.shortcut.normalization'),
    ),
  ),
  ignored=((r'classifier\.1\.(weight|bias)', "the source's own classifier"), _COUNTER),
)

LAYOUTS = {layout.name: layout for layout in (TORCHVISION, TRANSFORMERS)}


def load(leaves: Mapping[str, Any], tensors: files.Tensors) -> tuple[dict[str, np.ndarray], Account]:
  """Fills parameters and batch statistics.

  Args:
    leaves: {'/'-joined path: array or shape} of both collections of `core.nn.resnet.ResNet` (no name is in both).
    tensors: from `core.weights.files.read`.

  Returns:
    ({path: array}, account).
  """
  layout, prefix = detect(list(tensors), list(LAYOUTS.values()), tensors.source)
  return table.load(leaves, tensors, layout, source=tensors.source, prefix=prefix)


def export(leaves: Mapping[str, Any], layout: str) -> dict[str, Any]:
  """Public tensors of parameters and batch statistics {path: array}, without torch's batch counters (it makes them)."""
  return table.export(leaves, table.chosen(LAYOUTS, layout, 'a ResNet'))


def infer(tensors: files.Tensors) -> tuple[dict[str, Any], tuple[int, int]]:
  """(arguments of `core.nn.resnet.ResNet`, an image size: any serves) of the network that the tensors are for."""
  layout, prefix = detect(list(tensors), list(LAYOUTS.values()), tensors.source)
  shapes = {name.removeprefix(prefix): shape for name, shape in tensors.shapes.items()}
  vision = layout is TORCHVISION
  conv = (
    r'layer(\d+)\.(\d+)\.conv(\d)\.weight' if vision else r'encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d)\.conv.*'
  )
  depths: dict[int, int] = {}
  widths: dict[int, int] = {}
  convolutions = 0
  for name, shape in shapes.items():
    if found := re.fullmatch(conv, name):
      stage, block, number = (int(group) for group in found.groups())
      depths[stage] = max(depths.get(stage, 0), block + 1)
      widths[stage] = max(widths.get(stage, 0), shape[0])
      convolutions = max(convolutions, number + (0 if vision else 1))
  fields = {
    'depths': tuple(depths[stage] for stage in sorted(depths)),
    'widths': tuple(widths[stage] for stage in sorted(widths)),
    'bottleneck': convolutions == 3,
    'stem_width': shapes['conv1.weight' if vision else layout.marker][0],
  }
  return fields, (224, 224)
