"""The fake system's place on the path, and one trained experiment for all tests that only read it."""

import sys

import pytest
from launch_worlds import CONFIG, PATHS


@pytest.fixture(autouse=True, scope='session')
def fake_system():
  """Makes `fake_system.task` and `tiny_task` importable."""
  added = [path for path in PATHS if path not in sys.path]
  sys.path.extend(added)
  yield
  for path in added:
    sys.path.remove(path)


@pytest.fixture(scope='session')
def experiment(fake_system, tmp_path_factory):
  """Folder of a trained experiment of two folds, width_3 and width_5."""
  from launch import train

  folder = tmp_path_factory.mktemp('experiment')
  assert train.main([f'--config={CONFIG}', f'--workdir={folder / "run"}', f'--config.data.records={folder}']) == 0
  return folder / 'run'
