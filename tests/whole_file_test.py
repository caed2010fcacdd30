"""A file is there whole or not at all."""

import os
import pathlib
import signal
import subprocess
import sys

from etils import epath
import pytest

from wmpoe import whole_file


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
  path = tmp_path / 'a.npz'
  path.write_bytes(b'old')

  def write(file):
    file.write(b'half')
    raise OSError(28, 'No space left on device')

  with pytest.raises(OSError, match='Cannot write .*No space left.*choose a folder'):
    whole_file.write(path, write)
  assert path.read_bytes() == b'old'
  assert os.listdir(tmp_path) == ['a.npz']


def test_a_reader_never_sees_a_file_change_under_its_hands(tmp_path):
  path = tmp_path / 'a.npz'
  path.write_bytes(b'old')
  with open(path, 'rb') as reader:
    whole_file.write(path, b'new')
    assert reader.read() == b'old'
  assert path.read_bytes() == b'new'


def test_a_killed_writer_leaves_the_old_file(tmp_path):
  path = tmp_path / 'a.npz'
  path.write_bytes(b'old')
  code = (
      'import os, signal, sys\n'
      'from wmpoe import whole_file\n'
      'def write(file):\n'
      '  file.write(b"half"); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n'
      'whole_file.write(sys.argv[1], write)\n'
  )
  done = subprocess.run(
      [sys.executable, '-c', code, str(path)], capture_output=True, check=False)
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert path.read_bytes() == b'old'
  # What it left is swept up by who writes the file next, once nobody can be writing it any more.
  [left] = tmp_path.glob('.a.npz.*.tmp')
  whole_file.write(path, b'new')
  assert left.exists()
  os.utime(left, (0, 0))
  other = tmp_path / '.b.npz.0.tmp'
  other.touch()
  os.utime(other, (0, 0))
  whole_file.write(path, b'newer')
  assert sorted(tmp_path.iterdir()) == [other, path]


@pytest.mark.parametrize('path', ['gs://bucket/a.npz', pathlib.Path('gs://bucket/a.npz')])
def test_no_folder_is_made_in_the_name_of_a_bucket(tmp_path, monkeypatch, path):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match="a.npz' is in an object store, where only training runs"):
    whole_file.write(path, b'lost')
  assert list(tmp_path.iterdir()) == []


def test_paths_of_object_stores_are_kept_and_local_ones_made_absolute(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert os.fspath(whole_file.anywhere('run')) == str(tmp_path / 'run')
  remote = whole_file.anywhere('gs://bucket/run')
  assert os.fspath(remote) == 'gs://bucket/run'
  assert os.fspath(remote / 'config.json') == 'gs://bucket/run/config.json'
  assert os.fspath(whole_file.anywhere(remote)) == 'gs://bucket/run'
  assert list(tmp_path.iterdir()) == []


class _Store:
  """Lists a folder once, as the client of an object store does, until it is told to forget."""

  def __init__(self, *names):
    self.there, self.listed = [*names], None

  def listdir(self, path, *, detail):
    del path, detail
    self.listed = self.listed or [*self.there]
    return self.listed

  def invalidate_cache(self):
    self.listed = None


def test_what_others_write_to_an_object_store_is_seen(monkeypatch):
  store = _Store('a')
  monkeypatch.setattr(epath.backend.fsspec_backend, 'fs', lambda path: store)
  names = lambda folder: sorted(path.name for path in folder.iterdir())
  before = whole_file.anywhere('gs://bucket/run')
  assert names(before) == ['a']
  store.there.append('b')
  assert names(before) == ['a']
  assert names(whole_file.anywhere('gs://bucket/run')) == ['a', 'b']
