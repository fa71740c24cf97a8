"""The model under a generative system, and where it comes from: a diffusers folder, or a small one trained on the spot.

    foundation = Foundation(config)
    variables = {'params': foundation.init(rng)}
    variables = foundation.pretrained(variables)              # from config.model.path, where there is one
    stages = foundation.stages()                              # else: it is trained by these
    params = foundation.view(variables['params'])             # {'autoencoder', 'unet', 'text'}

Stages without a folder (DDAP spec 9c, on the split 'train' of the records):

  autoencoder         photo -> latent -> photo                          L1 + MSE + 1e-4 KL
  latents             each channel of the latents gets mean 0 and variance 1    (a procedure, folded into the weights)
  diffusion           U-Net and text encoder on latents that the autoencoder, fixed, has given once
  diffusion_transfer  the same from another key: a model that whoever protects a photo never sees

It reads the config's sections model, transfer, prompts, data, autoencoder and diffusion (configs/generative/ddap.py).
"""

from __future__ import annotations

import functools
import hashlib
import json
import operator
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from core.data import clip_tokens, identities, identity_lists, manifest, records
from core.data import image as images
from core.data import pipeline as rows_pipeline
from core.data.text import Tokenizer
from core.diffusion import latent, pipeline
from core.errors import UserError, nearest
from core.metrics import image as image_metrics
from core.synth import portraits
from core.train import forward, optim
from core.train import task as contract

DATASETS = ('portraits', 'identities')
"""Drawn on the spot, or folders of real photos."""
KL_WEIGHT = 1e-4
"""Of the autoencoder's loss (spec 9c)."""
CAPTIONS = ('{prior}', 'a picture of {noun}', 'a portrait of {noun}', 'a dslr portrait of {noun}', '{noun}', '')
"""What training photos are called, the first half of the time; none has a word between 'of' and the noun, where the
identifier will stand. The empty one is what guidance needs (our choice)."""
MEASURED = 1024
"""Photos that the statistics of the latents are taken from, at most."""
JUDGED, SHOWN = 64, 16
"""Photos of a split that the model is judged by, at most, and that are shown."""
TIMES = np.linspace(0.025, 0.925, 13)
"""Timesteps that the denoising loss is measured at, as shares of all: 5, 20, ..., 185 of 200 (spec 9c)."""


class Foundation:
  """The latent diffusion model that a config asks for.

  Attributes:
    model: the networks and the process, `core.diffusion.latent.LatentDiffusion`.
    tokenizer: of its prompts.
  """

  def __init__(self, config: Any):
    self.config = config
    _check(config)

  @functools.cached_property
  def _folder(self) -> pipeline.Pipeline | None:
    section = self.config.model
    return _read(section.path, section) if section.path else None

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    """The folder's; for a model that is trained here, one with the words of its prompts."""
    if self._folder:
      return self._folder.tokenizer
    return clip_tokens.small([self.config.prompts.instance, *self.captions])

  @functools.cached_property
  def model(self) -> latent.LatentDiffusion:
    """The folder's; else the variant, whose text encoder has a row for every piece of a small vocabulary."""
    if self._folder:
      return self._folder.model
    section = self.config.model
    vocabulary = self.tokenizer.vocabulary if section.variant == 'tiny' else None
    return latent.build(section.variant, vocabulary=vocabulary, dtype=jnp.dtype(section.dtype), remat=section.remat)

  @property
  def captions(self) -> list[str]:
    """`CAPTIONS` with the config's words."""
    words = self.config.prompts
    return [caption.format(prior=words.prior, noun=words.noun) for caption in CAPTIONS]

  def ids(self, text: str) -> np.ndarray:
    """i32 [1, T] of a prompt."""
    return clip_tokens.prompts(self.tokenizer, [text], self.model.text.max_positions)

  def metadata(self) -> dict[str, Any]:
    """What a checkpoint keeps beside the weights: plain data, for `restored`."""
    return {'tokenizer': self.tokenizer.to_json()}

  def restored(self, data: Mapping[str, Any]) -> None:
    """The tokenizer of a checkpoint: its embeddings belong to it. To be called before `model` is used."""
    if 'tokenizer' in data:
      self.tokenizer = Tokenizer.from_json(data['tokenizer'], 'of the checkpoint')

  def init(self, rng: jax.Array) -> dict[str, Any]:
    """Fresh parameters {'autoencoder', 'unet', 'text'[, 'transfer': {'unet', 'text'}]}; pure.

    Only a model that is trained from here is initialised in earnest: at the size of Stable Diffusion that takes minutes
    to compile. A folder's weights take the place of what is filled in otherwise, or nobody asks for more than time.
    """
    size, count = self.config.model.size, 1 + self.config.transfer.enabled
    keys = jnp.stack([rng, jax.random.fold_in(rng, 1)][:count])
    if self.stages():  # in a loop: what is compiled is one model
      drawn = jax.lax.map(lambda key: self.model.init(key, size), keys)
      models = [jax.tree.map(operator.itemgetter(i), drawn) for i in range(count)]
    else:
      models = [_filled(self.model, key, size) for key in keys]
    params = models[0]
    if self.config.transfer.enabled:
      params['transfer'] = {part: models[1][part] for part in ('unet', 'text')}
    return params

  def view(self, params: Mapping[str, Any], *, transfer: bool = False) -> dict[str, Any]:
    """The parts of one model, of the second with `transfer`: {'autoencoder', 'unet', 'text'}."""
    source = params['transfer'] if transfer else params
    return {'autoencoder': params['autoencoder'], 'unet': source['unet'], 'text': source['text']}

  def pretrained(self, variables: contract.Variables) -> contract.Variables:
    """`variables` with the weights of the folders, printing what became of every tensor; without a path as they are."""
    if not self._folder:
      return variables
    params = {**variables['params'], **self._folder.params}
    _show(self._folder)
    if self.config.transfer.enabled:
      params['transfer'] = self._second()
    self._folder = self._folder._replace(params={})  # a second copy of gigabytes would stay for the whole run
    return {**variables, 'params': params}

  def _second(self) -> dict[str, Any]:
    """The parameters of `config.transfer.path`, whose networks must be those of the first model."""
    path, section = self.config.transfer.path, self.config.model
    other = _read(path, section)
    for part in ('autoencoder', 'unet', 'text'):
      if getattr(other.model, part) != getattr(self.model, part):
        raise UserError(
          f'config.transfer.path: the {part} of {path} is not built like that of {section.path}. Take two models of'
          ' one generation, such as Stable Diffusion 1.4 and 1.5.'
        )
    if other.tokenizer.fingerprint() != self.tokenizer.fingerprint():
      raise UserError(f'config.transfer.path: {path} has another tokenizer than {section.path}; both must read alike.')
    _show(other)
    return {part: other.params[part] for part in ('unet', 'text')}

  # Stages.

  def stages(self) -> list[contract.Stage]:
    """What trains the model; nothing where it comes from a folder."""
    config = self.config
    if config.model.path or not (config.autoencoder.steps or config.diffusion.steps):
      return []
    stages = []
    if config.autoencoder.steps:
      stages.append(self._stage('autoencoder', config.autoencoder, self.autoencoder_loss, self.photos, 'autoencoder/'))
      stages.append(contract.Stage('latents', run=self.normalise))
    if config.diffusion.steps:
      stages.append(self._stage('diffusion', config.diffusion, self.diffusion_loss, self.latents, ('unet/', 'text/')))
      if config.transfer.enabled:
        loss = functools.partial(self.diffusion_loss, transfer=True)
        data = functools.partial(self.latents, transfer=True)
        stages.append(self._stage('diffusion_transfer', config.diffusion, loss, data, 'transfer/'))
    return stages

  def _stage(self, name: str, section: Any, loss: Any, data: Any, trained: str | tuple[str, ...]) -> contract.Stage:
    return contract.Stage(
      name=name,
      steps=section.steps,
      loss=loss,
      data=data,
      optimizer=optim.build(section.optim, section.steps),
      trainable=lambda path: path.startswith(trained),
      accumulate=self.config.train.accumulate,
      ema_decay=section.optim.ema_decay or None,
    )

  def photos(self, context: contract.StageContext) -> grain.IterDataset:
    """Batches {'image': uint8 [B, S, S, 3]} of the split 'train'."""
    del context
    return self._batches([{'image': image} for image in photographs(self.config, 'train')], self.config.autoencoder, 1)

  def latents(self, context: contract.StageContext, *, transfer: bool = False) -> grain.IterDataset:
    """Batches {'mean', 'log_variance': f32 [B, h, w, D], 'ids': i32 [B, T]}: photos, encoded once, under a caption."""
    mean, log_variance = self._encode(context.variables['params'], photographs(self.config, 'train'))
    rows = [{'mean': mean[i], 'log_variance': log_variance[i]} for i in range(len(mean))]
    caption = _Caption(np.concatenate([self.ids(text) for text in self.captions]))
    return self._batches(rows, self.config.diffusion, 3 if transfer else 2, caption)

  def _batches(self, rows: Sequence[Any], section: Any, stage: int, transform: Any = None) -> grain.IterDataset:
    stream = rows_pipeline.rows(rows, seed=(self.config.seed, stage), random_transform=transform)
    return rows_pipeline.build(stream, batch_size=section.batch_size * self.config.train.accumulate)

  def _encode(self, params: Mapping[str, Any], photos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The moments f32 [N, h, w, D] of photos uint8 [N, S, S, 3]."""
    return forward.in_batches(self._moments, {'autoencoder': params['autoencoder']}, [photos], 64)

  @functools.cached_property
  def _moments(self) -> Any:
    return jax.jit(lambda params, photos: self.model.moments(params, images.from_levels(photos)))

  def normalise(self, context: contract.StageContext) -> contract.Variables:
    """Gives every channel of the scaled latents mean 0 and variance 1 over the training photos.

    The diffusion's noise has variance 1, and its process ends in noise only if the latents are no larger. The change is
    folded into the 1 x 1 convolutions at both sides of the latent: photos decode as before, and the model stays one
    that diffusers can hold.
    """
    params = context.variables['params']
    photos = photographs(self.config, 'train')
    chosen = photos[np.linspace(0, len(photos) - 1, min(len(photos), MEASURED)).astype(int)]
    mean, log_variance = self._encode(params, chosen)
    offset = mean.mean((0, 1, 2))
    deviation = np.sqrt(mean.var((0, 1, 2)) + np.exp(log_variance).mean((0, 1, 2)))
    gain = 1 / (self.model.autoencoder.scaling * deviation)
    return {**context.variables, 'params': {**params, 'autoencoder': rescaled(params['autoencoder'], offset, gain)}}

  # Objectives.

  def autoencoder_loss(
    self, variables: contract.Variables, batch: contract.Batch, rng: jax.Array, step: jax.Array
  ) -> tuple[jax.Array, contract.LossOutput]:
    """L1 + MSE + 1e-4 KL, each a mean (spec 9c)."""
    del step
    params, photos = variables['params'], images.from_levels(batch['image'])
    mean, log_variance = self.model.moments(params, photos)
    drawn = self.model.draw(mean, log_variance, jax.random.split(rng, len(photos)))
    error = self.model.decode(params, drawn) - photos
    parts = {
      'l1': jnp.abs(error).mean(),
      'mse': jnp.square(error).mean(),
      'kl': 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance).mean(),
    }
    total = parts['l1'] + parts['mse'] + KL_WEIGHT * parts['kl']
    return total, contract.LossOutput(parts, weight=photos.shape[0])

  def diffusion_loss(
    self,
    variables: contract.Variables,
    batch: contract.Batch,
    rng: jax.Array,
    step: jax.Array,
    *,
    transfer: bool = False,
  ) -> tuple[jax.Array, contract.LossOutput]:
    """The denoising loss, at one timestep and with one noise per photo."""
    del step
    params, count = self.view(variables['params'], transfer=transfer), len(batch['ids'])
    keys = jax.vmap(functools.partial(jax.random.split, num=3))(jax.random.split(rng, count))
    latents = self.model.draw(batch['mean'], batch['log_variance'], keys[:, 0])
    t = latent.timesteps(keys[:, 1], self.model.schedule.steps)
    noise = latent.normal(keys[:, 2], latents.shape[1:])
    errors = self.model.errors(params, latents, self.model.context(params, batch['ids']), t, noise)
    return errors.mean(), contract.LossOutput({}, weight=count)

  # Judgement.

  def evaluators(self) -> dict[str, contract.Evaluator]:
    """'model': how good the model itself is."""
    return {'model': self.judge}

  def judge(self, variables: contract.Variables, split: str) -> contract.Evaluation:
    """'psnr' of photos that were encoded and decoded, 'denoising' (mean over 13 timesteps, fixed noise), 'latent_std';
    with a second model 'transfer/denoising'. All under the class prompt.

    Returns:
      arrays: 'photos' and 'decoded' uint8 [n, S, S, 3], 'generated' (and 'transfer/generated'), made of noise alone.
    """
    params, rows = variables['params'], self.config.eval.batch_size
    photos = photographs(self.config, split, limit=JUDGED)
    decoded, mean = forward.in_batches(self._see, {'autoencoder': params['autoencoder']}, [photos], rows)
    quality = image_metrics.psnr(jnp.asarray(decoded, jnp.float32), photos.astype(np.float32), data_range=255)
    scalars = {'psnr': float(quality.mean()), 'latent_std': float(mean.std())}
    arrays = {'photos': photos[:SHOWN], 'decoded': decoded[:SHOWN]}
    for name, transfer in (('', False), ('transfer/', True))[: 1 + self.config.transfer.enabled]:
      view = self.view(params, transfer=transfer)
      keys = jax.vmap(jax.random.key_data)(jax.random.split(jax.random.key(0), len(mean)))
      losses = forward.in_batches(self._losses, view, [mean, np.asarray(keys)], rows)
      scalars[f'{name}denoising'] = float(losses.mean())
      arrays[f'{name}generated'] = forward.in_batches(self._generate, view, [np.asarray(keys[:SHOWN])], rows)
    return contract.Evaluation(scalars, arrays, self.metadata())

  @functools.cached_property
  def _see(self) -> Any:
    """Photos uint8 -> (decoded uint8, scaled latents)."""

    def see(params: Any, photos: jax.Array) -> tuple[jax.Array, jax.Array]:
      latents = self.model.latents(params, images.from_levels(photos))
      return images.to_levels(self.model.decode(params, latents)), latents

    return jax.jit(see)

  @functools.cached_property
  def _losses(self) -> Any:
    """Scaled latents and the data of a key per row -> f32 [B, 13]."""
    ids, schedule = self.ids(self.config.prompts.prior), self.model.schedule

    def losses(params: Any, latents: jax.Array, keys: jax.Array) -> jax.Array:
      context = jnp.repeat(self.model.context(params, ids), len(latents), axis=0)
      keys = jax.vmap(jax.random.wrap_key_data)(keys)

      def at(t: jax.Array) -> jax.Array:
        noise = latent.normal(jax.vmap(jax.random.fold_in, (0, None))(keys, t), latents.shape[1:])
        t = jnp.full(len(latents), t)
        return self.model.errors(params, latents, context, t, noise).mean((1, 2, 3))

      return jax.lax.map(at, jnp.asarray(np.round(TIMES * schedule.steps).astype(np.int32))).T

    return jax.jit(losses)

  @functools.cached_property
  def _generate(self) -> Any:
    """The data of a key per row -> photos uint8 under the class prompt, without guidance."""
    ids, steps = self.ids(self.config.prompts.prior), self.config.eval.steps

    def generate(params: Any, keys: jax.Array) -> jax.Array:
      keys = jax.vmap(jax.random.wrap_key_data)(keys)
      context = jnp.repeat(self.model.context(params, ids), len(keys), axis=0)
      return images.to_levels(self.model.generate(params, context, keys, size=self.config.model.size, steps=steps))

    return jax.jit(generate)


class _Caption:
  """A random transform that gives a row a caption's ids; a class, so that worker processes can be sent one."""

  def __init__(self, ids: np.ndarray):
    self.ids = ids

  def __call__(self, row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    which = 0 if rng.uniform() < 0.5 else rng.integers(1, len(self.ids))
    return {**row, 'ids': self.ids[which]}


def _filled(model: latent.LatentDiffusion, rng: jax.Array, size: int) -> dict[str, Any]:
  """Parameters that nobody trains: kernels N(0, 1 / inputs), all cut out of one draw; scales 1, biases 0."""
  shapes = jax.eval_shape(lambda key: model.init(key, size), rng)
  drawn = jax.random.normal(rng, (max(leaf.size for leaf in jax.tree.leaves(shapes)),))

  def leaf(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> jax.Array:
    if path[-1].key in ('scale', 'bias'):
      return jnp.full(shape.shape, float(path[-1].key == 'scale'), shape.dtype)
    return (drawn[: shape.size].reshape(shape.shape) * (shape.size / shape.shape[-1]) ** -0.5).astype(shape.dtype)

  return jax.tree_util.tree_map_with_path(leaf, shapes)


def rescaled(params: Mapping[str, Any], offset: np.ndarray, gain: np.ndarray) -> dict[str, Any]:
  """An autoencoder whose latents are (mean - offset) * gain, and whose photos are what they were.

  Args:
    params: of `core.nn.autoencoder.Autoencoder`.
    offset, gain: f32 [D] per channel of the (unscaled) latent.
  """
  quant, post = params['quant'], params['post_quant']
  gains = np.concatenate([gain, np.ones_like(gain)])
  shift = np.concatenate([-offset * gain, 2 * np.log(gain)])  # of the mean, of the log-variance
  return {
    **params,
    'quant': {'kernel': quant['kernel'] * gains, 'bias': quant['bias'] * gains + shift},
    'post_quant': {'kernel': post['kernel'] / gain[:, None], 'bias': post['bias'] + offset @ post['kernel']},
  }


# Records: where they lie, and how they are made.


def procedural(config: Any) -> bool:
  """Whether the photos are drawn on the spot."""
  return config.data.dataset == 'portraits'


def world(config: Any) -> portraits.Config:
  """How much of the portrait world `config.data.portraits` asks for."""
  amount = config.data.portraits
  return portraits.Config(config.model.size, amount.identities, amount.photos, amount.test, dict(amount.sets))


def records_root(config: Any) -> pathlib.Path:
  """Folder of the records; that of a portrait world carries a hash of what it is drawn from."""
  root = pathlib.Path(config.data.records).expanduser()
  if not procedural(config):
    return root
  digest = hashlib.sha256(json.dumps(_described(config), sort_keys=True).encode()).hexdigest()[:10]
  return root / f'portraits-{digest}'


def _described(config: Any) -> dict[str, Any]:
  return {'world_seed': config.data.seed, **vars(world(config))}


def prepare(config: Any) -> list[records.PrepareReport]:
  """Writes the records where they are missing: draws portraits, or reads the folders under `config.data.root`."""
  root, name, data = records_root(config), config.data.dataset, config.data
  if not procedural(config):
    if not data.root:
      raise UserError('config.data.root is empty: give the folder of the photos, --config.data.root=/path.')
    listing = _listing(data) if data.list else None
    return [identities.prepare(data.root, root, name, config.model.size, listing=listing, overwrite=data.overwrite)]
  if not records.is_written(root, name, info=_described(config)):
    splits = {split: portraits.examples(split, world(config), data.seed) for split in ('train', 'test')}
    description = 'Drawn portraits of people that do not exist, with the masks of their heads.'
    records.write(root, name, splits, identities.FEATURES, info=_described(config), description=description)
  written = manifest.load(records.find(root, name))
  return [records.PrepareReport(name, written.splits, [], written)]


def _listing(data: Any) -> identities.Listing:
  """The photos of the CSV file `data.list`, which is made of the raw photos under `data.root` where it is not there."""
  if not pathlib.Path(data.list).expanduser().exists():
    chosen = identity_lists.build(data.root, data.list, identities=data.limit or 50, seed=data.seed)
    print(f'{data.list}: {len(chosen.photos)} photos chosen among those under {data.root}.')
  return identity_lists.read(data.list, data.root)


def opened(config: Any, split: str) -> records.Records:
  """The records of a split: 'train', or 'test' with the identities that are protected and attacked."""
  return records.Records(records_root(config), config.data.dataset, split)


def photographs(config: Any, split: str, limit: int = 0) -> np.ndarray:
  """The photos of a split, uint8 [N, S, S, 3]; with `limit` so many of them, spread over it."""
  found = opened(config, split)
  count = min(limit or len(found), len(found))
  return np.stack([found[i]['image'] for i in np.linspace(0, len(found) - 1, count).round().astype(int)])


def _read(path: str, section: Any) -> pipeline.Pipeline:
  return pipeline.read(path, dtype=jnp.dtype(section.dtype), remat=section.remat)


def _show(folder: pipeline.Pipeline) -> None:
  for account in folder.accounts.values():
    print(account)


def _check(config: Any) -> None:
  """Finds what does not go together before anything is read."""
  dataset = config.data.dataset
  if dataset not in DATASETS:
    raise UserError(
      f"config.data.dataset is '{dataset}', expected one of {', '.join(DATASETS)}.{nearest(dataset, DATASETS)}"
    )
  if config.transfer.enabled and bool(config.model.path) != bool(config.transfer.path):
    lacking = 'transfer' if config.model.path else 'model'
    raise UserError(
      f'config.{lacking}.path is empty and the other is not: a second model comes from a folder where the first does.'
      ' Give both, or neither, or --config.transfer.enabled=false.'
    )
