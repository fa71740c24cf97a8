"""From `FaceParams` to linear light: every part is an implicit shape with a smooth edge one pixel wide.

There is no mesh and no loop over triangles: each pixel finds its point on the head by `anatomy.Head.hit` and mixes the
parts over it, so any size works, `vmap` and `jit` are cheap, and the same face at two sizes is the same picture.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from core.synth.faces import anatomy
from core.synth.faces.params import Background, FaceParams, Identity, Light


def cover(distance: jax.Array, width: jax.Array | float) -> jax.Array:
  """Coverage in [0, 1] of a shape from its signed distance (> 0 inside) and the edge's half width."""
  t = jnp.clip(0.5 + 0.5 * distance / width, 0.0, 1.0)
  return t * t * (3.0 - 2.0 * t)


def spot(x: jax.Array, y: jax.Array, rx, ry) -> jax.Array:
  """A bell of height 1 with radii rx, ry (a quartic: cheaper than a Gaussian and exactly 0 outside)."""
  return jnp.maximum(1.0 - 0.25 * ((x / rx) ** 2 + (y / ry) ** 2), 0.0) ** 3


def mix(below: jax.Array, above: jax.Array, coverage: jax.Array) -> jax.Array:
  """Lays a colour [..., 3] over another under a coverage [...]."""
  return below + coverage[..., None] * (above - below)


def pixel_grid(size: int) -> tuple[jax.Array, jax.Array]:
  """x and y of the pixel centres in [-1, 1], f32 [S, S] each."""
  line = (2.0 * jnp.arange(size, dtype=jnp.float32) + 1.0) / size - 1.0
  return jnp.meshgrid(line, line)


def smooth_field(grid: jax.Array, size: int) -> jax.Array:
  """Interpolates random values [g, g, C] to [S, S, C] with cosine-smoothed weights."""
  count = grid.shape[0]
  place = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size * (count - 1)
  near = jnp.abs(place[:, None] - jnp.arange(count, dtype=jnp.float32))
  weights = jnp.where(near < 1.0, 0.5 + 0.5 * jnp.cos(jnp.pi * near), 0.0)
  return jnp.einsum('ia,jb,abc->ijc', weights, weights, grid)


def render(params: FaceParams, size: int) -> tuple[jax.Array, jax.Array]:
  """The scene as light, and its landmarks.

  Args:
    params: one face (no batch axis; use `jax.vmap`).
    size: side of the square crop in pixels, 16 to 512.

  Returns:
    image f32 [S, S, 3], linear light in [0, 1] (a camera makes it a picture: `camera.capture`), and landmarks
    f32 [68, 2], (x, y) in pixels.
  """
  x, y = pixel_grid(size)
  found = anatomy.features(params.identity, params.expression)
  head = anatomy.Head(params.identity, params.pose, found.chin_drop)
  edge = 2.0 / size / params.pose.scale
  vx, vy = head.to_view(x, y)
  image = _background(params.background, x, y, size)
  image = _body(image, params, head, vx, vy, edge)
  image = _back_hair(image, params, head, vx, vy, edge)
  image = _ears(image, params, head, vx, vy, edge)
  image = _face(image, params, head, found, vx, vy, edge)
  return jnp.clip(image, 0.0, 1.0), anatomy.landmarks(params, size)


def _shade(normal: tuple[jax.Array, jax.Array, jax.Array], light: Light) -> jax.Array:
  """Wrapped diffuse light plus ambient light (more from above), [..., 3]."""
  nx, ny, nz = normal
  cosine = nx * light.direction[0] + ny * light.direction[1] + nz * light.direction[2]
  wrap = 0.5 * light.softness
  diffuse = jnp.maximum((cosine + wrap) / (1.0 + wrap), 0.0)
  sky = 0.75 - 0.25 * ny
  return diffuse[..., None] * light.color + sky[..., None] * light.ambient


def _background(background: Background, x: jax.Array, y: jax.Array, size: int) -> jax.Array:
  image = smooth_field(background.grid, size)
  for i in range(background.shapes.shape[0]):
    cx, cy, w, h, soft = background.shapes[i, :5]
    inside = jnp.minimum(w - jnp.abs(x - cx), h - jnp.abs(y - cy))
    image = mix(image, jnp.abs(background.shapes[i, 5:]), 0.8 * cover(inside, soft))
  return image


def _body(image, params: FaceParams, head: anatomy.Head, vx, vy, edge):
  """Neck and clothed shoulders; the body turns half as much as the head."""
  identity, light = params.identity, params.light
  shift = 0.25 * jnp.sin(params.pose.yaw)
  chin = identity.height
  x = vx + shift
  half = 0.62 * identity.width * (1.0 + 0.25 * jnp.maximum(vy - chin, 0.0) ** 2)
  across = jnp.clip(x / half, -1.0, 1.0)
  round_ = jnp.sqrt(jnp.maximum(1.0 - across**2, 0.02))
  shade = _shade((across, 0.25 * jnp.ones_like(x), round_), light)
  shadow = 1.0 - 0.65 * cover(chin + 0.16 - 0.15 * across**2 - vy, 0.22)
  image = mix(image, identity.skin * shade * shadow[..., None], cover(half - jnp.abs(x), edge) * cover(vy - 0.3, edge))
  neckline = chin + 0.12 + 0.18 * params.background.collar
  line = neckline + 0.06 - 0.16 * jnp.minimum((x / half) ** 2, 1.5) + 0.22 * jnp.maximum(jnp.abs(x) - half, 0.0)
  strength, frequency = params.background.stripes
  cloth = params.background.clothes * (1.0 - strength * cover(jnp.sin(frequency * (x + 0.3 * vy)), 0.4))[..., None]
  fold = 0.8 + 0.2 * jnp.sin(5.0 * x + 3.0 * vy)
  cloth = cloth * _shade((0.6 * jnp.clip(x, -1, 1), 0.1 * x, 0.8 + 0.0 * x), light) * fold[..., None]
  return mix(image, cloth, cover(vy - line, edge))


def _strands(identity: Identity, x: jax.Array, y: jax.Array) -> jax.Array:
  """Brightness of hair strands around 1; (x, y) in the head's frame."""
  wave = identity.hair_curl * 0.06 * jnp.sin(11.0 * y + 3.0 * x)
  u = x + wave + 0.25 * (x - identity.hair_part) * jnp.minimum(y + 0.6, 1.0)
  return (
    1.0
    + 0.22 * jnp.sin(37.0 * u + 2.0 * jnp.sin(5.0 * y))
    + 0.16 * jnp.sin(83.0 * u + 3.0 * y)
    + 0.1 * jnp.sin(19.0 * u - 7.0 * y)
  )


def _hair_light(identity: Identity, light: Light, x, y, normal) -> jax.Array:
  """Strands with the ring of highlight that combed hair shows."""
  shade = _shade(normal, light)
  strands = _strands(identity, x, y)
  ring = spot(y + 0.62 + 0.25 * x * x - 0.12 * light.direction[1], 0.0 * x, 0.12, 1.0) * strands
  gloss = 0.10 * jnp.maximum(normal[0] * light.direction[0] + normal[2] * light.direction[2], 0.0) * ring
  return identity.hair_color * shade * strands[..., None] + gloss[..., None] * light.color * (0.3 + identity.hair_color)


def _back_hair(image, params: FaceParams, head: anatomy.Head, vx, vy, edge):
  """Hair behind the face: the crown's volume and what falls beside the neck."""
  identity = params.identity
  x = vx + 0.18 * jnp.sin(params.pose.yaw)
  top = vy + 0.08
  volume = identity.hair_volume * (1.0 - identity.bald)
  ragged = (
    1.0 + 0.012 * jnp.sin(23.0 * x + 9.0 * vy) + 0.05 * identity.hair_curl * jnp.sin(17.0 * x) * jnp.sin(15.0 * vy)
  )
  # Short hair lies closer the lower it comes; long hair keeps its volume.
  close = 0.12 + 0.88 * jnp.clip(-top / 0.7, 0.0, 1.0)
  volume = volume * jnp.maximum(close, cover(identity.hair_length - 0.3, 0.25))
  half = (identity.width + volume) * 1.01 * ragged
  tall = (identity.height + volume) * 0.98 * ragged
  fall = jnp.clip(top / jnp.maximum(identity.hair_length, 0.05), 0.0, 1.0)
  crown = 1.0 - jnp.sqrt((x / half) ** 2 + (jnp.minimum(top, 0.0) / tall) ** 2)
  inside = jnp.minimum(crown * half, identity.hair_length - top)
  depth = jnp.sqrt(jnp.clip(1.0 - (x / half) ** 2, 0.03, 1.0))
  normal = (jnp.clip(x / half, -1, 1), jnp.clip(jnp.minimum(top, 0.0) / tall, -1, 1), depth)
  color = _hair_light(identity, params.light, x, vy, normal) * (1.0 - 0.45 * fall)[..., None]
  return mix(image, color, cover(inside, 1.5 * edge) * (1.0 - identity.bald))


def _ears(image, params: FaceParams, head: anatomy.Head, vx, vy, edge):
  identity = params.identity
  for side in (-1.0, 1.0):
    cx, cy, _ = head.rotate(side * 0.99 * identity.width, identity.eye_y + 0.12, jnp.float32(-0.08))
    x, y = (vx - cx) * side, vy - cy
    tall, wide = identity.ear, 0.42 * identity.ear
    radius = jnp.sqrt((x / wide) ** 2 + ((y + 0.25 * x) / tall) ** 2)
    shade = _shade((side * (0.5 + 0.4 * x / wide), y, 0.7 + 0.0 * x), params.light)
    hollow = 0.5 * spot(x - 0.1 * wide, y, 0.32 * wide, 0.4 * tall)
    color = identity.skin * jnp.array([1.05, 0.86, 0.82]) * shade * (1.0 - hollow)[..., None]
    covered = cover(identity.hair_length - 0.25, 0.1) * (1.0 - identity.bald)
    image = mix(image, color, cover((1.0 - radius) * wide, edge) * (1.0 - covered))
  return image


def _bumps(params: FaceParams, found: anatomy.Features, x, y, nx, ny):
  """Relief on the ellipsoid: its gradient (d/dX, d/dY) and a map of darkened hollows.

  (nx, ny) are the coordinates on the nose's layer, which stands nearer to the camera.
  """
  identity = params.identity
  root, base = anatomy.nose(identity)
  a = jnp.abs(x) - identity.eye_distance
  wing = jnp.abs(nx) - 0.68 * identity.nose_width
  tall = identity.nose_height
  one, mirrored = jnp.ones_like(x), jnp.sign(x)
  parts = (
    # height, from the centre in x and y, radii, d(|x|)/dx: sockets, brow ridge, cheeks, chin, lips, bridge, tip, wings
    (-0.085, a, y - identity.eye_y + 0.02, 0.13, 0.085, mirrored),
    (0.04, a, y - identity.eye_y + identity.brow_gap * 0.95, 0.16, 0.06, mirrored),
    (0.05 + 0.04 * found.cheek, a - 0.06, y - 0.24 + 0.05 * found.cheek, 0.15, 0.13, mirrored),
    (0.045, x, y - identity.height * 0.86 - found.chin_drop, 0.13, 0.09, one),
    (0.035, x, y - found.mouth_y - found.mouth_open * 0.4, 0.26, 0.13, one),
    (0.55 * tall, nx, ny - (0.35 * root + 0.65 * base), 0.06, 0.19, one),
    (0.42 * tall, nx, ny - base + 0.055, 0.065, 0.06, one),
    (0.25 * tall, wing, ny - base + 0.035, 0.04, 0.042, jnp.sign(nx)),
  )
  gx, gy = jnp.zeros_like(x), jnp.zeros_like(x)
  for height, px, py, rx, ry, sign in parts:
    body = jnp.maximum(1.0 - 0.25 * ((px / rx) ** 2 + (py / ry) ** 2), 0.0) ** 2
    gx += -1.5 * height * body * px / rx**2 * sign
    gy += -1.5 * height * body * py / ry**2
  fold = 0.3 * (0.3 + 0.7 * jnp.maximum(found.cheek, found.wrinkle))
  along = jnp.clip((y - base + 0.02) / 0.3, 0.0, 1.0)
  crease = spot(jnp.abs(x) - identity.nose_width - 0.03 - 0.16 * along, 0.0 * x, 0.018, 1.0) * spot(
    along - 0.4, 0.0 * x, 0.3, 1.0
  )
  hollow = 0.30 * spot(a + 0.04, y - identity.eye_y + 0.01, 0.11, 0.06) + fold * crease
  hollow += 0.30 * spot(nx, ny - base - 0.05, 0.11, 0.03) + 0.25 * spot(
    x, y - found.mouth_y - found.mouth_open - 0.14, 0.13, 0.03
  )
  return gx, gy, jnp.clip(hollow, 0.0, 0.8)


def _skin(params: FaceParams, found: anatomy.Features, x, y, edge) -> jax.Array:
  """Albedo of the bare skin, [..., 3]: tone, blotches, flush, freckles, moles, stubble."""
  identity = params.identity
  tone = jnp.ones_like(x)
  for i in range(identity.blotches.shape[0]):
    kx, ky, phase, strength = identity.blotches[i]
    tone += strength * jnp.sin(kx * x + ky * y + phase)
  albedo = identity.skin * tone[..., None]
  a = jnp.abs(x) - identity.eye_distance
  flush = 0.7 * spot(a - 0.07, y - 0.22, 0.11, 0.1) + 0.5 * spot(x, y - anatomy.nose(identity)[1], 0.07, 0.07)
  albedo = albedo * (1.0 - flush[..., None] * jnp.array([-0.04, 0.14, 0.14]))
  freckles = identity.freckles
  marks = jnp.zeros_like(x)
  for i in range(freckles.shape[0]):
    marks += (
      0.30 * freckles[i, 2] * spot(x - freckles[i, 0], y - freckles[i, 1], 0.5 * edge + 0.009, 0.5 * edge + 0.008)
    )
  for i in range(identity.moles.shape[0]):
    mx, my, radius, strength = identity.moles[i]
    marks += strength * spot(x - mx, y - my, 0.6 * radius + 0.3 * edge, 0.6 * radius + 0.3 * edge)
  albedo = albedo * (1.0 - jnp.clip(marks, 0.0, 0.9)[..., None] * jnp.array([0.65, 0.85, 0.95]))
  mouth = y - found.mouth_y
  grain = 0.88 + 0.08 * jnp.sin(61.0 * x + 7.0 * jnp.sin(23.0 * y)) + 0.08 * jnp.sin(53.0 * y + 5.0 * jnp.sin(29.0 * x))
  cheeks = cover(mouth + 0.32 - 1.1 * jnp.maximum(jnp.abs(x) - 0.28, 0.0) - 0.35 * cover(0.28 - jnp.abs(x), 0.1), 0.12)
  beard = identity.beard * cheeks * cover(mouth - 0.02 + 2.2 * jnp.maximum(jnp.abs(x) - 0.24, 0.0), 0.12)
  lip = identity.moustache * spot(x, mouth + 0.1 - 0.3 * x * x, 0.15, 0.035)
  hair = jnp.clip(jnp.maximum(beard, lip) * grain, 0.0, 0.92)
  return mix(albedo, 1.2 * identity.hair_color, hair)


def _face(image, params: FaceParams, head: anatomy.Head, found: anatomy.Features, vx, vy, edge):
  identity, light = params.identity, params.light
  x, y, z, inside = head.hit(vx, vy)
  # A point that stands `raised` above the surface appears shifted against it when the head turns.
  root, base = anatomy.nose(identity)
  raised = identity.nose_height * jnp.clip((y - root) / (base - root), 0.0, 1.0) * cover(base + 0.1 - y, 0.05)
  raised = raised * jnp.maximum(1.0 - (x / 0.35) ** 2, 0.0)
  nx = x - raised * jnp.tan(params.pose.yaw)
  ny = y + raised * jnp.tan(params.pose.pitch)
  gx, gy, hollow = _bumps(params, found, x, y, nx, ny)
  width = identity.width
  base_normal = (x / width**2, y / identity.height**2, jnp.maximum(z, 0.02) / head.depth**2)
  length = jnp.sqrt(sum(n * n for n in base_normal))
  hx, hy, hz = (base_normal[0] / length - gx, base_normal[1] / length - gy, base_normal[2] / length)
  length = jnp.sqrt(hx * hx + hy * hy + hz * hz)
  normal = head.rotate(hx / length, hy / length, hz / length)
  shade = _shade(normal, light)
  albedo = _skin(params, found, x, y, edge)
  albedo = _lips(albedo, params, found, x, y, edge)
  albedo = _brows(albedo, params, found, x, y, edge)
  # Light that enters the skin comes out red near the shadow's edge.
  cosine = sum(n * d for n, d in zip(normal, light.direction, strict=True))
  glow = spot(cosine - 0.05, 0.0 * cosine, 0.2, 1.0)[..., None] * jnp.array([0.10, 0.02, 0.01]) * light.color
  half = light.direction + jnp.array([0.0, 0.0, 1.0])
  half = half / jnp.linalg.norm(half)
  shine = jnp.maximum(sum(n * h for n, h in zip(normal, half, strict=True)), 0.0) ** 22
  lx, ly = light.direction[0], light.direction[1]
  cast = (
    0.35 * (1.0 - light.softness) * spot(nx + 0.16 * lx, ny - base + 0.04 + 0.1 * ly, 0.07, 0.09) * (jnp.abs(lx) + 0.2)
  )
  color = albedo * (shade + glow) * (1.0 - hollow - cast)[..., None] + 0.085 * shine[..., None] * light.color
  color = _nostrils(color, identity, nx, ny, base, edge)
  color = _eyes(color, params, found, x, y, shade, edge)
  color = _mouth_inside(color, params, found, x, y, shade, edge)
  color = _front_hair(color, params, x, y, normal, edge)
  color = _glasses(color, params, x, y, edge)
  return mix(image, color, cover(0.5 * inside * width * 0.9, edge))


def _lips(albedo, params, found, x, y, edge):
  identity = params.identity
  upper_out, upper_in, lower_in, lower_out = anatomy.mouth(identity, found, x)
  within = found.mouth_width - jnp.abs(x)
  body = jnp.minimum(jnp.minimum(y - upper_out, lower_out - y), 0.5 * within)
  red = identity.skin * (1.0 - identity.lip_redness * jnp.array([0.18, 0.5, 0.42]))
  tone = 1.0 - 0.22 * cover(upper_in - y, 0.02)  # the upper lip faces down
  tone = tone + 0.25 * spot(x, y - 0.5 * (lower_in + lower_out), 0.07, 0.012)
  return mix(albedo, red * tone[..., None], 0.92 * cover(body, edge + 0.006))


def _mouth_inside(color, params, found, x, y, shade, edge):
  identity = params.identity
  _, upper_in, lower_in, _ = anatomy.mouth(identity, found, x)
  within = found.mouth_width - jnp.abs(x)
  gap = jnp.minimum(jnp.minimum(y - upper_in, lower_in - y), 0.3 * within)
  dark = jnp.array([0.05, 0.012, 0.012]) * shade
  teeth = 0.62 * shade * jnp.array([1.0, 0.95, 0.86]) * (0.92 + 0.08 * jnp.cos(x / found.mouth_width * 22.0))[..., None]
  teeth_edge = upper_in + 0.055 - y
  inner = mix(dark, teeth, cover(teeth_edge, edge) * cover(0.8 * found.mouth_width - jnp.abs(x), 0.03))
  color = mix(color, inner, cover(gap, edge) * cover(found.mouth_open - 0.01, 0.01))
  seam = spot(0.0 * x, y - upper_in, 1.0, 0.005 + 0.4 * edge) * cover(within, 0.02)
  return color * (1.0 - 0.62 * seam * (1.0 - 0.6 * cover(found.mouth_open - 0.02, 0.02)))[..., None]


def _brows(albedo, params, found, x, y, edge):
  identity = params.identity
  a = jnp.abs(x) - identity.eye_distance
  middle, half = anatomy.brow(identity, found, a)
  inward, outward = anatomy.brow_reach(identity, found)
  body = jnp.minimum(half - jnp.abs(y - middle), 0.6 * jnp.minimum(a + inward, outward - a))
  hairs = 0.92 + 0.08 * jnp.sin(170.0 * (a + 0.5 * (y - middle)))
  return mix(albedo, identity.hair_color * 0.7, identity.brow_density * hairs * cover(body, edge + 0.012))


def _nostrils(color, identity, nx, ny, base, edge):
  side = jnp.abs(nx) - 0.45 * identity.nose_width
  hole = 0.75 * spot(side, ny - base + 0.006 + 0.25 * side, 0.022 + 0.3 * edge, 0.011 + 0.3 * edge)
  wing = 0.35 * spot(jnp.abs(nx) - 1.02 * identity.nose_width, ny - base + 0.03, 0.009 + 0.3 * edge, 0.032)
  return color * (1.0 - jnp.clip(hole + wing, 0.0, 0.9))[..., None]


def _eyes(color, params, found, x, y, shade, edge):
  """Both eyes at once in mirrored coordinates; the gaze is not mirrored."""
  identity, light = params.identity, params.light
  a = jnp.abs(x) - identity.eye_distance
  upper, lower = anatomy.lids(identity, found, a)
  within = identity.eye_width - jnp.abs(a)
  opening = jnp.minimum(jnp.minimum(y - upper, lower - y), 0.35 * within)
  seen = cover(opening, edge) * cover(found.eye_open - 0.06, 0.06)
  gaze = params.expression.gaze * identity.eye_width
  ix = a - jnp.sign(x) * gaze[0]
  iy = y - identity.eye_y + 0.15 * identity.eye_height - 0.6 * gaze[1]
  radius = jnp.sqrt(ix * ix + iy * iy)
  iris_radius = 0.43 * identity.eye_width
  white = jnp.array([0.74, 0.70, 0.67]) * (1.0 - 0.35 * spot(0.0 * a, y - upper, 1.0, 0.012))[..., None]
  white = white * (1.0 - 0.35 * jnp.clip(a / identity.eye_width, -1, 1) ** 4)[..., None]
  spokes = 1.0 + 0.18 * jnp.sin(9.0 * jnp.arctan2(iy, ix + 1e-6)) + 0.6 * jnp.clip(iy / iris_radius, -0.5, 1.0)
  iris = (
    identity.iris_color
    * spokes[..., None]
    * (1.0 - 0.65 * cover(radius - 0.82 * iris_radius, 0.15 * iris_radius))[..., None]
  )
  iris = mix(iris, jnp.full(3, 0.004), cover(0.45 * iris_radius - radius, edge))
  ball = mix(white, iris, cover(iris_radius - radius, edge)) * (0.25 + 0.75 * shade)
  ball = ball * (1.0 - 0.5 * cover(upper + 0.02 - y, 0.02))[..., None]
  hx, hy = (
    a * jnp.sign(x) - gaze[0] - 0.35 * iris_radius * light.direction[0],
    iy - 0.45 * iris_radius * light.direction[1],
  )
  glint = spot(hx, hy, 0.011 + 0.25 * edge, 0.011 + 0.25 * edge)
  ball = ball + 0.8 * glint[..., None] * light.color
  lash = spot(0.0 * a, y - upper, 1.0, 0.007 + 0.35 * edge) * cover(within + 0.01, 0.012)
  under = 0.25 * spot(0.0 * a, y - lower, 1.0, 0.006 + 0.3 * edge) * cover(within, 0.02)
  crease = (
    0.35
    * spot(0.0 * a, y - upper + 0.04 * jnp.minimum(found.eye_open, 1.0) + 0.012, 1.0, 0.007 + 0.3 * edge)
    * cover(within - 0.01, 0.03)
  )
  color = mix(color, ball, seen)
  return color * (1.0 - jnp.clip(0.8 * lash + under + crease, 0.0, 0.9))[..., None]


def _front_hair(color, params, x, y, normal, edge):
  identity = params.identity
  # The hairline is an arch, tilted towards the parting.
  line = identity.hairline - 0.05 + 0.6 * identity.fringe + 0.5 * x * x + 0.4 * identity.hair_part * x
  side = 1.25 * jnp.maximum(jnp.abs(x) - 0.82 * identity.width, 0.0) * (identity.hair_length + 0.5)
  ragged = (0.012 + 0.03 * identity.fringe) * jnp.sin(
    31.0 * x + 4.0 * jnp.sin(9.0 * x)
  ) + 0.04 * identity.hair_curl * jnp.sin(21.0 * x)
  reach = line + 6.0 * side + ragged - y
  hair = _hair_light(identity, params.light, x, y, normal)
  shadow = 0.35 * cover(reach + 0.05, 0.06)
  color = color * (1.0 - shadow * (1.0 - identity.bald))[..., None]
  return mix(color, hair, cover(reach, 1.2 * edge + 0.02) * (1.0 - identity.bald))


def _glasses(color, params, x, y, edge):
  identity, light = params.identity, params.light
  a = jnp.abs(x) - identity.eye_distance
  power = 2.0 + 3.0 * (1.0 - identity.glasses_round)
  wide, tall = 0.215, 0.135 + 0.05 * identity.glasses_round
  radius = ((jnp.abs(a) / wide) ** power + (jnp.abs(y - identity.eye_y - 0.02) / tall) ** power + 1e-6) ** (1.0 / power)
  rim = 0.012 + 0.25 * edge - jnp.abs(radius - 1.0) * tall
  bridge = jnp.minimum(0.012 - jnp.abs(y - identity.eye_y + 0.03), identity.eye_distance - wide - jnp.abs(x) + 0.01)
  arm = jnp.minimum(0.014 - jnp.abs(y - identity.eye_y + 0.03), jnp.abs(x) - identity.eye_distance - wide)
  frame = cover(jnp.maximum(jnp.maximum(rim, bridge), arm), edge)
  glare = 0.10 * cover((1.0 - radius) * tall, edge) * spot(a + 0.7 * (y - identity.eye_y) + 0.05, 0.0 * a, 0.05, 1.0)
  color = color + (identity.glasses * glare)[..., None] * (light.color + light.ambient)
  return mix(color, identity.glasses_color * (light.ambient + 0.5 * light.color), identity.glasses * frame)
