"""Stage 2 as a whole: what reaches the report, in what order, and what must not matter (spec 9b, 6 to 16)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_reporter import EOS, LANGUAGE_VOCABULARY, LISTS, REPORT, TEMPLATE, batch, built, changed, flat, reporter

from core.errors import UserError
from core.nn import adapters
from multimodal.trrg import model
from multimodal.trrg.observations import OBSERVATIONS


@functools.cache
def forward(**changes):
  return jax.jit(built(**changes)[0].forward)


@functools.cache
def judged():
  """((loss, (metrics, tokens)), gradient with respect to all variables)."""
  ours = built()[0]

  def loss(variables, whole):
    value, metrics, tokens = ours.loss(variables, whole)
    return value, (metrics, tokens)

  return jax.jit(jax.value_and_grad(loss, has_aux=True, allow_int=True))


def surprise(logits, whole):
  """-log p of each token of the reports, f64 [B, T]."""
  logits = np.asarray(logits, np.float64)
  return np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, whole['report_ids'][..., None], -1)[..., 0]


def test_there_is_a_row_of_logits_for_every_token_of_the_report():
  out = forward()(built()[1], batch(LISTS))
  assert out.logits.shape == (3, REPORT, LANGUAGE_VOCABULARY) and out.logits.dtype == jnp.float32
  assert out.hidden.shape == (3, REPORT, 16) and out.lv.shape == out.ll.shape == (3, len(OBSERVATIONS))
  assert all(np.isfinite(each).all() for each in out)


def test_diseases_are_read_strictly_before_the_report():
  variables, whole = built()[1], batch(LISTS)
  before = forward()(variables, whole)
  for place in range(REPORT):
    ids = whole['report_ids'].copy()
    ids[:, place] = 3 + (ids[:, place] + 1) % 20
    after = forward()(variables, changed(whole, report_ids=ids))
    assert np.array_equal(after.ll, before.ll) and np.array_equal(after.lv, before.lv)
    assert np.array_equal(after.logits[:, : place + 1], before.logits[:, : place + 1])  # and no token reads itself
    if place + 1 < REPORT:
      assert np.abs(after.logits[0, place + 1] - before.logits[0, place + 1]).max() > 1e-4


def test_what_a_batch_is_padded_with_changes_no_logit():
  """Each study by itself, without empty slots or places, and beside studies with more clues and longer reports."""
  variables, whole = built()[1], batch(LISTS)
  together = forward()(variables, whole)
  for i in (0, 1):
    alone = {name: array[[i]] for name, array in whole.items()}
    count, length = len(LISTS[i]), int(alone['report_mask'].sum())
    alone = changed(
      alone, clue_ids=alone['clue_ids'][:, :count], report_ids=alone['report_ids'][:, :length],
      report_mask=alone['report_mask'][:, :length],
    )  # fmt: skip
    out = forward()(variables, alone)
    np.testing.assert_allclose(out.logits[0], together.logits[i, :length], atol=1e-4)
    np.testing.assert_allclose(out.ll[0], together.ll[i], atol=1e-4)
    np.testing.assert_allclose(out.lv[0], together.lv[i], atol=1e-5)


@pytest.mark.parametrize('views', ['mean', 'concat'])
def test_a_view_that_is_not_there_changes_nothing(views):
  variables, whole = built(views=views)[1], batch(LISTS, views=2)
  whole['view_mask'][1:, 1] = False
  before = forward(views=views)(variables, whole)
  image = whole['image'].copy()
  image[:, 1] = 255 - image[:, 1]
  after = forward(views=views)(variables, changed(whole, image=image))
  np.testing.assert_allclose(after.logits[1:], before.logits[1:], atol=1e-5)
  np.testing.assert_allclose(after.lv[1:], before.lv[1:], atol=1e-5)
  assert np.abs(after.logits[0] - before.logits[0]).max() > 1e-3
  if views == 'concat':  # with one view it is the same as 'mean'
    one = changed(whole, image=whole['image'][:, :1], view_mask=whole['view_mask'][:, :1])
    np.testing.assert_allclose(forward()(variables, one).logits[1:], before.logits[1:], atol=1e-4)


def test_the_loss_is_a_mean_over_the_tokens_of_reports_and_their_ends():
  variables, whole = built()[1], batch(LISTS)
  (value, (metrics, tokens)), _ = judged()(variables, whole)
  each = surprise(forward()(variables, whole).logits, whole)
  assert tokens == whole['report_mask'].sum()
  assert float(metrics['language']) == pytest.approx(each[whole['report_mask']].mean(), abs=1e-5)
  assert float(value) == pytest.approx(float(metrics['language'] + 0.5 * metrics['consistency']), abs=1e-5)
  assert (whole['report_ids'][whole['report_mask']] == EOS).sum() == 3
  padded = np.where(whole['report_mask'], whole['report_ids'], 9)
  assert float(judged()(variables, changed(whole, report_ids=padded))[0][0]) == pytest.approx(float(value), abs=1e-6)


def test_stage_two_reads_every_part_but_perception():
  _, slope = judged()(built()[1], batch(LISTS))
  for path, leaf in flat(slope['params']).items():
    if not path.endswith('key/bias'):  # the same for all keys: a softmax does not see it
      assert bool(np.abs(leaf).max() > 1e-9) == (not path.startswith(model.PERCEPTION)), path
  assert np.abs(slope['clues']['words']).max() > 0 and np.abs(slope['clues']['sentence']).max() > 0
  for name in ('positive', 'negative', 'prototype'):
    assert not np.asarray(slope['clues'][name]).any()


@pytest.mark.parametrize(
  'way, changes', [('film', {'clues.inject': False}), ('prompt', {'interaction.enabled': False})]
)
def test_clues_reach_the_report_through_film_and_prompt(way, changes):
  (ours, variables), whole = built(**changes), batch(LISTS)
  run = jax.jit(lambda v, b: (ours.forward(v, b).logits, ours.prompt(v, b).visual))
  logits, visual = run(variables, whole)
  new_logits, new_visual = run(variables, changed(whole, clue_ids=batch([[3, 6], *LISTS[1:]])['clue_ids']))
  assert np.abs(new_logits[0] - logits[0]).max() > 1e-4 and np.array_equal(new_logits[1:], logits[1:])
  assert np.array_equal(visual, new_visual) == (way == 'prompt')


def test_low_rank_updates_start_as_nothing():
  variables, whole = built()[1], batch(LISTS)
  params = {
    path: np.zeros_like(leaf) if path.endswith('lora_b') else leaf for path, leaf in flat(variables['params']).items()
  }
  plain = {path: leaf for path, leaf in params.items() if not adapters.is_adapter(path)}
  assert len(plain) == len(params) - 4
  first, second = (
    forward(**changes)(changed(variables, params=nested(leaves)), whole).logits
    for changes, leaves in (({}, params), ({'language.tuning': 'frozen'}, plain))
  )
  np.testing.assert_allclose(first, second, atol=1e-5)
  assert np.abs(first - forward()(variables, whole).logits).max() > 1e-3


def nested(leaves):
  """{'a/b': x} -> {'a': {'b': x}}."""
  tree = {}
  for path, leaf in leaves.items():
    *parts, last = path.split('/')
    functools.reduce(lambda node, part: node.setdefault(part, {}), parts, tree)[last] = leaf
  return tree


def test_the_evidence_of_a_clue_is_a_map_of_the_film():
  (ours, variables), whole = built(), batch(LISTS)
  prompt = jax.jit(functools.partial(ours.prompt, evidence=True))(variables, whole)
  np.testing.assert_allclose(prompt.evidence.sum(-1), whole['clue_ids'] >= 0, atol=1e-5)
  assert prompt.evidence.shape == (3, 4, ours.vision.layout.prefix + np.prod(ours.vision.layout.grid))
  assert jax.eval_shape(ours.prompt, variables, whole).evidence is None


def test_dropout_acts_in_training_alone_and_follows_its_key():
  changes = {'interaction.dropout': 0.3, 'language.lora.dropout': 0.3}
  ours, variables = built(**changes)
  run = jax.jit(lambda seed: ours.forward(variables, batch(LISTS), train=True, rng=jax.random.key(seed)).logits)
  assert np.array_equal(run(0), run(0)) and np.abs(run(0) - run(1)).max() > 1e-3


def test_a_language_model_alone_learns_from_the_first_token_on():
  (ours, variables), whole = built(), batch(LISTS)

  @jax.jit
  def both(whole):
    language = functools.partial(ours.language.apply, {'params': variables['params']['language']})
    ids = jnp.concatenate([jnp.full((3, 1), TEMPLATE.bos), whole['report_ids']], 1)
    logits = language(language(language(ids, method='embed')), method='logits')
    return ours.language_loss(variables, whole, train=False), logits[:, :-1]

  (value, _, tokens), logits = both(whole)
  each = surprise(logits, whole)[whole['report_mask']]
  assert float(value) == pytest.approx(each.mean(), abs=1e-4) and tokens == each.size


# Errors.


def test_studies_without_a_film_are_refused():
  (ours, variables), whole = built(), batch(LISTS)
  whole['view_mask'][2] = False
  with pytest.raises(UserError, match=r'1 of 3 studies have no film \(rows \[2\]\)'):
    ours.prompt(variables, whole)
  with pytest.raises(UserError, match='in grey'):
    ours.prompt(variables, changed(whole, image=whole['image'][..., None].repeat(3, -1)))


def test_a_prompt_that_leaves_no_room_for_the_report_is_named():
  ours = reporter(**{'language.variant.max_positions': 40})
  with pytest.raises(UserError, match='a prompt of 43 places and a report of 6 do not fit .* 40'):
    jax.eval_shape(ours.forward, built()[1], batch(LISTS))
