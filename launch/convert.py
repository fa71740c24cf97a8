"""Public weights: what a file holds, one public layout to another, a trained run's backbone to a public layout.

  python -m launch.convert --input=vit_base_patch16_224.safetensors
  python -m launch.convert --input=google/vit-base-patch16-224 --output=vit.safetensors --layout=timm
  python -m launch.convert --workdir=runs/fas_aug/to_phone --output=backbone.safetensors --layout=timm

The first prints the architecture that is read off the tensors and the full account of a load into it: every leaf of
ours loaded or fresh, every tensor used or ignored on purpose. --input is a .safetensors file, a folder, or
owner/name[@revision] on the Hugging Face Hub. What is written is read back and compared, number for number.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from absl import flags

from core.errors import UserError, nearest
from core.nn import adapters
from core.nn import resnet as resnet_nn
from core.nn import vit as vit_nn
from core.train import backend, checkpoint
from core.weights import files, resnet, table, vit
from launch import command

ARCHITECTURES = {'vit': vit, 'resnet': resnet}
NETWORKS = {'vit': vit_nn.ViT, 'resnet': resnet_nn.ResNet}
MARKERS = {'vit': 'patches/kernel', 'resnet': 'stem/conv/kernel'}
"""A leaf that tells an architecture among our paths."""


def inspect(
  tensors: files.Tensors, architecture: str = '', image_size: tuple[int, int] | None = None
) -> tuple[str, dict[str, Any], dict[str, np.ndarray], table.Account]:
  """Loads public tensors into the network that they are for.

  Args:
    tensors: of `core.weights.files.read`.
    architecture: 'vit', 'resnet', or '' to see it from the names.
    image_size: (height, width) that position embeddings are for, where they are not for a square.

  Returns:
    (architecture, arguments of its network, {our path: array}, account).
  """
  architecture = architecture or _architecture_of(tensors)
  module = ARCHITECTURES[architecture]
  if architecture == 'resnet':
    fields, size = resnet.infer(tensors)
  else:
    fields, size = vit.infer(tensors, image_size)
  network = NETWORKS[architecture](**fields)
  shapes = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *size, 3), np.float32))
  leaves = _flat(shapes)
  options = {'grid': network.tokens(size).grid} if architecture == 'vit' else {}
  loaded, account = module.load(leaves, tensors, **options)
  return architecture, {**fields, 'image_size': size}, loaded, account


def backbone(workdir: str | pathlib.Path, which: str, prefix: str) -> tuple[str, dict[str, Any], list[str]]:
  """(architecture, {our path: array} of the network under `prefix`, all other paths) of a run's checkpoint."""
  variables, _ = checkpoint.restore_variables(workdir, which)
  leaves, start = _flat(variables), f'{prefix}/' if prefix else ''
  own = {path.removeprefix(start): leaf for path, leaf in leaves.items() if path.startswith(start)}
  for architecture, marker in MARKERS.items():
    if marker in own:
      return architecture, own, [path for path in leaves if not path.startswith(start)]
  tops = sorted({path.split('/')[0] for path in leaves})
  raise UserError(
    f"'{workdir}' holds no ViT and no ResNet under '{prefix}' (no {' and no '.join(MARKERS.values())}); its networks"
    f' are {tops}: choose one by --prefix.{nearest(prefix, tops)}'
  )


def write(path: pathlib.Path, architecture: str, leaves: Mapping[str, Any], layout: str) -> dict[str, Any]:
  """Exports leaves to a public layout, reads the file back and compares; returns the tensors."""
  module = ARCHITECTURES[architecture]
  if layout not in module.LAYOUTS:
    known = sorted(module.LAYOUTS)
    raise UserError(f"--layout='{layout}': a {architecture} has the layouts {known}.{nearest(layout, known)}")
  tensors = module.export(leaves, layout)
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
  flags.DEFINE_string('workdir', None, "A run's folder, to export its backbone.", flag_values=values)
  flags.DEFINE_string('which', 'best', "Which checkpoint: 'best', 'last' or a step.", flag_values=values)
  flags.DEFINE_string('prefix', 'backbone', "The backbone's name in the run's parameters.", flag_values=values)
  flags.DEFINE_string('output', None, '.safetensors file to write.', flag_values=values)
  flags.DEFINE_string('layout', None, 'timm or transformers (ViT), torchvision or transformers.', flag_values=values)


def execute(arguments: command.Arguments) -> int:
  """Reads, prints the account, writes where asked."""
  options = arguments.flags_only().flags
  if bool(options.input) == bool(options.workdir):
    raise UserError('expected either --input (public weights) or --workdir (a trained run). --help shows all flags.')
  if bool(options.output) != bool(options.layout) or (options.workdir and not options.output):
    raise UserError('--output=FILE.safetensors and --layout=LAYOUT go together; --workdir needs both.')
  backend.setup()
  if options.input:
    tensors = files.read(options.input, sha256=options.sha256)
    architecture, fields, leaves, account = inspect(tensors, options.arch, _size(options.image_size))
    print(f'{architecture}: {", ".join(f"{name} {value}" for name, value in fields.items())}\n{account}')
  else:
    architecture, leaves, others = backbone(options.workdir, options.which, options.prefix)
    left = [*(path for path in leaves if adapters.is_adapter(path)), *others]
    groups = sorted({'/'.join(path.split('/')[:1]) if path in others else 'adapters' for path in left})
    print(
      f'{architecture} of {options.workdir}; {len(left)} leaves without a public name stay behind: {groups or "none"}'
    )
  if options.output:
    written = write(pathlib.Path(options.output), architecture, leaves, options.layout)
    count = sum(int(np.size(value)) for value in written.values())
    print(
      f'Written to {options.output}: {len(written)} tensors, {count:,} numbers, layout {options.layout}; read back'
      ' equal.'
    )
  return 0


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
