import pathlib
import shutil

import numpy as np
import pytest

from wmpoe import cli
from wmpoe.data import episode
from wmpoe.data import folder
from wmpoe.data import memory_maze
from wmpoe.data.sources import conversion
from wmpoe.data.sources import mazes

TINY = pathlib.Path(__file__).parents[1] / 'tiny_maze.npz'


def test_a_maze_converted_is_the_maze_as_its_own_reader_sees_it(tmp_path):
  shutil.copy(TINY, tmp_path / 'a.npz')
  (tmp_path / 'b.npz').write_bytes(b'torn')
  options = conversion.Options(skip=2)
  steps = list(conversion.convert(mazes.MazeSource(tmp_path), tmp_path / 'out', options=options))
  assert [s.written for s in steps] == [True, False] and 'b.npz: not a whole npz' in steps[1].error
  item = conversion.skipped(mazes.MazeSource(tmp_path).load(0), 2)
  expected = memory_maze.subsample(memory_maze.load(TINY), 2)
  for name in ('frames', 'actions', 'poses'):
    np.testing.assert_array_equal(getattr(item, name), getattr(expected, name))
  assert item.meta['layout'] == expected.meta['layout']


def test_the_command_line_converts_it(tmp_path, capsys):
  (tmp_path / 'in').mkdir()
  shutil.copy(TINY, tmp_path / 'in' / 'a.npz')
  code = cli.main(['wmpoe', 'data', 'convert', '--from=memory_maze', f'--source={tmp_path}/in',
                   f'--workdir={tmp_path}/out', '--skip=2'])
  assert code == 0, capsys.readouterr().err
  assert cli.main(['wmpoe', 'data', 'validate', f'--source={tmp_path}/out']) == 0
  assert len(folder.files(tmp_path / 'out')) == 1


def test_depth_comes_along(tmp_path):
  with np.load(TINY) as fields:
    shape = fields['image'].shape[:3]
    depth = np.random.default_rng(0).uniform(1, 5, shape).astype(np.float16)
    np.savez(tmp_path / 'a.npz', **fields, depth=depth)
  options = conversion.Options(skip=2, pose_scale=2, unit='two cells')
  list(conversion.convert(mazes.MazeSource(tmp_path), tmp_path / 'out', options=options))
  item = episode.Episode.load(tmp_path / 'out' / 'episode_00000.npz')
  np.testing.assert_allclose(item.depth, depth[::2, 2:-2, 2:-2].astype(np.float32) / 2)


def test_folders_without_mazes(tmp_path):
  with pytest.raises(FileNotFoundError, match='expected Memory Maze episodes'):
    mazes.MazeSource(tmp_path)
  (tmp_path / 'b.npz').write_bytes(b'torn')
  with pytest.raises(ValueError, match='None of the 1 files'):
    mazes.MazeSource(tmp_path)
