"""Tests of the mixture study: the table of the method's section 4, measured again."""

import math
import subprocess
import sys

import numpy as np
import pytest

from wmpoe.diffusion import schedules
from wmpoe.evaluation import mixture_study
from wmpoe.experts import composition

N = 5000
# The table as published: masses, standard deviation inside the first mode, largest abs x.
PUBLISHED = {
    'literal_sum': ((1, 0, 0), 0.0, 264),
    'mean': ((0.816, 0.088, 0.096), 0.118, 4.5),
    'shared_base': ((0.963, 0.016, 0.021), 0.084, 4.7),
    'naive_product': ((1, 0, 0), 0.0, 231),
}


@pytest.fixture(scope='module')
def rows():
  return mixture_study.run(num_samples=N, seed=0, steps=50)


@pytest.mark.parametrize('rule', PUBLISHED)
def test_the_published_table(rows, rule):
  masses, std, largest = PUBLISHED[rule]
  for measured, published in zip(rows[rule]['masses'], masses, strict=True):
    # Four standard errors of the difference of two such measurements.
    error = 4 * math.sqrt(2 * max(published * (1 - published), 1e-4) / N)
    assert abs(measured - published) < error
  np.testing.assert_allclose(rows[rule]['std'], std, atol=0.008)
  # The largest of N normal draws, times what the rule makes of it: known to about a fifth.
  np.testing.assert_allclose(rows[rule]['largest'], largest, rtol=0.2)


def test_target_masses_are_proposition_1():
  np.testing.assert_allclose(mixture_study.target_masses(), [144 / 146, 1 / 146, 1 / 146])


def test_default_rules_stay_bounded_and_the_literal_sum_does_not(rows):
  for rule in composition.DEFAULT_RULES:
    assert rows[rule]['largest'] < 10
  assert rows['literal_sum']['largest'] > 100
  # The blow-up is in the first step, which the path shows.
  assert rows['literal_sum']['path'].argmax() == 1
  assert rows['literal_sum']['path'].shape == (51,)


def test_a_clipped_schedule_tames_the_first_step(rows):
  clipped = mixture_study.run(
      num_samples=N, steps=50, schedule=schedules.CosineSchedule(shift=0.125))
  assert 10 < clipped['literal_sum']['largest'] < 30


def test_table_reads_what_was_measured(rows):
  table = mixture_study.table(rows)
  assert len(table.splitlines()) == 2 + len(mixture_study.RULES)
  assert '0.986/0.007/0.007' in table
  assert '/'.join(f'{m:.3f}' for m in rows['mean']['masses']) in table
  assert f'{rows["shared_base"]["std"]:.3f}' in table


def test_the_same_seed_gives_the_same_rows(rows):
  again, other = (
      mixture_study.run(num_samples=N, seed=seed, steps=50)['mean']['samples'] for seed in (0, 1))
  np.testing.assert_array_equal(again, rows['mean']['samples'])
  assert (again != other).mean() > 0.99


def test_plot_writes_an_image(rows, tmp_path):
  pytest.importorskip('matplotlib')
  mixture_study.plot(rows, tmp_path / 'study.png')
  assert (tmp_path / 'study.png').read_bytes().startswith(b'\x89PNG')


def test_plot_names_the_extra_when_matplotlib_is_missing(rows, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  with pytest.raises(ImportError, match=r"pip install 'wmpoe\[demo\]'"):
    mixture_study.plot(rows, tmp_path / 'study.png')


def test_importing_the_study_does_not_import_matplotlib():
  code = 'import sys, wmpoe.evaluation.mixture_study; sys.exit("matplotlib" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0


def test_bad_arguments():
  with pytest.raises(ValueError, match='num_samples=0 and steps=50 must both be at least 1'):
    mixture_study.run(num_samples=0)
  with pytest.raises(ValueError, match="Unknown rule 'sum'; expected one of literal_sum, mean"):
    mixture_study.denoiser('sum')
