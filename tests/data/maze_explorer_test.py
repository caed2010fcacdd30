import pathlib

import numpy as np
import pytest

from wmpoe.data import maze_explorer
from wmpoe.data import memory_maze

LAYOUT = memory_maze.load(pathlib.Path(__file__).parent / 'tiny_maze.npz').layout
_FREE = [(int(x), int(y)) for y, x in np.argwhere(LAYOUT > 0)]
WALLED = np.pad(LAYOUT, 1)
RING = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]])


@pytest.fixture
def walk(simulator):
  """Walks a policy through the maze of the bundled episode: poses [T 3], actions [T]."""
  from memory_maze import tasks

  def run(policy, seed=0, length=600):
    maze = tasks.Maze(seed, 8, length + 1, WALLED)
    maze.reset()
    rng, poses, actions = np.random.default_rng(seed), [], []
    for _ in range(length):
      poses.append([*maze.position, maze.heading])
      actions.append(policy.act(maze.position, maze.heading, WALLED, rng))
      maze.step(actions[-1])
    return np.array(poses), np.array(actions)

  return run


# --------------------------------------------------------------------------------------- paths


def test_distances_by_hand():
  np.testing.assert_array_equal(
      maze_explorer.distances(RING, (0, 0)), [[0, 1, 2], [1, -1, 3], [2, 3, 4]])
  np.testing.assert_array_equal(
      maze_explorer.distances(RING, (0, 0), avoid=[(1, 0)]), [[0, -1, 6], [1, -1, 5], [2, 3, 4]])


def test_shortest_paths_lead_through_free_cells_beside_each_other():
  for goal in _FREE:
    path = maze_explorer.shortest_path(LAYOUT, (4, 8), goal=goal, rng=np.random.default_rng(0))
    away = maze_explorer.distances(LAYOUT, (4, 8))[goal[1], goal[0]]
    assert len(path) == away
    whole = np.array([(4, 8), *path])
    assert LAYOUT[whole[:, 1], whole[:, 0]].all()
    np.testing.assert_array_equal(np.abs(np.diff(whole, axis=0)).sum(axis=1), 1)


def test_no_path_and_ways_around():
  assert maze_explorer.shortest_path(np.eye(2), (0, 0), goal=(1, 1)) == []
  around = maze_explorer.shortest_path(RING, (0, 0), goal=(2, 0), avoid=[(1, 0), (2, 0)])
  assert around == [(0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0)]
  both = {tuple(maze_explorer.shortest_path(
      RING, (0, 0), goal=(2, 2), rng=np.random.default_rng(seed))) for seed in range(8)}
  assert len(both) == 2


# ------------------------------------------------------------------------------------ steering


@pytest.mark.parametrize(('heading', 'action'), [
    (0.0, 'forward'), (0.1, 'forward'), (-0.5, 'forward_left'), (0.5, 'forward_right'),
    (-2.0, 'left'), (2.0, 'right'), (np.pi - 0.1, 'right'), (np.pi + 0.1, 'left')])
def test_steers_to_the_side_the_target_is_on(heading, action):
  chosen = maze_explorer.steer(np.array([1.5, 1.5]), heading, target=np.array([2.5, 1.5]))
  assert memory_maze.ACTIONS[chosen] == action


# ------------------------------------------------------------------------------------ policies


@pytest.mark.parametrize('name', maze_explorer.POLICIES)
def test_policies_are_pure_functions_of_what_they_are_given(walk, name):
  first, again = (walk(maze_explorer.policy(name), seed=3, length=200) for _ in range(2))
  np.testing.assert_array_equal(first[1], again[1])
  assert (first[1] != walk(maze_explorer.policy(name), seed=4, length=200)[1]).any()


def test_waypoints_see_most_of_the_maze(walk):
  walks = [walk(maze_explorer.policy('waypoints'), seed)[0] for seed in range(6)]
  seen = [memory_maze.coverage(poses, WALLED) for poses in walks]
  assert np.mean(seen) > 0.55
  assert min(seen) > 0.4


def test_revisit_comes_back_more_often(walk):
  rate = {}
  for name in maze_explorer.POLICIES:
    walks = [walk(maze_explorer.policy(name), seed)[0] for seed in range(16)]
    rate[name] = np.mean([memory_maze.revisits(poses, gap=100).mean() for poses in walks])
  assert rate['revisit'] > 1.2 * rate['waypoints'], rate


def test_a_journey_goes_out_and_back_twice_and_on():
  policy = maze_explorer.Revisit(loop=0.0)
  start, rng = (4, 8), np.random.default_rng(0)
  out, back, out_again, back_again, on = (policy.next_plan(start, LAYOUT, rng) for _ in range(5))
  assert back == [*out[-2::-1], start]
  assert (out, back) == (out_again, back_again)
  assert on[-1] != start
  assert 4 <= len(out) <= 12


def test_a_loop_comes_back_by_another_way():
  policy = maze_explorer.Revisit(loop=1.0, least=2)
  out, back = (policy.next_plan((0, 0), RING, np.random.default_rng(1)) for _ in range(2))
  assert back[-1] == (0, 0)
  assert not {*out[:-1]} & {*back[:-1]}


def test_without_a_loop_it_turns_round():
  corridor = np.ones((1, 8))
  policy = maze_explorer.Revisit(loop=1.0)
  out, back = (policy.next_plan((0, 0), corridor, np.random.default_rng(1)) for _ in range(2))
  assert back == [*out[-2::-1], (0, 0)]


def test_noise_is_the_share_of_actions_that_are_random(walk):
  straight = maze_explorer.Waypoints(noise=0.0, look=0.0)
  assert (walk(straight)[1] != maze_explorer.NOOP).all()
  noisy = maze_explorer.Waypoints(noise=0.3, look=0.0)
  assert 0.03 < (walk(noisy)[1] == maze_explorer.NOOP).mean() < 0.2


def test_led_astray_it_walks_back_to_its_plan():
  policy, rng = maze_explorer.Waypoints(noise=0.0, look=0.0), np.random.default_rng(0)
  far = lambda cell: maze_explorer.distances(LAYOUT, (4, 8))[cell[1], cell[0]]
  policy.act(np.array([4.5, 8.5]), 0.0, LAYOUT, rng)
  planned = list(policy._plan)
  astray = max(_FREE, key=far)
  policy.act(np.array(astray) + 0.5, 0.0, LAYOUT, rng)
  way = np.array([astray, *policy._plan])
  assert list(policy._plan)[-len(planned):] == planned
  assert len(way) > len(planned) + 3
  np.testing.assert_array_equal(np.abs(np.diff(way, axis=0)).sum(axis=1), 1)


def test_a_body_that_is_held_frees_itself():
  policy, rng = maze_explorer.Waypoints(noise=0.0, look=0.0), np.random.default_rng(0)
  position, actions = np.array([4.5, 8.5]), []
  for _ in range(60):
    actions.append(policy.act(position, 0.0, LAYOUT, rng))
  assert len(set(actions)) > 1


@pytest.mark.parametrize('name', maze_explorer.POLICIES)
def test_a_single_free_cell_is_no_trap(name):
  policy, rng = maze_explorer.policy(name), np.random.default_rng(0)
  actions = {policy.act(np.array([0.5, 0.5]), 0.0, np.ones((1, 1)), rng) for _ in range(30)}
  assert actions <= set(range(6))


def test_unknown_policy():
  with pytest.raises(ValueError, match="'fly'; expected one of waypoints, revisit"):
    maze_explorer.policy('fly')
