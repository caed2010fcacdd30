"""Minari datasets (minari.farama.org) whose observations hold pictures. Needs the extra `data`."""

import os
import pathlib
from typing import Any

import numpy as np

from wmpoe.data import episode
from wmpoe.data import spaces as spaces_lib
from wmpoe.data.sources import conversion
from wmpoe.data.sources import pictures
from wmpoe.data.sources import rollouts


class MinariSource:
  """A dataset by name (of the local store) or by folder; a `conversion.Source`."""

  def __init__(
      self, path: str | os.PathLike[str], *, frames: str = '', poses: str = '',
      pose_kind: str = 'vector', size: tuple[int, int] | None = None, environment: str = ''):
    """Opens the dataset.

    Args:
      path: Its name, such as 'minigrid/BabyAI-Pickup/optimal-v0', or its folder.
      frames: Key of the pictures in a dictionary of observations ('a.b' for nested ones); empty if
        the observation is the picture.
      poses: Key of the poses, or empty for none.
      pose_kind: See `spaces.POSE_NAMES`.
      size: Height and width of the frames; as they are if None.
      environment: Name of the world; that of the dataset if empty.

    Raises:
      ModuleNotFoundError: the extra is missing.
      ValueError: no such dataset, keys that are not there, actions that are neither discrete nor
        continuous.
    """
    try:
      import minari
    except ModuleNotFoundError as error:
      raise ModuleNotFoundError(
          "Reading Minari datasets needs minari; install it with: pip install 'wmpoe[data]'"
      ) from error
    folder = pathlib.Path(path)
    try:
      if (folder / 'data').is_dir():
        folder = folder / 'data'
      self._data: Any = (
          minari.MinariDataset(folder) if folder.is_dir() else minari.load_dataset(str(path)))
      self._indices = [int(i) for i in self._data.episode_indices]
    except Exception as error:  # of a damaged store: any
      raise ValueError(f'{path}: no Minari dataset that can be opened ({error}).') from error
    self._frames, self._poses, self._size = frames, poses, size
    self.names = [f'episode_{index}' for index in self._indices]
    shape = _at(self._data.observation_space, frames, 'spaces').shape
    if shape is None or len(shape) not in (2, 3):
      raise ValueError(f'{path}: observations {frames!r} have shape {shape}; expected pictures '
                       '[H W 3]: name them with --frames=KEY.')
    pose = spaces_lib.Poses()
    if poses:
      count = int(np.prod(_at(self._data.observation_space, poses, 'spaces').shape))
      pose = spaces_lib.Poses(kind=pose_kind, names=spaces_lib.POSE_NAMES.get(
          pose_kind) or tuple(map(str, range(count))))
    self.spaces = spaces_lib.Spaces(
        environment=environment or str(self._data.spec.dataset_id), frame=size or shape[:2],
        actions=rollouts.actions_of(self._data.action_space), poses=pose)

  def load(self, index: int) -> episode.Episode:
    """Reads one episode: T actions and T + 1 observations.

    Raises:
      ValueError: what does not fit together.
    """
    (found,) = self._data.iterate_episodes([self._indices[index]])
    raw = np.asarray(_at(found.observations, self._frames))
    frames = np.stack([pictures.fit(frame, self._size) for frame in raw])
    actions = np.stack([
        rollouts.vector(action, self._data.action_space) for action in found.actions])
    if len(frames) != len(actions) + 1:
      raise ValueError(f'{len(frames)} observations and {len(actions)} actions; expected one '
                       'observation more.')
    poses = np.zeros((len(frames), 0), np.float32)
    if self._poses:
      poses = np.asarray(_at(found.observations, self._poses), np.float32)
    return episode.Episode(
        frames=frames, actions=conversion.led_to(actions), poses=poses.reshape(len(frames), -1),
        meta={'source': self.spaces.environment, 'episode': self._indices[index]})


def _at(value: Any, key: str, attribute: str = '') -> Any:
  """The part of a nested dictionary (of spaces) that 'a.b' names."""
  for name in key.split('.') if key else ():
    inside = getattr(value, attribute) if attribute and hasattr(value, attribute) else value
    try:
      value = inside[name]
    except (KeyError, TypeError, IndexError) as error:
      raise ValueError(f'observations have no key {name!r} of {key!r}.') from error
  return value
