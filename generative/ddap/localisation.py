"""Where in a photo the concept is: cross-attention heat maps and the mask made of them (spec 3.4).

    localiser = Localiser()
    found = localise(model, params, photos, tokenizer, 'a photo of sks person', 'person', localiser, keys)
    found.mask, found.outcomes

DAAM (Tang et al. 2023, arXiv 2210.04885) sums the attention that each place pays to a word while a picture is
generated. A photo is not generated: it is noised to ten levels instead, and the pre-trained U-Net looks at each once
(our choice). What follows a photo's heat map, down to the mask, is our choice too, but for the threshold (DAAM's).
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from core.data import clip_tokens
from core.data.text import Tokenizer
from core.diffusion.latent import LatentDiffusion, Params, normal
from core.errors import UserError, nearest
from core.nn.resize import bicubic

KINDS = ('hard', 'soft', 'whole')
"""The region as {0, 1}; the heat map itself as shares 0..1; every pixel, whatever the heat says."""

FLAT = 1e-3
"""A heat map whose range is less than this share of its mean points nowhere (our choice)."""

BOUNDS = (0.02, 0.9)
"""Shares of the photo outside which a region is not believed (spec 3.4)."""


@dataclasses.dataclass(frozen=True)
class Localiser:
  """How a mask is made of heat. Every place outside the mask keeps its pixels.

  Attributes:
    kind: a name of `KINDS`. The two-level budget of HF-ADB is a hard mask with an `outside` in the projection.
    threshold: share of the heat map's range above which a place is in.
    dilate: pixels that the region grows by on all sides; 8 at 512 pixels, fewer on small photos.
    block: side in pixels of the DCT blocks that the region is snapped to, so that no step of FPL is cut inside one.
    passes: noise levels that the U-Net looks at.
  """

  kind: str = 'hard'
  threshold: float = 0.4
  dilate: int = 8
  block: int = 8
  passes: int = 10

  def __post_init__(self):
    if self.kind not in KINDS:
      raise UserError(f"kind of mask '{self.kind}': expected one of {', '.join(KINDS)}.{nearest(self.kind, KINDS)}")
    if not (0 < self.threshold < 1 and self.dilate >= 0 and self.block >= 1 and self.passes >= 1):
      found = f'threshold {self.threshold}, dilate {self.dilate}, block {self.block}, passes {self.passes}'
      raise UserError(f'Localiser: found {found}; expected a threshold in (0, 1), dilate >= 0, block and passes >= 1.')


class Localised(NamedTuple):
  """What `localise` found, of n photos.

  Attributes:
    mask: f32 [n, H, W, 1] in 0..1, 1 where the whole budget may be spent.
    heat: f32 [n, H, W] in 0..1, the heat map over the photo.
    shares: f32 [n], share of each photo in its region before it was believed or not.
    outcomes: n strings; '' where the region was believed, else why every pixel is in.
  """

  mask: np.ndarray
  heat: np.ndarray
  shares: np.ndarray
  outcomes: tuple[str, ...]


def localise(
  model: LatentDiffusion,
  params: Params,
  photos: jax.Array,
  tokenizer: Tokenizer,
  prompt: str,
  word: str,
  localiser: Localiser,
  keys: jax.Array,
) -> Localised:
  """Finds a word's concept in photos; compiled once per model and shape.

  Args:
    model: pre-trained; a personalised one has moved its attention.
    params: its parameters.
    photos: f32 [n, H, W, 3] in -1..1, clean.
    tokenizer: of the model.
    prompt: what the photos show: the instance prompt.
    word: one or more words of it: the class noun, since the identifier means nothing to a pre-trained model.
    localiser: how.
    keys: [n], one per photo.
  """
  size = photos.shape[1:3]
  if localiser.kind == 'whole':
    full = np.ones((len(photos), *size), np.float32)
    return Localised(full[..., None], full, np.ones(len(photos), np.float32), ('',) * len(photos))
  places = pieces(tokenizer, prompt, word, model.text.max_positions)
  ids = clip_tokens.prompts(tokenizer, [prompt], model.text.max_positions)
  heat = np.asarray(_heat(model, params, photos, ids, keys, places, localiser.passes))
  over, flat = np.asarray(_spread(heat, tuple(size))), is_flat(heat)
  return from_heat(over, flat, word, localiser)


def from_heat(heat: np.ndarray, flat: np.ndarray, word: str, localiser: Localiser) -> Localised:
  """The masks of heat maps f32 [n, H, W] in 0..1, of which `flat` bool [n] point nowhere.

  A photo in which nothing can be pointed at, or nearly everything is, takes a mask of ones, and a warning says so:
  protecting too much costs visibility, protecting nothing costs the protection.
  """
  regions = [np.zeros(each.shape, bool) if nowhere else region(each, localiser) for each, nowhere in zip(heat, flat)]
  shares = np.array([each.mean() for each in regions], np.float32)
  outcomes = tuple(outcome(share, nowhere, word) for share, nowhere in zip(shares, flat))
  shaded = heat if localiser.kind == 'soft' else np.stack(regions)
  believed = np.array([not each for each in outcomes])
  mask = np.where(believed[:, None, None], shaded, 1).astype(np.float32)
  for i, each in enumerate(outcomes):
    if each:
      warnings.warn(f'photo {i}: {each}', stacklevel=3)
  return Localised(mask[..., None], heat, shares, outcomes)


def outcome(share: float, flat: bool, word: str) -> str:
  """'' where a region of this share of the photo can be believed, else the sentence that the user reads."""
  way_out = 'The whole photo is protected; give a mask of your own to spare the background.'
  if flat:
    return f"no place attends to '{word}' more than another: nothing was localised. {way_out}"
  lowest, highest = BOUNDS
  if share < lowest:
    return f"'{word}' was localised in {share:.1%} of the photo, less than {lowest:.0%}: not believed. {way_out}"
  if share > highest:
    return f"'{word}' was localised in {share:.1%} of the photo, more than {highest:.0%}: not believed. {way_out}"
  return ''


def pieces(tokenizer: Tokenizer, prompt: str, word: str, length: int) -> tuple[int, ...]:
  """Positions of a word's pieces in the ids of a prompt, of every occurrence; BOS is at 0 (spec 3.4).

  Args:
    tokenizer: CLIP's.
    prompt: the text.
    word: one or more words of it.
    length: positions of the text encoder; a prompt's end that does not fit is not looked at.
  """
  inside, wanted = tokenizer.encode(prompt)[: length - 2], tokenizer.encode(word)
  starts = [i for i in range(len(inside) - len(wanted) + 1) if wanted and inside[i : i + len(wanted)] == wanted]
  if not starts:
    expected = f'one or more of its words among the first {length - 2} pieces'
    raise UserError(
      f"the word '{word}' is not in the prompt '{prompt}'; expected {expected}.{nearest(word, prompt.split())}"
    )
  return tuple(sorted({1 + start + i for start in starts for i in range(len(wanted))}))


def levels(steps: int, passes: int) -> np.ndarray:
  """The timesteps that are looked at, i32 [passes]: the middles of equal parts of 0..steps, 50, 150 ... 950 of 1000."""
  return ((np.arange(passes) + 0.5) * steps / passes).astype(np.int32)


def heat_maps(
  model: LatentDiffusion,
  params: Params,
  photos: jax.Array,
  ids: jax.Array,
  keys: jax.Array,
  places: tuple[int, ...],
  passes: int = 10,
) -> jax.Array:
  """How much each latent of a photo attends to a word (spec 3.4); call it within `jax.jit`.

  Args:
    model: pre-trained.
    params: its parameters.
    photos: f32 [n, H, W, 3] in -1..1.
    ids: i32 [1, T], the prompt.
    keys: [n], one per photo; a noise level's noise is fixed by it.
    places: positions of the word in `ids`.
    passes: noise levels.

  Returns:
    f32 [n, h, w] >= 0: summed over the levels, averaged over attentions, heads and the word's pieces.
  """
  latents = model.latents(params, photos)
  context = model.context(params, ids)
  context = jnp.broadcast_to(context, (len(photos), *context.shape[1:]))

  def look(row: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
    index, t = row
    noise = normal(jax.vmap(jax.random.fold_in, (0, None))(keys, index), latents.shape[1:])
    t = jnp.full(len(photos), t)
    seen = model.predict(params, model.schedule.add_noise(latents, noise, t), t, context, maps=True)[1]
    return {name: each[..., np.asarray(places)] for name, each in seen.items() if is_fine(name)}

  t = jnp.asarray(levels(model.schedule.steps, passes))
  seen = jax.lax.map(look, (jnp.arange(passes), t))
  return aggregate({name: each.sum(0) for name, each in seen.items()}, latents.shape[1:3])


def is_fine(name: str) -> bool:
  """Whether an attention of this name counts: all but those of the U-Net's middle; 15 of Stable Diffusion's 16."""
  return not name.startswith('mid_')


def aggregate(seen: Mapping[str, jax.Array], grid: tuple[int, int]) -> jax.Array:
  """DAAM's aggregation: each head's map onto the latents' grid, cut at 0, then the mean of all.

  Args:
    seen: {attention: f32 [n, heads, h_i, w_i, P]}, those that are fine, summed over the noise levels; P pieces of the
      word.
    grid: (h, w) of the latents.

  Returns:
    f32 [n, h, w].
  """
  if not seen:
    raise UserError('the U-Net attends to the prompt in its middle only, which is too coarse to localise anything.')
  maps = [jnp.maximum(bicubic(each, grid), 0) for each in seen.values()]
  return jnp.concatenate(maps, axis=1).mean(axis=(1, 4))


def spread(heat: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Heat maps [n, h, w] over photos of `size`: bicubic, then each its own range onto 0..1 (DAAM); f32 [n, H, W]."""
  over = bicubic(heat[..., None], size)[..., 0]
  low, high = over.min((1, 2), keepdims=True), over.max((1, 2), keepdims=True)
  return (over - low) / (high - low + 1e-8)


def is_flat(heat: np.ndarray) -> np.ndarray:
  """Which heat maps [n, h, w] point nowhere, bool [n]: `spread` makes 0..1 of rounding errors too."""
  return np.ptp(heat, axis=(1, 2)) <= FLAT * heat.mean((1, 2))


def region(heat: np.ndarray, localiser: Localiser) -> np.ndarray:
  """A heat map [H, W] in 0..1 -> bool [H, W]: threshold, largest component, dilation, whole blocks (spec 3.4)."""
  return snapped(dilated(largest(heat > localiser.threshold), localiser.dilate), localiser.block)


def largest(mask: np.ndarray) -> np.ndarray:
  """The largest connected component (neighbours by side or corner) of bool [H, W]."""
  count, labels, figures, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
  if count == 1:  # the background alone
    return np.zeros_like(mask)
  return labels == 1 + figures[1:, cv2.CC_STAT_AREA].argmax()


def dilated(mask: np.ndarray, radius: int) -> np.ndarray:
  """bool [H, W], grown by a disc of `radius` pixels."""
  steps = np.arange(-radius, radius + 1)
  disc = (steps[:, None] ** 2 + steps**2 <= radius**2).astype(np.uint8)
  return cv2.dilate(mask.astype(np.uint8), disc).astype(bool)


def snapped(mask: np.ndarray, block: int) -> np.ndarray:
  """bool [H, W], in whole blocks of the grid that starts at the top left: a block is in if any of its pixels is."""
  height, width = mask.shape
  padded = np.pad(mask, ((0, -height % block), (0, -width % block)))
  rows, columns = padded.shape[0] // block, padded.shape[1] // block
  blocks = padded.reshape(rows, block, columns, block).any(axis=(1, 3))
  return blocks.repeat(block, 0).repeat(block, 1)[:height, :width]


def from_picture(pixels: np.ndarray, size: tuple[int, int], name: str) -> np.ndarray:
  """A user's mask, taken as it is: f32 [H, W, 1], 1 where the picture is lighter than mid-grey.

  Args:
    pixels: uint8 [H, W, 3], cut and resized as its photo was.
    size: (H, W) of the photo.
    name: what errors call it.
  """
  if pixels.shape[:2] != tuple(size):
    raise UserError(
      f'mask {name} has {pixels.shape[1]}x{pixels.shape[0]} pixels, its photo {size[1]}x{size[0]}: draw it on the photo'
      ' itself, and give both the same size.'
    )
  mask = pixels.mean(-1, keepdims=True) > 127.5
  if not mask.any():
    raise UserError(
      f'mask {name} is black everywhere: nothing would be protected. Paint white what is to be protected.'
    )
  return mask.astype(np.float32)


_heat = functools.partial(jax.jit, static_argnums=(0, 5, 6))(heat_maps)
_spread = functools.partial(jax.jit, static_argnums=1)(spread)


def from_config(config: Any) -> Localiser:
  """The localiser of a config section that has its attributes' names."""
  return Localiser(**{field.name: config[field.name] for field in dataclasses.fields(Localiser)})
