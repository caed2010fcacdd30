"""Short-term memory: a second denoiser with a longer window, and a ring of recent frames.

Contrast (arXiv 2605.18813, section 3): the same network with its context nulled; or the base, which
spares a branch and the second context.
"""

import dataclasses
from typing import Any

import chex
from flax import struct
import jax
import jax.numpy as jnp

from wmpoe.data import episode
from wmpoe.experts import expert


@struct.dataclass
class ShortTerm:
  """The last `model.context` frames as a memory.

  Attributes:
    params: Parameters of the long-window network.
    weight: The contrast's weight.
    model: Static.
    baseline: Static; 'null' (the same network, context nulled) or 'base'.
    action_dim: A.
    pose_dim: P.
  """

  params: Any
  weight: Any = 1.0
  model: expert.Model = struct.field(pytree_node=False, kw_only=True)
  baseline: str = struct.field(pytree_node=False, default='null', kw_only=True)
  action_dim: int = struct.field(pytree_node=False, kw_only=True)
  pose_dim: int = struct.field(pytree_node=False, kw_only=True)

  def __post_init__(self):
    expert.check_baseline(self.baseline, ('null', 'base'))

  def init(self, batch: int) -> expert.Window:
    """An empty ring for `batch` episodes."""
    return expert.empty_window(
        batch, self.model.context, self.model.network.frame_shape, self.action_dim, self.pose_dim,
        self.model.codec.dtype)

  def write(
      self, state: expert.Window, observation: episode.Observation, key: chex.PRNGKey
  ) -> expert.Window:
    """Pushes the observed frames; the oldest fall out."""
    del key
    return state.push(observation)

  def merge(self, first: expert.Window, second: expert.Window, how: str) -> expert.Window:
    """Of two memories the second: what was seen last."""
    del how
    seen = jnp.any(second.valid, axis=1)
    return jax.tree.map(
        lambda x, y: jnp.where(seen.reshape(-1, *(1,) * (x.ndim - 1)), y, x), first, second)

  def read(self, state: expert.Window, query: expert.Query) -> expert.Contrast:
    """The long-window denoiser against itself with the window nulled, or against the base."""
    query = dataclasses.replace(query, recent=state)
    return expert.Contrast(
        positive=expert.bind(self.model, self.params, query),
        negative=(
            expert.bind(self.model, self.params, query, null=True)
            if self.baseline == 'null' else None),
        weight=self.weight, empty=~jnp.any(state.valid, axis=1))
