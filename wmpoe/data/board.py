"""The rules of Memory Cards: a board advanced one action at a time in plain integers.

Numpy is slow at single numbers; with Python integers an episode of 250 frames takes a third of a
millisecond, so that training draws every episode anew and stores none.
"""

from collections.abc import Iterable
import functools

import numpy as np

ACTIONS = ('STAY', 'UP', 'DOWN', 'LEFT', 'RIGHT', 'UNCOVER', 'COVER')
STAY, UP, DOWN, LEFT, RIGHT, UNCOVER, COVER = range(7)
_MOVES = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))


@functools.lru_cache(maxsize=128)
def boustrophedon(grid: int, orientation: int = 0) -> tuple[int, ...]:
  """Tiles (row * grid + column) along one of the 8 ox-turning paths over the grid.

  Orientation 0 starts at (0, 0) and goes row by row; bit 0 transposes (column by column), bit 1
  mirrors the rows and bit 2 the columns.
  """
  path = []
  for i in range(grid):
    for j in range(grid) if i % 2 == 0 else reversed(range(grid)):
      row, column = (j, i) if orientation & 1 else (i, j)
      row = grid - 1 - row if orientation & 2 else row
      column = grid - 1 - column if orientation & 4 else column
      path.append(row * grid + column)
  return tuple(path)


class Board:
  """The state of the world and its trace: `cursors`, `masks` and `actions` have one entry a frame.

  `events` has (frame, tile, last_seen) for each frame at which a covered card is uncovered, where
  last_seen is the last earlier frame that showed the card, -1 if there is none.
  """

  def __init__(self, grid: int, length: int, *, cursor: int, mask: int = 0):
    """Starts an episode.

    Args:
      grid: cards a side.
      length: frames of the whole episode; actions past it have no effect.
      cursor: tile (row * grid + column) of the cursor.
      mask: bit i is set if card i lies uncovered.
    """
    self.grid, self.length = grid, length
    self.row, self.column = divmod(cursor, grid)
    self.mask = mask
    self.seen = [-1] * (grid * grid)
    self.cursors, self.masks, self.actions = [cursor], [mask], [STAY]
    self.events: list[tuple[int, int, int]] = []

  def step(self, action: int) -> None:
    """Applies one action; nothing happens past the end, which cuts long scripts."""
    frame = len(self.actions)
    if frame >= self.length:
      return
    grid = self.grid
    if action < UNCOVER:
      d_row, d_column = _MOVES[action]
      row, column = self.row + d_row, self.column + d_column
      if 0 <= row < grid and 0 <= column < grid:
        self.row, self.column = row, column
    tile = self.row * grid + self.column
    bit = 1 << tile
    if action == UNCOVER and not self.mask & bit:
      self.mask |= bit
      self.events.append((frame, tile, self.seen[tile]))
    elif action == COVER and self.mask & bit:
      self.mask ^= bit
      self.seen[tile] = frame - 1
    self.cursors.append(tile)
    self.masks.append(self.mask)
    self.actions.append(action)

  def go(self, tile: int) -> None:
    """Walks straight to a tile."""
    row, column = divmod(tile, self.grid)
    while len(self.actions) < self.length and (self.row, self.column) != (row, column):
      if self.row != row:
        self.step(UP if row < self.row else DOWN)
      else:
        self.step(LEFT if column < self.column else RIGHT)

  def sweep(self, path: Iterable[int], action: int) -> None:
    """Acts on every tile of a path: act, move, act, ..."""
    for tile in path:
      self.go(tile)
      self.step(action)

  def walk(self, rng: np.random.Generator) -> None:
    """Random walk to the end of the episode, with some persistence of direction."""
    grid, heading = self.grid, 0
    draws = rng.random((self.length - len(self.actions), 3)).tolist()
    for kind, first, second in draws:
      uncovered = self.mask >> (self.row * grid + self.column) & 1
      walls = (
          False,
          self.row == 0,
          self.row == grid - 1,
          self.column == 0,
          self.column == grid - 1,
      )
      if kind < 0.45:
        action = COVER if uncovered else UNCOVER
      elif kind < 0.50:
        action = STAY
      elif kind < 0.53:  # Useless on purpose: the model must learn what does nothing.
        blocked = [move for move in (UP, DOWN, LEFT, RIGHT) if walls[move]]
        if blocked and first < 0.5:
          action = blocked[int(second * len(blocked))]
        else:
          action = UNCOVER if uncovered else COVER
      elif heading and not walls[heading] and first < 0.6:
        action = heading
      else:
        free = [move for move in (UP, DOWN, LEFT, RIGHT) if not walls[move]]
        action = heading = free[int(second * len(free))]
      self.step(action)
