"""Symbolic episodes of Memory Cards: who lies where, what is seen when, and no pixels.

An episode is a pure function of `(config, split, index)`. Shapes: T frames, N = grid * grid cards.
"""

import dataclasses
from typing import Literal

import numpy as np

from wmpoe.data import board
from wmpoe.data import sprites

KINDS = ('walk', 'script')
SPLITS = ('train', 'validation', 'test')

# 9:1 by seed, the held-out tenth halved again: weights are chosen on validation, reported on test.
_VALIDATION_RESIDUE, _TEST_RESIDUE, _MODULUS = 9, 19, 20
_TRAIN_RESIDUES = tuple(
    r for r in range(_MODULUS) if r not in (_VALIDATION_RESIDUE, _TEST_RESIDUE)
)
_SALT = 2605_18813
_PAUSE = 9


@dataclasses.dataclass(frozen=True)
class CardsConfig:
  """The world: `size` pixels a side, `grid` cards a side, `symbols` in use, `length` frames.

  Raises:
    ValueError: a size that is no multiple of the grid, or a value outside its range.
  """

  size: int = 32
  grid: int = 4
  symbols: int = 8
  length: int = 250

  def __post_init__(self) -> None:
    if not 2 <= self.grid <= 8:
      raise ValueError(f'CardsConfig.grid is {self.grid}; expected 2 to 8 cards a side.')
    if self.size % self.grid or self.size // self.grid < 8:
      raise ValueError(
          f'CardsConfig.size is {self.size}; expected a multiple of grid={self.grid} that gives '
          f'each card at least 8 pixels, such as {8 * self.grid} or {12 * self.grid}.'
      )
    if not 2 <= self.symbols <= len(sprites.SYMBOLS):
      most = len(sprites.SYMBOLS)
      raise ValueError(f'CardsConfig.symbols is {self.symbols}; expected 2 to {most}.')
    if self.length < 2:
      raise ValueError(f'CardsConfig.length is {self.length}; expected at least 2 frames.')

  @property
  def frame_shape(self) -> tuple[int, int, int]:
    """(H, W, 3)."""
    return self.size, self.size, 3

  @property
  def action_dim(self) -> int:
    """A: one-hot actions."""
    return len(board.ACTIONS)

  @property
  def pose_dim(self) -> int:
    """P: row, column of the cursor."""
    return 2

  @property
  def tile(self) -> int:
    """Side of one card in pixels."""
    return self.size // self.grid

  @property
  def num_cards(self) -> int:
    """N, the number of cards."""
    return self.grid * self.grid


@dataclasses.dataclass(frozen=True, eq=False)
class EpisodeArrays:
  """One symbolic trajectory: everything about an episode but its pixels.

  `events` has a row (frame, tile, last_seen) for each frame at which a covered card is uncovered;
  last_seen is the last earlier frame that showed the card, -1 if there is none.
  """

  index: int
  split: str
  kind: str
  cards: np.ndarray  # [N] int32, symbol under each tile
  cursor: np.ndarray  # [T 2] int32, row and column at frame t (after action t)
  visible: np.ndarray  # [T N] bool
  actions: np.ndarray  # [T] int32, the action that LED to frame t
  events: np.ndarray  # [E 3] int32

  @property
  def length(self) -> int:
    """T."""
    return self.actions.shape[0]


def seed_of(index: int, split: str) -> int:
  """Seed of the index-th episode of a split; splits never share a seed.

  seed % 20 == 9 is validation (for choosing), seed % 20 == 19 is test (for reporting), the other
  nine tenths are train.

  Raises:
    ValueError: unknown split or negative index.
  """
  if split not in SPLITS:
    raise ValueError(f'Unknown split {split!r}; expected one of {", ".join(SPLITS)}.')
  if index < 0:
    raise ValueError(f'Episode index is {index}; expected 0 or more.')
  if split == 'validation':
    return _MODULUS * index + _VALIDATION_RESIDUE
  if split == 'test':
    return _MODULUS * index + _TEST_RESIDUE
  block, position = divmod(index, len(_TRAIN_RESIDUES))
  return _MODULUS * block + _TRAIN_RESIDUES[position]


def _finish(
    done: board.Board, config: CardsConfig, *, index: int, split: str, kind: str, cards: np.ndarray
) -> EpisodeArrays:
  masks = np.array(done.masks, np.uint64)
  bits = np.arange(config.num_cards, dtype=np.uint64)
  return EpisodeArrays(
      index=index,
      split=split,
      kind=kind,
      cards=cards,
      cursor=np.stack(np.divmod(np.array(done.cursors, np.int32), config.grid), -1),
      visible=((masks[:, None] >> bits) & np.uint64(1)).astype(bool),
      actions=np.array(done.actions, np.int32),
      events=np.array(done.events, np.int32).reshape(-1, 3),
  )


def _start(
    index: int, config: CardsConfig, split: str
) -> tuple[np.random.Generator, np.ndarray]:
  rng = np.random.default_rng((_SALT, seed_of(index, split)))
  return rng, rng.integers(0, config.symbols, config.num_cards, dtype=np.int32)


def _random_script(config: CardsConfig, rng: np.random.Generator) -> board.Board:
  orientation, pause = int(rng.integers(8)), int(rng.integers(3, 13))
  again = int(rng.integers(2))
  reverse, change = rng.random() >= 0.3, rng.random() < 0.5
  path = board.boustrophedon(config.grid, orientation)
  world = board.Board(config.grid, config.length, cursor=path[0])
  world.sweep(path, board.UNCOVER)
  world.sweep(path[::-1] if reverse else path, board.COVER)
  for _ in range(pause):
    world.step(board.STAY)
  corner = path[0] if reverse else path[-1]
  second = path if reverse else path[::-1]
  if change:  # Two of the eight paths start at any corner: row by row and column by column.
    paths = [board.boustrophedon(config.grid, o) for o in range(8)]
    second = [p for p in paths if p[0] == corner][again]
  world.sweep(second, board.UNCOVER)
  return world


def simulate(
    index: int,
    config: CardsConfig,
    split: str = 'train',
    kind: Literal['walk', 'script'] | None = None,
) -> EpisodeArrays:
  """The index-th episode of a split, without pixels.

  Args:
    index: which episode; any number from 0.
    config: the world.
    split: 'train', 'validation' or 'test'; disjoint by seed.
    kind: 'walk' (a seeded random walk), 'script' (reveal, cover, pause, reveal again along a
      random one of 8 paths, then a walk), or None: walk for even indices, script for odd ones.

  Returns:
    The trajectory; the same arguments always give the same one.

  Raises:
    ValueError: unknown split or kind, negative index.
  """
  if kind is None:
    kind = 'script' if index % 2 else 'walk'
  if kind not in KINDS:
    raise ValueError(f'Unknown kind {kind!r} of episode; expected one of {", ".join(KINDS)}.')
  rng, cards = _start(index, config, split)
  if kind == 'script':
    world = _random_script(config, rng)
  else:
    fraction = max(0.0, rng.uniform(-1.0, 1.0))  # Half of the walks start all covered.
    shown = rng.random(config.num_cards) < fraction
    mask = sum(1 << tile for tile in np.flatnonzero(shown).tolist())
    start = int(rng.integers(config.num_cards))
    world = board.Board(config.grid, config.length, cursor=start, mask=mask)
  world.walk(rng)
  return _finish(world, config, index=index, split=split, kind=kind, cards=cards)


@dataclasses.dataclass(frozen=True)
class ScriptTiming:
  """Timing of `script_episode`: history is frames [0, history), then `reveal` frames.

  `uncover_frames[i]` is the frame at which the i-th card of the second reveal appears.
  """

  history: int
  reveal: int
  uncover_frames: tuple[int, ...]


def script_timing(config: CardsConfig) -> ScriptTiming:
  """History and reveal lengths of the canonical script: 72 and 31 frames for a 4x4 grid."""
  reveal = 2 * config.num_cards - 1
  history = 1 + 2 * reveal + _PAUSE
  return ScriptTiming(history, reveal, tuple(range(history, history + reveal, 2)))


def script_episode(
    index: int, config: CardsConfig, split: str = 'validation', order: str = 'same'
) -> EpisodeArrays:
  """The evaluation episode: reveal, cover in reverse, 9 frames of pause, reveal again, walk.

  The pause makes every context of up to 9 frames before the second reveal free of cards.

  Args:
    index: which episode.
    config: the world; its length must hold the script.
    split: see `simulate`.
    order: 'same', or 'new': the second reveal goes column by column, in neither direction of the
      path walked in the history.

  Returns:
    The trajectory, timed as `script_timing` says; both orders show the same cards.

  Raises:
    ValueError: unknown order or split, or an episode too short for the script.
  """
  if order not in ('same', 'new'):
    raise ValueError(f"Unknown order {order!r}; expected 'same' or 'new'.")
  timing = script_timing(config)
  if config.length < timing.history + timing.reveal:
    raise ValueError(
        f'CardsConfig.length is {config.length}; the script needs at least '
        f'{timing.history + timing.reveal} frames on a {config.grid}x{config.grid} grid.'
    )
  rng, cards = _start(index, config, split)
  path = board.boustrophedon(config.grid, 0)
  world = board.Board(config.grid, config.length, cursor=path[0])
  world.sweep(path, board.UNCOVER)
  world.sweep(path[::-1], board.COVER)
  for _ in range(_PAUSE):
    world.step(board.STAY)
  world.sweep(board.boustrophedon(config.grid, 1) if order == 'new' else path, board.UNCOVER)
  world.walk(rng)
  return _finish(world, config, index=index, split=split, kind='script', cards=cards)
