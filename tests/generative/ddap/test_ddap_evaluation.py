"""How DDAP judges: suppression, what is visible, the attacker's loss inside the face."""

import dataclasses

import jax
import numpy as np
import pytest

from core.data import image
from core.diffusion import latent, personalisation
from core.diffusion.personalisation import Recipe
from generative.ddap import attacker, drawing, evaluation
from generative.ddap.people import Person

MODEL = latent.build('tiny')


@pytest.fixture(scope='module')
def params():
  return jax.jit(lambda key: MODEL.init(key, 32))(jax.random.key(0))


@pytest.fixture(scope='module')
def thief():
  ids = [np.full((1, MODEL.text.max_positions), k, np.int32) for k in (1, 2, 3)]
  return attacker.Attacker(MODEL, *ids, Recipe(steps=2, learning_rate=1e-3), seed=0)


def person(seed=0, face=None):
  rng = np.random.default_rng(seed)
  photos = [rng.integers(0, 256, (2, 32, 32, 3)).astype(np.uint8) for _ in range(3)]
  face = np.ones((2, 32, 32, 1), bool) if face is None else face
  return Person('one', photos[0], photos[1], face, photos[2], face)


def test_suppression_is_a_ratio_of_means():
  before, clean = np.array([0.4, 0.2]), np.array([0.2, 0.2])
  found = evaluation.suppression(np.array([0.3, 0.2]), before, clean)
  assert found == pytest.approx({'loss': 0.25, 'effect': 0.05, 'R': 0.5})
  assert evaluation.suppression(clean, before, clean)['R'] == 0
  assert evaluation.suppression(before, before, clean)['R'] == pytest.approx(1)


def test_an_attacker_that_learns_nothing_gives_no_suppression(capsys):
  before, clean = np.array([0.2]), np.array([0.3])
  assert np.isnan(evaluation.suppression(clean, before, clean)['R'])
  evaluation._warn('white', before, clean)
  assert 'learns nothing from clean photos' in capsys.readouterr().out


def test_what_is_visible_is_measured_in_levels_and_in_the_face(params):
  face = np.zeros((2, 32, 32, 1), bool)
  face[:, 8:24, 8:24] = True
  some = person(face=face)
  clean = np.clip(some.photos, 20, 235)
  changed = clean.copy()
  changed[0, 10:14, 10:14] += 5  # inside
  changed[1, :4, :4] -= 7  # outside
  found = jax.device_get(evaluation.visible(MODEL, params, changed, clean, face))
  np.testing.assert_allclose(found['linf'], [5, 7], rtol=1e-5)
  np.testing.assert_array_equal(found['outside'], [0, 7])
  expected = 10 * np.log10(255**2 / np.mean((changed[0].astype(float) - clean[0]) ** 2))
  assert found['psnr'][0] == pytest.approx(expected, rel=1e-4)
  assert (found['latent'] > 0).all() and (found['face_latent'] > 0).all() and (found['ssim'] < 1).all()


def test_noise_of_one_level_has_the_spectrum_of_noise(params):
  rng = np.random.default_rng(0)
  clean = np.full((2, 32, 32, 3), 128, np.uint8)
  noise = (clean + rng.choice([-1, 1], clean.shape)).astype(np.uint8)
  found = evaluation.visible(MODEL, params, noise, clean, np.ones((2, 32, 32, 1), bool))
  np.testing.assert_allclose(found['hf_share'], 54 / 64, atol=0.03)  # white noise: 54 of 64 coefficients


def test_the_loss_in_the_face_is_of_held_out_photos_and_of_the_face(params, thief):
  some = person()
  found = thief.face_loss(params, some)
  top = np.zeros((2, 32, 32, 1), bool)
  top[:, :16] = True
  losses = [thief.face_loss(params, dataclasses.replace(some, held_out_face=face)) for face in (top, ~top)]
  assert found == pytest.approx(np.mean(losses), rel=1e-4) and losses[0] != pytest.approx(losses[1], rel=1e-4)
  elsewhere = dataclasses.replace(some, photos=255 - some.photos, face=top, reference=255 - some.reference)
  assert thief.face_loss(params, elsewhere) == found
  assert thief.face_loss(params, dataclasses.replace(some, held_out=255 - some.held_out)) != found


def test_latents_do_not_depend_on_how_many_are_encoded_at_once(params, monkeypatch):
  photos = person().photos
  whole = personalisation.latents(MODEL, params, photos)
  monkeypatch.setattr(personalisation, 'ENCODED', 1)
  np.testing.assert_allclose(whole, personalisation.latents(MODEL, params, photos), atol=1e-4)


def test_an_attacker_learns_and_leaves_the_model_as_it_was(params, thief):
  some, kept = person(), jax.tree.map(np.array, params)
  learned = thief.learn(params, some.photos, some.reference)
  jax.tree.map(np.testing.assert_array_equal, params, kept)
  jax.tree.map(np.testing.assert_array_equal, learned['autoencoder'], kept['autoencoder'])
  moved = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(learned['unet']), jax.tree.leaves(kept['unet']))]
  assert max(moved) > 0
  again = thief.learn(params, some.photos, some.reference)
  jax.tree.map(np.testing.assert_array_equal, again, learned)


def test_pictures_do_not_depend_on_the_batch(params, thief):
  options = {'size': 32, 'steps': 2, 'guidance': 2.0}
  whole = thief.pictures(params, thief.instance, 4, batch_size=4, **options)
  parts = thief.pictures(params, thief.instance, 4, batch_size=2, **options)
  assert whole.shape == (4, 32, 32, 3) and whole.dtype == np.uint8
  assert np.abs(whole.astype(int) - parts.astype(int)).max() <= 1
  assert np.abs(whole[0].astype(int) - whole[1]).max() > 1


def test_protection_is_judged_on_its_own_persons_only():
  with pytest.raises(evaluation.UserError, match="split 'test', not on 'val'"):
    evaluation._check('val')


def test_a_sheet_shows_changes_around_grey():
  clean = np.full((8, 8, 3), 100, np.uint8)
  changed = clean.copy()
  changed[0, 0], changed[1, 1] = 110, 90
  shown = drawing.difference(changed, clean, levels=10)
  assert shown[0, 0, 0] == 255 and shown[1, 1, 0] == 1 and shown[5, 5, 0] == 128
  sheet = drawing.sheet([('one\nsmaller', [clean, None, shown])], columns=('a', 'b', 'c'), side=16, label=50)
  assert sheet.dtype == np.uint8 and sheet.shape[1] == 50 + 3 * (16 + drawing.GAP)
  np.testing.assert_array_equal(sheet[24 : 24 + 16, 50 : 50 + 16], 100)
  assert (image.from_levels(shown) <= 1).all()
