import importlib.metadata
import os
import pathlib
import socket
import subprocess
import sys
import types

import jax
import pytest

from wmpoe import __main__ as program
from wmpoe import cli
from wmpoe import multihost
from wmpoe.commands import common

_ROOT = pathlib.Path(__file__).parents[1]
_CONFIG = _ROOT / 'configs' / 'cards.py'


def _main(capsys, *arguments):
  code = cli.main(['wmpoe', *arguments])
  return (code, *capsys.readouterr())


@pytest.mark.parametrize('command', cli.COMMANDS)
@pytest.mark.parametrize('flag', ['--help', '-h'])
def test_every_command_tells_its_flags(capsys, command, flag):
  code, out, err = _main(capsys, command, flag)
  assert (code, err) == (0, '')
  assert out.startswith(f'usage: python -m wmpoe {command} [flags]')
  assert '--workdir: ' in out
  assert 'helpfull' not in out  # absl's own flags are none of the command's


def test_help_lists_the_commands(capsys):
  code, out, _ = _main(capsys, '--help')
  assert code == 0
  assert all(f'  {command} ' in out for command in cli.COMMANDS)


def test_no_command_is_an_error_that_helps(capsys):
  code, out, _ = _main(capsys)
  assert code == 2
  assert out == cli.usage() + '\n'


def test_an_unknown_command_is_named_beside_those_there_are(capsys):
  code, _, err = _main(capsys, 'trian')
  assert code == 2
  assert err.startswith("wmpoe: unknown command 'trian'.")
  assert cli.usage() in err


@pytest.mark.parametrize(('arguments', 'message'), [
    (['demo', '--epsiodes=4'], "Unknown command line flag 'epsiodes'. Did you mean: episodes"),
    (['demo', '--episodes=four'], 'flag --episodes=four: invalid literal'),
    (['demo', '4'], "demo takes flags only, got ['4']. See --help."),
    (['info', 'composition', 'again'], "info takes flags only, got ['composition', 'again']"),
    (['train', '--distributed=here'], '--distributed=here cannot be read; expected off, auto, or'),
    (['train'], 'Give a config, for instance --config=configs/cards.py:base.'),
    (['train', '--workdir=there', '--config=nowhere.py'],
     '--config=nowhere.py: there is no such file in'),
    (['train', f'--config={_CONFIG}:basic'],
     "Unknown variant 'basic' of configs/cards.py; expected one of base, short_term"),
    (['train', f'--config={_CONFIG}', '--config.model.wdth=8'],
     'The config has no key \'wdth\'. Did you mean "width"'),
    (['train', f'--config={_CONFIG}', '--config.modle.width=8'],
     'The config has no key \'modle\'. Did you mean "model"'),
    (['train', f'--config={_CONFIG}', '--config.nope=8'], "The config has no key 'nope'."),
    (['train', f'--config={_CONFIG}', '--config.model.width=wide'],
     'flag --config.model.width=wide: invalid literal'),
])
def test_a_wrong_flag_is_explained_without_a_traceback(capsys, arguments, message):
  code, out, err = _main(capsys, *arguments)
  assert code == 2
  assert message in err
  assert err.startswith(f'wmpoe {arguments[0]}: ')
  assert 'Traceback' not in out + err


def test_the_traceback_is_shown_when_asked_for(capsys):
  code, _, err = _main(capsys, 'train', '--traceback')
  assert code == 2
  assert err.startswith('Traceback (most recent call last)')


def test_a_bug_is_not_hidden(monkeypatch):
  class Command:
    define = staticmethod(lambda flags, argv: None)
    run = staticmethod(lambda flags: 1 // 0)

  monkeypatch.setitem(sys.modules, 'wmpoe.commands.demo', Command)
  with pytest.raises(ZeroDivisionError):
    cli.main(['wmpoe', 'demo'])


class _Member:
  """The pod's connection; tests/roll_call_test.py has real ones."""

  def __init__(self):
    self.said = []

  def ask(self, name, flag):
    self.said.append(name)
    return flag

  def leave(self):
    self.said.append('farewell')

  def fail(self, end):
    self.said.append((end.code, end.message))


def _in_a_pod(monkeypatch, process, run):
  """Runs a command of a pod's process."""
  def define(flags, argv):
    common.define_distributed(flags)

  def exit_at_once(code):
    raise SystemExit(code)

  member = _Member()
  monkeypatch.setattr(multihost, '_pod', multihost._Pod(process=process, member=member))
  monkeypatch.setattr(multihost, '_GRACE', 0.0)
  monkeypatch.setattr(multihost, '_LINGER', 0.0)
  monkeypatch.setattr('os._exit', exit_at_once)
  monkeypatch.setitem(sys.modules, 'wmpoe.commands.demo', types.SimpleNamespace(
      define=define, run=run, __doc__=''))
  return member


@pytest.mark.parametrize(('process', 'printed'), [(0, 'done\n'), (1, '')])
def test_in_a_pod_process_0_prints_and_all_leave_together(capsys, monkeypatch, process, printed):
  member = _in_a_pod(monkeypatch, process, lambda flags: print('done'))
  assert _main(capsys, 'demo') == (0, printed, '')
  assert member.said == ['the end', 'farewell']
  assert multihost.is_alone()


@pytest.mark.parametrize(('error', 'code', 'message'), [
    (ValueError('no such thing'), 2, 'no such thing'),
    (jax.errors.JaxRuntimeError('UNAVAILABLE: connection reset'), 75, 'UNAVAILABLE: connection'),
    (jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: of memory'), 2, 'RESOURCE_EXHAUSTED: of'),
    (KeyboardInterrupt(), 130, 'interrupted; finished files are whole'),
    (ZeroDivisionError('a bug'), 1, "ZeroDivisionError('a bug')"),
])
def test_in_a_pod_an_error_ends_every_process(capsys, monkeypatch, error, code, message):
  def run(flags):
    raise error

  member = _in_a_pod(monkeypatch, 1, run)
  with pytest.raises(SystemExit) as ended:
    cli.main(['wmpoe', 'demo'])
  assert ended.value.code == code
  ((told_code, told),) = member.said
  assert (told_code, told[:len(message)]) == (code, message)
  assert f'wmpoe demo: {message}' in capsys.readouterr().err


def test_processes_that_do_not_join_are_worth_another_try(capsys):
  with socket.create_server(('127.0.0.1', 0)) as found:
    port = found.getsockname()[1]
  code, _, err = _main(
      capsys, 'train', f'--distributed=127.0.0.1:{port},2,0', '--join_timeout=1')
  assert code == 75
  assert 'wmpoe train: 1 of 2 processes joined within 1 s: 0 (host ' in err


def test_it_runs_as_a_module_in_a_process_of_its_own(tmp_path):
  """Here flags of a config come from the process's own arguments."""
  done = subprocess.run(
      [sys.executable, '-m', 'wmpoe', 'collect', f'--config={_CONFIG}', '--config.env.length=70',
       '--workdir=there', '--episodes=1'],
      cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(_ROOT)}, capture_output=True, text=True,
      check=False)
  assert done.returncode == 0, done.stderr
  assert 'wrote 1 episode to there' in done.stdout
  assert '"length": 70' in (tmp_path / 'there' / 'spaces.json').read_text()


def test_who_waits_has_it_compiled_soon_unless_told_or_accelerated(monkeypatch):
  level = '--xla_backend_optimization_level'
  for given, plugins, expected in (
      ('', [], f'{level}=1'), ('--xla_x=2', [], f'--xla_x=2 {level}=1'),
      (f'{level}=3', [], f'{level}=3'), ('--xla_x=2', ['a GPU'], '--xla_x=2')):
    monkeypatch.setenv('XLA_FLAGS', given)
    monkeypatch.setattr(importlib.metadata, 'entry_points', lambda group, found=plugins: found)
    program._compile_soon()
    assert os.environ['XLA_FLAGS'] == expected
