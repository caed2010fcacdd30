"""Tests of the tables of compiled programs."""

from wmpoe.aot import report

ROW = {
    'config': 'base', 'program': 'imagine', 'topology': 'v5e:4x4', 'chips': 16,
    'mesh': {'data': 4, 'expert': 4}, 'batch': 64, 'steps': 50, 'state_bytes': 40e6,
    'whole_state_bytes': 40e6, 'hbm': 16 * 2**30, 'needs': 2**31, 'fits': True, 'flops': 5e12,
    'wire_bytes': 1e8, 'network_bytes': 0.0,
    'collectives': {'all-reduce': {'count': 50, 'bytes': 1e8}},
    'seconds': 0.5, 'basis': 'cycles of the compiler', 'fraction_of_peak': 0.25,
    'compile_seconds': 12.0, 'jax': '1', 'libtpu': '2'}


def test_a_row_is_told_per_step():
  line = report.table([ROW]).splitlines()[-1]
  assert line == (
      '| base | imagine, a denoising step | v5e:4x4 | data=4 expert=4 | 64 episodes | 2.00 of 16 '
      '| 40.0 | 100.0 | 2.00 | 1 all-reduce | 10.00 | 25 % | 12 s |')


def test_what_does_not_fit_says_so_and_kernels_are_marked():
  refused = {k: v for k, v in ROW.items() if k not in ('flops', 'seconds', 'collectives')}
  line = report.table([{**refused, 'fits': False, 'needs': 20 * 2**30}]).splitlines()[-1]
  assert '**20.00 of 16: does not fit**' in line
  assert line.count('|') == report.table([ROW]).splitlines()[0].count('|')
  assert '| 10.00* |' in report.table([{**ROW, 'basis': 'published peaks'}])
  assert '| none |' in report.table([{**ROW, 'collectives': {}}])


def test_what_goes_out_of_a_slice_is_told_beside_what_stays_inside():
  two = {**ROW, 'topology': '2xv5e:4x4', 'chips': 32, 'batch': 128, 'network_bytes': 4e7}
  assert '| 2.00 + 0.80 out |' in report.table([two])
  [line] = [line for line in report.findings([two, ROW]) if 'to 2xv5e:4x4' in line]
  assert line.endswith('+0.0 % sent by a chip, +0.0 % time; 40.0 MB go out of a slice.')


def test_comparison_and_page():
  twice = {**ROW, 'config': 'base_1b', 'flops': 1e13, 'seconds': 1.0}
  line = report.comparison([ROW], [twice]).splitlines()[-1]
  assert line == '| imagine | v5e:4x4 | 1.00 | 1.00 | 2.00 | 1.00 | 2.00 |'
  page = report.page([twice, ROW], 'python -m wmpoe compile ...')
  assert page.index('| base |') < page.index('| base_1b |')
  assert 'jax 1, libtpu 2' in page


def test_findings_compare_rows_that_differ_in_one_thing():
  train = {
      **ROW, 'program': 'train', 'mesh': {'fsdp': 8}, 'chips': 8, 'topology': 'v5e:2x4', 'steps': 1,
      'batch': 64, 'state_bytes': 1.02e6, 'whole_state_bytes': 8e6}
  more = {
      **train, 'mesh': {'fsdp': 8, 'data': 32}, 'chips': 256, 'topology': 'v5e:16x16',
      'batch': 2048, 'wire_bytes': 1.05e8, 'seconds': 0.51}
  other = {**more, 'batch': 4096}  # more work a chip: not to be compared
  alone = {**ROW, 'mesh': {'data': 4}, 'chips': 4, 'topology': 'v5e:2x2', 'seconds': 0.4}
  composed = {**ROW, 'config': 'base + short_term'}
  written = {**ROW, 'program': 'write', 'collectives': {}}
  lines = report.findings([more, train, other, composed, alone, written])
  assert 'base on v5e:2x4: a chip holds 1/8 of parameters and optimiser and 2.0 % more.' in lines
  assert ('train, base, v5e:2x4 to v5e:16x16 at 8 examples a chip: +5.0 % sent by a chip, +2.0 % '
          'time.') in lines
  assert sum('to v5e:16x16' in line for line in lines) == 1
  assert ('base + short_term with an expert axis of 4 on v5e:4x4: 1.25 times the denoising step of '
          'base alone on v5e:2x2, both with 16 episodes on a device.') in lines
  assert ('base on v5e:4x4: 64 episodes are written in one call, in which a chip sends '
          'nothing.') in lines
