"""What the episodes of a folder have in common: its spaces.json, and the check against it.

    {"format": "wmpoe.episode", "version": 1, "environment": "my_way_home",
     "frames": {"shape": [64, 64, 3], "dtype": "uint8", "fps": 8.75},
     "actions": {"kind": "discrete", "dim": 3, "names": ["left", "right", "forward"], "repeat": 1},
     "poses": {"kind": "planar", "dim": 3, "names": ["x", "y", "heading"], "unit": "cell"}}

Other keys may be there and are kept. Kinds of actions: 'discrete' (one-hot of `names`) and
'continuous' (numbers, best around -1 to 1). With `repeat` k a frame has the actions of the k steps
that led to it, oldest first: dim = k len(names). Kinds of poses: 'none' (dim 0); 'planar' (x, y,
heading; the heading in radians, counter-clockwise from the x axis, the viewing direction of a
camera); 'grid' (row, column); 'vector' (any numbers, such as the state of an arm).
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import numpy as np

from wmpoe.data import episode

ACTION_KINDS = ('discrete', 'continuous')
POSE_NAMES: dict[str, tuple[str, ...] | None] = {
    'none': (), 'planar': ('x', 'y', 'heading'), 'grid': ('row', 'column'), 'vector': None}
_MOST = 4096  # pixels a side, and numbers of a condition: more is a mistake


@dataclasses.dataclass(frozen=True, kw_only=True)
class Actions:
  """What leads from one frame to the next.

  Attributes:
    kind: 'discrete' or 'continuous'.
    names: Of the choices, or of the numbers.
    repeat: Steps per frame.

  Raises:
    ValueError: an unknown kind, no names or names that repeat, repeat < 1.
  """

  kind: str
  names: tuple[str, ...]
  repeat: int = 1

  def __post_init__(self):
    if self.kind not in ACTION_KINDS:
      raise ValueError(f'actions.kind is {self.kind!r}; expected one of {", ".join(ACTION_KINDS)}.')
    if not 0 < len(self.names) <= _MOST or len(set(self.names)) < len(self.names):
      raise ValueError(
          f'actions.names are {list(self.names[:8])} ({len(self.names)}); expected different '
          f'names, 1 to {_MOST}.')
    if not 1 <= self.repeat <= 64:
      raise ValueError(f'actions.repeat is {self.repeat}; expected 1 to 64 steps per frame.')

  @property
  def dim(self) -> int:
    """A."""
    return len(self.names) * self.repeat


@dataclasses.dataclass(frozen=True, kw_only=True)
class Poses:
  """Where a frame was taken from.

  Attributes:
    kind: One of `POSE_NAMES`.
    names: Of the numbers.
    unit: Of lengths.

  Raises:
    ValueError: an unknown kind, or names that are not those of the kind.
  """

  kind: str = 'none'
  names: tuple[str, ...] = ()
  unit: str = ''

  def __post_init__(self):
    if self.kind not in POSE_NAMES:
      raise ValueError(f'poses.kind is {self.kind!r}; expected one of {", ".join(POSE_NAMES)}.')
    names = POSE_NAMES[self.kind]
    if names is not None and self.names != names:
      raise ValueError(f'poses.names of kind {self.kind!r} are {self.names}; expected {names}.')
    if names is None and not 0 < len(self.names) <= _MOST:
      raise ValueError(f'poses.names of kind {self.kind!r} are missing; expected one per number.')

  @property
  def dim(self) -> int:
    """P."""
    return len(self.names)


PLANAR = Poses(kind='planar', names=('x', 'y', 'heading'), unit='cell')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spaces:
  """What a world model is told of a world.

  Attributes:
    environment: Its name.
    frame: Height and width in pixels.
    actions: See `Actions`.
    poses: See `Poses`.
    fps: Frames per second, None if time has no seconds.

  Raises:
    ValueError: an impossible size or frame rate.
  """

  environment: str
  frame: tuple[int, int]
  actions: Actions
  poses: Poses = Poses()
  fps: float | None = None

  def __post_init__(self):
    if len(self.frame) != 2 or not all(1 <= side <= _MOST for side in self.frame):
      raise ValueError(
          f'frames.shape starts with {self.frame}; expected 1 to {_MOST} pixels a side.')
    if self.fps is not None and not 0 < self.fps < math.inf:
      raise ValueError(f'frames.fps is {self.fps}; expected a positive number, or none.')

  @property
  def frame_shape(self) -> tuple[int, int, int]:
    """(H, W, 3)."""
    return (*self.frame, 3)

  @property
  def action_dim(self) -> int:
    """A."""
    return self.actions.dim

  @property
  def pose_dim(self) -> int:
    """P."""
    return self.poses.dim

  def to_json(self) -> dict[str, Any]:
    """As in spaces.json, without format and version."""
    return {
        'environment': self.environment,
        'frames': {'shape': list(self.frame_shape), 'dtype': 'uint8', 'fps': self.fps},
        'actions': {
            'kind': self.actions.kind, 'dim': self.action_dim, 'names': list(self.actions.names),
            'repeat': self.actions.repeat},
        'poses': {
            'kind': self.poses.kind, 'dim': self.pose_dim, 'names': list(self.poses.names),
            'unit': self.poses.unit},
    }

  def check(self, item: episode.Episode, *, where: str = '') -> None:
    """Checks an episode against the spaces.

    Args:
      item: The episode.
      where: Put before every message, such as a file name.

    Raises:
      ValueError: what `episode.validate` refuses, discrete actions that are not one-hot, grid poses
        that are no cells; names the field and the frame.
    """
    episode.validate(
        item, action_dim=self.action_dim, pose_dim=self.pose_dim, frame_shape=self.frame_shape,
        where=where)
    if self.actions.kind == 'discrete':
      steps = item.actions.reshape(item.length, self.actions.repeat, -1)
      fine = ((steps == 0) | (steps == 1)).all(axis=2) & (steps.sum(axis=2) == 1)
      fine[0] |= (steps[0] == 0).all(axis=1)  # nothing led to the first frame
      _refuse('actions', item.actions, ~fine.all(axis=1), 'one-hot (all zero in frame 0 alone)',
              where)
    if self.poses.kind == 'grid':
      bad = ((item.poses < 0) | (item.poses != np.round(item.poses))).any(axis=1)
      _refuse('poses', item.poses, bad, 'whole numbers from 0 on', where)


def _refuse(name: str, array: np.ndarray, bad: np.ndarray, expected: str, where: str) -> None:
  frames = np.flatnonzero(bad)
  if frames.size:
    row = array[frames[0]]
    shown = f'{row[:8].tolist()}{"..." if row.size > 8 else ""}'
    raise ValueError(
        f'{where}{name} are {shown} in frame {frames[0]} ({frames.size} such frames); expected '
        f'{expected}.')


def from_json(value: Mapping[str, Any], *, where: str = '') -> Spaces:
  """Spaces as spaces.json tells them; keys that are not theirs are left alone.

  Args:
    value: The JSON object.
    where: Put before every message, such as a file name.

  Raises:
    ValueError: a key that is missing or has a value that makes no sense; names it.
  """
  try:
    frames, actions = _object(value, 'frames'), _object(value, 'actions')
    poses = _object(value, 'poses')
    shape = _numbers(frames, 'frames.shape')
    if len(shape) != 3 or shape[2] != 3:
      raise ValueError(f'frames.shape is {shape}; expected [H, W, 3].')
    spaces = Spaces(
        environment=_text(value, 'environment'), frame=(shape[0], shape[1]),
        fps=_rate(frames.get('fps')),
        actions=Actions(
            kind=_text(actions, 'actions.kind'), names=_texts(actions, 'actions.names'),
            repeat=_whole(actions.get('repeat', 1), 'actions.repeat')),
        poses=Poses(
            kind=_text(poses, 'poses.kind'), names=_texts(poses, 'poses.names'),
            unit=str(poses.get('unit', ''))))
    for name, described, dim in (
        ('actions', actions, spaces.action_dim), ('poses', poses, spaces.pose_dim)):
      if described.get('dim', dim) != dim:
        raise ValueError(f'{name}.dim is {described["dim"]!r}; its names make {dim}.')
  except ValueError as error:
    raise ValueError(f'{where}{error}') from error
  return spaces


def _get(value: Mapping[str, Any], key: str) -> Any:
  name = key.rpartition('.')[2]
  if name not in value:
    raise ValueError(f'{key} is missing; see wmpoe/data/spaces.py for the keys there are.')
  return value[name]


def _object(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
  found = _get(value, key)
  if not isinstance(found, Mapping):
    raise ValueError(f'{key} is a {type(found).__name__}; expected an object.')
  return found


def _text(value: Mapping[str, Any], key: str) -> str:
  found = _get(value, key)
  if not isinstance(found, str) or not found or len(found) > _MOST:
    raise ValueError(f'{key} is a {type(found).__name__}; expected a text that is not empty.')
  return found


def _texts(value: Mapping[str, Any], key: str) -> tuple[str, ...]:
  found = _get(value, key)
  if not isinstance(found, (list, tuple)) or not all(isinstance(name, str) for name in found):
    raise ValueError(f'{key} is a {type(found).__name__}; expected a list of texts.')
  return tuple(found)


def _numbers(value: Mapping[str, Any], key: str) -> list[int]:
  found = _get(value, key)
  if not isinstance(found, (list, tuple)):
    raise ValueError(f'{key} is a {type(found).__name__}; expected a list of whole numbers.')
  return [_whole(number, key) for number in found]


def _whole(value: Any, key: str) -> int:
  if isinstance(value, bool) or not isinstance(value, int):
    raise ValueError(f'{key} holds a {type(value).__name__}; expected whole numbers.')
  return value


def _rate(value: Any) -> float | None:
  if value is None:
    return None
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise ValueError(f'frames.fps is a {type(value).__name__}; expected a number, or null.')
  return float(value)
