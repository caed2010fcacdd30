"""launch/: the scripts, run for real against a stand-in for gcloud; and pods of real processes."""

import importlib.metadata
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

from absl import flags as absl_flags
import pytest
import yaml

from wmpoe import cli
from wmpoe.commands import compile as compile_command
from wmpoe.commands import train

_ROOT = pathlib.Path(__file__).parents[1]
_LAUNCH = _ROOT / 'launch'
_SCRIPTS = sorted(_LAUNCH.glob('*.sh'))
_FAKE = pathlib.Path(__file__).parent / 'fake_gcloud'
_SLICE = {'NAME': 'maze', 'PROJECT': 'mine', 'ZONE': 'there', 'ACCELERATOR': 'v5e-16'}
_WHERE = 'maze --project=mine --zone=there'


def _run(script, *arguments, **environment):
  return subprocess.run(
      [_LAUNCH / script, *arguments], capture_output=True, text=True, check=False, timeout=100,
      env={**os.environ, **environment})


def test_shellcheck_finds_nothing():
  beside = pathlib.Path(sys.executable).parent
  found = shutil.which('shellcheck', path=f'{beside}:{os.environ["PATH"]}')
  if found is None:
    pytest.skip('shellcheck comes with the extra: pip install wmpoe[test]')
  done = subprocess.run([found, *_SCRIPTS, _FAKE / 'gcloud'], capture_output=True, text=True,
                        check=False)
  assert done.stdout + done.stderr == ''


@pytest.mark.parametrize('script', _SCRIPTS, ids=lambda script: script.name)
def test_every_script_is_strict_and_explains_itself(script):
  assert '\nset -euo pipefail\n' in script.read_text()
  done = _run(script.name, '--help')
  assert (done.returncode, done.stderr) == (0, '')
  assert done.stdout.startswith('usage: ')
  assert f'launch/{script.name}' in done.stdout
  done = _run(script.name)
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr.startswith('usage: ')


# local_pod.sh

def test_processes_find_their_places_and_output_is_told_apart():
  done = _run('local_pod.sh', '2', '--', 'bash', '-c', (
      'echo "$WMPOE_PROCESS_ID of $WMPOE_NUM_PROCESSES at $WMPOE_COORDINATOR"; '
      'printf "no newline" >&2'))
  assert done.returncode == 0
  (port,) = set(re.findall(r'127.0.0.1:(\d+)', done.stdout))
  assert sorted(done.stdout.splitlines()) == [
      f'[{i}] {i} of 2 at 127.0.0.1:{port}' for i in range(2)]
  assert sorted(done.stderr.splitlines()) == ['[0] no newline', '[1] no newline']


def test_the_first_failure_ends_all_and_gives_the_exit_code():
  begun = time.monotonic()
  done = _run('local_pod.sh', '3', '--', 'bash', '-c', (
      '[[ $WMPOE_PROCESS_ID == 1 ]] && exit 7; [[ $WMPOE_PROCESS_ID == 2 ]] && trap "" TERM; '
      'for i in {1..600}; do sleep 0.1; done'), GRACE='1')
  assert done.returncode == 7
  assert 'local_pod.sh: process 1 ended with exit code 7' in done.stderr
  assert time.monotonic() - begun < 20


def test_sigterm_is_handed_on_and_waited_for():
  pod = subprocess.Popen(
      [_LAUNCH / 'local_pod.sh', '2', '--', 'bash', '-c',
       'trap "echo saved; exit 75" TERM; echo ready; for i in {1..600}; do sleep 0.1; done'],
      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
  ready = {pod.stdout.readline(), pod.stdout.readline()}
  pod.send_signal(signal.SIGTERM)
  rest, _ = pod.communicate(timeout=20)
  assert ready == {'[0] ready\n', '[1] ready\n'}
  assert set(rest.splitlines()) == {'[0] saved', '[1] saved'}
  assert pod.returncode == 75


@pytest.mark.parametrize(('arguments', 'message'), [
    (['two', '--', 'true'], "Expected a number of processes, got 'two'."),
    (['2', 'true'], "Unknown argument 'true'; a command comes after --."),
    (['2', '--'], 'Give a command after --'),
    (['2', '--', 'no-such-command'], "There is no command 'no-such-command'."),
    (['2', '--port=x', '--', 'true'], "Expected a port, got 'x'."),
])
def test_local_pod_names_bad_input(arguments, message):
  done = _run('local_pod.sh', *arguments)
  assert done.returncode == 2
  assert done.stderr.startswith(f'local_pod.sh: {message}')


# What Slurm tells its processes, for jax to detect.
_SLURM = """
import os
host, port = os.environ['WMPOE_COORDINATOR'].split(':')
size, index = os.environ['WMPOE_NUM_PROCESSES'], os.environ['WMPOE_PROCESS_ID']
os.environ |= {
    'SLURM_JOB_ID': '1', 'SLURM_STEP_NODELIST': host, 'SLURM_NTASKS': size,
    'SLURM_PROCID': index, 'SLURM_LOCALID': index, 'JAX_COORDINATOR_PORT': port}
WHERE = 'auto'
"""
_JOIN = """
import os
import jax, jax.numpy as jnp
import numpy as np
from wmpoe import multihost

multihost.initialize(WHERE, timeout=60)
me = jax.process_index()
print('agreed', multihost.agree(me == 1), multihost.agree(False), multihost.is_main(), flush=True)
mesh = jax.sharding.Mesh(np.array(jax.devices()), 'x')
spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x'))
rows = jax.make_array_from_process_local_data(spread, np.full((1,), me + 1.0, np.float32))
psum = jax.jit(jax.shard_map(lambda x: jax.lax.psum(x, 'x'), mesh=mesh, in_specs=spread.spec,
                             out_specs=jax.sharding.PartitionSpec()))
print('sum', psum(rows).item(), flush=True)
multihost.barrier('here')
"""


def test_a_pod_agrees_sums_over_devices_and_leaves():
  done = _run('local_pod.sh', '4', '--', sys.executable, '-c',
              f'WHERE = ""\n{_JOIN}\nmultihost.leave()',
              PYTHONPATH=str(_ROOT), JAX_PLATFORMS='cpu')
  assert done.returncode == 0, done.stderr
  assert sorted(line for line in done.stdout.splitlines() if 'Gloo' not in line) == [
      line for p in range(4) for line in (f'[{p}] agreed True False {p == 0}', f'[{p}] sum 10.0')]


def test_a_lost_process_ends_the_pod_with_a_message_and_no_hang():
  lost = 'os.kill(os.getpid(), 9) if me else psum(rows + psum(rows)).item()'
  begun = time.monotonic()
  done = _run('local_pod.sh', '2', '--', sys.executable, '-c',
              f'{_SLURM}\n{_JOIN}\n{lost}\nmultihost.agree(True)',
              PYTHONPATH=str(_ROOT), JAX_PLATFORMS='cpu', GRACE='60')
  assert done.returncode == 137  # SIGKILL
  assert time.monotonic() - begun < 60  # jax alone takes 100 s to notice.
  assert '[0] wmpoe: Lost process 1 (host ' in done.stderr
  assert 'run the same command again to go on from the last checkpoint' in done.stderr


# tpu_pod.sh and babysit.sh

class _Cloud:
  """A stand-in for Google's cloud: what its commands were called with, and what they answer."""

  def __init__(self, folder):
    self.folder = folder
    (folder / 'bin').mkdir()
    self.states('ACTIVE')

  def states(self, *states):
    (self.folder / 'states').write_text('\n'.join(states) + '\n')

  def there(self):
    """A slice that is set up."""
    (self.folder / 'slice').touch()
    for host in ('host-0', 'host-1'):
      (self.folder / host / 'wmpoe').mkdir(parents=True)
      (self.folder / host / 'wmpoe' / '.ready').touch()

  def fail(self, verb, text=None):
    path = self.folder / f'fail-{verb}'
    path.write_text(text) if text else path.unlink()

  def calls(self, *verbs):
    if not (self.folder / 'calls').exists():
      return []
    calls = (self.folder / 'calls').read_text().splitlines()
    return [call.strip() for call in calls if any(f' {verb} ' in call for verb in verbs or ' ')]

  def program(self, name, text):
    path = self.folder / 'bin' / name
    path.write_text(f'#!/usr/bin/env bash\n{text}\n')
    path.chmod(0o755)

  def environment(self, **environment):
    path = f'{self.folder / "bin"}:{_FAKE}:{os.environ["PATH"]}'
    return {**_SLICE, 'FAKE': str(self.folder), 'PATH': path, 'POLL': '0.05', 'PAUSE': '0',
            **environment}

  def __call__(self, *arguments, script='tpu_pod.sh', **environment):
    return _run(script, *arguments, **self.environment(**environment))


@pytest.fixture
def cloud(tmp_path):
  return _Cloud(tmp_path)


def test_create_waits_in_the_queue(cloud):
  cloud.states('CREATING', 'WAITING_FOR_RESOURCES', 'WAITING_FOR_RESOURCES', 'ACTIVE')
  done = cloud('create', SPOT='1')
  assert done.returncode == 0, done.stderr
  assert re.findall(r'maze: (\w+)', done.stderr) == ['CREATING', 'WAITING_FOR_RESOURCES', 'READY']
  assert cloud.calls('create') == [
      f'compute tpus queued-resources create {_WHERE} --node-id=maze '
      '--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot']
  again = cloud('create')
  assert again.returncode == 0
  assert 'maze already exists' in again.stderr
  assert len(cloud.calls('create')) == 1


@pytest.mark.parametrize(('states', 'environment', 'message'), [
    (['WAITING_FOR_RESOURCES'], {'WAIT': '0'}, 'No slice within WAIT=0 s (last state: WAITING'),
    (['PROVISIONING', 'FAILED'], {}, 'The request ended as FAILED and was removed.'),
])
def test_what_does_not_come_leaves_nothing_behind(cloud, states, environment, message):
  cloud.states(*states)
  done = cloud('create', **environment)
  assert done.returncode == 1
  assert message in done.stderr
  assert cloud.calls('delete') == [
      f'compute tpus queued-resources delete {_WHERE} --force --quiet']
  assert not (cloud.folder / 'slice').exists()


def test_a_refused_request_is_shown(cloud):
  cloud.fail('create', 'ERROR: Quota exceeded')
  done = cloud('create')
  assert done.returncode == 1
  assert 'ERROR: Quota exceeded' in done.stderr
  assert 'The request was refused; see' in done.stderr


def test_an_error_of_gcloud_is_not_taken_for_an_absent_slice(cloud):
  cloud.fail('describe', 'ERROR: You do not currently have an active account selected.')
  done = cloud('create')
  assert done.returncode == 1
  assert 'active account' in done.stderr
  assert cloud.calls('create') == []


def test_a_preempted_slice_is_replaced(cloud):
  cloud.there()
  cloud.states('SUSPENDED', 'SUSPENDED', 'ACTIVE')
  assert cloud('create').returncode == 0
  assert [call.split()[3] for call in cloud.calls('create', 'delete')] == ['delete', 'create']


@pytest.mark.parametrize(('environment', 'message'), [
    ({'NAME': ''}, 'NAME is not set. Required: NAME, PROJECT, ZONE, and ACCELERATOR'),
    ({'PROJECT': ''}, 'PROJECT is not set.'),
    ({'ZONE': ''}, 'ZONE is not set.'),
    ({'ACCELERATOR': ''}, 'ACCELERATOR is not set.'),
    ({'ACCELERATOR': 'v9-8'}, "Unknown accelerator 'v9-8'; expected v4-N, v5litepod-N"),
    ({'ACCELERATOR': 'v4'}, "Unknown accelerator 'v4'"),
    ({'WAIT': 'long'}, 'Expected seconds, got WAIT=long'),
    ({'SLICES': 'two'}, 'Expected a number of slices, got SLICES=two.'),
])
def test_bad_input_is_named_before_anything_is_asked_for(cloud, environment, message):
  done = cloud('create', **environment)
  assert done.returncode == 2
  assert done.stderr.startswith(f'tpu_pod.sh: {message}')
  assert cloud.calls() == []


def test_a_missing_gcloud_is_said(cloud):
  for name in ('bash', 'env'):
    (cloud.folder / 'bin' / name).symlink_to(shutil.which(name))
  done = cloud('create', PATH=str(cloud.folder / 'bin'))
  assert done.returncode == 2
  assert done.stderr.startswith('tpu_pod.sh: There is no gcloud on PATH. Install it')


def test_a_dry_run_prints_commands_that_a_shell_would_run(cloud):
  lines = cloud('create', DRY_RUN='1').stdout
  assert lines == (
      f'gcloud compute tpus queued-resources create {_WHERE} --node-id=maze '
      '--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite\n')
  printed = cloud('run', '--', 'echo', "it's", '$HOME', DRY_RUN='1').stdout
  assert cloud.calls() == []
  # What is printed does what `run` does: the last word of its start is the command, quoted.
  cloud.there()
  done = subprocess.run(['bash', '-c', printed], env={**os.environ, **cloud.environment()},
                        capture_output=True, text=True, check=False)
  assert "it's $HOME\n" in done.stdout
  assert cloud('delete', DRY_RUN='1').stdout == (
      f'gcloud compute tpus queued-resources delete {_WHERE} --force --quiet\n')


def test_a_dry_run_asks_gcloud_nothing(cloud):
  for command in ('create', 'setup', 'logs', 'stop', 'status', 'state', 'delete'):
    done = cloud(command, DRY_RUN='1')
    assert done.returncode == 0, (command, done.stderr)
    assert done.stdout.startswith(('gcloud ', 'git ')), (command, done.stdout)
  assert cloud.calls() == []


def test_setup_installs_the_last_commit_on_every_host(cloud):
  cloud.there()
  cloud.program('python3', 'mkdir -p ~/.local/bin; cp "$FAKE/bin/uv" ~/.local/bin/uv')
  cloud.program('uv', 'echo "$*" >> ~/uv; [[ ! -e $FAKE/broken-$HOST ]]')
  done = cloud('setup')
  assert done.returncode == 0, done.stderr
  for host in ('host-0', 'host-1'):
    home = cloud.folder / host
    assert (home / 'wmpoe' / 'setup.py').exists()
    assert (home / 'wmpoe' / '.ready').exists()
    assert (home / 'uv').read_text().splitlines() == [
        'venv --quiet --python 3.12 .venv',
        'pip install --quiet --python .venv/bin/python -e .[gcs] jax[tpu]']
  (cloud.folder / 'broken-1').touch()
  done = cloud('setup')
  assert done.returncode == 1
  assert 'Setup failed on some host, see above. The slice stays; run setup again' in done.stderr
  assert not (cloud.folder / 'host-1' / 'wmpoe' / '.ready').exists()
  done = cloud('run', '--', 'true')
  assert done.returncode == 1
  assert 'is not set up' in done.stderr
  assert 'Nothing was started' in done.stderr


def test_run_shows_host_0_and_returns_the_exit_code(cloud):
  cloud.there()
  done = cloud('run', '--', 'bash', '-c', 'echo "$HOST $1"; exit $((HOST * 3))', '_', 'a  "b" $c')
  assert done.stdout == '0 a  "b" $c\n'
  assert done.returncode == 3
  assert 'The command ended with exit code 3.' in done.stderr
  shown = cloud('status').stdout
  assert sorted(re.findall('exit code (.)', shown)) == ['0', '3']  # hosts answer in any order


def test_several_slices_are_one_pod(cloud):
  hosts = [f'host-{slice}-{host}' for slice in range(2) for host in range(2)]
  assert cloud('create', SLICES='2').returncode == 0
  assert f'{_WHERE} --node-count=2 --node-prefix=maze --accel' in cloud.calls('create')[0]
  cloud.program('python3', 'mkdir -p ~/.local/bin; cp "$FAKE/bin/uv" ~/.local/bin/uv')
  cloud.program('uv', 'true')
  assert cloud('setup', SLICES='2').returncode == 0
  assert all((cloud.folder / host / 'wmpoe' / '.ready').exists() for host in hosts)
  done = cloud('run', '--', 'bash', '-c', 'echo $NODE $HOST; exit $((NODE * -7))', SLICES='2')
  assert done.stdout == '-0 0\n'
  assert done.returncode == 7
  shown = cloud('status', SLICES='2').stdout
  assert sorted(re.findall('exit code (.)', shown)) == ['0', '0', '7', '7']
  assert cloud('state', SLICES='2').stdout == 'READY\n'
  (cloud.folder / 'node-1').write_text('PREEMPTED')
  assert cloud('state', SLICES='2').stdout == 'PREEMPTED\n'


def test_a_running_command_is_kept_from_a_second_and_can_be_stopped(cloud):
  cloud.there()
  command = 'trap "echo saved; exit 75" TERM; echo begun; for i in {1..600}; do sleep 0.1; done'
  first = subprocess.Popen(
      [_LAUNCH / 'tpu_pod.sh', 'run', '--', 'bash', '-c', command], text=True,
      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
      env={**os.environ, **cloud.environment()})
  assert first.stdout.readline() == 'begun\n'
  second = cloud('run', '--', 'true')
  assert second.returncode == 1
  assert 'is running exec bash' in second.stderr
  assert 'Nothing was started, see above' in second.stderr
  assert cloud('status').stdout.count(': running exec bash') == 2
  assert cloud('stop').returncode == 0
  assert first.communicate(timeout=20)[0] == 'saved\n'
  assert first.returncode == 75


def _babysit(cloud, command, **environment):
  return cloud('--', 'bash', '-c', command, script='babysit.sh', **environment)


def test_babysit_replaces_a_preempted_slice_and_goes_on(cloud):
  cloud.there()
  # Setup is tested above; here it is what makes a new slice ready.
  cloud.program('python3', 'mkdir -p ~/.local/bin; cp "$FAKE/bin/uv" ~/.local/bin/uv')
  cloud.program('uv', 'true')
  # Preempted in its first run: the state that gcloud tells afterwards.
  done = _babysit(cloud, (
      'echo run >> "$FAKE/runs"; [[ $HOST == 0 ]] || exit 0; '
      'if [[ ! -e $FAKE/done ]]; then touch "$FAKE/done"; printf "%s\\n" SUSPENDED SUSPENDED '
      'SUSPENDED SUSPENDED ACTIVE > "$FAKE/states"; exit 75; fi'))
  assert done.returncode == 0, done.stderr
  assert 'babysit.sh: The slice is SUSPENDED.' in done.stderr
  assert 'babysit.sh: The command is done.' in done.stderr
  assert [call.split()[3] for call in cloud.calls('create', 'delete', 'scp')] == [
      'delete', 'create', 'scp']
  assert (cloud.folder / 'runs').read_text() == 'run\n' * 4


def test_babysit_survives_what_gcloud_cannot_do_for_a_while(cloud):
  cloud.there()
  cloud.fail('describe', 'ERROR: The service is currently unavailable.')
  cloud.program('sleep', f'rm -f {cloud.folder}/fail-describe; exec /bin/sleep "$@"')
  done = _babysit(cloud, 'echo done')
  assert done.returncode == 0, done.stderr
  assert 'currently unavailable' in done.stderr
  assert 'babysit.sh: The slice could not be made ready, see above.' in done.stderr
  assert 'babysit.sh: The command is done.' in done.stderr
  done = _babysit(cloud, 'true', SLICES='none')
  assert done.returncode == 2 and 'Expected a number of slices' in done.stderr


def test_babysit_does_not_repeat_a_mistake(cloud):
  cloud.there()
  done = _babysit(cloud, 'exit 2')
  assert done.returncode == 2
  assert 'exit code 2 on a healthy slice: it is not repeated. maze stays' in done.stderr
  assert cloud.calls('create', 'delete') == []


def test_babysit_gives_up(cloud):
  cloud.there()
  done = _babysit(cloud, 'exit 75', MAX_FAILURES='2')
  assert done.returncode == 1
  assert done.stderr.count('Interrupted (exit code 75) on a healthy slice.') == 2
  assert 'Interrupted 2 times in a row; maze stays as it is (READY).' in done.stderr


# slurm_gpu.sh and gke_jobset.yaml

def test_a_slurm_job_is_one_pod_and_is_queued_again_when_interrupted(cloud):
  cloud.program('scontrol', 'echo "scontrol $*" >> "$FAKE/calls"; echo node7; echo node8')
  cloud.program('srun', 'echo "srun $*" | head -n 1 >> "$FAKE/calls"\n'
                'while [[ $1 != bash ]]; do shift; done\n'
                'SLURM_NTASKS=4 SLURM_PROCID=3 "$@"')
  job = {'SLURM_JOB_ID': '123456', 'SLURM_JOB_NODELIST': 'node[7-8]', 'SLURM_JOB_NUM_NODES': '2',
         'SLURM_GPUS_ON_NODE': '2'}
  done = cloud('bash', '-c', 'echo $WMPOE_COORDINATOR,$WMPOE_NUM_PROCESSES,$WMPOE_PROCESS_ID '
               '"$1"; exit 75', '_', "it's", script='slurm_gpu.sh', **job)
  assert done.returncode == 75
  assert done.stdout.startswith("node7:23456,4,3 it's\n")
  calls = (cloud.folder / 'calls').read_text()
  assert '--ntasks-per-node=2 --ntasks=4 --gpu-bind=none --kill-on-bad-exit=1' in calls
  assert 'scontrol requeue 123456' in calls
  done = cloud('true', script='slurm_gpu.sh')
  assert done.returncode == 2
  assert 'Not in a Slurm job: start it with sbatch' in done.stderr


def test_the_jobset_is_what_kubernetes_expects():
  text = (_LAUNCH / 'gke_jobset.yaml').read_text()
  values = {'NAME': 'maze', 'IMAGE': 'here/wmpoe:1', 'TPU': 'tpu-v5-lite-podslice',
            'TOPOLOGY': '4x4', 'SLICES': '2', 'HOSTS': '4', 'CHIPS': '4',
            'COMMAND': 'python -m wmpoe train --distributed=auto --workdir=gs://b/maze'}
  body = '\n'.join(line for line in text.splitlines() if not line.startswith('#'))
  assert set(re.findall(r'\$\{(\w+)\}', body)) == set(values)
  assert set(re.findall(r'(?:export| )(\w+)=', text)) >= set(values)  # The header tells them all.
  jobset = yaml.safe_load(re.sub(r'\$\{(\w+)\}', lambda found: values[found[1]], body))
  assert jobset['spec']['replicatedJobs'][0]['replicas'] == 2
  job = jobset['spec']['replicatedJobs'][0]['template']['spec']
  assert (job['parallelism'], job['completions'], job['completionMode']) == (4, 4, 'Indexed')
  pod = job['template']['spec']
  assert pod['nodeSelector']['cloud.google.com/gke-tpu-topology'] == '4x4'
  container = pod['containers'][0]
  assert container['resources']['limits'] == {'google.com/tpu': 4}
  assert container['command'] == ['bash', '-c', f'exec {values["COMMAND"]}']


@pytest.mark.parametrize(('document', 'blocks', 'least'), [
    ('docs/pods.md', r'```bash\n(.*?)```', 10),
    ('README.md', r'## From a laptop to a pod\n.*?```\n(.*?)```', 5),
])
def test_the_commands_of_the_docs_are_understood(cloud, monkeypatch, document, blocks, least):
  monkeypatch.chdir(_ROOT)
  text = (_ROOT / document).read_text()
  lines = [line for block in re.findall(blocks, text, re.DOTALL) for line in block.splitlines()]
  assert len(lines) >= least
  for line in lines:
    words = shlex.split(line, comments=True)
    for command in (train, compile_command):  # Every flag and config is one that there is.
      name = command.__name__.rpartition('.')[2]
      if name in words:
        argv = [f'wmpoe {name}', *words[words.index(name) + 1:]]
        flags = absl_flags.FlagValues()
        command.define(flags, argv)
        assert cli._parse(flags, argv) == []
        assert flags.config.expert == 'base'
    while '=' in words[0]:  # a variable
      words.pop(0)
    if words[:2] == ['pip', 'install']:
      extras = re.findall(r'\[(.*?)\]', words[-1])
      assert extras and set(extras[0].split(',')) <= set(
          importlib.metadata.metadata('wmpoe').get_all('Provides-Extra'))
      continue
    if words[0] in ('launch/tpu_pod.sh', 'launch/babysit.sh'):
      done = cloud(*words[1:], script=pathlib.Path(words[0]).name, DRY_RUN='1')
      assert done.returncode == 0, done.stderr
      assert done.stdout.startswith(('gcloud ', 'git '))
    else:  # The others are run by tests of their own.
      assert words[0] in ('python', 'export', 'sbatch', 'launch/local_pod.sh')
