"""Tables of compiled programs, as Markdown: one over slices, one that compares two configs."""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

_UNITS = {'train': 'examples', 'write': 'episodes', 'imagine': 'episodes'}
_STEPS = {'train': 'an update', 'write': 'an inner step', 'imagine': 'a denoising step'}
NOTES = """\
Nothing here was run: every number is read off a program that the TPU compiler made on a machine
without a TPU, and none is a measurement.

- *HBM* is what arguments, results, temporaries and code take on one chip, of what the chip has.
  *State* is what one chip holds of parameters, their average and the optimiser (of memories, for
  `write`).
- *FLOPs* are those of matmuls and convolutions in the program as written, with what is recomputed,
  loops as often as they turn, divided by the chips.
- *Sent* is what one chip sends in collectives by ring algorithms, read from the compiled text, as
  often as it runs. A collective that the compiler unrolled counts each time. What goes *out* of a
  slice, over the data-center network, is listed after what stays inside.
- *Estimate* is the sum of the cycles that the compiler expects of each instruction, at the clock
  that follows from the chip's published peak, and the time that what is sent takes: on all links,
  and out of a slice on a chip's share of the published network, as if nothing overlapped. The
  compiler's own total, `optimal_seconds`, is kept in the JSON files (`compiler.seconds`) and not
  used: it counts a loop once, and is negative where collectives overlap with computation or a
  custom kernel is inside. With a custom kernel the estimate is FLOPs and bytes against the
  published peaks, marked with a star.
- Where v5p and v6e warp pictures (`spatial`), their SparseCores are left out: jax does not read a
  program back that uses them. A run uses them, and may be faster.
- *Of peak* is the FLOPs over the estimate, of the chip's published bfloat16 peak.
"""


def table(rows: Sequence[Row]) -> str:
  """One line per program; per step where a program does several."""
  head = (
      'config', 'program', 'slice', 'mesh', 'batch', 'HBM, GiB', 'state, MB', 'GFLOPs',
      'sent, MB', 'collectives', 'estimate, ms', 'of peak', 'compiled in')
  lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
  for row in sorted(rows, key=_order):
    lines.append('| ' + ' | '.join(_cells(row)) + ' |')
  return '\n'.join(lines)


def _order(row: Row) -> tuple[Any, ...]:
  return row['program'], row['config'], _generation(row), row['chips'], str(row)


def _generation(row: Row) -> str:
  """'v5e', of one slice or of several."""
  return row['topology'].partition(':')[0].rpartition('x')[2]


def _cells(row: Row) -> list[str]:
  gib = 2.0**30
  needs = f'{row["needs"] / gib:.2f} of {row["hbm"] / gib:.0f}'
  lead = [
      row['config'], f'{row["program"]}, {_STEPS[row["program"]]}', row['topology'],
      ' '.join(f'{axis}={size}' for axis, size in row['mesh'].items()) or 'one',
      f'{row["batch"]} {_UNITS[row["program"]]}',
      needs if row['fits'] else f'**{needs}: does not fit**', f'{row["state_bytes"] / 1e6:.1f}']
  compiled = f'{row["compile_seconds"]:.0f} s'
  if not row['fits']:
    return [*lead, '', '', '', '', '', compiled]
  each = row['steps']
  kinds = ', '.join(
      f'{cells["count"] / each:.4g} {kind}' for kind, cells in sorted(row['collectives'].items()))
  star = '' if row['basis'].startswith('cycles') else '*'
  out = f' + {row["network_bytes"] / each / 1e6:.2f} out' if row['network_bytes'] else ''
  return [
      *lead, f'{row["flops"] / each / 1e9:.1f}', f'{row["wire_bytes"] / each / 1e6:.2f}{out}',
      kinds or 'none', f'{1e3 * row["seconds"] / each:.2f}{star}',
      f'{100 * row["fraction_of_peak"]:.0f} %', compiled]


def comparison(first: Sequence[Row], second: Sequence[Row]) -> str:
  """What the second config's programs take of the first's, slice by slice."""
  head = ('program', 'slice', 'HBM', 'state', 'FLOPs', 'sent', 'estimate')
  lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
  others = {(row['program'], row['topology']): row for row in second}
  for row in sorted(first, key=_order):
    other = others.get((row['program'], row['topology']))
    if other is None:
      continue
    share = lambda key, a=row, b=other: (
        f'{b[key] / a[key]:.2f}' if a.get(key) and b.get(key) is not None else '')
    lines.append('| ' + ' | '.join([
        row['program'], row['topology'],
        *map(share, ('needs', 'state_bytes', 'flops', 'wire_bytes', 'seconds'))]) + ' |')
  return '\n'.join(lines)


def findings(rows: Sequence[Row]) -> list[str]:
  """What rows that differ in one thing say of it: state by fsdp, chips, experts, episodes."""
  fitting = sorted((row for row in rows if row['fits']), key=_order)
  lines = []
  for row in fitting:
    if row['program'] == 'train':
      shares = row['mesh'].get('fsdp', 1) * row['mesh'].get('tensor', 1)
      excess = row['state_bytes'] * shares / row['whole_state_bytes'] - 1
      lines.append(
          f'{row["config"]} on {row["topology"]}: a chip holds 1/{shares} of parameters and '
          f'optimiser and {100 * excess:.1f} % more.')
    if row['program'] == 'write':
      sent = 'nothing' if not row['collectives'] else f'{row["wire_bytes"] / 1e6:.1f} MB'
      lines.append(
          f'{row["config"]} on {row["topology"]}: {row["batch"]} episodes are written in one call, '
          f'in which a chip sends {sent}.')
  for few, many in _pairs(fitting, _scaled):
    if many['chips'] > few['chips']:
      growth = lambda key, a=few, b=many: (
          f'{100 * (b[key] / a[key] - 1):+.1f} %' if a[key] else f'from 0 to {b[key]:.3g}')
      lines.append(
          f'{many["program"]}, {many["config"]}, {few["topology"]} to {many["topology"]} at '
          f'{many["batch"] / many["chips"]:g} {_UNITS[many["program"]]} a chip: '
          f'{growth("wire_bytes")} sent by a chip, {growth("seconds")} time'
          + (f'; {many["network_bytes"] / 1e6:.1f} MB go out of a slice.'
             if many['network_bytes'] else '.'))
  for alone, composed in _pairs(fitting, _sampled):
    if '+' in composed['config'] and '+' not in alone['config']:
      slower = composed['seconds'] / composed['steps'] * alone['steps'] / alone['seconds']
      lines.append(
          f'{composed["config"]} with an expert axis of {composed["mesh"].get("expert", 1)} on '
          f'{composed["topology"]}: {slower:.2f} times the denoising step of {alone["config"]} '
          f'alone on {alone["topology"]}, both with {_share(alone):g} episodes on a device.')
  return lines


def _pairs(rows: Sequence[Row], key: Any) -> list[tuple[Row, Row]]:
  """The first row of each kind with each later one."""
  first: dict[Any, Row] = {}
  pairs = []
  for row in rows:
    kind = key(row)
    if kind is not None:
      pairs += [(first[kind], row)] if kind in first else []
      first.setdefault(kind, row)
  return pairs


def _share(row: Row) -> float:
  """Episodes on a device."""
  return row['batch'] / row['mesh'].get('data', 1)


def _scaled(row: Row) -> Any:
  """Rows that differ in nothing but the number of chips, each with the same work."""
  axes = tuple(sorted((a, n) for a, n in row['mesh'].items() if a != 'data'))
  return (row['program'], row['config'], _generation(row), axes, row['batch'] / row['chips'])


def _sampled(row: Row) -> Any:
  """Samplers with as many episodes on a device of the same kind."""
  if row['program'] != 'imagine':
    return None
  return _generation(row), _share(row)


def page(rows: Sequence[Row], command: str) -> str:
  """A page of all rows with what the columns mean."""
  versions = sorted({f'jax {row["jax"]}, libtpu {row["libtpu"]}' for row in rows})
  return (
      f'# Compiled for TPUs\n\n{NOTES}\n{table(rows)}\n\n'
      f'{"".join(f"- {line}{chr(10)}" for line in findings(rows))}\n'
      f'Made with {"; ".join(versions)}; last by `{command}`.\n')
