"""LoRA against PEFT: its folders in and out, what it computes, what it merges."""

import functools
import json

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from core.nn import adapters, llama, transformer
from core.weights import files, peft
from core.weights import llama as weights

SIZES = {'vocabulary': 19, 'width': 16, 'depth': 2, 'heads': 4, 'kv_heads': 2, 'mlp_dim': 10, 'max_positions': 16}
EVERY = ('query', 'key', 'value', 'out', 'gate', 'up', 'down')
MODEL = llama.Llama(**SIZES, dense=adapters.lora(3, 6.0, EVERY))


def flat(variables):
  """{path: leaf} of a network's parameters."""
  return flax.traverse_util.flatten_dict(variables['params'], sep='/')


def leaves(model=MODEL):
  """{path: random array}."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, model.width)))
  rng = np.random.default_rng(0)
  return {path: rng.normal(0, 0.4, leaf.shape).astype(leaf.dtype) for path, leaf in flat(shapes).items()}


def theirs(folder, targets):
  """A transformers LLaMA in a PEFT model with random updates; base and adapter saved under the folder."""
  torch = pytest.importorskip('torch')
  library = pytest.importorskip('peft')
  transformers = pytest.importorskip('transformers')
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=19, hidden_size=16, intermediate_size=10, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=16, rms_norm_eps=1e-5, bos_token_id=None, eos_token_id=None,
  )  # fmt: skip
  base = transformers.LlamaForCausalLM(config).eval()
  base.save_pretrained(folder / 'base')
  options = library.LoraConfig(r=3, lora_alpha=6, lora_dropout=0.1, target_modules=targets, task_type='CAUSAL_LM')
  model = library.get_peft_model(base, options).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if 'lora_' in name:
        parameter.add_(0.3 * torch.randn_like(parameter))
  model.save_pretrained(folder / 'adapter')
  return model


@pytest.mark.parametrize('targets', [('q_proj', 'v_proj'), tuple(weights.LAYERS.values())])
@pytest.mark.parametrize('scan', [False, True])
def test_outputs_and_merged_weights_equal_those_of_peft(tmp_path, targets, scan):
  import torch

  reference = theirs(tmp_path, targets)
  options = peft.infer(tmp_path / 'adapter')
  assert options['rank'] == 3 and options['alpha'] == 6.0 and options['dropout'] == 0.1
  assert len(options['targets']) == len(targets)
  model = llama.Llama(**SIZES, scan=scan, dense=adapters.lora(**options))
  base = weights.load(leaves(model), files.read(tmp_path / 'base'))[0]
  updates, account = peft.load(leaves(model), tmp_path / 'adapter')
  params = {**base, **updates}
  assert set(params) == set(leaves(model)) and not account.ignored
  ids = np.random.default_rng(0).integers(0, 19, (2, 9))

  @functools.partial(jax.jit, static_argnums=0)
  def logits(model, params):
    variables = {'params': flax.traverse_util.unflatten_dict(params, sep='/')}
    x = model.apply(variables, ids, method='embed')
    return model.apply(variables, model.apply(variables, x), method='logits')

  with torch.no_grad():
    expected = reference(torch.tensor(ids)).logits.numpy()
  assert np.abs(logits(model, params) - expected).max() < 1e-5
  assert np.abs(logits(model, {**params, **{p: 0 * leaf for p, leaf in updates.items()}}) - expected).max() > 1e-2
  merged = adapters.merge_lora(params, options['alpha'])
  assert np.abs(logits(llama.Llama(**SIZES, scan=scan), merged) - expected).max() < 1e-5
  public = weights.export(merged, 'transformers')
  for name, tensor in reference.merge_and_unload().state_dict().items():
    np.testing.assert_allclose(public[name], tensor.numpy(), atol=1e-5, err_msg=name)


@pytest.mark.parametrize('scan', [False, True])
def test_what_is_written_is_read_back_bit_for_bit_by_us_and_by_peft(tmp_path, scan):
  model = MODEL.clone(scan=scan)
  own = leaves(model)
  peft.write(tmp_path / 'adapter', own, alpha=6.0, dropout=0.25, base=str(tmp_path / 'base'))
  assert peft.infer(tmp_path / 'adapter') == {'rank': 3, 'alpha': 6.0, 'targets': EVERY, 'dropout': 0.25}
  loaded, account = peft.load(own, tmp_path / 'adapter')
  assert set(loaded) == {path for path in own if adapters.is_adapter(path)} and not account.ignored
  for path, leaf in loaded.items():
    np.testing.assert_array_equal(leaf, own[path], err_msg=path)
  theirs(tmp_path, ('q_proj',))  # makes the base; its adapter is written over ours
  peft.write(tmp_path / 'adapter', own, alpha=6.0, base=str(tmp_path / 'base'))
  transformers, library = pytest.importorskip('transformers'), pytest.importorskip('peft')
  base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / 'base')
  found = library.PeftModel.from_pretrained(base, tmp_path / 'adapter').state_dict()
  expected = files.read(tmp_path / 'adapter' / peft.TENSORS)
  for name, value in expected.items():
    stored = found[name.replace('.weight', '.default.weight')].numpy()
    np.testing.assert_array_equal(stored, value, err_msg=name)
  assert len(expected) == 2 * 2 * len(EVERY)


def test_loop_and_scan_write_the_same_adapter(tmp_path):
  own = leaves()
  peft.write(tmp_path / 'loop', own, alpha=1.0)
  peft.write(tmp_path / 'scan', transformer.stack_blocks(own), alpha=1.0)
  first, second = (files.read(tmp_path / name / peft.TENSORS) for name in ('loop', 'scan'))
  assert set(first) == set(second)
  for name in first:
    np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'peft_type': 'IA3'}, "peft_type 'IA3'"),
    ({'use_dora': True}, 'use_dora True'),
    ({'use_rslora': True}, 'use_rslora True'),
    ({'bias': 'all'}, "bias 'all'"),
    ({'rank_pattern': {'q_proj': 8}}, 'rank_pattern'),
    ({'target_modules': 'all-linear'}, "target_modules 'all-linear'"),
    ({'target_modules': ['lm_head']}, 'lm_head'),
  ],
)
def test_adapters_of_another_kind_are_refused(tmp_path, changes, message):
  peft.write(tmp_path, leaves(), alpha=6.0)
  path = tmp_path / peft.CONFIG
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  with pytest.raises(UserError, match=message):
    peft.infer(tmp_path)


def test_an_adapter_that_does_not_fit_is_one_error(tmp_path):
  peft.write(tmp_path, leaves(), alpha=6.0)
  with pytest.raises(UserError, match=r'lora_A\.weight gives \(16, 3\), expected \(16, 4\)'):
    peft.load(leaves(MODEL.clone(dense=adapters.lora(4, 1.0, EVERY))), tmp_path)
  with pytest.raises(UserError, match=r'its tensors without a leaf:\n.*mlp'):
    peft.load(leaves(MODEL.clone(dense=adapters.lora(3, 1.0, EVERY[:4]))), tmp_path)
  with pytest.raises(UserError, match='is no folder of a PEFT adapter'):
    peft.infer(tmp_path / 'nowhere')
  with pytest.raises(UserError, match='at least one leaf'):
    peft.write(tmp_path, leaves(llama.Llama(**SIZES)), alpha=1.0)


# The layers themselves.


def test_dropout_acts_on_what_the_update_sees_and_in_training_only():
  model = MODEL.clone(dense=adapters.lora(3, 6.0, ('value',), dropout=0.5))
  variables = {'params': flax.traverse_util.unflatten_dict(leaves(model), sep='/')}
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 16)), jnp.float32)

  @functools.partial(jax.jit, static_argnames='train')
  def run(variables, seed, train=False):
    return model.apply(variables, x, rngs={'dropout': jax.random.key(seed)}, train=train)

  plain = jax.jit(MODEL.clone(dense=adapters.lora(3, 6.0, ('value',))).apply)(variables, x)
  np.testing.assert_allclose(run(variables, 0), plain, atol=1e-6)
  assert np.abs(run(variables, 0, train=True) - plain).max() > 1e-3
  assert np.abs(run(variables, 0, train=True) - run(variables, 1, train=True)).max() > 1e-3
  silent = {path: 0 * leaf if path.endswith('lora_b') else leaf for path, leaf in leaves(model).items()}
  variables = {'params': flax.traverse_util.unflatten_dict(silent, sep='/')}
  # nothing but the update is dropped
  np.testing.assert_allclose(run(variables, 0, train=True), run(variables, 0), atol=1e-6)


def test_dropout_keeps_the_mean_of_the_update():
  layer = adapters.training(adapters.lora(3, 6.0, ('value',), dropout=0.3), train=True)(7, name='value')
  x = jnp.ones((20000, 4))
  variables = layer.init({'params': jax.random.key(0), 'dropout': jax.random.key(1)}, x[:1])
  noisy = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5), variables)
  y = layer.apply(noisy, x, rngs={'dropout': jax.random.key(2)})
  assert y.std(0).min() > 0.5
  np.testing.assert_allclose(y.mean(0), layer.clone(dropout=0.0).apply(noisy, x[:1])[0], rtol=0.02)


def test_errors_of_low_rank_layers():
  with pytest.raises(UserError, match=r'LoRA dropout is 1\.0'):
    adapters.lora(2, 1.0, dropout=1.0)
  with pytest.raises(UserError, match='does not say when it trains'):
    adapters.lora(2, 1.0, ('up',), dropout=0.1)(3, name='up')
