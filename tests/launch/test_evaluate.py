"""A trained run is judged again from its folder alone."""

import json
import shutil

import pytest

from launch import evaluate


def stored(path):
  return json.loads(path.read_text())


def test_a_fold_gives_the_numbers_that_training_ended_with(experiment, capsys):
  assert evaluate.main([f'--workdir={experiment / "width_3"}']) == 0
  found = stored(experiment / 'width_3' / 'evaluation_test.json')
  trained = stored(experiment / 'width_3' / 'results.json')
  assert found['folds']['']['test/rmse']['scalars'] == trained['evaluations']['test/rmse']
  assert found['folds']['']['test/rmse']['metadata']['step'] == trained['chosen step']
  assert 'test/rmse' in capsys.readouterr().out


def test_the_parent_folder_stands_for_all_folds_and_their_mean(experiment, tmp_path, capsys):
  assert evaluate.main([f'--workdir={experiment}', '--split=train', f'--output={tmp_path / "e.json"}']) == 0
  found = stored(tmp_path / 'e.json')
  values = [fold['train/rmse']['scalars']['value'] for fold in found['folds'].values()]
  assert list(found['folds']) == ['width_3', 'width_5'] and values[0] != values[1]
  assert found['mean']['train/rmse/value'] == pytest.approx(sum(values) / 2)
  printed = capsys.readouterr().out
  assert 'all folds' in printed and 'mean' in printed


def test_what_an_evaluator_writes_in_a_benchmarks_format_lies_beside(experiment, tmp_path, capsys):
  values = {}
  for name in ('width_3', 'width_5'):
    trained = stored(experiment / name / 'results.json')['evaluations']['test/rmse']['value']
    values[name] = stored(experiment / name / 'submission_test.json')['value']
    assert values[name] == trained
  assert evaluate.main([f'--workdir={experiment}', f'--output={tmp_path / "e.json"}']) == 0
  for name, value in values.items():
    assert stored(tmp_path / name / 'submission_test.json') == {'value': value}
    assert str(tmp_path / name / 'submission_test.json') in capsys.readouterr().out or name == 'width_5'


def test_evaluators_checkpoints_and_changes_are_chosen(experiment):
  fold = experiment / 'width_3'
  usual = evaluate.run(fold, evaluators=['rmse', 'double'])['']
  assert usual['test/double'].scalars['twice'] == pytest.approx(2 * usual['test/rmse'].scalars['value'])
  changed = evaluate.run(fold, changes=['eval.scale=10'])['']
  assert changed['test/rmse'].scalars['value'] == pytest.approx(10 * usual['test/rmse'].scalars['value'])
  last = evaluate.run(fold, which='last')['']['test/rmse']
  assert last.metadata['step'] == 10 and evaluate.run(fold, which='8')['']['test/rmse'].metadata['step'] == 8


@pytest.mark.parametrize(
  ('words', 'expected'),
  [
    (['--workdir=RUN', '--split=tset'], "there is no split 'tset'"),
    (['--workdir=RUN', '--evaluator=rsme'], "Did you mean 'rmse'?"),
    (['--workdir=RUN', '--which=7777'], "There is no checkpoint '7777'"),
    (['--workdir=RUN', '--set=eval.scael=2'], "Did you mean 'eval.scale'?"),
    (['--workdir=RUN', '--config.eval.scale=2'], 'change it by --set'),
    (['--workdir=RUN', '--set=data.records=/nowhere', '--set=data.kind=fixed'], 'no records: python -m launch.prepare'),
    (['--workdir=RUN/absent'], 'there is no folder'),
    (['--workdir=RUN/tensorboard'], 'no checkpoint under'),
    ([], '--workdir is missing'),
  ],
)
def test_mistakes_end_in_one_line(words, expected, experiment, capsys):
  assert evaluate.main([word.replace('RUN', str(experiment / 'width_3')) for word in words]) == 2
  message = capsys.readouterr().err
  assert expected in message and message.count('\n') == 1


def test_data_that_were_thrown_away_are_made_again(experiment, tmp_path):
  records = experiment.parent / 'made.txt'
  shutil.move(records, tmp_path / 'made.txt')
  assert evaluate.main([f'--workdir={experiment / "width_5"}']) == 0
  assert records.exists()


def test_a_run_that_is_not_finished_can_be_judged(tmp_path, experiment):
  """A copy of a run without its results: only the checkpoint counts."""
  copy = tmp_path / 'copy'
  shutil.copytree(experiment / 'width_3' / 'checkpoints', copy / 'checkpoints')
  assert evaluate.main([f'--workdir={copy}']) == 0
