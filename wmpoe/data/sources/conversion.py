"""From a source of episodes to a folder in the project's format.

A source is read one episode at a time. An episode that cannot be read is named with what is wrong
with it and left out; the same command goes on with an unfinished folder.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import os
import pathlib
from typing import Any, Protocol

import numpy as np

from wmpoe import whole_file
from wmpoe.data import episode
from wmpoe.data import folder
from wmpoe.data import spaces as spaces_lib

INDEX = 'conversion.json'


class Source(Protocol):
  """Episodes that somebody recorded."""

  @property
  def names(self) -> Sequence[str]:
    """Of the episodes, all different."""

  @property
  def spaces(self) -> spaces_lib.Spaces:
    """What they have in common, at one step per frame."""

  def load(self, index: int) -> episode.Episode:
    """Reads one episode; may raise anything if it is damaged."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """What is changed on the way.

  Attributes:
    skip: Steps per frame; the actions of all of them become the condition of the frame.
    action_scale: Continuous actions are divided by it: one number, or one per action.
    pose_scale: Lengths of planar poses, and depth, are divided by it, so that they are in cells.
    unit: Name of what lengths are in then.
    min_length: Fewest frames of an episode.
  """

  skip: int = 1
  action_scale: tuple[float, ...] = ()
  pose_scale: float = 1.0
  unit: str = ''
  min_length: int = 2

  def __post_init__(self):
    if self.skip < 1 or self.min_length < 1:
      raise ValueError(
          f'skip={self.skip} and min_length={self.min_length}; expected at least 1 each.')
    if not all(np.isfinite(x) and x > 0 for x in (*self.action_scale, self.pose_scale)):
      raise ValueError(f'{self}: expected positive scales.')


def spaces_of(source: Source, options: Options) -> spaces_lib.Spaces:
  """The spaces of the folder that is written.

  Raises:
    ValueError: scales for discrete actions, not one per action, or for poses that are not planar.
  """
  spaces = source.spaces
  scales = len(options.action_scale)
  if scales and (spaces.actions.kind != 'continuous'
                 or scales not in (1, len(spaces.actions.names))):
    raise ValueError(
        f'action_scale has {scales} numbers for {len(spaces.actions.names)} {spaces.actions.kind} '
        'actions; expected one number, or one per continuous action.')
  if options.pose_scale != 1 and spaces.poses.kind != 'planar':
    raise ValueError(f'pose_scale is for planar poses; these are of kind {spaces.poses.kind!r}.')
  unit = options.unit or spaces.poses.unit
  return dataclasses.replace(
      spaces, actions=dataclasses.replace(spaces.actions, repeat=options.skip),
      poses=dataclasses.replace(spaces.poses, unit=unit if spaces.poses.dim else ''),
      fps=None if spaces.fps is None else spaces.fps / options.skip)


def convert(
    source: Source,
    out_dir: str | os.PathLike[str],
    *,
    options: Options = Options(),
    strict: bool = False,
    overwrite: bool = False,
) -> Iterator[folder.Progress]:
  """Writes every episode of a source; see `folder.collect`.

  Args:
    source: What is converted.
    out_dir: Made if it does not exist.
    options: What is changed on the way.
    strict: Raise at the first bad episode rather than name it and go on.
    overwrite: Delete the episodes found in the folder first, rather than go on with them.

  Raises:
    ValueError: two episodes of one name, a folder of other spaces or with more episodes than the
      source, or with `strict` a bad episode.
    OSError: the folder cannot be written.
  """
  spaces, names = spaces_of(source, options), [str(name) for name in source.names]
  if len(set(names)) < len(names):
    raise ValueError('Two episodes of the source have the same name; rename one.')
  if not names:
    raise ValueError('The source has no episodes; see --help for what is looked for.')
  out = pathlib.Path(out_dir)
  beyond = [p.name for p in folder.files(out) if int(p.stem[8:]) >= len(names)] if (
      out.is_dir() and not overwrite) else []
  if beyond:
    raise ValueError(
        f'{out} holds {", ".join(beyond[:3])}, more than the {len(names)} episodes of the source; '
        'choose another folder, or overwrite (--overwrite) to delete them.')

  def make(index: int) -> episode.Episode:
    try:
      item = _changed(source.load(index), source.spaces, options)
      item = dataclasses.replace(
          item, meta={'environment': spaces.environment, **item.meta, 'name': names[index]})
      episode.validate(item, min_length=options.min_length)
      spaces.check(item)
    except Exception as error:  # decoders raise whatever they like at damaged files
      said = ' '.join(str(error).split()) or type(error).__name__
      raise ValueError(f'{names[index]}: {said}') from error
    return item

  kept = {
      **spaces.to_json(), 'source': {
          'options': json.loads(json.dumps(dataclasses.asdict(options)))}}
  return folder.collect(
      out, make, episodes=len(names), spaces=kept, overwrite=overwrite, names=names,
      keep_going=not strict)


def finish(out_dir: str | os.PathLike[str], *, converted: int, bad: Mapping[str, str],
           about: Mapping[str, Any]) -> pathlib.Path:
  """Writes conversion.json: how many episodes there are, and every bad one with its fault."""
  path = pathlib.Path(out_dir) / INDEX
  text = json.dumps({**about, 'episodes': converted, 'bad': dict(bad)}, indent=2).encode()
  whole_file.write(path, text)
  return path


def _changed(
    item: episode.Episode, spaces: spaces_lib.Spaces, options: Options) -> episode.Episode:
  actions, poses, depth = item.actions, item.poses, item.depth
  if options.action_scale:
    actions = actions / np.asarray(options.action_scale, np.float32)
  if options.pose_scale != 1:
    poses = poses / np.asarray([options.pose_scale, options.pose_scale, 1], np.float32)
    depth = None if depth is None else depth / np.float32(options.pose_scale)
  item = dataclasses.replace(item, actions=actions, poses=poses, depth=depth)
  return skipped(item, options.skip) if options.skip > 1 else item


def skipped(item: episode.Episode, skip: int) -> episode.Episode:
  """Every `skip`-th frame from the first on, with the actions of all steps since the one before.

  Kept frame k has actions `skip (k - 1) + 1 ... skip k` of the original [A skip], oldest first;
  what lies before the episode is zeros.
  """
  kept = np.arange(0, item.length, skip)
  actions = np.concatenate(
      [np.zeros((skip - 1, item.actions.shape[1]), np.float32), item.actions])
  return dataclasses.replace(
      item, frames=item.frames[kept], poses=item.poses[kept],
      depth=None if item.depth is None else item.depth[kept],
      actions=np.concatenate([actions[kept + i] for i in range(skip)], axis=1))


def led_to(actions: np.ndarray) -> np.ndarray:
  """Actions taken AT frame t, float32 [T A] or [T-1 A], as those that LED to it [T' A].

  Row 0 is zeros; as many rows as there are frames must be cut by the caller.
  """
  return np.concatenate([np.zeros_like(actions[:1]), actions])


def one_hot(labels: np.ndarray, count: int) -> np.ndarray:
  """Labels [T] in [0, count) as float32 [T count].

  Raises:
    ValueError: a label outside; names the row.
  """
  bad = np.flatnonzero((labels < 0) | (labels >= count))
  if bad.size:
    raise ValueError(
        f'action {labels[bad[0]]} in row {bad[0]}; expected 0 to {count - 1}.')
  return np.eye(count, dtype=np.float32)[labels]
