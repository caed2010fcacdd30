import pytest

from tests.data import malformed


def test_malformed_episodes_are_named_and_do_nothing(tmp_path):
  pytest.importorskip('PIL')
  assert malformed.check_episodes(tmp_path, 300) > 290


def test_malformed_tables_are_named_and_do_nothing(tmp_path):
  pytest.importorskip('PIL')
  assert malformed.check_tables(tmp_path, 60) > 40
