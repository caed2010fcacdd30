"""What was seen, put into the prediction latent by latent.

A denoiser's tokens are patches: what a warped view shows passes through them, and comes out
blurred. Here it meets the prediction in full resolution: a few convolutions see the noised frame,
the prediction, the view and what the tokens say, and answer with how much of each is to be added.
"""

from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp


class Refiner(nn.Module):
  """Adds to a prediction a mixture, by latent and channel, of what is known beside it.

  Gates start at zero: a fresh refiner changes nothing.

  Attributes:
    width: Channels of its convolutions.
    blocks: Residual blocks of two convolutions each.
    dtype: Computation dtype; parameters and what is added are float32.
  """

  width: int = 32
  blocks: int = 2
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
      self, out: chex.Array, x: chex.Array, warped: chex.Array, said: chex.Array,
      condition: chex.Array,
  ) -> jax.Array:
    """The refined prediction, float32 [B T h w C]; where a view is empty, the prediction itself.

    Args:
      out: The prediction [B T h w C].
      x: The noised frames [B T h w C].
      warped: Views warped to them, and how much of each latent was seen [B T h w C+1].
      said: What the denoiser's tokens say of each place [B T h w K].
      condition: Of each frame, its noise level included [B T D].
    """
    b, t, h, w, c = out.shape
    conv = lambda features, name, **kw: nn.Conv(
        features, (3, 3), dtype=self.dtype, name=name, **kw)
    zeros = nn.initializers.zeros
    known = jnp.concatenate([out, x, warped[..., :-1]], axis=-1).astype(jnp.float32)
    y = jnp.concatenate([known, warped[..., -1:], said], axis=-1)
    y = conv(self.width, 'embed')(y.reshape(b * t, h, w, -1))
    levels = nn.Dense(
        2 * self.blocks * self.width, dtype=self.dtype, kernel_init=zeros, name='modulation')(
            condition).reshape(b * t, 1, 1, 2 * self.blocks, self.width)
    for i in range(self.blocks):
      z = nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype, name=f'norm_{i}')(y)
      z = z * (1.0 + levels[..., 2 * i, :]) + levels[..., 2 * i + 1, :]
      y = y + conv(self.width, f'second_{i}')(nn.gelu(
          conv(self.width, f'first_{i}')(nn.gelu(z, approximate=True)), approximate=True))
    # How much of the prediction, of the noised frame and of the view; and what no multiple says.
    gates = conv(4 * c, 'gates', kernel_init=zeros)(nn.gelu(y, approximate=True))
    gates = gates.astype(jnp.float32).reshape(b, t, h, w, 4, c)
    known = jnp.concatenate([known, jnp.ones_like(out, jnp.float32)], axis=-1)
    added = jnp.sum(gates * known.reshape(gates.shape), axis=-2)
    seen = jnp.any(warped[..., -1:] > 0, axis=(2, 3), keepdims=True)
    return out + jnp.where(seen, added, 0.0)
