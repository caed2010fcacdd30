"""Tests of the correctors: chains that must leave a known density where it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmpoe.diffusion import analytic
from wmpoe.diffusion import correctors
from wmpoe.diffusion import samplers
from wmpoe.diffusion import schedules

MEAN, STD = 0.7, 0.5
GAUSSIAN = analytic.GaussianDenoiser(MEAN, STD)


def _diffused(logsnr):
  """Mean, standard deviation and sigma of the diffused Gaussian."""
  alpha, sigma = (float(s) for s in schedules.alpha_sigma(logsnr))
  return alpha * MEAN, np.sqrt(alpha**2 * STD**2 + sigma**2), sigma


def _run(corrector, x, logsnr, denoiser=GAUSSIAN, active=None, seed=0):
  run = jax.jit(lambda x, key: corrector(x, denoiser, logsnr, key, active=active))
  return np.asarray(run(x, jax.random.key(seed)))


CHAINS = {
    'langevin': correctors.Langevin(steps=40, step_size=0.1),
    'hmc': correctors.HMC(steps=10, leapfrog=3, step_size=0.4),
    'hmc_kept': correctors.HMC(steps=10, leapfrog=3, step_size=0.4, refresh=0.5),
    'hmc_adjusted': correctors.HMC(steps=10, leapfrog=3, step_size=0.4, adjust=True),
    'hmc_adjusted_kept': correctors.HMC(
        steps=10, leapfrog=3, step_size=0.4, refresh=0.5, adjust=True),
}


@pytest.mark.parametrize('name', CHAINS)
def test_the_diffused_gaussian_stays(name):
  # Frames at three levels at once; one element an episode, so that acceptance is per element.
  logsnr = jnp.tile(jnp.array([[-4.0], [0.0], [3.0]]), (6000, 1))
  stats = [_diffused(level) for level in (-4.0, 0.0, 3.0)]
  mean, std, _ = (np.array(s) for s in zip(*stats, strict=True))
  start = mean + std * np.random.default_rng(0).standard_normal((6000, 3))
  x = _run(CHAINS[name], start.reshape(-1, 1, 1).astype(np.float32), logsnr).reshape(6000, 3)
  np.testing.assert_allclose((x.mean(axis=0) - mean) / std, 0, atol=0.05)
  np.testing.assert_allclose(x.std(axis=0), std, rtol=0.06)
  assert (np.abs(np.corrcoef(x.T - start.T, start.T)[:3, 3:].diagonal()) > 0.3).all()  # it moved


@pytest.mark.parametrize(('corrector', 'bias'), [
    (correctors.Langevin(steps=60, step_size=0.4), lambda ratio: 1 / (1 - 0.4 * ratio / 2)),
    (correctors.HMC(steps=12, leapfrog=2, step_size=1.0), lambda ratio: 1 / (1 - ratio / 4)),
    (correctors.HMC(steps=20, leapfrog=2, step_size=1.0, adjust=True), lambda ratio: 1.0),
    (correctors.HMC(steps=40, leapfrog=2, step_size=1.9, refresh=0.5, adjust=True),
     lambda ratio: 1.0),
])
def test_the_bias_is_the_stated_one(corrector, bias):
  # From far off (everything at zero), each chain must find its own stationary spread.
  mean, std, sigma = _diffused(0.0)
  x = _run(corrector, jnp.zeros((12_000, 1, 1)), jnp.zeros((12_000, 1)))
  np.testing.assert_allclose(x.mean(), mean, atol=0.03)
  np.testing.assert_allclose(x.var() / std**2, bias(sigma**2 / std**2), rtol=0.04)


def test_adjustment_rejects_what_does_not_follow_the_energy():
  # At a step near the stability limit some trajectories of a 30-element episode must be refused.
  mean, std, _ = _diffused(0.0)
  start = mean + std * jax.random.normal(jax.random.key(1), (300, 1, 30))
  big = {'steps': 1, 'leapfrog': 3, 'step_size': 1.9}
  stayed = lambda **kwargs: (
      _run(correctors.HMC(**big, **kwargs), start, jnp.zeros((300, 1))) == start).all(axis=(1, 2))
  assert not stayed().any()
  assert 0.05 < stayed(adjust=True).mean() < 0.99


def test_a_mixture_is_kept_by_adjusted_hmc():
  mixture = analytic.MixtureDenoiser(
      jnp.array([-2.0, 2.0]), jnp.array([0.2, 0.4]), jnp.array([0.3, 0.7]))
  rng, level = np.random.default_rng(0), 2.0
  alpha, sigma = (float(s) for s in schedules.alpha_sigma(level))
  first = rng.random(8000) < 0.3
  x0 = np.where(first, -2.0, 2.0) + np.where(first, 0.2, 0.4) * rng.standard_normal(8000)
  start = (alpha * x0 + sigma * rng.standard_normal(8000)).astype(np.float32)
  x = _run(
      correctors.HMC(steps=6, leapfrog=3, step_size=0.3, adjust=True), start[:, None, None],
      jnp.full((8000, 1), level), denoiser=mixture).ravel()
  for sign in (-1, 1):
    np.testing.assert_allclose((np.sign(x) == sign).mean(), (np.sign(start) == sign).mean(),
                               atol=0.02)
    np.testing.assert_allclose(
        x[np.sign(x) == sign].std(), start[np.sign(start) == sign].std(), rtol=0.05)


@pytest.mark.parametrize('name', CHAINS)
def test_inactive_frames_keep_every_bit(name):
  x = jax.random.normal(jax.random.key(0), (2, 3, 4))
  active = np.array([[True, False, True], [False, False, True]])
  moved = _run(CHAINS[name], x, jnp.zeros((2, 3)), active=active)
  np.testing.assert_array_equal(moved[~active], x[~active])
  if 'adjusted' not in name:
    assert (moved[active] != np.asarray(x)[active]).all()


@pytest.mark.parametrize('corrector', [correctors.Langevin(steps=2), correctors.HMC(adjust=True)])
def test_sampling_with_a_corrector_keeps_the_moments(corrector):
  draw = jax.jit(lambda key: samplers.sample(
      GAUSSIAN, samplers.DDIM(), key, (4000, 2), 25, schedule=schedules.CosineSchedule(),
      grid='pyramid', corrector=corrector))
  x = draw(jax.random.key(0))
  np.testing.assert_allclose(x.mean(), MEAN, atol=0.03)
  np.testing.assert_allclose(x.std(), STD, rtol=0.06)


def test_a_corrector_repairs_a_coarse_sampler():
  # Six ancestral steps lose much of the spread; the chain restores what a level should have.
  def spread(corrector):
    draw = jax.jit(lambda key: samplers.sample(
        GAUSSIAN, samplers.DDPM(), key, (4000, 1), 6, schedule=schedules.CosineSchedule(),
        corrector=corrector))
    return float(draw(jax.random.key(0)).std())

  assert spread(None) < 0.9 * STD
  assert abs(spread(correctors.HMC(steps=4)) - STD) < 0.8 * abs(spread(None) - STD)


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: correctors.Langevin(steps=0), 'steps=0 must be at least 1'),
    (lambda: correctors.Langevin(step_size=0.0), 'step_size=0.0 must be positive'),
    (lambda: correctors.HMC(steps=-1), 'steps=-1 must be at least 1'),
    (lambda: correctors.HMC(leapfrog=0), 'leapfrog=0 must be at least 1'),
    (lambda: correctors.HMC(refresh=0.0), r'refresh=0.0 must lie in \(0, 1\]'),
    (lambda: correctors.HMC(refresh=1.5), r'refresh=1.5 must lie in \(0, 1\]'),
])
def test_bad_arguments(make, message):
  with pytest.raises(ValueError, match=message):
    make()
