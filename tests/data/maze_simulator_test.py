import pathlib
import sys

import numpy as np
import pytest

from wmpoe.data import maze_explorer
from wmpoe.data import maze_simulator
from wmpoe.data import memory_maze

HERE = pathlib.Path(__file__).parent
FIELDS = {
    'image', 'action', 'reward', 'agent_pos', 'agent_dir', 'maze_layout', 'targets_pos',
    'targets_vec', 'target_color', 'target_pos', 'target_vec'}


def _run(seed=7, name='waypoints', **options):
  return maze_simulator.run(seed, maze_explorer.policy(name), **{'length': 30, **options})


def test_fields_are_those_of_the_public_dataset(simulator):
  fields = _run()
  with np.load(HERE / 'tiny_maze.npz') as real:
    assert set(fields) == set(real.files) == FIELDS
    for name in FIELDS:
      assert fields[name].dtype == real[name].dtype, name
      assert fields[name].shape[2:] == real[name].shape[2:], name
      assert len(fields[name]) == 30
  assert memory_maze.from_fields(fields, source='episode').length == 30


def test_depth_is_in_cells_and_the_sky_infinitely_far(simulator):
  fields = _run(depth=True)
  depth = fields['depth']
  assert set(fields) == FIELDS | {'depth'} and depth.dtype == np.float16
  assert np.isinf(depth[:, 0]).all()
  x = fields['agent_pos'][:, 0, None, None]
  np.testing.assert_allclose(depth[:, 1:], np.broadcast_to(x, (30, 63, 64)), rtol=1e-3)


def test_frames_are_copies_and_actions_lead_to_their_frame(simulator):
  fields = _run(image=32)
  assert fields['image'].shape == (30, 32, 32, 3)
  assert len(np.unique(fields['agent_pos'], axis=0)) > 5
  assert not fields['action'][0].any()
  moved = (np.diff(fields['agent_pos'], axis=0) != 0).any(axis=1)
  may_move = np.isin(fields['action'][1:].argmax(axis=1), (1, 4, 5))
  assert not moved[~may_move].any()


def test_an_episode_depends_on_seed_and_policy_alone(simulator):
  first, again = _run(), _run()
  assert all((first[name] == again[name]).all() for name in FIELDS)
  assert (first['action'] != _run(seed=8)['action']).any()
  long = {name: _run(name=name, length=200)['action'] for name in maze_explorer.POLICIES}
  assert (long['waypoints'] != long['revisit']).any()


def test_a_clock_that_runs_out_is_an_error(simulator, monkeypatch):
  from memory_maze import tasks

  monkeypatch.setattr(
      tasks, 'memory_maze_9x9', lambda **options: tasks.Maze(1, 64, limit=10))
  with pytest.raises(RuntimeError, match='seed 7 ended after 11 of 30 steps'):
    _run()


@pytest.mark.parametrize(('options', 'message'), [
    ({'size': 10}, 'maze size is 10; expected one of 9, 11, 13, 15'),
    ({'length': 1001}, 'length is 1001 simulator steps; expected 2 to 1000'),
    ({'length': 1}, 'length is 1 '),
    ({'image': 8}, 'image side is 8'),
])
def test_what_the_simulator_cannot_do(options, message):
  with pytest.raises(ValueError, match=message):
    _run(**options)


def test_without_the_simulator_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'memory_maze.tasks', None)
  monkeypatch.setitem(sys.modules, 'memory_maze', None)
  with pytest.raises(ImportError) as error:
    _run()
  for words in ('pip install wmpoe[maze]', 'libegl1 libgl1 libegl-mesa0', 'MUJOCO_GL=egl'):
    assert words in str(error.value)


def test_a_graphics_library_that_fails_is_told_apart(simulator, tmp_path, monkeypatch):
  package = tmp_path / 'memory_maze'
  package.mkdir()
  (package / '__init__.py').write_text("raise AttributeError(\"no attribute 'eglQueryString'\")")
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(ImportError, match="AttributeError: no attribute 'eglQueryString'.*libegl1"):
    maze_simulator.require()


def test_a_screen_that_is_not_there_is_told_apart(simulator, monkeypatch):
  from memory_maze import tasks

  def make(**options):
    raise RuntimeError('an OpenGL platform library has not been loaded')

  monkeypatch.setattr(tasks, 'memory_maze_9x9', make)
  monkeypatch.setenv('MUJOCO_GL', 'glfw')
  with pytest.raises(ImportError, match='Cannot render with MUJOCO_GL=glfw .*MUJOCO_GL=egl'):
    _run()


# --------------------------------------------------------------------------------------- seeds


def test_splits_never_share_a_seed():
  seeds = {
      split: {maze_simulator.episode_seed(i, split, seed=s) for s in (0, 1, 7) for i in range(2000)}
      for split in maze_simulator.SPLITS}
  assert [len(chosen) for chosen in seeds.values()] == [6000] * 3
  assert len(set().union(*seeds.values())) == 18000
  assert {seed % 20 for seed in seeds['validation']} == {9}
  assert {seed % 20 for seed in seeds['test']} == {19}
  assert max(map(max, seeds.values())) < 2**32


def test_seeds_out_of_range():
  with pytest.raises(ValueError, match='seed is 201; expected 0 to 200'):
    maze_simulator.episode_seed(0, 'train', seed=201)
  with pytest.raises(ValueError, match='index is 1000000; expected fewer than a million'):
    maze_simulator.episode_seed(1_000_000, 'test')
  with pytest.raises(ValueError, match="Unknown split 'exam'"):
    maze_simulator.episode_seed(0, 'exam')


# ------------------------------------------------------------------------------- the real thing


def test_the_real_simulator_gives_the_bundled_episode_again():
  pytest.importorskip('mujoco')
  pytest.importorskip('memory_maze')
  # The bundled one is a piece of validation episode 3; its maze is the same from the start.
  seed = maze_simulator.episode_seed(3, 'validation')
  fields = _run(seed, 'revisit', length=8)
  real = memory_maze.load(HERE / 'tiny_maze.npz')
  again = memory_maze.from_fields(fields, source='again')
  np.testing.assert_array_equal(again.layout, real.layout)
  np.testing.assert_allclose(again.targets_pos, real.targets_pos, atol=1e-5)
  border = np.repeat(again.frames[:, :1, :1], 64, axis=2)
  np.testing.assert_array_equal(again.frames[:, :1], border)
