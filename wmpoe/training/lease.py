"""Keeps a second job out of a run's folder in an object store, which has no locks.

A file there says who writes to the folder and when that was last known; it is renewed while the job
runs. A job that is killed leaves it behind, and it ends by itself.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from typing import Any

from etils import epath  # comes with orbax, whose paths these are

FILE = 'train.lease'
RENEWED, ENDS, SETTLES = 30.0, 120.0, 1.0  # seconds


class Lease:
  """See the module; a context. In a pod process 0 takes it, for all."""

  def __init__(self, folder: epath.Path):
    """Names the file; nothing is taken yet."""
    self._path, self._stop = folder / FILE, threading.Event()
    self._me = {'token': secrets.token_hex(8), 'pid': os.getpid(), 'host': socket.gethostname()}
    self._thread = threading.Thread(target=self._renew, daemon=True)

  def __enter__(self) -> 'Lease':
    """Takes the lease.

    Raises:
      RuntimeError: if another job had it a short while ago.
    """
    self._refuse(self._read())
    self._write()
    time.sleep(SETTLES)  # of two that come at once the later one is read by both
    self._refuse(self._read())
    self._thread.start()
    return self

  def __exit__(self, *unused: Any) -> None:
    """Gives it back."""
    self._stop.set()
    self._thread.join()
    if self._mine(self._read()):
      with contextlib.suppress(OSError):
        self._path.unlink()

  def _renew(self) -> None:
    while not self._stop.wait(RENEWED):
      with contextlib.suppress(OSError):  # the store is away for a while: once more later
        if not self._mine(self._read()):
          print(f'{self._path.parent} was taken by another job, as this one had not been heard of '
                f'for {ENDS:.0f} s; two jobs in one folder spoil it: stop one of them.',
                file=sys.stderr)
          return
        self._write()

  def _refuse(self, holder: dict[str, Any] | None) -> None:
    if holder is None or self._mine(holder):
      return
    age = time.time() - holder['renewed']
    if age < ENDS:
      raise RuntimeError(
          f'Another job (process {holder["pid"]} on {holder["host"]}) was training in '
          f'{self._path.parent} {max(age, 0):.0f} s ago. If it is gone its lease ends in '
          f'{ENDS - age:.0f} s: give the command again then, or another workdir.')

  def _mine(self, holder: dict[str, Any] | None) -> bool:
    return holder is not None and holder['token'] == self._me['token']

  def _read(self) -> dict[str, Any] | None:
    try:
      holder = json.loads(self._path.read_text())
      return holder if {'token', 'pid', 'host', 'renewed'} <= holder.keys() else None
    except (FileNotFoundError, ValueError, AttributeError):
      return None  # none, or torn

  def _write(self) -> None:
    self._path.write_text(json.dumps({**self._me, 'renewed': time.time()}))
