"""`python -m wmpoe train` as a pod of two: a signal to one of them, and the same command again."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

import wmpoe
from wmpoe import packaged
from wmpoe.training import metrics_log

_ROOT = pathlib.Path(wmpoe.__file__).parents[1]
_TINY = [
    f'--config={_ROOT / "configs" / "cards.py"}:base', *(f'--config.{name}' for name in (
        'env.size=16', 'env.grid=2', 'env.symbols=4', 'model.width=16', 'model.depth=1',
        'model.heads=1', 'train.batch_size=4', 'train.log_every=1', 'train.warmup_steps=1'))]
pytestmark = pytest.mark.skipif(not pathlib.Path('/proc').exists(), reason='finds processes there')


def _pod(folder, steps, *flags):
  return subprocess.Popen(
      [_ROOT / 'launch' / 'local_pod.sh', '2', '--', sys.executable, '-m', 'wmpoe', 'train', *_TINY,
       f'--config.train.steps={steps}', '--workdir=run', *flags],
      cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
      env={**os.environ, 'PYTHONPATH': str(_ROOT), 'JAX_PLATFORMS': 'cpu'})


def _process(pod, index):
  """The id of one process of the pod; the script has other children, which come and go."""
  children = pathlib.Path(f'/proc/{pod.pid}/task/{pod.pid}/children').read_text().split()
  wanted = f'WMPOE_PROCESS_ID={index}'.encode()
  for child in children:
    with contextlib.suppress(OSError):
      if wanted in pathlib.Path(f'/proc/{child}/environ').read_bytes().split(b'\0'):
        return int(child)
  raise AssertionError(f'The pod has no process {index} among {children}.')


def test_a_signal_to_one_process_stops_all_and_the_same_command_goes_on(tmp_path):
  with _pod(tmp_path, 100_000) as pod:
    log = tmp_path / 'run' / metrics_log.FILENAME
    while not (log.exists() and log.read_text().count('\n') > 1):
      assert pod.poll() is None, pod.stdout.read()
      time.sleep(0.02)
    os.kill(_process(pod, 1), signal.SIGTERM)
    said = pod.communicate(timeout=120)[0]
  assert pod.returncode == 75, said
  step = int(re.search(r'stopped by a signal to another process at step (\d+)/100000', said)[1])
  assert step >= 2
  with _pod(tmp_path, step + 2, '--package=base.npz') as pod:
    said = pod.communicate(timeout=120)[0]
  assert pod.returncode == 0, said
  assert f'continuing {tmp_path / "run"} from step {step}' in said
  assert packaged.card(tmp_path / 'base.npz')['steps'] == step + 2
  assert [row['step'] for row in metrics_log.read(tmp_path / 'run')
          if row['kind'] == 'train'] == [*range(1, step + 3)]
