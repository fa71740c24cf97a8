"""Where hands and things are while a step is carried out: the choreography of the kitchen world.

Coordinates are those of the table seen from above, in [0, 1] x [0, 1]: x to the right, y towards the person, who stands
at y > 1. Everything is a pure function of the symbolic world, the step and the progress in it. The verb is in the
motion: knives go to and fro, spoons in circles, bottles tilt, doors move with the hand, and what was put somewhere
stays there.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import NamedTuple

from video.arr.kitchen.grammar import Step, World

Point = tuple[float, float]

BOWL, PAN, SHELF, WATER = (0.16, 0.52), (0.52, 0.165), (0.35, 0.15), (0.835, 0.21)
_HOMES = {'bowl': BOWL, 'pan': PAN, 'bottle': SHELF, 'knife': (0.885, 0.62), 'spoon': (0.95, 0.62)}
_BOARD = {'tomato': (0.43, 0.50), 'cucumber': (0.63, 0.50), 'cheese': (0.44, 0.65), 'bread': (0.65, 0.65)}
_FRIDGE = {'tomato': (0.085, 0.09), 'cucumber': (0.205, 0.09), 'cheese': (0.085, 0.205), 'bread': (0.205, 0.205)}
_DRAWER = {'knife': (0.10, 0.93), 'spoon': (0.20, 0.93)}
VESSELS = {'bowl': BOWL, 'pan': PAN}
_HANDLES = {'fridge': ((0.26, 0.15), (0.04, 0.15)), 'drawer': ((0.15, 0.80), (0.15, 0.98)), 'tap': ((0.90, 0.07),) * 2}
_BOARD_CENTRE = (0.54, 0.575)


class Thing(NamedTuple):
  """A movable object as drawn: place, turn in radians (0 points away from the person), share that is cut."""

  x: float
  y: float
  angle: float = 0.0
  cut: float = 0.0


class Hands(NamedTuple):
  """The working hand and the helping one."""

  main: Point
  other: Point


@dataclasses.dataclass
class Scene:
  """All that moves in one frame.

  Attributes:
    hands: where the hands are.
    things: object -> as drawn; objects inside a vessel or a closed place are absent.
    opened: fridge, drawer, tap, bottle -> share by which it is open.
    filled: vessel -> its contents.
    turned: radians by which the contents of the vessel that is stirred have turned.
    stream: what runs between two points, ('oil' | 'food', from, to), or None.
    sponge: whether the working hand holds the sponge.
  """

  hands: Hands
  things: dict[str, Thing]
  opened: dict[str, float]
  filled: dict[str, tuple[str, ...]]
  turned: float = 0.0
  stream: tuple[str, Point, Point] | None = None
  sponge: bool = False


@dataclasses.dataclass(frozen=True)
class Body:
  """How a person moves: `side` is +1 where the working hand is the one at larger x, -1 else; `tempo` scales rates."""

  side: int = 1
  tempo: float = 1.0

  @property
  def rest(self) -> Hands:
    """Both hands on the edge of the table."""
    return Hands((0.5 + 0.13 * self.side, 0.90), (0.5 - 0.13 * self.side, 0.90))

  @property
  def away(self) -> Hands:
    """Both hands out of the picture."""
    return Hands((0.5 + 0.16 * self.side, 1.22), (0.5 - 0.16 * self.side, 1.22))

  def hold(self, noun: str) -> Point:
    """Where a held object waits for its use; a bowl is carried out of the picture."""
    return (0.5, 1.2) if noun == 'bowl' else (0.5 + 0.08 * self.side, 0.78)

  def waiting(self, held: str) -> Hands:
    """Both hands while nothing is done, with or without an object in the working hand."""
    return Hands(self.hold(held), self.rest.other) if held else self.rest


def idle(world: World, body: Body, hands: Hands) -> Scene:
  """Nobody does anything: things where they are, hands as given, what is held in the working hand."""
  things = {}
  for noun, place in world.places.items():
    cut = float(noun in world.chopped)
    if place == 'hand':
      things[noun] = Thing(*hands.main, cut=cut)
    elif point := _point(noun, place):
      things[noun] = Thing(*point, cut=cut)
  opened = {noun: float(noun in world.opened) for noun in ('fridge', 'drawer', 'tap', 'bottle')}
  return Scene(hands, things, opened, dict(world.filled))


class Moment(NamedTuple):
  """A moment of a step.

  Attributes:
    before, after: the world without and with the step's effect.
    step: what is done.
    progress: in [0, 1].
    seconds: since the step began; drives what repeats (strokes, circles).
    body: of the person.
    begin: where the hands were when the step began; they come from there.
  """

  before: World
  after: World
  step: Step
  progress: float
  seconds: float
  body: Body
  begin: Hands

  @property
  def source(self) -> Point:
    """Where the step's object is at the beginning."""
    noun = self.step.noun
    return self.begin.main if self.before.held == noun else _point(noun, self.before.places[noun])

  def main(self, *keys: tuple[float, Point]) -> Point:
    """The working hand on its way from where it was through points at given moments of progress."""
    return path(self.progress, (0.0, self.begin.main), *keys)

  def other(self, *keys: tuple[float, Point]) -> Point:
    """The helping hand likewise; without points it comes to rest."""
    return path(self.progress, (0.0, self.begin.other), *(keys or ((0.4, self.body.rest.other),)))

  def wave(self, hertz: float, phase: float = 0.0) -> float:
    """An oscillation in [-1, 1]; the rate is the person's, and below half of 4 frames per second."""
    return math.sin(2 * math.pi * hertz * self.body.tempo * self.seconds + phase)

  def scene(self, main: Point, other: Point, change: float = 1.0) -> Scene:
    """The scene with these hands; the step takes effect at progress `change`."""
    return idle(self.before if self.progress < change else self.after, self.body, Hands(main, other))


def perform(moment: Moment) -> Scene:
  """The scene at a moment of a step."""
  return _MOVES[moment.step.verb](moment)


def _point(noun: str, place: str) -> Point | None:
  """Where something lies at a place; None inside a vessel."""
  tables = {'board': _BOARD, 'fridge': _FRIDGE, 'drawer': _DRAWER}
  return None if place in VESSELS else tables.get(place, _HOMES).get(noun)


def ramp(u: float, start: float, stop: float) -> float:
  """0 before `start`, 1 after `stop`, smooth between."""
  t = min(max((u - start) / (stop - start), 0.0), 1.0)
  return t * t * (3 - 2 * t)


def between(start: Point, stop: Point, share: float) -> Point:
  """The point at a share of the way."""
  return start[0] + (stop[0] - start[0]) * share, start[1] + (stop[1] - start[1]) * share


def path(u: float, *keys: tuple[float, Point]) -> Point:
  """A smooth way through points at given moments."""
  for (t0, start), (t1, stop) in itertools.pairwise(keys):
    if u <= t1:
      return between(start, stop, ramp(u, t0, t1))
  return keys[-1][1]


def _shift(point: Point, x: float, y: float) -> Point:
  return point[0] + x, point[1] + y


def _leaving(point: Point, rest: Point) -> Point:
  """Where a hand is on its way back when the action ends."""
  return between(point, rest, 0.4)


def _take(m: Moment) -> Scene:
  """Goes there, grasps, comes back with it; a bowl takes two hands, which carry it out of the picture."""
  main = m.main((0.42, m.source), (0.55, m.source), (1.0, m.body.hold(m.step.noun)))
  if m.step.noun != 'bowl':
    return m.scene(main, m.other(), change=0.5)
  rim = _shift(m.source, -0.12 * m.body.side, 0.0)
  return m.scene(main, m.other((0.42, rim), (0.55, rim), (1.0, m.body.away.other)), change=0.5)


def _put(m: Moment) -> Scene:
  """Brings what is held; or grasps the pieces on the board and lets them fall into a vessel."""
  noun = m.step.noun
  goal = VESSELS.get(m.step.at) or _point(noun, m.step.at)
  leave = _leaving(goal, m.body.rest.main)
  if m.before.held == noun:
    return m.scene(m.main((0.5, goal), (0.68, goal), (1.0, leave)), m.other(), change=0.6)
  main = m.main((0.2, m.source), (0.34, m.source), (0.66, goal), (0.78, goal), (1.0, leave))
  scene = m.scene(main, m.other(), change=0.72)
  if 0.3 < m.progress < 0.72:
    scene.things[noun] = Thing(*main, cut=1.0)
  return scene


def _switch(m: Moment) -> Scene:
  """Opens or closes: the door moves with the hand, the tap's lever is turned, the bottle's cap unscrewed."""
  noun, share = m.step.noun, ramp(m.progress, 0.3, 0.8)
  share = share if m.step.verb == 'open' else 1 - share
  hold, rest = m.body.hold(m.before.held), m.body.rest
  if noun == 'bottle':
    cap = _shift(hold, -0.06 * m.body.side + 0.03 * m.wave(1.5), -0.13)
    scene = m.scene(hold, m.other((0.3, cap), (0.85, cap), (1.0, rest.other)))
  else:
    handle = _shift(between(*_HANDLES[noun], share), 0.03 * m.wave(1.2) if noun == 'tap' else 0.0, 0.0)
    if m.before.held:  # the helping hand does it
      scene = m.scene(hold, m.other((0.28, handle), (0.85, handle), (1.0, _leaving(handle, rest.other))))
    else:
      scene = m.scene(m.main((0.28, handle), (0.85, handle), (1.0, _leaving(handle, rest.main))), m.other())
  scene.opened[noun] = share
  return scene


def _wash(m: Moment) -> Scene:
  """Rubs something under the water with both hands, or the board with the sponge."""
  side, rest, noun = m.body.side, m.body.rest, m.step.noun
  if noun == 'board':
    circle = _shift(_BOARD_CENTRE, 0.15 * m.wave(0.8), 0.08 * m.wave(0.8, math.pi / 2))
    scene = m.scene(m.main((0.2, circle), (0.85, circle), (1.0, rest.main)), m.other())
    scene.sponge = True
    return scene
  held, rub = m.before.held == noun, 0.035 * m.wave(1.6)
  back = m.body.hold(noun) if held else m.source
  water, opposite = _shift(WATER, rub + 0.03 * side, 0.02), _shift(WATER, -rub - 0.07 * side, 0.05)
  main = m.main((0.12, m.source), (0.3, water), (0.8, water), (0.95, back), (1.0, back))
  scene = m.scene(main, m.other((0.3, opposite), (0.8, opposite), (1.0, rest.other)))
  if held or 0.1 < m.progress < 0.95:
    scene.things[noun] = Thing(*main, cut=float(noun in m.before.chopped))
  scene.opened['tap'] = 1.0
  return scene


def _cut(m: Moment) -> Scene:
  """The blade goes to and fro and along the food, which the other hand holds."""
  food, done, side = m.source, ramp(m.progress, 0.15, 0.9), m.body.side
  blade = _shift(food, side * (0.07 - 0.11 * done), 0.13 + 0.045 * m.wave(1.4))
  main = m.main((0.15, blade), (0.92, blade), (1.0, m.body.hold('knife')))
  grip = _shift(food, -0.10 * side, 0.02)
  scene = m.scene(main, m.other((0.15, grip), (0.9, grip), (1.0, m.body.rest.other)))
  scene.things[m.step.noun] = Thing(*food, cut=done)
  return scene


def _pour(m: Moment) -> Scene:
  """One vessel tilts over another and something runs out."""
  goal, side = VESSELS[m.step.at], m.body.side
  tilt = ramp(m.progress, 0.25, 0.4) * (1 - ramp(m.progress, 0.8, 0.92))
  above = _shift(goal, 0.18 * side, -0.05)
  main = m.main((0.3, above), (0.85, above), (1.0, m.body.hold(m.step.noun)))
  scene = m.scene(main, m.other(), change=0.55)
  scene.things[m.step.noun] = Thing(*main, angle=-2.0 * side * tilt)
  if tilt > 0.9:
    what = 'oil' if m.step.noun == 'bottle' else 'food'
    scene.stream = (what, _shift(main, -0.13 * side, 0.05), _shift(goal, 0.02 * m.wave(1.7), 0.03))
  return scene


def _stir(m: Moment) -> Scene:
  """The spoon's head goes round in the vessel, which the other hand holds."""
  centre, side = VESSELS[m.step.noun], m.body.side
  circle = _shift(centre, 0.05 * m.wave(1.1) + 0.09 * side, 0.05 * m.wave(1.1, math.pi / 2) + 0.13)
  rim = _shift(centre, -0.12 * side, 0.04)
  main = m.main((0.18, circle), (0.9, circle), (1.0, m.body.hold('spoon')))
  scene = m.scene(main, m.other((0.2, rim), (0.9, rim), (1.0, m.body.rest.other)))
  lean = ramp(m.progress, 0.1, 0.2) * (1 - ramp(m.progress, 0.9, 1.0))
  scene.things['spoon'] = Thing(*main, angle=-0.6 * side * lean)
  scene.turned = 2 * math.pi * 1.1 * m.body.tempo * m.seconds * ramp(m.progress, 0.15, 0.25)
  return scene


_MOVES = {
  'take': _take,
  'put': _put,
  'open': _switch,
  'close': _switch,
  'wash': _wash,
  'cut': _cut,
  'pour': _pour,
  'stir': _stir,
}
