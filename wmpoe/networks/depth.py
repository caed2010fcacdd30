"""How far what a picture shows is: the depth that places remembered pixels in the world.

Inverse depth, one over the distance along the optical axis, because errors of it are errors of
where a pixel lies in another view, whatever the distance. What is infinitely far, the sky, is told
apart by a classifier: in between lies nothing, and a pixel placed there flies in every other view.
"""

from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from wmpoe.networks import autoencoder


class Depth(nn.Module):
  """Inverse depth of every pixel, out of a picture's latents.

  Attributes:
    frame_shape: (H, W, 3) of the picture the latents are of.
    width: Channels.
    blocks: Residual blocks of two 3x3 convolutions.
    stride: Pixels per latent.
    dtype: Computation dtype; the output is float32.
  """

  frame_shape: tuple[int, int, int] = (60, 60, 3)
  width: int = 64
  blocks: int = 4
  stride: int = 4
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, latents: chex.Array) -> tuple[jax.Array, jax.Array]:
    """Latents [... h w C] -> inverse depth of what is no sky, and the sky's logits [... H W]."""
    lead, (h, w) = latents.shape[:-3], latents.shape[-3:-1]
    x = latents.reshape(-1, *latents.shape[-3:]).astype(self.dtype)
    x = nn.Conv(self.width, (3, 3), dtype=self.dtype, name='input')(x)
    for i in range(self.blocks):
      x = autoencoder.Residual(self.width, self.dtype, name=f'block_{i}')(x)
    x = nn.silu(nn.GroupNorm(num_groups=8, dtype=self.dtype, name='norm')(x))
    x = nn.Dense(2 * self.stride**2, dtype=self.dtype, name='output')(x).astype(jnp.float32)
    x = autoencoder.depth_to_space(x, self.stride)
    top, left = (
        (full * self.stride - size) // 2
        for full, size in zip((h, w), self.frame_shape[:2], strict=True))
    height, width = self.frame_shape[:2]
    x = x[:, top:top + height, left:left + width].reshape(*lead, height, width, 2)
    return nn.softplus(x[..., 0]), x[..., 1]

  def measure(self, latents: chex.Array) -> jax.Array:
    """Latents [... h w C] -> inverse depth [... H W], 0 for the sky, without flying pixels.

    A network that is not sure where an edge lies puts pixels between what is before and what is
    behind it. They are put to the one of the two that is nearer to them.
    """
    found, sky = self(latents)
    found = jnp.where(sky > 0.0, 0.0, found).reshape(-1, *found.shape[-2:])
    pool = lambda op, start: jax.lax.reduce_window(found, start, op, (1, 3, 3), (1, 1, 1), 'SAME')
    near, far = pool(jax.lax.max, -jnp.inf), pool(jax.lax.min, jnp.inf)
    edge = near - far > 0.2 * near + 0.05
    found = jnp.where(edge, jnp.where(found - far > near - found, near, far), found)
    return found.reshape(sky.shape)


_SKY = 0.1  # weight of the classifier's error


def depth_loss(
    network: Depth, params: chex.ArrayTree, latents: chex.Array, truth: chex.Array
) -> jax.Array:
  """Mean absolute error of the inverse depth, and the cross-entropy of what is sky.

  Args:
    network: Static.
    params: Its parameters.
    latents: [B h w C].
    truth: Inverse depth [B H W], 0 for the sky.
  """
  found, sky = network.apply({'params': params}, latents)
  is_sky = (truth == 0.0).astype(jnp.float32)
  error = jnp.mean(jnp.abs(found - truth) * (1.0 - is_sky))
  return error + _SKY * jnp.mean(optax.sigmoid_binary_cross_entropy(sky, is_sky))
