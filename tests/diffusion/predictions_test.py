"""Tests of the conversions between eps, x_0, v and the score."""

import hypothesis
from hypothesis import strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from wmpoe.diffusion import predictions

P = predictions


@st.composite
def _noised(draw, low=-6.0, high=6.0):
  """Clean frames, noise and levels: [B T ...], [B T ...], [B T]."""
  # A few shapes, [B T] to [B T H W C]: a new one compiles every conversion.
  lead, trail = draw(st.sampled_from([((1, 2), ()), ((3, 1), (2,)), ((2, 3), (2, 3, 1))]))
  rng = np.random.default_rng(draw(st.integers(0, 2**16)))
  logsnr = rng.uniform(low, high, lead)
  return rng.standard_normal(lead + trail), rng.standard_normal(lead + trail), logsnr


def _close(ours, expected):
  np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3)


@hypothesis.settings(max_examples=20)
@hypothesis.given(_noised())
def test_every_quantity_by_its_definition_in_float64(noised):
  x_0, eps, logsnr = noised
  level = logsnr.reshape(logsnr.shape + (1,) * (x_0.ndim - 2))
  alpha, sigma = np.sqrt(1 / (1 + np.exp(-level))), np.sqrt(1 / (1 + np.exp(level)))
  x_t, v, score = alpha * x_0 + sigma * eps, alpha * eps - sigma * x_0, -eps / sigma
  np.testing.assert_allclose(P.diffuse(x_0, eps, logsnr), x_t, rtol=1e-4, atol=1e-5)
  for kind, value in (('eps', eps), ('x0', x_0), ('v', v), ('score', score)):
    _close(P.to_eps(kind, x_t, value, logsnr), eps)
    _close(P.to_x0(kind, x_t, value, logsnr), x_0)
  _close(P.v_from_eps(x_t, eps, logsnr), v)
  _close(P.v_from_x0(x_t, x_0, logsnr), v)
  _close(P.score_from_eps(x_t, eps, logsnr), score)
  _close(P.eps_from_score(x_t, score, logsnr), eps)


@hypothesis.settings(max_examples=20)
@hypothesis.given(_noised())
def test_round_trips(noised):
  x_t, other, logsnr = noised
  for there, back in (
      (P.x0_from_eps, P.eps_from_x0), (P.v_from_eps, P.eps_from_v), (P.v_from_x0, P.x0_from_v),
      (P.score_from_eps, P.eps_from_score)):
    _close(back(x_t, there(x_t, other, logsnr), logsnr), other)
    _close(there(x_t, back(x_t, other, logsnr), logsnr), other)


@pytest.mark.parametrize('logsnr', [-15.0, 15.0])
def test_nothing_overflows_at_the_ends(logsnr):
  x, level = jnp.linspace(-3.0, 3.0, 8).reshape(1, 2, 4), jnp.full((1, 2), logsnr)
  for kind in P.KINDS:
    assert np.isfinite(P.to_eps(kind, x, x, level)).all()
    assert np.isfinite(P.to_x0(kind, x, x, level)).all()
  # v is the parametrisation that needs no division at either end.
  alpha, sigma = np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))
  np.testing.assert_allclose(P.x0_from_v(x, x, level), (alpha - sigma) * np.asarray(x), rtol=1e-5)
  np.testing.assert_allclose(P.eps_from_v(x, x, level), (alpha + sigma) * np.asarray(x), rtol=1e-5)


def test_expand():
  assert P.expand(jnp.zeros((2, 3)), jnp.zeros((2, 3, 4, 5, 6))).shape == (2, 3, 1, 1, 1)
  assert P.expand(jnp.zeros((2, 3)), jnp.zeros((2, 3))).shape == (2, 3)
  with pytest.raises(ValueError, match=r'\(2, 3\) has more axes than x of shape \(2,\)'):
    P.expand(jnp.zeros((2, 3)), jnp.zeros(2))


@pytest.mark.parametrize('convert', [P.to_eps, P.to_x0])
def test_unknown_kind(convert):
  with pytest.raises(ValueError, match="Unknown prediction 'noise'; expected one of eps, x0, v"):
    convert('noise', jnp.zeros((1, 1)), jnp.zeros((1, 1)), jnp.zeros((1, 1)))
