"""Samplers: pure `(init, step)` pairs and the one scan that runs them.

A sampler moves every frame from its own log-SNR to the next one. With `h = (logsnr_next -
logsnr) / 2`, the step in `log(alpha / sigma)`, the deterministic samplers here are all

  `x' = (sigma' / sigma) x + alpha' (1 - e^-h) D`,

the exact solution of the probability-flow ODE for a constant x_0 estimate `D` (arXiv 2211.01095,
eq. 9). They differ in `D`: DDIM takes the present estimate, Heun corrects it with a second one,
DPM-Solver++(2M) extrapolates from the previous one. Nothing divides by alpha' or sigma'.

Shape key: `B` episodes, `T` frames, `H W C` pixels or latents, `S` steps.
"""

from collections.abc import Callable
import dataclasses
from typing import Protocol, TypeVar

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np

from wmpoe.diffusion import correctors
from wmpoe.diffusion import predictions
from wmpoe.diffusion import schedules
from wmpoe.diffusion import time_grids

# Defined next door; named here too, as words of the samplers' interface.
full_sequence = time_grids.full_sequence
pyramid = time_grids.pyramid

# (x_t [B T H W C], logsnr [B T]) -> eps [B T H W C]
Denoiser = Callable[[jax.Array, jax.Array], jax.Array]


@flax.struct.dataclass
class State:
  """What a sampler carries from step to step.

  Attributes:
    x: Frames at their present levels [B T H W C].
    x0: The estimate `D` that each frame's last step moved towards [B T H W C].
    half_step: Length `h` of each frame's last step [B T]; 0 before its first.
  """

  x: jax.Array
  x0: jax.Array
  half_step: jax.Array


@flax.struct.dataclass
class MultistepState(State):
  """A state with history.

  Attributes:
    estimate: The denoiser's own estimate at each frame's last step [B T H W C].
  """

  estimate: jax.Array


StateT = TypeVar('StateT', bound=State)


class Sampler(Protocol):
  """The contract: two pure functions on a pytree that has at least `x` and `x0`."""

  def init(self, x: jax.Array) -> State:
    """State of frames `x [B T H W C]` that have not been stepped yet."""

  def step(
      self,
      state: State,
      denoiser: Denoiser,
      logsnr: jax.Array,
      logsnr_next: jax.Array,
      key: chex.PRNGKey,
  ) -> State:
    """Moves each frame from `logsnr` to `logsnr_next` ([B T] or [T]); equal levels: untouched."""


def _check_clip(clip_x0: float | None) -> None:
  if clip_x0 is not None and not clip_x0 > 0:
    raise ValueError(f'clip_x0={clip_x0} must be positive, or None for no clipping.')


def _estimate(
    denoiser: Denoiser, x: jax.Array, logsnr: jax.Array, clip_x0: float | None) -> jax.Array:
  """The x_0 estimate at `x`, clipped to `[-clip_x0, clip_x0]` if asked."""
  eps = jnp.asarray(denoiser(x, logsnr), jnp.float32)
  x0 = predictions.x0_from_eps(x, eps, logsnr)
  return x0 if clip_x0 is None else jnp.clip(x0, min=-clip_x0, max=clip_x0)


def _levels(x: jax.Array, logsnr: chex.Array) -> jax.Array:
  """Broadcasts `[T]` or `[B T]` levels to `[B T]`."""
  logsnr = jnp.asarray(logsnr, jnp.float32)
  frames = tuple(x.shape[:2])
  wanted = frames[2 - logsnr.ndim:]
  if logsnr.ndim > 2 or any(
      have not in (1, want) for have, want in zip(logsnr.shape, wanted, strict=True)):
    raise ValueError(
        f'logsnr has shape {logsnr.shape}; expected {frames} = [B T] or {frames[1:]} = [T] for '
        f'frames of shape {x.shape}. Give one log-SNR per frame.')
  return jnp.broadcast_to(logsnr, frames)


def _move(
    x: jax.Array, x0: jax.Array, logsnr: jax.Array, logsnr_next: jax.Array) -> jax.Array:
  """The deterministic step towards a constant x_0 estimate (formula in the module docstring)."""
  logsnr, logsnr_next = predictions.expand(logsnr, x), predictions.expand(logsnr_next, x)
  _, sigma = schedules.alpha_sigma(logsnr)
  alpha_next, sigma_next = schedules.alpha_sigma(logsnr_next)
  return sigma_next / sigma * x - alpha_next * jnp.expm1(-0.5 * (logsnr_next - logsnr)) * x0


def _advance(
    state: StateT, x: jax.Array, x0: jax.Array, logsnr: jax.Array, logsnr_next: jax.Array
) -> StateT:
  """The next state; frames whose level stays keep every bit of the old one."""
  half_step = 0.5 * (logsnr_next - logsnr)
  active = half_step != 0
  mask = predictions.expand(active, x) != 0
  return dataclasses.replace(
      state,
      x=jnp.where(mask, x, state.x),
      x0=jnp.where(mask, x0, state.x0),
      half_step=jnp.where(active, half_step, state.half_step))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Base:
  """What the samplers share: the clip and the initial state.

  Attributes:
    clip_x0: Clips x_0 estimates to `[-clip_x0, clip_x0]` before they are used; None: no clip.

  Raises:
    ValueError: if `clip_x0` is not positive.
  """

  clip_x0: float | None = None

  def __post_init__(self):
    _check_clip(self.clip_x0)

  def init(self, x: jax.Array) -> State:
    """State of frames `x [B T H W C]` that have not been stepped yet."""
    x = jnp.asarray(x, jnp.float32)
    return State(x=x, x0=x, half_step=jnp.zeros(x.shape[:2], jnp.float32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM(_Base):
  """Denoising diffusion implicit models (arXiv 2010.02502, eq. 12).

  `x' = alpha' x_0 + sqrt(sigma'^2 - tau^2) eps + tau z` with the stochasticity
  `tau^2 = eta^2 sigma'^2 (1 - e^-2h)`.

  Attributes:
    eta: 0 is deterministic, 1 is the ancestral sampler.
    clip_x0: Clips x_0 estimates to `[-clip_x0, clip_x0]` before they are used; None: no clip.

  Raises:
    ValueError: if `eta` lies outside [0, 1] or `clip_x0` is not positive.
  """

  eta: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.eta <= 1:
      raise ValueError(f'eta={self.eta} must lie in [0, 1] (0 deterministic, 1 ancestral).')

  def step(
      self,
      state: State,
      denoiser: Denoiser,
      logsnr: jax.Array,
      logsnr_next: jax.Array,
      key: chex.PRNGKey,
  ) -> State:
    """See `Sampler.step`."""
    logsnr, logsnr_next = _levels(state.x, logsnr), _levels(state.x, logsnr_next)
    x0 = _estimate(denoiser, state.x, logsnr, self.clip_x0)
    if self.eta == 0:
      x = _move(state.x, x0, logsnr, logsnr_next)
    else:
      start, end = predictions.expand(logsnr, x0), predictions.expand(logsnr_next, x0)
      _, sigma = schedules.alpha_sigma(start)
      alpha_next, sigma_next = schedules.alpha_sigma(end)
      fresh = -(self.eta**2) * jnp.expm1(start - end)  # tau^2 / sigma'^2
      kept = jnp.sqrt(1.0 - fresh)
      x = (kept * sigma_next / sigma * state.x
           + alpha_next * (1.0 - kept * jnp.exp(0.5 * (start - end))) * x0
           + sigma_next * jnp.sqrt(fresh) * jax.random.normal(key, x0.shape, x0.dtype))
    return _advance(state, x, x0, logsnr, logsnr_next)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPM(_Base):
  """Ancestral sampling (arXiv 2006.11239, eq. 7): a draw from `q(x' | x, x_0 estimate)`.

  `x' ~ N((sigma'/sigma) e^-h x + alpha' (1 - e^-2h) x_0, sigma'^2 (1 - e^-2h))`. The same law as
  `DDIM(eta=1)`.

  Attributes:
    clip_x0: Clips x_0 estimates to `[-clip_x0, clip_x0]` before they are used; None: no clip.

  Raises:
    ValueError: if `clip_x0` is not positive.
  """

  def step(
      self,
      state: State,
      denoiser: Denoiser,
      logsnr: jax.Array,
      logsnr_next: jax.Array,
      key: chex.PRNGKey,
  ) -> State:
    """See `Sampler.step`."""
    logsnr, logsnr_next = _levels(state.x, logsnr), _levels(state.x, logsnr_next)
    x0 = _estimate(denoiser, state.x, logsnr, self.clip_x0)
    start, end = predictions.expand(logsnr, x0), predictions.expand(logsnr_next, x0)
    _, sigma = schedules.alpha_sigma(start)
    alpha_next, sigma_next = schedules.alpha_sigma(end)
    fresh = -jnp.expm1(start - end)
    mean = (sigma_next / sigma * jnp.exp(0.5 * (start - end)) * state.x
            + alpha_next * fresh * x0)
    x = mean + sigma_next * jnp.sqrt(fresh) * jax.random.normal(key, x0.shape, x0.dtype)
    return _advance(state, x, x0, logsnr, logsnr_next)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heun(_Base):
  """Heun's second-order method, two denoiser calls a step, exact in the linear part of the ODE.

  A DDIM step predicts `x'`; the estimate there, `x_0'`, corrects it:
  `x' += alpha' (1 - (1 - e^-h) / h) (x_0' - x_0)` (exponential Heun, ETD2RK of Cox and Matthews
  2002, in the data-prediction form of arXiv 2211.01095). Heun's rule in `sigma` (arXiv
  2206.00364) averages two eps instead, which multiplies an error of the second x_0 estimate by
  `sigma / (2 sigma')`, unbounded on the last step, and so falls back to Euler there. Here that
  error enters with a weight below one at any step length, and no step is special.

  Attributes:
    clip_x0: Clips x_0 estimates to `[-clip_x0, clip_x0]` before they are used; None: no clip.

  Raises:
    ValueError: if `clip_x0` is not positive.
  """

  def step(
      self,
      state: State,
      denoiser: Denoiser,
      logsnr: jax.Array,
      logsnr_next: jax.Array,
      key: chex.PRNGKey,
  ) -> State:
    """See `Sampler.step`; the key is not used."""
    del key
    logsnr, logsnr_next = _levels(state.x, logsnr), _levels(state.x, logsnr_next)
    x0 = _estimate(denoiser, state.x, logsnr, self.clip_x0)
    # The second call sees all frames at their next levels; resting frames rest here too.
    guess = _advance(state, _move(state.x, x0, logsnr, logsnr_next), x0, logsnr, logsnr_next)
    x0_next = _estimate(denoiser, guess.x, logsnr_next, self.clip_x0)
    h = 0.5 * predictions.expand(logsnr_next - logsnr, x0)
    h = jnp.where(h == 0, 1.0, h)  # resting frames: any number but 0, the result is discarded
    reach = -jnp.expm1(-h)
    x0 = x0 + (1.0 - reach / h) / reach * (x0_next - x0)
    return _advance(state, _move(state.x, x0, logsnr, logsnr_next), x0, logsnr, logsnr_next)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolver2M(_Base):
  """DPM-Solver++(2M): second order at one denoiser call a step (arXiv 2211.01095, algorithm 2).

  `D = x_0 + (h / (2 h_prev)) (x_0 - x_0_prev)`. A frame's first step has no previous estimate and
  is a DDIM step. So is a step more than `max_growth` times as long as the one before, in
  log-SNR: the last one of a cosine grid is six times as long, and extrapolating across it would
  multiply the difference of two estimates, mostly their error, by three.

  Attributes:
    max_growth: Longest step, in units of the previous one, over which to extrapolate.
    clip_x0: Clips x_0 estimates, extrapolated ones too, to `[-clip_x0, clip_x0]`; None: no clip.

  Raises:
    ValueError: if `max_growth` or `clip_x0` is not positive.
  """

  max_growth: float = 3.0

  def __post_init__(self):
    super().__post_init__()
    if not self.max_growth > 0:
      raise ValueError(f'max_growth={self.max_growth} must be positive.')

  def init(self, x: jax.Array) -> MultistepState:
    """State of frames `x [B T H W C]` that have not been stepped yet."""
    state = super().init(x)
    return MultistepState(
        x=state.x, x0=state.x0, half_step=state.half_step, estimate=state.x0)

  def step(
      self,
      state: MultistepState,
      denoiser: Denoiser,
      logsnr: jax.Array,
      logsnr_next: jax.Array,
      key: chex.PRNGKey,
  ) -> MultistepState:
    """See `Sampler.step`; the key is not used."""
    del key
    logsnr, logsnr_next = _levels(state.x, logsnr), _levels(state.x, logsnr_next)
    x0 = _estimate(denoiser, state.x, logsnr, self.clip_x0)
    h, previous = 0.5 * (logsnr_next - logsnr), state.half_step
    growth = h / jnp.where(previous == 0, 1.0, previous)
    growth = jnp.where((previous == 0) | (growth > self.max_growth), 0.0, growth)
    target = x0 + 0.5 * predictions.expand(growth, x0) * (x0 - state.estimate)
    if self.clip_x0 is not None:
      target = jnp.clip(target, min=-self.clip_x0, max=self.clip_x0)
    active = predictions.expand(h != 0, x0) != 0
    state = dataclasses.replace(state, estimate=jnp.where(active, x0, state.estimate))
    return _advance(
        state, _move(state.x, target, logsnr, logsnr_next), target, logsnr, logsnr_next)


def sample(
    denoiser: Denoiser,
    sampler: Sampler,
    key: chex.PRNGKey,
    shape: tuple[int, ...],
    num_steps: int,
    *,
    schedule: schedules.Schedule,
    grid: str | np.ndarray = 'full',
    corrector: correctors.Corrector | None = None,
    initial: chex.Array | None = None,
) -> jax.Array:
  """Draws frames by one scan over the time grid; step `k` uses `fold_in(key, k)`.

  What comes back for a frame that reaches t = 0 is the x_0 estimate its last step moved towards,
  not `x` at `logsnr_max`. Both cost the same; they differ by the noise still in `x`, of scale
  sigma(logsnr_max). At logsnr 15 that is 6e-4 and invisible, but a shift of 0.125 ends at 10.8,
  where it is 4e-3: one grey level, and a quarter of the tile-MSE threshold of Memory Cards. For
  the same reason the corrector, which would add it back, is not applied to a frame at t = 0. A
  frame that stops above t = 0 is returned as the `x` of that level; one that never moves, as it
  came.

  Args:
    denoiser: `(x_t [B T H W C], logsnr [B T]) -> eps`.
    sampler: DDIM, DDPM, Heun, DPMSolver2M or any other `Sampler`.
    key: Random key; the same key gives the same frames.
    shape: `(B, T, H, W, C)`; trailing axes are free.
    num_steps: Steps of each frame (of the whole array, if `grid` is one).
    schedule: Maps times to log-SNRs.
    grid: 'full', 'pyramid' (delay 1), or times [S+1 T] that never increase (static numpy).
    corrector: Applied after each step to the frames that moved.
    initial: Frames at the grid's first levels; default: a standard normal draw.

  Returns:
    Frames [B T H W C], float32.

  Raises:
    ValueError: if the shape has no frame axis, the grid is unknown, misshapen or increasing, or
      `initial` has another shape.
  """
  shape = tuple(shape)
  if len(shape) < 2:
    raise ValueError(f'shape={shape} must be (B, T, ...): episodes, frames, then pixels.')
  times = time_grids.resolve(grid, num_steps, shape[1])
  key_initial, key_steps = jax.random.split(key)
  if initial is None:
    initial = jax.random.normal(key_initial, shape)
  elif tuple(initial.shape) != shape:
    raise ValueError(f'initial has shape {tuple(initial.shape)}; expected shape={shape}.')

  def body(state, inputs):
    step, logsnr, logsnr_next, correct = inputs
    key_step, key_correct = jax.random.split(jax.random.fold_in(key_steps, step))
    state = sampler.step(state, denoiser, logsnr, logsnr_next, key_step)
    if corrector is not None:
      active = jnp.broadcast_to(correct, shape[:2])
      level = jnp.broadcast_to(logsnr_next, shape[:2])
      state = state.replace(x=corrector(state.x, denoiser, level, key_correct, active=active))
    return state, None

  logsnr = schedule(times)
  correct = (np.diff(times, axis=0) != 0) & (times[1:] > 0)
  state, _ = jax.lax.scan(
      body, sampler.init(initial), (np.arange(len(times) - 1), logsnr[:-1], logsnr[1:], correct))
  arrived = (times[-1] == 0) & (times[0] > 0)
  return jnp.where(predictions.expand(arrived, state.x[0]) != 0, state.x0, state.x)
