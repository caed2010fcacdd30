"""Denoisers of distributions whose diffusion is known in closed form.

Diffusing `x_0` to `x_t = alpha x_0 + sigma eps` takes a Gaussian `N(m, s^2)` to `N(alpha m,
alpha^2 s^2 + sigma^2)` and a mixture to the mixture of its diffused parts. Their scores give the
exact `eps = -sigma grad log p(x_t)`: a network with nothing left to learn. Tests of samplers and
the study of composition rules use them.

All are pytrees: other parameters never retrace. Shape key: `K` mixture components.
"""

import chex
import flax
import jax
import jax.numpy as jnp

from wmpoe.diffusion import predictions
from wmpoe.diffusion import schedules


@flax.struct.dataclass
class GaussianDenoiser:
  """Independent Gaussian elements: `eps = sigma (x_t - alpha m) / (alpha^2 s^2 + sigma^2)`.

  Attributes:
    mean: Broadcasts against `x_t [B T H W C]`.
    std: Likewise.
  """

  mean: chex.Array
  std: chex.Array

  def __call__(self, x_t: chex.Array, logsnr: chex.Array) -> jax.Array:
    """Exact eps of frames `x_t [B T H W C]` at levels `logsnr [B T]`."""
    alpha, sigma = schedules.alpha_sigma(predictions.expand(logsnr, x_t))
    variance = jnp.square(alpha * self.std) + jnp.square(sigma)
    return sigma * (x_t - alpha * self.mean) / variance


@flax.struct.dataclass
class FrameGaussianDenoiser:
  """Frames that know of each other: pixels are independent, a pixel's T values jointly Gaussian.

  `eps = sigma (A C A + S^2)^-1 (x_t - A m)` with `A = diag(alpha)`, `S = diag(sigma)` over
  frames. The smallest model in which a frame's level matters to its neighbours.

  Attributes:
    mean: [T].
    covariance: `C [T T]`, positive definite.
  """

  mean: chex.Array
  covariance: chex.Array

  def __call__(self, x_t: chex.Array, logsnr: chex.Array) -> jax.Array:
    """Exact eps of frames `x_t [B T H W C]` at levels `logsnr [B T]`."""
    alpha, sigma = schedules.alpha_sigma(jnp.broadcast_to(logsnr, x_t.shape[:2]))
    joint = alpha[:, :, None] * self.covariance * alpha[:, None, :]
    joint = joint + jnp.square(sigma)[:, :, None] * jnp.eye(x_t.shape[1])
    centred = x_t - predictions.expand(alpha * self.mean, x_t)
    flat = centred.reshape(x_t.shape[:2] + (-1,))
    return predictions.expand(sigma, x_t) * jnp.linalg.solve(joint, flat).reshape(x_t.shape)


def _component_terms(
    x_t: chex.Array,
    logsnr: chex.Array,
    means: chex.Array,
    stds: chex.Array,
    weights: chex.Array,
) -> tuple[jax.Array, jax.Array]:
  """Log of each weighted diffused part, and its score: two arrays [K, *x_t.shape]."""
  x_t = jnp.asarray(x_t, jnp.float32)
  means, stds, weights = (
      _component_axis(jnp.asarray(a, jnp.float32), x_t) for a in (means, stds, weights))
  alpha, sigma = schedules.alpha_sigma(predictions.expand(logsnr, x_t))
  variance = jnp.square(alpha * stds) + jnp.square(sigma)
  centred = x_t - alpha * means
  log_weights = jnp.log(weights / jnp.sum(weights, axis=0))
  log_terms = log_weights - 0.5 * (
      jnp.square(centred) / variance + jnp.log(2.0 * jnp.pi * variance))
  return log_terms, -centred / variance


def _component_axis(parameter: jax.Array, x: jax.Array) -> jax.Array:
  """Puts unit axes between the component axis and the rest, to meet `x` from the right."""
  missing = x.ndim + 1 - parameter.ndim
  if parameter.ndim < 1 or missing < 0:
    raise ValueError(
        f'A mixture parameter has shape {parameter.shape}; expected [K] or [K, ...] with at most '
        f'{x.ndim} further axes, to broadcast against x of shape {x.shape}.')
  return parameter.reshape(parameter.shape[:1] + (1,) * missing + parameter.shape[1:])


def mixture_logprob(
    x_t: chex.Array,
    logsnr: chex.Array,
    *,
    means: chex.Array,
    stds: chex.Array,
    weights: chex.Array,
) -> jax.Array:
  """Log-density of each element of `x_t` under the diffused mixture.

  `log sum_k w_k N(x_t; alpha m_k, alpha^2 s_k^2 + sigma^2)`. Elements are independent: sum over
  the axes of an episode for its joint log-density.

  Args:
    x_t: Frames [B T H W C].
    logsnr: Levels [B T]; `inf` gives the clean mixture.
    means: `m` [K], or [K, ...] to differ over the trailing axes of `x_t`.
    stds: `s`, likewise.
    weights: `w`, likewise; normalised over K here.

  Returns:
    [B T H W C], float32.

  Raises:
    ValueError: if a parameter has no component axis or too many axes.
  """
  log_terms, _ = _component_terms(x_t, logsnr, means, stds, weights)
  return jax.nn.logsumexp(log_terms, axis=0)


def mixture_score(
    x_t: chex.Array,
    logsnr: chex.Array,
    *,
    means: chex.Array,
    stds: chex.Array,
    weights: chex.Array,
) -> jax.Array:
  """Gradient of `mixture_logprob` in `x_t`: the parts' scores, weighted by responsibility.

  Args and errors as `mixture_logprob`; returns [B T H W C], float32.
  """
  log_terms, scores = _component_terms(x_t, logsnr, means, stds, weights)
  return jnp.sum(jax.nn.softmax(log_terms, axis=0) * scores, axis=0)


@flax.struct.dataclass
class MixtureDenoiser:
  """Independent elements, each from a Gaussian mixture: `eps = -sigma mixture_score`.

  Attributes:
    means: [K] or [K, ...], see `mixture_logprob`.
    stds: Likewise.
    weights: Likewise; need not be normalised.
  """

  means: chex.Array
  stds: chex.Array
  weights: chex.Array

  def __call__(self, x_t: chex.Array, logsnr: chex.Array) -> jax.Array:
    """Exact eps of frames `x_t [B T H W C]` at levels `logsnr [B T]`."""
    score = mixture_score(
        x_t, logsnr, means=self.means, stds=self.stds, weights=self.weights)
    return predictions.eps_from_score(x_t, score, logsnr)
