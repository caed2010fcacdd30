import json

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
