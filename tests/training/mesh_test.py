"""Training on meshes of eight devices, which a child process makes up: run as a script it is it."""

import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import subprocess
import sys

from absl import app
from absl import logging
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wmpoe
from wmpoe import multihost
from wmpoe import sharding
from wmpoe.data import pipeline
from wmpoe.networks import attention
from wmpoe.training import checkpoints
from wmpoe.training import metrics_log
from wmpoe.training import trainer

STEPS = 50
BATCH = 8
CONFIG = trainer.TrainConfig(
  steps=STEPS, batch_size=BATCH, learning_rate=3e-3, warmup_steps=5, schedule='constant',
  log_every=1, checkpoint_every=100,
)  # fmt: skip
MESHES = {'data': {'data': 8}, 'mixed': {'data': 2, 'fsdp': 2, 'tensor': 2}}
WIDTH, HEADS, TOKENS, CHANNELS = 16, 2, 4, 8
KERNELS = {
  'embed': (CHANNELS, WIDTH), 'modulation': (WIDTH, 6 * WIDTH), 'output': (WIDTH, CHANNELS),
  **{f'block_0/{name}': (WIDTH, WIDTH) for name in ('query', 'key', 'value', 'out')},
  'block_0/mlp_in': (WIDTH, 4 * WIDTH), 'block_0/mlp_out': (4 * WIDTH, WIDTH),
}  # fmt: skip


class Denoiser:
  """A transformer of one block, modulated as a DiT's are: all kinds of layers, compiled fast."""

  def init(self, key):
    keys = jax.random.split(key, len(KERNELS))
    flat = {
      (*name.split('/'), leaf): value
      for k, (name, shape) in zip(keys, KERNELS.items(), strict=True)
      for leaf, value in (
        ('kernel', jax.random.normal(k, shape) * shape[0] ** -0.5), ('bias', jnp.zeros(shape[1]))
      )
    }  # fmt: skip
    return traverse_util.unflatten_dict(flat)

  def loss(self, params, batch, key):
    noise = jax.random.normal(key, batch['x'].shape)
    dense = lambda layer, x: x @ layer['kernel'] + layer['bias']
    split = lambda x: x.reshape(*x.shape[:2], HEADS, -1)
    block = params['block_0']
    x = dense(params['embed'], batch['x'] + noise)
    six = dense(params['modulation'], jnp.tanh(x.mean(axis=1))).reshape(-1, 1, 6, WIDTH)
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (six[:, :, i] for i in range(6))
    y = x * (1 + scale) + shift
    query, key, value = (split(dense(block[name], y)) for name in ('query', 'key', 'value'))
    y = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
    x = x + gate * dense(block['out'], y)
    y = jax.nn.gelu(dense(block['mlp_in'], x * (1 + mlp_scale) + mlp_shift))
    x = x + mlp_gate * dense(block['mlp_out'], y)
    return jnp.mean(jnp.square(dense(params['output'], x) - noise)), {}


class Waves:
  """Sequences [T C] to be denoised."""

  def __len__(self):
    return 20

  def __getitem__(self, index):
    phase = np.arange(TOKENS)[:, None] + np.arange(CHANNELS) / 2
    return {'x': np.sin(index + phase).astype(np.float32)}


def make_mesh(sizes):
  return sharding.make_mesh(sizes, jax.devices()[:math.prod(sizes.values())])


def train(workdir, sizes, **changes):
  mesh = make_mesh(sizes) if sizes else None
  batches = pipeline.make_pipeline(
    Waves(), batch_size=BATCH, seed=0, rows=sharding.batch_rows(mesh, BATCH) if mesh else None)
  config = dataclasses.replace(CONFIG, **changes)
  return trainer.train(Denoiser(), iter(batches), workdir, config=config, mesh=mesh).state


def collectives(sizes, *, whole):
  """Kinds of collectives in the compiled gradient, with parameters whole at use or left to XLA."""
  mesh, task = make_mesh(sizes), Denoiser()
  params = jax.eval_shape(task.init, jax.random.key(0))
  layout = sharding.shardings(mesh, params)
  batch = jax.ShapeDtypeStruct(
    (BATCH, TOKENS, CHANNELS), jnp.float32, sharding=sharding.batch_sharding(mesh))
  loss = lambda params, x: task.loss(params, {'x': x}, jax.random.key(0))[0]
  gradient = jax.grad(sharding.whole_at_use(loss, layout) if whole else loss)
  compiled = jax.jit(gradient, out_shardings=layout).lower(
    jax.tree.map(checkpoints.placed, params, layout), batch).compile()  # fmt: skip
  kinds = 'all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute'
  return sorted(set(re.findall(rf' ({kinds})(?:-start)?\(', compiled.as_text())))


def attended(sizes, implementation):
  """Attention and its gradients on a mesh that is set; whether they lie as what they are of."""
  mesh = make_mesh(sizes)
  place = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec(('data', 'fsdp'), None, 'tensor'))
  arrays = [
    jax.device_put(np.random.default_rng(i).normal(size=(4, 5, 2, 4)).astype(np.float32), place)
    for i in range(3)]  # fmt: skip
  loss = lambda *x: jnp.sum(jnp.sin(attention.attend(*x, implementation=implementation)))
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    found = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*arrays)
  return found, all(x.sharding.is_equivalent_to(place, 4) for x in found[1])


def held(state):
  """Bytes of a state on the first device, and in all."""
  leaves = jax.tree.leaves(state)
  return sum(x.addressable_shards[0].data.nbytes for x in leaves), sum(x.nbytes for x in leaves)


def main(argv):
  logging.set_verbosity(logging.ERROR)
  folder = pathlib.Path(argv[1])
  if len(argv) > 2:  # one process of a pod, begun by launch/local_pod.sh
    multihost.initialize('')
    train(folder / 'pod', {'data': 2}, steps=30)
    multihost.leave()
    return
  train(folder / 'one', None)
  for name, sizes in MESHES.items():
    train(folder / name, sizes)
  facts = {'fsdp': held(train(folder / 'moved', {'fsdp': 8}, steps=20))}
  train(folder / 'moved', {'data': 2, 'tensor': 2}, steps=35)
  train(folder / 'moved', None)
  train(folder / 'pod', None)
  spread, _ = checkpoints.load_params(folder / 'moved', mesh=sharding.make_mesh({'fsdp': 8}))
  facts['ema'] = held(spread)
  whole, _ = checkpoints.load_params(folder / 'moved')
  jax.tree.map(np.testing.assert_array_equal, spread, whole)
  facts['collectives'] = [collectives({'fsdp': 8}, whole=whole) for whole in (True, False)]
  (kernel, facts['shares']), (exact, _) = (
    attended(MESHES['mixed'], implementation) for implementation in ('splash', 'head_major'))
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), kernel, exact)
  (folder / 'facts.json').write_text(json.dumps(facts))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('mesh')
  root = pathlib.Path(wmpoe.__file__).parents[1]
  command = [sys.executable, '-W', 'error::DeprecationWarning', __file__, str(path)]
  pod = [str(root / 'launch' / 'local_pod.sh'), '2', '--', *command, 'pod']
  said = ''
  for devices, arguments in ('1', pod), ('8', command):
    environment = {
      **os.environ, 'PYTHONPATH': str(root), 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': devices}
    done = subprocess.run(
      arguments, env=environment, capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    said += done.stderr
  for run, step in ('moved', 20), ('moved', 35), ('pod', 30):  # none begins anew
    assert f'continuing {path / run} from step {step}' in said
  return path


def losses(folder):
  found = [row for row in metrics_log.read(folder) if row['kind'] == 'train']
  assert [row['step'] for row in found] == list(range(1, STEPS + 1))
  return np.array([row['loss'] for row in found])


@pytest.mark.parametrize('name', [*MESHES, 'moved', 'pod'])
def test_every_mesh_trains_as_one_device_does(folder, name):
  """`moved` trains 20 steps on fsdp=8, 15 on four devices as data and tensor, the last on one.

  `pod` trains 30 steps as two processes and the last 20 as one, on one device.
  """
  expected = losses(folder / 'one')
  np.testing.assert_allclose(losses(folder / name), expected, rtol=1e-5)
  assert expected[-5:].mean() < 0.7 * expected[:5].mean()
  ema, as_one = (checkpoints.load_params(folder / run)[0] for run in (name, 'one'))
  for params in (ema, as_one):  # invisible to softmax: Adam blows up what is rounding alone
    del params['block_0']['key']['bias']
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), ema, as_one)


def test_what_a_device_holds_shrinks_as_the_fsdp_axis(folder):
  facts = json.loads((folder / 'facts.json').read_text())
  for name in ('fsdp', 'ema'):
    here, whole = facts[name]
    assert whole / 8 <= here < 1.05 * whole / 8


def test_parameters_are_gathered_and_activations_stay_where_they_are(folder):
  whole, left_alone = json.loads((folder / 'facts.json').read_text())['collectives']
  assert 'all-gather' in whole
  assert not {'all-to-all', 'collective-permute'} & set(whole)
  # What it is there for: XLA alone moves activations.
  assert {'all-to-all', 'collective-permute'} & set(left_alone)


def test_devices_attend_to_their_share_of_examples_and_heads_by_a_kernel(folder):
  assert json.loads((folder / 'facts.json').read_text())['shares']


if __name__ == '__main__':
  app.run(main)
