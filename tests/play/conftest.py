"""A tiny world to steer through, and its page, served for real."""

import functools
import socket
import threading
import time

import pytest

from tests.commands import conftest as commands
from wmpoe import session
from wmpoe.data import cards
from wmpoe.play import dreamer
from wmpoe.play import server
from wmpoe.play import worlds

ENV = cards.CardsConfig(size=16, grid=2, symbols=4)
TOKEN = 'a-token_of-the-tests'


@functools.cache
def opened():
  """A session of a tiny base and spatial memory, of Memory Cards."""
  return session.Session.open(commands.Tiny().world('spatial'), seed=1)


@pytest.fixture
def make(tmp_path):
  """Makes a dreamer that saves to tmp_path / 'out'."""
  def make(say=lambda text: None):
    return dreamer.Dreamer(opened(), worlds.CardsWorld(ENV, 0), tmp_path / 'out', say=say)
  return make


@pytest.fixture
def address(make):
  """Serves the page of such a dreamer; gives 'host:port'."""
  pytest.importorskip('starlette', reason="needs the extra 'play': pip install -e '.[play]'")
  pytest.importorskip('uvicorn', reason="needs the extra 'play': pip install -e '.[play]'")
  room = server.Room(make)
  running = server.make_server(server.make_app(room, TOKEN))
  with socket.socket() as sock:
    sock.bind(('127.0.0.1', 0))
    thread = threading.Thread(target=running.run, kwargs={'sockets': [sock]}, daemon=True)
    thread.start()
    until(lambda: running.started and room.known)
    yield f'127.0.0.1:{sock.getsockname()[1]}'
    running.should_exit = True
    thread.join(30)
  assert not thread.is_alive()


def until(holds, seconds=120):
  """Waits until something holds."""
  begun = time.monotonic()
  while not holds():
    assert time.monotonic() - begun < seconds, 'waited in vain'
    time.sleep(0.02)
