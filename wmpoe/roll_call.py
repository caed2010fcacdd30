"""Who is here: processes of a pod join, agree, wait for one another, and are missed when lost.

Every process keeps one TCP connection to process 0, from the first moment to the last, and speaks
lines of JSON over it. A process that dies, however it dies, ends its connection; process 0 then
tells the others at once, which is what turns a hang in a collective into a message. No device takes
part: agreeing does not wait for work that was dispatched.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import json
import queue
import selectors
import socket
import threading
import time
from typing import Any

# EX_TEMPFAIL of sysexits.h: not the command's fault, running it again is the remedy.
TRY_AGAIN = 75
_TICK = 0.2
_GRACE = 5.0  # Process 0 knows more than others: its message is awaited a little longer.
_SILENT = 30  # Seconds after which a host that answers nothing counts as lost.


class MissingError(RuntimeError):
  """Not every process joined in time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class End:
  """Why everything ends: what is said, and the exit code."""

  message: str
  code: int = TRY_AGAIN


class Member:
  """This process's side of the connection to process 0."""

  def __init__(
      self,
      address: tuple[str, int],
      *,
      process: int,
      processes: int,
      timeout: float,
      on_end: Callable[[End], None],
      facts: Mapping[str, Any] | None = None,
  ):
    """Joins, and waits until everybody has.

    Args:
      address: where process 0 listens; process 0 itself starts listening here.
      process: index of this process.
      processes: how many there are.
      timeout: seconds that processes may take to join.
      on_end: called from another thread when the pod ends before `leave`.
      facts: of process 0, handed to everybody.

    Raises:
      MissingError: if they didn't, naming those that are missing.
      ValueError: if this process does not belong to the pod: its index or its count of processes.
      OSError: if process 0 cannot listen at its address.
    """
    self.process, self.processes = process, processes
    self._on_end, self._leaving = on_end, False
    self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    self._roll = None
    if process == 0:
      self._roll = _Roll(_listen(address), processes=processes, timeout=timeout)
      self._roll.start()
    deadline = time.monotonic() + timeout + _GRACE
    self._socket = _connect(address, process=process, timeout=timeout)
    self._lines = self._socket.makefile('r', encoding='utf-8')
    self._send('join', process=process, processes=processes, host=socket.gethostname(),
               facts=dict(facts or {}))
    self._socket.settimeout(max(deadline - time.monotonic(), _GRACE))
    try:
      first = self._receive()
    except TimeoutError:
      first = None
    self._socket.settimeout(None)
    if first is None:
      raise MissingError(f'Process 0 at {_show(address)} stopped before all had joined; see there.')
    if first['kind'] == 'end':
      raise (MissingError if first['code'] == TRY_AGAIN else ValueError)(first['message'])
    self.facts: dict[str, Any] = first['facts']
    threading.Thread(target=self._listen, name='roll call', daemon=True).start()

  def ask(self, name: str, flag: bool, *, timeout: float | None = None) -> bool:
    """Waits until every process has asked under this name; returns whether any flag was true.

    Raises:
      TimeoutError: naming those that did not come in time, or that wait elsewhere.
    """
    self._send('ask', name=name, flag=bool(flag), timeout=timeout)
    answer = self._answers.get()
    if 'error' in answer:
      raise TimeoutError(answer['error'])
    return answer['flag']

  def fail(self, end: End) -> None:
    """Ends every other process."""
    self._leaving = True
    with contextlib.suppress(OSError):  # Process 0 is gone: then the others know already.
      self._send('failed', message=end.message, code=end.code)
    if self._roll is not None:  # This process is about to exit: others first hear of it.
      self._roll.join(_GRACE)

  def leave(self) -> None:
    """Says farewell; process 0 stays until everybody has."""
    self._leaving = True
    with contextlib.suppress(OSError):  # Process 0 went first: nobody is left to tell.
      self._send('bye')
    if self._roll is not None:
      self._roll.join()

  def _send(self, kind: str, **content: Any) -> None:
    _send(self._socket, kind, **content)

  def _receive(self) -> dict[str, Any] | None:
    try:
      line = self._lines.readline()
    except TimeoutError:
      raise
    except (OSError, ValueError):
      return None
    return json.loads(line) if line.endswith('\n') else None

  def _listen(self) -> None:
    while True:
      message = self._receive()
      if self._leaving:
        return
      if message is None:
        self._on_end(End(message=_lost(0, self.facts.get('host', '?'))))
        return
      if message['kind'] == 'end':
        self._on_end(End(message=message['message'], code=message['code']))
        return
      self._answers.put(message)


@dataclasses.dataclass
class _Connection:
  """What process 0 knows of one connection."""

  socket: socket.socket
  buffer: bytes = b''
  process: int | None = None
  host: str = '?'
  facts: dict[str, Any] = dataclasses.field(default_factory=dict)
  left: bool = False


@dataclasses.dataclass
class _Round:
  """Those that have asked under one name."""

  flags: dict[int, bool] = dataclasses.field(default_factory=dict)
  deadline: float | None = None


class _Roll(threading.Thread):
  """The thread of process 0 that keeps the roll."""

  def __init__(self, listener: socket.socket, *, processes: int, timeout: float):
    super().__init__(name='roll', daemon=True)
    self._listener, self._processes, self._timeout = listener, processes, timeout
    self._selector = selectors.DefaultSelector()
    self._selector.register(listener, selectors.EVENT_READ)
    self._members: dict[int, _Connection] = {}
    self._rounds: dict[str, _Round] = {}
    self._complete = self._over = False

  def run(self) -> None:
    """Serves until everybody left or the pod ended."""
    try:
      self._serve()
    finally:  # Whoever still waits then reads the end of the connection.
      self._listener.close()
      for member in self._members.values():
        member.socket.close()

  def _serve(self) -> None:
    deadline = time.monotonic() + self._timeout
    while not self._over:
      for key, _ in self._selector.select(_TICK):
        if key.fileobj is self._listener:
          self._accept()
        else:
          self._read(key.data)
      now = time.monotonic()
      if not self._complete and now > deadline:
        self._end(End(message=self._who_is_missing()))
      for name, held in list(self._rounds.items()):
        if held.deadline is not None and now > held.deadline:
          self._answer(name, error=(
              f"Waited in vain at '{name}' for {self._names(set(self._members) - set(held.flags))}."
              ' Look into the logs there.'))

  def _accept(self) -> None:
    try:
      accepted, _ = self._listener.accept()
    except OSError:
      return
    _keep_alive(accepted)
    self._selector.register(accepted, selectors.EVENT_READ, _Connection(accepted))

  def _read(self, connection: _Connection) -> None:
    try:
      data = connection.socket.recv(1 << 16)
    except OSError:
      data = b''
    if not data:
      self._gone(connection)
      return
    *lines, connection.buffer = (connection.buffer + data).split(b'\n')
    for line in lines:
      try:
        message = json.loads(line)
        self._handle(connection, message)
      except (ValueError, KeyError, TypeError):  # Not one of ours: a scanner, a browser.
        self._close(connection)
        return

  def _handle(self, connection: _Connection, message: dict[str, Any]) -> None:
    kind = message['kind']
    if kind == 'join':
      self._join(connection, message)
    elif connection.process is None:
      raise ValueError(f'{kind} before join')
    elif kind == 'ask':
      self._ask(connection.process, message)
    elif kind == 'failed':
      connection.left = True
      self._end(End(
          message=f'Process {connection.process} (host {connection.host}) ended with an error: '
          f"{message['message']}", code=message['code']))
    elif kind == 'bye':
      connection.left = True
      self._over = all(member.left for member in self._members.values())
      self._check_progress()

  def _join(self, connection: _Connection, message: dict[str, Any]) -> None:
    process, host = message['process'], message['host']
    refusal = None
    if message['processes'] != self._processes:
      refusal = (f"is one of {message['processes']} processes by its own count, but of "
                 f'{self._processes} by that of process 0')
    elif process in self._members:
      refusal = f'has the index of one that is here, on host {self._members[process].host}'
    elif not 0 <= process < self._processes:
      refusal = f'is none of 0 ... {self._processes - 1}'
    if refusal:
      _send(connection.socket, 'end', code=2, message=(
          f'Process {process} (host {host}) {refusal}. Give every process the same number of '
          'processes and an index of its own, and every job a port of its own.'))
      self._close(connection)
      return
    connection.process, connection.host, connection.facts = process, host, message['facts']
    self._members[process] = connection
    if len(self._members) == self._processes:
      self._complete = True
      first = self._members[0]
      for member in self._members.values():
        _try_send(member, 'go', facts={**first.facts, 'host': first.host})

  def _ask(self, process: int, message: dict[str, Any]) -> None:
    held = self._rounds.setdefault(message['name'], _Round())
    held.flags[process] = message['flag']
    if message['timeout'] is not None:
      deadline = time.monotonic() + message['timeout']
      held.deadline = deadline if held.deadline is None else min(held.deadline, deadline)
    if len(held.flags) == self._processes:
      self._answer(message['name'], flag=any(held.flags.values()))
    self._check_progress()

  def _check_progress(self) -> None:
    """Nobody can come any more once everybody waits: processes have taken different ways."""
    waiting = {p: name for name, held in self._rounds.items() for p in held.flags}
    here = {p for p, member in self._members.items() if not member.left}
    if waiting and set(waiting) == here:
      where = ', '.join(f"process {p} at '{name}'" for p, name in sorted(waiting.items()))
      gone = self._names(set(self._members) - here)
      for name in list(self._rounds):
        self._answer(name, error=(
            f'Processes wait for one another at different places: {where}'
            f"{f'; finished: {gone}' if gone else ''}. They must all run the same command on the "
            'same data.'))

  def _answer(self, name: str, **content: Any) -> None:
    for process in self._rounds.pop(name).flags:
      _try_send(self._members[process], 'answer', **content)

  def _gone(self, connection: _Connection) -> None:
    self._close(connection)
    if connection.process is None or connection.left:
      return
    if not self._complete:  # It may be started again.
      del self._members[connection.process]
      return
    connection.left = True
    self._end(End(message=_lost(connection.process, connection.host)))

  def _end(self, end: End) -> None:
    self._over = True
    # Process 0 last: with it goes this thread.
    for process in sorted(self._members, reverse=True):
      if not self._members[process].left:
        _try_send(self._members[process], 'end', message=end.message, code=end.code)

  def _close(self, connection: _Connection) -> None:
    self._selector.unregister(connection.socket)
    connection.socket.close()

  def _who_is_missing(self) -> str:
    missing = [str(p) for p in range(self._processes) if p not in self._members]
    return (
        f'{len(self._members)} of {self._processes} processes joined within {self._timeout:g} s: '
        f"{self._names(self._members)}; missing: {', '.join(missing)}. Check that every host runs "
        'the same command, that its log shows no earlier error, that it reaches the address of '
        'process 0 (firewall, name), and that the number of processes is right. Slow hosts: '
        'a longer --join_timeout.')

  def _names(self, processes: Any) -> str:
    return ', '.join(f'{p} (host {self._members[p].host})' for p in sorted(processes))


def _lost(process: int, host: str) -> str:
  return (
      f'Lost process {process} (host {host}): its connection ended without a farewell, so it '
      'crashed, was killed or preempted, or its network is down. Its own log says more. All '
      'processes stop now; run the same command again to go on from the last checkpoint.')


def _listen(address: tuple[str, int]) -> socket.socket:
  host, port = address
  # The name that others know this host by need not be one it can bind to; loopback stays private.
  private = host == 'localhost' or host.startswith('127.')
  try:
    if private or not socket.has_dualstack_ipv6():
      return socket.create_server((host if private else '', port))
    return socket.create_server(('', port), family=socket.AF_INET6, dualstack_ipv6=True)
  except OSError as error:
    raise OSError(
        f'Process 0 cannot listen at port {port} ({error.strerror or error}); give a free one. '
        'Another job may be using it.') from error


def _connect(address: tuple[str, int], *, process: int, timeout: float) -> socket.socket:
  deadline = time.monotonic() + timeout
  while True:
    try:
      connected = socket.create_connection(address, timeout=_GRACE)
      _keep_alive(connected)
      return connected
    except OSError as error:
      if time.monotonic() > deadline:
        raise MissingError(
            f'Process {process} could not reach process 0 at {_show(address)} within {timeout:g} s '
            f'({error.strerror or error}). Check that process 0 is running, that its log shows no '
            'earlier error, and that this host can reach that address (firewall, name).') from error
      time.sleep(_TICK)


def _keep_alive(connection: socket.socket) -> None:
  """Lets the system notice a host that vanished without closing its connections."""
  connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in (('TCP_KEEPIDLE', _SILENT // 3), ('TCP_KEEPINTVL', _SILENT // 6),
                      ('TCP_KEEPCNT', 4), ('TCP_USER_TIMEOUT', 1000 * _SILENT)):
    if hasattr(socket, name):  # Not every system has every one.
      connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _send(to: socket.socket, kind: str, **content: Any) -> None:
  to.sendall(json.dumps({'kind': kind, **content}).encode() + b'\n')


def _try_send(to: _Connection, kind: str, **content: Any) -> None:
  # If it is gone, its end is read from the same socket, and dealt with there.
  with contextlib.suppress(OSError):
    _send(to.socket, kind, **content)


def _show(address: tuple[str, int]) -> str:
  return f'{address[0]}:{address[1]}'
