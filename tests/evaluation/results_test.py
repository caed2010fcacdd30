"""Bootstrap intervals and the one result format."""

import copy
import json
import os
import subprocess

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from wmpoe.evaluation import result_format
from wmpoe.evaluation import results


def _interval(mean=0.5):
  return {'mean': mean, 'low': mean - 0.1, 'high': mean + 0.1, 'n': 4}


def _result():
  meta = dict.fromkeys(result_format.META_KEYS, 'x') | {'seeds': [0], 'seconds': 1.0}
  series = {'x': [1, 2], 'mean': [0.1, 0.2], 'low': [0.0, 0.1], 'high': [0.2, 0.3]}
  curve = {'title': 'c', 'xlabel': 'x', 'ylabel': 'y', 'series': {'base': series}}
  return {
    'meta': meta,
    'arms': {'base': {'recall': _interval()}},
    'controls': {'other_episode': {'recall': _interval()}},
    'references': {'recall': {'chance': 0.125}},
    'curves': [curve],
  }


def test_bootstrap_matches_the_normal_interval_of_many_episodes():
  values = np.random.default_rng(1).normal(2.0, 1.0, 400)
  got = results.bootstrap(values, seed=0)
  half = 1.96 * values.std() / np.sqrt(400)
  assert got['mean'] == pytest.approx(values.mean()) and got['n'] == 400
  assert got['low'] == pytest.approx(values.mean() - half, abs=0.1 * half)
  assert got['high'] == pytest.approx(values.mean() + half, abs=0.1 * half)
  narrow = results.bootstrap(values, seed=0, confidence=0.5)
  assert got['low'] < narrow['low'] < narrow['high'] < got['high']


def test_bootstrap_is_a_function_of_its_seed_and_not_of_its_chunks(monkeypatch):
  values = np.random.default_rng(2).random(12)
  first = results.bootstrap(values, seed=3, resamples=500)
  assert results.bootstrap(values, seed=3, resamples=500) == first
  assert results.bootstrap(values, seed=4, resamples=500) != first
  monkeypatch.setattr(results, '_CHUNK', 100)
  assert results.bootstrap(values, seed=3, resamples=500) == pytest.approx(first)


def test_the_interval_contains_the_mean_even_where_percentiles_do_not():
  # The mean of skewed values lies off the median of its resamples.
  values = np.random.default_rng(0).exponential(size=6) ** 3
  for sign in (1, -1):
    got = results.bootstrap(sign * values, seed=0, confidence=0.01)
    assert got['low'] <= got['mean'] <= got['high']
    assert got['low'] < got['high']


def test_seeds_are_averaged_within_their_episode():
  # Seeds that disagree wildly but equally in each episode leave nothing uncertain.
  values = np.tile([0.0, 1.0, 0.5], (8, 1))
  assert results.bootstrap(values, seed=0) == {'mean': 0.5, 'low': 0.5, 'high': 0.5, 'n': 8}
  spread = np.random.default_rng(0).random((8, 3))
  assert results.bootstrap(spread, seed=0) == pytest.approx(
    results.bootstrap(spread.mean(axis=1), seed=0)
  )


def test_weighted_bootstrap_is_a_ratio_of_sums():
  values, weights = np.array([1.0, 0.0, np.nan]), np.array([3.0, 1.0, 0.0])
  got = results.bootstrap(values, seed=0, weights=weights)
  assert got['mean'] == 0.75 and got['n'] == 2 and (got['low'], got['high']) == (0.0, 1.0)
  seeds = np.array([[1.0, 0.0], [0.0, 0.0]])
  got = results.bootstrap(seeds, seed=0, weights=np.array([[3, 1], [2, 2]]))
  assert got['mean'] == 3 / 8
  assert results.bootstrap(seeds, seed=0, weights=np.array([1, 3]))['mean'] == 1 / 8


def test_paired_bootstrap_removes_the_spread_between_episodes():
  rng = np.random.default_rng(5)
  episode = rng.normal(0, 10, 40)
  a, b = episode + 0.5 + rng.normal(0, 0.1, 40), episode
  got = results.paired_bootstrap(a, b, seed=0)
  assert 0.4 < got['low'] < got['mean'] < got['high'] < 0.6
  assert results.paired_bootstrap(a, a, seed=0) == {'mean': 0, 'low': 0, 'high': 0, 'n': 40}
  with pytest.raises(ValueError, match=r'a\[40\] and b\[39\]'):
    results.paired_bootstrap(a, b[:39], seed=0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=9), st.integers(0, 99))
def test_every_bootstrap_is_a_valid_interval_inside_the_data(values, seed):
  got = results.bootstrap(np.array(values), seed=seed, resamples=50)
  result = _result()
  result['arms']['base']['recall'] = got
  result_format.validate(result)
  assert min(values) - 1e-9 <= got['low'] <= got['high'] <= max(values) + 1e-9


@pytest.mark.parametrize(
  ('values', 'options', 'message'),
  [
    (np.zeros(0), {}, r'shape \[0\]'),
    (np.zeros((2, 2, 2)), {}, r'\[2, 2, 2\]; expected non-empty \[E\] or \[E S\]'),
    (np.array([1, np.nan, 2, np.inf]), {}, r'episodes \[1, 3\] are not finite'),
    (np.ones(2), {'weights': np.array([1, -1])}, 'nonnegative'),
    (np.ones(2), {'weights': np.zeros(2)}, 'not all 0'),
    (np.ones((3, 2)), {'weights': np.ones((3, 4))}, r'\[3, 4\]; expected \[E\] or \[3, 2\]'),
    (np.ones(2), {'resamples': 0}, 'resamples=0'),
    (np.ones(2), {'confidence': 95}, 'confidence=95'),
  ],
)
def test_bootstrap_refuses_what_it_cannot_mean(values, options, message):
  with pytest.raises(ValueError, match=message):
    results.bootstrap(values, seed=0, **options)


def test_make_takes_numpy_and_returns_plain_json():
  given_result = _result()
  given_result['arms']['base']['recall'] = {
    'mean': np.float32(0.5), 'low': np.float64(0.25), 'high': np.float32(0.75), 'n': np.int64(4)
  }
  made = results.make(
    given_result['meta'], given_result['arms'], given_result['controls'],
    references=given_result['references'],
  )
  expected = {'mean': 0.5, 'low': 0.25, 'high': 0.75, 'n': 4}
  assert made['arms']['base']['recall'] == expected
  assert list(made) == ['meta', 'arms', 'controls', 'references']
  json.dumps(made)


def _set(*path, value):
  def change(result):
    for key in path[:-1]:
      result = result[key]
    result[path[-1]] = value
  return change


def _drop(*path):
  def change(result):
    for key in path[:-1]:
      result = result[key]
    del result[path[-1]]
  return change


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (_drop('controls'), r"results lacks the keys \['controls'\]"),
    (_set('extra', value=1), r"unknown keys \['extra'\]"),
    (_drop('meta', 'git'), r"meta lacks the keys \['git'\]"),
    (_set('arms', value=[]), r'arms is a list; expected an object'),
    (_set('arms', 'base', value={}), r'arms\.base is empty'),
    (_drop('arms', 'base', 'recall', 'n'), r"arms\.base\.recall lacks the keys \['n'\]"),
    (_set('arms', 'base', 'recall', 'mean', value=float('nan')), 'mean=nan.*finite'),
    (_set('arms', 'base', 'recall', 'mean', value=True), 'mean=True.*finite'),
    (_set('arms', 'base', 'recall', 'low', value=0.7), 'low<=mean<=high'),
    (_set('controls', 'other_episode', 'recall', 'n', value=0), r'other_episode\.recall has n=0'),
    (_set('controls', 'other_episode', 'recall', 'n', value=2.5), 'n=2.5'),
    (_set('references', 'recall', 'chance', value='low'), r"references\.recall\.chance is 'low'"),
    (_set('curves', value=3), 'curves is a int'),
    (_drop('curves', 0, 'xlabel'), r"curves\[0\] lacks the keys \['xlabel'\]"),
    (_set('curves', 0, 'series', value={}), r'curves\[0\]\.series is empty'),
    (_set('curves', 0, 'series', 'base', 'x', value=[1]), r'lengths \[1, 2\]'),
    (_set('curves', 0, 'series', 'base', 'x', value=[1, None]), 'not finite numbers'),
  ],
)
def test_validate_names_what_is_wrong(change, message):
  result_format.validate(_result())
  result = copy.deepcopy(_result())
  change(result)
  with pytest.raises(ValueError, match=message):
    result_format.validate(result)


def test_validate_refuses_a_logarithm_of_zero():
  result = _result()
  result['curves'][0] |= {'logx': True}
  result_format.validate(result)
  result['curves'][0]['series']['base']['x'][0] = 0
  with pytest.raises(ValueError, match='logarithmic axis needs x > 0'):
    result_format.validate(result)


def test_arms_may_be_missing_only_where_there_are_curves():
  result = _result()
  result['arms'] = {}
  result_format.validate(result)
  del result['curves']
  with pytest.raises(ValueError, match='arms is empty'):
    result_format.validate(result)


def test_write_then_read_gives_the_same_and_leaves_no_litter(tmp_path):
  path = tmp_path / 'new' / 'folder' / 'results.json'
  assert results.write(path, _result()) == path
  assert results.read(path) == _result()
  assert os.listdir(path.parent) == ['results.json']


@pytest.mark.parametrize('call', ['fsync', 'replace'])
def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch, call):
  path = tmp_path / 'results.json'
  results.write(path, _result())
  old = path.read_bytes()
  bad = _result()
  bad['arms']['base']['recall']['n'] = -1
  with pytest.raises(ValueError, match='n=-1'):
    results.write(path, bad)

  def full(*arguments):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, call, full)
  with pytest.raises(OSError, match='No space left.*choose a folder'):
    results.write(path, _result())
  assert path.read_bytes() == old and os.listdir(tmp_path) == ['results.json']


def test_write_says_so_when_the_folder_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('in the way')
  with pytest.raises(OSError, match='Cannot write .*choose a folder you may write to'):
    results.write(tmp_path / 'file' / 'results.json', _result())


def test_read_names_the_file_it_cannot_use(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'No results at .*nowhere\.json'):
    results.read(tmp_path / 'nowhere.json')
  (tmp_path / 'half.json').write_text('{"meta": ')
  with pytest.raises(ValueError, match=r'half\.json is not a results file: Expecting value'):
    results.read(tmp_path / 'half.json')
  (tmp_path / 'other.json').write_text('{"meta": {}}')
  with pytest.raises(ValueError, match=r"other\.json is not .* lacks the keys \['arms'"):
    results.read(tmp_path / 'other.json')


def test_meta_has_every_key_and_real_versions():
  meta = results.meta(['python', 'run'], {'size': 32}, seeds=[np.int64(3)], seconds=1.23456, x=1)
  assert list(meta) == [*result_format.META_KEYS, 'x']
  assert meta['command'] == 'python run' and meta['seeds'] == [3] and meta['seconds'] == 1.235
  assert meta['versions']['numpy'] == np.__version__
  assert set(meta['versions']) == {'jax', 'flax', 'optax', 'numpy', 'python', 'wmpoe'}
  assert meta['machine']['cores'] >= 1 and meta['machine']['cpu']
  json.dumps(meta)


def test_git_is_the_packages_own_commit_or_unknown(tmp_path, monkeypatch):
  package = tmp_path / 'wmpoe'
  module = package / 'evaluation' / 'results.py'
  module.parent.mkdir(parents=True)
  module.write_text('one')
  monkeypatch.setattr(results, '__file__', str(module))
  for name in [name for name in os.environ if name.startswith('GIT_')]:
    monkeypatch.delenv(name)
  for name in ('GIT_AUTHOR', 'GIT_COMMITTER'):
    monkeypatch.setenv(f'{name}_NAME', 'n')
    monkeypatch.setenv(f'{name}_EMAIL', 'e@example.org')

  def git(*arguments):
    command = ['git', '-C', str(tmp_path), '-c', 'commit.gpgsign=false', *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

  def found():
    results._git.cache_clear()
    return results._git()

  try:
    git('init', '-q')
    (tmp_path / 'other').write_text('x')
    git('add', 'other')
    git('commit', '-q', '-m', 'first')
    assert found() == 'unknown'  # a stranger's repository around an installed copy
    git('add', '.')
    git('commit', '-q', '-m', 'second')
    commit = git('rev-parse', 'HEAD')
    (tmp_path / 'other').write_text('not ours')
    assert found() == commit
    module.write_text('two')
    assert found() == commit + '-dirty'
    # A hook tells git of its own repository; that must not be mistaken for the package's.
    monkeypatch.setenv('GIT_DIR', str(tmp_path / 'elsewhere'))
    assert found() == commit + '-dirty'
    monkeypatch.setenv('PATH', str(tmp_path))
    assert found() == 'unknown'  # git is not installed
  finally:
    results._git.cache_clear()
