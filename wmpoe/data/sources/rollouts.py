"""Records what an agent does in a gymnasium environment, episode by episode, in our format."""

from collections.abc import Callable, Mapping, Sequence
import os
import pathlib
from typing import Any

import numpy as np

from wmpoe.data import episode
from wmpoe.data import folder
from wmpoe.data import spaces as spaces_lib
from wmpoe.data.sources import pictures


def actions_of(space: Any, names: Sequence[str] = ()) -> spaces_lib.Actions:
  """Our description of a gymnasium action space: Discrete or Box.

  Raises:
    ValueError: another kind of space, or a wrong number of names.
  """
  kind = type(space).__name__
  if kind not in ('Discrete', 'Box'):
    raise ValueError(f'An action space {space}; expected Discrete or Box: wrap the environment.')
  count = int(space.n) if kind == 'Discrete' else int(np.prod(space.shape))
  names = tuple(names) or tuple(str(i) for i in range(count))
  if len(names) != count:
    raise ValueError(f'{len(names)} action names for {count} actions of {space}.')
  return spaces_lib.Actions(kind='discrete' if kind == 'Discrete' else 'continuous', names=names)


def vector(action: Any, space: Any) -> np.ndarray:
  """One action as the numbers of an episode: one-hot, or a flat Box.

  Raises:
    ValueError: an action outside of a discrete space.
  """
  if type(space).__name__ == 'Discrete':
    index, out = int(action) - int(getattr(space, 'start', 0)), np.zeros(int(space.n), np.float32)
    if not 0 <= index < len(out):
      raise ValueError(f'action {action} is outside {space}.')
    out[index] = 1
    return out
  return np.asarray(action, np.float32).reshape(-1)


class EpisodeRecorder:
  """Wraps an environment; every episode becomes a file. Wrap last, as with RecordVideo.

      env = rollouts.EpisodeRecorder(gymnasium.make('CarRacing-v3', render_mode='rgb_array'), 'out')

  Behaves like the environment it wraps. An episode is written when it is terminated, truncated,
  reset or the recorder is closed; numbers go on after the episodes the folder holds.
  """

  def __init__(
      self, env: Any, out_dir: str | os.PathLike[str], *,
      frame: Callable[[Any], np.ndarray] | None = None,
      pose: Callable[[Any], Sequence[float]] | None = None,
      poses: spaces_lib.Poses = spaces_lib.Poses(),  # noqa: B008 - frozen
      depth: Callable[[Any], np.ndarray] | None = None,
      size: tuple[int, int] | None = None, action_names: Sequence[str] = (),
      environment: str = '', fps: float | None = None, min_length: int = 2,
      meta: Mapping[str, Any] | None = None):
    """Prepares the folder.

    Args:
      env: With reset, step, action_space as in gymnasium.
      out_dir: Made if it does not exist.
      frame: From the observation to the picture, uint8 [H W 3]; `env.render()` if None. It may give
        None for the last frame of an episode, which is then left out: some simulators show nothing
        once an episode is over.
      pose: From the environment to the pose of the current frame; needs `poses`.
      poses: What a pose is, such as `spaces.PLANAR`.
      depth: From the environment to the depth [H W] of the current frame along the optical axis, in
        the units of the poses, infinite where nothing is.
      size: Height and width to keep; as they are if None.
      action_names: Of the discrete choices or continuous numbers.
      environment: Name of the world; that of the environment's spec if empty.
      fps: Frames per second; what the environment's metadata says if None.
      min_length: Shorter episodes are not written.
      meta: Kept with every episode.

    Raises:
      ValueError: an action space that is neither Discrete nor Box; poses without `pose` or the
        reverse.
    """
    if (pose is None) != (poses.kind == 'none'):
      raise ValueError(
          f'pose={pose} with poses of kind {poses.kind!r}; expected both a function and its kind, '
          'such as spaces.PLANAR, or neither.')
    self.env, self._folder, self._frame, self._pose = env, pathlib.Path(out_dir), frame, pose
    self._poses, self._size, self._min_length = poses, size, min_length
    self._depth = depth
    self._meta = dict(meta or {})
    self._actions_kept = actions_of(env.action_space, action_names)
    spec = getattr(env, 'spec', None)
    self._environment = environment or getattr(spec, 'id', None) or type(env).__name__
    rate = fps or (getattr(env, 'metadata', None) or {}).get('render_fps')
    self._fps = float(rate) if rate else None
    self._rows: list[tuple[np.ndarray, ...]] = []
    self.written: list[pathlib.Path] = []

  def __getattr__(self, name: str) -> Any:
    if name == 'env':  # while it is not set yet
      raise AttributeError(name)
    return getattr(self.env, name)

  def __enter__(self) -> 'EpisodeRecorder':
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def reset(self, **options: Any) -> Any:
    """Writes the episode that was running and starts the next."""
    self._write()
    out = self.env.reset(**options)
    self._keep(out[0], None, False)
    return out

  def step(self, action: Any) -> Any:
    """One step; writes the episode if it is the last."""
    out = self.env.step(action)
    if self._rows:  # frames after the end of an episode are none of it
      over = bool(out[2] or out[3])
      self._keep(out[0], action, over)
      if over:
        self._write()
    return out

  def close(self) -> None:
    """Writes the episode that was running and closes the environment."""
    self._write()
    self.env.close()

  def _keep(self, observation: Any, action: Any, over: bool) -> None:
    picture = self.env.render() if self._frame is None else self._frame(observation)
    if picture is None and over:
      return
    if picture is None:
      raise ValueError('env.render() gave nothing; make it with render_mode="rgb_array".')
    here = np.zeros(0) if self._pose is None else np.asarray(self._pose(self.env), np.float32)
    led = np.zeros(self._actions_kept.dim, np.float32)
    if action is not None:
      led = vector(action, self.env.action_space)
    self._rows.append((
        pictures.fit(np.asarray(picture), self._size), led, here.astype(np.float32),
        *(() if self._depth is None else (
            pictures.fit_depth(self._depth(self.env), self._size),))))

  def _write(self) -> None:
    rows, self._rows = self._rows, []
    if len(rows) < self._min_length:
      return
    frames, actions, poses, *depth = (np.stack(column) for column in zip(*rows, strict=True))
    spaces = spaces_lib.Spaces(
        environment=self._environment, frame=frames.shape[1:3], actions=self._actions_kept,
        poses=self._poses, fps=self._fps)
    number = 0
    if self._folder.is_dir() and (kept := folder.files(self._folder)):
      number = int(kept[-1].stem[8:]) + 1
    name = f'{self._environment}_{number:05d}'
    item = episode.Episode(
        frames=frames, actions=actions, poses=poses, depth=depth[0] if depth else None,
        meta={**self._meta, 'environment': self._environment, 'name': name})
    spaces.check(item, where=f'{name}: ')
    self.written.append(folder.append(self._folder, item, number, spaces=spaces.to_json()))
