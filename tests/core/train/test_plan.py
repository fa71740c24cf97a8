"""The memory of a stage per device: from shapes, and equal to what a placed state really takes."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from core.errors import UserError
from core.nn import adapters, llama
from core.train import mesh as mesh_lib
from core.train import plan
from core.train import state as state_lib
from core.train.optim import Optimizer
from core.train.task import Stage


def stage(**changes):
  """Low-rank training with Adam."""
  options = {'sharding': llama.SHARDING, 'trainable': adapters.is_adapter, **changes}
  return Stage(
    'lora', steps=1, loss=lambda *_: None, data=lambda _: None, optimizer=Optimizer(optax.adam(1.0), float), **options
  )


def shapes(**changes):
  """The variables of a LLaMA with low-rank leaves."""
  options = {'dense': adapters.lora(4, 8.0), 'param_dtype': jnp.bfloat16, **changes}
  model = llama.build('tiny', **options)
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, model.width)))


def test_it_equals_what_a_state_takes_on_one_device():
  plain = stage(ema_decay=0.9)
  state = state_lib.create(
    jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes()), plain, mesh_lib.make()
  )
  size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))  # noqa: E731
  account = plan.account(shapes(), plain, (1, 1, 1))
  assert dict(account.parts) == {
    'weights': size((state.trainable, state.frozen)), 'gradients': size(state.trainable),
    'optimiser': size(state.opt_state), 'average': size(state.ema),
  }  # fmt: skip
  assert account.total == sum(account.parts.values()) and account.parts['average'] > 0


def test_a_base_of_7b_is_divided_and_its_updates_are_not():
  variables = shapes(**llama.VARIANTS['llama2_7b'], scan=True)
  one, many = (plan.account(variables, stage(), (1, count, 1)) for count in (1, 64))
  updates = sum(leaf.size for path, leaf in flax.traverse_util.flatten_dict(variables['params'], sep='/').items()
                if adapters.is_adapter(path))  # fmt: skip
  scales = 2 * 32 * 4096 + 4096
  assert one.parts['weights'] == 2 * 6738415616 + 4 * updates
  assert many.parts['weights'] == 2 * ((6738415616 - scales) // 64 + scales) + 4 * updates
  assert many.parts['gradients'] == 4 * updates and abs(many.parts['optimiser'] - 8 * updates) < 16
  copied = plan.account(variables, stage(), (2, 4, 8))
  assert copied.parts['weights'] == pytest.approx(2 * 6738415616 / 32 + 4 * updates, rel=0.01)
  assert (many.devices, copied.devices) == (64, 64)


def test_accumulation_keeps_sums_of_gradients_in_f32():
  variables = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), shapes())
  once, thrice = (plan.account(variables, stage(accumulate=count), (1, 1, 1)) for count in (1, 3))
  assert thrice.parts['gradients'] == 3 * once.parts['gradients']  # 2 bytes, and 4 more for the sums


def test_a_procedure_trains_nothing():
  account = plan.account(shapes(), Stage('measure', run=lambda context: context.variables), (1, 2, 1))
  assert account.parts['weights'] > 0 and not any(account.parts[name] for name in plan.PARTS[1:])


def test_counts_name_what_is_trained_and_in_which_type():
  counts = plan.counts(shapes(), stage())
  assert counts['trainable'] == {'float32': 2 * (4 * (64 + 64) + 4 * (64 + 32))}
  assert set(counts['frozen']) == {'bfloat16'}


def test_the_table_has_a_row_per_mesh():
  table = plan.table([plan.account(shapes(), stage(), sizes) for sizes in ((1, 1, 1), (1, 2, 2))])
  assert [row[:2] for row in table.rows] == [[1, '1 x 1 x 1'], [4, '1 x 2 x 2']]
  assert len({len(row) for row in table.rows} | {len(table.header)}) == 1


def test_a_division_that_shapes_do_not_allow():
  with pytest.raises(UserError, match='sharding rule'):
    plan.account(shapes(vocabulary=511), stage(), (1, 1, 2))


@pytest.mark.parametrize('sizes, expected', [((-1, 2, 2), (2, 2, 2)), ((1, -1, 4), (1, 2, 4)), ((8, 1, 1), (8, 1, 1))])
def test_sizes_of_a_mesh_over_other_devices_than_there_are(sizes, expected):
  assert mesh_lib.resolve(8, *sizes) == expected
  assert np.prod(mesh_lib.make().devices.shape) == jax.device_count()
  with pytest.raises(UserError, match='devices or a multiple, found 8'):
    mesh_lib.resolve(8, -1, 3, 1)
