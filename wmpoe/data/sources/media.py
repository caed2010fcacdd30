"""A folder of videos, or of folders of images, with a table of actions and poses for each.

    SOURCE/first.mp4   SOURCE/first.csv
    SOURCE/second/000.png 001.png ...   SOURCE/second.json (or SOURCE/second/actions.csv)

For the columns of a table see `tables`.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
import dataclasses
import os
import pathlib
import re

import numpy as np

from wmpoe.data import episode
from wmpoe.data import spaces as spaces_lib
from wmpoe.data.sources import conversion
from wmpoe.data.sources import pictures
from wmpoe.data.sources import tables


@dataclasses.dataclass(frozen=True)
class _Item:
  """Where an episode's pictures and table are; no table, and why, if there is none."""

  media: pathlib.Path
  table: tables.Table | None
  fault: str = ''


class MediaSource:
  """Videos or folders of images with tables; a `conversion.Source`.

  Tables are read and checked when the object is made, pictures when they are asked for.
  """

  def __init__(
      self, path: str | os.PathLike[str], *, size: tuple[int, int] | None = None,
      actions: Sequence[str] = (), taken_at: bool = True, fps: float | None = None,
      environment: str = ''):
    """Finds the episodes.

    Args:
      path: The folder.
      size: Height and width of the frames; None for those of the first episode that can be read.
      actions: Names of the discrete actions, in order; those found if empty.
      taken_at: Whether row t is the action taken AT frame t, which led to frame t + 1; else the one
        that LED to frame t.
      fps: Frames per second; those of the first video if None.
      environment: Name of the world; that of the folder if empty.

    Raises:
      FileNotFoundError: no such folder, or nothing in it.
      ValueError: no episode with a table and pictures that can be read.
    """
    root = pathlib.Path(path)
    if not root.is_dir():
      raise FileNotFoundError(
          f'{root} is no folder; expected one with videos or folders of images.')
    self._items = [_find(root, media) for media in _media(root)]
    if not self._items:
      raise FileNotFoundError(
          f'{root} holds neither videos ({", ".join(pictures.VIDEOS)}) nor folders of images '
          f'({", ".join(pictures.IMAGES)}).')
    self.names = [item.media.name if item.media.is_dir() else item.media.stem
                  for item in self._items]
    twice = {name for name, count in Counter(self.names).items() if count > 1}
    self.names = [item.media.name if name in twice else name
                  for item, name in zip(self._items, self.names, strict=True)]
    good = [item for item in self._items if item.table is not None]
    if not good:
      raise ValueError(f'None of the {len(self._items)} episodes has a table that can be read; '
                       f'first: {self._items[0].fault}')
    self._taken_at, self._size = taken_at, size
    self.spaces = self._spaces(
        good, tuple(actions), fps, environment or root.resolve().name or 'own')

  def _spaces(self, good: list[_Item], actions: tuple[str, ...], fps: float | None,
              environment: str) -> spaces_lib.Spaces:
    """What most tables agree on; the others are refused when they are loaded."""
    found = [item.table for item in good if item.table is not None]
    kind = lambda t: (bool(t.labels), t.action_names, t.pose_kind, t.pose_names)
    common = Counter(map(kind, found)).most_common(1)[0][0]
    alike = [table for table in found if kind(table) == common]
    discrete, names, pose_kind, pose_names = common
    if self._size is None:
      self._size = self._first_size(good)
    if fps is None:
      rates = (pictures.frame_rate(item.media) for item in good if item.media.is_file())
      fps = next((rate for rate in rates if rate), None)
    return spaces_lib.Spaces(
        environment=environment, frame=self._size, fps=fps,
        actions=spaces_lib.Actions(
            kind='discrete' if discrete else 'continuous',
            names=(actions or tables.action_names(alike)) if discrete else names),
        poses=spaces_lib.Poses(kind=pose_kind, names=pose_names))

  def _first_size(self, good: list[_Item]) -> tuple[int, int]:
    faults = []
    for item in good:
      try:
        frame = next(_frames(item.media))
        return frame.shape[0], frame.shape[1]
      except (ValueError, OSError, StopIteration) as error:
        faults.append(f'{item.media.name}: {error or "it has no frames"}')
    raise ValueError(f'No episode has pictures that can be read; first: {faults[0]}')

  def load(self, index: int) -> episode.Episode:
    """Decodes one episode.

    Raises:
      ValueError: its table or its pictures are bad, or do not fit together or to the others.
    """
    item, names = self._items[index], self.spaces.actions.names
    table = item.table
    if table is None:
      raise ValueError(item.fault)
    if table.pose_names != self.spaces.poses.names or table.pose_kind != self.spaces.poses.kind:
      raise ValueError(f'{table.path}: poses {table.pose_names}; the other tables have '
                       f'{self.spaces.poses.names or "none"}.')
    if self.spaces.actions.kind == 'discrete':
      unknown = sorted(set(table.labels) - set(names))
      if unknown or not table.labels:
        raise ValueError(f'{table.path}: the actions {unknown[:5]} are none of {list(names)[:20]}.')
      actions = conversion.one_hot(np.array([names.index(x) for x in table.labels]), len(names))
    else:
      actions = table.actions
      if table.action_names != names:
        raise ValueError(
            f'{table.path}: actions {table.action_names}; the other tables have {names}.')
    frames = []
    for frame in _frames(item.media):
      frames.append(pictures.fit(frame, self._size))
      if len(frames) > table.length:
        break
    if len(frames) != table.length:
      raise ValueError(
          f'{item.media}: {"more than " if len(frames) > table.length else ""}'
          f'{min(len(frames), table.length)} frames, but {table.path.name} has {table.length} '
          'rows; expected one row per frame.')
    if self._taken_at:
      actions = conversion.led_to(actions)[:-1]
    return episode.Episode(
        frames=np.stack(frames), actions=actions, poses=table.poses,
        meta={'source': item.media.name})


def _media(root: pathlib.Path) -> Iterator[pathlib.Path]:
  for path in sorted(root.iterdir(), key=_natural):
    suffixes = [p.suffix.lower() for p in (path.iterdir() if path.is_dir() else [path])]
    if set(suffixes) & set(pictures.IMAGES if path.is_dir() else pictures.VIDEOS):
      yield path


def _find(root: pathlib.Path, media: pathlib.Path) -> _Item:
  name = media.name if media.is_dir() else media.stem
  tried = [root / f'{name}.{kind}' for kind in ('csv', 'json')]
  if media.is_dir():
    tried += [media / f'actions.{kind}' for kind in ('csv', 'json')]
  for path in tried:
    if path.is_file():
      try:
        return _Item(media, tables.read(path))
      except (ValueError, OSError) as error:
        return _Item(media, None, str(error))
  return _Item(media, None, f'{media}: no table of its actions; expected one of '
                            f'{", ".join(str(p.relative_to(root)) for p in tried)}.')


def _frames(media: pathlib.Path) -> Iterator[np.ndarray]:
  """The pictures of an episode, in their natural order (9.png before 10.png)."""
  if media.is_file():
    yield from pictures.video(media)
    return
  for number, path in enumerate(sorted(media.iterdir(), key=_natural)):
    if path.suffix.lower() in pictures.IMAGES:
      try:
        yield pictures.image(path)
      except Exception as error:  # a decoder's, of any kind
        raise ValueError(f'{path}: picture {number} cannot be decoded ({error}).') from error


def _natural(path: pathlib.Path) -> list:
  return [(1, int(part), '') if part.isdecimal() else (0, 0, part)
          for part in re.split(r'([0-9]+)', path.name)]
