"""The starters for clusters print, and with stand-ins for the cluster's own tools run, what every host is to do."""

import os
import pathlib
import shlex
import stat
import subprocess
import sys

import pytest
import yaml

from core.errors import UserError
from core.train.loop import Preempted

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = REPOSITORY / 'launch'
TRAIN = [
  '--config=configs/fas/fas_aug.py:release',
  '--workdir=/shared/my runs/a',
  "--config.data.protocol=O&C->'M' $(x)",
]
SLURM = LAUNCH / 'slurm' / 'train.sbatch'
TPU = LAUNCH / 'tpu' / 'train.sh'


def call(*command, **environment):
  """Runs a command in the repository with a small environment; returns the finished process."""
  clean = {'PATH': os.environ['PATH'], 'HOME': os.environ.get('HOME', '/'), 'JAX_PLATFORMS': 'cpu', **environment}
  return subprocess.run(list(map(str, command)), cwd=REPOSITORY, env=clean, capture_output=True, text=True, timeout=120)


def printed(*command, **environment):
  """The commands that a dry run prints, each as its words."""
  done = call(*command, **environment)
  assert done.returncode == 0, done.stderr
  return [shlex.split(line) for line in done.stdout.splitlines()]


def stand_in(folder, name, body):
  """A program of the given name that is found before any other."""
  path = folder / name
  path.write_text(f'#!/usr/bin/env bash\n{body}\n')
  path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize('script', [SLURM, TPU], ids=lambda path: path.name)
def test_scripts_parse_and_can_be_executed(script):
  assert call('bash', '-n', script).returncode == 0
  assert os.access(script, os.X_OK)


# Slurm


def test_slurm_runs_one_process_without_a_coordinator():
  assert printed(SLURM, '--dry-run', *TRAIN) == [['srun', '--wait=60', 'python', '-m', 'launch.train', *TRAIN]]


def test_slurm_tells_every_task_the_first_node_and_its_number(tmp_path):
  job = {'SLURM_JOB_ID': '41', 'SLURM_NTASKS': '16', 'SLURMD_NODENAME': 'node7', 'PYTHON': '/opt/py 3/python'}
  (words,) = printed(SLURM, '--dry-run', *TRAIN, **job)
  assert words[:2] == ['srun', '--wait=60']
  # What a task makes of it: the stand-in prints its words, one a line.
  stand_in(tmp_path, 'python', 'printf "%s\\n" "$@"')
  task = [str(tmp_path / 'python') if word == job['PYTHON'] else word for word in words[2:]]
  seen = call(*task, SLURM_PROCID='11').stdout.splitlines()
  expected = [*TRAIN, '--coordinator=node7:20041', '--num_processes=16', '--process_id=11']
  assert seen == ['-m', 'launch.train', *expected]


def test_slurm_options_in_the_file_are_what_preemption_needs():
  options = [line.split(maxsplit=1)[1] for line in SLURM.read_text().splitlines() if line.startswith('#SBATCH')]
  assert {'--ntasks-per-node=1', '--signal=TERM@120', '--requeue', '--open-mode=append'} < set(options)


@pytest.mark.parametrize(
  ('code', 'state', 'requeued'),
  [(Preempted.EXIT_CODE, 'RUNNING', True), (143, 'RUNNING', True), (Preempted.EXIT_CODE, 'COMPLETING', False),
   (2, 'RUNNING', False), (0, 'RUNNING', False)],
)  # fmt: skip
def test_slurm_puts_a_stopped_job_back_but_not_a_cancelled_or_failed_one(tmp_path, code, state, requeued):
  stand_in(tmp_path, 'srun', f'echo "$PWD|$*" > {tmp_path}/ran; exit {code}')
  stand_in(tmp_path, 'squeue', f'echo {state}')
  stand_in(tmp_path, 'scontrol', f'echo "$@" > {tmp_path}/scontrol.log')
  path = f'{tmp_path}:{os.environ["PATH"]}'
  done = call(SLURM, *TRAIN, PATH=path, SLURM_JOB_ID='41', SLURM_SUBMIT_DIR=str(tmp_path))
  assert done.returncode == code
  assert (tmp_path / 'ran').read_text().startswith(f'{tmp_path}|--wait=60 python -m launch.train')
  log = tmp_path / 'scontrol.log'
  assert log.exists() == requeued and (not requeued or log.read_text() == 'requeue 41\n')


# TPU


def remote_words(command):
  """The words of the program that an ssh command runs on every worker, as the remote shell reads them."""
  (remote,) = [word.removeprefix('--command=') for word in command if word.startswith('--command=')]
  return shlex.split(remote)


def test_tpu_runs_the_same_command_on_all_workers():
  where = ['--zone=us-central2-b', '--worker=all', '--project=mine']
  options = ['--tpu=pod', '--zone=us-central2-b', '--project=mine', '--directory=my code']
  (command,) = printed(TPU, *options, '--dry-run', '--', *TRAIN)
  assert command[:6] == ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', 'pod'] and command[6:9] == where
  words = remote_words(command)
  assert words == ['cd', 'my code', '&&', '.venv/bin/python', '-m', 'launch.train', '--distributed', *TRAIN]


def test_tpu_installs_before_it_trains():
  commands = printed(TPU, '--tpu=pod', '--zone=z', '--install', '--dry-run', '--', *TRAIN)
  assert [command[0] for command in commands] == ['git', 'gcloud', 'gcloud', 'gcloud', 'gcloud']
  assert [command[4] for command in commands[1:]] == ['scp', 'ssh', 'ssh', 'ssh']
  assert '.[tpu]' in remote_words(commands[3]) and 'launch.train' in remote_words(commands[4])
  assert len(printed(TPU, '--tpu=pod', '--zone=z', '--install', '--dry-run')) == 4


def test_tpu_runs_what_it_prints(tmp_path):
  stand_in(tmp_path, 'gcloud', f'printf "%s\\n" "$@" > {tmp_path}/ran')
  options = ['--tpu=pod', '--zone=z', '--', *TRAIN]
  done = call(TPU, *options, PATH=f'{tmp_path}:{os.environ["PATH"]}')
  (command,) = printed(TPU, '--dry-run', *options)
  assert done.returncode == 0 and (tmp_path / 'ran').read_text().splitlines() == command[1:]


@pytest.mark.parametrize(
  ('options', 'message'),
  [(['--zone=z'], 'expected --tpu'), (['--tpu=a', '--zone=z'], 'nothing to do'),
   (['--tpu=a', '--zone=z', '--config=c'], "unknown option '--config=c'")],
)  # fmt: skip
def test_tpu_names_what_is_missing(options, message):
  done = call(TPU, '--dry-run', *options)
  assert done.returncode == 2 and message in done.stderr


# Kubernetes


def kubernetes(*options, path=''):
  return call(sys.executable, '-m', 'launch.kubernetes.train', *options, PATH=f'{path}:{os.environ["PATH"]}')


MINIMAL = ['--name=fas-aug', '--image=registry/verax:1', '--claim=runs']


@pytest.fixture(scope='module')
def jobset():
  """The rendered manifest of a run on four hosts."""
  options = [*MINIMAL, '--hosts=4', '--resource=nvidia.com/gpu=8', '--node_selector=zone=a: b', '--dry-run']
  done = kubernetes(*options, '--', *TRAIN)
  assert done.returncode == 0, done.stderr
  return yaml.safe_load(done.stdout)


def test_jobset_is_an_indexed_job_with_names_in_the_network(jobset):
  assert (jobset['apiVersion'], jobset['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
  assert jobset['metadata']['name'] == 'fas-aug'
  assert jobset['spec']['network'] == {'enableDNSHostnames': True, 'subdomain': 'fas-aug'}
  (replicated,) = jobset['spec']['replicatedJobs']
  job = replicated['template']['spec']
  assert (replicated['replicas'], job['completionMode'], job['completions'], job['parallelism']) == (1, 'Indexed', 4, 4)


def test_pods_run_the_given_command_as_processes_of_one_run(jobset):
  pod = jobset['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']
  (container,) = pod['containers']
  assert container['command'] == ['python', '-m', 'launch.train']
  # $$( is how Kubernetes spells a $( that it is to leave alone.
  own = [argument.replace('$$(', '$(') for argument in container['args'][: len(TRAIN)]]
  assert own == TRAIN and '$$(x)' in container['args'][2]
  assert container['args'][len(TRAIN) :] == [
    '--coordinator=fas-aug-train-0-0.fas-aug:29400', '--num_processes=4', '--process_id=$(PROCESS_ID)'
  ]  # fmt: skip
  assert container['env'][0]['name'] == 'PROCESS_ID' and container['ports'] == [{'containerPort': 29400}]
  assert container['resources']['limits'] == {'nvidia.com/gpu': '8'} and pod['nodeSelector'] == {'zone': 'a: b'}
  assert {volume['name'] for volume in pod['volumes']} == {mount['name'] for mount in container['volumeMounts']}
  assert pod['restartPolicy'] == 'Never' and pod['terminationGracePeriodSeconds'] == 120


def test_only_what_a_restart_can_mend_is_restarted(jobset):
  job = jobset['spec']['replicatedJobs'][0]['template']['spec']
  by_code = {
    code: rule['action']
    for rule in job['podFailurePolicy']['rules']
    for code in rule.get('onExitCodes', {}).get('values', [])
  }
  assert by_code == {Preempted.EXIT_CODE: 'Ignore', 143: 'Ignore', UserError.EXIT_CODE: 'FailJob'}
  conditions = [rule['onPodConditions'] for rule in job['podFailurePolicy']['rules'] if 'onPodConditions' in rule]
  assert conditions == [[{'type': 'DisruptionTarget', 'status': 'True'}]] and job['backoffLimit'] == 0
  policy = jobset['spec']['failurePolicy']
  assert policy['maxRestarts'] == 10
  assert policy['rules'] == [{'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}]


def test_one_host_needs_no_coordinator_and_kubectl_gets_the_manifest(tmp_path):
  stand_in(tmp_path, 'kubectl', f'echo "$@" > {tmp_path}/words; cat > {tmp_path}/manifest')
  done = kubernetes(*MINIMAL, '--', *TRAIN, path=tmp_path)
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'words').read_text() == 'apply --filename -\n'
  manifest = yaml.safe_load((tmp_path / 'manifest').read_text())
  pod = manifest['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']
  assert len(pod['containers'][0]['args']) == len(TRAIN) and pod['containers'][0]['resources']['limits'] == {}


@pytest.mark.parametrize(
  ('options', 'message'),
  [([*MINIMAL, '--hosts=0', '--', *TRAIN], 'at least 1'), (['--name=Fas_Aug'], 'lower-case'),
   ([*MINIMAL, '--resource=gpu', '--', *TRAIN], 'NAME=VALUE'), (MINIMAL, 'missing')],
)  # fmt: skip
def test_kubernetes_names_wrong_options(options, message):
  done = kubernetes('--dry-run', *options)
  assert done.returncode == 2 and message in done.stderr
