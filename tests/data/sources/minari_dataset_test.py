import numpy as np
import pytest

from wmpoe import cli
from wmpoe.data import episode
from wmpoe.data import folder
from wmpoe.data.sources import minari_dataset

gymnasium = pytest.importorskip('gymnasium')
minari = pytest.importorskip('minari')


class World(gymnasium.Env):
  """Observations are a picture and a place."""

  action_space = gymnasium.spaces.Discrete(2)
  observation_space = gymnasium.spaces.Dict({
      'camera': gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8),
      'place': gymnasium.spaces.Box(-9, 9, (3,), np.float32)})

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    self.at = 0
    return self._seen(), {}

  def step(self, action):
    self.at += 1
    return self._seen(), 0.0, self.at == 3, False, {}

  def _seen(self):
    return {'camera': np.full((8, 8, 3), self.at, np.uint8),
            'place': np.array([self.at, 0, 0], np.float32)}


@pytest.fixture(scope='module', params=['hdf5', 'arrow'])
def dataset(request, tmp_path_factory):
  root = tmp_path_factory.mktemp('minari')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('MINARI_DATASETS_PATH', str(root))
    env = minari.DataCollector(World(), data_format=request.param)
    for _ in range(2):
      env.reset(seed=0)
      for action in (1, 0, 1):
        env.step(action)
    env.create_dataset(dataset_id='toy/world-v0', author='a test')
    env.close()
  return root / 'toy' / 'world-v0'


def test_episodes_are_read_with_the_action_that_led_there(dataset):
  source = minari_dataset.MinariSource(
      dataset, frames='camera', poses='place', pose_kind='planar', size=(4, 4))
  assert source.names == ['episode_0', 'episode_1']
  assert (source.spaces.environment, source.spaces.frame) == ('toy/world-v0', (4, 4))
  item = source.load(1)
  source.spaces.check(item)
  np.testing.assert_array_equal(item.frames[:, 0, 0, 0], range(4))
  np.testing.assert_array_equal(item.actions, [[0, 0], [0, 1], [1, 0], [0, 1]])
  np.testing.assert_array_equal(item.poses[:, 0], range(4))


def test_the_command_line_converts_them(dataset, tmp_path, capsys):
  code = cli.main([
      'wmpoe', 'data', 'convert', '--from=minari', f'--source={dataset}', f'--workdir={tmp_path}',
      '--frames=camera', '--poses=place', '--pose_kind=planar'])
  assert code == 0, capsys.readouterr().err
  assert cli.main(['wmpoe', 'data', 'validate', f'--source={tmp_path}']) == 0
  assert [episode.Episode.load(path).length for path in folder.files(tmp_path)] == [4, 4]


def test_what_is_no_picture_or_no_dataset_is_named(dataset, tmp_path):
  with pytest.raises(ValueError, match="no key 'eye'"):
    minari_dataset.MinariSource(dataset, frames='eye')
  with pytest.raises(ValueError, match='name them with --frames=KEY'):
    minari_dataset.MinariSource(dataset, frames='place')
  with pytest.raises(ValueError, match='no Minari dataset that can be opened'):
    minari_dataset.MinariSource(tmp_path)
