"""Tests of the rules of Memory Cards."""

import hypothesis
import hypothesis.strategies as st
import pytest

from wmpoe.data import board


@pytest.mark.parametrize('grid', [2, 3, 4, 5])
@pytest.mark.parametrize('orientation', range(8))
def test_boustrophedon_visits_every_tile_once_by_single_steps(grid, orientation):
  path = board.boustrophedon(grid, orientation)
  assert sorted(path) == list(range(grid * grid))
  for a, b in zip(path, path[1:], strict=False):
    (row, column), (next_row, next_column) = divmod(a, grid), divmod(b, grid)
    assert abs(row - next_row) + abs(column - next_column) == 1


def test_boustrophedon_orientations():
  assert board.boustrophedon(3, 0) == (0, 1, 2, 5, 4, 3, 6, 7, 8)
  assert board.boustrophedon(3, 1) == (0, 3, 6, 7, 4, 1, 2, 5, 8)
  assert board.boustrophedon(3, 2)[0] == 6
  assert board.boustrophedon(3, 4)[0] == 2
  assert len({board.boustrophedon(4, orientation) for orientation in range(8)}) == 8


def test_walls_stop_the_cursor():
  world = board.Board(2, 10, cursor=0)
  for action in (board.UP, board.LEFT, board.DOWN, board.DOWN, board.RIGHT, board.RIGHT):
    world.step(action)
  assert world.cursors == [0, 0, 0, 2, 2, 3, 3]


def test_uncover_and_cover_act_under_the_cursor_once():
  world = board.Board(2, 10, cursor=1, mask=0b1000)
  for action in (board.UNCOVER, board.UNCOVER, board.COVER, board.COVER, board.UNCOVER):
    world.step(action)
  assert world.masks == [0b1000, 0b1010, 0b1010, 0b1000, 0b1000, 0b1010]
  # Uncovered at frame 1 for the first time, last seen at frame 2, uncovered again at frame 5.
  assert world.events == [(1, 1, -1), (5, 1, 2)]


def test_card_uncovered_from_the_start_counts_as_seen():
  world = board.Board(2, 10, cursor=0, mask=0b1)
  world.step(board.COVER)
  world.step(board.UNCOVER)
  assert world.events == [(2, 0, 0)]


def test_nothing_happens_past_the_end():
  world = board.Board(3, 4, cursor=0)
  world.sweep(board.boustrophedon(3), board.UNCOVER)
  assert world.actions == [board.STAY, board.UNCOVER, board.RIGHT, board.UNCOVER]
  assert world.mask == 0b11
  world.go(8)
  assert len(world.cursors) == 4


@hypothesis.given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.integers(2, 4))
@hypothesis.settings(max_examples=30)
def test_events_agree_with_the_masks(actions, grid):
  world = board.Board(grid, 100, cursor=0)
  for action in actions:
    world.step(action)
  expected = []
  for frame in range(1, len(world.masks)):
    for tile in range(grid * grid):
      shown = [mask >> tile & 1 for mask in world.masks[: frame + 1]]
      if shown[-1] and not shown[-2]:
        expected.append((frame, tile, max((f for f in range(frame) if shown[f]), default=-1)))
  assert world.events == expected
