"""Charts of a result as inline SVG: bars with their intervals, curves with their bands.

Colours are classes that the page's style sheet (`report.py`) gives a meaning, light and dark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import html
import math
import re
from typing import Any

from wmpoe.evaluation import metrics as metrics_lib

_ARMS = {
  'base': 'Base, no memory',
  'all': 'All composed',
  'long_term_new_order': 'Long-term, new order',
  'other_episode': 'Another episode’s memory',
  'shuffled_history': 'Shuffled history',
  'spatial_odometry': 'Spatial, poses from odometry',
  'spatial_depth': 'Spatial, true depth',
  'spatial_absolute': 'Absolute poses and LoRA',
  'sliding': 'Short-term network alone',
  'naive_product': 'All, naive product',
  'full': 'Full attention',
  'ssm': 'State space',
  'history_guidance_v': 'History Guidance, vanilla',
  'history_guidance_t': 'History Guidance, temporal',
  'base_contrast': 'Base against no context',
  'copy_last': 'Copy: last frame',
  'copy_mean': 'Copy: mean of the history',
  'copy_pose': 'Copy: nearest in true pose',
  'copy_turned': 'Copy: nearest, turned',
  'copy_warped': 'Copy: warped by depth',
}
_ENDINGS = {
  '_off': ', no contrast', '_true': ', true frames appended', '_imagined': ', own frames appended'}
_WIDTH = 960  # of every full-width drawing, in SVG units


def stem(arm: str) -> tuple[str, str]:
  """Returns a name without what protocols count at its end, and that: `all_480`, `..._rank_8`."""
  counted = re.fullmatch(r'(.+?)_(\d+|rank_\w+)', arm)
  return (counted[1], counted[2]) if counted else (arm, '')


def arm_name(arm: str) -> str:
  """Returns the name of an arm or control in words.

  Args:
    arm: Name in results.json, e.g. `short_term+long_term`.

  Returns:
    E.g. `Short-term + long-term`.
  """
  if arm in _ARMS:
    return _ARMS[arm]
  name, counted = stem(arm)
  if name in _ARMS:
    return f'{_ARMS[name]}, {counted.replace("_", " ")}'
  for ending, said in _ENDINGS.items():
    if arm.endswith(ending):
      return arm_name(arm.removesuffix(ending)) + said
  words = ' + '.join(part.replace('_term', '-term').replace('_', ' ') for part in arm.split('+'))
  return words[:1].upper() + words[1:]


def escape(text: Any) -> str:
  """Returns text as HTML."""
  return html.escape(str(text))


def cell(metric: str, interval: Mapping[str, float] | None, form: str) -> str:
  """Returns mean, low and high put into a form such as '{} [{}, {}]', or a dash."""
  if interval is None:
    return '–'
  mean, low, high = (interval[key] for key in ('mean', 'low', 'high'))
  ends = (metrics_lib.format_value(metric, end, with_unit=False) for end in (low, high))
  return form.format(metrics_lib.format_value(metric, mean), *ends)


def _ticks(low: float, high: float) -> list[float]:
  """Returns about five round numbers that cover [low, high]."""
  span = (high - low) or abs(high) or 1.0
  power = 10.0 ** math.floor(math.log10(span / 5))
  step = next(power * k for k in (1, 2, 2.5, 5, 10) if span / (power * k) <= 5.001)
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  return [k * step for k in range(first, max(last, first + 1) + 1)]


def _tick_labels(metric: str, ticks: Sequence[float]) -> list[str]:
  if metrics_lib.unit(metric) == '%':
    return [f'{100 * tick:.4g} %' for tick in ticks]
  return [f'{tick:,.6g}' for tick in ticks]


def _kind(arm: str, *, control: bool) -> str:
  """Returns the colour class: references and controls recede, compositions stand out."""
  name, _ = stem(arm)
  reference = name == 'base' or name.startswith('copy_')
  return 'ctrl' if control else 'base' if reference else 'sum' if name == 'all' else 'one'


def bars(results: Mapping[str, Any], metric: str) -> str:
  """Draws one horizontal bar with its interval for every arm and control that has the metric.

  Args:
    results: A result, see `result_format.validate`.
    metric: The metric to draw.

  Returns:
    An SVG element.
  """
  rows = [
    (arm_name(arm), _kind(arm, control=group == 'controls'), measured[metric])
    for group in ('arms', 'controls')
    for arm, measured in results[group].items()
    if metric in measured
  ]
  lines = results.get('references', {}).get(metric, {})
  ends = [0.0, *lines.values(), *(i[key] for _, _, i in rows for key in ('low', 'high'))]
  ticks = _ticks(min(ends), max(ends))
  left, right, top, step = 20 + 8 * max(len(label) for label, _, _ in rows), 184, 34, 34
  bottom = top + step * len(rows) + 6

  def x(value: float) -> float:
    return left + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (_WIDTH - left - right)

  unit = metrics_lib.unit(metric)
  name = metrics_lib.name(metric) + (f' ({unit})' if unit not in ('', '%') else '')
  out = [
    f'<svg viewBox="0 0 {_WIDTH} {bottom + 30}" role="img" aria-label="{escape(name)}">',
    f'<text x="0" y="16" class="h">{escape(name)}</text>',
  ]
  for tick, label in zip(ticks, _tick_labels(metric, ticks), strict=True):
    out.append(f'<path class="grid" d="M{x(tick):.1f} {top}V{bottom}"/>')
    out.append(f'<text class="tick mid" x="{x(tick):.1f}" y="{bottom + 18}">{label}</text>')
  for row, (label, kind, interval) in enumerate(rows):
    y, zero = top + step * row + step / 2 + 3, x(0.0)
    mean, low, high = (x(interval[key]) for key in ('mean', 'low', 'high'))
    out += [
      f'<text x="0" y="{y + 5}" class="label">{escape(label)}</text>',
      f'<rect class="bar {kind}" x="{min(zero, mean):.1f}" y="{y - 10}" rx="2" '
      f'width="{abs(mean - zero):.1f}" height="20"/>',
      f'<path class="whisker" d="M{low:.1f} {y}H{high:.1f}M{low:.1f} {y - 5}v10'
      f'M{high:.1f} {y - 5}v10"/>',
      f'<text x="{_WIDTH - 92}" y="{y + 5}" class="value b">',
      cell(metric, interval, '{}</text>' + f'<text x="{_WIDTH}" y="{y + 5}" class="value ci">'),
      cell(metric, interval, '{1}–{2}</text>'),
    ]
  for label, value in lines.items():
    out.append(f'<path class="ref" d="M{x(value):.1f} {top - 4}V{bottom}"/>')
    text = f'{escape(label)} {metrics_lib.format_value(metric, value)}'
    out.append(f'<text class="tick mid" x="{x(value):.1f}" y="{top - 9}">{text}</text>')
  return ''.join([*out, '</svg>'])


def curve_figure(curve: Mapping[str, Any]) -> str:
  """Draws series with their interval as a band.

  Args:
    curve: A curve, see `result_format.validate`.

  Returns:
    A figure element with its caption and legend.
  """
  metric, lines = curve.get('metric', ''), curve.get('references', {})
  series = curve['series']
  width, left, right, top, bottom = 470, 58, 12, 12, 250
  xs = sorted({float(x) for s in series.values() for x in s['x']})
  ends = [*lines.values(), *(y for s in series.values() for key in ('low', 'high') for y in s[key])]
  y_ticks = _ticks(min(ends), max(ends))
  warp = math.log10 if curve.get('logx') else float
  if len(xs) <= 7 or not curve.get('logx'):
    x_ticks = xs if len(xs) <= 7 else _ticks(xs[0], xs[-1])
  else:
    powers = range(math.floor(math.log10(xs[0])), math.ceil(math.log10(xs[-1])) + 1)
    x_ticks = [t for p in powers for k in (1, 2, 5) if xs[0] <= (t := k * 10.0**p) <= xs[-1]]
  start, end = warp(min(xs[0], *x_ticks[:1])), warp(max(xs[-1], *x_ticks[-1:]))

  def x(value: float) -> float:
    share = (warp(value) - start) / (end - start) if end > start else 0.5
    return left + share * (width - left - right)

  def y(value: float) -> float:
    return bottom - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (bottom - top)

  def path(points: Sequence[tuple[float, float]]) -> str:
    return 'M' + 'L'.join(f'{x(a):.1f} {y(b):.1f}' for a, b in points)

  out = [f'<svg viewBox="0 0 {width} 292" role="img" aria-label="{escape(curve["title"])}">']
  for tick, label in zip(y_ticks, _tick_labels(metric, y_ticks), strict=True):
    out.append(f'<path class="grid" d="M{left} {y(tick):.1f}H{width - right}"/>')
    out.append(f'<text class="tick end" x="{left - 8}" y="{y(tick) + 4:.1f}">{label}</text>')
  for tick in x_ticks:
    out.append(f'<text class="tick mid" x="{x(tick):.1f}" y="{bottom + 18}">{tick:,.4g}</text>')
  for label, value in lines.items():
    out.append(f'<path class="ref" d="M{left} {y(value):.1f}H{width - right}"/>')
    text = f'{escape(label)} {metrics_lib.format_value(metric, value)}'
    out.append(f'<text class="tick" x="{left + 6}" y="{y(value) - 5:.1f}">{text}</text>')
  legend = []
  for index, (name, s) in enumerate(series.items()):
    upper = list(zip(s['x'], s['high'], strict=True))
    lower = list(zip(s['x'], s['low'], strict=True))
    middle = list(zip(s['x'], s['mean'], strict=True))
    colour = f'c{index % 6}'
    out.append(f'<path class="band {colour}" d="{path(upper + lower[::-1])}Z"/>')
    out.append(f'<path class="line {colour}" d="{path(middle)}"/>')
    for a, b in middle:
      out.append(f'<circle class="dot {colour}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3.5"/>')
    legend.append(f'<span class="{colour}">{escape(arm_name(name))}</span>')
  centre = (left + width - right) / 2
  out.append(f'<text class="tick mid" x="{centre}" y="286">{escape(curve["xlabel"])}</text>')
  words = f'<b>{escape(curve["title"])}</b><br>{escape(curve["ylabel"])} {" ".join(legend)}'
  return f'<figure><figcaption>{words}</figcaption>{"".join(out)}</svg></figure>'
