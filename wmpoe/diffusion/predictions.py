"""Exact conversions between what a denoiser may predict: eps, x_0, v and the score.

With `x_t = alpha x_0 + sigma eps`:
  `x_0 = (x_t - sigma eps) / alpha`, `v = alpha eps - sigma x_0` (arXiv 2202.00512),
  `score = grad log p(x_t) = -eps / sigma`.
All functions take `x_t [B T H W C]` (any trailing shape) and `logsnr [B T]` or anything that
broadcasts against the leading axes of `x_t`, and compute in float32.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from wmpoe.diffusion import schedules


def expand(logsnr: chex.Array, x: chex.Array) -> jax.Array:
  """Appends unit axes to `logsnr [B T]` so that it broadcasts against `x [B T H W C]`."""
  logsnr = jnp.asarray(logsnr, jnp.float32)
  if logsnr.ndim > jnp.ndim(x):
    raise ValueError(
        f'logsnr of shape {logsnr.shape} has more axes than x of shape {jnp.shape(x)}; '
        'give one log-SNR per frame, [B T].')
  return logsnr.reshape(logsnr.shape + (1,) * (jnp.ndim(x) - logsnr.ndim))


def diffuse(x_0: chex.Array, eps: chex.Array, logsnr: chex.Array) -> jax.Array:
  """The forward process: `x_t = alpha x_0 + sigma eps`."""
  alpha, sigma = schedules.alpha_sigma(expand(logsnr, x_0))
  return alpha * x_0 + sigma * eps


def x0_from_eps(x_t: chex.Array, eps: chex.Array, logsnr: chex.Array) -> jax.Array:
  """`x_0 = (x_t - sigma eps) / alpha`."""
  alpha, sigma = schedules.alpha_sigma(expand(logsnr, x_t))
  return (x_t - sigma * eps) / alpha


def eps_from_x0(x_t: chex.Array, x_0: chex.Array, logsnr: chex.Array) -> jax.Array:
  """`eps = (x_t - alpha x_0) / sigma`."""
  alpha, sigma = schedules.alpha_sigma(expand(logsnr, x_t))
  return (x_t - alpha * x_0) / sigma


def v_from_eps(x_t: chex.Array, eps: chex.Array, logsnr: chex.Array) -> jax.Array:
  """`v = alpha eps - sigma x_0 = (eps - sigma x_t) / alpha`."""
  alpha, sigma = schedules.alpha_sigma(expand(logsnr, x_t))
  return (eps - sigma * x_t) / alpha


def eps_from_v(x_t: chex.Array, v: chex.Array, logsnr: chex.Array) -> jax.Array:
  """`eps = alpha v + sigma x_t`."""
  alpha, sigma = schedules.alpha_sigma(expand(logsnr, x_t))
  return alpha * v + sigma * x_t


def x0_from_v(x_t: chex.Array, v: chex.Array, logsnr: chex.Array) -> jax.Array:
  """`x_0 = alpha x_t - sigma v`."""
  alpha, sigma = schedules.alpha_sigma(expand(logsnr, x_t))
  return alpha * x_t - sigma * v


def v_from_x0(x_t: chex.Array, x_0: chex.Array, logsnr: chex.Array) -> jax.Array:
  """`v = (alpha x_t - x_0) / sigma`."""
  alpha, sigma = schedules.alpha_sigma(expand(logsnr, x_t))
  return (alpha * x_t - x_0) / sigma


def score_from_eps(x_t: chex.Array, eps: chex.Array, logsnr: chex.Array) -> jax.Array:
  """`grad log p(x_t) = -eps / sigma`."""
  _, sigma = schedules.alpha_sigma(expand(logsnr, x_t))
  return -eps / sigma


def eps_from_score(x_t: chex.Array, score: chex.Array, logsnr: chex.Array) -> jax.Array:
  """`eps = -sigma grad log p(x_t)`."""
  _, sigma = schedules.alpha_sigma(expand(logsnr, x_t))
  return -sigma * score


_TO_EPS: dict[str, Callable[..., jax.Array]] = {
    'eps': lambda x_t, prediction, logsnr: jnp.asarray(prediction, jnp.float32),
    'x0': eps_from_x0,
    'v': eps_from_v,
    'score': eps_from_score,
}
_TO_X0: dict[str, Callable[..., jax.Array]] = {
    'eps': x0_from_eps,
    'x0': lambda x_t, prediction, logsnr: jnp.asarray(prediction, jnp.float32),
    'v': x0_from_v,
    'score': lambda x_t, score, logsnr: x0_from_eps(
        x_t, eps_from_score(x_t, score, logsnr), logsnr),
}
KINDS = tuple(_TO_EPS)


def _check_kind(kind: str) -> None:
  if kind not in KINDS:
    raise ValueError(f'Unknown prediction {kind!r}; expected one of {", ".join(KINDS)}.')


def to_eps(kind: str, x_t: chex.Array, prediction: chex.Array, logsnr: chex.Array) -> jax.Array:
  """Converts a prediction of the given kind (eps, x0, v, score) to eps.

  Raises:
    ValueError: if `kind` is unknown.
  """
  _check_kind(kind)
  return _TO_EPS[kind](x_t, prediction, logsnr)


def to_x0(kind: str, x_t: chex.Array, prediction: chex.Array, logsnr: chex.Array) -> jax.Array:
  """Converts a prediction of the given kind (eps, x0, v, score) to x_0.

  Raises:
    ValueError: if `kind` is unknown.
  """
  _check_kind(kind)
  return _TO_X0[kind](x_t, prediction, logsnr)
