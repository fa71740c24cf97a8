"""Draws the kitchen world: a scene from above as a small photograph, uint8 RGB.

Flat shapes with anti-aliased edges at twice the size, scaled down, then light, sensor noise and a slightly unsteady
camera. What a person owns (colours of the kitchen, sleeves, skin, the side on which things stand, the working hand)
comes from `look`; what a recording adds (light, noise) from the generator given to `Painter`. Our choice throughout.
"""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np

from video.arr.kitchen.grammar import INGREDIENTS
from video.arr.kitchen.motion import BOWL, PAN, WATER, Hands, Point, Scene, Thing

Color = tuple[int, int, int]

_SLEEVES = (
  (38, 52, 110), (120, 40, 60), (60, 60, 64), (24, 110, 110), (110, 70, 140),
  (225, 225, 220), (190, 100, 40), (70, 95, 50), (70, 130, 190), (215, 130, 150),
)  # fmt: skip
_SKINS = ((244, 208, 180), (226, 178, 142), (198, 146, 108), (156, 106, 74), (110, 74, 52))
_COUNTERS = ((196, 190, 180), (150, 158, 166), (204, 184, 150), (172, 180, 160), (120, 116, 116), (186, 164, 160))
_WOODS = ((206, 164, 112), (180, 128, 82), (222, 190, 140))
_CABINETS = ((232, 232, 228), (150, 110, 80), (120, 150, 170), (100, 120, 100), (216, 200, 170))
_FOOD = {'tomato': (214, 40, 30), 'cucumber': (44, 130, 50), 'cheese': (246, 206, 60), 'bread': (166, 106, 52)}
_FLESH = {'tomato': (238, 96, 76), 'cucumber': (188, 224, 150), 'cheese': (255, 228, 120), 'bread': (240, 214, 166)}
_OIL, _WATER, _STEEL, _DARK = (226, 190, 40), (120, 190, 240), (176, 182, 190), (44, 44, 48)
_FRIDGE, _DRAWER = (0.02, 0.03, 0.29, 0.26), (0.03, 0.77, 0.27, 0.99)
_STOVE, _SINK, _BOARD = (0.40, 0.03, 0.64, 0.30), (0.70, 0.04, 0.97, 0.33), (0.33, 0.42, 0.76, 0.73)
_MARGIN, _ONE = 4, 16  # px of the canvas around the picture; units of a pixel in OpenCV's fixed point


@dataclasses.dataclass(frozen=True)
class Look:
  """What can be seen of a person and of their kitchen: colours, and which way round things are."""

  sleeve: Color
  skin: Color
  counter: Color
  wood: Color
  cabinet: Color
  mirrored: bool
  left_handed: bool

  @property
  def side(self) -> int:
    """+1 where the working hand is the right one in the drawing before it is mirrored, -1 where it is the left one."""
    return -1 if self.left_handed != self.mirrored else 1


def look(rng: np.random.Generator, number: int) -> Look:
  """Draws the look of person `number`; no two of ten people wear the same sleeves."""

  def one(colors: tuple[Color, ...]) -> Color:
    return tuple(int(np.clip(c + rng.integers(-8, 9), 0, 255)) for c in colors[rng.integers(len(colors))])

  return Look(
    sleeve=_SLEEVES[number % len(_SLEEVES)],
    skin=one(_SKINS),
    counter=one(_COUNTERS),
    wood=one(_WOODS),
    cabinet=one(_CABINETS),
    mirrored=bool(rng.random() < 0.4),
    left_handed=bool(rng.random() < 0.25),
  )


class _Brush:
  """Shapes in table coordinates on a canvas uint8 [C, C, 3]."""

  def __init__(self, canvas: np.ndarray):
    self.canvas = canvas
    self.scale = (len(canvas) - 2 * _MARGIN) * _ONE

  def _at(self, point: Point) -> tuple[int, int]:
    return int(point[0] * self.scale) + _MARGIN * _ONE, int(point[1] * self.scale) + _MARGIN * _ONE

  def disc(self, center: Point, radius: float, color: Color) -> None:
    cv2.circle(self.canvas, self._at(center), int(radius * self.scale), color, -1, cv2.LINE_AA, 4)

  def oval(self, center: Point, width: float, height: float, angle: float, color: Color) -> None:
    axes = (int(width * self.scale), int(height * self.scale))
    cv2.ellipse(self.canvas, self._at(center), axes, math.degrees(angle), 0, 360, color, -1, cv2.LINE_AA, 4)

  def line(self, start: Point, stop: Point, width: float, color: Color) -> None:
    thickness = max(1, round(width * self.scale / _ONE))
    cv2.line(self.canvas, self._at(start), self._at(stop), color, thickness, cv2.LINE_AA, 4)

  def box(self, x0: float, y0: float, x1: float, y1: float, color: Color) -> None:
    cv2.rectangle(self.canvas, self._at((x0, y0)), self._at((x1, y1)), color, -1, cv2.LINE_AA, 4)

  def shape(self, points: list[Point], color: Color) -> None:
    cv2.fillConvexPoly(self.canvas, np.array([self._at(p) for p in points], np.int32), color, cv2.LINE_AA, 4)


def _along(point: Point, angle: float, forward: float, sideways: float = 0.0) -> Point:
  """A point from `point`, `forward` in the direction `angle` (0 is up in the picture) and `sideways` to its right."""
  s, c = math.sin(angle), math.cos(angle)
  return point[0] + forward * s + sideways * c, point[1] - forward * c + sideways * s


def _shade(color: Color, factor: float) -> Color:
  return tuple(min(255, int(c * factor)) for c in color)


class Painter:
  """Paints the frames of one recording, in order: the camera's shake and the noise are drawn along the way.

  Args:
    size: pixels of a side.
    look: of the person and the kitchen.
    rng: of the recording; taken over.
  """

  def __init__(self, size: int, look: Look, rng: np.random.Generator):
    self.size, self.look, self._rng = size, look, rng
    self._back = self._background()
    self._canvas = self._back.copy()
    self._brush = _Brush(self._canvas)
    color = rng.uniform(0.92, 1.06, 3) * rng.uniform(0.82, 1.08)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    slope = 1 + 0.10 * (rng.uniform(-1, 1) * y + rng.uniform(-1, 1) * x) - 0.06 * np.hypot(x, y)
    self._light = (slope[..., None] * color).astype(np.float32)
    self._noise = rng.normal(0, rng.uniform(2.0, 5.0), (size + 32, size + 32, 3)).astype(np.float32)
    self._shake = rng.uniform(0, 2 * np.pi, 4)

  def paint(self, scene: Scene, time: float) -> np.ndarray:
    """The frame uint8 [size, size, 3] of a scene at `time` seconds."""
    np.copyto(self._canvas, self._back)
    held = next((noun for noun, thing in scene.things.items() if thing[:2] == scene.hands.main), '')
    stored = {noun: thing for noun, thing in scene.things.items() if noun != held and _is_stored(thing)}
    self._tap(scene, time)
    self._storage(scene, stored)
    lying = [noun for noun in scene.things if noun not in stored and noun != held]
    for noun in sorted(lying, key=lambda noun: noun not in scene.filled):  # vessels lie below
      self._thing(noun, scene.things[noun], scene)
    self._arms(scene.hands)
    if held and held not in INGREDIENTS:
      self._thing(held, scene.things[held], scene)
    if scene.stream:
      self._stream(*scene.stream)
    self._fingers(scene.hands)
    if held in INGREDIENTS:
      x, y, angle, cut = scene.things[held]
      self._thing(held, Thing(x, y - 0.045, angle, cut), scene)
    if scene.sponge:
      x, y = scene.hands.main
      self._brush.box(x - 0.05, y - 0.08, x + 0.05, y - 0.02, (250, 236, 90))
    return self._photograph(time)

  def _photograph(self, time: float) -> np.ndarray:
    """Canvas -> picture: unsteady camera, mirrored kitchen, light, noise."""
    a, b, c, d = self._shake
    dx = round(1.4 * math.sin(1.9 * time + a) + 0.9 * math.sin(5.3 * time + b)) + _MARGIN
    dy = round(1.4 * math.sin(1.6 * time + c) + 0.9 * math.sin(4.7 * time + d)) + _MARGIN
    window = self._canvas[dy : dy + 2 * self.size, dx : dx + 2 * self.size]
    small = cv2.resize(window, (self.size, self.size), interpolation=cv2.INTER_AREA)
    if self.look.mirrored:
      small = cv2.flip(small, 1)
    y, x = self._rng.integers(0, 32, 2)
    noise = self._noise[y : y + self.size, x : x + self.size]
    bright = small * (self._light * np.float32(1 + 0.02 * math.sin(0.7 * time + a))) + noise
    return np.clip(bright, 0, 255).astype(np.uint8)

  def _background(self) -> np.ndarray:
    """All that never moves, uint8 [C, C, 3]."""
    side, own = 2 * self.size + 2 * _MARGIN, self.look
    grain = cv2.resize(self._rng.normal(0, 5, (side // 4, side // 4, 1)), (side, side), interpolation=cv2.INTER_LINEAR)
    canvas = np.clip(np.array(own.counter) + grain[..., None], 0, 255).astype(np.uint8)
    brush = _Brush(canvas)
    brush.box(-0.1, -0.1, 1.1, 0.02, _shade(own.counter, 0.6))
    brush.box(*_STOVE, (58, 58, 64))
    brush.disc(PAN, 0.105, (92, 40, 34))
    brush.box(*_SINK, _STEEL)
    brush.box(0.725, 0.10, 0.945, 0.31, _shade(_STEEL, 0.74))
    brush.box(*_BOARD, own.wood)
    for y in (0.50, 0.58, 0.66):
      brush.line((0.34, y), (0.75, y), 0.008, _shade(own.wood, 0.92))
    brush.disc(BOWL, 0.125, _shade(own.counter, 0.86))
    return canvas

  def _tap(self, scene: Scene, time: float) -> None:
    """Spout and lever, red when shut and blue when open, and the water."""
    brush, flicker = self._brush, 0.008 * math.sin(21 * time)
    if scene.opened['tap'] > 0.5:
      brush.disc((WATER[0] + flicker, WATER[1] + 0.04), 0.09, _shade(_WATER, 0.86))
      brush.disc((WATER[0] - flicker, WATER[1] + 0.04), 0.055, _WATER)
      brush.line((WATER[0], 0.15), (WATER[0] + flicker, WATER[1] + 0.05), 0.035, (220, 242, 255))
    brush.line((WATER[0], 0.03), (WATER[0], 0.15), 0.035, (230, 234, 240))
    brush.line((WATER[0], 0.06), (0.90, 0.06), 0.02, (230, 234, 240))
    brush.disc((0.90, 0.06), 0.026, (50, 110, 230) if scene.opened['tap'] > 0.5 else (210, 50, 50))

  def _storage(self, scene: Scene, stored: dict[str, Thing]) -> None:
    """Fridge and drawer with what lies in them, as far as they are open."""
    brush, (fx0, fy0, fx1, fy1), (dx0, dy0, dx1, dy1) = self._brush, _FRIDGE, _DRAWER
    fridge, drawer = scene.opened['fridge'], scene.opened['drawer']
    if fridge > 0:
      brush.box(fx0, fy0, fx1, fy1, (206, 234, 252))
      brush.line((fx0, 0.145), (fx1, 0.145), 0.012, (150, 184, 212))
    if drawer > 0:
      brush.box(dx0, dy0, dx1, dy1, (84, 66, 54))
    for noun, thing in stored.items():
      if noun in INGREDIENTS and fridge > 0:
        self._food(noun, thing, size=0.7)
      elif noun not in INGREDIENTS and drawer > 0:
        self._thing(noun, thing, scene)
    edge = fx1 - (fx1 - fx0 - 0.03) * fridge
    brush.box(fx0, fy0, edge, fy1, _shade(self.look.cabinet, 0.95))
    brush.line((edge - 0.03, 0.09), (edge - 0.03, 0.20), 0.018, _DARK)
    edge = dy0 + (dy1 - dy0 - 0.03) * drawer
    brush.box(dx0, edge, dx1, 1.1, _shade(self.look.cabinet, 0.78))
    brush.line((0.11, edge + 0.03), (0.19, edge + 0.03), 0.018, _DARK)

  def _thing(self, noun: str, thing: Thing, scene: Scene) -> None:
    """One movable object."""
    if noun in INGREDIENTS:
      self._food(noun, thing)
    elif noun in scene.filled:
      self._vessel(noun, thing, scene)
    else:
      {'knife': self._knife, 'spoon': self._spoon, 'bottle': self._bottle}[noun](thing, scene)

  def _food(self, noun: str, thing: Thing, size: float = 1.0) -> None:
    """What is left of the whole food, from one end to the knife; the slices that are cut lie beside it."""
    (x, y, _, cut), side = thing, self.look.side
    half = {'tomato': 0.052, 'cucumber': 0.095, 'cheese': 0.06, 'bread': 0.075}[noun] * size
    if cut < 1:
      self._whole(noun, x - side * half, x + side * half * (1 - 2 * cut), y, size)
    for i in range(4):
      if cut > (i + 0.5) / 4:
        self._slice(noun, (x + side * half * (0.75 - 0.5 * i), y + 0.016 * (-1) ** i))

  def _whole(self, noun: str, start: float, stop: float, y: float, size: float) -> None:
    """Uncut food between two x."""
    brush, color, middle = self._brush, _FOOD[noun], (start + stop) / 2
    if noun == 'tomato':
      brush.oval((middle, y), abs(stop - start) / 2, 0.052 * size, 0.0, color)
      brush.disc((middle - 0.015, y - 0.015), 0.014 * size, _shade(color, 1.35))
    elif noun == 'cucumber':
      inset = 0.03 * size * (1 if stop > start else -1)
      brush.line(
        (start + inset, y), (stop - inset, y) if abs(stop - start) > 0.06 else (start + inset, y), 0.06 * size, color
      )
    elif noun == 'cheese':
      brush.shape([(start, y + 0.045 * size), (stop, y + 0.045 * size), (stop, y - 0.05 * size)], color)
    else:
      brush.box(min(start, stop), y - 0.05 * size, max(start, stop), y + 0.05 * size, color)
      brush.oval((middle, y), abs(stop - start) * 0.35, 0.033 * size, 0.0, _shade(color, 1.25))

  def _slice(self, noun: str, at: Point, size: float = 1.0) -> None:
    """One slice: a round one with its rind, or a narrow one."""
    if noun in ('tomato', 'cucumber'):
      self._brush.disc(at, 0.033 * size, _FOOD[noun])
      self._brush.disc(at, 0.021 * size, _FLESH[noun])
      return
    for width, height, color in ((0.018, 0.045, _FOOD[noun]), (0.010, 0.037, _FLESH[noun])):
      width, height = width * size, height * size
      self._brush.box(at[0] - width, at[1] - height, at[0] + width, at[1] + height, color)

  def _vessel(self, noun: str, thing: Thing, scene: Scene) -> None:
    """Bowl or pan with its contents, which turn when they are stirred."""
    brush, (x, y, angle, _) = self._brush, thing
    if noun == 'pan':
      grip = math.pi * 0.72 + angle
      brush.line(_along((x, y), grip, 0.08), _along((x, y), grip, 0.20), 0.035, _DARK)
      brush.disc((x, y), 0.105, _DARK)
      brush.disc((x, y), 0.082, (86, 86, 92))
    else:
      brush.disc((x, y), 0.115, self.look.sleeve if self.look.sleeve[0] < 100 else (90, 120, 190))
      brush.disc((x, y), 0.098, (240, 240, 238))
    for layer, item in enumerate(scene.filled[noun]):  # three pieces of each, in the gaps that the others leave
      for i in range(3):
        turn = scene.turned + layer * math.pi / 6 + i * math.pi / 1.5
        at = _along((x, y), turn, 0.056 if layer % 2 == 0 else 0.03)
        if item == 'oil':
          brush.disc(at, 0.022, _OIL)
        else:
          self._slice(item, at, 0.8)

  def _knife(self, thing: Thing, scene: Scene) -> None:
    x, y, angle, _ = thing
    point = (x, y)
    tip, heel = _along(point, angle, 0.19), _along(point, angle, 0.03, -0.028)
    self._brush.shape([_along(point, angle, 0.03, 0.012), tip, heel], (238, 242, 248))
    self._brush.line(_along(point, angle, 0.03), _along(point, angle, -0.07), 0.03, (30, 30, 36))

  def _spoon(self, thing: Thing, scene: Scene) -> None:
    x, y, angle, _ = thing
    self._brush.line(_along((x, y), angle, 0.12), _along((x, y), angle, -0.07), 0.022, (150, 90, 40))
    self._brush.oval(_along((x, y), angle, 0.15), 0.032, 0.042, angle, (176, 110, 54))

  def _bottle(self, thing: Thing, scene: Scene) -> None:
    x, y, angle, _ = thing
    body, neck = _along((x, y), angle, 0.085), _along((x, y), angle, 0.13)
    self._brush.line(_along((x, y), angle, -0.02), body, 0.075, (150, 160, 40))
    self._brush.line(_along((x, y), angle, 0.02), _along((x, y), angle, 0.06), 0.05, (236, 226, 150))
    self._brush.line(body, neck, 0.035, (150, 160, 40))
    self._brush.disc(neck, 0.024, (60, 66, 20) if scene.opened['bottle'] > 0.5 else (230, 60, 160))

  def _stream(self, kind: str, start: Point, stop: Point) -> None:
    """What runs from one vessel into another."""
    self._brush.line(start, stop, 0.03, _OIL if kind == 'oil' else (200, 110, 60))
    self._brush.disc(stop, 0.035, _shade(_OIL if kind == 'oil' else (200, 110, 60), 1.1))

  def _arms(self, hands: Hands) -> None:
    """Sleeves from the shoulders to the wrists, the helping arm below."""
    for hand, shoulder in self._limbs(hands):
      wrist = _toward(hand, shoulder, 0.055)
      self._brush.line(shoulder, wrist, 0.115, _shade(self.look.sleeve, 0.75))
      self._brush.line(shoulder, wrist, 0.085, self.look.sleeve)

  def _fingers(self, hands: Hands) -> None:
    """Hands: a palm, the thumb, and the dark edge that parts them from what they hold."""
    skin, edge = self.look.skin, _shade(self.look.skin, 0.7)
    for hand, shoulder in self._limbs(hands):
      palm = _toward(hand, shoulder, 0.02)
      self._brush.disc(palm, 0.056, edge)
      self._brush.disc(palm, 0.047, skin)
      inward = 0.045 if shoulder[0] < 0.5 else -0.045
      self._brush.line(palm, (palm[0] + inward, palm[1] - 0.035), 0.028, skin)

  def _limbs(self, hands: Hands) -> tuple[tuple[Point, Point], ...]:
    """((hand, shoulder), ...), the helping one first."""
    side = self.look.side
    return (hands.other, (0.5 - 0.2 * side, 1.12)), (hands.main, (0.5 + 0.2 * side, 1.12))


def _toward(point: Point, goal: Point, distance: float) -> Point:
  """The point at `distance` from `point` on the way to `goal`."""
  x, y = goal[0] - point[0], goal[1] - point[1]
  length = max(math.hypot(x, y), 1e-6)
  return point[0] + x / length * distance, point[1] + y / length * distance


def _is_stored(thing: Thing) -> bool:
  """Whether something lies where the fridge or the drawer is."""
  return any(x0 <= thing.x <= x1 and y0 <= thing.y <= y1 for x0, y0, x1, y1 in (_FRIDGE, _DRAWER))
