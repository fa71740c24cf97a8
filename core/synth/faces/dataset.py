"""The face world as data: frames of videos in the shared form, and whole clips.

A video has one person, one camera, one light, one background and one medium; its frames differ by head motion, blinks
and speech. Everything follows from (seed, domain, split, index of the video): which frames are rendered together
changes nothing beyond float rounding.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import zlib
from collections.abc import Iterator
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError
from core.synth.faces import attacks, camera, domains
from core.synth.faces import params as face
from core.synth.faces.painter import render

ATTACKS = ('live', 'print', 'replay')
SPLITS = ('train', 'val', 'test')


@dataclasses.dataclass(frozen=True)
class Config:
  """How much of a domain to make.

  Attributes:
    size: side of the crop in pixels, 16 to 512.
    subjects: people per domain and split.
    frames_per_video: frames kept of each video, evenly spread.
    frames_total: frames that the video is taken to have (25 per second).
    videos: number of live, print and replay videos per subject.
    shared_subjects: True gives every domain the same people (identity-based systems); False, as in the real protocols,
      its own people.
    batch: frames rendered at a time; 0 chooses by size.
  """

  size: int = 64
  subjects: int = 24
  frames_per_video: int = 4
  frames_total: int = 75
  videos: tuple[int, int, int] = (2, 1, 1)
  shared_subjects: bool = False
  batch: int = 0

  def __post_init__(self):
    _check_size(self.size)
    if not 1 <= self.frames_per_video <= self.frames_total:
      raise UserError(
        f'Face world: frames_per_video is {self.frames_per_video}, expected 1 to frames_total ({self.frames_total}).'
      )
    if self.subjects < 1 or len(self.videos) != len(ATTACKS) or min(self.videos) < 0:
      raise UserError('Face world: expected subjects >= 1 and three video counts (live, print, replay) >= 0.')


def _check_size(size: int) -> None:
  if not 16 <= size <= 512:
    raise UserError(f'Face world: size is {size}, expected 16 to 512 pixels.')


@flax.struct.dataclass
class Capture:
  """All that is drawn for a frame, whatever its kind; see `present` for what each kind uses."""

  scene: face.FaceParams
  camera: camera.CameraParams
  first_camera: camera.CameraParams
  printer: attacks.PrintParams
  sheet: attacks.Placement
  screen: attacks.ReplayParams
  device: attacks.Placement
  noise: jax.Array  # key


@flax.struct.dataclass
class Frame:
  """A rendered frame: image f32 [S, S, 3] in [0, 1], landmarks f32 [68, 2] px, and what was drawn for it."""

  image: jax.Array
  landmarks: jax.Array
  capture: Capture


def default_batch(size: int) -> int:
  """Frames to render at a time: enough to feed the cores, small enough for their caches and, at 512 px, the memory."""
  return max(1, min(32, 2**17 // size**2))


def motion(key: jax.Array, base: face.FaceParams, seconds: jax.Array) -> face.FaceParams:
  """The face at a time of its video: head sways, eyes blink every few seconds, the mouth talks or rests."""
  u = jax.random.uniform(key, (12,))
  wave = jnp.sin(2.0 * jnp.pi * ((0.15 + 0.35 * u[:6]) * seconds + u[6:]))
  pose, expression = base.pose, base.expression
  pose = pose.replace(
    yaw=pose.yaw + 0.14 * wave[0],
    pitch=pose.pitch + 0.07 * wave[1],
    roll=pose.roll + 0.04 * wave[2],
    x=pose.x + 0.02 * wave[3],
    y=pose.y + 0.02 * wave[4],
    scale=pose.scale * (1.0 + 0.03 * wave[5]),
  )
  period = 2.0 + 2.5 * u[9]
  since = jnp.mod(seconds + period * u[10], period)
  blink = jnp.maximum(1.0 - jnp.abs(since - 0.15) / 0.13, 0.0)
  talks = u[11] < 0.4
  speech = jnp.where(talks, jnp.maximum(jnp.sin(2.0 * jnp.pi * 2.6 * seconds + 6.0 * u[0]) * wave[3], 0.0), 0.0)
  gaze = expression.gaze + 0.12 * jnp.stack([jnp.round(2.0 * wave[4]) * 0.5, jnp.float32(0.0)])
  return base.replace(
    pose=pose, expression=expression.replace(blink=jnp.clip(1.3 * blink, 0.0, 1.0), speech=speech, gaze=gaze)
  )


def draw(kind: jax.Array, identity_key, video_key, index, seconds, ranges: domains.Ranges) -> Capture:
  """Draws the parameters of one frame.

  Args:
    kind: i32, place in `ATTACKS`.
    identity_key: key of the person.
    video_key: key of the video (camera, light, background, expression, medium).
    index: i32, number of the frame (key of the sensor's noise).
    seconds: f32, time of the frame.
    ranges: the domain's `Domain.ranges()`.
  """
  keys = jax.random.split(video_key, 12)
  base = face.FaceParams(
    identity=face.sample_identity(identity_key),
    pose=face.sample_pose(keys[0]),
    expression=face.sample_expression(keys[1]),
    light=domains.sample_light(keys[2], ranges),
    background=face.sample_background(keys[3]),
  )
  scene = motion(keys[4], base, seconds)
  # A picture that will be presented shows more around the face; the medium then comes nearer by as much.
  shrink = jnp.where(kind == 0, 1.0, 1.0 / domains.PRESENTED_ZOOM)
  pose = scene.pose
  scene = scene.replace(pose=pose.replace(scale=pose.scale * shrink, x=pose.x * shrink, y=pose.y * shrink))
  printer, sheet = domains.sample_print(keys[7], ranges)
  screen, device = domains.sample_replay(keys[8], ranges)
  hand = jnp.sin(2.0 * jnp.pi * (0.4 * seconds + jax.random.uniform(keys[9], (3,))))

  def held(p):
    return p.replace(x=p.x + 0.015 * hand[0], y=p.y + 0.015 * hand[1], angle=p.angle + 0.008 * hand[2])

  return Capture(
    scene=scene,
    camera=domains.sample_camera(keys[5], ranges),
    first_camera=domains.sample_camera(keys[6], ranges),
    printer=printer,
    sheet=held(sheet),
    screen=screen.replace(band_phase=jnp.mod(screen.band_phase + 9.0 * seconds, 2.0 * jnp.pi)),
    device=held(device),
    noise=jax.random.fold_in(keys[10], index),
  )


def _jit_over_batch(function, **static):
  return jax.jit(jax.vmap(functools.partial(function, **static)))


@functools.lru_cache(maxsize=8)
def _stages(size: int):
  """The parts of a capture, jitted one by one over a batch: fused into one program they compile and run slower."""
  return {
    'draw': jax.jit(jax.vmap(draw, in_axes=(0, 0, 0, 0, 0, None))),
    'render': _jit_over_batch(render, size=size),
    'capture': _jit_over_batch(
      lambda key, number, light, params: camera.capture(jax.random.fold_in(key, number), light, params)
    ),
    'print': _jit_over_batch(lambda key, *a: attacks.print_attack(jax.random.fold_in(key, 1), *a)),
    'replay': _jit_over_batch(lambda key, *a: attacks.replay_attack(jax.random.fold_in(key, 1), *a)),
    'move': _jit_over_batch(attacks.move_landmarks, size=size),
  }


def present(kind: str, size: int, drawn: Capture) -> Frame:
  """Renders a batch of captures of one kind (every leaf with a leading batch axis).

  live: scene -> camera. print, replay: scene -> first camera -> sheet or device -> camera.
  """
  stage = _stages(size)
  light, points = stage['render'](drawn.scene)
  count = np.zeros(points.shape[0], np.int32)
  if kind != 'live':
    picture = stage['capture'](drawn.noise, count, light, drawn.first_camera)
    medium, place = (drawn.printer, drawn.sheet) if kind == 'print' else (drawn.screen, drawn.device)
    light = stage[kind](drawn.noise, picture, medium, place)
    points = stage['move'](points, place)
  return Frame(stage['capture'](drawn.noise, count + 2, light, drawn.camera), points, drawn)


def frames(kind: str, size: int, identity_keys, video_keys, index, seconds, ranges: domains.Ranges) -> Frame:
  """Draws and renders a batch of frames of one kind; see `draw` for the arguments, which have a leading batch axis."""
  _check_size(size)
  kinds = np.full(len(index), ATTACKS.index(kind), np.int32)
  return present(kind, size, _stages(size)['draw'](kinds, identity_keys, video_keys, index, seconds, ranges))


def _hash(*names: Any) -> int:
  return zlib.crc32('/'.join(map(str, names)).encode()) & 0x7FFFFFFF


@dataclasses.dataclass(frozen=True)
class _Row:
  subject: str
  video: str
  kind: str
  identity: int
  index: int


def _plan(domain: str, split: str, config: Config) -> list[_Row]:
  """All frames in order: live first, then print, then replay, so that batches seldom mix."""
  if split not in SPLITS:
    raise UserError(f"The face world has the splits {', '.join(SPLITS)}, not '{split}'.")
  rows = []
  spread = np.linspace(0, config.frames_total - 1, config.frames_per_video).round().astype(int)
  for kind, count in zip(ATTACKS, config.videos, strict=True):
    for number in range(config.subjects):
      where = split if config.shared_subjects else f'{domain}-{split}'
      subject = f'{where}-{number:04d}'
      for take in range(count):
        video = f'{split}-{number:04d}-{kind}-{take}'
        rows += [_Row(subject, video, kind, _hash(subject), int(i)) for i in spread]
  return rows


def keys_of(domain: str, rows: list[_Row], seed: int) -> tuple[jax.Array, jax.Array, np.ndarray, np.ndarray]:
  """Identity keys, video keys, frame numbers and times of some rows."""
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  person, video = jax.random.split(jax.random.key(seed))
  identities = fold(person, np.array([r.identity for r in rows], np.uint32))
  videos = fold(video, np.array([_hash(domain, r.video) for r in rows], np.uint32))
  index = np.array([r.index for r in rows], np.int32)
  return identities, videos, index, (index / 25.0).astype(np.float32)


def examples(
  domain: str, split: str, config: Config | None = None, seed: int = 0, ranges: domains.Ranges | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Frames of a domain in the shared frame form (`core.data.face_frames`).

  Args:
    domain: name in `domains.DOMAINS`.
    split: 'train', 'val' or 'test'; no person is in two of them.
    config: how much to make.
    seed: the world; the same seed gives the same people and videos.
    ranges: of capture, in place of the domain's own: the same people and videos under another camera, say.

  Yields:
    (key, example): image uint8 [S, S, 3], label (1 live, 0 spoof), attack ('live', 'print', 'replay', 'mask' as 0 to
    3), domain, subject, video, frame, frames_total, landmarks f32 [68, 2], info (JSON: expression, pose, light,
    cameras, medium).
  """
  config = config or Config()
  ranges = domains.get(domain).ranges() if ranges is None else ranges
  rows = _plan(domain, split, config)
  batch = config.batch or default_batch(config.size)
  for kind in ATTACKS:
    mine = [r for r in rows if r.kind == kind]
    for start in range(0, len(mine), batch):
      chunk = mine[start : start + batch]
      padded = chunk + [chunk[-1]] * (batch - len(chunk))  # one shape, one compilation
      out = _host(frames(kind, config.size, *keys_of(domain, padded, seed), ranges))
      images = np.round(out.image * 255.0).astype(np.uint8)
      for i, row in enumerate(chunk):
        yield (
          f'{domain}/{row.video}/{row.index:04d}',
          {
            'image': images[i],
            'label': int(kind == 'live'),
            'attack': ATTACKS.index(kind),
            'domain': domain,
            'subject': row.subject,
            'video': row.video,
            'frame': row.index,
            'frames_total': config.frames_total,
            'landmarks': out.landmarks[i].astype(np.float32),
            'info': json.dumps(info(kind, out.capture, i, seed), separators=(',', ':')),
          },
        )


def info(kind: str, drawn: Capture, i: int, seed: int) -> dict[str, Any]:
  """The physics of frame `i` of a batch as plain data, rounded to five digits; lists where a value has axes."""

  def plain(tree):
    values = {f.name: np.asarray(getattr(tree, f.name)[i]) for f in dataclasses.fields(tree)}
    return {k: int(v) if v.dtype.kind == 'i' else np.round(v.astype(float), 5).tolist() for k, v in values.items()}

  scene = drawn.scene
  found = {
    'source': 'core.synth.faces',
    'seed': seed,
    'identity': {k: float(np.round(getattr(scene.identity, k)[i], 5)) for k in ('glasses', 'beard', 'bald')},
    'expression': {'name': face.EXPRESSIONS[int(scene.expression.expression[i])]} | plain(scene.expression),
    'pose': plain(scene.pose),
    'light': plain(scene.light),
    'camera': plain(drawn.camera),
  }
  if kind == 'print':
    found |= {
      'first_camera': plain(drawn.first_camera),
      'medium': plain(drawn.printer),
      'placement': plain(drawn.sheet),
    }
  elif kind == 'replay':
    found |= {
      'first_camera': plain(drawn.first_camera),
      'medium': plain(drawn.screen),
      'placement': plain(drawn.device),
    }
  return found


def clip(
  domain: str,
  kind: str = 'live',
  *,
  length: int = 32,
  size: int = 64,
  fps: float = 25.0,
  seed: int = 0,
  subject: int = 0,
  take: int = 0,
) -> Frame:
  """A video: image [T, S, S, 3], landmark tracks [T, 68, 2] and all parameters; every leaf has a leading time axis.

  Args:
    domain: name in `domains.DOMAINS`.
    kind: 'live', 'print' or 'replay'.
    length: number of frames T.
    size: side of the crop in pixels.
    fps: frames per second.
    seed: the world.
    subject: number of the person, the same over domains and kinds.
    take: number of the video.
  """
  if kind not in ATTACKS:
    raise UserError(f"The face world shows {', '.join(ATTACKS)}, not '{kind}'.")
  if length < 1:
    raise UserError(f'A clip of {length} frames was asked for, expected 1 or more.')
  row = _Row('', f'clip-{subject}-{kind}-{take}', kind, _hash('clip', subject), 0)
  person, video, _, _ = keys_of(domain, [row], seed)
  ranges = domains.get(domain).ranges()
  batch = min(default_batch(size), length)
  parts = []
  for start in range(0, length, batch):
    index = np.minimum(np.arange(start, start + batch), length - 1).astype(np.int32)
    at = (index / fps).astype(np.float32)
    parts.append(_host(frames(kind, size, jnp.repeat(person, batch), jnp.repeat(video, batch), index, at, ranges)))
  return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:length], *parts)


def portraits(subject: int, count: int = 8, *, size: int = 512, domain: str = 'dslr', seed: int = 0) -> Frame:
  """`count` live pictures of one person, each of another video (pose, light, background, camera)."""
  ranges = domains.get(domain).ranges()
  rows = [_Row('', f'portrait-{subject}-{i}', 'live', _hash('clip', subject), 0) for i in range(count)]
  # One at a time: a batch of 512 px pictures would hold gigabytes.
  parts = [_host(frames('live', size, *keys_of(domain, [row], seed), ranges)) for row in rows]
  return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _host(out: Frame) -> Frame:
  """Brings a frame to the host as numpy arrays (keys become their words)."""
  drawn = out.capture.replace(noise=jax.random.key_data(out.capture.noise))
  return jax.device_get(out.replace(capture=drawn))
