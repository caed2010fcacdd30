"""One small world that has seen something, for all tests of sessions: it compiles once."""

import functools

import jax
import optax
import pytest

from tests import small
from wmpoe import session
from wmpoe.experts import base as base_lib
from wmpoe.experts import long_term
from wmpoe.experts import spatial


@functools.cache
def experts(seed=0):
  """Base, long-term and spatial memory, one block deep: what is quick to compile."""
  net, mapped = small.model(depth=1), small.spatial_model(depth=1)
  weights = small.params(net, seed)
  return base_lib.Base(params=weights, model=net), {
      'long_term': long_term.create(
          jax.random.key(seed), net, weights, spec=small.SPEC, writing=small.WRITING,
          optimizer=optax.adam(0.05), **small.DIMS),
      'spatial': spatial.Spatial(params=small.params(mapped, seed + 2), model=mapped)}


def world(**changes):
  """A world of these."""
  base, memories = experts()
  return small.world(**{'base': base, 'memories': memories, **changes})


@functools.cache
def _seen():
  return session.Session.open(world(), batch=2, seed=3).observe(small.observation(2, 6))


@pytest.fixture
def seen():
  """A session of two episodes, six frames observed of each."""
  return _seen()


@pytest.fixture(name='world')
def _world():
  """Makes the world of `seen`, with changes."""
  return world


@pytest.fixture
def other():
  """Base and memories with other parameters."""
  return experts(seed=1)


@pytest.fixture
def asked():
  """Actions and poses of the two frames after."""
  return small.conditions(2, 2, seed=5)
