"""Public weights: what a file holds, one public layout to another, a trained run's networks to a public layout.

  python -m launch.convert --input=vit_base_patch16_224.safetensors
  python -m launch.convert --input=google/vit-base-patch16-224 --output=vit.safetensors --layout=timm
  python -m launch.convert --workdir=runs/fas_aug/to_phone --output=backbone.safetensors --layout=timm
  python -m launch.convert --pickle --input=chexbert.pth --output=chexbert.safetensors
  python -m launch.convert --input=stable-diffusion-v1-5
  python -m launch.convert --workdir=runs/dreambooth --output=mine --layout=diffusers

The first prints the architecture that is read off the tensors and the full account of a load into it: every leaf of
ours loaded or fresh, every tensor used or ignored on purpose. --input is a .safetensors file, a folder, or
owner/name[@revision] on the Hugging Face Hub. What is written is read back and compared, number for number.

A whole text-to-image model is a folder of diffusers (model_index.json and its parts), as input and as output: each part
is accounted for, low-rank updates of a run are merged, and diffusers opens what is written.

--pickle lets a checkpoint of torch be the input too, read without torch and without running any code in it; without
--layout its tensors are written as they are, whatever network they are of.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from absl import flags

from core import config as config_lib
from core.diffusion import foundation, personalisation, pipeline
from core.diffusion.latent import PARTS
from core.errors import UserError, nearest
from core.nn import adapters, gpt
from core.nn import autoencoder as autoencoder_nn
from core.nn import bert as bert_nn
from core.nn import clip as clip_nn
from core.nn import llama as llama_nn
from core.nn import resnet as resnet_nn
from core.nn import swin as swin_nn
from core.nn import unet as unet_nn
from core.nn import videomae as videomae_nn
from core.nn import vit as vit_nn
from core.train import backend, checkpoint
from core.weights import autoencoder, bert, clip, files, gpt2, llama, resnet, swin, table, unet, videomae, vit
from launch import command

# in this order where names tell: a VideoMAE and a Swin have the marker of transformers' ViT too
ARCHITECTURES = {
  'videomae': videomae,
  'swin': swin,
  'vit': vit,
  'resnet': resnet,
  'gpt2': gpt2,
  'bert': bert,
  'llama': llama,
  'clip': clip,
  'autoencoder': autoencoder,
  'unet': unet,
}
NETWORKS = {
  'videomae': videomae_nn.VideoMAE,
  'swin': swin_nn.Swin,
  'vit': vit_nn.ViT,
  'resnet': resnet_nn.ResNet,
  'gpt2': gpt.Decoder,
  'bert': bert_nn.Bert,
  'llama': llama_nn.Llama,
  'clip': clip_nn.ClipText,
  'autoencoder': autoencoder_nn.Autoencoder,
  'unet': unet_nn.UNet,
}
MARKERS = {
  'bert': ('type',),
  'clip': ('words/embedding',),
  'autoencoder': ('quant/kernel',),
  'unet': ('time/up/kernel',),
  'llama': ('embed/embedding',),
  'swin': ('norm_patches/scale',),
  'vit': ('patches/kernel',),
  'resnet': ('stem/conv/kernel',),
  'videomae': ('tubelets/kernel',),
  'gpt2': ('block_0/attention/query/kernel', 'blocks/attention/query/kernel'),
}
"""Leaves, any of which tells an architecture among our paths; the first architecture that has one is it."""
SEQUENCES = ('gpt2', 'bert', 'llama')
"""Architectures over embeddings [B, T, width]."""
DIFFUSION = ('clip', 'autoencoder', 'unet')
"""The parts of latent diffusion; architectures that are in neither are over images [B, height, width, 3] and clips."""
WHOLE = 'diffusers'
"""The layout of a folder with a whole text-to-image model."""


def inspect(
  tensors: files.Tensors, architecture: str = '', image_size: tuple[int, int] | None = None
) -> tuple[str, dict[str, Any], dict[str, np.ndarray], table.Account]:
  """Loads public tensors into the network that they are for.

  Args:
    tensors: of `core.weights.files.read`.
    architecture: a key of `ARCHITECTURES`, or '' to see it from the names.
    image_size: (height, width) that position embeddings are for, where they are not for a square.

  Returns:
    (architecture, arguments of its network, {our path: array}, account).
  """
  architecture = architecture or _architecture_of(tensors)
  module = ARCHITECTURES[architecture]
  size, pixels = {}, ()
  if architecture in (*SEQUENCES, *DIFFUSION):
    fields = module.infer(tensors)
  else:
    fields, pixels = vit.infer(tensors, image_size) if architecture == 'vit' else module.infer(tensors)
    size = {'clip_size' if architecture == 'videomae' else 'image_size': pixels}
  network = NETWORKS[architecture](**fields)
  if architecture == 'llama':  # in the file's own type: seven billion numbers need not become twice as long
    name = next(name for name in tensors if name.endswith('model.norm.weight'))
    network = network.clone(param_dtype=tensors[name].dtype)
  inputs = _inputs(architecture, fields, pixels)
  shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
  options = {'grid': network.tokens(pixels).grid} if architecture == 'vit' else {}
  loaded, account = module.load(_flat(shapes), tensors, **options)
  return architecture, {**fields, **size}, loaded, account


def _inputs(architecture: str, fields: Mapping[str, Any], pixels: Sequence[int]) -> tuple[jax.ShapeDtypeStruct, ...]:
  """The smallest inputs that an architecture is initialised with."""
  if architecture == 'clip':
    return (jax.ShapeDtypeStruct((1, 1), np.int32),)
  if architecture in SEQUENCES:
    shapes = [(1, 1, fields['width'])]
  elif architecture in DIFFUSION:
    side = 2 ** (len(fields['channels']) - 1)
    photo = architecture == 'autoencoder'
    shapes = [(1, side, side, fields['colours' if photo else 'inputs'])]
    shapes += [] if photo else [(1,), (1, 1, fields['context_width'])]
  else:
    shapes = [(1, *pixels, 3)]
  return tuple(jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes)


def text_to_image(workdir: str | pathlib.Path, which: str) -> tuple[pipeline.Pipeline, list[str]]:
  """(the model of a run's checkpoint with low-rank updates merged, without accounts; its other networks)."""
  variables, meta = checkpoint.restore_variables(workdir, which)
  params = variables['params']
  if lost := [part for part in PARTS if part not in params]:
    raise UserError(
      f"'{workdir}' holds no whole text-to-image model: there is no {lost[0]} among its networks {sorted(params)}. A"
      ' network alone goes into a file: --output=FILE.safetensors --prefix=NETWORK.'
    )
  config = config_lib.restore(meta['config'])
  made = foundation.Foundation(config)
  made.restored(meta['metadata'])
  merged = personalisation.merge(params, config.personalise.lora_alpha)
  own = {part: merged[part] for part in PARTS}
  left = sorted(set(params) - {*PARTS, 'lora'})
  return pipeline.Pipeline(made.model, own, made.tokenizer, {}, config.model.size), left


def write_folder(path: pathlib.Path, made: pipeline.Pipeline, layout: str) -> int:
  """Writes a whole model as a folder of diffusers, reads it back and compares; returns how many numbers it has."""
  if layout != WHOLE:
    hint = nearest(layout, [WHOLE])
    raise UserError(f"--layout='{layout}': a folder with a whole text-to-image model has the layout '{WHOLE}'.{hint}")
  pipeline.write(path, made.model, made.params, made.tokenizer, size=made.size)
  stored, own = _flat(pipeline.read(path).params), _flat(made.params)
  different = [name for name in own if not np.array_equal(stored[name], np.asarray(own[name]), equal_nan=True)]
  if different:
    raise UserError(f'{path} does not hold what was written ({different[:8]}): is the disk full or broken?')
  return sum(int(np.size(leaf)) for leaf in own.values())


def backbone(workdir: str | pathlib.Path, which: str, prefix: str) -> tuple[str, dict[str, Any], list[str]]:
  """(architecture, {our path: array} of the network under `prefix`, all other paths) of a run's checkpoint."""
  variables, _ = checkpoint.restore_variables(workdir, which)
  leaves, start = _flat(variables), f'{prefix}/' if prefix else ''
  own = {path.removeprefix(start): leaf for path, leaf in leaves.items() if path.startswith(start)}
  for architecture, markers in MARKERS.items():
    if any(marker in own for marker in markers):
      return architecture, own, [path for path in leaves if not path.startswith(start)]
  tops = sorted({path.split('/')[0] for path in leaves})
  raise UserError(
    f"'{workdir}' holds no network of {sorted(MARKERS)} under '{prefix}' (none has its own leaf there:"
    f' {", ".join(markers[0] for markers in MARKERS.values())}); its networks are {tops}: choose one by --prefix.'
    f'{nearest(prefix, tops)}'
  )


def write(path: pathlib.Path, architecture: str, leaves: Mapping[str, Any], layout: str) -> Mapping[str, Any]:
  """Exports leaves to a public layout, reads the file back and compares; returns the tensors."""
  module = ARCHITECTURES[architecture]
  if layout not in module.LAYOUTS:
    known = sorted(module.LAYOUTS)
    raise UserError(f"--layout='{layout}': a {architecture} has the layouts {known}.{nearest(layout, known)}")
  return _written(path, module.export(leaves, layout))


def _written(path: pathlib.Path, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
  """Writes tensors, reads the file back and compares; returns them."""
  files.write(path, tensors)
  stored = files.read(path)
  different = [name for name in tensors if not np.array_equal(stored[name], tensors[name], equal_nan=True)]
  if different or set(stored) != set(tensors):
    raise UserError(f'{path} does not hold what was written ({different[:8]}): is the disk full or broken?')
  return tensors


def _architecture_of(tensors: files.Tensors) -> str:
  layouts = {layout.marker: name for name, module in ARCHITECTURES.items() for layout in module.LAYOUTS.values()}
  every = [layout for module in ARCHITECTURES.values() for layout in module.LAYOUTS.values()]
  return layouts[table.detect(list(tensors), every, tensors.source)[0].marker]


def _flat(variables: Mapping[str, Any]) -> dict[str, Any]:
  """All collections in one: no path is in two."""
  trees = (flax.traverse_util.flatten_dict(dict(tree), sep='/') for tree in variables.values())
  return {path: leaf for tree in trees for path, leaf in tree.items()}


def declare(values: flags.FlagValues) -> None:
  """The flags."""
  flags.DEFINE_string('input', None, 'A .safetensors file, a folder, or owner/name on the Hub.', flag_values=values)
  flags.DEFINE_enum(
    'arch', '', ['', *ARCHITECTURES], 'Architecture; seen from the names by default.', flag_values=values
  )
  text = 'HEIGHT,WIDTH of the images that a ViT file is for, where they are not square.'
  flags.DEFINE_list('image_size', [], text, flag_values=values)
  flags.DEFINE_string('sha256', '', "What the input file's digest must be.", flag_values=values)
  text = 'Whether --input may be a checkpoint of torch (.pth, .bin); only tensors are read from it.'
  flags.DEFINE_boolean('pickle', False, text, flag_values=values)
  flags.DEFINE_string('workdir', None, "A run's folder, to export its backbone.", flag_values=values)
  flags.DEFINE_string('which', 'best', "Which checkpoint: 'best', 'last' or a step.", flag_values=values)
  flags.DEFINE_string('prefix', 'backbone', "The backbone's name in the run's parameters.", flag_values=values)
  text = '.safetensors file to write; for a whole text-to-image model a folder.'
  flags.DEFINE_string('output', None, text, flag_values=values)
  flags.DEFINE_string(
    'layout',
    None,
    'timm or transformers (ViT), torchvision or transformers (ResNet), transformers or tensorflow (BERT), diffusers'
    ' (autoencoder, U-Net, a whole text-to-image model), transformers (the others).',
    flag_values=values,
  )


def execute(arguments: command.Arguments) -> int:
  """Reads, prints the account, writes where asked."""
  options = arguments.flags_only().flags
  if bool(options.input) == bool(options.workdir):
    raise UserError('expected either --input (public weights) or --workdir (a trained run). --help shows all flags.')
  as_it_is = options.pickle and options.output and not options.layout
  if (bool(options.output) != bool(options.layout) and not as_it_is) or (options.workdir and not options.output):
    raise UserError(
      '--output and --layout=LAYOUT go together, with a FILE.safetensors for a network or a FOLDER for a whole'
      ' text-to-image model; --workdir needs both.'
    )
  backend.setup()
  if options.input and (pathlib.Path(options.input).expanduser() / pipeline.INDEX).is_file():
    _convert_folder(options)
  elif options.workdir and pathlib.Path(options.output).suffix != '.safetensors':
    made, left = text_to_image(options.workdir, options.which)
    print(f'text-to-image model of {options.workdir}; networks that stay behind: {left or "none"}')
    _report_folder(options, made)
  else:
    _convert_network(options, as_it_is)
  return 0


def _convert_folder(options: flags.FlagValues) -> None:
  """A folder of diffusers: its accounts, and the same model in f32 under today's names where asked."""
  folder = pathlib.Path(options.input).expanduser()
  if options.output and pathlib.Path(options.output).suffix == '.safetensors':
    raise UserError(
      f'{folder} is a whole text-to-image model: --output is then a folder. For a part alone name it:'
      f' --input={folder / "unet"}.'
    )
  made = pipeline.read(folder)
  for part, account in made.accounts.items():
    fields = pipeline.NETWORKS[part][1].infer(files.read(folder / pipeline.FOLDERS[part]))
    print(f'{part}: {_named(fields)}\n{account}')
  print(f'schedule: {_named(dataclasses.asdict(made.model.schedule))}\n{made.tokenizer}')
  if options.output:
    _report_folder(options, made)


def _report_folder(options: flags.FlagValues, made: pipeline.Pipeline) -> None:
  count = write_folder(pathlib.Path(options.output), made, options.layout)
  print(f'Written to {options.output}: a folder of diffusers, {count:,} numbers; read back equal.')


def _convert_network(options: flags.FlagValues, as_it_is: bool) -> None:
  """One network, of a file or of a run."""
  if options.input:
    tensors = files.read(options.input, sha256=options.sha256, allow_pickle=options.pickle)
    if as_it_is:
      _report(options.output, _written(pathlib.Path(options.output), tensors), 'names as they were')
      return
    architecture, fields, leaves, account = inspect(tensors, options.arch, _size(options.image_size))
    print(f'{architecture}: {_named(fields)}\n{account}')
  else:
    architecture, leaves, others = backbone(options.workdir, options.which, options.prefix)
    left = [*(path for path in leaves if adapters.is_adapter(path)), *others]
    groups = sorted({'/'.join(path.split('/')[:1]) if path in others else 'adapters' for path in left})
    print(
      f'{architecture} of {options.workdir}; {len(left)} leaves without a public name stay behind: {groups or "none"}'
    )
  if options.output:
    written = write(pathlib.Path(options.output), architecture, leaves, options.layout)
    _report(options.output, written, f'layout {options.layout}')


def _named(fields: Mapping[str, Any]) -> str:
  return ', '.join(f'{name} {value}' for name, value in fields.items())


def _report(path: str, tensors: Mapping[str, Any], what: str) -> None:
  count = sum(int(np.size(value)) for value in tensors.values())
  print(f'Written to {path}: {len(tensors)} tensors, {count:,} numbers, {what}; read back equal.')


def _size(words: Sequence[str]) -> tuple[int, int] | None:
  if not words:
    return None
  if len(words) != 2 or not all(word.strip().isdigit() for word in words):
    raise UserError(f'--image_size={",".join(words)}: expected HEIGHT,WIDTH in pixels.')
  return int(words[0]), int(words[1])


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit code."""
  return command.main('launch.convert', __doc__, declare, execute, argv)


if __name__ == '__main__':
  sys.exit(main())
