"""Memory Maze episodes (arXiv 2210.13383): the public dataset's npz files, read as they are.

Conventions, measured on the public files: positions (x, y) are in cells, cell (row, column) of the
layout covers x in [column, column + 1) and y in [row, row + 1), the outer wall is left out. The
heading is the angle of the viewing direction from the x axis, counter-clockwise, in radians:
turning left raises it. Action t is the one that LED to frame t. A frame has a border of 2 pixels in
the colour of the object to be found; it is no part of the world and is cropped by `subsample`. The
relative vectors of the files (targets_vec) are (to the right, ahead) and not read.

Shapes: T frames, H W pixels, N cells a side, M targets. NumPy only.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from wmpoe.data import episode
from wmpoe.data import folder
from wmpoe.data import npz

ACTIONS = ('noop', 'forward', 'left', 'right', 'forward_left', 'forward_right')
# (dtype, shape) of what is read; letters stand for any size that fits all fields.
FIELDS = {
    'image': ('uint8', 'T H W 3'),
    'action': ('uint8', f'T {len(ACTIONS)}'),
    'agent_pos': ('float32', 'T 2'),
    'agent_dir': ('float32', 'T 2'),
    'maze_layout': ('uint8', 'T N N'),
    'targets_pos': ('float32', 'T M 2'),
}
DEPTH = ('float16', 'T H W')  # of the field 'depth', which the public files lack
# The camera: of all values tried, these explain best where floor, walls and sky are in the files.
FIELD_OF_VIEW = np.deg2rad(80.0)  # of the whole frame with its border, in width as in height
CAMERA_PITCH = np.arctan(0.1)  # down
CAMERA_AHEAD, CAMERA_HEIGHT, WALL_HEIGHT = 0.075, 0.45, 0.75  # cells


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class MazeEpisode:
  """One episode at the simulator's rate, with its border.

  Attributes:
    frames: uint8 [T H W 3]; 64x64 in the public dataset.
    actions: float32 [T 6], one-hot of `ACTIONS`; row 0 may be all zero.
    poses: float32 [T 3]: x, y in cells, heading in radians in [-pi, pi].
    layout: uint8 [N N], 1 where free; row y, column x.
    targets_pos: float32 [M 2]: x, y of the objects, which stay where they are.
    source: Name of the file.
    depth: How far every pixel is along the optical axis, float32 [T H W] in cells, infinite for the
      sky; None if the file does not say. Not of the border.
  """

  frames: np.ndarray
  actions: np.ndarray
  poses: np.ndarray
  layout: np.ndarray
  targets_pos: np.ndarray
  source: str = ''
  depth: np.ndarray | None = None

  @property
  def length(self) -> int:
    """T."""
    return self.frames.shape[0]


# ----------------------------------------------------------------------------------------- reading


def load(path: str | os.PathLike[str]) -> MazeEpisode:
  """Reads and checks one npz file of the public dataset; fields that are not used are left alone.

  Raises:
    FileNotFoundError: no such file.
    ValueError: a truncated file, one that is no Memory Maze episode, pickled arrays, wrong shapes
      or dtypes, lengths that disagree, actions that are not one-hot, poses that are not finite or
      directions that are not of length 1, an agent inside a wall, a layout or targets that change;
      names the file and the field.
  """
  fields = npz.read(
      path, tuple(FIELDS), what='a Memory Maze episode', remedy='download or collect it again',
      optional=('depth',))
  return from_fields(fields, source=path)


def from_fields(fields: dict[str, np.ndarray], *, source: str | os.PathLike[str]) -> MazeEpisode:
  """Checks the arrays of one episode, named as in `FIELDS`; see `load` for what it raises."""
  where = f'{source}: '
  sizes: dict[str, tuple[int, str]] = {}
  expected = FIELDS | ({'depth': DEPTH} if 'depth' in fields else {})
  for name, (dtype, letters) in expected.items():
    _check_array(name, fields[name], dtype, letters, sizes, where)
  if not len(fields['image']):
    raise ValueError(f"{where}field 'image' has no frames; expected at least one.")
  _check_finite(fields, where)
  for name in ('maze_layout', 'targets_pos'):
    changed = np.argwhere(fields[name] != fields[name][:1])[:, 0]
    if changed.size:
      raise ValueError(
          f'{where}field {name!r} changes at frame {changed[0]}; expected one maze per episode: '
          'cut the file where the episode ends.')
  _check_actions(fields['action'], where)
  layout = fields['maze_layout'][0]
  _check_poses(fields['agent_pos'], fields['agent_dir'], layout, where)
  heading = np.arctan2(fields['agent_dir'][:, 1], fields['agent_dir'][:, 0])
  depth = fields['depth'].astype(np.float32) if 'depth' in fields else None
  if depth is not None and not (depth > 0).all():
    raise ValueError(
        f"{where}field 'depth' holds NaN or numbers that are not positive; expected distances in "
        'cells, and infinity for the sky.')
  return MazeEpisode(
      frames=fields['image'], actions=fields['action'].astype(np.float32),
      poses=np.concatenate([fields['agent_pos'], heading[:, None]], axis=1),
      layout=layout, targets_pos=fields['targets_pos'][0], source=pathlib.Path(source).name,
      depth=depth)


def _check_array(
    name: str, array: np.ndarray, dtype: str, letters: str, sizes: dict[str, tuple[int, str]],
    where: str) -> None:
  """Checks one array against `letters`; `sizes` gathers what the letters stand for."""
  if array.dtype != dtype:
    raise ValueError(
        f'{where}field {name!r} is {array.dtype}; expected {dtype} [{letters}].')
  expected = letters.split()
  if array.ndim != len(expected) or any(
      e.isdigit() and int(e) != n for e, n in zip(expected, array.shape, strict=True)):
    raise ValueError(f'{where}field {name!r} has shape {array.shape}; expected [{letters}].')
  for letter, size in zip(expected, array.shape, strict=True):
    known, first = sizes.setdefault(letter, (size, name))
    if known != size and not letter.isdigit():
      what = 'frames' if letter == 'T' else letter
      raise ValueError(
          f'{where}field {name!r} has {size} {what}, {first!r} has {known}; expected the same '
          f'[{letters}].')


def _check_actions(actions: np.ndarray, where: str) -> None:
  bad = np.flatnonzero(actions.sum(axis=1, dtype=int) != 1)  # of whole numbers, none negative
  if bad.size and bad[0] == 0 and not actions[0].any():
    bad = bad[1:]  # Nothing led to the first frame.
  if bad.size:
    raise ValueError(
        f"{where}field 'action' is not one-hot in {bad.size} rows, first in row {bad[0]}: "
        f'{actions[bad[0]].tolist()}; expected a single 1 (row 0 alone may be all zero).')


def _check_finite(fields: dict[str, np.ndarray], where: str) -> None:
  for name in ('agent_pos', 'agent_dir', 'targets_pos'):
    bad = np.argwhere(~np.isfinite(fields[name]))
    if bad.size:
      raise ValueError(
          f'{where}field {name!r} holds NaN or infinity in {len(bad)} places, first in frame '
          f'{bad[0, 0]}; expected finite numbers: leave the episode out or cut it before.')


def _check_poses(
    position: np.ndarray, direction: np.ndarray, layout: np.ndarray, where: str) -> None:
  length = np.linalg.norm(direction, axis=1)
  bad = np.flatnonzero(np.abs(length - 1) > 1e-2)
  if bad.size:
    raise ValueError(
        f"{where}field 'agent_dir' has length {length[bad[0]]:g} in frame {bad[0]}; expected the "
        'viewing direction as a vector of length 1.')
  side = len(layout)
  outside = np.flatnonzero(((position < 0) | (position >= side)).any(axis=1))
  if outside.size:
    raise ValueError(
        f"{where}field 'agent_pos' is {position[outside[0]].tolist()} in frame {outside[0]}; "
        f'expected cells of the {side}x{side} layout.')
  x, y = cells(position).T
  walled = np.flatnonzero(layout[y, x] == 0)
  if walled.size:
    raise ValueError(
        f"{where}field 'agent_pos' is inside a wall of 'maze_layout' in {walled.size} frames, "
        f'first in frame {walled[0]}; expected (x, y) in cells and a layout with row y, column x.')


# ------------------------------------------------------------------------- frames for a world model


def subsample(
    maze_episode: MazeEpisode, skip: int = 2, *, border: int = 2
) -> episode.Episode:
  """Every `skip`-th frame from the first on, without the border.

  The condition of a frame is the actions of all steps since the frame before, one-hot, oldest
  first: kept frame k has actions `skip (k - 1) + 1 ... skip k` of the original [A = 6 skip]; what
  lies before the episode is zeros.

  Args:
    maze_episode: At the simulator's rate.
    skip: Simulator steps per frame.
    border: Pixels to crop on every side.

  Returns:
    frames [ceil(T / skip) H-2border W-2border 3], actions [... 6 skip], poses [... 3] and
    depth if it is known; meta has
    'environment', 'name', 'source', 'layout' and 'targets' as nested lists, 'skip' and 'border'.

  Raises:
    ValueError: skip < 1, or a border that leaves nothing of the frame.
  """
  frames = maze_episode.frames
  if skip < 1:
    raise ValueError(f'subsample got skip={skip}; expected at least 1.')
  if border < 0 or min(frames.shape[1:3]) <= 2 * border:
    raise ValueError(
        f'{maze_episode.source}: border={border} of frames {frames.shape[1:3]}; expected 0 or '
        'more, and something left between the borders.')
  kept = np.arange(0, maze_episode.length, skip)
  actions = np.concatenate(
      [np.zeros((skip - 1, maze_episode.actions.shape[1]), np.float32), maze_episode.actions])
  inner = tuple(slice(border, size - border) for size in frames.shape[1:3])
  cropped = lambda x: np.ascontiguousarray(x[(kept, *inner)])
  return episode.Episode(
      frames=cropped(frames),
      actions=np.concatenate([actions[kept + i] for i in range(skip)], axis=1),
      poses=maze_episode.poses[kept],
      depth=None if maze_episode.depth is None else cropped(maze_episode.depth),
      meta={
          'environment': 'memory_maze',
          'name': pathlib.Path(maze_episode.source).stem,
          'source': maze_episode.source,
          'layout': maze_episode.layout.tolist(),
          'targets': maze_episode.targets_pos.tolist(),
          'skip': skip,
          'border': border,
      })


class MazeFolder:
  """Random access to the episodes of a folder, as a world model sees them, for grain.

  The folder is read once in whole when the object is made, so that a file that is bad is known,
  named and counted before anything is learned.

  Attributes:
    paths: Files that are good, by name.
    bad: `{file: what is wrong with it}`.
    frame_shape: (H, W, 3) of all episodes, without border.
  """

  def __init__(
      self, paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
      strict: bool = False, *, skip: int = 2, border: int = 2):
    """Reads and checks every file.

    Args:
      paths: A folder of npz files, or files and folders.
      strict: Raise on the first bad file instead of leaving it out.
      skip: See `subsample`.
      border: See `subsample`.

    Raises:
      FileNotFoundError: a file or folder that does not exist, or no npz file at all.
      ValueError: episodes of different resolutions, no good file, or with `strict` a bad one.
    """
    self.paths: list[pathlib.Path] = []
    self.bad: dict[pathlib.Path, str] = {}
    self._skip, self._border = skip, border
    self.frame_shape: tuple[int, ...] = ()
    for path in _files(paths):
      try:
        shape = subsample(load(path), skip, border=border).frames.shape[1:]
      except (OSError, ValueError) as error:  # also what cannot be opened, as a dangling link
        if strict:
          raise
        self.bad[path] = str(error)
        continue
      self.frame_shape = self.frame_shape or shape
      if shape != self.frame_shape:
        raise ValueError(
            f"{path}: field 'image' gives frames {shape}, {self.paths[0]} gives "
            f'{self.frame_shape}; expected one resolution: keep them in folders of their own.')
      self.paths.append(path)
    if not self.paths:
      raise ValueError(
          f'None of the {len(self.bad)} files is a Memory Maze episode; first: '
          f'{next(iter(self.bad.values()))}')

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: Any) -> episode.Episode:
    return subsample(load(self.paths[index]), self._skip, border=self._border)

  def report(self) -> str:
    """How many files are good, and every bad one by name with what is wrong."""
    return folder.report(self.paths, self.bad)


def _files(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Iterator[pathlib.Path]:
  given = [paths] if isinstance(paths, (str, os.PathLike)) else paths
  count = 0
  for path in map(pathlib.Path, given):
    if not path.exists():
      raise FileNotFoundError(f'{path} does not exist; expected a folder of npz episodes.')
    for file in sorted(path.glob('*.npz')) if path.is_dir() else [path]:
      count += 1
      yield file
  if not count:
    raise FileNotFoundError(
        f'{", ".join(map(str, given)) or "An empty list"} holds no *.npz; collect episodes first '
        '(python -m wmpoe collect), or name a folder of the public dataset.')


# ------------------------------------------------------------------------------------------- poses


def half_view(*, image: int = 64, border: int = 2) -> float:
  """Half the field of view, in radians, of frames of `image` pixels without their border."""
  return float(np.arctan(np.tan(FIELD_OF_VIEW / 2) * (1 - 2 * border / image)))


def wrap(angle: np.ndarray) -> np.ndarray:
  """Angles in radians, brought to (-pi, pi]."""
  return np.pi - np.mod(np.pi - angle, 2 * np.pi)


def relative_pose(pose: np.ndarray, anchor: np.ndarray) -> np.ndarray:
  """Poses [... 3] as seen from `anchor` [... 3]: (ahead, left, turn), [... 3].

  `ahead = cos(h) dx + sin(h) dy`, `left = -sin(h) dx + cos(h) dy` with h the anchor's heading; the
  turn is the difference of headings wrapped to (-pi, pi], positive to the left.
  """
  delta = pose[..., :2] - anchor[..., :2]
  cos, sin = np.cos(anchor[..., 2]), np.sin(anchor[..., 2])
  return np.stack([
      cos * delta[..., 0] + sin * delta[..., 1],
      -sin * delta[..., 0] + cos * delta[..., 1],
      wrap(pose[..., 2] - anchor[..., 2])], axis=-1)


def cells(poses: np.ndarray) -> np.ndarray:
  """The cells (x, y) in which poses [... 3] lie: int [... 2]."""
  return np.floor(poses[..., :2]).astype(int)


def revisits(poses: np.ndarray, *, gap: int, angle: float = np.pi / 4) -> np.ndarray:
  """Which frames show what was seen before: bool [T].

  Frame t revisits if a frame at least `gap` before it was in the same cell, with a heading that
  differs by at most `angle`.

  Args:
    poses: [T 3].
    gap: In frames.
    angle: In radians; the default is 45 degrees.

  Raises:
    ValueError: gap < 1.
  """
  if gap < 1:
    raise ValueError(f'revisits got gap={gap}; expected at least 1 frame.')
  out = np.zeros(len(poses), bool)
  for t in range(gap, len(poses)):
    out[t] = alike(poses, t, t - gap + 1, angle=angle).any()
  return out


def alike(poses: np.ndarray, frame: int, stop: int, *, angle: float = np.pi / 4) -> np.ndarray:
  """Which of the frames [0, stop) show what another does: its cell, and about its heading.

  Args:
    poses: [T 3].
    frame: The other.
    stop: How many are asked about.
    angle: By how much headings may differ, in radians; the default is 45 degrees.

  Returns:
    bool [stop].
  """
  cell, headings = cells(poses), poses[:, 2]
  return (cell[:stop] == cell[frame]).all(axis=1) & (
      np.abs(wrap(headings[:stop] - headings[frame])) <= angle)


def coverage(poses: np.ndarray, layout: np.ndarray) -> float:
  """Fraction of the free cells of `layout` [N N] that poses [T 3] lie in."""
  visited = np.zeros(layout.shape, bool)
  x, y = cells(poses).T
  visited[y, x] = True
  return float((visited & (layout > 0)).sum() / (layout > 0).sum())


def turn_rate(poses: np.ndarray) -> float:
  """Mean absolute change of heading of poses [T 3], radians per frame."""
  return float(np.abs(wrap(np.diff(poses[:, 2]))).mean()) if len(poses) > 1 else 0.0
