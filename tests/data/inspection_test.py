import dataclasses

import numpy as np
import pytest

from wmpoe.data import episode
from wmpoe.data import folder
from wmpoe.data import inspection
from wmpoe.data import spaces

WORLD = spaces.Spaces(
    environment='toy', frame=(4, 4), poses=spaces.PLANAR, fps=5.0,
    actions=spaces.Actions(kind='discrete', names=('stay', 'go')))


def item(length=4, step=0.5, value=10):
  frames = np.full((length, 4, 4, 3), value, np.uint8) + np.arange(
      length, dtype=np.uint8)[:, None, None, None]
  poses = np.stack([step * np.arange(length), np.zeros(length), np.zeros(length)], axis=1)
  return episode.Episode(
      frames=frames, poses=poses.astype(np.float32),
      actions=np.eye(2, dtype=np.float32)[[0] + [1] * (length - 1)], meta={'name': '../mine'})


@pytest.fixture
def path(tmp_path):
  list(folder.collect(tmp_path, lambda i: item(4 + i), episodes=3, spaces=WORLD.to_json()))
  return tmp_path


def test_every_file_is_looked_at_and_bad_ones_say_why(path):
  bad = dataclasses.replace(item(), actions=np.zeros((4, 2), np.float32))
  bad.save(path / 'episode_00001.npz')
  (path / 'episode_00002.npz').write_bytes(b'')
  world, files, count = inspection.look(path)
  found = list(files)
  assert (world, count, [f.item is None for f in found]) == (WORLD, 3, [False, True, True])
  assert 'episode_00001.npz: actions are [0.0, 0.0] in frame 1' in found[1].error
  assert 'episode_00002.npz: not a whole npz archive' in found[2].error
  good = inspection.GoodEpisodes(path)
  assert (len(good), len(good.bad)) == (1, 2)
  assert 'episode_00002.npz' in good.report()
  # The name is that of the file, whatever the file says of itself.
  assert good[0].meta['name'] == 'episode_00000'
  with pytest.raises(ValueError, match='episode_00001'):
    inspection.GoodEpisodes(path, strict=True)


def test_a_folder_without_a_good_episode(path):
  for file in folder.files(path):
    file.write_bytes(b'')
  with pytest.raises(ValueError, match='None of the 3 episodes .* is good; first: .*episode_00000'):
    inspection.GoodEpisodes(path)
  for file in folder.files(path):
    file.unlink()
  with pytest.raises(FileNotFoundError, match='holds no episode_'):
    inspection.look(path)


def test_statistics_by_hand():
  statistics = inspection.Statistics(WORLD)
  for one in (item(2), item(4, value=20)):
    statistics.add(one)
  out = statistics.summary()
  assert (out['episodes'], out['frames']) == (2, 6)
  assert out['length'] == {'min': 2, 'median': 3.0, 'max': 4}
  pixels = np.array([10, 11, 20, 21, 22, 23])
  np.testing.assert_allclose(out['frame_mean'], pixels.mean())
  np.testing.assert_allclose(out['frame_std'], pixels.std())
  assert out['actions'] == {'stay': pytest.approx(2 / 6), 'go': pytest.approx(4 / 6)}
  assert out['poses']['x'] == [0.0, 1.5]
  assert out['per_frame'] == {
      'distance_mean': pytest.approx(0.5), 'distance_max': pytest.approx(0.5), 'turn_mean': 0.0}
  assert out['hints'] == []
  text = inspection.describe(WORLD, out)
  assert '2 episodes, 6 frames 4x4, 5 per second' in text and 'go                   66.7%' in text


def test_hints_say_what_is_hardly_meant():
  world = dataclasses.replace(WORLD, actions=spaces.Actions(kind='continuous', names=('a', 'b')))
  statistics = inspection.Statistics(world)
  still = dataclasses.replace(
      item(step=64), frames=np.zeros((4, 4, 4, 3), np.uint8),
      actions=np.array([[0, 0], [0, 1], [0, 50], [0, 1]], np.float32))
  statistics.add(still)
  out = statistics.summary()
  assert out['actions']['b'] == pytest.approx(
      {'mean': 13, 'std': np.std([0, 1, 50, 1]), 'min': 0, 'max': 50})
  hints = '\n'.join(out['hints'])
  assert '1 episodes show one frame' in hints
  assert 'actions beyond +-10: b; ' in hints
  assert 'moves 64 units on average' in hints


def test_revisits_are_counted():
  statistics = inspection.Statistics(WORLD)
  statistics.add(item(inspection.REVISIT_GAP + 10, step=0))
  assert statistics.summary()['revisited'] == pytest.approx(10 / (inspection.REVISIT_GAP + 10))
