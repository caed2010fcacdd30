"""Tests of the short-term memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small

MEMORY = small.experts().short_term


@jax.jit
def _estimates(state, query):
  contrast = MEMORY.read(state, query)
  noisy = small.noisy(2, 2)
  return contrast.positive(*noisy), contrast.negative(*noisy), contrast.empty


@jax.jit
def _write(state, seen):
  return MEMORY.write(state, seen, jax.random.key(0))


def test_a_ring_of_the_newest_frames():
  state, whole = small.init(MEMORY, 2), small.observation(2, 7)
  for at, stop in ((0, 3), (3, 4), (4, 7)):
    state = _write(state, jax.tree.map(lambda x, a=at, s=stop: x[:, a:s], whole))
  assert state.valid.all()
  small.same(state.frames, whole.frames[:, 3:])
  small.same(state.actions, whole.actions[:, 3:])
  small.same(state.poses, whole.poses[:, 3:])


def test_the_contrast_is_what_the_window_tells():
  first = _write(small.init(MEMORY, 2), small.observation(2, 4))
  # The oldest frame, beyond the window of a narrow layer, reaches the generated ones all the same.
  second = first.replace(frames=first.frames.at[1, 0].set(0))
  one, two = _estimates(first, small.query(2)), _estimates(second, small.query(2))
  small.differ(one[0], one[1])
  small.differ(two[0][1], one[0][1])
  small.same(two[0][0], one[0][0])
  small.same(two[1], one[1])
  np.testing.assert_array_equal(one[2], [False, False])


def test_it_reads_its_own_ring_and_not_the_recent_frames():
  state = _write(small.init(MEMORY, 2), small.observation(2, 4))
  query = small.query(2)
  other = query.replace(recent=small.window(2, 2, seed=5))
  small.same(_estimates(state, other), _estimates(state, query))


def test_against_the_base():
  state, query = _write(small.init(MEMORY, 2), small.observation(2, 4)), small.query(2)
  contrast = MEMORY.replace(baseline='base').read(state, query)
  assert contrast.negative is None
  noisy = small.noisy(2, 2)
  small.close(jax.jit(lambda c: c.positive(*noisy))(contrast), _estimates(state, query)[0])
  with pytest.raises(ValueError, match="Unknown baseline 'own'; expected one of null, base"):
    MEMORY.replace(baseline='own')


def test_an_empty_ring_is_its_own_baseline():
  positive, negative, empty = _estimates(small.init(MEMORY, 2), small.query(2))
  small.close(positive, negative)
  np.testing.assert_array_equal(empty, [True, True])
  partly = _write(small.init(MEMORY, 2), small.observation(2, 1))
  assert not np.any(_estimates(partly, small.query(2))[2])
  assert jnp.sum(partly.valid) == 2


def test_of_two_memories_the_later_one_stays_unless_it_is_empty():
  memory = small.experts().short_term
  blank = small.init(memory, 2)
  one, two = (_write(blank, small.observation(2, 3, seed=s)) for s in (0, 1))
  small.same(memory.merge(one, two, 'any'), two)
  small.same(memory.merge(one, blank, 'any'), one)
