import json
import pathlib
import sys

import pytest

from wmpoe.data import episode
from wmpoe.data import memory_maze

MAZE = f'--config={pathlib.Path(__file__).parents[2] / "configs" / "memory_maze.py"}'
SMALL = ('--config.env.image=16', '--length=120')


def _collect(wmpoe, tiny, *flags, folder='there'):
  return wmpoe('collect', tiny.config(), *tiny.env, f'--workdir={folder}', *flags)


def test_writes_episodes_and_what_they_have_in_common(wmpoe, tiny, tmp_path):
  done = _collect(wmpoe, tiny, '--episodes=2', '--split=test', '--kind=script')
  assert done.code == 0, done.err
  assert 'wrote 2 episodes to there' in done.out
  assert 'next: python -c' in done.out
  assert sorted(path.name for path in (tmp_path / 'there').iterdir()) == [
      'episode_00000.npz', 'episode_00001.npz', 'spaces.json']
  first = episode.Episode.load(tmp_path / 'there' / 'episode_00000.npz')
  assert first.frames.shape == (250, 16, 16, 3)
  assert (first.meta['split'], first.meta['kind']) == ('test', 'script')
  assert json.loads((tmp_path / 'there' / 'spaces.json').read_text())['config']['grid'] == 2


def test_goes_on_with_what_is_there(wmpoe, tiny, tmp_path):
  _collect(wmpoe, tiny, '--episodes=1')
  first = tmp_path / 'there' / 'episode_00000.npz'
  before = first.stat().st_mtime_ns
  assert _collect(wmpoe, tiny, '--episodes=2').code == 0
  assert first.stat().st_mtime_ns == before
  assert (tmp_path / 'there' / 'episode_00001.npz').exists()


def test_overwrites_only_when_told(wmpoe, tiny, tmp_path):
  _collect(wmpoe, tiny, '--episodes=2')
  again = _collect(wmpoe, tiny, '--episodes=1', '--split=test')
  assert again.code == 2
  assert "differ in split ('train', asked for 'test')" in again.err
  assert _collect(wmpoe, tiny, '--episodes=1', '--split=test', '--overwrite').code == 0
  assert [path.name for path in (tmp_path / 'there').glob('episode_*')] == ['episode_00000.npz']


@pytest.mark.parametrize(('flags', 'message'), [
    (['--episodes=0'], '--episodes=0: expected at least 1.'),
    (['--split=exam'], "Unknown split 'exam'; expected one of train, validation, test."),
    (['--kind=run'], "'run'"),
])
def test_bad_input_is_named_and_nothing_is_collected(wmpoe, tiny, tmp_path, flags, message):
  done = _collect(wmpoe, tiny, *flags)
  assert done.code == 2
  assert message in done.err
  assert list((tmp_path).rglob('episode_*')) == []


def test_a_folder_that_cannot_be_made(wmpoe, tiny, tmp_path):
  (tmp_path / 'file').write_text('here first')
  done = _collect(wmpoe, tiny, folder='file/below')
  assert done.code == 2
  assert "Cannot write to the output folder 'file/below' (Not a directory)" in done.err
  assert 'name another with --workdir' in done.err


# -------------------------------------------------------------------------------- Memory Maze


def _maze(wmpoe, *flags):
  return wmpoe('collect', MAZE, '--workdir=there', *SMALL, *flags)


def test_collects_mazes_and_reports_what_they_saw(wmpoe, simulator, tmp_path):
  done = _maze(wmpoe, '--episodes=2', '--split=test', '--seed=3')
  assert done.code == 0, done.err
  assert '100 %  collecting 2 of 2 episodes into there' in done.err
  assert '2 episodes, 0 bad\npolicy ' in done.out
  assert '\nrevisit           1 ' in done.out
  assert 'wrote 2 episodes to there' in done.out
  assert 'report: there/collection.json' in done.out
  assert 'next: python -c "from wmpoe.data import memory_maze' in done.out
  assert sorted(path.name for path in (tmp_path / 'there').iterdir()) == [
      '000000.npz', '000001.npz', 'collection.json']
  assert memory_maze.MazeFolder(tmp_path / 'there')[0].frames.shape == (60, 12, 12, 3)
  report = json.loads((tmp_path / 'there' / 'collection.json').read_text())
  assert report['settings'] == {
      'size': 9, 'image': 16, 'length': 120, 'policy': 'mixed', 'split': 'test', 'seed': 3}
  again = _maze(wmpoe, '--episodes=2', '--split=test', '--seed=3')
  assert 'wrote 0 episodes to there' in again.out


def test_flags_choose_size_and_policy(wmpoe, simulator, tmp_path):
  assert _maze(wmpoe, '--episodes=1', '--size=11', '--policy=waypoints').code == 0
  report = json.loads((tmp_path / 'there' / 'collection.json').read_text())
  assert (report['settings']['size'], report['settings']['policy']) == (11, 'waypoints')


def test_a_bad_episode_is_named_and_strict_stops(wmpoe, simulator):
  flags = ('--episodes=2', '--size=11', '--split=test')
  done = _maze(wmpoe, *flags)
  assert done.code == 0
  assert 'there/000000.npz: episode of seed 19 cannot be made (FloatingPointError' in done.err
  assert '1 episodes, 1 bad' in done.out
  assert 'bad: 000000.npz: episode of seed 19 cannot be made' in done.out
  none = wmpoe('collect', MAZE, '--workdir=other', *SMALL, *flags, '--episodes=1')
  assert none.code == 2
  assert 'None of the 1 episodes could be made' in none.err
  strict = _maze(wmpoe, *flags, '--strict')
  assert strict.code == 2
  assert 'there/000000.npz: episode of seed 19' in strict.err


@pytest.mark.parametrize(('flags', 'message'), [
    (['--size=10'], 'there are mazes of 9, 11, 13 and 15 cells'),
    (['--length=9999'], 'The length is 9999 simulator steps; expected 2 to 1000'),
    (['--policy=fly'], "Unknown policy 'fly'; expected one of waypoints, revisit, mixed."),
    (['--split=exam'], "Unknown split 'exam'"),
    (['--seed=-1'], 'seed is -1; expected 0 to 200'),
    (['--processes=0'], '--processes=0'),
    (['--kind=walk'], '--kind: only for cards; the config is of memory_maze.'),
])
def test_bad_maze_flags_are_named_and_nothing_is_collected(
    wmpoe, simulator, tmp_path, flags, message):
  done = _maze(wmpoe, *flags)
  assert done.code == 2
  assert message in done.err
  assert list(tmp_path.rglob('*.npz')) == []


def test_maze_flags_are_none_of_cards(wmpoe, tiny):
  done = _collect(wmpoe, tiny, '--size=9', '--policy=mixed')
  assert done.code == 2
  assert '--size, --policy: only for memory_maze; the config is of cards.' in done.err


def test_without_the_simulator_it_says_what_to_install(wmpoe, monkeypatch):
  monkeypatch.setitem(sys.modules, 'memory_maze', None)
  monkeypatch.setitem(sys.modules, 'memory_maze.tasks', None)
  done = _maze(wmpoe)
  assert done.code == 2
  assert 'pip install wmpoe[maze]' in done.err
