"""Tests of a recurrent network's state as a memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small
from wmpoe.data import episode
from wmpoe.experts import expert
from wmpoe.experts import recurrent
from wmpoe.networks import poses
from wmpoe.networks import ssm

DIMS = {'action_dim': 3, 'pose_dim': 3}
MODEL = expert.Model(
    network=ssm.SSM(
        width=16, depth=1, heads=2, patch=8, frame_shape=small.FRAME, mlp_ratio=2, context=4,
        state=3, pose_kind='vector'),
    schedule=small.SCHEDULE, pose_code=poses.RelativePose(), anchor='first')


@functools.cache
def memory():
  params = small.random_tree(
      jax.eval_shape(lambda key: MODEL.init(key, **DIMS), jax.random.key(0)))
  return recurrent.Recurrent(params=params, model=MODEL, pose_dim=3)


def seen(frames, seed=0):
  given = small.observation(2, frames, seed)
  walk = np.random.default_rng(seed).normal(size=(2, frames, 3)).astype(np.float32)
  return episode.Observation(
      frames=given.frames, actions=given.actions, poses=jnp.asarray(walk))


write = jax.jit(lambda memory, state, observation: memory.write(state, observation, None))


def ask(count=2):
  future = seen(count, seed=5)
  return expert.Query(
      recent=small.window(2, 2), actions=future.actions, poses=future.poses,
      key=jax.random.split(jax.random.key(0), 2))


@jax.jit
def estimates(memory, state, query):
  contrast = memory.read(state, query)
  given = small.noisy(2, 2)
  return contrast.positive(*given), contrast.negative(*given), contrast.empty


def test_reading_is_what_training_computes():
  # Written from the first frame on, it is a clip whose context is that history.
  history, query = seen(4), ask()
  state = write(memory(), small.init(memory(), 2), history)
  x_t, logsnr = small.noisy(2, 2)

  @jax.jit
  def trained(params):
    apply = functools.partial(MODEL.network.apply, {'params': params})
    valid = jnp.ones((2, 4), bool)
    past_poses, later = MODEL.code_poses(history.poses, valid, query.poses)
    clean = jnp.full((2, 4), MODEL.schedule.logsnr_max)
    past = apply(
        MODEL.codec.encode(history.frames), clean, history.actions, past_poses, method='prefill')
    bound = expert.NetworkDenoiser(
        params=params, past=past, actions=query.actions, poses=later, model=MODEL)
    return bound(x_t, logsnr)

  small.close(estimates(memory(), state, query)[0], trained(memory().params), atol=1e-4)


def test_writing_in_pieces_is_writing_at_once_into_a_state_of_one_size():
  empty, history = small.init(memory(), 2), seen(6)
  whole = write(memory(), empty, history)
  pieces = empty
  for part in (slice(0, 3), slice(3, 6)):
    pieces = write(memory(), pieces, jax.tree.map(lambda x, part=part: x[:, part], history))
  small.close(pieces, whole, atol=1e-4)
  assert jax.tree.map(jnp.shape, empty) == jax.tree.map(jnp.shape, whole)
  small.differ(whole.past.hidden[0], empty.past.hidden[0])


def test_an_empty_memory_is_its_own_baseline():
  state, query = small.init(memory(), 2), ask()
  positive, negative, empty = estimates(memory(), state, query)
  small.same(positive, negative)
  assert empty.all()
  positive, negative, empty = estimates(memory(), write(memory(), state, seen(4)), query)
  small.differ(positive, negative)
  assert not empty.any()


def test_poses_are_seen_from_the_first_frame_wherever_it_is():
  history, query = seen(4), ask()
  moved = lambda x: dataclasses.replace(
      x, poses=poses.relative(x.poses, jnp.array([3.0, -2.0, 0.7])))
  got = estimates(memory(), write(memory(), small.init(memory(), 2), history), query)
  there = estimates(
      memory(), write(memory(), small.init(memory(), 2), moved(history)), moved(query))
  small.close(got, there, atol=1e-3)


def test_other_networks_are_refused():
  with pytest.raises(ValueError, match="an SSM with anchor='first'"):
    recurrent.Recurrent(params={}, model=small.model(), pose_dim=3)
