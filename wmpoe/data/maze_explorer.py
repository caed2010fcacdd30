"""Scripted explorers of a maze: where to go next, and how to steer there.

A policy is a small object with `act(position, heading, layout, rng) -> action`, made anew for every
episode; it sees the layout, the rest of its knowledge it gathers itself. Conventions (cells,
headings, actions) are those of `memory_maze`. NumPy only: no simulator is needed to try one.

In a step the simulator's body turns by .29 rad on average (.33 at most) and advances by up to .25
cells; it has little momentum.
"""

from collections import deque
from collections.abc import Callable, Sequence
import dataclasses
from typing import Protocol

import numpy as np

from wmpoe.data import memory_maze

NOOP, FORWARD, LEFT, RIGHT, FORWARD_LEFT, FORWARD_RIGHT = range(len(memory_maze.ACTIONS))
Cell = tuple[int, int]  # (x, y)

_TURN = 0.29  # radians of one step of turning
_REACHED = 0.35  # cells from the middle of a cell that count as being there
_STUCK_STEPS, _STUCK_WAY = 14, 0.15  # a turn in place takes eleven steps at most


class Policy(Protocol):
  """What decides the next action."""

  def act(
      self, position: np.ndarray, heading: float, layout: np.ndarray, rng: np.random.Generator
  ) -> int:
    """The action (index into `memory_maze.ACTIONS`) at (x, y) [2], in a maze [N N]."""
    ...


# ------------------------------------------------------------------------------------------- paths


def distances(
    layout: np.ndarray, start: Cell, *, avoid: Sequence[Cell] = ()) -> np.ndarray:
  """Steps between neighbouring cells from `start` to every cell: int [N N], -1 if out of reach.

  Args:
    layout: [N N], 1 where free.
    start: (x, y).
    avoid: Cells that are treated as walls.
  """
  out = np.full(layout.shape, -1)
  out[start[1], start[0]] = 0
  closed = {*avoid}
  queue = deque([start])
  while queue:
    x, y = queue.popleft()
    for cell in _neighbours(layout, (x, y)):
      if out[cell[1], cell[0]] < 0 and cell not in closed:
        out[cell[1], cell[0]] = out[y, x] + 1
        queue.append(cell)
  return out


def shortest_path(
    layout: np.ndarray, start: Cell, *, goal: Cell, avoid: Sequence[Cell] = (),
    rng: np.random.Generator | None = None) -> list[Cell]:
  """A shortest path without its start, [] if there is none; `rng` chooses among several."""
  away = distances(layout, goal, avoid=[cell for cell in avoid if cell not in (start, goal)])
  if away[start[1], start[0]] < 0:
    return []
  path, cell = [], start
  while cell != goal:
    closer = [
        c for c in _neighbours(layout, cell) if away[c[1], c[0]] == away[cell[1], cell[0]] - 1]
    cell = closer[int(rng.integers(len(closer))) if rng is not None else 0]
    path.append(cell)
  return path


def _neighbours(layout: np.ndarray, cell: Cell) -> list[Cell]:
  x, y = cell
  around = ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1))
  return [
      (a, b) for a, b in around
      if 0 <= a < layout.shape[1] and 0 <= b < layout.shape[0] and layout[b, a]]


# ---------------------------------------------------------------------------------------- steering


def steer(position: np.ndarray, heading: float, *, target: np.ndarray) -> int:
  """The action that brings a body at (x, y) [2] nearer to `target` [2]; turns first."""
  ahead, left, _ = memory_maze.relative_pose(
      np.array([*target, 0.0]), np.array([*position, heading]))
  turn = float(np.arctan2(left, ahead))
  if abs(turn) > 0.9:
    return LEFT if turn > 0 else RIGHT
  if abs(turn) > _TURN / 2:
    return FORWARD_LEFT if turn > 0 else FORWARD_RIGHT
  return FORWARD


@dataclasses.dataclass(kw_only=True)
class _Walker:
  """Follows plans cell by cell: what the policies have in common.

  Attributes:
    noise: Probability per step that one to three equal random actions follow.
    look: Probability of looking around where a plan ends.
  """

  noise: float = 0.03
  look: float = 0.25
  _plan: deque[Cell] = dataclasses.field(default_factory=deque, init=False)
  _actions: deque[int] = dataclasses.field(default_factory=deque, init=False)
  _trail: deque[np.ndarray] = dataclasses.field(
      default_factory=lambda: deque(maxlen=_STUCK_STEPS), init=False)

  def next_plan(self, here: Cell, layout: np.ndarray, rng: np.random.Generator) -> list[Cell]:
    """Cells to walk through next, each beside the one before; [] if there is nowhere to go."""
    raise NotImplementedError

  def act(
      self, position: np.ndarray, heading: float, layout: np.ndarray, rng: np.random.Generator
  ) -> int:
    """See `Policy`."""
    if not self._actions:
      self._decide(position, heading, layout, rng)
    return self._actions.popleft()

  def _decide(
      self, position: np.ndarray, heading: float, layout: np.ndarray, rng: np.random.Generator
  ) -> None:
    """Puts at least one action into the queue."""
    x, y = np.floor(position).astype(int)
    here = (int(x), int(y))
    self._trail.append(np.array(position))
    while self._plan and np.hypot(*(_middle(self._plan[0]) - position)) < _REACHED:
      self._plan.popleft()
      if not self._plan and rng.random() < self.look:
        turn, side = rng.uniform(np.pi / 4, 2 * np.pi), int(rng.choice([LEFT, RIGHT]))
        return self._repeat(side, max(1, round(turn / _TURN)))
    if not self._plan:
      self._plan.extend(self.next_plan(here, layout, rng))
    if self._plan and not _beside(here, self._plan[0]):  # Noise or momentum led astray.
      way = shortest_path(layout, here, goal=self._plan[0], rng=rng)
      self._plan.extendleft(reversed(way[:-1]))
    if not self._plan:
      return self._repeat(LEFT, 1)
    if len(self._trail) == _STUCK_STEPS and np.hypot(*(position - self._trail[0])) < _STUCK_WAY:
      self._repeat(int(rng.choice([LEFT, RIGHT])), int(rng.integers(2, 7)))
      return self._repeat(FORWARD, 2)
    if rng.random() < self.noise:
      return self._repeat(int(rng.integers(len(memory_maze.ACTIONS))), int(rng.integers(1, 4)))
    return self._actions.append(steer(position, heading, target=_middle(self._plan[0])))

  def _repeat(self, action: int, times: int) -> None:
    self._actions.extend([action] * times)
    self._trail.clear()


@dataclasses.dataclass(kw_only=True)
class Waypoints(_Walker):
  """Walks to free cells drawn at random, each by a shortest path; sees much of the maze."""

  def next_plan(self, here: Cell, layout: np.ndarray, rng: np.random.Generator) -> list[Cell]:
    """A shortest path to a random cell."""
    return _to_random_cell(here, layout, rng, least=1)


@dataclasses.dataclass(kw_only=True)
class Revisit(_Walker):
  """Comes back on purpose: A to B and back to A, the whole of it twice, then on to another A.

  The way back is another one if the maze has one (a loop, walked twice in the same direction: the
  same views again), or the same in reverse (a return trip). Now and then it goes to an A where it
  was long ago.

  Attributes:
    least: Fewest cells from A to B, if there are any so far away.
    most: Most cells from A to B.
    loop: Probability of a loop, where there is one.
    old: Probability that the next A is an old one.
  """

  least: int = 4
  most: int = 12
  loop: float = 0.6
  old: float = 0.4
  _legs: deque[list[Cell]] = dataclasses.field(default_factory=deque, init=False)
  _places: list[Cell] = dataclasses.field(default_factory=list, init=False)

  def next_plan(self, here: Cell, layout: np.ndarray, rng: np.random.Generator) -> list[Cell]:
    """The next leg of the journey."""
    if not self._legs:
      self._legs.extend(self._journey(here, layout, rng))
    return self._legs.popleft() if self._legs else []

  def _journey(self, start: Cell, layout: np.ndarray, rng: np.random.Generator) -> list[list[Cell]]:
    out = _to_random_cell(start, layout, rng, least=self.least, most=self.most)
    if not out:
      return []
    end = out[-1]
    back = [*out[-2::-1], start]
    other = shortest_path(layout, end, goal=start, avoid=out[:-1], rng=rng)
    # Beside each other, A and B would be joined by the way there: no loop.
    if len(other) > 1 and rng.random() < self.loop:
      back = other
    legs = [out, back, out, back]
    elsewhere = [cell for cell in self._places if cell != start]
    self._places.append(start)
    if elsewhere and rng.random() < self.old:
      place = elsewhere[int(rng.integers(len(elsewhere)))]
      return [*legs, shortest_path(layout, start, goal=place, rng=rng)]
    return [*legs, _to_random_cell(start, layout, rng, least=self.least)]


def _to_random_cell(
    start: Cell, layout: np.ndarray, rng: np.random.Generator, *, least: int,
    most: int | None = None) -> list[Cell]:
  """A shortest path to a random cell `least` to `most` cells away, or to one that is nearer."""
  away = distances(layout, start)
  fits = (away >= least) & (away <= (away.max() if most is None else most))
  candidates = np.argwhere(fits if fits.any() else away > 0)
  if not len(candidates):
    return []
  y, x = candidates[int(rng.integers(len(candidates)))]
  return shortest_path(layout, start, goal=(int(x), int(y)), rng=rng)


def _middle(cell: Cell) -> np.ndarray:
  return np.array(cell) + 0.5


def _beside(a: Cell, b: Cell) -> bool:
  return abs(a[0] - b[0]) + abs(a[1] - b[1]) <= 1


POLICIES: dict[str, Callable[[], Policy]] = {'waypoints': Waypoints, 'revisit': Revisit}


def policy(name: str) -> Policy:
  """A new policy of that name, for one episode.

  Raises:
    ValueError: for an unknown name.
  """
  if name not in POLICIES:
    raise ValueError(f'Unknown policy {name!r}; expected one of {", ".join(POLICIES)}.')
  return POLICIES[name]()
