"""Tests of symbolic episodes: splits, the script's timings, walks."""

import time

import numpy as np
import pytest

from wmpoe.data import board
from wmpoe.data import trajectories

CONFIG = trajectories.CardsConfig()


def _same(a, b):
  return all(
      np.array_equal(getattr(a, name), getattr(b, name))
      for name in ('cards', 'cursor', 'visible', 'actions', 'events')
  )


def test_splits_are_disjoint_and_nine_to_one():
  train = {trajectories.seed_of(i, 'train') for i in range(900)}
  validation = {trajectories.seed_of(i, 'validation') for i in range(50)}
  test = {trajectories.seed_of(i, 'test') for i in range(50)}
  assert len(train) == 900
  assert train | validation | test == set(range(1000))


@pytest.mark.parametrize('kind', trajectories.KINDS)
def test_random_access_is_deterministic_and_split_matters(kind):
  later = trajectories.simulate(7, CONFIG, 'train', kind)
  assert _same(later, trajectories.simulate(7, CONFIG, 'train', kind))
  assert not _same(later, trajectories.simulate(8, CONFIG, 'train', kind))
  assert not _same(later, trajectories.simulate(7, CONFIG, 'test', kind))


@pytest.mark.parametrize('kind', trajectories.KINDS)
@pytest.mark.parametrize('index', range(12))
def test_replaying_the_actions_gives_the_trajectory(kind, index):
  sim = trajectories.simulate(index, CONFIG, 'train', kind)
  cursor, visible = sim.cursor[0], sim.visible[0].copy()
  assert sim.actions[0] == board.STAY
  events, seen = [], np.where(visible, 0, -1)
  for frame in range(1, sim.length):
    action = sim.actions[frame]
    step = {1: (-1, 0), 2: (1, 0), 3: (0, -1), 4: (0, 1)}.get(int(action), (0, 0))
    cursor = np.clip(cursor + step, 0, 3)
    tile = cursor[0] * 4 + cursor[1]
    if action == board.UNCOVER:
      if not visible[tile]:
        events.append((frame, tile, seen[tile]))
      visible[tile] = True
    if action == board.COVER:
      visible[tile] = False
    seen = np.where(visible, frame, seen)
    np.testing.assert_array_equal(sim.cursor[frame], cursor)
    np.testing.assert_array_equal(sim.visible[frame], visible)
  np.testing.assert_array_equal(sim.events, np.array(events).reshape(-1, 3))


def test_canonical_script_timings():
  timing = trajectories.script_timing(CONFIG)
  assert (timing.history, timing.reveal) == (72, 31)
  sim = trajectories.script_episode(3, CONFIG, 'test')
  assert sim.length == 250
  count = sim.visible.sum(1)
  assert count[0] == 0
  assert count[31] == 16
  assert count[61] == 1
  assert (count[62:72] == 0).all()
  assert (sim.actions[63:72] == board.STAY).all()
  assert count[102] == 16
  assert tuple(sim.cursor[0]) == tuple(sim.cursor[71]) == (0, 0)
  again = sim.events[16:32]
  assert tuple(again[:, 0]) == timing.uncover_frames == tuple(range(72, 103, 2))
  assert tuple(again[:, 1]) == tuple(sim.events[:16, 1]) == board.boustrophedon(4, 0)
  # Covered in reverse: the first card revealed is the last one seen, at frame 61.
  assert tuple(again[:, 2]) == tuple(range(61, 30, -2))


def test_new_order_shows_the_same_cards_along_a_path_never_walked():
  same, new = (
      trajectories.script_episode(3, CONFIG, 'test', order) for order in ('same', 'new')
  )
  np.testing.assert_array_equal(same.cards, new.cards)
  np.testing.assert_array_equal(same.actions[:72], new.actions[:72])
  history = [tuple(new.events[:16, 1]), tuple(new.events[15::-1, 1])]
  assert tuple(new.events[16:32, 1]) == (0, 4, 8, 12, 13, 9, 5, 1, 2, 6, 10, 14, 15, 11, 7, 3)
  assert tuple(new.events[16:32, 1]) not in history
  assert tuple(new.events[16:32, 0]) == trajectories.script_timing(CONFIG).uncover_frames


@pytest.mark.parametrize('grid', [2, 3, 5])
def test_script_timing_holds_for_other_grids(grid):
  config = trajectories.CardsConfig(size=8 * grid, grid=grid)
  timing = trajectories.script_timing(config)
  sim = trajectories.script_episode(0, config)
  number = grid * grid
  assert sim.visible[: timing.history].sum(1).max() == number
  assert not sim.visible[timing.history - 10 : timing.history].any()
  np.testing.assert_array_equal(sim.events[number : 2 * number, 0], timing.uncover_frames)
  assert sim.visible[timing.history + timing.reveal - 1].all()


def test_training_scripts_vary_as_promised():
  starts, pauses, reverse, same = set(), set(), [], []
  for index in range(200):
    sim = trajectories.simulate(index, CONFIG, 'train', 'script')
    first = tuple(sim.events[:16, 1])
    second = tuple(sim.events[16:32, 1])
    assert sorted(first) == sorted(second) == list(range(16))
    assert (sim.events[16:32, 2] >= 0).all()
    starts.add(first)
    empty = np.flatnonzero(~sim.visible[32:].any(1)) + 32
    pauses.add(int(sim.events[16, 0] - empty[0] - 1))
    covered_last = sim.events[16:32, 1][sim.events[16:32, 2].argmax()]
    reverse.append(covered_last == first[0])
    same.append(second == first)
  assert len(starts) == 8
  assert pauses == set(range(3, 13))
  assert 0.6 < np.mean(reverse) < 0.8
  assert 0.3 < np.mean(same) < 0.7


def test_walks_uncover_again_what_was_seen_and_start_covered_half_of_the_time():
  sims = [trajectories.simulate(index, CONFIG, 'train', 'walk') for index in range(200)]
  covered = np.mean([not sim.visible[0].any() for sim in sims])
  assert 0.4 < covered < 0.65
  assert np.mean([(sim.events[:, 2] >= 0).sum() for sim in sims]) > 15
  tiles = np.mean([len({tuple(cursor) for cursor in sim.cursor.tolist()}) for sim in sims])
  assert tiles > 14  # It travels.
  flips = np.mean([(sim.actions >= board.UNCOVER).mean() for sim in sims])
  assert 0.42 < flips < 0.52
  useless = np.mean([
      (~(np.diff(sim.visible.astype(int), axis=0).any(1) | np.diff(sim.cursor, axis=0).any(1))
       & (sim.actions[1:] != board.STAY)).mean() for sim in sims])
  assert 0.015 < useless < 0.045


def test_walks_keep_their_direction_more_often_than_chance():
  kept = []
  for index in range(100):
    actions = trajectories.simulate(index, CONFIG, 'train', 'walk').actions
    moves = actions[(actions != board.STAY) & (actions < board.UNCOVER)]
    kept.append((moves[1:] == moves[:-1]).mean())
  assert np.mean(kept) > 0.38  # Without persistence about 0.25.


def test_symbols_are_drawn_uniformly_with_replacement():
  cards = np.stack([trajectories.simulate(i, CONFIG, 'test').cards for i in range(300)])
  share = np.bincount(cards.ravel(), minlength=8) / cards.size
  assert len(share) == 8
  assert abs(share - 1 / 8).max() < 0.02
  assert max(np.bincount(row).max() for row in cards) > 3


def test_both_kinds_alternate():
  kinds = [trajectories.simulate(index, CONFIG).kind for index in range(4)]
  assert kinds == ['walk', 'script', 'walk', 'script']


def test_short_episodes_are_cut():
  config = trajectories.CardsConfig(length=20)
  assert all(trajectories.simulate(i, config).actions.shape == (20,) for i in range(6))


def test_simulation_is_cheap():
  trajectories.simulate(0, CONFIG)
  best = min(_seconds(kind) for kind in trajectories.KINDS for _ in range(5))
  assert best < 2e-3  # About 0.3 ms; the bound is for a machine under load.


def _seconds(kind):
  start = time.perf_counter()
  trajectories.simulate(5, CONFIG, 'train', kind)
  return time.perf_counter() - start


@pytest.mark.parametrize(
    'arguments, message',
    [
        ({'size': 33}, 'size is 33; expected a multiple of grid=4'),
        ({'size': 16}, 'at least 8 pixels, such as 32 or 48'),
        ({'grid': 1}, 'grid is 1; expected 2 to 8'),
        ({'symbols': 9}, 'symbols is 9; expected 2 to 8'),
        ({'length': 1}, 'length is 1; expected at least 2'),
    ],
)
def test_impossible_worlds_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    trajectories.CardsConfig(**arguments)


def test_unknown_names_are_refused():
  with pytest.raises(ValueError, match="Unknown split 'dev'; expected one of train, validation"):
    trajectories.simulate(0, CONFIG, 'dev')
  with pytest.raises(ValueError, match="Unknown kind 'run' of episode; expected one of walk"):
    trajectories.simulate(0, CONFIG, 'train', 'run')
  with pytest.raises(ValueError, match='index is -1'):
    trajectories.simulate(-1, CONFIG)
  with pytest.raises(ValueError, match="Unknown order 'old'"):
    trajectories.script_episode(0, CONFIG, order='old')
  with pytest.raises(ValueError, match='length is 100; the script needs at least 103'):
    trajectories.script_episode(0, trajectories.CardsConfig(length=100))
