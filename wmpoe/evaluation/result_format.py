"""The one format of results, checked; see `results` for what it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
import numbers
from typing import Any

import numpy as np

META_KEYS = ('command', 'config', 'seeds', 'git', 'versions', 'machine', 'seconds')
INTERVAL_KEYS = ('mean', 'low', 'high', 'n')
SEEN = ('unseen', 'otherwise', 'revisited')  # of a frame on a map


def validate(results: Mapping[str, Any]) -> None:
  """Checks that a result has the one format.

  A curve is `{"title", "xlabel", "ylabel", "series": {NAME: {"x", "mean", "low", "high"}}}` with
  four lists of one length per series, and optionally `"metric"` (formats the values like that
  metric), `"logx"` (bool) and `"references"` ({LABEL: value}).

  A map is `{"title", "metric", "arm", "layout", "path", "asked"}`: the walls of a maze ([N N], 1
  where free, row y, column x; or []), the path that was remembered [[x, y], ...] and the frames
  asked for, `{"x", "y", "heading", "gain", "seen"}`, gain being by how much the arm was better than
  the base and seen one of `SEEN`.

  Args:
    results: The dict to check.

  Raises:
    ValueError: Naming the place, what was found and what belongs there.
  """
  _check_keys(
    results, 'results', required=('meta', 'arms', 'controls'),
    optional=('references', 'curves', 'maps'))
  _check_keys(results['meta'], 'meta', required=META_KEYS)
  for group in ('arms', 'controls'):
    _check_keys(results[group], group)
    for arm, measured in results[group].items():
      _check_keys(measured, f'{group}.{arm}')
      if not measured:
        raise ValueError(f'{group}.{arm} is empty; expected at least one metric.')
      for metric, interval in measured.items():
        _check_interval(interval, f'{group}.{arm}.{metric}')
  if not results['arms'] and not results.get('curves'):
    raise ValueError('arms is empty; expected at least one arm, for example "base".')
  references = results.get('references', {})
  _check_keys(references, 'references')
  for metric, lines in references.items():
    _check_lines(lines, f'references.{metric}')
  for name, check in (('curves', _check_curve), ('maps', _check_map)):
    drawn = results.get(name, [])
    if not isinstance(drawn, Sequence):
      raise ValueError(f'{name} is a {type(drawn).__name__}; expected a list.')
    for index, each in enumerate(drawn):
      check(each, f'{name}[{index}]')


def _check_keys(
  given: Any, place: str, *, required: Sequence[str] = (), optional: Sequence[str] | None = None
) -> None:
  """Raises unless given is a dict with the required keys; optional=None allows any other key."""
  if not isinstance(given, Mapping):
    raise ValueError(f'{place} is a {type(given).__name__}; expected an object (dict).')
  odd = [key for key in given if not isinstance(key, str) or not key]
  if odd:
    raise ValueError(f'{place} has the keys {odd}; expected non-empty strings.')
  missing = [key for key in required if key not in given]
  extra = [] if optional is None else [k for k in given if k not in (*required, *optional)]
  if missing or extra:
    raise ValueError(
      f'{place} lacks the keys {missing} and has the unknown keys {extra}; expected '
      f'{list(required)}' + (f', optionally {list(optional)}.' if optional else '.')
    )


def _is_number(value: Any) -> bool:
  # numpy's floats count; True would pass for 1.
  return not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(value)


def _check_interval(interval: Any, place: str) -> None:
  """Raises unless interval is a finite mean inside [low, high] over n >= 1 episodes."""
  _check_keys(interval, place, required=INTERVAL_KEYS, optional=())
  mean, low, high, n = (interval[key] for key in INTERVAL_KEYS)
  if not all(_is_number(value) for value in (mean, low, high)):
    raise ValueError(
      f'{place} has mean={mean!r}, low={low!r}, high={high!r}; expected finite numbers. Leave a '
      'metric out where it is undefined.'
    )
  if not low <= mean <= high:
    raise ValueError(f'{place} has mean={mean}, low={low}, high={high}; expected low<=mean<=high.')
  if isinstance(n, bool) or not isinstance(n, numbers.Integral) or n < 1:
    raise ValueError(f'{place} has n={n!r}; expected the number of episodes, an integer >= 1.')


def _check_lines(lines: Any, place: str) -> None:
  _check_keys(lines, place)
  for label, value in lines.items():
    if not _is_number(value):
      raise ValueError(f'{place}.{label} is {value!r}; expected a finite number.')


def _check_curve(curve: Any, place: str) -> None:
  _check_keys(
    curve,
    place,
    required=('title', 'xlabel', 'ylabel', 'series'),
    optional=('metric', 'logx', 'references'),
  )
  _check_lines(curve.get('references', {}), f'{place}.references')
  _check_keys(curve['series'], f'{place}.series')
  if not curve['series']:
    raise ValueError(f'{place}.series is empty; expected at least one series.')
  keys = ('x', 'mean', 'low', 'high')
  for name, series in curve['series'].items():
    spot = f'{place}.series.{name}'
    _check_keys(series, spot, required=keys, optional=())
    lengths = {np.size(series[key]) for key in keys}
    if len(lengths) != 1 or lengths == {0}:
      raise ValueError(f'{spot} has lists of lengths {sorted(lengths)}; expected one length >= 1.')
    if not all(_is_number(value) for key in keys for value in np.ravel(series[key]).tolist()):
      raise ValueError(f'{spot} holds values that are not finite numbers; leave such points out.')
    if curve.get('logx') and min(series['x']) <= 0:
      raise ValueError(f'{spot}.x reaches {min(series["x"])}; a logarithmic axis needs x > 0.')


def _check_map(drawn: Any, place: str) -> None:
  _check_keys(
    drawn, place, required=('title', 'metric', 'arm', 'layout', 'path', 'asked'), optional=())
  numbers_of = ('x', 'y', 'heading', 'gain')
  for index, dot in enumerate(drawn['asked']):
    _check_keys(dot, f'{place}.asked[{index}]', required=(*numbers_of, 'seen'), optional=())
    if dot['seen'] not in SEEN:
      raise ValueError(
        f'{place}.asked[{index}].seen is {dot["seen"]!r}; expected one of {", ".join(SEEN)}.')
  points = [*np.ravel(drawn['path']).tolist(), *np.ravel(drawn['layout']).tolist(),
            *(dot[key] for dot in drawn['asked'] for key in numbers_of)]
  if not drawn['path'] or not all(map(_is_number, points)):
    raise ValueError(f'{place} needs a path, and finite numbers in path, layout and asked.')
