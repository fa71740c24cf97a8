"""Where things are on a face: the curves that the painter fills and the 68 landmarks that lie on them.

Painter and landmarks read the same curves, so that a landmark cannot leave its feature. `Head` maps a picture point to
the head's surface (an ellipsoid whose width shrinks towards the chin) and a surface point back to the picture.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from core.synth.faces.params import Expression, FaceParams, Identity, Pose


@dataclasses.dataclass(frozen=True)
class Features:
  """Sizes and places of the features after the expression has acted; head units, y down."""

  brow_inner: jax.Array
  brow_outer: jax.Array
  brow_squeeze: jax.Array
  eye_open: jax.Array
  cheek: jax.Array
  wrinkle: jax.Array
  mouth_y: jax.Array
  mouth_width: jax.Array
  mouth_open: jax.Array
  corner: jax.Array
  chin_drop: jax.Array


def features(identity: Identity, expression: Expression) -> Features:
  """What the nine actions, the blink and the speech do to the features."""
  inner, outer, squeeze, eyes, cheek, wrinkle, mouth, smile, wide = expression.actions()
  opening = jnp.clip(mouth + 0.5 * expression.speech, 0.0, 1.2)
  return Features(
    brow_inner=-0.055 * inner + 0.012 * wrinkle,
    brow_outer=-0.045 * outer,
    brow_squeeze=0.04 * squeeze,
    eye_open=jnp.clip(1.0 + 0.4 * eyes, 0.2, 1.5) * (1.0 - expression.blink),
    cheek=cheek,
    wrinkle=wrinkle,
    mouth_y=identity.mouth_y - 0.02 * wrinkle,
    mouth_width=identity.mouth_width * (1.0 + 0.28 * wide - 0.12 * expression.speech),
    mouth_open=0.15 * opening,
    corner=-0.07 * smile,
    chin_drop=0.08 * opening,
  )


def lids(identity: Identity, found: Features, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Upper and lower lid (y of each) at `x`, the distance from the eye's centre, positive outward."""
  arch = jnp.clip(1.0 - (x / identity.eye_width) ** 2, 0.0, 1.0)
  middle = identity.eye_y + identity.eye_tilt * x
  upper = (
    middle
    - 1.25 * identity.eye_height * found.eye_open * arch**0.8
    + 0.35 * identity.eye_height * (1.0 - jnp.minimum(found.eye_open, 1.0)) * arch
  )
  lower = (
    middle
    + (0.75 - 0.25 * found.cheek)
    * identity.eye_height
    * (0.5 * found.eye_open + 0.5 * jnp.minimum(found.eye_open * 4.0, 1.0))
    * arch
    + 0.35 * identity.eye_height * (1.0 - jnp.minimum(found.eye_open * 4.0, 1.0)) * arch
  )
  return upper, jnp.maximum(lower, upper)


def brow(identity: Identity, found: Features, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Middle line (y) and half thickness of a brow at `x`, measured like `lids`'."""
  along = jnp.clip((x + brow_reach(identity, found)[0]) / sum(brow_reach(identity, found)), 0.0, 1.0)
  middle = identity.eye_y - identity.brow_gap - 4.0 * identity.brow_arch * along * (1.0 - along)
  middle = middle + found.brow_inner * (1.0 - along) ** 2 + found.brow_outer * along**0.7 + 0.04 * (along - 0.3)
  return middle, identity.brow_thickness * (1.0 - 0.75 * along**1.5) * (0.6 + 0.4 * jnp.minimum(4.0 * along, 1.0))


def brow_reach(identity: Identity, found: Features) -> tuple[jax.Array, jax.Array]:
  """How far a brow goes inward and outward from the eye's centre."""
  return 1.15 * identity.eye_width + found.brow_squeeze, 1.35 * identity.eye_width


def mouth(identity: Identity, found: Features, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """The y of upper lip's top, upper lip's bottom, lower lip's top and lower lip's bottom at `x` from the middle."""
  t = jnp.clip(jnp.abs(x) / found.mouth_width, 0.0, 1.0)
  line = found.mouth_y + found.corner * t**2 - 0.3 * found.corner
  arch = 1.0 - t**2
  bow = jnp.exp(-((t / 0.16) ** 2))
  stretch = 1.0 - 1.2 * jnp.maximum(-found.corner, 0.0) / 0.2
  upper_in = line - 0.25 * found.mouth_open * arch
  upper_out = upper_in - identity.lip_upper * stretch * (arch**0.7) * (1.0 - 0.28 * bow)
  lower_in = line + 0.95 * found.mouth_open * arch**0.8
  lower_out = lower_in + identity.lip_lower * stretch * arch**0.75
  return upper_out, upper_in, lower_in, lower_out


def nose(identity: Identity) -> tuple[jax.Array, jax.Array]:
  """The y of the nose's root and of its base."""
  return identity.eye_y + 0.02, identity.eye_y + identity.nose_length + 0.02


@dataclasses.dataclass(frozen=True)
class Head:
  """The head's surface under a pose."""

  identity: Identity
  pose: Pose
  chin_drop: jax.Array

  @property
  def depth(self) -> jax.Array:
    """Half extent towards the camera."""
    return 0.95 * self.identity.width

  def _radii(self, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Half width at height `y`, and the half height that makes the outline's exponent (a squarer lower face)."""
    height = self.identity.height + jnp.where(y > 0, self.chin_drop, 0.0)
    share = jnp.clip(y / height, -1.0, 1.0)
    low = jnp.clip(share, 0.0, 1.0)
    width = self.identity.width * (1.0 - self.identity.jaw * low * low * (1.5 - 0.5 * low))
    exponent = jnp.where(share > 0, self.identity.squareness - 2.0, 0.3)
    return width, height * jnp.maximum(jnp.abs(share), 0.05) ** (-0.5 * exponent)

  def to_view(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Crop coordinates -> head units seen from the camera (framing and roll undone)."""
    x, y = (x - self.pose.x) / self.pose.scale, (y - self.pose.y) / self.pose.scale
    c, s = jnp.cos(self.pose.roll), jnp.sin(self.pose.roll)
    return c * x + s * y, -s * x + c * y

  def from_view(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The inverse of `to_view`."""
    c, s = jnp.cos(self.pose.roll), jnp.sin(self.pose.roll)
    return self.pose.scale * (c * x - s * y) + self.pose.x, self.pose.scale * (s * x + c * y) + self.pose.y

  def hit(self, x: jax.Array, y: jax.Array):
    """Where the ray through view point (x, y) meets the head.

    Returns:
      (X, Y, Z) on the surface in the head's own frame, and `inside`: > 0 within the outline, about twice the distance
      from it in units of the half width.
    """
    cp, sp = jnp.cos(self.pose.pitch), jnp.sin(self.pose.pitch)
    cy, sy = jnp.cos(self.pose.yaw), jnp.sin(self.pose.yaw)
    # Head frame as a function of the unknown depth z: X = x0 + x1 z, and so on.
    x0, x1 = x * cy + y * sp * sy, -cp * sy
    y0, y1 = y * cp, sp
    z0, z1 = x * sy - y * sp * cy, cp * cy
    z = jnp.zeros_like(x)
    inside = z
    for _ in range(3):  # the radii depend on Y, which depends on z through the pitch only: three rounds are plenty
      width, height = self._radii(y0 + y1 * z)
      w2, h2, d2 = 1.0 / width**2, 1.0 / height**2, 1.0 / self.depth**2
      a = x1 * x1 * w2 + y1 * y1 * h2 + z1 * z1 * d2
      b = x0 * x1 * w2 + y0 * y1 * h2 + z0 * z1 * d2
      c = x0 * x0 * w2 + y0 * y0 * h2 + z0 * z0 * d2 - 1.0
      inside = b * b / a - c
      z = (-b + jnp.sqrt(jnp.maximum(inside, 0.0) * a)) / a
    return x0 + x1 * z, y0 + y1 * z, z0 + z1 * z, inside

  def surface_depth(self, x: jax.Array, y: jax.Array) -> jax.Array:
    """Z of the surface at head-frame (X, Y)."""
    width, height = self._radii(y)
    return self.depth * jnp.sqrt(jnp.maximum(1.0 - (x / width) ** 2 - (y / height) ** 2, 0.0))

  def half_width(self, y: jax.Array) -> jax.Array:
    """Half width of the frontal outline at height Y."""
    width, height = self._radii(y)
    return width * jnp.sqrt(jnp.maximum(1.0 - (y / height) ** 2, 0.0))

  def rotate(self, x: jax.Array, y: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Head frame -> camera frame (without roll and framing), e.g. for points and normals."""
    cp, sp = jnp.cos(self.pose.pitch), jnp.sin(self.pose.pitch)
    cy, sy = jnp.cos(self.pose.yaw), jnp.sin(self.pose.yaw)
    x, z = x * cy - z * -sy, -x * sy + z * cy
    return x, y * cp - z * sp, y * sp + z * cp


def landmarks(params: FaceParams, size: int) -> jax.Array:
  """The 68 iBUG landmarks, f32 [68, 2] (x, y) in pixels of a `size` x `size` crop; pixel centres are whole numbers."""
  identity, found = params.identity, features(params.identity, params.expression)
  head = Head(identity, params.pose, found.chin_drop)
  angle = jnp.linspace(-1.45, 1.45, 17)
  jaw_y = 0.0 + (identity.height + found.chin_drop) * 0.985 * jnp.cos(angle) ** 0.9
  jaw = jnp.stack([jnp.sign(angle) * head.half_width(jaw_y) * 0.985, jaw_y], -1)
  inward, outward = brow_reach(identity, found)
  along = jnp.linspace(-inward, outward, 5)
  right_brow = jnp.stack([along + identity.eye_distance, brow(identity, found, along)[0]], -1)
  root, base = nose(identity)
  bridge = jnp.stack([jnp.zeros(4), jnp.linspace(root, base - 0.06, 4)], -1)
  across = identity.nose_width * jnp.linspace(-0.9, 0.9, 5)
  nostrils = jnp.stack([across, base + 0.012 * (1.0 - jnp.abs(jnp.linspace(-1.0, 1.0, 5)))], -1)
  x = identity.eye_width * jnp.array([-1.0, -0.4, 0.4, 1.0, 0.4, -0.4])
  upper, lower = lids(identity, found, x)
  right_eye = jnp.stack([x + identity.eye_distance, jnp.where(jnp.arange(6) < 4, upper, lower)], -1)
  t = found.mouth_width * jnp.array([-1.0, -0.6, -0.2, 0.0, 0.2, 0.6, 1.0])
  curves = mouth(identity, found, t)
  outer = jnp.concatenate([jnp.stack([t, curves[0]], -1), jnp.stack([t, curves[3]], -1)[5:0:-1]])
  t = found.mouth_width * jnp.array([-0.9, -0.35, 0.0, 0.35, 0.9])
  curves = mouth(identity, found, t)
  inner = jnp.concatenate([jnp.stack([t, curves[1]], -1), jnp.stack([t, curves[2]], -1)[3:0:-1]])
  mirror = jnp.array([-1.0, 1.0])
  left_eye = (right_eye * mirror)[jnp.array([3, 2, 1, 0, 5, 4])]
  points = jnp.concatenate(
    [jaw, (right_brow * mirror)[::-1], right_brow, bridge, nostrils, left_eye, right_eye, outer, inner]
  )
  height = jnp.concatenate(
    [
      jnp.zeros(27),
      identity.nose_height * jnp.linspace(0.15, 1.0, 4),
      0.45 * identity.nose_height * jnp.ones(5),
      jnp.zeros(32),
    ]
  )
  return to_pixels(head, points[:, 0], points[:, 1], height, size)


def to_pixels(head: Head, x: jax.Array, y: jax.Array, height: jax.Array, size: int) -> jax.Array:
  """Surface points (X, Y) raised by `height` -> pixels, f32 [N, 2]."""
  vx, vy, _ = head.rotate(x, y, head.surface_depth(x, y) + height)
  cx, cy = head.from_view(vx, vy)
  return jnp.stack([(cx + 1.0) * size / 2.0 - 0.5, (cy + 1.0) * size / 2.0 - 0.5], -1)
