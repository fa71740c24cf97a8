"""The command `python -m launch.claims`: names of systems, files, exit codes."""

import json
import subprocess
import sys
import types

import pytest

from core.claims import Check, Claim, Experiment, NonClaim
from core.config import CHECKOUT
from core.errors import UserError
from launch import claims as launcher

KNOWN = ['fas.fas_aug', 'fas.identity_fas', 'video.arr']


@pytest.mark.parametrize('name', ['fas_aug', 'fas.fas_aug'])
def test_a_system_is_named_by_its_folder(name):
  assert launcher.resolve(name, KNOWN) == 'fas.fas_aug'


def test_an_unknown_system_is_answered_with_the_known_ones():
  with pytest.raises(
    UserError, match=r"'fas_agu'.*fas\.fas_aug, fas\.identity_fas, video\.arr.*Did you mean 'fas_aug'"
  ):
    launcher.resolve('fas_agu', KNOWN)
  with pytest.raises(UserError, match=r'means video\.arr and fas\.arr'):
    launcher.resolve('arr', [*KNOWN, 'fas.arr'])


def test_systems_are_found_by_their_files(tmp_path):
  for path in ('fas/fas_aug/claims.py', 'video/arr/claims.py', 'core/train/claims.py', 'fas/other/task.py'):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).touch()
  assert launcher.systems(tmp_path) == ['fas.fas_aug', 'video.arr']
  assert 'fas.fas_aug' in launcher.systems()


def test_it_writes_text_numbers_and_picture(tmp_path, capsys):
  variants = {'a': Experiment(lambda seed, workdir: {'auc': 0.9}), 'b': Experiment(lambda seed, workdir: {'auc': 0.5})}
  module = types.SimpleNamespace(
    CLAIMS=[Claim('T1', 'a is better', 'a test', variants, [Check('a', 'auc', '>=', 'b')])],
    NON_CLAIMS=[NonClaim('b is better', 'a test')],
  )
  text = launcher.judge_system(module, 'toy', tmp_path, only=[], seeds=2)
  assert '| T1 | **supported** |' in text and 'Not claimed: "b is better"' in text
  assert capsys.readouterr().out.count('seed') == 4
  assert {path.name for path in tmp_path.iterdir()} == {'cells', 'claims.md', 'claims.json', 'claims.png'}
  assert len(json.loads((tmp_path / 'claims.json').read_text())['claims'][0]['cells']['a']) == 2


def test_mistakes_end_with_one_line_and_the_exit_code_of_a_user_error(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  for arguments, words in (
    (['--system=fas_agu'], "Did you mean 'fas_aug'"),
    (['--system=fas_aug', '--only=C9'], "no claim 'C9'"),
    (['--system=fas_aug', '--seeds=0'], '0 seeds'),
    (['--system=fas_aug', 'C1'], "'C1' belongs to no flag"),
    ([], '--system is missing'),
  ):
    assert launcher.main(arguments) == UserError.EXIT_CODE
    assert words in capsys.readouterr().err
  assert not (tmp_path / 'runs').exists()


def test_the_command_runs_as_a_module():
  ended = subprocess.run(
    [sys.executable, '-m', 'launch.claims', '--system=nothing'], cwd=CHECKOUT, capture_output=True, text=True
  )
  assert ended.returncode == UserError.EXIT_CODE
  assert 'fas.fas_aug' in ended.stderr and 'Traceback' not in ended.stderr
