import pytest

from wmpoe.data import maze_config


def test_dimensions():
  config = maze_config.MazeConfig()
  assert config.frame_shape == (60, 60, 3)
  assert (config.action_dim, config.pose_dim) == (12, 3)
  assert maze_config.MazeConfig(skip=1, border=0).frame_shape == (64, 64, 3)


@pytest.mark.parametrize('options, message', [
    ({'size': 10}, 'there are mazes of 9, 11, 13 and 15'),
    ({'skip': 0}, 'skip and length of at least 1'),
    ({'border': 32}, 'an image wider than its borders'),
])
def test_impossible_worlds_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    maze_config.MazeConfig(**options)
