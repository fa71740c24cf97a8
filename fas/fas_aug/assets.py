"""A user's own pictures and profiles in place of the procedural ones, loaded once.

  assets = load_assets(reflection_dir='photos', cmyk_dir='CMYK Profiles', rgb_dir='RGB Profiles')
  operators.reflection(key, image, level, assets)

`Assets()` is the default: procedural reflections, blue noise and moire, parametric inks, no file. Each folder is packed
into one array of at most 40 MB (spec: under 50 MB of assets). Files are taken in sorted order, so that a seed means the
same picture on every file system.
"""

from __future__ import annotations

import pathlib

import flax.struct
import numpy as np

from core.errors import UserError
from fas.fas_aug import color

BUDGET = 40_000_000
"""Bytes that one folder may take in memory."""

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.webp', '.tif', '.tiff')


@flax.struct.dataclass
class Assets:
  """What the operators draw from; a pytree, passed through jit. None stands for the procedural default."""

  icc: np.ndarray | None = None  # uint8 [inks, spaces, 17, 17, 17, 3], see color.bake_icc
  reflections: np.ndarray | None = None  # uint8 [P, side, side, 3]
  reflection_shapes: np.ndarray | None = (
    None  # f32 [P, 3]: height and width of each picture, stored px per px of the file
  )
  blue_noise: np.ndarray | None = None  # uint8 [T, side, side, 3]
  moire: np.ndarray | None = None  # uint8 [T, side, side, 3], a third of the size of the files
  # As the release does it: blue noise tiles not rolled, moire always antialiased, grey weights of SFC swapped.
  parity: bool = flax.struct.field(pytree_node=False, default=False)


def load_assets(
  *,
  cmyk_dir: str = '',
  rgb_dir: str = '',
  reflection_dir: str = '',
  blue_noise_dir: str = '',
  moire_dir: str = '',
  parity: bool = False,
) -> Assets:
  """Reads the given folders; raises `UserError` where one is empty or holds something that cannot be read."""
  if bool(cmyk_dir) != bool(rgb_dir):
    given, missing = ('cmyk_dir', 'rgb_dir') if cmyk_dir else ('rgb_dir', 'cmyk_dir')
    raise UserError(f'{given} is given without {missing}; the exact print colours need the profiles of both.')
  assets = Assets(parity=parity)
  if cmyk_dir:
    assets = assets.replace(icc=color.bake_icc(cmyk_dir, rgb_dir))
  if reflection_dir:
    pictures, shapes = _photographs(reflection_dir)
    assets = assets.replace(reflections=pictures, reflection_shapes=shapes)
  if blue_noise_dir:
    assets = assets.replace(blue_noise=_tiles(blue_noise_dir))
  if moire_dir:
    assets = assets.replace(moire=_lattices(moire_dir))
  return assets


def _files(folder: str) -> list[pathlib.Path]:
  root = pathlib.Path(folder).expanduser()
  files = sorted(p for p in root.glob('*') if p.suffix.lower() in SUFFIXES)
  if not files:
    raise UserError(f"No pictures ({', '.join(SUFFIXES)}) in '{root}'.")
  return files


def _open(path: pathlib.Path):
  from PIL import Image

  try:
    return Image.open(path).convert('RGB')
  except OSError as error:
    raise UserError(f"'{path}' is not a picture that Pillow can read ({error}); replace or remove it.") from error


def _side(count: int) -> int:
  """Side of `count` square RGB pictures that fill the budget."""
  return int((BUDGET / (3 * count)) ** 0.5)


def _photographs(folder: str) -> tuple[np.ndarray, np.ndarray]:
  """Whole pictures, shrunk to fit the budget, each in the corner of a square; and their shapes."""
  files = _files(folder)
  side = min(1024, _side(len(files)))
  pictures, shapes = np.zeros((len(files), side, side, 3), np.uint8), np.zeros((len(files), 3), np.float32)
  for i, path in enumerate(files):
    picture = _open(path)
    scale = min(1.0, side / max(picture.size))
    w, h = (max(1, round(n * scale)) for n in picture.size)
    pictures[i, :h, :w] = np.asarray(picture.resize((w, h)))
    shapes[i] = h, w, scale
  return pictures, shapes


def _tiles(folder: str) -> np.ndarray:
  """Tiles of one size, whole."""
  pictures = [(path, np.asarray(_open(path))) for path in _files(folder)]
  shape = pictures[0][1].shape
  for path, picture in pictures:
    if picture.shape != shape or shape[0] != shape[1]:
      raise UserError(
        f"Blue noise '{path}' is {picture.shape[1]} x {picture.shape[0]}, expected squares of {shape[0]}: a tile "
        'that is cut or resized is no blue noise any more.'
      )
  return np.stack([picture for _, picture in pictures])


def _lattices(folder: str) -> np.ndarray:
  """Sub-pixel textures at a third of their size (spec: windows of 3W become W), their middles cut to one size."""
  pictures = []
  for path in _files(folder):
    picture = _open(path)
    pictures.append(np.asarray(picture.resize((picture.width // 3, picture.height // 3))))
  side = min(_side(len(pictures)), *(n for p in pictures for n in p.shape[:2]))
  starts = [((p.shape[0] - side) // 2, (p.shape[1] - side) // 2) for p in pictures]
  return np.stack([p[y : y + side, x : x + side] for p, (y, x) in zip(pictures, starts, strict=True)])
