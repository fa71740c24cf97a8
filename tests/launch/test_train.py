"""One command trains, judges and reports; again, it goes on or leaves finished work alone; mistakes end in one line."""

import csv
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest
from launch_worlds import CONFIG, PATHS

from core import config as config_lib
from core.train import loop
from launch import command, train

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def launch(folder, *options, preset='one'):
  return train.main([f'--config={CONFIG}:{preset}', f'--workdir={folder}', f'--config.data.records={folder}', *options])


def results(folder):
  return json.loads((folder / 'results.json').read_text())


def rows(path):
  with path.open(newline='') as file:
    return list(csv.DictReader(file))


def test_every_fold_leaves_its_results(experiment):
  for name in ('width_3', 'width_5'):
    fold = experiment / name
    found = results(fold)
    assert found['finished'] and found['fold'] == name and found['steps'] == 10
    assert found['evaluations']['test/rmse']['value'] > 0 and found['evaluations']['test/rmse']['undefined'] is None
    assert found['metadata']['test/rmse'] == {'threshold': found['evaluations']['test/rmse']['value']}
    assert [row['step'] for row in rows(fold / 'metrics.csv') if row['kind'] == 'train'] == ['3', '6', '9', '10']
    assert list((fold / 'tensorboard').iterdir())
    page = (fold / 'report.html').read_text()
    assert f'fake_system: {name}' in page and 'Bias (1,)' in page and 'launch.train' in page
  assert results(experiment / 'width_3')['evaluations'] != results(experiment / 'width_5')['evaluations']


def test_the_chosen_checkpoint_is_judged_and_not_the_last(experiment):
  """The evaluation of the training split must be that of the checkpoint that the monitor chose."""
  fold = experiment / 'width_3'
  seen = {
    int(row['step']): float(row['train/rmse/value']) for row in rows(fold / 'metrics.csv') if row['kind'] == 'eval'
  }
  found = results(fold)
  assert found['chosen step'] == min(seen, key=seen.get)
  assert found['evaluations']['train/rmse']['value'] == pytest.approx(min(seen.values()))


def test_the_parent_folder_has_the_mean(experiment):
  found = results(experiment)
  values = {name: each['test/rmse/value'] for name, each in found['folds'].items()}
  assert list(values) == ['width_3', 'width_5']
  assert found['mean']['test/rmse/value'] == pytest.approx(sum(values.values()) / 2)
  assert 'href="width_3/report.html"' in (experiment / 'report.html').read_text()


def test_finished_folds_are_left_alone(experiment, monkeypatch, capsys):
  monkeypatch.setattr(loop, 'train', None)
  made = (experiment.parent / 'made.txt').read_text()
  config = config_lib.load(CONFIG, {'data.records': str(experiment.parent)})
  folds = train.run(config, experiment)
  assert [(fold.result, fold.scalars['test/rmse/value']) for fold in folds.values()] == [
    (None, value['test/rmse/value']) for value in results(experiment)['folds'].values()
  ]
  assert 'width_3: finished before' in capsys.readouterr().out
  assert (experiment.parent / 'made.txt').read_text() == made, 'data were made again for nothing'


def test_a_run_of_another_config_is_not_passed_off_as_this_one(experiment, capsys):
  common = [f'--config={CONFIG}', f'--workdir={experiment}', f'--config.data.records={experiment.parent}']
  assert train.main([*common, '--config.optim.learning_rate=0.5']) == 2
  message = capsys.readouterr().err
  assert 'optim.learning_rate (0.05 there, 0.5 here)' in message and message.count('\n') == 1
  assert train.main([*common, '--config.train.log_every=5']) == 0, 'how a run is logged does not make it another'


def test_a_preempted_run_goes_on_and_ends_like_an_untouched_one(tmp_path, monkeypatch, capsys):
  assert launch(tmp_path / 'quiet') == 0

  def interrupted(*args, **kwargs):
    def hook(step, *_):
      if step == 7:
        os.kill(os.getpid(), signal.SIGTERM)

    return real(*args, **kwargs, hooks=[hook])

  real = loop.train
  monkeypatch.setattr(loop, 'train', interrupted)
  assert launch(tmp_path / 'troubled') == loop.Preempted.EXIT_CODE == 75
  assert 'the same command goes on' in capsys.readouterr().err
  assert not (tmp_path / 'troubled' / 'results.json').exists()
  monkeypatch.setattr(loop, 'train', real)
  assert launch(tmp_path / 'troubled') == 0
  captured = capsys.readouterr()
  assert 'Resuming from step 7' in captured.out
  assert 'step 10/10, loss' in captured.err
  both = [tmp_path / name for name in ('quiet', 'troubled')]
  assert results(both[0])['evaluations'] == results(both[1])['evaluations']
  assert rows(both[0] / 'metrics.csv') == rows(both[1] / 'metrics.csv')


def test_it_returns_what_training_left_and_lists_unread_keys(tmp_path, capsys):
  config = config_lib.load(f'{CONFIG}:one', {'data.records': str(tmp_path), 'steps': 3})
  fold = train.run(config, tmp_path / 'run')['']
  assert isinstance(fold.result, loop.TrainResult) and set(fold.result.variables) == {'params', 'counts'}
  assert fold.result.evaluations['test/rmse'].metadata['threshold'] == fold.scalars['test/rmse/value']
  printed = capsys.readouterr().out
  assert 'Config keys that this run never read: never_read.' in printed
  assert 'test/rmse' in printed and 'Records: rows 42, clean 1.' in printed
  assert '<tr class=unread><td><code>never_read</code>' in (tmp_path / 'run' / 'report.html').read_text()


@pytest.mark.parametrize(
  ('words', 'expected'),
  [
    (['--config=CONFIG', '--workdir=W', '--config.optim.learing_rate=1'], ["Did you mean 'optim.learning_rate'?"]),
    (['--config=CONFIG', '--workdir=W', '--config.steps=many'], ["'steps' is 'many'", 'an integer, such as 10']),
    (['--config=CONFIG:two', '--workdir=W'], ["presets 'made' and 'one', not 'two'"]),
    (['--config=configs/fas/fas_agu.py', '--workdir=W'], ["Did you mean 'configs/fas/fas_aug.py'?"]),
    (['--config=CONFIG', '--workdir=W', '--config.system=fas.fas_agu'], ['fas.fas_agu', "Did you mean 'fas.fas_aug'?"]),
    (['--config=CONFIG', '--workdir=W', '--config.system=nothing'], ['there are', 'fas.fas_aug']),
    (['--config=CONFIG'], ['--workdir is missing']),
    (['--workdir=W'], ['--config is missing']),
    (['--config=CONFIG', '--workdri=W'], ["Did you mean: workdir"]),
    (['--config=CONFIG', '--workdir=W', 'stray'], ["'stray' belongs to no flag"]),
    (['--config=CONFIG', '--workdir=W', '--num_processes=2'], ['come together', 'coordinator']),
    (['--config=CONFIG:one', '--workdir=W', "--config.eval.final=(('rsme','test'),)"], ["Did you mean 'rmse'?"]),
    (['--config=CONFIG:one', '--workdir=W', '--config.mesh.data=3'], ['3', 'devices']),
  ],
)  # fmt: skip
def test_mistakes_end_in_one_line(words, expected, tmp_path, capsys):
  replaced = [word.replace('CONFIG', CONFIG).replace('=W', f'={tmp_path / "run"}') for word in words]
  assert train.main([*replaced, *([f'--config.data.records={tmp_path}'] if '--config=CONFIG' in words[0] else [])]) == 2
  message = capsys.readouterr().err
  assert message.startswith('launch.train: ') and message.count('\n') == 1
  assert all(word in message for word in expected), message
  assert not (tmp_path / 'run' / 'checkpoints' / 'last').exists()


def test_help_has_an_example_and_every_flag(capsys):
  assert train.main(['--help']) == 0
  shown = capsys.readouterr().out
  assert 'python -m launch.train --config=configs/fas/fas_aug.py --workdir=' in shown
  assert all(f'--{name}' in shown for name in ('workdir', 'distributed', 'coordinator', 'config', 'process_id'))


def test_overrides_may_be_written_in_all_ways_of_config_flags():
  words = ['--config.a.b=1', '--x', '--config.c', '-2', '--noconfig.d', '--config.e', '--y=3', '-config.f=g=h', 'z']
  assert command._split(words) == (['--x', '--y=3', 'z'], ['a.b=1', 'c=-2', 'd=false', 'e=true', 'f=g=h'])


def test_two_processes_share_a_run(tmp_path):
  """As a cluster starts it: the same command twice, as modules, over gloo."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  common = [sys.executable, '-m', 'launch.train', f'--config={CONFIG}:one', f'--workdir={tmp_path / "run"}',
            f'--config.data.records={tmp_path}', '--config.steps=3', f'--coordinator=localhost:{port}',
            '--num_processes=2']  # fmt: skip
  environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, (REPOSITORY, *PATHS)))}
  started = [
    subprocess.Popen([*common, f'--process_id={i}'], cwd=REPOSITORY, env=environment, text=True,
                     stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    for i in range(2)
  ]  # fmt: skip
  outputs = [process.communicate(timeout=200)[0] for process in started]
  assert [process.returncode for process in started] == [0, 0], outputs
  assert 'Report:' in outputs[0] and 'Report:' not in outputs[1]
  assert results(tmp_path / 'run')['platform']['processes'] == 2
