"""The memory folder: what it refuses; that it is read as it was written is tested with the file."""

import json

import pytest

from wmpoe import session
from wmpoe.session import memory_file
from wmpoe.session import memory_folder


def test_a_folder_is_never_replaced(seen, tmp_path):
  seen.save(tmp_path / 'm')
  card = memory_file.card(tmp_path / 'm')
  assert card['episodes'] == 2 and card['observed'] == [6, 6]
  with pytest.raises(FileExistsError, match='already exists: name another folder'):
    seen.save(tmp_path / 'm')
  assert memory_file.card(tmp_path / 'm') == card


def test_what_is_no_folder_of_memories_is_named(seen, tmp_path):
  with pytest.raises(FileNotFoundError, match='gone. does not exist'):
    session.Session.load(tmp_path / 'gone', seen)
  with pytest.raises(ValueError, match='is no folder of memories'):
    session.Session.load(tmp_path, seen)
  seen.save(tmp_path / 'm')
  with pytest.raises(ValueError, match=r'is a folder of memories; expected a file, \*\.npz'):
    memory_file.fork(tmp_path / 'm', tmp_path / 'fork.npz', 1)


def test_a_folder_of_another_version_is_refused(seen, tmp_path):
  memory_folder.write(tmp_path / 'm', {'key': seen.key.size}, {'format_version': 1})
  with pytest.raises(ValueError, match='is of format version 1; expected 2'):
    session.Session.load(tmp_path / 'm', seen)


def test_a_folder_of_another_model_or_of_other_leaves_is_refused(seen, tmp_path, world, other):
  seen.save(tmp_path / 'm')
  with pytest.raises(ValueError, match='the memory of another model'):
    session.Session.load(tmp_path / 'm', world(base=other[0]))
  leaves, card = memory_file.leaves_at(tmp_path / 'm', None)
  leaves.pop('memories/long_term/step')
  memory_folder.write(tmp_path / 'less', leaves, card)
  with pytest.raises(ValueError, match='not fit the model. 1 missing: memories/long_term/step'):
    session.Session.load(tmp_path / 'less', seen)
  assert json.loads(json.dumps(card)) == card
