"""Tests of point maps, and of the key-frame memory that reads views warped from them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small as tiny
from tests.experts import key_frames_test as small
from wmpoe.experts import key_frames
from wmpoe.experts import objective
from wmpoe.experts import point_maps
from wmpoe.networks import autoencoder
from wmpoe.networks import depth
from wmpoe.networks import warping
from wmpoe.training import tasks

# Latents of 4x4x2, as the denoiser of key_frames_test takes them, of pictures of 14x14 pixels.
NETWORK = autoencoder.Autoencoder(
    frame_shape=(14, 14, 3), channels=2, widths=(8, 8), depth=(1, 1))
DEPTH = depth.Depth(frame_shape=(14, 14, 3), width=8, blocks=1)
WIDE = 6 + 2**2 * (2 + 1)
MODEL = dataclasses.replace(
    small.MODEL, warps=True, denoiser=dataclasses.replace(
        small.DENOISER, network=dataclasses.replace(small.DENOISER.network, map_dim=WIDE)))


@jax.jit
def make_points():
  """Untrained ones."""
  key = jax.random.key(0)
  latents = autoencoder.LatentSpace(
      params=NETWORK.init(key, jnp.zeros((1, 14, 14, 3)))['params'], mean=jnp.zeros(2),
      std=jnp.ones(2), network=NETWORK)
  return point_maps.PointMaps(
      latents=latents, params=DEPTH.init(key, jnp.zeros((1, 4, 4, 2)))['params'], network=DEPTH,
      camera=warping.Camera(half_view=0.7), count=2)


@pytest.fixture(scope='module')
def points():
  return make_points()


@pytest.fixture(scope='module')
def params():
  return tiny.random_tree(jax.eval_shape(
      lambda key: MODEL.init(key, action_dim=2, pose_dim=3), jax.random.key(0)))


def observation(batch, length, points, seed=0):
  """Pictures and their latents."""
  pictures = np.random.default_rng(seed).integers(
      0, 256, (batch, length, 14, 14, 3)).astype(np.uint8)
  return dataclasses.replace(
      small.observation(batch, length, seed), pictures=pictures,
      frames=_encode(points.latents, pictures))


_encode = jax.jit(lambda latents, pictures: latents.encode(pictures))
_write = jax.jit(lambda memory, state, seen: memory.write(state, seen, jax.random.key(0)))
_tokens = jax.jit(lambda memory, state, query: memory.model.read(
    memory.params, state.frames, state.poses, state.valid, query,
    memory.points.render(state.pictures, state.inverse_depth, state.poses, state.valid, query)))


def test_bytes_hold_inverse_depth_to_within_a_hundredth_of_itself_or_less():
  far = jnp.linspace(0.0, 4.9, 1000)
  back = point_maps.from_bytes(point_maps.to_bytes(far))
  assert point_maps.to_bytes(far).dtype == jnp.uint8
  assert jnp.abs(back - far).max() < 0.02 and jnp.abs(back - far)[far < 0.5].max() < 0.007
  assert back[0] == 0.0 and point_maps.from_bytes(point_maps.to_bytes(99.0)) == 5.0


def test_a_view_from_where_a_picture_was_taken_is_its_latents(points):
  """Everything is infinitely far, so that nothing but the turn of the camera matters."""
  seen = observation(1, 1, points)
  view = jax.jit(points.render)(
      seen.pictures, jnp.zeros((1, 1, 14, 14), jnp.uint8), seen.poses, jnp.ones((1, 1), bool),
      seen.poses)
  assert view.shape == (1, 1, 4, 4, 3)
  np.testing.assert_allclose(view[..., -1], 1.0)
  np.testing.assert_allclose(view[..., :-1], seen.frames, atol=1e-5)


def test_where_nothing_was_seen_the_view_is_zero(points):
  seen = observation(1, 2, points)
  back = seen.poses[:, :1] + jnp.array([0.0, 0.0, np.pi])
  render = jax.jit(points.render)
  coded = jnp.zeros((1, 2, 14, 14), jnp.uint8)
  same = np.repeat(seen.poses[:, :1], 2, axis=1)
  assert not render(seen.pictures, coded, same, jnp.ones((1, 2), bool), back).any()
  assert not render(seen.pictures, coded, same, jnp.zeros((1, 2), bool), seen.poses[:, :1]).any()


def test_the_memory_holds_pictures_or_makes_them_of_latents(points, params):
  memory = key_frames.Posed(params=params, points=points, model=MODEL, capacity=4)
  seen = observation(2, 3, points)
  state = _write(memory, tiny.init(memory, 2), seen)
  assert state.frames.dtype == jnp.float16  # pictures take their room in a memory file
  np.testing.assert_array_equal(state.pictures[:, :3], seen.pictures)
  np.testing.assert_array_equal(
      state.inverse_depth[:, :3], jax.jit(points.measure)(seen.frames))
  imagined = _write(memory, tiny.init(memory, 2), dataclasses.replace(seen, pictures=None))
  np.testing.assert_array_equal(
      imagined.pictures[:, :3], jax.jit(points.latents.decode)(seen.frames))
  np.testing.assert_array_equal(imagined.inverse_depth, state.inverse_depth)
  assert not state.imagined.any() and imagined.imagined[:, :3].all()
  both = jax.jit(lambda a, b: memory.merge(a, b, 'average'))(
      _write(memory, tiny.init(memory, 2), jax.tree.map(lambda x: x[:, :2], seen)), state)
  for picture in seen.pictures[0]:
    assert (both.pictures[0] == picture).all(axis=(1, 2, 3)).sum() == 1


def test_what_was_seen_is_read_before_what_was_imagined(points, params):
  points = points.replace(params=jax.tree.map(jnp.zeros_like, points.params))  # all equally far
  memory = key_frames.Posed(params=params, points=points, model=MODEL, capacity=4)
  seen, asked = observation(2, 1, points), small.query(2, 3, tiny.random_tree(jax.eval_shape(
      lambda key: small.MODEL.init(key, action_dim=2, pose_dim=3), jax.random.key(0))))
  dream = dataclasses.replace(observation(2, 1, points, seed=1), poses=seen.poses, pictures=None)
  both = jax.jit(lambda: memory.write(
      memory.write(tiny.init(memory, 2), dream, jax.random.key(0)), seen, jax.random.key(0)))()
  asked = dataclasses.replace(asked, poses=jnp.repeat(seen.poses, 3, axis=1))

  render = jax.jit(lambda state: points.render(
      state.pictures, state.inverse_depth, state.poses, state.valid, asked.poses, state.imagined))
  np.testing.assert_array_equal(render(both), render(_write(memory, tiny.init(memory, 2), seen)))
  noisy = jax.random.normal(jax.random.key(3), (2, 3, 4, 4, 2)), jnp.zeros((2, 3))
  estimate = jax.jit(lambda state: memory.read(state, asked).positive(*noisy))
  tiny.differ(estimate(both), estimate(both.replace(imagined=jnp.zeros_like(both.imagined))))


def test_depth_that_comes_with_the_frames_is_taken_as_it_is(points, params):
  memory = key_frames.Posed(params=params, points=points, model=MODEL, capacity=4)
  seen = observation(2, 3, points)
  depth = np.random.default_rng(1).uniform(0.3, 20.0, (2, 3, 14, 14)).astype(np.float32)
  depth[:, :, 0] = np.inf
  state = _write(memory, tiny.init(memory, 2), dataclasses.replace(seen, depth=depth))
  assert not state.inverse_depth[:, :3, 0].any()
  np.testing.assert_allclose(
      point_maps.from_bytes(state.inverse_depth[:, :3]), 1 / depth, atol=0.02)
  again = _write(memory, tiny.init(memory, 2), dataclasses.replace(
      seen, depth=1 / point_maps.from_bytes(state.inverse_depth[:, :3])))
  np.testing.assert_array_equal(again.inverse_depth, state.inverse_depth)


def test_a_model_that_warps_starts_as_the_one_it_is_forked_from(points, monkeypatch):
  """New inputs start at zero: until they are trained, views say nothing."""
  old = tiny.random_tree(jax.eval_shape(
      lambda key: small.MODEL.init(key, action_dim=2, pose_dim=3), jax.random.key(0)))
  task = tasks.SpatialTask(
      model=MODEL, objective=objective.Objective(), empty_rate=0.5, action_dim=2, pose_dim=3,
      initial=old, points=points)
  new = jax.jit(task.init)(jax.random.key(1))
  assert new['denoiser']['map_embed']['kernel'].shape[0] == WIDE
  memory = key_frames.Posed(params=new, points=points, model=MODEL, capacity=4)
  plain = key_frames.Posed(params=old, model=small.MODEL, capacity=4)
  seen = observation(2, 3, points)
  noisy = jax.random.normal(jax.random.key(3), (2, 3, 4, 4, 2)), jnp.zeros((2, 3))

  def estimate(memory, weights):
    state = memory.write(tiny.init(memory, 2), seen, jax.random.key(0))
    return memory.read(state, small.query(2, 3, weights)).positive(*noisy)

  ours = jax.jit(lambda m: estimate(m, old))(plain)
  monkeypatch.setattr(small, 'DENOISER', MODEL.denoiser)
  theirs = jax.jit(lambda m: estimate(m, new))(memory)
  np.testing.assert_allclose(theirs, ours, atol=1e-5)


def test_training_reads_what_was_warped(points, params):
  seen, clip = observation(2, 6, points, 4), observation(2, 4, points, 5)
  as_clip = lambda o: objective.Clip(
      frames=o.frames, actions=o.actions, poses=o.poses, valid=np.ones(o.frames.shape[:2], bool))
  loss = jax.jit(lambda pictures, rate: key_frames.key_frame_loss(
      MODEL, params, as_clip(clip), as_clip(seen), jax.random.key(0), objective.Objective(),
      empty_rate=0.0, points=points, unwarped_rate=rate, seen={
          'pictures': pictures, 'inverse_depth': jnp.zeros(pictures.shape[:-1], jnp.uint8)}))
  assert loss(seen.pictures, 0.0) != loss(255 - seen.pictures, 0.0)
  assert loss(seen.pictures, 1.0) == loss(255 - seen.pictures, 1.0)


def test_of_half_a_batch_without_memory_every_second_sample_has_one(params):
  seen, clip = small.observation(4, 6, 4), small.observation(4, 4, 5)
  as_clip = lambda o: objective.Clip(
      frames=o.frames, actions=o.actions, poses=o.poses, valid=np.ones(o.frames.shape[:2], bool))
  loss = jax.jit(lambda history, rate: key_frames.key_frame_loss(
      MODEL, params, as_clip(clip), as_clip(history), jax.random.key(0), objective.Objective(),
      empty_rate=rate), static_argnums=1)
  changed = lambda rows: dataclasses.replace(
      seen, frames=np.where(np.isin(np.arange(4), rows)[:, None, None, None, None], 3, seen.frames))
  assert loss(seen, 0.5) != loss(changed([0]), 0.5) and loss(seen, 0.5) != loss(changed([2]), 0.5)
  assert loss(seen, 0.5) == loss(changed([1, 3]), 0.5)
  assert loss(seen, 0.0) != loss(changed([1]), 0.0)
  assert loss(seen, 1.0) == loss(changed([0, 1, 2, 3]), 1.0)
  assert np.isfinite(loss(seen, 2 / 3)), 'a batch of 4 has no thirds: each sample is drawn for'


def test_drift_moves_all_that_is_remembered_as_one():
  poses = small.observation(64, 5).poses
  anchor = poses[:, 2] + 0.5
  drifted = jax.jit(key_frames.drifted, static_argnums=3)
  moved = np.asarray(drifted(poses, anchor, jax.random.key(0), (0.5, 0.2)))
  between = lambda p: np.linalg.norm(p[:, 1:, :2] - p[:, :-1, :2], axis=-1)
  np.testing.assert_allclose(between(moved), between(poses), atol=1e-4)
  turned = moved[..., 2] - poses[..., 2]
  np.testing.assert_allclose(turned, np.broadcast_to(turned[:, :1], turned.shape), atol=1e-5)
  assert 0.01 < np.abs(turned).mean() < 0.1
  # What lies at the anchor moves by the shift alone.
  there = np.asarray(drifted(anchor[:, None], anchor, jax.random.key(0), (0.5, 0.2)))
  assert 0.02 < np.abs(there[:, 0, :2] - anchor[:, :2]).mean() < 0.25
  still = drifted(poses, anchor, jax.random.key(0), (0.0, 0.0))
  np.testing.assert_allclose(still, poses, atol=1e-5)


def test_sizes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match='patches of warped views have 12; set map_dim=18'):
    dataclasses.replace(small.MODEL, warps=True)
  refining = dataclasses.replace(
      small.DENOISER, network=dataclasses.replace(small.DENOISER.network, refiner=4))
  with pytest.raises(ValueError, match='which takes views .* the model has none; set refiner=0'):
    dataclasses.replace(small.MODEL, denoiser=refining)
