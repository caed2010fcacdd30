"""Episodes of Memory Maze, the public dataset's or collected ones, in our format."""

import os
import pathlib

from wmpoe.data import episode
from wmpoe.data import memory_maze
from wmpoe.data import spaces as spaces_lib


class MazeSource:
  """A folder of Memory Maze npz files; a `conversion.Source`.

  Raises:
    FileNotFoundError: no such folder, or no npz file in it.
    ValueError: not one good file.
  """

  def __init__(self, path: str | os.PathLike[str], *, border: int = 2, environment: str = ''):
    """Lists the files; `border` pixels are cropped on every side."""
    self._paths = sorted(pathlib.Path(path).glob('*.npz'))
    if not self._paths:
      raise FileNotFoundError(f'{path} holds no *.npz; expected Memory Maze episodes.')
    self._border, self.names = border, [p.stem for p in self._paths]
    faults = []
    for index in range(len(self._paths)):
      try:
        shape = self.load(index).frames.shape
        break
      except ValueError as error:
        faults.append(str(error))
    else:
      raise ValueError(
          f'None of the {len(faults)} files is a Memory Maze episode; first: {faults[0]}')
    self.spaces = spaces_lib.Spaces(
        environment=environment or 'memory_maze', frame=shape[1:3], poses=spaces_lib.PLANAR,
        actions=spaces_lib.Actions(kind='discrete', names=memory_maze.ACTIONS))

  def load(self, index: int) -> episode.Episode:
    """Reads one file.

    Raises:
      ValueError: see `memory_maze.load`.
    """
    found = memory_maze.load(self._paths[index])
    item = memory_maze.subsample(found, 1, border=self._border)
    meta = {k: v for k, v in item.meta.items() if k in ('source', 'layout', 'targets')}
    return episode.Episode(
        frames=item.frames, actions=item.actions, poses=item.poses, depth=item.depth, meta=meta)
