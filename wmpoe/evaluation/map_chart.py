"""A map of a maze as inline SVG: what was remembered, what was asked for, where memory helped."""

from __future__ import annotations

from collections.abc import Mapping
import math
from typing import Any

import numpy as np

from wmpoe.evaluation import charts
from wmpoe.evaluation import metrics as metrics_lib

_WIDTH = 470


def figure(drawn: Mapping[str, Any]) -> str:
  """Draws a map, y upwards.

  Wedges point where the camera looked. Green: the arm was closer to the truth than the base; red:
  further away; the stronger the colour, the larger the difference. Filled: seen long ago; hollow:
  not.

  Args:
    drawn: A map, see `result_format.validate`.

  Returns:
    A figure element with its caption and legend.
  """
  path, asked, layout = np.array(drawn['path']), drawn['asked'], np.array(drawn['layout'])
  xs = [*path[:, 0], *(dot['x'] for dot in asked)]
  ys = [*path[:, 1], *(dot['y'] for dot in asked)]
  left, low, right, high = min(xs), min(ys), max(xs), max(ys)
  if layout.size:
    left, low, right, high = 0.0, 0.0, float(layout.shape[1]), float(layout.shape[0])
  margin = 0.3
  scale = _WIDTH / (max(right - left, 1e-6) + 2 * margin)
  height = scale * (high - low + 2 * margin)
  x = lambda value: scale * (value - left + margin)
  y = lambda value: height - scale * (value - low + margin)
  out = [f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" '
         f'aria-label="{charts.escape(drawn["title"])}">']
  if layout.size:
    out.append(f'<rect class="wall" width="{_WIDTH}" height="{height:.0f}"/>')
    out += [f'<rect class="free" x="{x(column):.1f}" y="{y(row + 1):.1f}" width="{scale + .5:.1f}" '
            f'height="{scale + .5:.1f}"/>' for row, column in np.argwhere(layout)]
  line = 'L'.join(f'{x(a):.1f} {y(b):.1f}' for a, b in path)
  out.append(f'<path class="walked" d="M{line}"/>')
  out.append(f'<circle class="start" cx="{x(path[0, 0]):.1f}" cy="{y(path[0, 1]):.1f}" r="4"/>')
  top = max((abs(dot['gain']) for dot in asked), default=0.0) or 1.0
  for dot in asked:
    out.append(_wedge(dot, x(dot['x']), y(dot['y']), abs(dot['gain']) / top, drawn['metric']))
  compared = charts.arm_name(drawn['arm'])
  words = (f'<b>{charts.escape(drawn["title"])}</b><br>'
           f'{charts.escape(metrics_lib.name(drawn["metric"]))} '
           f'<span class="c2">{charts.escape(compared)} better than base</span>'
           '<span class="c1">worse</span>')
  return f'<figure><figcaption>{words}</figcaption>{"".join(out)}</svg></figure>'


def _wedge(dot: Mapping[str, Any], x: float, y: float, strength: float, metric: str) -> str:
  """A frame that was asked for, as a triangle that points where the camera looked."""
  size, heading = 9.0, dot['heading']
  corners = ((1.0, 0.0), (0.7, 2.5), (0.7, -2.5))  # reach, angle from the heading
  points = ' '.join(
      f'{x + size * r * math.cos(heading + a):.1f},{y - size * r * math.sin(heading + a):.1f}'
      for r, a in corners)
  better = 'ok' if dot['gain'] > 0 else 'bad'
  hollow = '' if dot['seen'] == 'revisited' else ' hollow'
  # What is told in colour is told in words, too, where a pointer rests on it.
  said = f'{dot["seen"]}, {metrics_lib.format_value(metric, abs(dot["gain"]))} ' + (
      'better' if better == 'ok' else 'worse')
  return (f'<polygon class="look {better}{hollow}" points="{points}" '
          f'opacity="{0.25 + 0.75 * strength:.2f}"><title>{charts.escape(said)}</title></polygon>')
