"""Torch checkpoints without torch: both forms equal to what torch reads, and nothing but tensors is ever built."""

import collections
import io
import os
import pathlib
import pickle
import struct
import tempfile
import zipfile

import hypothesis
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies

from core.errors import UserError
from core.weights import files, pickles


class Call:
  """Pickles as a call of `name` in `module`."""

  def __init__(self, module, name, *arguments):
    self.target, self.arguments = (module, name), arguments


class Pointer:
  """Pickles as a persistent id."""

  def __init__(self, *pid):
    self.pid = pid


class Name(str):
  """'module name', pickled as a global."""


class Writer(pickle._Pickler):
  """Writes what torch writes, and what it would never write, without torch."""

  dispatch = pickle._Pickler.dispatch.copy()

  def persistent_id(self, value):
    return value.pid if isinstance(value, Pointer) else None

  def save_name(self, value):
    self.write(pickle.GLOBAL + value.replace(' ', '\n').encode() + b'\n')

  def save_call(self, value):
    self.save_name(' '.join(value.target))
    self.save(value.arguments)
    self.write(pickle.REDUCE)

  dispatch[Name] = save_name
  dispatch[Call] = save_call


def pickled(value):
  file = io.BytesIO()
  Writer(file, 2).dump(value)
  return file.getvalue()


def tensor(kind, key, count, shape, strides, offset=0, part=()):
  storage = Pointer('storage', Name(f'torch {kind}'), key, 'cpu', count, *part)
  return Call('torch._utils', '_rebuild_tensor_v2', storage, offset, shape, strides, False, collections.OrderedDict())


def archive(path, content, storages=None, order=b'little', folder='archive'):
  """A checkpoint in the form of torch 1.6 and later."""
  with zipfile.ZipFile(path, 'w') as file:
    file.writestr(f'{folder}/data.pkl', pickled(content))
    file.writestr(f'{folder}/byteorder', order)
    for key, array in (storages or {}).items():
      file.writestr(f'{folder}/data/{key}', array.tobytes())
  return path


def row(path, content, storages=None, machine=None, magic=pickles.MAGIC):
  """A checkpoint in the form before torch 1.6."""
  storages = storages or {}
  data = b''.join(map(pickled, (magic, 1001, machine or {'little_endian': True}, content, list(storages))))
  path.write_bytes(data + b''.join(struct.pack('<q', array.size) + array.tobytes() for array in storages.values()))
  return path


def read(path):
  return files.read(path, allow_pickle=True)


NUMBERS = np.arange(12, dtype=np.float32)
FORMS = {'archive': archive, 'row': row}
forms = pytest.mark.parametrize('form', FORMS.values(), ids=FORMS)


@pytest.mark.parametrize('zipped', [True, False])
def test_what_torch_writes_is_read_as_torch_reads_it(tmp_path, zipped):
  torch = pytest.importorskip('torch')
  torch.manual_seed(0)
  module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
  optimizer = torch.optim.AdamW(module.parameters())
  module(torch.randn(4, 3)).sum().backward()
  optimizer.step()
  whole = torch.randn(6, 7)
  content = {
    'epoch': 3, 'best': 0.5, 'name': 'x', 'none': None, 'shape': whole.shape, 'seen': {1, 2},
    'model': module.state_dict(), 'optimizer': optimizer.state_dict(), 'parameter': torch.nn.Parameter(torch.ones(2)),
    'views': [whole, whole[2:, ::2], whole.T, whole[3, 4], whole[:0]],
    'kinds': {
      str(kind): torch.arange(-3, 3).to(kind)
      for kind in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
                   torch.int8, torch.uint8, torch.bool)
    },
  }  # fmt: skip
  path = tmp_path / 'x.pth'
  torch.save(content, path, _use_new_zipfile_serialization=zipped)
  tensors = read(path)
  expected = {}

  def walk(value, name):
    if isinstance(value, torch.Tensor):
      expected[name] = value.detach()
    elif isinstance(value, dict | list):
      for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        walk(each, f'{name}.{key}' if name else str(key))

  walk(content, '')
  assert set(tensors) == set(expected) and len(tensors) == len(expected)
  assert {'model.1.running_mean', 'optimizer.state.0.exp_avg', 'views.2', 'parameter'} <= set(tensors)
  for name, value in expected.items():
    found = tensors[name]
    assert found.shape == tensors.shapes[name] == tuple(value.shape)
    if value.dtype == torch.bfloat16:
      assert found.dtype == ml_dtypes.bfloat16
      found, value = found.astype(np.float32), value.float()
    np.testing.assert_array_equal(found, value.numpy(), err_msg=name, strict=True)
    assert found.flags.c_contiguous and found.flags.writeable


@forms
def test_both_forms_without_torch(tmp_path, form):
  content = {'a': {1: tensor('FloatStorage', '0', 12, (2, 3), (6, 2), 1)}, 'b': [tensor('LongStorage', '7', 2, (), ())]}
  path = form(tmp_path / 'x.pth', content, {'0': NUMBERS, '7': np.array([5, 6])})
  (tmp_path / 'config.json').write_text('{"hidden_size": 3}')
  tensors = read(path)
  assert tensors.shapes == {'a.1': (2, 3), 'b.0': ()} and tensors.config == {'hidden_size': 3}
  np.testing.assert_array_equal(tensors['a.1'], [[1, 3, 5], [7, 9, 11]])
  assert tensors['b.0'] == 5


def test_a_part_of_a_storage_as_the_oldest_files_have_it(tmp_path):
  content = {'x': tensor('FloatStorage', '0', 12, (2,), (1,), 1, part=(('0view', 4, 3),))}
  np.testing.assert_array_equal(read(row(tmp_path / 'x.pt', content, {'0': NUMBERS}))['x'], [5, 6])
  content = {'x': tensor('FloatStorage', '0', 12, (3,), (1,), 1, part=(('0view', 4, 3),))}
  with pytest.raises(UserError, match='in a storage of 3 numbers'):
    read(row(tmp_path / 'y.pt', content, {'0': NUMBERS}))


@forms
@pytest.mark.parametrize(
  ('module', 'name'),
  [('posix', 'system'), ('builtins', 'eval'), ('builtins', 'getattr'), ('torch', 'ComplexFloatStorage'),
   ('numpy.core.multiarray', 'scalar'), ('argparse', 'Namespace'), ('torch._utils', '_rebuild_tensor_v9'),
   ('core.weights.pickles', 'Row'), ('torch', 'Size.__class__')],
)  # fmt: skip
def test_anything_but_tensors_is_refused_by_name_and_never_called(tmp_path, form, module, name, monkeypatch):
  monkeypatch.setattr(os, 'system', lambda *_: pytest.fail('called'))
  path = form(tmp_path / 'x.pth', {'a': [Call(module, name, 'touch /tmp/never')]})
  with pytest.raises(UserError, match=f"asks for '{module}.{name}'.*trust its origin"):
    read(path)
  with pytest.raises(UserError, match='(?s)is a pickle.*launch.convert --pickle'):  # not even that without asking
    files.read(path)


@forms
@pytest.mark.parametrize(
  ('arguments', 'found'),
  [
    ((12, (12,), (1,), 1), 'in a storage of 12 numbers'),
    ((12, (3, 3), (6, 1)), 'in a storage of 12 numbers'),
    ((12, (10**9, 12), (0, 1)), 'in a storage of 12 numbers'),
    ((12, (0, 2**31, 2**31), (1, 1, 1)), 'in a storage of 12 numbers'),
    ((12, (2,), (-1,), 5), 'negative sizes'),
    ((12, (2,), (1,), -1), 'negative sizes'),
    ((12, (2, 1), (1,)), 'without a storage'),
    ((12, (2.0,), (1,)), 'expected whole numbers'),
    ((13, (2,), (1,)), 'Download it again'),
    ((-1, (2,), (1,)), 'no storage of numbers'),
  ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, form, arguments, found):
  """numpy would read whatever lies behind it in memory."""
  path = form(tmp_path / 'x.pth', {'x': tensor('FloatStorage', '0', *arguments)}, {'0': NUMBERS})
  with pytest.raises(UserError, match=found):
    read(path)['x']


@forms
def test_one_storage_under_two_types_does_not_read_beyond_it(tmp_path, form):
  content = [tensor('DoubleStorage', '0', 12, (12,), (1,)), tensor('FloatStorage', '0', 12, (12,), (1,))]
  with pytest.raises(UserError, match=r'has 6 numbers, expected 12|has 48 bytes, expected 96'):
    read(form(tmp_path / 'x.pth', content, {'0': NUMBERS}))['0']


@pytest.mark.parametrize(
  ('code', 'found'),
  [
    (b"ctorch._utils\n_rebuild_parameter\n}S'__defaults__'\n(K\x07tsb", 'holds no tensor'),  # BUILD: a dict, slots
    (b"ctorch._utils\n_rebuild_parameter\nN}S'__defaults__'\n(K\x07ts\x86b", 'holds no tensor'),
    (b'(icollections\nOrderedDict\n', 'damaged'),  # INST
    (b'(ccollections\nOrderedDict\no', 'damaged'),  # OBJ
    (b'ccollections\nOrderedDict\n)\x81', 'damaged'),  # NEWOBJ
    (b'\x82\x01', 'damaged'),  # EXT1
    (b'\x96' + struct.pack('<Q', 2**40), 'damaged'),  # BYTEARRAY8 of a tebibyte
    (b'Nr\xff\xff\xff\xff', 'holds no tensor'),  # LONG_BINPUT: a memo of 4 billion places
    (b'B\xff\xff\xff\x7f', 'damaged'),  # BINBYTES of 2 GiB that are not there
  ],
)
def test_instructions_that_make_or_change_objects_or_claim_memory_are_not_followed(tmp_path, code, found):
  with zipfile.ZipFile(tmp_path / 'x.pth', 'w') as file:
    file.writestr('archive/data.pkl', b'\x80\x02' + code + b'.')
  with pytest.raises(UserError, match=found):
    read(tmp_path / 'x.pth')
  assert pickles._Unpickler._parameter.__defaults__ is None
  assert '__defaults__' not in pickles._Unpickler._parameter.__dict__


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(strategies.data())
def test_damaged_bytes_give_a_user_error_or_other_numbers_and_nothing_else(data):
  """Any byte of either form, of its pickles above all."""
  content = collections.OrderedDict(a=tensor('FloatStorage', '0', 12, (2, 3), (3, 1), 1), b=[1, {'c': (2.5, None)}])
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'x.pth'
    if data.draw(strategies.booleans()):
      program = bytearray(pickled(content))
      damage(program, data)
      with zipfile.ZipFile(path, 'w') as file:
        file.writestr('archive/data.pkl', bytes(program))
        file.writestr('archive/data/0', NUMBERS.tobytes())
    else:
      whole = bytearray(row(path, content, {'0': NUMBERS}).read_bytes())
      damage(whole, data)
      path.write_bytes(whole)
    try:
      tensors = read(path)
      assert all(tensors[name].shape == shape for name, shape in tensors.shapes.items())
    except UserError:
      pass


def damage(program, data):
  for _ in range(data.draw(strategies.integers(1, 3))):
    program[data.draw(strategies.integers(0, len(program) - 1))] = data.draw(strategies.integers(0, 255))


@pytest.mark.parametrize('cut', [0.1, 0.5, 0.95, 0.999])
@forms
def test_a_truncated_checkpoint_is_refused(tmp_path, form, cut):
  path = form(tmp_path / 'x.pth', {'x': tensor('FloatStorage', '0', 12, (12,), (1,))}, {'0': NUMBERS})
  data = path.read_bytes()
  path.write_bytes(data[: int(cut * len(data))])
  with pytest.raises(UserError, match=r'truncated|damaged'):
    read(path)


def test_damage_inside_an_archive_is_seen_when_it_is_read(tmp_path):
  path = archive(tmp_path / 'x.pth', {'x': tensor('FloatStorage', '0', 12, (12,), (1,))}, {'0': NUMBERS})
  data = path.read_bytes()
  at = data.index(NUMBERS.tobytes())
  path.write_bytes(data[:at] + b'\xff' + data[at + 1 :])
  with pytest.raises(UserError, match='damaged.*CRC'):
    read(path)['x']


def test_what_is_no_checkpoint_is_refused(tmp_path):
  path = tmp_path / 'x.pth'
  with pytest.raises(UserError, match="begins with 'something'"):
    read(row(path, {}, magic='something'))
  with pytest.raises(UserError, match='another order of bytes'):
    read(row(path, {}, machine={'little_endian': False}))
  with pytest.raises(UserError, match='another order of bytes'):
    read(archive(path, {}, order=b'big'))
  with pytest.raises(UserError, match='holds no tensor'):
    read(archive(path, {'epoch': 3}))
  with pytest.raises(UserError, match=r"two tensors are called 'a.b'"):
    one = tensor('FloatStorage', '0', 12, (), ())
    read(archive(path, {'a': {'b': one}, 'a.b': one}, {'0': NUMBERS}))
  with zipfile.ZipFile(path, 'w') as file:
    file.writestr('word/document.xml', '')
  with pytest.raises(UserError, match='zip archive, but not of a torch checkpoint'):
    read(path)
  path.write_bytes(b'version https://git-lfs.github.com/spec/v1\noid ')
  with pytest.raises(UserError, match='git-LFS pointer'):
    read(path)
  endless = []
  endless.append(endless)
  with pytest.raises(UserError, match='50 deep'):
    read(archive(path, endless))


def test_folders_take_safetensors_first_then_checkpoints_by_their_index(tmp_path):
  make = lambda name, key: archive(  # noqa: E731
    tmp_path / name, {key: tensor('FloatStorage', '0', 12, (12,), (1,))}, {'0': NUMBERS}
  )
  make('training_args.bin', 'args')
  assert set(read(tmp_path)) == {'args'}
  make('pytorch_model-1.bin', 'a'), make('pytorch_model-2.bin', 'b')
  with pytest.raises(UserError, match='3 torch checkpoints .*training_args.bin.*name one'):
    read(tmp_path)
  index = tmp_path / 'pytorch_model.bin.index.json'
  index.write_text('{"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}')
  assert set(read(tmp_path)) == {'a', 'b'}
  (tmp_path / 'pytorch_model-2.bin').rename(tmp_path / 'lost')
  with pytest.raises(UserError, match=r"lacks 1 of the 2 shards its index names: \['pytorch_model-2.bin'\]"):
    read(tmp_path)
  index.unlink()
  make('pytorch_model.bin', 'whole')
  assert set(read(tmp_path)) == {'whole'}
  with pytest.raises(UserError, match='is a pickle'):
    files.read(tmp_path)
  files.write(tmp_path / 'x.safetensors', {'safe': np.ones(2)})
  assert set(read(tmp_path)) == {'safe'} and isinstance(read(tmp_path), files.Tensors)


def test_the_hub_is_asked_for_checkpoints_only_where_allowed_and_needed(tmp_path, monkeypatch):
  huggingface_hub = pytest.importorskip('huggingface_hub')
  archive(tmp_path / 'pytorch_model.bin', {'a': tensor('FloatStorage', '0', 12, (12,), (1,))}, {'0': NUMBERS})
  asked = []

  class Info:
    sha = 'x'

    def __init__(self, *names):
      self.siblings = [type('File', (), {'rfilename': name, 'lfs': None})() for name in names]

  def hub(*names):
    monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', lambda *_, **__: Info(*names))
    monkeypatch.setattr(
      huggingface_hub, 'snapshot_download', lambda *_, allow_patterns, **__: asked.append(allow_patterns) or tmp_path
    )

  hub('pytorch_model.bin', 'config.json')
  assert set(files.read('owner/name', allow_pickle=True)) == {'a'}
  with pytest.raises(UserError, match=r'(?s)weights owner/name on the Hub are a pickle.*--pickle --input=owner/name '):
    files.read('owner/name')
  hub('pytorch_model.bin', 'model.safetensors')
  files.download('owner/name', True)
  assert ['pytorch_model*.bin' in patterns for patterns in asked] == [True, False, False]
