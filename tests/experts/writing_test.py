"""Tests of the inner loop: histories, sub-clips and steps."""

import dataclasses

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import small
from wmpoe.experts import objective
from wmpoe.experts import writing
from wmpoe.networks import lora

MODEL = small.model()
PARAMS = small.params(MODEL)


_append = jax.jit(writing.append)
_sub_clips = jax.jit(writing.sub_clips, static_argnames=('context', 'target', 'patch'))
_balance = jax.jit(writing.balance_weights, static_argnames='patch')


@jax.jit
def _starts(offset, length, target):
  """Of 8,800 draws, as one program whatever it is asked."""
  return writing.starts(offset, jnp.arange(8800), length, target)


def _targets(offset, draws, length, target):
  """How often each history frame was a target."""
  first = np.asarray(_starts(offset, length, target))[:draws]
  covered = first[:, None] + np.arange(target)
  inside = covered[(covered >= 0) & (covered < length)]
  return np.bincount(inside, minlength=length)


def test_every_frame_is_a_target_equally_often():
  length, target, rounds = 20, 3, 400
  positions = length + target - 1
  counts = _targets(0.3, rounds * positions, length, target)
  assert counts.shape == (length,)
  # `target` of the positions cover a frame, each drawn `rounds` times up to the sequence's
  # discrepancy, which a frame's neighbouring positions share.
  np.testing.assert_allclose(counts, rounds * target, atol=5)
  # Uniform starts inside the history would give the ends a third of that.
  np.testing.assert_allclose(counts[[0, -1]], rounds * target, atol=5)


def test_every_start_is_drawn_and_equally_often():
  first = np.asarray(writing.starts(0.0, np.arange(22 * 300), 20, 3))
  values, counts = np.unique(first, return_counts=True)
  np.testing.assert_array_equal(values, np.arange(-2, 20))
  np.testing.assert_allclose(counts, 300, atol=3)


@hypothesis.settings(max_examples=25)
@hypothesis.given(
    offset=st.floats(0, 1, exclude_max=True, width=32), length=st.integers(1, 40),
    target=st.integers(1, 8), draws=st.integers(1, 300))
def test_targets_are_even_from_the_first_steps_on(offset, length, target, draws):
  counts = _targets(offset, draws, length, target)
  np.testing.assert_allclose(counts, draws * target / (length + target - 1), atol=4)


def test_positions_stay_even_however_long_an_episode_runs():
  for first in (0, 10**6, 2**24 + 1, 2**31 - 3000):
    found = writing.starts(jnp.float32(0.3), first + jnp.arange(2000), jnp.int32(128), 7)
    assert np.bincount(np.asarray(found) + 6, minlength=134).min() >= 10, first


def test_sub_clips_hang_over_the_ends_and_are_masked():
  history = _append(
      writing.empty_history(8, small.FRAME, **small.DIMS),
      jax.tree.map(lambda x: np.asarray(x)[0], small.observation(1, 5)))
  clip = _sub_clips(history, np.array([-1, 2, 4]), context=2, target=2)
  history, clip = jax.tree.map(np.asarray, (history, clip))
  np.testing.assert_array_equal(clip.valid, [
      [False, False, False, True], [True] * 4, [True, True, True, False]])
  small.same(clip.frames[1], history.frames[:4])
  small.same(clip.poses[2, :3], history.poses[2:5])
  small.same(clip.actions[0, 3], history.actions[0])


@hypothesis.settings(max_examples=8)
@hypothesis.given(pieces=st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_a_history_forgets_its_oldest_frames(pieces):
  history = writing.empty_history(6, small.FRAME, **small.DIMS)
  # As numpy arrays: jax would compile every slice of another size.
  whole = jax.tree.map(lambda x: np.asarray(x)[0], small.observation(1, sum(pieces)))
  at = 0
  for size in pieces:
    history = _append(history, jax.tree.map(lambda x, a=at, n=size: x[a:a + n], whole))
    at += size
  history, kept = jax.tree.map(np.asarray, history), min(6, at)
  assert int(history.length) == kept
  for name in ('frames', 'actions', 'poses'):
    small.same(getattr(history, name)[:kept], getattr(whole, name)[at - kept:at])


def _start(batch, frames):
  return _begun(small.observation(batch, frames))


@jax.jit
def _begun(seen):
  """What `writing.fit` takes, of memories that were shown frames."""
  batch = seen.frames.shape[0]
  spread = lambda tree: jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, *jnp.shape(x))), tree)
  fresh = lora.init(jax.random.key(0), PARAMS, small.SPEC)
  empty = writing.empty_history(8, small.FRAME, **small.DIMS)
  return {
      'lora': spread(fresh), 'opt_state': spread(optax.adam(0.05).init(fresh)),
      'history': jax.vmap(writing.append)(spread(empty), seen),
      'first_step': jnp.zeros((batch,), jnp.int32),
      'keys': jax.random.split(jax.random.key(1), batch)}


@jax.jit
def _four(state):
  return writing.fit(
      MODEL, PARAMS, small.SPEC, optax.adam(0.05), small.WRITING, steps=4, **state)


def test_a_history_shorter_than_a_clip_can_be_written():
  adapter, _, losses = _four(_start(2, 1))
  assert losses.shape == (4, 2)
  assert np.isfinite(losses).all()
  assert any(np.any(x) for x in jax.tree.leaves(adapter))
  small.differ(adapter['block_0']['query']['b'], jnp.zeros(()))


def test_nothing_seen_writes_nothing():
  start = _start(2, 4)
  nothing = dataclasses.replace(start['history'], length=jnp.zeros((2,), jnp.int32))
  adapter, _, losses = _four({**start, 'history': nothing})
  small.same(adapter, start['lora'])
  np.testing.assert_array_equal(losses, 0.0)


def _change(state, spec, optimizer):
  """How one step of another loop changes the last `b` of the second block."""
  state = {**state, 'opt_state': jax.vmap(optimizer.init)(state['lora'])}
  adapter, _, _ = writing.fit(MODEL, PARAMS, small.SPEC, optimizer, spec, steps=1, **state)
  return adapter['block_1']['out']['b']


def test_any_optimizer_clips_per_step_and_balance():
  start, spec = _start(1, 5), small.WRITING

  @jax.jit
  def runs(state):
    more = dataclasses.replace(spec, clips_per_step=3)
    even = dataclasses.replace(spec, balance=1.0)
    return [_change(state, *options) for options in (
        (spec, optax.sgd(1.0)), (spec, optax.sgd(0.5)), (more, optax.sgd(1.0)),
        (even, optax.sgd(1.0)))]

  plain, slower, more, even = runs(start)
  small.close(slower, 0.5 * plain, atol=1e-6)
  assert np.any(plain) and np.any(more != plain)
  # Random pixels never repeat: every content was seen once, and balancing them changes nothing.
  small.close(even, plain, atol=1e-5)


def _still(frames):
  """A history of 8 of which the given number is there, black but for frame 1's first patch."""
  pixels = np.zeros((8, *small.FRAME), np.uint8)
  pixels[1, :8, :8] = 255
  return dataclasses.replace(
      writing.empty_history(8, small.FRAME, **small.DIMS), frames=pixels,
      length=np.int32(frames))


def test_balance_counts_contents_and_not_frames():
  weights = np.asarray(_balance(_still(5), patch=8, balance=1.0))
  assert weights.shape == (8, small.TOKENS)
  np.testing.assert_array_equal(weights[5:], 0.0)
  np.testing.assert_allclose(weights[:5].mean(), 1.0, rtol=1e-5)
  # The white patch was seen once, the black ones of its place four times, all others five times.
  np.testing.assert_allclose(weights[1, 0] / weights[0, 0], 4.0, rtol=1e-4)
  np.testing.assert_allclose(weights[1, 0] / weights[0, 1], 5.0, rtol=1e-4)
  np.testing.assert_allclose(weights[:5, 0].sum() / weights[:5, 1].sum(), 2.0, rtol=1e-4)
  root = np.asarray(_balance(_still(5), patch=8, balance=0.5))
  np.testing.assert_allclose(root[1, 0] / root[0, 0], 2.0, rtol=1e-4)
  even = np.asarray(_balance(_still(5), patch=8, balance=0.0))
  np.testing.assert_allclose(even[:5], 1.0, rtol=1e-5)
  assert np.isfinite(_balance(_still(0), patch=8, balance=1.0)).all()


def test_weights_of_patches_become_weights_of_their_pixels():
  weights = jnp.arange(8.0)[:, None] * 10 + jnp.arange(4.0)
  clip = _sub_clips(
      _still(5), np.array([2]), context=1, target=2, weights=weights, patch=8)
  assert clip.pixel_weight.shape == (1, 3, 16, 16, 1)
  np.testing.assert_array_equal(clip.pixel_weight[0, :, 0, 0, 0], [10, 20, 30])
  np.testing.assert_array_equal(clip.pixel_weight[0, 0, [0, 7, 8, 15], [8, 15, 7, 8], 0],
                                [11, 11, 12, 13])


def test_clips_that_hang_over_the_end_count_for_less():
  clip = small.clip(1, 4)
  fresh = lora.scaled(lora.init(jax.random.key(0), PARAMS, small.SPEC), small.SPEC)
  spec = objective.Objective(null_rate=0.0)
  run = jax.jit(lambda c: (
      writing.writing_loss(MODEL, PARAMS, fresh, c, jax.random.key(0), spec),
      objective.clip_loss(MODEL, PARAMS, c, jax.random.key(0), spec, lora=fresh)))
  half = dataclasses.replace(clip, valid=clip.valid.at[:, 3].set(False))
  for case, share in ((clip, 1.0), (half, 0.5)):
    weighted, whole = run(case)
    np.testing.assert_allclose(weighted, share * whole, rtol=1e-6)


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: writing.Writing(steps=-1), r'Writing.steps=-1 must be at least 0'),
    (lambda: writing.Writing(clips_per_step=0), r'clips_per_step=0'),
    (lambda: writing.Writing(target=9, capacity=8), 'capacity 8 cannot hold one sub-clip of 9'),
    (lambda: writing.append(
        writing.empty_history(2, small.FRAME, **small.DIMS),
        jax.tree.map(lambda x: x[0], small.observation(1, 3))),
     'Cannot write 3 frames at once into a history of capacity 2'),
])
def test_bad_arguments(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_a_history_shorter_than_a_sub_clip_is_refused():
  memory = small.world().memories['long_term']
  state = memory.append(small.init(memory, 2), small.observation(2, 1))
  with pytest.raises(ValueError, match='history has 1 frames; a sub-clip has 2 target frames'):
    memory.fit(state, jax.random.key(0))
