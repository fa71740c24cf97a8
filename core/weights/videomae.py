"""Public VideoMAE weights (transformers) <-> `core.nn.videomae`.

VideoMAEModel has bare names; in VideoMAEForVideoClassification and VideoMAEForPreTraining 'videomae.' stands before the
encoder's names, and not before those of the norm on the pooled feature, the classifier and the decoder.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from core.errors import UserError
from core.nn import transformer
from core.weights import files, table
from core.weights.table import CONV, LINEAR, Account, Key, Layout, detect, layer, norm

BLOCK = 'encoder/block_{i}'
NORM_LEAVES = tuple(f'{norm}/{leaf}' for norm in ('encoder/norm', 'norm_pooled') for leaf in ('scale', 'bias'))
"""The last norm: on every token, or on their mean."""


def _layout(name: str, model: str) -> Layout:
  """The table with `model` before the encoder's names."""
  block, attention = f'{model}encoder.layer.{{i}}', f'{model}encoder.layer.{{i}}.attention.attention'
  projection = f'{model}embeddings.patch_embeddings.projection'
  return Layout(
    name=name,
    marker=f'{model}encoder.layer.0.attention.attention.q_bias',
    keys=(
      Key('tubelets/kernel', f'{projection}.weight', CONV),
      Key('tubelets/bias', f'{projection}.bias'),
      *norm(f'{BLOCK}/norm_attention', f'{block}.layernorm_before'),
      *layer(f'{BLOCK}/attention/query', f'{attention}.query', bias=f'{attention}.q_bias'),
      Key(f'{BLOCK}/attention/key/kernel', f'{attention}.key.weight', LINEAR),
      *layer(f'{BLOCK}/attention/value', f'{attention}.value', bias=f'{attention}.v_bias'),
      *layer(f'{BLOCK}/attention/out', f'{block}.attention.output.dense'),
      *norm(f'{BLOCK}/norm_mlp', f'{block}.layernorm_after'),
      *layer(f'{BLOCK}/mlp/up', f'{block}.intermediate.dense'),
      *layer(f'{BLOCK}/mlp/down', f'{block}.output.dense'),
      *norm('encoder/norm', f'{model}layernorm'),
      *norm('norm_pooled', 'fc_norm'),
    ),
    ignored=(
      (r'classifier\.(weight|bias)', "the source's own classifier"),
      (r'(decoder\..*|encoder_to_decoder\.weight|mask_token)', 'the decoder of masked pre-training'),
    ),
  )


TRANSFORMERS = _layout('transformers', 'videomae.')
BARE = _layout('transformers_bare', '')
LAYOUTS = {layout.name: layout for layout in (TRANSFORMERS, BARE)}  # in this order: the bare marker ends the other


def load(params: Mapping[str, Any], tensors: files.Tensors) -> tuple[dict[str, np.ndarray], Account]:
  """Fills the parameters of a VideoMAE encoder.

  Where network and file differ in the place of the last norm, ours stays fresh and theirs is ignored: so a network that
  is to be fine-tuned starts from weights that were only pre-trained.

  Args:
    params: {'/'-joined path: array or shape} of `core.nn.videomae.VideoMAE`, from a loop or from a scan over blocks.
    tensors: from `core.weights.files.read`.

  Returns:
    ({path: array} of the loaded leaves, account).
  """
  layout, prefix = detect(list(tensors), list(LAYOUTS.values()), tensors.source)
  matched, _ = table.match(list(NORM_LEAVES), layout)
  theirs = {paths[0]: name for _, name, paths in matched}
  elsewhere = tuple(
    (re.escape(name), 'the last norm, which this network has elsewhere')
    for path, name in theirs.items()
    if path not in params
  )
  layout = dataclasses.replace(layout, ignored=(*layout.ignored, *elsewhere))
  loose = transformer.unstack_blocks(
    {path: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) for path, leaf in params.items()}
  )
  loaded, account = table.load(
    loose, tensors, layout, source=tensors.source, prefix=prefix,
    fresh=lambda path: path in theirs and prefix + theirs[path] not in tensors,
  )  # fmt: skip
  if any(path not in params for path in loaded):
    loaded = {path: np.asarray(leaf) for path, leaf in transformer.stack_blocks(loaded).items()}
  return loaded, account


def export(params: Mapping[str, Any], layout: str) -> dict[str, Any]:
  """Public tensors of a VideoMAE's parameters {path: array}; both layouts load into any of transformers' classes."""
  return table.export(transformer.unstack_blocks(params), table.chosen(LAYOUTS, layout, 'a VideoMAE'))


def infer(tensors: files.Tensors) -> tuple[dict[str, Any], tuple[int, int, int]]:
  """(arguments of `core.nn.videomae.VideoMAE`, (frames, height, width) of a clip) that the tensors are for.

  The number of heads leaves no trace in the tensors: it is read from config.json, else taken as width / 64. So is the
  clip: 16 x 224 x 224 without config.json.
  """
  layout, prefix = detect(list(tensors), list(LAYOUTS.values()), tensors.source)
  model = prefix + layout.marker.removesuffix(BARE.marker)
  shapes, config = tensors.shapes, tensors.config
  projection, up = (
    f'{model}embeddings.patch_embeddings.projection.weight', f'{model}encoder.layer.0.intermediate.dense.weight'
  )  # fmt: skip
  if projection not in shapes or up not in shapes:
    raise UserError(f'{tensors.source}: a VideoMAE without {projection} or {up}.')
  block = re.escape(f'{model}encoder.layer.') + r'(\d+)\.'
  width, _, *patch = shapes[projection]
  pooled, every = f'{prefix}fc_norm.weight' in shapes, f'{model}layernorm.weight' in shapes
  fields = {
    'patch': tuple(patch),
    'width': width,
    'depth': 1 + max(int(found[1]) for name in shapes if (found := re.match(block, name))),
    'heads': int(config.get('num_attention_heads', max(1, width // 64))),
    'mlp_dim': shapes[up][0],
    'norm': 'pooled' if pooled else 'tokens' if every else 'none',
    'epsilon': float(config.get('layer_norm_eps', 1e-12)),
  }
  size = config.get('image_size', 224)
  return fields, (int(config.get('num_frames', 16)), *((size, size) if isinstance(size, int) else size))
