"""One process, and the switch; pods of real processes are in tests/launch_test.py."""

import jax
import pytest

from wmpoe import multihost


def _place(host, port, processes, process):
  return multihost.Place(host=host, port=port, processes=processes, process=process)


@pytest.mark.parametrize(('where', 'environment', 'expected'), [
    ('', {}, None),
    ('off', {'WMPOE_COORDINATOR': 'a:1'}, None),
    ('auto', {}, 'auto'),
    ('10.0.0.2:8476,4,3', {}, _place('10.0.0.2', 8476, 4, 3)),
    ('node-1.cluster:80,2,0', {'WMPOE_COORDINATOR': 'a:1'}, _place('node-1.cluster', 80, 2, 0)),
    ('[fe80::1]:8476,1,0', {}, _place('fe80::1', 8476, 1, 0)),
    ('', {'WMPOE_COORDINATOR': 'a:1', 'WMPOE_NUM_PROCESSES': '2', 'WMPOE_PROCESS_ID': '1'},
     _place('a', 1, 2, 1)),
])
def test_the_switch(where, environment, expected):
  assert multihost.parse(where, environment) == expected


@pytest.mark.parametrize(('where', 'environment', 'message'), [
    ('on', {}, '--distributed=on cannot be read; expected off, auto, or HOST:PORT,N,I'),
    ('a:1,2', {}, 'cannot be read'),
    ('a:1,2,0,0', {}, 'cannot be read'),
    ('a:99999,2,0', {}, 'cannot be read'),
    ('a:1,0,0', {}, 'cannot be read'),
    ('fe80::1:8476,2,0', {}, 'cannot be read'),
    ('a:1,2,2', {}, '--distributed=a:1,2,2: expected an index from 0 to 1, got 2.'),
    ('', {'WMPOE_PROCESS_ID': '1'},
     'WMPOE_COORDINATOR= WMPOE_NUM_PROCESSES= WMPOE_PROCESS_ID=1 cannot be read'),
])
def test_a_switch_that_cannot_be_read(where, environment, message):
  with pytest.raises(ValueError, match=message):
    multihost.parse(where, environment)


def test_alone_nothing_is_initialized_and_nothing_is_waited_for(monkeypatch):
  monkeypatch.setattr(jax.distributed, 'initialize', lambda *a, **k: pytest.fail('initialized'))
  for where in ('', 'off', '127.0.0.1:1,1,0'):
    multihost.initialize(where)
    assert multihost.is_alone()
    assert multihost.is_main()
    assert multihost.agree(True) is True
    assert multihost.agree(False) is False
    multihost.barrier('here')
    multihost.await_news()
    multihost.abort(2, 'an error')
    multihost.leave()


def test_auto_where_there_is_no_pod(monkeypatch):
  def nothing_found(**unused):
    raise ValueError('coordinator_address should be defined.')

  monkeypatch.setattr(jax.distributed, 'initialize', nothing_found)
  with pytest.raises(ValueError, match='--distributed=auto found no pod .*On a single host leave'):
    multihost.initialize('auto')
  assert multihost.is_alone()


def test_jax_initialized_by_somebody_else_is_said(monkeypatch):
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
  with pytest.raises(RuntimeError, match='initialized without wmpoe, which then cannot'):
    multihost.agree(False)
