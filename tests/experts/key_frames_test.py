import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmpoe.data import episode
from wmpoe.diffusion import schedules
from wmpoe.experts import base as base_lib
from wmpoe.experts import expert
from wmpoe.experts import key_frames
from wmpoe.experts import objective
from wmpoe.networks import codec
from wmpoe.networks import dit
from wmpoe.networks import poses
from wmpoe.networks import view_reader

CODE = poses.RelativePose(field=4)
DENOISER = expert.Model(
    network=dit.DiT(
        width=12, depth=1, heads=1, patch=2, frame_shape=(4, 4, 2), context=1, map_dim=6,
        pose_kind='vector', field=4),
    schedule=schedules.CosineSchedule(), codec=codec.LatentCodec(), pose_code=CODE)
MODEL = key_frames.KeyFrameModel(
    denoiser=DENOISER,
    reader=view_reader.ViewReader(features=6, patch=2, width=8, depth=1, heads=1),
    retrieval=key_frames.Retrieval(count=2))


@pytest.fixture(scope='module')
def params():
  # Zero-initialised layers would hide everything; noise makes each of them count.
  noisy = lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape)
  make = jax.jit(lambda key: jax.tree.map(noisy, MODEL.init(key, action_dim=2, pose_dim=3)))
  return make(jax.random.key(0))


def observation(batch, length, seed=0):
  rng = np.random.default_rng(seed)
  return episode.Observation(
      frames=rng.normal(size=(batch, length, 4, 4, 2)).astype(np.float32),
      actions=rng.normal(size=(batch, length, 2)).astype(np.float32),
      poses=rng.uniform(0, 2, (batch, length, 3)).astype(np.float32))


@functools.partial(jax.jit, static_argnums=(0, 1))
def query(batch, length, params):
  seen, asked = observation(batch, 1, 1), observation(batch, length, 2)
  window = expert.empty_window(batch, 1, (4, 4, 2), 2, 3, jnp.float32).push(seen)
  made = expert.Query(
      recent=window, actions=asked.actions, poses=asked.poses,
      key=jax.random.split(jax.random.key(0), batch))
  base = base_lib.Base(params=params['denoiser'], model=DENOISER)
  return dataclasses.replace(made, base=base.read(made))


def test_retrieval_by_hand():
  memory = jnp.array([[0, 0, 0], [1, 0, 0], [0, 0, 1.0], [0, 0, np.pi], [0.1, 0, 0]])
  valid = jnp.array([True, True, True, True, False])
  choose = key_frames.Retrieval(count=3, length=1.0, angle=2.0)
  index, relative, usable = choose(memory, valid, jnp.zeros((1, 3)))
  # Costs: 0, 1, (1/2)^2; the fourth looks the other way, the fifth does not exist.
  assert index[0].tolist() == [0, 2, 1] and usable.all()
  np.testing.assert_allclose(relative[0, 1], [0, 0, 1], atol=1e-6)
  second = jnp.arange(5) == 0
  assert choose(memory, valid, jnp.zeros((1, 3)), second)[0][0].tolist() == [2, 1, 0]
  few = key_frames.Retrieval(count=2)(memory[3:], valid[3:], jnp.zeros((1, 3)))
  assert not few[2].any()


def test_turned_pictures_agree_with_the_asked_heading(params):
  """A picture seen from another heading is turned to the asked one before it is read."""
  frames = jnp.asarray(observation(1, 1).frames)
  valid = jnp.ones((1, 1), bool)
  model = dataclasses.replace(MODEL, retrieval=key_frames.Retrieval(count=1))
  read = jax.jit(lambda heading, x: model.read(
      params, x, jnp.array([[[1.0, 1.0, heading]]]), valid, jnp.array([[[1.0, 1.0, 0.0]]])))
  # The right columns of a picture taken looking left are what the left half shows now.
  changed = frames.at[..., -1, :].add(1.0)
  assert np.abs(read(0.5, frames) - read(0.5, changed)).max() > 1e-4
  # With a turn of 60 degrees to the left only its right edge is still in view.
  far = frames.at[..., 0, :].add(1.0)
  np.testing.assert_allclose(read(1.0, frames), read(1.0, far), atol=1e-6)


def test_ring_keeps_the_newest(params):
  memory = key_frames.Posed(params=params, model=MODEL, capacity=4)
  seen = observation(2, 6)
  state = memory.init(2)
  assert not state.valid.any()
  part = lambda a, b: jax.tree.map(lambda x: x[:, a:b], seen)
  write = jax.jit(memory.write)
  state = write(state, part(0, 3), jax.random.key(0))
  assert state.valid.sum() == 6
  state = write(state, part(3, 6), jax.random.key(0))
  held = {tuple(np.round(p, 4)) for p in np.asarray(state.poses[1]).tolist()}
  assert held == {tuple(np.round(p, 4)) for p in seen.poses[1, 2:].tolist()}
  at_once = write(memory.init(2), seen, jax.random.key(0))
  np.testing.assert_array_equal(
      np.sort(state.poses[0], axis=0), np.sort(at_once.poses[0], axis=0))


@pytest.mark.parametrize('baseline', ['own', 'base'])
def test_contrast_against_the_denoiser_without_memory(params, baseline):
  memory = key_frames.Posed(params=params, model=MODEL, capacity=8, baseline=baseline)
  state = jax.jit(memory.write)(memory.init(2), observation(2, 5), jax.random.key(0))

  @jax.jit
  def estimates(state):
    asked = query(2, 3, params)
    contrast = memory.read(state, asked)
    noisy = jax.random.normal(jax.random.key(3), (2, 3, 4, 4, 2)), jnp.zeros((2, 3))
    negative = None if contrast.negative is None else contrast.negative(*noisy)
    return asked.base(*noisy), contrast.positive(*noisy), negative, contrast.empty

  base, positive, negative, empty = estimates(state)
  assert np.abs(positive - base).max() > 1e-3
  if baseline == 'own':
    np.testing.assert_allclose(negative, base, atol=1e-5)
  else:
    assert negative is None
  assert not empty.any() and estimates(memory.init(2))[-1].all()


def test_loss_trains_reader_and_denoiser_only_where_there_is_memory(params):
  seen, clip = observation(2, 6, 4), observation(2, 4, 5)
  as_clip = lambda o: objective.Clip(
      frames=o.frames, actions=o.actions, poses=o.poses, valid=np.ones(o.frames.shape[:2], bool))
  gradient = jax.jit(jax.grad(lambda p, rate: key_frames.key_frame_loss(
      MODEL, p, as_clip(clip), as_clip(seen), jax.random.key(0), objective.Objective(),
      empty_rate=rate)), static_argnums=1)
  largest = lambda tree: max(np.abs(x).max() for x in jax.tree.leaves(tree))
  with_memory, without = gradient(params, 0.0), gradient(params, 1.0)
  assert largest(with_memory['encoder']) > 1e-6 and largest(with_memory['denoiser']) > 1e-6
  assert largest(without['encoder']) == 0.0 and largest(without['denoiser']) > 1e-6
  # The place field belongs to the long-term memory: training never moves it.
  assert largest(with_memory['denoiser']['field']) == 0.0


def test_sizes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match='of 6 channels, the reader makes 5 and .* set map_dim=5'):
    dataclasses.replace(MODEL, reader=view_reader.ViewReader(features=5))
  with pytest.raises(ValueError, match='expected count >= 1'):
    key_frames.Retrieval(count=0)
  with pytest.raises(ValueError, match='A memory of 1 pictures is too small: every view reads 2'):
    key_frames.Posed(params=None, model=MODEL, capacity=1)


def test_merged_rings_hold_the_newest_of_both_once():
  """Frames are told apart by their x: 0, 1, ... in the first, 10, 11, ... in the second."""
  memory = key_frames.Posed(params=None, model=MODEL, capacity=4)
  blank, write, merged = memory.init(1), jax.jit(memory.write), jax.jit(
      lambda first, second: memory.merge(first, second, 'any'))

  def ring(*numbers):
    x = np.asarray(numbers, np.float32)
    poses = np.stack([x, 0 * x, 0 * x], axis=-1)[None]
    frames = np.broadcast_to(x[:, None, None, None], (len(numbers), *blank.frames.shape[2:]))[None]
    return write(blank, episode.Observation(frames=frames, actions=None, poses=poses), None)

  def held(state):
    count = int(state.count[0])
    numbers = np.asarray(state.poses[0, :, 0])[:count]
    np.testing.assert_array_equal(np.asarray(state.frames[0, :count, 0, 0, 0]), numbers)
    return numbers.tolist()

  merge = lambda first, second: held(merged(first, second))
  assert merge(ring(0), ring(10, 11)) == [0, 10, 11]
  assert merge(ring(0, 1, 2, 3, 4, 5), ring(10, 11)) == [4, 5, 10, 11]  # the first is a full ring
  assert merge(ring(0, 1), ring(10, 11, 12, 13, 14)) == [11, 12, 13, 14]
  assert merge(ring(0, 1, 2), ring(1, 2)) == [0, 1, 2]  # what both hold is kept once
  assert merge(blank, ring(10)) == [10] and merge(ring(0), blank) == [0]
  after = write(merged(ring(0, 1, 2), ring(10, 11)), episode.Observation(
      frames=np.full((1, 1, *blank.frames.shape[2:]), 20, np.float32), actions=None,
      poses=np.asarray([[[20, 0, 0]]], np.float32)), None)
  assert sorted(held(after.replace(count=jnp.array([4])))) == [2, 10, 11, 20]  # the oldest goes
