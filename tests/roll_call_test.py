"""Processes are threads here, with a connection each; tests/launch_test.py has real ones."""

from concurrent import futures
import queue
import socket
import time

import pytest

from wmpoe import roll_call


class _Pod:
  """Members by process, and what they were told at the end."""

  def __init__(self, processes, *, timeout=60.0, absent=()):
    with socket.create_server(('127.0.0.1', 0)) as found:
      self.address = found.getsockname()
    self.processes, self.timeout = processes, timeout
    self.ends = [queue.SimpleQueue() for _ in range(processes)]
    self.pool = futures.ThreadPoolExecutor(processes + 1)
    self.joining = [self.join(p) for p in range(processes) if p not in absent]

  def join(self, process, processes=None):
    return self.pool.submit(
        roll_call.Member, self.address, process=process, processes=processes or self.processes,
        timeout=self.timeout, on_end=self.ends[process].put, facts={'told by': process})

  def open(self):
    """Waits until process 0 listens; returns a connection to it."""
    return roll_call._connect(self.address, process=-1, timeout=60.0)

  def together(self, function):
    """Calls `function(member, process)` for all at the same time; returns the futures."""
    members = [joining.result() for joining in self.joining]
    return [self.pool.submit(function, member, p) for p, member in enumerate(members)]

  def leave(self):
    for left in self.together(lambda member, p: member.leave()):
      left.result(60)
    assert all(end.empty() for end in self.ends)


def _die(member):
  """What the kernel does with the connections of a killed process."""
  member._leaving = True
  member._socket.shutdown(socket.SHUT_RDWR)


def test_they_join_agree_and_leave():
  pod = _Pod(3)
  assert [m.result(60).facts['told by'] for m in pod.joining] == [0, 0, 0]
  for flags in ([0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 1, 1]):
    asked = pod.together(lambda member, p, flags=flags: member.ask(f'{flags}', flags[p]))
    assert [a.result(60) for a in asked] == [any(flags)] * 3
  pod.leave()


def test_those_missing_are_named_to_those_that_came():
  pod = _Pod(4, timeout=0.5, absent=[1, 3])
  for joining in pod.joining:
    with pytest.raises(roll_call.MissingError) as error:
      joining.result(60)
    assert f'2 of 4 processes joined within 0.5 s: 0 (host {socket.gethostname()}), 2' in str(
        error.value)
    assert 'missing: 1, 3. Check that every host runs the same command' in str(error.value)


def test_process_0_cannot_be_reached():
  pod = _Pod(2, timeout=0.3, absent=[0])
  with pytest.raises(roll_call.MissingError, match=(
      rf'Process 1 could not reach process 0 at 127.0.0.1:{pod.address[1]} within 0.3 s '
      r'\(Connection refused\). Check that process 0 is running')):
    pod.joining[0].result(60)


def test_a_port_in_use_is_said():
  with socket.create_server(('127.0.0.1', 0)) as taken, pytest.raises(
      OSError, match=f'cannot listen at port {taken.getsockname()[1]} .*; give a free one'):
    roll_call.Member(taken.getsockname(), process=0, processes=2, timeout=1.0, on_end=print)


@pytest.mark.parametrize(('process', 'processes', 'why'), [
    (1, 3, 'has the index of one that is here, on host'),
    (2, 4, 'is one of 4 processes by its own count, but of 3 by that of process 0'),
    (3, 3, r'is none of 0 ... 2'),
])
def test_who_does_not_belong_is_refused_and_the_others_go_on(
    process, processes, why, monkeypatch):
  rolls, make = [], roll_call._Roll
  monkeypatch.setattr(
      roll_call, '_Roll', lambda *args, **options: rolls.append(make(*args, **options)) or rolls[0])
  pod = _Pod(3, absent=[2])
  pod.open().close()
  until = time.monotonic() + 60
  while 1 not in rolls[0]._members:  # So that process 1 is there before its double.
    assert time.monotonic() < until
    time.sleep(0.01)
  with pytest.raises(ValueError, match=why):
    roll_call.Member(pod.address, process=process, processes=processes, timeout=60.0, on_end=print)
  pod.joining.append(pod.join(2))
  pod.leave()


def test_a_stranger_at_the_port_does_no_harm():
  pod = _Pod(2, absent=[1])
  for said in (b'GET / HTTP/1.1\r\n\r\n', b'{"kind": "ask", "name": "x"}\n', b'[]\n', b'\xff\n'):
    with pod.open() as connection:
      connection.sendall(said)
      assert connection.recv(1) == b''
  pod.joining.append(pod.join(1))
  pod.leave()


@pytest.mark.parametrize('waiting', [False, True])
def test_a_lost_process_ends_the_others_at_once(waiting):
  pod = _Pod(3)
  members = [m.result(60) for m in pod.joining]
  if waiting:
    for p in (0, 1):
      pod.pool.submit(members[p].ask, 'here', False)
  _die(members[2])
  for p in (0, 1):
    end = pod.ends[p].get(timeout=60)
    assert end.code == roll_call.TRY_AGAIN == 75
    assert end.message.startswith(f'Lost process 2 (host {socket.gethostname()}): its connection')
    assert 'run the same command again' in end.message
  assert pod.ends[2].empty()
  for member in members:  # So that no thread of the pool waits for ever.
    member._answers.put({'error': 'over'})


def test_the_loss_of_process_0_is_noticed():
  with socket.create_server(('127.0.0.1', 0)) as listener, futures.ThreadPoolExecutor() as pool:
    ends = queue.SimpleQueue()
    joining = pool.submit(
        roll_call.Member, listener.getsockname(), process=1, processes=2, timeout=60.0,
        on_end=ends.put)
    connection, _ = listener.accept()
    roll_call._send(connection, 'go', facts={'host': 'a'})
    joining.result(60)
    connection.close()
    assert ends.get(timeout=60).message.startswith('Lost process 0 (host a)')


@pytest.mark.parametrize('failing', [0, 1])
def test_an_error_of_one_ends_the_others_with_its_code(failing):
  pod = _Pod(3)
  members = [m.result(60) for m in pod.joining]
  members[failing].fail(roll_call.End(message='no such folder', code=2))
  for p in {0, 1, 2} - {failing}:
    end = pod.ends[p].get(timeout=60)
    assert end.code == 2
    assert end.message == (
        f'Process {failing} (host {socket.gethostname()}) ended with an error: no such folder')
  assert pod.ends[failing].empty()


def test_waiting_ends_in_time_and_names_those_that_did_not_come():
  pod = _Pod(3)
  members = [m.result(60) for m in pod.joining]
  asked = [pod.pool.submit(members[p].ask, 'saved', False, timeout=0.3) for p in (0, 2)]
  for a in asked:
    with pytest.raises(TimeoutError, match=r"Waited in vain at 'saved' for 1 \(host "):
      a.result(60)
  pod.leave()


def test_processes_that_went_different_ways_do_not_wait_for_ever():
  pod = _Pod(2)
  for asked in pod.together(lambda member, p: member.ask(('saved', 'agreement 3')[p], False)):
    with pytest.raises(TimeoutError, match=(
        "at different places: process 0 at 'saved', process 1 at 'agreement 3'. They must")):
      asked.result(60)
  members = [m.result() for m in pod.joining]
  members[1].leave()
  with pytest.raises(TimeoutError, match=r"process 0 at 'saved'; finished: 1 \(host "):
    members[0].ask('saved', False)
  members[0].leave()
