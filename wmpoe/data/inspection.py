"""Looks through a folder of episodes: what is wrong with which file, and what the others hold."""

from collections.abc import Iterator, Sequence
import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from wmpoe.data import episode
from wmpoe.data import folder
from wmpoe.data import memory_maze
from wmpoe.data import spaces as spaces_lib

REVISIT_GAP = 50  # frames
_LARGE = 10.0  # numbers a network finds hard to take


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
  """One file of a folder: the episode it holds, or why it holds none."""

  path: pathlib.Path
  item: episode.Episode | None
  error: str = ''


def spaces_of(path: str | os.PathLike[str]) -> spaces_lib.Spaces:
  """The spaces of a folder.

  Raises:
    FileNotFoundError: no spaces.json.
    ValueError: one that makes no sense; names the key.
  """
  where = pathlib.Path(path) / folder.SPACES
  return spaces_lib.from_json(folder.read_spaces(path), where=f'{where}: ')


def look(path: str | os.PathLike[str]) -> tuple[spaces_lib.Spaces, Iterator[Found], int]:
  """Reads a folder's spaces, and then its files one by one, checking each against them.

  Returns:
    `(spaces, files, count)`.

  Raises:
    FileNotFoundError: no spaces.json, or no episode.
    ValueError: a spaces.json that makes no sense.
  """
  spaces, paths = spaces_of(path), folder.files(path)
  if not paths:
    raise FileNotFoundError(f'{path} holds no episode_*.npz; convert or record some first.')

  def files() -> Iterator[Found]:
    for one in paths:
      try:
        item = episode.Episode.load(one)
        spaces.check(item, where=f'{one}: ')
      except (ValueError, OSError) as error:
        yield Found(one, None, str(error))
      else:
        yield Found(one, item)

  return spaces, files(), len(paths)


class GoodEpisodes:
  """Random access to the good episodes of a folder, which is read once in whole to know them.

  Attributes:
    paths: Files that are good.
    bad: `{file: what is wrong with it}`.
    spaces: Of the folder.
  """

  def __init__(self, path: str | os.PathLike[str], strict: bool = False):
    """Reads and checks every file.

    Args:
      path: The folder.
      strict: Raise on the first bad file instead of leaving it out.

    Raises:
      FileNotFoundError: no spaces.json, or no episode.
      ValueError: no good file, or with `strict` a bad one.
    """
    self.spaces, found, _ = look(path)
    self.paths: list[pathlib.Path] = []
    self.bad: dict[pathlib.Path, str] = {}
    for one in found:
      if one.item is not None:
        self.paths.append(one.path)
      elif strict:
        raise ValueError(one.error)
      else:
        self.bad[one.path] = one.error
    if not self.paths:
      raise ValueError(f'None of the {len(self.bad)} episodes in {path} is good; first: '
                       f'{next(iter(self.bad.values()))}')

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: Any) -> episode.Episode:
    """An episode; its meta has the name of its file."""
    item = episode.Episode.load(self.paths[index])
    return dataclasses.replace(item, meta={**item.meta, 'name': self.paths[index].stem})

  def report(self) -> str:
    """How many files are good, and every bad one by name with what is wrong."""
    return folder.report(self.paths, self.bad)


class Statistics:
  """Gathers what episodes hold, one at a time; nothing but sums is kept."""

  def __init__(self, spaces: spaces_lib.Spaces):
    self._spaces = spaces
    self._lengths: list[int] = []
    self._frames = np.zeros((2, 3))
    self._still = 0
    self._actions: list[np.ndarray] = []
    self._low = np.full(spaces.pose_dim, np.inf)
    self._high = np.full(spaces.pose_dim, -np.inf)
    self._moved: list[np.ndarray] = []
    self._revisited = 0

  def add(self, item: episode.Episode) -> None:
    """Takes one episode in."""
    self._lengths.append(item.length)
    pixels = item.frames.reshape(-1, 3)
    counts = np.stack([np.bincount(pixels[:, c], minlength=256) for c in range(3)])
    levels = np.arange(256)
    self._frames += np.stack([counts @ levels, counts @ levels**2]) / pixels.shape[0] * item.length
    self._still += bool(item.length > 1 and (item.frames == item.frames[:1]).all())
    steps = item.actions.reshape(item.length * self._spaces.actions.repeat, -1).astype(np.float64)
    self._actions.append(np.stack([
        steps.sum(0), np.square(steps).sum(0), steps.min(0), steps.max(0)]))
    if self._spaces.pose_dim:
      self._low = np.minimum(self._low, item.poses.min(0))
      self._high = np.maximum(self._high, item.poses.max(0))
    if self._spaces.poses.kind == 'planar':
      relative = memory_maze.relative_pose(item.poses[1:], item.poses[:-1])
      self._moved.append(np.stack([
          np.linalg.norm(relative[:, :2], axis=1), np.abs(relative[:, 2])]))
      self._revisited += int(memory_maze.revisits(item.poses, gap=REVISIT_GAP).sum())

  def summary(self) -> dict[str, Any]:
    """Everything as plain values; see `describe`."""
    total, spaces = sum(self._lengths), self._spaces
    mean, square = self._frames / total
    sums = np.stack(self._actions)
    steps = total * spaces.actions.repeat
    actions: dict[str, Any] = {}
    if spaces.actions.kind == 'discrete':
      taken = sums[:, 0].sum(0)
      actions = {name: float(x / max(taken.sum(), 1)) for name, x in zip(
          spaces.actions.names, taken, strict=True)}
    else:
      center = sums[:, 0].sum(0) / steps
      spread = np.sqrt(np.maximum(sums[:, 1].sum(0) / steps - center**2, 0))
      columns = zip(spaces.actions.names, center, spread, sums[:, 2].min(0), sums[:, 3].max(0),
                    strict=True)
      actions = {name: dict(zip(('mean', 'std', 'min', 'max'), map(float, row), strict=True))
                 for name, *row in columns}
    out = {
        'episodes': len(self._lengths), 'frames': total,
        'length': {'min': min(self._lengths), 'median': float(np.median(self._lengths)),
                   'max': max(self._lengths)},
        'frame_mean': mean.tolist(),
        'frame_std': np.sqrt(np.maximum(square - mean**2, 0)).tolist(),
        'still_episodes': self._still, 'actions': actions,
        'poses': {name: [float(a), float(b)] for name, a, b in zip(
            spaces.poses.names, self._low, self._high, strict=True)}}
    if self._moved:
      distance, turn = np.concatenate(self._moved, axis=1)
      out['per_frame'] = {
          'distance_mean': float(distance.mean()) if distance.size else 0.0,
          'distance_max': float(distance.max()) if distance.size else 0.0,
          'turn_mean': float(turn.mean()) if turn.size else 0.0}
      out['revisited'] = self._revisited / total
    return {**out, 'hints': self._hints(out)}

  def _hints(self, out: dict[str, Any]) -> list[str]:
    """What is allowed, but will hardly be what is meant."""
    hints, discrete = [], self._spaces.actions.kind == 'discrete'
    if self._still:
      hints.append(f'{self._still} episodes show one frame all the time')
    if discrete:
      never = [name for name, share in out['actions'].items() if not share]
      if never:
        hints.append(f'actions never taken: {", ".join(never[:10])}')
    else:
      large = [n for n, a in out['actions'].items() if max(-a['min'], a['max']) > _LARGE]
      if large:
        hints.append(f'actions beyond +-{_LARGE:g}: {", ".join(large[:10])}; bring them to about '
                     '-1..1 with convert --action_scale')
    moved = out.get('per_frame')
    if moved and not 0.01 <= moved['distance_mean'] <= 2:
      hints.append(
          f'a frame moves {moved["distance_mean"]:.3g} units on average; a memory keyed by place '
          'expects some tenths: set the unit with convert --pose_scale')
    if moved and moved['distance_max'] > 20 * max(moved['distance_mean'], 1e-9):
      hints.append(f'the largest step is {moved["distance_max"]:.3g} units, '
                   'far above the mean: is an episode two in one?')
    return hints


def describe(spaces: spaces_lib.Spaces, summary: dict[str, Any]) -> str:
  """The summary as a short report."""
  length, names = summary['length'], ', '.join
  lines = [
      f'{spaces.environment}: {summary["episodes"]} episodes, {summary["frames"]:,} frames '
      f'{spaces.frame[0]}x{spaces.frame[1]}'
      + (f', {spaces.fps:g} per second' if spaces.fps else ''),
      f'lengths  {length["min"]} to {length["max"]}, median {length["median"]:g}',
      'colours  ' + names(f'{c} {m:.0f} +- {s:.0f}' for c, m, s in zip(
          ('red', 'green', 'blue'), summary['frame_mean'], summary['frame_std'], strict=True)),
      f'actions  {spaces.actions.kind}, {len(spaces.actions.names)} x {spaces.actions.repeat}']
  if spaces.actions.kind == 'discrete':
    lines += _bars(summary['actions'])
  else:
    first = list(summary['actions'].items())[:32]
    lines += [f'  {name[:20]:<20} {a["mean"]:+.3g} +- {a["std"]:.3g}, '
              f'{a["min"]:.3g} to {a["max"]:.3g}' for name, a in first]
  lines.append(f'poses    {spaces.poses.kind}' + ''.join(
      f', {name} {low:.3g} to {high:.3g}' for name, (low, high) in list(
          summary['poses'].items())[:8]) + f' {spaces.poses.unit}'.rstrip())
  if 'per_frame' in summary:
    moved = summary['per_frame']
    lines.append(f'motion   {moved["distance_mean"]:.3g} units and {moved["turn_mean"]:.3g} rad a '
                 f'frame; {summary["revisited"]:.0%} of frames revisit what was seen {REVISIT_GAP} '
                 'or more frames before')
  return '\n'.join([*lines, *(f'note: {hint}' for hint in summary['hints'])])


def _bars(shares: dict[str, float], width: int = 30) -> Sequence[str]:
  most = max(*shares.values(), 1e-9)
  rows = [f'  {name[:20]:<20} {share:5.1%} {"#" * round(width * share / most)}'
          for name, share in list(shares.items())[:32]]
  return [*rows, f'  and {len(shares) - 32} more'] if len(shares) > 32 else rows
