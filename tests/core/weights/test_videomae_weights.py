"""VideoMAE's key table: files of transformers in and out, every tensor accounted for."""

import flax.traverse_util
import jax
import numpy as np
import pytest

from core.errors import UserError
from core.nn.videomae import VideoMAE
from core.weights import files, videomae

MODEL = VideoMAE(patch=(2, 8, 8), width=12, depth=2, heads=2, mlp_dim=20)
CLIP = (4, 16, 24)


def leaves(**changes):
  """{path: random array} of the network's parameters."""
  model = MODEL.clone(**changes)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *CLIP, 3), np.float32))['params']
  rng = np.random.default_rng(0)
  flat = flax.traverse_util.flatten_dict(shapes, sep='/')
  return {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in flat.items()}


def saved(folder, kind, **changes):
  """A file of one of transformers' models, opened, and its class's configuration."""
  pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  config = transformers.VideoMAEConfig(
    num_frames=4, image_size=(16, 24) if kind != 'VideoMAEForPreTraining' else 16, patch_size=8, hidden_size=12,
    num_hidden_layers=2, num_attention_heads=2, intermediate_size=20, decoder_hidden_size=8,
    decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=12, **changes,
  )  # fmt: skip
  getattr(transformers, kind)(config).save_pretrained(folder)
  return files.read(folder)


def test_a_fine_tuned_file_comes_back_bit_for_bit(tmp_path):
  tensors = saved(tmp_path / 'theirs', 'VideoMAEForVideoClassification')
  fields, clip = videomae.infer(tensors)
  assert VideoMAE(**fields) == MODEL and clip == CLIP
  loaded, account = videomae.load(leaves(), tensors)
  assert set(loaded) == set(leaves()) and not account.fresh
  assert set(account.ignored) == {'classifier.weight', 'classifier.bias'}
  exported = videomae.export(loaded, 'transformers')
  assert set(exported) == set(tensors) - set(account.ignored)
  for name, value in exported.items():
    np.testing.assert_array_equal(value, tensors[name], err_msg=name)


@pytest.mark.parametrize('layout', ['transformers', 'transformers_bare'])
def test_transformers_reads_what_is_exported(tmp_path, layout):
  tensors = saved(tmp_path / 'theirs', 'VideoMAEModel', use_mean_pooling=False)
  import transformers

  assert VideoMAE(**videomae.infer(tensors)[0]).norm == 'tokens'
  own = leaves(norm='tokens')
  files.write(tmp_path / 'ours' / 'model.safetensors', videomae.export(own, layout))
  (tmp_path / 'ours' / 'config.json').write_text((tmp_path / 'theirs' / 'config.json').read_text())
  model, info = transformers.VideoMAEModel.from_pretrained(tmp_path / 'ours', output_loading_info=True)
  assert not info['missing_keys'] and not info['unexpected_keys']
  query = model.encoder.layer[1].attention.attention.query
  np.testing.assert_array_equal(query.weight.detach().numpy(), own['encoder/block_1/attention/query/kernel'].T)
  np.testing.assert_array_equal(query.bias.detach().numpy(), own['encoder/block_1/attention/query/bias'])
  kernel = model.embeddings.patch_embeddings.projection.weight.detach().numpy()
  np.testing.assert_array_equal(kernel[3, 2, 1], own['tubelets/kernel'][1, :, :, 2, 3])


def test_a_pre_trained_file_gives_its_encoder_and_its_decoder_is_ignored(tmp_path):
  tensors = saved(tmp_path, 'VideoMAEForPreTraining', use_mean_pooling=False)
  fields, clip = videomae.infer(tensors)
  assert fields['norm'] == 'tokens' and clip == (4, 16, 16)
  loaded, account = videomae.load(leaves(norm='tokens'), tensors)
  assert set(loaded) == set(leaves(norm='tokens'))
  assert set(account.ignored.values()) == {'the decoder of masked pre-training'}
  assert {'mask_token', 'encoder_to_decoder.weight', 'decoder.norm.bias'} < set(account.ignored)
  loaded, account = videomae.load(leaves(), tensors)  # to be fine-tuned: the pooled norm is new
  assert set(account.fresh) == {'norm_pooled/scale', 'norm_pooled/bias'} and set(account.fresh).isdisjoint(loaded)
  assert account.ignored['videomae.layernorm.weight'] == 'the last norm, which this network has elsewhere'


@pytest.mark.parametrize('layout', sorted(videomae.LAYOUTS))
@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('norm', ['pooled', 'tokens', 'none'])
def test_a_round_trip_through_a_file(tmp_path, layout, scan, norm):
  own = leaves(scan=scan, norm=norm)
  files.write(tmp_path / 'v.safetensors', videomae.export(own, layout))
  tensors = files.read(tmp_path / 'v.safetensors')
  loaded, account = videomae.load(own, tensors)
  assert set(loaded) == set(own) and not account.ignored and account.layout == layout
  for path, leaf in own.items():
    np.testing.assert_array_equal(loaded[path], leaf, err_msg=path)
  fields, clip = videomae.infer(tensors)
  assert fields['norm'] == norm and fields['depth'] == 2 and fields['patch'] == (2, 8, 8)
  assert clip == (16, 224, 224)  # no config.json


def test_what_does_not_fit_is_an_error(tmp_path):
  tensors = videomae.export(leaves(), 'transformers')
  tensors.pop('videomae.encoder.layer.1.attention.attention.v_bias')
  files.write(tmp_path / 'v.safetensors', tensors | {'videomae.encoder.layer.1.extra': np.ones(3)})
  with pytest.raises(UserError) as error:
    videomae.load(leaves(), files.read(tmp_path / 'v.safetensors'))
  assert 'value/bias: no videomae.encoder.layer.1.attention.attention.v_bias' in str(error.value)
  assert 'without a leaf:\n    videomae.encoder.layer.1.extra' in str(error.value)
  with pytest.raises(UserError, match="no layout 'timm'"):
    videomae.export(leaves(), 'timm')
  files.write(tmp_path / 'w.safetensors', {'encoder.layer.0.attention.attention.q_bias': np.ones(3)})
  with pytest.raises(UserError, match='a VideoMAE without embeddings.patch_embeddings.projection.weight'):
    videomae.infer(files.read(tmp_path / 'w.safetensors'))
