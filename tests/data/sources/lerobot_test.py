import io
import json

import numpy as np
import pytest

from wmpoe import cli
from wmpoe.data import episode
from wmpoe.data import folder
from wmpoe.data.sources import conversion
from wmpoe.data.sources import lerobot

pyarrow = pytest.importorskip('pyarrow')
parquet = pytest.importorskip('pyarrow.parquet')
ffmpeg = pytest.importorskip('imageio_ffmpeg')
Image = pytest.importorskip('PIL.Image')

CAMERA = 'observation.images.top'
LENGTHS = (4, 3)


def _video(path, values, fps):
  path.parent.mkdir(parents=True, exist_ok=True)
  writer = ffmpeg.write_frames(str(path), (32, 16), fps=fps, macro_block_size=16)
  writer.send(None)
  for value in values:
    writer.send(np.full((16, 32, 3), value, np.uint8).tobytes())
  writer.close()


def _table(path, columns):
  path.parent.mkdir(parents=True, exist_ok=True)
  parquet.write_table(pyarrow.table(columns), path)


def _rows(episode, length):
  return {
      'action': [[episode + 0.5, float(t)] for t in range(length)],
      'observation.state': [[float(t), 0.0, 0.0] for t in range(length)],
      'episode_index': [episode] * length}


def _values(episode, length):
  return [100 * episode + 20 * t for t in range(length)]


def _info(root, version, dtype='video', **paths):
  (root / 'meta').mkdir(parents=True, exist_ok=True)
  (root / 'meta' / 'info.json').write_text(json.dumps({
      'codebase_version': version, 'fps': 10, 'chunks_size': 1000, 'features': {
          'action': {'dtype': 'float32', 'shape': [2], 'names': {'motors': ['arm', 'hand']}},
          'observation.state': {'dtype': 'float32', 'shape': [3], 'names': None},
          CAMERA: {'dtype': dtype, 'shape': [16, 32, 3], 'names': ['height', 'width', 'channel']}},
      **paths}))


@pytest.fixture
def second(tmp_path):
  """Version 2: a parquet and a video for each episode."""
  _info(tmp_path, 'v2.1',
        data_path='data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet',
        video_path='videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4')
  lines = []
  for i, length in enumerate(LENGTHS):
    _table(tmp_path / f'data/chunk-000/episode_{i:06d}.parquet', _rows(i, length))
    _video(tmp_path / f'videos/chunk-000/{CAMERA}/episode_{i:06d}.mp4', _values(i, length), 10)
    lines.append(json.dumps({'episode_index': i, 'length': length}))
  (tmp_path / 'meta' / 'episodes.jsonl').write_text('\n'.join(lines))
  return tmp_path


@pytest.fixture
def third(tmp_path):
  """Version 3: one parquet and one video for all."""
  _info(tmp_path, 'v3.0', data_path='data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet',
        video_path='videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4')
  every = [_rows(i, n) for i, n in enumerate(LENGTHS)]
  _table(tmp_path / 'data/chunk-000/file-000.parquet',
         {k: every[0][k] + every[1][k] for k in every[0]})
  _video(tmp_path / f'videos/{CAMERA}/chunk-000/file-000.mp4',
         _values(0, LENGTHS[0]) + _values(1, LENGTHS[1]), 10)
  _table(tmp_path / 'meta/episodes/chunk-000/file-000.parquet', {
      'episode_index': [0, 1], 'data/chunk_index': [0, 0], 'data/file_index': [0, 0],
      f'videos/{CAMERA}/chunk_index': [0, 0], f'videos/{CAMERA}/file_index': [0, 0],
      f'videos/{CAMERA}/from_timestamp': [0.0, LENGTHS[0] / 10]})
  return tmp_path


@pytest.mark.parametrize('version', ['second', 'third'])
def test_both_versions_give_the_same_episodes(request, version):
  root = request.getfixturevalue(version)
  source = lerobot.LeRobotSource(
      root, poses='observation.state', pose_kind='planar', size=(8, 8), environment='arm')
  world = source.spaces
  assert (world.actions.names, world.poses.kind, world.fps) == (('arm', 'hand'), 'planar', 10.0)
  assert source.names == ['episode_000000', 'episode_000001']
  for i, length in enumerate(LENGTHS):
    item = source.load(i)
    world.check(item)
    np.testing.assert_allclose(item.frames.mean(axis=(1, 2, 3)), _values(i, length), atol=8)
    # Taken at frame t: it led to frame t + 1.
    np.testing.assert_allclose(item.actions[0], 0)
    np.testing.assert_allclose(item.actions[1:, 1], np.arange(length - 1))
    np.testing.assert_allclose(item.poses[:, 0], np.arange(length))


def test_the_command_line_converts_them(third, tmp_path, capsys):
  out = tmp_path / 'out'
  code = cli.main([
      'wmpoe', 'data', 'convert', '--from=lerobot', f'--source={third}', f'--workdir={out}',
      f'--frames={CAMERA}', '--poses=observation.state', '--pose_kind=planar', '--size=8',
      '--environment=arm'])
  assert code == 0, capsys.readouterr().err
  assert cli.main(['wmpoe', 'data', 'validate', f'--source={out}']) == 0
  assert [episode.Episode.load(path).length for path in folder.files(out)] == [*LENGTHS]


def test_pictures_in_the_table(tmp_path):
  def png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 32, 3), value, np.uint8)).save(buffer, 'PNG')
    return {'bytes': buffer.getvalue(), 'path': ''}

  _info(tmp_path, 'v2.0', dtype='image', data_path='data/chunk-000/{episode_index}.parquet')
  _table(tmp_path / 'data/chunk-000/0.parquet', {
      **_rows(0, 2), CAMERA: [png(10), png(20)]})
  (tmp_path / 'meta' / 'episodes.jsonl').write_text('{"episode_index": 0}')
  item = lerobot.LeRobotSource(tmp_path).load(0)
  np.testing.assert_array_equal(item.frames[:, 0, 0, 0], [10, 20])
  assert item.poses.shape == (2, 0)


def test_missing_and_damaged_files_are_named(second):
  (second / f'videos/chunk-000/{CAMERA}/episode_000000.mp4').unlink()
  (second / 'data/chunk-000/episode_000001.parquet').write_bytes(b'PAR1')
  errors = [s.error for s in conversion.convert(lerobot.LeRobotSource(second), second / 'out')]
  assert 'episode_000000.mp4 does not exist' in errors[0]
  assert 'episode_000001.parquet: not a parquet file' in errors[1]


@pytest.mark.parametrize(('changes', 'message'), [
    ({'data_path': '../../{episode_index}'}, 'leads out of the dataset'),
    ({'data_path': '{episode_index.__class__.x}'}, 'makes no sense'),
    ({'data_path': 7}, 'makes no sense'),
])
def test_paths_stay_inside(second, changes, message):
  path = second / 'meta' / 'info.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
  with pytest.raises(ValueError, match=message):
    lerobot.LeRobotSource(second).load(0)


def test_datasets_that_are_none(tmp_path, second):
  with pytest.raises(FileNotFoundError, match='expected the folder of a LeRobot dataset'):
    lerobot.LeRobotSource(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match=r"the cameras are \['observation.images.top'\]; name one"):
    lerobot.LeRobotSource(second, frames='left')
  with pytest.raises(ValueError, match="no feature 'joints'"):
    lerobot.LeRobotSource(second, poses='joints')
  path = second / 'meta' / 'info.json'
  info = json.loads(path.read_text())
  for value, message in (('{', 'not the info'), ('[]', 'not the info'),
                         (json.dumps({**info, 'codebase_version': 'v9'}), 'versions 2 and 3'),
                         (json.dumps({**info, 'features': {}}), 'not the info')):
    path.write_text(value)
    with pytest.raises(ValueError, match=message):
      lerobot.LeRobotSource(second)
  path.write_text(json.dumps(info))
  (second / 'meta' / 'episodes.jsonl').write_text('{}')
  with pytest.raises(ValueError, match='not a list of episodes'):
    lerobot.LeRobotSource(second)
