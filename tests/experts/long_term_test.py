"""Tests of the long-term memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import small
from wmpoe.experts import long_term
from wmpoe.experts import objective
from wmpoe.experts import writing
from wmpoe.networks import lora

MEMORY = small.experts().long_term
KEYS = jax.random.split(jax.random.key(3), 2)

_append = jax.jit(MEMORY.append)
_fit = jax.jit(MEMORY.fit, static_argnames='steps')


@pytest.fixture(scope='module')
def written():
  """The same two episodes, written in four steps at once."""
  state = _append(small.init(MEMORY, 2), small.observation(2, 5))
  return _fit(state, KEYS, steps=4)


def test_every_leaf_has_an_episode_axis():
  for leaf in jax.tree.leaves(small.init(MEMORY, 3)):
    assert leaf.shape[0] == 3


def test_fit_in_pieces_is_fit_at_once(written):
  state = _append(small.init(MEMORY, 2), small.observation(2, 5))
  for _ in range(2):
    state = _fit(state, KEYS, steps=2)
  small.close(state.lora, written.lora, atol=1e-6)
  small.close(state.opt_state, written.opt_state, atol=1e-6)
  np.testing.assert_array_equal(state.step, [4, 4])


def test_write_is_append_and_fit(written):
  once = jax.jit(MEMORY.write)(small.init(MEMORY, 2), small.observation(2, 5), KEYS)
  again = _fit(_append(small.init(MEMORY, 2), small.observation(2, 5)), KEYS, steps=2)
  small.close(once, again, atol=1e-6)
  small.differ(once.lora['block_0']['query']['b'], written.lora['block_0']['query']['b'])
  # One key stands for one per episode.
  single = jax.random.key(3)
  small.same(jax.jit(MEMORY.write)(small.init(MEMORY, 2), small.observation(2, 5), single), once)


def test_each_episode_has_its_own_weights(written):
  for name in lora.TARGETS:
    b = written.lora['block_1'][name]['b']
    assert np.any(b[0]) and np.any(b[1])
    small.differ(b[0], b[1])


def test_the_oldest_frames_are_forgotten():
  state = small.init(MEMORY, 1)
  whole = small.observation(1, 12)
  for at in (0, 4, 8):
    state = _append(state, jax.tree.map(lambda x, a=at: x[:, a:a + 4], whole))
  assert int(state.history.length[0]) == small.WRITING.capacity == 8
  small.same(state.history.frames, whole.frames[:, 4:])
  with pytest.raises(ValueError, match='Cannot write 9 frames at once.*capacity 8'):
    MEMORY.write(small.init(MEMORY, 1), small.observation(1, 9), KEYS[:1])


def _read(memory, state, query):
  x, logsnr = small.noisy(2, 2)

  def estimates(state, query):
    query = dataclasses.replace(query, base=small.experts().base.read(query))
    contrast = memory.read(state, query)
    negative = query.base if contrast.negative is None else contrast.negative
    return contrast.positive(x, logsnr), negative(x, logsnr), contrast.empty

  return jax.jit(estimates)(state, query)


def test_both_readings_agree_and_differ_from_the_base(written):
  positive, negative, empty = _read(MEMORY, written, small.query(2))
  merged, _, _ = _read(dataclasses.replace(MEMORY, reading='merged'), written, small.query(2))
  small.close(merged, positive, atol=2e-4)
  small.differ(positive, negative)
  np.testing.assert_array_equal(empty, [False, False])


def test_before_anything_is_written_it_is_the_base():
  positive, negative, empty = _read(MEMORY, small.init(MEMORY, 2), small.query(2))
  small.close(positive, negative, atol=1e-5)
  np.testing.assert_array_equal(empty, [True, True])


def test_the_null_baseline_sees_no_context(written):
  memory = dataclasses.replace(MEMORY, baseline='null')
  query = small.query(2)
  other = dataclasses.replace(query, recent=dataclasses.replace(
      query.recent, frames=255 - query.recent.frames))
  first, second = _read(memory, written, query), _read(memory, written, other)
  small.same(first[1], second[1])
  small.differ(first[0], second[0])


def test_writing_lowers_the_loss_of_what_was_written():
  model, weights = small.experts().base.model, small.experts().base.params
  memory = long_term.create(
      jax.random.key(0), model, weights, spec=lora.LoraSpec(rank=4), optimizer=optax.adam(0.02),
      writing=writing.Writing(
          steps=60, target=2, capacity=4, objective=objective.Objective(weighting='v')),
      **small.DIMS)
  seen = jax.tree.map(lambda x: x.at[:, 1:].set(x[:, :1]), small.observation(1, 4))
  empty = memory.append(small.init(memory, 1), seen)
  written = jax.jit(memory.fit)(empty, KEYS[:1])

  @jax.jit
  def loss(state):
    """Of the last two frames, over the same 64 draws of level and noise."""
    history, adapter = jax.tree.map(lambda x: x[0], (state.history, state.lora))
    clip = writing.sub_clips(history, jnp.array([2]), context=model.context, target=2)
    draws = jax.random.split(jax.random.key(9), 64)
    return jnp.mean(jax.vmap(lambda key: objective.clip_loss(
        model, weights, clip, key, memory.writing.objective,
        lora=lora.scaled(adapter, memory.spec)))(draws))

  assert loss(written) < 0.85 * loss(empty), (loss(written), loss(empty))


def test_a_given_start():
  model, weights = small.experts().base.model, small.experts().base.params
  start = lora.init(jax.random.key(8), weights, small.SPEC)
  memory = long_term.create(
      jax.random.key(0), model, weights, lora_init=start, spec=small.SPEC, **small.DIMS)
  small.same(jax.tree.map(lambda x: x[1], small.init(memory, 2).lora), start)


def test_its_own_baseline_is_the_network_without_the_adapter():
  memory = dataclasses.replace(small.experts().long_term, baseline='own')
  state = small.init(memory, 2)
  written = dataclasses.replace(
      state, lora=jax.tree.map(lambda x: x + 0.1, state.lora), step=state.step + 1)

  @jax.jit
  def estimates(state):
    query, noisy = small.query(2), small.noisy(2, 2)
    contrast = memory.read(state, query)
    return contrast.positive(*noisy), contrast.negative(*noisy), small.experts().base.read(
        query)(*noisy)

  positive, negative, plain = estimates(written)
  small.close(negative, plain)
  small.differ(positive, negative)


@pytest.mark.parametrize(('options', 'message'), [
    ({'baseline': 'nothing'}, "baseline 'nothing'; expected one of base, null"),
    ({'reading': 'fast'}, "reading 'fast'; expected one of low_rank, merged"),
    ({'spec': lora.LoraSpec(targets=('qkv',))}, r"\['qkv'\] name no dense layer"),
])
def test_bad_arguments(options, message):
  experts = small.experts()
  with pytest.raises(ValueError, match=message):
    long_term.create(
        jax.random.key(0), experts.base.model, experts.base.params, **options, **small.DIMS)
