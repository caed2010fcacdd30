import pathlib

import pytest

from wmpoe import zoo
from wmpoe.evaluation import film
from wmpoe.evaluation import recall
from wmpoe.evaluation import results

CONFIG = pathlib.Path(__file__).parents[2] / 'configs' / 'cards.py'


@pytest.fixture
def demo(wmpoe, tiny, monkeypatch):
  """Calls the demo on a tiny world in place of the packaged one."""
  monkeypatch.setattr(
      zoo, 'load', lambda name, *, compose: tiny.world('short_term', 'spatial', env=False))
  return lambda *flags: wmpoe('demo', '--workdir=there', '--episodes=2', *flags)


def _interrupt(*unused, **options):
  raise KeyboardInterrupt


def test_shows_a_table_and_writes_results_report_and_film(demo, tmp_path):
  done = demo('--experts=base,short_term,spatial')
  assert done.code == 0, done.err
  there = tmp_path / 'there'
  assert sorted(p.name for p in there.iterdir()) == ['episode.gif', 'report.html', 'results.json']
  out = results.read(there / 'results.json')
  assert list(out['arms']) == ['base', 'short_term', 'spatial', 'all']
  assert list(out['controls']) == ['other_episode', 'shuffled_history']
  assert {'recall', 'covered', 'tile_mse_recall', 'covered_again', 'psnr', 'write_ms_per_episode',
          'read_ms_per_frame'} <= set(out['arms']['all'])
  assert out['arms']['all']['recall']['n'] == 2
  assert out['meta']['seeds'] == [0]
  page = (there / 'report.html').read_text()
  assert '<svg' in page
  assert 'data:image/png;base64,' in page
  assert (there / 'episode.gif').read_bytes().startswith(b'GIF89a')
  assert 'All composed' in done.out
  assert 'try next:' in done.out and 'python -m wmpoe play' in done.out
  assert '100 %' in done.err


def test_composes_as_it_is_told(wmpoe, tiny, tmp_path, monkeypatch):
  asked = []
  monkeypatch.setattr(zoo, 'load', lambda name, *, compose: (
      asked.append(compose), tiny.world('spatial', env=False))[1])
  done = wmpoe('demo', '--workdir=there', '--episodes=2', f'--config={CONFIG}',
               '--config.compose.num_steps=3')
  assert done.code == 0, done.err
  out = results.read(tmp_path / 'there' / 'results.json')
  assert asked[0]['num_steps'] == 3 == out['meta']['config']['compose']['num_steps']


def test_runs_without_any_memory(demo, tmp_path):
  done = demo('--experts=base')
  assert done.code == 0, done.err
  assert list(results.read(tmp_path / 'there' / 'results.json')['arms']) == ['base']


@pytest.mark.parametrize(('flags', 'message'), [
    (['--episodes=1'], '--episodes=1: expected at least 2'),
    (['--experts=base,spacial'], "compose got the experts ['base', 'spacial']"),
    (['--experts=spatial'], "--experts=['spatial'] must include base."),
    ([f'--config={CONFIG}', '--config.env.symbols=4'],
     "trained on 4x4 boards of 32 pixels and 8 symbols; --config.env changes {'symbols': 4}"),
])
def test_bad_input_is_named(demo, tmp_path, flags, message):
  done = demo(*flags)
  assert done.code == 2
  assert message in done.err
  assert [p for p in tmp_path.rglob('*') if p.is_file()] == []


def test_a_folder_that_cannot_be_made(demo, tmp_path):
  (tmp_path / 'file').write_text('here first')
  done = demo('--workdir=file/below')
  assert done.code == 2
  assert "Cannot write to the output folder 'file/below' (Not a directory)" in done.err


def test_interrupted_while_imagining_it_leaves_nothing(demo, tmp_path, monkeypatch):
  monkeypatch.setattr(recall, 'measure', _interrupt)
  done = demo('--experts=base')
  assert done.code == 130
  assert 'wmpoe demo: interrupted; finished files are whole' in done.err
  assert 'Traceback' not in done.err
  assert list((tmp_path / 'there').iterdir()) == []


def test_interrupted_while_writing_it_leaves_whole_files_only(demo, tmp_path, monkeypatch):
  monkeypatch.setattr(film, 'svg', _interrupt)  # the report is half made
  done = demo('--experts=base,spatial')
  assert done.code == 130
  assert [p.name for p in (tmp_path / 'there').iterdir()] == ['results.json']
  results.read(tmp_path / 'there' / 'results.json')
