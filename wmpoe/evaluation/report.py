"""One report for every results.json: a table for the terminal, a self-contained page to share.

`python -m wmpoe.evaluation.report results.json` makes report.html from any file in the format of
`wmpoe.evaluation.results`. The page loads nothing: charts are inline SVG, frames embedded PNG.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
import io
import itertools
import json
import os
import pathlib
import shutil
import sys
from typing import Any

from wmpoe import whole_file
from wmpoe.evaluation import charts
from wmpoe.evaluation import film
from wmpoe.evaluation import map_chart
from wmpoe.evaluation import metrics as metrics_lib
from wmpoe.evaluation import result_format
from wmpoe.evaluation import results as results_lib


def metrics_of(results: Mapping[str, Any]) -> list[str]:
  """Returns all metrics of arms and controls, in order of first appearance."""
  groups = [*results['arms'].values(), *results['controls'].values()]
  return list(dict.fromkeys(metric for measured in groups for metric in measured))


def headline(results: Mapping[str, Any], metric: str) -> str:
  """Returns one sentence that says what was found.

  Args:
    results: A result.
    metric: The metric it speaks of.

  Returns:
    The composed arm (else the best one that is no mere copy) against no memory and against its
    controls: where arms are counted (`all_480`, `rank_8_history_50`), those counted alike.
  """
  arms = {arm: m[metric] for arm, m in results['arms'].items() if metric in m}
  if not arms:
    return ''
  sign = -1 if metrics_lib.direction(metric) < 0 else 1
  best = max(arms, key=lambda arm: (
      charts.stem(arm)[0] == 'all', not arm.startswith('copy_'), sign * arms[arm]['mean']))
  found = arms[best]
  name = metrics_lib.name(metric)
  text = f'{charts.arm_name(best)}: {name if name[:2].isupper() else name[0].lower() + name[1:]} '
  text += charts.cell(metric, found, '{} ({}–{})')
  base = next((arm for arm in arms
               if arm.startswith('base') and best.endswith(arm.removeprefix('base'))), best)
  against = {} if base == best else {'without memory': arms[base]}
  for control, measured in results['controls'].items():
    kind, counted = charts.stem(control)
    if metric in measured and (not counted or f'_{counted}_' in f'_{best}_'):
      name = charts.arm_name(kind)
      against[f'with {name[0].lower()}{name[1:]}'] = measured[metric]
  others = [f'{charts.cell(metric, m, "{}")} {words}' for words, m in against.items()]
  return text + (', against ' + ', '.join(others) if others else '') + '.'


def terminal_table(results: Mapping[str, Any], *, width: int | None = None) -> str:
  """Returns arms and controls as an aligned table; with rules and headings if rich is installed.

  Args:
    results: A result.
    width: Characters per line; metrics that do not fit are left out, and counted below the table.
      By default, the terminal's width, and no limit where the output goes to a file.

  Returns:
    Lines of text without colour codes.
  """
  if width is None and sys.stdout.isatty():
    width = shutil.get_terminal_size().columns
  metrics = metrics_of(results)
  head = ['', *(metrics_lib.name(metric) for metric in metrics)]
  groups = []
  for group in ('arms', 'controls'):
    rows = []
    for arm, measured in results[group].items():
      cells = [charts.cell(metric, measured.get(metric), '{} [{}, {}]') for metric in metrics]
      rows.append([charts.arm_name(arm), *cells])
    groups.append(rows)
  if not metrics:
    return 'No arms; the report has the curves.'
  foot = f'[low, high]: 95 % bootstrap intervals, {_episodes(results, _main_metric(metrics))}.'
  lines = [head, *groups[0], *groups[1]]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  fits = [end <= width for end in itertools.accumulate(widths, lambda a, b: a + 2 + b)] if (
      width is not None) else [True] * len(widths)
  shown = max(2, sum(fits))  # the arms and at least one metric
  head, groups = head[:shown], [[row[:shown] for row in rows] for rows in groups]
  if shown <= len(metrics):
    more = len(metrics) + 1 - shown
    foot += f' {more} more metric{"s" * (more > 1)} in the report, or in a wider terminal.'
  try:
    import rich.box
    import rich.console
    import rich.table
  except ModuleNotFoundError:
    aligned = [
      '  '.join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
      for line in [head, *groups[0], *groups[1]]
    ]
    return '\n'.join([*aligned, foot])
  table = rich.table.Table(box=rich.box.SIMPLE_HEAD, show_edge=False)
  for index, title in enumerate(head):
    table.add_column(title, justify='right' if index else 'left', no_wrap=True)
  for rows in groups:
    for row in rows:
      table.add_row(*(cell.replace('[', r'\[') for cell in row))
    table.add_section()
  buffer = io.StringIO()
  everything = sum(widths) + 3 * len(widths)  # wide enough never to cut a cell
  rich.console.Console(file=buffer, width=everything, color_system=None).print(table)
  return '\n'.join([*(line.rstrip() for line in buffer.getvalue().rstrip().splitlines()), foot])


def render(
  results: Mapping[str, Any],
  out_dir: str | os.PathLike,
  *,
  strips: Sequence[film.Strip] | None = None,
  curves: Sequence[Mapping[str, Any]] | None = None,
  title: str = 'Memory experts, composed',
  main_metric: str | None = None,
  name: str = 'report.html',
) -> pathlib.Path:
  """Writes out_dir/report.html (or `name`), one file that needs no other.

  Args:
    results: A result, see `result_format.validate`.
    out_dir: Folder to write to, made if missing.
    strips: Film strips to show, e.g. truth / base / composed.
    curves: Curves to show, see `result_format.validate`; the result's own if None.
    title: Title of the page.
    main_metric: Metric of the headline and the first chart; recall if there, else the first.
    name: File name of the report.

  Returns:
    Path of the report.

  Raises:
    ValueError: The result is not in the one format, or lacks the main metric.
    OSError: The folder cannot be written.
  """
  if curves is not None:
    results = {**results, 'curves': list(curves)}
  result_format.validate(results)
  metrics = metrics_of(results)
  main = main_metric or _main_metric(metrics)
  if main and main not in metrics:
    raise ValueError(f'No arm has the metric {main!r}; expected one of {metrics}.')
  lead = charts.escape(headline(results, main))
  parts = [f'<header><h1>{charts.escape(title)}</h1><p class="lead">{lead}</p>']
  if main:
    parts.append(f'<p class="note">{_episodes(results, main)}; 95 % bootstrap intervals.</p>')
  parts.append('</header>')
  if main:
    parts += ['<section>', charts.bars(results, main), '</section>']
  if strips:
    parts += ['<section><h2>What was imagined</h2>', *map(film.svg, strips), '</section>']
  if results.get('maps'):
    drawn = map(map_chart.figure, results['maps'])
    parts += [
      '<section><h2>Where memory helped</h2><p class="note">The line is the path that was '
      'remembered; it starts at the dot. Each wedge is an imagined frame and points where the '
      'camera looked: filled if that view had been seen long ago, hollow if not.</p>',
      '<div class="pair">', *drawn, '</div></section>']
  if results.get('curves'):
    drawn = map(charts.curve_figure, results['curves'])
    parts += ['<section><h2>Curves</h2><div class="pair">', *drawn, '</div></section>']
  if metrics:
    parts += ['<section><h2>All measurements</h2>', _table(results, metrics)]
    rest = [charts.bars(results, metric) for metric in metrics if metric != main]
    if rest:
      parts += ['<details><summary>Charts of the other metrics</summary>', *rest, '</details>']
    parts.append('</section>')
  parts.append(_provenance(results['meta']))
  page = _PAGE.format(title=charts.escape(title), style=_STYLE, body='\n'.join(parts))
  return whole_file.write(pathlib.Path(out_dir) / name, page.encode())


def _main_metric(metrics: Sequence[str]) -> str:
  return 'recall' if 'recall' in metrics else next(iter(metrics), '')


def _episodes(results: Mapping[str, Any], metric: str) -> str:
  """Says over how many episodes and seeds a metric was measured."""
  groups = [*results['arms'].values(), *results['controls'].values()]
  counts = [measured[metric]['n'] for measured in groups if metric in measured]
  low, high, seeds = min(counts), max(counts), results['meta']['seeds']
  text = f'{low}' if low == high else f'{low} to {high}'
  text += ' episode' if high == 1 else ' episodes'
  several = isinstance(seeds, Sequence) and len(seeds) > 1 and not isinstance(seeds, str)
  return text + (f', {len(seeds)} seeds each' if several else '')


def _table(results: Mapping[str, Any], metrics: Sequence[str]) -> str:
  """Lays out means above their intervals; the best mean of each metric is bold."""
  best = {}
  for metric in metrics:
    values = [m[metric]['mean'] for m in results['arms'].values() if metric in m]
    costs = metrics_lib.unit(metric) in ('ms', 'bytes')  # least for what does least
    if metrics_lib.direction(metric) and values and not costs:
      top = max(values) if metrics_lib.direction(metric) > 0 else min(values)
      best[metric] = metrics_lib.format_value(metric, top)
  columns = [charts.escape(metrics_lib.name(metric)) for metric in metrics]
  head = ''.join(f'<th scope="col">{column}</th>' for column in columns)
  out = [f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead>']
  for group in ('arms', 'controls'):
    out.append(f'<tbody class="{group}">')
    for arm, measured in results[group].items():
      out.append(f'<tr><th scope="row">{charts.escape(charts.arm_name(arm))}</th>')
      for metric in metrics:
        interval = measured.get(metric)
        text = charts.cell(metric, interval, '<span>{}</span><small>{}–{}</small>')
        top = interval and metrics_lib.format_value(metric, interval['mean']) == best.get(metric)
        count = f' title="n = {interval["n"]}"' if interval else ''
        out.append(f'<td{" class=best" if top and group == "arms" else ""}{count}>{text}</td>')
      out.append('</tr>')
    out.append('</tbody>')
  return ''.join([*out, '</table></div>'])


def _provenance(meta: Mapping[str, Any]) -> str:
  """Lists where the numbers come from: everything in meta, nested values as JSON."""
  seconds = meta['seconds']
  facts = dict(meta)
  if isinstance(seconds, int | float):
    minutes = f'{seconds // 60:.0f} min {seconds % 60:.0f} s'
    facts['seconds'] = minutes if seconds >= 60 else f'{seconds:.1f} s'
  out = []
  for key, fact in facts.items():
    if key in ('machine', 'versions') and isinstance(fact, Mapping):
      fact = ' · '.join(f'{name} {value}' for name, value in fact.items())
    if key == 'seeds' and isinstance(fact, list):
      fact = ', '.join(map(str, fact))
    if isinstance(fact, dict | list):
      lines = charts.escape(json.dumps(fact, indent=2))
      text = f'<details><summary>show</summary><pre>{lines}</pre></details>'
    else:
      text = charts.escape(fact)
      text = f'<code>{text}</code>' if key in ('command', 'git') else text
    out.append(f'<dt>{charts.escape({"seconds": "time"}.get(key, key))}</dt><dd>{text}</dd>')
  return f'<footer><h2>Provenance</h2><dl>{"".join(out)}</dl></footer>'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>
<body><main>
{body}
</main></body></html>
"""
# Okabe-Ito colours, lightened for dark screens: told apart with any colour vision.
_STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c2128;--soft:#5b6472;--rule:#e3e7ec;
--base:#9aa4b1;--one:#5aa9dd;--sum:#0064a5;--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#b3578f;
--c4:#c78500;--c5:#5b6472;--ok:#009e73;--bad:#d55e00}
@media(prefers-color-scheme:dark){:root{--paper:#14181e;--ink:#e8ecf1;--soft:#9aa5b4;--rule:#2b323c;
--base:#6f7a88;--one:#3c83b4;--sum:#7cc8f5;--c0:#56b4e9;--c1:#ff8c42;--c2:#2fc79a;--c3:#dd8fbd;
--c4:#f0b93a;--c5:#9aa5b4;--ok:#2fc79a;--bad:#ff8c42}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,Helvetica,Arial,sans-serif}
main{max-width:1040px;margin:0 auto;padding:56px 40px 72px}h1{font-size:34px;line-height:1.2;
letter-spacing:-.02em;margin:0 0 14px}h2{font-size:20px;letter-spacing:-.01em;margin:0 0 16px}
.lead{font-size:20px;line-height:1.45;margin:0 0 8px;max-width:46em}
.note{color:var(--soft);margin:0}section,footer{margin-top:52px}svg{display:block;width:100%;height:auto;font-size:14px;
font-variant-numeric:tabular-nums}svg text{fill:var(--ink)}svg .h{font-weight:600;font-size:15px}
svg .tick{fill:var(--soft);font-size:12px}.mid{text-anchor:middle}.end,.value{text-anchor:end}
.b{font-weight:600}svg .ci{fill:var(--soft);font-size:12px}.grid{stroke:var(--rule)}
.ref{stroke:var(--soft);stroke-dasharray:4 4;fill:none}.whisker{stroke:var(--ink);stroke-width:1.5;
fill:none}.bar.base{fill:var(--base)}.bar.one{fill:var(--one)}.bar.sum{fill:var(--sum)}
.bar.ctrl{fill:var(--base);fill-opacity:.3;stroke:var(--base);stroke-dasharray:3 2}
.c0{--c:var(--c0)}.c1{--c:var(--c1)}.c2{--c:var(--c2)}.c3{--c:var(--c3)}.c4{--c:var(--c4)}
.c5{--c:var(--c5)}.band{fill:var(--c);opacity:.16}.line{stroke:var(--c);stroke-width:2.2;fill:none}
.dot{fill:var(--c);stroke:var(--paper);stroke-width:1.5}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(340px,1fr));gap:32px 20px}
.pair figure{margin:0}
figure{margin:0 0 28px}figcaption{margin-bottom:10px;font-size:14px;color:var(--soft)}
figcaption b{color:var(--ink);font-size:15px}figcaption span{color:var(--ink);margin-left:14px;
white-space:nowrap}figcaption span::before{content:"";display:inline-block;width:14px;height:4px;
border-radius:2px;background:var(--c);margin-right:6px;vertical-align:3px}
.wall{fill:var(--rule)}.free{fill:var(--paper)}.walked{fill:none;stroke:var(--soft);
stroke-width:1.6;opacity:.55;stroke-linejoin:round}.start{fill:var(--soft)}
.look{stroke-width:1.6;stroke-linejoin:round}.look.ok{fill:var(--ok);stroke:var(--ok)}
.look.bad{fill:var(--bad);stroke:var(--bad)}.look.hollow{fill:none}
svg image{image-rendering:pixelated}.mark{fill:none;stroke-width:2.5}
.mark.halo{stroke:#fff;stroke-width:4.5}.mark.ok{stroke:var(--ok)}
.mark.bad{stroke:var(--bad);stroke-dasharray:4 3}.key.ok{color:var(--ok)}.key.bad{color:var(--bad)}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:14px;
font-variant-numeric:tabular-nums}th,td{padding:8px 12px;text-align:right;vertical-align:top;
white-space:nowrap}th{font-weight:500}th:first-child{text-align:left;padding-left:0}
thead th{color:var(--soft);border-bottom:1px solid var(--ink)}tbody tr+tr>*{border-top:1px solid
var(--rule)}tbody.controls tr:first-child>*{border-top:1px solid var(--soft)}
td small{display:block;color:var(--soft);font-size:12px}td.best span{font-weight:700}
.controls th{color:var(--soft)}details{margin-top:18px}summary{cursor:pointer;color:var(--soft)}
details svg{margin-top:22px}footer{border-top:1px solid var(--rule);padding-top:28px;font-size:14px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:6px 24px;margin:0}dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}dd details{margin:0}code,pre{font:13px/1.5 ui-monospace,Menlo,
Consolas,monospace}@media(max-width:640px){main{padding:32px 18px}}
"""


def main(argv: Sequence[str] | None = None) -> pathlib.Path:
  """Makes report.html from a results.json and prints its table.

  Args:
    argv: Command-line arguments; those of the process if None.

  Returns:
    Path of the report.

  Raises:
    SystemExit: Bad arguments or a file that is no result; the message says which.
  """
  parser = argparse.ArgumentParser(
    prog='python -m wmpoe.evaluation.report', description='Make report.html from a results.json.'
  )
  parser.add_argument('results', help='a results.json')
  parser.add_argument('--out', help='folder for report.html; that of the results if not given')
  parser.add_argument('--title', default='Memory experts, composed', help='title of the page')
  options = parser.parse_args(argv)
  try:
    results = results_lib.read(options.results)
    out = options.out or pathlib.Path(options.results).parent
    path = render(results, out, title=options.title)
  except (OSError, ValueError) as error:
    parser.error(str(error))
  print(terminal_table(results))
  print(f'\nWrote {path}')
  return path


if __name__ == '__main__':
  main(sys.argv[1:])
