"""Learned odometry: how the camera moved, from the actions taken and from what is seen.

The paper's spatial expert is given poses by an encoder (arXiv 2605.18813, section 3). Here motion
is planned from the last few actions alone, which serves frames that are still to be imagined, and
corrected by the two frames it lies between, for frames that were seen. Poses are their sum.

Shapes: B episodes, T frames, h w C frames or latents, A actions.
"""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from wmpoe.networks import poses as poses_lib


class Odometry(nn.Module):
  """Motion (ahead, to the left, turned left by) from one frame to the next.

  Attributes:
    actions: How many of the latest action vectors count: the agent has inertia.
    width: Channels of the first convolution.
  """

  actions: int = 3
  width: int = 32

  def setup(self) -> None:
    """Makes the layers (Linen)."""
    self.plan = nn.Dense(3)
    self.convolutions = [
        nn.Conv(self.width * 2**i, (3, 3), strides=(2, 2)) for i in range(3)]
    self.hidden = nn.Dense(4 * self.width)
    self.correction = nn.Dense(3, kernel_init=nn.initializers.zeros)

  def planned(self, actions: chex.Array) -> jax.Array:
    """Motion by the actions alone, [B T A] -> [B T 3]; before the first frame there were none."""
    recent = [
        jnp.pad(actions, ((0, 0), (back, 0), (0, 0)))[:, :actions.shape[1]]
        for back in range(self.actions)]
    return self.plan(jnp.concatenate(recent, axis=-1))

  def __call__(self, frames: chex.Array, actions: chex.Array) -> jax.Array:
    """Motion that led to every frame, [B T h w C] and [B T A] -> [B T 3]; 0 for the first."""
    planned = self.planned(actions)
    before = jnp.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    x = jnp.concatenate([before, frames], axis=-1)
    x = x.reshape(-1, *x.shape[2:])
    for convolution in self.convolutions:
      x = nn.silu(convolution(x))
    x = jnp.concatenate([x.reshape(x.shape[0], -1), planned.reshape(-1, 3)], axis=-1)
    corrected = planned + self.correction(nn.silu(self.hidden(x))).reshape(planned.shape)
    return corrected * (jnp.arange(frames.shape[1]) > 0)[:, None]

  def all(self, frames: chex.Array, actions: chex.Array) -> tuple[jax.Array, jax.Array]:
    """Both: `(seen, planned)`."""
    return self(frames, actions), self.planned(actions)


# Motions are measured in units of this much, in cells and radians, by the loss.
_SCALE = 0.1


def odometry_loss(
    network: Odometry, params: chex.ArrayTree, frames: chex.Array, actions: chex.Array,
    poses: chex.Array, valid: chex.Array,
) -> jax.Array:
  """Squared error of the motions of a clip, as planned and as seen.

  Args:
    network: Static.
    params: Its parameters.
    frames: [B T h w C].
    actions: [B T A].
    poses: [B T 3].
    valid: [B T] bool; motions count between valid frames whose latest actions are in the clip.
  """
  seen, planned = network.apply({'params': params}, frames, actions, method='all')
  truth = poses_lib.relative(poses[:, 1:], poses[:, :-1])
  there = valid[:, 1:] & valid[:, :-1]
  # What was done before the clip is not known to its first frames, unless the episode starts there.
  known = (jnp.arange(1, frames.shape[1]) >= network.actions - 1) | ~valid[:, :1]
  weight = (there & known)[..., None].astype(jnp.float32)
  square = lambda motion: jnp.sum(weight * jnp.square((motion[:, 1:] - truth) / _SCALE))
  return (square(seen) + square(planned)) / jnp.maximum(jnp.sum(weight), 1.0)
