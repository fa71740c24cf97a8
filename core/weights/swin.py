"""Public Swin weights (transformers) <-> `core.nn.swin`."""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from core.errors import UserError
from core.weights import files, table
from core.weights.table import CONV, LINEAR, Account, Key, Layout, detect, layer, norm

OURS, THEIRS = 'stage_{i}/block_{j}', 'encoder.layers.{i}.blocks.{j}'
TABLE = 'encoder.layers.{i}.blocks.{j}.attention.self.relative_position_bias_table'

TRANSFORMERS = Layout(
  name='transformers',
  marker=TABLE.format(i=0, j=0),
  keys=(
    Key('patches/kernel', 'embeddings.patch_embeddings.projection.weight', CONV),
    Key('patches/bias', 'embeddings.patch_embeddings.projection.bias'),
    *norm('norm_patches', 'embeddings.norm'),
    *norm(f'{OURS}/norm_attention', f'{THEIRS}.layernorm_before'),
    *layer(f'{OURS}/attention/query', f'{THEIRS}.attention.self.query'),
    *layer(f'{OURS}/attention/key', f'{THEIRS}.attention.self.key'),
    *layer(f'{OURS}/attention/value', f'{THEIRS}.attention.self.value'),
    Key(f'{OURS}/attention/offset', TABLE),
    *layer(f'{OURS}/attention/out', f'{THEIRS}.attention.output.dense'),
    *norm(f'{OURS}/norm_mlp', f'{THEIRS}.layernorm_after'),
    *layer(f'{OURS}/mlp/up', f'{THEIRS}.intermediate.dense'),
    *layer(f'{OURS}/mlp/down', f'{THEIRS}.output.dense'),
    *norm('stage_{i}/merge/norm', 'encoder.layers.{i}.downsample.norm'),
    Key('stage_{i}/merge/reduction/kernel', 'encoder.layers.{i}.downsample.reduction.weight', LINEAR),
    *norm('norm', 'layernorm'),
  ),
  ignored=(
    (r'classifier\.(weight|bias)', "the source's own classifier"),
    (r'.*\.relative_position_index', 'follows from the window, as old versions stored it'),
    (r'embeddings\.mask_token', 'only for masked pre-training'),
    (r'decoder\.\d+\.(weight|bias)', 'only for masked pre-training'),
  ),
)

LAYOUTS = {layout.name: layout for layout in (TRANSFORMERS,)}


def load(params: Mapping[str, Any], tensors: files.Tensors) -> tuple[dict[str, np.ndarray], Account]:
  """Fills the parameters of a Swin; they are the same for every image size.

  Args:
    params: {'/'-joined path: array or shape} of `core.nn.swin.Swin`.
    tensors: from `core.weights.files.read`.

  Returns:
    ({path: array} of all leaves, account).
  """
  layout, prefix = detect(list(tensors), list(LAYOUTS.values()), tensors.source)
  return table.load(params, tensors, layout, source=tensors.source, prefix=prefix)


def export(params: Mapping[str, Any], layout: str) -> dict[str, Any]:
  """Public tensors of a Swin's parameters {path: array}."""
  return table.export(params, table.chosen(LAYOUTS, layout, 'a Swin'))


def infer(tensors: files.Tensors) -> tuple[dict[str, Any], tuple[int, int]]:
  """(arguments of `core.nn.swin.Swin`, image size) of the network that the tensors are for.

  All but the epsilon is read off the shapes. The image size leaves no trace: it is config.json's, else 224.
  """
  _, prefix = detect(list(tensors), list(LAYOUTS.values()), tensors.source)
  shapes = {name.removeprefix(prefix): shape for name, shape in tensors.shapes.items()}
  blocks = collections.defaultdict(int)
  for name in shapes:
    if found := re.match(r'encoder\.layers\.(\d+)\.blocks\.(\d+)\.', name):
      blocks[int(found[1])] = max(blocks[int(found[1])], int(found[2]) + 1)
  patches, up = 'embeddings.patch_embeddings.projection.weight', f'{THEIRS.format(i=0, j=0)}.intermediate.dense.weight'
  tables = [TABLE.format(i=i, j=0) for i in range(len(blocks))]
  if lost := [name for name in (patches, up, *tables) if name not in shapes]:
    raise UserError(f'{tensors.source}: a Swin without {prefix}{lost[0]}.')
  for option, expected in (('hidden_act', 'gelu'), ('use_absolute_embeddings', False)):
    if (found := tensors.config.get(option, expected)) != expected:
      raise UserError(f'{tensors.source}: config.json has {option} {found!r}; the Swin here knows {expected!r} only.')
  width, _, *patch = shapes[patches]
  distances = round(shapes[tables[0]][0] ** 0.5)
  if patch[0] != patch[1] or distances**2 != shapes[tables[0]][0]:
    raise UserError(f'{tensors.source}: patches of {patch} and a table of {shapes[tables[0]][0]}: expected squares.')
  fields = {
    'width': width,
    'depths': tuple(blocks[i] for i in range(len(blocks))),
    'heads': tuple(shapes[name][1] for name in tables),
    'patch': patch[0],
    'window': (distances + 1) // 2,
    'mlp_ratio': shapes[up][0] / width,
    'qkv_bias': f'{THEIRS.format(i=0, j=0)}.attention.self.query.bias' in shapes,
    'epsilon': float(tensors.config.get('layer_norm_eps', 1e-5)),
  }
  size = tensors.config.get('image_size', 224)
  return fields, (size, size) if isinstance(size, int) else tuple(size)
