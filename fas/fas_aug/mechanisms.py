"""The small worlds of claims C1-C3: does the mechanism work where we know what the invariant cue and the artefact are?

Each world makes source domains and one unseen target. Something tells live from spoof everywhere (a cue), something
else only in the sources, and in the target it says the opposite. Trained through the one loop with the losses,
operators and policy of the method; only data and network are small (spec section 9c).

  features   C1: a point with a cue and an artefact, logistic regression
  shortcut   C2: faces whose spoofs carry dots or stripes, and, in the sources, a colour cast and blur
  artefacts  C3: C1 as images: dots are the cue, a warm cast is the artefact

What the spec leaves open was settled on the ERM rows of its tables, before another method had been run in that world:

  backgrounds   how much they differ in colour decides how easily the warm cast of C3 is seen. With channels uniform in
                .1-.9 the target AUC is .71, in .4-.6 it is .60; spec .617. C3 measures the former world too.
  order of C2   texture, then cast, then blur, as the spec's sentences have it. With casts of length .07 ERM reaches a
                target AUC of .61 (five seeds), with .07 per channel .35; spec .59.

C2 had first been run whole with blur and cast before the texture: ERM .77, FAS-Aug .90, never flipped .54, all flipped
.97, with SARE .92 (three seeds); C3 with the former backgrounds.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from core.data import pipeline
from core.metrics import biometrics
from core.train import loop, optim
from core.train import task as contract
from fas.fas_aug import losses, policy
from fas.fas_aug.losses import LIVE, SPOOF

SIDE = 36
"""Images are 36 x 36: twelve dither cells of 3 x 3 pixels a side."""

DOT_ORDER = np.array([[3, 1, 5], [8, 9, 6], [4, 7, 2]])
"""A dot is lit where the grey step 0..9 of its cell reaches it (spec 3.1, operator 5)."""

WARM = np.array([0.10, -0.02, -0.08], np.float32)

LEVEL_SHARE = {'hand_trembling': 4 / 15, 'low_resolution': 0.73}
"""Operators made for 256 pixels, scaled to the small images: trembling of 1-5 pixels, resolution down to .45 (spec)."""

METHOD = {'beta': 0.0, 'samples': 'spoof', 'shuffle_domains': False, 'augmented': 0, 'flips': 'policy'}
"""Of every recipe: plain ERM. `shuffle_domains` deals the domain numbers out at random within each batch (a control);
`augmented` is E, the number of augmented domains; `flips` says which augmented images become spoof: those of the
'policy', 'none', or 'all' that any operator touched."""

RISK_DOMAINS = {
  'spoof_artefact': (0.95, 0.9, 0.6, 0.5, 0.3, 0.2),
  'live_artefact': 0.05,
  'target_spoof_artefact': 0.05,
  'target_live_artefact': 0.60,
}
"""How often the artefact appears, per source domain and in the target."""

FEATURES = {'world': 'features', **RISK_DOMAINS, **METHOD, 'steps': 1500, 'batch': 64, 'learning_rate': 1e-2}
PICTURES = {'images': 400, 'background': (0.4, 0.6)}
SHORTCUT = {'world': 'shortcut', **PICTURES, **METHOD, 'steps': 500, 'batch': 12, 'learning_rate': 2e-3}
ARTEFACTS = {
  'world': 'artefacts', **PICTURES, **RISK_DOMAINS, **METHOD, 'steps': 600, 'batch': 8, 'learning_rate': 2e-3,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Samples:
  """Inputs f32 [N, ...] and labels int32 [N] (1 live, 0 spoof) of one domain."""

  inputs: np.ndarray
  labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class World:
  """What a method trains on and is judged on.

  Attributes:
    sources: training samples of each source domain.
    held_out: other samples of the same domains.
    target: samples of the unseen domain.
    network: the classifier, inputs [B, ...] -> logits [B, 2].
  """

  sources: Sequence[Samples]
  held_out: Sequence[Samples]
  target: Samples
  network: nn.Module


# The worlds.


def balanced_labels(rng: np.random.Generator, count: int) -> np.ndarray:
  """Live and spoof in equal numbers, in random order."""
  return rng.permutation(np.arange(count) % 2).astype(np.int32)


def artefacts(rng: np.random.Generator, labels: np.ndarray, spoof: float, live: float) -> np.ndarray:
  """bool [N]: whether a sample carries the artefact, with the probability of its class."""
  return rng.random(len(labels)) < np.where(labels == SPOOF, spoof, live)


def feature_samples(rng: np.random.Generator, count: int, spoof: float, live: float) -> Samples:
  """[v, 2a - 1 + .1 N]: v = -1 (live) or +1 (spoof) + N(0, 1) is the cue, a the artefact."""
  labels = balanced_labels(rng, count)
  cue = np.where(labels == LIVE, -1, 1) + rng.normal(size=count)
  artefact = 2 * artefacts(rng, labels, spoof, live) - 1 + 0.1 * rng.normal(size=count)
  return Samples(np.stack([cue, artefact], axis=-1).astype(np.float32), labels)


def artefact_samples(
  rng: np.random.Generator, count: int, spoof: float, live: float, background: tuple[float, float]
) -> Samples:
  """Faces: dots (blended in by .05-.12) on 80% of spoof and 15% of live, a warm cast where the artefact is."""
  labels = balanced_labels(rng, count)
  dotted = artefacts(rng, labels, 0.80, 0.15)
  warm = artefacts(rng, labels, spoof, live)
  images = faces(rng, count, background) + WARM * warm[:, None, None, None]
  alpha = (rng.uniform(0.05, 0.12, count) * dotted).astype(np.float32)
  return Samples(blend(images, dots(images), alpha), labels)


def risk_world(options: Mapping[str, Any], seed: int) -> World:
  """C1 and C3: domains that differ in how often spoofs carry the artefact, and a target where live ones do."""
  if options['world'] == 'features':
    make, network, train, test = feature_samples, Logistic(), options['steps'] * options['batch'], 4000
  else:
    make = functools.partial(artefact_samples, background=options['background'])
    network, train, test = SmallCNN(), options['images'], 400
  rates = [(spoof, options['live_artefact']) for spoof in options['spoof_artefact']]
  return World(
    sources=[make(np.random.default_rng((seed, 0, d)), train, *rate) for d, rate in enumerate(rates)],
    held_out=[make(np.random.default_rng((seed, 1, d)), test, *rate) for d, rate in enumerate(rates)],
    target=make(
      np.random.default_rng((seed, 2)), 4 * test, options['target_spoof_artefact'], options['target_live_artefact']
    ),
    network=network,
  )


def shortcut_world(options: Mapping[str, Any], seed: int) -> World:
  """C2: three sources whose spoofs are also cast and blurred, and a target where the live ones are.

  Sources 0 and 1 print dots, source 2 shows vertical stripes of period 4; the target shows dots or stripes of period
  3-6 in either direction. Every domain has a camera of its own, the colour matrix I + .12 N.
  """
  rng = np.random.default_rng((seed, 0))
  cameras = (np.eye(3) + 0.12 * rng.normal(size=(4, 3, 3))).astype(np.float32)
  casts = rng.normal(size=(3, 3))
  casts = (0.07 * casts / np.linalg.norm(casts, axis=1, keepdims=True)).astype(np.float32)

  def source(part: int, d: int, count: int) -> Samples:
    rng = np.random.default_rng((seed, part, d))
    labels = balanced_labels(rng, count)
    spoof = labels == SPOOF
    images = faces(rng, count, options['background'])
    texture = dots(images) if d < 2 else stripes(rng, np.full(count, 4.0), np.zeros(count, bool))
    images = blend(images, texture, _alpha(rng, spoof)) + casts[d] * spoof[:, None, None, None]
    return Samples(camera(blur(images, artefacts(rng, labels, 0.90, 0.10)), cameras[d]), labels)

  def target(count: int) -> Samples:
    rng = np.random.default_rng((seed, 3))
    labels = balanced_labels(rng, count)
    live = labels == LIVE
    images = faces(rng, count, options['background'])
    lines = stripes(rng, rng.uniform(3, 6, count), rng.random(count) < 0.5)
    texture = np.where((rng.random(count) < 0.5)[:, None, None, None], dots(images), lines)
    cast = casts[rng.integers(0, 3, count)] * live[:, None]
    images = blend(images, texture, _alpha(rng, ~live)) + cast[:, None, None]
    return Samples(camera(blur(images, artefacts(rng, labels, 0.0, 0.70)), cameras[3]), labels)

  sources = [source(1, d, options['images']) for d in range(3)]
  return World(sources, [source(2, d, options['images']) for d in range(3)], target(1600), SmallCNN())


def _alpha(rng: np.random.Generator, spoof: np.ndarray) -> np.ndarray:
  return (rng.uniform(0.04, 0.10, len(spoof)) * spoof).astype(np.float32)


# Pictures: f32 [N, SIDE, SIDE, 3].


def faces(rng: np.random.Generator, count: int, background: tuple[float, float]) -> np.ndarray:
  """A soft ellipse of skin on a plain background, its channels uniform in a range, both with smooth colour noise."""
  x, y = np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 2)
  centre, radius = rng.uniform(-0.1, 0.1, (2, count, 1, 1)), rng.uniform((0.55, 0.7), (0.75, 0.9), (count, 2)).T
  inside = 1 - ((x - centre[0]) / radius[0][:, None, None]) ** 2 - ((y - centre[1]) / radius[1][:, None, None]) ** 2
  mask = 1 / (1 + np.exp(-6 * inside))[..., None]
  skin = np.array([0.80, 0.60, 0.50]) * rng.uniform(0.6, 1.0, (count, 1)) + 0.03 * rng.normal(size=(count, 3))
  behind = rng.uniform(*background, (count, 3))
  images = mask * skin[:, None, None] + (1 - mask) * behind[:, None, None]
  noise = rng.normal(0.0, 0.06, (count, 6, 6, 3)).astype(np.float32)
  smooth = np.stack([cv2.resize(each, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for each in noise])
  return np.clip(images + smooth, 0, 1).astype(np.float32)


def dots(images: np.ndarray) -> np.ndarray:
  """The images as black and white dots, 10 grey steps per 3 x 3 cell, in three equal channels."""
  cells = images.mean(-1).reshape(len(images), SIDE // 3, 3, SIDE // 3, 3).mean((2, 4))
  low, high = cells.min((1, 2), keepdims=True), cells.max((1, 2), keepdims=True)
  steps = np.floor(9 * (cells - low) / (high - low))
  lit = steps.repeat(3, 1).repeat(3, 2) >= np.tile(DOT_ORDER, (SIDE // 3, SIDE // 3))
  return np.repeat(lit[..., None], 3, -1).astype(np.float32)


def stripes(rng: np.random.Generator, periods: np.ndarray, horizontal: np.ndarray) -> np.ndarray:
  """Red, green and blue stripes side by side, as on a screen, at a random phase; `horizontal` turns them."""
  count = len(periods)
  position = np.arange(SIDE) / periods[:, None] + rng.random((count, 1))
  lit = np.mod(position[..., None] + np.arange(3) / 3, 1) < 1 / 3
  vertical = np.broadcast_to(lit[:, None], (count, SIDE, SIDE, 3))
  return np.where(horizontal[:, None, None, None], vertical.swapaxes(1, 2), vertical).astype(np.float32)


def blend(images: np.ndarray, texture: np.ndarray, alpha: np.ndarray) -> np.ndarray:
  """(1 - a) x + a t with an a per image, clipped to [0, 1]."""
  alpha = alpha[:, None, None, None]
  return np.clip((1 - alpha) * images + alpha * texture, 0, 1)


def blur(images: np.ndarray, chosen: np.ndarray) -> np.ndarray:
  """Gaussian blur of .7 pixels on the chosen images."""
  return np.stack([cv2.GaussianBlur(x, (0, 0), 0.7) if c else x for x, c in zip(images, chosen)])


def camera(images: np.ndarray, matrix: np.ndarray) -> np.ndarray:
  """Seen through a camera's colour matrix [3, 3]."""
  return np.clip(images @ matrix.T, 0, 1)


# The networks.


class Logistic(nn.Module):
  """Logistic regression; the log-odds of spoof are the difference of two logits, of which the live one is 0."""

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """[B, F] -> logits [B, 2]."""
    odds = nn.Dense(1, kernel_init=nn.initializers.zeros)(inputs)
    return jnp.concatenate([odds, jnp.zeros_like(odds)], axis=-1)


class SmallCNN(nn.Module):
  """5x5/2-12, 3x3/2-16, 3x3/2-32, global mean, two logits."""

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Images [B, SIDE, SIDE, 3] in [0, 1] -> logits [B, 2]."""
    x = 2 * inputs - 1
    for width, size in ((12, 5), (16, 3), (32, 3)):
      x = nn.relu(nn.Conv(width, (size, size), strides=2)(x))
    return nn.Dense(2)(x.mean((1, 2)))


# Training and judgement.


class Task(contract.Task):
  """ERM, SARE and FAS-Aug on a world: S source streams and E augmented ones over their union, interleaved."""

  def __init__(self, config: ConfigDict, world: World):
    super().__init__(config)
    self.world = world
    self.num_sources = len(world.sources)
    self.num_domains = self.num_sources + config.augmented

  def init(self, rng: jax.Array) -> contract.Variables:
    """Fresh weights."""
    return self.world.network.init(rng, self.world.target.inputs[:1])

  def stages(self) -> Sequence[contract.Stage]:
    """One stage: Adam at a constant rate."""
    optimizer = {'name': 'adam', 'learning_rate': self.config.learning_rate, 'schedule': 'constant', 'warmup_steps': 0}
    settings = ConfigDict({**optimizer, 'weight_decay': 0.0, 'momentum': 0.0, 'clip_norm': 0.0})
    steps = self.config.steps
    return [
      contract.Stage('train', steps=steps, loss=self.loss, data=self.batches, optimizer=optim.build(settings, steps))
    ]

  def batches(self, context: contract.StageContext):
    """Batches of `config.batch` samples per domain."""
    # Images are drawn one by one; features come in blocks of a whole batch, each used once, which is 50 times faster.
    block = self.config.batch if self.config.world == 'features' else 1
    sources = list(self.world.sources)
    streams = sources + [pool(sources)] * self.config.augmented
    rows = [pipeline.rows(Blocks(each, d, block), seed=(context.seed, d)) for d, each in enumerate(streams)]
    return pipeline.build(pipeline.interleave(rows), batch_size=self.num_domains * self.config.batch // block)

  def loss(self, variables, batch, rng, step):
    """L_CE + beta L_SARE."""
    config = self.config
    augment_key, shuffle_key = jax.random.split(rng)
    inputs, labels, domains = (batch[name] for name in ('input', 'label', 'domain'))
    if labels.ndim == 2:  # blocks
      inputs, labels, domains = inputs.reshape(-1, inputs.shape[-1]), labels.reshape(-1), domains.reshape(-1)
    if config.augmented:
      inputs, labels = self.augment(inputs, labels, augment_key, self.policies(step // self.steps_per_epoch()))
    if config.shuffle_domains:
      domains = jax.random.permutation(shuffle_key, domains)
    each = losses.cross_entropy(self.world.network.apply(variables, inputs), labels)
    sare, risks, _ = losses.sare(each, labels, domains, self.num_domains, samples=config.samples)
    total = losses.base(each) + config.beta * sare
    return total, contract.LossOutput({'sare': sare, 'risk': risks}, weight=labels.shape[0])

  def steps_per_epoch(self) -> int:
    """Batches of one augmented stream, which are the union of the sources."""
    return sum(len(each.labels) for each in self.world.sources) // self.config.batch

  def policies(self, epoch: jax.Array | int) -> policy.Policy:
    """One fresh policy per augmented domain and epoch, its levels lowered by `LEVEL_SHARE`."""
    key = jax.random.fold_in(jax.random.key(self.config.seed), epoch)
    drawn = jax.vmap(policy.sample)(jax.random.split(key, self.config.augmented))
    return policy.scaled(drawn, LEVEL_SHARE)

  def augment(self, images, labels, key, policies) -> tuple[jax.Array, jax.Array]:
    """Applies the policies to the augmented rows of an interleaved batch."""
    s, e = self.num_sources, self.config.augmented
    by_domain = images.reshape(-1, self.num_domains, *images.shape[1:])
    labels = labels.reshape(-1, self.num_domains)
    before = by_domain[:, s:].reshape(-1, *images.shape[1:])
    domains = jnp.tile(jnp.arange(e), len(by_domain))
    after, flipped = self.apply(key, before, labels[:, s:].reshape(-1), policies, domains)
    by_domain = by_domain.at[:, s:].set(after.reshape(by_domain[:, s:].shape))
    labels = labels.at[:, s:].set(flipped.reshape(labels[:, s:].shape))
    return by_domain.reshape(images.shape), labels.reshape(-1)

  def apply(self, key, images, labels, policies, domains) -> tuple[jax.Array, jax.Array]:
    """Augmented images, and labels by `config.flips`."""
    after, by_policy, _ = policy.apply_batch(key, images, labels, policies, domains)
    if self.config.flips == 'none':
      return after, labels
    if self.config.flips == 'all':  # level 0 leaves an image as it is, bit for bit: such images keep their label
      return after, jnp.where(jnp.any(after != images, axis=(1, 2, 3)), SPOOF, labels)
    return after, by_policy


class Blocks:
  """Samples of a domain as records, `block` samples each (1: without the axis)."""

  def __init__(self, samples: Samples, domain: int, block: int):
    self.samples, self.domain, self.block = samples, domain, block

  def __len__(self) -> int:
    return len(self.samples.labels) // self.block

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    part = slice(index * self.block, (index + 1) * self.block) if self.block > 1 else index
    labels = self.samples.labels[part]
    return {'input': self.samples.inputs[part], 'label': labels, 'domain': np.full_like(labels, self.domain)}


def pool(domains: Sequence[Samples]) -> Samples:
  """The union of domains."""
  return Samples(*(np.concatenate([getattr(each, name) for each in domains]) for name in ('inputs', 'labels')))


def train(seed: int, workdir: pathlib.Path, **options: Any) -> dict[str, float]:
  """Trains one method on one world and measures it.

  Args:
    seed: of the world, the weights and the batches.
    workdir: folder of the run.
    **options: a recipe (`FEATURES`, `SHORTCUT`, `ARTEFACTS`) with the method's changes.

  Returns:
    'target_auc', 'target_eer', 'target_hter_at_0.5'; 'in_domain_auc' on held-out samples of all sources together;
    'risk_variance', the variance of the spoof risk over all domains of the training, on held-out samples;
    'batch_sare', the method's own L_SARE averaged over the last 100 batches, to which the chance of a small batch adds;
    for features also 'weight_ratio', |w_artefact / w_cue|.
  """
  world = (shortcut_world if options['world'] == 'shortcut' else risk_world)(options, seed)
  every = {'log_every': 100, 'eval_every': 0, 'checkpoint_every': 0, 'keep': 1}
  config = ConfigDict({**options, 'seed': seed, 'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1}, 'train': every})
  task = Task(config, world)
  result = loop.train(task, workdir, logger=loop.NullLogger())
  return measure(task, result.variables) | {'batch_sare': result.history[-1]['sare']}


def measure(task: Task, variables: contract.Variables) -> dict[str, float]:
  """See `train`."""
  world, logits = task.world, jax.jit(task.world.network.apply)
  target = biometrics.summary(_live_scores(logits(variables, world.target.inputs)), world.target.labels)
  together = pool(world.held_out)
  metrics = {
    'target_auc': target['auc'],
    'target_eer': target['eer'],
    'target_hter_at_0.5': target['hter_at_0.5'],
    'in_domain_auc': biometrics.auc(_live_scores(logits(variables, together.inputs)), together.labels),
    'risk_variance': risk_variance(task, lambda inputs: logits(variables, inputs)),
  }
  if task.config.world == 'features':
    weights = np.abs(np.asarray(variables['params']['Dense_0']['kernel'])[:, 0])
    metrics['weight_ratio'] = float(weights[1] / weights[0])
  return metrics


def risk_variance(task: Task, logits: Callable[[np.ndarray], jax.Array]) -> float:
  """Var{R_1, ..., R_D} of the spoof risk on held-out samples; augmented domains with ten fresh policies each."""
  domains = list(task.world.held_out)
  if task.config.augmented:
    domains += augmented_domains(task, pool(domains), parts=10)
  each = jnp.concatenate([losses.cross_entropy(logits(d.inputs), jnp.asarray(d.labels)) for d in domains])
  numbers = np.repeat(np.arange(len(domains)), [len(d.labels) for d in domains])
  return float(losses.sare(each, jnp.asarray(pool(domains).labels), jnp.asarray(numbers), len(domains))[0])


def augmented_domains(task: Task, samples: Samples, parts: int) -> list[Samples]:
  """What each augmented domain makes of the samples, one part after the other under policies of later epochs."""

  @jax.jit
  def augment(epoch, images, labels, domain):
    key = jax.random.fold_in(jax.random.key(task.config.seed), epoch)
    return task.apply(key, images, labels, task.policies(epoch), jnp.full(labels.shape, domain))

  after = 1_000_000  # no training has so many epochs
  made = []
  for e in range(task.config.augmented):
    each = [augment(after + p, samples.inputs[p::parts], samples.labels[p::parts], e) for p in range(parts)]
    made.append(pool([Samples(np.asarray(images), np.asarray(labels)) for images, labels in each]))
  return made


def _live_scores(logits: jax.Array) -> np.ndarray:
  """P(live), f64 [B]; in double precision, so that certain scores do not tie."""
  logits = np.asarray(logits, np.float64)
  return 1 / (1 + np.exp(logits[:, SPOOF] - logits[:, LIVE]))
