"""Still images in and out: uint8 RGB arrays [H, W, 3], upright, and nothing else."""

from __future__ import annotations

import io
import pathlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from core.errors import UserError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
"""Lower-case endings that are taken for still images."""

MIN_SIDE = 16
"""Shortest side in pixels that still can hold anything to look at (our choice)."""


def read(source: str | pathlib.Path | bytes, *, min_side: int = MIN_SIDE, name: str | None = None) -> np.ndarray:
  """Reads one still image, turned upright by its EXIF orientation.

  Grey, palette and 16-bit images become RGB; transparency is laid over white.

  Args:
    source: path, or the file's bytes.
    min_side: shortest side accepted, in pixels.
    name: what errors call the image; the path by default.

  Returns:
    uint8 [H, W, 3], RGB.

  Raises:
    UserError: missing, empty, broken, animated or too small.
  """
  name = name or ('image bytes' if isinstance(source, bytes) else str(source))
  if isinstance(source, bytes):
    data = source
  else:
    path = pathlib.Path(source)
    if not path.is_file():
      raise UserError(f"No image file at '{path}'.")
    data = path.read_bytes()
  if not data:
    raise UserError(f"'{name}' is empty (0 bytes). Copy or download it again.")
  try:
    with Image.open(io.BytesIO(data)) as picture:
      if getattr(picture, 'n_frames', 1) > 1:
        raise UserError(
          f"'{name}' is animated ({picture.n_frames} frames); one still image is expected. Save one frame of it, or "
          'encode it as a video.'
        )
      picture.load()
      pixels = _to_rgb(ImageOps.exif_transpose(picture))
  except UnidentifiedImageError as error:
    head = data[:64].lstrip().lower()
    hint = ' (it looks like a web page)' if head.startswith((b'<!doctype', b'<html')) else ''
    raise UserError(f"'{name}' is not an image that Pillow can read{hint}.") from error
  except UserError:
    raise
  except Exception as error:  # each of Pillow's decoders has its own on damaged bytes (struct.error, SyntaxError ...)
    raise UserError(f"'{name}' is a broken image: {error}. Copy or download it again.") from error
  if min(pixels.shape[:2]) < min_side:
    height, width = pixels.shape[:2]
    raise UserError(f"'{name}' is {width}x{height} pixels; at least {min_side} on each side are needed.")
  return pixels


def _to_rgb(picture: Image.Image) -> np.ndarray:
  """8-bit RGB pixels of any Pillow mode."""
  if picture.mode.startswith('I') or picture.mode == 'F':
    # Pillow clips 16-bit grey at 255 instead of scaling it.
    values = np.asarray(picture, np.float64)
    top = 65535.0 if values.max(initial=0) > 255 else 255.0
    grey = np.clip(values / top * 255.0, 0, 255).round().astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)
  if picture.has_transparency_data:
    picture = picture.convert('RGBA')
    picture = Image.alpha_composite(Image.new('RGBA', picture.size, (255, 255, 255, 255)), picture)
  return np.asarray(picture.convert('RGB'))


def check(image: np.ndarray) -> np.ndarray:
  """Returns `image` if it is uint8 [H, W, 3]; raises `ValueError` otherwise."""
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
    raise ValueError(f'Expected a uint8 image [H, W, 3], got {image.dtype} {list(image.shape)}.')
  return image


def write_png(path: str | pathlib.Path, image: np.ndarray) -> None:
  """Writes uint8 [H, W, 3] losslessly, making the folder if needed."""
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(check(image)).save(path, format='PNG')


def write_jpg(path: str | pathlib.Path, image: np.ndarray, quality: int = 95) -> None:
  """Writes uint8 [H, W, 3] as JPEG without chroma subsampling, making the folder if needed."""
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(check(image)).save(path, format='JPEG', quality=quality, subsampling=0)


def png_bytes(image: np.ndarray) -> bytes:
  """The PNG file of uint8 [H, W, 3], for a record or an embedded picture."""
  buffer = io.BytesIO()
  Image.fromarray(check(image)).save(buffer, format='PNG')
  return buffer.getvalue()


def to_levels(x):
  """Photos of the inside as 8-bit pictures: floor(clip(127.5 x + 128, 0, 255)), which rounds half up (DDAP spec 2).

  Args:
    x: f32 [...], nominally -1..1; NumPy or JAX, also under `jax.jit`.

  Returns:
    uint8 [...], of the same library; at most half a level away from x, and exactly the levels that `from_levels` read.
  """
  xp = x.__array_namespace__()
  return xp.floor(xp.clip(127.5 * x + 128, 0, 255)).astype(xp.uint8)


def from_levels(levels):
  """8-bit pictures uint8 [...] as f32 [...] in -1..1, 0 at level 127.5; NumPy or JAX."""
  xp = levels.__array_namespace__()
  if levels.dtype != xp.uint8:
    raise ValueError(f'Expected uint8 levels, got {levels.dtype}.')
  return levels.astype(xp.float32) / xp.float32(127.5) - 1
