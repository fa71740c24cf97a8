"""What the evaluators promise, on a classifier that only looks at brightness.

Run as a program, this file is one process of `test_divided_variables_score_alike`.
"""

import concurrent.futures
import json
import os
import pathlib
import socket
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from core.data import face_frames
from core.metrics import biometrics
from core.train import mesh as mesh_lib
from fas.fas_aug import evaluation

SIDE = 8


class Brightness:
  """P(live) = sigmoid(8 (mean brightness - 0.5)), shifted by a variable."""

  def apply(self, variables, images, *, train=False, rng=None):
    bright = 8.0 * (jnp.mean(images, (1, 2, 3)) - 0.5) + variables['params']['shift'].mean()
    return {'logits': jnp.stack([jnp.zeros_like(bright), bright], -1), 'feature': bright[:, None]}, {}


def variables(shift=0.0):
  return {'params': {'shift': np.full((64, 4), shift, np.float32)}}


def expected_scores(records, shift=0.0):
  bright = np.array([records[i]['image'].mean() / 255.0 for i in range(len(records))])
  return 1.0 / (1.0 + np.exp(-(8.0 * (bright - 0.5) + shift)))


class FakeRecords:
  """Frames of videos in memory, in the form of `core.data.records.Records`; counts how often one is read."""

  def __init__(self, seed, domains=('a', 'b'), videos=6, frames=3, attacks=('live', 'print', 'replay'), spread=40):
    rng = np.random.default_rng(seed)
    rows = []
    for domain in domains:
      for v in range(videos):
        # Domains use the same video names for different attacks: ids must be made unique.
        attack = attacks[(v + len(rows)) % len(attacks)]
        for frame in range(frames):
          level = rng.normal(140 if attack == 'live' else 110, spread)
          rows.append((domain, f'v{v}', attack, frame, int(np.clip(level, 0, 255))))
    domain, video, attack, frame, grey = (np.array(column) for column in zip(*rows))
    self.grey, self.reads = grey, 0
    self.table = {
      'domain': domain,
      'video': video,
      'subject': video,
      'frame': frame,
      'attack': np.array([face_frames.ATTACKS.index(a) for a in attack]),
      'label': (attack == 'live').astype(np.int64),
    }

  def __len__(self):
    return len(self.grey)

  def __getitem__(self, index):
    self.reads += 1
    return {'image': np.full((SIDE, SIDE, 3), self.grey[index], np.uint8)}


class FakeFrames:
  def __init__(self, **splits):
    self.splits = splits

  def split(self, name):
    return self.splits[name]


def judge(frames, batch_size=8, validation_fraction=0.2, classifier=None):
  config = {'eval': {'batch_size': batch_size}, 'data': {'validation_fraction': validation_fraction}}
  return evaluation.Judge(classifier or Brightness(), frames, ml_collections.ConfigDict(config))


@pytest.fixture
def frames():
  return FakeFrames(val=FakeRecords(0, ('a', 'b'), videos=9), test=FakeRecords(1, ('c', 'd'), videos=7))


def ids(records):
  return [f'{d}/{v}' for d, v in zip(records.table['domain'], records.table['video'])]


def test_rates_are_those_of_core_metrics_at_both_levels(frames):
  own = judge(frames)
  result = own.biometrics(variables(), 'test')
  val, test = frames.split('val'), frames.split('test')
  val_videos = biometrics.video_level(expected_scores(val), val.table['label'], ids(val))
  test_videos = biometrics.video_level(expected_scores(test), test.table['label'], ids(test))
  attack = np.array(face_frames.ATTACKS)[test.table['attack']]
  expected = {
    'frame': biometrics.summary(
      expected_scores(test),
      test.table['label'],
      attack_types=attack,
      dev_threshold=biometrics.eer(expected_scores(val), val.table['label'])[1],
    ),
    'video': biometrics.summary(
      test_videos.scores,
      test_videos.labels,
      attack_types=attack[test_videos.first],
      dev_threshold=biometrics.eer(val_videos.scores, val_videos.labels)[1],
    ),
  }
  assert {'auc', 'eer', 'hter_at_eer', 'min_hter', 'hter_at_0.5', 'hter_at_dev', 'acer'} <= set(expected['frame'])
  for level, rates in expected.items():
    for name, value in rates.items():
      assert result.scalars[f'{level}/{name}'] == pytest.approx(value, abs=1e-6), (level, name)
  assert {'video/apcer/print', 'video/apcer/replay', 'frame/apcer/print'} <= set(result.scalars)
  assert result.scalars['frame/live'] + result.scalars['frame/spoof'] == len(test)
  assert result.scalars['video/live'] + result.scalars['video/spoof'] == 14  # two domains share seven names


@pytest.mark.parametrize('batch_size', [1, 5, 64])
def test_padding_does_not_leak(frames, batch_size):
  result = judge(frames, batch_size).biometrics(variables(), 'test')
  np.testing.assert_allclose(result.arrays['score'], expected_scores(frames.split('test')), atol=1e-6)
  np.testing.assert_array_equal(result.arrays['position'], np.arange(len(frames.split('test'))))
  assert result.arrays['attack'][result.arrays['label'] == 1].tolist() == ['live'] * int(result.scalars['frame/live'])


def test_validation_alone_chooses_the_threshold(frames):
  before = judge(frames).biometrics(variables(), 'test')  # test first: the number is there without asking for val
  frames.split('test').table['label'] = 1 - frames.split('test').table['label']
  frames.split('test').grey = 255 - frames.split('test').grey
  after = judge(frames).biometrics(variables(), 'test')
  assert before.metadata == after.metadata
  assert before.scalars['video/eer_threshold'] != after.scalars['video/eer_threshold']
  assert np.isfinite(before.scalars['video/hter_at_dev'])
  on_val = judge(frames).biometrics(variables(), 'val')
  assert on_val.metadata == before.metadata
  assert on_val.metadata['threshold'] == on_val.scalars['video/eer_threshold'] == on_val.scalars['video/threshold']
  assert on_val.metadata['frame_threshold'] == on_val.scalars['frame/eer_threshold']
  assert 'held-out subjects of the sources (a, b)' in on_val.metadata['threshold_from']
  frames.split('val').grey = np.clip(frames.split('val').grey + 20, 0, 255)
  assert judge(frames).biometrics(variables(), 'test').metadata['threshold'] > before.metadata['threshold']


def test_scores_are_kept_for_the_same_variables_only(frames, capsys):
  own, first = judge(frames), variables()
  own.biometrics(first, 'val')
  own.biometrics(dict(first), 'val')  # the same leaves in another dictionary
  own.biometrics(first, 'test')
  padded = -(-len(frames.split('val')) // 8) * 8
  assert frames.split('val').reads == padded
  moved = own.biometrics(variables(shift=1.0), 'val')
  assert frames.split('val').reads == 2 * padded
  np.testing.assert_allclose(moved.arrays['score'], expected_scores(frames.split('val'), 1.0), atol=1e-6)
  del first
  assert capsys.readouterr().out.count('Decision threshold: EER of ') == 1  # said once, not at every evaluation


@pytest.mark.parametrize('attacks', [('live',), ('print', 'replay')])
def test_a_split_of_one_class_gives_nan_not_a_crash(frames, attacks):
  frames.splits['test'] = FakeRecords(2, ('c',), attacks=attacks)
  result = judge(frames).biometrics(variables(), 'test')
  assert np.isnan(result.scalars['video/auc']) and np.isnan(result.scalars['frame/hter_at_dev'])
  assert np.isnan(result.scalars['video/bpcer']) == (attacks != ('live',))
  matrix = judge(frames).artefacts(variables(), 'test').arrays
  assert np.isnan(matrix['bpcer']).all() == (attacks != ('live',))


@pytest.mark.parametrize('why', ['validation of one class', 'no validation'])
def test_without_a_source_threshold_it_is_one_half_and_says_so(frames, why):
  frames.splits['val'] = FakeRecords(3, attacks=('live',))
  result = judge(frames, validation_fraction=0.0 if why == 'no validation' else 0.2).biometrics(variables(), 'test')
  assert result.metadata['threshold'] == result.metadata['frame_threshold'] == 0.5
  assert not result.metadata['threshold_held_out'] and 'fixed at 0.5' in result.metadata['threshold_from']
  assert np.isnan(result.scalars['video/hter_at_dev'])
  assert result.scalars['frame/bpcer'] == biometrics.far_frr(result.arrays['score'], result.arrays['label'], 0.5)[1]


@pytest.fixture
def toy_operators(monkeypatch):
  """Darker and brighter by the level; one keeps the label, two make a spoof."""
  toys = types.SimpleNamespace(NAMES=('darker', 'brighter', 'mask_on'), FLIPS=(False, True, True), LEVELS=10)
  toys.darker = lambda key, image, level, assets: image * (1 - level)
  toys.brighter = lambda key, image, level, assets: image + level * (1 - image)
  toys.mask_on = lambda key, image, level, assets: (
    image * (1 - 0.5 * level) + 0.001 * jax.random.uniform(key, image.shape)
  )
  monkeypatch.setattr(evaluation, 'operators', toys)
  return toys


def test_artefacts_count_decisions_that_flip(frames, toy_operators):
  own = judge(frames)
  result = own.artefacts(variables(), 'test')
  scores = own.biometrics(variables(), 'test')
  threshold, test = scores.metadata['frame_threshold'], frames.split('test')
  live = test.table['label'] == 1

  def accepted(altered):
    return np.mean(1.0 / (1.0 + np.exp(-8.0 * (altered - 0.5))) >= threshold)

  x = test.grey / 255.0
  for level in evaluation.ARTEFACT_LEVELS:
    strength = level / 9
    assert result.scalars[f'darker/{level}/bpcer'] == 1 - accepted(x[live] * (1 - strength))
    assert result.scalars[f'darker/{level}/apcer'] == accepted(x[~live] * (1 - strength))
    assert result.scalars[f'brighter/{level}/apcer'] == accepted(x[live] + strength * (1 - x[live]))
    assert f'brighter/{level}/bpcer' not in result.scalars  # a spoof cannot be rejected wrongly
  assert result.scalars['none/bpcer'] == pytest.approx(scores.scalars['frame/bpcer'])
  matrix = result.arrays
  assert matrix['apcer'].shape == matrix['bpcer'].shape == (3, len(evaluation.ARTEFACT_LEVELS))
  assert matrix['operator'].tolist() == list(toy_operators.NAMES)
  assert np.isnan(matrix['bpcer']).tolist() == [[False] * 3, [True] * 3, [True] * 3]
  assert (np.diff(matrix['bpcer'][0]) >= 0).all() and (np.diff(matrix['apcer'][1]) >= 0).all()
  assert matrix['frames'].tolist() == [live.sum(), (~live).sum()]


def test_artefact_frames_are_capped_and_spread(frames, toy_operators, monkeypatch):
  monkeypatch.setattr(evaluation, 'ARTEFACT_FRAMES', 4)
  assert judge(frames).artefacts(variables(), 'test').arrays['frames'].tolist() == [4, 4]
  assert evaluation._spread(np.arange(10, 20), 4).tolist() == [10, 13, 16, 19]
  assert evaluation._spread(np.arange(3), 4).tolist() == [0, 1, 2]
  assert evaluation._spread(np.zeros(0, np.int64), 4).tolist() == []


def test_real_operators_on_real_shapes():
  """All eight in one compiled program, at a batch that the frames do not fill."""
  rng = np.random.default_rng(0)
  records = FakeRecords(0, ('a',), videos=3, frames=1)
  pictures = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
  records.__class__ = type('Pictures', (FakeRecords,), {'__getitem__': lambda self, i: {'image': pictures[i]}})
  result = judge(FakeFrames(val=records, test=records), batch_size=4).artefacts(variables(), 'test')
  assert len(result.arrays['operator']) == 8 and result.arrays['flips'].sum() == 5
  assert np.isfinite(result.arrays['apcer']).all() and np.isfinite(result.arrays['bpcer']).sum() == 9


def run_process(folder, port, process):
  """One of two processes with two devices each; variables divided over 'fsdp', rows over both axes."""
  command = [sys.executable, __file__, str(folder), str(port), str(process)]
  root = pathlib.Path(__file__).resolve().parents[3]
  environment = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=2', 'PYTHONPATH': str(root)}
  return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def test_divided_variables_score_alike(tmp_path, frames):
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    runs = list(pool.map(lambda process: run_process(tmp_path, port, process), range(2)))
  assert [run.returncode for run in runs] == [0, 0], runs
  for process in range(2):
    result = json.loads((tmp_path / f'{process}.json').read_text())
    np.testing.assert_allclose(result['score'], expected_scores(frames.split('test'), 0.25), atol=1e-6)
    assert result['shard'] == [32, 4]


def main(folder, port, process):
  """See `run_process`."""
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(f'localhost:{port}', 2, int(process))
  mesh = mesh_lib.make(fsdp=2)
  placed = {'params': mesh_lib.param_sharding(variables()['params'], mesh, min_size=1)}
  divided = jax.jit(lambda: jax.tree.map(jnp.asarray, variables(0.25)), out_shardings=placed)()
  frames = FakeFrames(val=FakeRecords(0, ('a', 'b'), videos=9), test=FakeRecords(1, ('c', 'd'), videos=7))
  result = judge(frames, batch_size=5).biometrics(divided, 'test')
  leaf = divided['params']['shift']
  record = {'score': result.arrays['score'].tolist(), 'shard': leaf.sharding.shard_shape(leaf.shape)}
  (pathlib.Path(folder) / f'{process}.json').write_text(json.dumps(record))


if __name__ == '__main__':
  main(*sys.argv[1:])
