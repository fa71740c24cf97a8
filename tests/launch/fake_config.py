"""The config of `fake_system`; get_config('one') has a single fold."""

import tiny_task
from ml_collections import ConfigDict


def get_config(preset: str = 'made') -> ConfigDict:
  if preset not in ('made', 'one'):
    raise ValueError(f"there are the presets 'made' and 'one', not '{preset}'.")
  config = tiny_task.config()
  config.system = 'fake_system'
  config.monitor = 'train/rmse/value'
  config.widths = (3, 5) if preset == 'made' else (4,)
  config.never_read = 1
  config.data = ConfigDict({'kind': 'made', 'records': ''})
  config.eval = ConfigDict({'final': (('rmse', 'train'), ('rmse', 'test')), 'scale': 1.0})
  return config
