"""Public ViT weights (timm, transformers) <-> `core.nn.vit`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from core.errors import UserError
from core.nn import adapters, transformer
from core.weights import files, resize, table
from core.weights.table import CONV, COPY, LINEAR, Account, Key, Layout, detect, layer, norm, split

BLOCK = 'encoder/block_{i}'


def _qkv(leaf: str) -> tuple[str, ...]:
  return tuple(f'{BLOCK}/attention/{name}/{leaf}' for name in ('query', 'key', 'value'))


TIMM = Layout(
  name='timm',
  marker='patch_embed.proj.weight',
  keys=(
    Key('patches/kernel', 'patch_embed.proj.weight', CONV),
    Key('patches/bias', 'patch_embed.proj.bias'),
    Key('class_token', 'cls_token'),
    Key('position', 'pos_embed'),
    *norm(f'{BLOCK}/norm_attention', 'blocks.{i}.norm1'),
    Key(_qkv('kernel'), 'blocks.{i}.attn.qkv.weight', split(3, LINEAR)),
    Key(_qkv('bias'), 'blocks.{i}.attn.qkv.bias', split(3, COPY)),
    *layer(f'{BLOCK}/attention/out', 'blocks.{i}.attn.proj'),
    *norm(f'{BLOCK}/norm_mlp', 'blocks.{i}.norm2'),
    *layer(f'{BLOCK}/mlp/up', 'blocks.{i}.mlp.fc1'),
    *layer(f'{BLOCK}/mlp/down', 'blocks.{i}.mlp.fc2'),
    *norm('encoder/norm', 'norm'),
  ),
  ignored=((r'head\.(weight|bias)', "the source's own classifier"), (r'pre_logits\..*', "the source's own classifier")),
)

TRANSFORMERS = Layout(
  name='transformers',
  marker='embeddings.patch_embeddings.projection.weight',
  keys=(
    Key('patches/kernel', 'embeddings.patch_embeddings.projection.weight', CONV),
    Key('patches/bias', 'embeddings.patch_embeddings.projection.bias'),
    Key('class_token', 'embeddings.cls_token'),
    Key('position', 'embeddings.position_embeddings'),
    *norm(f'{BLOCK}/norm_attention', 'encoder.layer.{i}.layernorm_before'),
    *layer(f'{BLOCK}/attention/query', 'encoder.layer.{i}.attention.attention.query'),
    *layer(f'{BLOCK}/attention/key', 'encoder.layer.{i}.attention.attention.key'),
    *layer(f'{BLOCK}/attention/value', 'encoder.layer.{i}.attention.attention.value'),
    *layer(f'{BLOCK}/attention/out', 'encoder.layer.{i}.attention.output.dense'),
    *norm(f'{BLOCK}/norm_mlp', 'encoder.layer.{i}.layernorm_after'),
    *layer(f'{BLOCK}/mlp/up', 'encoder.layer.{i}.intermediate.dense'),
    *layer(f'{BLOCK}/mlp/down', 'encoder.layer.{i}.output.dense'),
    *norm('encoder/norm', 'layernorm'),
  ),
  ignored=(
    (r'classifier\.(weight|bias)', "the source's own classifier"),
    (r'pooler\.dense\.(weight|bias)', "transformers' pooler stands behind the feature"),
    (r'embeddings\.mask_token', 'only for masked pre-training'),
  ),
)

LAYOUTS = {layout.name: layout for layout in (TIMM, TRANSFORMERS)}
ANTIALIAS = {'timm': True, 'transformers': False}
"""Whether the library itself antialiases when it resizes position embeddings."""


def load(
  params: Mapping[str, Any],
  tensors: files.Tensors,
  *,
  grid: tuple[int, int],
  source_grid: tuple[int, int] | None = None,
) -> tuple[dict[str, np.ndarray], Account]:
  """Fills the parameters of a ViT; adapters stay fresh.

  Args:
    params: {'/'-joined path: array or shape} of `core.nn.vit.ViT`, from a loop or from a scan over blocks.
    tensors: from `core.weights.files.read`.
    grid: (rows, columns) of patches that `params` is for; positions of another grid are resized as the source's library
      does it.
    source_grid: that of the source; None: `grid` itself where the number of places agrees, else a square.

  Returns:
    ({path: array} of the loaded leaves, account).
  """
  loose = transformer.unstack_blocks(
    {path: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) for path, leaf in params.items()}
  )
  layout, prefix = detect(list(tensors), list(LAYOUTS.values()), tensors.source)

  def positions(array: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, str]:
    return resize.positions(array, shape[1] - grid[0] * grid[1], grid, source_grid, antialias=ANTIALIAS[layout.name])

  loaded, account = table.load(
    loose, tensors, layout, source=tensors.source, prefix=prefix, fresh=adapters.is_adapter, fit={'position': positions}
  )
  if any(path not in params for path in loaded):
    loaded = {path: np.asarray(leaf) for path, leaf in transformer.stack_blocks(loaded).items()}
  return loaded, account


def export(params: Mapping[str, Any], layout: str) -> dict[str, Any]:
  """Public tensors of a ViT's parameters {path: array}; adapters, which no public layout has, are left out."""
  return table.export(transformer.unstack_blocks(params), _layout(layout), skip=adapters.is_adapter)


def infer(tensors: files.Tensors, image_size: tuple[int, int] | None = None) -> tuple[dict[str, Any], tuple[int, int]]:
  """(arguments of `core.nn.vit.ViT`, image size) of the network that the tensors are for.

  The number of heads leaves no trace in the tensors: it is read from config.json, else taken as width / 64.
  A grid of positions is taken as square where neither `image_size` nor config.json says otherwise.
  """
  layout, prefix = detect(list(tensors), list(LAYOUTS.values()), tensors.source)
  shapes = {name.removeprefix(prefix): shape for name, shape in tensors.shapes.items()}
  timm = layout is TIMM
  width, _, *patch = shapes[layout.marker]
  block = r'blocks\.(\d+)\.' if timm else r'encoder\.layer\.(\d+)\.'
  depth = 1 + max((int(m[1]) for name in shapes if (m := re.match(block, name))), default=-1)
  up = 'blocks.0.mlp.fc1.weight' if timm else 'encoder.layer.0.intermediate.dense.weight'
  positions = 'pos_embed' if timm else 'embeddings.position_embeddings'
  if not depth or up not in shapes or positions not in shapes:
    raise UserError(f'{tensors.source}: a {layout.name} ViT without blocks, {up} or {positions}.')
  class_token = ('cls_token' if timm else 'embeddings.cls_token') in shapes
  query = 'blocks.0.attn.qkv.bias' if timm else 'encoder.layer.0.attention.attention.query.bias'
  fields = {
    'patch': tuple(patch),
    'width': width,
    'depth': depth,
    'heads': int(tensors.config.get('num_attention_heads', max(1, width // 64))),
    'mlp_dim': shapes[up][0],
    'class_token': class_token,
    'pool': 'class' if class_token else 'mean',
    'qkv_bias': query in shapes,
  }
  size = image_size or (None if timm else tensors.config.get('image_size'))
  if size is None:
    rows = columns = resize.square(shapes[positions][1] - class_token, tensors.source)
    size = (rows * patch[0], columns * patch[1])
  return fields, (size, size) if isinstance(size, int) else tuple(size)


def _layout(name: str) -> Layout:
  return table.chosen(LAYOUTS, name, 'a ViT')
