"""Error rates against scikit-learn and against counting, on tied, inverted, constant and one-class scores."""

import numpy as np
import pytest
from sklearn import metrics as reference

from core.errors import UserError
from core.metrics import biometrics

RNG = np.random.default_rng(3)
LABELS = RNG.integers(0, 2, 200)
SEPARABLE = np.where(LABELS == 1, 0.8, 0.3) + RNG.uniform(-0.1, 0.1, 200)
NOISY = np.where(LABELS == 1, 0.6, 0.4) + RNG.normal(0, 0.2, 200)
CASES = {
  'noisy': NOISY,
  'tied': np.round(NOISY, 1),
  'inverted': -NOISY,
  'separable': SEPARABLE,
  'constant': np.full(200, 0.37),
  'binary': (NOISY > 0.5).astype(float),
  'float32': NOISY.astype(np.float32),
}
each_case = pytest.mark.parametrize('scores', CASES.values(), ids=CASES)


def rates_by_counting(scores, labels, threshold):
  """FAR and FRR, from their definitions."""
  far = sum(s >= threshold for s, y in zip(scores, labels) if y == 0) / np.sum(labels == 0)
  frr = sum(s < threshold for s, y in zip(scores, labels) if y == 1) / np.sum(labels == 1)
  return far, frr


@each_case
def test_roc_and_auc_equal_scikit_learn(scores):
  curve = biometrics.roc(scores, LABELS)
  far, tpr, thresholds = reference.roc_curve(LABELS, scores, drop_intermediate=False)
  np.testing.assert_allclose(curve.far, far, atol=1e-12)
  np.testing.assert_allclose(1 - curve.frr, tpr, atol=1e-12)
  np.testing.assert_array_equal(curve.thresholds[1:], thresholds[1:])
  assert np.isfinite(curve.thresholds[0]) and curve.thresholds[0] > curve.thresholds[1]
  assert biometrics.auc(scores, LABELS) == pytest.approx(reference.roc_auc_score(LABELS, scores), abs=1e-12)


@each_case
def test_det_points_equal_scikit_learn(scores):
  curve = biometrics.roc(scores, LABELS)
  far, frr, _ = reference.det_curve(LABELS, scores)
  points = set(zip(curve.far.round(9), curve.frr.round(9)))
  assert set(zip(far.round(9), frr.round(9))) <= points  # scikit-learn drops points off the ends


@each_case
def test_eer_is_the_error_at_its_threshold_and_no_gap_is_smaller(scores):
  rate, threshold = biometrics.eer(scores, LABELS)
  far, frr = rates_by_counting(scores, LABELS, threshold)
  assert (far + frr) / 2 == pytest.approx(rate)
  fars, tprs, _ = reference.roc_curve(LABELS, scores, drop_intermediate=False)
  assert abs(far - frr) == pytest.approx(np.abs(fars - (1 - tprs)).min(), abs=1e-9)


@each_case
def test_min_hter_is_the_least_of_all(scores):
  lowest, threshold = biometrics.min_hter(scores, LABELS)
  tried = [np.mean(rates_by_counting(scores, LABELS, t)) for t in [*np.unique(scores), np.max(scores) + 1]]
  assert lowest == pytest.approx(min(tried))
  assert np.mean(rates_by_counting(scores, LABELS, threshold)) == pytest.approx(lowest)
  assert biometrics.hter(scores, LABELS, threshold) == pytest.approx(lowest)


def test_the_releases_grid_of_thresholds():
  fine, threshold = biometrics.min_hter(NOISY, LABELS, grid=100_001)
  assert fine == pytest.approx(biometrics.min_hter(NOISY, LABELS)[0])
  assert fine == pytest.approx(np.mean(rates_by_counting(NOISY, LABELS, threshold)))
  coarse, threshold = biometrics.min_hter(NOISY, LABELS, grid=4)
  grid = np.linspace(NOISY.min(), NOISY.max(), 4)
  assert coarse == pytest.approx(min(np.mean(rates_by_counting(NOISY, LABELS, t)) for t in grid))
  assert coarse > fine
  assert threshold in grid


def test_known_values():
  assert biometrics.auc(SEPARABLE, LABELS) == 1
  rate, threshold = biometrics.eer(SEPARABLE, LABELS)
  assert rate == 0
  gap = SEPARABLE[LABELS == 0].max(), SEPARABLE[LABELS == 1].min()
  assert threshold == pytest.approx(np.mean(gap))
  assert biometrics.eer(-SEPARABLE, LABELS)[0] == 1
  assert biometrics.min_hter(-SEPARABLE, LABELS)[0] == 0.5
  rate, threshold = biometrics.eer(np.full(4, 0.37), [0, 0, 1, 1])
  assert rate == 0.5 and threshold > 0.37
  assert biometrics.auc([0.5, 0.5], [0, 1]) == 0.5


def test_a_threshold_between_neighbouring_floats_still_decides_alike():
  low = 0.5
  high = np.nextafter(low, 1)
  rate, threshold = biometrics.eer([low, high], [0, 1])
  assert rate == 0
  assert low < threshold <= high


@pytest.mark.parametrize('label', [0, 1])
def test_one_class_gives_nan_for_what_is_undefined(label):
  scores, labels = [0.2, 0.7, 0.9], [label] * 3
  assert np.isnan(biometrics.auc(scores, labels))
  assert np.isnan(biometrics.eer(scores, labels)).all()
  assert np.isnan(biometrics.min_hter(scores, labels)).all()
  assert np.isnan(biometrics.hter(scores, labels, 0.5))
  assert np.isnan(biometrics.frr_at_far(scores, labels, 0.01)).all()
  far, frr = biometrics.far_frr(scores, labels, 0.5)
  assert (frr, np.isnan(far)) == (1 / 3, True) if label else (far, np.isnan(frr)) == (2 / 3, True)
  iso = biometrics.apcer_bpcer_acer(scores, labels, ['x'] * 3, 0.5)
  assert np.isnan(iso['acer']) and np.isnan(iso['apcer']) == bool(label)
  summary = biometrics.summary(scores, labels)
  assert summary['live'] == 3 * label and np.isnan(summary['auc'])
  # There is no equal-error threshold to take these at; an undefined one must not look like one that rejects everything.
  assert np.isnan([summary['apcer'], summary['bpcer'], summary['acer']]).all()


def test_the_four_readings_of_hter():
  readings = biometrics.hter_readings(NOISY, LABELS, dev_threshold=0.45)
  assert readings['hter_at_eer'] == biometrics.eer(NOISY, LABELS)[0]
  assert readings['min_hter'] <= readings['hter_at_eer']
  assert readings['hter_at_0.5'] == pytest.approx(np.mean(rates_by_counting(NOISY, LABELS, 0.5)))
  assert readings['hter_at_dev'] == pytest.approx(np.mean(rates_by_counting(NOISY, LABELS, 0.45)))
  assert np.isnan(biometrics.hter_readings(NOISY, LABELS)['hter_at_dev'])


def test_apcer_is_that_of_the_worst_attack():
  scores = [0.9, 0.4, 0.6, 0.6, 0.1, 0.1, 0.9]
  labels = [1, 1, 0, 0, 0, 0, 0]
  kinds = ['live', 'live', 'print', 'print', 'print', 'replay', 'replay']
  iso = biometrics.apcer_bpcer_acer(scores, labels, kinds, 0.5)
  assert iso['apcer_by_type'] == {'print': pytest.approx(2 / 3), 'replay': pytest.approx(1 / 2)}
  assert iso['apcer'] == pytest.approx(2 / 3)
  assert iso['bpcer'] == pytest.approx(1 / 2)
  assert iso['acer'] == pytest.approx(7 / 12)
  flat = biometrics.summary(scores, labels, attack_types=kinds, dev_threshold=0.5)
  assert flat['apcer/print'] == pytest.approx(2 / 3)
  assert flat['acer'] == pytest.approx(7 / 12)
  assert all(isinstance(value, float) for value in flat.values())


@each_case
@pytest.mark.parametrize('far', [0.0, 0.01, 0.2, 1.0])
def test_frr_at_far(scores, far):
  rate, threshold = biometrics.frr_at_far(scores, LABELS, far)
  fars, tprs, _ = reference.roc_curve(LABELS, scores, drop_intermediate=False)
  assert rate == pytest.approx((1 - tprs)[fars <= far].min())
  assert rates_by_counting(scores, LABELS, threshold)[0] <= far


def test_videos_are_means_of_frames():
  videos = biometrics.video_level([0.2, 0.9, 0.4, 0.7], [0, 1, 0, 1], ['b', 'a', 'b', 'a'])
  assert videos.ids.tolist() == ['a', 'b']
  np.testing.assert_allclose(videos.scores, [0.8, 0.3])
  assert videos.labels.tolist() == [1, 0]
  assert videos.frames.tolist() == [2, 2]
  assert np.array(['print', 'live', 'print', 'live'])[videos.first].tolist() == ['live', 'print']


@pytest.mark.parametrize(
  'call, words',
  [
    (lambda: biometrics.auc([0.1, 0.2], [0, 2]), 'Label 2'),
    (lambda: biometrics.auc([0.1, np.nan], [0, 1]), 'not finite'),
    (lambda: biometrics.auc([0.1, 0.2], [0]), 'one length'),
    (lambda: biometrics.auc([], []), 'one length'),
    (lambda: biometrics.video_level([0.1, 0.2], [0, 1], ['v', 'v']), 'video v'),
    (lambda: biometrics.video_level([0.1, 0.2], [0, 1], ['v']), 'video_ids'),
    (lambda: biometrics.apcer_bpcer_acer([0.1, 0.2], [0, 1], ['v'], 0.5), 'attack_types'),
  ],
)
def test_wrong_input_is_named(call, words):
  with pytest.raises(UserError, match=words):
    call()


def test_histograms_merge_over_batches_and_leave_out_padding():
  scores = np.clip(NOISY, 0, 1).round(3).astype(np.float32)
  merged = biometrics.ScoreHistogram.empty()
  assert merged.compute() == {}
  for start in range(0, 200, 80):
    part, label = scores[start : start + 80], LABELS[start : start + 80]
    padding = 80 - len(part)
    batch = biometrics.ScoreHistogram.from_model_output(
      score=np.pad(part, (0, padding), constant_values=0.5),
      label=np.pad(label, (0, padding)),
      mask=np.arange(80) < len(part),
    )
    merged = merged.merge(batch)
  values, exact = merged.compute(), biometrics.summary(scores, LABELS)
  assert values['live'] == exact['live'] and values['spoof'] == exact['spoof']
  assert values['auc'] == pytest.approx(exact['auc'], abs=2e-3)
  assert values['eer'] == pytest.approx(exact['eer'], abs=1e-2)
