import io
import json

import pytest

from wmpoe import whole_file
from wmpoe.training import metrics_log


def test_resuming_drops_rows_beyond_the_step_and_a_torn_line(tmp_path):
  log = metrics_log.MetricsLog(tmp_path, resume_step=0)
  for step in (1, 2, 3):
    log.write({'step': step, 'loss': step / 7})
  log.close()
  with open(log.path, 'a', encoding='utf-8') as file:
    file.write('{"step": 4, "lo')
  log = metrics_log.MetricsLog(tmp_path, resume_step=2)
  log.write({'step': 3, 'loss': 0.5})
  log.close()
  assert metrics_log.read(tmp_path) == [
    {'step': 1, 'loss': 1 / 7},
    {'step': 2, 'loss': 2 / 7},
    {'step': 3, 'loss': 0.5},
  ]
  assert [p.name for p in tmp_path.iterdir()] == [metrics_log.FILENAME]


def test_rows_are_readable_before_the_log_is_closed(tmp_path):
  log = metrics_log.MetricsLog(tmp_path, resume_step=0)
  log.write({'step': 1})
  assert metrics_log.read(tmp_path) == [{'step': 1}]
  log.close()


def test_where_nothing_can_be_appended_to_the_file_is_written_whole(tmp_path, monkeypatch):
  log = metrics_log.MetricsLog(tmp_path, resume_step=0)
  log.write({'step': 1})
  log.write({'step': 2})
  log.close()
  monkeypatch.setattr(whole_file, 'is_remote', lambda path: True)  # As an object store is.
  log = metrics_log.MetricsLog(tmp_path, resume_step=1)
  assert metrics_log.read(tmp_path) == [{'step': 1}]
  log.write({'step': 2, 'loss': 0.5})
  log.sync()
  assert metrics_log.read(tmp_path) == [{'step': 1}, {'step': 2, 'loss': 0.5}]
  log.write({'step': 3})
  log.close()
  assert [row['step'] for row in metrics_log.read(tmp_path)] == [1, 2, 3]


def test_a_process_without_a_log_writes_and_says_nothing(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  log, stream = metrics_log.Silence(), io.StringIO()
  log.write({'step': 1})
  log.sync()
  log.close()
  progress = metrics_log.Progress(2, stream=stream, silent=True)
  progress.report(1, 0.5, 1.0)
  progress.say('done')
  assert stream.getvalue() == '' and list(tmp_path.iterdir()) == []


def test_what_is_not_finite_becomes_null(tmp_path):
  log = metrics_log.MetricsLog(tmp_path, resume_step=0)
  log.write({'step': 1, 'psnr': float('inf'), 'recall': float('nan'), 'arms': {'a': 1.5}})
  log.close()
  text = log.path.read_text()
  assert json.loads(text) == {'step': 1, 'psnr': None, 'recall': None, 'arms': {'a': 1.5}}
  assert 'NaN' not in text and 'Infinity' not in text


def test_broken_line_in_the_middle_is_reported(tmp_path):
  (tmp_path / metrics_log.FILENAME).write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
  with pytest.raises(ValueError, match=r"line 2: expected a JSON object with a 'step'.*nonsense"):
    metrics_log.read(tmp_path)


def test_window_means_survive_saving():
  values = [0.1, 0.7, 1.3]
  whole, half = metrics_log.Window(), metrics_log.Window()
  for value in values:
    whole.add({'loss': value})
  half.add({'loss': values[0]})
  half = metrics_log.Window(json.loads(json.dumps(half.to_json())))
  for value in values[1:]:
    half.add({'loss': value})
  assert half.means() == whole.means() == {'loss': pytest.approx(0.7)}
  assert half.to_json() == {'count': 0, 'sums': {}}


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_progress_renews_its_line_only_on_a_terminal():
  plain, terminal = io.StringIO(), Terminal()
  for stream in (plain, terminal):
    progress = metrics_log.Progress(100, stream=stream)
    progress.report(10, 0.25, 2.0)
    progress.report(50, 0.125, 0.5)
    progress.say('done')
  lines = plain.getvalue().splitlines()
  assert lines[0] == 'step 10/100 (10 %)  loss 0.25000  2.00 steps/s  45 s left'
  assert lines[1].endswith('1 min 40 s left') and lines[2] == 'done'
  assert terminal.getvalue().count('\r') == 2
  assert terminal.getvalue().endswith('left\ndone\n')


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(0.4, '0 s'), (59.7, '1 min 00 s'), (200, '3 min 20 s'), (7500, '2 h 05 min')],
)
def test_duration(seconds, text):
  assert metrics_log.duration(seconds) == text
