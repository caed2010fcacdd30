"""Tests of the mesh and of what lies where, on meshes of devices that don't exist.

What runs on several devices is tested where it runs: tests/training/mesh_test.py.
"""

import dataclasses
import importlib.util
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import small
from wmpoe import sharding
from wmpoe import zoo
from wmpoe.commands import common
from wmpoe.experts import expert
from wmpoe.networks import ssm
from wmpoe.training import state as state_lib

P = jax.sharding.PartitionSpec
CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'


def abstract(**sizes):
  """A mesh without devices: enough to say where things lie."""
  sizes = {**dict.fromkeys(sharding.AXES, 1), **sizes}
  return jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))


def specs(mesh, shapes, **options):
  placed = sharding.shardings(mesh, shapes, **options)
  return {
      jax.tree_util.keystr(path, simple=True, separator='/'): place.spec
      for path, place in jax.tree_util.tree_flatten_with_path(placed)[0]}


def shape(*dims):
  return jax.ShapeDtypeStruct(dims, jnp.float32)


def test_a_mesh_has_all_axes_and_takes_what_remains():
  device = jax.devices()[:1]
  for sizes in ({}, {'data': 1, 'tensor': 1}, {'fsdp': -1}):
    mesh = sharding.make_mesh(sizes, device)
    assert mesh.axis_names == sharding.AXES
    assert set(mesh.shape.values()) == {1}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@dataclasses.dataclass(frozen=True)
class Chip:
  """A chip of v6e, as far as laying out a mesh looks at it."""

  id: int
  coords: tuple[int, int, int]
  slice_index: int
  process_index: int = 0
  platform: str = 'tpu'
  device_kind: str = 'TPU v6 lite'
  core_on_chip: int = 0


def torus(slices=1):
  """Chips of one slice of 8x8, or of several."""
  return [
      Chip(id=64 * s + 8 * y + x, coords=(x, y, 0), slice_index=s)
      for s in range(slices) for y in range(8) for x in range(8)]


def test_an_axis_may_take_a_part_of_an_axis_of_the_torus():
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 4, 'tensor': 4}, torus())
  assert mesh.shape == {'data': 4, 'fsdp': 4, 'tensor': 4, 'expert': 1}
  assert len({device.id for device in mesh.devices.flat}) == 64


def test_of_several_slices_each_holds_a_part_of_data():
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 8, 'tensor': 2}, torus(slices=2))
  assert mesh.shape == {'data': 8, 'fsdp': 8, 'tensor': 2, 'expert': 1}
  slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
  assert (slices[:4] == 0).all() and (slices[4:] == 1).all()
  assert len({device.id for device in mesh.devices.flat}) == 128


def test_no_other_axis_spans_slices():
  with pytest.raises(ValueError, match='belong to 2 slices, and data=1 does not divide over them'):
    sharding.make_mesh({'fsdp': 128}, torus(slices=2))


def test_any_axis_spans_the_hosts_of_a_gpu_cluster():
  hosts = [
      dataclasses.replace(chip, platform='gpu', device_kind='H100') for chip in torus(slices=2)]
  mesh = sharding.make_mesh({'data': 8, 'fsdp': 16}, hosts)
  slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
  assert (slices[:4] == 0).all() and (slices[4:] == 1).all()
  assert sharding.make_mesh({'fsdp': 128}, hosts).shape['fsdp'] == 128


@pytest.mark.parametrize(('sizes', 'message'), [
    ({'model': 2}, r"Unknown mesh axes \['model'\]: expected some of data, fsdp, tensor, expert"),
    ({'data': 2, 'tensor': 3}, r'data=2 x tensor=3 does not use 1 device\(s\).*multiply to 1'),
    ({'data': 0}, 'expected whole numbers of at least 1, and at most one -1'),
    ({'data': 1.5}, 'expected whole numbers of at least 1'),
    ({'data': -1, 'fsdp': -1}, 'at most one -1'),
    ({'data': -1, 'fsdp': 2}, r'data=-1 x fsdp=2 does not use 1 device\(s\)'),
])
def test_impossible_meshes_are_named(sizes, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(sizes, jax.devices()[:1])


def described(file, variant):
  spec = importlib.util.spec_from_file_location('config', CONFIGS / file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return common.plain(module.get_config(variant))


@pytest.mark.parametrize(('file', 'variant'), [
    ('cards.py', 'spatial'),  # a DiT and the map encoder
    ('memory_maze.py', 'cpu_spatial'),  # a DiT with a place field and the view reader
    ('memory_maze.py', 'cpu_ssm'), ('memory_maze.py', 'autoencoder'),
    ('memory_maze.py', 'odometry'), *(('memory_maze.py', variant) for variant in (
        'base', 'short_term', 'spatial', 'ssm', 'base_1b'))])  # at the scale of the paper
def test_state_shrinks_as_the_fsdp_axis_for_every_network(file, variant):
  make = lambda params: state_lib.create(
      params, state_lib.make_optimizer(learning_rate=1e-3, warmup_steps=1, total_steps=2))
  state = jax.eval_shape(make, zoo.shapes(described(file, variant)))
  whole = sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(state))
  for fsdp in (1, 2, 4, 8):
    mesh = abstract(fsdp=fsdp, data=2)
    held = sharding.bytes_per_device(state, sharding.shardings(mesh, state))
    assert whole / fsdp <= held < 1.05 * whole / fsdp


def test_layers_between_heads_and_hidden_units_are_split_by_them():
  net = small.model()
  shapes = jax.eval_shape(lambda key: net.init(key, **small.DIMS), jax.random.key(0))
  got = specs(abstract(data=2, fsdp=2, tensor=2), shapes)
  for layer in ('query', 'key', 'value', 'mlp_in'):
    assert got[f'block_1/{layer}/kernel'] == P('fsdp', 'tensor')
    assert got[f'block_1/{layer}/bias'] == P(('tensor', 'fsdp'))
  for layer in ('out', 'mlp_out'):
    assert got[f'block_1/{layer}/kernel'] == P('tensor', 'fsdp')
    assert got[f'block_1/{layer}/bias'] == P('fsdp')
  others = {path: spec for path, spec in got.items() if 'tensor' in str(spec)}
  assert all(path.startswith('block_') for path in others) and len(others) == 2 * 10
  reader = specs(abstract(fsdp=2, tensor=2), {
      'query_0': {'kernel': shape(8, 8)}, 'mlp_1_out': {'kernel': shape(8, 8)},
      'tokens_in': {'kernel': shape(8, 8)}, 'query_place': {'kernel': shape(8, 16)},
      'encode_out': {'kernel': shape(8, 4)}})
  assert list(reader.values()) == [
      P('fsdp', None), P('tensor', 'fsdp'), P('fsdp', 'tensor'), P(None, 'fsdp'),
      P('fsdp', 'tensor')]


def test_the_channels_of_a_scan_are_split_from_end_to_end():
  net = expert.Model(schedule=small.SCHEDULE, network=ssm.SSM(
      width=16, depth=1, heads=2, patch=8, frame_shape=small.FRAME, context=2))
  shapes = jax.eval_shape(lambda key: net.init(key, **small.DIMS), jax.random.key(0))
  got = specs(abstract(fsdp=2, tensor=2), shapes['block_0']['time'])
  inner = ('tensor', 'fsdp')
  assert got == {
      'time_in/kernel': P('fsdp', 'tensor'), 'time_in/bias': P(inner),
      'time_gate/kernel': P('fsdp', 'tensor'), 'time_gate/bias': P(inner),
      'step_down/kernel': P(inner, None), 'step_up/kernel': P(None, inner),
      'write/kernel': P(inner, None), 'read/kernel': P(inner, None), 'decay': P(inner, None),
      'skip': P(inner), 'step_bias': P(inner), 'time_out/kernel': P('tensor', 'fsdp'),
      'time_out/bias': P('fsdp')}


def test_what_mirrors_the_parameters_lies_like_them():
  params = {'block_0': {'key': {'kernel': shape(8, 16)}, 'out': {'bias': shape(8)}}}
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
  state = jax.eval_shape(lambda p: state_lib.create(p, optimizer), params)
  got = specs(abstract(fsdp=4, tensor=2), state)
  mirrors = [path for path in got if path.endswith('key/kernel')]
  assert len(mirrors) == 4  # parameters, average, both moments
  assert {got[path] for path in mirrors} == {P('fsdp', 'tensor')}
  assert got['step'] == P()
  # Stacked layers lie like single ones.
  stacked = {'key': {'kernel': shape(3, 8, 16)}}
  assert specs(abstract(fsdp=4, tensor=2), stacked) == {'key/kernel': P(None, 'fsdp', 'tensor')}


def test_only_small_leaves_are_replicated_where_an_axis_does_not_divide():
  mesh = abstract(fsdp=8, tensor=2)
  assert specs(mesh, {'bias': shape(12), 'plan': shape(36, 3), 'step': shape()}) == {
      'bias': P(), 'plan': P(), 'step': P()}
  # One dimension that divides is enough, the largest of those.
  assert specs(mesh, {'a': shape(515, 128), 'b': shape(16, 4096)}) == {
      'a': P(None, 'fsdp'), 'b': P(None, 'fsdp')}
  with pytest.raises(ValueError, match=re.escape(
      "conv/kernel of shape (3, 3, 60, 60): the mesh axis 'fsdp' of size 8 does not divide any "
      'dimension')):
    sharding.shardings(mesh, {'conv': {'kernel': shape(3, 3, 60, 60)}})
  assert specs(mesh, {'key': {'kernel': shape(12, 16)}}) == {'key/kernel': P(None, 'tensor')}
  with pytest.raises(ValueError, match=re.escape(
      "key/kernel of shape (1024, 1025): the mesh axis 'tensor' of size 2 does not divide 1025 "
      '(dimension 1)')):
    sharding.shardings(mesh, {'key': {'kernel': shape(1024, 1025)}})
  with pytest.raises(ValueError, match='key/kernel of shape .*fewer dimensions than the rule'):
    sharding.shardings(mesh, {'key': {'kernel': shape(16)}})


def test_rules_can_be_given():
  rules = ((r'stack/.*', P('expert')), *sharding.RULES)
  got = specs(abstract(expert=2), {'stack': {'w': shape(2)}, 'w': shape(4)}, rules=rules)
  assert got == {'stack/w': P('expert'), 'w': P('fsdp')}


def test_batches_and_episodes():
  mesh = abstract(data=4, fsdp=2, tensor=2)
  assert sharding.batch_sharding(mesh).shard_shape((16, 3)) == (2, 3)
  assert sharding.episode_sharding(mesh).shard_shape((16, 3)) == (4, 3)
  assert sharding.replicated(mesh).shard_shape((16, 3)) == (16, 3)
  with pytest.raises(ValueError, match=re.escape(
      'batch_size = 12 does not divide over the mesh axis data x fsdp of size 8: expected a '
      'multiple of 8')):
    sharding.batch_rows(mesh, 12)
  with pytest.raises(ValueError, match='heads = 3 does not divide over the mesh axis tensor'):
    sharding.check_divides(mesh, 'tensor', 3, 'heads')


def test_on_one_device_everything_is_whole_and_equal():
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  make = lambda key: {'w': jax.random.normal(key, (4, 4))}
  small.same(sharding.create(mesh, make, jax.random.key(0)), jax.jit(make)(jax.random.key(0)))
  assert sharding.batch_rows(mesh, 3) == (0, 1, 2)
  rows = {'x': np.arange(6.0, dtype=np.float32).reshape(3, 2)}
  placed = sharding.global_batch(mesh, rows, 3)
  small.same(placed, rows)
  assert isinstance(sharding.gathered(mesh, placed)['x'], np.ndarray)
  small.same(sharding.gathered(mesh, placed), rows)


def test_what_a_function_computes_again_it_computes_again_with_gathered_parameters():
  layout = sharding.shardings(abstract(fsdp=2), {'w': jnp.ones((4, 4))})
  loss = lambda params, x: jnp.sum(jnp.sin(jnp.sin(x @ params['w'])))
  recomputed = jax.checkpoint(loss)
  sines = lambda f: str(jax.make_jaxpr(jax.grad(f))(
      {'w': jnp.ones((4, 4))}, jnp.ones((3, 4)))).count(' sin ')
  assert sines(sharding.whole_at_use(recomputed, layout)) == sines(recomputed) > sines(loss)
