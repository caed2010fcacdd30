import pathlib
import socket
import sys

import numpy as np
import pytest

from wmpoe import zoo
from wmpoe.play import protocol
from wmpoe.play import server

_CARDS = pathlib.Path(__file__).parents[2] / 'configs' / 'cards.py'
_MAZE = f'--config={pathlib.Path(__file__).parents[2] / "configs" / "memory_maze.py"}'


class _Server:
  """Stands in for uvicorn: asks for what the page would be made of, and ends."""

  def __init__(self, room):
    self.room = room

  def run(self, sockets):
    self.dreamer = self.room._make(lambda text: None)
    assert sockets[0].getsockname()[0] == '127.0.0.1'  # nobody else can reach it


@pytest.fixture
def served(monkeypatch, tiny):
  """The dreamers of the pages that were served."""
  made = []

  def make_server(app):
    made.append(_Server(app))
    return made[-1]

  monkeypatch.setattr(server, 'make_app', lambda room, token: room)
  monkeypatch.setattr(server, 'make_server', make_server)
  monkeypatch.setattr(zoo, 'load', lambda name, compose=None: tiny.world('spatial', env=False))
  return made


def test_it_prints_a_link_and_serves_the_world(wmpoe, served, tmp_path):
  done = wmpoe('play', '--port=0', '--chunk=2', '--experts=base', '--workdir=there')
  assert done.code == 0, done.err
  link = done.out.split()[1]
  host, _, token = link.removeprefix('http://').partition('/?token=')
  assert host.startswith('127.0.0.1:') and len(token) >= 20
  dreamer = served[0].dreamer
  assert dreamer.world.name == 'cards' and dreamer.settings.chunk == 2
  assert not dreamer.settings.weights  # the base alone
  assert dreamer.folder.name == 'there' and list((tmp_path / 'there').iterdir()) == []
  assert 'python -m wmpoe memory info FILE' in done.out


def test_a_memory_is_composed_as_it_is_told(wmpoe, served, tmp_path):
  wmpoe('play', '--port=0', '--workdir=there')
  served[0].dreamer.apply(protocol.Command('save', {}))
  memory = 'there/memory_001.npz'
  for flags, weights in ([], ['spatial']), (['--experts=base'], []):
    done = wmpoe('play', '--port=0', f'--memory={memory}', *flags)
    assert done.code == 0, done.err
    assert list(served[-1].dreamer.settings.weights) == weights


def test_a_memory_file_says_of_which_model_it_is(wmpoe, served, monkeypatch):
  config, asked, load = f'--config={_CARDS}', [], zoo.load
  monkeypatch.setattr(zoo, 'load', lambda name, compose=None: (
      asked.append(compose), load(name, compose))[1])
  wmpoe('play', '--port=0', config, '--config.compose.num_steps=4', '--workdir=there')
  served[0].dreamer.apply(protocol.Command('save', {}))
  memory = '--memory=there/memory_001.npz'
  assert wmpoe('play', '--port=0', config, memory).code == 0
  assert asked == [{'follows': ['short_term'], 'num_steps': 4}] * 2
  for flags, message in (
      ([config, '--config.compose.num_steps=5'], 'leave out --config.compose.num_steps'),
      ([_MAZE], 'remembers cards; expected a memory of memory_maze')):
    done = wmpoe('play', '--port=0', memory, *flags)
    assert done.code == 2
    assert message in done.err and 'http' not in done.out


def test_the_simulator_is_a_reality_to_walk_in(wmpoe, served, monkeypatch, simulator):
  monkeypatch.setattr(zoo, 'load', lambda name, compose=None: zoo.load_files(
      {'spatial': f'{name}_spatial'}, compose=compose, autoencoder=f'{name}_autoencoder'))
  done = wmpoe('play', '--port=0', _MAZE, '--reality=simulator', '--episode=3')
  assert done.code == 0, done.err
  world = served[0].dreamer.world
  assert world.name == 'memory_maze' and not world.can_follow
  moments = [world.live((key,)) for key in ('left', 'up')]
  assert moments[0].frame.shape == (60, 60, 3) and moments[0].frame.dtype == np.uint8
  assert np.any(moments[0].place.pose != moments[1].place.pose)


def test_the_config_says_how_it_is_composed(wmpoe, served, monkeypatch):
  asked, load = [], zoo.load
  monkeypatch.setattr(zoo, 'load', lambda name, compose=None: (
      asked.append(compose), load(name, compose))[1])
  for flags, told in (
      ([], {'follows': ['short_term']}),
      (['--config.compose.num_steps=4'], {'follows': ['short_term'], 'num_steps': 4})):
    done = wmpoe('play', '--port=0', f'--config={_CARDS}', *flags)
    assert done.code == 0, done.err
    assert asked[-1] == told


@pytest.mark.parametrize(('flags', 'message'), [
    (['--chunk=9'], '--chunk=9: expected 1 to 8.'),
    (['--experts=spatial'], "--experts=['spatial'] must include base."),
    ([_MAZE.replace('memory_maze', 'own_data')], 'worlds whose experts are packaged: cards, mem'),
    ([_MAZE, '--episode=9'], '--episode=9: there are 4, numbered from 0.'),
    ([_MAZE, '--reality=simulator'], 'pip install wmpoe[maze]'),
    (['--memory=nowhere.npz'], 'No such file'),
])
def test_bad_input_is_named(wmpoe, served, flags, message, monkeypatch):
  for name in ('memory_maze', 'memory_maze.tasks'):
    monkeypatch.setitem(sys.modules, name, None)
  done = wmpoe('play', '--port=0', *flags)
  assert done.code == 2
  assert message in done.err and not served, 'a link to a page that never opens'


def test_a_port_that_is_taken(wmpoe, served):
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    taken.listen()
    port = taken.getsockname()[1]
    done = wmpoe('play', f'--port={port}')
  assert done.code == 2
  assert f'Cannot listen on 127.0.0.1:{port}' in done.err and '--port=0' in done.err
