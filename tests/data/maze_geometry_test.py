import numpy as np
import pytest

from wmpoe.data import maze_geometry
from wmpoe.data import memory_maze

HALF_VIEW = memory_maze.half_view()


def ahead(layout, pose, side=60):
  """Inverse depth along the middle column, from sky to floor."""
  poses = np.array([pose], np.float32)
  return maze_geometry.inverse_depth(np.array(layout), poses, side, HALF_VIEW)[0, :, side // 2]


@pytest.mark.parametrize(('pose', 'distance'), [
    ([0.5, 0.5, 0.0], 2.5), ([2.5, 0.5, np.pi], 2.5), ([1.5, 0.5, 0.0], 1.5)])
def test_a_wall_ahead_is_as_far_as_it_is(pose, distance):
  found = ahead([[1, 1, 1]], pose)
  # The wall is upright and the camera looks down: along its axis the distance is shorter further up
  # the wall. Where the ray is level the distance along the axis is that over ground, times cosine.
  rows = ((np.arange(60) + 0.5) / 30 - 1) * np.tan(HALF_VIEW)
  level = np.abs(rows + np.tan(memory_maze.CAMERA_PITCH)).argmin()
  far = (distance - memory_maze.CAMERA_AHEAD) / (
      np.cos(memory_maze.CAMERA_PITCH) - rows[level] * np.sin(memory_maze.CAMERA_PITCH))
  np.testing.assert_allclose(1 / found[level], far, rtol=1e-5)
  assert found[0] == 0.0, 'the sky is infinitely far'
  lowest = np.sin(memory_maze.CAMERA_PITCH) + np.cos(memory_maze.CAMERA_PITCH) * rows[-1]
  np.testing.assert_allclose(found[-1], lowest / memory_maze.CAMERA_HEIGHT, rtol=1e-5)


def test_walls_inside_the_maze_count_and_those_behind_do_not():
  found = ahead([[1, 0, 1]], [0.5, 0.5, 0.0])
  open_hall = ahead([[1, 1, 1]], [0.5, 0.5, 0.0])
  assert found[30] > 2 * open_hall[30] > 0
  np.testing.assert_array_equal(found, ahead([[1, 0, 0]], [0.5, 0.5, 0.0]))
  np.testing.assert_array_equal(open_hall, ahead([[0, 1, 1, 1]], [1.5, 0.5, 0.0]))


def test_rows_are_y_and_columns_are_x():
  hall = [[1, 0], [1, 0], [1, 0]]
  np.testing.assert_allclose(
      ahead(hall, [0.5, 0.5, np.pi / 2]), ahead([[1, 1, 1]], [0.5, 0.5, 0.0]), atol=1e-5)
  assert ahead(hall, [0.5, 0.5, 0.0])[30] > 1.0


def test_a_slanting_ray_meets_the_cells_it_crosses():
  """It leaves the hall where a cell beside it is free, and goes on to the wall ahead."""
  pose = np.array([[0.5, 1.5, 0.0]], np.float32)
  look = lambda layout: maze_geometry.inverse_depth(np.array(layout), pose, 60, HALF_VIEW)[0, 30]
  closed, opened = look([[0, 0, 0], [1, 1, 1]]), look([[0, 0, 1], [1, 1, 1]])
  column = int(30 * (1 + 0.25 / np.tan(HALF_VIEW)))  # a cell to the right on four ahead
  assert opened[column] < 0.9 * closed[column]
  np.testing.assert_allclose(opened[column], opened[30], rtol=1e-5)
  np.testing.assert_array_equal(opened[:30], closed[:30])
