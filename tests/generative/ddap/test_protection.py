"""The loop that protects photos: budgets, masks, surrogates, what it repeats and what it leaves alone (spec 9b)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_diffusion import MODEL, params, pictures

from core.data import image
from core.diffusion import personalisation
from core.diffusion.personalisation import Recipe
from core.errors import UserError
from core.metrics.frequency import hf_share
from generative.ddap import protection
from generative.ddap.methods import METHODS, build

PARAMS = params()
LEVELS = pictures(2, 16, 16)
PHOTOS = image.from_levels(jnp.asarray(LEVELS))
IDS = jnp.array([[1, 4, 5, 6, 7, 8, 9, 2, 0, 0]])
KEYS = jax.random.split(jax.random.key(0), 2)
RECIPE = Recipe(learning_rate=1e-3, instance_batch=1, prior_batch=1)
SHORT = {'outer': 2, 'inner': 4}
LEFT = np.zeros((2, 16, 16, 1), np.float32)
LEFT[:, :, :8] = 1


def encoded(seed, count=2):
  """Clean photos of a person."""
  return personalisation.encode(MODEL, PARAMS, image.from_levels(jnp.asarray(pictures(count, 16, 16, seed))), IDS)


def protect(method, photos=PHOTOS, keys=KEYS, **options):
  """By the pre-trained model, unless the method says otherwise."""
  options = {'instance_ids': IDS, 'recipe': RECIPE, **options}
  return protection.protect(MODEL, PARAMS, photos, method, keys=keys, **options)


def alone(name, **overrides):
  """A short method without surrogates."""
  return build(name, **{'surrogate': 'none', **SHORT, **overrides})


@functools.cache
def ddap():
  return protect(alone('ddap'))


@functools.cache
def fast():
  return protect(alone('fast'))


@functools.cache
def rising(name, **overrides):
  return protect(alone(name, outer=10, inner=4, **overrides))


def change(protected):
  return np.asarray(protected.photos - PHOTOS)


@pytest.mark.parametrize('name', ['random', 'aspl', 'spl', 'fpl', 'ddap', 'latent', 'photoguard', 'mist', 'fast'])
def test_photos_stay_within_the_budget_and_the_range(name):
  made = protect(build(name) if name == 'random' else alone(name, step_levels=2.0))
  assert 0.8 * 0.05 < np.abs(change(made)).max() <= 0.05 + 1e-6
  assert np.abs(np.asarray(made.photos)).max() <= 1
  levels = np.asarray(image.to_levels(made.photos)).astype(int) - LEVELS
  assert 5 <= np.abs(levels).max() <= 7  # ceil of 6.375 levels
  assert set(METHODS) >= {name} and all(len(each) == 8 for each in made.history.values())


def test_methods_that_differ_in_numbers_share_one_program():
  ddap()
  before = protection._attack._cache_size()
  for name in ('aspl', 'spl', 'fpl', 'mist'):
    protect(alone(name, eps_levels=9.0, k0=2), mask=LEFT)
  assert protection._attack._cache_size() == before


def test_the_same_keys_give_the_same_photos_and_others_others():
  np.testing.assert_array_equal(protect(alone('ddap')).photos, ddap().photos)
  assert (protect(alone('ddap'), keys=KEYS[::-1]).photos != ddap().photos).mean() > 0.3


def test_a_photo_does_not_depend_on_the_others():
  changed = protect(alone('ddap'), PHOTOS.at[0].set(0), KEYS.at[0].set(jax.random.key(5)))
  np.testing.assert_array_equal(changed.photos[1], ddap().photos[1])
  assert (np.asarray(changed.photos[0] - ddap().photos[0]) != 0).mean() > 0.9


def test_a_photo_alone_gives_what_it_gives_in_a_batch():
  single = protect(alone('fast'), PHOTOS[1:], KEYS[1:])
  # A sign of a gradient near zero may turn with the order of a sum.
  assert (np.abs(np.asarray(single.photos[0] - fast().photos[1])) < 1e-5).mean() > 0.99
  np.testing.assert_allclose(single.history['latent'][:, 0], fast().history['latent'][:, 1], rtol=1e-2)


def test_photo_by_photo_gives_what_all_at_once_gives():
  assert (np.abs(np.asarray(protect(alone('fast'), micro=1).photos - fast().photos)) < 1e-5).mean() > 0.99


@pytest.mark.parametrize('overrides', [{'outer': 0}, {'step_levels': 0.0}, {'rec': 0.0, 'lat': 0.0}, {'eps_levels': 0}])
def test_nothing_to_do_leaves_the_photos_as_they_are(overrides):
  np.testing.assert_array_equal(protect(alone('spl', **overrides)).photos, PHOTOS)


def test_outside_a_mask_nothing_moves_bit_for_bit():
  moved = change(protect(alone('ddap+mask'), mask=LEFT))
  np.testing.assert_array_equal(moved[:, :, 8:], 0)
  assert (moved[:, :, :8] != 0).mean() > 0.9
  np.testing.assert_array_equal(change(protect(alone('ddap+mask'), mask=0 * LEFT)), 0)
  np.testing.assert_array_equal(protect(alone('ddap+mask'), mask=0 * LEFT + 1).photos, ddap().photos)


def test_a_second_budget_outside_the_mask():
  moved = np.abs(change(protect(alone('ddap+mask', outside_levels=1.0, step_levels=2.0), mask=LEFT)))
  assert 0 < moved[:, :, 8:].max() <= 1 / 127.5 + 1e-6 < 3 / 127.5 < moved[:, :, :8].max()


def test_the_latent_displacement_rises_along_spl_steps():
  latent = rising('spl').history['latent'].mean(1)
  assert latent[-10:].mean() > 2 * latent[:10].mean()


def test_the_distance_to_a_target_falls():
  latent = rising('photoguard').history['latent'].mean(1)
  assert latent[-10:].mean() < 0.97 * latent[:10].mean()
  target = jnp.flip(PHOTOS[0], 0)
  own = protect(alone('photoguard', outer=10), target=target).history['latent'].mean(1)
  assert own[-1] < 0.97 * own[0] and own[0] != latent[0]


def test_frequency_steps_move_detail():
  assert hf_share(jnp.asarray(change(rising('fpl')))).min() > 0.9
  assert hf_share(jnp.asarray(change(rising('fpl', k0=0)))).min() < 0.9
  assert list(ddap().history['frequency']) == [False, True] * 4


@pytest.mark.parametrize(
  'overrides',
  [
    {'recon': 'decoder', 'rec': 1.0},
    {'domain': 'frequency', 'frequency_loss': 'spl', 'frequency_mode': 'spectrum_aug', 'spectra': 2},
    pytest.param({'latent': 'mean_logvar'}, marks=pytest.mark.slow),
    pytest.param({'latent': 'sample'}, marks=pytest.mark.slow),
  ],
)
def test_other_losses_and_spectra_give_other_photos(overrides):
  made = protect(build('fast', **SHORT, **overrides))
  assert np.abs(change(made)).max() <= 0.05 + 1e-6
  assert (np.asarray(made.photos) != np.asarray(fast().photos)).mean() > 0.05


def test_progress_is_told_after_every_outer_iteration():
  told = []
  protect(alone('fast', outer=3), on_step=lambda done, total, row: told.append((done, total, sorted(row))))
  assert told == [(done, 12, ['latent', 'reconstruction']) for done in (4, 8, 12)]


class Surrogates:
  """In the place of `personalisation.fit`: one weight counts the fits behind a model, and all calls are kept."""

  def __init__(self):
    self.calls = []

  def __call__(self, model, given, photos, prior, recipe, key, *, steps):
    count = given['unet']['conv_out']['bias']
    self.calls.append((float(count[0] - PARAMS['unet']['conv_out']['bias'][0]), photos, prior, steps))
    assert given['autoencoder'] is PARAMS['autoencoder']
    return {**given, 'unet': {**given['unet'], 'conv_out': {**given['unet']['conv_out'], 'bias': count + 1}}}


@pytest.fixture
def surrogates(monkeypatch):
  found = Surrogates()
  monkeypatch.setattr(personalisation, 'fit', found)
  return found


def test_aspl_personalises_copies_on_clean_photos_and_its_model_on_protected_ones(surrogates):
  reference, prior = encoded(1), encoded(2)
  made = protect(build('ddap', **SHORT), reference=reference, prior=prior)
  behind = [round(call[0]) for call in surrogates.calls]
  assert behind == [0, 0, 1]  # f' leaves f as it was; f goes on from f, not from f'
  clean = [call[1].mean is reference.mean for call in surrogates.calls]
  assert clean == [True, False, True]
  assert all(call[2] is prior and call[3] == 3 for call in surrogates.calls)
  seen = surrogates.calls[1][1]
  middle = protect(build('ddap', **{**SHORT, 'outer': 1}), reference=reference, prior=prior)
  np.testing.assert_allclose(seen.mean, personalisation.encode(MODEL, PARAMS, middle.photos, IDS).mean, atol=1e-6)
  assert (np.asarray(made.photos) != np.asarray(ddap().photos)).mean() > 0.05  # the surrogate is what was attacked


def test_fsmg_personalises_once(surrogates):
  protect(build('fsmg', **SHORT, fsmg_steps=7), reference=encoded(1))
  assert [(round(behind), steps) for behind, _, _, steps in surrogates.calls] == [(0, 7)]


@pytest.mark.slow  # compiles the training of two networks
def test_the_models_parameters_are_not_changed_by_real_surrogates():
  before = jax.tree.map(lambda leaf: np.array(leaf), PARAMS)
  made = protect(build('ddap', outer=2, inner=2), reference=encoded(1), prior=encoded(2))
  jax.tree.map(np.testing.assert_array_equal, before, PARAMS)
  again = protect(build('ddap', outer=2, inner=2), reference=encoded(1), prior=encoded(2))
  np.testing.assert_array_equal(made.photos, again.photos)
  other = protect(build('ddap', outer=2, inner=2), reference=encoded(1), prior=encoded(2), rng=jax.random.key(9))
  assert (np.asarray(made.photos) != np.asarray(other.photos)).any()


@pytest.mark.parametrize(
  'method,options,message',
  [
    (build('ddap'), {}, 'set A'),
    (alone('ddap+mask'), {}, 'without \\+mask'),
    (alone('ddap'), {'mask': LEFT[:1]}, 'a mask of shape'),
    (alone('ddap'), {'keys': KEYS[:1]}, 'a key per photo'),
    (alone('fast'), {'photos': PHOTOS[:, :12]}, 'multiples of 8'),
    (alone('photoguard'), {'target': PHOTOS[0, :8]}, 'a target of shape'),
  ],
)
def test_arguments_that_do_not_fit(method, options, message):
  with pytest.raises(UserError, match=message):
    protect(method, **options)
