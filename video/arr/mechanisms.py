"""The small world of claims M1-M3: is it the order of the past actions that a model reads, and what teaches it to?

A sequence of actions in which the next one follows from the last two (spec 9c): the invariant is the ordered pair, the
shortcuts are the last clip alone and the unordered set. Clips are noisy vectors; the model, its losses and its stages
are ARR's own, only small, trained through the one loop.

What the spec leaves open was settled before the first run, but for the last:

  windows    an anticipation sample is cut before the first action that starts once T clips are seen; unlabelled windows
             of T + 1 clips begin anywhere in a sequence, since without labels no start is known
  stages     recognition pre-training on batches of 64 sequences, decoder pre-training on 128; both at a constant rate,
             with the weight decay (.05) and clipping (1) of the joint training
  shuffled   the clips of each unlabelled window are permuted once, style and all
  weights    N(0, .02) and N(0, .01) as they are, or with the gain of a wide decoder (`core.nn.gpt.normal`): settled on
             the two last-step rows with 2,000 labels, which come out at .79 and .81 with the gain (spec .81, .81) and
             at .69 and .74 without

The whole table had been run without that gain: ARR .81, no mask .79, last clip .42; M1 and M2 then do not stand.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from core.data import pipeline
from core.train import loop, optim
from core.train import task as contract
from video.arr import losses, model
from video.arr.grid import Grid

ACTIONS, CLIPS, WIDTH = 8, 8, 32
"""K actions (label K is "unknown"), T observed clips, numbers per clip."""

FOLLOWS, PAUSE = 0.95, 0.1
"""How often the next action is the one that the last two determine; how often an "unknown" clip follows an action."""

STYLE, NOISE = 0.3, 0.35 * 2 / WIDTH**0.5
"""Standard deviations, per number, of what is constant over a sequence and of what differs from clip to clip."""

TEST = 2000

METHOD = {
  'aggregation': 'decoder', 'causal': True, 'positions': True, 'share_heads': False,
  'recognition_weight': 1.0, 'past_weight': 1.0, 'label_shift': 0, 'shuffle_clips': False,
  'recognition_epochs': 0, 'pretraining_epochs': 0, 'pretraining': 'mse', 'shuffle_windows': False, 'windows': 6000,
}  # fmt: skip
"""Of every recipe: ARR without pre-training. `past_weight` 0 leaves the loss of the last step alone. `label_shift` 1
trains step k < T on the label of clip k, not k + 1; `shuffle_clips` puts the observed clips, with their labels, into
random order; `shuffle_windows` those of the unlabelled windows (controls)."""

MANY = {**METHOD, 'sequences': 2000, 'steps': 600}
FEW = {**METHOD, 'sequences': 150, 'steps': 300}


@dataclasses.dataclass(frozen=True)
class Samples:
  """Clips f32 [N, T, WIDTH], labels int32 [N, T] in [0, ACTIONS], target int32 [N]: the action that comes next."""

  clips: np.ndarray
  labels: np.ndarray
  target: np.ndarray


@dataclasses.dataclass(frozen=True)
class World:
  """What a method trains on and is judged on; windows f32 [N, T + 1, WIDTH] are unlabelled."""

  train: Samples
  test: Samples
  windows: np.ndarray
  held_out_windows: np.ndarray


# The world.


def rules(rng: np.random.Generator) -> np.ndarray:
  """S int [K, K]: the action after (a, b), never b itself."""
  table = rng.integers(0, ACTIONS - 1, (ACTIONS, ACTIONS))
  return table + (table >= np.arange(ACTIONS))


def sequence(rng: np.random.Generator, table: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
  """One label per clip, at least `length` and then up to the next start, and bool: does an action start there?"""
  a, b = rng.permutation(ACTIONS)[:2]
  labels: list[int] = []
  starts: list[bool] = []
  for action in _actions(rng, table, a, b):
    if len(labels) > length:
      return np.array(labels), np.array(starts)
    clips = [action] * rng.integers(1, 3) + [ACTIONS] * (rng.random() < PAUSE)
    starts += [True] + [False] * (len(clips) - 1)
    labels += clips


def _actions(rng: np.random.Generator, table: np.ndarray, a: int, b: int):
  """a, b, and what follows, for ever."""
  yield a
  while True:
    yield b
    other = rng.integers(0, ACTIONS - 1)
    a, b = b, table[a, b] if rng.random() < FOLLOWS else other + (other >= b)


def observe(rng: np.random.Generator, prototypes: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """f32 [N, T, WIDTH]: the prototype of each clip's label, the sequence's style, noise."""
  style = STYLE * rng.normal(size=(len(labels), 1, WIDTH))
  return (prototypes[labels] + style + NOISE * rng.normal(size=(*labels.shape, WIDTH))).astype(np.float32)


def samples(rng: np.random.Generator, table: np.ndarray, prototypes: np.ndarray, count: int) -> Samples:
  """Anticipation samples: T clips, then an action starts."""
  labels, target = np.zeros((count, CLIPS), np.int32), np.zeros(count, np.int32)
  for i in range(count):
    line, starts = sequence(rng, table, CLIPS + 3)  # a start is never more than 3 clips away
    cut = CLIPS + int(np.argmax(starts[CLIPS:]))
    labels[i], target[i] = line[cut - CLIPS : cut], line[cut]
  return Samples(observe(rng, prototypes, labels), labels, target)


def windows(rng: np.random.Generator, table: np.ndarray, prototypes: np.ndarray, count: int) -> np.ndarray:
  """f32 [count, T + 1, WIDTH]: unlabelled clips from anywhere in a sequence."""
  labels = np.zeros((count, CLIPS + 1), np.int32)
  for i in range(count):
    line, _ = sequence(rng, table, 3 * CLIPS)
    first = rng.integers(0, 2 * CLIPS)
    labels[i] = line[first : first + CLIPS + 1]
  return observe(rng, prototypes, labels)


def shuffled(rng: np.random.Generator, *arrays: np.ndarray) -> list[np.ndarray]:
  """Arrays [N, T, ...] with the clips of every sequence in another order, the same for all arrays."""
  chosen = np.argsort(rng.random(arrays[0].shape[:2]), axis=1)
  return [np.take_along_axis(x, chosen.reshape(*chosen.shape, *[1] * (x.ndim - 2)), axis=1) for x in arrays]


def world(options: Mapping[str, Any], seed: int) -> World:
  """The world of a seed; training sequences, windows and test sequences are drawn independently of each other."""
  rng = np.random.default_rng((seed, 0))
  table, prototypes = rules(rng), rng.normal(size=(ACTIONS + 1, WIDTH))
  prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
  train = samples(np.random.default_rng((seed, 1)), table, prototypes, options['sequences'])
  test = samples(np.random.default_rng((seed, 2)), table, prototypes, TEST)
  if options['shuffle_clips']:
    train, test = (
      Samples(*shuffled(np.random.default_rng((seed, 3, i)), each.clips, each.labels), each.target)
      for i, each in enumerate((train, test))
    )
  unlabelled = windows(np.random.default_rng((seed, 4)), table, prototypes, options['windows'])
  if options['shuffle_windows']:
    (unlabelled,) = shuffled(np.random.default_rng((seed, 5)), unlabelled)
  return World(train, test, unlabelled, windows(np.random.default_rng((seed, 6)), table, prototypes, TEST))


# Training.


class Epochs:
  """Arrays of equal length as whole batches, epoch after epoch in fresh random order; a batch may span two.

  Rows drawn one by one would cost more than the step itself.
  """

  def __init__(self, arrays: Mapping[str, np.ndarray], batch: int, steps: int, seed: Sequence[int]):
    self.arrays, self.batch, self.steps, self.seed = arrays, batch, steps, seed
    self.count = len(next(iter(arrays.values())))
    self.order = functools.lru_cache(maxsize=4)(self._order)

  def __len__(self) -> int:
    return self.steps

  def _order(self, epoch: int) -> np.ndarray:
    return np.random.default_rng((*self.seed, epoch)).permutation(self.count)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    places = np.arange(index * self.batch, (index + 1) * self.batch)
    rows = [self.order(int(place) // self.count)[place % self.count] for place in places]
    return {name: array[rows] for name, array in self.arrays.items()}


class Task(contract.Task):
  """The stages of spec 4.3 that a recipe asks for: recognition, pre-training of the decoder, joint training."""

  def __init__(self, config: ConfigDict, world: World):
    super().__init__(config)
    self.world = world
    section = ConfigDict({
      'encoder': 'feature', 'variant': 'mlp', 'width': 64, 'dtype': 'float32', 'classifier_dropout': 0.0,
      'share_heads': config.share_heads,
      'decoder': {
        'layers': 2, 'heads': 4, 'width': 64, 'dropout': 0.1, 'aggregation': config.aggregation,
        'causal': config.causal, 'positions': config.positions,
      },
    })  # fmt: skip
    self.model = model.Anticipator(
      section, classes=ACTIONS, grid=Grid(clips=CLIPS), feature_size=WIDTH, order=config.pretraining == 'order'
    )

  def init(self, rng: jax.Array) -> contract.Variables:
    """Fresh weights."""
    return self.model.init(rng)

  def stages(self) -> Sequence[contract.Stage]:
    """In order; those of no epochs or steps are left out."""
    config, chosen = self.config, []
    labelled = dataclasses.asdict(self.world.train)
    if config.recognition_epochs:
      parts = (model.ENCODER, model.RECOGNITION)
      chosen.append(self._epochs('recognition', self.recognition, labelled, 64, config.recognition_epochs, 2e-3, parts))
    if config.pretraining_epochs:
      unlabelled, parts = {'clips': self.world.windows}, (model.DECODER, model.ORDER)
      chosen += [
        contract.Stage('deviation', run=self.measure_deviation),
        self._epochs('pretraining', self.pretraining, unlabelled, 128, config.pretraining_epochs, 1e-3, parts),
        contract.Stage('skill', run=self.measure_skill),
      ]
    if config.steps:
      data = functools.partial(self.batches, labelled, 64, config.steps, 'joint')
      optimizer = optim.build(settings(1e-3, 'onecycle'), config.steps)
      chosen.append(contract.Stage('joint', steps=config.steps, loss=self.joint, data=data, optimizer=optimizer))
    return chosen

  def _epochs(self, name, loss, arrays, batch, epochs, rate, parts) -> contract.Stage:
    """A stage of some epochs at a constant rate that trains some parts of the model."""
    steps = epochs * len(arrays['clips']) // batch
    return contract.Stage(
      name,
      steps=steps,
      loss=loss,
      data=functools.partial(self.batches, arrays, batch, steps, name),
      optimizer=optim.build(settings(rate, 'constant'), steps),
      trainable=lambda path: path.split('/')[0] in parts,
    )

  def batches(self, arrays, batch: int, steps: int, stage: str, context: contract.StageContext):
    """Whole batches, each one row of the pipeline."""
    source = Epochs(arrays, batch, steps, (context.seed, *stage.encode()))
    return pipeline.build(pipeline.rows(source, seed=0, shuffle=False, repeat=False), batch_size=1)

  def measure_deviation(self, context: contract.StageContext) -> contract.Variables:
    """sigma of the features of the unlabelled windows, before the decoder is pre-trained on them (spec 4.2)."""
    variables = context.variables
    sigma = jax.jit(lambda v, x: losses.deviation(self.model.encode(v, x)))(variables, self.world.windows)
    return {**variables, 'statistics': {'sigma': sigma}}

  def measure_skill(self, context: contract.StageContext) -> contract.Variables:
    """Logs MSE(p_k, z_{k+1}) / MSE(z_k, z_{k+1}) on held-out windows (whose clips are in order)."""

    @jax.jit
    def ratio(variables, clips):
      z = self.model.encode(variables, clips)
      return 1 - losses.skill(self.model.reason(variables, z[:, :-1]), z).skill

    context.log(0, {'pretraining_ratio': float(ratio(context.variables, self.world.held_out_windows))})
    return context.variables

  def recognition(self, variables, batch, rng, step):
    """L_rec."""
    del step
    z = self.model.encode(variables, batch['clips'][0], train=True)
    value, weight = losses.recognition(self.model.recognise(variables, z, train=True, rng=rng), batch['labels'][0])
    return value, contract.LossOutput({}, weight)

  def pretraining(self, variables, batch, rng, step):
    """L_pre, the encoder frozen."""
    del step
    z = jax.lax.stop_gradient(self.model.encode(variables, batch['clips'][0]))
    observed = z[:, :-1]
    if self.config.pretraining == 'order':
      value, weight = losses.order(self.model.order(variables, observed, train=True, rng=rng))
    else:
      p = self.model.reason(variables, observed, train=True, rng=rng)
      value, weight = losses.pretraining(p, z, variables['statistics']['sigma'], kind=self.config.pretraining)
    return value, contract.LossOutput({}, weight)

  def joint(self, variables, batch, rng, step):
    """L."""
    del step
    outputs = self.model.apply(variables, batch['clips'][0], train=True, rng=rng)
    labels = batch['labels'][0]
    total, terms = self.objective(outputs, labels, batch['target'][0])
    return total.value, contract.LossOutput(terms, total.weight)

  def objective(self, outputs, labels, target) -> tuple[losses.Mean, dict[str, jax.Array]]:
    """L with the recipe's weights. Rolled labels put the label of clip k where that of clip k + 1 is expected."""
    config = self.config
    nap, terms = losses.joint(
      outputs, jnp.roll(labels, config.label_shift, axis=1), target,
      recognition_weight=0.0, past_weight=config.past_weight,
    )  # fmt: skip
    terms['recognition'] = losses.recognition(outputs['r'], labels).value
    return losses.Mean(nap.value + config.recognition_weight * terms['recognition'], nap.weight), terms


def settings(rate: float, schedule: str) -> ConfigDict:
  """AdamW with weight decay .05 and clipping at 1."""
  return ConfigDict({
    'name': 'adamw', 'learning_rate': rate, 'schedule': schedule, 'warmup_steps': 0, 'weight_decay': 0.05,
    'momentum': 0.0, 'clip_norm': 1.0,
  })  # fmt: skip


def train(seed: int, workdir: pathlib.Path, **options: Any) -> dict[str, float]:
  """Trains one method on the world of a seed and measures it.

  Args:
    seed: of the world, the weights and the batches.
    workdir: folder of the run.
    **options: a recipe (`MANY`, `FEW`) with the method's changes.

  Returns:
    See `measure`; and, where the decoder was pre-trained, 'pretraining_ratio', its error on held-out windows before the
    joint training over that of copying (1 - skill; telling for 'mse' alone).
  """
  every = {'log_every': 100, 'eval_every': 0, 'checkpoint_every': 0, 'keep': 1}
  config = ConfigDict({**options, 'seed': seed, 'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1}, 'train': every})
  task = Task(config, world(options, seed))
  result = loop.train(task, workdir, logger=loop.NullLogger())
  logged = [row['pretraining_ratio'] for row in result.history if 'pretraining_ratio' in row]
  return measure(task, result.variables) | ({'pretraining_ratio': logged[-1]} if logged else {})


def measure(task: Task, variables: contract.Variables) -> dict[str, float]:
  """On the test sequences.

  Returns:
    'accuracy' of the next action, "unknown" left out (0..1; chance 1 / 8); 'recognition_accuracy' of the clips;
    'past_loss' and 'recognition_loss', means over clips: without the causal mask the former falls to the latter.
  """
  test = task.world.test

  @jax.jit
  def judge(variables, clips, labels, target):
    outputs = task.model.apply(variables, clips)
    guess = jnp.argmax(outputs['q'][:, -1, :ACTIONS], axis=-1)
    return {
      'accuracy': jnp.mean(guess == target),
      'recognition_accuracy': jnp.mean(jnp.argmax(outputs['r'], axis=-1) == labels),
      'past_loss': losses.next_action(outputs['q'], labels, target).past.value,
      'recognition_loss': losses.recognition(outputs['r'], labels).value,
    }

  return {name: float(value) for name, value in judge(variables, test.clips, test.labels, test.target).items()}
