"""Films and sentences before anything is made of them: normalisation, views, pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from small_reporter import built, felt, reporter, section

from core.errors import UserError
from multimodal.trrg import encoders

RNG = np.random.default_rng(0)
SWIN = {'width': 6, 'depths': (1, 1), 'heads': (2, 2), 'patch': 2, 'window': 4}


def vision(**changes):
  """An encoder of 16 px films, and its parameters."""
  config = section(**{f'vision.{name}': value for name, value in changes.items()}).vision
  found = encoders.Vision(config, image_size=16, dtype=jnp.float32, blind_width=9)
  return found, felt(found.init)


def films(count=2):
  return RNG.integers(0, 256, (count, 16, 16), np.uint8)


def test_a_grey_film_is_three_equal_channels_normalised_as_imagenets():
  eye, params = vision()
  x = films()
  film = jax.jit(eye)(params, x)
  colour = np.repeat(x[..., None] / 255.0, 3, -1)
  images = (colour - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  out = jax.jit(eye.module.apply)({'params': params}, images.astype(np.float32))
  np.testing.assert_allclose(film.summary, out['feature'], atol=1e-5)
  np.testing.assert_allclose(film.tokens, out['tokens'], atol=1e-5)
  assert (eye.layout.prefix, eye.layout.grid, film.tokens.shape) == (1, (2, 2), (2, 5, eye.width))
  assert np.array_equal(film.summary, film.tokens[:, 0])


def test_a_swin_gives_its_patches_and_their_mean():
  eye, params = vision(encoder='swin', variant=ConfigDict(SWIN))
  film = jax.jit(eye)(params, films())
  assert (eye.layout.prefix, eye.layout.grid, film.tokens.shape) == (0, (4, 4), (2, 16, eye.width))
  np.testing.assert_allclose(film.summary, film.tokens.mean(1), atol=1e-6)


def test_without_eyes_every_film_is_the_same_learned_token():
  eye, params = vision(encoder='none')
  film = eye(params, films())
  assert film.tokens.shape == (2, 1, 9) and np.array_equal(film.tokens[0], film.tokens[1])
  assert eye({'token': jnp.arange(9.0)}, films()).summary[1].tolist() == list(range(9))
  blind, variables = built(**{'vision.encoder': 'none'})
  with pytest.raises(UserError, match='sees no film'):
    blind.margins(variables, films()[:, None], np.ones((2, 1), bool))


def test_views_are_averaged_where_they_are_there():
  tokens = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
  mask = np.array([[True, False, True], [False, True, False]])
  x, known = encoders.fuse(jnp.asarray(tokens), mask, 'mean')
  np.testing.assert_allclose(x[0], (tokens[0, 0] + tokens[0, 2]) / 2, atol=1e-6)
  np.testing.assert_allclose(x[1], tokens[1, 1], atol=1e-6)
  assert known.shape == (2, 4) and known.all()


def test_or_stand_one_behind_the_other():
  tokens = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
  mask = np.array([[True, False, True], [False, True, False]])
  x, known = encoders.fuse(jnp.asarray(tokens), mask, 'concat')
  assert np.array_equal(known, np.repeat(mask, 4, axis=1))
  assert np.array_equal(x[0, 8:], tokens[0, 2]) and not np.asarray(x[1, :4]).any()


def test_studies_without_a_film_are_refused():
  with pytest.raises(UserError, match=r'1 of 3 studies have no film \(rows \[1\]\)'):
    encoders.check_views(np.array([[True, False], [False, False], [False, True]]))
  encoders.check_views(np.ones((3, 1), bool))


@pytest.mark.parametrize('pooling', encoders.POOLING)
def test_a_sentence_is_the_mean_of_its_words_and_padding_is_none(pooling):
  ours, variables = built(**{'text.pooling': pooling})
  params = variables['params']['perception']['text']
  ids, mask = RNG.integers(0, 20, (2, 5)), np.arange(5) < [[5], [3]]
  sentence, words = jax.jit(lambda ids: ours.text(params, ids, mask))(ids)
  out = jax.jit(ours.text.module.apply)({'params': params}, ids, mask)
  layers = [np.asarray(each) for each in out['layers']]
  states = layers[-1] if pooling == 'mean' else (layers[1] + layers[2] + layers[-1]) / 3
  np.testing.assert_allclose(words, states, atol=1e-5)
  np.testing.assert_allclose(sentence[1], states[1, :3].mean(0), atol=1e-5)
  padded = np.where(mask, ids, 7)
  np.testing.assert_allclose(ours.text(params, padded, mask).summary, sentence, atol=1e-5)


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'vision.encoder': 'vti'}, "Did you mean 'vit'"),
    ({'vision.tuning': 'trian'}, "Did you mean 'train'"),
    ({'vision.encoder': 'swin', 'vision.variant': ConfigDict(SWIN), 'vision.tuning': 'lora'}, "attaches to a 'vit'"),
    ({'vision.variant': 'tiny_places8'}, 'no class token'),
    ({'vision.variant': 'tiny_pach8'}, "there is no ViT 'tiny_pach8'"),
    ({'text.pooling': 'max'}, "'mean', 'medclip'"),
    ({'views': 'conct'}, "Did you mean 'concat'"),
    ({'language.tuning': 'loar'}, "Did you mean 'lora'"),
    ({'disease.loss': 'ful'}, "Did you mean 'full'"),
  ],
)
def test_choices_that_do_not_exist_are_named(changes, words):
  with pytest.raises(UserError, match=words):
    reporter(**changes)


def test_films_of_another_size_are_named():
  eye, params = vision()
  with pytest.raises(UserError, match=r'\(2, 8, 8\), expected \[films, 16, 16\]'):
    eye(params, np.zeros((2, 8, 8), np.uint8))
