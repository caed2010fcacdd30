import types

import numpy as np
import pytest

from wmpoe.data import episode
from wmpoe.data import folder
from wmpoe.data import inspection
from wmpoe.data import spaces
from wmpoe.data.sources import rollouts


class Discrete:
  """As gymnasium's: choices from `start` on."""

  def __init__(self, n, start=0):
    self.n, self.start = n, start


class Box:
  shape = (2,)


class Walk:
  """Four steps to the right; the picture tells how many were made."""

  metadata = {'render_fps': 8}

  def __init__(self, space=None, end='terminated'):
    self.action_space, self.end, self.closed = space or Discrete(3, start=1), end, False

  def reset(self, *, seed=None, options=None):
    self.at = 0
    return self.at, {'seed': seed}

  def step(self, action):
    self.at += 1
    over = self.at == 4
    return (self.at, 0.0, over and self.end == 'terminated', over and self.end == 'truncated', {})

  def render(self):
    return np.full((6, 8, 3), self.at, np.uint8)

  def close(self):
    self.closed = True


def _load(path):
  return [episode.Episode.load(p) for p in folder.files(path)]


@pytest.mark.parametrize('end', ['terminated', 'truncated'])
def test_every_episode_becomes_a_file(tmp_path, end):
  env = rollouts.EpisodeRecorder(
      Walk(end=end), tmp_path, pose=lambda e: (e.at, 0, 0), poses=spaces.PLANAR,
      action_names=('stay', 'go', 'turn'), size=(4, 4))
  with env:
    assert env.reset(seed=3) == (0, {'seed': 3})
    for action in (1, 2, 3, 2, 2, 2):  # those after the end are no frames of anything
      env.step(action)
    env.reset()
    env.step(3)
  assert env.env.closed and env.at == 1
  first, second = _load(tmp_path)
  assert (first.length, second.length) == (5, 2)
  np.testing.assert_array_equal(first.frames[:, 0, 0, 0], range(5))
  # Action t led to frame t; nothing led to the first.
  np.testing.assert_array_equal(
      first.actions, [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]])
  np.testing.assert_array_equal(first.poses[:, 0], range(5))
  assert (first.meta['environment'], second.meta['name']) == ('Walk', 'Walk_00001')
  world = inspection.spaces_of(tmp_path)
  assert (world.fps, world.frame, world.actions.names) == (8.0, (4, 4), ('stay', 'go', 'turn'))


def test_depth_is_recorded_beside_the_frames(tmp_path):
  far = lambda e: np.full((6, 8), 1.0 + e.at)
  with rollouts.EpisodeRecorder(Walk(), tmp_path, depth=far, size=(4, 4)) as env:
    env.reset()
    env.step(1)
  item, = _load(tmp_path)
  assert item.depth.shape == (2, 4, 4)
  np.testing.assert_array_equal(item.depth[:, 0, 0], [1, 2])


def test_a_second_recording_goes_on_and_another_world_is_refused(tmp_path):
  for _ in range(2):
    with rollouts.EpisodeRecorder(Walk(Box()), tmp_path) as env:
      env.reset()
      env.step(np.array([0.5, -1]))
  assert [item.meta['name'] for item in _load(tmp_path)] == ['Walk_00000', 'Walk_00001']
  np.testing.assert_allclose(_load(tmp_path)[0].actions[1], [0.5, -1])
  env = rollouts.EpisodeRecorder(Walk(Box()), tmp_path, environment='other')
  env.reset()
  env.step(np.zeros(2))
  with pytest.raises(ValueError, match=r"differ in environment \('Walk', asked for 'other'\)"):
    env.close()


def test_short_episodes_are_not_written(tmp_path):
  with rollouts.EpisodeRecorder(Walk(), tmp_path / 'out') as env:
    env.reset()
  assert not (tmp_path / 'out').exists()


def test_a_last_frame_that_shows_nothing_is_left_out(tmp_path):
  picture = lambda at: None if at == 4 else np.full((4, 4, 3), at, np.uint8)
  with rollouts.EpisodeRecorder(Walk(), tmp_path, frame=picture) as env:
    env.reset()
    for _ in range(4):
      env.step(2)
  (item,) = _load(tmp_path)
  np.testing.assert_array_equal(item.frames[:, 0, 0, 0], range(4))


def test_what_cannot_be_recorded_is_refused(tmp_path):
  with pytest.raises(ValueError, match='expected Discrete or Box'):
    rollouts.EpisodeRecorder(Walk(types.SimpleNamespace(n=3)), tmp_path)
  with pytest.raises(ValueError, match='2 action names for 3 actions'):
    rollouts.EpisodeRecorder(Walk(), tmp_path, action_names=('a', 'b'))
  with pytest.raises(ValueError, match='expected both a function and its kind'):
    rollouts.EpisodeRecorder(Walk(), tmp_path, pose=lambda e: (0, 0, 0))
  env = rollouts.EpisodeRecorder(Walk(), tmp_path)
  env.reset()
  with pytest.raises(ValueError, match='action 4 is outside'):
    env.step(4)
  env = rollouts.EpisodeRecorder(Walk(), tmp_path, frame=lambda observation: None)
  with pytest.raises(ValueError, match='render_mode'):
    env.reset()
