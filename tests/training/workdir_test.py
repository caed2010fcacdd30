import json
import os
import subprocess
import sys

import pytest

from wmpoe.training import workdir


def test_config_is_written_and_compared(tmp_path):
  config = {'a': {'b': 1, 'c': (1, 2)}, 'd': None}
  workdir.check_config(tmp_path, config)
  assert json.loads((tmp_path / workdir.CONFIG).read_text())['a'] == {'b': 1, 'c': [1, 2]}
  workdir.check_config(tmp_path, config)
  with pytest.raises(ValueError, match=r"a\.b: 1 there, 2 now\n  d: None there, '\(absent\)' now"):
    workdir.check_config(tmp_path, {'a': {'b': 2, 'c': (1, 2)}})
  # What was refused must not have replaced what is there.
  workdir.check_config(tmp_path, config)
  workdir.check_config(tmp_path, {**config, 'a': {'b': 5}}, may_differ=['a'])
  assert json.loads((tmp_path / workdir.CONFIG).read_text())['a'] == {'b': 5}


HOLD = """
import sys
from wmpoe.training import workdir
with workdir.Lock(sys.argv[1]):
  print("held", flush=True)
  sys.stdin.read()
"""


def test_lock_keeps_a_second_job_out_until_the_first_is_dead(tmp_path):
  path = os.pathsep.join([os.path.dirname(os.path.dirname(os.path.dirname(workdir.__file__)))])
  job = subprocess.Popen(
    [sys.executable, '-c', HOLD, str(tmp_path)], env={**os.environ, 'PYTHONPATH': path},
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
  )  # fmt: skip
  assert job.stdout.readline() == 'held\n'
  with (
    pytest.raises(RuntimeError, match=rf'Another job \(process {job.pid} on .*Wait for it'),
    workdir.Lock(tmp_path),
  ):
    pass
  job.kill()
  job.communicate()
  assert (tmp_path / workdir.LOCK).exists()
  with workdir.Lock(tmp_path):
    assert json.loads((tmp_path / workdir.LOCK).read_text())['pid'] == os.getpid()
  assert not (tmp_path / workdir.LOCK).exists()


def test_lock_is_exclusive_in_one_process_and_ignores_reused_ids(tmp_path):
  with workdir.Lock(tmp_path):
    held = json.loads((tmp_path / workdir.LOCK).read_text())
    with pytest.raises(RuntimeError, match='Another job'), workdir.Lock(tmp_path):
      pass
    assert (tmp_path / workdir.LOCK).exists()
  # A process of the same id, born at another time, is not the job that held the folder.
  for left in (json.dumps({**held, 'pid': os.getppid()}), '', '{"pid": 1'):
    (tmp_path / workdir.LOCK).write_text(left)
    with workdir.Lock(tmp_path):
      pass
  (tmp_path / workdir.LOCK).write_text(json.dumps({**held, 'host': 'elsewhere'}))
  with pytest.raises(RuntimeError, match='on elsewhere.*remove'), workdir.Lock(tmp_path):
    pass


def test_paths_of_object_stores_are_kept_and_local_ones_made_absolute(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert os.fspath(workdir.absolute('run')) == str(tmp_path / 'run')
  remote = workdir.absolute('gs://bucket/run')
  assert os.fspath(remote) == 'gs://bucket/run'
  assert os.fspath(remote / workdir.CONFIG) == 'gs://bucket/run/config.json'
  assert os.fspath(workdir.absolute(remote)) == 'gs://bucket/run'
  assert list(tmp_path.iterdir()) == []
