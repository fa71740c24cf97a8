"""A run killed again and again ends with the same bits as one that nobody touched."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
SIGKILLED = -9


def launch(workdir, *options):
  """Trains the tiny task in a process of its own; returns (exit code, output)."""
  command = [sys.executable, str(pathlib.Path(__file__).with_name('tiny_task.py')), str(workdir), *map(str, options)]
  environment = {**os.environ, 'PYTHONPATH': str(REPOSITORY)}
  done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
  return done.returncode, done.stdout + done.stderr


def batches(workdir):
  """{step: ids of its batch}; a step that ran in several lives must have drawn the same batch in each."""
  drawn = {}
  for line in (workdir / 'batches_0.txt').read_text().splitlines():
    step, ids = line.split(' ', 1)
    assert drawn.setdefault(int(step), ids) == ids, f'step {step} drew {ids}, and {drawn[int(step)]} in another life'
  return drawn


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """An untouched run, and one with six lives: (folder, folder, [(exit code, output) of every life])."""
  quiet, troubled = tmp_path_factory.mktemp('quiet'), tmp_path_factory.mktemp('troubled')

  def options(**changes):
    return ['--override', json.dumps({'monitor': 'train/rmse/value', 'width': 1024, **changes})]

  code, output = launch(quiet, *options())
  assert code == 0, output
  lives = [
    [*options(), '--kill_step', 1],  # before there is any checkpoint
    [*options(), '--kill_micro', 14],  # between the micro-batches of step 7, the second of an epoch of 5 batches
    [*options(), '--kill_save', 8],  # while the checkpoint of step 8 is being written
    [*options(), '--full_step', 7],  # the disk is full when step 8 is to be saved
    [*options(workers=1), '--term_step', 9],  # preemption, at a step that has no checkpoint of its own
    options(),
  ]
  return quiet, troubled, [launch(troubled, *life) for life in lives]


def test_every_life_ends_as_it_should(runs):
  lives = runs[2]
  assert [code for code, _ in lives] == [SIGKILLED, SIGKILLED, SIGKILLED, 2, 75, 0], lives
  assert 'Resuming' not in lives[1][1] and 'Resuming' in lives[2][1]
  assert 'Ignoring the unfinished checkpoint' in lives[3][1] and 'Resuming from step 6' in lives[3][1]
  assert 'A checkpoint could not be written' in lives[3][1]
  assert 'Resuming from step 6' in lives[4][1] and 'Resuming from step 9' in lives[5][1]


def test_weights_optimizer_and_average_are_bit_equal(runs):
  quiet, troubled = (np.load(folder / 'result_0.npz') for folder in runs[:2])
  assert set(quiet) == set(troubled) and any('opt_state' in name for name in quiet)
  for name in quiet:
    np.testing.assert_array_equal(quiet[name], troubled[name], err_msg=name)


def test_batches_and_history_are_equal(runs):
  quiet, troubled = (json.loads((folder / 'result_0.json').read_text()) for folder in runs[:2])
  assert batches(runs[0]) == batches(runs[1]) and len(batches(runs[0])) == 10
  assert quiet == troubled
  assert [row['step'] for row in quiet['history'] if row['kind'] == 'train'] == [3, 6, 9, 10]
  assert [row['step'] for row in quiet['history'] if row['kind'] == 'eval'] == [4, 8, 10]


def test_the_interrupted_step_was_saved_again(runs):
  kept = [sorted(int(path.name) for path in (folder / 'checkpoints' / 'last').iterdir()) for folder in runs[:2]]
  assert kept == [[8, 10], [9, 10]]
