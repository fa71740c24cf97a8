"""A portrait from its parameters. Colours are in -1..1; lengths of the face are in units of its radius.

Ranges that spec 9c gives are marked so; the others are our choice, made such that every part of a face covers a few
pixels of 32.
"""

from __future__ import annotations

import dataclasses

import numpy as np

REFERENCE = 32
"""Pixels along a side that lengths in pixels of the spec refer to."""
HEAD = 1.1
"""Radius of the hair's cap, in radii of the face."""
EYES, MOUTH = -0.12, 0.45
"""Heights of the eyes and the mouth below the centre, in radii of the face."""


@dataclasses.dataclass(frozen=True)
class Identity:
  """What stays with a person.

  Attributes:
    skin: f [3] in -0.2..0.9 (spec 9c).
    eye_colour, hair_colour: f [3].
    aspect: height over width of the face, 0.8..1.25 (spec 9c).
    eye_distance: between the centres of the eyes, in radii.
    eye_size: radius of an eye, in radii of the face.
    mouth_width: half of it, in radii.
    mouth_curve: how far its corners rise, in radii; negative: they hang.
    hair_height: where the hair ends, in radii above the centre.
    stripe_frequency: cycles per pixel, 0.22..0.42 (spec 9c).
    stripe_angle: direction of the wave, 0..π (spec 9c).
    stripe_amplitude: 0.15..0.35 (spec 9c).
  """

  skin: np.ndarray
  eye_colour: np.ndarray
  hair_colour: np.ndarray
  aspect: float
  eye_distance: float
  eye_size: float
  mouth_width: float
  mouth_curve: float
  hair_height: float
  stripe_frequency: float
  stripe_angle: float
  stripe_amplitude: float


@dataclasses.dataclass(frozen=True)
class Photo:
  """What changes from photo to photo.

  Attributes:
    centre: f [2], x and y of the face in pixels of 32, 16 ± 3 (spec 9c).
    radius: of the face as a share of the side, 0.27..0.34 (spec 9c).
    brightness: factor on all light, 0.85..1.1 (spec 9c).
    background: f [3].
    gradient: f [2, 3], what the background gains along x and y from one edge to the other.
    discs: f [n, 6] of 1 to 3 discs (spec 9c): x, y, radius (shares of the side), colour.
  """

  centre: np.ndarray
  radius: float
  brightness: float
  background: np.ndarray
  gradient: np.ndarray
  discs: np.ndarray


def sample_identity(rng: np.random.Generator) -> Identity:
  """A new person."""
  return Identity(
    skin=rng.uniform(-0.2, 0.9, 3),
    eye_colour=rng.uniform(-1.0, 0.3, 3),
    hair_colour=rng.uniform(-1.0, 0.6, 3),
    aspect=rng.uniform(0.8, 1.25),
    eye_distance=rng.uniform(0.6, 0.95),
    eye_size=rng.uniform(0.12, 0.22),
    mouth_width=rng.uniform(0.25, 0.5),
    mouth_curve=rng.uniform(-0.15, 0.2),
    hair_height=rng.uniform(0.35, 0.75),
    stripe_frequency=rng.uniform(0.22, 0.42),
    stripe_angle=rng.uniform(0, np.pi),
    stripe_amplitude=rng.uniform(0.15, 0.35),
  )


def sample_photo(rng: np.random.Generator) -> Photo:
  """A new occasion to take a picture of somebody."""
  count = rng.integers(1, 4)
  return Photo(
    centre=REFERENCE / 2 + rng.uniform(-3, 3, 2),
    radius=rng.uniform(0.27, 0.34),
    brightness=rng.uniform(0.85, 1.1),
    background=rng.uniform(-0.9, 0.9, 3),
    gradient=rng.uniform(-0.5, 0.5, (2, 3)),
    discs=np.column_stack([
      rng.uniform(0, 1, (count, 2)), rng.uniform(0.05, 0.2, count), rng.uniform(-1, 1, (count, 3)),
    ]),
  )  # fmt: skip


def render(identity: Identity, photo: Photo, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Draws a portrait.

  Args:
    identity: who.
    photo: under which circumstances.
    size: S, pixels along a side. The stripes keep their cycles per pixel, all else its share of the picture.

  Returns:
    (picture f32 [S, S, 3] in -1..1, mask bool [S, S] of the head: face and hair).
  """
  y, x = np.mgrid[:size, :size] + 0.5
  image = _background(photo, x / size, y / size, size)
  centre, radius = photo.centre * size / REFERENCE, photo.radius * size
  # The face's own axes, in which it is the unit disc; `soft` is a pixel there.
  stretch, soft = np.sqrt(identity.aspect), 1 / radius
  u, v = (x - centre[0]) / radius * stretch, (y - centre[1]) / radius / stretch
  wave = np.cos(identity.stripe_angle) * (x - centre[0]) + np.sin(identity.stripe_angle) * (y - centre[1])
  stripes = identity.stripe_amplitude * np.sin(2 * np.pi * identity.stripe_frequency * wave)
  face, cap = _inside(1 - np.hypot(u, v), soft), _inside(HEAD - np.hypot(u, v), soft)
  hair = cap * _inside(-identity.hair_height - v + 0.15 * u**2, soft)
  image = _over(image, identity.skin + stripes[..., None], face)
  for side in (-0.5, 0.5):
    distance = np.hypot(u - side * identity.eye_distance, v - EYES)
    image = _over(image, np.full(3, 0.95), _inside(1.5 * identity.eye_size - distance, soft) * face)
    image = _over(image, identity.eye_colour, _inside(identity.eye_size - distance, soft) * face)
  bend = MOUTH - identity.mouth_curve * (u / identity.mouth_width) ** 2 + identity.mouth_curve / 2
  lips = _inside(0.09 - np.abs(v - bend), soft) * _inside(identity.mouth_width - np.abs(u), soft)
  image = _over(image, np.array([0.3, -0.7, -0.6]), lips * face)
  image = _over(image, identity.hair_colour, hair)
  image = np.clip((image + 1) * photo.brightness - 1, -1, 1)
  return image.astype(np.float32), np.maximum(face, hair) > 0.5


def _background(photo: Photo, x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
  """A colour with a linear gradient, and discs on it."""
  image = photo.background + (x - 0.5)[..., None] * photo.gradient[0] + (y - 0.5)[..., None] * photo.gradient[1]
  for left, top, radius, *colour in photo.discs:
    image = _over(image, np.array(colour), _inside(radius - np.hypot(x - left, y - top), 1 / size))
  return image


def _inside(distance: np.ndarray, pixel: float) -> np.ndarray:
  """Coverage 0..1 of pixels whose centres lie so far inside an edge: a ramp of one pixel, half on the edge itself."""
  return np.clip(distance / pixel + 0.5, 0, 1)


def _over(image: np.ndarray, colour: np.ndarray, coverage: np.ndarray) -> np.ndarray:
  return image + coverage[..., None] * (colour - image)
