"""LLaMA's key table: folders of transformers in and out, sharded or not, every tensor accounted for."""

import json

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from core.errors import UserError
from core.nn import adapters, llama
from core.weights import files
from core.weights import llama as weights

MODEL = llama.Llama(
  vocabulary=19, width=16, depth=3, heads=4, kv_heads=2, mlp_dim=10, max_positions=16, theta=300.0, epsilon=1e-3
)
CONFIG = {
  'model_type': 'llama', 'num_attention_heads': 4, 'max_position_embeddings': 16, 'rope_theta': 300.0,
  'rms_norm_eps': 1e-3, 'hidden_act': 'silu',
}  # fmt: skip


def shapes(model=MODEL):
  """{path: shape and dtype} of a network's parameters."""
  tree = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, model.width)))['params']
  return flax.traverse_util.flatten_dict(tree, sep='/')


def leaves(model=MODEL):
  """{path: random array}."""
  rng = np.random.default_rng(0)
  return {path: rng.normal(size=leaf.shape).astype(leaf.dtype) for path, leaf in shapes(model).items()}


def saved(folder, tensors, config=CONFIG, shards=1):
  """A folder of transformers: the tensors in shards with an index, config.json beside them."""
  names = sorted(tensors)
  parts = [names[i::shards] for i in range(shards)]
  where = {}
  for i, part in enumerate(parts, 1):
    file = f'model-{i:05}-of-{shards:05}.safetensors' if shards > 1 else 'model.safetensors'
    files.write(folder / file, {name: tensors[name] for name in part})
    where |= dict.fromkeys(part, file)
  if shards > 1:
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': where}))
  (folder / 'config.json').write_text(json.dumps(config))
  return folder


def test_a_sharded_folder_of_transformers_comes_back_bit_for_bit(tmp_path):
  pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  config = transformers.LlamaConfig(
    vocab_size=19, hidden_size=16, intermediate_size=10, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=16, rms_norm_eps=1e-3, bos_token_id=None, eos_token_id=None,
    rope_parameters={'rope_type': 'default', 'rope_theta': 300.0},
  )  # fmt: skip
  transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / 'theirs', max_shard_size='3kB')
  assert len(list((tmp_path / 'theirs').glob('*.safetensors'))) > 1
  tensors = files.read(tmp_path / 'theirs')
  assert llama.Llama(**weights.infer(tensors)) == MODEL
  loaded, account = weights.load(shapes(), tensors)
  assert set(loaded) == set(shapes()) and not account.fresh and not account.ignored
  out = weights.export(loaded, 'transformers')
  assert set(out) == set(tensors)
  for name, value in out.items():
    np.testing.assert_array_equal(value, tensors[name], err_msg=name)
  files.write(tmp_path / 'ours' / 'model.safetensors', out)
  config.save_pretrained(tmp_path / 'ours')
  model, info = transformers.LlamaForCausalLM.from_pretrained(tmp_path / 'ours', output_loading_info=True)
  assert not info['missing_keys'] and not info['unexpected_keys']
  up = model.model.layers[2].mlp.up_proj.weight.detach().numpy()
  np.testing.assert_array_equal(up, tensors['model.layers.2.mlp.up_proj.weight'])


@pytest.mark.parametrize('changes', [{}, {'scan': True}, {'tied': True, 'qkv_bias': True}, {'head_dim': 6}])
def test_a_round_trip_through_a_folder(tmp_path, changes):
  model = MODEL.clone(**changes)
  own = leaves(model)
  prefix = 'language_model.'  # as a vision-language model has it
  tensors = {prefix + name: value for name, value in weights.export(own, 'transformers').items()}
  if model.tied:
    tensors[prefix + 'lm_head.weight'] = tensors[prefix + 'model.embed_tokens.weight']
  config = CONFIG | ({'tie_word_embeddings': True} if model.tied else {})
  tensors = files.read(saved(tmp_path, tensors, config))
  assert llama.Llama(**weights.infer(tensors)) == model.clone(scan=False)
  loaded, account = weights.load(shapes(model), tensors)
  assert set(account.ignored) == ({prefix + 'lm_head.weight'} if model.tied else set())
  for path, leaf in own.items():
    np.testing.assert_array_equal(loaded[path], leaf, err_msg=path)


def test_low_rank_updates_stay_fresh_and_a_base_may_lie_in_bf16(tmp_path):
  model = MODEL.clone(param_dtype=jnp.bfloat16, dense=adapters.lora(2, 4.0))
  tensors = files.read(saved(tmp_path, weights.export(leaves(), 'transformers')))
  loaded, account = weights.load(shapes(model), tensors)
  assert set(account.fresh) == {path for path in shapes(model) if adapters.is_adapter(path)} != set()
  assert {leaf.dtype for leaf in loaded.values()} == {np.dtype(ml_dtypes.bfloat16)}
  np.testing.assert_array_equal(loaded['norm/scale'], leaves()['norm/scale'].astype(ml_dtypes.bfloat16))
  assert set(weights.export(leaves(model), 'transformers')) == set(tensors)


@pytest.mark.parametrize(
  'rotary, expected',
  [
    ({'rope_scaling': None}, None),
    ({'rope_scaling': {'type': 'linear', 'factor': 2}}, llama.Scaling('linear', 2.0)),
    (
      {'rope_scaling': {'rope_type': 'llama3', 'factor': 8, 'low_freq_factor': 1, 'high_freq_factor': 4,
                        'original_max_position_embeddings': 8}},
      llama.Scaling('llama3', 8.0, 8, 1.0, 4.0),
    ),
    ({'rope_parameters': {'rope_type': 'yarn', 'factor': 2}}, llama.Scaling('yarn', 2.0, 16, 1.0, 32.0)),
  ],
)  # fmt: skip
def test_rotary_scaling_is_read_as_old_and_new_configs_write_it(tmp_path, rotary, expected):
  tensors = files.read(saved(tmp_path, weights.export(leaves(), 'transformers'), CONFIG | rotary))
  assert weights.infer(tensors)['scaling'] == expected


def test_a_sliding_window_is_the_context_as_far_as_it_is_used(tmp_path):
  tensors = weights.export(leaves(), 'transformers')
  window = CONFIG | {'model_type': 'mistral', 'sliding_window': 5}
  assert weights.infer(files.read(saved(tmp_path, tensors, window)))['max_positions'] == 5
  unused = window | {'model_type': 'qwen2', 'use_sliding_window': False}
  assert weights.infer(files.read(saved(tmp_path, tensors, unused)))['max_positions'] == 16


def test_a_missing_shard_is_named(tmp_path):
  folder = saved(tmp_path, weights.export(leaves(), 'transformers'), shards=3)
  assert set(weights.load(shapes(), files.read(folder))[0]) == set(shapes())
  (folder / 'model-00002-of-00003.safetensors').unlink()
  with pytest.raises(UserError, match=r"lacks 1 of the 3 shards its index names: \['model-00002-of-00003"):
    files.read(folder)


@pytest.mark.parametrize(
  'changes, config, message',
  [
    ({}, {'num_attention_heads': None}, 'leave no trace in its tensors'),
    ({}, {'model_type': 'granite'}, "model_type 'granite'"),
    ({}, {'hidden_act': 'gelu'}, "hidden_act 'gelu'"),
    ({}, {'partial_rotary_factor': 0.5}, 'partial_rotary_factor 0.5'),
    ({}, {'rope_scaling': {'type': 'dynamic', 'factor': 2.0}}, "'dynamic', expected one of"),
    ({}, {'rope_scaling': {'type': 'yarn', 'factor': 2.0, 'mscale': 1.0}}, 'mscale'),
    ({'model.layers.0.mlp.up_proj.weight': None}, {}, 'its first lacks one of'),
  ],
)
def test_networks_that_are_another_or_cannot_be_told(tmp_path, changes, config, message):
  tensors = weights.export(leaves(), 'transformers') | changes
  config = {key: value for key, value in (CONFIG | config).items() if value is not None}
  folder = saved(tmp_path, {name: value for name, value in tensors.items() if value is not None}, config)
  with pytest.raises(UserError, match=message):
    weights.infer(files.read(folder))


@pytest.mark.parametrize(
  'name, value, message',
  [
    ('lm_head.weight', None, r'head/kernel: no lm_head\.weight'),
    ('lm_head.weight', np.zeros((20, 16), np.float32), r'lm_head\.weight gives \(16, 20\), expected \(16, 19\)'),
    ('model.layers.1.self_attn.q_norm.weight', np.zeros(3, np.float32), r'without a leaf:\n.*q_norm'),
    ('model.layers.1.self_attn.k_proj.bias', np.zeros(6, np.float32), r'without a leaf:\n.*k_proj\.bias'),
  ],
)
def test_tensors_that_do_not_fit_are_one_error(tmp_path, name, value, message):
  tensors = weights.export(leaves(), 'transformers') | {name: value}
  folder = saved(tmp_path, {name: value for name, value in tensors.items() if value is not None})
  with pytest.raises(UserError, match=message):
    weights.load(shapes(), files.read(folder))


def test_an_unknown_layout_is_named():
  with pytest.raises(UserError, match="no layout 'timm'"):
    weights.export(leaves(), 'timm')
