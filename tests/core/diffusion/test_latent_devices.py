"""Latent diffusion with its batch over four devices is that of one, and each device holds its own rows."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import sharded_latents

HERE = pathlib.Path(__file__).resolve().parent


def test_photos_and_gradients_over_four_devices(tmp_path):
  paths = os.pathsep.join((str(HERE.parents[2]), str(HERE)))
  environment = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=4', 'PYTHONPATH': paths}
  words = [sys.executable, HERE / 'sharded_latents.py', tmp_path / 'out.npz']
  done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr[-2000:]
  alone = sharded_latents.run()
  with np.load(tmp_path / 'out.npz') as found:
    np.testing.assert_allclose(found['photos'], alone['photos'], atol=2e-4)
    np.testing.assert_allclose(found['slope'], alone['slope'], atol=1e-5 * np.abs(alone['slope']).max())
    assert found['rows'].tolist() == [1, 1], 'a device holds one row of four'
  assert alone['rows'].tolist() == [4, 4] and alone['photos'].std() > 0.01
