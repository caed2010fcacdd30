"""Tests of the validator and of the episode file."""

import dataclasses
import json
import os

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmpoe.data import episode


def _episode(length=5, **fields):
  rng = np.random.default_rng(0)
  return episode.Episode(**{
      'frames': rng.integers(0, 256, (length, 4, 6, 3), dtype=np.uint8),
      'actions': rng.random((length, 7), dtype=np.float32),
      'poses': rng.random((length, 2), dtype=np.float32),
      'meta': {'seed': 3, 'name': 'é'},
      **fields,
  })


def _batch(**fields):
  return episode.stack([_episode(), _episode()]).replace(**fields)


def test_valid_ones_pass():
  expected = {'action_dim': 7, 'pose_dim': 2, 'frame_shape': (4, 6, 3), 'min_length': 5}
  episode.validate(_episode(), **expected)
  episode.validate(_batch(), **expected)
  episode.validate(jax.tree.map(jnp.asarray, _batch()), **expected)
  episode.validate(_batch(), frame_shape=(4, 6))


def _with(x, index, value):
  x = np.array(x)
  x[index] = value
  return x


FRAMES = np.zeros((5, 4, 6, 3), np.uint8)
ROWS = np.zeros((5, 7), np.float32)


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'frames': FRAMES + np.float32(200)},
         r'frames are float32 with values from 200 to 200; expected uint8 in 0..255: round, then'),
        ({'frames': FRAMES + np.float32(0.5)}, r'expected uint8 in 0..255: multiply by 255, round'),
        ({'frames': _with(FRAMES + np.float32(0.5), 0, np.nan)}, 'they hold NaN or infinity'),
        ({'frames': FRAMES - np.float32(1)}, 'negative values'),
        ({'frames': FRAMES.astype(np.int64)}, r'frames are int64; expected uint8 .* clip them'),
        ({'frames': FRAMES[0]}, r'frames has shape \(4, 6, 3\); expected rank 4, \[T H W 3\]'),
        ({'frames': FRAMES[None]}, 'Take the episodes apart'),
        ({'frames': FRAMES[..., :1]}, r'shape \(5, 4, 6, 1\); expected 3 colours'),
        ({'frames': FRAMES.tolist()}, r'frames is a list; expected an array .* np.asarray'),
        ({'actions': _with(ROWS, (2, 3), np.nan)},
         r'actions hold NaN or infinity in 1 places, first at index \(2, 3\), in frame 2'),
        ({'poses': _with(ROWS[:, :2], 4, np.inf)},
         r'poses hold NaN or infinity in 2 places, first at index \(4, 0\)'),
        ({'actions': ROWS.astype(np.float64)}, r'actions are float64; expected float32: use .ast'),
        ({'actions': np.zeros((5, 1), np.int32)}, 'actions are int32; .* one-hot vectors'),
        ({'actions': ROWS[:, 0]}, r'actions has shape \(5,\); expected rank 2, \[T A\]'),
        ({'actions': ROWS[:4]},
         r'lengths disagree: frames \[T\] \(5,\), actions \[T\] \(4,\), poses \[T\] \(5,\)'),
    ],
)
def test_bad_episodes_are_refused_with_a_way_out(fields, message):
  with pytest.raises(ValueError, match=message):
    episode.validate(_episode(**fields))


@pytest.mark.parametrize(
    'expected, message',
    [
        ({'action_dim': 6}, 'actions have 7 dimensions; the model was made for 6'),
        ({'pose_dim': 3}, 'poses have 2 dimensions; the model was made for 3'),
        ({'frame_shape': (32, 32, 3)}, r'frames are \(4, 6, 3\); the model was made for \(32, 32'),
        ({'frame_shape': (4, 4)}, r'the model was made for \(4, 4\)'),
        ({'min_length': 10}, '5 frames given; at least 10 are needed'),
    ],
)
def test_what_does_not_fit_the_model_is_refused(expected, message):
  for item in (_episode(), _batch()):
    with pytest.raises(ValueError, match=message):
      episode.validate(item, **expected)


def test_no_frames_at_all_are_refused():
  with pytest.raises(ValueError, match='0 frames given; at least 1'):
    episode.validate(_episode(length=0))


def test_unbatched_observation_is_told_how_to_add_the_axis():
  one = _episode()
  item = episode.Observation(frames=one.frames, actions=one.actions, poses=one.poses)
  with pytest.raises(ValueError, match=r'expected rank 5, \[B T H W 3\].*add the batch axis'):
    episode.validate(item)


def test_batch_sizes_that_disagree_are_refused():
  with pytest.raises(ValueError, match=r'poses \[B T\] \(1, 5\)'):
    episode.validate(_batch(poses=np.zeros((1, 5, 2), np.float32)))


def test_values_on_a_device_are_checked():
  with pytest.raises(ValueError, match='actions hold NaN'):
    episode.validate(_batch(actions=jnp.full((2, 5, 7), jnp.nan)))


def test_under_jit_only_shapes_and_dtypes_are_checked():
  @jax.jit
  def run(item):
    episode.validate(item, action_dim=7)
    return item.poses.sum()

  assert np.isfinite(run(_batch()))
  assert np.isnan(run(_batch(poses=np.full((2, 5, 2), np.nan, np.float32))))
  with pytest.raises(ValueError, match='frames are float32; expected uint8'):
    run(_batch(frames=np.zeros((2, 5, 4, 6, 3), np.float32)))
  with pytest.raises(ValueError, match='actions have 6 dimensions'):
    run(_batch(actions=np.zeros((2, 5, 6), np.float32)))


def test_shapes_alone_validate_too():
  episode.validate(jax.eval_shape(lambda: jax.tree.map(jnp.asarray, _batch())), action_dim=7)


def test_observation_is_a_pytree_of_three_leaves():
  assert len(jax.tree.leaves(_batch())) == 3
  assert isinstance(jax.tree.map(lambda x: x[:1], _batch()), episode.Observation)


def test_depth_comes_along_where_it_is_known(tmp_path):
  depth = np.full((5, 4, 6), 2.0, np.float32)
  depth[:, 0] = np.inf
  known = _episode(depth=depth)
  known.save(tmp_path / 'a.npz')
  np.testing.assert_array_equal(episode.Episode.load(tmp_path / 'a.npz').depth, depth)
  both = episode.stack([known, known], start=1)
  episode.validate(both)
  np.testing.assert_array_equal(both.depth[1], depth[1:])
  assert episode.stack([known, _episode()]).depth is None


@pytest.mark.parametrize(('depth', 'message'), [
    (np.ones((5, 4, 5), np.float32), r'depth is float32 \(5, 4, 5\); expected float32 \(5, 4, 6\)'),
    (np.ones((5, 4, 6)), 'depth is float64'),
    ([1.0], 'depth is list'),
    (_with(np.ones((5, 4, 6), np.float32), (2, 1), np.nan), 'in 6 pixels, first in frame 2;'),
    (np.zeros((5, 4, 6), np.float32), '120 pixels, first in frame 0; expected distances'),
])
def test_depth_that_cannot_be_is_refused(depth, message):
  with pytest.raises(ValueError, match=message):
    episode.validate(_episode(depth=depth))


def test_stack_cuts_and_refuses_unequal_episodes():
  batch = episode.stack([_episode(), _episode()], start=1, stop=4)
  np.testing.assert_array_equal(batch.frames[1], _episode().frames[1:4])
  assert batch.actions.shape == (2, 3, 7)
  with pytest.raises(ValueError, match='frames of different shapes'):
    episode.stack([_episode(5), _episode(6)])
  with pytest.raises(ValueError, match='no episodes'):
    episode.stack([])


# ----------------------------------------------------------------------------- files


@hypothesis.given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 4))
@hypothesis.settings(max_examples=10)
def test_save_and_load_give_the_same(tmp_path_factory, length, action_dim, pose_dim):
  path = tmp_path_factory.mktemp('episodes') / 'a.npz'
  saved = _episode(length, actions=np.ones((length, action_dim), np.float32),
                   poses=np.ones((length, pose_dim), np.float32))
  saved.save(path)
  loaded = episode.Episode.load(path, action_dim=action_dim, min_length=length)
  for field in dataclasses.fields(saved):
    np.testing.assert_equal(getattr(loaded, field.name), getattr(saved, field.name))
  assert os.listdir(path.parent) == ['a.npz']


def _rewrite(path, **changes):
  with np.load(path) as archive:
    fields = {**archive, **changes}
  np.savez(path, **{name: value for name, value in fields.items() if value is not None})


def _header(**changes):
  header = {'format': 'wmpoe.episode', 'version': 1, 'meta': {}, **changes}
  return np.frombuffer(json.dumps(header).encode(), np.uint8)


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'poses': None}, r"a.npz: not an episode file .*it has no 'poses'; expected exactly"),
        ({'sound': ROWS}, r"a.npz: .*it has unknown fields 'sound'"),
        ({'depth': ROWS}, r'a.npz: depth is float32 \(5, 7\); expected float32 \(5, 4, 6\)'),
        ({'meta': _header(version=2)}, "field 'meta' says format 'wmpoe.episode' version 2"),
        ({'meta': _header(format='other')}, "field 'meta' says format 'other'"),
        ({'meta': np.zeros(3, np.uint8)}, "field 'meta' is not an episode header"),
        ({'meta': np.frombuffer(b'[1]', np.uint8)}, "field 'meta' is not an episode header"),
        ({'actions': np.array([{}] * 5)}, "'actions' is a pickled array, which could run code"),
        ({'actions': ROWS[:3]}, r'a.npz: lengths disagree'),
        ({'frames': FRAMES.astype(np.float32)}, 'a.npz: frames are float32'),
    ],
)
def test_load_names_the_file_and_the_field(tmp_path, changes, message):
  path = tmp_path / 'a.npz'
  _episode().save(path)
  _rewrite(path, **changes)
  with pytest.raises(ValueError, match=message):
    episode.Episode.load(path)


def test_damaged_files_are_refused(tmp_path):
  path = tmp_path / 'a.npz'
  _episode(50).save(path)
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match=r'a.npz: not a whole npz archive'):
    episode.Episode.load(path)
  flipped = bytearray(whole)
  flipped[2000] ^= 255
  path.write_bytes(flipped)
  with pytest.raises(ValueError, match=r"a.npz: field 'frames' is damaged"):
    episode.Episode.load(path)
  path.write_bytes(b'')
  with pytest.raises(ValueError, match='not a whole npz archive.*expected an episode file'):
    episode.Episode.load(path)
  with open(path, 'wb') as file:
    np.save(file, ROWS)
  with pytest.raises(ValueError, match='it holds a single array'):
    episode.Episode.load(path)
  with pytest.raises(FileNotFoundError, match=r'nothing\.npz'):
    episode.Episode.load(tmp_path / 'nothing.npz')


def test_load_checks_what_the_reader_needs(tmp_path):
  _episode().save(tmp_path / 'a.npz')
  with pytest.raises(ValueError, match=r'a\.npz: actions have 7 dimensions; .* made for 4'):
    episode.Episode.load(tmp_path / 'a.npz', action_dim=4)


def test_save_refuses_what_load_would(tmp_path):
  path = tmp_path / 'a.npz'
  with pytest.raises(ValueError, match=r'a\.npz: frames are float32'):
    _episode(frames=FRAMES.astype(np.float32)).save(path)
  with pytest.raises(ValueError, match=r'a\.npz: meta is not JSON'):
    _episode(meta={'x': np.zeros(2)}).save(path)
  assert not list(tmp_path.iterdir())


def test_save_makes_its_folder_or_says_why_not(tmp_path):
  _episode().save(tmp_path / 'new' / 'a.npz')
  episode.Episode.load(tmp_path / 'new' / 'a.npz')
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError, match='Cannot write .*choose a folder you may write to'):
    _episode().save(tmp_path / 'file' / 'a.npz')
