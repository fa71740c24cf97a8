"""A system small enough to be trained in a test: the tiny regression with folds, a preparation and a predictor."""

from __future__ import annotations

import pathlib

import matplotlib.figure
from tiny_task import TinyTask

from core import config as config_lib
from core.data.records import PrepareReport
from core.errors import UserError
from core.train import report
from core.train.task import Evaluation, Predictor


class Task(TinyTask):
  """Folds differ in `width`."""

  headline = ('test/rmse/value',)

  @classmethod
  def folds(cls, config):
    if len(config.widths) == 1:
      return [('', config_lib.derive(config, {'width': config.widths[0]}))]
    return [(f'width_{width}', config_lib.derive(config, {'width': width})) for width in config.widths]

  @classmethod
  def procedural(cls, config):
    return config.data.kind == 'made'

  @classmethod
  def prepare(cls, config):
    if config.data.kind == 'none':
      return [PrepareReport('nothing', {'train': 0}, [('missing subject', '7', 'no folder')])]
    records = pathlib.Path(config.data.records)
    records.mkdir(parents=True, exist_ok=True)
    with (records / 'made.txt').open('a') as file:
      file.write('made\n')
    problems = [('unreadable video', f'{i}.avi', 'truncated') for i in range(5)] + [('odd name', 'x.mov', '')]
    return [PrepareReport('rows', {'train': 40, 'test': 2}, problems), PrepareReport('clean', {'train': 1})]

  def entries(self):
    return {'by_parity': ('even', 'odd')}

  def evaluators(self):
    rmse = super().evaluators()['rmse']

    def scaled(variables, split):
      if split not in ('train', 'test'):
        raise UserError(f"there is no split '{split}': known are 'train' and 'test'.")
      if not (pathlib.Path(self.config.data.records) / 'made.txt').exists():
        raise UserError('no records: python -m launch.prepare')
      value = rmse(variables, split).scalars['value'] * self.config.eval.scale
      files = {f'submission_{split}.json': {'value': value}}
      return Evaluation({'value': value, 'undefined': float('nan')}, metadata={'threshold': value}, files=files)

    return {
      'rmse': scaled,
      'double': lambda variables, split: Evaluation({'twice': 2 * scaled(variables, split).scalars['value']}),
    }

  @classmethod
  def untrained(cls, config):
    return config.data.kind == 'none'

  def pretrained(self, variables):
    if self.config.data.kind == 'none':
      variables['params']['head']['bias'] = variables['params']['head']['bias'] + 5
    return variables

  def predictor(self, variables, metadata):
    bias = float(variables['params']['head']['bias'][0])
    return Adder(bias, None if self.config.data.kind == 'none' else metadata['threshold'])

  def report(self, evaluations, variables):
    figure = matplotlib.figure.Figure()
    figure.add_subplot().plot([1, 2])
    return [report.Section(f'Bias {variables["params"]["head"]["bias"].shape}', items=[report.Figure(figure)])]


class Adder(Predictor):
  """Reads a number from a text file."""

  suffixes = ('.txt', '.num')

  def __init__(self, bias, threshold):
    self.bias, self.threshold = bias, threshold

  def __call__(self, path):
    try:
      number = float(path.read_text())
    except ValueError:
      raise UserError(f"'{path}' holds no number.") from None
    return [{'file': str(path), 'sum': number + self.bias, 'box': [1, 2]}]

  def finish(self, rows, output):
    failed = [row['file'] for row in rows if 'error' in row]
    (output / 'sheet.txt').write_text(f'{len(rows)} rows, {len(failed)} failed')
    return [output / 'sheet.txt']
