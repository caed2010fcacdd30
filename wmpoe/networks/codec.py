"""Between what an episode's frames are and the space a denoiser works in."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class PixelCodec:
  """Pixels as they are, scaled to [-1, 1]."""

  dtype: Any = jnp.uint8  # of the frames it encodes

  def encode(self, frames: chex.Array) -> jax.Array:
    """uint8 [... H W 3] -> float32 [... H W 3] in [-1, 1]."""
    return jnp.asarray(frames, jnp.float32) / 127.5 - 1.0

  def decode(self, x: chex.Array) -> jax.Array:
    """float32 [... H W 3] -> uint8 [... H W 3], clipped to the range of a pixel."""
    return jnp.clip(jnp.round((x + 1.0) * 127.5), min=0, max=255).astype(jnp.uint8)


@dataclasses.dataclass(frozen=True)
class LatentCodec:
  """Frames that are standardised latents already; `autoencoder.LatentSpace` makes them."""

  dtype: Any = jnp.float32

  def encode(self, frames: chex.Array) -> jax.Array:
    """Any float [... h w C] -> float32, the values unchanged."""
    return jnp.asarray(frames, jnp.float32)

  def decode(self, x: chex.Array) -> jax.Array:
    """float32 [... h w C], unchanged."""
    return jnp.asarray(x, jnp.float32)
