"""What a diffusion sampler makes of each composition rule, where every score is known exactly.

A 1-D mixture of three modes, two experts, alpha = 2, DDIM: no network, so nothing but the rule
and the sampler can be at fault. Proposition 1 of the paper (arXiv 2605.18813) says that a product
of contrastive experts changes the masses of the modes and leaves their shape alone. That holds
for the densities; the sampler follows sums of *diffused* scores, which are not the diffused score
of the product, and this study measures what then comes out.

The set-up, in full:
  modes at -2, 0, 2, each of standard deviation 0.2; the first is the one the experts favour;
  base and both baselines: masses 1/3, 1/3, 1/3;
  experts: masses .6, .3, .1 and .6, .1, .3: each favours the first mode and they disagree on the
  rest. By Proposition 1 their product has masses 144 : 1 : 1 = .986, .007, .007;
  schedule: cosine over [-15, 15] with the paper's shift 0.125, not clipped to the range after the
  shift, so that it runs from -19.2 to 10.8; 50 steps of DDIM with eta 0.
With these the table of the method's section 4 comes out to within sampling error; samples are
read at the last level, as there.

The clip matters to unbounded rules only: the first step of an unclipped grid spans a factor 58 in
alpha, a clipped one a factor 7, and what a total weight above 1 adds is multiplied by it. Even as a
density, the product of K experts has K kernels multiplied, so a mode's variance is divided by K
before any sampler sees it: Proposition 1 speaks of one expert, or of weights that sum to 1.
"""

from collections.abc import Mapping
import dataclasses
import functools
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wmpoe.diffusion import analytic
from wmpoe.diffusion import samplers
from wmpoe.diffusion import schedules
from wmpoe.experts import composition
from wmpoe.experts import expert

MEANS = (-2.0, 0.0, 2.0)
STD = 0.2
BASE_MASSES = (1 / 3, 1 / 3, 1 / 3)
EXPERT_MASSES = ((0.6, 0.3, 0.1), (0.6, 0.1, 0.3))
ALPHA = 2.0

# Tempering takes alpha as its power; with as many experts as alpha it is the naive product.
RULES: dict[str, composition.Rule] = {
    'literal_sum': composition.literal_sum,
    'mean': composition.mean,
    'shared_base': composition.shared_base,
    'naive_product': composition.naive_product,
    'tempering': composition.Tempering(alpha=ALPHA),
}
_LABELS = {
    'literal_sum': 'literal sum over K experts (total weight K)',
    'mean': 'sum / K',
    'shared_base': 'base + sum_i w_i (eps_i - epsbar_i)',
    'naive_product': 'naive product (no contrast)',
    'tempering': 'tempering, p^alpha (the naive product, as K = alpha)',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnclippedCosine:
  """Shifted cosine schedule whose range moves with the shift (see the module docstring).

  `logsnr(t) = -2 ln tan(t0 + t (t1 - t0)) + 2 ln shift`, with `t0`, `t1` from +-15.
  """

  shift: float = 0.125

  @property
  def logsnr_min(self) -> float:
    """Log-SNR at t = 1."""
    return -15.0 + 2.0 * math.log(self.shift)

  @property
  def logsnr_max(self) -> float:
    """Log-SNR at t = 0."""
    return 15.0 + 2.0 * math.log(self.shift)

  def __call__(self, t: Any) -> jax.Array:
    """Log-SNR at static times `t` in [0, 1], any shape."""
    first, last = math.atan(math.exp(-7.5)), math.atan(math.exp(7.5))
    angle = first + np.asarray(t, np.float64) * (last - first)
    return jnp.asarray(-2.0 * np.log(np.tan(angle)) + 2.0 * math.log(self.shift), jnp.float32)


def target_masses() -> np.ndarray:
  """Masses that Proposition 1 promises, `pi_k ∝ prod_i p_ik^alpha pbar_ik^(1 - alpha)`: [K]."""
  experts, base = np.array(EXPERT_MASSES), np.array(BASE_MASSES)
  product = np.prod(experts**ALPHA * base ** (1 - ALPHA), axis=0)
  return product / product.sum()


def denoiser(rule: str) -> Any:
  """The composed analytic denoiser of a rule's name.

  Raises:
    ValueError: if the name is unknown.
  """
  if rule not in RULES:
    raise ValueError(f'Unknown rule {rule!r}; expected one of {", ".join(RULES)}.')
  mixture = functools.partial(
      analytic.MixtureDenoiser, jnp.array(MEANS), jnp.full(len(MEANS), STD))
  base = mixture(weights=jnp.array(BASE_MASSES))
  contrasts = [
      expert.Contrast(positive=mixture(weights=jnp.array(m)), negative=base, weight=ALPHA)
      for m in EXPERT_MASSES]
  # The sums run over the experts, as in the paper; only the shared base has a base of its own.
  own = base if rule == 'shared_base' else None
  return composition.compose(own, contrasts, RULES[rule])


@functools.partial(jax.jit, static_argnames=('num_samples', 'clip_x0'))
def _trajectory(
    denoise: Any,
    key: jax.Array,
    logsnr: jax.Array,
    *,
    num_samples: int,
    clip_x0: float | None,
) -> tuple[jax.Array, jax.Array]:
  """Final samples [N] and the largest abs x over samples at each level [S+1]."""
  sampler = samplers.DDIM(clip_x0=clip_x0)
  x = jax.random.normal(key, (num_samples, 1))

  def body(state, levels):
    state = sampler.step(state, denoise, levels[0], levels[1], key)
    return state, jnp.max(jnp.abs(state.x))

  state, largest = jax.lax.scan(
      body, sampler.init(x), jnp.stack([logsnr[:-1], logsnr[1:]], axis=1)[..., None])
  return state.x[:, 0], jnp.concatenate([jnp.max(jnp.abs(x))[None], largest])


def run(
    num_samples: int = 20_000,
    seed: int = 0,
    steps: int = 50,
    *,
    schedule: schedules.Schedule | None = None,
    clip_x0: float | None = None,
) -> dict[str, dict[str, Any]]:
  """Samples every rule from the same noise and measures what comes out.

  Args:
    num_samples: Samples per rule.
    seed: Of the starting noise.
    steps: DDIM steps.
    schedule: Default: `UnclippedCosine()`.
    clip_x0: Clips x_0 estimates, as the samplers do; what tames the unbounded rules in practice.

  Returns:
    Per rule: `masses` [K] (nearest mode), `std` (inside the first mode: root mean square distance
    from its samples' mean), `largest` (abs x on the way), `path` [S+1] (the same at every level)
    and `samples` [N].

  Raises:
    ValueError: if a count is below one.
  """
  if num_samples < 1 or steps < 1:
    raise ValueError(
        f'num_samples={num_samples} and steps={steps} must both be at least 1.')
  logsnr = (schedule or UnclippedCosine())(samplers.full_sequence(steps, 1)[:, 0])
  rows = {}
  for rule in RULES:
    samples, path = (np.asarray(a) for a in _trajectory(
        denoiser(rule), jax.random.key(seed), logsnr, num_samples=num_samples, clip_x0=clip_x0))
    mode = np.argmin(np.abs(samples[:, None] - np.array(MEANS)), axis=1)
    inside = samples[mode == 0]
    rows[rule] = {
        'masses': np.bincount(mode, minlength=len(MEANS)) / num_samples,
        'std': float(np.std(inside)) if inside.size else math.nan,
        'largest': float(path.max()),
        'path': path,
        'samples': samples,
    }
  return rows


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
  """The measurements as a Markdown table, one line per rule."""
  target = '/'.join(f'{m:.3f}' for m in target_masses())
  lines = [
      f'| rule | mode masses (Prop. 1: {target}) | sd inside a mode ({STD:g}) '
      '| largest abs x on the way |',
      '|---|---|---|---|']
  for rule, row in rows.items():
    masses = '/'.join(f'{m:.3f}' for m in row['masses'])
    lines.append(
        f'| {_LABELS.get(rule, rule)} | {masses} | {row["std"]:.3f} | {row["largest"]:.1f} |')
  return '\n'.join(lines)


def plot(rows: Mapping[str, Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
  """Draws each rule's samples against what Proposition 1 promises, and the size of x on the way.

  Args:
    rows: What `run` returned.
    path: Image file to write; its suffix is the format.

  Raises:
    ImportError: if matplotlib is not installed.
  """
  try:
    from matplotlib import figure as mpl_figure
  except ImportError as error:
    raise ImportError(
        "Plotting needs matplotlib, which is not installed: pip install 'wmpoe[demo]'.") from error
  figure = mpl_figure.Figure(figsize=(2.6 * len(rows), 4.6), layout='constrained')
  above, below = figure.subplots(2, len(rows), sharey='row', squeeze=False)
  grid = np.linspace(-3, 3, 601)
  density = np.exp(analytic.mixture_logprob(
      grid, jnp.inf, means=jnp.array(MEANS), stds=jnp.full(len(MEANS), STD),
      weights=target_masses()))
  for rule, row, top, bottom in zip(rows, rows.values(), above, below, strict=True):
    top.hist(row['samples'], bins=120, range=(-3, 3), density=True, color='tab:blue')
    top.plot(grid, density, color='black', linewidth=1)
    top.set(title=rule, xlabel='x', ylim=(0, 2.5 * density.max()))
    bottom.semilogy(row['path'], color='tab:red')
    bottom.set(xlabel='DDIM step')
  above[0].set_ylabel('density (line: Prop. 1)')
  below[0].set_ylabel('largest abs x')
  figure.savefig(path)
