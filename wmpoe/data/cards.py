"""Memory Cards: covered cards on a grid, a cursor, and a world that must be remembered.

The environment of arXiv 2605.18813 (section on Memory Cards), which was never released: a 4x4 grid
of cards, each with one of 8 symbols drawn with replacement; a cursor moves, uncovers and covers.
Nothing is stored: an episode is a pure function of `(config, split, index)`. This module is all
that a user of the environment needs; `board`, `sprites` and `trajectories` are its parts.

Shapes: T frames, N = grid * grid cards, H = W = size, A = 7 actions.
"""

from collections.abc import Iterator
import dataclasses
import os
from typing import Any, Literal

import numpy as np

from wmpoe.data import board
from wmpoe.data import episode
from wmpoe.data import folder
from wmpoe.data import spaces as spaces_lib
from wmpoe.data import sprites as sprites_lib
from wmpoe.data import trajectories

ACTIONS = board.ACTIONS
STAY, UP, DOWN, LEFT, RIGHT, UNCOVER, COVER = range(7)
NUM_ACTIONS = len(ACTIONS)
POSE_DIM = 2
KINDS = trajectories.KINDS
SPLITS = trajectories.SPLITS
SYMBOLS = sprites_lib.SYMBOLS

CardsConfig = trajectories.CardsConfig
EpisodeArrays = trajectories.EpisodeArrays
ScriptTiming = trajectories.ScriptTiming
boustrophedon = board.boustrophedon
script_episode = trajectories.script_episode
script_timing = trajectories.script_timing
seed_of = trajectories.seed_of
simulate = trajectories.simulate

HISTORY = script_timing(CardsConfig()).history
REVEAL = script_timing(CardsConfig()).reveal


def templates(config: CardsConfig, *, cursor: bool = False) -> np.ndarray:
  """Exact pictures of every tile, as they appear in a frame.

  Args:
    config: the world.
    cursor: draw the cursor's border over each.

  Returns:
    uint8 [symbols + 1, tile, tile, 3]; the last one is the cover.
  """
  count = config.symbols + 1
  both = sprites_lib.tiles(config.tile, config.symbols)
  return both[count:] if cursor else both[:count]


def sprites(config: CardsConfig) -> np.ndarray:
  """The symbols and the cover without cursor: uint8 [symbols + 1, tile, tile, 3]."""
  return templates(config)


def render(
    sim: EpisodeArrays, config: CardsConfig, start: int = 0, stop: int | None = None
) -> np.ndarray:
  """Frames [start, stop) of a trajectory: uint8 [n H W 3]."""
  grid, tile, count = config.grid, config.tile, config.symbols + 1
  visible, cursor = sim.visible[start:stop], sim.cursor[start:stop]
  ids = np.where(visible, sim.cards, config.symbols)
  ids[np.arange(len(ids)), cursor[:, 0] * grid + cursor[:, 1]] += count
  tiles = sprites_lib.tiles(tile, config.symbols)[ids].reshape(-1, grid, grid, tile, tile, 3)
  return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(-1, config.size, config.size, 3)


_ONE_HOT = np.eye(NUM_ACTIONS, dtype=np.float32)


def conditions(
    sim: EpisodeArrays, start: int = 0, stop: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """One-hot actions float32 [n 7] and cursor poses float32 [n 2] (row, column, in cells)."""
  return _ONE_HOT[sim.actions[start:stop]], sim.cursor[start:stop].astype(np.float32)


def to_episode(sim: EpisodeArrays, config: CardsConfig) -> episode.Episode:
  """The whole trajectory with its pixels, in the project's episode format."""
  actions, poses = conditions(sim)
  meta = {
      'environment': 'cards',
      **dataclasses.asdict(config),
      'index': sim.index,
      'split': sim.split,
      'kind': sim.kind,
      'seed': seed_of(sim.index, sim.split),
      'cards': sim.cards.tolist(),
      'events': sim.events.tolist(),
  }
  return episode.Episode(frames=render(sim, config), actions=actions, poses=poses, meta=meta)


@dataclasses.dataclass(frozen=True)
class CardsSource:
  """Random access to a split, for grain; elements are made when asked for.

  Attributes:
    config: the world.
    split: see `simulate`.
    size: number of episodes (the paper: 100k in all, of which nine tenths are for training).
    kind: see `simulate`; None mixes both kinds half and half.
    full: give `Episode`s with pixels rather than trajectories.
  """

  config: CardsConfig = CardsConfig()
  split: str = 'train'
  size: int = 90_000
  kind: Literal['walk', 'script'] | None = None
  full: bool = False

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, index: Any) -> EpisodeArrays | episode.Episode:
    if not 0 <= index < self.size:
      raise IndexError(f'Episode {index} of {self.size} in split {self.split!r}.')
    sim = simulate(int(index), self.config, self.split, self.kind)
    return to_episode(sim, self.config) if self.full else sim


@dataclasses.dataclass(frozen=True)
class RandomClip:
  """Draws a training clip from a trajectory: `context` frames, then `target` frames.

  The first target frame s is uniform such that all targets lie in the episode. Context before
  frame 0 is zeros with valid False. Called by grain as `random_map(clip)`.

  Attributes:
    config: the world.
    context: C.
    target: G.
    history: h; if positive the h frames before s are given as `history_*`, left-padded.
    events_bias: probability of choosing s so that a card seen before is uncovered in the targets.
  """

  config: CardsConfig
  context: int
  target: int
  history: int = 0
  events_bias: float = 0.0

  def __post_init__(self) -> None:
    if self.context < 0 or self.target < 1 or self.history < 0:
      raise ValueError(
          f'RandomClip got context={self.context}, target={self.target}, history={self.history}; '
          'expected context >= 0, target >= 1, history >= 0.'
      )
    if self.target > self.config.length:
      raise ValueError(
          f'RandomClip.target is {self.target} but episodes have {self.config.length} frames; '
          'lower the target or raise CardsConfig.length.'
      )

  def __call__(self, sim: EpisodeArrays, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns frames [C+G H W 3], actions [C+G 7], poses [C+G 2], valid [C+G], and history_*."""
    last = sim.length - self.target
    start = int(rng.integers(0, last + 1))
    if self.events_bias and rng.random() < self.events_bias:
      again = sim.events[sim.events[:, 2] >= 0, 0]
      if again.size:
        frame = int(again[rng.integers(again.size)])
        low, high = max(0, frame - self.target + 1), min(frame, last)
        start = int(rng.integers(low, high + 1))
    out = self.window(sim, start - self.context, start + self.target)
    if self.history:
      past = self.window(sim, start - self.history, start)
      out.update({f'history_{name}': value for name, value in past.items()})
    return out

  def window(self, sim: EpisodeArrays, start: int, stop: int) -> dict[str, np.ndarray]:
    """Frames [start, stop), where those before frame 0 are zeros and not valid."""
    pad = min(max(0, -start), stop - start)
    actions, poses = conditions(sim, start + pad, stop)
    valid = np.ones(stop - start, bool)
    valid[:pad] = False
    frames = render(sim, self.config, start + pad, stop)
    out = {'frames': frames, 'actions': actions, 'poses': poses}
    if pad:
      out = {k: np.concatenate([np.zeros((pad, *v.shape[1:]), v.dtype), v]) for k, v in out.items()}
    return {**out, 'valid': valid}


def spaces_of(config: CardsConfig) -> spaces_lib.Spaces:
  """Frames, actions and poses of the world."""
  return spaces_lib.Spaces(
      environment='cards', frame=(config.size, config.size),
      actions=spaces_lib.Actions(kind='discrete', names=ACTIONS),
      poses=spaces_lib.Poses(kind='grid', names=('row', 'column'), unit='cell'))


def collect(
    out_dir: str | os.PathLike[str],
    *,
    episodes: int,
    kind: Literal['walk', 'script'] | None = None,
    split: str = 'train',
    config: CardsConfig | None = None,
    overwrite: bool = False,
) -> Iterator[folder.Progress]:
  """Writes the first episodes of a split to disk; see `folder.collect` for resuming and errors.

  Args:
    out_dir: made if it does not exist.
    episodes: how many.
    kind: see `simulate`.
    split: see `simulate`.
    config: the world; the default one if None.
    overwrite: delete the episodes found in the folder first, rather than finish them.

  Returns:
    An iterator that writes one episode per step, and tells the progress.

  Raises:
    ValueError: unknown split or kind, episodes < 1, or a folder with other episodes.
    OSError: the folder cannot be written.
  """
  config = CardsConfig() if config is None else config
  simulate(0, config, split, kind)  # Refuses a wrong split or kind before any file is touched.
  spaces = {
      'config': dataclasses.asdict(config),
      'split': split,
      'kind': kind,
      'length': config.length,
      **spaces_of(config).to_json(),
  }
  return folder.collect(
      out_dir,
      lambda index: to_episode(simulate(index, config, split, kind), config),
      episodes=episodes,
      spaces=spaces,
      overwrite=overwrite,
  )
