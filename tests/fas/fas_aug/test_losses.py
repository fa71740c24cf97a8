"""What the objective promises: SARE against numpy and finite differences, its invariances, and the contrastive term."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fas.fas_aug import losses

DOMAINS = 3


@pytest.fixture
def batch(rng):
  """Losses, labels and domains of 24 rows; domain 2 holds live rows only."""
  labels = rng.integers(0, 2, 24)
  domains = np.tile(np.arange(DOMAINS), 8)
  labels[domains == 2] = 1
  return rng.uniform(0, 2, 24).astype(np.float32), labels, domains


@pytest.fixture
def rng():
  return np.random.default_rng(7)


def spoof_risks(each, labels, domains):
  """The definition, in numpy: mean loss of the spoof rows of the domains that have some."""
  means = [each[(domains == d) & (labels == 0)] for d in range(DOMAINS)]
  return np.array([m.mean() for m in means if len(m)])


def test_cross_entropy_is_minus_log_probability(rng):
  logits, labels = rng.normal(size=(5, 2)).astype(np.float32), np.array([0, 1, 1, 0, 1])
  expected = -np.log(np.exp(logits)[np.arange(5), labels] / np.exp(logits).sum(1))
  np.testing.assert_allclose(losses.cross_entropy(logits, labels), expected, rtol=1e-5)


def test_sare_is_the_population_variance_of_the_spoof_risks(batch):
  value, risks, counts = jax.jit(losses.sare, static_argnums=3)(*batch, DOMAINS)
  expected = spoof_risks(*batch)
  np.testing.assert_allclose(value, np.var(expected), rtol=1e-5)
  np.testing.assert_allclose(risks, [*expected, 0], rtol=1e-6)
  np.testing.assert_array_equal(counts, [np.sum((batch[2] == d) & (batch[1] == 0)) for d in range(DOMAINS)])


def test_all_samples_give_the_vrex_penalty(batch):
  each, _, domains = batch
  value, *_ = losses.sare(*batch, DOMAINS, samples='all')
  np.testing.assert_allclose(value, np.var([each[domains == d].mean() for d in range(DOMAINS)]), rtol=1e-5)


def test_zero_mode_counts_a_domain_without_spoof_as_risk_zero(batch):
  value, *_ = losses.sare(*batch, DOMAINS, missing='zero')
  np.testing.assert_allclose(value, np.var([*spoof_risks(*batch), 0]), rtol=1e-5)


@pytest.mark.parametrize('samples', losses.SAMPLES)
@pytest.mark.parametrize('missing', losses.MISSING)
def test_gradient_equals_finite_differences(batch, samples, missing):
  each, labels, domains = batch

  def value(x):
    return losses.sare(x, labels, domains, DOMAINS, samples=samples, missing=missing)[0]

  gradient, step = jax.grad(value)(jnp.asarray(each)), 1e-2
  numeric = [(value(each + step * unit) - value(each - step * unit)) / (2 * step) for unit in np.eye(24, dtype='f4')]
  np.testing.assert_allclose(gradient, numeric, atol=2e-5)


def test_equal_risks_cost_nothing(batch):
  _, labels, domains = batch
  assert losses.sare(np.full(24, 0.7, np.float32), labels, domains, DOMAINS)[0] == pytest.approx(0, abs=1e-12)


def test_live_rows_do_not_matter(batch, rng):
  each, labels, domains = batch
  more = [np.append(a, b) for a, b in zip(batch, (rng.uniform(0, 9, 6), np.ones(6, int), [0, 1, 2, 0, 1, 2]))]
  np.testing.assert_allclose(losses.sare(*more, DOMAINS)[0], losses.sare(*batch, DOMAINS)[0], rtol=1e-5)
  gradient = jax.grad(lambda x: losses.sare(x, labels, domains, DOMAINS)[0])(jnp.asarray(each))
  np.testing.assert_array_equal(gradient[labels == 1], 0)
  assert np.all(gradient[labels == 0] != 0)


def test_order_and_names_of_domains_do_not_matter(batch, rng):
  each, labels, domains = batch
  order, names = rng.permutation(24), np.array([2, 0, 1])
  moved = losses.sare(each[order], labels[order], names[domains[order]], DOMAINS)[0]
  np.testing.assert_allclose(moved, losses.sare(*batch, DOMAINS)[0], rtol=1e-5)


def test_a_domain_without_spoof_is_as_good_as_absent(batch):
  each, labels, domains = batch
  present = domains != 2
  alone = losses.sare(each[present], labels[present], domains[present], 2)[0]
  np.testing.assert_allclose(losses.sare(*batch, DOMAINS)[0], alone, rtol=1e-6)


@pytest.mark.parametrize('missing', losses.MISSING)
def test_a_batch_without_spoof_is_finite_and_free(batch, missing):
  each, labels, domains = batch
  function = jax.value_and_grad(lambda x: losses.sare(x, np.ones_like(labels), domains, DOMAINS, missing=missing)[0])
  value, gradient = function(jnp.asarray(each))
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)


def test_unknown_modes_are_refused(batch):
  with pytest.raises(ValueError, match='spoof'):
    losses.sare(*batch, DOMAINS, samples='spoofs')
  with pytest.raises(ValueError, match='mask'):
    losses.sare(*batch, DOMAINS, missing='masked')


def test_class_weights_balance_the_classes():
  labels = np.array([1, 0, 0, 0])
  weights = losses.class_weights(labels)
  np.testing.assert_allclose(weights, [2, 2 / 3, 2 / 3, 2 / 3], rtol=1e-6)
  np.testing.assert_allclose(losses.base(np.array([4.0, 1.0, 1.0, 1.0]), weights), 2.5, rtol=1e-6)
  np.testing.assert_allclose(losses.class_weights(np.ones(3, int)), 1)
  assert losses.base(np.array([4.0, 1.0, 1.0, 1.0])) == pytest.approx(1.75)


def contrast_by_hand(features, labels, temperature):
  """The formula of the docstring, as loops."""
  z = features[labels == 1]
  z = z / np.linalg.norm(z, axis=1, keepdims=True)
  total, n = 0.0, len(z)
  for i in range(n):
    others = [a for a in range(n) if a != i]
    log_sum = np.log(sum(np.exp(z[i] @ z[a] / temperature) for a in others))
    total -= np.mean([z[i] @ z[p] / temperature - log_sum for p in others])
  return total / n


def test_live_contrast_is_the_formula(rng):
  features, labels = rng.normal(size=(10, 6)).astype(np.float32), np.array([1, 0, 1, 1, 0, 0, 1, 0, 1, 1])
  value = losses.live_contrastive(features, labels)
  np.testing.assert_allclose(value, contrast_by_hand(features, labels, 0.1), rtol=1e-4)
  scaled = losses.live_contrastive(3 * features, labels)
  np.testing.assert_allclose(scaled, value, rtol=1e-5)


def test_live_contrast_equals_pytorch_metric_learning(rng):
  torch = pytest.importorskip('torch')
  library = pytest.importorskip('pytorch_metric_learning.losses').SupConLoss(temperature=0.1)
  features = rng.normal(size=(7, 6)).astype(np.float32)
  # The library's front door gives 0 when a batch has one label (its "no negatives, no loss" guard); the formula behind
  # it takes the pairs as masks. Any entry among the negatives opens it, and pairs counted twice change nothing.
  pairs = 1 - torch.eye(7)
  found = library._compute_loss(library.distance(torch.from_numpy(features)), pairs, pairs)['loss']['losses']
  np.testing.assert_allclose(losses.live_contrastive(features, np.ones(7, int)), float(found.mean()), rtol=1e-4)


def test_live_contrast_is_least_at_log_of_n_minus_one():
  identical, simplex = np.ones((4, 3), np.float32), np.eye(4, dtype=np.float32)
  for features in (identical, simplex):
    np.testing.assert_allclose(losses.live_contrastive(features, np.ones(4, int)), np.log(3), rtol=1e-5)
  uneven = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
  assert losses.live_contrastive(uneven, np.ones(4, int)) > np.log(3) + 0.1


@pytest.mark.parametrize('live', [0, 1, 2])
def test_live_contrast_of_few_live_rows_is_finite(live):
  labels = (np.arange(4) < live).astype(int)
  features = np.zeros((4, 3), np.float32)  # the worst case: a norm of zero
  value, gradient = jax.value_and_grad(lambda f: losses.live_contrastive(f, labels))(features)
  assert value == pytest.approx(0, abs=1e-6)
  assert np.all(np.isfinite(gradient))


def test_annealing_holds_the_weight_at_one_at_most():
  assert losses.annealed(10.0, 499, 500) == 1
  assert losses.annealed(10.0, 500, 500) == 10
  assert losses.annealed(0.5, 0, 500) == 0.5
  assert losses.annealed(10.0, 0, 0) == 10
