"""Keeps a second job out of a run's folder, and lets the next one in when the first is gone.

A file in the folder says who trains there, and is renewed while that job runs. On one machine a
killed job is recognised at once. From another machine, and in an object store, it cannot be told
from one that lives: who comes next waits to see whether the file is still renewed.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import fcntl
import json
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
from typing import Any, TextIO

from etils import epath  # comes with orbax, whose paths these are

from wmpoe import whole_file

LOCK, LEASE = 'train.lock', 'train.lease'
RENEWED, ENDS, SETTLES = 30.0, 120.0, 1.0  # seconds

Lost = Callable[[str], None]


def lock(workdir: epath.Path, on_lost: Lost) -> contextlib.AbstractContextManager:
  """What keeps a second job out of a folder while this one runs, wherever the folder is.

  In a pod process 0 takes it, for all. Entering it raises RuntimeError if another job is there.

  Args:
    workdir: The run's folder.
    on_lost: Called, in a thread, with a message, if another job has taken over: this one had not
      been heard of for `ENDS` seconds, and must not write to the folder any more.
  """
  return (Lease if whole_file.is_remote(workdir) else Lock)(workdir, on_lost)


class _Renewed:
  """What both have in common: a thread that renews the file."""

  def __init__(self, path: Any, on_lost: Lost):
    self._path, self._on_lost, self._stop = path, on_lost, threading.Event()
    self._thread = threading.Thread(target=self._renew, daemon=True)

  def _renew(self) -> None:
    while not self._stop.wait(RENEWED):
      try:
        still_mine = self._renewed()
      except OSError:  # the store is away for a while: once more later
        continue
      if not still_mine:
        self._on_lost(
            f'{self._path.parent} was taken over by another job, as this one had not been heard of '
            f'for {ENDS:.0f} s; this one ends, because two in one folder would spoil it.')
        return

  def _renewed(self) -> bool:
    """Renews the file; False if it is another job's."""
    raise NotImplementedError

  def _end(self) -> None:
    self._stop.set()
    self._thread.join()


class Lease(_Renewed):
  """In an object store, which has no locks: the file holds when it was last renewed."""

  def __init__(self, folder: epath.Path, on_lost: Lost):
    """Names the file; nothing is taken yet."""
    super().__init__(folder / LEASE, on_lost)
    self._me = {'token': secrets.token_hex(8), 'pid': os.getpid(), 'host': socket.gethostname()}

  def __enter__(self) -> 'Lease':
    """Takes the lease; waits up to `ENDS` seconds where another job had it a short while ago.

    Raises:
      RuntimeError: if another job renews it.
    """
    holder = self._read()
    if holder is not None and _lives(self._read, time.time() - holder['renewed'], self._path):
      raise _refusal(self._read() or holder, self._path)
    self._write()
    time.sleep(SETTLES)  # of two that come at once the later one is read by both
    if not self._mine(now := self._read()):
      raise _refusal(now or self._me, self._path)
    self._thread.start()
    return self

  def __exit__(self, *unused: Any) -> None:
    """Gives it back."""
    self._end()
    if self._mine(self._read()):
      with contextlib.suppress(OSError):
        self._path.unlink()

  def _renewed(self) -> bool:
    if not self._mine(self._read()):
      return False
    self._write()
    return True

  def _mine(self, holder: Mapping[str, Any] | None) -> bool:
    return holder is not None and holder['token'] == self._me['token']

  def _read(self) -> dict[str, Any] | None:
    try:
      return _parse(
          whole_file.anywhere(self._path).read_text(), {'token', 'pid', 'host', 'renewed'})
    except FileNotFoundError:
      return None

  def _write(self) -> None:
    self._path.write_text(json.dumps({**self._me, 'renewed': time.time()}))


class Lock(_Renewed):
  """In a file system: the file's time is when it was last renewed."""

  _held: set[str] = set()

  def __init__(self, workdir: str | os.PathLike[str], on_lost: Lost):
    """Names the lock file; nothing is taken yet."""
    super().__init__(pathlib.Path(os.path.abspath(workdir)) / LOCK, on_lost)
    self._me = {'pid': os.getpid(), 'host': socket.gethostname(), 'born': _born(os.getpid())}

  def __enter__(self) -> 'Lock':
    """Takes the lock; waits up to `ENDS` seconds where another machine's job had it.

    Raises:
      RuntimeError: if another job that is alive holds it.
    """
    dead = None
    while True:
      with self._exclusive() as file:
        holder, seen = _parse(file.read(), self._me.keys()), self._mark()
        elsewhere = holder is not None and holder['host'] != self._me['host']
        if not elsewhere or (holder, seen) == dead:
          if holder is not None and not elsewhere and self._alive(holder):
            raise _refusal(holder, self._path)
          file.truncate(0)
          file.write(json.dumps(self._me))
          break
      # Not while it is locked: its holder would renew it.
      if _lives(self._mark, time.time() - (seen or 0.0), self._path):
        raise _refusal(holder, self._path)
      dead = (holder, seen)
    Lock._held.add(str(self._path))
    self._thread.start()
    return self

  def __exit__(self, *unused: Any) -> None:
    """Frees the lock."""
    Lock._held.discard(str(self._path))
    self._end()
    with self._exclusive() as file:
      if _parse(file.read(), self._me.keys()) in (None, self._me):
        self._path.unlink()

  def _renewed(self) -> bool:
    with self._exclusive() as file:
      if _parse(file.read(), self._me.keys()) != self._me:
        return False
      os.utime(self._path)
    return True

  def _mark(self) -> float | None:
    try:
      return self._path.stat().st_mtime
    except FileNotFoundError:
      return None

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
    """Whether a job of this machine is."""
    if holder['pid'] == os.getpid() and holder['born'] == self._me['born']:
      return str(self._path) in Lock._held
    born = _born(holder['pid'])
    return born is not None and born == holder['born']


def _lives(mark: Callable[[], Any], silent: float, path: Any) -> bool:
  """Waits to see whether a holder renews its mark before it has been silent for `ENDS` seconds."""
  first, left = mark(), min(ENDS, ENDS - silent)  # clocks of two machines differ
  if left <= 0 or first is None:
    return False
  print(f'another job was in {path.parent} {max(silent, 0):.0f} s ago; waiting up to {left:.0f} s '
        'to see whether it is still there', file=sys.stderr)
  until, gone = time.monotonic() + left, 0
  while time.monotonic() < until and gone < 2:  # once may be while it is being written
    time.sleep(RENEWED / 10)
    now = mark()
    if now is not None and now != first:
      return True
    gone = gone + 1 if now is None else 0
  return False


def _refusal(holder: Mapping[str, Any] | None, path: Any) -> RuntimeError:
  who = 'Another job' if holder is None else (
      f'Another job (process {holder["pid"]} on {holder["host"]})')
  return RuntimeError(
      f'{who} is training in {path.parent}. Wait for it, stop it, or give another workdir.')


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


def _parse(text: str, fields: Any) -> dict[str, Any] | None:
  """The holder that a file tells; None for what is empty, or torn by a kill: nobody's."""
  try:
    holder = json.loads(text)
    return holder if set(fields) <= holder.keys() else None
  except (ValueError, AttributeError):
    return None
