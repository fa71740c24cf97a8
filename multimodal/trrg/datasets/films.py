"""One chest film: read with care, refused when it is something else, and brought to the size a network takes.

A film is grey, uint8 [H, W], as it was stored: bright bone on dark air. Nothing here flips it: "left" and "right" are
words of the report (spec 4.1).
"""

from __future__ import annotations

import dataclasses
import pathlib

import cv2
import numpy as np

from core.data import image as images
from core.errors import UserError

SHORTEST = 64
"""Pixels on the shorter side that still can show a finding (our choice)."""

LONGEST_ASPECT = 3.0
"""Longer by shorter side; a film is at most about 1.3, a strip of several films or a scan line is more (our choice)."""

COLOUR, COLOURED = 16, 0.05
"""A pixel has colour where its channels differ by more than `COLOUR` grey levels (JPEG's own noise stays below), and a
picture with more than this share of such pixels is a photograph; an arrow or a letter in colour may lie on a film."""

LOOK = 512
"""Pixels per side on which the channels are compared: a full-size film has millions (our choice)."""


def check_film(image: np.ndarray, name: str) -> np.ndarray:
  """The grey film in a picture, if it can be one.

  Args:
    image: uint8 [H, W], or [H, W, 3] with (nearly) equal channels.
    name: what errors call it.

  Returns:
    uint8 [H, W].

  Raises:
    UserError: a colour photograph, a strip, too small, or all of one grey value.
  """
  if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[-1] != 3):
    raise ValueError(f"'{name}' is {image.dtype} {list(image.shape)}, expected uint8 [H, W] or [H, W, 3].")
  height, width = image.shape[:2]
  if min(height, width) < SHORTEST:
    raise UserError(f"'{name}' is {width}x{height} pixels; a film needs at least {SHORTEST} on each side.")
  if max(height, width) > LONGEST_ASPECT * min(height, width):
    raise UserError(
      f"'{name}' is {width}x{height} pixels, a strip of more than {LONGEST_ASPECT:g} to 1; one film per file is "
      'expected.'
    )
  step = max(1, min(height, width) // LOOK)
  sample = image[::step, ::step]
  if image.ndim == 3:
    coloured = float(np.mean(np.ptp(sample, axis=-1) > COLOUR))
    if coloured > COLOURED:
      raise UserError(
        f"'{name}' is a picture in colour ({coloured:.0%} of its pixels), a grey chest film is expected. Give the film "
        'itself, exported from its DICOM file as a grey PNG or JPEG, not a photograph of a screen.'
      )
    image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
  if sample.max() == sample.min() and image.max() == image.min():
    raise UserError(
      f"'{name}' is blank: every pixel is {image.max()}. Export it again with a window that shows something."
    )
  return image


def read_film(path: str | pathlib.Path) -> np.ndarray:
  """A film from a PNG, JPEG or the like; 16-bit grey is scaled to 8.

  Returns:
    uint8 [H, W].

  Raises:
    UserError: missing, broken, or no film (`check_film`).
  """
  if pathlib.Path(path).suffix.lower() in ('.dcm', '.dicom') and pathlib.Path(path).is_file():
    raise UserError(f"'{path}' is a DICOM file, a grey PNG or JPEG is expected: export it with its window applied.")
  return check_film(images.read(path), str(path))


def shrink(film: np.ndarray, pixels: int) -> np.ndarray:
  """The film with a shorter side of at most `pixels`, by area; never larger than it is."""
  return _scaled(film, pixels) if min(film.shape) > pixels else film


def fit(film: np.ndarray, size: int) -> np.ndarray:
  """uint8 [size, size] of a film [H, W]: its shorter side scaled to `size`, the centre cut out."""
  film = _scaled(film, size)
  top, left = ((side - size) // 2 for side in film.shape)
  return film[top : top + size, left : left + size]


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Spec 4.1, which takes MedCLIP's without its flip.

  Attributes:
    resize: shorter side before the random cut, per side of the cut (256 / 224).
    brightness, contrast: factors are drawn from 1 +- this.
    degrees: of rotation, +- this.
    shift: of the side, +- this.
    scale: factors of size, from and to.
  """

  resize: float = 256 / 224
  brightness: float = 0.2
  contrast: float = 0.2
  degrees: float = 10.0
  shift: float = 0.0625
  scale: tuple[float, float] = (0.8, 1.1)


CROP = Augmentation(brightness=0.0, contrast=0.0, degrees=0.0, shift=0.0, scale=(1.0, 1.0))
"""The random cut alone: the option of stage 2 (spec 4.2)."""


def random_fit(
  film: np.ndarray, size: int, rng: np.random.Generator, augment: Augmentation = Augmentation()
) -> np.ndarray:
  """uint8 [size, size]: a random cut of a randomly turned, moved, scaled, brightened film; outside of it is black."""
  film = _scaled(film, round(size * augment.resize))
  height, width = film.shape
  angle = rng.uniform(-augment.degrees, augment.degrees)
  matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, rng.uniform(*augment.scale))
  shift = rng.uniform(-augment.shift, augment.shift, 2) * (width, height)
  corner = rng.integers(0, (width - size, height - size), endpoint=True)
  matrix[:, 2] += shift - corner
  # Turning and cutting are one resampling: two would blur twice.
  cut = cv2.warpAffine(
    film, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0
  )
  bright = rng.uniform(1 - augment.brightness, 1 + augment.brightness)
  contrast = rng.uniform(1 - augment.contrast, 1 + augment.contrast)
  mean = cut.mean(dtype=np.float64) * bright
  levels = np.arange(256) * bright
  return cv2.LUT(cut, np.clip(mean + contrast * (levels - mean), 0, 255).round().astype(np.uint8))


def _scaled(film: np.ndarray, pixels: int) -> np.ndarray:
  """The film with a shorter side of `pixels`: by area when smaller, bilinear when larger."""
  shorter = min(film.shape)
  if shorter == pixels:
    return film
  height, width = (pixels if side == shorter else round(side * pixels / shorter) for side in film.shape)
  return cv2.resize(film, (width, height), interpolation=cv2.INTER_AREA if pixels < shorter else cv2.INTER_LINEAR)
