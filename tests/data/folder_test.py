"""Tests of folders of episodes: resuming, refusing, reading."""

import json

import numpy as np
import pytest

from wmpoe.data import episode
from wmpoe.data import folder

SPACES = {'environment': 'toy', 'length': 3}


def _make(index):
  return episode.Episode(
      frames=np.full((3, 4, 4, 3), index, np.uint8),
      actions=np.zeros((3, 2), np.float32),
      poses=np.zeros((3, 1), np.float32),
      meta={'index': index},
  )


def _collect(path, episodes=3, make=_make, spaces=SPACES, **options):
  return list(folder.collect(path, make, episodes=episodes, spaces=spaces, **options))


def test_episodes_and_spaces_are_written(tmp_path):
  progress = _collect(tmp_path / 'a' / 'b')
  assert [(p.done, p.total, p.path.name, p.written) for p in progress] == [
      (i + 1, 3, f'episode_0000{i}.npz', True) for i in range(3)]
  assert folder.read_spaces(tmp_path / 'a' / 'b') == {
      'format': 'wmpoe.episode', 'version': 1, **SPACES}


def test_an_interrupted_run_is_finished_without_doing_it_twice(tmp_path):
  run = folder.collect(tmp_path, _make, episodes=3, spaces=SPACES)
  next(run)
  next(run)
  run.close()
  made = []
  progress = _collect(tmp_path, make=lambda i: made.append(i) or _make(i))
  assert made == [2]
  assert [p.written for p in progress] == [False, False, True]


def test_a_damaged_episode_is_made_again(tmp_path):
  _collect(tmp_path)
  (tmp_path / 'episode_00001.npz').write_bytes(b'half')
  assert [p.written for p in _collect(tmp_path)] == [False, True, False]
  assert episode.Episode.load(tmp_path / 'episode_00001.npz').meta == {'index': 1}


def test_another_configuration_is_refused_and_nothing_is_lost(tmp_path):
  _collect(tmp_path)
  before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
  with pytest.raises(ValueError, match=r'differ in length \(3, asked for 4\).*--overwrite'):
    _collect(tmp_path, spaces={**SPACES, 'length': 4})
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_overwrite_deletes_the_episodes_and_nothing_else(tmp_path):
  _collect(tmp_path, episodes=3)
  (tmp_path / 'notes.txt').write_text('mine')
  (tmp_path / 'episode_best.npz').write_text('mine')
  progress = _collect(tmp_path, episodes=1, spaces={**SPACES, 'length': 4}, overwrite=True)
  assert [p.written for p in progress] == [True]
  assert sorted(path.name for path in tmp_path.iterdir()) == [
      'episode_00000.npz', 'episode_best.npz', 'notes.txt', 'spaces.json']


def test_episodes_of_unknown_origin_are_not_mixed_in(tmp_path):
  _collect(tmp_path)
  (tmp_path / 'spaces.json').unlink()
  with pytest.raises(ValueError, match=r'holds 3 episodes but no spaces\.json'):
    _collect(tmp_path)


def test_bad_requests_are_refused(tmp_path):
  with pytest.raises(ValueError, match='episodes=0; expected at least 1'):
    _collect(tmp_path, episodes=0)
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError, match='Cannot make the folder .*Choose one that can be written'):
    _collect(tmp_path / 'file' / 'out')


def test_reading_no_such_folder(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'spaces\.json does not exist; expected a folder'):
    folder.read_spaces(tmp_path)
  (tmp_path / 'spaces.json').write_text('{')
  with pytest.raises(ValueError, match=r'spaces\.json is not JSON'):
    folder.read_spaces(tmp_path)
  (tmp_path / 'spaces.json').write_text(json.dumps({'version': 2}))
  with pytest.raises(ValueError, match=r"spaces\.json is not of 'wmpoe\.episode' version 1"):
    folder.read_spaces(tmp_path)
