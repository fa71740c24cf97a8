"""Public weights of an AutoencoderKL (diffusers) <-> `core.nn.autoencoder`.

Files differ in how they keep the attention: old ones name its layers query, key, value and proj_attn, new ones to_q,
to_k, to_v and to_out.0; and some keep them as 1 x 1 convolutions. A layout each, so that a file comes back as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from core.errors import UserError
from core.nn.autoencoder import Autoencoder
from core.weights import files, table
from core.weights.table import CONV, LINEAR, Account, Key, Layout, Transform, detect, layer, norm

POINT = Transform(lambda x: (x[:, :, 0, 0].T,), lambda x: x.T[:, :, None, None])
"""A 1 x 1 convolution as a linear layer: [out, in, 1, 1] <-> [in, out]."""

NAMES = {
  'diffusers': {'query': 'to_q', 'key': 'to_k', 'value': 'to_v', 'out': 'to_out.0'},
  'diffusers-old': {'query': 'query', 'key': 'key', 'value': 'value', 'out': 'proj_attn'},
}
"""Of the attention's layers."""

EXPECTED = {
  'act_fn': 'silu', 'mid_block_add_attention': True, 'use_quant_conv': True, 'use_post_quant_conv': True,
  'shift_factor': None, 'latents_mean': None, 'latents_std': None,
}  # fmt: skip
"""Options of config.json that the autoencoder here knows one value of, which is also what an absent one means."""


def resnet(ours: str, theirs: str) -> tuple[Key, ...]:
  """The keys of a `core.nn.diffusion.ResBlock`."""
  return (
    *norm(f'{ours}/norm_1', f'{theirs}.norm1'),
    *layer(f'{ours}/conv_1', f'{theirs}.conv1', CONV),
    *layer(f'{ours}/time', f'{theirs}.time_emb_proj'),
    *norm(f'{ours}/norm_2', f'{theirs}.norm2'),
    *layer(f'{ours}/conv_2', f'{theirs}.conv2', CONV),
    *layer(f'{ours}/shortcut', f'{theirs}.conv_shortcut', POINT),
  )


def _half(name: str, kernel: Transform, attention: Mapping[str, str]) -> tuple[Key, ...]:
  """The keys of the encoder or the decoder."""
  way, sampler = {'encoder': ('down', 'downsample'), 'decoder': ('up', 'upsample')}[name]
  middle = f'{name}.mid_block.attentions.0'
  linear = [
    layer(f'{name}/mid_attention/attention/{ours}', f'{middle}.{attention[ours]}', kernel) for ours in attention
  ]
  return (
    *layer(f'{name}/conv_in', f'{name}.conv_in', CONV),
    *resnet(f'{name}/{way}_{{i}}_resnet_{{j}}', f'{name}.{way}_blocks.{{i}}.resnets.{{j}}'),
    *layer(f'{name}/{way}_{{i}}_{sampler}/conv', f'{name}.{way}_blocks.{{i}}.{sampler}rs.0.conv', CONV),
    *resnet(f'{name}/mid_resnet_{{i}}', f'{name}.mid_block.resnets.{{i}}'),
    *norm(f'{name}/mid_attention/norm', f'{middle}.group_norm'),
    *(key for keys in linear for key in keys),
    *norm(f'{name}/norm_out', f'{name}.conv_norm_out'),
    *layer(f'{name}/conv_out', f'{name}.conv_out', CONV),
  )


def _layout(names: str, kernel: Transform) -> Layout:
  attention = NAMES[names]
  return Layout(
    name=names + ('-conv' if kernel is POINT else ''),
    marker=f'encoder.mid_block.attentions.0.{attention["query"]}.weight',
    keys=(
      *_half('encoder', kernel, attention),
      *_half('decoder', kernel, attention),
      *layer('quant', 'quant_conv', POINT),
      *layer('post_quant', 'post_quant_conv', POINT),
    ),
  )


LAYOUTS = {layout.name: layout for names in NAMES for layout in (_layout(names, LINEAR), _layout(names, POINT))}


def layout_of(tensors: files.Tensors) -> tuple[Layout, str]:
  """(layout, prefix) of a file, by its names and the shape of the attention's queries."""
  layout, prefix = detect(list(tensors), [LAYOUTS[name] for name in NAMES], tensors.source)
  if len(tensors.shapes[prefix + layout.marker]) == 4:
    layout = LAYOUTS[f'{layout.name}-conv']
  return layout, prefix


def load(params: Mapping[str, Any], tensors: files.Tensors) -> tuple[dict[str, np.ndarray], Account]:
  """Fills the parameters of an autoencoder; files in half precision are read into the type of `params`.

  Args:
    params: {'/'-joined path: array or shape} of `core.nn.autoencoder.Autoencoder`.
    tensors: from `core.weights.files.read`, of the folder vae/ of a checkpoint or of a file in it.

  Returns:
    ({path: array} of all leaves, account).
  """
  layout, prefix = layout_of(tensors)
  return table.load(params, tensors, layout, source=tensors.source, prefix=prefix)


def export(params: Mapping[str, Any], layout: str = 'diffusers') -> dict[str, Any]:
  """Public tensors of an autoencoder's parameters {path: array}."""
  return table.export(params, table.chosen(LAYOUTS, layout, 'an autoencoder'))


def infer(tensors: files.Tensors) -> dict[str, Any]:
  """Arguments of `core.nn.autoencoder.Autoencoder` for the network that config.json describes."""
  config = tensors.config
  check(config, EXPECTED, ('block_out_channels', 'layers_per_block'), tensors.source, 'autoencoder')
  for option, kind in (('down_block_types', 'DownEncoderBlock2D'), ('up_block_types', 'UpDecoderBlock2D')):
    if other := sorted(set(config.get(option, ())) - {kind}):
      raise UserError(f'{tensors.source}: config.json has {option} {other}; the autoencoder here knows {kind!r} only.')
  if config.get('in_channels', 3) != config.get('out_channels', 3):
    raise UserError(f'{tensors.source}: config.json has in_channels other than out_channels; expected the same.')
  return {
    'channels': tuple(config['block_out_channels']),
    'layers': config['layers_per_block'],
    'latent': config.get('latent_channels', 4),
    'groups': config.get('norm_num_groups', 32),
    'colours': config.get('in_channels', 3),
    'scaling': config.get('scaling_factor', 0.18215),
  }


def config(model: Autoencoder) -> dict[str, Any]:
  """The config.json with which diffusers reads what `export` gives, the inverse of `infer`."""
  levels = len(model.channels)
  return {
    '_class_name': 'AutoencoderKL',
    'block_out_channels': list(model.channels),
    'down_block_types': ['DownEncoderBlock2D'] * levels,
    'up_block_types': ['UpDecoderBlock2D'] * levels,
    'layers_per_block': model.layers,
    'latent_channels': model.latent,
    'norm_num_groups': model.groups,
    'in_channels': model.colours,
    'out_channels': model.colours,
    'scaling_factor': model.scaling,
  }


def check(
  config: Mapping[str, Any], expected: Mapping[str, Any], needed: tuple[str, ...], source: str, what: str
) -> None:
  """Refuses a config.json without the `needed` options or with values that the network here does not know."""
  if lost := [option for option in needed if option not in config]:
    raise UserError(
      f'{source}: no {lost[0]} in the config.json beside the weights, which says what {what} they are for; copy the'
      ' config.json of the same folder of the checkpoint there.'
    )
  for option, value in expected.items():
    if (found := config.get(option, value)) != value:
      raise UserError(f'{source}: config.json has {option} {found!r}; the {what} here knows {value!r} only.')
