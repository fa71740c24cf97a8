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
from core.synth.faces.render import render

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
    batch: frames rendered at a time.
  """

  size: int = 64
  subjects: int = 24
  frames_per_video: int = 4
  frames_total: int = 75
  videos: tuple[int, int, int] = (2, 1, 1)
  shared_subjects: bool = False
  batch: int = 16

  def __post_init__(self):
    if not 16 <= self.size <= 512:
      raise UserError(f'Face world: size is {self.size}, expected 16 to 512 pixels.')
    if not 1 <= self.frames_per_video <= self.frames_total:
      raise UserError(
        f'Face world: frames_per_video is {self.frames_per_video}, expected 1 to frames_total ({self.frames_total}).'
      )
    if self.subjects < 1 or len(self.videos) != len(ATTACKS) or min(self.videos) < 0:
      raise UserError('Face world: expected subjects >= 1 and three video counts (live, print, replay) >= 0.')


@flax.struct.dataclass
class Frame:
  """One rendered frame and all that was drawn for it."""

  image: jax.Array  # f32 [S, S, 3] in [0, 1]
  landmarks: jax.Array  # f32 [68, 2] px
  scene: face.FaceParams
  camera: camera.CameraParams
  first_camera: camera.CameraParams | None
  medium: Any
  placement: attacks.Placement | None


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


def frame(kind: str, size: int, identity_key, video_key, index, seconds, ranges: domains.Ranges) -> Frame:
  """Renders one frame; pure, to be jitted with `kind` and `size` static.

  Args:
    kind: 'live', 'print' or 'replay'.
    size: side of the crop in pixels.
    identity_key: key of the person.
    video_key: key of the video (camera, light, background, expression, medium).
    index: i32, number of the frame (key of the sensor's noise).
    seconds: f32, time of the frame.
    ranges: the domain's `Domain.ranges()`.
  """
  keys = jax.random.split(video_key, 10)
  base = face.FaceParams(
    identity=face.sample_identity(identity_key),
    pose=face.sample_pose(keys[0]),
    expression=face.sample_expression(keys[1]),
    light=domains.sample_light(keys[2], ranges),
    background=face.sample_background(keys[3]),
  )
  scene = motion(keys[4], base, seconds)
  recapture = domains.sample_camera(keys[5], ranges)
  noise = jax.random.split(jax.random.fold_in(keys[6], index), 3)
  if kind == 'live':
    light, points = render(scene, size)
    return Frame(camera.capture(noise[0], light, recapture), points, scene, recapture, None, None, None)
  scene = scene.replace(
    pose=scene.pose.replace(
      scale=scene.pose.scale / domains.PRESENTED_ZOOM,
      x=scene.pose.x / domains.PRESENTED_ZOOM,
      y=scene.pose.y / domains.PRESENTED_ZOOM,
    )
  )
  light, points = render(scene, size)
  first = domains.sample_camera(keys[7], ranges)
  picture = camera.capture(noise[0], light, first)
  sample, show = (
    (domains.sample_print, attacks.print_attack) if kind == 'print' else (domains.sample_replay, attacks.replay_attack)
  )
  medium, place = sample(keys[8], ranges)
  hand = jnp.sin(2.0 * jnp.pi * (0.4 * seconds + jax.random.uniform(keys[9], (3,))))
  place = place.replace(x=place.x + 0.015 * hand[0], y=place.y + 0.015 * hand[1], angle=place.angle + 0.008 * hand[2])
  if kind == 'replay':
    medium = medium.replace(band_phase=medium.band_phase + 9.0 * seconds)
  light = show(noise[1], picture, medium, place)
  points = attacks.move_landmarks(points, place, size)
  return Frame(camera.capture(noise[2], light, recapture), points, scene, recapture, first, medium, place)


@functools.lru_cache(maxsize=32)
def batch_renderer(kind: str, size: int):
  """`frame` for arrays of keys, indices and times: jitted once per kind and size, shared by all domains."""
  one = functools.partial(frame, kind, size)
  return jax.jit(jax.vmap(one, in_axes=(0, 0, 0, 0, None)))


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
  domain: str, split: str, config: Config | None = None, seed: int = 0
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Frames of a domain in the shared frame form (`core.data.face_frames`).

  Args:
    domain: name in `domains.DOMAINS`.
    split: 'train', 'val' or 'test'; no person is in two of them.
    config: how much to make.
    seed: the world; the same seed gives the same people and videos.

  Yields:
    (key, example): image uint8 [S, S, 3], label i (1 live, 0 spoof), attack i ('live', 'print', 'replay', 'mask'), domain,
    subject, video, frame, frames_total, landmarks f32 [68, 2], info (JSON: expression, pose, light, cameras, medium).
  """
  config = config or Config()
  ranges = domains.get(domain).ranges()
  rows = _plan(domain, split, config)
  for kind in ATTACKS:
    mine = [r for r in rows if r.kind == kind]
    for start in range(0, len(mine), config.batch):
      chunk = mine[start : start + config.batch]
      padded = chunk + [chunk[-1]] * (config.batch - len(chunk))  # one shape, one compilation
      out = jax.device_get(batch_renderer(kind, config.size)(*keys_of(domain, padded, seed), ranges))
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
            'info': json.dumps(info(out, i, seed), separators=(',', ':')),
          },
        )


def info(out: Frame, i: int, seed: int) -> dict[str, Any]:
  """The physics of frame `i` of a batch as plain data, rounded to five digits; lists where a value has axes."""

  def plain(tree):
    if tree is None:
      return None
    values = {f.name: np.asarray(getattr(tree, f.name)[i]) for f in dataclasses.fields(tree)}
    return {k: int(v) if v.dtype.kind == 'i' else np.round(v.astype(float), 5).tolist() for k, v in values.items()}

  expression = plain(out.scene.expression)
  expression['name'] = face.EXPRESSIONS[expression['expression']]
  identity = {k: float(np.round(getattr(out.scene.identity, k)[i], 5)) for k in ('glasses', 'beard', 'bald')}
  found = {
    'source': 'core.synth.faces',
    'seed': seed,
    'identity': identity,
    'pose': plain(out.scene.pose),
    'expression': expression,
    'light': plain(out.scene.light),
    'camera': plain(out.camera),
  }
  if out.medium is not None:
    found |= {'first_camera': plain(out.first_camera), 'medium': plain(out.medium), 'placement': plain(out.placement)}
  return found


def clip(
  domain: str,
  kind: str = 'live',
  *,
  frames: int = 32,
  size: int = 64,
  fps: float = 25.0,
  seed: int = 0,
  subject: int = 0,
  take: int = 0,
) -> Frame:
  """A video: frames [T, S, S, 3] with landmark tracks [T, 68, 2] and all parameters, every leaf with a leading time axis.

  Args:
    domain: name in `domains.DOMAINS`.
    kind: 'live', 'print' or 'replay'.
    frames: length T.
    size: side of the crop in pixels.
    fps: frames per second.
    seed: the world.
    subject: number of the person, the same over domains and kinds.
    take: number of the video.
  """
  if kind not in ATTACKS:
    raise UserError(f"The face world shows {', '.join(ATTACKS)}, not '{kind}'.")
  if frames < 1:
    raise UserError(f'A clip of {frames} frames was asked for, expected 1 or more.')
  row = _Row('', f'clip-{subject}-{kind}-{take}', kind, _hash('clip', subject), 0)
  person, video, _, _ = keys_of(domain, [row], seed)
  ranges = domains.get(domain).ranges()
  batch = min(16, frames)
  parts = []
  for start in range(0, frames, batch):
    index = np.minimum(np.arange(start, start + batch), frames - 1).astype(np.int32)
    out = batch_renderer(kind, size)(
      jnp.repeat(person, batch), jnp.repeat(video, batch), index, (index / fps).astype(np.float32), ranges
    )
    parts.append(jax.device_get(out))
  return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:frames], *parts)


def portraits(subject: int, count: int = 8, *, size: int = 512, domain: str = 'dslr', seed: int = 0) -> Frame:
  """`count` live pictures of one person, each of another video (pose, light, background, camera); leading axis `count`."""
  rows = [_Row('', f'portrait-{subject}-{i}', 'live', _hash('clip', subject), 0) for i in range(count)]
  ranges = domains.get(domain).ranges()
  render_one = batch_renderer('live', size)
  parts = [
    jax.device_get(render_one(*keys_of(domain, [row], seed), ranges)) for row in rows
  ]  # one at a time: 512 px is large
  return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
