"""Arms against the base on the same episodes: differences and relative cuts, with intervals.

Shapes: E episodes, S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from wmpoe.evaluation import metrics
from wmpoe.evaluation import results


def against_base(
  arm: Mapping[str, np.ndarray],
  base: Mapping[str, np.ndarray],
  *,
  seed: int,
  weights: Mapping[str, np.ndarray] | None = None,
  **options: Any,
) -> dict[str, dict[str, float]]:
  """Compares an arm with the base in every metric that both have.

  Args:
    arm: `{METRIC: values}`, values [E] or [E S]; [E] for an arm without sampling, e.g. a copy.
    base: The same for the base, on the same episodes in the same order.
    seed: Seed of the resampling, the same for every metric: one draw of episodes judges them all.
    weights: Optional `{METRIC: weights}` of both, [E] or [E S], e.g. how many frames were averaged;
      values of weight 0 are ignored. A metric that is not named has equal weights.
    **options: resamples and confidence of `results.bootstrap`.

  Returns:
    Intervals `{"mean", "low", "high", "n"}` to be merged into the arm's metrics in results.json:
    METRIC_minus_base from `results.paired_bootstrap` and, where less is better, METRIC_cut from
    `relative_cut`.

  Raises:
    ValueError: No metric in common, or see `results.paired_bootstrap` and `relative_cut`; the
      message names the metric.
  """
  common = [metric for metric in arm if metric in base]
  if not common:
    raise ValueError(
      f'The arm has the metrics {list(arm)} and the base {list(base)}; expected one in common.'
    )
  compared = {}
  for metric in common:
    given = dict(options, seed=seed, weights=(weights or {}).get(metric))
    try:
      a, b = _aligned(arm[metric], base[metric])
      compared[f'{metric}_minus_base'] = results.paired_bootstrap(a, b, **given)
      if metrics.direction(metric) < 0:
        compared[f'{metric}_cut'] = relative_cut(a, b, **given)
    except ValueError as error:
      raise ValueError(f'{metric}: {error}') from error
  return compared


def relative_cut(
  a: np.ndarray, b: np.ndarray, *, seed: int, weights: np.ndarray | None = None, **options: Any
) -> dict[str, float]:
  """Returns by what fraction a lowers the mean of b, with its bootstrap interval over episodes.

  The cut is 1 - sum(w a) / sum(w b): of the means, not the mean of the episodes' cuts, in which an
  episode that is easy for the base would count most. Episodes are resampled in pairs.

  Args:
    a: [E] or [E S] values of one arm, of which less is better.
    b: The other arm's values on the same episodes, same shape, positive.
    seed: Seed of the resampling.
    weights: [E] or the shape of the values, nonnegative; values of weight 0 are ignored.
    **options: resamples and confidence of `results.bootstrap`.

  Returns:
    `{"mean", "low", "high", "n"}`: 0.25 for a cut by 25 %, negative where a is worse.

  Raises:
    ValueError: The shapes differ, b is not positive, or see `results.bootstrap`.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.shape != b.shape:
    raise ValueError(
      f'Got a{list(a.shape)} and b{list(b.shape)}; expected the same episodes and seeds in both.'
    )
  weight = np.ones_like(b) if weights is None else np.asarray(weights, np.float64)
  if weight.ndim == 1 and b.ndim == 2:
    weight = weight[:, None]
  if weight.shape not in (b.shape, (*b.shape[:1], 1)):
    raise ValueError(f'Weights have shape {list(weight.shape)}; expected [E] or {list(b.shape)}.')
  bad = (weight > 0) & ~(b > 0)
  if bad.any():
    episodes = np.flatnonzero(bad.reshape(len(b), -1).any(axis=1))
    raise ValueError(
      f'b is not positive in the episodes {episodes[:8].tolist()}; expected something to be cut. '
      'Report the difference of such a metric, or give undefined values weight 0.'
    )
  # Ratios weighted by w b add up to the ratio of the sums. Nothing is divided that has no weight.
  ratios = np.where(weight == 0, 1.0, a) / np.where(weight == 0, 1.0, b)
  scaled = np.where(weight == 0, 0.0, weight * b)
  return results.bootstrap(1.0 - ratios, seed=seed, weights=scaled, **options)


def _aligned(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Repeats what does not depend on the seed, [E] or [E 1], for every seed of the other."""
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.ndim == 1 and b.ndim == 2:
    a = a[:, None]
  if b.ndim == 1 and a.ndim == 2:
    b = b[:, None]
  if a.ndim == b.ndim == 2 and 1 in (a.shape[1], b.shape[1]):
    seeds = max(a.shape[1], b.shape[1])
    a, b = (np.repeat(x, seeds, axis=1) if x.shape[1] == 1 else x for x in (a, b))
  return a, b
