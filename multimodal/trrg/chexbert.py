"""CheXbert (Smit et al. 2020): what a report says of each of the 14 observations, by a BERT (spec 5.3).

The public checkpoint, chexbert.pth, is free for academic use only, under its own licence; it is read without torch. Its
tokenizer is that of bert-base-uncased.

  labeller = Labeller('chexbert.pth', 'google-bert/bert-base-uncased')
  labeller(['No effusion. The heart is enlarged.'])  # int8 [1, 14], as `multimodal.trrg.observations` codes them
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from core.data.text import Tokenizer
from core.errors import UserError
from core.nn.bert import Bert
from core.nn.layers import dense
from core.train import forward
from core.weights import bert, files, table
from core.weights.table import Key, Layout, layer
from multimodal.trrg.observations import NO_FINDING, OBSERVATIONS

CLASSES = tuple(2 if k == NO_FINDING else 4 for k in range(len(OBSERVATIONS)))
"""Per observation: blank, positive, negative, uncertain; 'No Finding' is blank or positive."""
LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Texts are padded to one of these numbers of word pieces: few shapes to compile for, little padding to compute."""
TOKENS = 8192
"""Word pieces per forward pass."""

LAYOUT = Layout(
  name='chexbert',
  marker='linear_heads.0.weight',
  keys=(
    *(Key(f'bert/{key.ours}', f'bert.{key.theirs}', key.transform) for key in bert.TRANSFORMERS.keys),
    *layer('head_{i}', 'linear_heads.{i}'),
  ),
  ignored=(
    *((rf'bert\.{name}', why) for name, why in bert.IGNORED),
    (r'(?!bert\.|linear_heads\.).*', "not of the network: the training's own state"),
  ),
)


class Network(nn.Module):
  """The state of [CLS] and one linear layer per observation.

  Attributes:
    bert: the encoder.
  """

  bert: Bert

  @nn.compact
  def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """ids i32 [B, L], mask bool [B, L] -> logits f32 [B, 14, 4]; -inf where an observation has no such class."""
    state = self.bert(ids, mask)['tokens'][:, 0]
    heads = [dense(count, dtype=jnp.float32, name=f'head_{k}')(state) for k, count in enumerate(CLASSES)]
    width = max(CLASSES)
    filled = [jnp.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=-jnp.inf) for x in heads]
    return jnp.stack(filled, axis=1)


def load(path: str | os.PathLike[str]) -> tuple[Network, dict[str, Any]]:
  """(network, variables) of a checkpoint: chexbert.pth, or safetensors with the same names.

  What stands before the names is taken off: 'model_state_dict.', and the 'module.' of a data-parallel training.
  """
  tensors = files.read(path, allow_pickle=True)
  _, prefix = table.detect(list(tensors), [LAYOUT], tensors.source)
  network = Network(Bert(**bert.infer(tensors)))
  sample = jax.ShapeDtypeStruct((1, 2), np.int32), jax.ShapeDtypeStruct((1, 2), np.bool_)
  shapes = jax.eval_shape(network.init, jax.random.key(0), *sample)['params']
  flat = flax.traverse_util.flatten_dict(shapes, sep='/')
  loaded, _ = table.load(flat, tensors, LAYOUT, source=tensors.source, prefix=prefix)
  return network, {'params': flax.traverse_util.unflatten_dict(loaded, sep='/')}


class Labeller:
  """texts -> int8 [N, 14].

  Every distinct text is labelled once, together with others of about its length. A text of more word pieces than the
  network has positions (512) loses its end and keeps [SEP], as in CheXbert's own code.
  """

  def __init__(self, path: str | os.PathLike[str], tokenizer: str | os.PathLike[str] = ''):
    """Opens the checkpoint `path` and the tokenizer of bert-base-uncased; '': that in the checkpoint's folder."""
    self.network, variables = load(path)
    path = pathlib.Path(path).expanduser()
    self.tokenizer = Tokenizer.load(tokenizer or (path if path.is_dir() else path.parent))
    self.tokenizer.check(self.network.bert.vocabulary, 'CheXbert')
    if self.tokenizer.cls is None or self.tokenizer.sep is None:
      raise UserError(f'tokenizer {self.tokenizer.source} has no [CLS] or no [SEP]: CheXbert needs a BERT tokenizer.')
    self._variables = jax.device_put(variables)
    self._classes = jax.jit(lambda *arguments: self.network.apply(*arguments).argmax(-1).astype(jnp.int8))

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Labels of texts, in `multimodal.trrg.observations`' coding."""
    cleaned = [' '.join(text.split()) for text in texts]
    encoded = {text: self.encode(text) for text in dict.fromkeys(cleaned)}
    positions = self.network.bert.max_positions
    lengths = sorted({min(length, positions) for length in (*LENGTHS, positions)})
    groups: dict[int, list[str]] = {}
    for text, ids in encoded.items():
      groups.setdefault(next(length for length in lengths if length >= len(ids)), []).append(text)
    labels: dict[str, np.ndarray] = {}
    for length, group in sorted(groups.items()):
      labels |= zip(group, self._label([encoded[text] for text in group], length))
    return np.stack([labels[text] for text in cleaned]) if cleaned else np.zeros((0, len(OBSERVATIONS)), np.int8)

  def encode(self, text: str) -> list[int]:
    """[CLS], word pieces, [SEP]: at most as many as the network has positions."""
    inside = self.tokenizer.encode(text)[: self.network.bert.max_positions - 2]
    return [self.tokenizer.cls, *inside, self.tokenizer.sep]

  def _label(self, rows: list[list[int]], length: int) -> np.ndarray:
    """int8 [N, 14] of rows of at most `length` ids."""
    mask = np.arange(length) < np.array([len(row) for row in rows])[:, None]
    ids = np.zeros(mask.shape, np.int32)
    ids[mask] = [i for row in rows for i in row]
    return forward.in_batches(self._classes, self._variables, (ids, mask), max(1, TOKENS // length))
