"""A run's folder: where it is, whose it is, and the configuration it holds.

It is a local path or one of an object store (gs://...), which `etils.epath` treats alike.
"""

from collections.abc import Collection, Iterator, Mapping
import contextlib
import fcntl
import json
import os
import pathlib
import socket
from typing import Any, TextIO

from etils import epath  # comes with orbax, whose paths these are

from wmpoe import whole_file
from wmpoe.training import lease

CONFIG = 'config.json'
LOCK = 'train.lock'


def absolute(path: str | os.PathLike[str]) -> epath.Path:
  """Returns a local path made absolute, or one of an object store as it is."""
  return epath.Path(path if whole_file.is_remote(path) else os.path.abspath(path))


def prepare(workdir: str | os.PathLike[str]) -> epath.Path:
  """Makes the folder and checks that it can be written to; returns its absolute path.

  Raises:
    OSError: naming the folder, if it cannot be made or written to.
    ImportError: for an object store whose client is not installed.
  """
  path = absolute(workdir)
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f'.writable-{os.getpid()}'
    probe.write_text('')
    probe.unlink()
  except ImportError as error:
    raise ImportError(
      f"The output folder {path} is on an object store whose client is missing ({error}). For "
      "gs://: pip install -e '.[gcs]'"
    ) from error
  except OSError as error:
    raise OSError(
      f'The output folder {path} cannot be written to ({error.strerror or error}). Expected a '
      'folder that can be made and written: choose another workdir or change its permissions.'
    ) from error
  return path


def check_config(
  workdir: str | os.PathLike[str],
  config: Mapping[str, Any],
  *,
  may_differ: Collection[str] = (),
) -> None:
  """Writes config.json, or checks that the one there is of the same run.

  Args:
    workdir: the run's folder.
    config: JSON-able, nested mappings allowed.
    may_differ: dotted names of keys (or of whole groups) that a resumed run may change.

  Raises:
    ValueError: listing every key that differs, with both values.
  """
  path = absolute(workdir) / CONFIG
  new = json.loads(json.dumps(config))
  if path.exists():
    old_flat = _flatten(json.loads(path.read_text()))
    new_flat = _flatten(new)
    missing = '(absent)'
    different = [
      f'  {key}: {old_flat.get(key, missing)!r} there, {new_flat.get(key, missing)!r} now'
      for key in sorted(old_flat.keys() | new_flat.keys())
      if old_flat.get(key, missing) != new_flat.get(key, missing)
      and not any(key == name or key.startswith(name + '.') for name in may_differ)
    ]
    if different:
      raise ValueError(
        f'{workdir} holds a run of another configuration. Keys that differ:\n'
        + '\n'.join(different)
        + '\nGive another workdir, or the values it was started with to continue it.'
      )
  temporary = path.with_suffix('.json.tmp')
  temporary.write_text(json.dumps(new, indent=2, sort_keys=True) + '\n')
  temporary.replace(path)


def lock(workdir: epath.Path) -> contextlib.AbstractContextManager:
  """What keeps a second job out of a folder while this one runs, wherever the folder is."""
  return lease.Lease(workdir) if whole_file.is_remote(workdir) else Lock(workdir)


class Lock:
  """Keeps a second job out of a local folder; a dead job's lock is taken over.

  In a pod process 0 takes it, for all.
  """

  _held: set[str] = set()

  def __init__(self, workdir: str | os.PathLike[str]):
    """Names the lock file; nothing is taken yet."""
    self._path = pathlib.Path(os.path.abspath(workdir)) / LOCK

  def __enter__(self) -> 'Lock':
    """Takes the lock.

    Raises:
      RuntimeError: if another job that is alive holds it.
    """
    me = {'pid': os.getpid(), 'host': socket.gethostname(), 'born': _born(os.getpid())}
    with self._exclusive() as file:
      holder = _parse(file.read())
      if holder is not None and self._alive(holder):
        raise RuntimeError(
          f"Another job (process {holder['pid']} on {holder['host']}) is training in "
          f"{self._path.parent}. Wait for it, stop it, or give another workdir. If you are sure "
          f"that it is gone, remove {self._path}."
        )
      file.truncate(0)
      file.write(json.dumps(me))
    Lock._held.add(str(self._path))
    return self

  def __exit__(self, *unused: Any) -> None:
    """Frees the lock."""
    Lock._held.discard(str(self._path))
    with self._exclusive():
      self._path.unlink()

  @contextlib.contextmanager
  def _exclusive(self) -> Iterator[TextIO]:
    """Opens the file for one job at a time, so that two cannot both find the folder free."""
    while True:
      with open(self._path, 'a+', encoding='utf-8') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
          current = os.path.samestat(os.fstat(file.fileno()), os.stat(self._path))
        except FileNotFoundError:
          current = False
        if not current:
          continue  # Its holder removed it while we waited: what we have is no longer the lock.
        file.seek(0)
        yield file
        return

  def _alive(self, holder: Mapping[str, Any]) -> bool:
    if holder['host'] != socket.gethostname():
      return True  # Cannot be known from here: the message says what to do.
    if holder['pid'] == os.getpid() and holder['born'] == _born(os.getpid()):
      return str(self._path) in Lock._held
    born = _born(holder['pid'])
    return born is not None and born == holder['born']


def _born(pid: int) -> str | None:
  """Returns what tells a process from a later one of the same id; None if it is not alive."""
  try:
    # After the name in parentheses: state is the first field, the start time the twentieth.
    fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    return None if fields[0] in 'ZX' else f'{boot}:{fields[19]}'
  except (OSError, IndexError):
    pass
  if os.path.exists('/proc/self/stat'):
    return None
  try:  # No /proc (macOS): an id in use is all that can be told.
    os.kill(pid, 0)
  except ProcessLookupError:
    return None
  except PermissionError:
    pass
  return 'alive'


def _parse(text: str) -> dict[str, Any] | None:
  try:
    holder = json.loads(text)
    return holder if {'pid', 'host', 'born'} <= holder.keys() else None
  except (ValueError, AttributeError):
    return None  # Empty, or torn by a kill: nobody's.


def _flatten(tree: Any, prefix: str = '') -> dict[str, Any]:
  if not isinstance(tree, dict) or not tree:
    return {prefix: tree}
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    flat |= _flatten(value, f'{prefix}.{key}' if prefix else str(key))
  return flat
