"""Small real networks, memories, worlds and episodes: nothing here is a mock, all of it is tiny.

Parameters are random everywhere. At its initialisation a DiT is zero at the output and in every
gate, and would let most tests pass whatever it computes.

Arrays are made by numpy and what must be computed is jitted: each operation outside of jit is a
program to be compiled.
"""

import contextlib
import functools
import types

import jax
import numpy as np
import optax

from wmpoe import world_model
from wmpoe.data import episode
from wmpoe.diffusion import schedules
from wmpoe.experts import base as base_lib
from wmpoe.experts import expert
from wmpoe.experts import long_term
from wmpoe.experts import objective
from wmpoe.experts import short_term
from wmpoe.experts import spatial
from wmpoe.experts import writing
from wmpoe.networks import attention
from wmpoe.networks import dit
from wmpoe.networks import lora
from wmpoe.networks import map_encoder

DIMS = {'action_dim': 3, 'pose_dim': 2}
FRAME = (16, 16, 3)
TOKENS = 4
SCHEDULE = schedules.CosineSchedule(shift=0.5, logsnr_min=-8.0, logsnr_max=8.0)
WRITING = writing.Writing(
    steps=2, target=2, capacity=8, objective=objective.Objective(null_rate=0.5))
SPEC = lora.LoraSpec(rank=2, alpha=4.0)


def network(*, context=2, kind='prefix', window=None, full_every=0, **changes):
  """A DiT of two blocks on 16x16 frames of four tokens."""
  options = {'width': 16, 'depth': 2, 'heads': 2, 'patch': 8, 'frame_shape': FRAME, 'mlp_ratio': 2}
  return dit.DiT(
      context=context, pattern=attention.Pattern(kind=kind, window=window, full_every=full_every),
      **{**options, **changes})


def model(*, prediction='v', **changes):
  """An `expert.Model` of such a network."""
  return expert.Model(network=network(**changes), schedule=SCHEDULE, prediction=prediction)


def random_tree(shapes, seed=0):
  """Random leaves: kernels of unit gain, the rest of a tenth."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
      lambda s: jax.device_put(rng.normal(
          size=s.shape, scale=s.shape[0]**-0.5 if len(s.shape) > 1 else 0.1).astype(np.float32)),
      shapes)


@functools.cache
def _shapes(described):
  return jax.eval_shape(lambda key: described.init(key, **DIMS), jax.random.key(0))


def params(described, seed=0):
  """Random parameters of an `expert.Model` or a `spatial.SpatialModel`."""
  return random_tree(_shapes(described), seed)


def conditions(batch, frames, seed=0):
  """One-hot actions [B T A] and grid poses [B T P]."""
  rng = np.random.default_rng((seed, 1))
  actions = np.eye(DIMS['action_dim'], dtype=np.float32)[
      rng.integers(DIMS['action_dim'], size=(batch, frames))]
  poses = rng.integers(2, size=(batch, frames, 2)).astype(np.float32)
  return jax.device_put(actions), jax.device_put(poses)


def observation(batch, frames, seed=0):
  """Random frames with their conditions."""
  actions, poses = conditions(batch, frames, seed)
  pixels = np.random.default_rng(seed).integers(256, size=(batch, frames, *FRAME), dtype=np.uint8)
  return episode.Observation(frames=jax.device_put(pixels), actions=actions, poses=poses)


def clip(batch, frames, seed=0):
  """The same as a training clip, every frame valid."""
  seen = observation(batch, frames, seed)
  return objective.Clip(
      frames=seen.frames, actions=seen.actions, poses=seen.poses,
      valid=jax.device_put(np.ones((batch, frames), bool)))


def noisy(batch, frames, seed=0):
  """`(x_t [B T H W C], logsnr [B T])`, every frame at a level of its own."""
  rng = np.random.default_rng((seed, 2))
  return (jax.device_put(rng.normal(size=(batch, frames, *FRAME)).astype(np.float32)),
          jax.device_put(rng.uniform(-4, 4, size=(batch, frames)).astype(np.float32)))


def spatial_model(*, context=2, **changes):
  """A spatial model on a map of three features."""
  return spatial.SpatialModel(
      denoiser=model(context=context, map_dim=4, **changes),
      encoder=map_encoder.MapEncoder(features=3, patch=8, width=8),
      locate=spatial.FixedCamera(TOKENS))


@functools.cache
def experts(seed=0, **changes):
  """`base, short_term, long_term, spatial` as attributes."""
  net, longer = model(**changes), model(context=4, window=2, full_every=2, **changes)
  mapped = spatial_model(**changes)
  weights = params(net, seed)
  return types.SimpleNamespace(
      base=base_lib.Base(params=weights, model=net),
      short_term=short_term.ShortTerm(params=params(longer, seed + 1), model=longer, **DIMS),
      long_term=long_term.create(
          jax.random.key(seed), net, weights, spec=SPEC, writing=WRITING,
          optimizer=optax.adam(0.05), **DIMS),
      spatial=spatial.Spatial(params=params(mapped, seed + 2), model=mapped))


def world(**changes):
  """A world model with all three memories; two frames a chunk, two denoising steps."""
  all_of = experts()
  options = {
      'base': all_of.base, 'num_steps': 2, 'chunk': 2,
      'memories': {
          'short_term': all_of.short_term, 'long_term': all_of.long_term,
          'spatial': all_of.spatial}}
  return world_model.WorldModel(**{**options, **DIMS, **changes})


@functools.partial(jax.jit, static_argnums=1)
def init(memory, batch):
  """`memory.init(batch)` of a memory or a world, as one program."""
  return memory.init(batch)


@jax.jit
def _full(seen):
  return expert.empty_window(*seen.frames.shape[:2], FRAME, *DIMS.values()).push(seen)


def window(batch, length, seed=0):
  """A full window of recent frames."""
  return _full(observation(batch, length, seed))


def query(batch, frames=2, *, context=2, seed=0, recent=None):
  """A query for frames after a full window of recent ones."""
  actions, poses = conditions(batch, frames, seed + 1)
  return expert.Query(
      recent=window(batch, context, seed) if recent is None else recent, actions=actions,
      poses=poses, key=jax.random.split(jax.random.key(seed), batch))


@contextlib.contextmanager
def compilations():
  """Lists what XLA compiles meanwhile."""
  compiled = []
  listen = lambda event, *_, **__: compiled.append(event) if 'backend_compile' in event else None
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield compiled
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def same(got, expected):
  """Asserts that two trees are equal, bit for bit."""
  jax.tree.map(np.testing.assert_array_equal, got, expected)


def close(got, expected, atol=1e-5):
  """Asserts that two trees are equal up to rounding."""
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-5), got, expected)


def differ(got, expected):
  """Asserts that two arrays are far from equal."""
  assert np.max(np.abs(np.asarray(got, np.float32) - np.asarray(expected, np.float32))) > 1e-3
