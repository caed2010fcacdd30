"""A session whose episodes lie on two processes; run as a script it is one of them."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from tests import small
import wmpoe
from wmpoe import multihost
from wmpoe import session
from wmpoe import sharding


def _opened():
  """A session of two episodes whose state is all different numbers."""
  opened = session.Session.open(small.world(), batch=2, seed=3)
  number = lambda x: np.arange(x.size).reshape(x.shape).astype(x.dtype)
  return dataclasses.replace(opened, state=jax.tree.map(number, opened.state))


def main(folder):
  multihost.initialize('')
  opened, mesh = _opened(), sharding.make_mesh({'data': 2})
  spread = dataclasses.replace(opened, state=jax.device_put(
      opened.state, sharding.episode_sharding(mesh)))
  assert not jax.tree.leaves(spread.state)[0].is_fully_addressable
  card = spread.save(folder / 'pod.npz', history=True)
  # Whoever returns finds the file: on a loaded host process 1 would be early.
  assert session.Session.load(folder / 'pod.npz', opened).batch == card['episodes'] == 2
  spread.save(folder / 'pod', history=True)
  again = session.Session.load(folder / 'pod', opened, mesh=mesh)
  assert not jax.tree.leaves(again.state)[0].is_fully_addressable
  same = jax.jit(lambda a, b: jax.tree.map(lambda x, y: (x == y).all(), a, b))
  assert all(jax.tree.leaves(same(again.state, spread.state)))
  assert (jax.random.key_data(again.key) == jax.random.key_data(opened.key)).all()
  own = folder / f'own_{jax.process_index()}.npz'  # what lies on one host that host writes
  opened.save(own, history=True)
  assert own.exists()
  multihost.leave()


def test_two_processes_write_the_file_that_one_writes(tmp_path):
  root = pathlib.Path(wmpoe.__file__).parents[1]
  done = subprocess.run(
      [str(root / 'launch' / 'local_pod.sh'), '2', '--', sys.executable, __file__, str(tmp_path)],
      env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '1',
           'PYTHONPATH': str(root)},
      capture_output=True, text=True, check=False, timeout=300)
  assert done.returncode == 0, done.stderr
  opened = _opened()
  card = opened.save(tmp_path / 'one.npz', history=True)
  loaded = session.Session.load(tmp_path / 'pod.npz', opened)
  small.same(loaded.state, jax.tree.map(jnp.asarray, opened.state))
  small.same(session.Session.load(tmp_path / 'pod', opened).state, loaded.state)
  assert card['sha256'] == session.memory_file.card(tmp_path / 'pod.npz')['sha256']
  names = ['one.npz', 'own_0.npz', 'own_1.npz', 'pod', 'pod.npz']
  assert sorted(p.name for p in tmp_path.iterdir()) == names


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
