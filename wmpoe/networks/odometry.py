"""Learned odometry: how the camera moved, from the actions taken and from what is seen.

The paper's spatial expert is given poses by an encoder (arXiv 2605.18813, section 3). Here motion
is planned from the last few actions alone, which serves frames that are still to be imagined, and
corrected by the two frames it lies between, for frames that were seen. Their sum drifts; what stops
it is a place seen again: `match` says how two pictures taken at different times lie to each other,
and how sure that is. `localization` makes poses of all this.

Shapes: B episodes, T frames, N pairs, h w C frames or latents, A actions.
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
    reach: How far apart (cells, radians) two pictures may be taken to be matched.
    pairs: Pairs of pictures matched per clip and training step.
    noise: Standard deviation of the noise the matched pictures are trained under.
  """

  actions: int = 3
  width: int = 32
  reach: tuple[float, float] = (1.6, 0.9)
  pairs: int = 12
  noise: float = 0.15

  def setup(self) -> None:
    """Makes the layers (Linen)."""
    # Actions combine: who turns while walking walks a curve.
    self.plan_hidden = [nn.Dense(2 * self.width) for _ in range(2)]
    self.plan = nn.Dense(3)
    self.convolutions = [
        nn.Conv(self.width * 2**i, (3, 3), strides=(2, 2)) for i in range(3)]
    self.hidden = nn.Dense(4 * self.width)
    self.correction = nn.Dense(3, kernel_init=nn.initializers.zeros)
    self.match_convolutions = [nn.Conv(self.width, (3, 3))] + [
        nn.Conv(self.width * 2**i, (3, 3), strides=(2, 2)) for i in range(3)]
    self.match_hidden = [nn.Dense(4 * self.width) for _ in range(2)]
    self.match_output = nn.Dense(6)

  def planned(self, actions: chex.Array) -> jax.Array:
    """Motion by the actions alone, [B T A] -> [B T 3]; before the first frame there were none."""
    recent = [
        jnp.pad(actions, ((0, 0), (back, 0), (0, 0)))[:, :actions.shape[1]]
        for back in range(self.actions)]
    x = jnp.concatenate(recent, axis=-1)
    for hidden in self.plan_hidden:
      x = nn.silu(hidden(x))
    return self.plan(x)

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

  def match(self, first: chex.Array, second: chex.Array) -> tuple[jax.Array, jax.Array]:
    """Where `second` [N h w C] was taken, seen from `first`: ahead, left, turn [N 3].

    Returns:
      Those, and the logarithm of the mean absolute error to expect of each, [N 3].
    """
    x = jnp.concatenate([first, second], axis=-1)
    for convolution in self.match_convolutions:
      x = nn.silu(convolution(x))
    x = x.reshape(x.shape[0], -1)
    for hidden in self.match_hidden:
      x = nn.silu(hidden(x))
    motion, log_error = jnp.split(self.match_output(x), 2, axis=-1)
    return 0.5 * motion, jnp.clip(log_error, min=-8.0, max=4.0)

  def all(self, frames: chex.Array, actions: chex.Array) -> tuple[jax.Array, ...]:
    """Everything at once, to make the parameters."""
    return self(frames, actions), self.planned(actions), *self.match(frames[:, 0], frames[:, -1])


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
  seen, planned, *_ = network.apply({'params': params}, frames, actions, method='all')
  truth = poses_lib.relative(poses[:, 1:], poses[:, :-1])
  there = valid[:, 1:] & valid[:, :-1]
  # What was done before the clip is not known to its first frames, unless the episode starts there.
  known = (jnp.arange(1, frames.shape[1]) >= network.actions - 1) | ~valid[:, :1]
  weight = (there & known)[..., None].astype(jnp.float32)
  square = lambda motion: jnp.sum(weight * jnp.square((motion[:, 1:] - truth) / _SCALE))
  return (square(seen) + square(planned)) / jnp.maximum(jnp.sum(weight), 1.0)


def match_loss(
    network: Odometry, params: chex.ArrayTree, frames: chex.Array, poses: chex.Array,
    valid: chex.Array, history: tuple[chex.Array, chex.Array, chex.Array], key: chex.PRNGKey,
) -> jax.Array:
  """How well pictures of a clip are matched with pictures of the same places at other times.

  Negative log-likelihood of a Laplace distribution (Kendall and Gal, arXiv 1703.04977): the network
  has to know where it cannot know.

  Args:
    network: Static.
    params: Its parameters.
    frames: [B T h w C] of the clip.
    poses: [B T 3].
    valid: [B T] bool.
    history: Frames [B H h w C], poses [B H 3] and valid [B H] of other times in the same episode.
    key: Chooses `network.pairs` pairs per clip among those within reach, and draws the noise.
  """
  past_frames, past_poses, past_valid = history
  choose, *draw = jax.random.split(key, 3)
  between = poses_lib.relative(poses[:, :, None], past_poses[:, None])  # [B T H 3]
  far = jnp.square(jnp.linalg.norm(between[..., :2], axis=-1) / network.reach[0])
  far = jnp.maximum(far, jnp.square(between[..., 2] / network.reach[1]))
  near = (far < 1.0) & valid[:, :, None] & past_valid[:, None]
  order = jnp.where(near, jax.random.uniform(choose, near.shape), -1.0).reshape(len(frames), -1)
  weight, chosen = jax.lax.top_k(order, network.pairs)
  now, then = jnp.divmod(chosen, near.shape[2])
  pick = lambda x, index: jax.vmap(lambda rows, i: rows[i])(x, index).reshape(-1, *x.shape[2:])
  noisy = lambda x, k: x + network.noise * jax.random.normal(k, x.shape)
  motion, log_error = network.apply(
      {'params': params}, noisy(pick(past_frames, then), draw[0]),
      noisy(pick(frames, now), draw[1]), method='match')
  truth = poses_lib.relative(pick(poses, now), pick(past_poses, then))
  loss = jnp.mean(jnp.abs(motion - truth) * jnp.exp(-log_error) + log_error, axis=-1)
  there = (weight.reshape(-1) >= 0.0).astype(jnp.float32)
  return jnp.sum(there * loss) / jnp.maximum(jnp.sum(there), 1.0)
