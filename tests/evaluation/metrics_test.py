"""Metrics against values worked out by hand, on tiny pictures."""

import numpy as np
import pytest

from wmpoe.evaluation import metrics


def _templates(symbols=3, size=2):
  """Flat tiles of levels 0, 80, 160, ...; the last is the cover."""
  levels = 80 * np.arange(symbols + 1)
  return np.broadcast_to(levels[:, None, None, None], (symbols + 1, size, size, 3)).astype(np.uint8)


def _frames(symbols, templates):
  """Pictures [B T H W 3] of card grids symbols [B T G G]."""
  tiles = templates[symbols]  # [B T G G h w 3]
  b, t, g, _, h, w, c = tiles.shape
  return tiles.transpose(0, 1, 2, 4, 3, 5, 6).reshape(b, t, g * h, g * w, c)


def test_psnr_is_per_frame_and_agrees_between_dtypes():
  a = np.zeros((2, 3, 4, 4, 3), np.uint8)
  b = a.copy()
  b[0, 1] = 51  # 0.2 of the range: mse 0.04, PSNR 13.979 dB
  value = metrics.psnr(a, b)
  assert value.shape == (2, 3)
  np.testing.assert_allclose(value[0, 1], -10 * np.log10(0.04))
  assert (np.delete(value.ravel(), 1) == 100.0).all()
  np.testing.assert_allclose(metrics.psnr(a, b / np.float32(255)), value, rtol=1e-5)


def test_psnr_averages_over_pixels_and_colours_before_the_logarithm():
  a, b = np.zeros((1, 1, 2, 1, 3)), np.zeros((1, 1, 2, 1, 3))
  b[0, 0, 0, 0, 0] = 0.6  # mse = 0.36 / 6 = 0.06
  np.testing.assert_allclose(metrics.psnr(a, b), [[-10 * np.log10(0.06)]])


@pytest.mark.parametrize(
  ('b', 'error', 'message'),
  [
    (np.full((4, 4, 3), 255.0), ValueError, r'float with values from 255 to 255.*\[0, 1\]'),
    (np.full((4, 4, 3), np.nan), ValueError, 'nan'),
    (np.full((4, 4, 3), -0.1), ValueError, 'from -0.1'),
    (np.zeros((4, 4, 3), np.int64), TypeError, 'int64; expected uint8'),
    (np.zeros((4, 5, 3), np.uint8), ValueError, r'a\[4, 4, 3\] and b\[4, 5, 3\]'),
  ],
)
def test_psnr_refuses_bad_pixels(b, error, message):
  with pytest.raises(error, match=message):
    metrics.psnr(np.zeros((4, 4, 3), np.uint8), b)


def _similar_frames():
  """Pairs of frames [2 3 60 48 3], from hardly to very different, with flat parts."""
  rng = np.random.default_rng(0)
  a = rng.random((2, 3, 60, 48, 3))
  a[:, :, 20:50] = np.linspace(0, 1, 48)[:, None]
  noise = np.geomspace(0.01, 1, 6).reshape(2, 3, 1, 1, 1) * rng.normal(size=a.shape)
  return a, np.clip(a + noise, 0, 1)


def test_psnr_and_ssim_are_those_of_scikit_image():
  reference = pytest.importorskip('skimage.metrics')
  a, b = _similar_frames()
  for x, y in ((a, b), (np.uint8(255 * a), np.uint8(255 * b))):
    for got, function, options in (
      (metrics.psnr(x, y), reference.peak_signal_noise_ratio, {}),
      (
        metrics.ssim(x, y),
        reference.structural_similarity,
        dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1),
      ),
    ):
      scale = 255 if x.dtype == np.uint8 else 1
      expected = [
        [function(p, q, data_range=scale, **options) for p, q in zip(*rows, strict=True)]
        for rows in zip(x, y, strict=True)
      ]
      assert np.ptp(expected) > 0.5
      np.testing.assert_allclose(got, expected, atol=1e-6)


def test_ssim_is_of_every_frame_however_many_there_are(monkeypatch):
  a, b = _similar_frames()
  got = metrics.ssim(a, b)
  assert got.shape == (2, 3) and got.dtype == np.float64
  np.testing.assert_allclose(metrics.ssim(a[1, 2], b[1, 2]), got[1, 2])
  assert (metrics.ssim(a, a) == 1).all()
  assert metrics.ssim(a[:, :0], b[:, :0]).shape == (2, 0)
  monkeypatch.setattr(metrics, '_SSIM_CHUNK_PIXELS', 60 * 48 * 4)
  np.testing.assert_allclose(metrics.ssim(a, b), got)


def test_ssim_of_flat_frames_is_the_formula():
  # Only the luminance term is left: (2 x y + c1) / (x^2 + y^2 + c1).
  got = metrics.ssim(np.full((11, 11, 1), 0.2), np.full((11, 11, 1), 0.6))
  np.testing.assert_allclose(got, (2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4))


@pytest.mark.parametrize(
  ('a', 'b', 'error', 'message'),
  [
    (np.zeros((10, 60, 3)), np.zeros((10, 60, 3)), ValueError, 'at least 11x11'),
    (np.zeros((60, 60, 3)), np.zeros((60, 61, 3)), ValueError, r'b\[60, 61, 3\]'),
    (np.zeros((60, 60)), np.zeros((60, 60)), ValueError, r'\[\.\.\. H W C\]'),
    (np.zeros((60, 60, 3)), np.full((60, 60, 3), 9.0), ValueError, 'b is float'),
    (np.zeros((60, 60, 3), int), np.zeros((60, 60, 3)), TypeError, 'a has dtype int64'),
  ],
)
def test_ssim_refuses_bad_frames(a, b, error, message):
  with pytest.raises(error, match=message):
    metrics.ssim(a, b)


def test_errors_of_templates_by_hand():
  templates = _templates()
  tiles = np.stack([templates[2], np.full_like(templates[0], 45), np.full_like(templates[0], 230)])
  assert metrics.template_mse(tiles[None], templates).argmin(-1).tolist() == [[2, 1, 3]]
  np.testing.assert_allclose(
    metrics.template_mse(tiles[1], templates)[:2], [(45 / 255) ** 2, (35 / 255) ** 2]
  )


def test_tiles_refuse_templates_of_another_size():
  with pytest.raises(ValueError, match=r'tiles\[2, 2, 3\] and templates\[4, 4, 4, 3\]'):
    metrics.template_mse(np.zeros((2, 2, 3), np.uint8), _templates(size=4))


def test_an_open_card_that_is_covered_again_is_counted_from_the_next_frame_on():
  templates, cover = _templates(), 3
  truth = np.full((1, 5, 4, 4), cover)
  frame, tile = np.array([[1, 2, 4]]), np.array([[6, 9, 0]])  # 6 is row 1, column 2
  for n, t in enumerate(frame[0]):
    truth[0, t:, tile[0, n] // 4, tile[0, n] % 4] = n
  shown = truth.copy()
  shown[0, [1, 3, 4], 1, 2] = cover  # when it is uncovered, and in two of three frames after that
  shown[0, 3:, 2, 1] = 0          # another symbol is not the cover
  score = lambda symbols: metrics.covered_again(
      _frames(symbols, templates), _frames(truth, templates), frame, tile=tile,
      cover=templates[cover], grid=4)
  np.testing.assert_allclose(score(shown), [[2 / 3, 0, 0]])
  assert not score(truth).any()


def test_card_recall_looks_at_the_right_tile_of_the_right_frame():
  templates, cover = _templates(), 3
  rng = np.random.default_rng(0)
  symbols = rng.integers(0, 3, (2, 5, 4, 4))
  cards = rng.integers(0, 3, (2, 16))
  frame = np.array([[0, 4, 2], [1, 1, 3]])
  tile = np.array([[1, 14, 7], [0, 11, 2]])  # tile 14 is row 3, column 2
  expected = np.array([[True, False, False], [False, True, True]])
  covered = np.array([[False, True, False], [False, False, False]])
  for b in range(2):
    for n in range(3):
      truth = cards[b, tile[b, n]]
      shown = truth if expected[b, n] else cover if covered[b, n] else (truth + 1) % 3
      symbols[b, frame[b, n], tile[b, n] // 4, tile[b, n] % 4] = shown
  scores = metrics.card_recall(
    _frames(symbols, templates), frame, tile=tile, cards=cards, templates=templates
  )
  np.testing.assert_array_equal(scores['recall'], expected)
  np.testing.assert_array_equal(scores['covered'], covered)
  np.testing.assert_array_equal(scores['tile_mse_recall'], expected)
  np.testing.assert_array_equal(scores['tile_mse'] == 0, expected)
  assert scores['valid'].all()
  truth = cards[0, 14]
  np.testing.assert_allclose(scores['tile_mse'][0, 1], (80 * (3 - truth) / 255) ** 2)


def test_card_recall_uses_the_papers_threshold():
  # One grey level everywhere is an error of 1.54e-5, below 2e-5; two levels are 6.2e-5.
  templates = _templates()
  frames = _frames(np.ones((1, 2, 4, 4), int), templates)
  frames[0, 0] += 1
  frames[0, 1] += 2
  events = dict(tile=np.zeros((1, 2), int), cards=np.ones((1, 16), int), templates=templates)
  scores = metrics.card_recall(frames, np.array([[0, 1]]), **events)
  assert scores['tile_mse_recall'].tolist() == [[True, False]]
  assert scores['recall'].tolist() == [[True, True]]


def test_card_recall_leaves_padding_out():
  templates = _templates()
  frames = _frames(np.ones((1, 2, 4, 4), int), templates)
  events = dict(tile=np.array([[3, -1]]), cards=np.ones((1, 16), int), templates=templates)
  scores = metrics.card_recall(frames, np.array([[1, -1]]), **events)
  assert scores['valid'].tolist() == [[True, False]]
  assert scores['recall'].tolist() == [[True, False]]
  assert scores['tile_mse_recall'].tolist() == [[True, False]]
  assert np.isnan(scores['tile_mse']).tolist() == [[False, True]]


@pytest.mark.parametrize(
  ('changed', 'error', 'message'),
  [
    ({'frame': np.array([[2]])}, ValueError, 'frame has values from 2 to 2; expected 0 to 1'),
    ({'tile': np.array([[16]])}, ValueError, 'tile has values.*expected 0 to 15'),
    ({'cards': np.full((1, 16), 3)}, ValueError, 'cards has values.*expected 0 to 2'),
    ({'cards': np.zeros((1, 15), int)}, ValueError, '15 cards.*square'),
    ({'tile': np.array([[0.0]])}, TypeError, 'tile has dtype float64; expected integers'),
    ({'tile': np.array([[0, 1]])}, ValueError, r'frame\[1, 1\] and tile\[1, 2\]'),
    ({'frame': np.zeros((2, 1), int)}, ValueError, 'first 1'),
    ({'frames': np.zeros((1, 2, 8, 9, 3), np.uint8)}, ValueError, '8x9.*4x4 tiles'),
    ({'frames': np.zeros((2, 8, 8, 3), np.uint8)}, ValueError, r'\[2, 8, 8, 3\].*B T H W 3'),
  ],
)
def test_card_recall_refuses_events_that_do_not_fit(changed, error, message):
  given = dict(
    frames=np.zeros((1, 2, 8, 8, 3), np.uint8),
    frame=np.zeros((1, 1), int),
    tile=np.zeros((1, 1), int),
    cards=np.zeros((1, 16), int),
    templates=_templates(),
  )
  given.update(changed)
  with pytest.raises(error, match=message):
    metrics.card_recall(given.pop('frames'), given.pop('frame'), **given)


def test_values_read_as_people_write_them():
  written = [
    metrics.format_value('recall', 0.9934),
    metrics.format_value('psnr', 27.123),
    metrics.format_value('write_ms_per_episode', 1480.4),
    metrics.format_value('lpips', 0.0971),
    metrics.format_value('recall', 0.125, with_unit=False),
  ]
  assert written == ['99.3 %', '27.1 dB', '1,480 ms', '0.097', '12.5']
  assert metrics.name('something_new') == 'Something new'


@pytest.mark.parametrize(
  ('metric', 'words', 'unit', 'direction'),
  [
    ('lpips_vgg', 'LPIPS (VGG)', '', -1),
    ('lpips_alex_revisited', 'LPIPS (AlexNet), revisited', '', -1),
    ('psnr_unseen', 'PSNR, unseen', 'dB', 1),
    ('psnr_unseen_minus_base', 'PSNR, unseen, minus base', 'dB', 1),
    ('lpips_vgg_revisited_cut', 'LPIPS (VGG), revisited, cut against base', '%', 1),
    ('psnr_in_window', 'PSNR, in window', 'dB', 1),
    ('recall_outside', 'Recall, outside the window', '%', 1),
    ('my_own_unseen', 'My own, unseen', '', 0),
    ('_cut', ' cut', '', 0),
  ],
)
def test_a_suffix_keeps_what_is_known_of_its_metric(metric, words, unit, direction):
  found = metrics.name(metric), metrics.unit(metric), metrics.direction(metric)
  assert found == (words, unit, direction)
  if unit == '%':
    assert metrics.format_value(metric, 0.561) == '56.1 %'
