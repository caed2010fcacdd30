"""A world model: a base denoiser composed with the denoisers of its memories.

`init` starts episodes, `observe` shows them frames, `imagine` dreams the frames that follow given
actions. Episodes are a batch axis; the state is a pytree, so saving, forking and resetting are
operations on arrays. All three are pure and can be jitted, vmapped and sharded by the caller.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import chex
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from wmpoe.data import episode
from wmpoe.diffusion import samplers
from wmpoe.experts import base as base_lib
from wmpoe.experts import composition
from wmpoe.experts import expert
from wmpoe.experts import sharded
from wmpoe.experts import tied

_SAMPLE, _NULL, _WRITE, _STEP = range(4)  # what a key is folded for


@struct.dataclass
class WorldState:
  """Running episodes: every leaf has a leading episode axis.

  Attributes:
    recent: The frames the base's context is taken from.
    memories: State of each memory by name.
  """

  recent: expert.Window
  memories: Mapping[str, Any]


@tied.dataclass
class WorldModel:
  """A base, its memories and how they are composed and sampled.

  Attributes:
    base: The base expert.
    memories: Memory definitions by name.
    latents: Optional `autoencoder.LatentSpace`, if base and memories work in latents; frames
      are then encoded when observed and decoded when imagined.
    with_base: If false the base only anchors what contrasts with it (subsets without base).
    rule: Composition rule.
    sampler: Sampler of `diffusion.samplers`.
    num_steps: Denoising steps per chunk.
    chunk: Frames generated at a time.
    grid: 'full' or 'pyramid' noise schedule over the chunk's frames.
    corrector: Optional corrector of `diffusion.correctors`, run after each denoising step.
    levels: Optional factors of experts' weights by log-SNR, (name, function) pairs; see
      `composition.Interval`.
    fewer: Weights by memory of some choices of memories, as pairs all the way down, a choice being
      a sorted tuple of names: those that `compose` gives where it leaves just them.
    follows: Names of the memories that imagined frames are written into.
    mesh: Optional mesh of `sharding.make_mesh`: the experts run side by side on its 'expert'
      axis, episodes on 'data'; see `experts.sharded`.
    action_dim: A.
    pose_dim: P.
  """

  base: base_lib.Base
  memories: Mapping[str, Any]
  latents: Any = None
  with_base: bool = struct.field(pytree_node=False, default=True, kw_only=True)
  rule: composition.Rule = struct.field(
      pytree_node=False, default=composition.shared_base, kw_only=True)
  sampler: Any = struct.field(
      pytree_node=False, default=samplers.DDIM(), kw_only=True)
  num_steps: int = struct.field(pytree_node=False, default=10, kw_only=True)
  chunk: int = struct.field(pytree_node=False, default=7, kw_only=True)
  grid: str = struct.field(pytree_node=False, default='full', kw_only=True)
  corrector: Any = struct.field(pytree_node=False, default=None, kw_only=True)
  levels: tuple[tuple[str, Any], ...] = struct.field(
      pytree_node=False, default=(), kw_only=True)
  fewer: tuple[tuple[tuple[str, ...], tuple[tuple[str, float], ...]], ...] = struct.field(
      pytree_node=False, default=(), kw_only=True)
  follows: tuple[str, ...] = struct.field(
      pytree_node=False, default=('short_term',), kw_only=True)
  mesh: Any = struct.field(pytree_node=False, default=None, kw_only=True)
  action_dim: int = struct.field(pytree_node=False, kw_only=True)
  pose_dim: int = struct.field(pytree_node=False, kw_only=True)

  def compose(
      self,
      *names: str,
      weights: Mapping[str, Any] | None = None,
      rule: composition.Rule | str | None = None,
      levels: Mapping[str, Any] | None = None,
  ) -> 'WorldModel':
    """The same world with only the named experts.

    Args:
      *names: Any non-empty subset of 'base' and the memories' names; memories are composed in
        this order. Without 'base' the first one's own baseline anchors the composition.
      weights: Optional new weights by name. Where none is given a memory keeps its own, but for
        choices of fewer memories that have weights of their own (`fewer`): what several know, each
        says more quietly than alone.
      rule: Optional other composition rule, or its name.
      levels: Optional factors of the weights by name, functions of the log-SNR.

    Raises:
      ValueError: for an unknown name, or none at all.
    """
    known = ('base', *self.memories)
    unknown = [n for n in (*names, *(weights or {}), *(levels or {})) if n not in known]
    if unknown or not names:
      raise ValueError(
          f'compose got the experts {list(names)}, weights for {list(weights or {})} and levels '
          f'for {list(levels or {})}; expected a non-empty choice of {", ".join(known)}.')
    memories = {name: self.memories[name] for name in names if name != 'base'}
    usual = dict(self.fewer).get(tuple(sorted(memories)), ()) if (
        memories.keys() != self.memories.keys()) else ()
    for name, weight in {**dict(usual), **(weights or {})}.items():
      if name not in memories:
        raise ValueError(f'A weight is given for {name!r}, which is not among {list(names)}.')
      memories[name] = memories[name].replace(weight=_checked_weight(name, weight))
    for name in levels or {}:
      if name not in memories:
        raise ValueError(f'A level is given for {name!r}, which is not among {list(names)}.')
    rule = composition.rule_by_name(rule) if isinstance(rule, str) else rule
    return dataclasses.replace(
        self, memories=memories, with_base='base' in names, rule=rule or self.rule,
        levels=self.levels if levels is None else tuple(sorted(levels.items())))

  def init(self, batch: int) -> WorldState:
    """Starts `batch` episodes with nothing seen and nothing remembered."""
    return WorldState(
        recent=expert.empty_window(
            batch, self.base.model.context, self.base.model.network.frame_shape, self.action_dim,
            self.pose_dim, self.base.model.codec.dtype),
        memories={name: memory.init(batch) for name, memory in self.memories.items()})

  def reset(self, state: WorldState, done: chex.Array) -> WorldState:
    """Starts new episodes where `done` [B] is true; the others go on."""
    pick = lambda fresh, old: jnp.where(
        jnp.reshape(done, (-1,) + (1,) * (jnp.ndim(old) - 1)), fresh, old)
    return jax.tree.map(pick, self.init(jnp.shape(done)[0]), state)

  def observe(
      self, state: WorldState, observation: episode.Observation, key: chex.PRNGKey
  ) -> WorldState:
    """Shows every memory the true frames, uint8 [B T H W 3].

    Raises:
      ValueError: if the observation does not fit the model (see `episode.validate`), or the key was
        not made by `jax.random.key`.
    """
    self.validate(observation)
    return self.write(state, self.encode(observation), key)

  def encode(self, observation: episode.Observation) -> episode.Observation:
    """The observation as memories and denoisers take it: with latents for frames, if any."""
    if self.latents is None:
      return observation
    return dataclasses.replace(
        observation, frames=self.latents.encode(observation.frames), pictures=observation.frames)

  def write(
      self, state: WorldState, observation: episode.Observation, key: chex.PRNGKey
  ) -> WorldState:
    """Shows every memory encoded frames; use `observe` for raw frames."""
    _check_key(key)
    memories = {
        name: memory.write(
            state.memories[name], observation, _fold(key, _WRITE, index))
        for index, (name, memory) in enumerate(sorted(self.memories.items()))}
    return WorldState(recent=state.recent.push(observation), memories=memories)

  def denoiser(self, state: WorldState, query: expert.Query) -> expert.Denoiser:
    """The composed denoiser of one chunk."""
    base = self.base.read(query)
    query = dataclasses.replace(query, base=base)
    contrasts = [self.memories[name].read(state.memories[name], query) for name in self.memories]
    levels = dict(self.levels)
    contrasts = [
        dataclasses.replace(c, level=levels[name]) if name in levels else c
        for name, c in zip(self.memories, contrasts, strict=True)]
    if not self.with_base:
      contrasts = [c.replace(negative=base) if c.negative is None else c for c in contrasts]
    composed = composition.compose(base if self.with_base else None, contrasts, self.rule)
    if self.mesh is not None:
      return sharded.shard(composed, self.mesh)
    return composed.prepared() if isinstance(composed, composition.Composed) else composed

  def imagine(
      self,
      state: WorldState,
      actions: chex.Array,
      poses: chex.Array,
      key: chex.PRNGKey,
  ) -> tuple[WorldState, jax.Array]:
    """Imagines the frames that follow, chunk after chunk, each seeing the ones before.

    Args:
      state: Running episodes.
      actions: [B T A], the actions that lead to the frames; T a multiple of the chunk.
      poses: [B T P].
      key: One key, or one per episode [B].

    Returns:
      `(state, frames [B T H W 3] uint8)`; in the state imagined frames are recent, and written
      into the memories named in `follows`.

    Raises:
      ValueError: if T is not a multiple of the chunk, the dimensions do not fit the model, or the
        key was not made by `jax.random.key`.
    """
    _check_key(key)
    batch, length = actions.shape[:2]
    if length % self.chunk or not length:
      raise ValueError(
          f'imagine got {length} actions; expected a multiple of the chunk, {self.chunk}. Pad with '
          'any action and drop the extra frames.')
    if poses.shape[:2] != (batch, length):
      raise ValueError(
          f'imagine got actions {tuple(actions.shape)} and poses {tuple(poses.shape)}; expected as '
          'many poses as actions, [B T A] and [B T P].')
    for name, given, expected in (
        ('actions', actions.shape[-1], self.action_dim), ('poses', poses.shape[-1], self.pose_dim)):
      if given != expected:
        raise ValueError(f'{name} have dimension {given}; this model was built for {expected}.')
    chunks = length // self.chunk
    split = lambda x: jnp.moveaxis(
        x.reshape(batch, chunks, self.chunk, x.shape[-1]), 1, 0)

    def body(state, inputs):
      index, action, pose = inputs
      return self._chunk(state, action, pose, jax.vmap(jax.random.fold_in, (0, None))(
          keys, index))

    keys = jax.random.split(key, batch) if key.ndim == 0 else key
    state, frames = jax.lax.scan(body, state, (jnp.arange(chunks), split(actions), split(poses)))
    frames = jnp.moveaxis(frames, 0, 1)
    frames = frames.reshape(batch, length, *frames.shape[3:])
    return state, frames if self.latents is None else self.latents.decode(frames)

  def _chunk(self, state, actions, poses, keys):
    """One chunk: read every memory, compose, sample, decode, remember."""
    codec = self.base.model.codec
    batch = actions.shape[0]
    fold = lambda purpose: jax.vmap(lambda k: jax.random.fold_in(k, purpose))(keys)
    query = expert.Query(
        recent=state.recent, actions=actions, poses=poses, key=fold(_NULL))
    denoiser = self.denoiser(state, query)
    shape = (batch, self.chunk, *self.base.model.network.frame_shape)
    # Each episode's first noise comes from its own key, so that it dreams the same in any batch;
    # the noise a stochastic sampler adds later is drawn for the batch.
    initial = jax.vmap(lambda k: jax.random.normal(k, shape[1:]))(fold(_SAMPLE))
    x = samplers.sample(
        denoiser, self.sampler, fold(_STEP)[0], shape, self.num_steps,
        schedule=self.base.model.schedule, grid=self.grid, corrector=self.corrector,
        initial=initial)
    seen = episode.Observation(frames=codec.decode(x), actions=actions, poses=poses)
    memories = dict(state.memories)
    for name in self.follows:
      if name in self.memories:
        memories[name] = self.memories[name].write(memories[name], seen, fold(_WRITE))
    return WorldState(recent=state.recent.push(seen), memories=memories), seen.frames

  def validate(self, observation: episode.Observation) -> None:
    """Checks raw frames against the model; see `episode.validate` for what it raises."""
    episode.validate(
        observation, action_dim=self.action_dim, pose_dim=self.pose_dim,
        frame_shape=(
            self.base.model.network if self.latents is None else self.latents).frame_shape)


def _checked_weight(name: str, weight: Any) -> Any:
  """A weight as a float or float32 [B], always the same type, so that new numbers do not recompile.

  Raises:
    ValueError: unless it is a finite number, or numbers, as far as that is known.
  """
  if isinstance(weight, jax.core.Tracer):
    return weight
  values = np.asarray(weight)
  if not jnp.issubdtype(values.dtype, jnp.number) or not np.isfinite(values).all():
    raise ValueError(
        f'The weight of {name!r} is {weight!r}; expected a finite number, or one per episode.')
  return jnp.asarray(weight, jnp.float32) if values.ndim else float(weight)


def _check_key(key: Any) -> None:
  if not jnp.issubdtype(jnp.asarray(key).dtype, jax.dtypes.prng_key):
    raise ValueError(
        f'The key is an array of {jnp.asarray(key).dtype}, as jax.random.PRNGKey makes them; '
        'expected one of jax.random.key(seed), or such keys [B].')


def _fold(key: chex.PRNGKey, purpose: int, index: int) -> chex.PRNGKey:
  fold = lambda k: jax.random.fold_in(jax.random.fold_in(k, purpose), index)
  return fold(key) if key.ndim == 0 else jax.vmap(fold)(key)
