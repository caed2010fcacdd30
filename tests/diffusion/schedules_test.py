"""Tests of the log-SNR schedules."""

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmpoe.diffusion import schedules

SCHEDULES = {
    'cosine': schedules.CosineSchedule(),
    'shifted': schedules.CosineSchedule(shift=0.125),
    'narrow': schedules.CosineSchedule(shift=0.5, logsnr_min=-8.0, logsnr_max=6.0),
    'linear': schedules.LinearBetaSchedule(),
}
every_schedule = pytest.mark.parametrize('name', SCHEDULES)


@every_schedule
def test_decreases_within_its_range(name):
  schedule, t = SCHEDULES[name], np.linspace(0, 1, 1001)
  logsnr = np.asarray(schedule(t))
  assert logsnr.dtype == np.float32
  assert (np.diff(logsnr) <= 0).all()
  inside = (logsnr > schedule.logsnr_min) & (logsnr < schedule.logsnr_max)
  assert (np.diff(logsnr[inside]) < 0).all()
  assert inside.sum() > 900
  assert logsnr.min() >= schedule.logsnr_min
  assert logsnr.max() <= schedule.logsnr_max
  assert logsnr[0] > 4.0
  assert logsnr[-1] < -7.0


@pytest.mark.parametrize('shift', [0.125, 0.25, 0.5, 1.0])
def test_cosine_by_its_formula(shift):
  # In float64; the ends are where a float32 tangent would lose its digits.
  t = np.concatenate([np.linspace(0, 1, 101), [1e-3, 1 - 1e-3]])
  first, last = np.arctan(np.exp(-7.5)), np.arctan(np.exp(7.5))
  expected = np.clip(-2 * np.log(np.tan(first + t * (last - first))) + 2 * np.log(shift), -15, 15)
  np.testing.assert_allclose(schedules.CosineSchedule(shift=shift)(t), expected, atol=2e-3)


def test_cosine_by_hand():
  schedule = schedules.CosineSchedule(shift=0.5)
  np.testing.assert_allclose(schedule(0.5), 2 * np.log(0.5), atol=1e-5)  # tan(pi/4) = 1
  np.testing.assert_allclose(schedules.CosineSchedule()(0.0), 15.0, atol=1e-3)
  np.testing.assert_allclose(schedules.CosineSchedule()(1.0), -15.0, atol=1e-3)


def test_linear_beta_by_its_formula():
  t = np.linspace(0.01, 1, 50)
  alpha_squared = np.exp(-(0.1 * t + 0.5 * 19.9 * t**2))
  expected = np.log(alpha_squared / (1 - alpha_squared))
  np.testing.assert_allclose(schedules.LinearBetaSchedule()(t), expected, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(schedules.LinearBetaSchedule()(0.0), 15.0)  # clipped, not infinite


@every_schedule
def test_any_shape_jit_and_gradient(name):
  schedule, t = SCHEDULES[name], jnp.array([[0.1, 0.5], [0.9, 0.3]])
  np.testing.assert_allclose(jax.jit(schedule)(t), schedule(t), rtol=1e-5, atol=1e-5)
  assert schedule(t).shape == (2, 2)
  assert np.isfinite(jax.vmap(jax.grad(schedule))(jnp.array([0.0, 0.5, 1.0]))).all()
  assert hash(schedule) == hash(SCHEDULES[name])


@hypothesis.given(st.floats(-20, 20, width=32))
def test_variance_is_preserved(logsnr):
  alpha, sigma = (np.float64(s) for s in schedules.alpha_sigma(logsnr))
  np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=1e-6)
  np.testing.assert_allclose(2 * np.log(alpha / sigma), logsnr, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: schedules.CosineSchedule(shift=0.0), 'shift=0.0 must be positive'),
    (lambda: schedules.CosineSchedule(shift=-1.0), 'shift=-1.0 must be positive'),
    (lambda: schedules.CosineSchedule(logsnr_min=3.0, logsnr_max=-3.0),
     'logsnr_min=3.0 must lie below logsnr_max=-3.0'),
    (lambda: schedules.LinearBetaSchedule(logsnr_min=1.0, logsnr_max=1.0), 'must lie below'),
    (lambda: schedules.LinearBetaSchedule(beta_min=0.0), '0 < beta_min < beta_max, got 0.0, 20.0'),
    (lambda: schedules.LinearBetaSchedule(beta_min=3.0, beta_max=2.0), 'got 3.0, 2.0'),
])
def test_bad_arguments(make, message):
  with pytest.raises(ValueError, match=message):
    make()
