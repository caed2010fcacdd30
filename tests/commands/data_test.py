import json

import numpy as np
import pytest

from wmpoe.data import folder
from wmpoe.data import inspection

Image = pytest.importorskip('PIL.Image')


@pytest.fixture
def recordings(tmp_path):
  for name, rows in (('a', 4), ('b', 4), ('c', 2)):
    (tmp_path / 'in' / name).mkdir(parents=True)
    for t in range(4):
      picture = Image.fromarray(np.full((8, 8, 3), 50 * t, np.uint8))
      picture.save(tmp_path / 'in' / name / f'{t}.png')
    (tmp_path / 'in' / f'{name}.csv').write_text('\n'.join(
        ['action,x,y,heading', *(f'{t % 2},{t},0,0' for t in range(rows))]))
  return 'in'


def test_from_pictures_to_a_preview(wmpoe, recordings, tmp_path):
  done = wmpoe('data', 'convert', '--from=media', f'--source={recordings}', '--workdir=out',
               '--size=4', '--pose_scale=2', '--environment=toy')
  assert done.code == 0, done.err
  assert '2 of 3 episodes converted into out (2 written now, 1 bad)' in done.out
  assert 'left out: c: ' in done.err and 'more than 2 frames, but c.csv has 2 rows' in done.err
  assert list(json.loads((tmp_path / 'out' / 'conversion.json').read_text())['bad']) == ['c']
  assert inspection.spaces_of('out').frame == (4, 4)
  again = wmpoe('data', 'convert', '--from=media', f'--source={recordings}', '--workdir=out',
                '--size=4', '--pose_scale=2', '--environment=toy')
  assert '(0 written now, 1 bad)' in again.out
  done = wmpoe('data', 'validate', '--source=out')
  assert (done.code, '2 episodes of toy in out are good' in done.out) == (0, True)
  done = wmpoe('data', 'stats', '--source=out', '--workdir=there')
  assert 'toy: 2 episodes, 8 frames 4x4' in done.out
  assert json.loads((tmp_path / 'there' / 'stats.json').read_text())['poses']['x'] == [0, 1.5]
  done = wmpoe('data', 'preview', '--source=out', '--columns=3')
  assert done.code == 0, done.err
  sheet = np.asarray(Image.open(tmp_path / 'outputs' / 'preview' / 'preview.png'))
  assert sheet.shape == (2 * 96 + 4, 3 * 96 + 8, 3)
  assert sheet[10, 10, 0] == 0 and sheet[10, -10, 0] == 150  # the first and the last frame


def test_bad_episodes_fail_validation_by_name(wmpoe, recordings, tmp_path):
  wmpoe('data', 'convert', '--from=media', f'--source={recordings}', '--workdir=out')
  folder.files('out')[1].write_bytes(b'torn')
  done = wmpoe('data', 'validate', '--source=out')
  assert done.code == 2
  assert 'bad: out/episode_00001.npz: not a whole npz archive' in done.err
  assert '1 of 2 episodes in out are bad' in done.err
  assert '1 bad episode left out' in wmpoe('data', 'stats', '--source=out').out
  assert wmpoe('data', 'preview', '--source=out').code == 0


def test_strict_stops(wmpoe, recordings):
  done = wmpoe(
      'data', 'convert', '--from=media', f'--source={recordings}', '--workdir=out', '--strict')
  assert done.code == 2 and 'c: ' in done.err


@pytest.mark.parametrize(('flags', 'message'), [
    ([], 'Give one of validate, convert, stats, preview'),
    (['look'], 'data look is none of them'),
    (['stats'], 'Give the folder to read'),
    (['stats', '--source=nowhere'], 'nowhere/spaces.json does not exist; expected a folder of ep'),
    (['validate', f'--source={__file__}'], 'test.py/spaces.json does not exist; expected a folder'),
    (['convert', '--source=in'], '--from=None: expected one of media, minari'),
    (['convert', '--source=in', '--from=media'], 'Give the folder to write to'),
    (['convert', '--source=in', '--from=memory_maze', '--size=64', '--workdir=o'],
     '--size is for media, minari, lerobot; not for memory_maze'),
    (['convert', '--source=in', '--from=media', '--size=a', '--workdir=o'],
     '--size=a: expected one'),
    (['convert', '--source=in', '--from=media', '--action_scale=a', '--workdir=o'],
     '--action_scale=a: expected numbers'),
    (['convert', '--source=in', '--from=media', '--action_at=x', '--workdir=o'], '--action_at=x'),
    (['convert', '--source=nowhere', '--from=media', '--workdir=o'], 'nowhere is no folder'),
])
def test_bad_input_is_named(wmpoe, tmp_path, flags, message):
  done = wmpoe('data', *flags)
  assert done.code == 2
  assert message in done.err
  assert list(tmp_path.iterdir()) == []
