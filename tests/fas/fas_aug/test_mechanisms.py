"""The worlds of C1-C3 are what the spec says, and their training does what it is for."""

import jax
import numpy as np
import pytest

from core.metrics import biometrics
from fas.fas_aug import mechanisms as m
from fas.fas_aug.losses import LIVE, SPOOF


def options(recipe, **changes):
  return {**recipe, **changes}


@pytest.fixture(scope='module')
def features():
  return m.risk_world(options(m.FEATURES, steps=200), seed=0)


@pytest.fixture(scope='module')
def shortcut():
  return m.shortcut_world(m.SHORTCUT, seed=0)


def share(chosen):
  return float(np.mean(chosen))


def test_labels_are_balanced_everywhere(features, shortcut):
  for world in (features, shortcut, m.risk_world(m.ARTEFACTS, seed=0)):
    for samples in (*world.sources, *world.held_out, world.target):
      assert share(samples.labels == LIVE) == 0.5


def test_the_artefact_is_as_frequent_as_the_spec_says(features):
  for domain, expected in zip(features.sources, (0.95, 0.9, 0.6, 0.5, 0.3, 0.2)):
    carries = domain.inputs[:, 1] > 0
    assert share(carries[domain.labels == SPOOF]) == pytest.approx(expected, abs=0.02)
    assert share(carries[domain.labels == LIVE]) == pytest.approx(0.05, abs=0.01)


def test_the_target_reverses_the_artefact_and_keeps_the_cue(features):
  carries, spoof = features.target.inputs[:, 1] > 0, features.target.labels == SPOOF
  assert share(carries[spoof]) == pytest.approx(0.05, abs=0.01)
  assert share(carries[~spoof]) == pytest.approx(0.60, abs=0.02)
  for domain in (*features.sources, features.target):
    cue = domain.inputs[:, 0]
    assert cue[domain.labels == SPOOF].mean() == pytest.approx(1, abs=0.06)
    assert cue[domain.labels == LIVE].mean() == pytest.approx(-1, abs=0.06)
    assert cue[domain.labels == LIVE].std() == pytest.approx(1, abs=0.06)


def test_held_out_samples_are_others_and_seeds_differ(features):
  def rows(samples):
    return set(map(tuple, samples.inputs.tolist()))

  assert rows(features.held_out[0]).isdisjoint(rows(features.sources[0]))
  other = m.risk_world(options(m.FEATURES, steps=200), seed=1)
  assert rows(other.target).isdisjoint(rows(features.target))
  again = m.risk_world(options(m.FEATURES, steps=200), seed=0)
  assert np.array_equal(again.sources[3].inputs, features.sources[3].inputs)


def texture(images):
  """f32 [N]: energy of the pixel-to-pixel differences of second order, which dots and stripes have and faces do not."""
  return np.abs(np.diff(images, 2, axis=2)).mean((1, 2, 3)) + np.abs(np.diff(images, 2, axis=1)).mean((1, 2, 3))


def test_dots_tell_spoof_from_live_in_every_domain_of_c3():
  world = m.risk_world(m.ARTEFACTS, seed=0)
  for domain in (*world.sources, world.target):
    # dots on 80% of spoof and 15% of live: whoever sees them and nothing else reaches .5 + (.8 - .15) / 2
    auc = biometrics.auc(-texture(domain.inputs), domain.labels)
    assert auc == pytest.approx(0.825, abs=0.06)


def test_the_artefact_of_c3_is_a_warm_cast():
  rng = np.random.default_rng(0)
  always = m.artefact_samples(rng, 400, 1.0, 0.0, (0.4, 0.6))
  warmth = (always.inputs[..., 0] - always.inputs[..., 2]).mean((1, 2))
  spoof = always.labels == SPOOF
  assert warmth[spoof].mean() - warmth[~spoof].mean() == pytest.approx(0.18, abs=0.03)


def test_the_shortcut_of_c2_holds_in_the_sources_and_is_reversed_in_the_target(monkeypatch):
  # Without textures and cameras, blur and cast alone are left to look at.
  monkeypatch.setattr(m, 'blend', lambda images, texture, alpha: images)
  monkeypatch.setattr(m, 'camera', lambda images, matrix: images)
  blurred = []
  monkeypatch.setattr(m, 'blur', lambda images, chosen: blurred.append(chosen) or images)
  world = m.shortcut_world(options(m.SHORTCUT, images=2000), seed=0)
  for samples, chosen in zip((*world.sources, *world.held_out), blurred):
    assert share(chosen[samples.labels == SPOOF]) == pytest.approx(0.9, abs=0.03)
    assert share(chosen[samples.labels == LIVE]) == pytest.approx(0.1, abs=0.03)
  target, chosen = world.target, blurred[-1]
  assert share(chosen[target.labels == LIVE]) == pytest.approx(0.7, abs=0.03)
  assert not chosen[target.labels == SPOOF].any()
  for samples in world.sources:
    means = samples.inputs.mean((1, 2))
    cast = means[samples.labels == SPOOF].mean(0) - means[samples.labels == LIVE].mean(0)
    assert 0.03 < np.abs(cast).max() < 0.2


def test_textures_of_c2_are_blended_in_on_spoof_alone(monkeypatch):
  alphas = []
  monkeypatch.setattr(m, 'blend', lambda images, texture, alpha: alphas.append(alpha) or images)
  world = m.shortcut_world(m.SHORTCUT, seed=0)
  for samples, alpha in zip((*world.sources, *world.held_out, world.target), alphas, strict=True):
    assert (alpha[samples.labels == LIVE] == 0).all()
    assert alpha[samples.labels == SPOOF].min() >= 0.04 and alpha[samples.labels == SPOOF].max() <= 0.10


def test_dots_keep_the_brightness_of_a_ramp_and_are_black_or_white():
  ramp = np.broadcast_to(np.linspace(0, 1, m.SIDE, dtype=np.float32)[:, None, None], (1, m.SIDE, m.SIDE, 3))
  lit = m.dots(ramp)
  assert set(np.unique(lit)) == {0.0, 1.0}
  cells = lit[0, ..., 0].reshape(12, 3, 12, 3).mean((1, 3))
  assert cells[0].max() == 0 and cells[-1].min() == 1
  assert (np.diff(cells[:, 0]) >= 0).all()


@pytest.mark.parametrize('period', [3.0, 4.0, 6.0])
def test_stripes_have_their_period_and_their_direction(period):
  rng = np.random.default_rng(0)
  lines = m.stripes(rng, np.full(2, period), np.array([False, True]))
  assert (lines[0] == lines[0][:1]).all() and (lines[1] == lines[1][:, :1]).all()
  spectrum = np.abs(np.fft.rfft(lines[0, 0, :, 1] - lines[0, 0, :, 1].mean()))
  assert m.SIDE / np.argmax(spectrum) == pytest.approx(period)
  assert lines[0].mean() == pytest.approx(1 / 3, abs=0.1)
  assert (lines[0].sum(-1) <= 1).all()  # a pixel belongs to one colour


def test_blur_takes_detail_away_where_asked():
  noise = np.random.default_rng(0).random((2, m.SIDE, m.SIDE, 3)).astype(np.float32)
  out = m.blur(noise, np.array([True, False]))
  assert out[0].std() < 0.7 * noise[0].std() and np.array_equal(out[1], noise[1])


# Training.


def small(**changes):
  return options(m.FEATURES, steps=300, batch=64, learning_rate=0.03, **changes)


def test_sare_lowers_the_variance_of_the_spoof_risk_and_the_weight_of_the_artefact(tmp_path):
  erm = m.train(0, tmp_path / 'erm', **small())
  sare = m.train(0, tmp_path / 'sare', **small(beta=10.0))
  assert sare['risk_variance'] < erm['risk_variance'] / 3
  assert sare['batch_sare'] < erm['batch_sare'] / 2
  assert sare['weight_ratio'] < 0.7 * erm['weight_ratio']
  assert sare['target_auc'] > erm['target_auc'] + 0.05
  shuffled = m.train(0, tmp_path / 'shuffled', **small(beta=10.0, shuffle_domains=True))
  assert shuffled['target_auc'] < erm['target_auc'] + 0.03


def tiny_shortcut(**changes):
  return options(m.SHORTCUT, images=24, steps=2, batch=4, augmented=3, **changes)


def task_of(**changes):
  from ml_collections import ConfigDict

  settings = tiny_shortcut(**changes)
  return m.Task(ConfigDict({**settings, 'seed': 0}), m.shortcut_world(settings, seed=0))


@pytest.fixture(scope='module')
def augmented():
  """Labels of 240 live faces in three augmented domains under each rule, and which of them were touched."""
  task = task_of()
  images = jax.numpy.asarray(m.pool(task.world.sources).inputs)[jax.numpy.arange(240) % 72]
  labels = np.full(240, LIVE)
  domains = np.arange(240) % 3
  outcome = {}
  for flips in ('policy', 'none', 'all'):
    other = task_of(flips=flips)
    after, flipped = jax.jit(other.apply)(jax.random.key(0), images, labels, task.policies(0), domains)
    outcome[flips] = np.asarray(flipped)
    outcome['touched'] = np.asarray((after != images).any((1, 2, 3)))
  return outcome


def test_the_three_rules_for_labels(augmented):
  assert (augmented['none'] == LIVE).all()
  assert np.array_equal(augmented['all'] == SPOOF, augmented['touched'])
  by_policy = augmented['policy'] == SPOOF
  assert 0.4 < share(by_policy) < share(augmented['touched'])
  assert not (by_policy & ~augmented['touched']).any()


def test_policies_change_with_the_epoch_and_differ_between_domains():
  task = task_of()
  first, again, other = (jax.device_get(task.policies(epoch)) for epoch in (0, 0, 1))
  assert np.array_equal(first.ops, again.ops) and not np.array_equal(first.ops, other.ops)
  assert not np.array_equal(first.ops[0], first.ops[1])


def test_augmented_rows_alone_are_augmented():
  task = task_of()
  batch = next(iter(task.batches(type('Context', (), {'seed': 0})())))
  assert batch['domain'].tolist() == [0, 1, 2, 3, 4, 5] * 4
  images, labels = jax.jit(task.augment)(batch['input'], batch['label'], jax.random.key(0), task.policies(0))
  real = batch['domain'] < 3
  assert np.array_equal(images[real], batch['input'][real]) and np.array_equal(labels[real], batch['label'][real])
  assert (np.asarray(images)[~real] != batch['input'][~real]).any((1, 2, 3)).mean() > 0.8


def test_fas_aug_trains_through_the_one_loop(tmp_path):
  metrics = m.train(0, tmp_path, **tiny_shortcut(beta=10.0))
  assert set(metrics) == {
    'target_auc', 'target_eer', 'target_hter_at_0.5', 'in_domain_auc', 'risk_variance', 'batch_sare',
  }  # fmt: skip
  assert all(np.isfinite(value) for value in metrics.values())
