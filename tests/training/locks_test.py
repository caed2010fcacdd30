"""Two jobs in one folder: of one machine, of two, and of an object store (a folder stands in)."""

import json
import os
import pathlib
import subprocess
import sys
import threading
import time

from etils import epath
import pytest

import wmpoe
from wmpoe import whole_file
from wmpoe.training import locks

_HOLD = """
import sys
from wmpoe.training import locks
with locks.Lock(sys.argv[1], print):
  print("held", flush=True)
  sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(locks, 'RENEWED', 0.05)
  monkeypatch.setattr(locks, 'ENDS', 0.5)
  monkeypatch.setattr(locks, 'SETTLES', 0.0)


def lease(folder, on_lost=print):
  return locks.Lease(epath.Path(folder), on_lost)


def lock(folder, on_lost=print):
  return locks.Lock(folder, on_lost)


def test_a_lease_that_is_renewed_keeps_a_second_job_out(tmp_path, capsys):
  with lease(tmp_path):
    time.sleep(0.7)  # longer than it would last by itself
    with pytest.raises(RuntimeError, match=r'Another job \(process .* is training .*Wait for it'):
      lease(tmp_path).__enter__()
  assert 'waiting up to 0 s to see whether it is still there' in capsys.readouterr().err
  assert not (tmp_path / locks.LEASE).exists()
  with lease(tmp_path):
    pass


@pytest.mark.parametrize('ahead', [0.0, 1000.0])  # a clock that goes wrong
def test_who_comes_back_waits_until_the_lease_of_a_killed_job_ends(tmp_path, ahead):
  gone = {'token': 'x', 'pid': 1, 'host': 'elsewhere', 'renewed': time.time() + ahead}
  (tmp_path / locks.LEASE).write_text(json.dumps(gone))
  begun = time.monotonic()
  with lease(tmp_path):
    assert 0.3 < time.monotonic() - begun < 5
    assert json.loads((tmp_path / locks.LEASE).read_text())['token'] != 'x'
  (tmp_path / locks.LEASE).write_text(json.dumps({**gone, 'renewed': time.time() - 1}))
  begun = time.monotonic()
  with lease(tmp_path):
    assert time.monotonic() - begun < 0.3
  for torn in '', '{"pid": 1':
    (tmp_path / locks.LEASE).write_text(torn)
    with lease(tmp_path):
      pass


def test_of_two_that_come_at_once_one_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(locks, 'SETTLES', 0.3)
  refused, both = [], threading.Barrier(2)

  def come():
    both.wait()
    try:
      with lease(tmp_path):
        time.sleep(0.5)
    except RuntimeError as error:
      refused.append(str(error))

  jobs = [threading.Thread(target=come) for _ in range(2)]
  for job in jobs:
    job.start()
  for job in jobs:
    job.join()
  assert len(refused) == 1 and 'is training in' in refused[0]


@pytest.mark.parametrize('kind', ['lease', 'lock'])
def test_who_lost_the_folder_hears_of_it_and_leaves_it_to_the_other(tmp_path, kind):
  make, name = {'lease': (lease, locks.LEASE), 'lock': (lock, locks.LOCK)}[kind]
  other, lost = {'token': 'x', 'pid': 1, 'host': 'b', 'born': '', 'renewed': time.time()}, []
  with make(tmp_path, lost.append):
    (tmp_path / name).write_text(json.dumps(other))
    time.sleep(0.4)
  assert json.loads((tmp_path / name).read_text()) == other
  assert len(lost) == 1 and 'was taken over by another job' in lost[0]


def test_object_stores_have_leases_and_disks_have_locks(tmp_path, monkeypatch):
  assert isinstance(locks.lock(epath.Path(tmp_path), print), locks.Lock)
  monkeypatch.setattr(whole_file, 'is_remote', lambda path: True)
  assert isinstance(locks.lock(epath.Path(tmp_path), print), locks.Lease)


def test_a_lock_keeps_a_second_job_out_until_the_first_is_dead(tmp_path):
  root = str(pathlib.Path(wmpoe.__file__).parents[1])
  job = subprocess.Popen(
      [sys.executable, '-c', _HOLD, str(tmp_path)], env={**os.environ, 'PYTHONPATH': root},
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
  assert job.stdout.readline() == 'held\n'
  with pytest.raises(RuntimeError, match=rf'Another job \(process {job.pid} on .*Wait for it'):
    lock(tmp_path).__enter__()
  job.kill()
  job.communicate()
  assert (tmp_path / locks.LOCK).exists()
  with lock(tmp_path):
    assert json.loads((tmp_path / locks.LOCK).read_text())['pid'] == os.getpid()
  assert not (tmp_path / locks.LOCK).exists()


def test_a_lock_is_exclusive_in_one_process_and_ignores_reused_ids(tmp_path):
  with lock(tmp_path):
    held = json.loads((tmp_path / locks.LOCK).read_text())
    with pytest.raises(RuntimeError, match='Another job'):
      lock(tmp_path).__enter__()
    assert (tmp_path / locks.LOCK).exists()
  # A process of the same id, born at another time, is not the job that held the folder.
  for left in (json.dumps({**held, 'pid': os.getppid()}), '', '{"pid": 1'):
    (tmp_path / locks.LOCK).write_text(left)
    with lock(tmp_path):
      pass


def test_a_lock_of_another_machine_ends_when_it_is_not_renewed(tmp_path):
  path = tmp_path / locks.LOCK
  path.write_text(json.dumps({'pid': 1, 'host': 'elsewhere', 'born': 'x'}))
  begun = time.monotonic()
  with lock(tmp_path):
    assert 0.3 < time.monotonic() - begun < 5
    first = path.stat().st_mtime
    time.sleep(0.3)
    assert path.stat().st_mtime > first  # as others will see
  path.write_text(json.dumps({'pid': 1, 'host': 'elsewhere', 'born': 'x'}))
  alive = threading.Event()

  def renew():
    while not alive.wait(0.05):
      os.utime(path)

  renewing = threading.Thread(target=renew)
  renewing.start()
  with pytest.raises(RuntimeError, match='process 1 on elsewhere'):
    lock(tmp_path).__enter__()
  alive.set()
  renewing.join()
