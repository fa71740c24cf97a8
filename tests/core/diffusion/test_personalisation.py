"""Personalisation: what a step computes (torch's, to 1e-5), what learns and what does not, and what is kept on disk."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_folders
from flax.traverse_util import flatten_dict, unflatten_dict
from small_folders import SIZE, TOKENIZER, random_params

from core.data import clip_tokens, image
from core.diffusion import personalisation
from core.diffusion.latent import LatentDiffusion
from core.diffusion.personalisation import Photos, Recipe
from core.errors import UserError
from core.nn.autoencoder import Autoencoder
from core.nn.unet import UNet
from core.weights import clip, unet

MODEL = dataclasses.replace(
  small_folders.MODEL,
  autoencoder=Autoencoder(channels=(8,), layers=0, groups=4, scaling=0.7),
  unet=UNet(channels=(8,), cross=(False,), layers=0, heads=2, context_width=16, groups=4),
  text=small_folders.MODEL.text.clone(depth=1),
)
"""Of one level, with attention in the middle alone: its training is compiled twice."""
GRID = (8, 8, 4)
RECIPE = Recipe(
  steps=1, learning_rate=1e-3, weight_decay=0.5, clip_norm=1.0, prior_weight=0.5, instance_batch=2, prior_batch=2
)
KEY = jax.random.key(3)
IDS, CLASS_IDS = (clip_tokens.prompts(TOKENIZER, [text], 12) for text in ('a photo of sks person', 'a photo of person'))
PARAMS = jax.tree.map(jnp.asarray, random_params(MODEL))
UPDATED = ('unet', 'text')


def moments(count, ids, seed):
  rng = np.random.default_rng(seed)
  return Photos(*(jnp.asarray(rng.normal(size=(count, *GRID)), jnp.float32) for _ in range(2)), jnp.asarray(ids))


PERSON, OTHERS = moments(2, IDS, 0), moments(2, CLASS_IDS, 1)


def flat(params, parts=UPDATED):
  return {path: np.asarray(x) for path, x in flatten_dict({p: params[p] for p in parts}, sep='/').items()}


@functools.cache
def fitted(steps=1):
  """(parameters after some steps of `RECIPE`)."""
  return personalisation.fit(MODEL, PARAMS, PERSON, OTHERS, RECIPE, KEY, steps=steps)


# One step against torch.


def drawn(key):
  """(latents, noise, t): what `fit` draws in its first step, row by row."""
  chosen, others, noise = jax.random.split(jax.random.fold_in(key, 0), 3)
  batches = personalisation.pick(PERSON, 2, chosen), personalisation.pick(OTHERS, 2, others)
  mean, log_variance = (np.concatenate([batch[part] for batch in batches]) for part in (0, 1))
  keys = [jax.random.split(jax.random.fold_in(noise, i), 3) for i in range(4)]
  eta, eps = (np.stack([jax.random.normal(row[part], GRID) for row in keys]) for part in (0, 1))
  t = np.stack([jax.random.randint(row[2], (), 0, MODEL.schedule.steps) for row in keys])
  return MODEL.autoencoder.scaling * (mean + np.exp(0.5 * log_variance) * eta), eps, t


def theirs_after_a_step():
  """The parameters {path: array} after torch's AdamW behind its clipping, on diffusers' and transformers' networks."""
  torch, diffusers = pytest.importorskip('torch'), pytest.importorskip('diffusers')
  transformers = pytest.importorskip('transformers')
  start = exported(PARAMS)
  config = {key: value for key, value in unet.config(MODEL.unet).items() if not key.startswith('_')}
  network = diffusers.UNet2DConditionModel(**config)
  text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**clip.config(MODEL.text)))
  text = getattr(text, 'text_model', text)  # transformers 4 wraps it once more
  for each, name in ((network, 'unet'), (text, 'text')):
    named = {key.removeprefix(f'{name}/'): value for key, value in start.items() if key.startswith(f'{name}/')}
    tensors = {key: torch.tensor(np.array(value)) for key, value in named.items()}
    lost = each.load_state_dict(tensors, strict=False)
    assert not lost.unexpected_keys and all('position_ids' in key for key in lost.missing_keys)
    each.eval()
  latents, eps, t = drawn(KEY)
  schedule = diffusers.DDPMScheduler(
    1000, 0.00085, 0.012, 'scaled_linear', prediction_type='v_prediction', clip_sample=False
  )
  latents, eps = (torch.tensor(np.moveaxis(each, -1, 1).copy()) for each in (latents, eps))
  t = torch.tensor(t).long()
  states = text(torch.tensor(np.concatenate([IDS, CLASS_IDS])).long())[0]
  prediction = network(schedule.add_noise(latents, eps, t), t, states[[0, 0, 1, 1]]).sample
  target = schedule.get_velocity(latents, eps, t)
  mse = torch.nn.functional.mse_loss
  (mse(prediction[:2], target[:2]) + RECIPE.prior_weight * mse(prediction[2:], target[2:])).backward()
  both = [*network.parameters(), *text.parameters()]
  torch.nn.utils.clip_grad_norm_(both, RECIPE.clip_norm)
  torch.optim.AdamW(both, lr=RECIPE.learning_rate, weight_decay=RECIPE.weight_decay).step()
  parts = {'unet': network, 'text': text}
  return {
    f'{part}/{name}': value.detach().numpy() for part in parts for name, value in parts[part].state_dict().items()
  }


def exported(params):
  """The parameters of both networks under the names of diffusers and transformers."""
  tensors = {}
  for part, write, layout in (('unet', unet.export, 'diffusers'), ('text', clip.export, 'bare')):
    named = write({path: np.asarray(leaf) for path, leaf in flatten_dict(params[part], sep='/').items()}, layout)
    tensors |= {f'{part}/{name}': np.asarray(value) for name, value in named.items()}
  return tensors


def test_a_step_is_torchs_adamw_behind_its_clipping():
  expected, ours, before = theirs_after_a_step(), exported(fitted()), exported(PARAMS)
  # A key's bias shifts every logit alike: its gradient is rounding error, which Adam blows up to a step.
  paths = [path for path in ours if not path.endswith('k_proj.bias')]
  norm = lambda arrays: np.sqrt(sum(np.sum(np.square(each, dtype=np.float64)) for each in arrays))  # noqa: E731
  error = norm(ours[path] - expected[path] for path in paths)
  assert error < 1e-5 * norm(expected[path] for path in paths)
  assert error < 1e-2 * norm(ours[path] - before[path] for path in paths)
  assert norm(ours[path] - before[path] for path in paths if path.startswith('text/')) > 0


# What learns.


def test_what_was_given_stays_and_the_autoencoder_is_handed_on():
  kept = jax.tree.map(np.array, PARAMS)
  learned = fitted()
  jax.tree.map(np.testing.assert_array_equal, kept, jax.tree.map(np.asarray, PARAMS))
  assert all(a is b for a, b in zip(jax.tree.leaves(learned['autoencoder']), jax.tree.leaves(PARAMS['autoencoder'])))
  assert jax.tree.structure(learned) == jax.tree.structure(PARAMS)
  assert all((mine != flat(PARAMS)[path]).any() for path, mine in flat(learned).items() if path.endswith('kernel'))


def test_no_step_changes_nothing_and_two_calls_of_one_step_are_not_a_call_of_two():
  for path, leaf in flat(fitted(0)).items():
    np.testing.assert_array_equal(leaf, flat(PARAMS)[path])
  again = personalisation.fit(MODEL, fitted(), PERSON, OTHERS, RECIPE, KEY)
  assert any((leaf != flat(fitted(2))[path]).any() for path, leaf in flat(again).items())  # moments start anew


def test_the_number_of_steps_and_the_recipes_own_compile_nothing_anew():
  fitted()
  compiled = personalisation._fit._cache_size()
  personalisation.fit(MODEL, PARAMS, PERSON, OTHERS, dataclasses.replace(RECIPE, steps=7), KEY, steps=2)
  assert personalisation._fit._cache_size() == compiled


def test_what_is_learnt_is_better_known():
  before, after = (known(params).mean() for params in (PARAMS, fitted(30)))
  assert after < 0.9 * before


class Linear(LatentDiffusion):
  """Predicts from what it is given, without networks."""

  def context(self, params, ids):
    return 0.1 * ids[..., None].astype(jnp.float32)

  def predict(self, params, noisy, t, context, *, maps=False):
    return 0.5 * noisy + context.mean((1, 2))[:, None, None, None]


def test_the_loss_is_a_weighted_sum_of_two_and_the_persons_does_not_depend_on_the_prior():
  model = Linear(MODEL.autoencoder, MODEL.unet, MODEL.text, MODEL.schedule)
  others = (OTHERS, None, OTHERS._replace(ids=OTHERS.ids[:, ::-1] + 3))
  run = jax.jit(lambda: [personalisation.loss(model, {}, PERSON, each, KEY, RECIPE) for each in others])
  (total, parts), (alone, just), (_, renamed) = run()
  np.testing.assert_allclose(total, parts['instance'] + 0.5 * parts['prior'], rtol=1e-6)
  np.testing.assert_allclose(alone, parts['instance'], rtol=1e-5)
  assert set(just) == {'instance'} and abs(renamed['prior'] - parts['prior']) > 1e-3


def test_low_rank_updates_touch_kernels_of_attention_alone_and_start_as_nothing():
  recipe = dataclasses.replace(RECIPE, lora_rank=2, train_text=False)
  adapted = personalisation.add_lora(PARAMS, recipe, KEY)
  merged = personalisation.merge(adapted, recipe.lora_alpha)
  jax.tree.map(np.testing.assert_array_equal, merged, dict(PARAMS))
  learned = personalisation.fit(MODEL, PARAMS, PERSON, OTHERS, recipe, KEY)
  assert jax.tree.structure(learned) == jax.tree.structure(PARAMS)
  before, after = flat(PARAMS), flat(learned)
  changed = {path for path in after if (after[path] != before[path]).any()}
  attention = {
    path for path in before if path.startswith('unet/') and ('/self/' in path or '/cross/' in path) and 'kernel' in path
  }
  assert changed == attention
  update = next(after[path] - before[path] for path in sorted(attention))
  assert np.linalg.matrix_rank(update, tol=1e-6) <= 2


def test_photos_are_encoded_a_few_at_a_time_into_the_same_moments():
  shape = (personalisation.ENCODED + 1, SIZE, SIZE, 3)
  photos = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, shape), jnp.float32)
  whole = personalisation.encode(MODEL, PARAMS, photos, IDS)
  last = personalisation.encode(MODEL, PARAMS, photos[-1:], IDS)
  assert whole.mean.shape == (len(photos), SIZE, SIZE, 4)
  np.testing.assert_allclose(whole.mean[-1:], last.mean, atol=1e-5)
  np.testing.assert_allclose(whole.log_variance[-1:], last.log_variance, atol=1e-5)


def test_no_photo_is_picked_twice_before_all_were():
  photos = moments(3, IDS, 0)
  for seed in range(5):
    seven = np.asarray(personalisation.pick(photos, 7, jax.random.key(seed)).mean[:, 0, 0, 0])
    assert sorted(np.unique(seven, return_counts=True)[1]) == [2, 2, 3]


EVERYWHERE = np.ones((2, *GRID[:2], 1), np.float32)


def known(params, weights=EVERYWHERE):
  """`face_loss` on the photos of the person."""
  latents = MODEL.autoencoder.scaling * PERSON.mean
  return np.asarray(personalisation.face_loss(MODEL, params, latents, jnp.asarray(weights), IDS, KEY))


def test_the_face_loss_sees_the_face_alone():
  weights = np.zeros((2, *GRID[:2], 1), np.float32)
  weights[:, 2:5, 2:5] = 1
  inside, everywhere = known(PARAMS, weights), known(PARAMS)
  assert inside.shape == (2,) and (np.abs(inside - everywhere) > 1e-4).all()
  np.testing.assert_allclose(known(PARAMS, 3 * weights), inside, rtol=1e-5)


# Class photos.


MAKE = functools.partial(personalisation.prior_photos, MODEL, PARAMS, IDS, size=SIZE, steps=2, batch_size=2)


def test_class_photos_are_made_once_and_a_stopped_run_goes_on(tmp_path):
  whole = MAKE(count=3, seed=0, folder=tmp_path / 'a')
  assert whole.shape == (3, SIZE, SIZE, 3) and whole.dtype == np.uint8 and len(np.unique(whole[:, 0, 0, 0])) > 1
  MAKE(count=1, seed=0, folder=tmp_path / 'b')
  np.testing.assert_array_equal(MAKE(count=3, seed=0, folder=tmp_path / 'b'), whole)
  marked = np.full((SIZE, SIZE, 3), 7, np.uint8)
  image.write_png(tmp_path / 'a' / '0001.png', marked)
  np.testing.assert_array_equal(MAKE(count=3, seed=0, folder=tmp_path / 'a')[1], marked)  # not made again


def test_class_photos_of_something_else_are_not_taken(tmp_path):
  MAKE(count=1, seed=0, folder=tmp_path / 'a')
  with pytest.raises(UserError, match='another seed'):
    MAKE(count=1, seed=1, folder=tmp_path / 'a')
  other = unflatten_dict({('unet', 'conv_in', 'bias'): PARAMS['unet']['conv_in']['bias'] + 1})
  other = {**PARAMS, 'unet': {**PARAMS['unet'], 'conv_in': {**PARAMS['unet']['conv_in'], **other['unet']['conv_in']}}}
  assert personalisation.fingerprint(other) != personalisation.fingerprint(PARAMS)
  (tmp_path / 'b').mkdir()
  (tmp_path / 'b' / 'mine.png').write_bytes(b'')
  with pytest.raises(UserError, match='expected an empty folder'):
    MAKE(count=1, seed=0, folder=tmp_path / 'b')


# Recipes.


def test_recipes_say_what_is_wrong():
  assert Recipe.from_config({'steps': 3, 'lora_rank': 4}) == Recipe(steps=3, lora_rank=4)
  with pytest.raises(UserError, match="Did you mean 'learning_rate'"):
    Recipe.from_config({'learning_rat': 1})
  for name, value in (('steps', -1), ('learning_rate', 0.0), ('prior_batch', 0), ('lora_rank', -2)):
    with pytest.raises(UserError, match=f'personalise.{name} is {value}'):
      Recipe(**{name: value})
