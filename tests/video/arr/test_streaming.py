"""A stream's answers are the offline model's: over the last T clips, or over exactly the clips of the cache."""

import functools

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from core.errors import UserError
from core.train import mesh as mesh_lib
from video.arr.grid import Grid
from video.arr.model import Anticipator
from video.arr.streaming import Streamer

CLASSES, SIZE = 5, 6


def config(aggregation='decoder', causal=True):
  decoder = {'layers': 2, 'heads': 2, 'width': 8, 'dropout': 0.1, 'causal': causal, 'positions': True}
  return ConfigDict({
    'encoder': 'feature', 'variant': 'linear', 'width': 8, 'decoder': decoder | {'aggregation': aggregation},
    'classifier_dropout': 0.2, 'share_heads': False, 'dtype': 'float32', 'remat': False, 'scan': False, 'weights': '',
  })  # fmt: skip


@functools.cache
def made(clips, aggregation='decoder', causal=True):
  """A model whose weights are large enough that every clip and every position counts, and small enough that they do
  not drive the softmax into 0 and 1."""
  grid = Grid(clips=clips, frames=1)
  model = Anticipator(config(aggregation, causal), classes=CLASSES, grid=grid, feature_size=SIZE)
  variables = jax.tree.map(lambda leaf: 3 * leaf, model.init(jax.random.key(0)))
  return model, variables, grid


def features(count, seed=0):
  return np.random.default_rng(seed).normal(size=(count, SIZE)).astype(np.float32)


@functools.cache
def whole(clips, aggregation='decoder', causal=True):
  """The compiled offline model of `made`."""
  return jax.jit(made(clips, aggregation, causal)[0].apply)


def offline(made_of, clips):
  """(following [C], recognised [C + 1]) of the model that sees these clips at positions 1..len(clips).

  Behind them stands noise up to position T: one program serves all lengths, and what it sees is no more than they are.
  """
  _, variables, grid = made(*made_of)
  padded = np.concatenate([clips, features(grid.clips - len(clips), seed=9)])
  out = whole(*made_of)(variables, padded[None])
  return jax.nn.softmax(out['q'][0, len(clips) - 1, :-1]), jax.nn.softmax(out['r'][0, len(clips) - 1])


@pytest.mark.parametrize('aggregation', ['decoder', 'lstm', 'mean', 'last'])
def test_exact_is_the_offline_model_on_the_last_clips(aggregation):
  model, variables, grid = made(4, aggregation)
  clips, streamer = features(9), Streamer(model, variables, grid)
  for k in range(len(clips)):
    seen = clips[max(k - 3, 0) : k + 1]  # before the fourth clip: the prefix
    for found, expected in zip(streamer.push(clips[k]), offline((4, aggregation), seen)):
      np.testing.assert_allclose(found, expected, atol=2e-6)


def test_the_past_counts_and_is_forgotten_after_t_clips():
  model, variables, grid = made(4)
  streamer, clips = Streamer(model, variables, grid), features(8)
  answers = [streamer.push(clip).following for clip in clips]
  streamer.reset()
  other = [streamer.push(clip).following for clip in np.concatenate([features(4, seed=1), clips[4:]])]
  assert np.abs(answers[6] - other[6]).max() > 1e-3  # of its four clips the first differs
  np.testing.assert_allclose(answers[7], other[7], atol=1e-6)


@pytest.mark.parametrize('clips', [5, 4, 1])
def test_cached_is_the_offline_decoder_on_its_context(clips):
  model, variables, grid = made(clips)
  inputs, streamer, context = features(3 * clips + 2), Streamer(model, variables, grid, 'cached'), 0
  for k in range(len(inputs)):
    context = context + 1 if context < clips else clips // 2 + 1
    following = offline((clips,), inputs[k + 1 - context : k + 1])[0]
    np.testing.assert_allclose(streamer.push(inputs[k]).following, following, atol=2e-6)


@pytest.mark.parametrize('aggregation', ['lstm', 'mean'])
def test_the_rivals_have_a_cache_too(aggregation):
  model, variables, grid = made(4, aggregation)
  inputs, streamer = features(6), Streamer(model, variables, grid, 'cached')
  found = [streamer.push(clip).following for clip in inputs]
  np.testing.assert_allclose(found[3], offline((4, aggregation), inputs[:4])[0], atol=2e-6)
  np.testing.assert_allclose(found[5], offline((4, aggregation), inputs[2:])[0], atol=2e-6)


def test_a_film_begins_with_its_first_clip_repeated():
  model, variables, grid = made(4)
  clips, first = features(6), features(1, seed=1)[0]
  film = np.concatenate([np.tile(first, (3, 1)), clips])
  streamer = Streamer(model, variables, grid)
  streamer.begin(first)
  for k in range(len(clips)):
    following = offline((4,), film[k : k + 4])[0]
    np.testing.assert_allclose(streamer.push(clips[k]).following, following, atol=2e-6)
  cached = Streamer(model, variables, grid, 'cached')
  cached.begin(first)
  np.testing.assert_allclose(cached.push(clips[0]).following, offline((4,), film[1:4])[0], atol=2e-6)


def test_a_decoder_without_its_mask_needs_a_whole_window():
  model, variables, grid = made(3, causal=False)
  with pytest.raises(UserError, match='has no cache'):
    Streamer(model, variables, grid, 'cached')
  streamer, clips = Streamer(model, variables, grid), features(3)
  with pytest.raises(UserError, match='begin'):
    streamer.push(clips[0])
  streamer.begin(clips[0])
  following = offline((3, 'decoder', False), clips[[0, 0, 1]])[0]
  np.testing.assert_allclose(streamer.push(clips[1]).following, following, atol=2e-6)


def test_times_are_kept_per_step_and_compilation_apart():
  model, variables, grid = made(4)
  streamer = Streamer(model, variables, grid, 'cached')
  assert np.isnan(streamer.latency().encode) and streamer.latency().steps == 0
  for clip in features(8):
    streamer.push(clip)
  latency = streamer.latency()
  assert latency.steps == 8 == len(streamer.decode_ms)
  assert latency.decode == np.median(streamer.decode_ms) and latency.encode == np.median(streamer.encode_ms)
  assert latency.slowest >= latency.encode and latency.compilation > 0
  assert streamer._encode._cache_size() == streamer._decode._cache_size() == 1  # eight steps, one program each
  streamer.reset()
  assert streamer.latency().steps == 0 and streamer.latency().compilation == latency.compilation


def test_unknown_histories_and_clips_are_refused():
  model, variables, grid = made(4)
  with pytest.raises(UserError, match="Did you mean 'cached'"):
    Streamer(model, variables, grid, 'cache')
  with pytest.raises(UserError, match='features have the shape'):
    Streamer(model, variables, grid).push(np.zeros(SIZE + 1, np.float32))


@pytest.mark.parametrize('history', ['exact', 'cached'])
def test_weights_of_a_training_run_cost_no_second_compilation(history):
  model, variables, grid = made(4)
  placed = jax.device_put(variables, mesh_lib.replicated(mesh_lib.make()))
  streamer = Streamer(model, placed, grid, history)
  streamer.begin(features(1)[0])
  for clip in features(3):
    streamer.push(clip)
  assert streamer._decode._cache_size() == streamer._encode._cache_size() == 1
