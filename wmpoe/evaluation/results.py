"""Bootstrap intervals over episodes and the one result format every command writes.

results.json is `{"meta": {...}, "arms": {ARM: {METRIC: {"mean", "low", "high", "n"}}},
"controls": {CONTROL: {...}}}`. Optional keys let a report be drawn from the file alone:
`"references": {METRIC: {LABEL: value}}` (e.g. chance), `"curves": [CURVE, ...]` and
`"maps": [MAP, ...]`, see `result_format`.

Shapes: E episodes, S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
from typing import Any

import numpy as np

import wmpoe
from wmpoe import whole_file
from wmpoe.evaluation import result_format

_PACKAGES = ('jax', 'flax', 'optax', 'numpy')
_CHUNK = 1_000_000  # resampled values held at a time: 8 MB


def bootstrap(
  values_per_episode: np.ndarray,
  *,
  seed: int,
  weights: np.ndarray | None = None,
  resamples: int = 10_000,
  confidence: float = 0.95,
) -> dict[str, float]:
  """Returns the mean over episodes and its percentile-bootstrap interval (Efron, 1979).

  Episodes are resampled with replacement; seeds are averaged within their episode first, so that
  more seeds never pass for more episodes. With weights the statistic is the ratio
  sum(w v) / sum(w), e.g. recall over episodes with differing numbers of events. The interval is
  widened, if it must be, to contain the mean.

  Args:
    values_per_episode: [E] or [E S] finite values.
    seed: Seed of the resampling.
    weights: [E] or the shape of the values, nonnegative; values of weight 0 are ignored.
    resamples: Number of bootstrap resamples.
    confidence: Coverage of the interval, in (0, 1).

  Returns:
    `{"mean", "low", "high", "n"}`, n the number of episodes with any weight.

  Raises:
    ValueError: Empty, non-finite or misshapen values or weights, or options out of range.
  """
  if resamples < 1 or not 0 < confidence < 1:
    raise ValueError(
      f'Got {resamples=}, {confidence=}; expected resamples >= 1 and confidence in (0, 1).'
    )
  top, bottom = _episode_sums(values_per_episode, weights)
  rng, episodes = np.random.default_rng(seed), len(top)
  chunk = max(1, _CHUNK // episodes)
  means = []
  for start in range(0, resamples, chunk):
    picks = rng.integers(0, episodes, size=(min(chunk, resamples - start), episodes))
    means.append(top[picks].sum(axis=1) / bottom[picks].sum(axis=1))
  mean = float(top.sum() / bottom.sum())
  tail = (1.0 - confidence) / 2.0
  low, high = np.quantile(np.concatenate(means), [tail, 1.0 - tail])
  low, high = min(float(low), mean), max(float(high), mean)
  return {'mean': mean, 'low': low, 'high': high, 'n': episodes}


def paired_bootstrap(
  a: np.ndarray, b: np.ndarray, *, seed: int, **options: Any
) -> dict[str, float]:
  """Returns the mean of a - b over the same episodes with its bootstrap interval.

  Pairing removes the spread between episodes: an interval that excludes 0 says that one arm beats
  the other on these episodes.

  Args:
    a: [E] or [E S] values of one arm.
    b: The other arm's values on the same episodes, same shape.
    seed: Seed of the resampling.
    **options: weights, resamples and confidence of `bootstrap`.

  Returns:
    `{"mean", "low", "high", "n"}` of the difference.

  Raises:
    ValueError: The shapes differ, or see `bootstrap`.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.shape != b.shape:
    raise ValueError(
      f'Got a{list(a.shape)} and b{list(b.shape)}; expected the same episodes and seeds in both.'
    )
  return bootstrap(a - b, seed=seed, **options)


def _episode_sums(values: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
  """Returns the weighted sum over seeds and the weight of every episode, both [E]."""
  values = np.asarray(values, np.float64)
  if values.ndim not in (1, 2) or values.size == 0:
    raise ValueError(f'Values have shape {list(values.shape)}; expected non-empty [E] or [E S].')
  weights = np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
  if weights.ndim == 1 and values.ndim == 2:
    weights = weights[:, None]
  if weights.shape not in (values.shape, (len(values), 1)):
    raise ValueError(
      f'Weights have shape {list(weights.shape)}; expected [E] or {list(values.shape)}.'
    )
  if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
    raise ValueError('Weights must be finite, nonnegative and not all 0.')
  # A value nobody measured (no events) may be NaN as long as its weight says so.
  values = np.where(weights > 0, values, 0.0)
  if not np.isfinite(values).all():
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    raise ValueError(
      f'Values of episodes {bad[:8].tolist()} are not finite; give undefined values weight 0.'
    )
  weights = np.broadcast_to(weights, values.shape)
  top = (weights * values).reshape(len(values), -1).sum(axis=1)
  bottom = weights.reshape(len(values), -1).sum(axis=1)
  return top[bottom > 0], bottom[bottom > 0]


def make(
  meta: Mapping[str, Any],
  arms: Mapping[str, Mapping[str, Mapping[str, float]]],
  controls: Mapping[str, Mapping[str, Mapping[str, float]]],
  *,
  references: Mapping[str, Mapping[str, float]] | None = None,
  curves: Sequence[Mapping[str, Any]] | None = None,
  maps: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
  """Returns a validated result of plain JSON types, ready for `write` and `report.render`.

  Args:
    meta: See `meta`.
    arms: `{ARM: {METRIC: interval}}`, in the order to show; intervals come from `bootstrap`.
    controls: The same for the controls; may be empty.
    references: Optional `{METRIC: {LABEL: value}}`, lines drawn in charts (e.g. chance).
    curves: Optional curves, see `result_format.validate`, which also lists what is raised.
    maps: Optional maps, likewise.
  """
  results: dict[str, Any] = {'meta': meta, 'arms': arms, 'controls': controls}
  if references:
    results['references'] = references
  if curves:
    results['curves'] = curves
  if maps:
    results['maps'] = maps
  result_format.validate(results)
  return json.loads(_dumps(results))


def write(path: str | os.PathLike, results: Mapping[str, Any]) -> pathlib.Path:
  """Validates a result, writes it atomically as JSON and returns the path.

  Raises:
    ValueError: See `result_format.validate`.
    OSError: See `whole_file.write`.
  """
  result_format.validate(results)
  return whole_file.write(path, (_dumps(results) + '\n').encode())


def read(path: str | os.PathLike) -> dict[str, Any]:
  """Reads and validates a results.json.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: The file is not JSON or not in the one format; the message names the file.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(
      f'No results at {path}; expected a results.json, such as `python -m wmpoe demo` writes.'
    )
  try:
    results = json.loads(path.read_text(encoding='utf-8'))
    result_format.validate(results)
  except ValueError as error:
    raise ValueError(f'{path} is not a results file: {error}') from error
  return results


def meta(
  command: str | Sequence[str], config: Any, *, seeds: Sequence[int], seconds: float, **extra: Any
) -> dict[str, Any]:
  """Returns the `meta` of a result: the arguments plus git commit, versions and machine.

  Args:
    command: What the user typed, a string or a list of arguments.
    config: The config's name or its values as a plain dict.
    seeds: Every seed used.
    seconds: Wall time of the measurement.
    **extra: Anything else worth keeping, as JSON types.
  """
  # Containers often may use fewer cores than the machine has.
  has_affinity = hasattr(os, 'sched_getaffinity')
  cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
  return {
    'command': command if isinstance(command, str) else ' '.join(command),
    'config': config,
    'seeds': [int(seed) for seed in seeds],
    'git': _git(),
    'versions': {
      **{name: importlib.metadata.version(name) for name in _PACKAGES},
      'python': platform.python_version(),
      'wmpoe': wmpoe.__version__,
    },
    'machine': {
      'cpu': _cpu(),
      'cores': cores,
      'platform': platform.platform(),
    },
    'seconds': round(float(seconds), 3),
    **extra,
  }


@functools.cache
def _git() -> str:
  """Returns the commit of this package's repository, '-dirty' if its files differ from it."""
  folder = pathlib.Path(__file__).resolve().parent.parent

  def git(*arguments: str) -> str:
    # Inside a hook GIT_DIR names another repository.
    env = {key: value for key, value in os.environ.items() if not key.startswith('GIT_')}
    command = ['git', '-C', str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=env)
    return done.stdout.strip()

  try:
    # An installed copy may sit inside somebody else's repository; that commit says nothing.
    git('ls-files', '--error-unmatch', str(pathlib.Path(__file__).resolve()))
    dirty = git('status', '--porcelain', '--untracked-files=no', '--', '.')
    return git('rev-parse', 'HEAD') + ('-dirty' if dirty else '')
  except (OSError, subprocess.SubprocessError):
    return 'unknown'


def _cpu() -> str:
  try:
    info = pathlib.Path('/proc/cpuinfo').read_text()
  except OSError:
    info = ''
  found = re.search(r'^model name\s*:\s*(.+)$', info, re.MULTILINE)
  return found[1] if found else platform.processor() or platform.machine() or 'unknown'


def _dumps(results: Mapping[str, Any]) -> str:
  def plain(value: Any) -> Any:
    if isinstance(value, Mapping):
      return dict(value)
    return value.tolist() if hasattr(value, 'tolist') else str(value)

  return json.dumps(results, indent=2, default=plain, allow_nan=False)
