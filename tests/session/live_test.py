"""Sessions of small real worlds: immutable, forked at no cost, on the way no slower."""

import dataclasses

import jax
import numpy as np
import pytest

from tests import small
from wmpoe import session
from wmpoe import world_model


def _dream(one, asked):
  return np.asarray(one.imagine(*asked)[1])


def test_it_is_the_world_model_with_its_state_carried_along(asked, world):
  model = world().compose('base')
  one = session.Session.open(model, batch=2, seed=3).observe(small.observation(2, 6))
  state = model.observe(model.init(2), small.observation(2, 6), jax.random.key(0))
  _, use = jax.random.split(jax.random.split(jax.random.key(3))[0])
  state, frames = jax.jit(world_model.WorldModel.imagine)(model, state, *asked, use)
  after, got = one.imagine(*asked)
  small.same(got, frames)
  small.same(after.state, state)
  assert after.observed.tolist() == [6, 6]
  assert after.imagined.tolist() == [2, 2]


def test_a_session_is_never_changed(seen, asked):
  before = jax.tree.map(np.array, seen.state)
  first, again = _dream(seen, asked), _dream(seen, asked)
  small.same(first, again)
  small.same(seen.state, before)
  after, _ = seen.imagine(*asked)
  assert np.any(_dream(after, asked) != first)  # time and its random numbers go on


def test_a_thousand_forks_share_their_storage(seen, asked):
  forks = [seen.fork(i) for i in range(1000)]
  own = {id(leaf) for leaf in jax.tree.leaves(seen.state)}
  assert {id(leaf) for fork in forks for leaf in jax.tree.leaves(fork.state)} == own
  small.same(_dream(seen.fork(), asked), _dream(seen, asked))
  assert np.any(_dream(forks[0], asked) != _dream(forks[1], asked))
  assert forks[7].lineage == ('forked as 7',)


def test_what_a_dream_does_not_write_is_shared_with_before(seen, asked):
  after, _ = seen.imagine(*asked)
  for name in ('long_term', 'spatial'):
    assert after.state.memories[name] is seen.state.memories[name]
  assert after.state.recent is not seen.state.recent


def test_reset_starts_the_episodes_that_are_done(seen):
  half = seen.reset(np.array([True, False]))
  fresh = seen.reset()
  pick = lambda state, i: jax.tree.map(lambda x: x[i], state)
  small.same(pick(half.state, 0), pick(fresh.state, 0))
  small.same(pick(half.state, 1), pick(seen.state, 1))
  small.same(fresh.state, seen.model.init(2))
  assert half.observed.tolist() == [0, 6]


def test_new_weights_do_not_compile_again(seen, asked):
  from wmpoe.session import live
  seen.imagine(*asked)
  programs = live._imagine._cache_size()
  for weight in (0.0, 0.5, 2.0):
    seen.compose(
        'base', *seen.model.memories, weights=dict.fromkeys(seen.model.memories, weight)
    ).imagine(*asked)
  assert live._imagine._cache_size() - programs <= 0


@pytest.mark.parametrize(('use', 'message'), [
    (lambda s, a: s.imagine(a[0][:1], a[1]), r'actions have shape \(1, 2, 3\); this session runs'),
    (lambda s, a: s.imagine(a[0], a[1][:, :, :1]), 'poses have dimension 1; this model was built'),
    (lambda s, a: s.imagine(a[0].at[1, 0, 2].set(np.nan), a[1]), 'actions hold NaN .* in frame 0'),
    (lambda s, a: s.imagine(a[0], a[1].astype('int32')), 'poses are int32; expected float32'),
    (lambda s, a: s.reset().observe(small.observation(2, 1)),
     'long_term would have a history of 1 frames; its inner steps learn from clips of 2 frames'),
    (lambda s, a: s.observe(small.observation(1, 6)), r'frames have shape \(1, 6, 16, 16, 3\)'),
    (lambda s, a: s.observe(dataclasses.replace(
        small.observation(2, 6), frames=np.zeros((2, 6, 8, 8, 3), np.uint8))), r'frames are \(8'),
    (lambda s, a: s.reset(np.ones(3)), r'done of shape \(3,\); expected \[2\]'),
    (lambda s, a: session.Session.open(s.model, batch=0), 'A session of 0 episodes'),
    (lambda s, a: session.Session.open(s.model, compose={}), 'use model.compose on one of your'),
    (lambda s, a: session.Session.open('carts'), "No packaged world model is named 'carts'"),
])
def test_bad_input_is_named(seen, asked, use, message):
  with pytest.raises(ValueError, match=message):
    use(seen, asked)
