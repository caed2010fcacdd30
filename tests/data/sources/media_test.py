import shutil

import numpy as np
import pytest

from wmpoe.data.sources import conversion
from wmpoe.data.sources import media
from wmpoe.data.sources import pictures

Image = pytest.importorskip('PIL.Image')


def _images(folder, count=3, size=(8, 12), names='{}.png'):
  folder.mkdir(parents=True)
  for i in range(count):
    picture = np.full((*size, 3), 10 * i, np.uint8)
    Image.fromarray(picture).save(folder / names.format(i))


@pytest.fixture
def root(tmp_path):
  _images(tmp_path / 'first', count=12)
  rows = ['action,x,y,heading'] + [f'{"up" if i % 2 else "down"},{i},0,0' for i in range(12)]
  (tmp_path / 'first' / 'actions.csv').write_text('\n'.join(rows))
  _images(tmp_path / 'second')
  (tmp_path / 'second.csv').write_text('\n'.join(rows[:4]))
  return tmp_path


def test_images_in_their_natural_order_with_the_action_that_led_there(root):
  source = media.MediaSource(root, fps=5.0, environment='toy')
  assert source.names == ['first', 'second']
  assert (source.spaces.frame, source.spaces.fps) == ((8, 12), 5.0)
  assert source.spaces.actions.names == ('down', 'up')
  item = source.load(0)
  np.testing.assert_array_equal(item.frames[:, 0, 0, 0], 10 * np.arange(12))  # 2.png before 10.png
  np.testing.assert_array_equal(item.actions[:3], [[0, 0], [1, 0], [0, 1]])  # taken one row before
  np.testing.assert_array_equal(item.poses[:, 0], np.arange(12))
  arrival = media.MediaSource(root, taken_at=False).load(0)
  np.testing.assert_array_equal(arrival.actions[:3], [[1, 0], [0, 1], [1, 0]])
  named = media.MediaSource(root, actions=('stay', 'up', 'down'), size=(4, 4)).load(1)
  assert named.frames.shape == (3, 4, 4, 3)
  np.testing.assert_array_equal(named.actions[1], [0, 0, 1])


def test_what_does_not_fit_is_named_and_left_out(root):
  _images(root / 'no_table')
  _images(root / 'short')
  (root / 'short.csv').write_text('action,x,y,heading\nup,0,0,0\n')
  _images(root / 'other')
  (root / 'other.csv').write_text('action_a\n1\n1\n1\n')
  shutil.copytree(root / 'second', root / 'torn')
  shutil.copy(root / 'second.csv', root / 'torn.csv')
  torn = root / 'torn' / '1.png'
  torn.write_bytes(torn.read_bytes()[:40])
  source = media.MediaSource(root)
  steps = conversion.convert(source, root / 'out')
  errors = {s.error.split(':')[0]: s.error for s in steps if s.error}
  assert set(errors) == {'no_table', 'short', 'other', 'torn'}
  assert 'no table of its actions; expected one of no_table.csv' in errors['no_table']
  assert 'more than 1 frames, but short.csv has 1 rows' in errors['short']
  assert '1.png: picture 1 cannot be decoded' in errors['torn']
  assert 'other.csv: poses ()' in errors['other']


def test_folders_with_nothing_in_them(tmp_path):
  with pytest.raises(FileNotFoundError, match='is no folder'):
    media.MediaSource(tmp_path / 'none')
  with pytest.raises(FileNotFoundError, match='holds neither videos'):
    media.MediaSource(tmp_path)
  _images(tmp_path / 'a')
  with pytest.raises(ValueError, match='None of the 1 episodes has a table'):
    media.MediaSource(tmp_path)


def test_videos(tmp_path):
  ffmpeg = pytest.importorskip('imageio_ffmpeg')
  writer = ffmpeg.write_frames(str(tmp_path / 'a.mp4'), (32, 16), fps=7, macro_block_size=16)
  writer.send(None)
  for i in range(6):
    writer.send(np.full((16, 32, 3), 40 * i, np.uint8).tobytes())
  writer.close()
  (tmp_path / 'a.json').write_text('{"action_gas": [0, 0.1, 0.2, 0.3, 0.4, 0.5]}')
  source = media.MediaSource(tmp_path, size=(16, 16))
  assert source.spaces.fps == pytest.approx(7)
  item = source.load(0)
  assert item.frames.shape == (6, 16, 16, 3)
  np.testing.assert_allclose(item.frames.mean(axis=(1, 2, 3)), 40 * np.arange(6), atol=6)
  np.testing.assert_allclose(item.actions[:, 0], [0, 0, 0.1, 0.2, 0.3, 0.4], atol=1e-6)
  (tmp_path / 'b.mp4').write_bytes((tmp_path / 'a.mp4').read_bytes()[:300])
  shutil.copy(tmp_path / 'a.json', tmp_path / 'b.json')
  (bad,) = [s.error for s in conversion.convert(
      media.MediaSource(tmp_path), tmp_path / 'out') if s.error]
  assert bad.startswith('b: ')


def test_depth_is_cut_as_pictures_are_and_never_averaged():
  depth = np.full((4, 12), np.inf, np.float32)
  depth[:, 4:8] = np.arange(1, 5)[:, None] + [0, .1, .2, .3]
  np.testing.assert_array_equal(
      pictures.fit_depth(depth, (2, 2)), np.float32([[2.1, 2.3], [4.1, 4.3]]))
  assert pictures.fit_depth(depth, (8, 24)).shape == (8, 24)
  assert pictures.fit_depth(depth, None) is depth
  with pytest.raises(ValueError, match=r'depth has shape \[4, 12, 1\]; expected \[H W\]'):
    pictures.fit_depth(depth[..., None], (2, 2))


def test_pictures_are_cut_to_their_middle_and_averaged():
  wide = np.zeros((4, 12, 3), np.uint8)
  wide[:, 4:8] = 200
  wide[0, 4:8] = 100
  out = pictures.fit(wide, (2, 2))
  np.testing.assert_array_equal(out[..., 0], [[150, 150], [200, 200]])
  assert pictures.fit(np.zeros((4, 4), np.uint8), None).shape == (4, 4, 3)
  assert pictures.fit(np.zeros((4, 4, 4), np.uint8), (8, 8)).shape == (8, 8, 3)
  with pytest.raises(ValueError, match=r'float32\[4, 4, 3\]; expected uint8'):
    pictures.fit(np.zeros((4, 4, 3), np.float32), None)
