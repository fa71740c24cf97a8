"""Public BERT weights (transformers) <-> `core.nn.bert`: the encoder, without pooler and heads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from core.errors import UserError
from core.weights import files, table
from core.weights.table import Account, Key, Layout, detect, layer

BLOCK = 'block_{i}'
IGNORED = (
  (r'embeddings\.position_ids', 'the numbers 0, 1, 2, ... as old versions stored them'),
  (r'pooler\.dense\.(weight|bias)', "transformers' pooler stands behind the states"),
  (r'cls\..*', 'heads of the pre-training'),
  (r'(classifier|qa_outputs)\.(weight|bias)', "the source's own classifier"),
)


def _keys(scale: str, bias: str) -> tuple[Key, ...]:
  """The table; `scale` and `bias` are what the norms' leaves are called."""

  def norm(ours: str, theirs: str) -> tuple[Key, ...]:
    return Key(f'{ours}/scale', f'{theirs}.{scale}'), Key(f'{ours}/bias', f'{theirs}.{bias}')

  return (
    Key('words/embedding', 'embeddings.word_embeddings.weight'),
    Key('position', 'embeddings.position_embeddings.weight'),
    Key('type', 'embeddings.token_type_embeddings.weight'),
    *norm('norm', 'embeddings.LayerNorm'),
    *layer(f'{BLOCK}/attention/query', 'encoder.layer.{i}.attention.self.query'),
    *layer(f'{BLOCK}/attention/key', 'encoder.layer.{i}.attention.self.key'),
    *layer(f'{BLOCK}/attention/value', 'encoder.layer.{i}.attention.self.value'),
    *layer(f'{BLOCK}/attention/out', 'encoder.layer.{i}.attention.output.dense'),
    *norm(f'{BLOCK}/norm_attention', 'encoder.layer.{i}.attention.output.LayerNorm'),
    *layer(f'{BLOCK}/mlp/up', 'encoder.layer.{i}.intermediate.dense'),
    *layer(f'{BLOCK}/mlp/down', 'encoder.layer.{i}.output.dense'),
    *norm(f'{BLOCK}/norm_mlp', 'encoder.layer.{i}.output.LayerNorm'),
  )


TRANSFORMERS = Layout('transformers', 'embeddings.LayerNorm.weight', _keys('weight', 'bias'), IGNORED)
TENSORFLOW = Layout('tensorflow', 'embeddings.LayerNorm.gamma', _keys('gamma', 'beta'), IGNORED)
"""TensorFlow's names of a norm's leaves, which the first conversions to PyTorch kept."""

LAYOUTS = {layout.name: layout for layout in (TRANSFORMERS, TENSORFLOW)}


def load(params: Mapping[str, Any], tensors: files.Tensors) -> tuple[dict[str, np.ndarray], Account]:
  """Fills the parameters of a BERT.

  Args:
    params: {'/'-joined path: array or shape} of `core.nn.bert.Bert`.
    tensors: from `core.weights.files.read`.

  Returns:
    ({path: array} of all leaves, account).
  """
  layout, prefix = detect(list(tensors), list(LAYOUTS.values()), tensors.source)
  return table.load(params, tensors, layout, source=tensors.source, prefix=prefix)


def export(params: Mapping[str, Any], layout: str) -> dict[str, Any]:
  """Public tensors of a BERT's parameters {path: array}; transformers makes the pooler afresh."""
  return table.export(params, table.chosen(LAYOUTS, layout, 'a BERT'))


def infer(tensors: files.Tensors) -> dict[str, Any]:
  """Arguments of `core.nn.bert.Bert` for the network that the tensors are for.

  The number of heads leaves no trace in the tensors: it is read from config.json, else taken as width / 64.
  """
  _, prefix = detect(list(tensors), list(LAYOUTS.values()), tensors.source)
  shapes = {name.removeprefix(prefix): shape for name, shape in tensors.shapes.items()}
  depth = 1 + max((int(m[1]) for name in shapes if (m := re.match(r'encoder\.layer\.(\d+)\.', name))), default=-1)
  words, positions, types = (f'embeddings.{name}_embeddings.weight' for name in ('word', 'position', 'token_type'))
  up = 'encoder.layer.0.intermediate.dense.weight'
  if lost := [name for name in (words, positions, types, up) if name not in shapes]:
    raise UserError(f'{tensors.source}: a BERT without {prefix}{lost[0]}.')
  expected = {'model_type': 'bert', 'hidden_act': 'gelu', 'position_embedding_type': 'absolute', 'is_decoder': False}
  for option, value in expected.items():
    if (found := tensors.config.get(option, value)) != value:
      raise UserError(f'{tensors.source}: config.json has {option} {found!r}; the BERT here knows {value!r} only.')
  vocabulary, width = shapes[words]
  return {
    'vocabulary': vocabulary,
    'width': width,
    'depth': depth,
    'heads': int(tensors.config.get('num_attention_heads', max(1, width // 64))),
    'mlp_dim': shapes[up][0],
    'max_positions': shapes[positions][0],
    'types': shapes[types][0],
    'epsilon': float(tensors.config.get('layer_norm_eps', 1e-12)),
  }
