"""The room of a page without a page: what waits, who has left, what could not be loaded."""

import asyncio
import json
import threading
import types

from wmpoe.play import protocol
from wmpoe.play import server

_SAVE = protocol.Command('save', {})


class _Dreamer:
  """Notes what it is asked for, and does nothing before it may."""

  def __init__(self):
    self.asked, self.may = [], threading.Event()
    self.known = {'save': {}}
    self.world = types.SimpleNamespace(now=lambda: types.SimpleNamespace(frame=None))

  def wants_step(self):
    return False

  def hello(self):
    return {'kind': 'hello'}

  def apply(self, command):
    self.asked.append((command.do, command.args))
    assert self.may.wait(60)
    return []


def _kinds(client):
  """The kinds of the messages that wait for a client."""
  return [json.loads(m[4:4 + int.from_bytes(m[:4], 'big')])['kind'] for m, _ in client.outbox]


def test_frames_make_room_for_frames_and_for_nothing_else():
  async def main():
    client = server.Client()
    client.send(server.encode({'kind': 'hello'}, {}))
    for index in range(3 * server.MAX_FRAMES):
      client.send(server.encode({'kind': 'frame', 'index': index}, {}), frame=True)
      if index == server.MAX_FRAMES:
        client.send(server.encode({'kind': 'note'}, {}))
    assert sorted(_kinds(client)) == ['frame'] * server.MAX_FRAMES + ['hello', 'note']
    assert b'"index": 23' in client.outbox[-1][0]
  asyncio.run(main())


def test_whoever_leaves_lets_go_of_the_keys_also_where_the_queue_is_full(monkeypatch):
  made = _Dreamer()

  async def main():
    room = server.Room(lambda say: made)
    monkeypatch.setattr(room, '_publish', lambda events: None)
    room.start()
    client = server.Client()
    while not room.known:
      await asyncio.sleep(0.01)
    room.join(client)
    room.hear(client, json.dumps({'do': 'save'}))
    while not made.asked:
      await asyncio.sleep(0.01)
    while room.ask(_SAVE):
      pass
    room.hear(client, json.dumps({'do': 'save'}))
    assert _kinds(client)[-1] == 'error' and b'Too many commands' in client.outbox[-1][0]
    room.leave(client)
    made.may.set()
    while len(made.asked) < server.MAX_WAITING + 3:
      await asyncio.sleep(0.01)
    await asyncio.to_thread(room.stop)

  asyncio.run(asyncio.wait_for(main(), 60))
  assert made.asked == [('save', {})] * (server.MAX_WAITING + 1) + [
      ('keys', {'held': ()}), ('run', {'on': False})]


def test_who_comes_later_is_told_that_nothing_could_be_loaded(capsys):
  def make(say):
    say('loading')
    raise ValueError('no experts here')

  async def main():
    room = server.Room(make)
    room.start()
    await asyncio.to_thread(room._thread.join)
    client = server.Client()
    room.join(client)
    assert _kinds(client) == ['error'] and b'no experts here' in client.outbox[0][0]

  asyncio.run(asyncio.wait_for(main(), 60))
  assert 'ValueError: no experts here' in capsys.readouterr().err
