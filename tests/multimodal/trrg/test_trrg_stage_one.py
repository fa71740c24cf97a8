"""Stage 1 and what it leaves: the contrast of two encoders, the clue bank, margins, the start of stage 2."""

import functools

import jax
import numpy as np
import pytest
from small_reporter import LISTS, SENTENCE, SIZE, TEXT_VOCABULARY, WORDS, batch, built, changed, flat

from core.errors import UserError
from core.nn import adapters
from multimodal.trrg import contrast, model
from multimodal.trrg.observations import CLUES


def sentences(count, seed, length=SENTENCE):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(2, length + 1, count)
  return rng.integers(0, TEXT_VOCABULARY, (count, length)).astype(np.int32), np.arange(length) < lengths[:, None]


@functools.cache
def banked():
  """(networks, variables with a bank, the prompts that it is of)."""
  ours, variables = built()
  sides = [[sentences(2 if k else 3, 100 * side + k, 4 if k == 3 else SENTENCE) for k in range(14)] for side in (0, 1)]
  words = sentences(CLUES, 300, WORDS)
  bank = jax.jit(lambda v: ours.bank(v, *sides, words))(variables)
  return ours, changed(variables, clues={**variables['clues'], **bank}), sides, words


def test_the_bank_holds_prototypes_and_words_of_the_text_encoder():
  ours, variables, sides, words = banked()
  clues = variables['clues']
  read = jax.jit(lambda v, ids, mask: (ours.text_embedding(v, ids, mask), *ours.word_embeddings(v, ids, mask)))
  assert set(clues) == set(built()[1]['clues'])
  for name, side in zip(('positive', 'negative'), sides, strict=True):
    for k in (1, 6, 13):
      q = np.asarray(read(variables, *side[k])[0]).mean(0)
      np.testing.assert_allclose(clues[name][k], q / np.linalg.norm(q), atol=1e-5)
  np.testing.assert_allclose(clues['prototype'][4], read(variables, *sides[0][4])[1].mean(0), atol=1e-5)
  _, summary, states = read(variables, *words)
  np.testing.assert_allclose(clues['sentence'], summary, atol=1e-5)
  np.testing.assert_allclose(clues['words'], states, atol=1e-5)
  assert np.array_equal(clues['word_mask'], words[1]) and clues['words'].shape == (CLUES, WORDS, 8)
  with pytest.raises(UserError, match=r'13 positive.*expected 14'):
    ours.bank(variables, sides[0][1:], sides[1], words)


def test_margins_compare_a_film_with_what_asserts_and_what_denies():
  ours, variables, _, _ = banked()
  image = batch(LISTS, views=2)['image']
  both, first, second = (np.array([mask] * 3) for mask in ([True, True], [True, False], [False, True]))
  see = jax.jit(lambda v, image, mask: (ours.margins(v, image, mask), ours.image_embedding(v, image, mask)))
  m, p = see(variables, image, both)
  clues = variables['clues']
  np.testing.assert_allclose(np.linalg.norm(p, axis=1), 1, atol=1e-5)
  np.testing.assert_allclose(m, np.exp(2) * p @ (clues['positive'] - clues['negative']).T, atol=1e-4)
  assert np.array_equal(m, see(variables, image, both)[0])
  views = [see(variables, image, mask)[1] for mask in (first, second)]
  mean = np.asarray(views[0] + views[1])
  np.testing.assert_allclose(p, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-5)
  blackened = np.stack([image[:, 0], 0 * image[:, 1]], 1)
  np.testing.assert_allclose(see(variables, blackened, first)[1], views[0], atol=1e-5)
  swapped = changed(variables, clues={**clues, 'positive': clues['negative'], 'negative': clues['positive']})
  np.testing.assert_allclose(see(swapped, image, both)[0], -m, atol=1e-4)


def test_stage_one_is_the_contrast_of_its_two_embeddings_and_trains_perception_alone():
  ours, variables = built()
  rng = np.random.default_rng(0)
  ids, mask = sentences(4, 0)
  whole = {
    'image': rng.integers(0, 256, (4, SIZE, SIZE), np.uint8), 'text_ids': ids, 'text_mask': mask,
    'text_key': np.array([0, 1, 0, 2]), 'sentence_label': rng.integers(0, 4, (4, 14)).astype(np.int8),
    'study_label': rng.integers(0, 4, (4, 14)).astype(np.int8),
  }  # fmt: skip

  @jax.jit
  def run(params, whole):
    here = {'params': params}
    p = ours.image_embedding(here, whole['image'][:, None], np.ones((4, 1), bool))
    q = ours.text_embedding(here, whole['text_ids'], whole['text_mask'])
    wanted = contrast.targets('label_match', whole['text_key'], whole['sentence_label'], whole['study_label'])
    expected, _ = contrast.loss(p, q, 2.0, *wanted)
    return expected, *jax.value_and_grad(lambda p: ours.contrast_loss({'params': p}, whole, 'label_match')[0])(params)

  expected, value, slope = run(variables['params'], whole)
  assert float(value) == pytest.approx(float(expected), abs=1e-5)
  for path, leaf in flat(slope).items():
    if not path.endswith('key/bias'):  # the same for all keys: a softmax does not see it
      assert bool(np.abs(leaf).max() > 1e-9) == path.startswith(model.PERCEPTION), path


def test_stage_two_begins_with_what_perception_has_learnt():
  ours, variables, _, _ = banked()
  begun = ours.begin(variables)
  for path, leaf in flat(variables['params']['perception']['image']).items():
    assert np.array_equal(flat(begun['params']['vision'])[path], leaf)
  assert np.array_equal(begun['params']['disease']['query'], variables['clues']['prototype'])
  adapted, variables = built(**{'vision.tuning': 'lora'})
  begun = flat(adapted.begin(variables)['params']['vision'])
  assert sum(adapters.is_adapter(path) for path in begun) == 4
  for path, leaf in flat(variables['params']['vision']).items():
    seen = flat(variables['params']['perception']['image']).get(path, leaf)
    assert np.array_equal(begun[path], seen)
