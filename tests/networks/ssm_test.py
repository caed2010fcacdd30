"""Tests of the state-space denoiser."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small
from wmpoe.networks import dit
from wmpoe.networks import ssm


def arrays(seed, frames=7, sequences=3, channels=4, states=2):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return (
      draw(sequences, frames, channels), np.abs(draw(sequences, frames, channels)),
      -np.abs(draw(channels, states)), draw(sequences, frames, states),
      draw(sequences, frames, states), draw(sequences, channels, states))


def recurrence(u, delta, decay, write, read, state):
  """The definition, one number at a time."""
  y = np.zeros(u.shape)
  state = state.astype(np.float64)
  for t in range(u.shape[1]):
    for m in range(u.shape[0]):
      for e in range(u.shape[2]):
        for s in range(decay.shape[1]):
          state[m, e, s] = (
              np.exp(delta[m, t, e] * decay[e, s]) * state[m, e, s]
              + delta[m, t, e] * u[m, t, e] * write[m, t, s])
        y[m, t, e] = state[m, e] @ read[m, t]
  return y, state


@pytest.mark.parametrize('implementation', ['associative', 'sequential'])
def test_scan_is_the_plain_recurrence(implementation):
  given = arrays(0)
  got = jax.jit(functools.partial(ssm.selective_scan, implementation=implementation))(*given)
  small.close(got, recurrence(*given))


def test_both_scans_have_the_same_gradient():
  given = arrays(1)
  def gradient(implementation):
    total = lambda *args: sum(
        jnp.sum(jnp.sin(x)) for x in ssm.selective_scan(*args, implementation=implementation))
    return jax.jit(jax.grad(total, argnums=tuple(range(6))))(*given)
  small.close(gradient('associative'), gradient('sequential'))


def test_unknown_implementation():
  with pytest.raises(ValueError, match='expected auto, associative or sequential'):
    ssm.selective_scan(*arrays(0), implementation='parallel')


NETWORK = ssm.SSM(
    width=16, depth=2, heads=2, patch=8, frame_shape=small.FRAME, mlp_ratio=2, context=4, state=3,
    scan='associative')


@functools.cache
def weights():
  frames = jnp.zeros((1, 1, *small.FRAME))
  rest = jnp.zeros((1, 1)), jnp.zeros((1, 1, 3)), jnp.zeros((1, 1, 2))
  with jax.ensure_compile_time_eval():
    return small.random_tree(jax.eval_shape(
        lambda key: NETWORK.init(key, frames, *rest)['params'], jax.random.key(0)))


def inputs(frames, seed=0):
  return *small.noisy(2, frames, seed), *small.conditions(2, frames, seed)


@jax.jit
def whole(given):
  return NETWORK.apply({'params': weights()}, *given)


@jax.jit
def prefilled(context, given):
  past = NETWORK.apply({'params': weights()}, *context, method='prefill')
  return NETWORK.apply({'params': weights()}, *given, past=past), past


@jax.jit
def carried(given, past):
  return NETWORK.apply({'params': weights()}, *given, past, method='carry')


def test_no_frame_depends_on_a_later_one_and_every_later_one_depends_on_it():
  given = inputs(6)
  before = whole(given)
  x = given[0].at[:, 3].add(1.0)
  after = whole((x, *given[1:]))
  small.same(after[:, :3], before[:, :3])
  for t in (3, 4, 5):
    small.differ(after[:, t], before[:, t])


def test_carrying_the_state_is_seeing_the_past():
  given = inputs(6)
  context, rest = ([x[:, :4] for x in given], [x[:, 4:] for x in given])
  got, past = prefilled(context, rest)
  small.close(got, whole(given)[:, 4:], atol=1e-4)
  # Read in pieces, from the state before the first frame on, it is the same state.
  pieces = NETWORK.empty(2)
  for part in (slice(0, 2), slice(2, 4)):
    pieces = carried([x[:, part] for x in context], pieces)
  small.close(pieces, past, atol=1e-4)


def test_the_state_is_as_large_after_any_number_of_frames():
  shapes = lambda state: jax.tree.map(jnp.shape, state)
  empty = NETWORK.empty(2)
  one, six = (carried(inputs(frames), empty) for frames in (1, 6))
  assert shapes(one) == shapes(six) == shapes(empty)
  small.differ(one.hidden[0], six.hidden[0])


def test_a_step_size_at_initialisation_is_within_its_range():
  bias = ssm._step_init(jax.random.key(0), (200,))
  steps = np.asarray(jax.nn.softplus(bias))
  assert steps.min() >= 0.9e-3 and steps.max() <= 1.1e-1 and steps.max() / steps.min() > 20


def test_it_has_the_leaves_of_a_dit_to_be_forked_from():
  net = dit.DiT(width=16, depth=2, heads=2, patch=8, frame_shape=small.FRAME, mlp_ratio=2,
                context=4)
  given = [jnp.zeros((1, 1, *x.shape[2:])) for x in inputs(1)]
  theirs = jax.eval_shape(lambda key: net.init(key, *given)['params'], jax.random.key(0))
  shapes = lambda tree: {
      jax.tree_util.keystr(path): leaf.shape
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
  assert shapes(theirs).items() <= shapes(weights()).items()
