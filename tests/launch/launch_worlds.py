"""Where the fake system of the launcher tests lies."""

import pathlib

HERE = pathlib.Path(__file__).resolve().parent
CONFIG = str(HERE / 'fake_config.py')
PATHS = (str(HERE), str(HERE.parent / 'core' / 'train'))
"""What Python must look through for `fake_system.task` and the `tiny_task` that it is made of."""
