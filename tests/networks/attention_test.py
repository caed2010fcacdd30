"""Tests of attention patterns and implementations."""

import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from wmpoe.networks import attention


def _random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(('kind', 'rows'), [
    ('full', ['1111', '1111', '1111', '1111']),
    ('prefix', ['1100', '1100', '1111', '1111']),
    ('causal', ['1000', '1100', '1110', '1111']),
])
def test_patterns_by_hand(kind, rows):
  allowed = attention.Pattern(kind=kind).allowed(4, 2, layer=0)
  np.testing.assert_array_equal(allowed, [[c == '1' for c in row] for row in rows])


def test_a_window_by_hand_and_the_layers_that_see_all():
  pattern = attention.Pattern(kind='prefix', window=2, full_every=3)
  narrow = [[c == '1' for c in row] for row in ['1100', '1100', '0111', '0011']]
  for layer in (0, 1, 3, 4):
    np.testing.assert_array_equal(pattern.allowed(4, 2, layer), narrow)
  whole = attention.Pattern(kind='prefix').allowed(4, 2, 0)
  for layer in (2, 5):
    np.testing.assert_array_equal(pattern.allowed(4, 2, layer), whole)


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    frames=st.integers(1, 9), context=st.integers(0, 9), layer=st.integers(0, 5),
    kind=st.sampled_from(attention.KINDS), window=st.none() | st.integers(1, 9),
    full_every=st.integers(0, 3))
def test_every_pattern_keeps_its_promise(frames, context, layer, kind, window, full_every):
  context = min(context, frames)
  pattern = attention.Pattern(kind=kind, window=window, full_every=full_every)
  allowed = pattern.allowed(frames, context, layer)
  assert allowed.shape == (frames, frames)
  assert allowed.diagonal().all(), 'a frame that sees nothing has no softmax'
  assert pattern.caches_context == (kind != 'full')
  if pattern.caches_context:  # exactly what makes the context's keys reusable
    assert not allowed[:context, context:].any()
  if window == frames:
    unlimited = attention.Pattern(kind=kind).allowed(frames, context, layer)
    np.testing.assert_array_equal(allowed, unlimited)


def test_token_masks():
  assert attention.token_mask(np.ones((2, 3), bool), 4) is None
  mask = attention.token_mask(np.array([[True, False], [True, True]]), 2)
  np.testing.assert_array_equal(mask, [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]])


@pytest.mark.parametrize('masked', [False, True])
def test_implementations_agree_with_the_formula(masked):
  query, key, value = _random(2, 4, 2, 6), _random(2, 5, 2, 6, seed=1), _random(2, 5, 2, 6, seed=2)
  mask = np.random.default_rng(3).random((4, 5)) < 0.5 if masked else None
  if masked:
    mask[:, 0] = True
  logits = np.einsum('blhd,bshd->bhls', query, key) / np.sqrt(6)
  if masked:
    logits = np.where(mask, logits, -np.inf)
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  expected = np.einsum('bhls,bshd->blhd', weights, value)
  for implementation in ('auto', 'head_major', 'dot_product_attention'):
    got = jax.jit(lambda *x, name=implementation: attention.attend(
        *x, mask, implementation=name))(query, key, value)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_keys_out_of_every_window_are_not_computed():
  query, key, value = _random(1, 3, 1, 4), _random(1, 9, 1, 4, seed=1), _random(1, 9, 1, 4, seed=2)
  mask = np.zeros((3, 9), bool)
  mask[:, 4:7] = True
  run = lambda k, v: attention.attend(query, k, v, mask, implementation='head_major')
  assert '1,3,9' not in str(jax.make_jaxpr(run)(key, value)), 'logits of keys nobody sees'
  alone = attention.attend(query, key[:, 4:7], value[:, 4:7], implementation='head_major')
  np.testing.assert_array_equal(run(key, value), alone)


def test_half_precision_keeps_its_dtype_and_a_float32_softmax():
  query, key, value = (
      jax.numpy.asarray(_random(1, 3, 1, 8, seed=s), 'bfloat16') for s in range(3))
  got = attention.attend(query, key, value, implementation='head_major')
  assert got.dtype == jax.numpy.bfloat16
  exact = attention.attend(
      *(x.astype('float32') for x in (query, key, value)), implementation='head_major')
  np.testing.assert_allclose(got.astype('float32'), exact, atol=0.02)


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: attention.Pattern(kind='ful'), r"Unknown attention kind 'ful'.*full, prefix, causal"),
    (lambda: attention.Pattern(window=0), r'window=0 must be at least 1 frame'),
    (lambda: attention.attend(*3 * [_random(1, 1, 1, 6)], implementation='fast'),
     r"'fast'; expected auto, head_major"),
])
def test_bad_arguments(make, message):
  with pytest.raises(ValueError, match=message):
    make()
