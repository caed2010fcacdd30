"""Between uint8 frames and the space a denoiser works in."""

import dataclasses

import chex
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class PixelCodec:
  """Pixels as they are, scaled to [-1, 1]."""

  def encode(self, frames: chex.Array) -> jax.Array:
    """uint8 [... H W 3] -> float32 [... H W 3] in [-1, 1]."""
    return jnp.asarray(frames, jnp.float32) / 127.5 - 1.0

  def decode(self, x: chex.Array) -> jax.Array:
    """float32 [... H W 3] -> uint8 [... H W 3], clipped to the range of a pixel."""
    return jnp.clip(jnp.round((x + 1.0) * 127.5), min=0, max=255).astype(jnp.uint8)
