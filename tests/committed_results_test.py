"""What the documents say of results is what the committed results say, and the gates hold."""

import json
import pathlib

import pytest

from wmpoe.evaluation import results

_ROOT = pathlib.Path(__file__).parents[1]
_CARDS = {
    'base, no memory': 'base', '+ short-term': 'short_term',
    '+ long-term (100 LoRA steps)': 'long_term',
    '+ long-term, walked in a new order': 'long_term_new_order', '+ spatial': 'spatial',
    '**all composed**': 'all', "all, another episode's memory": 'other_episode',
    'all, history in random order': 'shuffled_history'}
_MAZE = {
    'copy: last frame': 'copy_last', 'copy: mean of the history': 'copy_mean',
    'copy: nearest past frame in true pose': 'copy_pose',
    '... turned to the asked heading': 'copy_turned',
    '... 8 of them, warped by their depth': 'copy_warped', 'base, no memory': 'base',
    '+ short-term': 'short_term', '+ long-term': 'long_term',
    '+ short-term and long-term': 'short_term+long_term', '+ spatial': 'spatial',
    '+ short-term and spatial': 'short_term+spatial',
    '+ spatial, poses from odometry': 'spatial_odometry',
    '+ spatial, depth from the simulator': 'spatial_depth', 'all composed': 'all',
    'all, naive product': 'naive_product', "all, another episode's memory": 'other_episode',
    'all, history in random order': 'shuffled_history'}


def _arms(path):
  out = results.read(_ROOT / 'results' / path)
  return {**out['arms'], **out['controls']}


def _rows(document, head):
  """Cells of the rows of the table whose head begins so, by their first cell."""
  lines = (_ROOT / document).read_text(encoding='utf-8').splitlines()
  start = next(i for i, line in enumerate(lines) if line.startswith(head))
  rows = {}
  for line in lines[start + 2:]:
    if not line.startswith('|'):
      return rows
    name, *cells = (cell.strip() for cell in line.strip('|').split('|'))
    rows[name] = cells
  return rows


def _told(value, digits, unit='', scale=1.0, bounds=True):
  number = lambda key: f'{scale * value[key]:.{digits}f}'
  interval = f' [{number("low")}, {number("high")}]' if bounds else ''
  return f'{number("mean")}{unit}{interval}'


def test_the_cards_table_of_the_readme():
  arms, rows = _arms('cards/recall.json'), _rows('README.md', '| memory | recall |')
  assert rows.keys() == _CARDS.keys()
  for name, arm in _CARDS.items():
    assert rows[name] == [
        *(_told(arms[arm][metric], 1, ' %', 100.0) for metric in (
            'recall', 'recall_in_window', 'recall_outside', 'tile_mse_recall')),
        _told(arms[arm]['covered_again'], 2, ' %', 100.0), _told(arms[arm]['psnr'], 1, ' dB')], name


def test_the_maze_table_of_the_readme():
  arms = _arms('memory_maze_cpu/revisit.json')
  rows = _rows('README.md', '| | LPIPS (VGG), all frames |')
  assert rows.keys() == _MAZE.keys()
  for name, arm in _MAZE.items():
    cut = lambda metric, arm=arm: (
        '' if arm == 'base' else _told(arms[arm][f'{metric}_cut'], 0, ' %', 100.0))
    plain = lambda metric, arm=arm: _told(arms[arm][metric], 3)
    assert rows[name] == [
        plain('lpips_vgg'), cut('lpips_vgg'), plain('lpips_vgg_revisited'),
        cut('lpips_vgg_revisited'), plain('lpips_vgg_unseen'),
        _told(arms[arm]['psnr_revisited'], 1, ' dB')], name


def test_table1_of_the_guide():
  arms = _arms('memory_maze_cpu/table1.json')
  rows = _rows('docs/memory_maze.md', '| | LPIPS (VGG) | cut against base | SSIM')
  assert rows.keys() == _MAZE.keys()
  for name, arm in _MAZE.items():
    assert rows[name] == [
        _told(arms[arm]['lpips_vgg'], 3),
        '' if arm == 'base' else _told(arms[arm]['lpips_vgg_cut'], 0, ' %', 100.0),
        _told(arms[arm]['ssim'], 3, bounds=False),
        _told(arms[arm]['psnr'], 1, ' dB', bounds=False)], name


def test_cards_are_remembered():
  arms = _arms('cards/recall.json')
  recall = lambda arm, metric='recall': arms[arm][metric]['mean']
  assert {each['recall']['n'] for each in arms.values()} == {64}
  assert abs(recall('base') - 1 / 8) < 0.03 and recall('base', 'covered') < 0.02
  assert recall('short_term', 'recall_in_window') >= 0.95
  assert abs(recall('short_term', 'recall_outside') - 1 / 8) < 0.03
  assert recall('long_term') >= 0.9
  assert recall('long_term_new_order') > recall('long_term') - 0.05
  assert recall('spatial') >= 0.97
  assert recall('all') >= max(0.99, *(
      recall(each) - 0.005 for each in ('short_term', 'long_term', 'spatial')))
  assert recall('other_episode') <= 1 / 8 + 0.03
  assert recall('all', 'covered_again') < 0.005
  assert recall('all', 'psnr') > max(
      recall(each, 'psnr') for each in ('short_term', 'long_term', 'spatial'))
  steps = _arms('cards/steps.json')
  assert steps['long_term_50']['recall']['mean'] >= 0.79
  assert steps['long_term_100']['write_ms_per_episode']['mean'] <= 1500


def test_half_of_the_best_matmul_is_reached():
  found = json.loads((_ROOT / 'benchmarks' / 'results' / 'speed.json').read_text())
  for name in 'training_step', 'training_step_paper', 'inner_loop':
    assert found[name]['of_best_matmul'] >= 0.5, name
  assert found['writing']['ratio'] <= 1 and found['traces'] == {'observe': 1, 'imagine': 1}


def test_mazes_are_remembered():
  arms = _arms('memory_maze_cpu/revisit.json')
  seen, everywhere = 'lpips_vgg_revisited', 'lpips_vgg'
  value = lambda arm, metric=seen, bound='mean': arms[arm][metric][bound]
  assert min(each[everywhere]['n'] for each in arms.values()) >= 32
  for metric in seen, everywhere:
    assert value('base', metric) < min(value(copy, metric) for copy in ('copy_last', 'copy_mean'))
  assert value('spatial', f'{seen}_cut') >= 0.28
  assert value('spatial', 'psnr_revisited') > value('copy_pose', 'psnr_revisited')
  assert value('long_term', f'{seen}_cut', 'low') > 0
  assert value('short_term', 'lpips_vgg_in_window_cut', 'low') > 0
  ours = ('short_term', 'long_term', 'spatial', 'short_term+long_term', 'spatial_odometry', 'full',
          'sliding', 'ssm', 'history_guidance_v', 'history_guidance_t', 'naive_product')
  for metric in seen, everywhere:
    assert value('all', metric) < min(value(arm, metric) for arm in ours) + 0.001
  assert value('all', 'lpips_vgg_unseen') < value('base', 'lpips_vgg_unseen')
  assert value('other_episode') > value('base')
  cost = lambda arm: arms[arm]['train_tflop']['mean']
  assert cost('full') >= cost('all')
  gain = lambda arm: value('base') - value(arm)
  assert gain('spatial_odometry') >= 0.8 * gain('spatial')
  small = _arms('memory_maze_cpu/two_views/rank.json')
  for rank, gate in (16, 2), (64, 4):
    arm = small[f'rank_{rank}_history_200']
    written = 200 * arm['write_ms_per_frame']['mean']
    assert written < gate * 17 * arm['read_ms_per_frame']['mean']


@pytest.mark.parametrize('path', sorted(
    str(p.relative_to(_ROOT)) for world in ('cards', 'memory_maze_cpu', 'own_data')
    for p in (_ROOT / 'results' / world).rglob('*.json')))
def test_every_result_names_what_made_it(path):
  meta = results.read(_ROOT / path)['meta']
  assert meta['command'].startswith('python -m wmpoe eval ')
  assert meta['seeds'] and meta['seconds'] > 0 and meta['machine'] and meta['versions']['jax']
  assert len(meta['git'].removesuffix('-dirty')) == 40
