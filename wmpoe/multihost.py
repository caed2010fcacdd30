"""Several processes, one program: joining, agreeing, waiting, and ending together.

A pod is entered by an explicit switch and by nothing else: `initialize('HOST:PORT,N,I')` on every
process, before jax computes anything. Without it there is one process, and `agree` and `barrier`
return at once. A process that is lost ends all others within seconds, with a message and exit code
75 (`roll_call.TRY_AGAIN`); jax's own heartbeat stays as the second line, for processes that hang.
"""

from collections.abc import Mapping
import dataclasses
import functools
import itertools
import os
import re
import socket
import threading
import time
from typing import Any, Literal, NoReturn

import jax
from jax.experimental import multihost_utils
import numpy as np

from wmpoe import roll_call

VARIABLES = ('WMPOE_COORDINATOR', 'WMPOE_NUM_PROCESSES', 'WMPOE_PROCESS_ID')
_LATER = 60.0  # jax's own limit for joining: ours, which has the clearer message, comes first.
_GRACE = 2.0  # Seconds in which news of a lost process overtakes the errors that it caused.
_LINGER = 0.5
_ADDRESS_BYTES = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
  """A process's place in a pod: where process 0 listens, how many there are, which one it is."""

  host: str
  port: int
  processes: int
  process: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pod:
  """What this process has joined; `member` is None where 'auto' found a single process."""

  process: int
  member: roll_call.Member | None
  rounds: 'itertools.count[int]' = dataclasses.field(default_factory=itertools.count)


_pod: _Pod | None = None


def initialize(
    where: str = '',
    *,
    timeout: float = 300.0,
    heartbeat: int = 100,
) -> None:
  """Joins the pod that the switch names; does nothing where it names none.

  Args:
    where: 'HOST:PORT,N,I': address at which process 0 listens, number of processes, index of this
      one; 'auto': whatever jax detects (Cloud TPU, GKE, Slurm, Open MPI); 'off': one process; '':
      the variables WMPOE_COORDINATOR, WMPOE_NUM_PROCESSES and WMPOE_PROCESS_ID, one process if none
      is set.
    timeout: seconds that processes may take to join.
    heartbeat: seconds after which jax gives up a process that hangs.

  Raises:
    ValueError: for a switch that cannot be read, or 'auto' where there is no cluster.
    roll_call.MissingError: if not all joined in time; names those that are missing.
    OSError: if process 0 cannot listen at the port.
    RuntimeError: if called twice, or after jax began to compute.
  """
  global _pod
  place = parse(where, os.environ)
  if place is None:
    return
  if _pod is not None:
    raise RuntimeError('multihost.initialize was called twice; once per process is enough.')
  if place == 'auto':
    _pod = _join_detected(timeout, heartbeat)
  elif isinstance(place, Place) and place.processes > 1:
    _pod = _join(place, timeout, heartbeat)


def parse(where: str, environment: Mapping[str, str]) -> Place | Literal['auto'] | None:
  """Reads the switch of `initialize`: a place, 'auto', or None for one process.

  Args:
    where: the switch.
    environment: where the variables are looked up, `os.environ`.

  Raises:
    ValueError: if it cannot be read.
  """
  if where == 'off':
    return None
  if where == 'auto':
    return 'auto'
  said = f'--distributed={where}'
  if not where:
    values = [environment.get(name, '') for name in VARIABLES]
    if not any(values):
      return None
    said = ' '.join(f'{name}={value}' for name, value in zip(VARIABLES, values, strict=True))
    where = ','.join(values)
  found = re.fullmatch(r'(?:\[(.+)\]|([^\[\]:]+)):(\d+),(\d+),(\d+)', where)
  if not found or not 0 < int(found[3]) < 65536 or not int(found[4]):
    raise ValueError(
        f'{said} cannot be read; expected off, auto, or HOST:PORT,N,I (address of process 0, '
        'number of processes, index of this one), for instance 10.0.0.2:8476,4,0.')
  place = Place(host=found[1] or found[2], port=int(found[3]), processes=int(found[4]),
                process=int(found[5]))
  if place.process >= place.processes:
    raise ValueError(f'{said}: expected an index from 0 to {place.processes - 1}, got '
                     f'{place.process}.')
  return place


def is_main() -> bool:
  """Whether this is the process that writes logs and reports: process 0, or the only one."""
  pod = _current()
  return pod is None or pod.process == 0


def is_alone() -> bool:
  """Whether there is one process."""
  pod = _current()
  return pod is None or pod.member is None


def agree(flag: bool) -> bool:
  """Whether the flag is true on any process; every process must ask, in the same order.

  Costs one round trip on the network and waits for no device.
  """
  pod = _current()
  if pod is None or pod.member is None:
    return bool(flag)
  return pod.member.ask(f'agreement {next(pod.rounds)}', flag)


def whole(array: Any) -> np.ndarray:
  """All of an array that may lie on the devices of several processes; all of them must ask.

  Where this process has all of it, nothing is sent.
  """
  if getattr(array, 'is_fully_addressable', True) or array.is_fully_replicated:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)


def told(number: int) -> int:
  """Process 0's number, on every process; its own where there is one."""
  pod = _current()
  if pod is None or pod.member is None:
    return number
  return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def barrier(name: str, *, timeout: float | None = 600.0) -> None:
  """Waits until every process is here.

  Args:
    name: said in the error; the same on every process.
    timeout: seconds to wait, None for no limit.

  Raises:
    TimeoutError: naming the processes that did not come, or that wait elsewhere.
  """
  pod = _current()
  if pod is not None and pod.member is not None:
    pod.member.ask(f'{name} ({next(pod.rounds)})', False, timeout=timeout)


def leave() -> None:
  """Waits, without limit, until every process has finished its work, and leaves the pod."""
  global _pod
  pod, _pod = _pod, None
  if pod is None:
    return
  if pod.member is None:
    jax.distributed.shutdown()
    return
  pod.member.ask('the end', False)
  jax.distributed.shutdown()
  pod.member.leave()


def await_news() -> None:
  """Waits a moment after an error: one that a lost process caused is overtaken by that news.

  The news ends this process; see `roll_call`.
  """
  if not is_alone():
    time.sleep(_GRACE)


def abort(code: int, message: str) -> None:
  """Ends every process of the pod, this one included; returns if there is no pod.

  An error on one process leaves the others waiting in a collective, and jax waits at exit for those
  that wait; hence no return.

  Args:
    code: exit code of all processes.
    message: what the other processes say.
  """
  if _pod is None:
    return
  if _pod.member is not None:
    _pod.member.fail(roll_call.End(message=message, code=code))
  _exit(code, _pod.process)


def end_at_once(message: str) -> NoReturn:
  """Ends this process, and the pod, from any thread: nothing more is written."""
  os.write(2, f'wmpoe: {message}\n'.encode())
  abort(2, message)
  os._exit(2)


def _current() -> _Pod | None:
  if _pod is None and jax.distributed.is_initialized():
    raise RuntimeError(
        'jax.distributed was initialized without wmpoe, which then cannot let the processes agree; '
        "call wmpoe.multihost.initialize('HOST:PORT,N,I') instead.")
  return _pod


def _join(place: Place, timeout: float, heartbeat: int) -> _Pod:
  """First all are here, then jax is told: its own joining aborts the process when it times out."""
  member = roll_call.Member(
      (place.host, place.port), process=place.process, processes=place.processes, timeout=timeout,
      on_end=functools.partial(_stop, process=place.process),
      facts={'port': _free_port()} if place.process == 0 else None)
  host = f'[{place.host}]' if ':' in place.host else place.host
  try:
    jax.distributed.initialize(
        f"{host}:{member.facts['port']}", place.processes, place.process,
        initialization_timeout=round(timeout + _LATER), heartbeat_timeout_seconds=heartbeat)
  except Exception as error:
    member.fail(roll_call.End(message=str(error), code=2))
    raise
  return _Pod(process=place.process, member=member)


def _join_detected(timeout: float, heartbeat: int) -> _Pod:
  """Lets jax find the pod; the connections of the roll are made through it."""
  late = roll_call.End(message=(
      f'Not every process joined within {timeout:g} s. Check that every host of the pod runs the '
      'same command, that its log shows no earlier error, and that hosts reach one another '
      '(firewall). Slow hosts: a longer --join_timeout.'))
  watch = threading.Timer(timeout, _stop, args=(late,))
  watch.daemon = True
  watch.start()
  try:
    jax.distributed.initialize(
        initialization_timeout=round(timeout + _LATER), heartbeat_timeout_seconds=heartbeat)
  except ValueError as error:
    raise ValueError(
        '--distributed=auto found no pod (Cloud TPU, GKE, Slurm, Open MPI) that this process '
        f'belongs to: {error} On a single host leave it out; elsewhere give HOST:PORT,N,I.'
    ) from error
  finally:
    watch.cancel()
  process, processes = jax.process_index(), jax.process_count()
  if processes == 1:
    return _Pod(process=0, member=None)
  told = np.zeros(_ADDRESS_BYTES, np.uint8)
  if process == 0:
    text = f'{_own_address()} {_free_port()}'.encode()
    told[:len(text)] = np.frombuffer(text, np.uint8)
  told = np.asarray(multihost_utils.broadcast_one_to_all(told))
  host, port = told.tobytes().rstrip(b'\0').decode().split()
  member = roll_call.Member(
      (host, int(port)), process=process, processes=processes, timeout=timeout,
      on_end=functools.partial(_stop, process=process))
  return _Pod(process=process, member=member)


def _stop(end: roll_call.End, process: int = 0) -> None:
  """Ends this process at once: its main thread may be in a collective that never returns."""
  os.write(2, f'wmpoe: {end.message}\n'.encode())
  _exit(end.code, process)


def _exit(code: int, process: int) -> NoReturn:
  """Goes without jax's farewell, which waits for processes that will never come."""
  if process == 0:  # Its end makes jax abort the others: they shall have read the news before.
    time.sleep(_LINGER)
  os._exit(code)


def _free_port() -> int:
  with socket.create_server(('', 0)) as found:
    return found.getsockname()[1]


def _own_address() -> str:
  """The address of this host towards others; no packet is sent."""
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    try:
      probe.connect(('192.0.2.1', 9))  # Reserved for documentation: any address beyond this host.
      return probe.getsockname()[0]
    except OSError:  # No way out of the cluster: what its names say.
      return socket.gethostbyname(socket.gethostname())
