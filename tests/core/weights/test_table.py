"""The key tables' language and the tables themselves: exact round trips, full accounts, one error for all faults."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from core.errors import UserError
from core.nn import adapters, resnet, vit
from core.weights import files, resize, table
from core.weights import resnet as resnet_weights
from core.weights import vit as vit_weights

VIT = {'patch': (4, 6), 'width': 12, 'depth': 11, 'heads': 3, 'mlp_dim': 20}  # two-digit block numbers
SIZE = (12, 18)
RESNET = {'depths': (1, 2), 'widths': (8, 12), 'stem_width': 4}


def _random(shapes, seed=0):
  rng = np.random.default_rng(seed)
  flat = {name: flax.traverse_util.flatten_dict(tree, sep='/') for name, tree in shapes.items()}
  leaves = {path: leaf for tree in flat.values() for path, leaf in tree.items()}
  return {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in leaves.items()}


def vit_leaves(**changes):
  return _random(jax.eval_shape(vit.ViT(**{**VIT, **changes}).init, jax.random.key(0), jnp.zeros((1, *SIZE, 3))))


def resnet_leaves(**changes):
  model = resnet.ResNet(**{**RESNET, **changes})
  return _random(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))))


def stored(folder, tensors):
  files.write(folder / 'model.safetensors', tensors)
  return files.read(folder)


def load_vit(leaves, tensors):
  return vit_weights.load(leaves, tensors, grid=(3, 3))


CASES = [
  *(
    ('vit', layout, changes) for layout in vit_weights.LAYOUTS for changes in ({}, {'qkv_bias': False}, {'scan': True})
  ),
  *(('resnet', layout, {'bottleneck': deep}) for layout in resnet_weights.LAYOUTS for deep in (False, True)),
]


@pytest.mark.parametrize('architecture, layout, changes', CASES)
def test_round_trips_are_exact_in_both_directions(tmp_path, architecture, layout, changes):
  make, module, read = {
    'vit': (vit_leaves, vit_weights, load_vit),
    'resnet': (resnet_leaves, resnet_weights, resnet_weights.load),
  }[architecture]
  leaves = make(**changes)
  public = module.export(leaves, layout)
  tensors = stored(tmp_path, public)
  loaded, account = read(leaves, tensors)
  assert set(loaded) == set(leaves) and not account.fresh and not account.ignored
  for path, leaf in leaves.items():
    np.testing.assert_array_equal(loaded[path], leaf, err_msg=path)
  again = module.export(loaded, layout)
  assert set(again) == set(tensors)
  for name in tensors:
    np.testing.assert_array_equal(again[name], tensors[name], err_msg=name)


@pytest.mark.parametrize('layout', vit_weights.LAYOUTS)
@pytest.mark.parametrize('prefix', ['', 'vit.', 'model.backbone.'])
def test_the_layout_and_its_prefix_are_seen_from_the_names(tmp_path, layout, prefix):
  leaves = vit_leaves()
  tensors = stored(tmp_path, {prefix + name: x for name, x in vit_weights.export(leaves, layout).items()})
  loaded, account = load_vit(leaves, tensors)
  assert account.layout == layout and set(loaded) == set(leaves)
  fields, size = vit_weights.infer(tensors)
  assert fields == {**VIT, 'heads': 1, 'class_token': True, 'pool': 'class', 'qkv_bias': True} and size == SIZE


@pytest.mark.parametrize('deep', [False, True])
@pytest.mark.parametrize('layout', resnet_weights.LAYOUTS)
def test_a_resnet_is_inferred_from_its_tensors(tmp_path, layout, deep):
  tensors = stored(tmp_path, resnet_weights.export(resnet_leaves(bottleneck=deep), layout))
  assert resnet_weights.infer(tensors)[0] == {**RESNET, 'bottleneck': deep}


def test_the_fused_qkv_of_timm_is_query_key_value_in_this_order():
  leaves = vit_leaves()
  weight = vit_weights.export(leaves, 'timm')['blocks.10.attn.qkv.weight']
  for i, name in enumerate(('query', 'key', 'value')):
    kernel = leaves[f'encoder/block_10/attention/{name}/kernel']
    np.testing.assert_array_equal(weight[12 * i : 12 * (i + 1)], kernel.T)


def test_all_faults_are_one_error_that_lists_them(tmp_path):
  leaves = vit_leaves()
  public = vit_weights.export(leaves, 'timm')
  del public['blocks.3.mlp.fc2.bias']
  public['blocks.11.norm1.weight'] = np.ones(12, np.float32)
  public['blocks.0.ls1.gamma'] = np.ones(12, np.float32)
  public['norm.bias'] = np.ones(13, np.float32)
  with pytest.raises(UserError) as error:
    load_vit(leaves, stored(tmp_path, public))
  text = str(error.value)
  assert 'encoder/block_3/mlp/down/bias: no blocks.3.mlp.fc2.bias' in text
  assert '2 of its tensors without a leaf' in text and 'blocks.11.norm1.weight' in text and 'blocks.0.ls1.gamma' in text
  assert 'encoder/norm/bias: norm.bias gives (13,), expected (12,)' in text
  assert 'launch.convert' in text


def test_a_shallower_network_does_not_swallow_a_deeper_file(tmp_path):
  tensors = stored(tmp_path, vit_weights.export(vit_leaves(), 'transformers'))
  with pytest.raises(UserError, match='16 of its tensors without a leaf'):
    load_vit(vit_leaves(depth=10), tensors)
  with pytest.raises(UserError, match='16 of our leaves without a tensor'):
    load_vit(vit_leaves(depth=12), tensors)


def test_unknown_names_are_refused_with_what_was_found(tmp_path):
  with pytest.raises(UserError, match=r"no known layout; expected timm .*patch_embed.*found \['audio.weight'\]"):
    load_vit(vit_leaves(), stored(tmp_path, {'audio.weight': np.zeros(3)}))


def test_the_account_groups_blocks_and_names_every_kind(tmp_path):
  leaves = vit_leaves(adapter=adapters.convpass(4), scan=True)
  public = vit_weights.export(leaves, 'transformers')
  assert not any('adapter' in name for name in public)
  public |= {'classifier.weight': np.ones((7, 12)), 'pooler.dense.bias': np.ones(12)}
  loaded, account = load_vit(leaves, stored(tmp_path, public))
  assert {path for path in leaves if path not in loaded} == {path for path in leaves if adapters.is_adapter(path)}
  text = str(account)
  assert 'encoder/block_*/attention_adapter/conv/kernel x11: 144' in text
  assert "classifier.weight: the source's own classifier" in text and 'pooler.dense.bias: ' in text
  assert f'loaded   {len(account.loaded)} leaves' in text and 'ignored  2 tensors, on purpose' in text
  assert sum(size for _, size, _ in account.loaded.values()) == sum(loaded[path].size for path in loaded)


def test_half_precision_files_fill_full_precision_leaves(tmp_path):
  leaves = vit_leaves()
  halves = {name: x.astype(ml_dtypes.bfloat16) for name, x in vit_weights.export(leaves, 'timm').items()}
  loaded, _ = load_vit(leaves, stored(tmp_path, halves))
  assert {leaf.dtype for leaf in loaded.values()} == {np.dtype('float32')}
  np.testing.assert_allclose(loaded['position'], leaves['position'], rtol=1e-2)


def test_export_refuses_a_leaf_that_the_layout_cannot_name():
  with pytest.raises(UserError, match=r"layout 'timm' has no name for 1 of our leaves: \['encoder/gate'\]"):
    vit_weights.export({**vit_leaves(), 'encoder/gate': np.zeros(1)}, 'timm')
  with pytest.raises(UserError, match="no layout 'torchvision', expected one of"):
    vit_weights.export(vit_leaves(), 'torchvision')


def test_patterns_take_numbers_only_and_shift_them():
  layout = table.Layout('x', '', (table.Key('a_{s}/b_{i}', 'l.{s-1}.{i+1}'),))
  matched, left = table.match(['a_3/b_10', 'a_x/b_1', 'a_3/b_10/c'], layout)
  assert [(name, paths) for _, name, paths in matched] == [('l.2.11', ('a_3/b_10',))]
  assert left == ['a_x/b_1', 'a_3/b_10/c']


@pytest.mark.parametrize('antialias', [False, True])
@pytest.mark.parametrize('wanted', [(8, 8), (5, 11), (2, 3), (4, 9)])
def test_position_resizing_is_that_of_torch(antialias, wanted):
  torch = pytest.importorskip('torch')
  embedding = np.random.default_rng(0).normal(size=(1, 2 + 4 * 6, 5)).astype(np.float32)
  grid = torch.tensor(embedding[:, 2:].reshape(1, 4, 6, 5).transpose(0, 3, 1, 2))
  expected = torch.nn.functional.interpolate(
    grid, size=wanted, mode='bicubic', align_corners=False, antialias=antialias
  )
  resized, remark = resize.positions(embedding, 2, wanted, (4, 6), antialias=antialias)
  np.testing.assert_array_equal(resized[:, :2], embedding[:, :2])
  np.testing.assert_allclose(resized[0, 2:], expected[0].numpy().reshape(5, -1).T, atol=1e-5)
  assert remark.startswith(f'resized 4x6 -> {wanted[0]}x{wanted[1]}')


def test_positions_of_a_grid_that_is_not_square_need_it_named():
  embedding = np.zeros((1, 1 + 24, 5), np.float32)
  with pytest.raises(UserError, match='24 places are no square grid'):
    resize.positions(embedding, 1, (8, 8), antialias=False)
  with pytest.raises(UserError, match='24 places, which is not the grid 5x5'):
    resize.positions(embedding, 1, (8, 8), (5, 5), antialias=False)
  same, remark = resize.positions(embedding, 1, (3, 8), antialias=False)
  assert same is embedding and remark == ''
