"""Tests of the analytic denoisers: against densities, gradients and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmpoe.diffusion import analytic
from wmpoe.diffusion import schedules

PARTS = {
    'means': np.float32([-2.0, 0.0, 2.0]),
    'stds': np.float32([0.2, 0.5, 0.3]),
    'weights': np.float32([3.0, 1.0, 2.0]),  # not normalised
}
X = np.random.default_rng(0).normal(size=(2, 3, 2, 2, 1)).astype(np.float32)
LOGSNR = np.float32([[-9.0, 0.0, 9.0], [-2.0, 1.0, 4.0]])

_logprob, _score = jax.jit(analytic.mixture_logprob), jax.jit(analytic.mixture_score)
_says = jax.jit(lambda denoiser, x, logsnr: denoiser(x, logsnr))


@pytest.mark.parametrize('logsnr', [-15.0, -1.0, 2.0, 15.0, np.inf])
def test_mixture_density_by_hand(logsnr):
  x = np.linspace(-7, 7, 28_001)
  alpha, sigma = np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(min(logsnr, 700))))
  density = 0.0
  for mean, std, weight in zip([-2, 0, 2], [0.2, 0.5, 0.3], [1 / 2, 1 / 6, 1 / 3], strict=True):
    variance = alpha**2 * std**2 + sigma**2
    density += weight * np.exp(-((x - alpha * mean) ** 2) / (2 * variance)) / np.sqrt(
        2 * np.pi * variance)
  ours = np.exp(np.asarray(_logprob(x[:, None], np.full((1,), logsnr), **PARTS)))
  np.testing.assert_allclose(ours[:, 0], density, rtol=2e-3, atol=1e-5)
  np.testing.assert_allclose(ours.sum() * (x[1] - x[0]), 1.0, rtol=1e-3)


def test_score_is_the_gradient_of_the_density():
  gradient = jax.jit(jax.grad(lambda x: _logprob(x, LOGSNR, **PARTS).sum()))(X)
  score = _score(X, LOGSNR, **PARTS)
  np.testing.assert_allclose(score, gradient, rtol=1e-3, atol=1e-3)


def test_eps_is_minus_sigma_score():
  _, sigma = map(np.asarray, schedules.alpha_sigma(LOGSNR))
  expected = -sigma[..., None, None, None] * np.asarray(_score(X, LOGSNR, **PARTS))
  np.testing.assert_allclose(
      _says(analytic.MixtureDenoiser(**PARTS), X, LOGSNR), expected, rtol=1e-5, atol=1e-6)


def test_eps_is_the_mean_of_the_noise_given_x_t():
  # What a denoiser is by definition, by brute force: average eps over draws that land near x_t.
  rng, level = np.random.default_rng(0), 0.5
  component = rng.choice(3, 400_000, p=[1 / 2, 1 / 6, 1 / 3])
  x0 = np.array([-2.0, 0, 2])[component] + np.array([0.2, 0.5, 0.3])[component] * (
      rng.standard_normal(400_000))
  eps = rng.standard_normal(400_000)
  alpha, sigma = (float(s) for s in schedules.alpha_sigma(level))
  x_t = alpha * x0 + sigma * eps
  at = np.array([-2.0, -0.6, 0.3, 1.5])
  brute = [eps[np.abs(x_t - a) < 0.03].mean() for a in at]
  ours = np.asarray(_says(
      analytic.MixtureDenoiser(**PARTS), at[None, :, None], np.full((1, 4), level)))
  np.testing.assert_allclose(ours[0, :, 0], brute, atol=0.05)


def test_gaussian_is_a_mixture_of_one_and_frames_without_covariance():
  gaussian, one, frames = (_says(denoiser, X, LOGSNR) for denoiser in (
      analytic.GaussianDenoiser(0.7, 0.5),
      analytic.MixtureDenoiser(np.array([0.7]), np.array([0.5]), np.array([1.0])),
      analytic.FrameGaussianDenoiser(np.full(3, 0.7), 0.25 * np.eye(3))))
  np.testing.assert_allclose(gaussian, one, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(gaussian, frames, rtol=1e-4, atol=1e-5)


def test_gaussian_by_hand():
  # logsnr 0: alpha = sigma = sqrt(1/2), so the variance is (4 + 1) / 2.
  eps = _says(analytic.GaussianDenoiser(1.0, 2.0), np.full((1, 1, 1), 3.0), np.zeros((1, 1)))
  np.testing.assert_allclose(eps, np.sqrt(0.5) * (3 - np.sqrt(0.5)) / 2.5, rtol=1e-5)


def test_a_clean_neighbour_informs_a_noisy_frame():
  # Frame 1 nearly pure noise, frame 0 clean: x_0 of frame 1 is its regression on frame 0.
  covariance = np.array([[1.0, 0.8], [0.8, 1.0]])
  denoiser = analytic.FrameGaussianDenoiser(np.zeros(2), covariance)
  x_t, logsnr = np.array([[[1.5], [0.3]]]), np.array([[15.0, -8.0]])
  alpha, sigma = map(np.asarray, schedules.alpha_sigma(logsnr))
  x0 = (x_t - sigma[..., None] * np.asarray(_says(denoiser, x_t, logsnr))) / alpha[..., None]
  np.testing.assert_allclose(x0[0, 1, 0], 0.8 * 1.5, atol=0.02)


def test_parameters_may_differ_over_the_trailing_axes():
  means = np.array([[[0.0], [1.0], [2.0]], [[5.0], [6.0], [7.0]]])  # [K T 1]
  x, level = np.random.default_rng(1).normal(size=(2, 3, 4)), np.zeros((2, 3))
  denoiser = analytic.MixtureDenoiser(means, np.array([0.5, 0.7]), np.array([1.0, 1.0]))
  together = np.asarray(_says(denoiser, x, level))
  for frame in range(3):
    alone = np.asarray(_says(denoiser.replace(means=means[:, frame, 0]), x, level))
    np.testing.assert_allclose(together[:, frame], alone[:, frame], rtol=1e-5)


def test_other_parameters_do_not_retrace():
  traces = []

  @jax.jit
  def call(denoiser):
    traces.append(1)
    return denoiser(X, LOGSNR)

  for shift in (0.0, 1.0):
    call(analytic.MixtureDenoiser(PARTS['means'] + shift, PARTS['stds'], PARTS['weights']))
  assert len(traces) == 1


@pytest.mark.parametrize('means', [jnp.float32(1.0), jnp.zeros((3, 1, 1, 1, 1, 1, 1))])
def test_misshapen_parameters(means):
  with pytest.raises(ValueError, match=r'expected \[K\] or \[K, ...\] with at most 5'):
    analytic.mixture_score(X, LOGSNR, **(PARTS | {'means': means}))
