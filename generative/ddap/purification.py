"""What may remove a protection: the operators of the purification sweep, by name.

    sweep = purification.sweep(('jpeg:75', 'blur:1', 'autoencoder'))
    purified = sweep['blur:1'](photos, None)
    purified = sweep['autoencoder'](photos, Diffusion(model, params, ids, keys))

"Is the noise removed by a filter, by JPEG, by DiffPure?" is the first question of every user (spec 10). Operators take
and give 8-bit photos, because that is what a thief has. Settings are our choice where the docstring names no source.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable, Iterable
from typing import NamedTuple

import cv2
import jax
import numpy as np
from PIL import Image

from core.data.image import from_levels, to_levels
from core.diffusion import samplers
from core.diffusion.latent import LatentDiffusion, Params, normal
from core.errors import UserError, nearest

STEPS = 50
"""Steps of a whole walk from noise; a strength walks its share of them."""

SPACE = 3.0
"""Pixels that the bilateral filter's second deviation, over places, has."""


class Diffusion(NamedTuple):
  """The thief's model, for the two operators that have one.

  Attributes:
    model: a latent diffusion; its autoencoder is the usual suspect, since every user of the model passes through it.
    params: its parameters, not personalised.
    ids: i32 [1, T], what the photos are told to show: the class prompt, or the empty one.
    keys: [n], one per photo.
  """

  model: LatentDiffusion
  params: Params
  ids: jax.Array
  keys: jax.Array


def jpeg(photos: np.ndarray, quality: float) -> np.ndarray:
  """Saved as JPEG and opened again: Pillow's defaults, so the colours at half the resolution (4:2:0)."""

  def one(photo: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, format='JPEG', quality=int(quality))
    return np.asarray(Image.open(buffer).convert('RGB'))

  return _each(one, photos)


def blur(photos: np.ndarray, sigma: float) -> np.ndarray:
  """Gaussian filter of a deviation of `sigma` pixels, mirrored at the border."""
  return _each(lambda photo: cv2.GaussianBlur(photo, (0, 0), sigma), photos)


def resize(photos: np.ndarray, share: float) -> np.ndarray:
  """Made smaller to `share` of the sides and large again, bicubic with antialiasing (Pillow)."""
  height, width = photos.shape[1:3]
  small = max(1, round(share * width)), max(1, round(share * height))

  def one(photo: np.ndarray) -> np.ndarray:
    shrunk = Image.fromarray(photo).resize(small, Image.Resampling.BICUBIC)
    return np.asarray(shrunk.resize((width, height), Image.Resampling.BICUBIC))

  return _each(one, photos)


def bilateral(photos: np.ndarray, sigma: float) -> np.ndarray:
  """Bilateral filter that keeps edges of more than about `sigma` levels of 255 (OpenCV)."""
  return _each(lambda photo: cv2.bilateralFilter(photo, -1, sigma, SPACE), photos)


def autoencoder(photos: np.ndarray, diffusion: Diffusion) -> np.ndarray:
  """Encoded and decoded again, by the mean of the latents."""
  model, params = diffusion[:2]
  return np.asarray(_decoded(model, params, _encoded(model, params, photos)))


def regenerate(photos: np.ndarray, diffusion: Diffusion, strength: float) -> np.ndarray:
  """Noised to `strength` of the way and generated back (image to image, DDIM): DiffPure's idea (arXiv 2205.07460)."""
  model, params, ids, keys = diffusion
  latents = _regenerated(model, params, _encoded(model, params, photos), ids, keys, strength)
  return np.asarray(_decoded(model, params, latents))


@functools.partial(jax.jit, static_argnums=0)
def _encoded(model: LatentDiffusion, params: Params, photos: jax.Array) -> jax.Array:
  return model.latents(params, from_levels(photos))


@functools.partial(jax.jit, static_argnums=0)
def _decoded(model: LatentDiffusion, params: Params, latents: jax.Array) -> jax.Array:
  return to_levels(model.decode(params, latents))


@functools.partial(jax.jit, static_argnums=(0, 5))
def _regenerated(
  model: LatentDiffusion, params: Params, latents: jax.Array, ids: jax.Array, keys: jax.Array, strength: float
) -> jax.Array:
  context = model.context(params, ids).repeat(len(latents), axis=0)
  denoise = lambda x, t, context: model.predict(params, x, t, context)  # noqa: E731
  walk = samplers.Sampler('ddim', model.schedule)
  noise = normal(keys, latents.shape[1:])
  return samplers.sample(denoise, noise, walk, STEPS, context=context, image=latents, strength=strength)


def _each(operator: Callable[[np.ndarray], np.ndarray], photos: np.ndarray) -> np.ndarray:
  """`operator` on every photo, uint8 [n, H, W, 3]."""
  return np.stack([operator(photo) for photo in photos])


@dataclasses.dataclass(frozen=True)
class Kind:
  """What a name means.

  Attributes:
    apply: (photos, value), or (photos, diffusion, value) with a model, or (photos, diffusion) without a value.
    what: the value, as errors call it; '' for none.
    low, high: its range, ends included.
    usual: the value of a bare name.
    model: whether it takes a `Diffusion`.
  """

  apply: Callable[..., np.ndarray]
  what: str = ''
  low: float = 0.0
  high: float = 0.0
  usual: float | None = None
  model: bool = False


OPERATORS = {
  'jpeg': Kind(jpeg, 'quality', 1, 100, 75),
  'blur': Kind(blur, 'deviation in pixels', 0.1, 50, 1),
  'resize': Kind(resize, 'share of the sides', 0.05, 1, 0.5),
  'bilateral': Kind(bilateral, 'deviation in levels', 1, 255, 30),
  'autoencoder': Kind(autoencoder, model=True),
  'diffusion': Kind(regenerate, 'strength', 1 / STEPS, 1, 0.3, model=True),
}

SWEEP = (
  'jpeg:90', 'jpeg:75', 'jpeg:50', 'blur:1', 'blur:2', 'resize:0.5', 'bilateral:30', 'autoencoder', 'diffusion:0.1',
  'diffusion:0.3',
)  # fmt: skip
"""The sweep of a config that names no other."""


@dataclasses.dataclass(frozen=True)
class Operator:
  """One entry of a sweep, 'name' or 'name:value'.

  Attributes:
    name: in `OPERATORS`.
    value: of its range; None where it has none.
  """

  name: str
  value: float | None = None

  @property
  def needs_model(self) -> bool:
    """Whether it is called with a `Diffusion`."""
    return OPERATORS[self.name].model

  def __call__(self, photos: np.ndarray, diffusion: Diffusion | None = None) -> np.ndarray:
    """uint8 [n, H, W, 3] -> uint8 [n, H, W, 3]."""
    photos = np.asarray(photos)
    if photos.dtype != np.uint8 or photos.ndim != 4 or photos.shape[-1] != 3:
      raise ValueError(f'Expected uint8 photos [n, H, W, 3], got {photos.dtype} {list(photos.shape)}.')
    if self.needs_model and diffusion is None:
      raise UserError(f"purification '{self.name}' passes photos through a model: give one, or leave it out.")
    value = () if self.value is None else (self.value,)
    return OPERATORS[self.name].apply(photos, *([diffusion] if self.needs_model else []), *value)


def parse(entry: str) -> Operator:
  """'jpeg:75' -> the operator; 'jpeg' has the usual value, 'autoencoder' none."""
  name, colon, text = entry.partition(':')
  if name not in OPERATORS:
    raise UserError(
      f"purification '{entry}': there is no '{name}', expected one of {', '.join(OPERATORS)}.{nearest(name, OPERATORS)}"
    )
  kind = OPERATORS[name]
  if not colon:
    return Operator(name, kind.usual)
  if not kind.what:
    raise UserError(f"purification '{entry}': '{name}' takes no value; write '{name}'.")
  expected = f"expected '{name}:VALUE', {kind.what} from {kind.low:g} to {kind.high:g}"
  try:
    value = float(text)
  except ValueError:
    raise UserError(f"purification '{entry}': {expected}.") from None
  if not kind.low <= value <= kind.high:
    raise UserError(f"purification '{entry}': {expected}.")
  return Operator(name, value)


def sweep(entries: Iterable[str] = SWEEP) -> dict[str, Operator]:
  """The operators of a config's list, by their entries, in its order."""
  return {entry: parse(entry) for entry in entries}
