"""BERT's key table: files of transformers in and out, every tensor accounted for."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from core.nn.bert import Bert
from core.weights import bert, files

MODEL = Bert(vocabulary=11, width=12, depth=2, heads=3, mlp_dim=20, max_positions=9)
OPTIONS = {
  'vocab_size': 11, 'hidden_size': 12, 'num_hidden_layers': 2, 'num_attention_heads': 3, 'intermediate_size': 20,
  'max_position_embeddings': 9,
}  # fmt: skip


def leaves():
  """{path: random array} of a BERT's parameters."""
  shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
  rng = np.random.default_rng(0)
  flat = flax.traverse_util.flatten_dict(shapes, sep='/')
  return {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in flat.items()}


def saved(path, tensors):
  files.write(path, tensors)
  return files.read(path)


def test_a_file_of_transformers_comes_back_bit_for_bit(tmp_path):
  """Of the pre-training model, with its heads and the prefix that they bring."""
  pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  config = transformers.BertConfig(**OPTIONS)
  transformers.BertForPreTraining(config).save_pretrained(tmp_path / 'theirs')
  tensors = files.read(tmp_path / 'theirs')
  assert Bert(**bert.infer(tensors)) == MODEL
  loaded, account = bert.load(leaves(), tensors)
  assert set(loaded) == set(leaves()) and not account.fresh
  assert {name.split('.')[0] for name in account.ignored if 'pooler' not in name} == {'cls'}
  tensors_out = bert.export(loaded, 'transformers')
  assert {'bert.' + name for name in tensors_out} == set(tensors) - set(account.ignored)
  for name, value in tensors_out.items():
    np.testing.assert_array_equal(value, tensors['bert.' + name], err_msg=name)
  files.write(tmp_path / 'ours' / 'model.safetensors', tensors_out)
  config.save_pretrained(tmp_path / 'ours')
  _, info = transformers.BertModel.from_pretrained(tmp_path / 'ours', output_loading_info=True)
  assert set(info['missing_keys']) == {'pooler.dense.weight', 'pooler.dense.bias'} and not info['unexpected_keys']


@pytest.mark.parametrize('layout', sorted(bert.LAYOUTS))
@pytest.mark.parametrize('prefix', ['', 'bert.', 'text_model.bert.'])
def test_a_round_trip_through_a_file(tmp_path, layout, prefix):
  tensors = {prefix + name: value for name, value in bert.export(leaves(), layout).items()}
  assert (f'{prefix}embeddings.LayerNorm.gamma' in tensors) == (layout == 'tensorflow')
  loaded, account = bert.load(leaves(), saved(tmp_path / 'b.safetensors', tensors))
  assert account.layout == layout and not account.ignored
  for path, leaf in leaves().items():
    np.testing.assert_array_equal(loaded[path], leaf, err_msg=path)


def test_what_old_versions_and_heads_add_is_ignored_and_all_else_is_an_error(tmp_path):
  tensors = {'bert.' + name: value for name, value in bert.export(leaves(), 'tensorflow').items()}
  extra = {
    'bert.embeddings.position_ids': np.arange(9)[None],
    'bert.pooler.dense.weight': np.ones((12, 12)),
    'cls.predictions.transform.LayerNorm.gamma': np.ones(12),
    'classifier.bias': np.ones(3),
  }
  _, account = bert.load(leaves(), saved(tmp_path / 'old.safetensors', tensors | extra))
  assert set(account.ignored) == set(extra)
  strange = saved(tmp_path / 'strange.safetensors', tensors | {'bert.encoder.layer.0.crossattention.x': np.ones(2)})
  with pytest.raises(UserError, match=r'without a leaf:\n    bert.encoder.layer.0.crossattention.x'):
    bert.load(leaves(), strange)
  tensors.pop('bert.encoder.layer.1.output.LayerNorm.beta')
  with pytest.raises(UserError, match=r'block_1/norm_mlp/bias: no bert.encoder.layer.1.output.LayerNorm.beta'):
    bert.load(leaves(), saved(tmp_path / 'less.safetensors', tensors))
  with pytest.raises(UserError, match="no layout 'timm'"):
    bert.export(leaves(), 'timm')


def test_a_network_that_the_bert_here_cannot_be_is_refused(tmp_path):
  files.write(tmp_path / 'model.safetensors', bert.export(leaves(), 'transformers'))
  (tmp_path / 'config.json').write_text('{"num_attention_heads": 4, "layer_norm_eps": 1e-3}')
  fields = bert.infer(files.read(tmp_path))
  assert fields['heads'] == 4 and fields['epsilon'] == 1e-3 and fields['types'] == 2
  for config, found in (
    ('{"model_type": "roberta"}', "model_type 'roberta'; the BERT here knows 'bert'"),
    ('{"hidden_act": "relu"}', "hidden_act 'relu'; the BERT here knows 'gelu'"),
    ('{"position_embedding_type": "relative_key"}', "position_embedding_type 'relative_key'"),
  ):
    (tmp_path / 'config.json').write_text(config)
    with pytest.raises(UserError, match=found):
      bert.infer(files.read(tmp_path))
  files.write(tmp_path / 'x.safetensors', {'embeddings.LayerNorm.weight': np.ones(9)})
  with pytest.raises(UserError, match=r'a BERT without embeddings.word_embeddings.weight'):
    bert.infer(files.read(tmp_path / 'x.safetensors'))
