"""A small `model.Reporter` with weights that are felt, and batches for it; several test files share them."""

import functools

import flax.traverse_util
import jax
import numpy as np
from ml_collections import ConfigDict

from multimodal.trrg import injection, model
from multimodal.trrg.observations import CLUES

SIZE, WORDS, SENTENCE, REPORT = 16, 3, 5, 6
TEXT_VOCABULARY, LANGUAGE_VOCABULARY = 20, 32
BOS, EOS = 1, 2


def section(**changes):
  """`config.model`; 'disease.loss' and the like reach into its parts."""
  config = ConfigDict({
    'vision': {
      'encoder': 'vit', 'variant': {'patch': 8, 'width': 12, 'depth': 1, 'heads': 2, 'mlp_dim': 16}, 'weights': '',
      'tuning': 'train',
    },
    'text': {'variant': {'width': 8, 'depth': 2, 'heads': 2, 'mlp_dim': 16}, 'weights': '', 'pooling': 'mean'},
    'contrast_width': 10, 'views': 'mean',
    'interaction': {
      'enabled': True, 'width': 8, 'heads': 2, 'layers': 1, 'mlp_ratio': 2, 'dropout': 0.0, 'words': WORDS,
    },
    'clues': {'limit': 4, 'inject': True},
    'language': {
      'variant': {'width': 16, 'depth': 1, 'heads': 4, 'kv_heads': 2, 'mlp_dim': 24, 'max_positions': 128},
      'weights': '', 'tuning': 'lora', 'lora': {'rank': 2, 'alpha': 4.0, 'dropout': 0.0, 'targets': ('query', 'value')},
      'dtype': 'float32', 'param_dtype': 'float32', 'remat': False, 'scan': False,
    },
    'disease': {'loss': 'full', 'weight': 0.5, 'consistency': 0.5},
    'dtype': 'float32',
  })  # fmt: skip
  with config.ignore_type():
    config.update_from_flattened_dict(changes)
  return config


def encode(text):
  """A tokenizer: the words of a text, of which a number of 3 or more is made."""
  return [3 + sum(map(ord, word)) % (LANGUAGE_VOCABULARY - 3) for word in text.split()]


TEMPLATE = injection.template(encode, 'Describe this film .', bos=BOS)


def reporter(**changes):
  """The networks of a section."""
  return model.Reporter(
    section(**changes), image_size=SIZE, text_vocabulary=TEXT_VOCABULARY, language_vocabulary=LANGUAGE_VOCABULARY,
    template=TEMPLATE,
  )  # fmt: skip


def felt(init, *args):
  """Variables of the shapes that `init(key, *args)` has: larger than the initial ones and no gate 0, so that every part
  is felt; clue words are all there. Compiling every initialisation would take most of the time."""
  rng = np.random.default_rng(0)

  def weights(path, leaf):
    if leaf.dtype == bool:
      return np.ones(leaf.shape, bool)
    if path[-1].key == 'temperature':
      return np.float32(2.0)
    return (0.4 * rng.normal(size=leaf.shape) + (path[-1].key == 'scale')).astype(np.float32)

  return jax.tree_util.tree_map_with_path(weights, jax.eval_shape(init, jax.random.key(0), *args))


@functools.cache
def built(**changes):
  """(networks, variables)."""
  ours = reporter(**changes)
  return ours, felt(ours.init)


LISTS = [[3, 5], [], [0, 12, 4, 7]]
"""Clues of three studies."""


def flat(tree):
  """{'a': {'b': x}} -> {'a/b': x}."""
  return flax.traverse_util.flatten_dict(tree, sep='/')


def changed(whole, **parts):
  """A dictionary with other values for some of its keys."""
  return {**whole, **parts}


def batch(clues, views=1, seed=0):
  """A batch of stage 2 whose studies have the listed clues: [[3, 5], []] are two studies."""
  rng = np.random.default_rng(seed)
  count = len(clues)
  ids = np.full((count, max(map(len, clues))), -1, np.int32)
  for row, each in zip(ids, clues):
    row[: len(each)] = each
  lengths = rng.integers(2, REPORT + 1, count)
  report = rng.integers(3, LANGUAGE_VOCABULARY, (count, REPORT)).astype(np.int32)
  report[np.arange(count), lengths - 1] = EOS
  return {
    'image': rng.integers(0, 256, (count, views, SIZE, SIZE), np.uint8),
    'view_mask': np.ones((count, views), bool),
    'margin': rng.normal(size=(count, CLUES + 1)).astype(np.float32),
    'clue_ids': ids,
    'report_ids': report,
    'report_mask': np.arange(REPORT) < lengths[:, None],
    'labels': rng.integers(0, 4, (count, CLUES + 1)).astype(np.int8),
  }
