"""Tests of the noise levels per frame and of the null condition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmpoe.diffusion import noise_levels
from wmpoe.diffusion import schedules

KEY = jax.random.key(0)
SCHEDULE = schedules.CosineSchedule(shift=0.5, logsnr_min=-12.0, logsnr_max=9.0)


@pytest.mark.parametrize('power', [1.0, 0.5])
def test_shared_times(power):
  t = np.asarray(noise_levels.shared_times(KEY, 4000, 3, power=power))
  assert t.shape == (4000, 3)
  assert (t == t[:, :1]).all()
  assert t.min() >= 0
  assert t.max() < 1
  np.testing.assert_allclose(t.mean(), 1 / (1 + power), atol=0.02)  # E u^p = 1 / (1 + p)


@pytest.mark.parametrize('power', [1.0, 0.5])
def test_independent_times(power):
  t = np.asarray(noise_levels.independent_times(KEY, 4000, 3, power=power))
  assert t.shape == (4000, 3)
  np.testing.assert_allclose(t.mean(axis=0), 1 / (1 + power), atol=0.02)
  assert np.abs(np.corrcoef(t.T)[np.triu_indices(3, 1)]).max() < 0.05


def test_law_5_null_changes_what_it_should_and_nothing_else():
  context = jax.random.normal(jax.random.key(1), (3, 4, 2, 2, 3))
  keep = jnp.array([[1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 0]], bool)
  frames, logsnr = noise_levels.null_context(KEY, context, keep, SCHEDULE)
  np.testing.assert_array_equal(frames[keep], context[keep])
  assert (np.asarray(frames)[~keep] != np.asarray(context)[~keep]).all()
  np.testing.assert_array_equal(logsnr, np.where(keep, 9.0, -12.0))
  # The draw belongs to the key: reused, it is fixed, whatever the context and the mask are.
  other, _ = noise_levels.null_context(KEY, context + 1, jnp.zeros_like(keep), SCHEDULE)
  np.testing.assert_array_equal(other[~keep], frames[~keep])
  fresh, _ = noise_levels.null_context(jax.random.key(2), context, keep, SCHEDULE)
  assert (np.asarray(fresh)[~keep] != np.asarray(frames)[~keep]).all()


def test_null_is_standard_normal_and_float32():
  context = jnp.full((50, 4, 4, 4, 3), 200, jnp.uint8)
  frames, logsnr = noise_levels.null_context(
      KEY, context, jnp.zeros((50, 4), bool), SCHEDULE)
  assert frames.dtype == logsnr.dtype == jnp.float32
  np.testing.assert_allclose(frames.mean(), 0.0, atol=0.04)
  np.testing.assert_allclose(frames.std(), 1.0, atol=0.04)


def test_dropout_rates():
  valid = jnp.ones((20_000, 4), bool)
  keep = np.asarray(noise_levels.context_dropout(KEY, valid, null_rate=0.2, partial_rate=0.5))
  count = keep.sum(axis=1)
  # Partly kept contexts keep 0 to 4 frames, each as often, and always the last ones.
  expected = np.array([0.2 + 0.1, 0.1, 0.1, 0.1, 0.3 + 0.1])
  np.testing.assert_allclose(np.bincount(count, minlength=5) / 20_000, expected, atol=0.015)
  np.testing.assert_array_equal(keep, np.arange(4) >= 4 - count[:, None])


def test_dropout_off_always_and_invalid_frames():
  valid = jnp.tile(jnp.array([[False, True, True]]), (50, 1))
  drop = lambda **rates: np.asarray(noise_levels.context_dropout(KEY, valid, **rates))
  np.testing.assert_array_equal(drop(null_rate=0.0), valid)
  assert not drop(null_rate=1.0).any()
  partial = drop(null_rate=0.0, partial_rate=1.0)
  assert not partial[:, 0].any()
  assert 0 < partial[:, 1].sum() < partial[:, 2].sum() < 50


@pytest.mark.parametrize('rates', [
    {'null_rate': -0.1}, {'null_rate': 0.6, 'partial_rate': 0.6},
    {'null_rate': 0.1, 'partial_rate': -0.1}])
def test_bad_rates(rates):
  with pytest.raises(ValueError, match='must be probabilities that sum to at most 1'):
    noise_levels.context_dropout(KEY, jnp.ones((2, 3), bool), **rates)
