"""A config refuses what its file does not define, and knows what was read of it."""

import copy
import pickle

import pytest
from ml_collections import ConfigDict

from core import config as config_lib
from core.errors import UserError
from core.train import checkpoint

FILE = """
from ml_collections import ConfigDict

def get_config(preset='small'):
  if preset not in ('small', 'large'):
    raise ValueError(f"there are the presets 'small' and 'large', not '{preset}'.")
  return ConfigDict({
    'seed': 0,
    'name': 'a',
    'data': {'domains': ('laptop', 'phone'), 'sizes': (1.0, 2.0), 'final': (('biometrics', 'val'),)},
    'optim': {'learning_rate': 1e-3, 'nesterov': False, 'steps': 30 if preset == 'small' else 300},
    'deep': {'er': {'key': 1}},
  })
"""


@pytest.fixture
def path(tmp_path):
  file = tmp_path / 'experiment.py'
  file.write_text(FILE)
  return str(file)


def test_preset_and_overrides(path):
  config = config_lib.load(f'{path}:large', ['optim.learning_rate=3e-4', 'optim.nesterov=true', 'deep.er.key=7'])
  assert (config.optim.steps, config.optim.learning_rate, config.optim.nesterov) == (300, 3e-4, True)
  assert config.deep.er.key == 7 and config.is_locked


@pytest.mark.parametrize(
  ('overrides', 'key', 'value'),
  [
    (['optim.learning_rate=3'], 'optim.learning_rate', 3.0),
    ({'optim.learning_rate': 3}, 'optim.learning_rate', 3.0),
    (['data.domains=phone'], 'data.domains', ('phone',)),
    (['data.domains=phone,dslr'], 'data.domains', ('phone', 'dslr')),
    (["data.domains=('phone', 'dslr')"], 'data.domains', ('phone', 'dslr')),
    (['data.domains=phone', 'data.domains=dslr'], 'data.domains', ('phone', 'dslr')),
    (['data.sizes=(3, 4.5)'], 'data.sizes', (3.0, 4.5)),
    (["data.final=(('biometrics', 'test'),)"], 'data.final', (('biometrics', 'test'),)),
    ({'data.domains': ['dslr']}, 'data.domains', ('dslr',)),
    (['name=a=b'], 'name', 'a=b'),
    (['name='], 'name', ''),
  ],
)
def test_values_take_the_type_of_their_key(path, overrides, key, value):
  found = config_lib.flatten(config_lib.load(path, overrides))[key]
  assert found == value and type(found) is type(value)
  if isinstance(value, tuple):
    assert [type(item) for item in found] == [type(item) for item in value]


@pytest.mark.parametrize(
  ('overrides', 'words'),
  [
    (['optim.learing_rate=1'], ["'optim.learing_rate'", "Did you mean 'optim.learning_rate'?"]),
    (['learning_rate=1'], ["Did you mean 'optim.learning_rate'?"]),
    ({'optim.learing_rate': 1.0}, ["Did you mean 'optim.learning_rate'?"]),
    (['optim.zzz=1'], ['Section optim has', 'optim.steps']),
    (['zzz=1'], ['Known: data, deep, name, optim, seed']),
    (['optim=1'], ['is a section', 'optim.steps']),
    (['optim.learning_rate'], ['has no value', 'key=value']),
    (['optim.learning_rate=fast'], ["'optim.learning_rate' is 'fast'", 'a number, such as 0.001']),
    (['optim.steps=3.5'], ["'optim.steps' is '3.5'", 'an integer, such as 30']),
    (['optim.nesterov=perhaps'], ['true or false']),
    ({'optim.steps': 3.5}, ["'optim.steps' is 3.5", 'an integer']),
    ({'optim.steps': True}, ["'optim.steps' is True", 'an integer']),
    ({'optim.learning_rate': '3e-4'}, ["is '3e-4'", 'a number']),
    (['data.domains=3'], ["'data.domains' is (3,)", "such as ('laptop', 'phone')"]),
    (['data.domains=(phone, dslr'], ["'data.domains'", 'a tuple']),
  ],
)
def test_what_does_not_fit_is_refused_in_one_line(path, overrides, words):
  with pytest.raises(UserError) as error:
    config_lib.load(path, overrides)
  text = str(error.value)
  assert all(word in text for word in words), text
  assert '\n' not in text


def test_missing_file_preset_and_function(path, tmp_path):
  with pytest.raises(UserError, match=r"no config file .*Did you mean '.*experiment\.py'"):
    config_lib.load(path.replace('experiment', 'experimnt'))
  with pytest.raises(UserError, match="presets 'small' and 'large', not 'huge'"):
    config_lib.load(f'{path}:huge')
  (tmp_path / 'empty.py').write_text('')
  with pytest.raises(UserError, match='defines no get_config'):
    config_lib.load(str(tmp_path / 'empty.py'))
  (tmp_path / 'notes.txt').write_text('')
  with pytest.raises(UserError, match='not a Python file'):
    config_lib.load(str(tmp_path / 'notes.txt'))


def test_a_config_of_the_checkout_is_found_from_anywhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert config_lib.load('configs/fas/fas_aug.py').system == 'fas.fas_aug'


def test_reading_is_remembered_by_attribute_item_and_dotted_item(path):
  config = config_lib.track(config_lib.load(path))
  assert config_lib.unread(config) == sorted(config_lib.flatten(config))
  assert config.seed == 0 and config['name'] == 'a' and config['deep.er.key'] == 1
  _ = config.optim.learning_rate
  assert config_lib.unread(config) == ['data.domains', 'data.final', 'data.sizes', 'optim.nesterov', 'optim.steps']
  assert dict(**config.data)['sizes'] == (1.0, 2.0)
  assert config_lib.unread(config) == ['optim.nesterov', 'optim.steps']


def test_saving_printing_comparing_and_copying_is_not_reading(path):
  config = config_lib.track(config_lib.load(path))
  everything = config_lib.unread(config)
  checkpoint.plain(config), str(config), repr(config), config.to_json(), config == config_lib.track(config)
  config_lib.flatten(config), 'seed' in config, list(config), config.keys(), config.optim, ConfigDict(config.to_dict())
  copies = [copy.deepcopy(config), config_lib.derive(config, {'deep.er.key': 2}), config_lib.track(config)]
  assert config_lib.unread(config) == everything
  assert all(config_lib.flatten(each).keys() == config_lib.flatten(config).keys() for each in copies)


def test_derived_copies_share_the_record_and_nothing_else(path):
  config = config_lib.track(config_lib.load(path))
  fold = config_lib.derive(config, {'data.domains': ('dslr',)})
  nested = config_lib.derive(fold, ['deep.er.key=5'])
  assert fold.data.domains == ('dslr',) and nested.deep.er.key == 5 and copy.deepcopy(fold).optim.steps == 30
  left = config_lib.unread(config)
  assert left == config_lib.unread(fold) == ['data.final', 'data.sizes', 'name', 'optim.learning_rate',
                                             'optim.nesterov', 'seed']  # fmt: skip
  assert config.data.domains == ('laptop', 'phone') and config.deep.er.key == 1
  with pytest.raises(UserError, match='unknown config key'):
    config_lib.derive(config, {'data.domain': ()})


def test_derive_serves_configs_without_a_record(path):
  config = config_lib.load(path)
  assert config_lib.derive(config, {'seed': 4}).seed == 4 and config.seed == 0


def test_a_tracked_config_travels_to_worker_processes_and_stays_locked(path):
  config = config_lib.track(config_lib.load(path))
  there = pickle.loads(pickle.dumps(config))
  assert there.to_dict() == config.to_dict() and there.deep.er.key == 1
  with pytest.raises(AttributeError):
    config.optim.unknown = 1
  with pytest.raises(TypeError):
    config.optim.steps = 'many'


def test_a_checkpoint_gives_its_config_back(path):
  config = config_lib.load(path)
  assert config_lib.restore(checkpoint.plain(config)) == config
