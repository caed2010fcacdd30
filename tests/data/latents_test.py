import dataclasses
import json
import os

from etils.epath import testing
import numpy as np
import pytest

from wmpoe.data import episode
from wmpoe.data import latents


def items(count=2):
  rng = np.random.default_rng(0)
  for i in range(count):
    item = episode.Episode(
        frames=np.zeros((4, 8, 8, 3), np.uint8), actions=rng.normal(size=(4, 2)).astype('f4'),
        poses=rng.normal(size=(4, 3)).astype('f4'), meta={'name': f'e{i}', 'layout': [[1]]})
    yield f'e{i}', item, rng.normal(size=(4, 1, 1, 2))


@pytest.fixture
def cache(tmp_path):
  assert list(latents.write(tmp_path, items(), encoder='abc', about={'psnr': 31.0})) == [
      'e0', 'e1']
  return tmp_path


def test_what_was_written_is_read(cache):
  found = latents.read(cache, encoder='abc')
  assert [item.meta['name'] for item in found] == ['e0', 'e1']
  for item, (_, given, z) in zip(found, items(), strict=True):
    assert item.frames.dtype == np.float16
    np.testing.assert_allclose(item.frames, z, atol=2e-3)
    np.testing.assert_array_equal(item.poses, given.poses)
    assert not item.more, 'pictures are read where they are asked for'
  index = latents.read_index(cache)
  mean, std = latents.channel_statistics([z for _, _, z in items()])
  assert index['psnr'] == 31.0
  np.testing.assert_allclose(index['channel_mean'], mean, rtol=1e-5)
  np.testing.assert_allclose(index['channel_std'], std, rtol=1e-5)


def test_a_cache_is_read_from_an_object_store(cache):
  bucket = 'gs://bucket/latents'
  there = lambda path: str(path).replace(bucket, str(cache))
  with testing.mock_epath(
      open=lambda real, path, mode: open(there(path), mode),
      exists=lambda real, path: os.path.exists(there(path))):
    assert latents.is_cache(bucket) and not latents.is_cache('gs://bucket/other')
    remote = latents.read(bucket, encoder='abc', pictures=True)
    with pytest.raises(FileNotFoundError, match='gs://bucket/other holds no complete latent cache'):
      latents.read('gs://bucket/other')
  for one, other in zip(remote, latents.read(cache, pictures=True), strict=True):
    np.testing.assert_array_equal(one.frames, other.frames)
    np.testing.assert_array_equal(one.more['pictures'], other.more['pictures'])


def test_pictures_are_there_for_those_who_need_them(cache):
  item = latents.read(cache, encoder='abc', pictures=True)[1]
  assert item.more['pictures'].shape == (4, 8, 8, 3) and item.more['pictures'].dtype == np.uint8
  fields = dict(np.load(cache / 'e1.npz'))
  np.savez(cache / 'e1.npz', **{**fields, 'pictures': fields['pictures'][:3]})
  with pytest.raises(ValueError, match='e1.npz holds 4 latents and 3 pictures; expected as many'):
    latents.read(cache, pictures=True)
  del fields['pictures']
  np.savez(cache / 'e1.npz', **fields)
  with pytest.raises(ValueError, match="e1.npz.*it has no 'pictures'.*encode the episodes again"):
    latents.read(cache, pictures=True)


def test_depth_is_there_beside_the_pictures(tmp_path):
  name, item, z = next(items())
  depth = np.full((4, 8, 8), 2.5, np.float32)
  depth[0] = np.inf
  known = dataclasses.replace(item, depth=depth)
  assert list(latents.write(tmp_path, [(name, known, z)], encoder='abc', about={})) == ['e0']
  found, = latents.read(tmp_path, pictures=True)
  np.testing.assert_array_equal(found.depth, depth)
  assert set(found.more) == {'pictures'} and latents.read(tmp_path)[0].depth is None
  fields = dict(np.load(tmp_path / 'e0.npz'))
  np.savez(tmp_path / 'e0.npz', **{**fields, 'depth': depth[:3]})
  with pytest.raises(ValueError, match=r'depth \(3, 8, 8\); expected a number for every'):
    latents.read(tmp_path, pictures=True)


def test_another_encoder_is_refused(cache):
  with pytest.raises(ValueError, match=r'stale cache.*abc.*this run uses xyz.*Encode.*again'):
    latents.read(cache, encoder='xyz')


def test_an_interrupted_cache_is_none(cache):
  writing = latents.write(cache, items(), encoder='abc', about={})
  next(writing)
  writing.close()
  with pytest.raises(FileNotFoundError, match='no complete latent cache'):
    latents.read(cache)


def test_damaged_or_missing_files_are_named(cache):
  (cache / 'e1.npz').write_bytes(b'PK not a zip')
  with pytest.raises(ValueError, match='e1.npz: not a whole npz archive'):
    latents.read(cache)
  (cache / 'e1.npz').unlink()
  with pytest.raises(FileNotFoundError, match='e1.npz is named in latents.json'):
    latents.read(cache)
  (cache / latents.INDEX).write_text('{}')
  with pytest.raises(ValueError, match='latents.json is damaged'):
    latents.read(cache)
  (cache / latents.INDEX).write_text(json.dumps({'format': 'x', 'version': 9}))
  with pytest.raises(ValueError, match='says format'):
    latents.read(cache)


def test_lengths_that_disagree_are_refused(cache):
  np.savez(cache / 'e0.npz', latents=np.zeros((3, 1, 1, 2)), actions=np.zeros((4, 2)),
           poses=np.zeros((4, 3)))
  with pytest.raises(ValueError, match='e0.npz holds latents'):
    latents.read(cache)


def test_statistics_by_hand():
  mean, std = latents.channel_statistics([np.array([[[[1.0, 0.0]]]]), np.array([[[[3.0, 0.0]]]])])
  np.testing.assert_allclose(mean, [2, 0])
  np.testing.assert_allclose(std, [1, 0])
