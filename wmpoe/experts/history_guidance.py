"""History guidance (arXiv 2502.06764): a network contrasted with itself over parts of its history.

The network is trained by diffusion forcing: every frame carries a noise level of its own, so that
any subset of the history can be hidden behind noise. Vanilla guidance contrasts the whole history
with none; temporal guidance composes the contrasts of several sub-windows,
`eps = eps(nothing) + sum_i w_i (eps(window i) - eps(nothing))`. It is a denoiser made of contrasts
of one network, with no base and no memory beside its window.
"""

import dataclasses
from typing import Any

import chex
from flax import struct
import jax.numpy as jnp
import numpy as np

from wmpoe.data import episode
from wmpoe.experts import composition
from wmpoe.experts import expert


@struct.dataclass
class HistoryGuidance:
  """The last `model.context` frames, read with guidance.

  Attributes:
    params: Parameters of a network trained by diffusion forcing.
    weight: Weight of what is read, in a larger composition.
    model: Static.
    windows: Static; for each sub-window of the history how many of the newest frames it begins and
      ends before: (33, 0) are the newest 33, (33, 8) those but the newest 8.
    strengths: w of each window. One window of the whole history is vanilla guidance, and with a
      strength of one no guidance.
    action_dim: A.
    pose_dim: P.

  Raises:
    ValueError: for windows the context does not hold, or strengths that are not one per window.
  """

  params: Any
  strengths: tuple[Any, ...]
  weight: Any = 1.0
  model: expert.Model = struct.field(pytree_node=False, kw_only=True)
  windows: tuple[tuple[int, int], ...] = struct.field(pytree_node=False, kw_only=True)
  action_dim: int = struct.field(pytree_node=False, kw_only=True)
  pose_dim: int = struct.field(pytree_node=False, kw_only=True)

  def __post_init__(self):
    context = self.model.context
    if not self.windows or any(not context >= begin > end >= 0 for begin, end in self.windows):
      raise ValueError(
          f'windows={self.windows} of a history of {context} frames; expected pairs (begin, end), '
          'counted back from the newest frame, begin > end.')
    if len(self.strengths) != len(self.windows):
      raise ValueError(
          f'Got {len(self.strengths)} strengths for {len(self.windows)} windows; give one each.')

  def init(self, batch: int) -> expert.Window:
    """An empty window for `batch` episodes."""
    return expert.empty_window(
        batch, self.model.context, self.model.network.frame_shape, self.action_dim, self.pose_dim,
        self.model.codec.dtype)

  def write(
      self, state: expert.Window, observation: episode.Observation, key: chex.PRNGKey
  ) -> expert.Window:
    """Pushes the observed frames; the oldest fall out."""
    del key
    return state.push(observation)

  def read(self, state: expert.Window, query: expert.Query) -> expert.Contrast:
    """The guided denoiser, against the network with its history hidden."""
    query = dataclasses.replace(query, recent=state)
    age = np.arange(self.model.context, 0, -1)  # the newest frame is 1 frame old
    bind = lambda begin, end: expert.bind(
        self.model, self.params, query, keep=jnp.asarray((age <= begin) & (age > end)))
    hidden = expert.bind(self.model, self.params, query, null=True)
    contrasts = [
        expert.Contrast(positive=bind(*window), negative=None, weight=strength)
        for window, strength in zip(self.windows, self.strengths, strict=True)]
    return expert.Contrast(
        positive=composition.compose(hidden, contrasts), negative=hidden, weight=self.weight,
        empty=~jnp.any(state.valid, axis=1))
