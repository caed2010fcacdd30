"""Tests of the spatial memory: maps by hand, then with a real encoder and denoiser."""

import dataclasses

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small
from wmpoe.experts import objective
from wmpoe.experts import spatial

MEMORY = small.experts().spatial
MODEL = MEMORY.model

_write_map, _read_map = jax.jit(spatial.write_map), jax.jit(spatial.read_map)


def _map(features, seen):
  return spatial.Map(features=np.float32(features)[None], seen=np.float32(seen)[None])


def test_writing_by_hand():
  state = _map([[2.0], [4.0], [0.0]], [1.0, 0.5, 0.0])
  # One frame of two patches: cell 1 through a gate of a half, cell 2 of a quarter.
  state = _write_map(
      state, np.float32([[[[8.0], [4.0]]]]), np.float32([[[0.5, 0.25]]]), np.array([[[1, 2]]]))
  np.testing.assert_allclose(state.features[0, :, 0], [2.0, 6.0, 1.0])
  np.testing.assert_allclose(state.seen[0], [1.0, 0.75, 0.25])


def test_patches_that_show_the_same_cell_are_averaged_by_gate():
  state = _write_map(
      _map([[10.0]], [1.0]), np.float32([[[[2.0], [6.0]]]]), np.float32([[[1.0, 0.5]]]),
      np.array([[[0, 0]]]))
  # The mean gate is 0.75; the content (1.0 * 2 + 0.5 * 6) / 2.
  np.testing.assert_allclose(state.features[0, 0, 0], 0.25 * 10 + 2.5)
  np.testing.assert_allclose(state.seen[0, 0], 1.0)


@hypothesis.settings(max_examples=8)
@hypothesis.given(
    batch=st.integers(1, 2), frames=st.integers(1, 3), patches=st.integers(1, 3),
    size=st.integers(1, 4), seed=st.integers(0, 9))
def test_writing_is_the_recurrence_frame_by_frame(batch, frames, patches, size, seed):
  rng = np.random.default_rng(seed)
  features = rng.normal(size=(batch, frames, patches, 2)).astype(np.float32)
  gates = rng.random((batch, frames, patches)).astype(np.float32)
  cells = rng.integers(size, size=(batch, frames, patches))
  expected, seen = np.zeros((batch, size, 2)), np.zeros((batch, size))
  for b in range(batch):
    for t in range(frames):
      for cell in range(size):
        here = cells[b, t] == cell
        if here.any():
          g = gates[b, t, here]
          expected[b, cell] = (1 - g.mean()) * expected[b, cell] + (
              g[:, None] * features[b, t, here]).mean(0)
          seen[b, cell] = (1 - g.mean()) * seen[b, cell] + g.mean()
  state = _write_map(spatial.empty_map(batch, size, 2), features, gates, cells)
  np.testing.assert_allclose(state.features, expected, atol=1e-5)
  np.testing.assert_allclose(state.seen, seen, atol=1e-5)
  tokens = _read_map(state, cells)
  assert tokens.shape == (batch, frames, patches, 3)
  np.testing.assert_allclose(tokens[-1, -1, -1, :2], expected[-1, cells[-1, -1, -1]], atol=1e-5)
  np.testing.assert_allclose(tokens[-1, -1, -1, 2], seen[-1, cells[-1, -1, -1]], atol=1e-5)


@dataclasses.dataclass(frozen=True)
class _Corridor:
  """A camera that walks along a corridor: at pose r it sees the cells r .. r+3."""

  cells: int = 5

  def __call__(self, poses):
    return poses[..., :1].astype(jnp.int32) + jnp.arange(small.TOKENS)


def test_a_camera_that_moves_writes_where_it_looks():
  model = dataclasses.replace(MODEL, locate=_Corridor())
  seen = small.observation(1, 2)
  walk = jnp.float32([[[0, 0], [1, 0]]])
  state = jax.jit(lambda: model.write(MEMORY.params, model.empty(1), seen.frames, walk))()
  assert state.features.shape == (1, 5, 3)
  features, gates = jax.jit(MODEL.encoder.apply)(
      {'params': MEMORY.params['encoder']}, MODEL.denoiser.codec.encode(seen.frames))
  np.testing.assert_allclose(  # only frame 0 showed cell 0, only frame 1 cell 4
      state.features[0, [0, 4]],
      [gates[0, 0, 0] * features[0, 0, 0], gates[0, 1, 3] * features[0, 1, 3]], atol=1e-5)


@jax.jit
def _estimates(state, query):
  contrast = MEMORY.read(state, query)
  noisy = small.noisy(2, 2)
  return contrast.positive(*noisy), contrast.negative(*noisy), contrast.empty


_write = jax.jit(lambda state, seen: MEMORY.write(state, seen, jax.random.key(0)))


def test_the_contrast_is_what_the_map_tells():
  first = _write(MEMORY.init(2), small.observation(2, 3))
  assert not np.any(_estimates(first, small.query(2))[2])
  second = first.replace(features=first.features.at[1, 2].add(1.0))
  one, two = _estimates(first, small.query(2)), _estimates(second, small.query(2))
  small.differ(one[0], one[1])
  small.differ(two[0][1], one[0][1])
  small.same(two[0][0], one[0][0])
  small.same(two[1], one[1])


def test_an_empty_map_is_its_own_baseline():
  positive, negative, empty = _estimates(MEMORY.init(2), small.query(2))
  small.close(positive, negative)
  np.testing.assert_array_equal(empty, [True, True])


def test_frames_that_are_not_valid_are_not_written():
  seen = small.observation(2, 3)
  valid = jnp.array([[False, True, True], [False, False, False]])
  write = jax.jit(lambda *args: MODEL.write(MEMORY.params, MODEL.empty(2), *args))
  state = write(seen.frames, seen.poses, valid)
  other = write(seen.frames.at[:, 0].set(0), seen.poses, valid)
  small.same(other, state)
  assert np.all(state.seen[0] > 0)
  assert not np.any(state.seen[1])


def _loss(empty_rate):
  spec = objective.Objective(null_rate=0.0)

  @jax.jit
  def run(params, history):
    return jax.value_and_grad(lambda p: spatial.spatial_loss(
        MODEL, p, small.clip(2, 4), history, jax.random.key(0), spec, empty_rate=empty_rate))(
            params)

  return run


def test_the_loss_teaches_the_encoder_through_the_map():
  run, history = _loss(0.0), small.clip(2, 3, seed=4)
  loss, grads = run(MEMORY.params, history)
  for leaf in jax.tree.leaves(grads['encoder']):
    assert np.any(leaf)
  unseen = dataclasses.replace(history, valid=jnp.zeros_like(history.valid))
  other, nothing = run(MEMORY.params, unseen)
  assert abs(float(other) - float(loss)) > 1e-4
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(nothing['encoder']))


def test_empty_rate_hides_the_history():
  loss, grads = _loss(1.0)(MEMORY.params, small.clip(2, 3, seed=4))
  other, _ = _loss(1.0)(MEMORY.params, small.clip(2, 3, seed=5))
  assert float(loss) == float(other)
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads['encoder']))


def test_a_denoiser_that_cannot_take_the_map():
  with pytest.raises(ValueError, match='map tokens of 0 channels, the map has 4.*set map_dim=4'):
    dataclasses.replace(MODEL, denoiser=small.model())


def test_merged_maps_are_what_writing_one_after_the_other_gives():
  memory = small.experts().spatial
  write = jax.jit(memory.write)
  first, second, empty = small.observation(2, 3), small.observation(2, 3, seed=1), memory.init(2)
  one, two = write(empty, first, None), write(empty, second, None)
  small.close(memory.merge(one, two, 'any'), write(one, second, None))
  small.same(memory.merge(one, empty, 'any'), one)
