"""Correctors: Markov chains at a fixed noise level, run after a sampler's step.

A composed score is not the score of any diffused density (arXiv 2302.11552), so a sampler that
only follows it drifts; a few steps of a chain whose target is the density at the present level
pull it back. Both chains here measure distance in units of sigma: with `u = x / sigma` the score
is `-eps`, of order one at every level, so one step size serves the whole schedule.

Unadjusted chains have a bias that vanishes with the step size; for a Gaussian it is known
exactly and stated below. A level whose density is narrower than sigma does not exist, so step
sizes below one are stable for any true score. (A composed score may be steeper.)
"""

from collections.abc import Callable
import dataclasses
from typing import Protocol

import chex
import jax
import jax.numpy as jnp

from wmpoe.diffusion import predictions
from wmpoe.diffusion import schedules

Denoiser = Callable[[jax.Array, jax.Array], jax.Array]


class Corrector(Protocol):
  """The contract: a pure function that leaves the density at `logsnr` (about) invariant."""

  def __call__(
      self,
      x: jax.Array,
      denoiser: Denoiser,
      logsnr: jax.Array,
      key: chex.PRNGKey,
      *,
      active: jax.Array | None = None,
  ) -> jax.Array:
    """Moves frames `x [B T H W C]` at levels `logsnr [B T]`, where `active [B T]` (None: all)."""


def _check(steps: int, step_size: float) -> None:
  if steps < 1:
    raise ValueError(f'steps={steps} must be at least 1; for no corrector pass corrector=None.')
  if not step_size > 0:
    raise ValueError(f'step_size={step_size} must be positive.')


def _mask(x: jax.Array, active: jax.Array | None) -> jax.Array:
  """1 where a frame may move, 0 elsewhere, with trailing unit axes."""
  if active is None:
    active = jnp.ones(x.shape[:2], bool)
  return predictions.expand(active, x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Langevin:
  """Unadjusted Langevin dynamics (arXiv 2011.13456, algorithm 4, without its norm ratio).

  `x <- x - d sigma eps + sqrt(2 d) sigma z`, that is `x + s score + sqrt(2 s) z` with
  `s = d sigma^2`. On a Gaussian of variance V the chain's own variance is
  `V / (1 - d sigma^2 / (2 V))`: too wide by at most `d / 2`, as V is at least sigma^2.

  Attributes:
    steps: Chain steps; one denoiser call each.
    step_size: `d`, dimensionless; stable below 2.

  Raises:
    ValueError: if `steps` is below one or `step_size` not positive.
  """

  steps: int = 1
  step_size: float = 0.05

  def __post_init__(self):
    _check(self.steps, self.step_size)

  def __call__(
      self,
      x: jax.Array,
      denoiser: Denoiser,
      logsnr: jax.Array,
      key: chex.PRNGKey,
      *,
      active: jax.Array | None = None,
  ) -> jax.Array:
    """See `Corrector`."""
    _, sigma = schedules.alpha_sigma(predictions.expand(logsnr, x))
    sigma = sigma * _mask(x, active)

    def body(x, step):
      eps = jnp.asarray(denoiser(x, logsnr), jnp.float32)
      noise = jax.random.normal(jax.random.fold_in(key, step), x.shape, x.dtype)
      return x + sigma * (jnp.sqrt(2.0 * self.step_size) * noise - self.step_size * eps), None

    return jax.lax.scan(body, x, jnp.arange(self.steps))[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HMC:
  """Hamiltonian Monte Carlo with partial momentum refreshment, as in arXiv 2302.11552.

  One trajectory: refresh `p <- sqrt(1 - r^2) p + r z`, then `leapfrog` times
  `p <- p - (d/2) eps(x)`, `x <- x + d sigma p`, `p <- p - (d/2) eps(x)`. Momentum starts as a
  standard normal draw. Unadjusted, a Gaussian of variance V ends with `V / (1 - d^2 sigma^2 /
  (4 V))`: second order in d, where Langevin's bias is first.

  With `adjust`, each episode's trajectory is accepted or rejected as a whole (Metropolis). A
  denoiser gives no density, so its log-ratio is the work of the score along the trajectory by
  the trapezoidal rule. For leapfrog steps the sum of work and kinetic energy telescopes to
  `d^2/8 (|eps_end|^2 - |eps_start|^2)`: no further call. Exact for Gaussians, third order in d
  otherwise. Acceptance falls with the number of pixels, as one decision covers an episode.

  Attributes:
    steps: Trajectories.
    leapfrog: Leapfrog steps of each; `leapfrog + 1` denoiser calls a trajectory.
    step_size: `d`, dimensionless; stable below 2.
    refresh: `r` in (0, 1]; 1 draws a new momentum for each trajectory.
    adjust: Whether to accept or reject.

  Raises:
    ValueError: if a count is below one, the step size not positive or `refresh` out of range.
  """

  steps: int = 1
  leapfrog: int = 3
  step_size: float = 0.2
  refresh: float = 1.0
  adjust: bool = False

  def __post_init__(self):
    _check(self.steps, self.step_size)
    if self.leapfrog < 1:
      raise ValueError(f'leapfrog={self.leapfrog} must be at least 1.')
    if not 0 < self.refresh <= 1:
      raise ValueError(f'refresh={self.refresh} must lie in (0, 1]; 1 is a new momentum each time.')

  def __call__(
      self,
      x: jax.Array,
      denoiser: Denoiser,
      logsnr: jax.Array,
      key: chex.PRNGKey,
      *,
      active: jax.Array | None = None,
  ) -> jax.Array:
    """See `Corrector`."""
    mask = _mask(x, active)
    _, sigma = schedules.alpha_sigma(predictions.expand(logsnr, x))
    d, keep = self.step_size, (1.0 - self.refresh**2) ** 0.5

    def force(x):
      return -jnp.asarray(denoiser(x, logsnr), jnp.float32) * mask

    def leap(carry, _):
      x, p, f = carry
      p = p + 0.5 * d * f
      x = x + d * sigma * p * mask
      f = force(x)
      return (x, p + 0.5 * d * f, f), None

    def trajectory(carry, step):
      x, p = carry
      key_refresh, key_accept = jax.random.split(jax.random.fold_in(key, step))
      p = keep * p + self.refresh * jax.random.normal(key_refresh, x.shape, x.dtype)
      start = force(x)
      (x_new, p_new, end), _ = jax.lax.scan(leap, (x, p, start), None, length=self.leapfrog)
      if not self.adjust:
        return (x_new, p_new), None
      excess = jnp.sum(jnp.square(end) - jnp.square(start), axis=tuple(range(1, x.ndim)))
      uniform = jax.random.uniform(key_accept, x.shape[:1])
      accept = predictions.expand(jnp.log(uniform) < -0.125 * d * d * excess, x) != 0
      # A rejected trajectory turns round, which keeps the chain's target with a kept momentum.
      return (jnp.where(accept, x_new, x), jnp.where(accept, p_new, -p)), None

    momentum = jax.random.normal(jax.random.fold_in(key, self.steps), x.shape, x.dtype)
    return jax.lax.scan(trajectory, (x, momentum), jnp.arange(self.steps))[0][0]
