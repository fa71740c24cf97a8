"""The command `python -m launch.convert`: what a file holds, layouts to layouts, a run's backbone to a public file."""

import types

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from core.data import clip_tokens
from core.diffusion import latent, pipeline
from core.nn import adapters, bert, gpt, llama, resnet, swin, videomae, vit
from core.nn.autoencoder import Autoencoder
from core.nn.clip import ClipText
from core.nn.unet import UNet
from core.weights import bert as bert_weights
from core.weights import files
from core.weights import gpt2 as gpt2_weights
from core.weights import llama as llama_weights
from core.weights import resnet as resnet_weights
from core.weights import swin as swin_weights
from core.weights import videomae as videomae_weights
from core.weights import vit as vit_weights
from launch import convert

VIT = {'patch': 8, 'width': 12, 'depth': 2, 'heads': 2, 'mlp_dim': 20}


def leaves(network, size=(24, 24)):
  """{path: random array} of a network's collections."""
  shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *size, 3)))
  rng = np.random.default_rng(0)
  flat = {
    path: leaf for tree in shapes.values() for path, leaf in flax.traverse_util.flatten_dict(tree, sep='/').items()
  }
  return {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in flat.items()}


@pytest.fixture
def timm_file(tmp_path):
  tensors = vit_weights.export(leaves(vit.ViT(**VIT)), 'timm')
  files.write(tmp_path / 'in.safetensors', tensors | {'head.weight': np.ones((1000, 12), np.float32)})
  return tmp_path / 'in.safetensors'


def test_a_file_is_described_and_accounted_for(timm_file, capsys):
  assert convert.main([f'--input={timm_file}', '--arch=vit']) == 0
  printed = capsys.readouterr().out
  assert 'vit: patch (8, 8), width 12, depth 2' in printed and 'image_size (24, 24)' in printed
  assert 'layout timm' in printed and "head.weight: the source's own classifier" in printed
  assert 'fresh    0 leaves' in printed


def test_one_layout_becomes_another_and_back(timm_file, tmp_path, capsys):
  there, back = tmp_path / 'there.safetensors', tmp_path / 'back.safetensors'
  assert convert.main([f'--input={timm_file}', f'--output={there}', '--layout=transformers']) == 0
  assert convert.main([f'--input={there}', f'--output={back}', '--layout=timm']) == 0
  assert 'read back equal' in capsys.readouterr().out
  first, last = files.read(timm_file), files.read(back)
  assert set(last) == set(first) - {'head.weight'}
  for name in last:
    np.testing.assert_array_equal(last[name], first[name], err_msg=name)


def test_a_resnet_is_seen_from_its_names(tmp_path, capsys):
  own = leaves(resnet.ResNet((1, 1), (8, 8), stem_width=8))
  files.write(tmp_path / 'r.safetensors', resnet_weights.export(own, 'torchvision'))
  assert convert.main([f'--input={tmp_path / "r.safetensors"}']) == 0
  assert 'resnet: depths (1, 1), widths (8, 8), bottleneck False, stem_width 8' in capsys.readouterr().out


def test_a_videomae_and_a_gpt2_are_seen_from_their_names(tmp_path, capsys):
  tubelets = videomae.VideoMAE(patch=(2, 8, 8), width=12, depth=1, heads=1, mlp_dim=20)
  files.write(tmp_path / 'v.safetensors', videomae_weights.export(leaves(tubelets, (2, 16, 16)), 'transformers'))
  assert convert.main([f'--input={tmp_path / "v.safetensors"}']) == 0
  printed = capsys.readouterr().out
  assert 'videomae: patch (2, 8, 8), width 12, depth 1' in printed and 'clip_size (16, 224, 224)' in printed
  assert 'fresh    0 leaves' in printed
  decoder = gpt.Decoder(depth=2, heads=1, width=12, max_positions=9)
  shapes = jax.eval_shape(decoder.init, jax.random.key(0), jnp.zeros((1, 1, 12)))['params']
  own = {
    path: np.ones(leaf.shape, np.float32) for path, leaf in flax.traverse_util.flatten_dict(shapes, sep='/').items()
  }
  files.write(tmp_path / 'g.safetensors', gpt2_weights.export(own, 'transformers'))
  assert convert.main([f'--input={tmp_path / "g.safetensors"}']) == 0
  assert 'gpt2: depth 2, heads 1, width 12, mlp_dim 48, max_positions 9' in capsys.readouterr().out


BERT = bert.Bert(vocabulary=9, width=12, depth=2, heads=1, mlp_dim=20, max_positions=7)
LLAMA = llama.Llama(vocabulary=9, width=8, depth=2, heads=2, kv_heads=1, mlp_dim=12)
SWIN = swin.Swin(width=6, depths=(2, 1), heads=(2, 3), patch=2, window=3)


def sequence_leaves(network):
  """{path: random array} of a network over embeddings."""
  shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 1, network.width)))['params']
  rng = np.random.default_rng(0)
  flat = flax.traverse_util.flatten_dict(shapes, sep='/')
  return {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in flat.items()}


def test_a_bert_and_a_swin_are_seen_from_their_names(tmp_path, capsys):
  tensors = bert_weights.export(sequence_leaves(BERT), 'tensorflow')
  files.write(tmp_path / 'b.safetensors', {f'bert.{name}': value for name, value in tensors.items()})
  assert convert.main([f'--input={tmp_path / "b.safetensors"}']) == 0
  printed = capsys.readouterr().out
  assert 'bert: vocabulary 9, width 12, depth 2, heads 1' in printed and 'layout tensorflow' in printed
  assert 'fresh    0 leaves' in printed
  files.write(tmp_path / 's.safetensors', swin_weights.export(leaves(SWIN), 'transformers'))
  assert convert.main([f'--input={tmp_path / "s.safetensors"}']) == 0
  printed = capsys.readouterr().out
  assert 'swin: width 6, depths (2, 1), heads (2, 3), patch 2, window 3' in printed
  assert 'image_size (224, 224)' in printed and 'fresh    0 leaves' in printed


def test_a_llama_is_read_and_written_in_its_own_number_type(tmp_path, capsys):
  tensors = {
    name: value.astype(ml_dtypes.bfloat16)
    for name, value in llama_weights.export(sequence_leaves(LLAMA), 'transformers').items()
  }
  files.write(tmp_path / 'in' / 'model.safetensors', tensors)
  (tmp_path / 'in' / 'config.json').write_text('{"model_type": "llama", "num_attention_heads": 2}')
  output = tmp_path / 'out.safetensors'
  assert convert.main([f'--input={tmp_path / "in"}', f'--output={output}', '--layout=transformers']) == 0
  printed = capsys.readouterr().out
  assert 'llama: vocabulary 9, width 8, depth 2, heads 2, kv_heads 1' in printed and 'fresh    0 leaves' in printed
  written = files.read(output)
  assert set(written) == set(tensors)
  for name, value in tensors.items():
    np.testing.assert_array_equal(written[name], value, err_msg=name, strict=True)


@pytest.mark.parametrize(
  ('own', 'architecture', 'name', 'path'),
  [
    (sequence_leaves(LLAMA), 'llama', 'model.layers.1.post_attention_layernorm.weight', 'block_1/norm_mlp/scale'),
    (sequence_leaves(BERT), 'bert', 'encoder.layer.1.output.LayerNorm.weight', 'block_1/norm_mlp/scale'),
    (leaves(SWIN), 'swin', 'encoder.layers.0.downsample.norm.bias', 'stage_0/merge/norm/bias'),
  ],
)
def test_a_llama_a_bert_and_a_swin_of_a_run_are_exported(tmp_path, monkeypatch, capsys, own, architecture, name, path):
  params = flax.traverse_util.unflatten_dict({f'text/{key}': leaf for key, leaf in own.items()}, sep='/')
  monkeypatch.setattr(convert.checkpoint, 'restore_variables', lambda workdir, which: ({'params': params}, {}))
  output = tmp_path / 'x.safetensors'
  assert convert.main(['--workdir=RUN', '--prefix=text', f'--output={output}', '--layout=transformers']) == 0
  assert f'{architecture} of RUN; 0 leaves without a public name' in capsys.readouterr().out
  np.testing.assert_array_equal(files.read(output)[name], own[path])


def test_a_checkpoint_of_torch_becomes_safetensors_as_it_is_or_in_a_layout(tmp_path, capsys):
  torch = pytest.importorskip('torch')
  tensors = bert_weights.export(sequence_leaves(BERT), 'transformers')
  state = {f'module.bert.{name}': torch.tensor(value) for name, value in tensors.items()}
  torch.save({'epoch': 1, 'model_state_dict': state, 'step': torch.tensor(7)}, tmp_path / 'x.pth')
  source, output = f'--input={tmp_path / "x.pth"}', tmp_path / 'x.safetensors'
  assert convert.main([source, f'--output={output}', '--layout=transformers']) == 2
  assert 'launch.convert --pickle' in capsys.readouterr().err
  assert convert.main([source, '--pickle', f'--output={output}']) == 0
  assert f'{len(state) + 1} tensors' in capsys.readouterr().out
  written = files.read(output)
  assert set(written) == {'step', *(f'model_state_dict.{name}' for name in state)} and written['step'] == 7
  torch.save(state, tmp_path / 'x.pth')
  assert convert.main([source, '--pickle', f'--output={output}', '--layout=transformers']) == 0
  assert 'layout transformers; read back equal' in capsys.readouterr().out
  assert set(files.read(output)) == set(tensors)
  for name, value in tensors.items():
    np.testing.assert_array_equal(files.read(output)[name], value, err_msg=name)


def test_the_decoder_of_a_run_is_exported(tmp_path, monkeypatch, capsys):
  decoder = gpt.Decoder(depth=2, heads=1, width=12, max_positions=9, scan=True)
  params = {'decoder': decoder.init(jax.random.key(0), jnp.zeros((1, 1, 12)))['params'], 'head': {'bias': np.ones(2)}}
  monkeypatch.setattr(convert.checkpoint, 'restore_variables', lambda workdir, which: ({'params': params}, {}))
  output = tmp_path / 'decoder.safetensors'
  assert convert.main(['--workdir=RUN', '--prefix=decoder', f'--output={output}', '--layout=transformers']) == 0
  assert 'gpt2 of RUN; 1 leaves without a public name' in capsys.readouterr().out
  np.testing.assert_array_equal(
    files.read(output)['h.1.mlp.c_fc.weight'], params['decoder']['blocks']['mlp']['up']['kernel'][1]
  )


def test_images_that_are_not_square_are_named(tmp_path, capsys):
  files.write(tmp_path / 'v.safetensors', vit_weights.export(leaves(vit.ViT(**VIT), (16, 40)), 'timm'))
  assert convert.main([f'--input={tmp_path / "v.safetensors"}']) == 2
  assert '10 places are no square grid' in capsys.readouterr().err
  assert convert.main([f'--input={tmp_path / "v.safetensors"}', '--image_size=16,40']) == 0
  assert 'resized' not in capsys.readouterr().out


@pytest.mark.parametrize('layout', ['timm', 'transformers'])
def test_the_backbone_of_a_run_is_exported_without_what_has_no_public_name(tmp_path, monkeypatch, capsys, layout):
  own = leaves(vit.ViT(**VIT, adapter=adapters.convpass(), scan=True))
  params = {f'backbone/{path}': leaf for path, leaf in own.items()} | {'head/kernel': np.ones((12, 2), np.float32)}
  variables = {'params': flax.traverse_util.unflatten_dict(params, sep='/')}
  asked = []
  restore = lambda workdir, which: asked.append((workdir, which)) or (variables, {})  # noqa: E731
  monkeypatch.setattr(convert.checkpoint, 'restore_variables', restore)
  output = tmp_path / 'backbone.safetensors'
  assert convert.main(['--workdir=RUN', '--which=last', f'--output={output}', f'--layout={layout}']) == 0
  assert asked == [('RUN', 'last')]
  printed = capsys.readouterr().out
  assert "13 leaves without a public name stay behind: ['adapters', 'head']" in printed
  network = vit.ViT(**VIT)
  loaded, account = vit_weights.load(leaves(network), files.read(output), grid=(3, 3))
  assert not account.ignored and set(loaded) == set(leaves(network))
  kernel = own['encoder/blocks/mlp/up/kernel']
  np.testing.assert_array_equal(loaded['encoder/block_1/mlp/up/kernel'], kernel[1])
  assert convert.main(['--workdir=RUN', '--prefix=bakcbone', f'--output={output}', f'--layout={layout}']) == 2
  assert "Did you mean 'backbone'" in capsys.readouterr().err


def test_a_real_checkpoint_is_exported(tmp_path, capsys):
  """Through orbax, with batch statistics and a trained leaf among the frozen ones."""
  from core.train import checkpoint, state
  from core.train import mesh as mesh_lib
  from core.train.task import Stage

  own = leaves(resnet.ResNet((1,), (8,), stem_width=8))
  trees = {'params': {}, 'batch_stats': {}}
  for path, leaf in own.items():
    trees['batch_stats' if path.endswith(('mean', 'var')) else 'params'][f'backbone/{path}'] = leaf
  trees['params']['head/kernel'] = np.ones((8, 2), np.float32)
  variables = {name: flax.traverse_util.unflatten_dict(tree, sep='/') for name, tree in trees.items()}
  stage = Stage('made', run=lambda context: variables)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  meta = {'format': checkpoint.FORMAT, 'step': 1, 'monitor': None}
  checkpoints.save_last(1, state.create(variables, stage, mesh_lib.make()), {}, meta)
  checkpoints.close()
  output = tmp_path / 'backbone.safetensors'
  assert convert.main([f'--workdir={tmp_path}', f'--output={output}', '--layout=torchvision']) == 0
  loaded, _ = resnet_weights.load(
    {path: types.SimpleNamespace(shape=x.shape, dtype=x.dtype) for path, x in own.items()}, files.read(output)
  )
  for path, leaf in own.items():
    np.testing.assert_array_equal(loaded[path], leaf, err_msg=path)


TOKENIZER = clip_tokens.small(['a photo of sks person'])
MODEL = latent.LatentDiffusion(
  Autoencoder(channels=(8, 12), layers=1, groups=4),
  UNet(channels=(8, 16), cross=(True, False), layers=1, heads=2, context_width=16, groups=4),
  ClipText(TOKENIZER.vocabulary, width=16, depth=1, heads=2, mlp_dim=32, activation='gelu', max_positions=9),
  latent.SCHEDULES['tiny'],
)


def model_params():
  """Random leaves of `MODEL`."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda key: MODEL.init(key, 8), jax.random.key(0))
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


PARAMS = model_params()


def assert_same(found, expected):
  """Two trees are equal bit for bit."""
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(lambda ours, theirs: np.testing.assert_array_equal(ours, theirs, strict=True), found, expected)


def test_a_folder_of_diffusers_and_each_part_of_it_is_described_and_rewritten(tmp_path, capsys):
  folder, again = tmp_path / 'sd', tmp_path / 'again'
  layouts = {'autoencoder': 'diffusers-old', 'unet': 'diffusers-linear', 'text': 'bare'}
  pipeline.write(folder, MODEL, PARAMS, TOKENIZER, layouts=layouts, size=32)
  assert convert.main([f'--input={folder}', f'--output={again}', '--layout=diffusers']) == 0
  printed = capsys.readouterr().out
  assert 'autoencoder: channels (8, 12)' in printed and 'layout diffusers-old' in printed
  assert 'unet: channels (8, 16)' in printed and 'layout diffusers-linear' in printed
  assert 'text: vocabulary' in printed and 'layout bare' in printed and printed.count('fresh    0 leaves') == 3
  assert 'schedule: betas scaled_linear' in printed and 'read back equal' in printed
  found = pipeline.read(again)
  assert (found.model, found.size) == (MODEL, 32)
  assert found.layouts == {'autoencoder': 'diffusers', 'unet': 'diffusers', 'text': 'transformers'}
  assert_same(found.params, PARAMS)
  for name, layout in (('vae', 'diffusers-old'), ('unet', 'diffusers-linear'), ('text_encoder', 'bare')):
    output = tmp_path / f'{name}.safetensors'
    assert convert.main([f'--input={again / name}', f'--output={output}', f'--layout={layout}']) == 0
    assert 'fresh    0 leaves' in capsys.readouterr().out
    written, theirs = files.read(output), files.read(folder / name)
    assert set(written) == set(theirs)
    for key in theirs:
      np.testing.assert_array_equal(written[key], theirs[key], err_msg=key)


def test_a_folder_and_a_file_are_not_mistaken_for_each_other(tmp_path, capsys):
  pipeline.write(tmp_path / 'sd', MODEL, PARAMS, TOKENIZER)
  source = f'--input={tmp_path / "sd"}'
  assert convert.main([source, f'--output={tmp_path / "x.safetensors"}', '--layout=diffusers']) == 2
  assert f'--input={tmp_path / "sd" / "unet"}' in capsys.readouterr().err
  assert convert.main([source, f'--output={tmp_path / "x"}', '--layout=difusers']) == 2
  assert "has the layout 'diffusers'. Did you mean 'diffusers'?" in capsys.readouterr().err
  assert sorted(path.name for path in tmp_path.iterdir()) == ['sd']


def test_a_personalised_run_becomes_a_folder_with_its_updates_merged(tmp_path, monkeypatch, capsys):
  rng, path = np.random.default_rng(1), 'unet/down_0_transformer_0/block_0/cross/key'
  down, up = rng.normal(size=(16, 2)).astype(np.float32), rng.normal(size=(2, 8)).astype(np.float32)
  lora = flax.traverse_util.unflatten_dict({f'{path}/lora_a': down, f'{path}/lora_b': up}, sep='/')
  params = {**PARAMS, 'lora': lora, 'transfer': {'unet': PARAMS['unet'], 'text': PARAMS['text']}}
  config = {'model': {'size': 32}, 'personalise': {'lora_alpha': 6.0}}
  meta = {'config': config, 'metadata': {'tokenizer': TOKENIZER.to_json()}}
  monkeypatch.setattr(convert.checkpoint, 'restore_variables', lambda workdir, which: ({'params': params}, meta))
  monkeypatch.setattr(convert.foundation, '_check', lambda config: None)
  monkeypatch.setattr(convert.foundation.Foundation, 'model', MODEL)
  assert convert.main(['--workdir=RUN', f'--output={tmp_path / "mine"}', '--layout=diffusers']) == 0
  printed = capsys.readouterr().out
  assert "text-to-image model of RUN; networks that stay behind: ['transfer']" in printed and 'read back' in printed
  found = pipeline.read(tmp_path / 'mine')
  assert (found.model, found.size, found.tokenizer.fingerprint()) == (MODEL, 32, TOKENIZER.fingerprint())
  expected = flax.traverse_util.flatten_dict(PARAMS, sep='/')
  expected[f'{path}/kernel'] = expected[f'{path}/kernel'] + 6 / 2 * (down @ up)
  ours = flax.traverse_util.flatten_dict(found.params, sep='/')
  np.testing.assert_allclose(ours.pop(f'{path}/kernel'), expected.pop(f'{path}/kernel'), rtol=1e-5)
  assert_same(ours, expected)
  output = tmp_path / 'unet.safetensors'
  assert convert.main(['--workdir=RUN', '--prefix=unet', f'--output={output}', '--layout=diffusers']) == 0
  assert 'unet of RUN' in capsys.readouterr().out and 'conv_in.weight' in files.read(output)
  for prefix, name in (('autoencoder', 'autoencoder'), ('text', 'clip')):
    layout = 'diffusers' if prefix == 'autoencoder' else 'transformers'
    assert convert.main(['--workdir=RUN', f'--prefix={prefix}', f'--output={output}', f'--layout={layout}']) == 0
    assert f'{name} of RUN' in capsys.readouterr().out
  del params['text']
  assert convert.main(['--workdir=RUN', f'--output={tmp_path / "other"}', '--layout=diffusers']) == 2
  assert "no text among its networks ['autoencoder', 'lora', 'transfer', 'unet']" in capsys.readouterr().err


@pytest.mark.parametrize(
  ('words', 'expected'),
  [
    ([], 'either --input'),
    (['--input=FILE', '--workdir=x'], 'either --input'),
    (['--input=FILE', '--output=x.safetensors'], 'go together'),
    (['--workdir=x'], '--workdir needs both'),
    (['--input=FILE', '--arch=resnet'], 'no known layout; expected torchvision'),
    (['--input=FILE', '--output=x.safetensors', '--layout=tim'], "Did you mean 'timm'"),
    (['--input=FILE', '--sha256=00'], 'expected 00'),
    (['--input=FILE', '--image_size=24'], 'expected HEIGHT,WIDTH'),
    (['--input=/nowhere.safetensors'], 'no such file'),
    (['--workdir=/nowhere', '--output=x.safetensors', '--layout=timm'], 'no complete checkpoint'),
  ],
)  # fmt: skip
def test_mistakes_end_in_one_line(timm_file, words, expected, capsys, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  assert convert.main([word.replace('FILE', str(timm_file)) for word in words]) == 2
  assert expected in capsys.readouterr().err
