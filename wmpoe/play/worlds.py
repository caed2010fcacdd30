"""The worlds you can steer through: what keys do, where you are, and the real world to compare.

A world turns keys into the action and pose of the next frame (`move`), which is all a dream needs,
and runs a reality of its own that answers with frames (`live`). Shapes: A actions, P poses, H W.
"""

from collections.abc import Callable, Collection
import dataclasses
from typing import Any, Protocol

import jax
import numpy as np

from wmpoe.data import cards
from wmpoe.data import episode
from wmpoe.data import maze_config
from wmpoe.data import maze_simulator
from wmpoe.data import memory_maze
from wmpoe.networks import odometry as odometry_lib

_RECENT = 3  # actions that still count

Planned = Callable[[np.ndarray], np.ndarray]  # actions [T A] -> motions [T 3]: ahead, left, turn


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
  """Where you are.

  Attributes:
    pose: [P].
    recent: The last actions, newest last: a body has inertia.
    mask: Memory Cards: bit i is set if card i is uncovered.
  """

  pose: np.ndarray
  recent: tuple[np.ndarray, ...] = ()
  mask: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Moment:
  """A real frame uint8 [H W 3], the action [A] that led to it, and where it was seen from."""

  frame: np.ndarray
  action: np.ndarray
  place: Place


class World(Protocol):
  """What the page needs of a world."""

  name: str
  title: str
  hint: str
  can_follow: bool

  def now(self) -> Moment:
    """The current moment of reality."""
    ...

  def live(self, keys: Collection[str]) -> Moment | None:
    """Advances reality by one frame; None at its end."""
    ...

  def move(self, place: Place, keys: Collection[str]) -> tuple[np.ndarray, Place]:
    """The action [A] for the keys, and where it is expected to lead in a dream."""
    ...

  def ahead(self, count: int) -> Moment | None:
    """The real moment `count` frames ahead of the current one, if reality is recorded."""
    ...

  def nearest(self, place: Place) -> np.ndarray | None:
    """A real frame to compare a dreamed one with: the truth, or the nearest that was seen."""
    ...

  def plan(self) -> dict[str, Any]:
    """The plan of the world for the minimap, as plain JSON."""
    ...


class CardsWorld:
  """Memory Cards: arrows move the cursor, space turns a card over."""

  name, title, can_follow = 'cards', 'Memory Cards', False
  hint = 'arrows move the cursor, space turns a card over'

  def __init__(self, config: cards.CardsConfig, index: int):
    """A board of the test split, all cards covered."""
    self._config = config
    self._symbols = cards.simulate(index, config, 'test').cards
    self._at = Moment(self._picture(0, 0, 0), self._one_hot(cards.STAY), Place(np.zeros(2, 'f')))

  def now(self) -> Moment:
    """See `World`."""
    return self._at

  def live(self, keys: Collection[str]) -> Moment | None:
    """See `World`."""
    action, place = self.move(self._at.place, keys)
    row, column = place.pose.astype(int)
    self._at = Moment(self._picture(row, column, place.mask), action, place)
    return self._at

  def move(self, place: Place, keys: Collection[str]) -> tuple[np.ndarray, Place]:
    """See `World`."""
    (row, column), last = place.pose.astype(int), self._config.grid - 1
    bit = 1 << int(row * (last + 1) + column)
    if 'space' in keys:
      action = cards.COVER if place.mask & bit else cards.UNCOVER
      return self._one_hot(action), Place(place.pose, mask=place.mask ^ bit)
    moves = {'up': (cards.UP, -1, 0), 'down': (cards.DOWN, 1, 0), 'left': (cards.LEFT, 0, -1),
             'right': (cards.RIGHT, 0, 1)}
    action, down, right = next((moves[k] for k in moves if k in keys), (cards.STAY, 0, 0))
    pose = np.clip(np.array([row + down, column + right]), 0, last).astype(np.float32)
    return self._one_hot(action), Place(pose, mask=place.mask)

  def ahead(self, count: int) -> Moment | None:
    """See `World`: this reality is not recorded."""
    del count
    return None

  def nearest(self, place: Place) -> np.ndarray | None:
    """See `World`: the truth."""
    row, column = place.pose.astype(int)
    return self._picture(row, column, place.mask)

  def plan(self) -> dict[str, Any]:
    """See `World`."""
    return {'kind': 'board', 'size': self._config.grid}

  def _one_hot(self, action: int) -> np.ndarray:
    return np.eye(cards.NUM_ACTIONS, dtype=np.float32)[action]

  def _picture(self, row: int, column: int, mask: int) -> np.ndarray:
    bits = np.arange(self._config.num_cards)
    sim = cards.EpisodeArrays(
        index=0, split='test', kind='walk', cards=self._symbols,
        cursor=np.array([[row, column]], np.int32), visible=(mask >> bits & 1).astype(bool)[None],
        actions=np.zeros(1, np.int32), events=np.zeros((0, 3), np.int32))
    return cards.render(sim, self._config)[0]


def planned_by(network: odometry_lib.Odometry, params: Any) -> Planned:
  """The motions that an odometry predicts from actions alone."""
  plan = jax.jit(
      lambda actions: network.apply({'params': params}, actions[None], method='planned')[0])
  return lambda actions: np.asarray(plan(actions))


class MazeWorld:
  """Memory Maze: arrows walk and turn. Reality is a recorded episode, or the simulator.

  The learned odometry predicts from the last actions alone where a dreamed step leads; walls of the
  real maze stop it, as they would have.
  """

  name, title = 'memory_maze', 'Memory Maze'
  _WALL = 0.2  # cells between the body's middle and a wall
  _FAR = 4.0  # of the cost below, from which on a real frame shows something else

  def __init__(
      self, config: maze_config.MazeConfig, planned: Planned, *,
      recorded: episode.Episode | None = None, simulator: Any = None):
    """Reality is either `recorded` or `simulator`.

    Args:
      config: Frame skip and border.
      planned: Where actions lead, according to the odometry; see `planned_by`.
      recorded: An episode as the model sees it.
      simulator: A running `maze_simulator.Simulator`.
    """
    self._config, self._planned = config, planned
    self._recorded, self._simulator, self._index = recorded, simulator, 0
    self.can_follow = recorded is not None
    self.hint = 'arrows walk and turn' + (
        '; the real episode is a recording: any key plays it' if recorded else '')
    self._seen: list[Moment] = []
    if recorded is not None:
      self._layout = np.asarray(recorded.meta['layout'])
      self._seen.append(self._moment(0, ()))
    else:
      start = simulator.start()
      self._layout = start['maze_layout']
      self._seen.append(self._simulated(start, np.zeros(config.action_dim, np.float32), ()))

  def now(self) -> Moment:
    """See `World`."""
    return self._seen[-1]

  def live(self, keys: Collection[str]) -> Moment | None:
    """See `World`."""
    recent = self.now().place.recent
    if self._recorded is not None:
      if self._index + 1 >= self._recorded.length:
        return None
      self._index += 1
      self._seen.append(self._moment(self._index, recent))
    else:
      number = self._action(keys)
      steps = [self._simulator.step(number) for _ in range(self._config.skip)]
      if steps[-1] is None:
        return None
      self._seen.append(self._simulated(steps[-1], self._vector(number), recent))
    return self.now()

  def move(self, place: Place, keys: Collection[str]) -> tuple[np.ndarray, Place]:
    """See `World`."""
    action = self._vector(self._action(keys))
    recent = (*place.recent, action)[-_RECENT:]
    before = [np.zeros_like(action)] * (_RECENT - len(recent))
    ahead, left, turn = self._planned(np.stack([*before, *recent]))[-1]
    x, y, heading = place.pose
    cos, sin = np.cos(heading), np.sin(heading)
    # One axis after the other: along a wall one slides.
    for step in ((cos * ahead - sin * left, 0.0), (0.0, sin * ahead + cos * left)):
      there = x + step[0], y + step[1]
      # Where one stands closer to a wall than that, as the real body may, one can still get away.
      if self._free(*there, self._WALL) or (
          not self._free(x, y, self._WALL) and self._free(*there, 0.0)):
        x, y = there
    pose = np.array([x, y, memory_maze.wrap(heading + turn)], np.float32)
    return action, Place(pose, recent)

  def ahead(self, count: int) -> Moment | None:
    """See `World`."""
    if self._recorded is None or self._index + count >= self._recorded.length:
      return None
    return self._moment(self._index + count, ())

  def nearest(self, place: Place) -> np.ndarray | None:
    """See `World`: of what was really seen, the frame nearest in pose, unless all are far away."""
    poses = np.stack([moment.place.pose for moment in self._seen])
    relative = memory_maze.relative_pose(poses, place.pose)
    cost = np.square(relative[:, :2] / 0.5).sum(-1) + np.square(relative[:, 2] / 0.4)
    best = int(cost.argmin())
    return self._seen[best].frame if cost[best] < self._FAR else None

  def plan(self) -> dict[str, Any]:
    """See `World`."""
    return {'kind': 'maze', 'size': len(self._layout), 'layout': self._layout.tolist()}

  def _moment(self, index: int, recent: tuple[np.ndarray, ...]) -> Moment:
    assert self._recorded is not None
    action = self._recorded.actions[index]
    return Moment(self._recorded.frames[index], action,
                  Place(self._recorded.poses[index], (*recent, action)[-_RECENT:]))

  def _simulated(
      self, fields: dict[str, np.ndarray], action: np.ndarray, recent: tuple[np.ndarray, ...]
  ) -> Moment:
    border = self._config.border
    frame = fields['image'][border:-border or None, border:-border or None]
    heading = np.arctan2(fields['agent_dir'][1], fields['agent_dir'][0])
    pose = np.array([*fields['agent_pos'], heading], np.float32)
    return Moment(np.ascontiguousarray(frame), action, Place(pose, (*recent, action)[-_RECENT:]))

  def _action(self, keys: Collection[str]) -> int:
    turn = ('left' in keys) - ('right' in keys)
    name = {0: '', 1: 'left', -1: 'right'}[turn]
    name = '_'.join(part for part in ('forward' * ('up' in keys), name) if part)
    return memory_maze.ACTIONS.index(name or 'noop')

  def _vector(self, number: int) -> np.ndarray:
    one = np.eye(maze_config.ACTIONS, dtype=np.float32)[number]
    return np.tile(one, self._config.skip)

  def _free(self, x: float, y: float, margin: float) -> bool:
    side = len(self._layout)
    corners = [(x + i * margin, y + j * margin) for i in (-1, 1) for j in (-1, 1)]
    return all(
        0 <= a < side and 0 <= b < side and self._layout[int(b), int(a)] > 0 for a, b in corners)


def simulated(config: maze_config.MazeConfig, seed: int) -> Any:
  """A simulator to walk through.

  Raises:
    ImportError: if it is not installed; says what to install.
  """
  return maze_simulator.Simulator(
      maze_simulator.episode_seed(seed, 'test'), size=config.size, image=config.image)
