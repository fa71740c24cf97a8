"""CLIP's key table: text_encoder folders in and out, every tensor accounted for, and nothing guessed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict as flatten

from core.errors import UserError
from core.nn.clip import ClipText
from core.weights import clip, files

MODEL = ClipText(vocabulary=11, width=12, depth=2, heads=3, mlp_dim=20, max_positions=9, activation='gelu', eos=10)
WITH = MODEL.clone(projection=5)


def leaves(model=MODEL):
  """{path: random array} of a text encoder's parameters."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
  rng = np.random.default_rng(0)
  flat = flatten(shapes, sep='/')
  return {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in flat.items()}


def saved(path, tensors):
  files.write(path, tensors)
  return files.read(path)


@pytest.mark.parametrize('model', [MODEL, WITH], ids=['plain', 'projection'])
def test_a_folder_of_transformers_comes_back_bit_for_bit_and_is_read_there(tmp_path, model):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  kind = transformers.CLIPTextModelWithProjection if model.projection else transformers.CLIPTextModel
  torch.manual_seed(0)
  first = kind(transformers.CLIPTextConfig(**clip.config(model)))
  first.save_pretrained(tmp_path / 'theirs')
  tensors = files.read(tmp_path / 'theirs')
  assert ClipText(**clip.infer(tensors)) == model
  loaded, account = clip.load(leaves(model), tensors)
  assert set(loaded) == set(leaves(model)) and not account.fresh and not account.ignored
  back = clip.export(loaded, account.layout)
  assert set(back) == set(tensors)
  for name, value in back.items():
    np.testing.assert_array_equal(value, tensors[name], err_msg=name)
  out = clip.export(loaded, 'transformers')
  assert set(out) == {name if name.startswith('text_') else f'text_model.{name}' for name in tensors}
  files.write(tmp_path / 'ours' / 'model.safetensors', out)
  (tmp_path / 'ours' / 'config.json').write_text(json.dumps(clip.config(model)))
  again, info = kind.from_pretrained(tmp_path / 'ours', output_loading_info=True)
  assert not info['missing_keys'] and not info['unexpected_keys']
  for name, value in first.state_dict().items():
    assert torch.equal(again.state_dict()[name], value), name
  assert again.config.hidden_act == 'gelu' and again.config.eos_token_id == 10


@pytest.mark.parametrize('prefix', ['', 'cond_stage_model.transformer.'])
@pytest.mark.parametrize(
  ('model', 'layout'), [(MODEL, 'transformers'), (WITH, 'transformers'), (MODEL, 'bare')], ids=['plain', 'with', 'bare']
)
def test_a_round_trip_through_a_file(tmp_path, prefix, model, layout):
  tensors = {prefix + name: value for name, value in clip.export(leaves(model), layout).items()}
  inner = 'text_model.' if layout == 'transformers' else ''
  assert f'{prefix}{inner}encoder.layers.1.self_attn.out_proj.bias' in tensors
  loaded, account = clip.load(leaves(model), saved(tmp_path / 'c.safetensors', tensors))
  assert account.layout == layout and not account.ignored
  for path, leaf in leaves(model).items():
    np.testing.assert_array_equal(loaded[path], leaf, err_msg=path)


def test_half_precision_is_read_into_f32(tmp_path):
  half = {name: value.astype(np.float16) for name, value in clip.export(leaves(), 'transformers').items()}
  loaded, _ = clip.load(leaves(), saved(tmp_path / 'model.fp16.safetensors', half))
  assert {leaf.dtype for leaf in loaded.values()} == {np.dtype(np.float32)}
  np.testing.assert_array_equal(loaded['position'], leaves()['position'].astype(np.float16))


def test_a_whole_clip_gives_its_text_half_and_all_else_is_an_error(tmp_path):
  tensors = clip.export(leaves(WITH), 'transformers')
  extra = {
    'text_model.embeddings.position_ids': np.arange(9)[None],
    'vision_model.pre_layrnorm.weight': np.ones(3),
    'visual_projection.weight': np.ones((5, 3)),
    'logit_scale': np.ones(1),
  }
  whole = saved(tmp_path / 'whole.safetensors', tensors | extra)
  _, account = clip.load(leaves(WITH), whole)
  assert set(account.ignored) == set(extra)
  _, account = clip.load(leaves(), whole)
  assert set(account.ignored) == {*extra, 'text_projection.weight'}
  strange = saved(tmp_path / 'strange.safetensors', tensors | {'text_model.encoder.layers.0.extra': np.ones(2)})
  with pytest.raises(UserError, match=r'without a leaf:\n    text_model.encoder.layers.0.extra'):
    clip.load(leaves(WITH), strange)
  tensors.pop('text_model.final_layer_norm.bias')
  with pytest.raises(UserError, match=r'norm/bias: no text_model.final_layer_norm.bias'):
    clip.load(leaves(WITH), saved(tmp_path / 'less.safetensors', tensors))
  with pytest.raises(UserError, match="no layout 'transformer'.*Did you mean 'transformers'"):
    clip.export(leaves(), 'transformer')
  with pytest.raises(UserError, match="layout 'bare' has no name for 1 of our leaves"):
    clip.export(leaves(WITH), 'bare')


def test_what_the_tensors_do_not_tell_is_read_from_the_config_and_never_guessed(tmp_path):
  files.write(tmp_path / 'model.safetensors', clip.export(leaves(), 'transformers'))

  def infer(config):
    (tmp_path / 'config.json').write_text(json.dumps(config))
    return clip.infer(files.read(tmp_path))

  assert ClipText(**infer(clip.config(MODEL))) == MODEL
  assert ClipText(**infer(clip.config(MODEL.clone(eos=None, epsilon=1e-3)))) == MODEL.clone(eos=None, epsilon=1e-3)
  assert ClipText(**infer({'model_type': 'clip', 'text_config': clip.config(MODEL)})) == MODEL
  good = clip.config(MODEL)
  for change, found in (
    ({'hidden_act': 'relu'}, r"hidden_act 'relu'; the text encoder here knows \['gelu', 'quick_gelu'\]"),
    ({'model_type': 'bert'}, "model_type 'bert'; the text encoder here is a 'clip_text_model'"),
    ({'eos_token_id': [1, 2]}, r'eos_token_id \[1, 2\], expected one number'),
  ):
    with pytest.raises(UserError, match=found):
      infer(good | change)
  with pytest.raises(UserError, match='do not tell hidden_act'):
    infer({'num_attention_heads': 3})
  (tmp_path / 'config.json').unlink()
  with pytest.raises(UserError, match='do not tell num_attention_heads.*no config.json'):
    clip.infer(files.read(tmp_path))
  lone = saved(tmp_path / 'x.safetensors', {'text_model.embeddings.token_embedding.weight': np.ones((3, 2))})
  with pytest.raises(UserError, match='without text_model.embeddings.position_embedding.weight'):
    clip.infer(lone)
