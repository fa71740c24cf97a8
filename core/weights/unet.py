"""Public weights of a UNet2DConditionModel (diffusers) <-> `core.nn.unet`.

The projections around a spatial transformer are 1 x 1 convolutions in SD 1.x ('diffusers') and linear layers in SD 2.x
('diffusers-linear', use_linear_projection in config.json): a layout each, so that a file comes back as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from core.errors import UserError
from core.nn.unet import UNet
from core.weights import files, table
from core.weights.autoencoder import POINT, check, resnet
from core.weights.table import CONV, LINEAR, Account, Key, Layout, Transform, detect, layer, norm

EXPECTED = {
  'act_fn': 'silu', 'center_input_sample': False, 'flip_sin_to_cos': True, 'freq_shift': 0,
  'mid_block_type': 'UNetMidBlock2DCrossAttn', 'only_cross_attention': False, 'mid_block_only_cross_attention': None,
  'downsample_padding': 1, 'mid_block_scale_factor': 1, 'dropout': 0.0, 'dual_cross_attention': False,
  'encoder_hid_dim': None, 'encoder_hid_dim_type': None, 'class_embed_type': None, 'num_class_embeds': None,
  'addition_embed_type': None, 'resnet_time_scale_shift': 'default', 'resnet_skip_time_act': False,
  'resnet_out_scale_factor': 1.0, 'time_embedding_type': 'positional', 'time_embedding_dim': None,
  'time_embedding_act_fn': None, 'timestep_post_act': None, 'time_cond_proj_dim': None, 'conv_in_kernel': 3,
  'conv_out_kernel': 3, 'attention_type': 'default', 'cross_attention_norm': None,
  'reverse_transformer_layers_per_block': None,
}  # fmt: skip
"""Options of config.json that the U-Net here knows one value of, which is also what an absent one means."""

CROSS = {
  'down_block_types': {'CrossAttnDownBlock2D': True, 'DownBlock2D': False},
  'up_block_types': {'CrossAttnUpBlock2D': True, 'UpBlock2D': False},
}
"""Kinds of level, and whether they attend to the context."""


def _transformer(ours: str, theirs: str, projection: Transform) -> tuple[Key, ...]:
  """The keys of a `core.nn.diffusion.SpatialTransformer`."""
  block, public = f'{ours}/block_{{k}}', f'{theirs}.transformer_blocks.{{k}}'
  keys = [*norm(f'{ours}/norm', f'{theirs}.norm')]
  for name in ('proj_in', 'proj_out'):
    keys += layer(f'{ours}/{name}', f'{theirs}.{name}', projection)
  for i, name in enumerate(('self', 'cross'), start=1):
    keys += norm(f'{block}/norm_{name}', f'{public}.norm{i}')
    for part, their in (('query', 'to_q'), ('key', 'to_k'), ('value', 'to_v')):
      keys.append(Key(f'{block}/{name}/{part}/kernel', f'{public}.attn{i}.{their}.weight', LINEAR))
    keys += layer(f'{block}/{name}/out', f'{public}.attn{i}.to_out.0')
  keys += norm(f'{block}/norm_mlp', f'{public}.norm3')
  keys += layer(f'{block}/mlp/up', f'{public}.ff.net.0.proj')
  keys += layer(f'{block}/mlp/down', f'{public}.ff.net.2')
  return tuple(keys)


def _keys(projection: Transform) -> tuple[Key, ...]:
  """The table; `projection` is how a file keeps proj_in and proj_out."""
  keys = [
    *layer('time/up', 'time_embedding.linear_1'),
    *layer('time/down', 'time_embedding.linear_2'),
    *layer('conv_in', 'conv_in', CONV),
    *resnet('mid_resnet_{j}', 'mid_block.resnets.{j}'),
    *_transformer('mid_transformer_{j}', 'mid_block.attentions.{j}', projection),
    *norm('norm_out', 'conv_norm_out'),
    *layer('conv_out', 'conv_out', CONV),
  ]
  for way, sampler in (('down', 'downsample'), ('up', 'upsample')):
    ours, theirs = f'{way}_{{i}}', f'{way}_blocks.{{i}}'
    keys += resnet(f'{ours}_resnet_{{j}}', f'{theirs}.resnets.{{j}}')
    keys += _transformer(f'{ours}_transformer_{{j}}', f'{theirs}.attentions.{{j}}', projection)
    keys += layer(f'{ours}_{sampler}/conv', f'{theirs}.{sampler}rs.0.conv', CONV)
  return tuple(keys)


MARKER = 'mid_block.attentions.0.proj_in.weight'
LAYOUTS = {
  'diffusers': Layout('diffusers', MARKER, _keys(POINT)),
  'diffusers-linear': Layout('diffusers-linear', MARKER, _keys(LINEAR)),
}


def layout_of(tensors: files.Tensors) -> tuple[Layout, str]:
  """(layout, prefix) of a file, by its names and the shape of the middle's projection."""
  _, prefix = detect(list(tensors), [LAYOUTS['diffusers']], tensors.source)
  return LAYOUTS['diffusers' if len(tensors.shapes[prefix + MARKER]) == 4 else 'diffusers-linear'], prefix


def load(params: Mapping[str, Any], tensors: files.Tensors) -> tuple[dict[str, np.ndarray], Account]:
  """Fills the parameters of a U-Net; files in half precision are read into the type of `params`.

  Args:
    params: {'/'-joined path: array or shape} of `core.nn.unet.UNet`.
    tensors: from `core.weights.files.read`, of the folder unet/ of a checkpoint or of a file in it.

  Returns:
    ({path: array} of all leaves, account, whose `layout` is what `export` takes to write the same layout).
  """
  layout, prefix = layout_of(tensors)
  return table.load(params, tensors, layout, source=tensors.source, prefix=prefix)


def export(params: Mapping[str, Any], layout: str = 'diffusers') -> dict[str, Any]:
  """Public tensors of a U-Net's parameters {path: array}."""
  return table.export(params, table.chosen(LAYOUTS, layout, 'a U-Net'))


def infer(tensors: files.Tensors) -> dict[str, Any]:
  """Arguments of `core.nn.unet.UNet` for the network that config.json describes."""
  config, source = tensors.config, tensors.source
  needed = ('block_out_channels', 'down_block_types', 'up_block_types', 'cross_attention_dim', 'attention_head_dim')
  check(config, EXPECTED, needed, source, 'U-Net')
  levels = len(config['block_out_channels'])
  sides = {}
  for option, kinds in CROSS.items():
    if other := sorted(set(config[option]) - set(kinds)):
      raise UserError(f'{source}: config.json has {option} {other}; the U-Net here knows {sorted(kinds)}.')
    sides[option] = tuple(kinds[kind] for kind in config[option])
  cross = sides['down_block_types']
  if cross != sides['up_block_types'][::-1] or len(cross) != levels:
    raise UserError(f'{source}: config.json has levels that attend to the text on the way down or up only.')
  for option in ('layers_per_block', 'transformer_layers_per_block', 'cross_attention_dim'):
    if not isinstance(found := config.get(option, 1), int):
      raise UserError(f'{source}: config.json has {option} {found}; the U-Net here knows one number for all levels.')
  heads = config.get('num_attention_heads') or config['attention_head_dim']
  return {
    'channels': tuple(config['block_out_channels']),
    'cross': cross,
    'layers': config.get('layers_per_block', 2),
    'heads': heads if isinstance(heads, int) else tuple(heads),
    'depth': config.get('transformer_layers_per_block', 1),
    'context_width': config['cross_attention_dim'],
    'inputs': config.get('in_channels', 4),
    'outputs': config.get('out_channels', 4),
    'groups': config.get('norm_num_groups', 32),
    'epsilon': config.get('norm_eps', 1e-5),
  }


def config(model: UNet, layout: str = 'diffusers') -> dict[str, Any]:
  """The config.json with which diffusers reads what `export` gives, the inverse of `infer`."""
  names = {option: {cross: name for name, cross in kinds.items()} for option, kinds in CROSS.items()}
  return {
    '_class_name': 'UNet2DConditionModel',
    'block_out_channels': list(model.channels),
    'down_block_types': [names['down_block_types'][cross] for cross in model.cross],
    'up_block_types': [names['up_block_types'][cross] for cross in model.cross[::-1]],
    'layers_per_block': model.layers,
    'attention_head_dim': model.heads if isinstance(model.heads, int) else list(model.heads),
    'transformer_layers_per_block': model.depth,
    'cross_attention_dim': model.context_width,
    'in_channels': model.inputs,
    'out_channels': model.outputs,
    'norm_num_groups': model.groups,
    'norm_eps': model.epsilon,
    'use_linear_projection': layout == 'diffusers-linear',
  }
