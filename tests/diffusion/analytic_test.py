"""Tests of the analytic denoisers: against densities, gradients and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmpoe.diffusion import analytic
from wmpoe.diffusion import schedules

PARTS = {
    'means': jnp.array([-2.0, 0.0, 2.0]),
    'stds': jnp.array([0.2, 0.5, 0.3]),
    'weights': jnp.array([3.0, 1.0, 2.0]),  # not normalised
}
X = jax.random.normal(jax.random.key(0), (2, 3, 2, 2, 1))
LOGSNR = jnp.array([[-9.0, 0.0, 9.0], [-2.0, 1.0, 4.0]])


@pytest.mark.parametrize('logsnr', [-15.0, -1.0, 2.0, 15.0, np.inf])
def test_mixture_density_by_hand(logsnr):
  x = np.linspace(-7, 7, 28_001)
  alpha, sigma = np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(min(logsnr, 700))))
  density = 0.0
  for mean, std, weight in zip([-2, 0, 2], [0.2, 0.5, 0.3], [1 / 2, 1 / 6, 1 / 3], strict=True):
    variance = alpha**2 * std**2 + sigma**2
    density += weight * np.exp(-((x - alpha * mean) ** 2) / (2 * variance)) / np.sqrt(
        2 * np.pi * variance)
  ours = np.exp(np.asarray(analytic.mixture_logprob(x[:, None], jnp.full((1,), logsnr), **PARTS)))
  np.testing.assert_allclose(ours[:, 0], density, rtol=2e-3, atol=1e-5)
  np.testing.assert_allclose(ours.sum() * (x[1] - x[0]), 1.0, rtol=1e-3)


def test_score_is_the_gradient_of_the_density():
  gradient = jax.grad(lambda x: analytic.mixture_logprob(x, LOGSNR, **PARTS).sum())(X)
  score = analytic.mixture_score(X, LOGSNR, **PARTS)
  np.testing.assert_allclose(score, gradient, rtol=1e-3, atol=1e-3)


def test_eps_is_minus_sigma_score():
  _, sigma = schedules.alpha_sigma(LOGSNR)
  expected = -sigma[..., None, None, None] * analytic.mixture_score(X, LOGSNR, **PARTS)
  np.testing.assert_allclose(
      analytic.MixtureDenoiser(**PARTS)(X, LOGSNR), expected, rtol=1e-5, atol=1e-6)


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
  ours = analytic.MixtureDenoiser(**PARTS)(jnp.array(at)[None, :, None], jnp.full((1, 4), level))
  np.testing.assert_allclose(ours[0, :, 0], brute, atol=0.05)


def test_gaussian_is_a_mixture_of_one_and_frames_without_covariance():
  gaussian = analytic.GaussianDenoiser(0.7, 0.5)(X, LOGSNR)
  one = analytic.MixtureDenoiser(jnp.array([0.7]), jnp.array([0.5]), jnp.array([1.0]))(X, LOGSNR)
  frames = analytic.FrameGaussianDenoiser(jnp.full(3, 0.7), 0.25 * jnp.eye(3))(X, LOGSNR)
  np.testing.assert_allclose(gaussian, one, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(gaussian, frames, rtol=1e-4, atol=1e-5)


def test_gaussian_by_hand():
  # logsnr 0: alpha = sigma = sqrt(1/2), so the variance is (4 + 1) / 2.
  eps = analytic.GaussianDenoiser(1.0, 2.0)(jnp.full((1, 1, 1), 3.0), jnp.zeros((1, 1)))
  np.testing.assert_allclose(eps, np.sqrt(0.5) * (3 - np.sqrt(0.5)) / 2.5, rtol=1e-5)


def test_a_clean_neighbour_informs_a_noisy_frame():
  # Frame 1 nearly pure noise, frame 0 clean: x_0 of frame 1 is its regression on frame 0.
  covariance = jnp.array([[1.0, 0.8], [0.8, 1.0]])
  denoiser = analytic.FrameGaussianDenoiser(jnp.zeros(2), covariance)
  x_t, logsnr = jnp.array([[[1.5], [0.3]]]), jnp.array([[15.0, -8.0]])
  alpha, sigma = schedules.alpha_sigma(logsnr)
  x0 = (x_t - sigma[..., None] * denoiser(x_t, logsnr)) / alpha[..., None]
  np.testing.assert_allclose(x0[0, 1, 0], 0.8 * 1.5, atol=0.02)


def test_parameters_may_differ_over_the_trailing_axes():
  means = jnp.stack([jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[5.0], [6.0], [7.0]])])  # [K T 1]
  x, level = jax.random.normal(jax.random.key(1), (2, 3, 4)), jnp.zeros((2, 3))
  denoiser = analytic.MixtureDenoiser(means, jnp.array([0.5, 0.7]), jnp.array([1.0, 1.0]))
  together = denoiser(x, level)
  for frame in range(3):
    alone = denoiser.replace(means=means[:, frame, 0])(x, level)
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
