"""launch.plan: a table per stage."""

from launch_worlds import CONFIG

from core import config as config_lib
from launch import plan


def test_it_prints_every_stage(tmp_path, capsys):
  arguments = [f'--config={CONFIG}:one', '--devices=1,3', f'--config.data.records={tmp_path}']
  arguments.append('--config.second_stage=true')
  assert plan.main(arguments) == 0
  shown = capsys.readouterr().out
  assert shown.count('\nStage ') == 3 and 'trainable' in shown and 'MiB per device' in shown
  assert '1 x 3 x 1' in shown


def test_the_mesh_of_the_config_and_what_it_does_not_divide(tmp_path, capsys):
  config = config_lib.load(f'{CONFIG}:one', {'mesh.fsdp': 2, 'data.records': str(tmp_path)})
  plans = plan.run(config, [2, 3], 'config')
  assert [account.sizes for accounts in plans.values() for account in accounts] == [(1, 2, 1)]
  assert '3 devices: mesh data=-1, fsdp=2' in capsys.readouterr().out


def test_errors_of_the_command_line(capsys):
  assert plan.main([f'--config={CONFIG}', '--devices=1,many']) == 2
  assert '--devices=1,many: expected numbers of devices' in capsys.readouterr().err


def test_seven_billion_parameters_on_a_laptop(capsys):
  """The plan of the paper's own language model needs neither its data nor its weights."""
  plans = plan.run(config_lib.load('configs/multimodal/trrg.py:mimic_cxr'), [1, 8])
  report = plans['report']
  assert report[0].parts['weights'] > 13e9 and report[1].parts['weights'] < 3e9
  assert report[0].parts['optimiser'] < 2e9  # the base is frozen
  shown = capsys.readouterr().out
  assert '6,738' in shown and 'GiB per device' in shown
