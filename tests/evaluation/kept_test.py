"""Measurements that survive a kill."""

import numpy as np
import pytest

from wmpoe.evaluation import kept as kept_lib


def found():
  return {'scores': {'psnr': np.arange(6.0).reshape(2, 3)}, 'frames': np.zeros((2, 4), np.uint8)}


def test_a_part_is_measured_once_and_comes_back_as_it_was(tmp_path):
  kept = kept_lib.Kept(tmp_path / 'parts')
  assert kept.missing(['seed 0', 'seed 1']) == ['seed 0', 'seed 1']
  first = kept.once('seed 0', found)

  def fails():
    raise AssertionError('it was measured before')

  again = kept_lib.Kept(tmp_path / 'parts')
  second = again.once('seed 0', fails)
  np.testing.assert_array_equal(second['scores']['psnr'], first['scores']['psnr'])
  assert second['frames'].dtype == np.uint8 and set(second) == {'scores', 'frames'}
  assert again.missing(['seed 0', 'seed 1']) == ['seed 1'] and again.parts() == 1
  assert again.seconds > 0 and kept.seconds == 0
  again.clear()
  assert not (tmp_path / 'parts').exists()


def test_without_a_folder_and_on_other_hosts_nothing_is_written(tmp_path):
  assert kept_lib.Kept().once('a', found)['frames'].shape == (2, 4)
  silent = kept_lib.Kept(tmp_path / 'parts', writes=False)
  silent.once('a', found)
  assert silent.missing(['a']) == ['a'] and not list(tmp_path.iterdir())


def test_what_is_killed_while_measuring_leaves_nothing(tmp_path):
  kept = kept_lib.Kept(tmp_path / 'parts')
  with pytest.raises(KeyboardInterrupt):
    kept.once('a', lambda: (_ for _ in ()).throw(KeyboardInterrupt()))
  assert kept.parts() == 0


def test_a_damaged_part_says_what_to_remove(tmp_path):
  kept = kept_lib.Kept(tmp_path)
  kept.once('a', found)
  path, = tmp_path.glob('*.npz')
  path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(ValueError, match=f'{path}.*remove it'):
    kept.once('a', found)


def test_the_fingerprint_is_of_settings_and_of_every_leaf():
  tree = {'a': np.zeros(2), 'b': [np.ones(3)]}
  one = kept_lib.fingerprint({'steps': 1}, tree)
  assert one == kept_lib.fingerprint({'steps': 1}, {'a': np.zeros(2), 'b': [np.ones(3)]})
  assert one != kept_lib.fingerprint({'steps': 2}, tree)
  assert one != kept_lib.fingerprint({'steps': 1}, {'a': np.zeros(2), 'b': [np.full(3, 1.1)]})
  assert one != kept_lib.fingerprint({'steps': 1}, {'a': np.zeros((2, 1)), 'b': [np.ones(3)]})
