"""Tests of attention by the splash kernel, interpreted, and compiled for a TPU that is not there.

That devices of a mesh each take their share is tested in tests/training/mesh_test.py.
"""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small
from wmpoe import sharding
from wmpoe.aot import hlo
from wmpoe.aot import topologies
from wmpoe.networks import attention

P = jax.sharding.PartitionSpec


def _random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _mask(first=0, *, frames, tokens, **pattern):
  """Of the queries from frame `first` on; a context of two frames."""
  return attention.token_mask(
      attention.Pattern(**pattern).allowed(frames, 2, 0)[first:], tokens)


@pytest.mark.parametrize('mask', [
    None,
    # Three blocks of keys; those between are seen by all queries, by some and by none.
    _mask(2, frames=6, tokens=50, kind='prefix', window=3),
    _mask(frames=5, tokens=28, kind='causal'),
], ids=['full', 'window_after_cached_keys', 'causal'])
def test_values_and_gradients_are_those_of_attention(mask):
  length, span = (140, 130) if mask is None else mask.shape
  query, key, value, grad = (
      _random(1, n, 1, 8, seed=i) for i, n in enumerate((length, span, span, length)))

  @functools.partial(jax.jit, static_argnums=0)
  def both(implementation):
    out, back = jax.vjp(
        lambda *x: attention.attend(*x, mask, implementation=implementation), query, key, value)
    return out, *back(grad)

  for found, expected in zip(both('splash'), both('head_major'), strict=True):
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_episodes_with_adapters_of_their_own_are_one_longer_batch():
  query, key, value = (_random(2, 1, 6, 2, 8, seed=i) for i in range(3))
  mask = np.tri(6, dtype=bool)
  run = lambda implementation: jax.jit(jax.vmap(jax.grad(
      lambda q, k, v: jnp.sum(jnp.sin(attention.attend(
          q, k, v, mask, implementation=implementation)))), in_axes=(0, 0, None)))(
              query, key, value[0])
  np.testing.assert_allclose(run('splash'), run('head_major'), atol=2e-6)


def test_a_network_with_the_kernel_is_the_same_network():
  frames = 4
  inputs = *small.noisy(1, frames), *small.conditions(1, frames)
  variables = {'params': small.params(small.model(kind='causal'))}
  run = lambda implementation: jax.jit(small.network(
      kind='causal', implementation=implementation, scan_layers=True).apply)(variables, *inputs)
  np.testing.assert_allclose(run('splash'), run('head_major'), atol=1e-5)


def test_what_it_cannot_do_is_said():
  query = _random(1, 3, 3, 8)
  mask = np.tri(3, dtype=bool)
  mask[1] = False
  with pytest.raises(ValueError, match='Query 1 of 3 may see none of 3 keys'):
    attention.attend(query, query, query, mask, implementation='splash')
  mesh = jax.sharding.AbstractMesh((1, 1, 2, 1), sharding.AXES)
  with (jax.sharding.use_abstract_mesh(mesh),
        pytest.raises(ValueError, match='3 heads does not divide over the mesh axis tensor of si')):
    attention.attend(query, query, query, implementation='splash')


@pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason='needs the TPU compiler, extra tpu')
def test_devices_of_a_slice_run_the_kernel_on_their_share():
  devices = topologies.devices(topologies.find('v5e:2x2'))
  mesh = sharding.make_mesh({'fsdp': 2, 'tensor': 2}, devices)
  place = jax.sharding.NamedSharding(mesh, P('fsdp', None, 'tensor'))
  mask = _mask(2, frames=6, tokens=50, kind='prefix', window=3)
  shape = lambda n: jax.ShapeDtypeStruct((2, n, 2, 64), jnp.bfloat16, sharding=place)
  loss = lambda *x: jnp.sum(attention.attend(
      *x, mask, implementation='splash').astype(jnp.float32))
  lower = jax.jit(jax.grad(loss, (0, 1, 2)), out_shardings=place).lower
  arguments = [shape(n) for n in (mask.shape[0], mask.shape[1], mask.shape[1])]
  with pytest.raises(NotImplementedError, match='wrap the call in a shard_map'):
    lower(*arguments)
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    program = hlo.read(lower(*arguments).compile().as_text(), 4)
  assert program.kernels
  assert not program.collectives
