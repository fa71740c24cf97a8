"""Fresh and public weights: initial values, sizes, and the same loss as R2GenGPT from the same files (spec 9a)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from small_reporter import (
  LANGUAGE_VOCABULARY,
  LISTS,
  SIZE,
  TEMPLATE,
  batch,
  built,
  encode,
  felt,
  flat,
  reporter,
  section,
)

from core.nn import adapters
from core.weights import bert as bert_weights
from core.weights import files
from multimodal.trrg import model


def test_fresh_variables_are_a_network_without_clues_in_its_film():
  ours = built()[0]

  @jax.jit
  def some(key):  # compiling all of them would take most of the time
    fresh = ours.init(key)
    gates = {path: leaf for path, leaf in flat(fresh['params']).items() if path.split('/')[-1].startswith('gate_')}
    return gates, fresh['params']['perception']['temperature'], fresh['clues']

  gates, temperature, clues = some(jax.random.key(0))
  assert len(gates) == 2 and not any(gates.values())
  assert float(temperature) == pytest.approx(np.log(1 / 0.07))
  assert not clues['theta'].any() and (clues['pos_weight'] == 1).all()
  parts = {'perception', 'vision', 'interaction', 'injection', 'disease', 'language'}
  assert set(jax.eval_shape(ours.init, jax.random.key(0))['params']) == parts


def test_a_frozen_base_may_lie_in_half_precision():
  config = {'language.param_dtype': 'bfloat16', 'language.dtype': 'bfloat16', 'language.scan': True}
  shapes = flat(jax.eval_shape(reporter(**config).init, jax.random.key(0))['params'])
  for path, leaf in shapes.items():
    base = path.startswith('language') and not adapters.is_adapter(path)
    assert leaf.dtype == (jnp.bfloat16 if base else jnp.float32), path
  assert shapes['language/blocks/attention/query/lora_a'].shape == (1, 16, 2)


def test_the_settings_for_real_reports_have_the_sizes_of_the_spec():
  config = section(**{
    'vision.variant': 'base_patch16', 'text.variant': 'base', 'contrast_width': 512, 'interaction.width': 768,
    'interaction.heads': 12, 'interaction.words': 16, 'interaction.layers': 2, 'language.variant': 'llama2_7b',
    'language.lora.rank': 16,
  })  # fmt: skip
  ours = model.Reporter(config, image_size=224, text_vocabulary=28996, language_vocabulary=32000, template=TEMPLATE)
  shapes = flat(jax.eval_shape(ours.init, jax.random.key(0))['params'])
  sizes = {path: np.prod(leaf.shape) for path, leaf in shapes.items()}
  count = lambda start: sum(size for path, size in sizes.items() if path.startswith(start))  # noqa: E731
  assert count('interaction/layer') == pytest.approx(23.6e6, rel=0.005)
  assert count('language/') == pytest.approx(6.74e9, rel=0.01)
  assert sum(size for path, size in sizes.items() if adapters.is_adapter(path)) == 32 * 2 * 2 * 4096 * 16
  assert count('vision/') == count('perception/image/') == pytest.approx(86e6, rel=0.01)


def test_the_text_encoder_is_loaded_and_no_name_changes_nothing(tmp_path, capsys):
  ours, variables = built()
  own = flat(variables['params'])
  assert all(leaf is own[path] for path, leaf in flat(ours.load(variables)['params']).items())
  assert not capsys.readouterr().out
  tripled = {path: 3 * leaf for path, leaf in flat(variables['params']['perception']['text']).items()}
  files.write(tmp_path / 'text.safetensors', bert_weights.export(tripled, 'transformers'))
  loaded = reporter(**{'text.weights': str(tmp_path / 'text.safetensors')}).load(variables)
  for path, leaf in flat(loaded['params']).items():
    np.testing.assert_allclose(leaf, (3 if path.startswith('perception/text/') else 1) * own[path], rtol=1e-6)
  assert 'perception/text: weights' in capsys.readouterr().out


# Parity with R2GenGPT: Swin, mean over views, linear, LayerNorm, a prompt around it, LLaMA on the report.


def r2gengpt(torch, eye, writer, project, whole):
  """Its loss, as its forward pass goes."""
  embed = lambda ids: writer.get_input_embeddings()(torch.tensor(ids))  # noqa: E731
  count = len(whole['report_ids'])
  colour = torch.tensor(whole['image'], dtype=torch.float32)[:, :, None].repeat(1, 1, 3, 1, 1) / 255
  mean, std = (torch.tensor(each).reshape(3, 1, 1) for each in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
  views = [eye((colour[:, v] - mean) / std).last_hidden_state for v in range(colour.shape[1])]
  film = project(torch.stack(views).mean(0))
  pieces = ([TEMPLATE.bos], encode('Human: <Img>'), encode('</Img> Describe this film . \nAssistant:'))
  bos, before, after = (embed(piece).expand(count, -1, -1) for piece in pieces)
  prompt = torch.cat([bos, before, film, after], 1)
  mask = torch.tensor(whole['report_mask'])
  targets = torch.tensor(whole['report_ids'], dtype=torch.long).masked_fill(~mask, -100)
  return writer(
    inputs_embeds=torch.cat([prompt, embed(whole['report_ids'].astype(np.int64))], 1),
    attention_mask=torch.cat([torch.ones(prompt.shape[:2], dtype=torch.bool), mask], 1),
    labels=torch.cat([torch.full(prompt.shape[:2], -100), targets], 1),
  ).loss.item()


def public(tmp_path):
  """Small random networks of transformers, and the folders that they are saved in."""
  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  torch.manual_seed(0)
  eye = transformers.SwinConfig(
    image_size=SIZE, patch_size=2, embed_dim=6, depths=[1, 1], num_heads=[2, 2], window_size=4, initializer_range=0.4
  )
  writer = transformers.LlamaConfig(
    vocab_size=LANGUAGE_VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, rms_norm_eps=1e-5,
    num_key_value_heads=2, intermediate_size=24, max_position_embeddings=128, tie_word_embeddings=False,
    initializer_range=0.4,
  )  # fmt: skip
  networks = transformers.SwinModel(eye).eval(), transformers.LlamaForCausalLM(writer).eval()
  paths = [str(tmp_path / name) for name in ('vision', 'language')]
  for path, network in zip(paths, networks, strict=True):
    network.save_pretrained(path)
  return torch, networks, paths


def test_without_clues_it_is_r2gengpt(tmp_path, capsys):
  """Gates 0, no clue in the prompt, B = 0: then clues do not matter either."""
  torch, (eye, writer), paths = public(tmp_path)
  swin = {'width': 6, 'depths': (1, 1), 'heads': (2, 2), 'patch': 2, 'window': 4}
  ours = reporter(**{
    'vision.encoder': 'swin', 'vision.variant': ConfigDict(swin), 'vision.weights': paths[0],
    'language.weights': paths[1], 'language.variant.depth': 2, 'clues.inject': False, 'disease.loss': 'off',
  })  # fmt: skip
  variables = felt(ours.init)
  zero = lambda path, leaf: 0 * leaf if path[-1].key.startswith('gate_') or path[-1].key == 'lora_b' else leaf  # noqa: E731
  variables = ours.load(jax.tree_util.tree_map_with_path(zero, variables))
  said = capsys.readouterr().out
  assert 'vision: weights' in said and 'language: weights' in said and 'fresh' in said
  params = flat(variables['params'])
  assert np.array_equal(params['vision/patches/kernel'], params['perception/image/patches/kernel'])

  def project(x):
    kernel, bias, scale, shift = (
      torch.tensor(np.asarray(params[f'injection/{name}']))
      for name in ('visual/kernel', 'visual/bias', 'norm_visual/scale', 'norm_visual/bias')
    )
    return torch.nn.functional.layer_norm(x @ kernel + bias, (16,), scale, shift, 1e-5)

  whole = batch(LISTS, views=2)
  with torch.no_grad():
    expected = r2gengpt(torch, eye, writer, project, whole)
  assert float(jax.jit(ours.loss)(variables, whole)[0]) == pytest.approx(expected, abs=1e-4)
