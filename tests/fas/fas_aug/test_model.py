"""The classifier of FAS-Aug: trained leaves, inputs, pretrained weights, batch statistics."""

import cv2
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from core.errors import UserError
from core.nn import vit
from core.weights import files
from core.weights import resnet as resnet_weights
from core.weights import vit as vit_weights
from fas.fas_aug import model

IMAGES = np.random.default_rng(0).random((3, 16, 16, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
  """A ViT and a ResNet-18 small enough for a test."""
  fields = {'patch': 8, 'width': 16, 'depth': 2, 'heads': 2, 'mlp_dim': 24}
  monkeypatch.setitem(vit.VARIANTS, 'test_patch8', fields)
  narrow = {'depths': (2, 2, 2, 2), 'widths': (4, 4, 6, 6), 'bottleneck': False, 'stem_width': 4}
  monkeypatch.setitem(model.resnet.VARIANTS, 'resnet18', narrow)


def classifier(**changes):
  fields = {
    'backbone': 'vit', 'variant': 'test_patch8', 'image_size': 16, 'adapter': 'convpass', 'adapter_dropout': 0.1,
    'freeze': True, 'weights': '', 'normalize': 'none', 'dtype': 'float32', 'remat': False, 'scan': False,
  }  # fmt: skip
  return model.Classifier(ConfigDict(fields | changes))


def flat(variables):
  return flax.traverse_util.flatten_dict(dict(variables), sep='/')


def init(network, seed=0):
  return jax.jit(network.init)(jax.random.key(seed))


def run(network, variables, images, *, train=False, rng=None):
  """`Classifier.apply`, compiled."""
  return jax.jit(lambda *x: network.apply(*x[:2], train=train, rng=x[2]))(variables, images, rng)


@pytest.mark.parametrize(
  'adapter, count', [('convpass', 329_090), ('vit_adapter', 24 * 2_361_600 + 1_538), ('none', 1_538)]
)
@pytest.mark.parametrize('scan', [False, True])
def test_trainable_count_of_the_paper(adapter, count, scan):
  network = classifier(variant='base_patch16', image_size=224, adapter=adapter, scan=scan)
  params = flat(jax.eval_shape(network.init, jax.random.key(0))['params'])
  assert sum(leaf.size for path, leaf in params.items() if network.trainable(path)) == count
  assert sum(leaf.size for path, leaf in params.items() if not network.trainable(path)) == 85_798_656


def test_everything_trains_where_nothing_is_frozen():
  network = classifier(freeze=False)
  assert all(network.trainable(path) for path in flat(jax.eval_shape(network.init, jax.random.key(0))['params']))


@pytest.mark.parametrize('adapter', ['convpass', 'vit_adapter'])
def test_fresh_adapters_change_nothing(adapter):
  network, plain = classifier(adapter=adapter), classifier(adapter='none')
  variables = init(network)
  bare = {path: leaf for path, leaf in flat(variables['params']).items() if '_adapter/' not in path}
  assert len(bare) < len(flat(variables['params']))
  expected, _ = run(plain, {'params': flax.traverse_util.unflatten_dict(bare, sep='/')}, IMAGES)
  outputs, updates = run(network, variables, IMAGES)
  assert updates == {} and outputs['logits'].shape == (3, 2) and outputs['feature'].shape == (3, 16)
  np.testing.assert_allclose(outputs['logits'], expected['logits'], atol=1e-6)
  head = variables['params']['head']
  np.testing.assert_allclose(outputs['logits'], outputs['feature'] @ head['kernel'] + head['bias'], atol=1e-5)


@pytest.mark.parametrize('size', [(20, 20), (9, 13), (64, 48)])
def test_images_of_another_size_are_resized_like_opencv(size):
  images = np.random.default_rng(1).random((2, *size, 3)).astype(np.float32)
  expected = np.stack([cv2.resize(image, (16, 16), interpolation=cv2.INTER_LINEAR) for image in images])
  np.testing.assert_allclose(model.resize(images, 16), expected, atol=1e-5)
  network = classifier()
  variables = init(network)
  outputs, resized = run(network, variables, images)[0], run(network, variables, expected)[0]
  np.testing.assert_allclose(outputs['logits'], resized['logits'], atol=1e-4)


@pytest.mark.parametrize(
  'name, shift, scale', [('unit_half', 0.5, 0.5), ('imagenet', (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
)
def test_normalisation(name, shift, scale):
  network, plain = classifier(normalize=name), classifier()
  variables = init(plain)
  expected, _ = run(plain, variables, (IMAGES - np.asarray(shift, np.float32)) / np.asarray(scale, np.float32))
  np.testing.assert_allclose(run(network, variables, IMAGES)[0]['logits'], expected['logits'], atol=1e-5)


def test_dropout_is_only_in_training_and_follows_its_key():
  network = classifier(adapter_dropout=0.5)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape).astype(np.float32), init(network))
  logits = lambda seed, train: run(network, variables, IMAGES, train=train, rng=jax.random.key(seed))[0]['logits']  # noqa: E731
  np.testing.assert_array_equal(logits(0, True), logits(0, True))
  assert np.abs(logits(0, True) - logits(1, True)).max() > 1e-3
  np.testing.assert_array_equal(logits(0, False), run(network, variables, IMAGES)[0]['logits'])


def test_half_precision_gives_full_logits():
  outputs, _ = run(classifier(dtype='bfloat16'), init(classifier()), IMAGES)
  assert outputs['logits'].dtype == outputs['feature'].dtype == jnp.float32


def test_resnet_trains_its_statistics_through_updates():
  network = classifier(backbone='resnet18', freeze=False, image_size=32)
  variables = init(network)
  outputs, updates = run(network, variables, IMAGES, train=True)
  assert set(updates) == {'batch_stats'} and outputs['feature'].shape == (3, 6)
  old, new = flat(variables['batch_stats']), flat(updates['batch_stats'])
  assert set(old) == set(new) and not np.array_equal(old['backbone/stem/norm/mean'], new['backbone/stem/norm/mean'])
  assert run(network, variables, IMAGES)[1] == {}
  frozen = classifier(backbone='resnet18', freeze=True, image_size=32)
  outputs, updates = run(frozen, variables, IMAGES, train=True)
  assert updates == {}
  np.testing.assert_array_equal(outputs['logits'], run(frozen, variables, IMAGES)[0]['logits'])


def _public_vit(path, image_size=32, layout='timm'):
  """A public ViT file with its 1000-class head, and the parameters it came from."""
  source = vit.build('test_patch8')
  params = flat(source.init(jax.random.key(7), jnp.zeros((1, image_size, image_size, 3)))['params'])
  tensors = vit_weights.export(params, layout)
  tensors |= {'head.weight': np.ones((1000, 16), np.float32), 'head.bias': np.ones(1000, np.float32)}
  files.write(path, tensors)
  return params


@pytest.mark.parametrize('scan', [False, True])
def test_load_fills_the_backbone_and_says_so(tmp_path, capsys, scan):
  params = _public_vit(tmp_path / 'vit.safetensors', image_size=16)
  network = classifier(scan=scan)
  variables = init(network)
  loaded = network.load(variables, str(tmp_path / 'vit.safetensors'))
  assert jax.tree.structure(loaded) == jax.tree.structure(variables)
  plain, _ = run(
    classifier(adapter='none'),
    {
      'params': flax.traverse_util.unflatten_dict(
        {f'backbone/{path}': leaf for path, leaf in params.items()}
        | {f'head/{path}': leaf for path, leaf in variables['params']['head'].items()},
        sep='/',
      )
    },
    IMAGES,
  )
  np.testing.assert_allclose(run(network, loaded, IMAGES)[0]['logits'], plain['logits'], atol=1e-5)
  for path, leaf in flat(variables['params']).items():
    kept = '_adapter/' in path or path.startswith('head/')
    assert not kept or np.array_equal(leaf, flat(loaded['params'])[path])
  printed = capsys.readouterr().out
  assert 'layout timm' in printed and "head.weight: the source's own classifier" in printed
  assert 'head/kernel: 32' in printed and 'attention_adapter/down/kernel' in printed and 'ignored  2 tensors' in printed


def test_load_resizes_positions_and_says_so(tmp_path, capsys):
  _public_vit(tmp_path / 'vit.safetensors', image_size=32)
  network = classifier()
  network.load(init(network), str(tmp_path / 'vit.safetensors'))
  assert 'position: resized 4x4 -> 2x2, bicubic, antialiased' in capsys.readouterr().out


def test_load_keeps_where_arrays_lie(tmp_path):
  _public_vit(tmp_path / 'vit.safetensors', image_size=16)
  network = classifier()
  sharding = jax.sharding.NamedSharding(jax.make_mesh((1,), ('data',)), jax.sharding.PartitionSpec())
  loaded = network.load(jax.device_put(init(network), sharding), str(tmp_path / 'vit.safetensors'))
  assert {leaf.sharding for leaf in jax.tree.leaves(loaded)} == {sharding}


def test_load_of_a_resnet(tmp_path):
  network = classifier(backbone='resnet18', freeze=False, image_size=32)
  variables = init(network, 3)
  own = {
    path.removeprefix('backbone/'): leaf + 0.25
    for tree in variables.values()
    for path, leaf in flat(tree).items()
    if path.startswith('backbone/')
  }
  files.write(tmp_path / 'resnet.safetensors', resnet_weights.export(own, 'torchvision'))
  loaded = network.load(variables, str(tmp_path / 'resnet.safetensors'))
  for name in ('params', 'batch_stats'):
    for path, leaf in flat(loaded[name]).items():
      shift = 0.25 if path.startswith('backbone/') else 0.0
      np.testing.assert_allclose(leaf, flat(variables[name])[path] + shift, atol=1e-6)


def test_no_path_changes_nothing():
  network = classifier()
  variables = init(network)
  assert network.load(variables, '') is variables


@pytest.mark.parametrize(
  'key, value, known',
  [
    ('backbone', 'vti', 'vit'),
    ('adapter', 'convpas', 'convpass'),
    ('normalize', 'half', 'unit_half'),
    ('variant', 'base_patch61', 'base_patch16'),
  ],
)
def test_an_unknown_choice_lists_the_known_ones(key, value, known):
  with pytest.raises(UserError, match=f"'{value}', expected one of .*'{known}'"):
    classifier(**{key: value})
