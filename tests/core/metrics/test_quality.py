"""LPIPS against a twin in torch on random weights, through the files of both public layouts; BRISQUE's refusals."""

import functools
import types

import cv2
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from core.metrics import quality
from core.weights import files, table

SIZES = {'alex': (45, 38), 'vgg': (35, 18)}
"""Odd, so that every pooling drops an edge."""
COUNTS = {'alex': 2_469_696 + 1_152, 'vgg': 14_714_688 + 1_472}
"""Of torchvision's `features`, and of the linear weights."""


def images(network):
  rng = np.random.default_rng(1)
  return rng.uniform(-1, 1, (2, 2, *SIZES[network], 3)).astype(np.float32)


@pytest.fixture(scope='module')
def twins():
  """network -> (torch's LPIPS with random weights, {public name: array})."""
  torch = pytest.importorskip('torch')
  return {network: twin(torch, network) for network in SIZES}


def twin(torch, network):
  """LPIPS in torch, of torchvision's layers in its order, with the names of both."""
  conv, relu = torch.nn.Conv2d, torch.nn.ReLU
  if network == 'alex':
    pool = torch.nn.MaxPool2d(3, 2)
    layers = [conv(3, 64, 11, 4, 2), relu(), pool, conv(64, 192, 5, 1, 2), relu(), pool, conv(192, 384, 3, 1, 1)]
    layers += [relu(), conv(384, 256, 3, 1, 1), relu(), conv(256, 256, 3, 1, 1), relu(), pool]
    taps = (1, 4, 7, 9, 11)
  else:
    layers, width = [], 3
    for out in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
      layers += [conv(width, out, 3, 1, 1), relu()] if out else [torch.nn.MaxPool2d(2, 2)]
      width = out or width
    taps = (3, 8, 15, 22, 29)
  generator = torch.Generator().manual_seed(0)
  for layer in layers:
    if isinstance(layer, conv):
      fan = layer.weight[0].numel()
      layer.weight.data.normal_(0, (2 / fan) ** 0.5, generator=generator)
      layer.bias.data.normal_(0, 0.1, generator=generator)
  widths = (64, 192, 384, 256, 256) if network == 'alex' else (64, 128, 256, 512, 512)
  lins = [torch.rand((1, width, 1, 1), generator=generator) for width in widths]
  features = torch.nn.Sequential(*layers)

  def distance(image, original):
    total = 0
    x, y = ((v - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) for v in (image, original))
    x, y = (v / torch.tensor([0.458, 0.448, 0.450])[:, None, None] for v in (x, y))
    for i, layer in enumerate(features[: taps[-1] + 1]):
      x, y = layer(x), layer(y)
      if i in taps:
        unit_x, unit_y = (v / (v.square().sum(1, keepdim=True).sqrt() + 1e-10) for v in (x, y))
        weighted = torch.nn.functional.conv2d((unit_x - unit_y).square(), lins[taps.index(i)])
        total = total + weighted.mean((1, 2, 3))
    return total

  tensors = {f'features.{name}': value.detach().numpy() for name, value in features.state_dict().items()}
  return distance, tensors | {f'lin{i}.model.1.weight': lin.numpy() for i, lin in enumerate(lins)}


def written(path, tensors):
  files.write(path, tensors)
  return path


def trunk_and_lins(folder, tensors):
  """The two files that a user has."""
  trunk = {name: value for name, value in tensors.items() if name.startswith('features')}
  lins = {name: value for name, value in tensors.items() if name not in trunk}
  classifier = {'classifier.1.weight': np.zeros((4, 4), np.float32)}
  return written(folder / 'trunk.safetensors', trunk | classifier), written(folder / 'lins.safetensors', lins)


def loaded(folder, tensors):
  """(module, parameters) by way of a user's two files."""
  return quality.load_lpips(*trunk_and_lins(folder, tensors))[:2]


@pytest.mark.parametrize('network', SIZES)
def test_lpips_equals_torch(twins, network, tmp_path):
  torch = pytest.importorskip('torch')
  distance, tensors = twins[network]
  model, params, account = quality.load_lpips(*trunk_and_lins(tmp_path, tensors))
  assert model.network == network and not account.fresh and list(account.ignored) == ['classifier.1.weight']
  image, original = images(network)
  with torch.no_grad():
    expected = distance(*(torch.tensor(x.transpose(0, 3, 1, 2)) for x in (image, original))).numpy()
  np.testing.assert_allclose(jax.jit(model.apply)({'params': params}, image, original), expected, rtol=1e-5)
  assert expected.min() > 0.1 and abs(expected[0] - expected[1]) > 1e-4


def test_the_gradient_of_lpips_equals_torchs(twins, tmp_path):
  torch = pytest.importorskip('torch')
  distance, tensors = twins['alex']
  model, params = loaded(tmp_path, tensors)
  image, original = images('alex')
  theirs = torch.tensor(image.transpose(0, 3, 1, 2), requires_grad=True)
  distance(theirs, torch.tensor(original.transpose(0, 3, 1, 2))).sum().backward()
  expected = theirs.grad.numpy().transpose(0, 2, 3, 1)
  found = slope(model)(params, image, original)[1]
  np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@functools.cache
def slope(model):
  """Compiled (params, image, original) -> (sum of distances, gradient at the image)."""
  return jax.jit(jax.value_and_grad(lambda p, x, y: model.apply({'params': p}, x, y).sum(), argnums=1))


@pytest.mark.parametrize('network', SIZES)
def test_lpips_has_the_public_numbers_of_parameters(network):
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  shapes = jax.eval_shape(quality.Lpips(network).init, jax.random.key(0), image, image)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == COUNTS[network]


def test_a_file_of_the_whole_class_loads_the_same_and_both_layouts_come_back_bit_for_bit(twins, tmp_path):
  _, tensors = twins['alex']
  _, params, _ = quality.load_lpips(*trunk_and_lins(tmp_path, tensors))
  flat = flax.traverse_util.flatten_dict(params, sep='/')
  torchvision, whole = (table.export(flat, layout) for layout in quality.layouts('alex'))
  assert set(torchvision) == set(tensors)
  for name, value in tensors.items():
    np.testing.assert_array_equal(torchvision[name], value, err_msg=name)
  assert {'net.slice1.0.weight', 'net.slice2.3.bias', 'net.slice4.8.weight', 'net.slice5.10.bias'} <= set(whole)
  whole |= {'scaling_layer.shift': np.zeros((1, 3, 1, 1)), 'lins.0.model.1.weight': whole['lin0.model.1.weight']}
  model, again, account = quality.load_lpips(written(tmp_path / 'whole.safetensors', whole))
  assert account.layout == 'lpips' and set(account.ignored) == {'scaling_layer.shift', 'lins.0.model.1.weight'}
  assert model.network == 'alex'
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_equal_images_have_no_distance_and_dead_features_no_nan(twins, tmp_path):
  _, tensors = twins['alex']
  model, params = loaded(tmp_path, tensors)
  image, original = images('alex')
  assert 0 <= float(slope(model)(params, image, image)[0]) < 1e-10
  dead = params | {'conv_10': {'kernel': params['conv_10']['kernel'], 'bias': np.full(256, -1e3, np.float32)}}
  value, gradient = slope(model)(dead, image, original)  # the last features are zero at every position
  assert np.isfinite(value) and np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_lpips_without_its_files_says_which_they_are(twins, tmp_path):
  _, tensors = twins['alex']
  trunk, lins = trunk_and_lins(tmp_path, tensors)
  with pytest.raises(UserError, match=r'(?s)no network .files given: none.*alexnet-owt.*launch.convert --pickle'):
    quality.load_lpips()
  with pytest.raises(UserError, match=r'no linear weights .files given: .*trunk.safetensors'):
    quality.load_lpips(trunk)
  with pytest.raises(UserError, match='no network'):
    quality.load_lpips(lins)
  with pytest.raises(UserError, match='in more than one of the files, the first is lin0'):
    quality.load_lpips(trunk, lins, lins)
  vgg_lins = {f'lin{i}.model.1.weight': np.ones((1, c, 1, 1), np.float32) for i, c in enumerate((64, 128, 256, 512))}
  with pytest.raises(UserError, match=r'(?s)lin_4: no lin4.*lin_1: lin1.model.1.weight gives \(128,\)'):
    quality.load_lpips(trunk, written(tmp_path / 'other.safetensors', vgg_lins))


@pytest.mark.parametrize(
  ('network', 'shapes', 'message'),
  [
    ('alexnet', ((1, 64, 64, 3),) * 2, "'alexnet': expected one of .* Did you mean 'alex'"),
    ('alex', ((1, 64, 30, 3),) * 2, 'at least 31 pixels along a side, found 64 x 30'),
    ('vgg', ((1, 15, 64, 3),) * 2, 'at least 16'),
    ('alex', ((64, 64, 3),) * 2, r'\(64, 64, 3\)'),
    ('alex', ((1, 64, 64, 3), (2, 64, 64, 3)), r'\(2, 64, 64, 3\)'),
  ],
)
def test_lpips_refuses_what_it_cannot_judge(network, shapes, message):
  with pytest.raises(UserError, match=message):
    jax.eval_shape(quality.Lpips(network).init, jax.random.key(0), *(jnp.zeros(shape) for shape in shapes))


@pytest.mark.parametrize('network', SIZES)
def test_the_least_image_leaves_a_feature_at_every_stage(network):
  side = quality.NETWORKS[network].least
  shape = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  model = quality.Lpips(network)
  found, state = jax.eval_shape(
    lambda x: model.init_with_output(jax.random.key(0), x, x, capture_intermediates=True), shape
  )
  last = state['intermediates'][f'conv_{quality.NETWORKS[network].stages[-1][-1].index}']['__call__'][0]
  assert found.shape == (1,) and last.shape[1:3] == (1, 1)


class Recorder:
  """Stands for OpenCV's measure: remembers what it was given."""

  def __init__(self, *paths):
    self.paths = paths

  def compute(self, picture):
    self.seen = picture
    return (12.5, 0.0, 0.0, 0.0)


def test_brisque_gives_opencv_its_files_in_order_and_the_picture_in_its_colours(monkeypatch, tmp_path):
  monkeypatch.setattr(cv2, 'quality', types.SimpleNamespace(QualityBRISQUE_create=Recorder), raising=False)
  model, features = tmp_path / 'model.yml', tmp_path / 'range.yml'
  model.touch()
  with pytest.raises(UserError, match=r'range.yml: no such file.*brisque_range_live.yml.*opencv_contrib'):
    quality.Brisque(model, features)
  features.touch()
  measure = quality.Brisque(model, features)
  picture = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
  assert measure(picture) == 12.5 and measure._measure.paths == (str(model), str(features))
  np.testing.assert_array_equal(measure._measure.seen, picture[..., ::-1])
  for wrong in (picture.astype(np.float32), picture[..., 0], picture[None]):
    with pytest.raises(UserError, match='8-bit RGB'):
      measure(wrong)


def test_brisque_without_opencvs_module_names_the_package(monkeypatch):
  monkeypatch.delattr(cv2, 'quality', raising=False)
  with pytest.raises(UserError, match='opencv-contrib-python-headless'):
    quality.Brisque('model.yml', 'range.yml')
