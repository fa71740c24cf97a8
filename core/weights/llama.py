"""Public LLaMA weights (transformers: LLaMA, Vicuna, TinyLlama, Mistral, Qwen 1.5 and 2) <-> `core.nn.llama`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from core.errors import UserError
from core.nn import adapters, transformer
from core.nn.llama import Scaling
from core.weights import files, table
from core.weights.table import LINEAR, Account, Key, Layout, detect, layer

BLOCK, THEIRS = 'block_{i}', 'model.layers.{i}'
HEAD = 'lm_head.weight'
FAMILIES = ('llama', 'mistral', 'qwen2')
"""`model_type`s whose networks are this one; others may have its names and compute something else."""

LAYERS = {'query': 'q_proj', 'key': 'k_proj', 'value': 'v_proj', 'out': 'o_proj'} | {
  name: f'{name}_proj' for name in ('gate', 'up', 'down')
}
"""Our names of the linear layers of a block -> transformers'."""

TRANSFORMERS = Layout(
  name='transformers',
  marker='model.embed_tokens.weight',
  keys=(
    Key('embed/embedding', 'model.embed_tokens.weight'),
    Key(f'{BLOCK}/norm_attention/scale', f'{THEIRS}.input_layernorm.weight'),
    *(key for name in ('query', 'key', 'value')
      for key in layer(f'{BLOCK}/attention/{name}', f'{THEIRS}.self_attn.{LAYERS[name]}')),
    Key(f'{BLOCK}/attention/out/kernel', f'{THEIRS}.self_attn.o_proj.weight', LINEAR),
    Key(f'{BLOCK}/norm_mlp/scale', f'{THEIRS}.post_attention_layernorm.weight'),
    *(Key(f'{BLOCK}/mlp/{name}/kernel', f'{THEIRS}.mlp.{LAYERS[name]}.weight', LINEAR)
      for name in ('gate', 'up', 'down')),
    Key('norm/scale', 'model.norm.weight'),
    Key('head/kernel', HEAD, LINEAR),
  ),
  ignored=((r'model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq', 'rotary frequencies, computed here'),),
)  # fmt: skip

LAYOUTS = {layout.name: layout for layout in (TRANSFORMERS,)}


def load(params: Mapping[str, Any], tensors: files.Tensors) -> tuple[dict[str, np.ndarray], Account]:
  """Fills the parameters of a network, in the dtype of each; low-rank updates stay fresh.

  Args:
    params: {'/'-joined path: array or shape} of `core.nn.llama.Llama`, from a loop or from a scan over blocks.
    tensors: from `core.weights.files.read`.

  Returns:
    ({path: array} of the loaded leaves, account).
  """
  layout, prefix = detect(list(tensors), list(LAYOUTS.values()), tensors.source)
  if 'head/kernel' not in params:
    tied = (re.escape(HEAD), 'the head is the embedding')
    layout = dataclasses.replace(layout, ignored=(*layout.ignored, tied))
  loose = transformer.unstack_blocks(
    {path: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) for path, leaf in params.items()}
  )
  loaded, account = table.load(loose, tensors, layout, source=tensors.source, prefix=prefix, fresh=adapters.is_adapter)
  if any(path not in params for path in loaded):
    loaded = {path: np.asarray(leaf) for path, leaf in transformer.stack_blocks(loaded).items()}
  return loaded, account


def export(params: Mapping[str, Any], layout: str) -> dict[str, Any]:
  """Public tensors of a network's parameters {path: array}; low-rank updates are merged before or left out."""
  return table.export(
    transformer.unstack_blocks(params), table.chosen(LAYOUTS, layout, 'a LLaMA'), skip=adapters.is_adapter
  )


def infer(tensors: files.Tensors) -> dict[str, Any]:
  """Arguments of `core.nn.llama.Llama` for the network that the tensors are for.

  Heads, rotary frequencies and the context leave no trace in the tensors: they are read from config.json.
  """
  layout, prefix = detect(list(tensors), list(LAYOUTS.values()), tensors.source)
  shapes, config = {name.removeprefix(prefix): shape for name, shape in tensors.shapes.items()}, tensors.config
  _check_config(config, tensors.source)
  depth = 1 + max((int(m[1]) for name in shapes if (m := re.match(r'model\.layers\.(\d+)\.', name))), default=-1)
  block = {name: f'model.layers.0.{part}.weight' for name, part in (
    ('query', 'self_attn.q_proj'), ('key', 'self_attn.k_proj'), ('up', 'mlp.up_proj'))}  # fmt: skip
  if not depth or any(name not in shapes for name in block.values()):
    raise UserError(f'{tensors.source}: a LLaMA without blocks, or its first lacks one of {list(block.values())}.')
  vocabulary, width = shapes[layout.marker]
  heads = int(config['num_attention_heads'])
  head_dim = shapes[block['query']][0] // heads
  rotary = config.get('rope_parameters') or config.get('rope_scaling') or {}
  positions = int(config.get('max_position_embeddings', 2048))
  if config.get('sliding_window') and config.get('use_sliding_window', True):
    positions = min(positions, int(config['sliding_window']))  # within the window it is full attention
  return {
    'vocabulary': vocabulary,
    'width': width,
    'depth': depth,
    'heads': heads,
    'kv_heads': shapes[block['key']][0] // head_dim,
    'mlp_dim': shapes[block['up']][0],
    'head_dim': 0 if head_dim * heads == width else head_dim,
    'max_positions': positions,
    'theta': float(rotary.get('rope_theta', config.get('rope_theta', 10000.0))),
    'scaling': scaling(rotary, positions),
    'epsilon': float(config.get('rms_norm_eps', 1e-6)),
    'tied': HEAD not in shapes or bool(config.get('tie_word_embeddings', False)),
    'qkv_bias': 'model.layers.0.self_attn.q_proj.bias' in shapes,
  }


def scaling(rotary: Mapping[str, Any], positions: int) -> Scaling | None:
  """`Scaling` from config.json's rope_scaling (rope_parameters since version 5)."""
  kind = rotary.get('rope_type', rotary.get('type', 'default'))
  if kind == 'default':
    return None
  factor, original = float(rotary.get('factor', 1.0)), int(rotary.get('original_max_position_embeddings') or positions)
  if kind == 'llama3':
    return Scaling(kind, factor, original, float(rotary['low_freq_factor']), float(rotary['high_freq_factor']))
  if kind == 'yarn':
    if rotary.get('mscale') or rotary.get('mscale_all_dim') or not rotary.get('truncate', True):
      raise UserError(f'rotary scaling {dict(rotary)}: mscale and truncate=false of yarn are not known.')
    low, high = float(rotary.get('beta_slow') or 1), float(rotary.get('beta_fast') or 32)
    return Scaling(kind, factor, original, low, high, float(rotary.get('attention_factor') or 0))
  return Scaling(kind, factor)


def _check_config(config: Mapping[str, Any], source: str) -> None:
  """Raises UserError for a network that this one is not, or for one that cannot be told."""
  if 'num_attention_heads' not in config:
    raise UserError(
      f'{source}: the heads of a LLaMA leave no trace in its tensors, and there is no config.json with'
      ' num_attention_heads beside them. Download it too, or give the sizes yourself.'
    )
  expected = {'model_type': FAMILIES, 'hidden_act': ('silu',), 'partial_rotary_factor': (1.0,)}
  for option, known in expected.items():
    if (found := config.get(option, known[0])) not in known:
      raise UserError(f'{source}: config.json has {option} {found!r}; this network knows {known} only.')
