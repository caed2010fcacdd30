"""Tests of the denoising loss and its weightings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmpoe.diffusion import losses
from wmpoe.diffusion import predictions

X0 = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 1))
LOGSNR = jnp.array([[-3.0, 0.0, 3.0], [-1.0, 1.0, 5.0]])
KEY = jax.random.key(1)
EPS = jax.random.normal(KEY, X0.shape)


def _predict(kind, x0_hat):
  """A network of the given kind whose x_0 estimate is known."""
  def predict(x_t, logsnr):
    eps = predictions.eps_from_x0(x_t, x0_hat, logsnr)
    return {
        'eps': eps, 'x0': x0_hat, 'v': predictions.v_from_eps(x_t, eps, logsnr),
        'score': predictions.score_from_eps(x_t, eps, logsnr)}[kind]
  return predict


@pytest.mark.parametrize('kind', predictions.KINDS)
def test_a_perfect_network_has_no_loss(kind):
  loss = losses.denoising_loss(_predict(kind, X0), X0, LOGSNR, KEY, prediction=kind)
  np.testing.assert_allclose(loss, 0.0, atol=1e-6)


@pytest.mark.parametrize('kind', predictions.KINDS)
@pytest.mark.parametrize('weighting', losses.WEIGHTINGS)
def test_loss_is_the_weighted_eps_error(kind, weighting):
  x0_hat = X0 + jnp.array([[0.1, -0.2, 0.3], [0.2, 0.1, -0.1]])[..., None, None, None]
  x_t = predictions.diffuse(X0, EPS, LOGSNR)
  eps_hat = predictions.eps_from_x0(x_t, x0_hat, LOGSNR)
  error = np.mean(np.square(eps_hat - EPS), axis=(2, 3, 4))
  expected = np.mean(error * np.asarray(losses.weight(weighting, LOGSNR)))
  loss = losses.denoising_loss(
      _predict(kind, x0_hat), X0, LOGSNR, KEY, prediction=kind, weighting=weighting)
  np.testing.assert_allclose(loss, expected, rtol=2e-3)


def test_weights_by_hand():
  level = jnp.array([-2.0, 0.0, 3.0])
  snr = np.exp([-2.0, 0.0, 3.0])
  np.testing.assert_allclose(
      losses.weight('sigmoid', level), 1 / (1 + np.exp([-1.0, 1.0, 4.0])), rtol=1e-5)
  np.testing.assert_allclose(
      losses.weight('min_snr', level), np.minimum(snr, 5) / snr, rtol=1e-5)
  np.testing.assert_allclose(losses.weight('uniform', level), 1.0)
  np.testing.assert_allclose(  # |v error|^2 = |eps error|^2 / alpha^2 while sigma > the floor
      losses.weight('v', level), (1 + snr) / snr, rtol=1e-5)
  np.testing.assert_allclose(
      losses.v_weight(8.0, sigma_floor=0.1), np.exp(-8.0) / 0.01, rtol=1e-5)


@pytest.mark.parametrize('weighting', losses.WEIGHTINGS)
def test_loss_and_gradient_are_finite_at_both_ends(weighting):
  level = jnp.array([[-15.0, 15.0, 0.0], [15.0, -15.0, 0.0]])
  value, gradient = jax.value_and_grad(lambda scale: losses.denoising_loss(
      lambda x, _: scale * x, X0, level, KEY, weighting=weighting))(0.5)
  assert np.isfinite(value)
  assert np.isfinite(gradient)
  assert value > 0


def test_masked_frames_do_not_count():
  mask = jnp.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
  loss = lambda x0_hat, mask: losses.denoising_loss(
      _predict('x0', x0_hat), X0, LOGSNR, KEY, prediction='x0', mask=mask)
  off = X0 + 0.3
  wild_where_masked = jnp.where(mask[..., None, None, None] > 0, off, 1e3)
  np.testing.assert_allclose(loss(wild_where_masked, mask), loss(off, mask), rtol=1e-6)
  # The mean runs over the kept frames, by hand: 0.09 SNR w(logsnr).
  kept = np.array([-3.0, 3.0, 5.0])
  expected = np.mean(0.09 * np.exp(kept) / (1 + np.exp(1 + kept)))
  np.testing.assert_allclose(loss(off, mask), expected, rtol=1e-3)
  np.testing.assert_allclose(loss(off, jnp.ones((2, 3))), loss(off, None), rtol=1e-6)
  assert loss(off, jnp.zeros((2, 3))) == 0.0


def test_golden_value():
  # eps_hat = 0 at logsnr 0, where the weight is sigmoid(-1): the noise's mean square, times that.
  loss = losses.denoising_loss(
      lambda x, _: jnp.zeros_like(x), X0, jnp.zeros((2, 3)), KEY, prediction='eps')
  expected = np.mean(np.square(np.asarray(EPS, np.float64))) / (1 + np.e)
  np.testing.assert_allclose(loss, expected, rtol=1e-4)
  np.testing.assert_allclose(loss, 0.32967, rtol=1e-4)


def test_unknown_names():
  with pytest.raises(ValueError, match="Unknown weighting 'snr'; expected one of sigmoid, min_snr"):
    losses.weight('snr', LOGSNR)
  with pytest.raises(ValueError, match="Unknown prediction 'noise'"):
    losses.denoising_loss(lambda x, _: x, X0, LOGSNR, KEY, prediction='noise')
