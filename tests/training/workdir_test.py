import json
import os

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


def test_paths_of_object_stores_are_kept_and_local_ones_made_absolute(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert os.fspath(workdir.absolute('run')) == str(tmp_path / 'run')
  remote = workdir.absolute('gs://bucket/run')
  assert os.fspath(remote) == 'gs://bucket/run'
  assert os.fspath(remote / workdir.CONFIG) == 'gs://bucket/run/config.json'
  assert os.fspath(workdir.absolute(remote)) == 'gs://bucket/run'
  assert list(tmp_path.iterdir()) == []
