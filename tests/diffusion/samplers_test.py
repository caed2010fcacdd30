"""Tests of the samplers, mostly against distributions whose flow is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmpoe.diffusion import analytic
from wmpoe.diffusion import correctors
from wmpoe.diffusion import predictions
from wmpoe.diffusion import samplers
from wmpoe.diffusion import schedules

SCHEDULE = schedules.CosineSchedule()
ALL = {
    'ddim': samplers.DDIM(),
    'ddim_half': samplers.DDIM(eta=0.5),
    'ddpm': samplers.DDPM(),
    'heun': samplers.Heun(),
    'dpm': samplers.DPMSolver2M(),
}
DETERMINISTIC = ('ddim', 'heun', 'dpm')
MODES, MASSES = np.array([-2.0, 0.0, 2.0]), np.array([0.6, 0.3, 0.1])

every_sampler = pytest.mark.parametrize('name', ['ddim', 'ddpm', 'heun', 'dpm'])


def _frames(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def _sample(denoiser, sampler, shape, num_steps, *, seed=0, schedule=SCHEDULE, **kwargs):
  """`samplers.sample`, jitted: on a CPU one program compiles faster than its parts."""
  draw = jax.jit(lambda key: samplers.sample(
      denoiser, sampler, key, shape, num_steps, schedule=schedule, **kwargs))
  return np.asarray(draw(jax.random.key(seed)))


def _step(sampler, state, denoiser, logsnr, logsnr_next, seed=0):
  """`sampler.step`, jitted."""
  step = jax.jit(lambda *args: sampler.step(args[0], denoiser, *args[1:]))
  return step(state, jnp.asarray(logsnr), jnp.asarray(logsnr_next), jax.random.key(seed))


def _scales(logsnr):
  return np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))


def _point(x0):
  """A denoiser that is certain of x_0."""
  return lambda x, logsnr: predictions.eps_from_x0(x, x0, logsnr)


@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('grid', ['full', 'pyramid'])
def test_law_9_moments_of_gaussian_and_mixture(name, grid):
  # Frame 0 is a Gaussian, written as a mixture of equal parts; frame 1 the mixture.
  denoiser = analytic.MixtureDenoiser(
      means=jnp.stack([jnp.full(3, 0.7), jnp.array(MODES)], axis=1),
      stds=jnp.stack([jnp.full(3, 0.5), jnp.full(3, 0.2)], axis=1),
      weights=jnp.array(MASSES)[:, None])
  x = _sample(denoiser, ALL[name], (4000, 2), 50, grid=grid)
  # Stochastic samplers of first order lose a few percent of the spread in 50 steps.
  tolerance = 0.04 if name in DETERMINISTIC else 0.14
  np.testing.assert_allclose(x[:, 0].mean(), 0.7, atol=0.03)
  np.testing.assert_allclose(x[:, 0].std(), 0.5, rtol=tolerance)
  mode = np.abs(x[:, 1, None] - MODES).argmin(axis=1)
  np.testing.assert_allclose(np.bincount(mode, minlength=3) / len(x), MASSES, atol=0.03)
  for k, centre in enumerate(MODES):
    inside = x[mode == k, 1]
    np.testing.assert_allclose(inside.mean(), centre, atol=0.06)
    np.testing.assert_allclose(inside.std(), 0.2, rtol=tolerance + 0.06)


@pytest.mark.parametrize('delay', [0, 5])
def test_frames_that_depend_on_each_other_keep_their_correlation(delay):
  # Along a pyramid the second frame is denoised at levels that the first has long left.
  covariance = 0.25 * jnp.array([[1.0, 0.8], [0.8, 1.0]])
  denoiser = analytic.FrameGaussianDenoiser(mean=jnp.array([1.0, -1.0]), covariance=covariance)
  grid = samplers.pyramid(30, 2, delay=delay)
  x = _sample(denoiser, samplers.Heun(), (4000, 2), len(grid) - 1, grid=grid)
  np.testing.assert_allclose(x.mean(axis=0), [1, -1], atol=0.03)
  np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.015)


@pytest.mark.parametrize(('start', 'end'), [(-15.0, -3.0), (-2.0, 1.0), (4.0, 15.0)])
def test_one_ddim_step_is_its_closed_form(start, end):
  mean, std = 0.7, 0.5
  x = _frames(2, 3, 2, 2, 1)
  state = _step(
      samplers.DDIM(), samplers.DDIM().init(x), analytic.GaussianDenoiser(mean, std),
      jnp.full((2, 3), start), jnp.full((2, 3), end))
  (alpha, sigma), (alpha_next, sigma_next) = _scales(start), _scales(end)
  variance = alpha**2 * std**2 + sigma**2
  x0 = mean + alpha * std**2 / variance * (np.asarray(x) - alpha * mean)
  eps = sigma / variance * (np.asarray(x) - alpha * mean)
  np.testing.assert_allclose(state.x0, x0, rtol=1e-4, atol=2e-3 if start == -15 else 1e-5)
  np.testing.assert_allclose(
      state.x, alpha_next * x0 + sigma_next * eps, rtol=1e-4, atol=1e-3 if start == -15 else 1e-5)


def _flow_error(name, steps):
  """Error at the end of the probability-flow ODE of a Gaussian, which has a closed form."""
  mean, std, levels = 0.7, 0.5, jnp.linspace(-4.0, 5.0, steps + 1)
  denoiser, sampler = analytic.GaussianDenoiser(mean, std), ALL[name]
  x = jnp.linspace(-2.0, 2.0, 8).reshape(1, 1, 8)

  @jax.jit
  def solve(x):
    body = lambda state, pair: (
        sampler.step(state, denoiser, pair[0], pair[1], jax.random.key(0)), None)
    pairs = jnp.stack([levels[:-1], levels[1:]], axis=1)[..., None]
    return jax.lax.scan(body, sampler.init(x), pairs)[0].x

  (alpha, sigma), (alpha_end, sigma_end) = _scales(-4.0), _scales(5.0)
  growth = np.sqrt((alpha_end**2 * std**2 + sigma_end**2) / (alpha**2 * std**2 + sigma**2))
  exact = alpha_end * mean + (np.asarray(x) - alpha * mean) * growth
  return np.abs(np.asarray(solve(x)) - exact).max()


@pytest.mark.parametrize(('name', 'low', 'high'), [
    ('ddim', 1.7, 2.4), ('heun', 3.4, 5.0), ('dpm', 3.2, 5.0)])
def test_order_of_convergence(name, low, high):
  # Twice the steps: half the error at first order, a quarter at second.
  coarse, fine = _flow_error(name, 20), _flow_error(name, 40)
  assert low < coarse / fine < high
  assert fine < (0.04 if name == 'ddim' else 0.002)


@pytest.mark.parametrize('eta', [0.0, 0.4, 1.0])
def test_ddim_keeps_the_marginal_at_every_eta(eta):
  # If x_0 is known for certain, each step must carry N(alpha x_0, sigma^2) to the next one.
  (alpha, sigma), (alpha_next, sigma_next) = _scales(-1.0), _scales(0.5)
  sampler, noise = samplers.DDIM(eta=eta), _frames(1, 1, 20_000)
  start = sampler.init(alpha * 0.8 + sigma * noise)
  x = _step(sampler, start, _point(0.8), [-1.0], [0.5], seed=3).x
  np.testing.assert_allclose(x.mean(), alpha_next * 0.8, atol=0.02)
  np.testing.assert_allclose(x.std(), sigma_next, rtol=0.02)
  kept = np.sqrt(1 - eta**2 * (1 - np.exp(-1.5)))
  np.testing.assert_allclose(np.corrcoef(x.ravel(), noise.ravel())[0, 1], kept, atol=0.02)


def test_ddim_with_eta_one_is_ddpm():
  denoiser, state = analytic.GaussianDenoiser(0.3, 0.6), samplers.DDPM().init(_frames(2, 3, 4))
  levels = [-5.0, 0.0, 4.0], [-1.0, 0.0, 9.0]
  one, other, without = (
      _step(sampler, state, denoiser, *levels).x
      for sampler in (samplers.DDIM(eta=1.0), samplers.DDPM(), samplers.DDIM()))
  # The same law, and with the same key the same draw.
  np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
  assert np.abs(one - without).max() > 0.1


@every_sampler
def test_each_frame_moves_by_its_own_levels(name):
  sampler, denoiser = ALL[name], analytic.GaussianDenoiser(0.3, 0.6)
  x = _frames(2, 3, 4)
  step = jax.jit(lambda state, a, b: sampler.step(state, denoiser, a, b, jax.random.key(0)))
  levels = jnp.array([[-6.0, -1.0, 3.0], [-4.0, 0.0, 5.0], [-1.0, 1.0, 9.0]])
  together = sampler.init(x)
  for k in range(2):
    together = step(together, *(jnp.broadcast_to(levels[k + d], (2, 3)) for d in (0, 1)))
  for frame in range(3):
    alone = sampler.init(x)
    for k in range(2):
      alone = step(alone, *(jnp.full((2, 3), levels[k + d, frame]) for d in (0, 1)))
    np.testing.assert_allclose(together.x[:, frame], alone.x[:, frame], rtol=1e-5, atol=1e-5)


@every_sampler
def test_resting_frames_keep_every_bit(name):
  sampler = ALL[name]
  wild = lambda x, logsnr: jnp.where((logsnr == 1.0)[..., None], jnp.nan, jnp.sin(7 * x))
  start = sampler.init(_frames(2, 3, 4))
  state = jax.tree.map(lambda leaf: leaf + _frames(*leaf.shape, seed=1), start)
  after = _step(
      sampler, state, wild, [[1.0, 1.5, 1.0], [0.5, 1.0, 0.5]],
      [[1.0, 4.0, 1.0], [2.0, 1.0, 2.0]])
  resting = np.array([[True, False, True], [False, True, False]])
  for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
    np.testing.assert_array_equal(np.asarray(new)[resting], np.asarray(old)[resting])
    assert (np.asarray(new)[~resting] != np.asarray(old)[~resting]).all()
    assert np.isfinite(new).all()


@every_sampler
def test_frames_wait_and_rest_in_a_pyramid(name):
  # Once through, a frame must come out as if it had been sampled alone.
  shape, sampler = (2, 3, 4), ALL[name]
  initial, denoiser = _frames(*shape), analytic.GaussianDenoiser(0.3, 0.6)
  draw = lambda grid: _sample(
      denoiser, sampler, shape, len(grid) - 1, grid=grid, initial=initial)
  staggered, full = draw(samplers.pyramid(4, 3, delay=2)), draw(samplers.full_sequence(4, 3))
  if name in DETERMINISTIC:
    np.testing.assert_allclose(staggered, full, rtol=1e-5, atol=1e-5)
  else:
    np.testing.assert_allclose(staggered[:, 0], full[:, 0], rtol=1e-5, atol=1e-5)


@every_sampler
def test_vmap_agrees_with_single_calls(name):
  denoiser, shape = analytic.GaussianDenoiser(0.3, 0.6), (2, 3, 2, 2, 1)
  draw = lambda key: samplers.sample(
      denoiser, ALL[name], key, shape, 3, schedule=SCHEDULE, grid='pyramid')
  keys = jax.random.split(jax.random.key(0), 2)
  batched = jax.jit(jax.vmap(draw))(keys)
  assert batched.dtype == jnp.float32
  assert batched.shape == (2, *shape)
  np.testing.assert_allclose(batched[1], jax.jit(draw)(keys[1]), rtol=1e-4, atol=1e-4)
  assert not np.allclose(batched[0], batched[1])


def test_jit_agrees_with_a_plain_call():
  arguments = analytic.GaussianDenoiser(0.3, 0.6), samplers.DDPM()
  plain = samplers.sample(*arguments, jax.random.key(0), (2, 3, 4), 3, schedule=SCHEDULE)
  np.testing.assert_allclose(_sample(*arguments, (2, 3, 4), 3), plain, rtol=1e-4, atol=1e-4)


def test_one_scan_and_no_retrace():
  traces = []

  def draw(denoiser, key):
    traces.append(1)
    return samplers.sample(denoiser, samplers.Heun(), key, (2, 3, 4), 6, schedule=SCHEDULE)

  jaxpr = str(jax.make_jaxpr(draw)(analytic.GaussianDenoiser(0.3, 0.6), jax.random.key(0)))
  assert jaxpr.count('scan[') == 1
  assert 'while[' not in jaxpr
  traces.clear()
  jitted = jax.jit(draw)
  for mean in (0.1, 0.2, 0.3):
    jitted(analytic.GaussianDenoiser(jnp.float32(mean), jnp.float32(0.6)), jax.random.key(7))
  assert len(traces) == 1


@every_sampler
def test_clip_bounds_the_estimate(name):
  wild = lambda x, logsnr: -50.0 + 30.0 * x
  clipped = type(ALL[name])(clip_x0=1.5)
  x = _sample(wild, clipped, (2, 3, 4), 8, grid='pyramid')
  # Wherever its own estimate would be, the sampler moved to a clipped one.
  assert np.abs(x).max() <= 1.5 + 1e-6
  assert np.abs(_sample(wild, ALL[name], (2, 3, 4), 8)).max() > 10


def test_dpm_starts_and_ends_at_first_order():
  step = lambda sampler, state, *levels: _step(
      sampler, state, analytic.GaussianDenoiser(0.3, 0.6), *levels)
  dpm, ddim = samplers.DPMSolver2M(max_growth=3.0), samplers.DDIM()
  first = step(dpm, dpm.init(_frames(1, 2, 3)), [-2.0, -2.0], [-1.0, -2.0])
  np.testing.assert_array_equal(
      first.x, step(ddim, dpm.init(_frames(1, 2, 3)), [-2.0, -2.0], [-1.0, -2.0]).x)
  for end, extrapolates in ((1.9, True), (2.1, False)):
    levels = ([-1.0, -2.0], [end, -1.0])
    two, one = step(dpm, first, *levels), step(ddim, first, *levels)
    assert (np.abs(two.x - one.x)[:, 0].max() > 1e-3) == extrapolates
    # The second frame has rested so far: its own first step.
    np.testing.assert_array_equal(two.x[:, 1], one.x[:, 1])


def test_dpm_extrapolates_by_the_ratio_of_steps():
  # An estimate linear in log-SNR: D = x0 + (h / 2 h_prev) (x0 - x0_prev), by hand.
  denoiser = lambda x, logsnr: predictions.eps_from_x0(x, logsnr[..., None], logsnr)
  dpm = samplers.DPMSolver2M()
  state = _step(dpm, dpm.init(_frames(1, 1, 2)), denoiser, [-2.0], [-1.0])
  after = _step(dpm, state, denoiser, [-1.0], [1.0])
  target = -1.0 + 2.0 / 2.0 * (-1.0 + 2.0)
  (_, sigma), (alpha_next, sigma_next) = _scales(-1.0), _scales(1.0)
  expected = sigma_next / sigma * np.asarray(state.x) + alpha_next * (1 - np.exp(-1)) * target
  np.testing.assert_allclose(after.x, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(after.x0, target, atol=1e-5)
  np.testing.assert_allclose(after.estimate, -1.0, atol=1e-5)
  # The target is clipped although neither estimate needs to be:
  # -2 and 2, extrapolated to 2 + 1/2 (2 + 2) = 4.
  clipped = samplers.DPMSolver2M(clip_x0=2.1)
  state = _step(clipped, clipped.init(_frames(1, 1, 2)), denoiser, [-2.0], [2.0])
  np.testing.assert_allclose(_step(clipped, state, denoiser, [2.0], [6.0]).x0, 2.1, atol=1e-5)


def test_heun_does_not_amplify_an_error_at_the_last_level():
  def off_at_the_end(x, logsnr):
    x0 = jnp.where(logsnr > 14.9, 0.6, 0.5)[..., None]
    return predictions.eps_from_x0(x, x0, logsnr)

  x = _sample(off_at_the_end, samplers.Heun(), (1, 2, 3), 10)
  assert (x > 0.499).all()
  assert (x < 0.601).all()


@every_sampler
def test_finished_frames_are_estimates_and_others_are_not(name):
  # Frame 0 finishes, frame 1 stops half way, frame 2 is never moved.
  grid = np.array([[1.0, 1.0, 0.3], [0.5, 0.7, 0.3], [0.0, 0.4, 0.3]], np.float32)
  schedule = schedules.CosineSchedule(shift=0.125, logsnr_max=8.0)
  initial = _frames(500, 3, 4)
  x = _sample(
      _point(0.25), ALL[name], (500, 3, 4), 2, schedule=schedule, grid=grid, initial=initial,
      corrector=correctors.Langevin())
  np.testing.assert_allclose(x[:, 0], 0.25, atol=1e-3)
  alpha, sigma = schedules.alpha_sigma(schedule(0.4))
  np.testing.assert_allclose(x[:, 1].mean(), alpha * 0.25, atol=0.05)
  np.testing.assert_allclose(x[:, 1].std(), sigma, rtol=0.06)
  np.testing.assert_array_equal(x[:, 2], initial[:, 2])


@pytest.mark.parametrize(('name', 'golden'), [
    ('ddim', [-0.52736, 0.19996, 0.92728]),
    ('heun', [-0.62784, 0.19995, 1.02775]),
    ('dpm', [-0.59477, 0.19996, 0.99468]),
])
def test_golden_values(name, golden):
  # From a float64 implementation of the three formulas in alpha and sigma, apart from this one.
  x = _sample(
      analytic.GaussianDenoiser(0.2, 0.5), ALL[name], (1, 1, 3), 5,
      initial=jnp.array([[[-2.0, 0.0, 2.0]]]))
  np.testing.assert_allclose(x[0, 0], golden, atol=1e-4)


class _Recorder:
  """A sampler that writes one number drawn from each step's key into the frames."""

  def init(self, x):
    return samplers.State(x=x, x0=x, half_step=jnp.zeros(x.shape[:2]))

  def step(self, state, denoiser, logsnr, logsnr_next, key):
    drawn = jnp.roll(state.x0, 1, axis=-1).at[..., 0].set(jax.random.uniform(key))
    return state.replace(x0=drawn)


def test_every_step_has_its_own_key():
  draw = lambda seed: np.asarray(_sample(None, _Recorder(), (1, 1, 6), 6, seed=seed)).ravel()
  np.testing.assert_array_equal(draw(0), draw(0))
  assert len(set(draw(0)) | set(draw(1))) == 12


def test_grids_by_hand():
  np.testing.assert_array_equal(
      samplers.full_sequence(2, 3), [[1, 1, 1], [0.5, 0.5, 0.5], [0, 0, 0]])
  np.testing.assert_array_equal(
      samplers.pyramid(2, 3, delay=1),
      [[1, 1, 1], [0.5, 1, 1], [0, 0.5, 1], [0, 0, 0.5], [0, 0, 0]])
  np.testing.assert_array_equal(
      samplers.pyramid(2, 2, delay=3), [[1, 1], [0.5, 1], [0, 1], [0, 1], [0, 0.5], [0, 0]])


@pytest.mark.parametrize(('change', 'message'), [
    ({'grid': 'stairs'}, "Unknown grid 'stairs'; expected one of full, pyramid"),
    ({'grid': samplers.full_sequence(4, 3)}, r'shape \(5, 3\); expected .* \(4, 3\)'),
    ({'grid': samplers.full_sequence(3, 3)[::-1]}, 'never increase'),
    ({'grid': 2 * samplers.full_sequence(3, 3)}, r'in \[0, 1\]'),
    ({'shape': (2,)}, r'must be \(B, T'),
    ({'num_steps': 0}, 'num_steps >= 1'),
    ({'initial': np.zeros((2, 3, 5))}, r'initial has shape \(2, 3, 5\); expected shape='),
])
def test_bad_arguments_of_sample(change, message):
  arguments = {'shape': (2, 3, 4), 'num_steps': 3, 'schedule': SCHEDULE} | change
  with pytest.raises(ValueError, match=message):
    samplers.sample(
        analytic.GaussianDenoiser(0.0, 1.0), samplers.DDIM(), jax.random.key(0), **arguments)


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: samplers.DDIM(eta=1.5), r'eta=1.5 must lie in \[0, 1\]'),
    (lambda: samplers.DDPM(clip_x0=0.0), 'clip_x0=0.0 must be positive'),
    (lambda: samplers.DDIM(clip_x0=-1.0), 'clip_x0=-1.0 must be positive'),
    (lambda: samplers.DPMSolver2M(max_growth=0.0), 'max_growth=0.0 must be positive'),
    (lambda: samplers.pyramid(3, 2, delay=-1), 'delay >= 0'),
    (lambda: samplers.DDIM().step(
        samplers.DDIM().init(jnp.zeros((2, 3, 4))), None, jnp.zeros((2,)), jnp.zeros((3,)), None),
     r'shape \(2,\); expected \(2, 3\) = \[B T\] or \(3,\)'),
])
def test_bad_samplers(make, message):
  with pytest.raises(ValueError, match=message):
    make()
