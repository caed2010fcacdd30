"""Products of contrastive experts: one denoiser out of a base and the contrasts of its memories.

Densities multiply, `p ∝ prod_i p_i^{alpha_i} pbar_i^{1 - alpha_i}` (arXiv 2605.18813, eq. 3), so
scores and with them noise estimates add. What a diffusion sampler makes of such a sum depends on
its total weight: where noise is high every eps is close to x_t, and a total weight K multiplies
the state by K. A rule is therefore a choice with a name; the default rules have total weight 1.

A rule combines noise estimates: `rule(base, terms) -> eps`, where `terms` holds one
`(positive, negative, weight)` per contrast, estimates [B T H W C] and weight broadcastable
against them. `base` may be None where the rule does not need one.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import operator
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from wmpoe.diffusion import predictions
from wmpoe.experts import expert
from wmpoe.experts import joined

Term = tuple[jax.Array, jax.Array, jax.Array]
Rule = Callable[[jax.Array | None, Sequence[Term]], jax.Array]


def _guided(term: Term) -> jax.Array:
  """`alpha eps + (1 - alpha) epsbar`: classifier-free guidance of one expert."""
  positive, negative, weight = term
  return negative + weight * (positive - negative)


def _sum(estimates: Sequence[jax.Array]) -> jax.Array:
  return functools.reduce(operator.add, estimates)


def _all(base: jax.Array | None, estimates: list[jax.Array]) -> list[jax.Array]:
  return estimates if base is None else [base, *estimates]


def shared_base(base: jax.Array | None, terms: Sequence[Term]) -> jax.Array:
  """`eps = base + sum_i w_i (eps_i - epsbar_i)`: total weight 1. The default.

  Without a base, the first expert's own baseline takes its place: one contrast is then
  classifier-free guidance.
  """
  eps = terms[0][1] if base is None else base
  for positive, negative, weight in terms:
    eps = eps + weight * (positive - negative)
  return eps


def mean(base: jax.Array | None, terms: Sequence[Term]) -> jax.Array:
  """`eps = 1/K sum_i [alpha_i eps_i + (1 - alpha_i) epsbar_i]`, base counted: total weight 1."""
  estimates = _all(base, [_guided(term) for term in terms])
  return _sum(estimates) / len(estimates)


def literal_sum(base: jax.Array | None, terms: Sequence[Term]) -> jax.Array:
  """`eps = sum_i [alpha_i eps_i + (1 - alpha_i) epsbar_i]`: total weight K, NOT bounded.

  The formula as printed. The state grows by about K per unit of log-SNR at high noise; offered
  for comparison, best with `clip_x0` in the sampler.
  """
  return _sum(_all(base, [_guided(term) for term in terms]))


def naive_product(base: jax.Array | None, terms: Sequence[Term]) -> jax.Array:
  """`eps = sum_i eps_i`, no contrast: total weight K, NOT bounded. The paper's ablation."""
  return _sum(_all(base, [positive for positive, _, _ in terms]))


@dataclasses.dataclass(frozen=True)
class Tempering:
  """`eps = alpha / K sum_i eps_i`: every expert tempered, p^alpha; total weight alpha, NOT 1."""

  alpha: float = 2.0

  def __call__(self, base: jax.Array | None, terms: Sequence[Term]) -> jax.Array:
    """Combines the experts' own estimates; baselines are not used."""
    estimates = _all(base, [positive for positive, _, _ in terms])
    return self.alpha * _sum(estimates) / len(estimates)


@dataclasses.dataclass(frozen=True)
class WeightedMean:
  """`eps = sum_i s_i [alpha_i eps_i + (1 - alpha_i) epsbar_i]` with shares s_i that sum to 1.

  Attributes:
    shares: One per estimate: first the base's, if there is a base, then the contrasts' in their
      order (of a `WorldModel` that of its memories, which `compose` is given).

  Raises:
    ValueError: if the shares do not sum to 1, or (when called) are not one per estimate.
  """

  shares: tuple[float, ...]

  def __post_init__(self):
    if abs(sum(self.shares) - 1.0) > 1e-6:
      raise ValueError(
          f'The shares {self.shares} sum to {sum(self.shares):g}; this rule needs a total weight '
          'of 1, else the state grows or shrinks at high noise. Divide them by their sum.')

  def __call__(self, base: jax.Array | None, terms: Sequence[Term]) -> jax.Array:
    """Combines the guided estimates by their shares."""
    estimates = _all(base, [_guided(term) for term in terms])
    if len(estimates) != len(self.shares):
      raise ValueError(
          f'Got {len(self.shares)} shares for {len(estimates)} estimates '
          f'({"with" if base is not None else "without"} a base); give one each.')
    return _sum([s * e for s, e in zip(self.shares, estimates, strict=True)])


RULES: dict[str, Rule] = {
    'shared_base': shared_base,
    'mean': mean,
    'literal_sum': literal_sum,
    'naive_product': naive_product,
    'tempering': Tempering(),
}
DEFAULT_RULES = ('shared_base', 'mean')  # those whose weights sum to one


def rule_by_name(name: str) -> Rule:
  """The rule of that name.

  Raises:
    ValueError: if there is none.
  """
  if name not in RULES:
    raise ValueError(f'Unknown composition rule {name!r}; expected one of {", ".join(RULES)}.')
  return RULES[name]


@dataclasses.dataclass(frozen=True)
class Interval:
  """Weight factor: 1 for log-SNR in [low, high], 0 outside (arXiv 2404.07724)."""

  low: float = -float('inf')
  high: float = float('inf')

  def __call__(self, logsnr: jax.Array) -> jax.Array:
    """Factor of the weight at each log-SNR."""
    return ((logsnr >= self.low) & (logsnr <= self.high)).astype(jnp.float32)


@struct.dataclass
class Composed:
  """A base and its contrasts under a rule; itself a denoiser, so composition is closed.

  Where the weights of all contrasts are limited to some noise levels (`Contrast.level`), the
  default rule does not run their branches at the others: there it is the base.

  Attributes:
    base: Denoiser, or None where the rule allows it.
    contrasts: One per memory.
    together: Its branches, joined; see `prepared`.
    rule: Static.
  """

  base: Any
  contrasts: tuple[expert.Contrast, ...]
  together: joined.Joined | None = None
  rule: Rule = struct.field(pytree_node=False, default=shared_base)

  def prepared(self) -> 'Composed':
    """The same, its branches joined once and not in every step: to be sampled from, not changed."""
    return dataclasses.replace(self, together=joined.join(self.branches()))

  def __call__(self, x_t: jax.Array, logsnr: jax.Array) -> jax.Array:
    """Composed noise estimate of x_t [B T H W C] at logsnr [B T]."""
    logsnr = jnp.broadcast_to(logsnr, x_t.shape[:2])
    levels = [contrast.level for contrast in self.contrasts if contrast.level is not None]
    if len(levels) < len(self.contrasts) or self.base is None or self.rule is not shared_base:
      return self._all_branches(x_t, logsnr)
    active = jnp.stack([jnp.any(level(logsnr) != 0.0) for level in levels])
    return jax.lax.cond(
        jnp.any(active), lambda x, level: self._all_branches(x, level),
        lambda x, level: self.base(x, level), x_t, logsnr)

  def _all_branches(self, x_t: jax.Array, logsnr: jax.Array) -> jax.Array:
    together = joined.join(self.branches()) if self.together is None else self.together
    return self.combine(together(x_t, logsnr), logsnr)

  @property
  def _contrasted(self) -> bool:
    """Whether the rule looks at baselines; else none is run."""
    return not isinstance(self.rule, Tempering) and self.rule is not naive_product

  def branches(self) -> list[expert.Denoiser]:
    """The denoisers that a noise estimate is made of, in the order `combine` takes theirs."""
    branches = [self.base]
    for contrast in self.contrasts:
      branches += [contrast.positive, contrast.negative if self._contrasted else None]
    return [b for b in branches if b is not None]

  def combine(self, estimates: Sequence[jax.Array], logsnr: jax.Array) -> jax.Array:
    """The composed estimate out of those of all branches, each [B T H W C], at logsnr [B T]."""
    return self.rule(*self.terms(estimates, logsnr))

  def terms(
      self, estimates: Sequence[jax.Array], logsnr: jax.Array
  ) -> tuple[jax.Array | None, list[Term]]:
    """What the rule is given for them: the base's estimate, and one term for each contrast."""
    remaining = iter(estimates)
    base = None if self.base is None else next(remaining)
    terms = []
    for contrast in self.contrasts:
      positive = next(remaining)
      negative: Any = base
      if not self._contrasted:
        negative = positive
      elif contrast.negative is not None:
        negative = next(remaining)
      weight = jnp.asarray(contrast.weight, jnp.float32)
      weight = weight[..., None] if weight.ndim == 1 else weight  # [B] -> [B 1]
      if contrast.empty is not None:
        weight = jnp.where(contrast.empty[:, None], 0.0, weight)
      if contrast.level is not None:
        weight = weight * contrast.level(logsnr)
      terms.append((positive, negative, predictions.expand(weight, positive)))
    return base, terms


def compose(
    base: expert.Denoiser | None,
    contrasts: Sequence[expert.Contrast],
    rule: Rule = shared_base,
) -> expert.Denoiser:
  """Composes a base with the contrasts of its memories into one denoiser.

  Args:
    base: The base denoiser; None composes the experts alone.
    contrasts: Evidence of each memory; `negative=None` means "against the base".
    rule: How estimates combine; `shared_base` by default.

  Returns:
    A denoiser, a pytree: new weights, contexts or memories never retrace it. With no contrasts
    it is the base itself.

  Raises:
    ValueError: if there is nothing to compose, if a contrast needs a base that is not there, or if
      `contrasts` is a single contrast rather than a sequence.
  """
  if isinstance(contrasts, expert.Contrast):
    raise ValueError('`contrasts` must be a sequence of Contrast; wrap the single one in a list.')
  contrasts = tuple(contrasts)
  if base is None and not contrasts:
    raise ValueError('Nothing to compose: give a base, or at least one contrast, or both.')
  if base is None and any(c.negative is None for c in contrasts):
    raise ValueError(
        'A contrast with negative=None contrasts with the base, but base is None. Give it a '
        'baseline of its own or compose with a base.')
  if base is not None and not contrasts and rule in (shared_base, mean):
    return base
  return Composed(base=base, contrasts=contrasts, rule=rule)


def evaluate(
    denoisers: Sequence[expert.Denoiser], x_t: jax.Array, logsnr: jax.Array
) -> list[jax.Array]:
  """Evaluates several denoisers at once, those of one network as one call; see `joined.join`.

  Returns:
    One estimate [B T H W C] per denoiser, in order.
  """
  return joined.join(denoisers)(x_t, logsnr)
