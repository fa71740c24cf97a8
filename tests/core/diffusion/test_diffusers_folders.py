"""Folders of diffusers, whole: read, written, read again; and what is said of those that are not whole."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_folders import MODEL, SIZE, TOKENIZER, random_params

from core.data import clip_tokens
from core.data.text import Tokenizer
from core.diffusion import pipeline
from core.errors import UserError
from core.weights import files

PARAMS = random_params()
TEXTS = ['a photo of sks person', 'two persons']


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """A folder of our own making; to be read only."""
  folder = tmp_path_factory.mktemp('written') / 'model'
  pipeline.write(folder, MODEL, PARAMS, TOKENIZER, size=SIZE)
  return folder


@pytest.fixture
def folder(written, tmp_path):
  """The same, to be spoiled."""
  return shutil.copytree(written, tmp_path / 'model')


def assert_same_tree(found, expected):
  """Two trees are equal bit for bit."""
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    np.testing.assert_array_equal(ours, theirs, strict=True)


def change(path, **changes):
  """Changes keys of a JSON file; None takes one away."""
  content = {**json.loads(path.read_text()), **changes}
  path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_what_is_written_is_read_as_the_same_model(written):
  found = pipeline.read(written)
  assert (found.model, found.size) == (MODEL, SIZE)
  assert_same_tree(found.params, PARAMS)
  assert found.tokenizer.fingerprint() == TOKENIZER.fingerprint()
  assert all(not account.fresh and not account.ignored for account in found.accounts.values())
  assert 'text_encoder, layout transformers\n  loaded' in str(found.accounts['text'])
  half = pipeline.read(written, dtype=jnp.bfloat16, remat=True).model
  assert {half.autoencoder.dtype, half.unet.dtype, half.text.dtype} == {jnp.bfloat16}
  assert half.autoencoder.remat and half.unet.remat


def test_diffusers_opens_it_with_the_same_weights_words_and_process(written):
  diffusers = pytest.importorskip('diffusers')
  theirs = diffusers.StableDiffusionPipeline.from_pretrained(written)
  for part, name in pipeline.FOLDERS.items():
    state = getattr(theirs, name).state_dict()
    expected = dict(files.read(written / name))
    if not set(state) <= set(expected):  # transformers 5 drops the prefix of the text encoder
      state = {f'text_model.{key}': value for key, value in state.items()}
    assert set(state) == set(expected), part
    for key, value in state.items():
      np.testing.assert_array_equal(value.numpy(), expected[key], err_msg=key)
  ids = theirs.tokenizer(TEXTS, padding='max_length', max_length=12, truncation=True)['input_ids']
  np.testing.assert_array_equal(ids, clip_tokens.prompts(TOKENIZER, TEXTS, 12))
  assert theirs.tokenizer.model_max_length == 12
  assert theirs.scheduler.config.prediction_type == 'v_prediction' and theirs.safety_checker is None
  assert theirs.unet.config.sample_size * theirs.vae_scale_factor == SIZE


@pytest.mark.parametrize('linear', [False, True])
def test_a_folder_of_diffusers_comes_back_tensor_for_tensor(tmp_path, linear):
  diffusers, transformers = pytest.importorskip('diffusers'), pytest.importorskip('transformers')
  pytest.importorskip('torch').manual_seed(0)
  theirs = diffusers.StableDiffusionPipeline(
    vae=diffusers.AutoencoderKL(
      block_out_channels=(8, 12),
      layers_per_block=1,
      norm_num_groups=4,
      down_block_types=('DownEncoderBlock2D',) * 2,
      up_block_types=('UpDecoderBlock2D',) * 2,
    ),
    unet=diffusers.UNet2DConditionModel(
      block_out_channels=(8, 16),
      down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
      up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'),
      layers_per_block=1,
      attention_head_dim=(2, 4),
      cross_attention_dim=16,
      norm_num_groups=4,
      sample_size=8,
      use_linear_projection=linear,
    ),
    text_encoder=transformers.CLIPTextModel(
      transformers.CLIPTextConfig(
        vocab_size=TOKENIZER.vocabulary,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
      )
    ),
    tokenizer=transformers.CLIPTokenizer.from_pretrained(saved_tokenizer(tmp_path / 'tokenizer')),
    scheduler=diffusers.PNDMScheduler(
      beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012, skip_prk_steps=True, steps_offset=1
    ),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
  )
  theirs.save_pretrained(tmp_path / 'theirs')
  found = pipeline.read(tmp_path / 'theirs')
  assert found.layouts['unet'] == ('diffusers-linear' if linear else 'diffusers')
  assert found.model.schedule.steps == 1000 and found.model.schedule.steps_offset == 1 and found.size == 16
  pipeline.write(tmp_path / 'ours', found.model, found.params, found.tokenizer, layouts=found.layouts, size=found.size)
  again = pipeline.read(tmp_path / 'ours')
  assert again[0] == found.model and again.size == 16 and again.layouts == found.layouts
  assert again.tokenizer.fingerprint() == found.tokenizer.fingerprint()
  for name in pipeline.FOLDERS.values():
    ours, expected = files.read(tmp_path / 'ours' / name), files.read(tmp_path / 'theirs' / name)
    assert set(ours) == set(expected)
    for key in expected:
      np.testing.assert_array_equal(ours[key], expected[key], err_msg=key, strict=True)


def saved_tokenizer(folder):
  pipeline._write_tokenizer(folder, TOKENIZER, 77)
  return folder


def test_added_words_and_a_pad_that_is_a_word_travel(tmp_path):
  saved_tokenizer(tmp_path)
  change(tmp_path / 'tokenizer_config.json', pad_token='!')
  (tmp_path / 'added_tokens.json').write_text(json.dumps({'<me>': TOKENIZER.vocabulary}))
  tokenizer = clip_tokens.load(tmp_path)
  pipeline._write_tokenizer(tmp_path / 'again', tokenizer, 77)
  again = clip_tokens.load(tmp_path / 'again')
  assert again.pad == again.encode('!')[0] != TOKENIZER.pad and again.encode('<me>') == [TOKENIZER.vocabulary]


def test_half_precision_is_read_into_f32_and_said_and_gives_way_to_full(folder, tmp_path):
  path = folder / 'unet' / 'diffusion_pytorch_model.safetensors'
  half = {name: value.astype(np.float16) for name, value in files.read(path).items()}
  files.write(path.with_name('diffusion_pytorch_model.fp16.safetensors'), half)
  assert_same_tree(pipeline.read(folder).params, PARAMS)
  path.unlink()
  found = pipeline.read(folder)
  expected = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), PARAMS['unet'])
  assert_same_tree(found.params['unet'], expected)
  assert 'unet (float16, read into float32: its rounding stays)' in str(found.accounts['unet'])
  assert 'float16' not in str(found.accounts['text'])


@pytest.mark.parametrize(
  ('lost', 'match'),
  [
    ('model_index.json', 'is not the folder of a diffusers model: it holds no model_index.json'),
    ('unet', 'only a part of a model: it lacks the folder unet'),
    ('vae scheduler', 'lacks the folders vae, scheduler'),
    ('unet/config.json', 'no block_out_channels in the config.json'),
    ('text_encoder/model.safetensors', 'text_encoder holds no .safetensors file'),
    ('scheduler/scheduler_config.json', 'no schedule there'),
    ('tokenizer/merges.txt', 'merges.txt is missing'),
  ],
)
def test_what_is_missing_is_named(folder, lost, match):
  for name in lost.split():
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  with pytest.raises(UserError, match=match):
    pipeline.read(folder)


def test_a_folder_above_the_model_says_where_it_is(folder):
  with pytest.raises(UserError, match=f'There is one in {folder}'):
    pipeline.read(folder.parent)
  with pytest.raises(UserError, match='no such folder'):
    pipeline.read(folder / 'nothing')


def test_pickles_are_refused_with_the_commands_that_convert_them_and_the_commands_work(folder, monkeypatch):
  torch, convert = pytest.importorskip('torch'), pytest.importorskip('launch.convert')
  for part, name in (('vae', 'diffusion_pytorch_model'), ('text_encoder', 'model')):
    source = folder / part / f'{name}.safetensors'
    state = {key: torch.tensor(value) for key, value in files.read(source).items()}
    torch.save(state, folder / part / ('pytorch_model.bin' if name == 'model' else f'{name}.bin'))
    source.unlink()
  with pytest.raises(UserError, match='as pickles only') as error:
    pipeline.read(folder)
  commands = [line.split() for line in str(error.value).splitlines() if 'launch.convert' in line]
  assert len(commands) == 2 and all(words[:3] == ['python', '-m', 'launch.convert'] for words in commands)
  assert all(convert.main(words[3:]) == 0 for words in commands)
  assert_same_tree(pipeline.read(folder).params, PARAMS)


@pytest.mark.parametrize(
  ('changes', 'match'),
  [
    ({'text_encoder_2': ['transformers', 'CLIPTextModelWithProjection']}, 'with the part text_encoder_2'),
    ({'unet': ['diffusers', 'UNet2DModel']}, 'with UNet2DModel as its unet, not UNet2DConditionModel'),
    ({'vae': None}, 'with None as its vae, not AutoencoderKL'),
  ],
)
def test_models_of_other_kinds_are_refused(folder, changes, match):
  change(folder / 'model_index.json', _class_name='OtherPipeline', **changes)
  with pytest.raises(UserError, match=f'describes OtherPipeline {match}'):
    pipeline.read(folder)
  (folder / 'model_index.json').write_text('[]')
  with pytest.raises(UserError, match='expected JSON with the class of each part'):
    pipeline.read(folder)


def test_parts_of_two_models_are_refused(folder, tmp_path):
  wide = dataclasses.replace(MODEL, text=MODEL.text.clone(width=20), unet=MODEL.unet.clone(context_width=20))
  pipeline.write(tmp_path / 'wide', wide, zeros(wide), TOKENIZER)
  shutil.rmtree(folder / 'text_encoder')
  shutil.copytree(tmp_path / 'wide' / 'text_encoder', folder / 'text_encoder')
  with pytest.raises(UserError, match='not of one model: the text encoder gives states of width 20, the U-Net.*16'):
    pipeline.read(folder)


def test_a_tokenizer_of_another_model_is_refused(folder):
  shutil.rmtree(folder / 'tokenizer')
  pipeline._write_tokenizer(folder / 'tokenizer', clip_tokens.small(['many other words that are not known']), 12)
  with pytest.raises(UserError, match='not of one model: tokenizer .* do not belong together'):
    pipeline.read(folder)


def zeros(model):
  shapes = jax.eval_shape(lambda key: model.init(key, SIZE), jax.random.key(0))
  return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(folder, monkeypatch):
  def broken(path, tensors):
    raise OSError('disk full')

  monkeypatch.setattr(pipeline.files, 'write', broken)
  with pytest.raises(OSError, match='disk full'):
    pipeline.write(folder, MODEL, zeros(MODEL), TOKENIZER)
  with pytest.raises(OSError, match='disk full'):
    pipeline.write(folder.parent / 'new', MODEL, PARAMS, TOKENIZER)
  assert [path.name for path in folder.parent.iterdir()] == ['model']
  assert_same_tree(pipeline.read(folder).params, PARAMS)


def test_a_model_is_replaced_but_nothing_else(folder, tmp_path):
  pipeline.write(folder, MODEL, zeros(MODEL), TOKENIZER)
  assert_same_tree(pipeline.read(folder).params, zeros(MODEL))
  assert pipeline.read(folder).size is None
  (tmp_path / 'empty').mkdir()
  pipeline.write(tmp_path / 'empty', MODEL, PARAMS, TOKENIZER)
  (folder / 'photo.png').write_text('mine')
  (tmp_path / 'photos').mkdir()
  (tmp_path / 'photos' / 'me.png').write_text('mine')
  (tmp_path / 'file').write_text('mine')
  for target, held in ((folder, 'photo.png'), (tmp_path / 'photos', 'me.png'), (tmp_path / 'file', 'a file')):
    with pytest.raises(UserError, match=f'is not empty .it holds {held}.*expected a new or empty folder'):
      pipeline.write(target, MODEL, PARAMS, TOKENIZER)
  assert (folder / 'photo.png').read_text() == (tmp_path / 'photos' / 'me.png').read_text() == 'mine'


def test_leaves_that_are_not_the_models_and_tokenizers_that_are_not_clips_are_refused(tmp_path):
  params = jax.tree.map(lambda x: x, PARAMS)
  kernel = params['unet']['conv_in'].pop('kernel')
  params['unet']['conv_in'] |= {'lora_a': kernel, 'bias': np.ones(3)}
  message = (
    r"of 'unet' are not .*conv_in/kernel is missing; .*lora_a is not of the model; .*bias is \(3,\), expected \(8,\)"
  )
  with pytest.raises(UserError, match=message):
    pipeline.write(tmp_path / 'x', MODEL, params, TOKENIZER)
  bpe = Tokenizer.train('bpe', TEXTS, 270)
  with pytest.raises(UserError, match='is no CLIP tokenizer'):
    wide = dataclasses.replace(MODEL, text=MODEL.text.clone(vocabulary=bpe.vocabulary))
    pipeline.write(tmp_path / 'x', wide, zeros(wide), bpe)
  with pytest.raises(UserError, match='do not belong together'):
    small = dataclasses.replace(MODEL, text=MODEL.text.clone(vocabulary=9))
    pipeline.write(tmp_path / 'x', small, zeros(small), TOKENIZER)
  assert list(tmp_path.iterdir()) == []
