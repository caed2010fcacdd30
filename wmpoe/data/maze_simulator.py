"""Runs the Memory Maze simulator: one episode, by seed and policy, in the public dataset's fields.

The simulator (MuJoCo) comes with the extra `maze` and is imported when it is first needed. Each
episode has a simulator of its own, so that it depends on nothing but its seed.
"""

from collections.abc import Mapping
import contextlib
import ctypes.util
import importlib
import io
import os
from typing import Any
import warnings

import numpy as np

from wmpoe.data import maze_explorer
from wmpoe.data import memory_maze
from wmpoe.data import trajectories

SIZES = (9, 11, 13, 15)
SPLITS = trajectories.SPLITS
# What the simulator's clock allows: 4 steps per second, 250 seconds for the smallest mazes.
MAX_LENGTH = {9: 1000, 11: 2000, 13: 3000, 15: 4000}
_OBSERVED = (
    'image', 'agent_pos', 'agent_dir', 'maze_layout', 'targets_pos', 'targets_vec', 'target_color',
    'target_pos', 'target_vec')
_INSTALL = (
    'Memory Maze episodes are rendered by a simulator: pip install wmpoe[maze] (from a checkout: '
    "pip install -e '.[maze]'). It also needs the system's libraries libegl1 libgl1 "
    'libegl-mesa0 (Debian and Ubuntu: apt-get install libegl1 libgl1 libegl-mesa0) and the '
    'environment variable MUJOCO_GL=egl. Reading episodes that exist needs none of it.')
# The simulator's camera, the metres of a cell, and the cells beyond which there is but the sky.
_CAMERA, _CELL, _SKY = 'walker/egocentric', 2.0, 100.0
_SEEDS_PER_RUN = 20_000_000  # a multiple of 20, which is what tells splits apart
_SALT = 2210_13383


def episode_seed(index: int, split: str, *, seed: int = 0) -> int:
  """The simulator's seed of the index-th episode of a split; splits never share one.

  Whatever `seed` is, seed % 20 is 9 for validation and 19 for test, and something else for train.

  Raises:
    ValueError: unknown split, or a seed or index out of range.
  """
  if not 0 <= seed <= 200:
    raise ValueError(f'seed is {seed}; expected 0 to 200.')
  within = trajectories.seed_of(index, split)
  if within >= _SEEDS_PER_RUN:
    raise ValueError(
        f'Episode index is {index}; expected fewer than a million: use another seed for more.')
  return within + _SEEDS_PER_RUN * seed


def require() -> Any:
  """The simulator's module of environments.

  Raises:
    ImportError: if it is not installed, or can't be loaded; says what to install.
  """
  os.environ.setdefault('MUJOCO_GL', 'egl')
  try:
    # What it depends on is pinned: that some of it is no longer maintained is no news.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
      warnings.simplefilter('ignore')
      return importlib.import_module('memory_maze.tasks')
  except Exception as error:  # A GL library that is missing surfaces as any of several errors.
    missing = '' if ctypes.util.find_library('EGL') else ' The EGL library was not found.'
    raise ImportError(
        f'Cannot load the simulator ({type(error).__name__}: {error}).{missing} {_INSTALL}'
    ) from error


def run(
    seed: int, policy: maze_explorer.Policy, *, size: int = 9, length: int = 600, image: int = 64,
    depth: bool = False,
) -> dict[str, np.ndarray]:
  """One episode in the fields of the public dataset.

  Args:
    seed: Of the maze, the start and the policy's choices; see `episode_seed`.
    policy: A new one; it is changed by being used.
    size: Side of the maze in cells.
    length: T, simulator steps.
    image: Side of the frames in pixels, border included.
    depth: Whether to render depth, too.

  Returns:
    image uint8 [T H W 3], action uint8 [T 6] (row 0 zero), reward float32 [T], agent_pos and
    agent_dir float32 [T 2], maze_layout uint8 [T N N], targets_pos and targets_vec
    float32 [T M 2], target_color float32 [T 3], target_pos and target_vec float32 [T 2]; and depth,
    float16 [T H W], along the optical axis in cells, infinite for the sky, if asked for.

  Raises:
    ImportError: see `require`.
    ValueError: for a size there is none of, or a length that the simulator's clock cuts short.
    RuntimeError: if the episode ends early.
  """
  check(size=size, length=length, image=image)
  simulator = Simulator(seed, size=size, image=image, depth=depth)
  rng = np.random.default_rng((_SALT, seed))
  try:
    steps = [simulator.start()]
    while len(steps) < length:
      fields = simulator.step(_decide(policy, steps[-1], rng))
      if fields is None:
        raise RuntimeError(
            f'The episode of seed {seed} ended after {len(steps)} of {length} steps.')
      steps.append(fields)
  finally:
    simulator.close()
  return {name: np.stack([fields[name] for fields in steps]) for name in steps[0]}


class Simulator:
  """A running episode, a step at a time, in the fields of the public dataset without their T."""

  def __init__(self, seed: int, *, size: int = 9, image: int = 64, depth: bool = False):
    """Makes a simulator of its own; see `run` for the arguments.

    Raises:
      ImportError: see `require`.
    """
    self._env, self._over = _make(seed, size=size, image=image), False
    self._depth = image if depth else 0

  def start(self) -> dict[str, np.ndarray]:
    """The first frame's fields; action and reward are zero."""
    return self._fields(self._env.reset().observation, None, 0.0)

  def step(self, action: int) -> dict[str, np.ndarray] | None:
    """The next frame's fields after an action (index of `memory_maze.ACTIONS`); None at the end."""
    if self._over:
      return None
    step = self._env.step(action)
    self._over = step.last()
    return self._fields(step.observation, action, float(step.reward or 0.0))

  def close(self) -> None:
    """Ends it."""
    self._env.close()

  def _fields(self, observation: Any, action: int | None, reward: float) -> dict[str, np.ndarray]:
    out = _fields(observation, action, reward)
    if self._depth:
      cells = self._env.physics.render(
          self._depth, self._depth, camera_id=_CAMERA, depth=True) / _CELL
      out['depth'] = np.where(cells > _SKY, np.inf, cells).astype(np.float16)
    return out


def _make(seed: int, *, size: int, image: int) -> Any:
  make = getattr(require(), f'memory_maze_{size}x{size}')
  try:
    return make(seed=seed, camera_resolution=image, global_observables=True)
  except Exception as error:
    if 'OpenGL' not in str(error):
      raise
    raise ImportError(f'Cannot render with MUJOCO_GL={os.environ.get("MUJOCO_GL")} '
                      f'({type(error).__name__}: {error}). {_INSTALL}') from error


def check(*, size: int, length: int, image: int) -> None:
  """Refuses what the simulator cannot do, without loading it.

  Raises:
    ValueError: for a size there is none of, a length out of range, or an odd image.
  """
  if size not in SIZES:
    raise ValueError(f'The maze size is {size}; expected one of {", ".join(map(str, SIZES))}.')
  if not 2 <= length <= MAX_LENGTH[size]:
    raise ValueError(
        f'The length is {length} simulator steps; expected 2 to {MAX_LENGTH[size]}, which is when '
        f'the clock of a {size}x{size} maze runs out.')
  if image < 16:
    raise ValueError(f'The image side is {image} pixels; expected at least 16.')


def _fields(
    observation: Mapping[str, Any], action: int | None, reward: float) -> dict[str, np.ndarray]:
  out: dict[str, Any] = {}
  for name in _OBSERVED:
    # Copies: the simulator writes the next frame over this one.
    dtype = np.uint8 if name in ('image', 'maze_layout') else np.float32
    out[name] = np.array(observation[name], dtype)
  out['action'] = np.zeros(len(memory_maze.ACTIONS), np.uint8)
  if action is not None:
    out['action'][action] = 1
  out['reward'] = np.float32(reward)
  return out


def _decide(
    policy: maze_explorer.Policy, fields: Mapping[str, np.ndarray], rng: np.random.Generator
) -> int:
  heading = float(np.arctan2(fields['agent_dir'][1], fields['agent_dir'][0]))
  return policy.act(fields['agent_pos'], heading, fields['maze_layout'], rng)
