"""Two jobs in one folder of an object store; a local folder stands in for it."""

import json
import time

from etils import epath
import pytest

from wmpoe import whole_file
from wmpoe.training import lease
from wmpoe.training import workdir


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(lease, 'RENEWED', 0.05)
  monkeypatch.setattr(lease, 'ENDS', 0.5)
  monkeypatch.setattr(lease, 'SETTLES', 0.0)


def test_a_second_job_is_refused_while_the_first_renews(tmp_path):
  folder = epath.Path(tmp_path)
  with lease.Lease(folder):
    time.sleep(0.7)  # longer than it would last by itself
    with pytest.raises(RuntimeError, match=r'Another job .* was training in .* its leas'):
      lease.Lease(folder).__enter__()
  assert not (folder / lease.FILE).exists()
  with lease.Lease(folder):
    pass


def test_what_a_killed_job_leaves_ends_by_itself(tmp_path):
  folder = epath.Path(tmp_path)
  gone = {'token': 'x', 'pid': 1, 'host': 'elsewhere', 'renewed': time.time()}
  (folder / lease.FILE).write_text(json.dumps(gone))
  with pytest.raises(RuntimeError, match='process 1 on elsewhere'):
    lease.Lease(folder).__enter__()
  (folder / lease.FILE).write_text(json.dumps({**gone, 'renewed': time.time() - 1}))
  with lease.Lease(folder):
    assert json.loads((folder / lease.FILE).read_text())['token'] != 'x'
  for torn in '', '{"pid": 1':
    (folder / lease.FILE).write_text(torn)
    with lease.Lease(folder):
      pass


def test_who_lost_it_says_so_and_leaves_it_to_the_other(tmp_path, capfd):
  folder = epath.Path(tmp_path)
  with lease.Lease(folder):
    other = {'token': 'x', 'pid': 1, 'host': 'elsewhere', 'renewed': time.time()}
    (folder / lease.FILE).write_text(json.dumps(other))
    time.sleep(0.3)
  assert json.loads((folder / lease.FILE).read_text()) == other
  assert 'was taken by another job' in capfd.readouterr().err


def test_object_stores_have_leases_and_disks_have_locks(tmp_path, monkeypatch):
  assert isinstance(workdir.lock(epath.Path(tmp_path)), workdir.Lock)
  monkeypatch.setattr(whole_file, 'is_remote', lambda path: True)
  assert isinstance(workdir.lock(epath.Path(tmp_path)), lease.Lease)
