"""A text-to-image model as the folder that diffusers keeps it in (spec 3.1), read and written whole.

    pipeline = read('stable-diffusion-v1-5')
    photos = pipeline.model.generate(pipeline.params, context, keys, size=pipeline.size)
    write('mine', pipeline.model, pipeline.params, pipeline.tokenizer, layouts=pipeline.layouts, size=pipeline.size)

  model_index.json                                    which classes the parts are of
  vae/, unet/, text_encoder/                          config.json and safetensors of each network
  tokenizer/, scheduler/                              the words, and the process that adds noise

Stable Diffusion 1.x and 2.x are such folders, whatever their size. Other parts (safety_checker, feature_extractor) are
left alone. The weights are given away in many copies, and copies vanish: a folder is named by its path only.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from core.data import clip_tokens
from core.data.text import Tokenizer
from core.diffusion import schedule
from core.diffusion.latent import PARTS, LatentDiffusion
from core.errors import UserError
from core.nn.autoencoder import Autoencoder
from core.nn.clip import ClipText
from core.nn.unet import UNet
from core.weights import autoencoder, clip, files, table, unet

INDEX = 'model_index.json'
FOLDERS = {'autoencoder': 'vae', 'unet': 'unet', 'text': 'text_encoder'}
"""Of the networks, by our names."""
WEIGHTS = {
  'autoencoder': 'diffusion_pytorch_model.safetensors',
  'unet': 'diffusion_pytorch_model.safetensors',
  'text': 'model.safetensors',
}
"""The file of each network, in full precision and one piece."""
CLASSES = {
  'vae': ('AutoencoderKL',),
  'unet': ('UNet2DConditionModel',),
  'text_encoder': ('CLIPTextModel', 'CLIPTextModelWithProjection'),
  'tokenizer': ('CLIPTokenizer', 'CLIPTokenizerFast'),
}
"""What the parts may be, by the names of model_index.json."""
NEW = {'autoencoder': 'diffusers', 'unet': 'diffusers', 'text': 'transformers'}
"""The layout of each part in a folder that comes from nowhere."""
NETWORKS = {'autoencoder': (Autoencoder, autoencoder), 'unet': (UNet, unet), 'text': (ClipText, clip)}
"""The network of each part, and the module of its public weights."""


class Pipeline(NamedTuple):
  """What a folder holds.

  Attributes:
    model: the networks and the process.
    params: {'autoencoder', 'unet', 'text'} of f32 numpy arrays.
    tokenizer: for `clip_tokens.prompts(tokenizer, texts, model.text.max_positions)`.
    accounts: part -> what became of every leaf and every tensor; to be printed.
    size: pixels along a side of the photos that it was trained on, where the folder says so.
  """

  model: LatentDiffusion
  params: dict[str, Any]
  tokenizer: Tokenizer
  accounts: dict[str, table.Account]
  size: int | None

  @property
  def layouts(self) -> dict[str, str]:
    """Part -> the layout its file has; with them `write` gives the same tensors again."""
    return {part: account.layout for part, account in self.accounts.items()}


def read(folder: str | os.PathLike[str], *, dtype: Any = jnp.float32, remat: bool = False) -> Pipeline:
  """Reads a folder.

  Args:
    folder: a path; half-precision files in it are read into f32.
    dtype: compute type of all networks.
    remat: as in `core.diffusion.latent.build`.

  Raises:
    UserError: something is missing, damaged, of another kind, or the parts are not of one model.
  """
  folder = pathlib.Path(folder).expanduser()
  _check_folder(folder)
  tensors = {part: files.read(folder / name) for part, name in FOLDERS.items()}
  fields = {part: NETWORKS[part][1].infer(tensors[part]) for part in PARTS}
  options = {'autoencoder': {'remat': remat}, 'unet': {'remat': remat}, 'text': {}}
  networks = {part: NETWORKS[part][0](**fields[part], **options[part], dtype=dtype) for part in PARTS}
  process = schedule.read(folder / 'scheduler')
  tokenizer = clip_tokens.load(folder / 'tokenizer')
  try:
    model = LatentDiffusion(networks['autoencoder'], networks['unet'], networks['text'], process)
    tokenizer.check(model.text.vocabulary, 'the text encoder')
  except UserError as error:
    raise UserError(f'{folder}: its parts are not of one model: {error}') from None
  params, accounts = {}, {}
  shapes = _shapes(model)
  for part in PARTS:
    loaded, accounts[part] = NETWORKS[part][1].load(shapes[part], tensors[part])
    accounts[part].source = f'{folder / FOLDERS[part]}{_precision(tensors[part])}'
    params[part] = flax.traverse_util.unflatten_dict(loaded, sep='/')
  latents = tensors['unet'].config.get('sample_size')
  size = latents * model.autoencoder.factor if isinstance(latents, int) else None
  return Pipeline(model, params, tokenizer, accounts, size)


def write(
  folder: str | os.PathLike[str],
  model: LatentDiffusion,
  params: Mapping[str, Any],
  tokenizer: Tokenizer,
  *,
  layouts: Mapping[str, str] | None = None,
  size: int | None = None,
) -> None:
  """Writes a folder that diffusers opens as a StableDiffusionPipeline, and `read` as the same model.

  All of it is written beside `folder`, and renamed when it is whole: a killed write leaves nothing under that name.

  Args:
    folder: new, empty, or one that holds nothing but what this function writes, which it then replaces.
    model: networks and process.
    params: all leaves of `model`, no others (low-rank leaves are merged first).
    tokenizer: a CLIP tokenizer whose ids the text encoder knows.
    layouts: part -> layout of its tensors, of `Pipeline.layouts`; what is not named is written as new folders are.
    size: pixels along a side that diffusers makes when it is not told; None: it has to be told.

  Raises:
    UserError: the folder holds something else, or the leaves are not those of the model.
  """
  folder, layouts = pathlib.Path(folder).expanduser().absolute(), dict(layouts or {})
  _check_target(folder)
  tokenizer.check(model.text.vocabulary, 'the text encoder')
  tensors = {part: _exported(part, tree, params, layouts) for part, tree in _shapes(model).items()}
  folder.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=f'.{folder.name}.partial-', dir=folder.parent) as scratch:
    made, old = pathlib.Path(scratch, 'made'), pathlib.Path(scratch, 'old')
    for part, name in FOLDERS.items():
      files.write(made / name / WEIGHTS[part], tensors[part])
      _write_json(made / name / 'config.json', _config(part, model, layouts, size))
    _write_json(made / 'scheduler' / 'scheduler_config.json', model.schedule.to_config())
    _write_tokenizer(made / 'tokenizer', tokenizer, model.text.max_positions)
    _write_json(made / INDEX, _index(model))
    if folder.exists():
      folder.rename(old)
    made.rename(folder)


def _check_target(folder: pathlib.Path) -> None:
  """Refuses to replace what `write` has not written."""
  if not folder.exists():
    return
  inside = {path.name for path in folder.iterdir()} if folder.is_dir() else {'a file'}
  foreign = sorted(inside - {INDEX, *FOLDERS.values(), 'tokenizer', 'scheduler'})
  if foreign or (inside and INDEX not in inside):
    shown = ', '.join((foreign or sorted(inside))[:8])
    raise UserError(
      f'{folder} is not empty (it holds {shown}), and is no folder of a diffusers model alone that could be replaced:'
      ' expected a new or empty folder.'
    )


def _exported(
  part: str, shapes: Mapping[str, Any], params: Mapping[str, Any], layouts: Mapping[str, str]
) -> dict[str, Any]:
  """The public tensors of a part, whose leaves must be those of the model."""
  leaves = flax.traverse_util.flatten_dict(dict(params.get(part, {})), sep='/')
  faults = [f'{path} is missing' for path in shapes if path not in leaves]
  faults += [f'{path} is not of the model' for path in leaves if path not in shapes]
  faults += [
    f'{path} is {np.shape(leaf)}, expected {shapes[path].shape}'
    for path, leaf in leaves.items()
    if path in shapes and np.shape(leaf) != shapes[path].shape
  ]
  if faults:
    more = f' and {len(faults) - 8} more' if len(faults) > 8 else ''
    raise UserError(f"the parameters of '{part}' are not those of the model: {'; '.join(faults[:8])}{more}.")
  return NETWORKS[part][1].export(leaves, layouts.get(part, NEW[part]))


def _config(part: str, model: LatentDiffusion, layouts: Mapping[str, str], size: int | None) -> dict[str, Any]:
  """The config.json of a network."""
  if part != 'unet':
    return NETWORKS[part][1].config(getattr(model, part))
  grid = {} if size is None else {'sample_size': size // model.autoencoder.factor}
  return {**unet.config(model.unet, layouts.get(part, NEW[part])), **grid}


def _index(model: LatentDiffusion) -> dict[str, Any]:
  """model_index.json: nothing checks what is made, which is the caller's to decide, as their own switch says."""
  return {
    '_class_name': 'StableDiffusionPipeline',
    'feature_extractor': [None, None],
    'image_encoder': [None, None],
    'requires_safety_checker': False,
    'safety_checker': [None, None],
    'scheduler': ['diffusers', model.schedule.to_config()['_class_name']],
    'text_encoder': ['transformers', clip.config(model.text)['architectures'][0]],
    'tokenizer': ['transformers', 'CLIPTokenizer'],
    'unet': ['diffusers', 'UNet2DConditionModel'],
    'vae': ['diffusers', 'AutoencoderKL'],
  }


def _write_tokenizer(folder: pathlib.Path, tokenizer: Tokenizer, length: int) -> None:
  """vocab.json, merges.txt and a config, as all versions of transformers read them; read back and compared."""
  content = json.loads(tokenizer.to_json())
  pieces = content['tokenizer']['model']
  if pieces.get('type') == 'BPE':
    added = {each['content']: each['id'] for each in content['tokenizer']['added_tokens']}
    _write_json(folder / 'vocab.json', pieces['vocab'])
    lines = ['#version: 0.2', *(' '.join(pair) for pair in pieces['merges'])]
    (folder / 'merges.txt').write_text('\n'.join(lines) + '\n', encoding='utf-8')
    roles = {f'{role}_token': token for role, token in tokenizer.special.items()}
    _write_json(
      folder / 'tokenizer_config.json', {**roles, 'model_max_length': length, 'tokenizer_class': 'CLIPTokenizer'}
    )
    if added := {token: i for token, i in added.items() if token not in pieces['vocab']}:
      _write_json(folder / 'added_tokens.json', added)
    if clip_tokens.load(folder).fingerprint() == tokenizer.fingerprint():
      return
  raise UserError(f'{tokenizer!r} is no CLIP tokenizer, so that diffusers could not read it back as it is.')


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')


def _check_folder(folder: pathlib.Path) -> None:
  """Refuses what is no whole folder of a model that this house knows, with one error about all that is missing."""
  if not folder.is_dir():
    raise UserError(
      f'{folder}: no such folder. Expected the folder of a Stable Diffusion 1.x or 2.x as diffusers keeps it, by its'
      ' path: nothing is downloaded here.'
    )
  if not (folder / INDEX).is_file():
    inner = [path.parent.name for path in sorted(folder.glob(f'*/{INDEX}'))]
    hint = f' There is one in {folder / inner[0]}.' if inner else ''
    raise UserError(
      f'{folder} is not the folder of a diffusers model: it holds no {INDEX}. Expected that file and the folders'
      f' {", ".join((*FOLDERS.values(), "tokenizer", "scheduler"))}.{hint}'
    )
  _check_index(folder / INDEX)
  lost = [name for name in (*FOLDERS.values(), 'tokenizer', 'scheduler') if not (folder / name).is_dir()]
  if lost:
    raise UserError(
      f'{folder} is only a part of a model: it lacks the folder{"s" if len(lost) > 1 else ""} {", ".join(lost)}.'
      ' Download the whole folder again, or copy what is missing from another copy of the same model.'
    )
  pickled = {part: found for part, name in FOLDERS.items() if (found := _only_pickles(folder / name))}
  if pickled:
    commands = [
      f'  python -m launch.convert --pickle --input={path} --output={path.with_name(WEIGHTS[part])}'
      for part, path in pickled.items()
    ]
    names = ', '.join(str(path.relative_to(folder)) for path in pickled.values())
    raise UserError(
      f'{folder} holds weights as pickles only ({names}), which may run code when they are opened. Convert them once,'
      ' by a reader that takes tensors only and runs no code of the files:\n' + '\n'.join(commands)
    )


def _check_index(path: pathlib.Path) -> None:
  """Refuses models whose parts are of other kinds."""
  try:
    index = json.loads(path.read_text(encoding='utf-8'))
    classes = {name: value[1] for name, value in index.items() if isinstance(value, list) and value[1]}
  except (ValueError, AttributeError, IndexError) as error:
    raise UserError(f'{path}: expected JSON with the class of each part, as diffusers writes it ({error}).') from None
  kind = index.get('_class_name', 'a model without a class')
  way_out = 'Expected a Stable Diffusion 1.x or 2.x (StableDiffusionPipeline).'
  if second := [name for name in ('text_encoder_2', 'transformer', 'image_encoder') if classes.get(name)]:
    raise UserError(f'{path} describes {kind} with the part {second[0]}, which is not built here. {way_out}')
  for name, known in CLASSES.items():
    if (found := classes.get(name)) not in known:
      raise UserError(f'{path} describes {kind} with {found} as its {name}, not {known[0]}. {way_out}')


def _only_pickles(folder: pathlib.Path) -> pathlib.Path | None:
  """The torch checkpoint of a folder that holds no safetensors, in full precision where there are several."""
  if any(folder.glob('*.safetensors')):
    return None
  found = [path for path in sorted(folder.iterdir()) if path.suffix in files.PICKLES]
  plain = [path for path in found if path.name in ('diffusion_pytorch_model.bin', 'pytorch_model.bin')]
  return next(iter((*plain, *found)), None)


def _precision(tensors: files.Tensors) -> str:
  """A remark about files that are not in f32."""
  kinds = {tensors[name].dtype.name for name in list(tensors)[:1]} - {'float32'}
  return f' ({kinds.pop()}, read into float32: its rounding stays)' if kinds else ''


@functools.lru_cache(maxsize=4)
def _shapes(model: LatentDiffusion) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
  """Part -> {'/'-joined path: shape} of a model's parameters."""
  size = model.autoencoder.factor * 2 ** (len(model.unet.channels) - 1)
  shapes = jax.eval_shape(functools.partial(model.init, size=size), jax.random.key(0))
  return {part: flax.traverse_util.flatten_dict(tree, sep='/') for part, tree in shapes.items()}
