"""Key tables of the autoencoder and the U-Net of latent diffusion: folders of diffusers in and out."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict as flatten

from core.errors import UserError
from core.nn.autoencoder import Autoencoder
from core.weights import autoencoder, files

VAE = Autoencoder(channels=(8, 12), layers=1, groups=4)
VAE_CONFIG = {'block_out_channels': [8, 12], 'layers_per_block': 1, 'norm_num_groups': 4}


def leaves(model, *inputs):
  """{path: random array} of a network's parameters."""
  flat = flatten(jax.eval_shape(model.init, jax.random.key(0), *inputs)['params'], sep='/')
  rng = np.random.default_rng(0)
  return {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in flat.items()}


VAE_LEAVES = leaves(VAE, jnp.zeros((1, 4, 4, 3)))


def saved(folder, tensors, config):
  """The tensors of a folder as diffusers lays it out."""
  files.write(folder / 'diffusion_pytorch_model.safetensors', tensors)
  (folder / 'config.json').write_text(json.dumps(config))
  return files.read(folder)


def same(found, expected):
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
  same(autoencoder.export(loaded), dict(tensors))
  files.write(tmp_path / 'diffusion_pytorch_model.safetensors', autoencoder.export(VAE_LEAVES))
  model, info = kind.from_pretrained(tmp_path, output_loading_info=True)
  assert not info['missing_keys'] and not info['unexpected_keys']
  same({name: value.numpy() for name, value in model.state_dict().items()}, autoencoder.export(VAE_LEAVES))


def test_diffusers_reads_our_old_names_as_the_same_weights(tmp_path):
  kind = save_vae(tmp_path)
  files.write(tmp_path / 'diffusion_pytorch_model.safetensors', autoencoder.export(VAE_LEAVES, 'diffusers-old'))
  model = kind.from_pretrained(tmp_path)
  same({name: value.numpy() for name, value in model.state_dict().items()}, autoencoder.export(VAE_LEAVES))


@pytest.mark.parametrize('layout', sorted(autoencoder.LAYOUTS))
def test_every_naming_and_shape_of_the_attention_is_known_by_itself(tmp_path, layout):
  tensors = autoencoder.export(VAE_LEAVES, layout)
  old, square = 'decoder.mid_block.attentions.0.proj_attn.weight', layout.endswith('-conv')
  assert (old in tensors) == layout.startswith('diffusers-old')
  key = tensors[old if old in tensors else 'decoder.mid_block.attentions.0.to_out.0.weight']
  assert key.shape == ((12, 12, 1, 1) if square else (12, 12))
  loaded, account = autoencoder.load(VAE_LEAVES, saved(tmp_path, tensors, VAE_CONFIG))
  assert account.layout == layout
  same(loaded, VAE_LEAVES)


@pytest.mark.parametrize('prefix', ['first_stage.', 'vae.model.'])
def test_what_stands_before_all_names_is_a_prefix(tmp_path, prefix):
  tensors = {prefix + name: value for name, value in autoencoder.export(VAE_LEAVES).items()}
  same(autoencoder.load(VAE_LEAVES, saved(tmp_path, tensors, VAE_CONFIG))[0], VAE_LEAVES)


def test_a_file_in_half_precision_is_read_into_f32(tmp_path):
  half = {name: value.astype(np.float16) for name, value in autoencoder.export(VAE_LEAVES).items()}
  path = tmp_path / 'diffusion_pytorch_model.fp16.safetensors'
  files.write(path, half)
  (tmp_path / 'config.json').write_text(json.dumps(VAE_CONFIG))
  for source in (path, tmp_path):  # by its name, and as the only file of its folder
    tensors = files.read(source)
    assert Autoencoder(**autoencoder.infer(tensors)) == VAE
    same(
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
