"""What the network promises: no look ahead, clips by themselves, order seen by the decoder, a cache that agrees."""

import functools
import math

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict

from core.errors import UserError
from core.weights import vit as vit_weights
from video.arr import losses, model
from video.arr.grid import Grid

CLIPS, FEATURES, CLASSES = 5, 6, 4
GRID = Grid(clips=CLIPS, frames=2)


def section(**changes):
  """`config.model`, small; 'decoder.causal' and the like reach into its decoder."""
  config = ConfigDict({
    'encoder': 'feature', 'variant': 'linear', 'image_size': 16, 'width': 8, 'classifier_dropout': 0.0,
    'share_heads': False, 'weights': '', 'dtype': 'float32', 'remat': False, 'scan': False,
    'decoder': {
      'layers': 2, 'heads': 2, 'width': 8, 'dropout': 0.0, 'aggregation': 'decoder', 'causal': True, 'positions': True,
    },
  })  # fmt: skip
  config.update_from_flattened_dict(changes)
  return config


@functools.cache
def built(grid=GRID, order=False, **changes):
  """(model, variables, its jitted `apply`). Weights are larger than the initial ones, so that every part is felt."""
  ours = model.Anticipator(section(**changes), classes=CLASSES, grid=grid, feature_size=FEATURES, order=order)
  rng = np.random.default_rng(0)

  def weights(path, leaf):
    return (0.5 * rng.normal(size=leaf.shape) + (path[-1].key == 'scale')).astype(np.float32)

  shapes = jax.eval_shape(ours.init, jax.random.key(0))  # compiling every initialisation would take most of the time
  return ours, jax.tree_util.tree_map_with_path(weights, shapes), jax.jit(ours.apply)


def features(seed=0, batch=2, clips=CLIPS):
  return np.random.default_rng(seed).normal(size=(batch, clips, FEATURES)).astype(np.float32)


def replaced(x, places, other):
  """x with some clips of other."""
  x = x.copy()
  x[:, places] = other[:, places]
  return x


AGGREGATIONS = ('decoder', 'last', 'mean', 'lstm')
BOTH = ('p', 'q')


@pytest.mark.parametrize('aggregation', AGGREGATIONS)
def test_what_comes_later_changes_nothing_bit_for_bit(aggregation):
  _, variables, apply = built(**{'decoder.aggregation': aggregation})
  x, others = features(0), features(1)
  before = apply(variables, x)
  for k in range(CLIPS):
    after = apply(variables, replaced(x, slice(k + 1, None), others))
    for name in BOTH:
      assert np.array_equal(before[name][:, : k + 1], after[name][:, : k + 1])


def test_every_earlier_clip_counts():
  _, variables, apply = built()
  x, others = features(0), features(1)
  before = apply(variables, x)['q'][:, -1]
  for j in range(CLIPS):
    assert np.abs(apply(variables, replaced(x, j, others))['q'][:, -1] - before).max() > 1e-3


def test_the_gradient_of_a_step_with_respect_to_later_clips_is_exactly_zero():
  ours, variables, _ = built()
  z = features()[:1, :, :3].repeat(3, axis=2)[..., : ours.width]
  ahead = lambda z: ours.anticipate(variables, ours.reason(variables, z))[0]  # noqa: E731
  gradient = np.abs(jax.jit(jax.jacrev(ahead))(z)[:, :, 0]).sum((1, 3))  # [step, clip]
  assert np.array_equal(gradient > 0, np.tri(CLIPS, dtype=bool))


def test_without_the_mask_a_step_sees_what_comes_later():
  _, variables, apply = built(**{'decoder.causal': False})
  x, others = features(0), features(1)
  moved = apply(variables, x)['q'][:, 0] - apply(variables, replaced(x, -1, others))['q'][:, 0]
  assert np.abs(moved).max() > 1e-3


def test_clips_are_encoded_by_themselves():
  _, variables, apply = built()
  x, others = features(0), features(1)
  before = apply(variables, x)
  after = apply(variables, replaced(x, 2, others))
  for name in ('z', 'r'):
    changed = np.asarray(before[name] != after[name]).any((0, 2))
    assert changed.tolist() == [False, False, True, False, False]
  permuted = apply(variables, x[:, ::-1])
  assert np.array_equal(permuted['z'], before['z'][:, ::-1])


def test_order_matters_to_the_decoder_and_not_to_the_mean():
  x = features()
  swapped = x[:, [1, 0, 2, 3, 4]]
  shift = {}
  for aggregation in AGGREGATIONS:
    _, variables, apply = built(**{'decoder.aggregation': aggregation})
    shift[aggregation] = np.abs(apply(variables, x)['q'][:, -1] - apply(variables, swapped)['q'][:, -1]).max()
  assert shift['decoder'] > 1e-3 and shift['lstm'] > 1e-3
  assert shift['mean'] < 1e-6 and shift['last'] == 0


def test_without_positions_and_mask_the_decoder_is_a_function_of_the_set():
  changes = {'decoder.positions': False, 'decoder.causal': False}
  _, variables, apply = built(**changes)
  x = features()
  permutation = [3, 0, 4, 2, 1]
  np.testing.assert_allclose(
    apply(variables, x)['p'][:, permutation], apply(variables, x[:, permutation])['p'], atol=1e-5
  )


@pytest.mark.parametrize('aggregation', AGGREGATIONS)
def test_clip_by_clip_equals_all_at_once(aggregation):
  ours, variables, apply = built(**{'decoder.aggregation': aggregation})
  outputs = apply(variables, features())
  step, cache = jax.jit(ours.step), ours.empty_cache(2)
  for k in range(CLIPS):
    q_k, cache = step(variables, outputs['z'][:, k], cache)
    np.testing.assert_allclose(q_k, outputs['q'][:, k], atol=2e-5)


def test_attention_looks_back_only_and_sums_to_one():
  ours, variables, _ = built()
  z = built()[2](variables, features())['z']
  weights = np.asarray(jax.jit(ours.attention)(variables, z))
  assert weights.shape == (2, 2, 2, CLIPS, CLIPS)
  assert (weights[..., ~np.tri(CLIPS, dtype=bool)] == 0).all()
  np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
  baseline, variables, _ = built(**{'decoder.aggregation': 'mean'})
  with pytest.raises(UserError, match="'decoder', not a Mean"):
    baseline.attention(variables, z)


def test_rollout_begins_with_the_anticipation_and_feeds_on_its_own_expectation():
  ours, variables, apply = built()
  outputs = apply(variables, features())
  z = outputs['z']
  ahead = jax.jit(ours.rollout, static_argnums=2)(variables, z, 3)
  assert ahead.shape == (2, 3, CLASSES + 1)
  np.testing.assert_allclose(ahead[:, 0], outputs['q'][:, -1], atol=1e-5)
  slid = jnp.concatenate([z[:, 1:], outputs['p'][:, -1:]], axis=1)
  p = jax.jit(ours.reason)(variables, slid)
  np.testing.assert_allclose(ahead[:, 1], ours.anticipate(variables, p[:, -1]), atol=1e-5)
  short = jax.jit(ours.rollout, static_argnums=2)(variables, z[:, :2], 2)  # fewer than T: it grows, as a cache does
  step, cache = jax.jit(ours.step), ours.empty_cache(2)
  for z_k in (z[:, 0], z[:, 1], outputs['p'][:, 1]):
    q_k, cache = step(variables, z_k, cache)
  np.testing.assert_allclose(short[:, 1], q_k, atol=2e-5)


def test_one_clip_is_enough():
  _, variables, apply = built()
  outputs = apply(variables, features(clips=1))
  assert outputs['q'].shape == (2, 1, CLASSES + 1) and np.isfinite(outputs['q']).all()


def test_shared_heads_have_one_classifier():
  ours, variables, _ = built()
  assert set(variables['params']) == {'encoder', 'decoder', 'recognition', 'anticipation'}
  z = features()[..., :1].repeat(ours.width, axis=-1)
  assert np.abs(ours.anticipate(variables, z) - ours.recognise(variables, z)).max() > 1e-2
  ours, variables, _ = built(share_heads=True)
  assert set(variables['params']) == {'encoder', 'decoder', 'recognition'}
  assert np.array_equal(ours.anticipate(variables, z), ours.recognise(variables, z))


def test_initial_values_are_gpt2s_in_the_blocks_and_avts_elsewhere():
  config = section(width=192, **{'decoder.width': 768, 'decoder.heads': 4})
  ours = model.Anticipator(config, classes=50, grid=GRID, feature_size=FEATURES)
  variables = jax.jit(ours.init)(jax.random.key(0))
  flat = flax.traverse_util.flatten_dict(variables['params'], sep='/')
  for path, expected in {
    'decoder/input/kernel': 0.01 * 2,  # of 192 inputs: twice, the gain of 768
    'decoder/output/kernel': 0.01,
    'recognition/linear/kernel': 0.01 * 2,
    'anticipation/linear/kernel': 0.01 * 2,
    'decoder/gpt/block_0/attention/query/kernel': 0.02,
    'decoder/gpt/block_1/mlp/down/kernel': 0.02 / 2,
  }.items():
    assert float(jnp.std(flat[path])) == pytest.approx(expected, rel=0.05), path
  assert not any('bias' in path for path in flat if path.startswith(('decoder/input', 'decoder/output')))
  assert not flat['recognition/linear/bias'].any()
  assert np.array_equal(variables['statistics']['sigma'], np.ones(192))


def test_dropout_acts_in_training_alone_and_follows_its_key():
  changes = {'classifier_dropout': 0.5, 'decoder.dropout': 0.3}
  _, variables, _ = built(**changes)
  ours = built(**changes)[0]
  run = jax.jit(functools.partial(ours.apply, train=True))
  first, again, other = (run(variables, features(), rng=jax.random.key(seed)) for seed in (0, 0, 1))
  assert np.array_equal(first['q'], again['q'])
  assert np.abs(first['q'] - other['q']).max() > 1e-3 and np.abs(first['r'] - other['r']).max() > 1e-3
  assert np.array_equal(first['z'], other['z'])


# Encoders.


def pixels(**changes):
  return built(encoder='frame_vit', variant='tiny_patch8', **changes)


def clips(batch=1, frames=2):
  return np.random.default_rng(0).integers(0, 256, (batch, CLIPS, frames, 16, 16, 3), np.uint8)


def test_frame_vit_is_the_mean_over_frames_of_normalised_images():
  ours, variables, _ = pixels()
  x = clips()
  encode = jax.jit(ours.encode)
  z = encode(variables, x)
  assert z.shape == (1, CLIPS, 96)
  images = (x[0, 3] / 255.0 - 0.5) / 0.5
  vit = jax.jit(ours.encoder.module.apply)
  each = vit({'params': variables['params']['encoder']}, images.astype(np.float32))['feature']
  np.testing.assert_allclose(z[0, 3], each.mean(0), atol=1e-4)
  np.testing.assert_allclose(encode(variables, x[:, :, ::-1]), z, atol=1e-4)
  changed = x.copy()
  changed[:, 1] = 255 - changed[:, 1]
  assert np.asarray(encode(variables, changed) != z).any((0, 2)).tolist() == [False, True, False, False, False]


def test_tubelet_vit_sees_the_order_of_the_frames():
  grid = Grid(clips=CLIPS, frames=4)
  ours, variables, _ = built(grid, encoder='tubelet_vit', variant='tiny_patch8')
  x = clips(frames=4)
  encode = jax.jit(ours.encode)
  assert encode(variables, x).shape == (1, CLIPS, 96)
  assert np.abs(encode(variables, x[:, :, ::-1]) - encode(variables, x)).max() > 1e-4


def test_labels_are_looked_up():
  _, variables, apply = built(encoder='label')
  labels = np.array([[0, 4, 1, 1, 2]])
  z = apply(variables, labels)['z']
  assert np.array_equal(z[0], variables['params']['encoder']['embedding'][labels[0]])


def test_the_mlp_has_a_hidden_layer():
  flat = flax.traverse_util.flatten_dict(built(variant='mlp')[1]['params']['encoder'], sep='/')
  assert {path: leaf.shape for path, leaf in flat.items()} == {
    'up/kernel': (6, 8), 'up/bias': (8,), 'down/kernel': (8, 8), 'down/bias': (8,),
  }  # fmt: skip


def test_public_weights_fill_the_encoder_alone(tmp_path, capsys):
  ours, variables, _ = pixels()
  own = flax.traverse_util.flatten_dict(variables['params']['encoder'], sep='/')
  source = {name: np.asarray(3 * leaf) for name, leaf in vit_weights.export(own, 'timm').items()}
  source['head.weight'], source['head.bias'] = np.zeros((1000, 96), np.float32), np.zeros(1000, np.float32)
  safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in source.items()}, tmp_path / 'x.safetensors')
  loaded = ours.load(variables, str(tmp_path / 'x.safetensors'))
  after = flax.traverse_util.flatten_dict(loaded['params'], sep='/')
  for path, leaf in flax.traverse_util.flatten_dict(variables['params'], sep='/').items():
    factor = 3 if path.startswith('encoder/') else 1
    np.testing.assert_allclose(after[path], factor * leaf, rtol=1e-6)
  said = capsys.readouterr().out
  assert 'classifier' in said and 'decoder' in said
  with pytest.raises(UserError, match='does not take pixels'):
    built()[0].load(built()[1], str(tmp_path / 'x.safetensors'))
  assert ours.load(variables, '')['params'] is variables['params']


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'encoder': 'frame_vot'}, "'frame_vit'"),
    ({'variant': 'mpl'}, "Did you mean 'mlp'"),
    ({'decoder.aggregation': 'men'}, "Did you mean 'mean'"),
  ],
)
def test_typos_are_named(changes, words):
  with pytest.raises(UserError, match=words):
    model.Anticipator(section(**changes), classes=CLASSES, grid=GRID, feature_size=FEATURES)


def test_inputs_of_another_shape_are_named():
  ours, variables, _ = built()
  with pytest.raises(UserError, match=r'\(2, 5, 7\), expected \[batch, clips, 6\]'):
    ours.encode(variables, jnp.zeros((2, CLIPS, 7)))
  ours, variables, _ = pixels()
  with pytest.raises(UserError, match=r'expected \[batch, clips, 2, 16, 16, 3\]'):
    ours.encode(variables, jnp.zeros((1, CLIPS, 16, 16, 3)))
  with pytest.raises(UserError, match='data.feature_size'):
    model.Anticipator(section(), classes=CLASSES, grid=GRID)


def test_the_decoder_of_the_paper_has_300_million_parameters_in_its_blocks():
  config = section(
    encoder='frame_vit', variant='base_patch16', image_size=224,
    **{'decoder.layers': 6, 'decoder.heads': 4, 'decoder.width': 2048},
  )  # fmt: skip
  ours = model.Anticipator(config, classes=3806, grid=Grid())
  shapes = flax.traverse_util.flatten_dict(jax.eval_shape(ours.init, jax.random.key(0))['params'], sep='/')
  count = lambda start: sum(math.prod(leaf.shape) for path, leaf in shapes.items() if path.startswith(start))  # noqa: E731
  assert count('decoder/gpt/block') == pytest.approx(302e6, rel=0.002)
  assert count('encoder/') == pytest.approx(86e6, rel=0.01)
  assert count('decoder/') + count('encoder/') + count('recognition/') == pytest.approx(0.4e9, rel=0.03)


# The pre-training 'order'.


def test_the_order_scores_do_not_know_the_places():
  ours, variables, _ = built(order=True)
  assert variables['params']['order']['prototypes'].shape == (CLIPS, 8)
  z, order = features().repeat(2, axis=2)[..., :8], jax.jit(ours.order)
  scores = order(variables, z)
  assert scores.shape == (2, CLIPS, CLIPS) and np.abs(scores).max() <= 1 + 1e-6
  permutation = [3, 0, 4, 2, 1]
  np.testing.assert_allclose(order(variables, z[:, permutation]), scores[:, permutation], atol=1e-5)
  gradient = jax.jit(jax.grad(lambda v: losses.order(ours.order(v, z)).value))(variables)['params']
  assert np.abs(gradient['order']['prototypes']).max() > 0 and np.abs(gradient['decoder']['input']['kernel']).max() > 0
  assert not np.abs(gradient['decoder']['gpt']['position']).any()
  with pytest.raises(UserError, match="'order' needs"):
    model.Anticipator(
      section(**{'decoder.aggregation': 'lstm'}), classes=CLASSES, grid=GRID, feature_size=FEATURES, order=True
    )
