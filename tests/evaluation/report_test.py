"""Reports, terminal tables and films made from invented numbers."""

import base64
from html import parser as html_parser
import io
import re
import sys

import numpy as np
import pytest

from wmpoe.evaluation import animation
from wmpoe.evaluation import charts
from wmpoe.evaluation import film
from wmpoe.evaluation import report
from wmpoe.evaluation import results


def _interval(mean, n=64):
  return {'mean': mean, 'low': mean - 0.01, 'high': mean + 0.005, 'n': n}


def _result(**extra):
  meta = {
    'command': 'python -m wmpoe eval', 'config': {'size': 32}, 'seeds': [0, 1, 2],
    'git': 'abc123', 'versions': {'jax': '9.9'}, 'machine': {'cpu': 'a <fast> one', 'cores': 2},
    'seconds': 192.0,
  }
  arms = {
    'base': {'recall': _interval(0.125), 'psnr': _interval(14.25)},
    'short_term+long_term': {'recall': _interval(0.9)},
    'all': {'recall': _interval(0.99), 'psnr': _interval(31.5)},
  }
  controls = {'other_episode': {'recall': _interval(0.085)}}
  return results.make(meta, arms, controls, **extra)


def _curve(**extra):
  series = {'x': [20, 50, 100], 'mean': [0.3, 0.5, 0.9], 'low': [0.2] * 3, 'high': [0.95] * 3}
  return {
    'title': 'Speed', 'xlabel': 'inner steps', 'ylabel': 'Recall', 'metric': 'recall',
    'series': {'long_term': series}, **extra,
  }


def _decode(data):
  """Opens a picture or animation with Pillow, the judge of our own PNG encoder."""
  image = pytest.importorskip('PIL.Image')
  return image.open(io.BytesIO(data))


def _strip(**extra):
  """Three frames of 8x8; row b is right in frame 0 and wrong in frame 2."""
  ramp = np.arange(3 * 8 * 8 * 3, dtype=np.uint8).reshape(3, 8, 8, 3)
  marks = film.tile_marks(
    'b', np.array([0, 2, -1]), tile=np.array([1, 2, 0]), right=np.array([True, False, True]),
    grid=2, size=8,
  )
  return film.Strip(rows={'a': ramp, 'b': 255 - ramp}, marks=marks, title='Two <rows>', **extra)


class _Balance(html_parser.HTMLParser):
  """Fails on tags that do not nest; collects the values of attributes that load something."""

  def __init__(self):
    super().__init__()
    self.open, self.loads = [], []

  def handle_starttag(self, tag, attrs):
    self.loads += [v for k, v in attrs if k in ('src', 'href', 'srcset', 'data', 'action')]
    if tag not in ('meta', 'br'):
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.loads += [v for k, v in attrs if k in ('src', 'href')]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def _page(path):
  text = path.read_text(encoding='utf-8')
  balance = _Balance()
  balance.feed(text)
  assert not balance.open
  return text, balance.loads


def test_report_is_one_file_that_loads_nothing(tmp_path):
  made = report.render(
    _result(curves=[_curve()]), tmp_path / 'out', strips=[_strip()], title='A <b>title</b>'
  )
  assert made == tmp_path / 'out' / 'report.html'
  assert [p.name for p in made.parent.iterdir()] == ['report.html']
  text, loads = _page(made)
  assert len(loads) == 6 and all(load.startswith('data:image/png;base64,') for load in loads)
  assert not re.search(r'https?:|url\(|@import|<script|<link', text)
  assert 'A &lt;b&gt;title' in text and 'a &lt;fast&gt; one' in text and '<b>title' not in text
  assert 'Two &lt;rows&gt;' in text
  pixels = np.asarray(_decode(base64.b64decode(loads[0].split(',')[1])))
  np.testing.assert_array_equal(pixels, _strip().rows['a'][0])


def test_report_says_the_numbers_and_where_they_come_from(tmp_path):
  text, _ = _page(report.render(_result(), tmp_path))
  for part in (
    'All composed: recall 99.0 % (98.0–99.5), against 12.5 % without memory, '
    '8.5 % with another episode’s memory.',
    '64 episodes, 3 seeds each; 95 % bootstrap intervals', 'Short-term + long-term',
    '<td class=best title="n = 64"><span>31.5 dB</span><small>31.5–31.5</small>',
    'python -m wmpoe eval', 'abc123', '0, 1, 2', 'cpu a &lt;fast&gt; one · cores 2', '3 min 12 s',
  ):
    assert part in text
  assert text.count('<td title="n = 64"><span>90.0 %') == 1
  assert text.count('>–</td>') == 2  # PSNR is missing twice


def _numbers(pattern, text):
  return [float(number) for number in re.findall(pattern, text)]


def test_bars_and_whiskers_are_drawn_to_scale(tmp_path):
  text, _ = _page(report.render(_result(references={'recall': {'chance': 0.125}}), tmp_path))
  chart = text[text.index('aria-label="Recall"') : text.index('</svg>')]
  widths = _numbers(r'class="bar[^>]*width="([\d.]+)"', chart)
  np.testing.assert_allclose(np.array(widths) / widths[2] * 0.99, [0.125, 0.9, 0.99, 0.085], 1e-3)
  zero = _numbers(r'class="bar base" x="([\d.]+)"', chart)[0]
  ends = re.findall(r'class="whisker" d="M([\d.]+) [\d.]+H([\d.]+)M', chart)
  scale = widths[2] / 0.99
  np.testing.assert_allclose(
    (np.array(ends, float)[2] - zero) / scale, [0.98, 0.995], atol=5e-4
  )
  line = _numbers(r'class="ref" d="M([\d.]+)', chart)
  np.testing.assert_allclose(line, zero + 0.125 * scale, atol=0.1)
  assert 'chance 12.5 %' in chart
  assert chart.count('bar base') == chart.count('bar sum') == chart.count('bar ctrl') == 1


def test_negative_values_hang_from_zero(tmp_path):
  result = _result()
  result['arms'] = {'base': {'gain': _interval(-0.5)}, 'all': {'gain': _interval(0.5)}}
  text, _ = _page(report.render(result, tmp_path, main_metric='gain'))
  (x0, w0), (x1, w1) = (
    (float(x), float(w))
    for x, w in re.findall(r'class="bar \w+" x="([\d.]+)".*?width="([\d.]+)"', text)[:2]
  )
  assert w0 == pytest.approx(w1, abs=0.2) and x0 + w0 == pytest.approx(x1, abs=0.2)


@pytest.mark.parametrize('logx', [False, True])
def test_curves_keep_their_proportions(tmp_path, logx):
  curve = _curve(logx=logx, references={'half': 0.5})
  text, _ = _page(report.render(_result(), tmp_path, curves=[curve]))
  drawn = text[text.index('aria-label="Speed"') :]
  x, y = (_numbers(rf'class="dot c0" .*?{axis}="([\d.]+)"', drawn) for axis in ('cx', 'cy'))
  share = (x[1] - x[0]) / (x[2] - x[0])
  assert share == pytest.approx(np.log(2.5) / np.log(5) if logx else 30 / 80, abs=1e-3)
  assert (y[0] - y[1]) / (y[0] - y[2]) == pytest.approx(0.2 / 0.6, abs=2e-3)
  assert _numbers(r'class="ref" d="M[\d.]+ ([\d.]+)H', drawn) == pytest.approx([y[1]], abs=0.11)
  assert 'half 50.0 %' in drawn and '>Long-term<' in text


def test_a_map_has_its_walls_its_path_and_a_wedge_for_every_frame(tmp_path):
  dot = lambda gain, seen: {'x': 0.5, 'y': 1.5, 'heading': 0.0, 'gain': gain, 'seen': seen}
  drawn = {
    'title': 'Episode <1>', 'metric': 'psnr', 'arm': 'all', 'layout': [[1, 0], [1, 1]],
    'path': [[0.5, 0.5], [0.5, 1.5]],
    'asked': [dot(2.0, 'revisited'), dot(-1.0, 'unseen'), dot(0.5, 'otherwise')]}
  result = _result() | {'maps': [drawn]}
  page = report.render(result, tmp_path).read_text(encoding='utf-8')
  assert 'Episode &lt;1&gt;' in page
  assert page.count('class="free"') == 3 and page.count('class="walked"') == 1
  wedges = re.findall(r'<polygon class="look ([a-z ]+)" points="([^"]+)" opacity="([0-9.]+)"', page)
  assert [kind for kind, _, _ in wedges] == ['ok', 'bad hollow', 'ok hollow']
  assert [float(opacity) for _, _, opacity in wedges] == pytest.approx([1.0, 0.62, 0.44], abs=0.01)
  tip, *back = [float(point.split(',')[0]) for point in wedges[0][1].split()]
  assert all(tip > x for x in back), 'heading 0 looks to the right'
  for broken, message in (
    ({'path': []}, 'maps.0. needs a path'), ({'asked': [dot(1.0, 'never')]}, 'seen is .never'),
    ({'asked': [dot(float('nan'), 'unseen')]}, 'finite')):
    with pytest.raises(ValueError, match=message):
      report.render(result | {'maps': [drawn | broken]}, tmp_path)


def test_a_file_of_curves_alone_makes_a_report(tmp_path):
  result = _result(curves=[_curve()]) | {'arms': {}, 'controls': {}}
  text, _ = _page(report.render(result, tmp_path))
  assert 'aria-label="Speed"' in text and '<table' not in text
  assert 'curves' in report.terminal_table(result)


def test_render_refuses_an_unknown_metric(tmp_path):
  with pytest.raises(ValueError, match=r"metric 'ssim'; expected one of \['recall', 'psnr'\]"):
    report.render(_result(), tmp_path, main_metric='ssim')


def test_headline_takes_the_best_arm_where_nothing_is_composed():
  result = _result()
  del result['arms']['all']
  assert report.headline(result, 'recall').startswith('Short-term + long-term: recall 90.0 %')
  result['arms'] = {'base': {'lpips': _interval(0.4)}, 'spatial': {'lpips': _interval(0.1)}}
  assert report.headline(result, 'lpips').startswith('Spatial: LPIPS 0.100 (0.090–0.105), against')
  result['arms'] = {'base': {'lpips_alex_unseen': _interval(0.1)}}
  assert report.headline(result, 'lpips_alex_unseen').startswith(
    'Base, no memory: LPIPS (AlexNet), unseen 0.100'
  )
  result['arms'] = {'base': {'tile_mse_recall': _interval(0.1)}}
  assert ': recall by tile MSE 10.0 %' in report.headline(result, 'tile_mse_recall')


def test_what_is_counted_is_named_coloured_and_compared_alike(tmp_path):
  at = lambda mean: {'psnr': _interval(mean)}
  result = _result() | {
    'arms': {
      'base_8': at(10), 'base_480': at(11), 'spatial_480': at(30), 'all_8': at(20),
      'all_480': at(29), 'copy_warped_480': at(40)},
    'controls': {'other_episode_8': at(1), 'other_episode_480': at(2)}}
  assert report.headline(result, 'psnr') == (
    'All composed, 480: PSNR 29.0 dB (29.0–29.0), against 11.0 dB without memory, '
    '2.00 dB with another episode’s memory.')
  page, _ = _page(report.render(result, tmp_path, main_metric='psnr'))
  assert re.findall(r'class="bar (\w+)"', page) == [
    'base', 'base', 'one', 'sum', 'sum', 'base', 'ctrl', 'ctrl']
  named = re.findall(r'class="label">([^<]+)', page)
  assert named[0] == 'Base, no memory, 8' and named[-1] == 'Another episode’s memory, 480'
  del result['arms']['all_480'], result['arms']['all_8']
  assert report.headline(result, 'psnr').startswith('Spatial 480: PSNR 30.0 dB (')
  assert 'against 11.0 dB without memory, 2.00 dB with' in report.headline(result, 'psnr')
  result['arms'] = {'base_true': at(12), 'all_true': at(20), 'all_imagined': at(19)}
  assert 'against 12.0 dB without memory' in report.headline(result, 'psnr')
  result['arms'] = {
    'base': at(10), 'rank_8_history_50': at(20), 'rank_64_history_50': at(30), 'copy_pose': at(40)}
  result['controls'] = {
    'other_episode_rank_8': at(1), 'other_episode_rank_64': at(2), 'other_episode_rank_full': at(3)}
  assert report.headline(result, 'psnr').endswith(
    'against 10.0 dB without memory, 2.00 dB with another episode’s memory.')


@pytest.mark.parametrize('with_rich', [True, False])
def test_terminal_table_is_aligned_with_and_without_rich(monkeypatch, with_rich):
  if with_rich:
    pytest.importorskip('rich')
  else:
    for name in ('rich.box', 'rich.console', 'rich.table', 'rich'):
      monkeypatch.setitem(sys.modules, name, None)
  lines = report.terminal_table(_result()).splitlines()
  assert ('─' in ''.join(lines)) == with_rich
  rows = [line for line in lines if ' % [' in line]
  assert len(rows) == 4 and len({row.index(']') for row in rows}) == 1
  assert re.search(r'Base, no memory +12\.5 % \[11\.5, 13\.0\] +14\.2 dB', rows[0])
  assert lines[-1] == '[low, high]: 95 % bootstrap intervals, 64 episodes, 3 seeds each.'


@pytest.mark.parametrize(('width', 'metrics'), [(None, 40), (70, 2), (1, 1)])
def test_terminal_table_cuts_no_cell_and_says_which_metrics_are_elsewhere(width, metrics):
  many = {f'metric_{i:02d}': {'mean': 0.5, 'low': 0.25, 'high': 0.75, 'n': 2} for i in range(40)}
  result = _result()
  table = report.terminal_table({**result, 'arms': {'base': many}, 'controls': {}}, width=width)
  assert table.count('0.500 [0.250, 0.750]') == metrics and '…' not in table
  assert ('more metrics' in table) == (metrics < 40) and max(
      map(len, table.splitlines()[:-1])) <= (width if width == 70 else 1000)
  assert metrics == 40 or f'{40 - metrics} more metrics' in table


def test_terminal_table_cuts_no_cell_however_many_there_are():
  many = {f'metric_{i:02d}': {'mean': 0.5, 'low': 0.25, 'high': 0.75, 'n': 2} for i in range(90)}
  table = report.terminal_table({**_result(), 'arms': {'base': many}, 'controls': {}})
  assert table.count('0.500 [0.250, 0.750]') == 90


def test_the_reader_makes_the_same_report_from_the_file(tmp_path, capsys):
  result = _result(curves=[_curve()])
  results.write(tmp_path / 'results.json', result)
  made = report.main([str(tmp_path / 'results.json'), '--title', 'T'])
  direct = report.render(result, tmp_path / 'direct', title='T')
  assert made.parent == tmp_path and made.read_bytes() == direct.read_bytes()
  assert 'All composed' in capsys.readouterr().out


def test_the_reader_says_what_is_wrong_with_a_file(tmp_path, capsys):
  (tmp_path / 'bad.json').write_text('[]')
  with pytest.raises(SystemExit):
    report.main([str(tmp_path / 'bad.json')])
  assert 'bad.json is not a results file: results is a list' in capsys.readouterr().err


def test_strip_draws_solid_green_where_right_and_dashed_red_where_wrong():
  row = film.draw_row(_strip(), 'b', scale=4)
  assert row.shape == (3, 32, 32, 3)
  np.testing.assert_array_equal(row[1], _strip().rows['b'][1].repeat(4, 0).repeat(4, 1))
  right, wrong = row[0, 0, 16:], row[2, 16, :16]  # upper edges of the marked tiles
  assert (right == film.RIGHT).all()
  dashes = (wrong == film.WRONG).all(axis=-1)
  assert 0 < dashes.sum() < 16 and (wrong[~dashes] == 255).all()
  np.testing.assert_array_equal(row[0, 4, 20], _strip().rows['b'][0, 1, 5])  # inside is untouched
  assert film.score(_strip(), 'b') == (1, 2) and film.score(_strip(), 'b', until=0) == (1, 1)


def test_contact_sheet_wraps_rows_into_blocks():
  strip = film.Strip(rows=_strip().rows)
  sheet = film.contact_sheet(strip, scale=2, columns=2, gap=4)
  assert sheet.shape == (2 * (2 * 20 + 8) - 12, 36, 3)
  third = _strip().rows['b'][2].repeat(2, 0).repeat(2, 1)
  np.testing.assert_array_equal(sheet[48 + 20 : 48 + 36, :16], third)
  assert (sheet[16:20] == 255).all() and (sheet[48:, 16:] == 255).all()
  np.testing.assert_array_equal(np.asarray(_decode(film.png(sheet))), sheet)


def test_select_keeps_the_marks_of_the_frames_it_keeps():
  chosen = film.select(_strip(times=[7, 8, 9]), [2, 1])
  assert chosen.times == (9, 8) and [mark.frame for mark in chosen.marks] == [0]
  np.testing.assert_array_equal(chosen.rows['a'], _strip().rows['a'][[2, 1]])
  with pytest.raises(ValueError, match=r'\[0, 0\]; expected distinct indices in 0\.\.2'):
    film.select(_strip(), [0, 0])


@pytest.mark.parametrize(
  ('change', 'error', 'message'),
  [
    ({'rows': {}}, ValueError, 'no rows'),
    ({'rows': {'a': np.zeros((2, 4, 4, 3))}, 'marks': ()}, TypeError, "'a' has dtype float64"),
    ({'rows': {'b': np.zeros((4, 4, 3), np.uint8)}}, ValueError, r'\[T H W 3\]'),
    ({'times': [1]}, ValueError, '1 times for 3 frames'),
    ({'rows': {'a': _strip().rows['a']}}, ValueError, r"row='b'.*outside rows \['a'\]"),
    ({'rows': {'b': _strip().rows['b'][:, :5]}}, ValueError, 'outside rows'),
  ],
)
def test_strip_refuses_what_does_not_fit(change, error, message):
  given = {'rows': _strip().rows, 'marks': _strip().marks} | change
  with pytest.raises(error, match=message):
    film.Strip(**given)


def test_gif_shows_every_frame_of_every_row_in_true_colours(tmp_path):
  pytest.importorskip('PIL')
  path = animation.write_gif(tmp_path / 'new' / 'episode.gif', _strip(), fps=5, scale=10)
  assert [p.name for p in path.parent.iterdir()] == ['episode.gif']
  with _decode(path.read_bytes()) as movie:
    assert movie.n_frames == 3 and movie.info['duration'] == 200 and movie.info['loop'] == 0
    for t in range(3):
      movie.seek(t)
      page = np.asarray(movie.convert('RGB')).astype(int)
      for r, label in enumerate('ab'):
        left = 18 + r * (80 + 18) + 45  # centre column 4 of the row's picture
        shown, true = page[68 + 45, left], _strip().rows[label][t, 4, 4]
        if t != 2:  # no mark nearby
          assert np.abs(shown - true).max() < 24
    assert movie.info['duration'] == 1700


@pytest.mark.parametrize(('arm', 'name'), [
    ('short_term+long_term', 'Short-term + long-term'),
    ('all_off', 'All composed, no contrast'),
    ('short_term+spatial_off', 'Short-term + spatial, no contrast'),
    ('base_imagined', 'Base, no memory, own frames appended'),
    ('copy_turned', 'Copy: nearest, turned'),
    ('spatial_200', 'Spatial 200'),
])
def test_arms_have_names_in_words(arm, name):
  assert charts.arm_name(arm) == name


def test_mp4_shows_every_frame_of_every_row(tmp_path):
  pytest.importorskip('PIL')
  ffmpeg = pytest.importorskip('imageio_ffmpeg')
  path = animation.write_mp4(tmp_path / 'new' / 'episode.mp4', _strip(), fps=5, scale=11)
  assert [p.name for p in path.parent.iterdir()] == ['episode.mp4']
  reader = ffmpeg.read_frames(str(path))
  facts = next(reader)
  assert facts['fps'] == 5 and facts['codec'] == 'h264'
  pages = [np.frombuffer(raw, np.uint8).reshape(*facts['size'][::-1], 3) for raw in reader]
  assert len(pages) == 3
  for t in range(2):  # no mark nearby
    for r, label in enumerate('ab'):
      shown = pages[t][68 + 49, 18 + r * (88 + 18) + 49].astype(int)
      assert np.abs(shown - _strip().rows[label][t, 4, 4]).max() < 24
  with pytest.raises(ValueError, match='fps=0'):
    animation.write_mp4(tmp_path / 'x.mp4', _strip(), fps=0)


def test_mp4_says_how_to_get_its_encoder(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'imageio_ffmpeg', None)
  with pytest.raises(ModuleNotFoundError, match=r"pip install 'wmpoe\[play\]'"):
    animation.write_mp4(tmp_path / 'x.mp4', _strip())
  assert not list(tmp_path.iterdir())


def test_gif_refuses_impossible_speed_and_says_how_to_get_pillow(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match='fps=0'):
    animation.write_gif(tmp_path / 'x.gif', _strip(), fps=0)
  monkeypatch.setitem(sys.modules, 'PIL', None)
  with pytest.raises(ModuleNotFoundError, match=r"pip install 'wmpoe\[demo\]'"):
    animation.write_gif(tmp_path / 'x.gif', _strip())
  assert not list(tmp_path.iterdir())
