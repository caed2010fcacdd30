"""Arms against the base, on numbers worked out by hand."""

import numpy as np
import pytest

from wmpoe.evaluation import comparisons
from wmpoe.evaluation import metrics
from wmpoe.evaluation import result_format
from wmpoe.evaluation import results


def test_relative_cut_is_of_the_means_and_not_the_mean_of_cuts():
  # Episodes are cut by 80 % and 0 %, the means, 0.5 and 0.9, by 44 %.
  got = comparisons.relative_cut(np.array([0.2, 0.8]), np.array([1.0, 0.8]), seed=0)
  assert got['mean'] == pytest.approx(1 - 0.5 / 0.9) and got['n'] == 2
  assert (got['low'], got['high']) == pytest.approx((0.0, 0.8))
  worse = comparisons.relative_cut(np.array([1.2]), np.array([1.0]), seed=0)
  assert worse['mean'] == pytest.approx(-0.2)


def test_relative_cut_resamples_episodes_in_pairs():
  rng = np.random.default_rng(3)
  b = rng.uniform(0.01, 1.0, 30)  # The spread between episodes is large, of the cut it is small.
  a = b * rng.normal(0.7, 0.02, 30)
  got = comparisons.relative_cut(a, b, seed=1)
  assert 0.28 < got['low'] < got['mean'] < got['high'] < 0.32
  # As the definition says: both means over the same episodes, drawn again and again.
  picks = np.random.default_rng(9).integers(0, 30, (20_000, 30))
  low, high = np.quantile(1 - a[picks].mean(axis=1) / b[picks].mean(axis=1), [0.025, 0.975])
  assert (got['low'], got['high']) == pytest.approx((low, high), abs=5e-4)
  inner = comparisons.relative_cut(a, b, seed=1, confidence=0.5)
  assert got['low'] < inner['low'] < inner['high'] < got['high']


def test_relative_cut_weights_values_and_ignores_those_of_weight_0():
  a = np.array([[0.2, 0.4], [0.6, np.nan], [np.nan, 7.0]])
  b = np.array([[0.5, 0.5], [1.0, 0.0], [np.nan, 0.0]])
  weights = np.array([[1, 3], [2, 0], [0, 0]])
  got = comparisons.relative_cut(a, b, seed=0, weights=weights)
  cut = 1 - (0.2 + 3 * 0.4 + 2 * 0.6) / (0.5 + 3 * 0.5 + 2 * 1.0)
  assert got['mean'] == pytest.approx(cut) and got['n'] == 2
  by_episode = comparisons.relative_cut(a[:1], b[:1], seed=0, weights=np.array([5]))
  assert by_episode['mean'] == pytest.approx(0.4)


@pytest.mark.parametrize(
  ('a', 'b', 'weights', 'message'),
  [
    (np.ones(3), np.ones(2), None, r'a\[3\] and b\[2\]'),
    (np.ones(3), np.array([1.0, 0.0, -1.0]), None, r'not positive in the episodes \[1, 2\]'),
    (np.ones((2, 2)), np.array([[1.0, 1.0], [1.0, np.nan]]), None, r'episodes \[1\]'),
    (np.array([1.0, np.nan]), np.ones(2), None, r'episodes \[1\] are not finite'),
    (np.ones((3, 2)), np.ones((3, 2)), np.ones(2), r'\[2, 1\]; expected \[E\] or \[3, 2\]'),
    (np.ones(2), np.ones(2), np.array([1.0, -1.0]), 'nonnegative'),
    (np.ones(2), np.ones(2), np.array([1.0, np.nan]), 'finite'),
    (np.ones(0), np.ones(0), None, r'shape \[0\]'),
  ],
)
def test_relative_cut_refuses_what_it_cannot_mean(a, b, weights, message):
  with pytest.raises(ValueError, match=message):
    comparisons.relative_cut(a, b, seed=0, weights=weights)


def test_against_base_gives_what_belongs_into_results():
  rng = np.random.default_rng(0)
  base = {'lpips_vgg': rng.uniform(0.3, 0.5, (8, 3)), 'psnr': rng.uniform(18, 22, (8, 3))}
  arm = {'lpips_vgg': 0.6 * base['lpips_vgg'], 'psnr': base['psnr'] + 2, 'read_ms': np.ones(8)}
  got = comparisons.against_base(arm, base, seed=0, resamples=500)
  # PSNR is no error: it has a difference and no cut.
  assert list(got) == ['lpips_vgg_minus_base', 'lpips_vgg_cut', 'psnr_minus_base']
  fixed = lambda value: pytest.approx({'mean': value, 'low': value, 'high': value, 'n': 8})
  assert got['psnr_minus_base'] == fixed(2.0) and got['lpips_vgg_cut'] == fixed(0.4)
  assert got['lpips_vgg_minus_base']['mean'] == pytest.approx(-0.4 * base['lpips_vgg'].mean())
  meta = dict.fromkeys(result_format.META_KEYS, 'x')
  results.make(meta, {'spatial': got}, {})
  assert metrics.format_value('lpips_vgg_cut', got['lpips_vgg_cut']['mean']) == '40.0 %'


@pytest.mark.parametrize('shape', [(4,), (4, 1)])
def test_against_base_takes_arms_without_seeds(shape):
  base = np.array([[0.4, 0.6], [0.5, 0.5], [0.1, 0.9], [0.3, 0.7]])
  arm = np.full(shape, 0.25)
  weights = {'lpips_alex': np.array([1, 1, 0, 2])}
  got = comparisons.against_base({'lpips_alex': arm}, {'lpips_alex': base}, seed=0, weights=weights)
  assert got['lpips_alex_cut']['mean'] == pytest.approx(0.5)
  assert got['lpips_alex_minus_base']['mean'] == pytest.approx(-0.25)
  assert got['lpips_alex_cut']['n'] == 3
  back = comparisons.against_base({'lpips_alex': base}, {'lpips_alex': arm}, seed=0)
  assert back['lpips_alex_cut']['mean'] == pytest.approx(-1.0)


def test_against_base_names_the_metric_that_does_not_fit():
  one, two = {'ssim': np.ones(3), 'lpips': np.zeros(2)}, {'ssim': np.ones(3), 'lpips': np.zeros(2)}
  with pytest.raises(ValueError, match=r'lpips: b is not positive'):
    comparisons.against_base(one, two, seed=0)
  with pytest.raises(ValueError, match=r'ssim: Got a\[3\] and b\[4\]'):
    comparisons.against_base({'ssim': np.ones(3)}, {'ssim': np.ones(4)}, seed=0)
  with pytest.raises(ValueError, match=r"the metrics \['psnr'\] and the base \['ssim'\]"):
    comparisons.against_base({'psnr': np.ones(3)}, {'ssim': np.ones(3)}, seed=0)
