"""What keys do: in the real worlds, and where a dream expects to get by them."""

import sys

import numpy as np
import pytest

from tests.play import conftest
from wmpoe.data import bundled
from wmpoe.data import cards
from wmpoe.data import maze_config
from wmpoe.data import memory_maze
from wmpoe.play import worlds

_CONFIG = maze_config.MazeConfig()


def _maze(**options):
  """One step ahead or a quarter turn a frame, by the newest action alone."""
  kernel = np.zeros((12, 3), np.float32)
  for first in (0, 6):  # two simulator steps a frame
    kernel[first + 1, 0] = kernel[first + 4, 0] = kernel[first + 5, 0] = 0.25
    kernel[first + 2, 2] = kernel[first + 4, 2] = np.pi / 4
    kernel[first + 3, 2] = kernel[first + 5, 2] = -np.pi / 4
  return worlds.MazeWorld(_CONFIG, lambda actions: actions @ kernel, **options)


def test_cards_are_walked_and_turned_over():
  world = worlds.CardsWorld(conftest.ENV, 0)
  seen = [world.live(keys) for keys in (['right'], ['space'], ['space'], ['right'], ['down'], [])]
  assert [moment.action.argmax() for moment in seen] == [
      cards.RIGHT, cards.UNCOVER, cards.COVER, cards.RIGHT, cards.DOWN, cards.STAY]
  assert seen[3].place.pose.tolist() == [0, 1]  # a wall
  assert seen[-1].place.pose.tolist() == [1, 1]
  symbols = cards.templates(conftest.ENV, cursor=True)
  corner = seen[1].frame[:8, 8:]
  assert any(np.array_equal(corner, symbol) for symbol in symbols[:-1])
  np.testing.assert_array_equal(seen[2].frame[:8, 8:], symbols[-1])


def test_a_dream_of_cards_expects_what_reality_does():
  world = worlds.CardsWorld(conftest.ENV, 0)
  place, rng = world.now().place, np.random.default_rng(0)
  for _ in range(30):
    keys = [str(rng.choice(['up', 'down', 'left', 'right', 'space']))]
    action, place = world.move(place, keys)
    moment = world.live(keys)
    np.testing.assert_array_equal(action, moment.action)
    np.testing.assert_array_equal(place.pose, moment.place.pose)
    np.testing.assert_array_equal(world.nearest(place), moment.frame)


def test_a_recorded_maze_goes_on_whatever_is_pressed():
  item = bundled.episodes('memory_maze')[0]
  world = _maze(recorded=item)
  np.testing.assert_array_equal(world.now().frame, item.frames[0])
  np.testing.assert_array_equal(world.ahead(3).frame, item.frames[3])
  for index in range(1, item.length):
    moment = world.live(['left'])
    np.testing.assert_array_equal(moment.place.pose, item.poses[index])
  assert world.live(['up']) is None and world.ahead(1) is None
  np.testing.assert_array_equal(world.nearest(moment.place), item.frames[-1])


def test_a_dream_turns_walks_and_stops_at_walls():
  item = bundled.episodes('memory_maze')[0]
  world = _maze(recorded=item)
  layout = np.asarray(item.meta['layout'])
  y, x = np.argwhere(layout > 0)[0]
  place = worlds.Place(np.array([x + 0.5, y + 0.5, 0.0], np.float32))
  action, turned = world.move(place, ['left'])
  assert [memory_maze.ACTIONS[i] for i in action.reshape(2, 6).argmax(1)] == ['left', 'left']
  np.testing.assert_allclose(turned.pose, [x + 0.5, y + 0.5, np.pi / 2], atol=1e-6)
  for i in range(200):  # with the head against the walls, and along them
    _, place = world.move(place, ['up', 'left'] if i % 7 == 3 else ['up'])
    column, row = memory_maze.cells(place.pose)
    assert layout[row, column] > 0
    assert -np.pi < place.pose[2] <= np.pi
  _, other = world.move(place, ['left', 'right'])
  np.testing.assert_array_equal(other.pose, place.pose)  # one takes back the other
  far = worlds.Place(np.array([-50.0, 0, 0], np.float32))
  assert world.nearest(far) is None


def test_the_simulator_is_steered(simulator):
  world = _maze(simulator=worlds.simulated(_CONFIG, 3))
  first, second = world.now(), world.live(['up', 'right'])
  assert first.frame.shape == second.frame.shape == (60, 60, 3)
  assert [memory_maze.ACTIONS[i] for i in second.action.reshape(2, 6).argmax(1)] == [
      'forward_right'] * 2
  assert len(second.place.recent) == 2 and not first.action.any()
  assert world.plan()['size'] == len(world.plan()['layout'])


def test_without_the_simulator_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'memory_maze', None)
  monkeypatch.setitem(sys.modules, 'memory_maze.tasks', None)
  with pytest.raises(ImportError, match=r'pip install wmpoe\[maze\]'):
    worlds.simulated(_CONFIG, 0)
