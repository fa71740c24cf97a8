"""Contact sheets: what the face world looks like.

python -m core.synth.faces.sheet docs/face_world.png
"""

from __future__ import annotations

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from core.synth.faces import camera, dataset, domains
from core.synth.faces import params as face
from core.synth.faces.painter import render

PLAIN_CAMERA = {
  'exposure': 0.32,
  'blur': 0.35,
  'motion': 0.0,
  'vignette': 0.1,
  'warmth': 0.0,
  'green': 0.0,
  'saturation': 1.0,
  'hue': 0.0,
  'noise': 0.004,
  'contrast': 0.2,
  'gamma': 2.2,
  'sharpen': 0.1,
  'jpeg': 0.0,
}
"""A camera without character, for looking at the scene itself."""


def photograph(scenes: face.FaceParams, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Pictures f32 [N, S, S, 3] of a batch of faces through the plain camera, and their landmarks f32 [N, 68, 2]."""
  plain = camera.CameraParams(**{name: jnp.float32(value) for name, value in PLAIN_CAMERA.items()})
  light, points = jax.jit(jax.vmap(render, in_axes=(0, None)), static_argnums=1)(scenes, size)
  keys = jax.random.split(jax.random.key(0), light.shape[0])
  return np.asarray(jax.vmap(camera.capture, in_axes=(0, 0, None))(keys, light, plain)), np.asarray(points)


def mark(image: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Draws landmarks [68, 2] as white dots on a copy of an image [S, S, 3] in [0, 1]."""
  image = image.copy()
  radius = image.shape[0] // 160
  for x, y in np.round(points).astype(int):
    if 0 <= x < image.shape[1] and 0 <= y < image.shape[0]:
      image[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1] = 1.0
  return image


def people(size: int, columns: int, seed: int) -> list[np.ndarray]:
  """Rows of different people; the same person under other poses and lights; the seven expressions; landmarks."""
  keys = jax.random.split(jax.random.key(seed), columns)
  many, _ = photograph(jax.vmap(face.sample_face)(keys), size)
  one = jax.vmap(face.sample_identity)(jnp.repeat(keys[:1], columns))
  same, points = photograph(jax.vmap(face.sample_face)(jax.random.split(keys[1], columns), one), size)
  kinds = jnp.arange(columns) % len(face.EXPRESSIONS)
  strength = jnp.where(jnp.arange(columns) < len(face.EXPRESSIONS), 1.0, 0.5)
  still = jax.vmap(face.sample_face)(jnp.repeat(keys[2:3], columns))
  shown = still.replace(expression=jax.vmap(face.sample_expression)(keys, kinds, strength))
  expressions, _ = photograph(shown, size)
  marked = np.stack([mark(i, p) for i, p in zip(same, points, strict=True)])
  return [many, np.concatenate([same[: columns // 2], marked[columns // 2 :]]), expressions]


def captures(size: int, columns: int, seed: int) -> list[np.ndarray]:
  """A row per domain: a third live, a third print, a third replay; the same people in each."""
  rows = []
  each = columns // 3
  for name in domains.DOMAINS:
    clips = [
      dataset.clip(name, k, length=1, size=size, seed=seed, subject=s) for k in dataset.ATTACKS for s in range(each)
    ]
    rows.append(np.concatenate([c.image for c in clips]))
  return rows


def contact_sheet(path: str | pathlib.Path, *, size: int = 96, columns: int = 9, seed: int = 5) -> pathlib.Path:
  """Writes a PNG: people, one person, expressions, then live / print / replay of every domain.

  Args:
    path: where to write.
    size: side of one picture in pixels.
    columns: pictures per row, a multiple of three.
    seed: which faces.
  """
  rows = people(size, columns, seed) + captures(size, columns, seed)
  sheet = np.concatenate([np.concatenate(list(row), 1) for row in rows])
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  picture = Image.fromarray(np.round(sheet * 255).astype(np.uint8))
  picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
  return path


if __name__ == '__main__':
  print(contact_sheet(sys.argv[1] if len(sys.argv) > 1 else 'docs/face_world.png'))
