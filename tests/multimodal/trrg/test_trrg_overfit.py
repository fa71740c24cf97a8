"""Eight studies learnt by heart are written down word for word (spec 9b, 14)."""

import jax
import numpy as np
import optax
from small_reporter import EOS, REPORT, batch, built

from core.generation import Decoding, Generator


def test_eight_studies_are_learnt_by_heart_and_written_down():
  """Also that the prompt that generation is given is the one that training saw."""
  ours, variables = built(**{'language.tuning': 'full', 'disease.weight': 0.0})
  whole = batch([[1], [2, 3], [], [4], [5, 6], [7], [], [8]])
  optimizer = optax.adam(1e-2)

  @jax.jit
  def train(start):
    def step(carry, _):
      params, state = carry
      value, slope = jax.value_and_grad(lambda p: ours.loss({**variables, 'params': p}, whole)[0])(params)
      updates, state = optimizer.update(slope, state)
      return (optax.apply_updates(params, updates), state), value

    return jax.lax.scan(step, (start, optimizer.init(start)), length=200)

  (params, _), values = train(variables['params'])
  assert values[0] > 2.5 and values[-1] < 0.05
  asked = {name: whole[name] for name in ('image', 'view_mask', 'margin', 'clue_ids')}
  prompt = jax.jit(ours.prompt)({**variables, 'params': params}, asked)
  write = Generator(ours.language, eos=EOS, pad=0)
  written = write({'params': params['language']}, prompt.embeddings, prompt.mask, Decoding(max_new_tokens=REPORT))
  for row, ids, mask in zip(np.asarray(written.tokens), whole['report_ids'], whole['report_mask'], strict=True):
    assert row[: mask.sum()].tolist() == ids[mask].tolist()
