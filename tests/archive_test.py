"""The single-file format; what concerns weights is in packaged_test.py, memories in session/."""

import dataclasses
import os
import pathlib
import subprocess
import sys
import textwrap
import zipfile

import numpy as np
import pytest

from wmpoe import archive

_KIND = archive.Kind(
    what='notes', version=3, prefix='notes', fields=('who',), dtypes=('int32', 'bool'),
    writer='a test', remedy='Write them again.')


def test_killed_at_any_moment_of_a_save_it_leaves_one_whole_file(tmp_path):
  """SIGKILL of processes that save all the time."""
  path = tmp_path / 'n.npz'
  program = f"""
    import dataclasses, itertools
    import numpy as np
    from wmpoe import archive
    kind = archive.Kind(
        what='notes', version=3, prefix='notes', fields=('who',), dtypes=('int32', 'bool'),
        writer='a test', remedy='')
    for i in itertools.count():
      archive.write({str(path)!r}, kind, {{'who': i}}, {{'x': np.full(300_000, i, np.int32)}})
      if i == 0:
        print('ready', flush=True)
  """
  rng, found = np.random.default_rng(0), set()
  for _ in range(4):
    running = subprocess.Popen(
        [sys.executable, '-c', textwrap.dedent(program)], stdout=subprocess.PIPE,
        env={**os.environ, 'PYTHONPATH': str(pathlib.Path(__file__).parents[1])})
    with running:
      assert running.stdout.readline() == b'ready\n'
      try:
        running.wait(rng.uniform(0.02, 0.2))
      except subprocess.TimeoutExpired:
        running.kill()
    assert running.returncode == -9
    leaves, card = archive.read(path, _KIND)
    assert np.all(leaves['x'] == card['who'])
    found.add(card['who'])
  assert len(found) > 1  # caught at work, at different moments
  assert [file for file in tmp_path.iterdir() if file.suffix == '.npz'] == [path]


def test_bytes_do_not_depend_on_the_machine(tmp_path):
  path = tmp_path / 'n.npz'
  archive.write(path, _KIND, {'who': 'me'}, {'x': np.arange(3, dtype='>i4')})
  big = path.read_bytes()
  archive.write(path, _KIND, {'who': 'me'}, {'x': np.arange(3, dtype='<i4')})
  assert path.read_bytes() == big
  leaves, _ = archive.read(path, _KIND)
  np.testing.assert_array_equal(leaves['x'], [0, 1, 2])


def test_what_hardly_compresses_is_stored(tmp_path):
  kind = dataclasses.replace(_KIND, worthwhile=0.9)
  rng = np.random.default_rng(0)
  leaves = {
      'noise': rng.integers(-2**31, 2**31, 20_000, dtype=np.int32),
      'little_noise': rng.integers(-2**31, 2**31, 1_000, dtype=np.int32),
      'mostly_empty': np.pad(rng.integers(0, 2**31, 4_000, dtype=np.int32), (0, 16_000)),
      'flags': np.zeros(0, bool)}
  path = tmp_path / 'n.npz'
  archive.write(path, kind, {'who': 'me'}, leaves)
  with zipfile.ZipFile(path) as members:
    stored = {i.filename for i in members.infolist() if i.compress_type == zipfile.ZIP_STORED}
  assert {name for name in stored if 'noise' in name or 'mostly' in name} == {
      'notes/noise.npy', 'notes/little_noise.npy'}
  found, _ = archive.read(path, kind)
  assert all(np.array_equal(found[name], leaves[name]) for name in leaves)


def test_what_another_process_writes_is_checked_and_not_written(tmp_path):
  arguments = tmp_path / 'a.npz', _KIND, {'who': 'me'}, {'x': np.arange(3, dtype='i4')}
  card = archive.write(*arguments, here=False)
  assert not list(tmp_path.iterdir())
  assert card == archive.write(*arguments) and (tmp_path / 'a.npz').is_file()


def test_what_such_files_do_not_hold_is_refused(tmp_path):
  path = tmp_path / 'n.npz'
  with pytest.raises(TypeError, match="Leaf 'x' is float32; files of notes hold int32, bool."):
    archive.write(path, _KIND, {'who': 'me'}, {'x': np.ones(2, 'f')})
  with pytest.raises(ValueError, match=r'Notes are files named \*.npz'):
    archive.write(tmp_path / 'n.zip', _KIND, {'who': 'me'}, {})
  archive.write(path, _KIND, {}, {})
  with pytest.raises(ValueError, match='lacks who. Files of notes are written by a test.'):
    archive.read(path, _KIND)
  assert [p.name for p in tmp_path.iterdir()] == ['n.npz']
