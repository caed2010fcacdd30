"""The command line: `python -m wmpoe <command> [flags]`.

Each command is a module of `wmpoe.commands` with a docstring (its help), `define(flags, argv)` and
`run(flags)`, which may return an exit code. Flags live in an object of their own, so nothing is
global and tests can call `main`.
"""

from collections.abc import Sequence
import contextlib
import importlib
import os
import sys
import traceback
from typing import Any

from absl import flags as absl_flags
from absl import logging
import jax

from wmpoe import multihost
from wmpoe import roll_call
from wmpoe.commands import common

COMMANDS = {
    'demo': 'see memory work on held-out episodes: write them, imagine what comes next',
    'train': 'train an expert, or resume a run',
    'eval': 'measure a protocol on held-out episodes, with a report',
    'collect': 'write episodes of an environment to disk',
    'encode': 'encode episodes into a latent cache',
    'data': 'your own data: convert, validate, stats, preview',
    'play': 'steer through a world inside the model, on a local page',
    'memory': 'inspect, compare, merge and fork memory files; forget a span',
    'compile': 'compile for TPU slices without a TPU: memory, work, communication',
    'info': 'describe packaged experts, composition rules and this installation',
}
# What jax's runtime says of the program it was given, and not of other processes.
_INPUT = ('RESOURCE_EXHAUSTED', 'INVALID_ARGUMENT', 'UNIMPLEMENTED', 'NOT_FOUND')
# What a user can cause and mend: shown as one message, without a traceback.
_USER_ERRORS = (
    ValueError, TypeError, OSError, RuntimeError, FloatingPointError, ImportError, absl_flags.Error)


def usage() -> str:
  """What `python -m wmpoe` prints."""
  lines = ['usage: python -m wmpoe <command> [flags]', '']
  lines += [f'  {name:<8} {text}' for name, text in COMMANDS.items()]
  return '\n'.join([*lines, '', 'python -m wmpoe <command> --help lists the flags of a command.'])


def command_help(command: str, module: object, flags: absl_flags.FlagValues) -> str:
  """The help of one command: its docstring and its flags."""
  lines = [f'usage: python -m wmpoe {command} [flags]', '', (module.__doc__ or '').strip(), '',
           'flags:']
  own = sorted(
      {flag.name: flag for flag in flags._flags().values()}.values(), key=lambda f: f.name)
  for flag in own:
    if flag.name in ('help', 'flagfile', 'undefok'):
      continue
    default = '' if flag.default in (None, '') else f' (default: {flag.default})'
    lines.append(f'  --{flag.name}: {flag.help}{default}')
  return '\n'.join(lines)


def _parse(flags: absl_flags.FlagValues, arguments: Sequence[str]) -> list[str]:
  """Parses the flags; returns the arguments that are not flags.

  Raises:
    ValueError: naming a key that the config does not have.
    absl.flags.Error: for other wrong flags.
  """
  try:
    return flags(arguments)[1:]
  except (AttributeError, KeyError) as error:
    cause: object = error
    while isinstance(cause, Exception):  # one wraps the other
      cause = cause.args[0]
    key, _, hint = str(cause).partition('\n')
    raise ValueError(
        f'The config has no key {key}. {hint or "Its file lists the keys it has."}') from error


def _message(error: Exception) -> str:
  """What an error says to someone who has not read the code."""
  head, traced, rest = str(error).partition('Traceback (most recent call last)')
  if traced:  # a config file raised: config_flags hands on the whole trace as its message
    flag, cause = head.partition(': ')[0], rest.strip().rpartition('\n')[2]
    return f'{flag}: {cause.partition(": ")[2] or cause}'
  return str(error)


def _run(module: Any, flags: absl_flags.FlagValues) -> int:
  """Runs the command, in a pod on every process; process 0 alone prints."""
  if 'distributed' in flags:
    multihost.initialize(flags.distributed, timeout=flags.join_timeout)
  with contextlib.ExitStack() as stack:
    if not multihost.is_main():
      stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, 'w'))))
    code = module.run(flags) or 0
  multihost.leave()
  return code


def _fail(code: int, command: str, message: str) -> int:
  """Prints why the command ends, and ends every other process too."""
  multihost.await_news()
  print(f'wmpoe {command}: {message}', file=sys.stderr)
  multihost.abort(code, message)
  return code


def _code_of(error: BaseException) -> int:
  """2, or 75 for what a pod's runtime says when a process is lost before we know of it."""
  if multihost.is_alone() or not isinstance(error, jax.errors.JaxRuntimeError):
    return 2
  return 2 if str(error).startswith(_INPUT) else roll_call.TRY_AGAIN


def main(argv: Sequence[str]) -> int:
  """Runs one command; returns the exit code.

  0 done, 2 bad input, 75 (EX_TEMPFAIL) run it again to resume, 130 interrupted.
  """
  arguments = list(argv[1:])
  if not arguments or arguments[0] in ('-h', '--help', 'help'):
    print(usage())
    return 0 if arguments else 2
  command, *rest = arguments
  if command not in COMMANDS:
    print(f'wmpoe: unknown command {command!r}.\n\n{usage()}', file=sys.stderr)
    return 2
  if not absl_flags.FLAGS.is_parsed():
    absl_flags.FLAGS.mark_as_parsed()  # grain and orbax read absl's own flags
  logging.set_verbosity(logging.ERROR)
  module = importlib.import_module(f'wmpoe.commands.{command}')
  flags = absl_flags.FlagValues()
  arguments = [f'wmpoe {command}', *rest]
  module.define(flags, arguments)
  absl_flags.DEFINE_bool(
      'traceback', False, 'Show the traceback of an error.', flag_values=flags)
  if any(a in ('-h', '--help', '-help') for a in rest):
    print(command_help(command, module, flags))
    return 0
  try:
    common.check_config_file(arguments)
    extra = _parse(flags, arguments)
    if extra and 'topic' in flags and (len(extra) == 1 or 'files' in flags):
      flags['topic'].value = extra.pop(0)  # `info composition` reads better
    if extra and 'files' in flags:
      flags['files'].value, extra = extra, []
    if extra:
      raise ValueError(f'{command} takes flags only, got {extra}. See --help.')
    return _run(module, flags)
  except KeyboardInterrupt:
    return _fail(130, command, 'interrupted; finished files are whole, nothing else was written.')
  except roll_call.MissingError as error:
    return _fail(roll_call.TRY_AGAIN, command, str(error))
  except _USER_ERRORS as error:
    if os.environ.get('WMPOE_TRACEBACK') or '--traceback' in rest:
      traceback.print_exc()
    return _fail(_code_of(error), command, _message(error))
  except Exception as error:
    if multihost.is_alone():
      raise
    traceback.print_exc()
    return _fail(1, command, repr(error))
