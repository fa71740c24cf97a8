"""The kitchen world as a dataset: annotated, rendered videos of people who cook, made on the spot.

Stands in for EPIC-KITCHENS-100 (spec 6): verbs and nouns, gaps without a label, overlapping segments, a long tail,
people who differ and two of them in no training video. `annotations` and `footage` are pure functions of
(config, seed); so is each video by itself, whatever was rendered before it, on any process.

Measured on one core of the reference machine, defaults: 17,022 frames in 3.9 s (4,400 frames/s; 3,200 at 64 px), 2,148
segments of 1.3 s (median), a quarter of them overlapping the next, a third followed by a gap. A linear (ridge)
classifier on four frames of 12 x 12 px tells 72% of the actions of validation videos, of known and unknown people alike
(most frequent class: 8%). What the past tells about the next action: `ceiling`.

Like every drawing, it shows whether a method works, never how well it would do on people.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from core.errors import UserError
from video.arr.annotations import tables
from video.arr.kitchen import grammar, motion, painter

UNSEEN = 2
"""People who occur in validation videos only."""

_PEOPLE, _COOKING, _FILMING = 0, 1, 2  # streams of random numbers, so that none depends on how long another is
_SECONDS = {
  'take': (1.0, 1.5), 'put': (1.0, 1.5), 'open': (1.0, 1.4), 'close': (1.0, 1.4),
  'wash': (2.0, 3.4), 'cut': (2.0, 3.6), 'pour': (1.6, 2.6), 'stir': (2.0, 3.6),
}  # fmt: skip
_VERB_OF = tuple(grammar.VERBS.index(action.split()[0]) for action in grammar.ACTIONS)
_NOUN_OF = tuple(grammar.NOUNS.index(action.split()[1]) for action in grammar.ACTIONS)


@dataclasses.dataclass(frozen=True)
class Config:
  """Size of the kitchen world.

  Attributes:
    size: pixels of a side of a frame.
    fps: frames per second.
    train_videos, val_videos: number of videos; every third validation video is of a person unseen in training.
    people: number of people in training.
    seconds: mean length of a video; each is 0.8 to 1.2 times as long.
  """

  size: int = 48
  fps: int = 4
  train_videos: int = 40
  val_videos: int = 16
  people: int = 8
  seconds: float = 75.0

  def __post_init__(self):
    least = {'size': 16, 'fps': 1, 'train_videos': 0, 'val_videos': 0, 'people': 1, 'seconds': 10}
    for name, value in least.items():
      if getattr(self, name) < value:
        raise UserError(f"kitchen world: '{name}' is {getattr(self, name)}; the least is {value}")


@dataclasses.dataclass(frozen=True)
class Person:
  """One cook: name, habits, look and way of moving."""

  name: str
  habits: grammar.Habits
  look: painter.Look
  body: motion.Body


@dataclasses.dataclass(frozen=True)
class Act:
  """One action of a video.

  Attributes:
    step: what is done.
    before, after: the world around it.
    start, stop: annotated, in seconds; `stop` may lie a little after the next `start`.
    end: when the hands turn to the next action, at most `stop`.
    idle: what the hands do until the next action begins: 'wait', 'away' (out of the picture) or 'on' (no gap).
  """

  step: grammar.Step
  before: grammar.World
  after: grammar.World
  start: float
  stop: float
  end: float
  idle: str


@dataclasses.dataclass(frozen=True)
class Video:
  """The script of one video: who does what, when."""

  name: str
  split: str
  person: Person
  acts: tuple[Act, ...]
  duration: float
  number: int


def person(config: Config, seed: int, number: int) -> Person:
  """Person `number`; those from `config.people` on are unseen in training."""
  rng = np.random.default_rng([seed, _PEOPLE, number])
  habits, look = grammar.habits(rng), painter.look(rng, number)
  return Person(f'P{number + 1:02d}', habits, look, motion.Body(look.side, float(rng.uniform(0.85, 1.2))))


def video(config: Config, seed: int, number: int) -> Video:
  """Writes the script of video `number`: the training videos first, then the validation videos.

  The recording begins somewhere in the cooking, so that all phases are seen alike from the first second on.
  """
  split, cook = _cast(config, number)
  who = person(config, seed, cook)
  rng = np.random.default_rng([seed, _COOKING, number])
  duration = round(config.seconds * rng.uniform(0.8, 1.2) * config.fps) / config.fps
  skipped = int(rng.integers(0, 40))
  walked = grammar.walk(rng, grammar.State(who.habits), skipped + int(duration) + 1)[skipped:]
  acts: list[Act] = []
  start = rng.uniform(1.2, 2.5)
  for state, step in walked:
    length = float(np.clip(rng.uniform(*_SECONDS[step.verb]) / who.body.tempo, 1.0, 4.0))
    gap, overlap, idle = _pause(rng)
    stop = start + length
    if stop + overlap > duration:
      break
    acts.append(Act(step, state.world, state.world.after(step), start, stop + overlap, stop, idle))
    start = stop + gap
  return Video(f'{who.name}_{number + 1:03d}', split, who, tuple(acts), duration, number)


def _cast(config: Config, number: int) -> tuple[str, int]:
  """(split, number of the person) of video `number`."""
  if number < config.train_videos:
    return 'train', number % config.people
  i = number - config.train_videos
  return 'val', config.people + i // 3 % UNSEEN if i % 3 == 2 else i % config.people


def _pause(rng: np.random.Generator) -> tuple[float, float, str]:
  """(gap, overlap, idle) after an action: a gap of 0.5 to 3 s, none, or an overlap of 0.1 to 0.4 s."""
  kind = rng.random()
  if kind < 0.35:
    return float(min(0.5 + rng.exponential(0.7), 3.0)), 0.0, 'wait' if rng.random() < 0.5 else 'away'
  return 0.0, float(rng.uniform(0.1, 0.4)) if kind < 0.6 else 0.0, 'on'


def annotations(config: Config, seed: int) -> tables.Annotations:
  """The segments of all videos; the gaps between them are what "unknown" stands for."""
  rows: dict[str, list] = {name: [] for name in tables.DTYPES}
  for number in range(config.train_videos + config.val_videos):
    script = video(config, seed, number)
    for i, act in enumerate(script.acts):
      action = grammar.ACTIONS.index(act.step.action)
      row = (
        f'{script.name}_{i}', script.name, script.person.name, act.start, act.stop,
        _VERB_OF[action], _NOUN_OF[action], action, script.split, True,
      )  # fmt: skip
      for column, value in zip(rows.values(), row, strict=True):
        column.append(value)
  segments = tables.columns(rows)
  known = segments['split'] == 'train'
  vocabulary = tables.Vocabulary(
    actions=grammar.ACTIONS, verbs=grammar.VERBS, nouns=grammar.NOUNS, verb_of=_VERB_OF, noun_of=_NOUN_OF,
    tail_verbs=_tail(segments['verb'][known], len(grammar.VERBS)),
    tail_nouns=_tail(segments['noun'][known], len(grammar.NOUNS)),
    unseen_participants=tuple(person(config, seed, config.people + i).name for i in range(UNSEEN)),
  )  # fmt: skip
  return tables.Annotations('kitchen', vocabulary, segments)


def _tail(labels: np.ndarray, classes: int, share: float = 0.2) -> tuple[int, ...]:
  """The rarest classes, which together hold at most `share` of the training segments."""
  counts = np.bincount(labels, minlength=classes)
  order = np.argsort(counts, kind='stable')
  return tuple(sorted(order[np.cumsum(counts[order]) <= share * max(counts.sum(), 1)].tolist()))


def footage(config: Config, seed: int) -> Iterator[tuple[str, Iterator[tuple[float, np.ndarray]]]]:
  """The videos, rendered as they are asked for: (name, its frames as (time in seconds, uint8 [size, size, 3]))."""
  for number in range(config.train_videos + config.val_videos):
    script = video(config, seed, number)
    yield script.name, film(config, seed, script)


def film(config: Config, seed: int, script: Video) -> Iterator[tuple[float, np.ndarray]]:
  """The frames of one video, from time 0 in steps of 1 / fps."""
  brush = painter.Painter(config.size, script.person.look, np.random.default_rng([seed, _FILMING, script.number]))
  for time, scene in scenes(script, config.fps):
    yield time, brush.paint(scene, time)


def scenes(script: Video, fps: float) -> Iterator[tuple[float, motion.Scene]]:
  """What is to be seen at each moment of a video, from time 0 in steps of 1 / fps.

  Hands turn to an action when it begins and not before: what tells the future is the state of the kitchen alone.
  """
  body, acts = script.person.body, script.acts
  world = acts[0].before if acts else grammar.World()
  current, begin = -1, body.waiting(world.held) if world.held else body.away
  for frame in range(round(script.duration * fps)):
    time = frame / fps
    while current + 1 < len(acts) and acts[current + 1].start <= time:
      if current >= 0:
        begin = _idle_hands(acts[current], acts[current + 1].start, begin, body)
      current += 1
    if current < 0:
      yield time, motion.idle(world, body, begin)
    elif time < acts[current].end:
      yield time, _scene(acts[current], time, body, begin)
    else:
      hands = _idle_hands(acts[current], time, begin, body)
      yield time, motion.idle(acts[current].after, body, hands)


def _scene(act: Act, time: float, body: motion.Body, begin: motion.Hands) -> motion.Scene:
  """The scene at `time` within an action."""
  progress = (time - act.start) / (act.end - act.start)
  return motion.perform(motion.Moment(act.before, act.after, act.step, progress, time - act.start, body, begin))


def _idle_hands(act: Act, time: float, begin: motion.Hands, body: motion.Body) -> motion.Hands:
  """Where the hands are at `time` after `act`, which they began from `begin`: what is held stays where it is."""
  end = _scene(act, act.end, body, begin).hands
  held = act.after.held
  goal = body.away if act.idle == 'away' and not held else body.waiting(held)
  share = motion.ramp(time - act.end, 0.0, 0.45)
  return motion.Hands(*(motion.between(start, stop, share) for start, stop in zip(end, goal)))


def ceiling(config: Config, seed: int, videos: int = 400) -> dict[str, float]:
  """What can be known about the next action of a known person: top-1 accuracies in [0, 1], by Monte Carlo.

  Returns:
    'state': of who knows the state of the grammar, the recipe included. No predictor can do better.
    'history': of who knows the grammar, the person and all actions from the beginning of the cooking.
    'bigram', 'trigram', 'context_4', 'context_8': of who knows the last 1, 2, 4, 8 actions, counted over 3/4 of the
      sequences and tested on the others.

  Measured with the defaults, seeds 0, 1, 2: state 0.96, history 0.92-0.93, bigram 0.46-0.50, trigram 0.66-0.70,
  context_4 0.76-0.79, context_8 0.81-0.83 (2.5 s each).
  """
  sequences, state, history = [], [], []
  for number in range(videos):
    who = person(config, seed, number % config.people).habits
    rng = np.random.default_rng([seed, _COOKING, config.train_videos + config.val_videos + number])
    skipped = int(rng.integers(0, 40))
    walked = grammar.walk(rng, grammar.State(who), skipped + 40)
    sequences.append([step.action for _, step in walked[skipped:]])
    if number < videos // 4:
      belief = [(1.0, grammar.State(who))]
      for i, (known, step) in enumerate(walked):
        if i > skipped:
          state.append(grammar.likeliest([(1.0, known)])[1])
          history.append(grammar.likeliest(belief)[1])
        belief = grammar.observe(belief, step.action)
  train, test = sequences[videos // 4 :], sequences[: videos // 4]
  orders = {'bigram': 1, 'trigram': 2, 'context_4': 4, 'context_8': 8}
  contexts = {name: grammar.context_accuracy(train, test, order) for name, order in orders.items()}
  return {'state': float(np.mean(state)), 'history': float(np.mean(history)), **contexts}
