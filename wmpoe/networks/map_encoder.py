"""A learned encoder for spatial memory: what a patch shows, and whether it is worth remembering."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from wmpoe.networks import embeddings


class MapEncoder(nn.Module):
  """Encodes every patch of a frame into map features and a write gate.

  Attributes:
    features: Channels M of the map.
    patch: Patch size in pixels; the patches of the denoiser that reads the map.
    width: Hidden width.
    dtype: Computation dtype; outputs are float32.
  """

  features: int = 32
  patch: int = 8
  width: int = 128
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Frames [B T H W C] -> features [B T N M] and gates [B T N] in (0, 1)."""
    tokens = embeddings.patchify(x, self.patch).astype(self.dtype)
    hidden = nn.gelu(nn.Dense(self.width, dtype=self.dtype, name='hidden')(tokens))
    features = nn.Dense(self.features, dtype=self.dtype, name='features')(hidden)
    gate = nn.Dense(1, dtype=self.dtype, name='gate')(hidden)[..., 0]
    return features.astype(jnp.float32), nn.sigmoid(gate.astype(jnp.float32))
