"""What a face picture depends on, as pytrees of f32 arrays, and the distributions they are drawn from.

Lengths are in head units: the crop spans [-1, 1] at framing scale 1, x to the right, y DOWN, z towards the camera.
Every sampler is a pure function of its key; batches come from `jax.vmap`. All distributions are our choice.
"""

from __future__ import annotations

import math

import flax.struct
import jax
import jax.numpy as jnp

EXPRESSIONS = ('neutral', 'happiness', 'sadness', 'surprise', 'fear', 'disgust', 'anger')
"""The seven basic expressions, in the order of `expression` ids."""

# Rows: EXPRESSIONS. Columns: inner brow up, outer brow up, brows together, eyes open, cheeks up, nose wrinkled,
# mouth open, mouth corners up, mouth wide. After the action units of Ekman and Friesen's prototypes (FACS).
_ACTIONS = (
  (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
  (0.0, 0.1, 0.0, -0.3, 1.0, 0.0, 0.35, 1.0, 0.6),
  (0.9, -0.4, 0.5, -0.3, 0.0, 0.0, 0.0, -0.9, -0.2),
  (1.0, 1.0, 0.0, 0.9, 0.0, 0.0, 1.0, 0.0, -0.35),
  (1.0, 0.3, 0.7, 0.8, 0.0, 0.0, 0.45, -0.5, 0.4),
  (-0.6, -0.4, 0.5, -0.5, 0.6, 1.0, 0.2, -0.6, -0.1),
  (-1.0, 0.3, 1.0, -0.1, 0.0, 0.4, 0.08, -0.6, -0.15),
)
_FRECKLES, _MOLES = 18, 3
_POOL = 256


@flax.struct.dataclass
class Identity:
  """One person: all that stays over a person's pictures. Scalars f32 [] unless said otherwise."""

  width: jax.Array
  height: jax.Array
  jaw: jax.Array
  squareness: jax.Array
  eye_distance: jax.Array
  eye_y: jax.Array
  eye_width: jax.Array
  eye_height: jax.Array
  eye_tilt: jax.Array
  iris_color: jax.Array  # [3] linear light
  brow_gap: jax.Array
  brow_thickness: jax.Array
  brow_arch: jax.Array
  brow_density: jax.Array
  nose_length: jax.Array
  nose_width: jax.Array
  nose_height: jax.Array
  mouth_y: jax.Array
  mouth_width: jax.Array
  lip_upper: jax.Array
  lip_lower: jax.Array
  lip_redness: jax.Array
  ear: jax.Array
  skin: jax.Array  # [3] linear albedo
  hair_color: jax.Array  # [3] linear albedo
  hairline: jax.Array
  hair_volume: jax.Array
  hair_length: jax.Array
  hair_part: jax.Array
  hair_curl: jax.Array
  fringe: jax.Array
  bald: jax.Array
  beard: jax.Array
  moustache: jax.Array
  glasses: jax.Array  # 0 or 1
  glasses_round: jax.Array
  glasses_color: jax.Array  # [3]
  freckles: jax.Array  # [18, 3]: x, y, strength
  moles: jax.Array  # [3, 4]: x, y, radius, strength
  blotches: jax.Array  # [4, 4]: wave vector x, y, phase, strength of the uneven skin tone


@flax.struct.dataclass
class Pose:
  """Head rotation in radians (yaw > 0 turns to the picture's right, pitch > 0 looks up) and framing."""

  yaw: jax.Array
  pitch: jax.Array
  roll: jax.Array
  scale: jax.Array  # head units -> half crop widths
  x: jax.Array  # shift, half crop widths
  y: jax.Array


@flax.struct.dataclass
class Expression:
  """Facial motion: one of `EXPRESSIONS` with an intensity, and what moves besides."""

  expression: jax.Array  # i32 id
  intensity: jax.Array  # [0, 1]
  blink: jax.Array  # 0 open .. 1 closed
  speech: jax.Array  # 0 .. 1, extra opening of the mouth
  gaze: jax.Array  # [2] in eye half-widths

  def actions(self) -> jax.Array:
    """The nine actions of the expression scaled by the intensity, f32 [9]."""
    return jnp.asarray(_ACTIONS, jnp.float32)[self.expression] * self.intensity


@flax.struct.dataclass
class Light:
  """One directional light and an ambient one, linear RGB."""

  direction: jax.Array  # [3] unit vector towards the light
  color: jax.Array  # [3]
  ambient: jax.Array  # [3]
  softness: jax.Array  # 0 hard .. 1 wrapped around the head


@flax.struct.dataclass
class Background:
  """What is behind the head, and the clothes."""

  grid: jax.Array  # [6, 6, 3] linear colours, interpolated over the crop
  shapes: jax.Array  # [3, 8]: x, y, half width, half height, softness, r, g, b (frames, doors, shelves)
  clothes: jax.Array  # [3]
  collar: jax.Array
  stripes: jax.Array  # [2]: strength, frequency


@flax.struct.dataclass
class FaceParams:
  """Everything that `render` needs."""

  identity: Identity
  pose: Pose
  expression: Expression
  light: Light
  background: Background


def _draws(key: jax.Array):
  """Returns `uniform(lo, hi, shape)` and `normal(sd, shape)`, which hand out one pool of numbers piece by piece.

  One draw for all keeps compilation short: a hundred small draws would compile a hundred generators.
  """
  pool = jax.random.uniform(key, (_POOL,), jnp.float32, 1e-6, 1.0 - 1e-6)
  gauss = jnp.sqrt(2.0) * jax.scipy.special.erfinv(2.0 * pool - 1.0)
  used = 0

  def take(values, shape):
    nonlocal used
    used += math.prod(shape)
    if used > _POOL:
      raise ValueError(f'The pool of {_POOL} random numbers is used up.')
    return values[used - math.prod(shape) : used].reshape(shape)

  def uniform(lo=0.0, hi=1.0, shape=()):
    return lo + (hi - lo) * take(pool, shape)

  def normal(sd=1.0, shape=()):
    return sd * take(gauss, shape)

  return uniform, normal


def _palette(position: jax.Array, colors) -> jax.Array:
  """Piecewise-linear palette of linear-light colours at `position` in [0, 1]."""
  colors = jnp.asarray(colors, jnp.float32)
  knots = jnp.linspace(0.0, 1.0, colors.shape[0])
  return jnp.stack([jnp.interp(position, knots, colors[:, c]) for c in range(3)])


_SKINS = (
  (0.80, 0.57, 0.46),
  (0.71, 0.46, 0.34),
  (0.58, 0.35, 0.23),
  (0.42, 0.23, 0.14),
  (0.25, 0.13, 0.08),
  (0.13, 0.07, 0.05),
)
_HAIRS = (
  (0.010, 0.008, 0.007),
  (0.035, 0.020, 0.012),
  (0.10, 0.050, 0.022),
  (0.24, 0.13, 0.05),
  (0.46, 0.31, 0.14),
  (0.30, 0.08, 0.025),
  (0.42, 0.41, 0.40),
)
_IRISES = (
  (0.05, 0.024, 0.012),
  (0.12, 0.060, 0.025),
  (0.16, 0.14, 0.05),
  (0.12, 0.20, 0.13),
  (0.14, 0.25, 0.36),
  (0.26, 0.32, 0.36),
)


def sample_identity(key: jax.Array) -> Identity:
  """A person from a key; the same key is the same person, whatever else is drawn."""
  uniform, normal = _draws(key)
  tone = uniform()
  skin = _palette(tone, _SKINS) * (1.0 + normal(0.04, (3,)))
  dark = tone > 0.55  # deep skin comes with dark hair and eyes, as a rule
  hair_color = _palette(jnp.where(dark, 0.12, 1.0) * uniform(), _HAIRS)
  masculine = uniform() < 0.5
  hair_color = hair_color * (1.0 + normal(0.08, (3,)))
  beard = jnp.where(masculine & (uniform() < 0.45), uniform(0.35, 1.0), 0.0)
  freckled = jnp.where((uniform() < 0.4) & ~dark, 1.0, 0.12)
  spread = jnp.stack([normal(0.27, (_FRECKLES,)), 0.08 + normal(0.13, (_FRECKLES,))], -1)
  return Identity(
    width=uniform(0.66, 0.77),
    height=uniform(0.93, 1.02),
    jaw=jnp.where(masculine, uniform(0.08, 0.28), uniform(0.2, 0.4)),
    squareness=jnp.where(masculine, uniform(2.4, 3.0), uniform(2.1, 2.6)),
    eye_distance=uniform(0.275, 0.325),
    eye_y=uniform(-0.14, -0.06),
    eye_width=uniform(0.125, 0.155),
    eye_height=uniform(0.048, 0.074),
    eye_tilt=uniform(-0.2, 0.08),
    iris_color=_palette(jnp.where(dark, 0.2, 1.0) * uniform(), _IRISES),
    brow_gap=uniform(0.15, 0.205),
    brow_thickness=jnp.where(masculine, uniform(0.028, 0.05), uniform(0.018, 0.034)),
    brow_arch=uniform(0.015, 0.065),
    brow_density=uniform(0.6, 1.0),
    nose_length=uniform(0.27, 0.37),
    nose_width=uniform(0.095, 0.15),
    nose_height=uniform(0.14, 0.24),
    mouth_y=uniform(0.44, 0.52),
    mouth_width=uniform(0.19, 0.265),
    lip_upper=uniform(0.03, 0.062),
    lip_lower=uniform(0.045, 0.082),
    lip_redness=uniform(0.15, 1.0),
    ear=uniform(0.15, 0.21),
    skin=jnp.clip(skin, 0.02, 0.9),
    hair_color=jnp.clip(hair_color, 0.004, 0.8),
    hairline=uniform(-0.70, -0.50),
    hair_volume=uniform(0.05, 0.17),
    hair_length=jnp.where(masculine, uniform(-0.3, 0.15), uniform(0.0, 1.3)),
    hair_part=uniform(-0.35, 0.35),
    hair_curl=uniform(0.0, 1.0) ** 2,
    fringe=jnp.where(uniform() < 0.35, uniform(0.1, 0.24), 0.0),
    bald=jnp.where(masculine & (uniform() < 0.18), 1.0, 0.0),
    beard=beard,
    moustache=jnp.where(masculine & (uniform() < 0.3), uniform(0.4, 1.0), 0.8 * beard),
    glasses=jnp.where(uniform() < 0.22, 1.0, 0.0),
    glasses_round=uniform(),
    glasses_color=_palette(uniform(), ((0.01, 0.01, 0.01), (0.08, 0.03, 0.01), (0.3, 0.3, 0.32), (0.02, 0.03, 0.12))),
    freckles=jnp.concatenate([spread, freckled * uniform(0.25, 1.0, (_FRECKLES, 1))], -1),
    moles=jnp.stack(
      [
        uniform(-0.5, 0.5, (_MOLES,)),
        uniform(-0.45, 0.8, (_MOLES,)),
        uniform(0.012, 0.024, (_MOLES,)),
        jnp.where(uniform(shape=(_MOLES,)) < 0.5, uniform(0.5, 0.9, (_MOLES,)), 0.0),
      ],
      -1,
    ),
    blotches=jnp.concatenate([normal(7.0, (4, 2)), uniform(0.0, 6.28, (4, 1)), uniform(0.01, 0.035, (4, 1))], -1),
  )


def sample_pose(key: jax.Array, spread: float = 1.0) -> Pose:
  """A roughly frontal head that fills most of the crop, as a face detector's box would; `spread` scales the angles."""
  uniform, normal = _draws(key)
  return Pose(
    yaw=jnp.clip(spread * normal(0.16), -0.6, 0.6),
    pitch=jnp.clip(spread * normal(0.09), -0.4, 0.4),
    roll=jnp.clip(spread * normal(0.05), -0.35, 0.35),
    scale=uniform(0.98, 1.16),
    x=normal(0.035),
    y=-0.12 + normal(0.035),
  )


def sample_expression(
  key: jax.Array, expression: jax.Array | None = None, intensity: jax.Array | None = None
) -> Expression:
  """An expression; half are neutral when none is asked for. Eyes open, mouth at rest, gaze near the camera."""
  uniform, normal = _draws(key)
  drawn = jnp.where(uniform() < 0.5, 0, jnp.floor(uniform(0.0, 7.0)).astype(jnp.int32))
  strength = uniform(0.3, 1.0)
  return Expression(
    expression=drawn if expression is None else jnp.asarray(expression, jnp.int32),
    intensity=strength if intensity is None else jnp.asarray(intensity, jnp.float32),
    blink=jnp.float32(0.0),
    speech=jnp.float32(0.0),
    gaze=jnp.clip(normal(0.12, (2,)), -0.35, 0.35),
  )


def sample_light(key: jax.Array, softness=(0.1, 0.8), key_fill=(0.5, 0.95), warmth=(-0.15, 0.2)) -> Light:
  """A light from above or the side; `key_fill` is its share of the whole, `warmth` > 0 makes it orange, < 0 blue."""
  uniform, normal = _draws(key)
  azimuth, height = jnp.clip(normal(0.6), -1.3, 1.3), uniform(-0.1, 0.9)
  direction = jnp.stack(
    [jnp.sin(azimuth) * jnp.cos(height), -jnp.sin(height), jnp.maximum(jnp.cos(azimuth), 0.2) * jnp.cos(height)]
  )
  share, warm = uniform(*key_fill), uniform(*warmth)
  tint = jnp.stack([1.0 + warm, jnp.float32(1.0), 1.0 - warm])
  return Light(
    direction=direction / jnp.linalg.norm(direction),
    color=1.35 * share * tint,
    ambient=0.75 * (1.0 - share) * (1.0 + normal(0.08, (3,))) + 0.12,
    softness=uniform(*softness),
  )


def sample_background(key: jax.Array, saturation=(0.0, 0.5)) -> Background:
  """A blurred room or street: a smooth colour field with a few soft-edged rectangles, and clothes."""
  uniform, normal = _draws(key)
  level = uniform(0.04, 0.7)
  hue = uniform(0.0, 1.0, (3,))
  chroma = uniform(*saturation)
  color = level * (1.0 - chroma + chroma * hue / jnp.maximum(hue.max(), 0.2))
  grid = color * jnp.exp(normal(0.35, (6, 6, 1)) + normal(0.1, (6, 6, 3)))
  tint = color * jnp.exp(normal(0.9, (3, 1)) + normal(0.2, (3, 3)))
  shapes = jnp.concatenate(
    [uniform(-1.2, 1.2, (3, 2)), uniform(0.1, 0.6, (3, 2)), uniform(0.03, 0.25, (3, 1)), tint], -1
  )
  return Background(
    grid=jnp.clip(grid, 0.01, 1.0),
    shapes=jnp.clip(shapes, -1.2, 1.2),
    clothes=_palette(
      uniform(),
      ((0.02, 0.02, 0.03), (0.5, 0.05, 0.05), (0.05, 0.10, 0.35), (0.7, 0.7, 0.7), (0.06, 0.25, 0.12), (0.6, 0.5, 0.2)),
    ),
    collar=uniform(0.0, 1.0),
    stripes=jnp.stack([jnp.where(uniform() < 0.25, 0.5, 0.0), uniform(8.0, 25.0)]),
  )


def sample_face(key: jax.Array, identity: Identity | None = None) -> FaceParams:
  """Everything at once; pass an identity to keep the person and draw the rest."""
  keys = jax.random.split(key, 5)
  return FaceParams(
    identity=sample_identity(keys[0]) if identity is None else identity,
    pose=sample_pose(keys[1]),
    expression=sample_expression(keys[2]),
    light=sample_light(keys[3]),
    background=sample_background(keys[4]),
  )
