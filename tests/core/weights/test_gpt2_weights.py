"""GPT-2's key table: files of transformers in and out, every tensor accounted for."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from core.nn import transformer
from core.nn.gpt import Decoder
from core.weights import files, gpt2

MODEL = Decoder(depth=2, heads=3, width=12, mlp_dim=20, max_positions=9)


def leaves(model=MODEL):
  """{path: random array} of a decoder's parameters."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, model.width)))['params']
  rng = np.random.default_rng(0)
  flat = flax.traverse_util.flatten_dict(shapes, sep='/')
  return {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in flat.items()}


def saved(path, tensors, prefix=''):
  """The tensors as a file, opened."""
  files.write(path, {prefix + name: value for name, value in tensors.items()})
  return files.read(path)


def test_a_file_of_transformers_comes_back_bit_for_bit(tmp_path):
  pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  config = transformers.GPT2Config(
    n_layer=2, n_head=3, n_embd=12, n_inner=20, n_positions=9, vocab_size=5, bos_token_id=None, eos_token_id=None
  )
  transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / 'theirs')
  tensors = files.read(tmp_path / 'theirs')
  assert Decoder(**gpt2.infer(tensors)) == MODEL
  loaded, account = gpt2.load(leaves(), tensors)
  assert set(loaded) == set(leaves()) and not account.fresh
  assert account.ignored == {'transformer.wte.weight': 'token embeddings: the decoder is given embeddings'}
  tensors_out = gpt2.export(loaded, 'transformers')
  assert {'transformer.' + name for name in tensors_out} == set(tensors) - set(account.ignored)
  for name, value in tensors_out.items():
    np.testing.assert_array_equal(value, tensors['transformer.' + name], err_msg=name)
  files.write(tmp_path / 'ours' / 'model.safetensors', tensors_out)
  config.save_pretrained(tmp_path / 'ours')
  model, info = transformers.GPT2Model.from_pretrained(tmp_path / 'ours', output_loading_info=True)
  assert set(info['missing_keys']) == {'wte.weight'} and not info['unexpected_keys']
  np.testing.assert_array_equal(
    model.h[1].attn.c_attn.weight.detach().numpy(), tensors['transformer.h.1.attn.c_attn.weight']
  )


def test_the_fused_layer_is_query_key_value_along_its_outputs():
  own = leaves()
  fused = gpt2.export(own, 'transformers')['h.1.attn.c_attn.weight']
  assert fused.shape == (12, 36)
  for i, name in enumerate(('query', 'key', 'value')):
    np.testing.assert_array_equal(fused[:, 12 * i : 12 * (i + 1)], own[f'block_1/attention/{name}/kernel'])


@pytest.mark.parametrize('prefix', ['', 'transformer.'])
@pytest.mark.parametrize('scan', [False, True])
def test_a_round_trip_through_a_file(tmp_path, prefix, scan):
  own = leaves(MODEL.clone(scan=scan))
  tensors = saved(tmp_path / 'g.safetensors', gpt2.export(own, 'transformers'), prefix)
  loaded, account = gpt2.load(own, tensors)
  assert set(loaded) == set(own) and not account.ignored
  for path, leaf in own.items():
    np.testing.assert_array_equal(loaded[path], leaf, err_msg=path)
  if scan:  # the file is the same as that of a loop
    loose = transformer.unstack_blocks(own)
    np.testing.assert_array_equal(
      gpt2.load(leaves(), tensors)[0]['block_1/mlp/up/kernel'], loose['block_1/mlp/up/kernel']
    )


def test_a_shorter_decoder_takes_the_first_positions_and_one_without_none(tmp_path):
  own = leaves()
  tensors = saved(tmp_path / 'g.safetensors', gpt2.export(own, 'transformers'))
  loaded, account = gpt2.load(leaves(MODEL.clone(max_positions=4)), tensors)
  np.testing.assert_array_equal(loaded['position'], own['position'][:4])
  assert 'position: the first 4 of 9 positions' in str(account)
  loaded, account = gpt2.load(leaves(MODEL.clone(positions=False)), tensors)
  assert 'position' not in loaded and account.ignored == {'wpe.weight': 'the decoder has no positions'}
  with pytest.raises(UserError, match=r'position: wpe.weight gives \(9, 12\), expected \(10, 12\)'):
    gpt2.load(leaves(MODEL.clone(max_positions=10)), tensors)


def test_what_old_versions_and_heads_add_is_ignored_and_all_else_is_an_error(tmp_path):
  tensors = gpt2.export(leaves(), 'transformers')
  extra = {
    'h.0.attn.bias': np.ones((1, 1, 9, 9)),
    'h.1.attn.masked_bias': np.ones(()),
    'lm_head.weight': np.ones((5, 12)),
  }
  _, account = gpt2.load(leaves(), saved(tmp_path / 'old.safetensors', tensors | extra))
  assert set(account.ignored) == set(extra)
  strange = saved(tmp_path / 'strange.safetensors', tensors | {'h.0.crossattention.c_attn.weight': np.ones((12, 24))})
  with pytest.raises(UserError, match='without a leaf:\n    h.0.crossattention.c_attn.weight'):
    gpt2.load(leaves(), strange)
  tensors.pop('h.1.mlp.c_proj.bias')
  with pytest.raises(UserError, match='block_1/mlp/down/bias: no h.1.mlp.c_proj.bias'):
    gpt2.load(leaves(), saved(tmp_path / 'less.safetensors', tensors))
  with pytest.raises(UserError, match="no layout 'timm'"):
    gpt2.export(leaves(), 'timm')


def test_a_network_that_the_decoder_cannot_be_is_refused(tmp_path):
  files.write(tmp_path / 'model.safetensors', gpt2.export(leaves(), 'transformers'))
  (tmp_path / 'config.json').write_text('{"n_head": 2, "layer_norm_epsilon": 1e-3}')
  fields = gpt2.infer(files.read(tmp_path))
  assert fields['heads'] == 2 and fields['epsilon'] == 1e-3
  (tmp_path / 'config.json').write_text('{"activation_function": "relu"}')
  with pytest.raises(UserError, match="activation_function 'relu'; the decoder knows 'gelu_new'"):
    gpt2.infer(files.read(tmp_path))
  files.write(tmp_path / 'x.safetensors', {'wpe.weight': np.ones((9, 12))})
  with pytest.raises(UserError, match='without blocks'):
    gpt2.infer(files.read(tmp_path / 'x.safetensors'))
