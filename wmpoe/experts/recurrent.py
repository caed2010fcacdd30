"""A recurrent network's state as a memory: constant in size, read at once, whatever the history.

What a state-space denoiser (`networks.ssm`) has left of the frames it was shown. It is a world
model by itself, the baseline of that kind; contrasted with the base, or with the same network
before it has seen anything, it composes like every other memory.
"""

from typing import Any

import chex
from flax import struct
import jax
import jax.numpy as jnp

from wmpoe.data import episode
from wmpoe.experts import expert
from wmpoe.networks import ssm


@struct.dataclass
class Carried:
  """What B episodes have left.

  Attributes:
    past: The network's state.
    anchor: Pose of the first frame [B P], from which all others are seen.
    count: Frames seen [B] int32.
  """

  past: ssm.State
  anchor: jax.Array
  count: jax.Array


@struct.dataclass
class Recurrent:
  """Definition of the memory.

  Attributes:
    params: Parameters of the network.
    weight: The contrast's weight.
    model: Static; its network is an `ssm.SSM` and its poses are seen from the first frame.
    baseline: Static; 'empty' (the same network before the first frame) or 'base'.
    pose_dim: P.

  Raises:
    ValueError: for a model of another kind, or an unknown baseline.
  """

  params: Any
  weight: Any = 1.0
  model: expert.Model = struct.field(pytree_node=False, kw_only=True)
  baseline: str = struct.field(pytree_node=False, default='empty', kw_only=True)
  pose_dim: int = struct.field(pytree_node=False, kw_only=True)

  def __post_init__(self):
    expert.check_baseline(self.baseline, ('empty', 'base'))
    if not isinstance(self.model.network, ssm.SSM) or self.model.anchor != 'first':
      raise ValueError(
          f'Got a {type(self.model.network).__name__} with anchor={self.model.anchor!r}; a '
          "recurrent memory needs an SSM with anchor='first', as it reads frames before it knows "
          'the last.')

  def init(self, batch: int) -> Carried:
    """Nothing seen, for `batch` episodes."""
    return Carried(
        past=self.model.network.empty(batch), anchor=jnp.zeros((batch, self.pose_dim)),
        count=jnp.zeros((batch,), jnp.int32))

  def write(
      self, state: Carried, observation: episode.Observation, key: chex.PRNGKey
  ) -> Carried:
    """Runs the network over the observed frames [B T ...], once."""
    del key
    anchor = self._anchor(state, observation.poses)
    frames = self.model.codec.encode(observation.frames)
    clean = jnp.full(frames.shape[:2], self.model.schedule.logsnr_max, jnp.float32)
    past = self.model.network.apply(
        {'params': self.params}, frames, clean, observation.actions,
        self._code(observation.poses, anchor), state.past, method='carry')
    return Carried(past=past, anchor=anchor, count=state.count + frames.shape[1])

  def read(self, state: Carried, query: expert.Query) -> expert.Contrast:
    """The network after what it saw, against itself before it saw anything, or the base."""
    poses = self._code(query.poses, self._anchor(state, query.poses))
    bind = lambda past: expert.NetworkDenoiser(
        params=self.params, past=past, actions=query.actions, poses=poses, model=self.model)
    empty = jax.tree.map(jnp.zeros_like, state.past)
    return expert.Contrast(
        positive=bind(state.past), negative=bind(empty) if self.baseline == 'empty' else None,
        weight=self.weight, empty=state.count == 0)

  def _anchor(self, state: Carried, poses: jax.Array) -> jax.Array:
    """The first frame's pose [B P]; that of `poses` [B T P] if there was none before."""
    return jnp.where(state.count[:, None] > 0, state.anchor, poses[:, 0])

  def _code(self, poses: jax.Array, anchor: jax.Array) -> jax.Array:
    return poses if self.model.pose_code is None else self.model.pose_code(poses, anchor)
