"""LoRA adapters as PEFT keeps them, a folder of adapter_config.json and adapter_model.safetensors, <-> our leaves.

  arguments = peft.infer(folder)                                  # of core.nn.adapters.lora
  network = llama.Llama(..., dense=adapters.lora(**arguments))
  loaded, account = peft.load(params, folder)
  peft.write(folder, params, alpha=16.0, base='TinyLlama/TinyLlama-1.1B-Chat-v1.0')

Both ways are exact. To merge updates into their kernels: `core.nn.adapters.merge_lora`.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from core.errors import UserError
from core.nn import transformer
from core.weights import files, table
from core.weights.llama import BLOCK, LAYERS, THEIRS
from core.weights.table import LINEAR, Account, Key, Layout

CONFIG, TENSORS = 'adapter_config.json', 'adapter_model.safetensors'
PLACES = {name: 'attention' if name in ('query', 'key', 'value', 'out') else 'mlp' for name in LAYERS}
"""Our names of a LLaMA's linear layers -> the part of the block that they are in."""

LAYOUT = Layout(
  name='peft',
  marker='base_model.model.model.layers',
  keys=tuple(
    Key(
      f'{BLOCK}/{PLACES[name]}/{name}/{ours}',
      f'base_model.model.{THEIRS}.{"self_attn" if PLACES[name] == "attention" else "mlp"}.{theirs}.{part}.weight',
      LINEAR,
    )
    for name, theirs in LAYERS.items()
    for ours, part in (('lora_a', 'lora_A'), ('lora_b', 'lora_B'))
  ),
)

PLAIN = {
  'peft_type': 'LORA', 'bias': 'none', 'use_dora': False, 'use_rslora': False, 'fan_in_fan_out': False,
  'rank_pattern': {}, 'alpha_pattern': {}, 'modules_to_save': None, 'layers_to_transform': None,
}  # fmt: skip
"""What adapter_config.json must say where it says anything: the LoRA that `core.nn.adapters.lora` is."""


def infer(folder: str | os.PathLike[str]) -> dict[str, Any]:
  """Arguments of `core.nn.adapters.lora`: rank, alpha, targets, dropout.

  Raises:
    UserError: no adapter there, or one of another kind.
  """
  path = pathlib.Path(folder).expanduser() / CONFIG
  if not path.is_file():
    raise UserError(f'{folder} is no folder of a PEFT adapter: it has no {CONFIG}.')
  try:
    config = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise UserError(f'{path} is not JSON: {error}.') from error
  for option, expected in PLAIN.items():
    found = config.get(option, expected)
    if found != expected and (found or expected):  # null, {} and false are the same
      raise UserError(f'{path} has {option} {found!r}; expected {expected!r}, plain LoRA.')
  ours, targets = {theirs: name for name, theirs in LAYERS.items()}, config.get('target_modules')
  if not isinstance(targets, list) or not set(targets) <= set(ours):
    raise UserError(f'{path} has target_modules {targets!r}; expected a list of some of {sorted(ours)}.')
  return {
    'rank': int(config['r']),
    'alpha': float(config['lora_alpha']),
    'targets': tuple(name for name, theirs in LAYERS.items() if theirs in targets),
    'dropout': float(config.get('lora_dropout') or 0),
  }


def load(params: Mapping[str, Any], folder: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], Account]:
  """Fills the low-rank leaves of a LLaMA.

  Args:
    params: {'/'-joined path: array or shape} of `core.nn.llama.Llama`, from a loop or from a scan; others than low-rank
      leaves pass by.
    folder: of the adapter.

  Returns:
    ({path: array} of the low-rank leaves, account).
  """
  path = pathlib.Path(folder).expanduser() / TENSORS
  own = {name: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) for name, leaf in _updates(params).items()}
  loaded, account = table.load(transformer.unstack_blocks(own), files.read(path), LAYOUT, source=str(path))
  if any(name not in own for name in loaded):
    loaded = {name: np.asarray(leaf) for name, leaf in transformer.stack_blocks(loaded).items()}
  return loaded, account


def write(
  folder: str | os.PathLike[str], params: Mapping[str, Any], *, alpha: float, dropout: float = 0.0, base: str = ''
) -> None:
  """Writes the low-rank leaves of a LLaMA as a folder that PEFT reads.

  Args:
    folder: made where it is not there.
    params: {'/'-joined path: array}; others than low-rank leaves pass by.
    alpha, dropout: as given to `core.nn.adapters.lora`; rank and targets are read from the leaves.
    base: folder or name on the Hub of the base model, for PEFT to find it.
  """
  updates = transformer.unstack_blocks(_updates(params))
  ranks = {leaf.shape[-1] for path, leaf in updates.items() if path.endswith('lora_a')}
  if len(ranks) != 1:
    raise UserError(f'low-rank leaves of the ranks {sorted(ranks)}: expected one rank, and at least one leaf.')
  found = {path.split('/')[-2] for path in updates}
  config = PLAIN | {
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': base,
    'r': ranks.pop(),
    'lora_alpha': alpha,
    'lora_dropout': dropout,
    'target_modules': [theirs for name, theirs in LAYERS.items() if name in found],
    'inference_mode': True,
  }
  folder = pathlib.Path(folder).expanduser()
  files.write(folder / TENSORS, table.export(updates, LAYOUT))
  (folder / CONFIG).write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')


def _updates(params: Mapping[str, Any]) -> dict[str, Any]:
  return {path: leaf for path, leaf in params.items() if path.split('/')[-1] in ('lora_a', 'lora_b')}
