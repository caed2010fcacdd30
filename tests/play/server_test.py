"""The page's server over real connections: who steers, what is refused, and that nothing breaks it.

`benchmarks/malformed.py` sends many more malformed messages.
"""

import contextlib
import json
import os
import random
import urllib.error
import urllib.request

import pytest

from tests.play import conftest

client = pytest.importorskip(
    'websockets.sync.client', reason="needs the extra 'play': pip install -e '.[play]'")
exceptions = pytest.importorskip('websockets.exceptions')
pytest.importorskip('starlette', reason="needs the extra 'play': pip install -e '.[play]'")


def _connect(address, token=conftest.TOKEN, **options):
  return client.connect(f'ws://{address}/live?token={token}', proxy=None, **options)


def _receive(socket, kind, seconds=60):
  """The header of the next message of a kind."""
  while True:
    data = socket.recv(timeout=seconds)
    length = int.from_bytes(data[:4], 'big')
    header = json.loads(data[4:4 + length])
    if header['kind'] == kind:
      assert 'Traceback' not in json.dumps(header)
      return header


def _say(socket, do, **args):
  socket.send(json.dumps({'do': do, **args}))


def test_one_steers_the_others_watch(address):
  with _connect(address) as first:
    assert _receive(first, 'hello')['role'] == 'writer'
    with _connect(address) as second:
      assert _receive(second, 'hello')['role'] == 'viewer'
      _say(second, 'tap', key='right')
      assert 'steers; this one watches' in _receive(second, 'error')['text']
      _say(second, 'claim')
      assert _receive(second, 'role')['role'] == 'viewer'
      _say(first, 'tap', key='right')
      assert _receive(second, 'frame')['pose'] == [0.0, 1.0]  # it sees what the first one does
      first.close()
      _receive(second, 'free')
      _say(second, 'claim')
      assert _receive(second, 'role')['role'] == 'writer'
  with _connect(address) as again:  # a page that is loaded again steers again
    assert _receive(again, 'hello')['role'] == 'writer'


@pytest.mark.parametrize('token', ['', 'wrong', '%ff', conftest.TOKEN + 'x'])
def test_without_the_token_nothing_is_shown(address, token):
  with pytest.raises(urllib.error.HTTPError) as error:
    urllib.request.urlopen(f'http://{address}/?token={token}')
  assert error.value.code == 403
  assert 'open the whole address' in error.value.read().decode()
  with contextlib.ExitStack() as stack, pytest.raises(exceptions.InvalidStatus, match='403'):
    stack.enter_context(_connect(address, token))


def test_other_sites_cannot_connect(address):
  with contextlib.ExitStack() as stack, pytest.raises(exceptions.InvalidStatus, match='403'):
    stack.enter_context(_connect(address, origin='http://elsewhere.example'))
  with _connect(address, origin=f'http://{address}') as own:
    assert _receive(own, 'hello')


@pytest.mark.parametrize('size', [1100, 100_000])
def test_too_large_a_message_ends_its_connection_alone(address, size):
  with _connect(address) as first, _connect(address) as second:
    second.send('x' * size)
    with pytest.raises(exceptions.ConnectionClosedError) as error:
      while True:
        second.recv(timeout=60)
    assert error.value.rcvd.code == 1009
    _say(first, 'tap', key='left')
    assert _receive(first, 'frame')


def test_there_are_only_so_many_connections(address):
  with contextlib.ExitStack() as stack:
    for _ in range(8):
      stack.enter_context(_connect(address))
    with pytest.raises(exceptions.InvalidStatus, match='403'):
      stack.enter_context(_connect(address))


def _malformed(rng):
  """One message that is no command, of many kinds."""
  junk = lambda n: ''.join(chr(rng.choice([rng.randrange(32, 127), rng.randrange(1, 0xD800)]))
                           for _ in range(rng.randrange(n)))
  value = rng.choice([None, True, -1, 1e308, 10**30, '', junk(40), [], [[]], {}, {'a': 1},
                      '../../x', '/etc/passwd', 'NaN', ['up'] * 9, [None]])
  do = rng.choice(
      ['keys', 'weight', 'steps', 'mode', 'rule', 'rewind', 'branch', 'watch', 'record', 'fork'])
  field = rng.choice(['held', 'expert', 'value', 'name', 'frames', 'index', 'path', junk(9)])
  whole = json.dumps({'do': do, field: value, 'more': value})
  return rng.choice([
      whole, whole[:rng.randrange(len(whole))], junk(200), '[' * rng.randrange(900),
      json.dumps(value), json.dumps({'do': value}), json.dumps({'do': junk(20)}),
      '{"do": "save", "path": "../x.npz"}',
      '{"do": "steps", "value": NaN}', '{"do":"steps","value":-Infinity}', '{"do": "keys"}',
      whole.encode(), rng.randbytes(rng.randrange(200)), '', b''])


def test_malformed_messages_are_answered_and_change_nothing(address, tmp_path, capfd):
  rng, count = random.Random(0), int(os.environ.get('WMPOE_FUZZ', '300'))
  before = sorted(tmp_path.rglob('*'))
  with _connect(address, max_queue=None) as socket:
    settings = _receive(socket, 'hello')['settings']
    for number in range(count):
      socket.send(_malformed(rng))
      if number % 5 == 0:
        assert _receive(socket, 'error')['text']
    _say(socket, 'tap', key='right')
    assert _receive(socket, 'frame')['settings'] == settings
  assert sorted(tmp_path.rglob('*')) == before
  assert 'Traceback' not in ''.join(capfd.readouterr())
