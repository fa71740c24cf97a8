"""Public GPT-2 weights (transformers) <-> `core.nn.gpt`, without the vocabulary that the decoder does not have."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from core.errors import UserError
from core.nn import transformer
from core.weights import files, table
from core.weights.table import COPY, Account, Key, Layout, detect, layer, norm, split

BLOCK = 'block_{i}'


def _qkv(leaf: str) -> tuple[str, ...]:
  return tuple(f'{BLOCK}/attention/{name}/{leaf}' for name in ('query', 'key', 'value'))


TRANSFORMERS = Layout(
  name='transformers',
  marker='wpe.weight',
  keys=(
    Key('position', 'wpe.weight'),
    *norm(f'{BLOCK}/norm_attention', 'h.{i}.ln_1'),
    Key(_qkv('kernel'), 'h.{i}.attn.c_attn.weight', split(3, COPY, axis=1)),
    Key(_qkv('bias'), 'h.{i}.attn.c_attn.bias', split(3)),
    *layer(f'{BLOCK}/attention/out', 'h.{i}.attn.c_proj', COPY),
    *norm(f'{BLOCK}/norm_mlp', 'h.{i}.ln_2'),
    *layer(f'{BLOCK}/mlp/up', 'h.{i}.mlp.c_fc', COPY),
    *layer(f'{BLOCK}/mlp/down', 'h.{i}.mlp.c_proj', COPY),
    *norm('norm', 'ln_f'),
  ),
  ignored=(
    (r'wte\.weight', 'token embeddings: the decoder is given embeddings'),
    (r'(lm_head|score|classifier)\.(weight|bias)', "the source's own classifier"),
    (r'h\.\d+\.attn\.(bias|masked_bias)', 'the causal mask as old versions stored it'),
  ),
)

LAYOUTS = {layout.name: layout for layout in (TRANSFORMERS,)}


def load(params: Mapping[str, Any], tensors: files.Tensors) -> tuple[dict[str, np.ndarray], Account]:
  """Fills the parameters of a decoder.

  A decoder for shorter sequences takes the first of the source's positions; one without positions ignores them.

  Args:
    params: {'/'-joined path: array or shape} of `core.nn.gpt.Decoder`, from a loop or from a scan over blocks.
    tensors: from `core.weights.files.read`.

  Returns:
    ({path: array} of all leaves, account).
  """
  layout, prefix = detect(list(tensors), list(LAYOUTS.values()), tensors.source)
  if 'position' not in params:
    unused = (r'wpe\.weight', 'the decoder has no positions')
    layout = dataclasses.replace(layout, ignored=(*layout.ignored, unused))
  loose = transformer.unstack_blocks(
    {path: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) for path, leaf in params.items()}
  )
  loaded, account = table.load(
    loose, tensors, layout, source=tensors.source, prefix=prefix, fit={'position': _first_positions}
  )
  if any(path not in params for path in loaded):
    loaded = {path: np.asarray(leaf) for path, leaf in transformer.stack_blocks(loaded).items()}
  return loaded, account


def export(params: Mapping[str, Any], layout: str) -> dict[str, Any]:
  """Public tensors of a decoder's parameters {path: array}; transformers makes the token embeddings afresh."""
  return table.export(transformer.unstack_blocks(params), table.chosen(LAYOUTS, layout, 'a GPT-2'))


def infer(tensors: files.Tensors) -> dict[str, Any]:
  """Arguments of `core.nn.gpt.Decoder` for the network that the tensors are for.

  The number of heads leaves no trace in the tensors: it is read from config.json, else taken as width / 64.
  """
  layout, prefix = detect(list(tensors), list(LAYOUTS.values()), tensors.source)
  shapes = {name.removeprefix(prefix): shape for name, shape in tensors.shapes.items()}
  positions, width = shapes[layout.marker]
  depth = 1 + max((int(m[1]) for name in shapes if (m := re.match(r'h\.(\d+)\.', name))), default=-1)
  up = 'h.0.mlp.c_fc.weight'
  if not depth or up not in shapes:
    raise UserError(f'{tensors.source}: a GPT-2 without blocks or without {prefix}{up}.')
  for option, expected in (('scale_attn_by_inverse_layer_idx', False), ('activation_function', 'gelu_new')):
    if (found := tensors.config.get(option, expected)) != expected:
      raise UserError(f'{tensors.source}: config.json has {option} {found!r}; the decoder knows {expected!r} only.')
  return {
    'depth': depth,
    'heads': int(tensors.config.get('n_head', max(1, width // 64))),
    'width': width,
    'mlp_dim': shapes[up][1],
    'max_positions': positions,
    'epsilon': float(tensors.config.get('layer_norm_epsilon', 1e-5)),
  }


def _first_positions(array: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, str]:
  if shape[0] >= array.shape[0]:
    return array, ''
  return array[: shape[0]], f'the first {shape[0]} of {array.shape[0]} positions'
