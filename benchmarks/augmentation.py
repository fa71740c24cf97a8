"""Images per second of the FAS-Aug policy, ours against the public Pillow/OpenCV operators, on the same cores.

  python -m benchmarks.augmentation --reference ~/FAS-Aug [--output augmentation.json]   # a user's clone of the release
  python -m benchmarks.augmentation                                                      # the same written plainly here

Both sides put uint8 pictures through policies of the same law: two operators of the eight per picture, levels 0 to 9.
The public side runs in one process per core (as loader workers would) on Pillow pictures; ours on batches of `--batch`
pictures, uint8 in and f32 out, (a) in one process with XLA's threads on all cores and (b) in one process per core.
Rounds of all sides take turns, each for `--seconds`; start-up, loading and compilation are left out. The ratio is that
of the medians. A table of milliseconds per operator, on one core, follows. (a) is what a training step on the CPU gets,
and hardly more than one core: pictures pass one after another, each too small to be shared out. (b) is what loader
workers get.

Measured on two cores of a Xeon server, 256 px, batch 24: 181 images/s of the clone, 1068 (a) and 2045 (b) of ours.

Without a clone no ICC profiles are there: both colour operators of the plain version then convert sRGB to sRGB, which
is much cheaper than what the release does, and its dot matrix is vectorised, so that its ratio flatters us less.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

PUBLIC_NAMES = {
  'color_diversity': 'Color_Diversity',
  'color_distortion': 'Color_Distortion',
  'reflection': 'Reflection',
  'blue_noise': 'BN_Halftone',
  'moire': 'Moire_Pattern',
  'sfc_halftone': 'SFC_Halftone',
  'hand_trembling': 'Hand_Trembling',
  'low_resolution': 'Low_Resolution',
}
LEVELS = 10


def pictures(count: int, size: int) -> np.ndarray:
  """Smooth pictures with fine noise, uint8 [count, size, size, 3]."""
  import cv2

  rng = np.random.default_rng(0)
  smooth = [
    cv2.resize(rng.integers(40, 216, (6, 6, 3), dtype=np.uint8), (size, size), interpolation=cv2.INTER_CUBIC)
    for _ in range(count)
  ]
  return np.clip(np.stack(smooth) + rng.integers(-6, 7, (count, size, size, 3)), 0, 255).astype(np.uint8)


# The public side: functions of (Pillow picture, operator name, level in 0..9).


def from_clone(path: str) -> Callable:
  """The operators of a clone of CeceliaSoh/FAS-Aug (no licence: it is run where it lies, nothing of it is here)."""
  import types

  root = pathlib.Path(path).expanduser().resolve()
  if not (root / 'data' / 'FAS_Augmentations.py').is_file():
    raise SystemExit(f"'{root}' holds no data/FAS_Augmentations.py; --reference takes a clone of CeceliaSoh/FAS-Aug.")
  try:
    import torchvision  # noqa: F401
  except ImportError:  # the clone imports a class from it that its operators do not use
    for name in ('torchvision', 'torchvision.transforms', 'torchvision.transforms.transforms'):
      sys.modules[name] = types.ModuleType(name)
    sys.modules['torchvision.transforms.transforms'].Compose = object
  os.chdir(root)  # it reads its textures and profiles by relative paths
  sys.path.insert(0, str(root))
  from data.FAS_Augmentations import FAS_Augmentations

  off = types.SimpleNamespace(TRAIN=types.SimpleNamespace(AUG=types.SimpleNamespace(SAVE=False)))
  operators = FAS_Augmentations(off)
  return lambda picture, name, k: operators.apply_augment(picture, PUBLIC_NAMES[name], k / (LEVELS - 1), 0)[0]


def plain(size: int) -> Callable:
  """The operators as one writes them with Pillow and OpenCV, by the spec."""
  import cv2
  from PIL import Image, ImageCms

  rng = np.random.default_rng()
  shapes = {'reflection': (650, 910), 'blue_noise': (size, size), 'moire': (1100, 1100)}
  texture = {n: Image.fromarray(rng.integers(0, 256, (*s, 3), dtype=np.uint8)) for n, s in shapes.items()}
  high = {'reflection': 0.2, 'blue_noise': 0.4, 'moire': 0.3, 'sfc_halftone': 0.2}
  srgb = ImageCms.createProfile('sRGB')
  order = np.array([[3, 1, 5], [8, 9, 6], [4, 7, 2]])

  def blended(picture, name, share):
    times = {'reflection': 2, 'blue_noise': 1, 'moire': 3}[name]
    source = texture[name]
    side = [min(n, times * size) for n in source.size]
    x, y = (int(rng.integers(0, n - s + 1)) for n, s in zip(source.size, side, strict=True))
    window = source.crop((x, y, x + side[0], y + side[1])).resize(picture.size)
    return Image.blend(picture, window, share)

  def dots(picture, share):
    grey = cv2.cvtColor(cv2.resize(np.asarray(picture), (size // 3, size // 3)), cv2.COLOR_RGB2GRAY).astype(float)
    level = np.floor(9 * (grey - grey.min()) / max(grey.max() - grey.min(), 1))
    lit = np.kron(level, np.ones((3, 3))) >= np.tile(order, level.shape)
    halftone = Image.fromarray(np.uint8(lit * 255)).resize(picture.size).convert('RGB')
    return Image.blend(picture, halftone, share)

  def trembling(picture, level):
    length = int(1 + 15 * level)
    kernel = [np.eye(length), np.eye(length)[::-1], np.zeros((length, length)), np.zeros((length, length))]
    kernel[2][(length - 1) // 2], kernel[3][:, (length - 1) // 2] = 1, 1
    return Image.fromarray(cv2.filter2D(np.asarray(picture), -1, kernel[rng.integers(4)] / length))

  def lower(picture, level):
    side = int(size * (1 - 5 / 6 * (0.01 + 0.89 * level - 0.0001) / 0.9999))
    down = (cv2.INTER_AREA, cv2.INTER_CUBIC, cv2.INTER_LINEAR, cv2.INTER_LANCZOS4, cv2.INTER_NEAREST)[rng.integers(5)]
    up = (cv2.INTER_AREA, cv2.INTER_NEAREST)[rng.integers(2)]
    small = cv2.resize(np.asarray(picture), (side, side), interpolation=down)
    return Image.fromarray(cv2.resize(small, picture.size, interpolation=up))

  def apply(picture, name, k):
    level = k / (LEVELS - 1)
    if k == 0:
      return picture.copy()
    if name.startswith('color'):
      return ImageCms.profileToProfile(picture, srgb, srgb)
    if name == 'hand_trembling':
      return trembling(picture, level)
    if name == 'low_resolution':
      return lower(picture, level)
    share = 0.01 + level * (high[name] - 0.01)
    return dots(picture, share) if name == 'sfc_halftone' else blended(picture, name, share)

  return apply


class Public:
  """Pillow pictures through random pairs of operators, one after another."""

  def __init__(self, options: argparse.Namespace):
    from PIL import Image

    self.pictures = [Image.fromarray(p) for p in pictures(options.batch, options.size)]
    self.apply = from_clone(options.reference) if options.reference else plain(options.size)
    self.rng = np.random.default_rng(os.getpid())
    self.names = list(PUBLIC_NAMES)

  def policy(self) -> int:
    """One batch through the policy; returns its number of pictures."""
    for picture in self.pictures:
      for name, k in zip(self.rng.choice(self.names, 2), self.rng.integers(0, LEVELS, 2), strict=True):
        picture = self.apply(picture, name, int(k))
    return len(self.pictures)

  def operator(self, name: str) -> int:
    """One batch through one operator, at levels 1 to 9."""
    for i, picture in enumerate(self.pictures):
      self.apply(picture, name, 1 + i % (LEVELS - 1))
    return len(self.pictures)


class Ours:
  """A batch through one compiled call of `policy.apply_batch`, or of an operator; uint8 in, f32 out."""

  def __init__(self, options: argparse.Namespace):
    import jax
    import jax.numpy as jnp

    from core.train import memory
    from fas.fas_aug import operators, policy

    memory.keep_freed()  # as every launch does
    self.jax = jax
    self.images = jax.device_put(pictures(options.batch, options.size))
    n, domains = options.batch, max(1, options.batch // 4)
    labels, domain = jnp.ones(n, jnp.int32), jnp.arange(n) % domains
    self.key = jax.random.key(os.getpid())
    self.compiled = {}

    @jax.jit
    def run(key, images):
      draw, use = jax.random.split(key)
      policies = jax.vmap(policy.sample)(jax.random.split(draw, domains))
      return policy.apply_batch(use, images, labels, policies, domain)[0]

    def one(name):
      apply = operators.OPERATORS[name].apply
      levels = (1 + jnp.arange(n) % (LEVELS - 1)) / (LEVELS - 1)

      def single(at):
        key, image, level = at
        return apply(key, image.astype(jnp.float32) / 255, level)

      return jax.jit(lambda key, images: jax.lax.map(single, (jax.random.split(key, n), images, levels)))

    self.run, self.one = run, one

  def _call(self, function: Callable) -> int:
    self.key, key = self.jax.random.split(self.key)
    self.jax.block_until_ready(function(key, self.images))
    return len(self.images)

  def policy(self) -> int:
    """One batch through the policy; returns its number of pictures."""
    return self._call(self.run)

  def operator(self, name: str) -> int:
    """One batch through one operator, at levels 1 to 9."""
    if name not in self.compiled:
      self.compiled[name] = self.one(name)
    return self._call(self.compiled[name])


def rate(call: Callable[[], int], seconds: float) -> float:
  """Pictures per second of repeated calls."""
  count, start = 0, time.perf_counter()
  while (elapsed := time.perf_counter() - start) < seconds:
    count += call()
  return count / elapsed


def worker(side: type, options: argparse.Namespace, core: int | None, pipe) -> None:
  """A process of one side: answers ('policy' or an operator's name, seconds) with pictures per second."""
  if core is not None:
    os.sched_setaffinity(0, {core})
    import cv2

    cv2.setNumThreads(1)
  runner = side(options)
  while (request := pipe.recv()) is not None:
    what, seconds = request
    pipe.send(rate(runner.policy if what == 'policy' else lambda what=what: runner.operator(what), seconds))


class Side:
  """The processes of one side, asked together."""

  def __init__(self, side: type, options: argparse.Namespace, cores: list[int | None]):
    context = multiprocessing.get_context('spawn')
    self.members = []
    for core in cores:
      mine, theirs = context.Pipe()
      process = context.Process(target=worker, args=(side, options, core, theirs), daemon=True)
      process.start()
      theirs.close()
      self.members.append((process, mine))

  def ask(self, what: str, seconds: float, first: bool = False) -> float:
    """Pictures per second of all processes (of the first alone) together."""
    pipes = [pipe for _, pipe in self.members][: 1 if first else None]
    for pipe in pipes:
      pipe.send((what, seconds))
    return sum(pipe.recv() for pipe in pipes)

  def close(self) -> None:
    """Ends the processes."""
    for process, pipe in self.members:
      pipe.send(None)
      process.join()


def compare(options: argparse.Namespace) -> dict:
  """All rounds; prints as it goes and returns the numbers."""
  cores = sorted(os.sched_getaffinity(0))
  sides = {
    'public': Side(Public, options, list(cores)),
    'ours_threads': Side(Ours, options, [None]),
    'ours_processes': Side(Ours, options, list(cores)),
  }
  for side in sides.values():
    side.ask('policy', 0.5)  # compiles, and fills caches
  rounds = {name: [] for name in sides}
  for _ in range(options.rounds):
    for name, side in sides.items():
      rounds[name].append(side.ask('policy', options.seconds))
  medians = {name: statistics.median(values) for name, values in rounds.items()}
  result = {
    'reference': 'clone' if options.reference else 'plain Pillow/OpenCV',
    'size': options.size,
    'batch': options.batch,
    'cores': len(cores),
    'images_per_second': medians,
    'rounds': rounds,
    'ratio': {name: medians[name] / medians['public'] for name in ('ours_threads', 'ours_processes')},
  }
  print(f'policy, {options.size} px, batch {options.batch}, {len(cores)} cores, public side: {result["reference"]}')
  for name, value in medians.items():
    spread = f'{min(rounds[name]):.0f} to {max(rounds[name]):.0f}'
    print(f'{name:16s} {value:8.0f} images/s ({spread}), {value / medians["public"]:5.1f} x', flush=True)
  result['milliseconds'] = {}
  print(f'{"ms on one core":18s} {"public":>8} {"ours":>8}')
  for name in PUBLIC_NAMES:
    sides['ours_processes'].ask(name, 0.01, first=True)
    row = {s: 1e3 / sides[s].ask(name, options.seconds / 4, first=True) for s in ('public', 'ours_processes')}
    result['milliseconds'][name] = {'public': row['public'], 'ours': row['ours_processes']}
    print(f'{name:18s} {row["public"]:8.2f} {row["ours_processes"]:8.2f}', flush=True)
  for side in sides.values():
    side.close()
  return result


def main(argv: list[str] | None = None) -> None:
  """Prints tables and writes them as JSON where asked."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--reference', default='', help='a clone of CeceliaSoh/FAS-Aug; without it, plain operators')
  parser.add_argument('--size', type=int, default=256)
  parser.add_argument('--batch', type=int, default=24)
  parser.add_argument('--seconds', type=float, default=3.0, help='duration of each round')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--output', type=pathlib.Path, help='JSON file')
  options = parser.parse_args(argv)
  result = compare(options)
  if options.output:
    options.output.write_text(json.dumps(result, indent=2), encoding='utf-8')


if __name__ == '__main__':
  main()
