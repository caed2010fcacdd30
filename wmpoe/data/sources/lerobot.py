"""LeRobot datasets (v2.x and v3.0): parquet tables and mp4 videos, read without torch.

Layout as written by github.com/huggingface/lerobot: meta/info.json names features and the patterns
of paths; v2 has one parquet and one video per episode, v3 several episodes in each, with
meta/episodes/*/*.parquet saying where. Needs the extra `data` (pyarrow, imageio-ffmpeg, Pillow).
"""

from collections.abc import Mapping
import io
import itertools
import json
import os
import pathlib
from typing import Any

import numpy as np

from wmpoe.data import episode
from wmpoe.data import spaces as spaces_lib
from wmpoe.data.sources import conversion
from wmpoe.data.sources import pictures


class LeRobotSource:
  """A folder with meta/info.json; a `conversion.Source`."""

  def __init__(
      self, path: str | os.PathLike[str], *, frames: str = '', poses: str = '',
      pose_kind: str = 'vector', size: tuple[int, int] | None = None, environment: str = ''):
    """Reads what the dataset says about itself.

    Args:
      path: Its folder.
      frames: Name of the camera; may be left out if there is one.
      poses: Name of the feature to take as poses, such as 'observation.state'; none if empty.
      pose_kind: See `spaces.POSE_NAMES`.
      size: Height and width of the frames; the camera's if None.
      environment: Name of the world; that of the folder if empty.

    Raises:
      FileNotFoundError: no meta/info.json.
      ValueError: an info.json or episode list that makes no sense, an unknown feature.
    """
    self._root = pathlib.Path(path).resolve()
    self._info = self._read_info()
    self._version = str(self._info['codebase_version']).lstrip('v').partition('.')[0]
    if self._version not in ('2', '3'):
      raise ValueError(f'{path}: codebase_version {self._info["codebase_version"]!r}; versions 2 '
                       'and 3 are read.')
    features = self._info['features']
    cameras = [n for n, f in features.items() if f.get('dtype') in ('video', 'image')]
    if not frames and len(cameras) == 1:
      frames = cameras[0]
    if frames not in cameras:
      raise ValueError(f'{path}: the cameras are {cameras or "none"}; name one with --frames=NAME.')
    if poses and poses not in features:
      raise ValueError(f'{path}: no feature {poses!r}; there are {", ".join(features)}.')
    self._camera, self._poses = frames, poses
    shape = features[frames]['shape']
    first = len(shape) == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3)  # [3, H, W]
    self._size = size or tuple(shape[1:] if first else shape[:2])
    self._episodes = self._list_episodes()
    self.names = [f'episode_{number:06d}' for number in self._episodes]
    self.spaces = spaces_lib.Spaces(
        environment=environment or self._root.name or 'lerobot', frame=self._size,
        fps=float(self._info['fps']) if self._info.get('fps') else None, actions=self._actions(),
        poses=spaces_lib.Poses() if not poses else spaces_lib.Poses(
            kind=pose_kind,
            names=spaces_lib.POSE_NAMES.get(pose_kind) or _names(features[poses])))

  def _read_info(self) -> dict[str, Any]:
    path = self._root / 'meta' / 'info.json'
    if not path.is_file():
      raise FileNotFoundError(f'{path} does not exist; expected the folder of a LeRobot dataset.')
    try:
      info = json.loads(path.read_bytes())
      missing = [k for k in ('codebase_version', 'features', 'data_path') if k not in info]
      if missing or not isinstance(info['features'], dict) or 'action' not in info['features']:
        raise ValueError(f'missing {missing or "the feature action"}')
      if not all(isinstance(f, dict) and isinstance(f.get('shape'), list) and f['shape']
                 for f in info['features'].values()):
        raise ValueError('features without a shape')
    except (ValueError, TypeError, RecursionError) as error:
      raise ValueError(f'{path}: not the info of a LeRobot dataset ({error}).') from error
    return info

  def _list_episodes(self) -> dict[int, Mapping[str, Any]]:
    """What is known of each episode, by its number."""
    if self._version == '2':
      path = self._root / 'meta' / 'episodes.jsonl'
      try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        return {int(row['episode_index']): row for row in rows}
      except (ValueError, TypeError, KeyError, OSError, RecursionError) as error:
        raise ValueError(f'{path}: not a list of episodes ({error!r}).') from error
    files = sorted((self._root / 'meta' / 'episodes').glob('*/*.parquet'))
    rows = list(itertools.chain.from_iterable(_table(path).to_pylist() for path in files))
    if not rows or not all('episode_index' in row for row in rows):
      raise ValueError(f'{self._root}/meta/episodes: {len(rows)} episodes; expected parquet files '
                       'with a column episode_index.')
    return {int(row['episode_index']): row for row in rows}

  def _actions(self) -> spaces_lib.Actions:
    feature = self._info['features']['action']
    if str(feature.get('dtype', '')).startswith('int') and feature['shape'] in ([1], []):
      most = 0
      for path in sorted(self._root.glob('data/*/*.parquet')):
        most = max(most, int(_column(_table(path, ['action']), 'action').max()))
      if most > 1000:
        raise ValueError(f'actions up to {most}; expected at most 1000 discrete ones.')
      return spaces_lib.Actions(kind='discrete', names=tuple(map(str, range(most + 1))))
    return spaces_lib.Actions(kind='continuous', names=_names(feature))

  def load(self, index: int) -> episode.Episode:
    """Reads the rows and decodes the video of one episode.

    Raises:
      ValueError: files that are missing, damaged or of different length.
    """
    number = list(self._episodes)[index]
    about = self._episodes[number]
    path = self._path(self._info['data_path'], number, about, 'data')
    wanted = ['action', 'episode_index', *([self._poses] if self._poses else [])]
    in_table = self._info['features'][self._camera]['dtype'] == 'image'
    table = _table(path, [*wanted, *([self._camera] if in_table else [])])
    table = table.filter(np.asarray(table['episode_index']) == number)
    if not len(table):
      raise ValueError(f'{path}: no rows of episode {number}.')
    actions = _column(table, 'action')
    if self.spaces.actions.kind == 'discrete':
      actions = conversion.one_hot(
          actions[:, 0].astype(np.int64), len(self.spaces.actions.names))
    poses = _column(table, self._poses) if self._poses else np.zeros((len(table), 0))
    frames = self._frames(number, about, len(table), table if in_table else None)
    return episode.Episode(
        frames=frames, actions=conversion.led_to(actions.astype(np.float32))[:-1],
        poses=poses.astype(np.float32), meta={'source': path.name, 'episode_index': number})

  def _frames(self, number: int, about: Mapping[str, Any], count: int, table: Any) -> np.ndarray:
    if table is not None:
      return np.stack([
          pictures.fit(pictures.image(io.BytesIO(cell['bytes'])), self._size)
          for cell in table[self._camera].to_pylist()])
    path = self._path(self._info['video_path'], number, about, f'videos/{self._camera}')
    if not path.is_file():
      raise ValueError(f'{path} does not exist; it holds the pictures of episode {number}.')
    start = float(about.get(f'videos/{self._camera}/from_timestamp', 0.0))
    # Half a frame before: the first frame found is then the one at `start`.
    start = max(0.0, start - 0.5 / float(self._info['fps']))
    found = [pictures.fit(frame, self._size) for frame in itertools.islice(
        pictures.video(path, start=start), count)]
    if len(found) != count:
      raise ValueError(f'{path}: {len(found)} frames of episode {number}; its table has {count}.')
    return np.stack(found)

  def _path(self, pattern: str, number: int, about: Mapping[str, Any], key: str) -> pathlib.Path:
    chunks = int(self._info.get('chunks_size', 1000))
    try:
      path = self._root / pattern.format(
          episode_index=number, episode_chunk=number // chunks, video_key=self._camera,
          chunk_index=about.get(f'{key}/chunk_index', 0),
          file_index=about.get(f'{key}/file_index', 0))
    except (KeyError, IndexError, AttributeError, ValueError, TypeError) as error:
      raise ValueError(
          f'meta/info.json: the path {pattern!r} makes no sense ({error!r}).') from error
    if not path.resolve().is_relative_to(self._root):
      raise ValueError(f'meta/info.json: the path {pattern!r} leads out of the dataset.')
    return path


def _names(feature: Mapping[str, Any]) -> tuple[str, ...]:
  """Names of a feature's numbers; the dataset may give a list, groups of lists, or none."""
  names = feature.get('names')
  if isinstance(names, dict):
    names = list(itertools.chain.from_iterable(
        value if isinstance(value, list) else [key] for key, value in names.items()))
  count = int(np.prod(feature['shape']))
  good = isinstance(names, list) and len(names) == count and len(set(map(str, names))) == count
  return tuple(map(str, names)) if names and good else tuple(map(str, range(count)))


def _table(path: pathlib.Path, columns: list[str] | None = None) -> Any:
  try:
    from pyarrow import parquet
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "Reading LeRobot datasets needs pyarrow; install it with: pip install 'wmpoe[data]'"
    ) from error
  try:
    return parquet.read_table(path, columns=columns)
  except Exception as error:  # of hostile bytes: any
    raise ValueError(f'{path}: not a parquet file that can be read ({error}).') from error


def _column(table: Any, name: str) -> np.ndarray:
  """A column of numbers or of lists of numbers as [rows numbers]."""
  if name not in table.column_names:
    raise ValueError(f'no column {name!r}; there are {", ".join(table.column_names)}.')
  values = np.array(table[name].to_pylist())
  if values.dtype == object or not len(values):
    raise ValueError(f'column {name!r} has rows of different length, or none.')
  return values.reshape(len(values), -1)
