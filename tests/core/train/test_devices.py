"""One device, eight devices and two processes are the same run."""

import concurrent.futures
import json
import pathlib
import socket
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import test_resume
import tiny_task

from core.train import checkpoint, loop

WIDTH = 4096
SETTINGS = {'steps': 4, 'width': WIDTH, 'accumulate': 1, 'monitor': 'train/rmse/value'}


def _losses(history):
  return [row['loss'] for row in history if row['kind'] == 'train']


@pytest.fixture(scope='module')
def single(tmp_path_factory):
  """The same run on the one device of this process."""
  config = tiny_task.config()
  config.update(SETTINGS)
  return loop.train(tiny_task.TinyTask(config), tmp_path_factory.mktemp('single'), logger=loop.NullLogger())


def test_eight_devices_with_fsdp(single, tmp_path, monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=8')
  override = json.dumps(SETTINGS | {'mesh.fsdp': 4})
  code, output = test_resume.launch(tmp_path, '--override', override)
  assert code == 0, output
  result = json.loads((tmp_path / 'result_0.json').read_text())
  np.testing.assert_allclose(_losses(result['history']), _losses(single.history), rtol=1e-5)
  assert result['shards'] == {'base/kernel': [tiny_task.FEATURES, WIDTH // 4]}
  variables, _ = checkpoint.restore_variables(tmp_path)  # saved on eight devices, read on one
  np.testing.assert_allclose(
    variables['params']['head']['kernel'], single.variables['params']['head']['kernel'], atol=1e-5
  )


def test_two_processes(single, tmp_path):
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  options = ['--override', json.dumps(SETTINGS | {'mesh.fsdp': 2}), '--processes', 2, '--port', port, '--process']
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    runs = list(pool.map(lambda process: test_resume.launch(tmp_path, *options, process), range(2)))
  assert [code for code, _ in runs] == [0, 0], runs
  for process in range(2):
    result = json.loads((tmp_path / f'result_{process}.json').read_text())
    np.testing.assert_allclose(_losses(result['history']), _losses(single.history), rtol=1e-5)
    assert result['shards'] == {'base/kernel': [tiny_task.FEATURES, WIDTH // 2]}
  variables, _ = checkpoint.restore_variables(tmp_path)
  np.testing.assert_allclose(
    variables['params']['head']['kernel'], single.variables['params']['head']['kernel'], atol=1e-5
  )
