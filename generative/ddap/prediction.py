"""A user's own photos, protected: PNGs to publish, and beside them masks, sheets and a record of each.

    OUTPUT/protected/NAME.png    what to publish: config.model.size pixels, never lossy
    OUTPUT/masks/NAME.png        where the photo was changed, for methods with a mask
    OUTPUT/sheets/NAME.png       before, after, difference
    OUTPUT/records/NAME.json     settings, digests, figures
    OUTPUT/sheet.png             all of them

A record is written before its photo, and each file by one rename: a stopped run goes on with the photos that are not
there yet. Nothing that is there is replaced.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from core.atomic import write_atomically
from core.data import identities, image
from core.diffusion import personalisation
from core.errors import UserError
from core.metrics import frequency
from core.metrics import image as metrics
from core.train import task as contract
from core.train.checkpoint import plain
from generative.ddap import drawing, localisation, methods, procedure, protection

FOLDERS = ('protected', 'masks', 'sheets', 'records')
CLASS_PHOTOS = '~/.cache/verax/class_photos'
"""Where the class photos of a model are kept, by a digest of its weights and of how they are made."""
RANDOM = 'the model has random weights: nothing is protected against; give --config.model.path=FOLDER'
VIEWS = ('before', 'after', 'difference', 'where')
"""Of a photo on a sheet; the difference has black and white at the budget, the last is for methods with a mask."""
PAGE = 12
"""Photos on a page of the sheet of all."""

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Given:
  """A user's photo.

  Attributes:
    path: of the file.
    name: of its results, without an ending.
    pixels: uint8 [S, S, 3], upright, cut and resized.
    mask: the user's own, f32 [S, S, 1] in {0, 1}, or None.
    digest: of pixels and mask.
    notes: what was done to it on the way.
  """

  path: pathlib.Path
  name: str
  pixels: np.ndarray
  mask: np.ndarray | None
  digest: str
  notes: tuple[str, ...]


class PhotoPredictor(contract.Predictor):
  """Protects photos by `config.predict.method`.

  A method that personalises surrogates takes the photos of a folder (or those that are named together) for photos of
  one person, and needs clean photos of that person to learn from: `config.predict.reference`, else the photos
  themselves before protection. Any other method takes each photo alone.
  """

  suffixes = image.SUFFIXES
  shown = ('protected', 'linf', 'psnr', 'ssim', 'seconds', 'notes')

  def __init__(self, task: Any, variables: contract.Variables, metadata: Mapping[str, Any]):
    """Args: task: `task.Task`; variables, metadata: of a checkpoint; without one, no metadata."""
    self.task, self.config, self.model = task, task.config, task.model
    self.params = task.foundation.view(variables['params'])
    self.method = methods.from_config(self.config.predict.method, self.config.method)
    self.notes = () if metadata or self.config.model.path else (RANDOM,)
    self._made = variables.get('prior')
    self._names: dict[pathlib.Path, str] = {}
    self.output = pathlib.Path()

  def begin(self, output: pathlib.Path) -> None:
    """Results go there, each as it is done."""
    self.output = output
    for name in FOLDERS:
      (output / name).mkdir(exist_ok=True)
    for note in self.notes:
      print(f'Attention: {note}.', flush=True)

  def cases(
    self, files: Sequence[pathlib.Path], folder: pathlib.Path | None = None
  ) -> Sequence[tuple[pathlib.Path, ...]]:
    """Each photo alone; with surrogates, the photos of one folder together."""
    for path in files:
      inside = pathlib.Path(path.name) if folder is None else path.relative_to(folder)
      self._names[path] = _new_name(inside, self._names.values())
    if not self.method.fits:
      return [(path,) for path in files]
    together: dict[Any, list[pathlib.Path]] = {}
    for path in files:
      together.setdefault(None if folder is None else path.parent, []).append(path)
    return [tuple(paths) for paths in together.values()]

  def __call__(self, *paths: pathlib.Path) -> list[Row]:
    """A row for each photo of a case; one that cannot be read has a row with 'error', and the others are protected."""
    given, rows = [], {}
    for path in paths:
      try:
        given.append(self._read(path))
      except UserError as error:
        rows[path] = {'file': str(path), 'error': str(error)}
    if given:
      job = self._job(given)
      if not all(self._is_done(photo, job) for photo in given):
        self._protect(given, job)
      rows |= {photo.path: self._row(photo) for photo in given}
    return [rows[path] for path in paths]

  def finish(self, rows: list[Row], output: pathlib.Path) -> list[pathlib.Path]:
    """Draws the photos of this run and of those before it, a dozen to a page."""
    served = [row for row in rows if 'error' not in row]
    pages, written = [served[i : i + PAGE] for i in range(0, len(served), PAGE)], []
    for number, page in enumerate(pages, 1):
      lines = [(f'{self._names[pathlib.Path(row["file"])]}\n{_caption(row)}', self._views(row)) for row in page]
      written.append(output / ('sheet.png' if len(pages) == 1 else f'sheet_{number}.png'))
      image.write_png(written[-1], drawing.sheet(lines, columns=self._columns, side=192, label=210))
    return written

  # Reading, and what is there already.

  def _read(self, path: pathlib.Path) -> Given:
    pixels = image.read(path)
    square = identities.fit(pixels, self.config.model.size)
    height, width, size = *pixels.shape[:2], self.config.model.size
    notes = [f'cut to a square of {width}x{height}'] if width != height else []
    if min(height, width) < size:
      notes.append(f'enlarged from {width}x{height}')
    mask = self._own_mask(path, pixels) if self.method.masked and self.config.predict.masks else None
    digest = hashlib.sha256(square.tobytes() + (b'' if mask is None else mask.tobytes())).hexdigest()
    return Given(path, self._names[path], square, mask, digest, tuple(notes))

  def _job(self, given: Sequence[Given]) -> str:
    """A digest of all that the results of a case depend on."""
    config = self.config
    parts = ('protect', 'surrogate', 'localise', 'prompts', 'predict', 'prior')
    settings = [plain(config[part]) for part in parts] + [plain(dataclasses.asdict(self.method)), config.seed]
    together = []
    if self.method.fits:
      together = [sorted(photo.digest for photo in given), procedure.fingerprint(self._others)]
    return procedure.digest([settings, self._weights, together])

  @functools.cached_property
  def _weights(self) -> str:
    return procedure.fingerprint(self.params if self.method.unet else self.params['autoencoder'])

  def _path(self, folder: str, name: str) -> pathlib.Path:
    return self.output / folder / f'{name}.{"json" if folder == "records" else "png"}'

  def _is_done(self, photo: Given, job: str) -> bool:
    """Whether the protected photo is there.

    Raises:
      UserError: what is there is something else, which is not replaced.
    """
    target, record = self._path('protected', photo.name), self._path('records', photo.name)
    if target.resolve() == photo.path.resolve():
      raise UserError(f"'{photo.path}' would be overwritten by its own protection: choose another --output.")
    known = json.loads(record.read_text()) if record.is_file() else {}
    if not target.exists():
      return False
    whole = hashlib.sha256(target.read_bytes()).hexdigest()
    if (known.get('photo'), known.get('job'), known.get('written')) == (photo.digest, job, whole):
      return True
    reason = 'by other settings, weights or photos' if known.get('written') == whole else 'or was changed since'
    raise UserError(
      f"'{target}' is there already, made {reason}: nothing is replaced. Choose another --output, or move it away."
    )

  # Protecting.

  def _protect(self, given: Sequence[Given], job: str) -> None:
    """Protects the photos of a case and writes all of them."""
    begun = time.monotonic()
    clean = np.stack([photo.pixels for photo in given])
    photos = image.from_levels(jnp.asarray(clean))
    seeds = [int(photo.digest[:8], 16) >> 1 for photo in given]
    keys = jnp.stack([jax.random.fold_in(jax.random.key(self.config.seed), seed) for seed in seeds])
    mask, outcomes = self._mask(given, photos, keys) if self.method.masked else (None, ('',) * len(given))
    made = protection.protect(
      self.model, self.params, photos, self.method, keys=keys, instance_ids=self._instance,
      reference=self._reference(photos) if self.method.fits else None,
      prior=self._prior if self.method.fits else None,
      recipe=personalisation.Recipe.from_config(self.config.surrogate), mask=mask, micro=self.config.protect.micro,
      on_step=lambda done, of, losses: self.progress(done / of),
    )  # fmt: skip
    protected = np.asarray(image.to_levels(made.photos))
    figures = self._figures(clean, protected, mask)
    seconds = (time.monotonic() - begun) / len(given)
    for i, photo in enumerate(given):
      if self._is_done(photo, job):
        continue
      about = {name: float(value[i]) for name, value in figures.items()}
      about |= {f'last_{name}': float(value[-1, i]) for name, value in made.history.items() if value.ndim == 2}
      notes = [*photo.notes, *self.notes, *([outcomes[i]] if outcomes[i] else [])]
      about |= {'seconds': round(seconds, 2), 'notes': '; '.join(notes)}
      self._write(photo, job, protected[i], None if mask is None else mask[i], about)

  def _write(self, photo: Given, job: str, protected: np.ndarray, mask: np.ndarray | None, about: Row) -> None:
    """Mask, sheet and record, then the photo itself: it is there only when all is."""
    if mask is not None:
      levels = np.repeat(np.round(255 * mask), 3, axis=-1).astype(np.uint8)
      write_atomically(self._path('masks', photo.name), image.png_bytes(levels))
    views = _views(photo.pixels, protected, mask, self.method.eps_levels)
    page = drawing.sheet([(f'{photo.name}\n{_caption(about)}', views)], columns=self._columns, side=320, label=210)
    write_atomically(self._path('sheets', photo.name), image.png_bytes(page))
    content = image.png_bytes(protected)
    record = {
      'photo': photo.digest,
      'job': job,
      'written': hashlib.sha256(content).hexdigest(),
      'source': str(photo.path),
      'method': self.config.predict.method,
      'eps_levels': self.method.eps_levels,
      'epsilon': self.method.epsilon,
      'seed': self.config.seed,
      **about,
    }
    write_atomically(self._path('records', photo.name), json.dumps(record, indent=1))
    write_atomically(self._path('protected', photo.name), content)

  def _row(self, photo: Given) -> Row:
    """What the record says; paths are those of the results."""
    record = json.loads(self._path('records', photo.name).read_text())
    for key in ('photo', 'job', 'written', 'source'):
      record.pop(key)
    paths = {'protected': str(self._path('protected', photo.name))}
    paths['mask'] = str(self._path('masks', photo.name)) if self.method.masked else ''
    return {'file': str(photo.path), **paths, **record}

  @property
  def _columns(self) -> tuple[str, ...]:
    return VIEWS if self.method.masked else VIEWS[:-1]

  def _views(self, row: Row) -> list[np.ndarray]:
    """The photo of a row on a sheet, from the files."""
    protected, clean = image.read(row['protected']), self._read(pathlib.Path(row['file'])).pixels
    mask = image.read(row['mask'])[..., :1] / 255 if row['mask'] else None
    return _views(clean, protected, mask, self.method.eps_levels)

  def _figures(self, clean: np.ndarray, protected: np.ndarray, mask: np.ndarray | None) -> dict[str, np.ndarray]:
    """How visible the change is, of 8-bit photos, and how far the latents move; [n] each."""
    latents = [personalisation.latents(self.model, self.params, each) for each in (protected, clean)]
    mask = np.ones((*clean.shape[:3], 1), np.float32) if mask is None else mask
    return {name: np.asarray(value) for name, value in _compared(protected, clean, *latents, mask).items()}

  # What the method needs.

  @functools.cached_property
  def _instance(self) -> jax.Array:
    return jnp.asarray(self.task.foundation.ids(self.config.prompts.instance))

  @functools.cached_property
  def _others(self) -> np.ndarray:
    """Clean photos of the person, uint8 [n, S, S, 3], of `config.predict.reference`; none where that is empty."""
    folder, size = self.config.predict.reference, self.config.model.size
    if not folder:
      return np.zeros((0, size, size, 3), np.uint8)
    inside = sorted(pathlib.Path(folder).expanduser().glob('*'))
    found = [path for path in inside if path.suffix.lower() in self.suffixes]
    if not found:
      raise UserError(
        f"config.predict.reference: '{folder}' holds no photo that ends in {', '.join(self.suffixes)}; expected clean"
        ' photos of the same person, or leave it empty to learn from the photos themselves.'
      )
    return np.stack([identities.fit(image.read(path), size) for path in found])

  def _reference(self, photos: jax.Array) -> personalisation.Photos:
    """What surrogates learn the person from: `_others`, else the photos themselves."""
    if len(self._others):
      photos = image.from_levels(jnp.asarray(self._others))
    return personalisation.encode(self.model, self.params, photos, self._instance)

  @functools.cached_property
  def _prior(self) -> personalisation.Photos:
    """Class photos: those of the training run, else made once per model and kept."""
    prior = self._made
    if prior is None:
      config = self.config
      about = [plain(config.prior), plain(config.prompts), config.model.size, config.seed]
      name = procedure.digest([procedure.fingerprint(self.params), about])
      prior = self.task.prior(self.params, pathlib.Path(CLASS_PHOTOS).expanduser() / name)
    ids = jnp.asarray(self.task.foundation.ids(self.config.prompts.prior))
    return personalisation.encode(self.model, self.params, image.from_levels(jnp.asarray(prior)), ids)

  def _mask(self, given: Sequence[Given], photos: jax.Array, keys: jax.Array) -> tuple[np.ndarray, tuple[str, ...]]:
    """(f32 [n, S, S, 1], what is to be said of each): the user's own, else by cross-attention."""
    if given[0].mask is not None:
      return np.stack([photo.mask for photo in given]), ('',) * len(given)
    words, localiser = self.config.prompts, localisation.from_config(self.config.localise)
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
    found = localisation.localise(
      self.model, self.params, photos, self.task.foundation.tokenizer, words.instance, words.noun, localiser, keys
    )
    return found.mask, found.outcomes

  def _own_mask(self, path: pathlib.Path, photo: np.ndarray) -> np.ndarray:
    """The mask of a photo uint8 [H, W, 3], drawn on it in a file of its name: f32 [S, S, 1]."""
    folder = pathlib.Path(self.config.predict.masks).expanduser()
    found = next((each for each in sorted(folder.glob('*')) if each.stem == path.stem), None)
    if found is None:
      raise UserError(
        f"config.predict.masks: '{folder}' holds no mask for '{path.name}'; expected {path.stem}.png, white where the"
        ' photo may be changed.'
      )
    mask = localisation.from_picture(image.read(found), photo.shape[:2], found.name)
    white = identities.fit(np.repeat(mask, 3, -1).astype(np.uint8) * 255, self.config.model.size)
    return localisation.from_picture(white, white.shape[:2], found.name)


@jax.jit
def _compared(protected, clean, latents, clean_latents, mask) -> dict[str, jax.Array]:
  """What a record says of photos uint8 [n, S, S, 3] and their latents, f32 [n] each."""
  return {
    'linf': metrics.linf(protected, clean, data_range=255),
    'psnr': metrics.psnr(protected, clean, data_range=255),
    'ssim': metrics.ssim(protected, clean, data_range=255),
    'hf_share': frequency.hf_share(protected.astype(jnp.float32) - clean),
    'latent': metrics.latent_displacement(latents, clean_latents),
    'latent_inside': metrics.latent_displacement(latents, clean_latents, mask),
  }


def _views(clean: np.ndarray, protected: np.ndarray, mask: np.ndarray | None, levels: float) -> list[np.ndarray]:
  """`VIEWS` of a photo; the last only where there is a mask."""
  views = [clean, protected, drawing.difference(protected, clean, levels)]
  return views if mask is None else [*views, drawing.heat(mask, clean)]


def _new_name(path: pathlib.Path, taken: Any) -> str:
  """A name for the results of a file: its own, behind those of its folders; told from others where two are alike."""
  stem = '_'.join(path.with_suffix('').parts)
  candidates = itertools.chain([stem, f'{stem}_{path.suffix[1:].lower()}'], (f'{stem}_{i}' for i in itertools.count(2)))
  return next(name for name in candidates if name not in taken)


def _caption(row: Mapping[str, Any]) -> str:
  return f'{row["linf"]:.0f} levels, PSNR {row["psnr"]:.1f}, SSIM {row["ssim"]:.3f}\n{row["notes"]}'
