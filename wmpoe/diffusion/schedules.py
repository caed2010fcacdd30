"""Log-SNR schedules of the variance-preserving diffusion process.

The process is `x_t = alpha x_0 + sigma eps` with `alpha^2 = sigmoid(logsnr)` and
`sigma^2 = sigmoid(-logsnr)`. A schedule maps diffusion time `t` in [0, 1] (0 is clean, 1 is
noise) to the log signal-to-noise ratio; everything else is a function of the log-SNR alone.
"""

import dataclasses
import math
from typing import Protocol

import chex
import jax
import jax.numpy as jnp


class Schedule(Protocol):
  """Maps diffusion time to log-SNR; decreasing, so that t = 0 is clean and t = 1 is noise."""

  logsnr_min: float
  logsnr_max: float

  def __call__(self, t: chex.Array) -> jax.Array:
    """Log-SNR at times `t` in [0, 1], any shape."""


def alpha_sigma(logsnr: chex.Array) -> tuple[jax.Array, jax.Array]:
  """Signal and noise scales `(alpha, sigma)` of a log-SNR; `alpha^2 + sigma^2 = 1`."""
  logsnr = jnp.asarray(logsnr, jnp.float32)
  return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))


def _check_range(logsnr_min: float, logsnr_max: float) -> None:
  if not logsnr_min < logsnr_max:
    raise ValueError(
        f'logsnr_min={logsnr_min} must lie below logsnr_max={logsnr_max}: '
        't = 0 is clean (high log-SNR), t = 1 is noise.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineSchedule:
  """Shifted cosine schedule.

  `logsnr(t) = -2 ln tan(t0 + t (t1 - t0)) + 2 ln shift`, with `t0`, `t1` chosen so that the
  unshifted schedule runs from `logsnr_max` to `logsnr_min` (arXiv 2301.11093, section 2.1). A
  shift below one is noisier; the paper uses 0.125 everywhere. The range is kept under the shift:
  `logsnr(0) = logsnr_max` and `logsnr(1) = logsnr_min` up to `2 ln shift`, clipped to the range.

  Raises:
    ValueError: if the range is empty or the shift is not positive.
  """

  shift: float = 1.0
  logsnr_min: float = -15.0
  logsnr_max: float = 15.0

  def __post_init__(self):
    _check_range(self.logsnr_min, self.logsnr_max)
    if not self.shift > 0:
      raise ValueError(f'shift={self.shift} must be positive (1 is the plain cosine schedule).')

  def __call__(self, t: chex.Array) -> jax.Array:
    """Log-SNR at diffusion times in [0, 1]."""
    t0 = math.atan(math.exp(-0.5 * self.logsnr_max))
    t1 = math.atan(math.exp(-0.5 * self.logsnr_min))
    angle = t0 + jnp.asarray(t, jnp.float32) * (t1 - t0)
    # The tangent of an angle near pi/2 loses all digits in float32; the cotangent of its
    # complement does not, and both are needed: t near 0 and t near 1 are the end points.
    logsnr = -2.0 * (jnp.log(jnp.sin(angle)) - jnp.log(jnp.sin(0.5 * math.pi - angle)))
    return jnp.clip(
        logsnr + 2.0 * math.log(self.shift), min=self.logsnr_min, max=self.logsnr_max)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearBetaSchedule:
  """Continuous-time limit of the linear beta schedule of DDPM (arXiv 2006.11239, 2011.13456).

  `alpha(t)^2 = exp(-beta_min t - (beta_max - beta_min) t^2 / 2)`, clipped to the log-SNR range.

  Raises:
    ValueError: if the range is empty or the betas are not increasing and positive.
  """

  beta_min: float = 0.1
  beta_max: float = 20.0
  logsnr_min: float = -15.0
  logsnr_max: float = 15.0

  def __post_init__(self):
    _check_range(self.logsnr_min, self.logsnr_max)
    if not 0 < self.beta_min < self.beta_max:
      raise ValueError(
          f'betas must satisfy 0 < beta_min < beta_max, got {self.beta_min}, {self.beta_max}.')

  def __call__(self, t: chex.Array) -> jax.Array:
    """Log-SNR at diffusion times in [0, 1]."""
    t = jnp.asarray(t, jnp.float32)
    integral = self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * jnp.square(t)
    # logsnr = log(alpha^2 / (1 - alpha^2)), alpha^2 = exp(-integral); expm1 keeps small t exact.
    tiny = jnp.finfo(jnp.float32).tiny
    logsnr = -integral - jnp.log(jnp.maximum(-jnp.expm1(-integral), tiny))
    return jnp.clip(logsnr, min=self.logsnr_min, max=self.logsnr_max)
