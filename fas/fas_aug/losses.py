"""The objective of FAS-Aug + SARE: pure functions of arrays (spec section 4).

  L = L_CE + beta * L_SARE + alpha * L_con

A batch is flat: `labels` int [B] (1 live, 0 spoof) and `domains` int [B] in [0, D) say what each row is, in any order.
D counts the real source domains and the augmented ones.

None of the terms but the first is a mean over examples: averaged over micro-batches, L_SARE becomes the mean of the
variances within micro-batches, which is another objective. Accumulate only as far as memory asks for it, and with whole
interleaved rows, so that every micro-batch holds every domain.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

SPOOF, LIVE = 0, 1

SAMPLES = ('spoof', 'all')
"""Whose risk SARE equalises: 'spoof' (the release, and the name) or 'all' (plain V-REx, also in the release)."""

MISSING = ('mask', 'zero')
"""A domain without such samples in the batch is left out of mean and variance ('mask', our choice), or counts with risk
0 ('zero', the release), which drags the other domains' risks towards zero."""


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Softmax cross-entropy of every sample, f32 [B], from logits [B, classes] and labels int [B]."""
  return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def base(losses: jax.Array, weights: jax.Array | None = None) -> jax.Array:
  """L_CE: the mean of `losses` [B] over all samples of all domains, weighted by `weights` [B]. Alone, this is ERM."""
  if weights is None:
    return jnp.mean(losses)
  return jnp.sum(weights * losses) / jnp.maximum(jnp.sum(weights), jnp.finfo(jnp.float32).tiny)


def class_weights(labels: jax.Array) -> jax.Array:
  """Weights f32 [B] under which the live and the spoof samples of the batch weigh the same in sum; their mean is 1.

  Our option, off by default: only 19% of the live images of an augmented domain stay live. A batch of one class gets
  ones.
  """
  live = (labels == LIVE).astype(jnp.float32)
  counts = jnp.stack([jnp.sum(1 - live), jnp.sum(live)])
  per_class = labels.shape[0] / (jnp.maximum(counts, 1) * jnp.sum(counts > 0))
  return jnp.where(live > 0, per_class[LIVE], per_class[SPOOF])


def domain_risks(
  losses: jax.Array, labels: jax.Array, domains: jax.Array, num_domains: int, *, samples: str = 'spoof'
) -> tuple[jax.Array, jax.Array]:
  """R_e, the mean loss of each domain's spoof samples (or of all its samples).

  Args:
    losses: f32 [B].
    labels: int [B].
    domains: int [B] in [0, num_domains).
    num_domains: D, static.
    samples: one of `SAMPLES`.

  Returns:
    risks f32 [D], 0 where a domain has no such sample; counts f32 [D] of the samples that each risk is a mean of.
  """
  if samples not in SAMPLES:
    raise ValueError(f"samples is '{samples}', expected one of {SAMPLES}.")
  chosen = (labels == SPOOF).astype(losses.dtype) if samples == 'spoof' else jnp.ones_like(losses)
  counts = jax.ops.segment_sum(chosen, domains, num_domains)
  sums = jax.ops.segment_sum(chosen * losses, domains, num_domains)
  return sums / jnp.maximum(counts, 1), counts


def sare(
  losses: jax.Array,
  labels: jax.Array,
  domains: jax.Array,
  num_domains: int,
  *,
  samples: str = 'spoof',
  missing: str = 'mask',
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """L_SARE = Var{R_1, ..., R_D}, the population variance over domains of the (spoof) risk.

  Args:
    losses: f32 [B], loss of every sample (with its possibly flipped label).
    labels: int [B].
    domains: int [B] in [0, num_domains).
    num_domains: D, static.
    samples: one of `SAMPLES`.
    missing: one of `MISSING`.

  Returns:
    L_SARE, f32 scalar, 0 when fewer than two domains count; and risks, counts of `domain_risks`.
  """
  if missing not in MISSING:
    raise ValueError(f"missing is '{missing}', expected one of {MISSING}.")
  risks, counts = domain_risks(losses, labels, domains, num_domains, samples=samples)
  counted = (counts > 0).astype(risks.dtype) if missing == 'mask' else jnp.ones_like(risks)
  number = jnp.maximum(jnp.sum(counted), 1)
  mean = jnp.sum(counted * risks) / number
  return jnp.sum(counted * jnp.square(risks - mean)) / number, risks, counts


def live_contrastive(features: jax.Array, labels: jax.Array, *, temperature: float = 0.1) -> jax.Array:
  """L_con: supervised contrast among the live samples of the whole batch, all positive to each other (release only).

  -(1/N) sum_i (1/(N-1)) sum_{p != i} [z_i.z_p / tau - log sum_{a != i} exp(z_i.z_a / tau)], z = features / |features|.

  Its minimum is log(N - 1), wherever all live-live similarities are equal: it evens out similarities and does not by
  itself pull live faces together.

  Args:
    features: f32 [B, C].
    labels: int [B].
    temperature: tau > 0.

  Returns:
    f32 scalar; 0 when the batch holds fewer than two live samples.
  """
  features = features.astype(jnp.float32)
  # rsqrt of a floor, not a division by the norm: a zero feature then has a zero, and not a NaN, gradient.
  z = features * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(features), -1, keepdims=True), 1e-12))
  live = labels == LIVE
  pair = live[:, None] & live[None, :] & ~jnp.eye(labels.shape[0], dtype=bool)
  similarity = z @ z.T / temperature
  # Rows without a pair are given one finite entry, so that neither the sum nor its gradient meets log(0).
  partners = jnp.sum(pair, axis=1)
  reachable = pair | (partners == 0)[:, None]
  normalizer = jax.nn.logsumexp(jnp.where(reachable, similarity, -jnp.inf), axis=1)
  positive = jnp.sum(jnp.where(pair, similarity, 0), axis=1) / jnp.maximum(partners, 1)
  each = jnp.where(partners > 0, normalizer - positive, 0)
  return jnp.sum(each) / jnp.maximum(jnp.sum(partners > 0), 1)


def annealed(weight: float, step: jax.Array | int, steps: int) -> jax.Array:
  """A penalty's weight at a step: at most 1 during the first `steps` steps, then `weight`.

  The habit of V-REx in DomainBed, which lets the classifier find the task before the risks are tied together; the
  FAS-Aug release has none (`steps` = 0).
  """
  return jnp.where(jnp.asarray(step) < steps, jnp.minimum(weight, 1.0), weight)
