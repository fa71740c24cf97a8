"""The ResNet against transformers' on random weights, at even and odd sizes, and its statistics against torch's."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from core.nn import resnet
from core.weights import files
from core.weights import resnet as resnet_weights

TOLERANCE = 1e-4


def reference(folder, layer_type='basic', widths=(8, 16, 24), depths=(1, 2, 1), stem=8):
  """A transformers ResNet with random weights and statistics, saved to a folder; returns the torch model."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  torch.manual_seed(0)
  config = transformers.ResNetConfig(
    embedding_size=stem, hidden_sizes=list(widths), depths=list(depths), layer_type=layer_type
  )
  model = transformers.ResNetModel(config).eval()
  with torch.no_grad():
    for name, value in model.state_dict().items():
      if 'running_var' in name:
        value.uniform_(0.5, 2.0)
      elif 'running_mean' in name or value.ndim == 1:
        value.add_(0.2 * torch.randn_like(value))
  model.save_pretrained(folder)
  return model


def ours(folder, **options):
  tensors = files.read(folder)
  fields, _ = resnet_weights.infer(tensors)
  model = resnet.ResNet(**{**fields, **options})
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  flat = {name: flax.traverse_util.flatten_dict(tree, sep='/') for name, tree in shapes.items()}
  loaded, _ = resnet_weights.load(flat['params'] | flat['batch_stats'], tensors)
  return model, {
    name: flax.traverse_util.unflatten_dict({path: loaded[path] for path in tree}, sep='/')
    for name, tree in flat.items()
  }


@pytest.mark.parametrize(
  'size, config',
  [
    ((64, 64), {}),
    ((61, 47), {}),
    ((33, 50), {'layer_type': 'bottleneck', 'depths': (2, 1, 2)}),
    ((40, 40), {'layer_type': 'bottleneck', 'widths': (8, 16), 'depths': (1, 1), 'stem': 12}),
  ],
)
def test_maps_equal_those_of_transformers(tmp_path, size, config):
  import torch

  torch_model = reference(tmp_path, **config)
  model, variables = ours(tmp_path)
  batch = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
  out = jax.jit(model.apply)(variables, batch)
  with torch.no_grad():
    expected = torch_model(torch.tensor(batch.transpose(0, 3, 1, 2)))
  assert np.abs(out['map'] - expected.last_hidden_state.numpy().transpose(0, 2, 3, 1)).max() < TOLERANCE
  assert np.abs(out['feature'] - expected.pooler_output.numpy()[..., 0, 0]).max() < TOLERANCE


def test_training_moves_the_statistics_as_torch_does(tmp_path):
  torch = pytest.importorskip('torch')
  torch_model = reference(tmp_path).train()
  model, variables = ours(tmp_path)
  batch = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
  images = torch.tensor(batch.transpose(0, 3, 1, 2))
  for _ in range(2):
    with torch.no_grad():
      expected = torch_model(images).pooler_output.numpy()[..., 0, 0]
    out, updates = model.apply(variables, batch, train=True, mutable=['batch_stats'])
    assert np.abs(out['feature'] - expected).max() < TOLERANCE
    variables = {**variables, **updates}
  public = resnet_weights.export(
    flax.traverse_util.flatten_dict(variables['params'], sep='/')
    | flax.traverse_util.flatten_dict(variables['batch_stats'], sep='/'),
    'transformers',
  )
  state = {name: value.numpy() for name, value in torch_model.state_dict().items() if 'num_batches' not in name}
  assert set(public) == set(state)
  for name, value in state.items():
    np.testing.assert_allclose(public[name], value, atol=1e-4, err_msg=name)


def test_initialisation_leaves_the_statistics_untouched():
  model = resnet.build('resnet18', widths=(4, 8, 8, 8), stem_width=4)
  variables = jax.jit(lambda key: model.init(key, jnp.ones((2, 32, 32, 3)), train=True))(jax.random.key(0))
  means = [
    leaf for path, leaf in flax.traverse_util.flatten_dict(variables['batch_stats']).items() if path[-1] == 'mean'
  ]
  assert len(means) == 20 and not any(np.any(mean) for mean in means)


@pytest.mark.parametrize('variant, parameters', [('resnet18', 11_176_512), ('resnet50', 23_508_032)])
def test_variants_have_the_published_sizes(variant, parameters):
  shapes = jax.eval_shape(resnet.build(variant).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes['params'])) == parameters  # torchvision's without `fc`


def test_half_precision_keeps_full_parameters_and_statistics():
  model = resnet.ResNet((1,), (8,), stem_width=8, dtype=jnp.bfloat16)
  out, variables = model.init_with_output(jax.random.key(0), jnp.ones((1, 32, 32, 3)))
  assert out['map'].dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


def test_an_unknown_variant_names_the_nearest():
  with pytest.raises(UserError, match="no ResNet 'resnet_50'.*Did you mean 'resnet50'"):
    resnet.build('resnet_50')
