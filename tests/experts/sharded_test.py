"""Tests of compositions and memories on eight devices, in a process that has eight."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import small
from wmpoe import session
from wmpoe import sharding
from wmpoe.aot import hlo
from wmpoe.diffusion import analytic
from wmpoe.diffusion import samplers
from wmpoe.experts import composition
from wmpoe.experts import expert
from wmpoe.experts import sharded

_ROOT = pathlib.Path(__file__).parents[2]


_bind = jax.jit(expert.bind, static_argnames=('model', 'null'))


def bind(model, params, query, **options):
  """`expert.bind` as one program; of equal weights, which branches share, no copy is made."""
  return dataclasses.replace(_bind(model, params, query, **options), params=params)


@functools.cache
def composed(batch=4):
  """Four networks of three architectures, one with adapters, six branches; one occurs twice."""
  net, other = small.model(), small.model(context=4, window=2, full_every=2, width=24)
  mapped = small.spatial_model().denoiser
  weights, query = small.params(net), small.query(batch, context=4)
  adapters = small.experts().long_term.lora_init
  adapters = jax.tree.map(
      lambda x: 0.1 * np.random.default_rng(5).normal(size=(batch, *x.shape)).astype(np.float32),
      adapters)
  base = bind(net, weights, query)
  cells = np.random.default_rng(6).normal(size=(batch, 4, 4, 4)).astype(np.float32)
  past_cells, cells = cells[:, :2], cells[:, 2:]
  bind_map = lambda *tokens: bind(
      mapped, small.params(mapped, 3), query, cells=tokens[0], context_cells=tokens[1])
  long = bind(other, small.params(other, 2), query)
  return composition.compose(base, [
      expert.Contrast(positive=long, negative=bind(other, long.params, query, null=True),
                      weight=1.5),
      expert.Contrast(positive=bind(net, weights, query, lora=adapters), negative=None,
                      weight=np.linspace(0.2, 2.0, batch).astype(np.float32),
                      empty=np.arange(batch) == 1),
      expert.Contrast(positive=bind_map(cells, past_cells), negative=base, weight=0.7,
                      level=composition.Interval(high=1.0)),
  ])


@pytest.mark.parametrize('rule', composition.RULES)
def test_every_rule_is_its_coefficients(rule):
  denoiser = dataclasses.replace(composed(2), rule=composition.RULES[rule])
  _, level = small.noisy(2, 2)
  shares = np.asarray(sharded.coefficients(denoiser, level))
  rng = np.random.default_rng(1)
  estimates = [rng.normal(size=(2, 2, 3, 3, 1)).astype(np.float32) for _ in shares]
  by_hand = sum(s[..., None, None, None] * e for s, e in zip(shares, estimates, strict=True))
  small.close(by_hand, denoiser.combine(estimates, level))


def test_what_is_no_composition_stays_as_it_is():
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  base = composed(2).base
  assert sharded.shard(base, mesh) is base


def test_a_mesh_that_does_not_divide_the_episodes_is_named():
  mesh = jax.sharding.AbstractMesh((3, 1, 1, 1), sharding.AXES)
  with pytest.raises(ValueError, match='number of episodes = 2 .* data of size 3'):
    sharded.shard(composed(2), mesh)


def test_a_branch_that_does_not_say_what_its_episodes_are_is_not_spread_over_them():
  mixture = analytic.MixtureDenoiser(
      means=jnp.array([-1.0, 1.0]), stds=jnp.ones(2), weights=jnp.ones(2))
  denoiser = composition.compose(
      bind(small.model(), small.params(small.model()), small.query(2)),
      [expert.Contrast(positive=mixture, negative=None)])
  mesh = jax.sharding.AbstractMesh((2, 1, 1, 2), ('data', 'fsdp', 'tensor', 'expert'))
  with pytest.raises(ValueError, match='data=2, but the branches MixtureDenoiser do not say'):
    sharded.shard(denoiser, mesh)


def test_on_eight_devices():
  """See the functions it runs, which assert; here only that all went well."""
  done = subprocess.run(
      [sys.executable, '-W', 'error::DeprecationWarning', __file__], cwd=_ROOT, check=False,
      capture_output=True, text=True, timeout=500,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(_ROOT)})
  assert done.returncode == 0, done.stderr[-3000:]


def _experts_side_by_side():
  """Branches over 'expert', episodes over 'data': the same frames, one all-reduce a step."""
  mesh = sharding.make_mesh({'data': 2, 'expert': 4})
  denoiser = composed()
  draw = lambda d: samplers.sample(
      d, samplers.DDIM(), jax.random.key(3), (4, 2, *small.FRAME), 2, schedule=small.SCHEDULE)
  expected = jax.jit(draw)(denoiser)
  spread = jax.jit(lambda d: draw(sharded.shard(d, mesh))).lower(denoiser).compile()
  small.close(spread(denoiser), expected, atol=1e-4)
  [step] = [b for b in hlo.loop_bodies(spread.as_text(), 8) if b.collectives]
  [combined] = step.collectives
  assert (combined.kind, combined.times, combined.group) == ('all-reduce', 1, 4), combined
  assert combined.bytes == 2 * 2 * np.prod(small.FRAME) * 4  # two episodes of two frames
  sent = hlo.read(spread.as_text(), 8).collectives  # and laying out what devices need sends nothing
  assert [(each.kind, each.times) for each in sent] == [('all-reduce', 2)], sent


def _episodes_side_by_side():
  """Branches that share a call, episodes over 'data': nothing is sent at all."""
  mesh = sharding.make_mesh({'data': 2}, jax.devices()[:2])
  net, weights = small.model(), small.params(small.model())
  bound = lambda query, **options: bind(net, weights, query, **options)
  says = lambda query: composition.compose(bound(query), [expert.Contrast(
      positive=bound(query), negative=bound(query, null=True))])(*small.noisy(4, 2))
  each, query = sharding.episode_sharding(mesh), small.query(4)
  compiled = jax.jit(says, out_shardings=each).lower(jax.device_put(query, each)).compile()
  small.close(compiled(jax.device_put(query, each)), jax.jit(says)(query), atol=1e-4)
  assert hlo.read(compiled.as_text(), 2).collectives == ()


def _memories_over_episodes():
  """Eight inner loops, each on its device: the same memories, and no word between them."""
  # Adam divides by gradients' sizes, and so makes rounding visible: plain gradient descent.
  memory = dataclasses.replace(small.experts().long_term, optimizer=optax.sgd(0.5))
  state = memory.append(small.init(memory, 8), small.observation(8, 8))
  keys = jax.random.split(jax.random.key(0), 8)
  expected = jax.jit(memory.fit)(state, keys)
  small.differ(expected.lora['block_0']['query']['b'], 0.0)
  each = sharding.episode_sharding(sharding.make_mesh({'data': -1}))
  state, keys = jax.device_put((state, keys), each)
  compiled = jax.jit(memory.fit, out_shardings=each).lower(state, keys).compile()
  small.close(compiled(state, keys), expected)
  assert hlo.read(compiled.as_text(), 8).collectives == ()


def _a_memory_file_on_any_number_of_devices():
  """Saved from eight devices, loaded on one, saved from four: the same bits."""
  on = lambda n: sharding.episode_sharding(sharding.make_mesh({'data': n}, jax.devices()[:n]))
  opened = session.Session.open(small.world(), batch=8, seed=3)
  numbered = jax.tree.map(lambda x: jnp.arange(x.size).reshape(x.shape).astype(x.dtype),
                          opened.state)
  given = dataclasses.replace(opened, state=jax.device_put(numbered, on(8)))
  with tempfile.TemporaryDirectory() as folder:
    for name, devices in ('eight.npz', 1), ('one.npz', 4), ('four.npz', 1):
      given.save(f'{folder}/{name}', history=True)
      given = session.Session.load(f'{folder}/{name}', opened)
      given = dataclasses.replace(given, state=jax.device_put(given.state, on(devices)))
    small.same(given.state, numbered)
    given = dataclasses.replace(given, state=jax.device_put(numbered, on(8)))
    for name, devices in ('eight', 4), ('four', 1):
      mesh = sharding.make_mesh({'data': devices}, jax.devices()[:devices])
      given.save(f'{folder}/{name}', history=True)
      given = session.Session.load(f'{folder}/{name}', opened, mesh=mesh)
      assert {len(x.devices()) for x in jax.tree.leaves(given.state)} == {devices}
  small.same(given.state, numbered)


if __name__ == '__main__':
  jax.config.update('jax_num_cpu_devices', 8)
  _experts_side_by_side()
  _episodes_side_by_side()
  _memories_over_episodes()
  _a_memory_file_on_any_number_of_devices()
