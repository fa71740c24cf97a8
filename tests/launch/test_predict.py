"""A user's files, good and bad, each get their answer."""

import csv
import importlib
import io
import json

import pytest
from launch_worlds import CONFIG

from launch import predict


@pytest.fixture
def files(tmp_path):
  folder = tmp_path / 'files'
  (folder / 'deep' / 'er').mkdir(parents=True)
  (folder / 'a.txt').write_text('1')
  (folder / 'broken.txt').write_text('one')
  (folder / 'deep' / 'er' / 'b.NUM').write_text('2.5')
  (folder / '._a.txt').write_text('9')
  (folder / 'notes.md').write_text('9')
  (folder / '.hidden').mkdir()
  (folder / '.hidden' / 'c.txt').write_text('9')
  return folder


def launch(experiment, output, *words):
  return predict.main([f'--workdir={experiment}', f'--output={output}', *map(str, words)])


def test_a_folder_is_searched_through_and_a_broken_file_costs_only_itself(experiment, files, tmp_path, capsys):
  out = tmp_path / 'out'
  assert launch(experiment / 'width_3', out, f'--input={files}') == 0
  content = json.loads((out / 'predictions.json').read_text())
  assert (content['served'], content['failed']) == (2, 1) and content['step'] > 0
  good = {row['file']: row['sum'] for row in content['rows'] if 'error' not in row}
  assert set(good) == {str(files / 'a.txt'), str(files / 'deep' / 'er' / 'b.NUM')}
  assert good[str(files / 'deep' / 'er' / 'b.NUM')] - good[str(files / 'a.txt')] == pytest.approx(1.5)
  printed = capsys.readouterr().out
  assert f'NOT SERVED {files / "broken.txt"}' in printed and 'holds no number' in printed
  assert str(out / 'sheet.txt') in printed and (out / 'sheet.txt').read_text() == '3 rows, 1 failed'


def test_the_csv_has_the_same_rows(experiment, files, tmp_path):
  launch(experiment / 'width_3', tmp_path / 'out', f'--input={files}')
  content = json.loads((tmp_path / 'out' / 'predictions.json').read_text())
  with (tmp_path / 'out' / 'predictions.csv').open(newline='') as file:
    table = list(csv.DictReader(file))
  assert list(table[0]) == ['file', 'sum', 'box', 'error']
  for row, cells in zip(content['rows'], table, strict=True):
    assert cells['file'] == row['file'] and cells['error'] == row.get('error', '')
    if 'sum' in row:
      assert float(cells['sum']) == row['sum'] and json.loads(cells['box']) == [1, 2]


def test_files_are_served_without_the_data_of_the_training(experiment, files, tmp_path):
  words = [f'--input={files / "a.txt"}', f'--set=data.records={tmp_path / "records"}']
  assert launch(experiment / 'width_3', tmp_path / 'out', *words) == 0
  assert not (tmp_path / 'records').exists()


def test_inputs_in_all_ways_each_file_once(experiment, files, tmp_path):
  out = tmp_path / 'out'
  words = [
    '--input',
    files / 'a.txt',
    files / 'deep',
    f'--input={files / "a.txt"}',
    files / 'gone.txt',
    files / 'notes.md',
  ]
  assert launch(experiment / 'width_3', out, *words) == 0
  rows = json.loads((out / 'predictions.json').read_text())['rows']
  assert sorted((row['file'], row.get('error', '')) for row in rows) == [
    (str(files / 'a.txt'), ''),
    (str(files / 'deep' / 'er' / 'b.NUM'), ''),
    (str(files / 'gone.txt'), 'there is no such file or folder'),
    (str(files / 'notes.md'), "files that end in '.md' are not served; .txt, .num are"),
  ]


def test_an_empty_folder_is_said_and_the_others_are_served(experiment, files, tmp_path, capsys):
  (tmp_path / 'empty').mkdir()
  assert launch(experiment / 'width_3', tmp_path / 'out', '--input', tmp_path / 'empty', files / 'a.txt') == 0
  assert 'the folder holds no file that ends in .txt, .num' in capsys.readouterr().out


def test_nothing_served_is_an_error_with_its_reasons(experiment, files, tmp_path, capsys):
  (tmp_path / 'empty').mkdir()
  assert launch(experiment / 'width_3', tmp_path / 'out', '--input', tmp_path / 'empty', files / 'broken.txt') == 2
  captured = capsys.readouterr()
  assert captured.err == 'launch.predict: nothing could be served; the reasons are above.\n'
  assert captured.out.count('NOT SERVED') == 2
  assert json.loads((tmp_path / 'out' / 'predictions.json').read_text())['failed'] == 2


def test_of_several_folds_one_is_taken_and_named(experiment, files, tmp_path, capsys):
  assert launch(experiment, tmp_path / 'first', f'--input={files / "a.txt"}') == 0
  assert "Using fold 'width_3' of width_3, width_5; --fold chooses another." in capsys.readouterr().out
  assert launch(experiment, tmp_path / 'other', f'--input={files / "a.txt"}', '--fold=width_5') == 0
  assert 'Using fold' not in capsys.readouterr().out
  runs = [json.loads((tmp_path / name / 'predictions.json').read_text())['run'] for name in ('first', 'other')]
  assert runs == [str(experiment / 'width_3'), str(experiment / 'width_5')]


@pytest.mark.parametrize(
  ('words', 'expected'),
  [
    (['--fold=width_4', '--input=x'], "there is no fold 'width_4'"),
    ([], '--input is missing'),
    (['--input=x', '--set=widht=3'], "Did you mean 'width'?"),
    (['--input=x', '--which=first'], "There is no checkpoint 'first'"),
  ],
)
def test_mistakes_end_in_one_line(words, expected, experiment, tmp_path, capsys):
  assert launch(experiment, tmp_path / 'out', *words) == 2
  message = capsys.readouterr().err
  assert expected in message and message.count('\n') == 1


def test_a_system_says_which_files_are_one_case(experiment, files, tmp_path, monkeypatch):
  asked = []
  adder = importlib.import_module('fake_system.task').Adder

  def by_folder(self, found, folder=None):
    asked.append(folder)
    return [tuple(found)]

  def total(self, *paths):
    return [{'sum': sum(float(path.read_text()) for path in paths), 'views': len(paths)}]

  monkeypatch.setattr(adder, 'cases', by_folder)
  monkeypatch.setattr(adder, '__call__', total)
  good, deep = files / 'a.txt', files / 'deep'
  assert launch(experiment / 'width_3', tmp_path / 'out', f'--input={good}', f'--input={deep}') == 0
  rows = json.loads((tmp_path / 'out' / 'predictions.json').read_text())['rows']
  assert asked == [None, deep]
  assert [(row['file'], row['sum'], row['views']) for row in rows] == [
    (str(good), 1.0, 1),
    (str(deep / 'er' / 'b.NUM'), 2.5, 1),
  ]
  assert launch(experiment / 'width_3', tmp_path / 'two', f'--input={good}', str(files / 'deep' / 'er' / 'b.NUM')) == 0
  rows = json.loads((tmp_path / 'two' / 'predictions.json').read_text())['rows']
  assert [(row['sum'], row['views']) for row in rows] == [(3.5, 2)]


UNTRAINED = (f'--config={CONFIG}:one', '--config.data.kind=none')


def test_a_system_that_needs_no_run_is_applied_from_its_config(files, tmp_path, capsys):
  words = [*UNTRAINED, '--config.seed=4', f'--input={files / "a.txt"}', f'--output={tmp_path / "out"}']
  assert predict.main(words) == 0
  content = json.loads((tmp_path / 'out' / 'predictions.json').read_text())
  assert content['system'] == 'fake_system' and 'run' not in content
  assert (content['config']['seed'], content['config']['data']['kind']) == (4, 'none')
  assert content['rows'][0]['sum'] == pytest.approx(1 + 5)  # a bias of 0 from `init`, and the 5 of `pretrained`
  assert 'never read' not in capsys.readouterr().out


@pytest.mark.parametrize(
  ('words', 'expected'),
  [
    ([], 'expected either --workdir=runs/NAME (a trained run) or --config=FILE'),
    ([*UNTRAINED, '--workdir=RUN'], 'exclude each other'),
    (['--workdir=RUN', '--config.seed=4'], "--config.seed=4: a run's own config is changed by --set=seed=4"),
    ([*UNTRAINED, '--set=seed=4'], 'change the config by --config.KEY=VALUE'),
    ([*UNTRAINED, '--which=last'], '--which belongs to --workdir'),
    ([*UNTRAINED, '--fold=width_3'], '--fold belongs to --workdir'),
    ([*UNTRAINED, '--config.sead=4'], "Did you mean 'seed'?"),
    ([f'--config={CONFIG}:one'], 'fake_system cannot be applied from its config alone'),
  ],
)
def test_a_run_and_a_config_exclude_each_other(words, expected, files, tmp_path, capsys):
  assert predict.main([*words, f'--input={files / "a.txt"}', f'--output={tmp_path / "out"}']) == 2
  message = capsys.readouterr().err
  assert expected in message and message.count('\n') == 1
  assert not (tmp_path / 'out').exists()


def test_results_of_a_former_call_are_no_input(files, tmp_path):
  (files / 'out').mkdir()
  (files / 'out' / 'result.txt').write_text('7')
  assert predict.main([*UNTRAINED, f'--input={files}', f'--output={files / "out"}']) == 0
  rows = json.loads((files / 'out' / 'predictions.json').read_text())['rows']
  assert str(files / 'a.txt') in [row['file'] for row in rows]
  assert str(files / 'out' / 'result.txt') not in [row['file'] for row in rows]
  named = [*UNTRAINED, f'--input={files / "out"}', f'--output={tmp_path / "other"}']
  assert predict.main(named) == 0  # unless the folder itself is named


def test_a_system_is_told_the_output_before_the_first_case_and_how_to_say_how_far_it_is(files, tmp_path, monkeypatch):
  adder, seen = importlib.import_module('fake_system.task').Adder, []
  plain = adder.__call__

  def slow(self, path):
    self.progress(0.5)
    seen.append(path.name)
    return plain(self, path)

  monkeypatch.setattr(adder, 'begin', lambda self, output: seen.append(output.is_dir() and output.name))
  monkeypatch.setattr(adder, '__call__', slow)
  monkeypatch.setattr(predict.Progress, 'inside', lambda self, share: seen.append((self._done, share)))
  assert predict.main([*UNTRAINED, f'--input={files}', f'--output={tmp_path / "out"}']) == 0
  first, second = ['a.txt', (0, 1.0)], ['broken.txt', (1, 1.0)]
  assert seen[:7] == ['out', (0, 0.5), *first, (1, 0.5), *second]


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_a_terminal_has_a_bar_and_a_log_has_lines(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(predict.time, 'monotonic', lambda: now[0])
  log = io.StringIO()
  progress = predict.Progress(4, log)
  for _ in range(2):
    progress.inside(0.5)
    now[0] += 20
    progress.done()
  progress.close()
  assert log.getvalue() == 'case 2 of 4, 50%, ETA 00:40\n'
  terminal = Terminal()
  monkeypatch.setattr(predict.Progress, 'DELAY', 0.0)
  progress = predict.Progress(4, terminal)
  progress.inside(0.5)
  progress.close()
  assert 'case 1 of 4  12% |' in terminal.getvalue() and 'ETA' in terminal.getvalue()
