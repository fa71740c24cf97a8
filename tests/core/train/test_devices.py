"""One device, eight devices and two processes are the same run, also when it is preempted and resumes on fewer."""

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
SETTINGS = {'steps': 8, 'width': WIDTH, 'batch': 16, 'monitor': 'train/rmse/value', 'second_stage': True}
PREEMPTED = 75


def _losses(history):
  return [row['loss'] for row in history if row['kind'] == 'train']


def _train(workdir, **changes):
  config = tiny_task.config()
  config.update(SETTINGS | changes)
  return loop.train(tiny_task.TinyTask(config), workdir, logger=loop.NullLogger())


@pytest.fixture(scope='module')
def single(tmp_path_factory):
  """The same run on the one device of this process."""
  return _train(tmp_path_factory.mktemp('single'))


def _assert_same_run(history, variables, single):
  np.testing.assert_allclose(_losses(history), _losses(single.history), rtol=1e-5)
  for path in (('base', 'kernel'), ('head', 'kernel')):
    found, expected = (tree['params'][path[0]][path[1]] for tree in (variables, single.variables))
    np.testing.assert_allclose(found, expected, atol=1e-4, err_msg=path)


def _assert_sharded(shards, parts):
  """The large kernel is divided wherever the state holds it: frozen, trained, averaged, in Adam's two moments."""
  large = {path: shape for path, shape in shards.items() if path.endswith('base/kernel')}
  kinds = [kind for kind in ('frozen', 'trainable', 'ema', 'mu', 'nu') if any(kind in path for path in large)]
  assert len(kinds) == len(large) == 5, large
  assert set(map(tuple, large.values())) == {(tiny_task.FEATURES, WIDTH // parts)}, large
  assert shards['trainable/head/bias'] == [1]


def test_eight_devices_with_fsdp(single, tmp_path, monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=8')
  code, output = test_resume.launch(tmp_path, '--override', json.dumps(SETTINGS | {'mesh.fsdp': 4}))
  assert code == 0, output
  result = json.loads((tmp_path / 'result_0.json').read_text())
  _assert_sharded(result['shards'], 4)
  variables, _ = checkpoint.restore_variables(tmp_path)  # saved on eight devices, read on one
  _assert_same_run(result['history'], variables, single)


def test_two_processes_preempted_and_resumed(single, tmp_path):
  """A scheduler stops one of the two hosts: both save and stop; both go on, then one goes on alone."""
  slow = ['--slow', 0.2, '--term_process', 1]
  codes, output = _two_processes(tmp_path, *slow, '--term_step', 1)
  assert codes == [PREEMPTED, PREEMPTED], output
  first = _newest(tmp_path)
  codes, output = _two_processes(tmp_path, *slow, '--term_step', first + 1)
  assert codes == [PREEMPTED, PREEMPTED] and f'Resuming from step {first} ' in output, output
  assert first < _newest(tmp_path) < 13
  result = _train(tmp_path)
  _assert_same_run(result.history, result.variables, single)


def _newest(workdir):
  return max(int(path.name) for path in (workdir / 'checkpoints' / 'last').iterdir())


def _two_processes(workdir, *options):
  """(exit codes, what they wrote) of two processes that train together."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  options = ['--override', json.dumps(SETTINGS | {'mesh.fsdp': 2}), '--processes', 2, '--port', port, *options]
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    runs = list(pool.map(lambda process: test_resume.launch(workdir, *options, '--process', process), range(2)))
  return [code for code, _ in runs], '\n'.join(output for _, output in runs)
