import types

import numpy as np

_LAYOUT = [
    '#########', '#...#...#', '#.#.#.#.#', '#.#...#.#', '#.#####.#', '#.......#', '#.##.##.#',
    '#.......#', '#########']
_TURN, _ADVANCE = 0.29, 0.24


class Maze:
  """A body of no size in a small maze, in the calls of a dm_control environment."""

  def __init__(self, seed, resolution, limit, layout=None):
    self.rng, self.resolution, self.limit = np.random.default_rng(seed), resolution, limit
    text = np.array([list(row) for row in _LAYOUT])
    self.layout = (text == '.').astype(np.uint8) if layout is None else layout
    self.time = 0

  def reset(self):
    cells = np.argwhere(self.layout)
    y, x = cells[self.rng.integers(len(cells))]
    self.position, self.heading = np.array([x + 0.5, y + 0.5]), self.rng.uniform(-np.pi, np.pi)
    self.color = self.rng.random(3)
    return self.show(0.0)

  def step(self, action):
    self.heading += _TURN * ((action in (2, 4)) - (action in (3, 5)))
    if action in (1, 4, 5):
      ahead = np.array([np.cos(self.heading), np.sin(self.heading)])
      for axis in (0, 1):  # Slides along walls.
        there = self.position.copy()
        there[axis] += _ADVANCE * ahead[axis]
        x, y = np.floor(there).astype(int)
        if self.layout[y, x]:
          self.position = there
    self.time += 1
    return self.show(float(self.time % 50 == 0))

  def show(self, reward):
    direction = np.array([np.cos(self.heading), np.sin(self.heading)])
    image = np.full((self.resolution, self.resolution, 3), 255 * self.color, np.uint8)
    image[2:-2, 2:-2] = int(self.position[0] * 20)
    targets = np.array([[1.5, 1.5], [7.5, 1.5], [1.5, 7.5]])
    observation = {
        'image': image, 'target_color': self.color, 'agent_pos': self.position.copy(),
        'agent_dir': direction, 'targets_vec': targets - self.position, 'targets_pos': targets,
        'target_vec': targets[0] - self.position, 'target_pos': targets[0],
        'maze_layout': self.layout.copy()}
    return types.SimpleNamespace(
        observation=observation, reward=reward, last=lambda: self.time >= self.limit)

  def close(self):
    pass

  @property
  def physics(self):
    """What renders depth: as many cells as x is, below a row of sky."""

    def render(height, width, *, camera_id, depth):
      assert camera_id == 'walker/egocentric' and depth
      out = np.full((height, width), 2.0 * self.position[0], np.float32)
      out[0] = 900.0
      return out

    return types.SimpleNamespace(render=render)


def memory_maze_9x9(*, seed, camera_resolution, global_observables):
  assert global_observables
  return Maze(seed, camera_resolution, 1000)


def memory_maze_11x11(*, seed, camera_resolution, global_observables):
  if seed % 40 == 19:
    raise FloatingPointError('the physics blew up')
  return memory_maze_9x9(
      seed=seed, camera_resolution=camera_resolution, global_observables=global_observables)
