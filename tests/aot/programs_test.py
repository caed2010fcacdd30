"""Tests of the programs that are compiled ahead of time and of what is said of them."""

import importlib.util
import math

import jax
import jax.numpy as jnp
import pytest

from tests import small
from wmpoe import sharding
from wmpoe.aot import hlo
from wmpoe.aot import programs
from wmpoe.aot import topologies
from wmpoe.experts import objective
from wmpoe.training import state as state_lib
from wmpoe.training import tasks

CHIP = topologies.CHIPS['v5e']


def flops(function, *shapes, devices=1):
  arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  return programs.matmul_flops(jax.jit(function).trace(*arguments).jaxpr.jaxpr, devices)


def test_flops_are_those_of_matmuls_as_often_as_they_run():
  product = 2 * 8 * 16 * 4
  assert flops(jnp.matmul, (8, 16), (16, 4)) == product
  assert flops(jnp.matmul, (3, 8, 16), (3, 16, 4), devices=2) == 3 * product / 2
  square = 2 * 8 * 8 * 8
  looped = lambda x, w: jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=5)[0]
  assert flops(looped, (8, 8), (8, 8)) == 5 * square
  # Forward, recomputed, and both gradients.
  kept = jax.checkpoint(lambda x, w: jnp.sin(jnp.sin(x @ w) @ w))
  assert flops(jax.grad(lambda x, w: kept(x, w).sum(), (0, 1)), (8, 8), (8, 8)) >= 6 * square
  either = lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)
  assert flops(either, (8, 8), (8, 8)) == 2 * square
  image = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), 'SAME')
  assert flops(image, (1, 3, 4, 4), (5, 3, 3, 3)) == 2 * (5 * 4 * 4) * (3 * 3 * 3)


def program(**changes):
  found = {'collectives': (), 'cycles': 0, 'hbm_bytes': 0.0, 'kernels': (), 'endless': 0}
  return hlo.Program(**{**found, **changes})


def test_estimates_add_up_cycles_and_what_is_sent():
  sent = hlo.Collective(kind='collective-permute', bytes=CHIP.links, group=4, times=1, source='')
  found = programs.estimate(CHIP.flops, program(cycles=int(CHIP.clock), collectives=(sent,)), CHIP)
  assert found['seconds'] == pytest.approx(2.0)
  assert found['collective_seconds'] == pytest.approx(1.0)
  assert found['fraction_of_peak'] == pytest.approx(0.5)
  assert found['basis'] == 'cycles of the compiler'


def test_what_goes_out_of_a_slice_takes_the_time_of_the_network():
  out = hlo.Collective(
      kind='collective-permute', bytes=CHIP.network, group=2, times=1, source='', between=True)
  found = programs.estimate(CHIP.flops, program(cycles=int(CHIP.clock), collectives=(out,)), CHIP)
  assert found['collective_seconds'] == pytest.approx(1.0)
  assert found['seconds'] == pytest.approx(2.0)


def test_with_a_custom_kernel_published_peaks_take_the_place_of_cycles():
  inside = program(cycles=1, kernels=('flash',), hbm_bytes=3 * CHIP.hbm_bandwidth)
  found = programs.estimate(CHIP.flops, inside, CHIP)
  assert found['seconds'] == pytest.approx(3.0)
  assert found['basis'] == 'published peaks'


def test_programs_do_not_start_where_the_mesh_does_not_divide_them():
  mesh = jax.sharding.AbstractMesh((3, 1, 1, 1), sharding.AXES)
  with pytest.raises(ValueError, match='number of episodes = 4 .* data of size 3'):
    programs.write(small.experts().long_term, 4, mesh)
  with pytest.raises(ValueError, match='number of episodes = 4 .* data of size 3'):
    programs.imagine(small.world(), 4, mesh)
  with pytest.raises(ValueError, match='batch_size = 4 .* data x fsdp of size 3'):
    programs.train(None, state_lib.TrainConfig(steps=1, batch_size=4), {}, mesh)


def lowered(function, where, size=8):
  job = programs.Job(
      name='train', function=jax.jit(function), batch=1, steps=1, state_bytes=0, whole_bytes=0,
      arguments=(jax.ShapeDtypeStruct((size,), jnp.int32),), mesh=jax.sharding.AbstractMesh((), ()))
  return programs.lower(job, topologies.find(where))


def test_a_program_is_known_by_its_text():
  double = lambda i: i * 2
  found = [lowered(*job).sha256 for job in (
      (double, 'v5e:2x2'), (double, 'v5e:4x4'), (double, 'v5e:2x2', 4), (lambda i: i, 'v5e:2x2'))]
  assert len({*found}) == 4
  assert lowered(double, 'v5e:2x2').sha256 == found[0]


def test_what_scatters_is_kept_off_sparse_cores():
  scatter = lambda i: jnp.zeros(8).at[i].max(1.0)
  for where in ('v5p:2x2x1', 'v6e:2x2'):
    options = lowered(scatter, where).options
    assert options and not any(options.values())
    assert not lowered(lambda i: i + 1, where).options
  assert not lowered(scatter, 'v5e:2x2').options


@pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason='needs the TPU compiler, extra tpu')
@pytest.mark.parametrize('name', ['v5e:2x2', '2xv5e:2x2'])
def test_an_update_compiles_for_slices_that_are_not_there(name):
  where = topologies.find(name)
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 2}, topologies.devices(where))
  described = small.model(implementation='dot_product_attention', scan_layers=True)
  task = tasks.DenoisingTask(
      model=described, objective=objective.Objective(), **small.DIMS)
  length = 4
  job = programs.train(task, state_lib.TrainConfig(steps=1, batch_size=8), {
      'frames': ((length, *small.FRAME), jnp.uint8),
      'actions': ((length, small.DIMS['action_dim']), jnp.float32),
      'poses': ((length, small.DIMS['pose_dim']), jnp.float32),
      'valid': ((length,), jnp.bool_)}, mesh)
  row = programs.measure(job, where, programs.lower(job, where))
  assert row['fits']
  assert row['mesh'] == {'data': 2 * where.slices, 'fsdp': 2}
  assert (row['network_bytes'] > 0) == (where.slices > 1)
  assert row['state_bytes'] < row['needs'] < row['hbm']
  # Parameters are gathered and gradients are added up: there is no step without either.
  assert row['collectives']
  assert row['wire_bytes'] > 0
  assert row['flops'] > 0
  assert row['seconds'] > row['collective_seconds'] > 0
  assert row['endless_loops'] == 0
  assert math.isfinite(row['fraction_of_peak'])
