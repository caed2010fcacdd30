import shutil

import numpy as np
import pytest

from tests.commands import conftest
from wmpoe import session
from wmpoe import zoo
from wmpoe.data import cards
from wmpoe.data import episode
from wmpoe.session import edits
from wmpoe.session import memory_file


def _board(index):
  env = cards.CardsConfig(size=16, grid=2, symbols=4)
  return episode.stack([cards.to_episode(cards.script_episode(index, env), env)], stop=10)


def _seen(index):
  return session.Session.open('cards').observe(_board(index))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A tiny world, and memory files of two of its boards."""
  patch, folder = pytest.MonkeyPatch(), tmp_path_factory.mktemp('files')
  world = conftest.Tiny().world('spatial')
  patch.setattr(zoo, 'load', lambda name, compose=None: world)
  for index in range(2):
    _seen(index).save(folder / f'{index}.npz')
  patch.undo()
  return world, folder


@pytest.fixture
def files(made, monkeypatch, tmp_path):
  """Two memory files of a tiny world in place of a packaged one."""
  world, folder = made
  monkeypatch.setattr(zoo, 'load', lambda name, compose=None: world)
  for file in folder.iterdir():
    shutil.copy(file, tmp_path)
  return ['0.npz', '1.npz']


def test_info_tells_what_is_inside(wmpoe, files):
  done = wmpoe('memory', 'info', files[0])
  assert done.code == 0, done.err
  for told in ('cards; written by wmpoe', 'frames observed 10, imagined 0', 'read, written to',
               'base + spatial by shared_base; weights spatial 1.5', "'name': 'ddim'", 'an open s',
               'spatial/features', 'recent'):
    assert told in done.out


def test_diff_tells_what_differs(wmpoe, files):
  done = wmpoe('memory', 'diff', *files)
  assert done.code == 0, done.err
  assert 'spatial/features' in done.out
  assert '    key                    the same' in done.out


def test_merge_and_fork_write_files(wmpoe, files, tmp_path):
  done = wmpoe('memory', 'merge', *files, '--how=average')
  assert done.code == 0, done.err
  assert 'wrote outputs/memory/merge.npz' in done.out
  card = memory_file.card(tmp_path / 'outputs/memory/merge.npz')
  assert card['observed'] == [20]
  assert card['lineage'][1] == 'merged with'
  done = wmpoe('memory', 'fork', files[0], '--branch=3', '--out=there.npz')
  assert done.code == 0, done.err
  assert memory_file.card(tmp_path / 'there.npz')['lineage'][-1] == 'forked as 3'
  assert 'key' in wmpoe('memory', 'diff', files[0], 'there.npz').out


def test_merging_writes_both_histories_anew(wmpoe, tiny, tmp_path, monkeypatch):
  world = tiny.world('long_term')
  monkeypatch.setattr(zoo, 'load', lambda name, compose=None: world)
  files = ['first.npz', 'later.npz']
  for index, file in enumerate(files):
    _seen(index).save(tmp_path / file, history=True)
  done = wmpoe('memory', 'merge', *files)
  assert done.code == 0, done.err
  merged = session.Session.load(tmp_path / 'outputs/memory/merge.npz')
  assert merged.writable and merged.lineage[-2] == 'by rewrite'
  held = merged.state.memories['long_term'].history
  assert held.length.tolist() == [20]
  np.testing.assert_array_equal(held.frames[:, 10:20], world.encode(_board(1)).frames)


def test_no_file_is_replaced_unasked(wmpoe, files, tmp_path):
  for branch, name in (1, 'fork.npz'), (2, 'fork_2.npz'):
    done = wmpoe('memory', 'fork', files[0], f'--branch={branch}')
    assert f'wrote outputs/memory/{name}' in done.out, done.err
    card = memory_file.card(tmp_path / 'outputs' / 'memory' / name)
    assert card['lineage'][-1] == f'forked as {branch}'
  before = (tmp_path / files[1]).read_bytes()
  done = wmpoe('memory', 'fork', files[0], f'--out={files[1]}')
  assert done.code == 2 and "--out='1.npz' already exists: name another" in done.err
  assert (tmp_path / files[1]).read_bytes() == before
  assert wmpoe('memory', 'fork', files[0], f'--out={files[1]}', '--overwrite').code == 0
  assert (tmp_path / files[1]).read_bytes() != before


def test_forget_hands_the_span_on_and_keeps_the_history(wmpoe, files, tmp_path, monkeypatch):
  monkeypatch.setattr(edits, 'forget', lambda s, a, b: s.fork(100 * a + b))
  done = wmpoe('memory', 'forget', files[0], '--frames=2:7', '--out=less.npz')
  assert done.code == 0, done.err
  card = memory_file.card(tmp_path / 'less.npz')
  assert card['lineage'][-1] == 'forked as 207' and card['history']


@pytest.mark.parametrize(('arguments', 'message'), [
    (['forget', '0.npz', '--frames=2:7'], 'does not hold the frames it was written from'),
    (['forget', '0.npz', '--frames=2'], "--frames='2': expected a span such as --frames=10:30."),
    (['merge', '0.npz'], 'memory merge got 1 file; expected 2: python -m wmpoe memory merge FILE'),
    (['merge', '0.npz', '1.npz'], 'does not hold the frames it was written from'),
    (['merge', '0.npz', '1.npz', '--how=sum'], 'value should be one of'),
    (['melt', '0.npz'], "memory 'melt': expected one of info, diff, merge, fork, forget."),
    (['info', 'nowhere.npz'], 'No such file'),
])
def test_bad_input_is_named(wmpoe, files, arguments, message):
  done = wmpoe('memory', *arguments)
  assert done.code == 2
  assert message in done.err
  assert 'Traceback' not in done.err
