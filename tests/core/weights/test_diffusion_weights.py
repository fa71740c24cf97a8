"""Key tables of the autoencoder and the U-Net of latent diffusion: folders of diffusers in and out."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict as flatten

from core.errors import UserError
from core.nn.autoencoder import Autoencoder
from core.nn.unet import UNet
from core.weights import autoencoder, files, unet

VAE = Autoencoder(channels=(8, 12), layers=1, groups=4)
VAE_CONFIG = {'block_out_channels': [8, 12], 'layers_per_block': 1, 'norm_num_groups': 4}


def leaves(model, *inputs):
  """{path: random array} of a network's parameters."""
  flat = flatten(jax.eval_shape(model.init, jax.random.key(0), *inputs)['params'], sep='/')
  rng = np.random.default_rng(0)
  return {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in flat.items()}


VAE_LEAVES = leaves(VAE, jnp.zeros((1, 4, 4, 3)))


UNET = UNet(channels=(8, 12), cross=(True, False), layers=2, heads=(2, 3), depth=2, context_width=6, groups=4)
UNET_LEAVES = leaves(UNET, jnp.zeros((1, 4, 4, 4)), jnp.zeros(1), jnp.zeros((1, 3, 6)))
UNET_CONFIG = {
  'block_out_channels': [8, 12], 'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D'],
  'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D'], 'layers_per_block': 2, 'transformer_layers_per_block': 2,
  'attention_head_dim': [2, 3], 'cross_attention_dim': 6, 'norm_num_groups': 4,
}  # fmt: skip


def saved(folder, tensors, config):
  """The tensors of a folder as diffusers lays it out."""
  files.write(folder / 'diffusion_pytorch_model.safetensors', tensors)
  (folder / 'config.json').write_text(json.dumps(config))
  return files.read(folder)


def assert_same(found, expected):
  """Two flat trees are equal bit for bit."""
  assert set(found) == set(expected)
  for name, value in expected.items():
    assert found[name].dtype == value.dtype
    np.testing.assert_array_equal(found[name], value, err_msg=name)


def save_vae(folder):
  diffusers = pytest.importorskip('diffusers')
  kinds = {'down_block_types': ('DownEncoderBlock2D',) * 2, 'up_block_types': ('UpDecoderBlock2D',) * 2}
  diffusers.AutoencoderKL(block_out_channels=(8, 12), layers_per_block=1, norm_num_groups=4, **kinds).save_pretrained(
    folder
  )
  return diffusers.AutoencoderKL


def test_an_autoencoder_of_diffusers_comes_back_bit_for_bit(tmp_path):
  kind = save_vae(tmp_path)
  tensors = files.read(tmp_path)
  assert Autoencoder(**autoencoder.infer(tensors)) == VAE
  loaded, account = autoencoder.load(VAE_LEAVES, tensors)
  assert set(loaded) == set(VAE_LEAVES) and not account.ignored and account.layout == 'diffusers'
  assert_same(autoencoder.export(loaded), dict(tensors))
  files.write(tmp_path / 'diffusion_pytorch_model.safetensors', autoencoder.export(VAE_LEAVES))
  model, info = kind.from_pretrained(tmp_path, output_loading_info=True)
  assert not info['missing_keys'] and not info['unexpected_keys']
  assert_same({name: value.numpy() for name, value in model.state_dict().items()}, autoencoder.export(VAE_LEAVES))


def test_diffusers_reads_our_old_names_as_the_same_weights(tmp_path):
  kind = save_vae(tmp_path)
  files.write(tmp_path / 'diffusion_pytorch_model.safetensors', autoencoder.export(VAE_LEAVES, 'diffusers-old'))
  model = kind.from_pretrained(tmp_path)
  assert_same({name: value.numpy() for name, value in model.state_dict().items()}, autoencoder.export(VAE_LEAVES))


@pytest.mark.parametrize('layout', sorted(autoencoder.LAYOUTS))
def test_every_naming_and_shape_of_the_attention_is_known_by_itself(tmp_path, layout):
  tensors = autoencoder.export(VAE_LEAVES, layout)
  old, square = 'decoder.mid_block.attentions.0.proj_attn.weight', layout.endswith('-conv')
  assert (old in tensors) == layout.startswith('diffusers-old')
  key = tensors[old if old in tensors else 'decoder.mid_block.attentions.0.to_out.0.weight']
  assert key.shape == ((12, 12, 1, 1) if square else (12, 12))
  loaded, account = autoencoder.load(VAE_LEAVES, saved(tmp_path, tensors, VAE_CONFIG))
  assert account.layout == layout
  assert_same(loaded, VAE_LEAVES)


@pytest.mark.parametrize('prefix', ['first_stage.', 'vae.model.'])
def test_what_stands_before_all_names_is_a_prefix(tmp_path, prefix):
  tensors = {prefix + name: value for name, value in autoencoder.export(VAE_LEAVES).items()}
  assert_same(autoencoder.load(VAE_LEAVES, saved(tmp_path, tensors, VAE_CONFIG))[0], VAE_LEAVES)


def test_a_file_in_half_precision_is_read_into_f32(tmp_path):
  half = {name: value.astype(np.float16) for name, value in autoencoder.export(VAE_LEAVES).items()}
  path = tmp_path / 'diffusion_pytorch_model.fp16.safetensors'
  files.write(path, half)
  (tmp_path / 'config.json').write_text(json.dumps(VAE_CONFIG))
  for source in (path, tmp_path):  # by its name, and as the only file of its folder
    tensors = files.read(source)
    assert Autoencoder(**autoencoder.infer(tensors)) == VAE
    assert_same(
      autoencoder.load(VAE_LEAVES, tensors)[0],
      {path: leaf.astype(np.float16).astype(np.float32) for path, leaf in VAE_LEAVES.items()},
    )


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    ({'act_fn': 'gelu'}, "act_fn 'gelu'; the autoencoder here knows 'silu' only"),
    ({'use_quant_conv': False}, 'use_quant_conv False'),
    ({'shift_factor': 0.1}, 'shift_factor 0.1'),
    ({'down_block_types': ['AttnDownEncoderBlock2D']}, 'AttnDownEncoderBlock2D'),
    ({'out_channels': 4}, 'in_channels other than out_channels'),
    ({'block_out_channels': None}, 'no block_out_channels in the config.json.*copy the config.json'),
  ],
)
def test_autoencoders_that_are_not_ours_are_refused(tmp_path, change, match):
  config = {name: value for name, value in {**VAE_CONFIG, **change}.items() if value is not None}
  with pytest.raises(UserError, match=match):
    autoencoder.infer(saved(tmp_path, autoencoder.export(VAE_LEAVES), config))


def test_an_autoencoder_with_lost_or_extra_tensors_names_them(tmp_path):
  tensors = autoencoder.export(VAE_LEAVES)
  tensors['encoder.extra.weight'] = tensors.pop('quant_conv.bias')
  with pytest.raises(UserError, match=r'quant/bias: no quant_conv.bias[\s\S]*encoder.extra.weight'):
    autoencoder.load(VAE_LEAVES, saved(tmp_path, tensors, VAE_CONFIG))
  with pytest.raises(UserError, match="no layout 'old', expected one of .*diffusers-old-conv"):
    autoencoder.export(VAE_LEAVES, 'old')


@pytest.mark.parametrize('linear', [False, True])
def test_a_unet_of_diffusers_comes_back_bit_for_bit(tmp_path, linear):
  kind = pytest.importorskip('diffusers').UNet2DConditionModel
  kind(**UNET_CONFIG, use_linear_projection=linear).save_pretrained(tmp_path)
  tensors = files.read(tmp_path)
  assert UNet(**unet.infer(tensors)) == UNET
  loaded, account = unet.load(UNET_LEAVES, tensors)
  assert set(loaded) == set(UNET_LEAVES) and not account.ignored
  assert account.layout == ('diffusers-linear' if linear else 'diffusers')
  assert_same(unet.export(loaded, account.layout), dict(tensors))
  random = unet.export(UNET_LEAVES, account.layout)
  files.write(tmp_path / 'diffusion_pytorch_model.safetensors', random)
  model, info = kind.from_pretrained(tmp_path, output_loading_info=True)
  assert not info['missing_keys'] and not info['unexpected_keys']
  assert_same({name: value.numpy() for name, value in model.state_dict().items()}, random)


def from_scratch(folder, kind, tensors, config):
  """The tensors that diffusers has after reading a folder written by us alone."""
  saved(folder, tensors, config)
  model, info = kind.from_pretrained(folder, output_loading_info=True)
  assert not info['missing_keys'] and not info['unexpected_keys']
  assert not set(config) - {'_class_name'} - set(model.config)
  return {name: value.numpy() for name, value in model.state_dict().items()}


def test_diffusers_reads_an_autoencoder_that_was_never_theirs(tmp_path):
  kind = pytest.importorskip('diffusers').AutoencoderKL
  model = Autoencoder(channels=(6, 9, 12), layers=2, latent=3, groups=3, colours=1, scaling=0.5)
  tensors = autoencoder.export(leaves(model, jnp.zeros((1, 4, 4, 1))))
  assert_same(from_scratch(tmp_path, kind, tensors, autoencoder.config(model)), tensors)
  assert Autoencoder(**autoencoder.infer(files.read(tmp_path))) == model


@pytest.mark.parametrize('layout', sorted(unet.LAYOUTS))
@pytest.mark.parametrize('heads', [3, (1, 2, 3)])
def test_diffusers_reads_a_unet_that_was_never_theirs(tmp_path, layout, heads):
  kind = pytest.importorskip('diffusers').UNet2DConditionModel
  model = UNet((6, 12, 9), (False, True, True), 1, heads, 2, 5, inputs=7, outputs=3, groups=3, epsilon=1e-4)
  tensors = unet.export(leaves(model, jnp.zeros((1, 4, 4, 7)), jnp.zeros(1), jnp.zeros((1, 3, 5))), layout)
  assert_same(from_scratch(tmp_path, kind, tensors, unet.config(model, layout)), tensors)
  assert UNet(**unet.infer(files.read(tmp_path))) == model


@pytest.mark.parametrize('layout', sorted(unet.LAYOUTS))
def test_projections_of_a_unet_are_known_by_their_shape(tmp_path, layout):
  tensors = unet.export(UNET_LEAVES, layout)
  shape = tensors['down_blocks.0.attentions.1.proj_out.weight'].shape
  assert shape == ((8, 8) if layout == 'diffusers-linear' else (8, 8, 1, 1))
  half = {f'model.{name}': value.astype(np.float16) for name, value in tensors.items()}
  loaded, account = unet.load(UNET_LEAVES, saved(tmp_path, half, UNET_CONFIG))
  assert account.layout == layout
  assert_same(loaded, {path: leaf.astype(np.float16).astype(np.float32) for path, leaf in UNET_LEAVES.items()})


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    ({'addition_embed_type': 'text_time'}, "addition_embed_type 'text_time'; the U-Net here knows None only"),  # SDXL
    ({'class_embed_type': 'projection'}, 'class_embed_type'),
    ({'flip_sin_to_cos': False}, 'flip_sin_to_cos False; the U-Net here knows True only'),
    ({'down_block_types': ['AttnDownBlock2D', 'DownBlock2D']}, "down_block_types .'AttnDownBlock2D'"),
    ({'up_block_types': ['CrossAttnUpBlock2D', 'UpBlock2D']}, 'on the way down or up only'),
    ({'layers_per_block': [1, 2]}, r'layers_per_block \[1, 2\]; the U-Net here knows one number'),
    ({'transformer_layers_per_block': [1, 2]}, 'transformer_layers_per_block'),
    ({'cross_attention_dim': None}, 'no cross_attention_dim in the config.json'),
  ],
)
def test_unets_that_are_not_ours_are_refused(tmp_path, change, match):
  config = {name: value for name, value in {**UNET_CONFIG, **change}.items() if value is not None}
  with pytest.raises(UserError, match=match):
    unet.infer(saved(tmp_path, unet.export(UNET_LEAVES), config))


def test_num_attention_heads_goes_before_attention_head_dim(tmp_path):
  tensors = saved(tmp_path, unet.export(UNET_LEAVES), {**UNET_CONFIG, 'num_attention_heads': 4})
  assert unet.infer(tensors)['heads'] == 4


def test_a_unet_with_lost_or_extra_tensors_names_them(tmp_path):
  tensors = unet.export(UNET_LEAVES)
  tensors['add_embedding.weight'] = tensors.pop('time_embedding.linear_1.bias')
  with pytest.raises(UserError, match=r'time/up/bias: no time_embedding[\s\S]*add_embedding.weight'):
    unet.load(UNET_LEAVES, saved(tmp_path, tensors, UNET_CONFIG))
  with pytest.raises(UserError, match="no layout 'linear', expected one of .*diffusers-linear"):
    unet.export(UNET_LEAVES, 'linear')
