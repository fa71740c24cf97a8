"""Latent diffusion as one: rows that ignore their batch, and the photos that diffusers makes of the same noise."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_folders
from small_folders import SIZE, TOKENIZER

from core.data import clip_tokens
from core.diffusion import latent, pipeline
from core.errors import UserError
from core.nn.autoencoder import Autoencoder
from core.nn.unet import UNet

MODEL = dataclasses.replace(
  small_folders.MODEL,
  unet=UNet(channels=(8,), cross=(True,), layers=0, heads=2, context_width=16, groups=4),
  text=small_folders.MODEL.text.clone(depth=1),
)
"""Of one level: it is compiled often. Its attention is in the middle and on the way up."""
PARAMS = small_folders.random_params(MODEL)
PROMPTS = ['a photo of sks person', 'person', 'a photo', 'photo of person']
KEYS = jax.random.split(jax.random.key(5), 4)
PHOTOS = np.random.default_rng(6).uniform(-1, 1, (4, SIZE, SIZE, 3)).astype(np.float32)
GRID = (SIZE // 2, SIZE // 2, 4)
jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})  # time is compiling's
CONTEXT = jit(MODEL.context)
GENERATE = jit(MODEL.generate, static_argnames=('size', 'sampler', 'steps', 'guidance'))


def ids(texts):
  return jnp.asarray(clip_tokens.prompts(TOKENIZER, texts, MODEL.text.max_positions))


@jit
def whole(params, photos, ids, keys):
  """All that is drawn on the way to the denoising loss, and the loss."""
  moments = MODEL.moments(params, photos)
  latents = MODEL.draw(*moments, keys)
  t = latent.timesteps(keys, 900, 100)
  noise = latent.normal(keys, latents.shape[1:])
  return *moments, latents, t, noise, MODEL.errors(params, latents, MODEL.context(params, ids), t, noise)


def one_by_one(function, *batches):
  rows = [function(*(batch[i : i + 1] for batch in batches)) for i in range(4)]
  return jax.tree.map(lambda *each: jnp.concatenate(each), *rows)


def test_a_batch_of_4_is_4_batches_of_1():
  batch = whole(PARAMS, PHOTOS, ids(PROMPTS), KEYS)
  alone = one_by_one(lambda *row: whole(PARAMS, *row), PHOTOS, ids(PROMPTS), KEYS)
  for ours, theirs in zip(batch, alone):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
  _, _, latents, t, noise, errors = batch
  assert errors.shape == latents.shape == (4, *GRID) and errors.dtype == jnp.float32
  assert len(set(map(int, t))) == 4 and ((t >= 100) & (t < 900)).all()
  assert min(np.std(values, axis=0).max() for values in (latents, noise, errors)) > 0.01


def test_photos_made_in_a_batch_of_4_are_those_made_alone():
  context, empty = CONTEXT(PARAMS, ids(PROMPTS)), CONTEXT(PARAMS, ids(['']))

  def make(context, keys):
    negative = jnp.repeat(empty, len(keys), axis=0)
    return GENERATE(PARAMS, context, keys, size=SIZE, sampler='ddpm', steps=4, negative=negative, guidance=3.0)

  photos = make(context, KEYS)
  np.testing.assert_allclose(photos, one_by_one(make, context, KEYS), atol=1e-4)
  assert photos.shape == (4, SIZE, SIZE, 3) and np.abs(photos).max() <= 1 and np.std(photos, axis=0).min() > 0
  assert np.abs(make(context, KEYS[::-1]) - photos).max() > 0.1
  np.testing.assert_array_equal(make(context, KEYS), photos)


@pytest.fixture(scope='module')
def theirs(tmp_path_factory):
  """The model as diffusers opens it."""
  diffusers = pytest.importorskip('diffusers')
  folder = tmp_path_factory.mktemp('folder') / 'model'
  pipeline.write(folder, MODEL, PARAMS, TOKENIZER, size=SIZE)
  made = diffusers.StableDiffusionPipeline.from_pretrained(folder)
  made.set_progress_bar_config(disable=True)
  return made


@pytest.mark.parametrize(
  ('sampler', 'scheduler', 'guidance'),
  [('dpmpp_2m', 'DPMSolverMultistepScheduler', 4.0), ('ddim', 'DDIMScheduler', 1.0)],
)
def test_photos_are_those_of_diffusers_within_one_grey_level(theirs, sampler, scheduler, guidance):
  torch, diffusers = pytest.importorskip('torch'), pytest.importorskip('diffusers')
  steps, texts = 20, PROMPTS[:2]
  theirs.scheduler = getattr(diffusers, scheduler).from_config(theirs.scheduler.config)
  noise = [jax.random.normal(jax.random.split(key)[0], GRID) for key in KEYS[:2]]  # what `generate` begins with
  expected = theirs(
    texts,
    latents=torch.tensor(np.moveaxis(np.asarray(noise), -1, 1).copy()),
    num_inference_steps=steps,
    guidance_scale=guidance,
    negative_prompt=['', ''],
    output_type='np',
  ).images
  context, negative = CONTEXT(PARAMS, ids(texts)), CONTEXT(PARAMS, ids(['', '']))
  options = {'negative': negative, 'guidance': guidance} if guidance > 1 else {}
  found = GENERATE(PARAMS, context, KEYS[:2], size=SIZE, sampler=sampler, steps=steps, **options)
  assert expected.std() > 0.05 and (np.abs(expected - 0.5) < 0.49).mean() > 0.5  # photos, not two flat colours
  np.testing.assert_allclose((np.asarray(found) + 1) / 2, expected, atol=1 / 255)


def test_latents_are_scaled_and_moments_are_not():
  mean, log_variance, latents, *_ = whole(PARAMS, PHOTOS, ids(PROMPTS), KEYS)
  noise = np.stack([jax.random.normal(key, GRID) for key in KEYS])
  np.testing.assert_allclose(latents, 0.7 * (mean + np.exp(log_variance / 2) * noise), atol=1e-5)
  certain = MODEL.draw(mean, jnp.full_like(mean, -30.0), KEYS)
  np.testing.assert_allclose(certain, 0.7 * mean, atol=1e-5)
  np.testing.assert_allclose(jit(MODEL.latents)(PARAMS, PHOTOS), 0.7 * mean, atol=1e-5)


def test_a_perfect_prediction_has_no_error():
  class Perfect(UNet):
    """Gives the velocity of the latents and the noise that the test takes."""

    def __call__(self, x, t, context, *, maps=False):
      del t, context, maps
      return MODEL.schedule.target(0.1 * jnp.ones(x.shape), jnp.ones(x.shape), jnp.full(len(x), 7))

  model = latent.LatentDiffusion(MODEL.autoencoder, Perfect(context_width=16), MODEL.text, MODEL.schedule)
  arguments = 0.1 * jnp.ones((2, *GRID)), jnp.zeros((2, 12, 16)), jnp.full(2, 7), jnp.ones((2, *GRID))
  np.testing.assert_allclose(model.errors({'unet': {}}, *arguments), 0, atol=1e-10)
  latents, context, t, noise = arguments
  assert model.errors({'unet': {}}, latents, context, t, 2 * noise).min() > 0.1


def test_parts_that_do_not_fit_each_other_are_refused():
  with pytest.raises(UserError, match='states of width 16, the U-Net attends to 64'):
    latent.LatentDiffusion(MODEL.autoencoder, UNet(context_width=64), MODEL.text, MODEL.schedule)
  inpainting = UNet(context_width=16, inputs=9)
  with pytest.raises(UserError, match='latents of 4 channels, the U-Net takes 9: a U-Net for inpainting'):
    latent.LatentDiffusion(MODEL.autoencoder, inpainting, MODEL.text, MODEL.schedule)
  with pytest.raises(UserError, match='photos of 17 pixels: expected a multiple of 2'):
    jax.eval_shape(lambda: MODEL.generate(PARAMS, jnp.zeros((1, 12, 16)), KEYS[:1], size=17))


def test_variants_are_built_by_name_and_one_that_is_not_there_is_named():
  model = latent.build('sd2_768', dtype=jnp.bfloat16, remat=True)
  assert model.schedule.prediction == 'v' and model.unet.heads == (5, 10, 20, 20) and model.text.depth == 23
  assert model.unet.remat and model.autoencoder.remat and model.text.dtype == jnp.bfloat16
  assert isinstance(model.autoencoder, Autoencoder) and model.autoencoder.factor == 8
  assert latent.build('tiny', vocabulary=99).text.vocabulary == 99
  with pytest.raises(UserError, match="no latent diffusion 'sd3'"):
    latent.build('sd3')
