"""The objectives against their formulas, and what they promise about unknown clips, pre-training and accumulation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from core.errors import UserError
from video.arr import losses, model
from video.arr.grid import Grid

B, T, D, C = 3, 4, 5, 6
RNG = np.random.default_rng(0)
R, Q = (RNG.normal(size=(B, T, C + 1)).astype(np.float32) for _ in range(2))
P, Z = (RNG.normal(size=(B, T, D)).astype(np.float32) for _ in range(2))
WINDOW = RNG.normal(size=(B, T + 1, D)).astype(np.float32)
LABELS = np.array([[0, 1, 6, 3], [6, 6, 2, 2], [5, 4, 4, 0]])
TARGET = np.array([2, 0, 5])
UNKNOWN = LABELS == C


def nll(logits, labels):
  """Cross-entropy of every entry, in double precision."""
  logits = np.asarray(logits, np.float64)
  logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return -np.take_along_axis(logp, np.asarray(labels)[..., None], -1)[..., 0]


def test_recognition_is_the_mean_over_clips():
  loss = losses.recognition(R, LABELS)
  assert float(loss.value) == pytest.approx(nll(R, LABELS).mean(), rel=1e-5) and loss.weight == B * T
  ignoring = losses.recognition(R, LABELS, unknown='ignore')
  assert float(ignoring.value) == pytest.approx(nll(R, LABELS)[~UNKNOWN].mean(), rel=1e-5)
  assert ignoring.weight == (~UNKNOWN).sum()


def test_unknown_clips_count_by_their_weight():
  loss = losses.recognition(R, LABELS, unknown_weight=0.25)
  weights = np.where(UNKNOWN, 0.25, 1)
  assert float(loss.value) == pytest.approx((weights * nll(R, LABELS)).sum() / weights.sum(), rel=1e-5)
  assert loss.weight == pytest.approx(weights.sum())


def test_label_smoothing_is_the_mixture_with_the_uniform_distribution():
  torch = pytest.importorskip('torch')
  expected = torch.nn.functional.cross_entropy(
    torch.tensor(R.reshape(-1, C + 1)), torch.tensor(LABELS.reshape(-1)), label_smoothing=0.3
  )
  assert float(losses.recognition(R, LABELS, smoothing=0.3).value) == pytest.approx(expected.item(), rel=1e-5)


def test_step_k_is_held_against_the_label_of_clip_k_plus_1():
  nap = losses.next_action(Q, LABELS, TARGET)
  assert float(nap.last.value) == pytest.approx(nll(Q[:, -1], TARGET).mean(), rel=1e-5) and nap.last.weight == B
  assert float(nap.past.value) == pytest.approx(nll(Q[:, :-1], LABELS[:, 1:]).mean(), rel=1e-5)
  assert nap.past.weight == B * (T - 1)
  for k in range(T - 1):  # certainty of the next label at step k saves that step's loss, and no other's
    certain = Q.copy()
    certain[:, k] = 30.0 * np.eye(C + 1)[LABELS[:, k + 1]]
    saved = nll(Q[:, k], LABELS[:, k + 1]).sum() / (B * (T - 1))
    after = losses.next_action(certain, LABELS, TARGET)
    assert float(nap.past.value - after.past.value) == pytest.approx(saved, rel=1e-4)
    assert after.last.value == nap.last.value


def test_the_label_of_the_first_clip_is_predicted_by_no_step():
  other = LABELS.copy()
  other[:, 0] = (other[:, 0] + 1) % C
  for a, b in zip(losses.next_action(Q, LABELS, TARGET), losses.next_action(Q, other, TARGET)):
    assert a.value == b.value


def test_with_one_clip_only_the_anticipated_action_is_left():
  nap = losses.next_action(Q[:, :1], LABELS[:, :1], TARGET)
  assert float(nap.last.value) == pytest.approx(nll(Q[:, 0], TARGET).mean(), rel=1e-5)
  assert nap.past.value == 0 and nap.past.weight == 0
  outputs = {'z': Z[:, :1], 'p': P[:, :1], 'r': R[:, :1], 'q': Q[:, :1]}
  total, terms = losses.joint(outputs, LABELS[:, :1], TARGET, recognition_weight=0.0, feature_weight=1.0)
  assert total.value == terms['next_action']


@functools.partial(jax.jit, static_argnames=('unknown', 'feature_weight'))
def objective(outputs, labels, unknown, feature_weight=0.0):
  """L and its gradient with respect to the outputs."""

  def loss(outputs):
    total, _ = losses.joint(outputs, labels, TARGET, unknown=unknown, feature_weight=feature_weight)
    return total.value

  return jax.value_and_grad(loss)(outputs)


OUTPUTS = {'z': Z, 'p': P, 'r': R, 'q': Q}


def test_ignored_clips_change_nothing():
  _, gradient = objective(OUTPUTS, LABELS, unknown='ignore')
  assert not gradient['r'][UNKNOWN].any() and np.abs(gradient['r'][~UNKNOWN]).min() > 0
  following = np.concatenate([UNKNOWN[:, 1:], np.zeros((B, 1), bool)], axis=1)  # step T predicts the target
  assert not gradient['q'][following].any() and np.abs(gradient['q'][~following]).min() > 0
  _, as_class = objective(OUTPUTS, LABELS, unknown='class')
  assert np.abs(as_class['r'][UNKNOWN]).min() > 0


@pytest.mark.parametrize('unknown', losses.UNKNOWN)
def test_an_all_unknown_history_gives_a_finite_loss(unknown):
  nothing = np.full((B, T), C)
  value, gradient = objective(OUTPUTS, nothing, unknown=unknown, feature_weight=1.0)
  assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
  alone = losses.recognition(R, nothing, unknown='ignore')
  assert alone.value == 0 and alone.weight == 0


def test_the_joint_loss_is_the_weighted_sum_of_its_terms():
  total, terms = losses.joint(
    OUTPUTS, LABELS, TARGET, recognition_weight=0.5, past_weight=0.1, feature_weight=2.0, unknown='ignore'
  )
  nap = losses.next_action(Q, LABELS, TARGET, unknown='ignore')
  expected = {
    'next_action': nap.last.value,
    'next_action_past': nap.past.value,
    'recognition': losses.recognition(R, LABELS, unknown='ignore').value,
    'feature': np.square(P[:, :-1] - Z[:, 1:]).mean(),
  }
  for name, value in expected.items():
    assert float(terms[name]) == pytest.approx(float(value), rel=1e-5)
  weighted = zip((1.0, 0.1, 0.5, 2.0), expected.values(), strict=True)
  assert float(total.value) == pytest.approx(float(sum(w * v for w, v in weighted)), rel=1e-5)
  assert total.weight == B


def test_micro_batches_averaged_by_weight_are_the_large_batch():
  def by_parts(value_and_weight, *arrays):
    parts = [value_and_weight(*(a[i : i + 1] for a in arrays)) for i in range(B)]
    return sum(float(p.value * p.weight) for p in parts) / sum(float(p.weight) for p in parts)

  ignoring = jax.jit(lambda r, y: losses.recognition(r, y, unknown='ignore'))  # unequal denominators
  assert by_parts(ignoring, R, LABELS) == pytest.approx(float(ignoring(R, LABELS).value), rel=1e-5)
  joint = jax.jit(lambda q, r, z, p, *y: losses.joint({'q': q, 'r': r, 'z': z, 'p': p}, *y, feature_weight=1.0)[0])
  arrays = (Q, R, Z, P, LABELS, TARGET)
  assert by_parts(joint, *arrays) == pytest.approx(float(joint(*arrays).value), rel=1e-5)


def test_the_suggested_weight_of_unknown_is_the_median_share():
  assert losses.balancing_weight(np.array([10, 20, 30, 0, 100])) == pytest.approx(0.2)  # class 3 never occurs
  assert losses.balancing_weight(np.array([10, 20, 30, 5])) == 1.0
  assert losses.balancing_weight(np.array([10, 20, 0])) == 1.0


# Without labels.


def test_the_features_are_aimed_at_and_not_moved():
  for loss in (
    lambda p, z: losses.feature(p, z).value,
    *(lambda p, z, kind=kind: losses.pretraining(p, z, np.ones(D), kind=kind).value for kind in losses.PRETRAINING[:3]),
  ):
    to_p, to_z = jax.jit(jax.grad(loss, argnums=(0, 1)))(P, WINDOW)
    assert np.abs(to_p).max() > 0 and not to_z.any()


def test_the_next_feature_is_compared_in_units_of_sigma():
  sigma = np.array([0.5, 1, 2, 4, 8], np.float32)
  loss = losses.pretraining(P, WINDOW, sigma)
  assert float(loss.value) == pytest.approx(np.square((P - WINDOW[:, 1:]) / sigma).mean(), rel=1e-5)
  assert loss.weight == B * T
  within = losses.pretraining(P, WINDOW[:, :-1], sigma)  # T clips: the T - 1 pairs within
  assert float(within.value) == pytest.approx(np.square((P[:, :-1] - WINDOW[:, 1:-1]) / sigma).mean(), rel=1e-5)


def test_the_identity_decoder_has_the_loss_of_copying():
  copying = losses.pretraining(WINDOW[:, :-1], WINDOW, np.ones(D, np.float32))
  assert float(copying.value) == pytest.approx(np.square(np.diff(WINDOW, axis=1)).mean(), rel=1e-6)
  found = losses.skill(WINDOW[:, :-1], WINDOW)
  assert found.skill == 0 and found.error == found.copying == copying.value


def test_skill_is_one_for_the_truth_and_guarded_where_nothing_moves():
  assert losses.skill(WINDOW[:, 1:], WINDOW).skill == 1
  half = losses.skill((WINDOW[:, :-1] + WINDOW[:, 1:]) / 2, WINDOW)
  assert float(half.skill) == pytest.approx(0.75, rel=1e-5)
  still = np.repeat(WINDOW[:, :1], T + 1, axis=1)
  assert losses.skill(still[:, :-1], still).skill == 0
  assert losses.skill(P, still).skill == -np.inf


def test_cosine_knows_no_length():
  loss = losses.pretraining(P, WINDOW, kind='cosine')
  assert float(losses.pretraining(7 * P, WINDOW, kind='cosine').value) == pytest.approx(float(loss.value), rel=1e-5)
  assert float(losses.pretraining(WINDOW[:, 1:], WINDOW, kind='cosine').value) == pytest.approx(0, abs=1e-6)
  assert float(losses.pretraining(-WINDOW[:, 1:], WINDOW, kind='cosine').value) == pytest.approx(2, abs=1e-6)


def test_infonce_chooses_the_next_clip_among_all_of_the_batch():
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
  scores = unit(P).reshape(-1, D) @ unit(WINDOW[:, 1:]).reshape(-1, D).T / 0.2
  loss = losses.pretraining(P, WINDOW, kind='infonce', temperature=0.2)
  assert float(loss.value) == pytest.approx(nll(scores, np.arange(B * T)).mean(), rel=1e-4)
  assert losses.pretraining(WINDOW[:, 1:], WINDOW, kind='infonce').value < 0.2 * loss.value


def test_order_aims_at_near_places():
  scores = RNG.normal(size=(2, T, T)).astype(np.float32)
  place = np.arange(T)
  targets = np.exp(-(((place[:, None] - place) / 5.0) ** 2))
  logp = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
  assert float(losses.order(scores).value) == pytest.approx(-(targets * logp).sum(-1).mean(), rel=1e-5)
  right = np.broadcast_to(np.eye(T, dtype=np.float32), (2, T, T))
  assert losses.order(right, width=0.5).value < losses.order(right[:, ::-1], width=0.5).value


def test_deviations_are_those_of_every_dimension_with_a_floor():
  z = RNG.normal(size=(400, 3, 4)).astype(np.float32) * np.array([1, 2, 3, 0], np.float32)
  sigma = losses.deviation(z)
  np.testing.assert_allclose(sigma[:3], z.std((0, 1))[:3], rtol=1e-5)
  assert float(sigma[3]) == pytest.approx(0.01 * z.std((0, 1)).mean(), rel=1e-4)


def test_pretraining_trains_the_decoder_and_not_the_encoder():
  config = ConfigDict({
    'encoder': 'feature', 'variant': 'mlp', 'width': 8, 'classifier_dropout': 0.0, 'share_heads': False,
    'dtype': 'float32', 'decoder': {
      'layers': 1, 'heads': 2, 'width': 8, 'dropout': 0.0, 'aggregation': 'decoder', 'causal': True, 'positions': True,
    },
  })  # fmt: skip
  ours = model.Anticipator(config, classes=C, grid=Grid(clips=T), feature_size=D)

  def loss(variables):
    z = ours.encode(variables, WINDOW)
    p = ours.reason(variables, jax.lax.stop_gradient(z[:, :-1]))
    return losses.pretraining(p, z, variables['statistics']['sigma']).value

  gradient = jax.jit(lambda rng: jax.grad(loss)(ours.init(rng)))(jax.random.key(0))['params']
  size = {part: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient[part])) for part in gradient}
  assert size['decoder'] > 0
  assert size['encoder'] == size['recognition'] == size['anticipation'] == 0


def test_typos_are_named():
  with pytest.raises(UserError, match="Did you mean 'ignore'"):
    losses.recognition(R, LABELS, unknown='ignored')
  with pytest.raises(UserError, match="Did you mean 'cosine'"):
    losses.pretraining(P, WINDOW, np.ones(D), kind='cosin')
