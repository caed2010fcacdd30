"""What several commands share: flags, progress, output folders."""

from collections.abc import Sequence
import pathlib
import shlex
import shutil
import sys
import time
from typing import Any

from absl import flags as absl_flags
import ml_collections
from ml_collections import config_flags

from wmpoe import multihost
from wmpoe import packaged
from wmpoe import sharding
from wmpoe import whole_file
from wmpoe import zoo

_EXAMPLE = 'configs/cards.py:base'


def command_line() -> str:
  """The command line of this process, quoted for a shell; stored with results and weights."""
  return shlex.join(['python', '-m', 'wmpoe', *sys.argv[1:]])


def program() -> str:
  """How to run this program again: `python -m wmpoe`, or by its path if `python` is another."""
  if shutil.which('python') == sys.executable:
    return 'python -m wmpoe'
  path = pathlib.Path(sys.executable)
  here = pathlib.Path.cwd()
  return f'{path.relative_to(here) if path.is_relative_to(here) else path} -m wmpoe'


def define_config(flags: absl_flags.FlagValues, argv: Sequence[str]) -> None:
  """Adds `--config=FILE[:VARIANT]` and every `--config.key=value` in argv."""
  config_flags.DEFINE_config_file(
      'config', None, f'Config file and variant, for instance {_EXAMPLE}; set single values with '
      '--config.key=value.', flag_values=flags, sys_argv=list(argv))


def check_config_file(argv: Sequence[str]) -> None:
  """Checks that the config file named in argv exists.

  Raises:
    FileNotFoundError: if it does not.
  """
  for index, argument in enumerate(argv):
    name, given, value = argument.partition('=')
    if name.lstrip('-') == 'config' and argument.startswith('-'):
      file = (value if given else ''.join(argv[index + 1:index + 2])).partition(':')[0]
      if not pathlib.Path(file).is_file():
        raise FileNotFoundError(
            f'--config={file}: there is no such file in {pathlib.Path.cwd()}. Give its full path, '
            "or run in the folder it starts from, for instance the one with this project's "
            'configs/.')


def config_of(flags: absl_flags.FlagValues) -> ml_collections.ConfigDict:
  """The config the user named.

  Raises:
    ValueError: if none was.
  """
  if flags.config is None:
    raise ValueError(f'Give a config, for instance --config={_EXAMPLE}.')
  return flags.config


def define_distributed(flags: absl_flags.FlagValues) -> None:
  """Adds the flags of pods."""
  absl_flags.DEFINE_string(
      'distributed', '', 'How this process joins a pod: auto (Cloud TPU, GKE, Slurm, Open MPI); '
      'HOST:PORT,N,I (address of process 0, number of processes, index of this one); or off (a '
      f'single process). By default, the variables {", ".join(multihost.VARIABLES)} decide, if '
      'set.', flag_values=flags)
  absl_flags.DEFINE_float(
      'join_timeout', 300.0, 'Pods: seconds to wait for all processes to join.', lower_bound=1.0,
      flag_values=flags)


def define_mesh(flags: absl_flags.FlagValues) -> None:
  """Adds the flag that spreads a command over devices."""
  absl_flags.DEFINE_string(
      'mesh', '', f'Devices along each axis ({", ".join(sharding.AXES)}), for instance '
      'data=2,fsdp=4; -1 takes all that remain. By default, all devices are on data.',
      flag_values=flags)


def mesh_of(flags: absl_flags.FlagValues) -> Any:
  """The mesh that `--mesh` describes, over all devices of all processes.

  Raises:
    ValueError: if it cannot be parsed, or does not use exactly the available devices.
  """
  sizes = {}
  for part in filter(None, flags.mesh.split(',')):
    axis, _, size = part.partition('=')
    try:
      sizes[axis.strip()] = int(size)
    except ValueError:
      raise ValueError(
          f'--mesh={flags.mesh} cannot be read at {part!r}; expected AXIS=SIZE,... with axes '
          f'{", ".join(sharding.AXES)}, for instance --mesh=data=2,fsdp=4.') from None
  return sharding.make_mesh(sizes or {'data': -1})


def output_folder(path: str) -> pathlib.Path:
  """Creates a folder and checks that it is writable, before any work is done.

  Raises:
    OSError: if it is not.
    ValueError: if it is in an object store.
  """
  folder = whole_file.local(path)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / '.wmpoe-probe'
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise OSError(
        f"Cannot write to the output folder '{path}' ({error.strerror}); name another with "
        '--workdir.') from error
  return folder


class Progress:
  """Prints progress and the time left to stderr: a live line, or one line per change.

  In a pod only process 0 prints.
  The share of the whole is `(stage + share) / stages`; a stage may take any number of calls.
  """

  def __init__(self, stages: int):
    self.stages, self.stage, self.text = stages, -1, ''
    self.begun = self.said = time.monotonic()
    self.speaks = multihost.is_main()
    self.live = self.speaks and sys.stderr.isatty()

  def __call__(self, text: str, share: float) -> None:
    """Reports what is being done and how much of it is done; a new text starts the next stage."""
    if text != self.text:
      self.text, self.stage = text, self.stage + 1
      self.said = 0.0
    now = time.monotonic()
    if not self.speaks or (now - self.said < (0.2 if self.live else 5.0) and share < 1):
      return
    self.said = now
    whole = min(1.0, (self.stage + share) / max(self.stages, self.stage + 1))
    spent = now - self.begun
    left = f', {spent / whole * (1 - whole):.0f} s left' if 0.02 < whole < 1 else ''
    line = f'{100 * whole:3.0f} %  {text}  ({spent:.0f} s{left})'
    print(f'\r\033[K{line}' if self.live else line, end='' if self.live else '\n',
          file=sys.stderr, flush=True)

  def done(self) -> None:
    """Ends the live line."""
    if self.live:
      print(file=sys.stderr)


def counted(number: int, noun: str) -> str:
  """A number with its noun: '1 episode', '2 episodes'."""
  return f'{number} {noun}{"" if number == 1 else "s"}'


def plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The config as nested dicts of plain values, tuples as lists."""
  def simple(value):
    if isinstance(value, dict):
      return {k: simple(v) for k, v in value.items()}
    return [simple(v) for v in value] if isinstance(value, (tuple, list)) else value

  return simple(config.to_dict())


def experts_of(experts: str, world: str) -> dict[str, str]:
  """Files of the experts the user named, or names of the packaged ones, by expert.

  Raises:
    ValueError: for an item that is not name=file.
  """
  if not experts:
    names = {kind: f'{world}_{kind}' for kind in zoo.TRAINED}
    return {kind: name for kind, name in names.items() if name in packaged.names()}
  files = {}
  for item in experts.split(','):
    name, _, path = item.partition('=')
    if not path:
      raise ValueError(f'--experts got {item!r}; expected name=file, comma separated.')
    files[name] = path
  return files
