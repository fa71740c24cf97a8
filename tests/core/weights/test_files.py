"""What is read as weights and what is refused, and in which words."""

import hashlib
import json
import pickle
import struct
import types

import ml_dtypes
import numpy as np
import pytest

from core.errors import UserError
from core.weights import files

TENSORS = {
  'a.weight': np.arange(6, dtype=np.float32).reshape(2, 3),
  'b': np.asarray([1, -2], np.int64),
  'half': np.asarray([1.5, -3.0], ml_dtypes.bfloat16),
  'scalar': np.asarray(2.0, np.float16),
}


def assert_same(tensors, expected=TENSORS):
  assert set(tensors) == set(expected) and len(tensors) == len(expected)
  for name, value in expected.items():
    assert tensors.shapes[name] == value.shape and tensors[name].dtype == value.dtype
    np.testing.assert_array_equal(tensors[name], value)


def test_a_file_and_a_folder_give_back_what_was_written(tmp_path):
  files.write(tmp_path / 'deep' / 'model.safetensors', TENSORS)
  (tmp_path / 'deep' / 'config.json').write_text('{"num_attention_heads": 3}')
  for source in (tmp_path / 'deep' / 'model.safetensors', tmp_path / 'deep'):
    tensors = files.read(source)
    assert_same(tensors)
    assert tensors.config == {'num_attention_heads': 3}
  assert [path.name for path in (tmp_path / 'deep').glob('*partial*')] == []


def test_transposed_arrays_are_written_as_they_look(tmp_path):
  files.write(tmp_path / 'x.safetensors', {'t': TENSORS['a.weight'].T})
  np.testing.assert_array_equal(files.read(tmp_path / 'x.safetensors')['t'], TENSORS['a.weight'].T)


def test_torch_reads_what_we_write(tmp_path):
  torch = pytest.importorskip('torch')
  from safetensors.torch import load_file

  files.write(tmp_path / 'x.safetensors', TENSORS)
  loaded = load_file(tmp_path / 'x.safetensors')
  assert loaded['half'].dtype == torch.bfloat16
  np.testing.assert_array_equal(loaded['a.weight'].numpy(), TENSORS['a.weight'])


def _sharded(folder):
  folder.mkdir()
  parts = {'one.safetensors': ['a.weight'], 'two.safetensors': ['b', 'half', 'scalar']}
  for name, keys in parts.items():
    files.write(folder / name, {key: TENSORS[key] for key in keys})
  where = {key: name for name, keys in parts.items() for key in keys}
  (folder / 'model.safetensors.index.json').write_text(json.dumps({'metadata': {}, 'weight_map': where}))
  return folder


def test_shards_are_one_source(tmp_path):
  assert_same(files.read(_sharded(tmp_path / 'm')))


def test_shards_that_do_not_keep_the_index_promise(tmp_path):
  folder = _sharded(tmp_path / 'm')
  files.write(folder / 'two.safetensors', {'b': TENSORS['b']})
  with pytest.raises(UserError, match=r"2 tensors are not in the shard that the index names: \['half', 'scalar'\]"):
    files.read(folder)
  (folder / 'one.safetensors').unlink()
  with pytest.raises(UserError, match=r"lacks 1 of the 2 shards its index names: \['one.safetensors'\]"):
    files.read(folder)
  (folder / 'model.safetensors.index.json').write_text('[]')
  with pytest.raises(UserError, match="expected JSON with 'weight_map'"):
    files.read(folder)


@pytest.mark.parametrize('plain', files.PLAIN)
def test_weights_in_full_precision_come_before_their_variants(tmp_path, plain):
  files.write(tmp_path / plain, TENSORS)
  files.write(tmp_path / plain.replace('.safetensors', '.fp16.safetensors'), {'b': TENSORS['b']})
  assert_same(files.read(tmp_path))


def test_a_folder_with_a_choice_asks_for_one(tmp_path):
  for name in ('x', 'y'):
    files.write(tmp_path / f'{name}.safetensors', TENSORS)
  with pytest.raises(UserError, match=r'2 safetensors files .*x.safetensors, y.safetensors.*name the one'):
    files.read(tmp_path)
  files.write(tmp_path / 'model.safetensors', TENSORS)
  assert_same(files.read(tmp_path))
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match='holds no .safetensors file'):
    files.read(tmp_path / 'empty')


@pytest.mark.parametrize(
  'name, content, message',
  [
    ('pytorch_model.bin', pickle.dumps({'a': 1}), r'is a pickle.*launch.convert --pickle --input='),
    ('model.safetensors', pickle.dumps({'a': 1}), r'is a pickle.*launch.convert --pickle --input='),
    ('model.safetensors', b'PK\x03\x04 a torch archive', r'is a pickle'),
    ('model.pth', b'anything', r'is a pickle'),
    ('model.safetensors', b'\n <!DOCTYPE html><html>Sign in', r'is a web page.*resolve/main'),
    ('model.safetensors', b'<html><body>404</body>', r'is a web page'),
    ('model.safetensors', b'version https://git-lfs.github.com/spec/v1\noid ', r'git-LFS pointer.*git lfs pull'),
    ('model.safetensors', b'', r'0 bytes\) is not a safetensors file'),
    ('model.safetensors', b'{"error": "Repository not found"}', r'is not a safetensors file: it begins with'),
    ('model.safetensors', struct.pack('<Q', 5) + b'hello world', r'header is not JSON'),
    ('model.safetensors', struct.pack('<Q', 5000) + b'{"a": ', r'is truncated: its header alone has 5000 bytes'),
  ],
)  # fmt: skip
def test_what_is_not_weights_is_refused_by_its_name(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=f'(?s){message}'):
    files.read(tmp_path / name)
  with pytest.raises(UserError, match=f'(?s){message}'):
    files.read(tmp_path)


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path):
  """640 is 80 02 in hexadecimal, as a pickle begins."""
  path = tmp_path / 'x.safetensors'
  name = 'x' * (640 - len('{"__metadata__":{"format":"pt"},"":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'))
  files.write(path, {name: np.ones(1, np.float32)})
  assert path.read_bytes().startswith(b'\x80\x02')
  assert set(files.read(path)) == {name}


@pytest.mark.parametrize('cut', [1, 13, 40])
def test_a_truncated_file_says_how_much_is_missing(tmp_path, cut):
  path = tmp_path / 'x.safetensors'
  files.write(path, TENSORS)
  whole = path.read_bytes()
  path.write_bytes(whole[:-cut])
  with pytest.raises(UserError, match=f'truncated: {len(whole) - cut} bytes, its header promises {len(whole)}'):
    files.read(path)
  path.write_bytes(whole + b'!')
  with pytest.raises(UserError, match='has bytes after its end'):
    files.read(path)


def test_size_and_digest_are_checked_where_given(tmp_path):
  path = tmp_path / 'x.safetensors'
  files.write(path, TENSORS)
  digest, size = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size
  assert_same(files.read(path, sha256=digest.upper(), size=size))
  with pytest.raises(UserError, match=f'has {size} bytes, expected {size + 1}'):
    files.read(path, size=size + 1)
  with pytest.raises(UserError, match=f'has sha256 {digest}, expected {"0" * 64}'):
    files.read(path, sha256='0' * 64)
  with pytest.raises(UserError, match='belong to a single file'):
    files.read(tmp_path, sha256=digest)


@pytest.mark.parametrize('name', ['nowhere/model.safetensors', '/nowhere/at/all', 'nowhere', 'a/b.bin'])
def test_a_path_that_is_not_there(name):
  with pytest.raises(UserError, match='no such file or folder'):
    files.read(name)


def _hub(monkeypatch, folder, sha256='', size=0):
  """A Hub that gives a local folder."""
  import huggingface_hub

  file = types.SimpleNamespace(rfilename='model.safetensors', lfs=types.SimpleNamespace(sha256=sha256, size=size))
  info = types.SimpleNamespace(sha='abc', siblings=[file, types.SimpleNamespace(rfilename='README.md', lfs=None)])
  asked = []
  monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', lambda self, name, **options: asked.append(name) or info)
  monkeypatch.setattr(
    huggingface_hub, 'snapshot_download', lambda name, **options: asked.append(options) or str(folder)
  )
  return asked


def test_the_hub_is_asked_for_safetensors_only_and_checked(tmp_path, monkeypatch):
  files.write(tmp_path / 'model.safetensors', TENSORS)
  data = (tmp_path / 'model.safetensors').read_bytes()
  asked = _hub(monkeypatch, tmp_path, hashlib.sha256(data).hexdigest(), len(data))
  assert_same(files.read('owner/name@v2'))
  assert asked[0] == 'owner/name' and asked[1]['revision'] == 'abc'
  assert not any(pattern.endswith(('.bin', '.pt')) or pattern == '*' for pattern in asked[1]['allow_patterns'])
  _hub(monkeypatch, tmp_path, '0' * 64, len(data))
  with pytest.raises(UserError, match='expected 0000'):
    files.read('owner/name')


def test_a_hub_that_does_not_answer_leaves_the_way_out(monkeypatch):
  import huggingface_hub

  def offline(self, name, **options):
    raise OSError('Network is unreachable')

  monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', offline)
  with pytest.raises(UserError, match=r'owner/name: .*OSError: Network is unreachable.*download it yourself'):
    files.read('owner/name')


def test_only_safetensors_are_written(tmp_path):
  with pytest.raises(UserError, match='written as .safetensors, not as x.bin'):
    files.write(tmp_path / 'x.bin', TENSORS)
