import os
import pathlib
import subprocess
import sys

import pytest

from wmpoe import cli

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
    (['train'], 'Give a config, for instance --config=configs/cards.py:base.'),
    (['train', '--workdir=there', '--config=nowhere.py'],
     "No such file or directory: 'nowhere.py'"),
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


def test_it_runs_as_a_module_in_a_process_of_its_own(tmp_path):
  """Here flags of a config come from the process's own arguments."""
  done = subprocess.run(
      [sys.executable, '-m', 'wmpoe', 'collect', f'--config={_CONFIG}', '--config.env.length=70',
       '--workdir=there', '--episodes=1'],
      cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(_ROOT)}, capture_output=True, text=True,
      check=False)
  assert done.returncode == 0, done.stderr
  assert 'wrote 1 episodes to there' in done.stdout
  assert '"length": 70' in (tmp_path / 'there' / 'spaces.json').read_text()
