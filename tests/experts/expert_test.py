"""Tests of windows, models and the binding of a network to a query."""

import dataclasses

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small
from wmpoe.diffusion import predictions
from wmpoe.experts import expert
from wmpoe.networks import lora

_push = jax.jit(expert.Window.push)


@hypothesis.settings(max_examples=8)
@hypothesis.given(
    length=st.integers(0, 4), pieces=st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_a_window_holds_the_newest_frames(length, pieces):
  window = expert.empty_window(1, length, small.FRAME, **small.DIMS)
  # As numpy arrays: jax would compile every slice of another size.
  whole = jax.tree.map(np.asarray, small.observation(1, sum(pieces)))
  at = 0
  for size in pieces:
    window = _push(window, jax.tree.map(lambda x, a=at, n=size: x[:, a:a + n], whole))
    at += size
  window, kept = jax.tree.map(np.asarray, window), min(length, at)
  np.testing.assert_array_equal(window.valid[0], [False] * (length - kept) + [True] * kept)
  small.same(window.frames[:, length - kept:], whole.frames[:, at - kept:])
  small.same(window.actions[:, length - kept:], whole.actions[:, at - kept:])
  small.same(window.poses[:, length - kept:], whole.poses[:, at - kept:])
  assert not np.any(window.frames[:, :length - kept])


def test_the_last_frames_of_a_window():
  window = small.window(2, 4)
  last = window.last(3)
  small.same(last.frames, window.frames[:, 1:])
  small.same(window.last(0).valid, jnp.zeros((2, 0), bool))
  with pytest.raises(ValueError, match='last 5 frames of a window of 4'):
    window.last(5)


def test_a_model_is_static():
  assert small.model() == small.model() and hash(small.model()) == hash(small.model())
  assert small.model() != small.model(context=3)


def _one_pass(model, weights, query, x, logsnr, cells=(None, None)):
  """The network on context and generated frames at once, as bits of eps."""
  context = query.recent.last(model.context)
  join = lambda a, b: None if a is None else jnp.concatenate([a, b], axis=1)
  clean = jnp.full(context.valid.shape, model.schedule.logsnr_max)
  out = model.network.apply(
      {'params': weights}, join(model.codec.encode(context.frames), x), join(clean, logsnr),
      join(context.actions, query.actions), join(context.poses, query.poses),
      cells=join(*cells))
  return predictions.to_eps(model.prediction, x, out[:, model.context:], logsnr)


@pytest.mark.parametrize('kind', ['prefix', 'causal', 'full'])
@pytest.mark.parametrize('prediction', ['v', 'x0'])
def test_a_bound_network_is_the_network_on_the_whole_clip(kind, prediction):
  model = small.model(kind=kind, prediction=prediction)
  weights, query, noisy = small.params(model), small.query(2, 3), small.noisy(2, 3)
  both = jax.jit(lambda q, *n: (
      expert.bind(model, weights, q)(*n), _one_pass(model, weights, q, *n)))
  small.close(*both(query, *noisy), atol=2e-4)


def test_a_full_pattern_with_maps_and_adapters():
  mapped = small.spatial_model(kind='full').denoiser
  weights, query, noisy = small.params(mapped), small.query(2, 3), small.noisy(2, 3)
  past = jnp.ones((2, 2, small.TOKENS, 4))
  cells = 2.0 * jnp.ones((2, 3, small.TOKENS, 4))
  shapes = jax.eval_shape(lambda k: lora.init(k, weights, small.SPEC), jax.random.key(0))
  adapter = small.random_tree(shapes)
  adapters = lora.scaled(jax.tree.map(lambda x: jnp.stack([x, x]), adapter), small.SPEC)
  merged = lora.merge(weights, adapter, small.SPEC)

  @jax.jit
  def both(q, *n):
    bound = expert.bind(mapped, weights, q, lora=adapters, cells=cells, context_cells=past)
    return bound(*n), _one_pass(mapped, merged, q, *n, cells=(past, cells))

  small.close(*both(query, *noisy), atol=2e-4)


@pytest.mark.parametrize('kind', ['prefix', 'full'])
def test_null_is_a_window_in_which_nothing_is_valid(kind):
  model = small.model(kind=kind)
  weights, query, noisy = small.params(model), small.query(2), small.noisy(2, 2)
  unseen = dataclasses.replace(
      query, recent=dataclasses.replace(query.recent, valid=jnp.zeros((2, 2), bool)))
  run = jax.jit(lambda q, null: expert.bind(model, weights, q, null=null)(*noisy), static_argnums=1)
  small.close(run(unseen, False), run(query, True))
  small.differ(run(query, False), run(query, True))
  # Neither depends on what the nulled frames showed, only on their actions and poses.
  other = dataclasses.replace(query, recent=dataclasses.replace(
      query.recent, frames=255 - query.recent.frames))
  small.same(run(other, True), run(query, True))
  acted = dataclasses.replace(query, recent=dataclasses.replace(
      query.recent, actions=1 - query.recent.actions))
  small.differ(run(acted, True), run(query, True))


def test_frames_before_the_start_are_nulled_one_by_one():
  model = small.model()
  weights, query, noisy = small.params(model), small.query(2), small.noisy(2, 2)
  partly = jnp.array([[False, True], [True, True]])
  query = dataclasses.replace(query, recent=dataclasses.replace(query.recent, valid=partly))
  run = jax.jit(lambda q: expert.bind(model, weights, q)(*noisy))
  change = lambda frame: dataclasses.replace(query, recent=dataclasses.replace(
      query.recent, frames=query.recent.frames.at[0, frame].set(7)))
  small.same(run(change(0)), run(query))
  small.differ(run(change(1))[0], run(query)[0])


def test_an_episode_reads_the_same_in_any_batch():
  model = small.model()
  weights, query, (x, logsnr) = small.params(model), small.query(3), small.noisy(3, 2)
  run = jax.jit(lambda q, x, level: expert.bind(model, weights, q, null=True)(x, level))
  together = run(query, x, logsnr)
  for i in range(2):
    one = jax.tree.map(lambda leaf, i=i: leaf[i:i + 1], (query, x, logsnr))
    small.close(run(*one)[0], together[i])
  small.differ(together[0], together[1])


def test_each_episode_has_its_own_adapter():
  run = lambda adapter, x: x if adapter is None else x + adapter['b']
  x = jnp.zeros((2, 3))
  small.same(expert.per_episode(run, None)(x), x)
  got = expert.per_episode(run, {'b': jnp.array([1.0, 2.0])})(x)
  np.testing.assert_array_equal(got, [[1, 1, 1], [2, 2, 2]])


def test_a_window_shorter_than_the_context():
  model = small.model(context=3)
  with pytest.raises(ValueError, match='last 3 frames of a window of 2'):
    expert.bind(model, small.params(model), small.query(1))
