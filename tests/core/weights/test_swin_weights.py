"""Swin's key table: files of transformers in and out, every tensor accounted for."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from core.nn.swin import Swin
from core.weights import files, swin

MODEL = Swin(width=6, depths=(2, 1), heads=(2, 3), patch=2, window=3, mlp_ratio=1.5)


def leaves():
  """{path: random array} of a Swin's parameters."""
  shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 12, 12, 3)))['params']
  rng = np.random.default_rng(0)
  flat = flax.traverse_util.flatten_dict(shapes, sep='/')
  return {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in flat.items()}


def saved(path, tensors):
  files.write(path, tensors)
  return files.read(path)


@pytest.mark.parametrize('head', ['SwinForImageClassification', 'SwinForMaskedImageModeling'])
def test_a_file_of_transformers_comes_back_bit_for_bit(tmp_path, head):
  pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  config = transformers.SwinConfig(
    image_size=12, patch_size=2, embed_dim=6, depths=[2, 1], num_heads=[2, 3], window_size=3, mlp_ratio=1.5,
    encoder_stride=4,
  )  # fmt: skip
  getattr(transformers, head)(config).save_pretrained(tmp_path / 'theirs')
  tensors = files.read(tmp_path / 'theirs')
  fields, size = swin.infer(tensors)
  assert Swin(**fields) == MODEL and size == (12, 12)
  loaded, account = swin.load(leaves(), tensors)
  assert set(loaded) == set(leaves()) and not account.fresh
  tensors_out = swin.export(loaded, 'transformers')
  assert {'swin.' + name for name in tensors_out} == set(tensors) - set(account.ignored)
  for name, value in tensors_out.items():
    np.testing.assert_array_equal(value, tensors['swin.' + name], err_msg=name)
  files.write(tmp_path / 'ours' / 'model.safetensors', tensors_out)
  config.save_pretrained(tmp_path / 'ours')
  _, info = transformers.SwinModel.from_pretrained(tmp_path / 'ours', output_loading_info=True)
  assert not info['missing_keys'] and not info['unexpected_keys']


@pytest.mark.parametrize('prefix', ['', 'vision.swin.'])
def test_a_round_trip_through_a_file(tmp_path, prefix):
  tensors = {prefix + name: value for name, value in swin.export(leaves(), 'transformers').items()}
  loaded, account = swin.load(leaves(), saved(tmp_path / 's.safetensors', tensors))
  assert not account.ignored
  for path, leaf in leaves().items():
    np.testing.assert_array_equal(loaded[path], leaf, err_msg=path)


def test_what_old_versions_and_heads_add_is_ignored_and_all_else_is_an_error(tmp_path):
  tensors = swin.export(leaves(), 'transformers')
  extra = {
    'encoder.layers.0.blocks.1.attention.self.relative_position_index': np.zeros((9, 9), np.int64),
    'embeddings.mask_token': np.ones((1, 1, 6)),
    'classifier.weight': np.ones((5, 12)),
  }
  _, account = swin.load(leaves(), saved(tmp_path / 'old.safetensors', tensors | extra))
  assert set(account.ignored) == set(extra)
  strange = saved(tmp_path / 'strange.safetensors', tensors | {'embeddings.position_embeddings': np.ones((1, 36, 6))})
  with pytest.raises(UserError, match=r'without a leaf:\n    embeddings.position_embeddings'):
    swin.load(leaves(), strange)
  tensors.pop('encoder.layers.0.downsample.norm.bias')
  with pytest.raises(UserError, match=r'stage_0/merge/norm/bias: no encoder.layers.0.downsample.norm.bias'):
    swin.load(leaves(), saved(tmp_path / 'less.safetensors', tensors))
  with pytest.raises(UserError, match="no layout 'timm'"):
    swin.export(leaves(), 'timm')


def test_a_network_that_the_swin_here_cannot_be_is_refused(tmp_path):
  tensors = swin.export(leaves(), 'transformers')
  files.write(tmp_path / 'model.safetensors', tensors)
  (tmp_path / 'config.json').write_text('{"layer_norm_eps": 1e-3, "image_size": [20, 30]}')
  fields, size = swin.infer(files.read(tmp_path))
  assert fields['epsilon'] == 1e-3 and size == (20, 30)
  for config, found in (
    ('{"hidden_act": "relu"}', "hidden_act 'relu'; the Swin here knows 'gelu'"),
    ('{"use_absolute_embeddings": true}', 'use_absolute_embeddings True; the Swin here knows False'),
  ):
    (tmp_path / 'config.json').write_text(config)
    with pytest.raises(UserError, match=found):
      swin.infer(files.read(tmp_path))
  table = 'encoder.layers.1.blocks.0.attention.self.relative_position_bias_table'
  less = {name: value for name, value in tensors.items() if name != table}
  with pytest.raises(UserError, match=f'a Swin without {table}'):
    swin.infer(saved(tmp_path / 'less.safetensors', less))
