"""Public weights of CLIP text encoders (transformers; `text_encoder/` of a diffusers folder) <-> `core.nn.clip`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from core.errors import UserError
from core.nn.clip import ACTIVATIONS, ClipText
from core.weights import files, table
from core.weights.table import LINEAR, Account, Key, Layout, detect, layer, norm

BLOCK = 'block_{i}'
THEIRS = 'encoder.layers.{i}'
WORDS = 'embeddings.token_embedding.weight'
POSITIONS = 'embeddings.position_embedding.weight'
PROJECTION = 'text_projection.weight'
OLD_EOS = 2
"""`eos_token_id` of configs that were written wrong and mean the greatest id (transformers pull request 24773)."""

KEYS = (
  Key('words/embedding', WORDS),
  Key('position', POSITIONS),
  *norm(f'{BLOCK}/norm_attention', f'{THEIRS}.layer_norm1'),
  *layer(f'{BLOCK}/attention/query', f'{THEIRS}.self_attn.q_proj'),
  *layer(f'{BLOCK}/attention/key', f'{THEIRS}.self_attn.k_proj'),
  *layer(f'{BLOCK}/attention/value', f'{THEIRS}.self_attn.v_proj'),
  *layer(f'{BLOCK}/attention/out', f'{THEIRS}.self_attn.out_proj'),
  *norm(f'{BLOCK}/norm_mlp', f'{THEIRS}.layer_norm2'),
  *layer(f'{BLOCK}/mlp/up', f'{THEIRS}.mlp.fc1'),
  *layer(f'{BLOCK}/mlp/down', f'{THEIRS}.mlp.fc2'),
  *norm('norm', 'final_layer_norm'),
)

TRANSFORMERS = Layout(
  name='transformers',
  marker=f'text_model.{WORDS}',
  keys=(
    *(dataclasses.replace(key, theirs=f'text_model.{key.theirs}') for key in KEYS),
    Key('projection/kernel', PROJECTION, LINEAR),
  ),
  ignored=(
    (r'text_model\.embeddings\.position_ids', 'the numbers 0, 1, 2, ... as old versions stored them'),
    (r'text_projection\.weight', 'the network here has no projection'),
    (
      r'(vision_model\..*|visual_projection\.weight|logit_scale)',
      "the image half of a whole CLIP, and the loss's scale",
    ),
  ),
)
"""What published folders hold, and what every version of transformers and diffusers reads."""
BARE = Layout(name='bare', marker=WORDS, keys=KEYS)
"""How transformers 5 writes a CLIPTextModel that was made there, not read."""

LAYOUTS = {layout.name: layout for layout in (TRANSFORMERS, BARE)}
"""In this order: `BARE`'s marker ends `TRANSFORMERS`'s."""


def load(params: Mapping[str, Any], tensors: files.Tensors) -> tuple[dict[str, np.ndarray], Account]:
  """Fills the parameters of a text encoder.

  Args:
    params: {'/'-joined path: array or shape} of `core.nn.clip.ClipText`.
    tensors: from `core.weights.files.read`, of a text encoder alone or of a whole CLIP.

  Returns:
    ({path: array in the dtype of params} of all leaves, account).
  """
  layout, prefix = detect(list(tensors), list(LAYOUTS.values()), tensors.source)
  return table.load(params, tensors, layout, source=tensors.source, prefix=prefix)


def export(params: Mapping[str, Any], layout: str) -> dict[str, Any]:
  """Public tensors of a text encoder's parameters {path: array}; `config` gives the config.json beside them."""
  return table.export(params, table.chosen(LAYOUTS, layout, 'a CLIP text encoder'))


def config(model: ClipText) -> dict[str, Any]:
  """The config.json with which transformers and diffusers read what `export` gives; `infer` is its inverse."""
  return {
    'architectures': ['CLIPTextModelWithProjection' if model.projection else 'CLIPTextModel'],
    'model_type': 'clip_text_model',
    'vocab_size': model.vocabulary,
    'hidden_size': model.width,
    'num_hidden_layers': model.depth,
    'num_attention_heads': model.heads,
    'intermediate_size': model.mlp_dim,
    'max_position_embeddings': model.max_positions,
    'hidden_act': model.activation,
    'layer_norm_eps': model.epsilon,
    'eos_token_id': OLD_EOS if model.eos is None else model.eos,
    **({'projection_dim': model.projection} if model.projection else {}),
  }


def infer(tensors: files.Tensors) -> dict[str, Any]:
  """Arguments of `core.nn.clip.ClipText` for the network that the tensors are for.

  Heads, activation, epsilon and EOS leave no trace in the tensors: they are read from config.json, and nothing is
  guessed without it, since the wrong activation gives prompts that are only somewhat wrong.
  """
  layout, prefix = detect(list(tensors), list(LAYOUTS.values()), tensors.source)
  shapes = {name.removeprefix(prefix): shape for name, shape in tensors.shapes.items()}
  projection = shapes.get(PROJECTION, (0,))[0]
  inner = layout.marker.removesuffix(WORDS)
  shapes = {name.removeprefix(inner): shape for name, shape in shapes.items()}
  depth = 1 + max((int(m[1]) for name in shapes if (m := re.match(r'encoder\.layers\.(\d+)\.', name))), default=-1)
  up = f'{THEIRS.format(i=0)}.mlp.fc1.weight'
  if lost := [name for name in (WORDS, POSITIONS, up) if name not in shapes]:
    raise UserError(f'{tensors.source}: a CLIP text encoder without {prefix}{inner}{lost[0]}.')
  options = _config(tensors)
  vocabulary, width = shapes[WORDS]
  eos = options.get('eos_token_id', OLD_EOS)
  return {
    'vocabulary': vocabulary,
    'width': width,
    'depth': depth,
    'heads': int(options['num_attention_heads']),
    'mlp_dim': shapes[up][0],
    'max_positions': shapes[POSITIONS][0],
    'activation': options['hidden_act'],
    'eos': None if eos == OLD_EOS else int(eos),
    'projection': projection,
    'epsilon': float(options.get('layer_norm_eps', 1e-5)),
  }


def _config(tensors: files.Tensors) -> dict[str, Any]:
  """The text encoder's part of config.json, checked."""
  options = tensors.config.get('text_config') or tensors.config
  if options.get('model_type', 'clip_text_model') != 'clip_text_model':
    raise UserError(
      f'{tensors.source}: config.json has model_type {options["model_type"]!r}; the text encoder here is a'
      " 'clip_text_model'."
    )
  for option in ('num_attention_heads', 'hidden_act'):
    if option not in options:
      raise UserError(
        f'{tensors.source}: the tensors do not tell {option}, and there is no config.json beside them that does. Put'
        ' the one of the same text_encoder folder there, or give a variant by name.'
      )
  if (found := options['hidden_act']) not in ACTIVATIONS:
    raise UserError(
      f'{tensors.source}: config.json has hidden_act {found!r}; the text encoder here knows {sorted(ACTIVATIONS)}.'
    )
  if not isinstance(eos := options.get('eos_token_id', OLD_EOS), int):
    raise UserError(f'{tensors.source}: config.json has eos_token_id {eos!r}, expected one number.')
  return dict(options)
